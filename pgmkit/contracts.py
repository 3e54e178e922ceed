"""What each kind of component must be, and the checks of what comes out of it.

One Protocol for each kind, but for loaders, classifiers and commands, of which `pgmkit.hookspecs`
tells: a component is whatever has these methods, and there is no class to inherit. `check` looks at
methods and signatures where a component is built; the functions below it call a component, turn
what it raises into one error that names it, and check what it returns.
Everything that follows from these methods the engine derives: parts, guide and margins
(`pgmkit.partition`), samplers (`pgmkit.sampling`), and what is saved (`pgmkit.states`).
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from pgmkit.components import called, components_of, speaking_for
from pgmkit.errors import ParameterError, PgmkitWarning, PluginError

if TYPE_CHECKING:
    from pgmkit.generator import Generator
    from pgmkit.images.source import ImageSource, ImageSpec
    from pgmkit.priors import LatentSpec
    from pgmkit.spectrum.spectrum import Spectrum

_Result = TypeVar("_Result")
Space = Literal["images", "latents"]
SPACES: tuple[Space, ...] = ("images", "latents")
SELECTIONS = ("threshold", "resample")
_HEAD_RTOL = 1e-4
_looks: ContextVar[bool] = ContextVar("pgmkit_looks_at_values", default=True)
_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class DensityEstimator(Protocol):
    """Weighs the latents of a spectrum.

    An estimator may have an attribute `selection`: "threshold" (the default) keeps the latents with
    the largest weights; "resample" draws latents with probability proportional to their weights,
    without replacement.
    """

    def log_weights(self, spectrum: "Spectrum") -> Tensor:
        """Returns log-weights (n,) up to a constant; -inf removes a latent."""


@runtime_checkable
class RankAware(Protocol):
    """A density estimator that treats small singular values apart, and says which.

    Attributes:
        rank_rtol: those at or below this share of the largest are small.
        null: what becomes of them; see `Spectrum.log_volume`.
    """

    rank_rtol: float
    null: Literal["floor", "drop"]


class Features(Protocol):
    """Makes points of images, among which parts are sought.

    An attribute `space = "latents"` says that it makes them of latents.
    """

    def fit(self, source: "ImageSource", *, seed: int) -> object:
        """Learns what it needs from the images of a source; what it returns is not used."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns points (B, d) of images x (B, C, H, W) in [-1, 1]."""


class Partitioner(Protocol):
    """Splits the space of images into parts: the part of an image is its largest logit.

    An attribute `space = "latents"` says that it splits the space of latents instead, and
    `needs_labels = True` that it learns from the labels of a source.

    Attributes:
        num_partitions: k, as asked for until it is fitted, and as found from then on.
    """

    num_partitions: int

    def fit(self, source: "ImageSource", *, seed: int) -> object:
        """Finds the parts of the images of a source; what it returns is not used."""

    def logits(self, x: Tensor) -> Tensor:
        """Returns logits (B, k) of images x (B, C, H, W) in [-1, 1], or latents (B, M)."""


@runtime_checkable
class Represents(Protocol):
    """A partitioner whose logits are a linear head on a representation: f(x) = W φ(x) + b.

    Of φ Theorem 3 of Partition-Guided GANs speaks, and `pgmkit audit` measures it.
    """

    def represent(self, x: Tensor) -> Tensor:
        """Returns φ(x), (B, d), of images x (B, C, H, W) in [-1, 1], differentiable by x."""

    def head(self, points: Tensor) -> Tensor:
        """Returns the logits (B, k) of points φ (B, d); a `torch.nn.Linear` is such a method."""


@runtime_checkable
class Prepares(Protocol):
    """A partitioner whose `fit` is `prepare` and then `split`, the first for any number of parts.

    The number of parts and the removed mass can be chosen from what the first one returns.

    Attributes:
        num_partitions: k; may be set before `split`.
    """

    num_partitions: int

    def prepare(self, source: "ImageSource", *, seed: int) -> Tensor:
        """Learns all but the parts; returns the points (n, d) among which parts are sought."""

    def make_clusterer(self, num_partitions: int, seed: int) -> Any:
        """Returns what finds so many parts of these points, with `fit(points)` and `predict`."""

    def split(self, source: "ImageSource", *, seed: int) -> object:
        """Finds `num_partitions` parts of the images of a source, be they a part of the first."""


