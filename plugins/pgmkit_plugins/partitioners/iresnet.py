"""The partitioner of Partition-Guided GANs: an invertible residual network, in two stages."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

from pgmkit import contracts
from pgmkit.choosing import make_kmeans
from pgmkit.config import check_count, make_settings
from pgmkit.errors import ParameterError, PgmkitWarning, UnknownNameError
from pgmkit.images import Deformations, ImageSource, ImageSpec, preset
from pgmkit.learning import learn
from pgmkit.learning.encoder import check_images, seeded
from pgmkit.learning.neighbours import nearest_neighbors
from pgmkit.machine import tensor_threads
from pgmkit.partition import one_part
from pgmkit.progress import phase
from pgmkit.seeds import derive_seed, random_generator
from pgmkit_plugins.partitioners.invertible import Headed, Representation, check_sides
from pgmkit_plugins.partitioners.stages import (
    PartitionSettings,
    PartitionStage,
    PretextSettings,
    PretextStage,
    Stage,
    check_range,
    entropy_of,
    gathered,
    same_label,
)

Settings = TypeVar("Settings")

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper-cifar": {},
        "paper-stl": {"pretext": {"batch_size": 200}},
        "tiny": {
            "network": {"blocks": [0, 0, 4], "width": 64, "pooled": False},
            "pretext": {"steps": 2000, "batch_size": 128, "learning_rate": 0.1},
            "partition": {"steps": 2000, "learning_rate": 2e-3},
            "strength": 0.6,
        },
    }
)
"""Tables of parameters; what one leaves out is as in the paper for CIFAR-10."""

_WHO = "the partitioner 'iresnet'"
_MEASUREMENTS = 50
_NAMED = 8
_ALIKE = 0.95
"""Mean cosine between projections from which on they tell no images apart."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network.

    Args:
        blocks: residual blocks in each stage; between stages the sides of the images are halved.
        width: channels of the bottlenecks.
        coefficient: what no convolution's spectral norm is to exceed, in (0, 1).
        power_iterations: in each step of training, by which the norms are followed.
        negative_slope: of the LeakyReLU, in (0, 1).
        smooth: whether the LeakyReLU has no kink, so that φ is C¹, as Theorem 3 wants it.
        pooled: whether φ is a mean over all places; if not, it has as many numbers as an image and
            is invertible, as Theorem 3 wants it.
    """

    blocks: Sequence[int] = (4, 4, 4, 4, 4)
    width: int = 160
    coefficient: float = 0.9
    power_iterations: int = 5
    negative_slope: float = 0.2
    smooth: bool = False
    pooled: bool = True

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 0 or sum(self.blocks) < 1:
            raise ParameterError(
                "network.blocks must be whole numbers from 0, one for each stage and not all of "
                f"them 0, such as [4, 4, 4], not {list(self.blocks)}"
            )
        check_count("network.width", self.width)
        check_count("network.power_iterations", self.power_iterations)
        check_range("network.coefficient", self.coefficient, above=0, below=1)
        check_range("network.negative_slope", self.negative_slope, above=0, below=1)


class IResNet:
    """The space partitioner of Partition-Guided GANs (Armandpour et al. 2021, appendix C).

    Its logits are W·φ(x). φ is an invertible residual network (Behrmann et al. 2019), followed by a
    LeakyReLU and a mean over all places, and W has no constants. Two stages train it. In the first,
    the pretext, projections of two deformed versions of an image learn to agree, and those of
    different images to differ (NT-Xent). In the second an image x and x', one of its nearest
    neighbours among the projections, both deformed, learn to lie in one part, by Eq. 5,

        −mean log⟨p(x), p(x')⟩ − α·H(mean p(x)) + β·T,   p = softmax(W·φ),

    where H is the entropy in nats; W begins anew, and φ where the pretext ended, and both learn.
    What T is could not be read in the paper. Here it is "none"; "confidence", the mean of H(p(x));
    or "weights", the sum of the squares of W.

    Where the paper is silent: ActNorm stands before each block and before the LeakyReLU,
    projections are made by two layers with batch norm and ReLU, and each image of a pair is
    deformed on its own.

    Args:
        num_partitions: k, at least 1; a single part is everything, and nothing is learned.
        preset: the parameters below that are not given: "paper-cifar" or "paper-stl", which differ
            in the batches of the pretext, or "tiny", which trains in minutes on two cores.
        network: a table, see `NetworkSettings`.
        pretext: a table, see `pgmkit_plugins.partitioners.stages.PretextSettings`.
        partition: a table, see `pgmkit_plugins.partitioners.stages.PartitionSettings`.
        deformations: for what kind of images, see `pgmkit.images.preset`.
        strength: of the deformations, at least 0; 1 in the paper's presets.
        mixed_precision: whether it learns in bfloat16 on CUDA, as far as autocast does.

    Attributes:
        network_: φ, `network_.representation`, and W, `network_.head`; None for a single part.

    Raises:
        UnknownNameError: there is no such preset, kind of images, or third term.
        ParameterError: a parameter is unknown or outside its range.
    """

    def __init__(
        self,
        num_partitions: int = 10,
        preset: str = "paper-cifar",
        network: Mapping[str, Any] | None = None,
        pretext: Mapping[str, Any] | None = None,
        partition: Mapping[str, Any] | None = None,
        deformations: str = "auto",
        strength: float | None = None,
        mixed_precision: bool = False,
    ) -> None:
        check_count("num_partitions", num_partitions)
        if preset not in PRESETS:
            raise UnknownNameError("preset of 'iresnet'", preset, PRESETS)
        self.num_partitions = num_partitions
        self.preset = preset
        self.network = _settings(NetworkSettings, preset, "network", network)
        self.pretext = _settings(PretextSettings, preset, "pretext", pretext)
        self.partition = _settings(PartitionSettings, preset, "partition", partition)
        self.deformations = deformations
        self.strength = PRESETS[preset].get("strength", 1.0) if strength is None else strength
        self.mixed_precision = mixed_precision
        self._deformations(channels=1)  # which checks them
        self.network_: Headed | None = None
        self._pretext: Headed | None = None
        self._findings: dict[str, Any] = {}

    @property
    def least_images(self) -> int:
        """A batch of the stage that has the larger one."""
        return max(self.pretext.batch_size, self.partition.batch_size)

    def get_params(self) -> dict[str, Any]:
        """Returns all parameters as plain values, those of the preset included."""
        tables = {name: asdict(getattr(self, name)) for name in ("network", "pretext", "partition")}
        return {
            "num_partitions": self.num_partitions,
            "preset": self.preset,
            **tables,
            "deformations": self.deformations,
            "strength": self.strength,
            "mixed_precision": self.mixed_precision,
        }

    def check_image(self, image: ImageSpec) -> None:
        """Raises ParameterError if the network cannot look at images of this shape."""
        check_images(image, _WHO)
        check_sides(image.shape, self.network.blocks)

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Trains both stages, unless there is a single part.

        Raises:
            ParameterError: the images are fewer than a batch, or of a size that cannot be halved as
                often as the network does.
        """
        if self.num_partitions == 1:
            self._forget()
        else:
            self._split(source, self.prepare(source, seed=seed), seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Trains the pretext; returns the projections (n, d) of all images, of length 1."""
        contracts.check_images(self, source.image, len(source))
        self._learn_pretext(source, seed)
        points = self._points(source)
        if not points.isfinite().all():
            raise ParameterError(
                "the pretext ended with weights that are not finite; lower pretext.learning_rate"
            )
        if float(points.mean(dim=0).norm()) ** 2 > _ALIKE:
            warnings.warn(
                "the pretext has collapsed: its projections of all images are nearly the same; "
                "lower pretext.learning_rate, or train it for longer",
                PgmkitWarning,
                stacklevel=2,
            )
        return points

    def make_clusterer(self, num_partitions: int, seed: int) -> KMeans:
        """Returns k-means."""
        return make_kmeans(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Trains the partition stage from what `prepare` left, unless there is a single part."""
        if self.num_partitions == 1:
            self._forget()
        else:
            self._split(source, self._points(source), seed)

    def logits(self, x: Tensor) -> Tensor:
        """Returns W·φ(x), (B, k), of images x (B, C, H, W) in [-1, 1]."""
        return self.head(self.represent(x))

    def represent(self, x: Tensor) -> Tensor:
        """Returns φ(x), (B, d), of images x (B, C, H, W) in [-1, 1].

        Raises:
            ParameterError: images of another shape were fitted.
        """
        if self.network_ is None:
            return one_part(x)
        if tuple(x.shape[1:]) != self._image:
            raise ParameterError(
                f"{_WHO} was fitted to images of {self._image}, and these are "
                f"{tuple(x.shape[1:])}; give images of that shape"
            )
        network = self.network_.to(x.device)
        points: Tensor = network.representation(x.to(network.dtype))
        return points

    def head(self, points: Tensor) -> Tensor:
        """Returns W·φ, (B, k), of points φ (B, d)."""
        if self.network_ is None:
            return points
        logits: Tensor = self.network_.head(points)
        return logits

    def findings(self) -> Mapping[str, Any]:
        """Returns how training ended, how many parts have no images, and what labels say of it."""
        return self._findings

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights, and the shape of the images."""
        if self.network_ is None:
            return {}
        return {**self.network_.state_dict(), "image": torch.tensor(self._image)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned.

        Raises:
            ParameterError: the weights are those of another architecture.
        """
        self._forget()
        if not state:
            return
        weights = dict(state)
        self._image = tuple(weights.pop("image").tolist())
        self.num_partitions = len(weights["head.weight"])
        with torch.device("meta"):
            network = self._with_head(self._representation())
        network.representation.forget_directions()
        _check_weights(weights, network.state_dict())
        network.load_state_dict(weights, assign=True)
        network = network.to(memory_format=torch.channels_last)
        self.network_ = network.eval().requires_grad_(False)

    def _forget(self) -> None:
        self.network_, self._findings = None, {}

    def _deformations(self, channels: int) -> Deformations:
        return preset(self.deformations, channels).scaled(self.strength)

    def _representation(self) -> Representation:
        """Returns φ with weights from the global generator."""
        channels, height, width = self._image
        settings = {k: v for k, v in asdict(self.network).items() if k != "power_iterations"}
        return Representation((channels, height, width), **settings)

    def _with_head(self, representation: Representation) -> Headed:
        """Returns φ and a W with weights from the global generator."""
        head = nn.Linear(representation.num_features, self.num_partitions, bias=False)
        return Headed(representation, head)

    def _learn_pretext(self, source: ImageSource, seed: int) -> None:
        self._image = source.image.shape
        representation: Representation = seeded(self._representation, seed, "network")
        widths = (representation.num_features, *self.pretext.projection)
        projection = seeded(lambda: _projection(*widths), seed, "projection")
        network = Headed(representation, projection).to(source.device)
        network = network.to(memory_format=torch.channels_last)
        order = torch.randperm(len(source), generator=random_generator(seed, "first batch"))
        first = source.batch(order[: self.pretext.batch_size])
        representation.initialise(first)
        stage = self._learn(PretextStage, "pretext", network, source, seed)
        projection.eval()
        self._pretext = network.requires_grad_(False)
        self._findings = {"pretext loss": round(stage.last_loss, 4)}

    def _points(self, source: ImageSource) -> Tensor:
        """Returns the projections (n, d) of all images, of length 1."""
        if self._pretext is None:
            raise ParameterError(f"{_WHO} has no pretext to begin with; call prepare first")
        return functional.normalize(gathered(self._pretext, source))

    def _split(self, source: ImageSource, points: Tensor, seed: int) -> None:
        with phase("nearest neighbours"):
            neighbours = nearest_neighbors(points.to(source.device), self.partition.num_neighbors)
        assert self._pretext is not None
        begun = copy.deepcopy(self._pretext.representation).requires_grad_(True)
        network: Headed = seeded(lambda: self._with_head(begun), seed, "head").to(source.device)
        stage = self._learn(
            PartitionStage, "partition", network, source, seed, neighbours=neighbours
        )
        network.representation.settle()
        self.network_ = network.eval().requires_grad_(False)
        logits = gathered(network, source)
        entropy = float(entropy_of(logits.double().softmax(dim=1).mean(dim=0)))
        sizes = logits.argmax(dim=1).bincount(minlength=self.num_partitions)
        self._findings |= {
            "partition loss": round(stage.last_loss, 4),
            "entropy": round(entropy, 4),
            "dead parts": int((sizes == 0).sum()),
        }
        if source.labels is not None:
            share = same_label(neighbours, source.labels)
            self._findings["neighbours of the same label"] = round(share, 4)
        _warn_of(sizes)

    def _learn(
        self,
        kind: Callable[..., Stage],
        name: str,
        network: Headed,
        source: ImageSource,
        seed: int,
        **more: Any,
    ) -> Stage:
        """Trains a network in one of the stages."""
        settings = getattr(self, name)
        steps = settings.steps or settings.epochs * (len(source) // settings.batch_size)
        stage = kind(
            network,
            source,
            settings,
            steps=steps,
            power_iterations=self.network.power_iterations,
            deformations=self._deformations(self._image[0]),
            in_bfloat16=self.mixed_precision and source.device.type == "cuda",
            **more,
        )
        with tensor_threads(1):  # since two would stall where cores are busy
            learn(
                stage,
                steps=steps,
                seed=derive_seed(seed, name),
                name=f"{name} stage",
                source=source,
                batch_size=settings.batch_size,
                identity={"partitioner": self.get_params(), "images": source.summary()},
                measure_steps=math.ceil(steps / _MEASUREMENTS),
            )
        return stage


def _settings(
    cls: type[Settings], preset: str, name: str, given: Mapping[str, Any] | None
) -> Settings:
    """Returns the settings in a table; a preset has those that are not given.

    Raises:
        ParameterError: one is unknown or outside its range.
    """
    where, given = f"the table {name!r} of 'iresnet'", dict(given or {})
    values = {**PRESETS[preset].get(name, {}), **given}
    for length, other in (("epochs", "steps"), ("steps", "epochs")):
        if values.get(length) is not None and given.get(other) is None:
            values[other] = None
    return make_settings(cls, values, where)


def _projection(features: int, hidden: int, outputs: int) -> nn.Sequential:
    """Returns what makes of φ (B, d) that which the pretext compares, (B, outputs)."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def _check_weights(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises ParameterError unless weights have the names and shapes of a network's."""
    for name in [*wanted, *weights]:
        found, needed = (
            tuple(state[name].shape) if name in state else "none" for state in (weights, wanted)
        )
        if found != needed:
            raise ParameterError(
                f"these are weights of another architecture: {name!r} is {found}, and in {_WHO} it "
                f"is {needed}; give the parameters that it was fitted with"
            )


def _warn_of(sizes: Tensor) -> None:
    """Warns of parts without images, and of most images in few parts; sizes are (k,)."""
    dead = (sizes == 0).nonzero().flatten().tolist()
    if dead:
        named = f"{', '.join(map(str, dead[:_NAMED]))}{', ...' if len(dead) > _NAMED else ''}"
        warnings.warn(
            f"{len(dead)} of {len(sizes)} parts have no images: {named}; ask for fewer parts, "
            "raise partition.alpha, or train for longer",
            PgmkitWarning,
            stacklevel=2,
        )
    effective = float(entropy_of(sizes.double() / sizes.sum()).exp())
    if effective <= len(sizes) / 2:
        warnings.warn(
            f"the parts have collapsed: images lie in as few of them as if there were "
            f"{effective:.1f} of one size, of {len(sizes)}; raise partition.alpha, or train the "
            "pretext for longer",
            PgmkitWarning,
            stacklevel=2,
        )
