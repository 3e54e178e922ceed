"""The cluster samplers that look at images, on groups that latents do not show."""

import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import (
    GeneratorError,
    LoadError,
    ParameterError,
    PgmkitWarning,
    PluginError,
    UnknownNameError,
)
from pgmkit.images import shrunk
from pgmkit.plugins import build_component
from pgmkit_plugins.samplers import manifold, self_trained
from pgmkit_plugins.samplers.classifier import LatentClassifier
from pgmkit_plugins.samplers.composed import margins_of
from pgmkit_plugins.samplers.feature_kmeans import FeatureKMeans
from pgmkit_plugins.samplers.manifold import spectral_embedding
from pgmkit_plugins.samplers.pca import leading_eigenvectors, principal_components
from pgmkit_plugins.samplers.self_trained import SelfTrained

DIM = 6
TINY = "test_resnet"
"""A timm model with 0.5 million weights, made for tests."""

Array = np.ndarray[Any, np.dtype[np.float64]]


class Gated(nn.Module):
    """Four templates, chosen by the signs of z₀·z₁ and z₂·z₃, which no plane in latents shows."""

    def __init__(self, channels: int = 3, size: int = 8, sharpness: float = 500.0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        shape = (2, channels, size, size)
        coarse = torch.randn(2, channels, 2, 2, generator=random)
        self.register_buffer(
            "templates",
            coarse.repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3).reshape(shape),
        )
        self.register_buffer("detail", torch.randn(DIM, channels, size, size, generator=random))
        self.sharpness = sharpness
        self.largest_batch = 0

    def forward(self, z: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(z))
        gates = torch.tanh(self.sharpness * torch.stack([z[:, 0] * z[:, 1], z[:, 2] * z[:, 3]], 1))
        image = torch.einsum("bg,gchw->bchw", gates, self.templates)
        return 0.3 * image + 0.005 * torch.einsum("bd,dchw->bchw", z, self.detail)


def gated(**latent: Any) -> pgmkit.Generator:
    return pgmkit.Generator(
        Gated(), latent=pgmkit.LatentSpec(DIM, **latent), image=pgmkit.ImageSpec((3, 8, 8))
    )


def truth(latents: Tensor) -> Tensor:
    return (latents[:, 0] * latents[:, 1] > 0) * 2 + (latents[:, 2] * latents[:, 3] > 0).long()


def agreement(left: Tensor, right: Tensor) -> float:
    return float(adjusted_mutual_info_score(left.numpy(), right.numpy()))


def timm_features() -> dict[str, Any]:
    return {"model": TINY, "pretrained": False, "input_size": 32}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "output-kmeans": ("output-kmeans", {}),
    "shrunk": ("output-kmeans", {"image_size": 4, "num_dims": 5}),
    "by latents": ("output-kmeans", {"predict_from": "latents"}),
    "features": ("feature-kmeans", timm_features()),
    "spectral": ("manifold", {}),
    "spectral k-means": ("manifold", {"clusterer": "kmeans", "max_points": 300}),
    "spectral of learned": (
        "manifold",
        {
            "embedding_dims": 4,
            "space": {"name": "learned", "steps": 30, "batch_size": 64, "width": 4, "flip": False},
        },
    ),
    "hdbscan": (
        "manifold",
        {"clusterer": "hdbscan", "embedding_dims": 3, "min_cluster_size": 25},
    ),
    "learned": (
        "learned",
        {"steps": 30, "batch_size": 64, "width": 4, "strength": 0.3, "flip": False},
    ),
    "mixture": ("output-mixture", {"num_dims": 8}),
    "self-trained": (
        "self-trained",
        {
            "base": {"name": "output-mixture", "num_dims": 8},
            "rounds": 1,
            "steps": 40,
            "width": 8,
            "strength": 0.3,
            "flip": False,
        },
    ),
    "self-trained from the most stable": (
        "self-trained",
        {
            "base": {"name": "most-stable", "candidates": ["kmeans-gmm", "output-kmeans"]},
            "rounds": 1,
            "steps": 40,
            "width": 8,
            "strength": 0.3,
            "flip": False,
        },
    ),
    "most stable": (
        "most-stable",
        {"candidates": [{"name": "kmeans-gmm", "num_starts": 1}, "output-kmeans"]},
    ),
    "agglomerative": ("clusterer", {"max_points": 300}),
    "own number": (
        "clusterer",
        {
            "clusterer": "sklearn.cluster:HDBSCAN",
            "clusterer_args": {"min_cluster_size": 20, "copy": True},
        },
    ),
}
every_case = pytest.mark.parametrize("case", CASES)
quiet = pytest.mark.filterwarnings(
    "ignore:the weights of .* are random", "ignore:the classifier that assigns new latents"
)