@runtime_checkable
class Demands(Protocol):
    """A partitioner that cannot be fitted to just any images, and says so before it is.

    Attributes:
        least_images: how many it needs at least.
    """

    least_images: int

    def check_image(self, image: "ImageSpec") -> None:
        """Raises ParameterError if it cannot be fitted to images of this shape."""


class Assign(Protocol):
    """Says in which cluster latents lie; handed to mappers."""

    def __call__(self, latents: Tensor, core: float = 1.0) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,).

        Args:
            latents: z.
            core: share of each cluster, in (0, 1], those that lie the most clearly in it; others
                get -1.
        """


class Mapper(Protocol):
    """Draws latents of one cluster."""

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        *,
        num_clusters: int,
        assign: Assign,
        prior: "LatentSpec | None",
        seed: int,
    ) -> object:
        """Learns from latents (n, M), float32, with clusters (n,), int64."""

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: "LatentSpec | None", seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, of one cluster.

        Raises:
            SamplingError: it does not find as many.
        """


class ClusterSampler(Protocol):
    """Finds clusters of latents and draws new latents from each.

    Attributes:
        labels_: cluster of each latent that was fitted, int64 (n,), from 0.
        num_clusters_: (optional) how many clusters it found, where that is its own choice.
    """

    labels_: Tensor

    def fit(self, latents: Tensor, *, generator: "Generator | None", seed: int) -> object:
        """Finds clusters in latents (n, M), float32; what it returns is not used."""

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M) from one cluster; see `Mapper.sample`."""


@runtime_checkable
class PreparesClusters(Protocol):
    """A cluster sampler whose `fit` is `prepare` and then `split`; see `Prepares`.

    Attributes:
        num_clusters: k; may be set before `split`.
    """

    num_clusters: int

    def prepare(self, latents: Tensor, *, generator: "Generator | None", seed: int) -> Tensor:
        """Learns all but the clusters; returns points (n, d) among which they are sought."""

    def make_clusterer(self, num_clusters: int, seed: int) -> Any:
        """Returns what finds so many clusters of these points."""

    def split(self, latents: Tensor, *, generator: "Generator | None", seed: int) -> object:
        """Finds the clusters of latents (n, M), be they a part of the first."""


class Backbone(Protocol):
    """Builds the matching networks of a GAN, with first weights that torch's global seed decides.

    With partitions, `num_partitions` of them, at least 1, both networks also take y (B,), int64
    from 0 to `num_partitions - 1`. A number below 1 is a `ParameterError`.
    """

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns z (B, M) -> x, or with partitions (z, y) -> x: images in [-1, 1], or points."""

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns x -> logits (B,), or with partitions (x, y) -> logits (B,)."""


class Engine(Protocol):
    """Where numbered blocks run; `pgmkit.hookspecs.pgmkit_engines` tells of optional parts."""

    def map(
        self, function: Callable[[int], _Result], blocks: Iterable[int], *, parallel: bool = True
    ) -> Iterator[tuple[int, _Result]]:
        """Yields `(block, function(block))` in any order."""


@runtime_checkable
class Rejects(Protocol):
    """A mapper or cluster sampler that does not keep all that it draws."""

    def acceptance_rate(self, cluster: int) -> float | None:
        """Returns the share that it keeps of what it draws of a cluster; None if that is all."""


@runtime_checkable
class ScoresClusters(Protocol):
    """A cluster sampler that says by how much a latent belongs to each cluster."""

    def logits(self, latents: Tensor) -> Tensor:
        """Returns logits (n, k) of latents (n, M); the largest is that of `predict`."""


@runtime_checkable
class HeldOut(Protocol):
    """A partitioner that learns its parts by heart, and so tells logits of other images, too.

    Attributes:
        held_out_logits: of images that it did not learn from, (m, k); None if there are none.
    """

    held_out_logits: Tensor | None


@runtime_checkable
class Binds(Protocol):
    """What needs its generator again after it was loaded."""

    def bind(self, generator: "Generator") -> None:
        """Takes the generator whose latents these are."""


@runtime_checkable
class Watches(Protocol):
    """Features that look through the discriminator of a GAN while it is being trained."""

    def watch(self, module: nn.Module, backbone: str, backbone_args: Mapping[str, Any]) -> None:
        """Takes the discriminator, whose weights go on changing; `fit` is to keep a copy.

        Args:
            module: maps images to logits.
            backbone: name of the backbone that built it.
            backbone_args: its parameters, and `num_partitions` where it is conditional.
        """


@runtime_checkable
class Finds(Protocol):
    """What has something to tell in reports, once it is fitted."""

    def findings(self) -> Mapping[str, Any]:
        """Returns plain values by name."""


@runtime_checkable
class Saves(Protocol):
    """What can be saved, and taken up again by an object with the same parameters."""

    def state(self) -> Mapping[str, Tensor]:
        """Returns all that was fitted, by name, without that of `parts`."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""


