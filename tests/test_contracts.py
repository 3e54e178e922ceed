"""Contracts of components: what is checked where, what is recorded, and what is saved."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_forked
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from tiny import install, run_pgmkit
from torch import Tensor, nn

import pgmkit
from pgmkit import hookspecs
from pgmkit.components import parameters_of
from pgmkit.errors import ParameterError, PluginError, UnknownNameError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.diagnostics import reproducibility
from pgmkit.images.generated import GeneratedImages
from pgmkit.images.source import ImageSource
from pgmkit.plugins import build, installed
from pgmkit.spectrum.blocks import BlockStore
from pgmkit.states import load_state_of, state_of, table_of, why_not_saved
from pgmkit.train.gan import GANSettings, GANTask

COUNT = 60


def generator_of() -> pgmkit.Generator:
    """Returns a toy, 2 latents to 1×8×8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 64), nn.Tanh())
    return pgmkit.Generator(net, latent=pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((1, 8, 8)))


def spectrum_of() -> pgmkit.Spectrum:
    generator = generator_of()
    latents = generator.sample_latents(COUNT, seed=0)
    values = latents.double().abs().sort(dim=1, descending=True).values + 1
    return pgmkit.Spectrum(latents, values, generator.log_prior(latents))


def shatter(**methods: Any) -> pgmkit.ShatteredGenerator:
    """Shatters the toy in a moment; what is not given is harmless."""
    settings = {"density": "none", "remove": 0.0, "spectrum": spectrum_of(), **methods}
    if "sampler" not in settings:
        settings = {"partitioner": "kmeans", "mapper": "prior", "clusters": 2, **settings}
    return pgmkit.shatter(generator_of(), **settings)


class Brightness:
    """Features of one's own."""

    def fit(self, source: ImageSource, *, seed: int) -> None: ...

    def __call__(self, x: Tensor) -> Any:
        return x.flatten(1)[:, :3]


class Signs:
    """A partitioner of one's own: the sign of the first pixel."""

    num_partitions: Any = 2

    def fit(self, source: ImageSource, *, seed: int) -> None: ...

    def logits(self, x: Tensor) -> Any:
        first = x.flatten(1)[:, 0]
        return torch.stack([first, -first], dim=1)


class Corner:
    """A mapper of one's own."""

    def fit(self, latents: Tensor, labels: Tensor, **context: Any) -> None: ...

    def sample(self, n: int, cluster: int, **context: Any) -> Any:
        return torch.full((n, 2), float(cluster))


class Sides:
    """A cluster sampler of one's own: the sign of the first coordinate."""

    num_clusters = 2

    def fit(self, latents: Tensor, *, generator: object, seed: int) -> None:
        self.labels_: Any = (latents[:, 0] > 0).long()

    def predict(self, latents: Tensor) -> Any:
        return (latents[:, 0] > 0).long()

    def sample(self, n: int, cluster: int, seed: int) -> Any:
        return torch.full((n, 2), 2.0 * cluster - 1)


class Central:
    """A density estimator of one's own."""

    def log_weights(self, spectrum: pgmkit.Spectrum) -> Any:
        return -spectrum.latents.norm(dim=1)


def variant(base: type, **attributes: Any) -> Any:
    """Returns an object of a class with some of its attributes replaced."""
    return type(f"My{base.__name__}", (base,), attributes)()


def using(component: Any) -> dict[str, Any]:
    """Returns the argument of `shatter` by which a component of one's own is used."""
    if isinstance(component, Brightness):
        return {"partitioner": {"name": "kmeans", "features": component}}
    names = {Signs: "partitioner", Corner: "mapper", Sides: "sampler", Central: "density"}
    return {next(name for kind, name in names.items() if isinstance(component, kind)): component}


def complaint(action: Callable[[], object], error: type[Exception] = PluginError) -> str:
    """Returns the one line that an action ends in."""
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where anything is computed, or takes a second of this process."""

    def fail(*arguments: object, **more: object) -> None:
        pytest.fail("computed")

    monkeypatch.setattr("pgmkit.shattering.algorithm.compute_spectrum", fail)
    monkeypatch.setattr(pgmkit.Generator, "__call__", fail)
    started = time.process_time()
    yield
    assert time.process_time() - started < 1


# Where a component is built


@pytest.mark.parametrize("component", [Brightness(), Signs(), Corner(), Sides(), Central()])
def test_an_object_that_keeps_its_contract_serves_as_a_method(component: Any) -> None:
    methods = using(component)
    shattered = shatter(**methods)
    assert sum(shattered.cluster_sizes) == COUNT
    assert shattered.sample(5, cluster=0).shape == (5, 1, 8, 8)


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(
    ("component", "said"),
    [
        (
            variant(Brightness, fit=None),
            r"the features 'MyBrightness' has no method fit\(source, seed=...\); see "
            r"pgmkit.contracts.Features",
        ),
        (
            variant(Brightness, __call__=None),
            r"the features 'MyBrightness' has no method __call__\(x\)",
        ),
        (
            variant(Brightness, fit=lambda self, X: None),  # noqa: N803
            r"the features 'MyBrightness' has fit\(X\), which cannot be called as fit\(source, "
            r"seed=...\): got an unexpected keyword argument 'seed'",
        ),
        (
            variant(Brightness, space="pixels"),
            r"the features 'MyBrightness' has space = 'pixels'; it must be one of images, latents",
        ),
        (
            variant(Signs, logits=None),
            r"the partitioner 'MySigns' has no method logits\(x\); see pgmkit.contracts.Partit",
        ),
        (
            variant(Signs, fit=lambda self, X, y=None: None),  # noqa: N803
            r"the partitioner 'MySigns' has fit\(X, y=None\), which cannot be called as fit\(sour",
        ),
        (
            variant(Signs, num_partitions=None),
            r"the partitioner 'MySigns' has num_partitions = None; it must be a whole number from",
        ),
        (variant(Signs, num_partitions=0), r"'MySigns' has num_partitions = 0; it must be a whol"),
        (variant(Signs, num_partitions="3"), r"'MySigns' has num_partitions = '3'; it must be a"),
        (variant(Signs, num_partitions=True), r"'MySigns' has num_partitions = True; it must be"),
        (
            variant(Signs, space="pixels"),
            r"the partitioner 'MySigns' has space = 'pixels'; it must be one of images, latents",
        ),
        (
            variant(Corner, sample=None),
            r"the mapper 'MyCorner' has no method sample\(n, cluster, assign=..., prior=..., seed",
        ),
        (
            variant(Corner, sample=lambda self, n, cluster: None),
            r"the mapper 'MyCorner' has sample\(n, cluster\), which cannot be called as sample\(n",
        ),
        (
            variant(Sides, predict=None),
            r"the cluster-sampler 'MySides' has no method predict\(latents\)",
        ),
        (
            variant(Sides, fit=lambda self, X: None),  # noqa: N803
            r"the cluster-sampler 'MySides' has fit\(X\), which cannot be called as fit\(latents, "
            r"generator=..., seed=...\)",
        ),
        (
            variant(Sides, sample=lambda self, n: None),
            r"'MySides' has sample\(n\), which cannot be called as sample\(n, cluster, seed\)",
        ),
        (
            variant(Central, log_weights=None),
            r"the density-estimator 'MyCentral' has no method log_weights\(spectrum\)",
        ),
        (
            variant(Central, log_weights=lambda self: None),
            r"'MyCentral' has log_weights\(\), which cannot be called as log_weights\(spectrum\)",
        ),
    ],
)
def test_what_breaks_its_contract_is_refused_before_anything_is_computed(
    component: Any, said: str
) -> None:
    assert re.search(said, complaint(lambda: shatter(**using(component))))


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("density-estimators", Central),
        ("features", Brightness),
        ("partitioners", Signs),
        ("mappers", Corner),
        ("cluster-samplers", Sides),
    ],
)
def test_a_class_in_the_place_of_an_object_is_refused(kind: str, wrong: type) -> None:
    name = wrong.__name__
    said = complaint(lambda: build(kind, wrong))
    assert said.startswith(f"the {kind.removesuffix('s') if kind != 'features' else kind} {name!r}")
    assert f"is a class; give an object of it, such as {name}()" in said


BROKEN = """
import click
from pgmkit import Component, hookimpl
from pgmkit.plugins import build

