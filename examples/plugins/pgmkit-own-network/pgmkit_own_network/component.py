"""What a network of one's own sees."""

from pathlib import Path

from torch import nn

from pgmkit.images import as_channels
from pgmkit.loading.weights import read_weights


class Net(nn.Sequential):
    """Put your network here: it maps RGB images (B, 3, H, W) in [-1, 1] to features (B, d)."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )


class OwnNetwork(nn.Module):
    """The features that `Net` makes of images.

    They are saved with what is made of them, so that loading needs no weight file.

    Args:
        weights: file of its weights, such as .safetensors or .pt, read by each fit.
    """

    def __init__(self, weights: str):
        super().__init__()
        self.weights = weights
        self.net = Net().requires_grad_(False)

    def fit(self, source, *, seed):
        """Reads the weights; nothing is learned."""
        self.net.load_state_dict(read_weights(Path(self.weights).expanduser()))

    def forward(self, x):
        """Returns features (B, d) of images x (B, C, H, W) in [-1, 1]."""
        pixels = as_channels(x.float(), 3, "the network")
        return self.net.to(x.device)(pixels)