def build(case: str, **parameters: Any) -> Any:
    name, given = CASES[case]
    return build_component("cluster-samplers", name, **{"num_clusters": 4, **given, **parameters})


@cache
def fitted(case: str) -> tuple[Any, pgmkit.Generator, Tensor]:
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    return build(case).fit(latents, generator=generator, seed=0), generator, latents


@every_case
@quiet
def test_groups_that_only_images_show_are_found(case: str) -> None:
    sampler, _, latents = fitted(case)
    assert sampler.labels_.dtype == torch.int64
    assert sampler.labels_.shape == (600,)
    assert sampler.num_clusters_ == 4
    assert agreement(sampler.labels_, truth(latents)) > 0.95
    found = sampler.predict(latents)
    assert found.dtype == torch.int64
    assert (found == sampler.labels_).float().mean() > (0.85 if case == "by latents" else 0.98)
    new = gated().sample_latents(500, seed=1)
    assert agreement(sampler.predict(new), truth(new)) > (0.3 if case == "by latents" else 0.93)


def test_latents_alone_do_not_show_them() -> None:
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    blind = build_component("cluster-samplers", "kmeans-gmm", num_clusters=4).fit(latents, seed=0)
    assert agreement(blind.labels_, truth(latents)) < 0.5


@every_case
@quiet
def test_samples_land_where_they_were_asked_for(case: str) -> None:
    sampler, generator, latents = fitted(case)
    strict = build(case, mapper="rejection", num_components=1)
    strict.fit(latents[:400], generator=generator, seed=0)
    for cluster in range(4):
        drawn = strict.sample(30, cluster, seed=3)
        assert drawn.shape == (30, DIM)
        assert drawn.dtype == torch.float32
        assert (strict.predict(drawn) == cluster).all()
    assert sampler.sample(5, 1, seed=0).shape == (5, DIM)


@pytest.mark.parametrize("case", ["output-kmeans", "mixture", "by latents", "spectral"])
@quiet
def test_draws_from_the_core_lie_clearly_in_their_cluster(case: str, tmp_path: Path) -> None:
    name, given = CASES[case]
    shattered = pgmkit.shatter(
        pgmkit.Generator(Gated(sharpness=1.0), pgmkit.LatentSpec(DIM), pgmkit.ImageSpec((3, 8, 8))),
        density="none",
        sampler=name,
        num_clusters=4,
        num_latents=600,
        sampler_args={**given, "mapper": "rejection", "mapper_args": {"core": 0.3}},
        spectrum_args={"dtype": "float32"},
    )
    sampler: Any = shattered.sampler
    drawn = [sampler.sample(40, cluster, seed=0) for cluster in range(4)]
    assert all((sampler.predict(part) == cluster).all() for cluster, part in enumerate(drawn))

    latents = shattered.generator.sample_latents(2000, seed=9)
    found, core = sampler.predict(latents), sampler.core_margins_
    margins = margins_of(sampler._scored(sampler._inputs(latents)))
    for cluster, part in enumerate(drawn):
        own = margins_of(sampler._scored(sampler._inputs(part)))
        assert own.min() >= core[cluster]
        share = (margins[found == cluster] >= float(core[cluster])).mean()
        exact = case in ("output-kmeans", "mixture")  # others are measured on what is held out
        assert 0.2 < share < (0.4 if exact else 0.9)
    shattered.save_pretrained(tmp_path / "saved")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path / "saved", architecture=lambda: Gated(sharpness=1.0)
    )
    assert torch.equal(loaded.sampler.sample(40, 2, seed=0), drawn[2])


@every_case
@quiet
def test_the_same_seed_gives_the_same_bits(case: str, one_thread: None) -> None:
    generator = gated()
    latents = generator.sample_latents(200, seed=0)
    first, again = (build(case).fit(latents, generator=generator, seed=3) for _ in range(2))
    for name, value in first.state().items():
        assert torch.equal(value, again.state()[name]), name
    assert torch.equal(first.sample(9, 2, seed=1), again.sample(9, 2, seed=1))
    assert not torch.equal(first.sample(9, 2, seed=1), first.sample(9, 2, seed=2))


@every_case
@quiet
def test_a_saved_one_comes_back(case: str, tmp_path: Path, one_thread: None) -> None:
    name, given = CASES[case]
    generator = gated()
    shattered = pgmkit.shatter(
        generator,
        density="none",
        sampler=name,
        num_clusters=4,
        num_latents=200,
        sampler_args=given,
        spectrum_args={"dtype": "float32"},
    )
    shattered.save_pretrained(tmp_path / "saved")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(tmp_path / "saved", architecture=Gated)
    latents = generator.sample_latents(100, seed=5)
    assert torch.equal(loaded.predict(latents), shattered.predict(latents))
    assert torch.equal(loaded.sample(4, 1, seed=2), shattered.sample(4, 1, seed=2))
    assert loaded.cluster_sizes == shattered.cluster_sizes
    seen = [
        result.sampler.points(latents)
        for result in (loaded, shattered)
        if hasattr(result.sampler, "points")
    ]
    assert all(np.array_equal(seen[0], part) for part in seen)
    told = [result.sampler.summary() for result in (loaded, shattered)]  # type: ignore[attr-defined]
    assert told[0] == told[1] == shattered.origin.sampler["summary"]