def offered(name):
    return [Component("broken", f"MODULE:{name}", "breaks its contract")]

@hookimpl
def pgmkit_density_estimators():
    return offered("Nothing")

@hookimpl
def pgmkit_features():
    return offered("Nothing")

@hookimpl
def pgmkit_partitioners():
    return offered("Nothing")

@hookimpl
def pgmkit_mappers():
    return offered("Nothing")

@hookimpl
def pgmkit_cluster_samplers():
    return offered("Nothing")

@hookimpl
def pgmkit_backbones():
    return offered("Nothing")

@hookimpl
def pgmkit_commands():
    return [Component("use-broken", "MODULE:use", "builds what breaks its contract")]

class Nothing:
    def __init__(self, num_partitions=2, num_clusters=2):
        self.num_partitions = num_partitions

@click.command()
def use():
    build("partitioners", "broken")
"""


@pytest.fixture
def broken(site: Path) -> Iterator[None]:
    """A distribution that offers, for every kind, a component without a method."""
    install(site, "acme-broken", BROKEN)
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("density-estimators", "log_weights(spectrum)"),
        ("features", "fit(source, seed=...)"),
        ("partitioners", "fit(source, seed=...)"),
        ("mappers", "fit(latents, labels, num_clusters=..., assign=..., prior=..., seed=...)"),
        ("cluster-samplers", "fit(latents, generator=..., seed=...)"),
        ("backbones", "generator(num_partitions)"),
    ],
)
def test_what_a_plugin_builds_is_checked_and_called_by_its_qualified_name(
    kind: str, missing: str
) -> None:
    said = complaint(lambda: build(kind, "broken"))
    singular = kind if kind == "features" else kind[:-1]
    assert said.startswith(f"the {singular} 'acme-broken:broken' has no method {missing}; see pgm")


def test_a_factory_that_returns_nothing_is_named(site: Path) -> None:
    install(
        site, "acme-broken", BROKEN.replace("class Nothing:", "def Nothing(): ...\nclass Other:")
    )
    installed.cache_clear()
    try:
        said = complaint(lambda: build("features", "broken"))
    finally:
        installed.cache_clear()
    assert said == "the features 'acme-broken:broken' is built as None, which is no object"
    assert parameters_of(None) == {}


@pytest.mark.usefixtures("broken")
def test_the_command_line_says_one_line_and_shows_the_traceback_on_demand(site: Path) -> None:
    finished = run_pgmkit("use-broken")
    assert (finished.code, finished.stdout) == (1, "")
    assert finished.stderr.startswith(
        "error: the partitioner 'acme-broken:broken' has no method fit(source, seed=...); see pgmk"
    )
    assert finished.stderr.count("\n") == 1
    here = f"import sys; sys.path.insert(0, {str(site)!r})"
    code = f"{here}; from pgmkit.cli import main; main()"
    printed = run_forked("-c", code, "use-broken", PGMKIT_DEBUG="1").stderr
    assert "Traceback (most recent call last)" in printed
    assert (
        "pgmkit.errors.PluginError: the partitioner 'acme-broken:broken' has no method fit"
        in printed
    )
    assert 'acme_broken.py", line' in printed


# Where results enter


def raises(*arguments: object, **more: object) -> None:
    raise RuntimeError("deep inside\nand on a second line")


def fits_and_sets(**attributes: Any) -> Callable[..., None]:
    def fit(self: Any, *arguments: object, **more: object) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    return fit


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"fit": raises}, "failed in fit: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
        ({"__call__": raises}, "failed on images: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
        (
            {"__call__": lambda self, x: x.flatten(1).numpy()},
            "returns points of type ndarray and shape (60, 64) for 60 images; they must be a "
            "tensor of floats of shape (60, d)",
        ),
        ({"__call__": lambda self, x: x.flatten(1)[1:]}, "returns points of float32 numbers of sh"),
        ({"__call__": lambda self, x: x}, "points of float32 numbers of shape (60, 1, 8, 8) for 6"),
        ({"__call__": lambda self, x: x.flatten(1).long()}, "returns points of int64 numbers of s"),
        ({"__call__": lambda self, x: x.flatten(1) / 0}, "returns points that are not finite; che"),
        ({"__call__": lambda self, x: None}, "returns points of type NoneType for 60 images; they"),
    ],
)
def test_points_that_features_make_are_checked(replaced: dict[str, Any], said: str) -> None:
    message = complaint(lambda: shatter(**using(variant(Brightness, **replaced))))
    assert message.startswith("the features 'MyBrightness' ")
    assert said in message


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"fit": raises}, "failed in fit: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
        ({"logits": raises}, "failed in logits: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
        (
            {"logits": lambda self, x: x.flatten(1)[:, :3]},
            "returns logits of float32 numbers of shape (60, 3) for 60 images; they must be a "
            "tensor of floats of shape (60, 2)",
        ),
        ({"logits": lambda self, x: x.flatten(1)[:, 0]}, "logits of float32 numbers of shape (60,"),
        ({"logits": lambda self, x: x.flatten(1)[1:, :2]}, "of float32 numbers of shape (59, 2) f"),
        ({"logits": lambda self, x: x.flatten(1)[:, :2].long()}, "logits of int64 numbers of shap"),
        ({"logits": lambda self, x: x.flatten(1)[:, :2].numpy()}, "logits of type ndarray and sha"),
        ({"logits": lambda self, x: x.flatten(1)[:, :2] / 0}, "logits that are not finite; check "),
        ({"fit": fits_and_sets(num_partitions=None)}, "has num_partitions = None; it must be a wh"),
        (
            {"fit": fits_and_sets(num_partitions=3)},
            "of shape (60, 2) for 60 images; they must be a",
        ),
    ],
)
def test_logits_of_partitioners_are_checked(replaced: dict[str, Any], said: str) -> None:
    message = complaint(lambda: shatter(**using(variant(Signs, **replaced))))
    assert message.startswith("the partitioner 'MySigns' ")
    assert said in message


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (raises, "failed in log_weights: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
        (
            lambda self, spectrum: spectrum.log_prior.numpy(),
            "returns log-weights of type ndarray and shape (60,); they must be a tensor of shape "
            "(60,)",
        ),
        (
            lambda self, spectrum: spectrum.log_prior[:-1],
            "float64 numbers of shape (59,); they mus",
        ),
        (lambda self, spectrum: spectrum.singular_values, "float64 numbers of shape (60, 2); they"),
        (lambda self, spectrum: 0.0, "returns log-weights of type float; they must be a tensor of"),
        (lambda self, spectrum: spectrum.log_prior * torch.nan, "removes every latent: all its"),
    ],
)
def test_log_weights_are_checked(weights: Any, said: str) -> None:
    message = complaint(lambda: shatter(**using(variant(Central, log_weights=weights))))
    assert message.startswith("the density-estimator 'MyCentral' ")
    assert said in message


LABELS = torch.arange(COUNT) % 2


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"labels_": LABELS - 1}, "has labels_ from -1 to 0; clusters are counted from 0 to 1"),
        ({"labels_": LABELS * 2}, "has labels_ from 0 to 2; clusters are counted from 0 to 1"),
        (
            {"labels_": LABELS.float()},
            "has labels_ of float32 numbers of shape (60,) for 60 latents; they must be a tensor, "
            "int64, of shape (60,)",
        ),
        ({"labels_": LABELS.bool()}, "has labels_ of bool numbers of shape (60,) for 60 latents"),
        ({"labels_": LABELS[1:]}, "has labels_ of int64 numbers of shape (59,) for 60 latents; th"),
        ({"labels_": LABELS[:, None]}, "has labels_ of int64 numbers of shape (60, 1) for 60 late"),
        ({"labels_": LABELS.numpy()}, "has labels_ of type ndarray and shape (60,) for 60 latents"),
        ({"labels_": LABELS.tolist()}, "has labels_ of type list for 60 latents; they must be a t"),
        ({}, "has no labels_ after fit; its fit must set labels_, int64 of shape (n,)"),
        (
            {"labels_": LABELS, "num_clusters_": "two"},
            "has num_clusters_ = 'two' after fit; it must be a whole number from 1",
        ),
    ],
)
def test_labels_of_cluster_samplers_are_checked(attributes: dict[str, Any], said: str) -> None:
    sampler = variant(Sides, fit=fits_and_sets(**attributes))
    message = complaint(lambda: shatter(sampler=sampler))
    assert message.startswith("the cluster-sampler 'MySides' ")
    assert said in message


class Thirds:
    """A cluster sampler that says nowhere how many clusters it finds."""

    sample = Sides.sample

    def fit(self, latents: Tensor, *, generator: object, seed: int) -> None:
        self.labels_ = self.predict(latents)

    def predict(self, latents: Tensor) -> Tensor:
        return (latents[:, 0] > -0.5).long() + (latents[:, 0] > 0.5).long()


@pytest.mark.parametrize(("clusters", "count"), [(None, 3), (3, 3), (5, 5)])
def test_what_a_sampler_finds_is_counted_where_nobody_says_a_number(
    clusters: int | None, count: int
) -> None:
    sampler = Thirds()
    sizes = shatter(sampler=sampler, clusters=clusters).cluster_sizes
    assert sizes == sampler.labels_.bincount(minlength=count).tolist()
    assert len(sizes) == count
    few = shatter(sampler=sampler, clusters=clusters, spectrum=spectrum_of().first(6))
    assert sum(few.cluster_sizes) == 6


def test_the_number_of_clusters_is_asked_for_where_it_is_needed() -> None:
    said = complaint(lambda: shatter(sampler=Thirds(), remove="auto"), ParameterError)
    assert said == "choosing the removed mass needs at least 2 clusters, not 1; give their number"


def test_a_cluster_sampler_that_fails_is_named() -> None:
    message = complaint(lambda: shatter(sampler=variant(Sides, fit=raises)))
    assert message.startswith(
        "the cluster-sampler 'MySides' failed in fit: RuntimeError: deep inside; PGMKIT_DEBUG=1"
    )


@pytest.mark.parametrize(
    ("predict", "said"),
    [
        (raises, "failed in predict: RuntimeError: deep inside"),
        (
            lambda self, z: np.zeros(len(z), int),
            "predicts clusters of type ndarray and shape (60,)",
        ),
        (lambda self, z: z[:, 0], "predicts clusters of float32 numbers of shape (60,) for 60 lat"),
        (lambda self, z: LABELS[1:], "predicts clusters of int64 numbers of shape (59,) for 60 la"),
        (lambda self, z: LABELS + 1, "predicts clusters from 1 to 2; clusters are counted from 0"),
        (lambda self, z: LABELS - 2, "predicts clusters from -2 to -1; clusters are counted from"),
    ],
)
def test_predicted_clusters_are_checked(predict: Any, said: str) -> None:
    shattered = shatter(sampler=variant(Sides, predict=predict))
    message = complaint(lambda: shattered.predict(spectrum_of().latents))
    assert message.startswith("the cluster-sampler 'MySides' ")
    assert said in message


DRAWS = [
    (raises, "failed in sample: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
    (
        lambda self, n, cluster, *rest, **context: torch.zeros(n + 1, 2),
        "draws float32 numbers of shape (6, 2); it must draw a tensor of finite numbers of shape "
        "(5, 2)",
    ),
    (
        lambda self, n, cluster, *rest, **context: torch.zeros(n, 3),
        "draws float32 numbers of shape (5, 3)",
    ),
    (
        lambda self, n, cluster, *rest, **context: torch.full((n, 2), torch.nan),
        "draws float32 numbers of shape (5, 2), not all of them finite; it must",
    ),
    (
        lambda self, n, cluster, *rest, **context: torch.zeros(n, 2).int(),
        "draws int32 numbers of shape ",
    ),
    (
        lambda self, n, cluster, *rest, **context: np.zeros((n, 2)),
        "draws type ndarray and shape (5, 2); ",
    ),
    (
        lambda self, n, cluster, *rest, **context: None,
        "draws type NoneType; it must draw a tensor of fin",
    ),
]


@pytest.mark.parametrize(("sample", "said"), DRAWS)
def test_draws_of_cluster_samplers_and_of_mappers_are_checked(sample: Any, said: str) -> None:
    for kind, base in (("cluster-sampler", Sides), ("mapper", Corner)):
        shattered = shatter(**using(variant(base, sample=sample)))
        message = complaint(lambda made=shattered: made.sample(5, cluster=0))
        assert message.startswith(f"the {kind} 'My{base.__name__}' ")
        assert said in message


@pytest.mark.parametrize(("sample", "said"), DRAWS)
def test_draws_of_a_proposal_are_checked(sample: Any, said: str) -> None:
    mapper = {"name": "rejection", "proposal": variant(Corner, sample=sample)}
    message = complaint(lambda: shatter(mapper=mapper))
    assert message.startswith("the mapper 'MyCorner' ")
    assert said.replace("(5,", "(64,").replace("(6,", "(65,") in message


def test_a_mapper_that_fails_is_named() -> None:
    message = complaint(lambda: shatter(mapper=variant(Corner, fit=raises)))
    assert message.startswith("the mapper 'MyCorner' failed in fit: RuntimeError: deep inside; PG")


@pytest.mark.parametrize(
    ("component", "said"),
    [
        (
            variant(Signs, findings=raises),
            "the partitioner 'MySigns' failed in findings: RuntimeError: deep inside; PGMKIT_DEBUG",
        ),
        (
            variant(Signs, findings=lambda self: {"sizes": torch.ones(3)}),
            "the partitioner 'MySigns' has 'sizes' of float32 numbers of shape (3,) among its find",
        ),
        (
            variant(Signs, held_out_logits=np.zeros((9, 2))),
            "the partitioner 'MySigns' returns held_out_logits of type ndarray and shape (9, 2)",
        ),
        (
            variant(Signs, held_out_logits=torch.zeros(9, 3)),
            "the partitioner 'MySigns' returns held_out_logits of float32 numbers of shape (9, 3)",
        ),
        (
            variant(Corner, acceptance_rate=raises),
            "the mapper 'MyCorner' failed in acceptance_rate: RuntimeError: deep inside; PGMKIT_DE",
        ),
        (
            variant(Corner, acceptance_rate=lambda self, cluster: 50),
            "the mapper 'MyCorner' has acceptance_rate(0) = 50; it must be a number from 0 to 1",
        ),
        (
            variant(Sides, findings=lambda self: 3),
            "the cluster-sampler 'MySides' failed in findings: TypeError: 'int' object is not iter",
        ),
    ],
)
def test_what_is_optional_is_checked_where_it_is_there(component: Any, said: str) -> None:
    assert complaint(lambda: shatter(**using(component))).startswith(said)


class Halfway:
    """Finds clusters by halves."""

    def fit(self, points: Any) -> None: ...

    def predict(self, points: Any) -> Any:
        return np.full(len(points), 0.5)


class Planes(Signs):
    """A partitioner that lets the number of parts be chosen."""

    def prepare(self, source: ImageSource, *, seed: int) -> Any:
        return source.batch(torch.arange(len(source))).flatten(1)

    def make_clusterer(self, num_partitions: int, seed: int) -> Any:
        return KMeans(num_partitions, random_state=seed, n_init=1)

    def split(self, source: ImageSource, *, seed: int) -> None: ...

    def logits(self, x: Tensor) -> Any:
        return x.flatten(1)[:, : self.num_partitions]


@pytest.mark.filterwarnings("ignore:no number of clusters is convincing")
@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({}, ""),
        ({"prepare": raises}, "failed in prepare: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
        (
            {"prepare": lambda self, source, *, seed: torch.zeros(9, 2)},
            "returns points in prepare of float32 numbers of shape (9, 2) for 60 images; they must",
        ),
        ({"make_clusterer": raises}, "failed in make_clusterer: RuntimeError: deep inside; PGMKI"),
        (
            {"make_clusterer": lambda self, num_partitions, seed: object()},
            "failed in fit of what make_clusterer returns: AttributeError: 'object' object has no",
        ),
        (
            {"make_clusterer": lambda self, num_partitions, seed: PCA(num_partitions)},
            "failed in predict of what make_clusterer returns: AttributeError: 'PCA' object has no",
        ),
        (
            {"make_clusterer": lambda self, num_partitions, seed: Halfway()},
            "makes a clusterer that predicts float64 numbers of shape (30,) for 30 points; they mu",
        ),
        ({"split": raises}, "failed in split: RuntimeError: deep inside; PGMKIT_DEBUG=1"),
    ],
)
def test_what_the_number_of_parts_is_chosen_by_is_checked(
    replaced: dict[str, Any], said: str
) -> None:
    settings = {"partitioner": variant(Planes, **replaced), "mapper": "prior"}
    settings["clusters"] = {"name": "auto", "candidates": [2, 3]}
    if not said:
        assert len(shatter(**settings).cluster_sizes) in (2, 3)
        return
    assert complaint(lambda: shatter(**settings)).startswith(f"the partitioner 'MyPlanes' {said}")


def test_what_a_sampler_that_is_fitted_again_predicts_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shattered = shatter(sampler="kmeans-gmm", clusters=2)
    wrong = {
        "failed in fit: RuntimeError: deep inside": {"fit": raises},
        "failed in predict: RuntimeError: deep inside": {"predict": raises},
        "predicts clusters of type ndarray and shape (15,) for 15 latents; they must be a tensor": {
            "predict": lambda self, latents: np.zeros(len(latents))
        },
    }
    for said, replaced in wrong.items():
        monkeypatch.setattr(
            "pgmkit.evaluate.diagnostics.build",
            lambda kind, name, replaced=replaced, **more: variant(Sides, **replaced),
        )
        assert complaint(lambda: reproducibility(shattered)).startswith(
            f"the cluster-sampler 'MySides' {said}"
        )


# Engines, backbones, classifiers


class Here:
    """An engine of one's own."""

    def map(self, function: Any, blocks: Any, *, parallel: bool = True) -> Any:
        yield from self.results(function, blocks)

    def results(self, function: Any, blocks: Any) -> Any:
        return ((block, function(block)) for block in blocks)