@runtime_checkable
class Distrusts(Protocol):
    """What runs code that a parameter names, and refuses to where a folder named it."""

    def distrust(self) -> None:
        """Is told that the parameters come from a folder that was loaded."""


@runtime_checkable
class Composed(Protocol):
    """What is made of other components, which are saved and told about with it."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """Returns the components by the names of the parameters that name them."""


_METHODS: dict[str, tuple[type, tuple[str, ...]]] = {
    "density-estimators": (DensityEstimator, ("log_weights",)),
    "features": (Features, ("fit", "__call__")),
    "partitioners": (Partitioner, ("fit", "logits")),
    "mappers": (Mapper, ("fit", "sample")),
    "cluster-samplers": (ClusterSampler, ("fit", "predict", "sample")),
    "backbones": (Backbone, ("generator", "discriminator")),
    "engines": (Engine, ("map",)),
}


def check(kind: str, component: Any) -> None:
    """Checks that an object has the methods of its kind, and that they take what they are given.

    Raises:
        PluginError: it does not keep the contract.
    """
    if kind not in _METHODS:
        return
    contract, names = _METHODS[kind]
    who = called(kind, component)
    if inspect.isclass(component):
        raise PluginError(
            f"the {who} is a class; give an object of it, such as {component.__name__}()"
        )
    for name in names:
        method, wanted = getattr(component, name, None), getattr(contract, name)
        if not callable(method):
            raise PluginError(
                f"the {who} has no method {name}{_shown(wanted)}; see pgmkit.contracts."
                f"{contract.__name__}"
            )
        try:
            given = inspect.signature(method)
        except (TypeError, ValueError):  # of C code, which tells nothing
            continue
        try:
            given.bind(*_arguments(wanted)[0], **_arguments(wanted)[1])
        except TypeError as error:
            raise PluginError(
                f"the {who} has {name}{given}, which cannot be called as {name}{_shown(wanted)}: "
                f"{error}; see pgmkit.contracts.{contract.__name__}"
            ) from error
    if kind in ("features", "partitioners") and space_of(component) not in SPACES:
        raise PluginError(
            f"the {who} has space = {space_of(component)!r}; it must be one of {', '.join(SPACES)}"
        )
    if kind == "density-estimators" and selection_of(component) not in SELECTIONS:
        raise PluginError(
            f"the {who} has selection = {selection_of(component)!r}; it must be one of "
            f"{', '.join(SELECTIONS)}"
        )
    if kind == "partitioners":
        num_partitions_of(component)


def selection_of(estimator: Any) -> str:
    """Returns how an estimator's weights are used, "threshold" or "resample"."""
    return getattr(estimator, "selection", "threshold")


def space_of(component: Any) -> str:
    """Returns what features or a partitioner looks at, "images" or "latents"."""
    return getattr(component, "space", "images")


def needs_labels(partitioner: Any) -> bool:
    """Returns whether a partitioner learns from labels, and so needs images that have some."""
    return getattr(partitioner, "needs_labels", False) is True


def num_partitions_of(partitioner: Any) -> int:
    """Returns k.

    Raises:
        PluginError: it does not say how many parts it has.
    """
    number = getattr(partitioner, "num_partitions", None)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise PluginError(
            f"the {called('partitioners', partitioner)} has num_partitions = {number!r}; it "
            "must be a whole number from 1"
        )
    return number


def check_number(partitioner: Any, number: int) -> None:
    """Raises ParameterError unless a partitioner has so many parts."""
    if num_partitions_of(partitioner) != number:
        raise ParameterError(
            f"the {called('partitioners', partitioner)} has {partitioner.num_partitions} parts, "
            f"and {number} are asked for; ask for as many as it has, or give another partitioner"
        )