@pytest.mark.parametrize("case", [case for case in CASES if case != "by latents"])
@quiet
def test_features_come_before_clusters(case: str) -> None:
    generator = gated()
    latents = generator.sample_latents(200, seed=0)
    few, many = (
        build(case, num_clusters=k).features(latents, generator=generator, seed=0) for k in (2, 9)
    )
    assert few.dtype == torch.float64
    assert len(few) == 200
    assert torch.equal(few, many)
    sampler = build(case)
    sampler.features(latents, generator=generator, seed=0)
    prepared = sampler.fit(latents, generator=generator, seed=0)
    fresh = build(case).fit(latents, generator=generator, seed=0)
    assert torch.equal(prepared.labels_, fresh.labels_)


@every_case
def test_parameters_follow_scikit_learn(case: str) -> None:
    sampler = build(case)
    copied = clone(sampler)
    assert copied.get_params() == sampler.get_params()
    assert copied is not sampler
    given = sampler.set_params(num_clusters=7, num_components=3).get_params()
    assert (given["num_clusters"], given["num_components"]) == (7, 3)
    with pytest.raises(ParameterError, match="num_components"):
        sampler.set_params(num_clusters=8, num_components=0)
    assert sampler.num_components == 3
    with pytest.raises(UnknownNameError, match="mapper"):
        sampler.set_params(mapper="map")
    assert sampler.get_params() == given


@every_case
@quiet
def test_without_a_generator_there_is_nothing_to_see(case: str) -> None:
    latents = gated().sample_latents(50, seed=0)
    for learn in (build(case).fit, build(case).features):
        with pytest.raises(ParameterError, match="' looks at images"):
            learn(latents)


@pytest.mark.parametrize("case", ["output-kmeans", "spectral", "agglomerative"])
def test_draws_stay_inside_a_uniform_prior(case: str) -> None:
    generator = gated(distribution="uniform", low=-2.0, high=2.0)
    latents = generator.sample_latents(400, seed=0)
    sampler = build(case).fit(latents, generator=generator, seed=0)
    assert agreement(sampler.labels_, truth(latents)) > 0.9
    drawn = torch.cat([sampler.sample(100, cluster, seed=0) for cluster in range(4)])
    assert 1.9 < drawn.abs().max() <= 2


class Spread(nn.Module):
    """Images around one template, near where z₀ is negative and far where it is positive."""

    def forward(self, z: Tensor) -> Tensor:
        size = torch.where(z[:, :1] > 0, 1.0, 0.05)
        return (size * z[:, 1:].repeat(1, 13)[:, :64]).reshape(-1, 1, 8, 8)


def test_a_mixture_tells_groups_apart_that_differ_in_spread_alone() -> None:
    generator = pgmkit.Generator(Spread(), pgmkit.LatentSpec(DIM), pgmkit.ImageSpec((1, 8, 8)))
    latents = generator.sample_latents(500, seed=0)
    near = (latents[:, 0] <= 0).long()
    found = {
        name: build_component("cluster-samplers", name, num_clusters=2)
        .fit(latents, generator=generator, seed=0)
        .labels_
        for name in ("output-mixture", "output-kmeans")
    }
    assert agreement(found["output-mixture"], near) > 0.9
    assert agreement(found["output-kmeans"], near) < 0.4
    chosen = build_component(
        "cluster-samplers",
        "most-stable",
        num_clusters=2,
        candidates=["output-kmeans", "output-mixture"],
    ).fit(latents, generator=generator, seed=0)
    assert chosen.summary()["chosen"] == "output-mixture"
    assert chosen.stability_[1] > 0.8


class Mistaken:
    """A base that puts every seventh latent of two groups into the wrong one."""

    def __init__(self, num_clusters: int = 2) -> None:
        self.num_clusters = num_clusters

    def set_params(self, num_clusters: int) -> None:
        self.num_clusters = num_clusters

    def fit(self, latents: Tensor, *, generator: pgmkit.Generator, seed: int) -> None:
        self.labels_ = (truth(latents) + (torch.arange(len(latents)) % 7 == 0)) % 4


def test_self_training_corrects_what_the_images_do_not_bear_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(self_trained, "inner_sampler", lambda *_, **__: Mistaken())
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    sampler = build("self-trained", rounds=2).fit(latents, generator=generator, seed=0)
    assert agreement(sampler.labels_, truth(latents)) > 0.97
    assert sampler.unchanged_ == pytest.approx(6 / 7, abs=0.02)
    assert sampler.summary()["unchanged"] == pytest.approx(6 / 7, abs=0.02)
    with pytest.raises(ParameterError, match=r"has no features\(\)"):
        sampler.features(latents, generator=generator)