def spectrum_by(engine: Any) -> pgmkit.Spectrum:
    return pgmkit.compute_spectrum(generator_of(), 24, block_size=8, engine=engine)


def lost(self: Here, function: Any, blocks: Any) -> Any:
    raise OSError("cluster gone")


def altered(result: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {**result, name: result[name].float() + 1}


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (lost, "failed in map: OSError: cluster gone; PGMKIT_DEBUG=1"),
        (lambda self, f, blocks: iter(()), "ends without 3 of 3 blocks"),
        (lambda self, f, blocks: ((0, f(0)) for _ in blocks), "yields block 0; it must yield each"),
        (lambda self, f, blocks: ((b + 7, f(b)) for b in blocks), "yields block 7; it must yield"),
        (lambda self, f, blocks: iter(blocks), "yields type int; it must yield each block that it"),
        (
            lambda self, f, blocks: ((b, f(2 - b)) for b in blocks),
            "yields for block 0 what the fun",
        ),
        (
            lambda self, f, blocks: ((b, None) for b in blocks),
            "yields for block 0 what the functio",
        ),
        (
            lambda self, f, blocks: ((b, altered(f(b), "singular_values")) for b in blocks),
            "yields for block 0 what the function does not return for it; it must not change resul",
        ),
        (
            lambda self, f, blocks: ((b, altered(f(b), "log_prior")) for b in blocks),
            "yields for block 0 what the function does not return for it; it must not change resul",
        ),
    ],
)
def test_what_engines_yield_is_checked(results: Any, said: str) -> None:
    engine = variant(Here, results=results)
    assert complaint(lambda: spectrum_by(engine)).startswith(f"the engine 'MyHere' {said}")