def tell_of_number(who: str, what: str, asked: int, found: int) -> None:
    """Warns if a method has found another number of clusters or parts than was asked for."""
    if found != asked:
        warnings.warn(
            f"{who} finds the number of {what} itself: {found}, and not the {asked} that were "
            "asked for",
            PgmkitWarning,
            stacklevel=3,
        )


def least_images_of(partitioner: Any) -> int:
    """Returns how many images a partitioner, and all that it was built with, needs at least."""
    least = [part.least_images for part in _demanding(partitioner)]
    return max([_least_by_number(partitioner), *least])


def check_images(partitioner: Any, image: "ImageSpec", count: int) -> None:
    """Checks that a partitioner, and all that it was built with, can be fitted to some images.

    Raises:
        ParameterError: they are too few, or of a shape that one of them cannot be fitted to.
    """
    number, least = _least_by_number(partitioner), least_images_of(partitioner)
    if count < number:
        raise ParameterError(
            f"{number} partitions need as many images, and there are {count}; ask for fewer"
        )
    if count < least:
        raise ParameterError(
            f"the {called('partitioners', partitioner)} needs at least {least} images to learn "
            f"from, and there are {count}; give more, or a lower batch_size"
        )
    for part in _demanding(partitioner):
        part.check_image(image)


def _least_by_number(partitioner: Any) -> int:
    """Returns how many images its parts need: as many, or one where they were found before."""
    return 1 if getattr(partitioner, "was_fitted", False) else num_partitions_of(partitioner)


def _demanding(component: Any) -> Iterator[Demands]:
    """Yields the parts of a component that demand something; each answers for its own parts."""
    if isinstance(component, Demands):
        yield component
    else:
        for part in components_of(component):
            yield from _demanding(part)


def fit(kind: str, component: Any, source: "ImageSource", seed: int) -> None:
    """Fits features or a partitioner to the images of a source."""
    with speaking_for(called(kind, component), "in fit"):
        component.fit(source, seed=seed)
    if kind == "partitioners":
        num_partitions_of(component)


@contextmanager
def trusted() -> Iterator[None]:
    """Looks at no points and logits within the block but at their shapes.

    To see whether they are finite is to wait for the device that they are on.
    """
    token = _looks.set(False)
    try:
        yield
    finally:
        _looks.reset(token)


def points_of(features: Features, x: Tensor) -> Tensor:
    """Returns the points (B, d) that features make of images x (B, C, H, W).

    Raises:
        PluginError: they fail, or return something else.
    """
    who = called("features", features)
    with speaking_for(who, "on images"):
        points = features(x)
    return _checked(points, len(x), None, who, "points")


def logits_of(partitioner: Partitioner, x: Tensor) -> Tensor:
    """Returns the logits (B, k) of images x (B, C, H, W), or of latents (B, M).

    Raises:
        PluginError: the partitioner fails, or returns something else.
    """
    who = called("partitioners", partitioner)
    with speaking_for(who, "in logits"):
        logits = partitioner.logits(x)
    return _checked(logits, len(x), num_partitions_of(partitioner), who, "logits")


def represented(partitioner: Represents, x: Tensor) -> Tensor:
    """Returns what a partitioner makes of images x (B, C, H, W) before its head, φ(x) (B, d).

    Raises:
        PluginError: it fails, or returns something else.
    """
    who = called("partitioners", partitioner)
    with speaking_for(who, "in represent"):
        points = partitioner.represent(x)
    return _checked(points, len(x), None, who, "points in represent")


@torch.no_grad()
def check_head(partitioner: Any, x: Tensor) -> None:
    """Checks on images x (B, C, H, W), at least two, that logits are a linear head on φ(x).

    Raises:
        PluginError: the head gives other logits, or is not linear.
    """
    who, logits = called("partitioners", partitioner), logits_of(partitioner, x)
    points = represented(partitioner, x)
    with speaking_for(who, "in head"):
        found = partitioner.head(points)
        between = partitioner.head((points + points.roll(1, 0)) / 2)
    close = _HEAD_RTOL * logits.abs().amax()
    for given, wanted, fault in (
        (found, logits, "other logits than `logits` does"),
        (between, (logits + logits.roll(1, 0)) / 2, "logits that are not linear in its points"),
    ):
        given = _checked(given, len(x), logits.shape[1], who, "logits in head")
        if not ((given - wanted).abs() <= close).all():
            raise PluginError(
                f"the {who} has a head that gives {fault}; see pgmkit.contracts.Represents"
            )