@quiet
def test_self_training_takes_its_base_as_it_is_asked_for() -> None:
    generator = gated()
    latents = generator.sample_latents(300, seed=0)
    own_number = {**CASES["hdbscan"][1], "name": "manifold"}
    quick = {"steps": 60, "rounds": 1, "strength": 0.3, "flip": False}
    found = build("self-trained", num_clusters=9, base=own_number, **quick)
    found.fit(latents, generator=generator, seed=0)
    assert found.num_clusters_ == int(found.labels_.max()) + 1 < 9
    changed = build("self-trained", **quick).set_params(base="kmeans-gmm")
    changed.fit(latents, generator=generator, seed=0)
    fresh = build("self-trained", base="kmeans-gmm", **quick)
    fresh.fit(latents, generator=generator, seed=0)
    assert torch.equal(changed.labels_, fresh.labels_)
    with pytest.raises(ParameterError, match="num_clusters stands in base"):
        build("self-trained", base={"name": "output-kmeans", "num_clusters": 3})


def test_a_small_cluster_is_learned_again_evenly() -> None:
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    rare = (truth(latents) == 3) & (latents[:, 0] > 1.4)
    assert 5 < rare.sum() < 40

    class Rare(Mistaken):
        def fit(self, latents: Tensor, *, generator: pgmkit.Generator, seed: int) -> None:
            self.labels_ = truth(latents) % 2 + 2 * rare

    taken: list[bool] = []

    class Counted(SelfTrained):
        def _build_base(self) -> Any:
            return Rare()

        def _train(self, pool: Tensor, labels: Tensor, even: bool, *rest: Any) -> nn.Module:
            taken.append(even)
            return super()._train(pool, labels, even, *rest)

    sampler = Counted(4, rounds=1, steps=10, width=4, flip=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        sampler.fit(latents, generator=generator, seed=0)
    assert taken == [False, True]


def test_the_number_of_clusters_is_chosen_with_the_samplers_own_clusterer() -> None:
    generator = pgmkit.Generator(
        Spread(), pgmkit.LatentSpec(DIM), pgmkit.ImageSpec((1, 8, 8), (-3, 3))
    )
    chosen = {
        name: pgmkit.shatter(
            generator,
            density="none",
            sampler=name,
            num_clusters={"name": "auto", "candidates": [2, 5]},
            num_latents=500,
        ).origin.settings["chosen"]["num_clusters"]
        for name in ("output-mixture", "output-kmeans")
    }
    assert chosen["output-mixture"]["mean"][0] > chosen["output-kmeans"]["mean"][0] + 0.3


def test_a_round_that_loses_a_cluster_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = gated()
    latents = generator.sample_latents(300, seed=0)
    turns = iter([(4, False), (4, False), (3, False), (3, True)])

    def train(self: Any, pool: Tensor, labels: Tensor, even: bool, *_: Any) -> nn.Module:
        groups, wanted = next(turns)
        assert even is wanted
        return Constant(groups)

    class Constant(nn.Module):
        def __init__(self, groups: int) -> None:
            super().__init__()
            self.groups = groups

        def forward(self, images: Tensor) -> Tensor:
            numbers = torch.arange(len(images)) % self.groups
            return nn.functional.one_hot(numbers, 4).float()

    monkeypatch.setattr(SelfTrained, "_train", train)
    sampler = build("self-trained", rounds=9).fit(latents, generator=generator, seed=0)
    assert sampler.network_.groups == 4
    assert next(turns, None) is None


def test_images_come_in_batches() -> None:
    generator = gated()
    latents = generator.sample_latents(1000, seed=0)
    build("output-kmeans").fit(latents, generator=generator, seed=0)
    assert generator.module.largest_batch == 256
    batches = list(generator.image_batches(latents[:10], batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert not any(batch.requires_grad for batch in batches)
    with pytest.raises(GeneratorError, match="latents"):
        next(generator.image_batches(latents[:, 1:]))


def test_images_that_are_all_the_same_are_refused() -> None:
    class Collapsed(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.full((len(z), 1, 4, 4), 0.3) + 0 * z.sum()

    generator = pgmkit.Generator(Collapsed(), pgmkit.LatentSpec(3), pgmkit.ImageSpec((1, 4, 4)))
    with pytest.raises(GeneratorError, match="all 40 latents are the same"):
        build("output-kmeans").fit(generator.sample_latents(40, 0), generator=generator)


def test_components_are_those_of_all_rows_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(500, 40, generator=random).double() @ torch.diag(torch.arange(1.0, 41)).double()
    )
    rows += 1000.0
    mean, components = principal_components(rows.split(64), 5)
    expected = PCA(5, svd_solver="full").fit(rows.numpy())
    torch.testing.assert_close(mean, torch.from_numpy(expected.mean_))
    torch.testing.assert_close(components.abs(), torch.from_numpy(expected.components_).abs())
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    _, few = principal_components(iter([rows[:3]]), 10)
    assert len(few) == 2
    with pytest.raises(GeneratorError, match="not finite"):
        principal_components(iter([torch.full((4, 3), torch.nan).double()]), 2)


def test_few_and_all_eigenvectors_agree() -> None:
    half = np.random.default_rng(0).standard_normal((60, 60))
    matrix = half @ half.T
    values, vectors = leading_eigenvectors(matrix, 4)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:4])
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-9)
    assert leading_eigenvectors(matrix, 99)[0].shape == (60,)