def test_an_engine_without_map_is_refused_and_one_that_has_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(spectrum_by(Here())) == 24
    assert "has no method map(function, blocks, parallel=...)" in complaint(
        lambda: spectrum_by(object())
    )
    narrow = variant(Here, map=lambda self, function, blocks: None)
    assert "cannot be called as map(function, blocks, parallel=...)" in complaint(
        lambda: spectrum_by(narrow)
    )

    def fails(*arguments: object) -> None:
        raise ValueError("of the work itself")

    monkeypatch.setattr(BlockStore, "write", fails)
    with pytest.raises(ValueError, match=r"^of the work itself$"):  # it is not the engine's
        spectrum_by(Here())


class Layers:
    """A backbone of one's own."""

    def generator(self, num_partitions: int | None = None) -> Any:
        return nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8)))

    def discriminator(self, num_partitions: int | None = None) -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))


WIDE = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))


class Beside(nn.Linear):
    def forward(self, x: Tensor) -> Any:  # as of somebody who likes numpy
        return x.numpy()


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"generator": raises}, "failed in generator: RuntimeError: deep inside"),
        ({"discriminator": lambda self, num_partitions=None: 3}, "has discriminator() of type int"),
        (
            {"generator": lambda self, num_partitions=None: nn.Tanh()},
            "has generator() of type Tanh",
        ),
        (
            {"generator": lambda self, num_partitions=None: nn.Linear(3, 64)},
            "failed on latents (8, 2): RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            {"discriminator": lambda self, num_partitions=None: nn.Linear(3, 64)},
            "failed on images (8, 1, 8, 8): RuntimeError: mat1 and mat2 shapes cannot be multipl",
        ),
        (
            {"discriminator": lambda self, num_partitions=None: WIDE},
            "has a discriminator that returns float32 numbers of shape (8, 64); it must return",
        ),
        (
            {"discriminator": lambda self, num_partitions=None: Beside(2, 2)},
            "has a discriminator that returns type ndarray and shape (8, 1, 8, 8); it must retur",
        ),
    ],
)
def test_networks_of_backbones_are_checked_before_training(
    replaced: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = variant(Layers, **replaced)
    monkeypatch.setattr("pgmkit.train.gan.build", lambda kind, name, **more: backbone)
    settings = GANSettings(latent=pgmkit.LatentSpec(2))
    source = GeneratedImages(generator_of(), torch.zeros(9, 2))

    def begin() -> None:
        GANTask(settings, seed=0, device=torch.device("cpu")).check(source)

    assert complaint(begin).startswith(f"the backbone 'MyLayers' {said}")


def test_the_dimension_of_the_prior_is_said_once() -> None:
    settings = GANSettings(backbone_args={"latent_dim": 3}, latent=pgmkit.LatentSpec(2))
    said = complaint(lambda: GANTask(settings, seed=0, device=torch.device("cpu")), ParameterError)
    assert said.startswith("model.backbone_args.latent_dim is 3 and the prior has 2 dimensions")


def test_a_classifier_gives_as_many_logits_as_it_has_classes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for count in (3, 10):
        classifier = Classifier(network, "three", tuple(map(str, range(count))))
        if count == 3:
            classifier.check_images((1, 8, 8))
            continue
        said = complaint(partial(classifier.check_images, (1, 8, 8)))
        assert said == (
            "the classifier 'three' returns logits of float32 numbers of shape (1, 3) for 1 images;"
            " they must be a tensor of floats of shape (1, 10)"
        )


# Building


def test_a_component_is_built_from_a_name_a_table_or_is_the_object_itself() -> None:
    by_name = build("density-estimators", "polarity", rho=-0.3)
    by_table = build("density-estimators", {"name": "pgmkit:polarity", "rho": -0.3}, rho=-0.5)
    assert by_name.rho == by_table.rho == -0.3
    assert build("density-estimators", by_name) is by_name
    own = Central()
    assert build("density-estimators", own) is own


@pytest.mark.parametrize(
    ("what", "parameters", "error", "said"),
    [
        (Central(), {"rho": 1}, ParameterError, "rho cannot be given for a density-estimator that"),
        ({"rho": 1}, {}, ParameterError, "a table of density-estimators needs a name, such as"),
        (
            {"name": 3},
            {},
            ParameterError,
            "needs a name, such as { name = ... }, and is {'name': 3",
        ),
        ({"name": "lash", "rho": 1}, {}, ParameterError, "'lash' has no parameter 'rho'; there"),
        ("lahs", {}, UnknownNameError, "did you mean 'lash'"),
        (None, {}, PluginError, "the density-estimator 'NoneType' has no method log_weights"),
    ],
)
def test_what_cannot_be_built_says_why(
    what: Any, parameters: dict[str, Any], error: type[Exception], said: str
) -> None:
    assert said in complaint(lambda: build("density-estimators", what, **parameters), error)


# Records


class Own(Central):
    def __init__(self, power: float = 2.0) -> None:
        self.power = power

    def get_params(self) -> Mapping[str, Any]:
        return {"power": self.power}


def test_parameters_are_the_arguments_and_the_defaults_or_what_get_params_says() -> None:
    assert parameters_of(build("density-estimators", "lash", null="drop")) == {
        "prior_term": True,
        "rank_rtol": 1e-6,
        "null": "drop",
    }
    assert parameters_of(Own(3.0)) == {"power": 3.0}
    assert parameters_of(Central()) == {}
    said = complaint(lambda: parameters_of(variant(Own, get_params=raises)))
    assert said.startswith("the 'MyOwn' failed in get_params: RuntimeError: deep inside; PGMKIT_D")


def test_records_hold_the_parameters_of_all_that_a_component_is_made_of() -> None:
    features = {"name": "pca", "num_dims": 3, "features": {"name": "pixels", "image_size": 8}}
    expected = {
        "num_partitions": 4,
        "features": {
            "name": "pgmkit:pca",
            "features": {"name": "pgmkit:pixels", "image_size": 8},
            "num_dims": 3,
        },
        "num_starts": 20,
    }
    by_table = build("partitioners", "kmeans", num_partitions=4, features=features)
    by_objects = build(
        "partitioners", "kmeans", num_partitions=4, features=build("features", features)
    )
    assert table_of(by_table) == table_of(by_objects)
    assert table_of(by_table) == {"name": "pgmkit:kmeans", "params": expected}
    again = build("partitioners", {"name": "pgmkit:kmeans", **expected})
    assert table_of(again) == table_of(by_table)


@pytest.mark.parametrize(
    ("name", "parameter", "inner"),
    [
        ("most-stable", "candidates", {"name": "kmeans", "num_starts": 7}),
        ("self-trained", "base", {"name": "kmeans", "num_starts": 7}),
    ],
)
def test_partitioners_that_are_objects_are_recorded_with_their_parameters(
    name: str, parameter: str, inner: dict[str, Any]
) -> None:
    given: Any = build("partitioners", inner)
    table = table_of(
        build("partitioners", name, **{parameter: [given] if name == "most-stable" else given})
    )
    recorded = table["params"][parameter]
    recorded = recorded[0] if name == "most-stable" else recorded
    assert recorded["name"] == "pgmkit:kmeans"
    assert recorded["num_starts"] == 7
    assert table_of(build("partitioners", {"name": table["name"], **table["params"]})) == table


def test_the_record_of_a_result_has_all_parameters() -> None:
    mapper = {"name": "rejection", "proposal": "prior", "max_tries": 2000}
    density = {"name": "polarity", "rho": -0.2}
    recorded = [
        shatter(density=density, partitioner=partitioner, mapper=made).origin
        for partitioner, made in (
            ({"name": "kmeans", "features": "pixels"}, mapper),
            (
                build("partitioners", "kmeans", num_partitions=2, features="pixels"),
                build("mappers", mapper),
            ),
        )
    ]
    params = recorded[0].sampler["params"]
    assert params == recorded[1].sampler["params"]
    assert params["partitioner"]["features"] == {"name": "pgmkit:pixels", "image_size": 32}
    assert params["mapper"] == {
        "name": "pgmkit:rejection",
        "proposal": {"name": "pgmkit:prior"},
        "max_tries": 2000,
        "core": 1.0,
    }
    assert recorded[0].density == {
        "name": "pgmkit:polarity",
        "params": {"rho": -0.2, "top_k": 10, "rank_rtol": 1e-6},
    }
    own = shatter(density=Own(3.0), sampler="kmeans-gmm", clusters=2).origin
    assert own.density == {"name": "Own", "params": {"power": 3.0}}
    assert own.sampler["params"] == {"num_clusters": 2, "num_starts": 4, "num_components": 2}


# Saving


COMPOSED = """
import torch
from pgmkit import Component, hookimpl
from pgmkit.plugins import build

@hookimpl
def pgmkit_features():
    return [
        Component("linear", "MODULE:Linear"),
        Component("scaled", "MODULE:Scaled"),
        Component("forgetful", "MODULE:Forgetful"),
        Component("careless", "MODULE:Careless"),
        Component("shaped", "MODULE:Shaped"),
        Component("late", "MODULE:Late"),
    ]

class Linear(torch.nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = torch.nn.LazyLinear(width, bias=False)

    def fit(self, source, *, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = torch.nn.Linear(64, 3, bias=False)

    def forward(self, x):
        return self.layer(x.flatten(1))

# Fit gives its tensors their shape and type, and makes one of them.
class Shaped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("scale", None)
        self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def fit(self, source, *, seed):
        x = source.batch(torch.arange(len(source))).flatten(1)
        self.mean, self.scale = x.mean(dim=0).double(), x.std(dim=0)
        self.weight = torch.nn.Parameter(x[:3], requires_grad=False)
        self.register_buffer("last", x[-1])

    def forward(self, x):
        rows = ((x.flatten(1) - self.mean) / (1 + self.scale)).float()
        return rows @ self.weight.T + (self.last * rows).sum(dim=1, keepdim=True)

# Its network is made in fit, so one that is built anew has no place for the weights.
class Late(torch.nn.Module):
    def fit(self, source, *, seed):
        self.layer = torch.nn.Linear(64, 3)

    def forward(self, x):
        return self.layer(x.flatten(1)).detach()

class Scaled:
    def __init__(self, features="linear"):
        self.features = build("features", features)

    @property
    def parts(self):
        return {"features": self.features}

    def fit(self, source, *, seed):
        self.features.fit(source, seed=seed)
        self.scale = torch.tensor(3.0)

    def __call__(self, x):
        return self.features(x) * self.scale

    def state(self):
        return {"scale": self.scale}

    def load_state(self, state):
        (name,) = state
        self.scale = state[name]

class Forgetful:
    def fit(self, source, *, seed):
        pass

    def __call__(self, x):
        return x.flatten(1)

class Careless(Forgetful):
    def state(self):
        return {"scale": 3.0}

    def load_state(self, state):
        pass
"""


@pytest.fixture
def composed(site: Path) -> Iterator[None]:
    """A distribution of features: a module, one that is made of another, and two that fail."""
    install(site, "acme-features", COMPOSED)
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("composed")
def test_states_hold_modules_and_what_components_are_made_of() -> None:
    partitioner = {"name": "kmeans", "features": {"name": "scaled", "features": "linear"}}
    built = shatter(partitioner=partitioner).sampler.partitioner
    state = state_of(built)
    assert state.keys() == {"centers", "features.scale", "features.features.layer.weight"}
    fresh = build("partitioners", partitioner, num_partitions=2)
    load_state_of(fresh, state)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(fresh.logits(x), built.logits(x))


@pytest.mark.usefixtures("composed")
def test_a_result_of_a_plugin_s_features_is_saved_and_comes_back(tmp_path: Path) -> None:
    features = {"name": "scaled", "features": {"name": "acme-features:linear", "width": 3}}
    shattered = shatter(partitioner={"name": "kmeans", "features": features})
    shattered.save_pretrained(tmp_path / "saved")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path / "saved", architecture=lambda: nn.Sequential(nn.Linear(2, 64), nn.Tanh())
    )
    latents = spectrum_of().latents
    assert torch.equal(loaded.predict(latents), shattered.predict(latents))
    assert shattered.origin.versions["acme-features"] == "1.0"