def held_out_logits_of(partitioner: Partitioner) -> Tensor | None:
    """Returns logits (m, k) of images that a fitted partitioner did not learn from, if it has any.

    Raises:
        PluginError: they are something else.
    """
    told = partitioner.held_out_logits if isinstance(partitioner, HeldOut) else None
    if told is None:
        return None
    who, count = called("partitioners", partitioner), len(told) if isinstance(told, Tensor) else 0
    return _checked(told, count, num_partitions_of(partitioner), who, "held_out_logits")


def findings_of(kind: str, component: Any) -> dict[str, Any]:
    """Returns what a fitted component has to tell in reports; nothing for most.

    Raises:
        PluginError: it fails, or tells what is no plain value.
    """
    if not isinstance(component, Finds):
        return {}
    who = called(kind, component)
    with speaking_for(who, "in findings"):
        found = dict(component.findings())
    for name, value in found.items():
        if not isinstance(value, bool | int | float | str):
            raise PluginError(
                f"the {who} has {name!r} of {_kind_of(value)} among its findings; they must be "
                "numbers, texts, true or false"
            )
    return found


def acceptance_rate_of(kind: str, component: Any, cluster: int) -> float | None:
    """Returns the share that is kept of what is drawn of a cluster; None if that is all.

    Raises:
        PluginError: it fails, or is no share.
    """
    if not isinstance(component, Rejects):
        return None
    who = called(kind, component)
    with speaking_for(who, "in acceptance_rate"):
        rate = component.acceptance_rate(cluster)
    if rate is not None and not (isinstance(rate, int | float) and 0 <= rate <= 1):
        raise PluginError(
            f"the {who} has acceptance_rate({cluster}) = {rate!r:.60}; it must be a number from 0 "
            "to 1, or None"
        )
    return rate


def prepared_points(partitioner: Prepares, source: "ImageSource", seed: int) -> Tensor:
    """Returns the points (n, d) among which a partitioner seeks parts, on the CPU."""
    who = called("partitioners", partitioner)
    with speaking_for(who, "in prepare"):
        points = partitioner.prepare(source, seed=seed)
    return _checked(points, len(source), None, who, "points in prepare").detach().cpu()


class Clusterer:
    """What `make_clusterer` of a component returns, checked where it is used.

    Raises:
        PluginError: it fails, or predicts anything but a label for each point.
    """

    def __init__(self, kind: str, component: Any, number: int, seed: int) -> None:
        self._who = called(kind, component)
        with speaking_for(self._who, "in make_clusterer"):
            self._made = component.make_clusterer(number, seed)

    def fit(self, points: Any) -> "Clusterer":
        """Finds clusters of points (n, d), an array."""
        with speaking_for(self._who, "in fit of what make_clusterer returns"):
            self._made.fit(points)
        return self

    def predict(self, points: Any) -> Any:
        """Returns the cluster of each point (n, d), whole numbers (n,)."""
        with speaking_for(self._who, "in predict of what make_clusterer returns"):
            found = np.asarray(self._made.predict(points))
        if found.shape != (len(points),) or found.dtype.kind not in "iu":
            raise PluginError(
                f"the {self._who} makes a clusterer that predicts {found.dtype} numbers of shape "
                f"{found.shape} for {len(points)} points; they must be whole, one for each"
            )
        return found


def split(partitioner: Prepares, source: "ImageSource", seed: int) -> None:
    """Finds the parts by what `prepared_points` had it learn."""
    with speaking_for(called("partitioners", partitioner), "in split"):
        partitioner.split(source, seed=seed)
    num_partitions_of(partitioner)


def fit_mapper(mapper: Mapper, latents: Tensor, labels: Tensor, **context: Any) -> None:
    """Fits a mapper; see `Mapper.fit`."""
    with speaking_for(called("mappers", mapper), "in fit"):
        mapper.fit(latents, labels, **context)


def drawn_by(
    mapper: Mapper, n: int, cluster: int, *, prior: "LatentSpec | None", **context: Any
) -> Tensor:
    """Returns latents (n, M), float32, that a mapper draws of one cluster; see `Mapper.sample`.

    Raises:
        PluginError: it fails, or draws something else.
    """
    who = called("mappers", mapper)
    with speaking_for(who, "in sample"):
        drawn = mapper.sample(n, cluster, prior=prior, **context)
    return latents_of(drawn, n, None if prior is None else prior.dim, who)