def test_images_are_shrunk_in_proportion_and_smoothed() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 32, 64)
    small = shrunk(stripes, 16)
    assert small.shape == (1, 3, 8, 16)
    torch.testing.assert_close(small[..., 2:-2], torch.full((1, 3, 8, 12), 0.5), atol=0.05, rtol=0)
    assert shrunk(stripes, 64) is stripes


def test_a_spectral_embedding_keeps_apart_what_hangs_together() -> None:
    """A solver that trusted one starting vector would miss most of these equal eigenvalues."""
    random = np.random.default_rng(0)
    groups = np.arange(640) % 8
    points = random.standard_normal((8, 5))[groups] * 10 + random.standard_normal((640, 5)) * 0.01
    embedded = spectral_embedding(points, 10, 8)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1)
    within = max(np.ptp(embedded[groups == g], axis=0).max() for g in range(8))
    centres = np.stack([embedded[groups == g].mean(axis=0) for g in range(8)])
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)[~np.eye(8, dtype=bool)].min()
    assert apart > 0.5
    assert within < apart


class FakeUMAP:
    """Stands for umap.UMAP: gives back the first coordinates and remembers what it was told."""

    told: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **parameters: Any) -> None:
        FakeUMAP.told = parameters

    def fit_transform(self, points: Array) -> Array:
        return points[:, : FakeUMAP.told["n_components"]].astype(np.float32)


def test_umap_is_asked_for_an_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("umap")
    module.UMAP = FakeUMAP  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(manifold.importlib.util, "find_spec", lambda _: True)
    generator = gated()
    latents = generator.sample_latents(300, seed=0)
    sampler = build("spectral", embedding="umap", embedding_dims=2, num_neighbors=9)
    sampler.fit(latents, generator=generator, seed=0)
    assert agreement(sampler.labels_, truth(latents)) > 0.95
    seed = FakeUMAP.told.pop("random_state")
    assert FakeUMAP.told == {"n_components": 2, "n_neighbors": 9, "min_dist": 0.0, "n_jobs": 1}
    assert 0 <= seed < 2**32


def test_umap_itself() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed: pip install pgmkit[manifold]")
    generator = gated()
    latents = generator.sample_latents(300, seed=0)
    sampler = build("spectral", embedding="umap", embedding_dims=2)
    sampler.fit(latents, generator=generator, seed=0)
    assert agreement(sampler.labels_, truth(latents)) > 0.9


def test_without_umap_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold.importlib.util, "find_spec", lambda _: None)
    generator = gated()
    with pytest.raises(PluginError, match=r"pip install pgmkit\[manifold\]"):
        build("spectral", embedding="umap").fit(
            generator.sample_latents(50, seed=0), generator=generator
        )


def test_a_clusterer_that_calls_everything_noise_is_refused() -> None:
    generator = gated()
    sampler = build_component(
        "cluster-samplers",
        "clusterer",
        num_clusters=2,
        clusterer="sklearn.cluster:DBSCAN",
        clusterer_args={"eps": 1e-9},
    )
    with pytest.raises(ParameterError, match="takes all 60 latents for noise"):
        sampler.fit(generator.sample_latents(60, seed=0), generator=generator)


def test_noise_goes_to_the_nearest_cluster() -> None:
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(300, 2, generator=random) * 0.1 + 5 * (torch.arange(300) % 2)[:, None]
    latents[0] = torch.tensor([8.0, 8.0])
    sampler = build_component(
        "cluster-samplers",
        "clusterer",
        clusterer="sklearn.cluster:DBSCAN",
        space="kmeans-gmm",
        clusterer_args={"eps": 0.5},
        num_clusters=9,
    )
    sampler.fit(latents, seed=0)
    assert sampler.num_clusters_ == 2
    assert sampler.labels_[0] == sampler.labels_[1]
    assert sampler.labels_[0] != sampler.labels_[2]