@pytest.mark.usefixtures("composed")
def test_a_module_whose_tensors_get_their_shape_in_fit_comes_back(tmp_path: Path) -> None:
    images = GeneratedImages(generator_of(), spectrum_of().latents)
    fitted = pgmkit.fit_partitioner({"name": "kmeans", "features": "shaped"}, images, partitions=2)
    fitted.save_pretrained(tmp_path)
    loaded = pgmkit.load_partitioner(tmp_path)
    x = generator_of().images(spectrum_of().latents)
    assert torch.equal(loaded.logits(x), fitted.logits(x))
    features = loaded.partitioner.features
    assert features.state_dict().keys() == {"mean", "scale", "weight", "last"}
    assert not features.weight.requires_grad


@pytest.mark.usefixtures("composed")
def test_a_module_whose_network_is_made_in_fit_says_why_it_is_not_saved(tmp_path: Path) -> None:
    images = GeneratedImages(generator_of(), spectrum_of().latents)
    fitted = pgmkit.fit_partitioner({"name": "kmeans", "features": "late"}, images, partitions=2)
    assert complaint(lambda: fitted.save_pretrained(tmp_path / "parts")) == (
        "this cannot be saved: 'layer.weight' of 'acme-features:late' is of a network that it "
        "makes in fit; make it in __init__, or offer state() and load_state()"
    )
    assert not (tmp_path / "parts").exists()


