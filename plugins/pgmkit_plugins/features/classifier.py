"""Features of a trained classifier."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from pgmkit.evaluate.classifier import load_classifier
from pgmkit.images import ImageSource
from pgmkit.learning.encoder import check_images


class OfClassifier:
    """What a classifier's last layer sees, or its logits if it does not say; not label-free.

    Args:
        classifier: reference of a classifier, such as "mnist-classifier".
        normalize: whether features are divided by their length.
    """

    def __init__(self, classifier: str, normalize: bool = True) -> None:
        self.classifier = classifier
        self.normalize = normalize
        self._module = load_classifier(classifier).module

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Checks that these are images; there is nothing to learn."""
        check_images(source.image, "features 'classifier'")

    def __call__(self, x: Tensor) -> Tensor:
        """Returns features (B, D), float32, of images x (B, C, H, W)."""
        module = self._module.to(x.device)
        found: Tensor = getattr(module, "features", module)(x.float()).float().flatten(1)
        return functional.normalize(found, dim=1) if self.normalize else found

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights of the classifier."""
        weights: Mapping[str, Tensor] = self._module.state_dict()
        return weights

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self._module.load_state_dict(dict(state))
