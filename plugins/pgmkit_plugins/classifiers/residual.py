"""A classifier of photographs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.images import resized
from pgmkit.learning.encoder import Encoder

_SIDE, _SHIFT = 32, 4


class ResidualClassifier(nn.Module):
    """Five residual blocks (He et al. 2016) and a linear layer, on images of 32×32.

    Other sizes are resized. In training every image is mirrored by chance, and all of a batch are
    shifted by up to 4 pixels, with what is at the edge mirrored.

    Args:
        image_channels: C.
        num_classes: number of classes, at least 2.
        width: channels of the first layer, an eighth of those of the last block.
    """

    def __init__(self, image_channels: int = 3, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        check_count("image_channels", image_channels)
        check_count("num_classes", num_classes)
        check_count("width", width)
        if num_classes < 2:
            raise ParameterError(f"num_classes must be at least 2, not {num_classes}")
        self.image_channels = image_channels
        self.num_classes = num_classes
        self.encoder = Encoder(image_channels, width, residual=True)
        self.head = nn.Linear(Encoder.features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, num_classes) for images x (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees, (B, 128), for the same images."""
        x = resized(x, _SIDE)
        return F.relu(self.encoder(_moved(x) if self.training else x))


def _moved(x: Tensor) -> Tensor:
    """Returns images (B, C, H, W) mirrored or not, each by chance, and shifted, all alike."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    x = F.pad(torch.where(mirrored, x.flip(3), x), [_SHIFT] * 4, mode="reflect")
    top, left = torch.randint(2 * _SHIFT + 1, (2,)).tolist()
    return x[..., top : top + x.shape[2] - 2 * _SHIFT, left : left + x.shape[3] - 2 * _SHIFT]
