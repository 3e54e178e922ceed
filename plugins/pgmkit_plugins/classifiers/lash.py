"""The evaluation classifier of the LASH paper."""

from torch import Tensor, nn

from pgmkit.config import check_count
from pgmkit.errors import ParameterError


class LASHClassifier(nn.Module):
    """The evaluation classifier of the LASH paper (appendix A.2) for 28×28 images.

    Two convolutions (kernel 5, padding 2; 16 and 32 maps), each with ReLU and 2×2 max pooling, and
    a linear layer. Larger images lose their border, which undoes the padding from 28 to 32.

    Args:
        image_channels: C.
        num_classes: number of classes, at least 2.
        image_size: side of the square that is looked at, a multiple of 4.
    """

    def __init__(
        self, image_channels: int = 1, num_classes: int = 10, image_size: int = 28
    ) -> None:
        super().__init__()
        check_count("image_channels", image_channels)
        check_count("num_classes", num_classes)
        check_count("image_size", image_size)
        if image_size % 4:
            raise ParameterError(f"image_size must be a multiple of 4, not {image_size}")
        if num_classes < 2:
            raise ParameterError(f"num_classes must be at least 2, not {num_classes}")
        self.image_channels = image_channels
        self.num_classes = num_classes
        self.image_size = image_size
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (image_size // 4) ** 2, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, num_classes) for images x (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.layers[-1](self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees, (B, 2 · image_size²), for the same images."""
        height, width = x.shape[-2:]
        top, left = (height - self.image_size) // 2, (width - self.image_size) // 2
        if top < 0 or left < 0:
            raise ParameterError(
                f"the classifier looks at {self.image_size}×{self.image_size} pixels, and the "
                f"images have {height}×{width}"
            )
        x = x[..., top : top + self.image_size, left : left + self.image_size]
        features: Tensor = self.layers[:-1](x)
        return features