NETWORK = {"steps": 5, "batch_size": 16, "width": 4}
AGGLOMERATIVE = {"name": "clusterer", "features": "pixels"}


@pytest.mark.filterwarnings("ignore:the network gives no images", "ignore:the classifier that assi")
@pytest.mark.parametrize(
    "partitioner",
    [
        "kmeans",
        {"name": "mixture", "features": {"name": "pca", "num_dims": 2}},
        {"name": "manifold", "features": "latents"},
        AGGLOMERATIVE,
        {"name": "most-stable", "candidates": [AGGLOMERATIVE, {"name": "kmeans"}]},
        {"name": "most-stable", "candidates": ["object"]},
        {"name": "self-trained", "base": AGGLOMERATIVE, **NETWORK},
        {"name": "self-trained", "base": "object", **NETWORK},
        {
            "name": "self-trained",
            "base": {"name": "most-stable", "candidates": ["mixture"]},
            **NETWORK,
        },
    ],
    ids=str,
)
def test_a_record_and_a_state_are_all_that_a_partitioner_needs(partitioner: Any) -> None:
    given: Any = build("partitioners", "kmeans", num_partitions=3, num_starts=2, features="pixels")
    if isinstance(partitioner, dict):
        nested = {"candidates": [given], "base": given}
        partitioner = {
            name: nested[name] if value in ("object", ["object"]) else value
            for name, value in partitioner.items()
        }
    sampler = shatter(partitioner=partitioner, clusters=3).sampler
    table, state = table_of(sampler.partitioner), state_of(sampler.partitioner)
    assert json.loads(json.dumps(table)) == table
    again = build("partitioners", {"name": table["name"], **table["params"]})
    load_state_of(again, state)
    latents = spectrum_of().latents
    is_of_latents = getattr(again, "space", "images") == "latents"
    x = latents if is_of_latents else generator_of().images(latents)
    assert torch.equal(again.logits(x), sampler.partitioner.logits(x))
    assert again.num_partitions == sampler.partitioner.num_partitions
    assert table_of(again) == table