@pytest.mark.parametrize(
    ("clusterer", "message"),
    [
        ("no_such_module:Thing", "cannot be imported"),
        ("sklearn.cluster:NoSuch", "cannot be imported"),
        ("subprocess:Popen", "no class with fit_predict"),
        ("sklearn.cluster:k_means", "no class with fit_predict"),
    ],
)
def test_what_is_no_clusterer_is_refused(clusterer: str, message: str) -> None:
    sampler = build_component(
        "cluster-samplers", "clusterer", clusterer=clusterer, space="kmeans-gmm"
    )
    with pytest.raises(PluginError, match=message):
        sampler.fit(torch.randn(20, 2))


def test_parameters_of_a_clusterer_are_checked() -> None:
    latents = torch.randn(20, 2)
    with pytest.raises(ParameterError, match="num_clusters of the sampler"):
        build("agglomerative", space="kmeans-gmm", clusterer_args={"n_clusters": 3}).fit(latents)
    with pytest.raises(ParameterError, match="'linkage'"):
        build("agglomerative", space="kmeans-gmm", clusterer_args={"linkag": "ward"}).fit(latents)
    for name in ("AgglomerativeClustering", "sklearn.cluster:", ":Thing"):
        with pytest.raises(ParameterError, match="'module:Class'"):
            build("agglomerative", clusterer=name)


def test_a_loaded_folder_imports_no_clusterer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that a folder names runs neither when it is loaded nor when it is fitted again."""
    (tmp_path / "trap.py").write_text("raise SystemExit('ran code of the folder')\n")
    monkeypatch.syspath_prepend(tmp_path)
    sampler, _, latents = fitted("agglomerative")
    trapped = build("agglomerative", clusterer="trap:Clusterer")
    trapped.load_state(sampler.state())
    trapped.bind(gated())
    assert torch.equal(trapped.predict(latents[:20]), sampler.predict(latents[:20]))
    with pytest.raises(ParameterError, match="was loaded is not fitted again"):
        trapped.fit(latents, generator=gated())
    assert "trap" not in sys.modules


def rings(count: int) -> tuple[Array, np.ndarray[Any, np.dtype[np.int64]]]:
    random = np.random.default_rng(0)
    points = random.standard_normal((count, 3))
    return points, (np.linalg.norm(points, axis=1) > 1.5).astype(np.int64)


def test_a_classifier_measures_itself_on_what_was_held_out() -> None:
    points, labels = rings(3000)
    learned = LatentClassifier().fit(points[:2000], labels[:2000], seed=0)
    right = (learned.predict(points[2000:]) == labels[2000:]).mean()
    assert right > 0.93
    assert abs(learned.agreement_ - right) < 0.04


def test_a_classifier_takes_what_does_better_and_warns_of_little() -> None:
    """In many dimensions neighbours say little about a plane, which a perceptron finds."""
    random = np.random.default_rng(0)
    points = random.standard_normal((1500, 60))
    plane = (points[:, :20].sum(axis=1) > 0).astype(np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        learned = LatentClassifier().fit(points, plane, seed=0)
    assert "weight.0" in learned.state()
    assert learned.agreement_ > 0.85
    chance = random.integers(0, 2, 400)
    with pytest.warns(PgmkitWarning, match="only .*% of the 40 latents held out"):
        learned = LatentClassifier().fit(points[:400], chance, seed=0)
    assert learned.agreement_ < 0.8


class Recorder(nn.Module):
    """A module that keeps what it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.flatten(2).mean(dim=2)


def test_a_module_of_your_own_sees_the_images_as_they_are() -> None:
    generator = gated()
    latents = generator.sample_latents(60, seed=0)
    recorder = Recorder()
    sampler = FeatureKMeans(2, model=recorder, normalize=False, mapper="rejection")
    sampler.fit(latents, generator=generator, seed=0)
    sampler.predict(latents[:5])
    torch.testing.assert_close(recorder.images, next(generator.image_batches(latents[:5])))
    with pytest.raises(PluginError, match="module of your own, Recorder"):
        sampler.state()
    assert isinstance(clone(sampler).model, Recorder)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("ignore:the weights of", "ignore:.*clusters have fewer latents")