def fit_sampler(
    sampler: ClusterSampler, latents: Tensor, *, generator: "Generator | None", seed: int
) -> None:
    """Fits a cluster sampler; see `ClusterSampler.fit`."""
    with speaking_for(called("cluster-samplers", sampler), "in fit"):
        sampler.fit(latents, generator=generator, seed=seed)


def labels_of(sampler: Any, count: int, asked: int | None = None) -> tuple[Tensor, int | None]:
    """Returns the clusters (n,), int64, of the latents that a sampler was fitted to.

    Args:
        sampler: was fitted.
        count: n.
        asked: the number of clusters, where it says none itself.

    Returns:
        Also how many clusters there are, empty ones included; None where nobody says.

    Raises:
        PluginError: there are no labels, or they are something else.
    """
    who = called("cluster-samplers", sampler)
    number = getattr(sampler, "num_clusters_", getattr(sampler, "num_clusters", asked))
    if number is not None and (
        not isinstance(number, int) or isinstance(number, bool) or number < 1
    ):
        raise PluginError(
            f"the {who} has num_clusters_ = {number!r} after fit; it must be a whole number from 1"
        )
    if not hasattr(sampler, "labels_"):
        raise PluginError(
            f"the {who} has no labels_ after fit; its fit must set labels_, int64 of shape (n,)"
        )
    return clusters_of(sampler.labels_, count, who, "has labels_", least=0, most=number), number


def predicted_by(
    sampler: ClusterSampler, latents: Tensor, *, most: int | None = None, who: str | None = None
) -> Tensor:
    """Returns the cluster of each latent (n, M) by a sampler, int64 (n,).

    Args:
        sampler: was fitted.
        latents: z.
        most: the number of clusters, if it is known.
        who: what it is called in messages; by default its own name.

    Raises:
        PluginError: it fails, or predicts something else.
    """
    who = who or called("cluster-samplers", sampler)
    with speaking_for(who, "in predict"):
        found = sampler.predict(latents)
    return clusters_of(found, len(latents), who, "predicts clusters", most=most)


def sampled_by(
    sampler: ClusterSampler, n: int, cluster: int, seed: int, *, dim: int, who: str | None = None
) -> Tensor:
    """Returns latents (n, dim), float32, that a sampler draws of a cluster; `who` as above.

    Raises:
        PluginError: it fails, or draws something else.
    """
    who = who or called("cluster-samplers", sampler)
    with speaking_for(who, "in sample"):
        drawn = sampler.sample(n, cluster, seed)
    return latents_of(drawn, n, dim, who)


def cluster_logits_of(sampler: Any, latents: Tensor) -> Tensor:
    """Returns logits (n, k) of latents (n, M) by a cluster sampler, on the CPU.

    Raises:
        ParameterError: it tells none; see `ScoresClusters`.
        PluginError: it fails, or returns something else.
    """
    who = called("cluster-samplers", sampler)
    if not isinstance(sampler, ScoresClusters):
        raise ParameterError(
            f"the {who} does not say by how much a latent belongs to a cluster: it has no "
            "logits(latents)"
        )
    with speaking_for(who, "in logits"):
        logits = sampler.logits(latents)
    return _checked(logits, len(latents), None, who, "logits").cpu()


def prepared_clusters(
    sampler: PreparesClusters, latents: Tensor, *, generator: "Generator | None", seed: int
) -> Tensor:
    """Returns the points (n, d) among which a sampler seeks clusters of latents (n, M).

    Raises:
        PluginError: it fails, or returns something else.
    """
    who = called("cluster-samplers", sampler)
    with speaking_for(who, "in prepare"):
        points = sampler.prepare(latents, generator=generator, seed=seed)
    if not isinstance(points, Tensor) or points.ndim != 2 or len(points) != len(latents):
        raise PluginError(
            f"the {who} prepares points of {getattr(points, 'shape', type(points).__name__)} for "
            f"{len(latents)} latents; they must be a tensor of shape ({len(latents)}, d)"
        )
    return points


def split_clusters(
    sampler: PreparesClusters, latents: Tensor, *, generator: "Generator | None", seed: int
) -> None:
    """Finds the clusters by what `prepared_clusters` had it learn."""
    with speaking_for(called("cluster-samplers", sampler), "in split"):
        sampler.split(latents, generator=generator, seed=seed)