def test_a_fitted_partitioner_is_recorded_and_saved_with_the_sampler(tmp_path: Path) -> None:
    images = GeneratedImages(generator_of(), generator_of().sample_latents(200, seed=9))
    own = {"name": "kmeans", "num_starts": 2, "features": "pixels"}
    fitted = pgmkit.fit_partitioner(own, images, partitions=3)
    shattered = shatter(partitioner=fitted, clusters=3)
    whole = shattered.origin.sampler["params"]["partitioner"]
    assert (whole["name"], whole["image"]) == ("pgmkit:fixed", [1, 8, 8])
    assert whole["sha256"] == fitted.sha256
    inner = whole["partitioner"]
    assert (inner["name"], inner["num_starts"], inner["num_partitions"]) == ("pgmkit:kmeans", 2, 3)
    shattered.save_pretrained(tmp_path / "saved")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path / "saved", architecture=lambda: nn.Sequential(nn.Linear(2, 64), nn.Tanh())
    )
    latents = spectrum_of().latents
    assert torch.equal(loaded.predict(latents), fitted.assign(generator_of().images(latents)))
    assert torch.equal(loaded.predict(latents), shattered.predict(latents))


@pytest.mark.usefixtures("composed")
def test_what_cannot_be_saved_says_which_part_and_why() -> None:
    def reason(features: Any) -> str | None:
        return why_not_saved(build("partitioners", "kmeans", features=features))

    assert reason("pca") is None
    assert reason({"name": "pca", "features": "linear"}) is None
    assert reason({"name": "pca", "features": Brightness()}) == (
        "Brightness is an object of your own; offer it in a plugin, and pass its name"
    )
    assert reason({"name": "scaled", "features": "forgetful"}) == (
        "'acme-features:forgetful' has neither state() and load_state(), nor is it a "
        "torch.nn.Module"
    )
    partitioner = {"name": "kmeans", "features": {"name": "pca", "features": Brightness()}}
    sampler = shatter(partitioner=partitioner).sampler
    assert complaint(lambda: state_of(sampler)).startswith(
        "this cannot be saved: Brightness is an object of your own"
    )
    careless = build("features", "careless")
    assert complaint(lambda: state_of(careless)) == (
        "'acme-features:careless' has 'scale' of type float in its state; a state holds tensors "
        "alone"
    )


@pytest.mark.parametrize(
    "partitioner",
    [
        {"name": "most-stable", "candidates": ["kmeans", Signs()]},
        {"name": "self-trained", "base": Signs()},
    ],
    ids=["candidate", "base"],
)
def test_what_could_not_be_built_again_is_not_saved(partitioner: dict[str, Any]) -> None:
    built = build("partitioners", partitioner, num_partitions=2)
    assert why_not_saved(built) == (
        "Signs is an object of your own; offer it in a plugin, and pass its name"
    )


# The examples of the hook specifications


def example_of(hook: str) -> tuple[str, dict[str, str]]:
    """Returns the code of a hook's example: that of the plugin, and other modules by path."""
    text = getattr(hookspecs, hook).__doc__.partition("Example:\n")[2]
    blocks = re.findall(r"^( *)([^\n]*)::\n\n((?:\1    [^\n]*\n|\n)+)", text + "\n", re.MULTILINE)
    code = [re.sub(f"^ {{{len(indent) + 4}}}", "", body, flags=re.M) for indent, _, body in blocks]
    paths = [re.search(r"`(my_plugin/\w+\.py)`", lead) for _, lead, _ in blocks]
    assert paths[0] is None
    modules = {path[1]: body for path, body in zip(paths, code, strict=True) if path is not None}
    return code[0], modules


@pytest.fixture
def examples(site: Path) -> Iterator[None]:
    """A distribution whose plugin is made of the examples in the hook specifications."""
    hooks = ("density_estimators", "features", "partitioners", "mappers", "cluster_samplers")
    install(site, "my-plugin", "")
    (site / "my_plugin.py").unlink()
    (site / "my_plugin").mkdir()
    plugin = ["from pgmkit import Component, hookimpl\n"]
    for hook in hooks:
        code, modules = example_of(f"pgmkit_{hook}")
        plugin.append(code)
        assert modules
        for path, body in modules.items():
            (site / path).write_text(f"import torch\n\n{body}")
    (site / "my_plugin" / "__init__.py").write_text("\n".join(plugin))
    installed.cache_clear()
    yield
    installed.cache_clear()


def brightness(shattered: pgmkit.ShatteredGenerator) -> Tensor:
    return shattered.images(spectrum_of().latents).mean(dim=(1, 2, 3))