def test_a_timm_model_gets_what_it_was_trained_on(channels: int) -> None:
    """Black and white become what the data config makes of 0 and 1, at the model's own size."""

    class Plain(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.where(z[:, :1] > 0, 2.0, -1.0).expand(-1, channels * 48).clone()

    generator = pgmkit.Generator(
        Plain(), pgmkit.LatentSpec(2), pgmkit.ImageSpec((channels, 6, 8), (-1.0, 2.0))
    )
    sampler = FeatureKMeans(2, model="test_efficientnet", pretrained=False)
    latents = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    seen: list[Tensor] = []
    sampler.features(latents, generator=generator)
    sampler.network_.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    sampler.points(latents)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    assert seen[0].shape == (2, 3, 160, 160)
    torch.testing.assert_close(seen[0][0, :, 80, 80], (1 - mean) / std)
    torch.testing.assert_close(seen[0][1, :, 80, 80], -mean / std)


def test_images_of_two_channels_are_refused() -> None:
    generator = pgmkit.Generator(
        nn.Linear(2, 32), pgmkit.LatentSpec(2), pgmkit.ImageSpec((2, 4, 4))
    )
    sampler = FeatureKMeans(2, **timm_features())
    with (
        pytest.warns(PgmkitWarning, match="are random"),
        pytest.raises(ParameterError, match="images of 3 channels, and the generator's have 2"),
    ):
        sampler.features(generator.sample_latents(4, 0), generator=generator)


def test_random_weights_are_warned_of_and_follow_the_seed() -> None:
    generator = gated()
    latents = generator.sample_latents(40, seed=0)
    before = torch.random.get_rng_state()
    with pytest.warns(PgmkitWarning, match="'test_resnet' are random"):
        first = FeatureKMeans(2, **timm_features()).features(latents, generator=generator, seed=1)
    with pytest.warns(PgmkitWarning, match="are random"):
        again = FeatureKMeans(2, **timm_features()).features(latents, generator=generator, seed=1)
    with pytest.warns(PgmkitWarning, match="are random"):
        other = FeatureKMeans(2, **timm_features()).features(latents, generator=generator, seed=2)
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_come_from_a_file_with_or_without_a_head(tmp_path: Path) -> None:
    generator = gated()
    latents = generator.sample_latents(40, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = timm.create_model(TINY, num_classes=5)
    weights = whole.state_dict()
    safetensors.torch.save_file(weights, tmp_path / "whole.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    torch.save(body, tmp_path / "body.pt")
    parameters = {"model": TINY, "input_size": 32}
    found = [
        FeatureKMeans(2, weights=str(tmp_path / name), **parameters).features(
            latents, generator=generator
        )
        for name in ("whole.safetensors", "body.pt")
    ]
    assert torch.equal(*found)
    for name, message in (("none.pt", "no file of weights"), ("bad.safetensors", "damaged")):
        (tmp_path / "bad.safetensors").write_bytes(b"0123456789")
        sampler = FeatureKMeans(2, weights=str(tmp_path / name), **parameters)
        with pytest.raises(LoadError, match=message):
            sampler.features(latents, generator=generator)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    sampler = FeatureKMeans(2, weights=str(tmp_path / "other.safetensors"), **parameters)
    with pytest.raises(LoadError, match="another model than test_resnet"):
        sampler.features(latents, generator=generator)


def test_a_loaded_one_needs_neither_the_hub_nor_the_file(tmp_path: Path) -> None:
    generator = gated()
    latents = generator.sample_latents(60, seed=0)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model(TINY).state_dict(), path)
    parameters = {"num_clusters": 3, "model": TINY, "weights": str(path), "input_size": 32}
    sampler = FeatureKMeans(**parameters, mapper="rejection", num_components=1)
    sampler.fit(latents, generator=generator)
    path.unlink()
    fresh = FeatureKMeans(**sampler.get_params())
    fresh.load_state(sampler.state())
    fresh.bind(generator)
    assert torch.equal(fresh.predict(latents), sampler.predict(latents))
    assert torch.equal(fresh.sample(4, 2, seed=0), sampler.sample(4, 2, seed=0))


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> nn.Module:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    generator = gated()
    with pytest.raises(LoadError, match=r"cannot be fetched \(no route to host\).* weights='"):
        FeatureKMeans(2).features(generator.sample_latents(4, 0), generator=generator)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"model": "resnet81"}, UnknownNameError, "did you mean .*resnet18"),
        ({"model": "hf-hub:org/name"}, UnknownNameError, "no timm model"),
        ({"model": 18}, ParameterError, "name of a timm model or a torch.nn.Module, not 18"),
        ({"model": nn.Identity(), "weights": "x"}, ParameterError, "into the module itself"),
        ({"input_size": 0}, ParameterError, "input_size"),
        ({"predict_from": "images"}, UnknownNameError, "predict_from"),
    ],
)
def test_parameters_of_feature_kmeans_are_checked(
    parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FeatureKMeans(**parameters)


def test_a_network_that_cannot_look_at_the_images_is_named() -> None:
    generator = gated()
    sampler = FeatureKMeans(2, model=nn.Conv2d(1, 2, 3))
    with pytest.raises(ParameterError, match="cannot look at images of"):
        sampler.features(generator.sample_latents(4, 0), generator=generator)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("manifold", {"embedding": "tsne"}, "no embedding"),
        ("manifold", {"clusterer": "ward"}, "no clusterer"),
        ("manifold", {"min_cluster_size": 1}, "min_cluster_size"),
        ("manifold", {"num_neighbors": 0}, "num_neighbors"),
        ("manifold", {"embedding_dims": 0}, "embedding_dims"),
        ("manifold", {"max_points": 0}, "max_points"),
        ("clusterer", {"max_points": 3}, "at least the number of clusters, 10, not 3"),
        ("clusterer", {"space": "pixels"}, "pixels"),
        ("manifold", {"space": "most-stable"}, "does not make points"),
        ("output-kmeans", {"image_size": 0}, "image_size"),
        ("self-trained", {"base": "nothing"}, "nothing"),
        ("self-trained", {"rounds": 0}, "rounds"),
        ("self-trained", {"flip": "no"}, "takes flip = true or false or nothing, not 'no'"),
        ("learned", {"learning_rate": "fast"}, "takes learning_rate = a number, not 'fast'"),
        ("clusterer", {"space": "manifold"}, "does not make points of latents one by one"),
        ("self-trained", {"batch_size": 1}, "batch_size"),
        ("self-trained", {"strength": -1}, "strength"),
        ("self-trained", {"learning_rate": 0}, "learning_rate"),
    ],
)
def test_parameters_are_checked(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=message):
        build_component("cluster-samplers", name, **parameters)