def log_weights_of(estimator: DensityEstimator, spectrum: "Spectrum") -> Tensor:
    """Returns log-weights (n,), float64 on the CPU, that may be infinite or no numbers.

    Raises:
        PluginError: the estimator fails, or they are of another shape or type.
    """
    who = called("density-estimators", estimator)
    with speaking_for(who, "in log_weights"):
        weights = estimator.log_weights(spectrum)
    if not isinstance(weights, Tensor) or weights.shape != (len(spectrum),):
        raise PluginError(
            f"the {who} returns log-weights of {_kind_of(weights)}; they must be a tensor of shape "
            f"({len(spectrum)},)"
        )
    return weights.detach().cpu().double()


def blocks_by(
    engine: Engine, function: Callable[[int], _Result], blocks: Sequence[int], *, parallel: bool
) -> Iterator[tuple[int, _Result]]:
    """Yields each block of work with its result; see `Engine.map`.

    What the function raises stays as it is if it has the attribute `of_block`.

    Raises:
        PluginError: the engine fails, or yields anything but each block once.
    """
    who, left = called("engines", engine), set(blocks)
    try:
        with speaking_for(who, "in map"):
            for found in engine.map(function, blocks, parallel=parallel):
                pair = isinstance(found, tuple) and len(found) == 2
                block = found[0] if pair else None
                if block not in left:
                    what = f"block {block!r:.40}" if pair else _kind_of(found)
                    raise PluginError(
                        f"the {who} yields {what}; it must yield each block that it was given "
                        "once, as (block, function(block))"
                    )
                left.remove(block)
                yield block, found[1]
    except PluginError as error:
        if error.__cause__ is not None and hasattr(error.__cause__, "of_block"):
            raise error.__cause__ from None
        raise
    if left:
        raise PluginError(f"the {who} ends without {len(left)} of {len(blocks)} blocks")


def network_of(
    backbone: Backbone,
    which: Literal["generator", "discriminator"],
    num_partitions: int | None = None,
) -> nn.Module:
    """Returns one of the networks of a backbone, untrained.

    Args:
        backbone: what builds it.
        which: of both.
        num_partitions: k; None for a network without parts.

    Raises:
        PluginError: it fails, or builds something else.
    """
    who = called("backbones", backbone)
    with speaking_for(who, f"in {which}"):
        network = getattr(backbone, which)(num_partitions)
    if not isinstance(network, nn.Module) or not list(network.parameters()):
        raise PluginError(
            f"the {who} has {which}() of {_kind_of(network)}; it must return a torch.nn.Module "
            "with weights to train"
        )
    return network


def images_of(
    backbone: Backbone, network: nn.Module, latents: Tensor, parts: Tensor | None = None
) -> Tensor:
    """Returns what a generator of a backbone makes of latents z (B, M), without gradients.

    Args:
        backbone: what built it.
        network: the generator.
        latents: z.
        parts: that images are wanted of, (B,); None for a network without parts.

    Raises:
        PluginError: it fails, or makes something else than one image or point for each latent.
    """
    who = called("backbones", backbone)
    with torch.no_grad(), speaking_for(who, f"on latents {tuple(latents.shape)}"):
        images = network(latents) if parts is None else network(latents, parts)
    if not isinstance(images, Tensor) or images.ndim not in (2, 4) or len(images) != len(latents):
        raise PluginError(
            f"the {who} has a generator that returns {_kind_of(images)}; it must return images "
            f"of shape ({len(latents)}, C, H, W), or points of shape ({len(latents)}, d)"
        )
    return images


def check_discriminator(
    backbone: Backbone, network: nn.Module, x: Tensor, parts: Tensor | None = None
) -> None:
    """Raises PluginError unless a discriminator gives logits (B,) of images x (B, C, H, W).

    Args:
        backbone: what built it.
        network: the discriminator.
        x: images.
        parts: that they lie in, (B,); None for a network without parts.
    """
    who = called("backbones", backbone)
    with torch.no_grad(), speaking_for(who, f"on images {tuple(x.shape)}"):
        logits = network(x) if parts is None else network(x, parts)
    if not isinstance(logits, Tensor) or logits.shape != (len(x),):
        raise PluginError(
            f"the {who} has a discriminator that returns {_kind_of(logits)}; it must return "
            f"logits of shape ({len(x)},)"
        )