@pytest.mark.usefixtures("examples")
def test_the_example_of_density_estimators_keeps_what_is_central() -> None:
    shattered = shatter(density="central", remove=0.5)
    assert shattered.origin.density["name"] == "my-plugin:central"
    assert shattered.selection is not None
    norms = spectrum_of().latents.norm(dim=1)
    kept = torch.zeros(COUNT, dtype=torch.bool)
    kept[shattered.selection.kept] = True
    assert norms[kept].max() <= norms[~kept].min()


@pytest.mark.usefixtures("examples")
@pytest.mark.filterwarnings("ignore:the classifier that assigns new points agrees")
@pytest.mark.parametrize("partitioner", ["kmeans", "manifold"])
def test_the_example_of_features_serves_partitioners_and_is_saved(
    partitioner: str, tmp_path: Path
) -> None:
    shattered = shatter(partitioner={"name": partitioner, "features": "quarters"})
    params = shattered.origin.sampler["params"]
    assert params["partitioner"]["features"] == {"name": "my-plugin:quarters"}
    shattered.save_pretrained(tmp_path / "saved")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path / "saved", architecture=lambda: nn.Sequential(nn.Linear(2, 64), nn.Tanh())
    )
    latents = spectrum_of().latents
    assert torch.equal(loaded.predict(latents), shattered.predict(latents))


@pytest.mark.usefixtures("examples")
def test_the_example_of_partitioners_finds_dark_and_bright() -> None:
    shattered = shatter(partitioner="halves")
    values = brightness(shattered)
    assert torch.equal(shattered.sampler.labels_, (values > values.median()).long())
    assert shattered.sampler.findings() == {}


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    ("partitioner", "said"),
    [
        ("halves", "the partitioner 'my-plugin:halves' does not tell the points among which"),
        (
            {"name": "most-stable", "candidates": ["halves"]},
            "'my-plugin:halves', one of the candidates, does not tell its points",
        ),
        (
            {"name": "self-trained", "base": "halves"},
            "'my-plugin:halves' has 2 parts, and 10 are asked for; ask for as many as it has",
        ),
    ],
)
def test_the_number_of_parts_cannot_be_chosen_where_nobody_tells_the_points(
    partitioner: Any, said: str
) -> None:
    auto = {"name": "auto", "candidates": [2, 3]}
    assert said in complaint(
        lambda: shatter(partitioner=partitioner, clusters=auto), ParameterError
    )


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("partitioner", ["halves", {"name": "halves"}])
def test_a_method_has_its_own_number_of_parts_where_none_is_asked_for(
    partitioner: Any, tmp_path: Path
) -> None:
    shattered = shatter(partitioner=partitioner, clusters=None)
    assert shattered.num_clusters == 2
    images = GeneratedImages(generator_of(), spectrum_of().latents)
    fitted = pgmkit.fit_partitioner(partitioner, images)
    assert fitted.num_partitions == 2
    fitted.save_pretrained(tmp_path / "parts")
    loaded = pgmkit.load_partitioner(f"local-dir:{tmp_path / 'parts'}")
    assert torch.equal(loaded.partitioner.median, fitted.partitioner.median)


@pytest.mark.usefixtures("examples")
def test_the_example_of_partitioners_is_a_candidate_of_most_stable() -> None:
    candidates = ["halves", {"name": "kmeans", "features": "pixels"}]
    alone = shatter(partitioner={"name": "most-stable", "candidates": candidates[:1]})
    values = brightness(alone)
    bright = (values > values.median()).long()
    assert torch.equal(alone.sampler.labels_, bright)
    both = shatter(partitioner={"name": "most-stable", "candidates": candidates})
    findings = both.sampler.findings()
    assert findings["chosen"] == "my-plugin:halves"
    assert torch.equal(both.sampler.labels_, bright)


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    "fixed", ["halves", {"name": "halves"}, Signs()], ids=["name", "table", "object"]
)
@pytest.mark.parametrize("outer", ["most-stable", "self-trained"])
def test_parts_of_a_fixed_number_are_no_others(outer: str, fixed: Any) -> None:
    """Neither a candidate nor a base is taken to have another number than it has."""
    parameters = {"candidates": [fixed, "kmeans"]} if outer == "most-stable" else {"base": fixed}
    partitioner = {"name": outer, **parameters}
    message = complaint(lambda: shatter(partitioner=partitioner, clusters=5), ParameterError)
    assert " has 2 parts, and 5 are asked for; ask for as many as it has" in message


@pytest.mark.usefixtures("examples")
def test_a_candidate_that_fails_on_half_of_the_images_has_its_qualified_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves = build("partitioners", "halves", num_partitions=2)
    monkeypatch.setattr(type(halves), "logits", raises)
    message = complaint(
        lambda: shatter(partitioner={"name": "most-stable", "candidates": [halves]})
    )
    assert message.startswith("the partitioner 'my-plugin:halves' failed in logits: RuntimeError")


@pytest.mark.usefixtures("examples")
def test_the_example_of_partitioners_is_the_base_of_self_trained() -> None:
    network = {"steps": 30, "batch_size": 16, "width": 8, "strength": 0.1}
    shattered = shatter(partitioner={"name": "self-trained", "base": "halves", **network})
    values = brightness(shattered)
    bright = (values > values.median()).long()
    assert (shattered.sampler.labels_ == bright).double().mean() > 0.8
    assert shattered.sampler.findings()["unchanged"] > 0.8


@pytest.mark.usefixtures("examples")
def test_the_example_of_mappers_draws_and_proposes_and_is_saved(tmp_path: Path) -> None:
    plain = shatter(mapper="nearby")
    members = spectrum_of().latents[plain.sampler.labels_ == 0]
    assert torch.cdist(plain.sample_latents(50, cluster=0), members).amin(dim=1).max() < 0.6
    sure = shatter(mapper={"name": "rejection", "proposal": "nearby"})
    for cluster in range(2):
        assert (sure.predict(sure.sample_latents(50, cluster)) == cluster).all()
        assert sure.sampler.acceptance_rate(cluster) > 0.5
    for name, shattered in (("plain", plain), ("sure", sure)):
        shattered.save_pretrained(tmp_path / name)
        loaded = pgmkit.ShatteredGenerator.from_pretrained(
            tmp_path / name, architecture=lambda: nn.Sequential(nn.Linear(2, 64), nn.Tanh())
        )
        assert torch.equal(loaded.sample_latents(20, seed=3), shattered.sample_latents(20, seed=3))


@pytest.mark.usefixtures("examples")
def test_the_example_of_cluster_samplers_cuts_a_grid() -> None:
    shattered = shatter(sampler="grid", clusters=4)
    assert shattered.cluster_sizes == [COUNT // 4] * 4
    drawn = shattered.sample_latents(30, cluster=3)
    assert (shattered.predict(drawn) == 3).all()
    assert shattered.origin.sampler == {"name": "my-plugin:grid", "params": {"num_clusters": 4}}
    assert "'my-plugin:grid' has neither state() and load_state()" in complaint(
        lambda: state_of(shattered.sampler)
    )