def test_the_most_stable_candidate_is_kept_and_named() -> None:
    sampler, _, latents = fitted("most stable")
    assert sampler.stability_.shape == (2,)
    assert sampler.stability_[1] > sampler.stability_[0] + 0.5
    assert sampler.summary()["chosen"] == "output-kmeans"
    assert sampler.summary()["stability"].startswith("kmeans-gmm ")
    alone = build("output-kmeans", mapper="rejection")
    alone.fit(latents, generator=gated(), seed=0)
    assert torch.equal(alone.labels_, sampler.labels_)
    assert torch.equal(alone.sample(9, 1, seed=0), sampler.sample(9, 1, seed=0))


def test_candidates_that_could_not_be_kept_are_not_tried() -> None:
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    sampler = build("most stable", candidates=["output-kmeans", "learned"], mapper="mixture")
    sampler.fit(latents, generator=generator, seed=0)
    assert sampler.stability_[0] > 0.8
    assert sampler.stability_[1].isnan()
    assert sampler.summary()["chosen"] == "output-kmeans"
    assert "learned" not in sampler.summary()["stability"]


@pytest.mark.parametrize(("count", "clusters"), [(600, 1), (12, 4)])
def test_where_nothing_can_be_compared_the_first_candidate_is_kept(
    count: int, clusters: int
) -> None:
    generator = gated()
    sampler = build("most stable", num_clusters=clusters, mapper="mixture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        sampler.fit(generator.sample_latents(count, 0), generator=generator, seed=0)
    assert sampler.summary()["chosen"] == "kmeans-gmm"
    assert sampler.stability_.isnan().all()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"candidates": []}, ParameterError, r"must be a list of cluster samplers, .* not \[\]"),
        ({"candidates": "learned"}, ParameterError, "not 'learned'"),
        ({"candidates": ["lerned"]}, UnknownNameError, "did you mean 'learned'"),
        ({"candidates": [{"name": "learned", "step": 3}]}, ParameterError, "'step'"),
        (
            {"candidates": ["most-stable", 3]},
            ParameterError,
            "each part a string or a table",
        ),
        ({"mapper": "mixtur"}, UnknownNameError, "mixture"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(
    parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build("most stable", **parameters)


def test_candidates_are_judged_again_when_another_number_of_clusters_is_chosen() -> None:
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    sampler = build("most stable", num_clusters=2, mapper="mixture")
    sampler.features(latents, generator=generator, seed=0)
    at_two = sampler.stability_
    sampler.set_params(num_clusters=4)
    sampler.fit(latents[:500], generator=generator, seed=0)
    assert sampler.num_clusters_ == 4
    assert not torch.equal(sampler.stability_, at_two)
    assert agreement(sampler.labels_, truth(latents[:500])) > 0.95


@pytest.mark.parametrize("part", ["chosen.cluster_centers", "chosen.components", "index"])
def test_parts_that_do_not_fit_are_damage(part: str, tmp_path: Path) -> None:
    shattered = pgmkit.shatter(
        gated(),
        density="none",
        sampler="most-stable",
        num_clusters=4,
        num_latents=200,
        sampler_args=CASES["most stable"][1],
        spectrum_args={"dtype": "float32"},
    )
    shattered.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "sampler.safetensors")
    state[part] = torch.tensor(7) if part == "index" else torch.ones(3, 3, dtype=torch.float64)
    safetensors.torch.save_file(state, tmp_path / "sampler.safetensors")
    with pytest.raises(LoadError, match="damaged or of another version"):
        pgmkit.ShatteredGenerator.from_pretrained(tmp_path, architecture=Gated)