def num_classes_of(module: nn.Module, name: str) -> int:
    """Returns how many classes a network knows that the component `name` built.

    Raises:
        PluginError: it does not say so.
    """
    count: Any = getattr(module, "num_classes", None)
    if not isinstance(count, int) or count < 1:
        raise PluginError(
            f"the classifier {name!r} builds a {type(module).__name__} whose num_classes is "
            f"{count!r}; it has to be the number of its logits"
        )
    return count


def class_logits_of(module: nn.Module, x: Tensor, num_classes: int, name: str) -> Tensor:
    """Returns the logits (B, num_classes) of images x (B, C, H, W) that a classifier gives.

    Raises:
        PluginError: it fails, or returns something else.
    """
    who = f"classifier {name!r}"
    with speaking_for(who, f"on images of {'×'.join(map(str, x.shape[1:]))}"):
        logits = module(x)
    return _checked(logits, len(x), num_classes, who, "logits")


def clusters_of(
    found: Any, count: int, who: str, does: str, *, least: int = -1, most: int | None = None
) -> Tensor:
    """Returns cluster numbers (n,), int64 on the CPU, that came from a component.

    Args:
        found: what it returned.
        count: n.
        who: what the component is called.
        does: such as "predicts clusters", for messages.
        least: the smallest number; -1 belongs to no cluster.
        most: the number of clusters, if it is known.

    Raises:
        PluginError: they are of another shape or type, or there are no such clusters.
    """
    if (
        not isinstance(found, Tensor)
        or found.shape != (count,)
        or found.dtype not in _WHOLE_NUMBERS
    ):
        raise PluginError(
            f"the {who} {does} of {_kind_of(found)} for {count} latents; they must be a tensor, "
            f"int64, of shape ({count},)"
        )
    clusters = found.detach().cpu().long()
    low, high = (int(clusters.min()), int(clusters.max())) if count else (0, 0)
    if low < least or (most is not None and high >= most):
        raise PluginError(
            f"the {who} {does} from {low} to {high}; clusters are counted from 0"
            + (f" to {most - 1}" if most is not None else "")
        )
    return clusters


def latents_of(drawn: Any, count: int, dim: int | None, who: str) -> Tensor:
    """Returns latents that a component drew, float32 (n, M) on the CPU.

    Raises:
        PluginError: they are of another shape or type, or not finite.
    """
    width = dim if dim is not None else getattr(drawn, "shape", (0, 0))[-1]
    wanted = (count, width)
    if (
        not isinstance(drawn, Tensor)
        or drawn.shape != wanted
        or not drawn.is_floating_point()
        or not drawn.isfinite().all()
    ):
        raise PluginError(
            f"the {who} draws {_kind_of(drawn)}; it must draw a tensor of finite numbers of shape "
            f"{wanted}"
        )
    return drawn.detach().cpu().float()


def _checked(found: Any, count: int, width: int | None, who: str, what: str) -> Tensor:
    wanted = f"({count}, {'d' if width is None else width})"
    if (
        not isinstance(found, Tensor)
        or found.ndim != 2
        or len(found) != count
        or (width is not None and found.shape[1] != width)
        or not found.is_floating_point()
    ):
        raise PluginError(
            f"the {who} returns {what} of {_kind_of(found)} for {count} images; they must be a "
            f"tensor of floats of shape {wanted}"
        )
    if _looks.get() and not found.isfinite().all():
        raise PluginError(
            f"the {who} returns {what} that are not finite; check what it was fitted to"
        )
    return found


def _kind_of(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        extra = (
            ""
            if value.numel() == 0 or not value.is_floating_point()
            else ("" if bool(value.isfinite().all()) else ", not all of them finite")
        )
        return f"{kind} numbers of shape {tuple(value.shape)}{extra}"
    shape = getattr(value, "shape", None)
    return f"type {type(value).__name__}" + (f" and shape {tuple(shape)}" if shape else "")


def _arguments(method: Callable[..., Any]) -> tuple[list[str], dict[str, str]]:
    """Returns how the engine calls a method: placeholders by position and by name."""
    parameters = [p for n, p in inspect.signature(method).parameters.items() if n != "self"]
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return by_position, {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _shown(method: Callable[..., Any]) -> str:
    by_position, by_name = _arguments(method)
    return f"({', '.join([*by_position, *(f'{name}=...' for name in by_name)])})"
