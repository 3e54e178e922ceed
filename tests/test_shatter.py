"""From a generator to its clusters, and back from disk."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import let_no_sample_of_cluster_1_be_drawn
from torch import Tensor, nn

import pgmkit
from pgmkit import defaults
from pgmkit.errors import (
    GeneratorError,
    LoadError,
    ParameterError,
    PgmkitWarning,
    PluginError,
    SamplingError,
)
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.diagnostics import return_rate
from pgmkit.evaluate.metrics import cluster_scores, score_samples
from pgmkit.images import ArrayImages, GeneratedImages, load_images
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed

DENSITIES = ["lash", "jbt", "polarity", "none"]


class Curved(nn.Module):
    """Stretches the middle of the latent space, so that the density there is low."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 16, bias=False)
        self.mix.weight.data = torch.linspace(-1, 1, 32).reshape(16, 2).sin()

    def forward(self, z: Tensor) -> Tensor:
        return self.mix(torch.stack([torch.tanh(1.5 * z[:, 0]), z[:, 1]], dim=1))


def generator_of(prior: pgmkit.LatentSpec | None = None) -> pgmkit.Generator:
    return pgmkit.Generator(
        Curved(), latent=prior or pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((1, 4, 4), (-3, 3))
    )


@pytest.fixture(scope="module")
def spectrum() -> pgmkit.Spectrum:
    return pgmkit.compute_spectrum(generator_of(), latents=1000, seed=0)


def shatter(spectrum: pgmkit.Spectrum, **arguments: Any) -> pgmkit.ShatteredGenerator:
    settings = {"sampler": "kmeans-gmm", "clusters": 2, "spectrum": spectrum, **arguments}
    return pgmkit.shatter(generator_of(), **settings)


def test_lash_splits_a_latent_space_where_the_generator_stretches_it(
    spectrum: pgmkit.Spectrum,
) -> None:
    shattered = shatter(spectrum, remove=0.5, density={"name": "lash", "prior_term": False})
    assert shattered.selection is not None
    kept = spectrum.latents[shattered.selection.kept]
    assert kept[:, 0].abs().min() > 0.4
    sides = (kept[:, 0] > 0).long()
    labels = shattered.sampler.labels_
    agreement = (labels == sides).float().mean()
    assert max(agreement, 1 - agreement) == 1.0
    drawn = shattered.sample_latents(500, cluster=int(labels[sides.argmax()]), seed=0)
    assert (drawn[:, 0] > 0).float().mean() > 0.99


@pytest.mark.parametrize("density", DENSITIES)
def test_every_density_keeps_the_share_that_was_asked_for(
    spectrum: pgmkit.Spectrum, density: str
) -> None:
    shattered = shatter(spectrum, density=density, remove=0.3)
    assert sum(shattered.cluster_sizes) == 700
    statistics = shattered.origin.statistics
    assert statistics["mass_kept"] == pytest.approx(0.7)
    assert 0 < statistics["effective_sample_size"] <= 1000
    assert statistics["numeric_rank"] == {
        "smallest": 2,
        "median": 2,
        "largest": 2,
        "of": 2,
        "rtol": 1e-6,
    }
    text = repr(shattered)
    for part in (density, "2 clusters", "700 of 1,000", "mass 0.70", "numeric rank 2 to 2 of 2"):
        assert part in text


def test_samples_have_the_contract_s_shape_and_obey_the_seed(spectrum: pgmkit.Spectrum) -> None:
    shattered = shatter(spectrum)
    images = shattered.sample(7, cluster=1, seed=5)
    assert images.shape == (7, 1, 4, 4)
    assert torch.equal(images, shattered.sample(7, cluster=1, seed=5))
    assert not torch.equal(images, shattered.sample(7, cluster=1, seed=6))
    latents = shattered.sample_latents(7, cluster=1, seed=5)
    assert torch.equal(images, shattered.generator(latents))


def test_without_a_cluster_samples_are_mixed_by_size(spectrum: pgmkit.Spectrum) -> None:
    shattered = shatter(spectrum, remove=0.5, density={"name": "lash", "prior_term": False})
    latents, clusters = shattered.draw(4000, seed=1)
    assert torch.equal(latents, shattered.sample_latents(4000, seed=1))
    assert (shattered.predict(latents) == clusters).float().mean() > 0.98
    expected = shattered.cluster_sizes[0] / sum(shattered.cluster_sizes)
    assert (clusters == 0).float().mean().item() == pytest.approx(expected, abs=0.03)


def test_samples_stay_inside_a_bounded_prior() -> None:
    prior = pgmkit.LatentSpec(2, "uniform", low=-0.5, high=0.5)
    shattered = pgmkit.shatter(generator_of(prior), sampler="kmeans-gmm", clusters=2, latents=200)
    assert shattered.sample_latents(500, cluster=0).abs().max() <= 0.5


def test_a_saved_result_comes_back_exactly(spectrum: pgmkit.Spectrum, tmp_path: Path) -> None:
    shattered = shatter(spectrum)
    shattered.save_pretrained(tmp_path / "saved")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(tmp_path / "saved", architecture=Curved)
    assert repr(loaded) == repr(shattered).replace("'Curved'", repr(loaded.generator.name))
    assert loaded.cluster_sizes == shattered.cluster_sizes
    for cluster in (None, 0, 1):
        assert torch.equal(loaded.sample(9, cluster), shattered.sample(9, cluster))
    assert torch.equal(loaded.predict(spectrum.latents), shattered.predict(spectrum.latents))
    loaded.save_pretrained(tmp_path / "again")
    for name in ("sampler.json", "sampler.safetensors", "model.safetensors", "samples.png"):
        first, second = ((tmp_path / d / name).read_bytes() for d in ("saved", "again"))
        assert first == second, name


def test_nothing_saved_is_a_pickle(spectrum: pgmkit.Spectrum, tmp_path: Path) -> None:
    shatter(spectrum).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "sampler.json",
        "sampler.safetensors",
        "samples.png",
    ]
    description = json.loads((tmp_path / "sampler.json").read_text())
    assert description["sampler"]["name"] == "pgmkit:kmeans-gmm"
    assert description["density"]["params"]["prior_term"] is True
    assert {"pgmkit", "torch", "scikit-learn"} <= description["versions"].keys()


def test_a_module_of_one_s_own_needs_its_class_again(
    spectrum: pgmkit.Spectrum, tmp_path: Path
) -> None:
    shatter(spectrum).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="a class of one's own, test_shatter:Curved"):
        pgmkit.ShatteredGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"clusters": 0},
        {"clusters": 81, "latents": 100},
        {"remove": 1.0},
        {"latents": 0},
        {"density": {"name": "lash", "rho": 1}},
        {"sampler": {"name": "kmeans-gmm", "num_components": 0}},
        {"partitioner": {"name": "kmeans", "num_starts": 0}},
        {"mapper": {"name": "rejection", "core": 2}},
    ],
)
def test_bad_settings_fail_before_anything_is_computed(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pgmkit.shattering.algorithm.compute_spectrum", lambda *a, **k: pytest.fail("computed")
    )
    with pytest.raises(ParameterError):
        pgmkit.shatter(generator_of(), **arguments)


@pytest.mark.parametrize(("n", "cluster"), [(0, 0), (3, 2), (3, -1)])
def test_samples_outside_the_range_are_refused(
    spectrum: pgmkit.Spectrum, n: int, cluster: int
) -> None:
    with pytest.raises(ParameterError):
        shatter(spectrum).sample(n, cluster)


def test_arguments_of_another_kind_are_one_line(spectrum: pgmkit.Spectrum) -> None:
    """None of them blames a plugin, or ends in an error of Python."""
    m = shatter(spectrum, clusters=2)
    x = torch.zeros(4, 1, 2, 2)
    source = ArrayImages(x, value_range=(-1, 1))
    calls: dict[str, Callable[[], object]] = {
        "no cluster is called '1'; none has a name, and the numbers are 0 to 1": lambda: m.sample(
            2, cluster="1"
        ),
        "there is no cluster 1.0": lambda: m.sample_latents(2, cluster=1.0),
        "there is no cluster True": lambda: m.draw(2, cluster=True),
        "a tensor (B, 2), not ndarray": lambda: m.predict(np.zeros((2, 2))),
        "the number of latents must be": lambda: m.generator.sample_latents("3", 0),
        "see pgmkit.load_generator, not Linear": lambda: pgmkit.compute_spectrum(nn.Linear(2, 4)),
        "ArrayImages(x), not Tensor": lambda: pgmkit.fit_partitioner("kmeans", x),
        "ArrayImages(x), not str": lambda: pgmkit.fit_partitioner("kmeans", "x.npz"),
        "must be a whole number from 1, not '2'": lambda: pgmkit.fit_partitioner(
            "kmeans", source, partitions="2"
        ),
        "a reference is a text: ": lambda: pgmkit.load_partitioner(None),
        "hf-hub:org/name[@revision], not int": lambda: pgmkit.load_generator(3),
        "stacked:IMAGES, not int": lambda: load_images(3),
        "size is a side, or (height, width), not '32'": lambda: load_images(".", size="32"),
        "images are an array or a tensor, not list": lambda: ArrayImages([[1, 2]]),
    }
    for said, call in calls.items():
        with pytest.raises(ParameterError, match=re.escape(said)):
            call()


def test_predict_checks_the_latents(spectrum: pgmkit.Spectrum) -> None:
    with pytest.raises(GeneratorError, match=r"\(B, 2\)"):
        shatter(spectrum).predict(torch.zeros(4, 3))


class Halves:
    """A cluster sampler of a user's own, with no base class and nothing to save."""

    def fit(self, latents: Tensor, *, generator: object = None, seed: int = 0) -> None:
        self.labels_ = (latents[:, 0] > 0).long()

    def predict(self, latents: Tensor) -> Tensor:
        return (latents[:, 0] > 0).long()

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        return torch.ones(n, 2) * (2 * cluster - 1)


class Central:
    def log_weights(self, spectrum: pgmkit.Spectrum) -> Tensor:
        return -spectrum.latents.norm(dim=1)


def test_objects_of_one_s_own_serve_as_methods(spectrum: pgmkit.Spectrum, tmp_path: Path) -> None:
    shattered = shatter(spectrum, density=Central(), sampler=Halves(), remove=0.5)
    assert shattered.selection is not None
    kept = spectrum.latents[shattered.selection.kept]
    assert kept.norm(dim=1).max() < spectrum.latents.norm(dim=1).quantile(0.51)
    assert torch.equal(shattered.sample_latents(2, 1), torch.ones(2, 2))
    assert len(shattered.cluster_sizes) == shattered.origin.settings["clusters"] == 2
    with pytest.raises(PluginError, match=r"cannot be saved: Halves is an object of your own"):
        shattered.save_pretrained(tmp_path)


def test_a_cluster_without_latents_cannot_be_sampled(spectrum: pgmkit.Spectrum) -> None:
    class Gap(Halves):
        num_clusters_ = 4

    shattered = shatter(spectrum, sampler=Gap(), clusters=4)
    assert shattered.cluster_sizes[2:] == [0, 0]
    with pytest.raises(SamplingError, match="cluster 3 is empty"):
        shattered.sample(5, cluster=3)
    assert shattered.sample(50).shape[0] == 50
    with pytest.warns(PgmkitWarning, match="cluster 2 cannot be sampled"):
        assert len(shattered.draw(5, cluster=2)[0]) == 0
    with pytest.warns(PgmkitWarning, match="cannot be sampled"):
        images = shattered.images_of_each(2)
    assert len(images) == 4
    assert (images[2] == shattered.generator.image.range[1]).all()
    assert torch.equal(images[1], shattered.sample(2, cluster=1))


def test_by_default_a_partitioner_sees_images_and_draws_are_rejected(
    spectrum: pgmkit.Spectrum,
) -> None:
    partitioner = {"name": "kmeans", "features": "pixels"}
    shattered = pgmkit.shatter(
        generator_of(), partitioner=partitioner, clusters=3, spectrum=spectrum
    )
    assert shattered.origin.sampler["name"] == "pgmkit:partition"
    for cluster in range(3):
        drawn = shattered.sample_latents(200, cluster)
        assert (shattered.predict(drawn) == cluster).all()
        assert 0 < shattered.sampler.acceptance_rate(cluster) <= 1
    found = shattered.sampler.partitioner.logits((shattered.images(spectrum.latents) / 3).float())
    assert torch.equal(found.argmax(dim=1), shattered.predict(spectrum.latents))


@pytest.mark.filterwarnings("ignore:.*clusters have fewer latents")
def test_all_defaults_together_find_the_digits() -> None:
    """On the shipped generator, with few latents; features that learned nothing have 0.6."""
    shattered = pgmkit.shatter(pgmkit.load_generator("mnist-dcgan", device="cpu"), latents=400)
    scores = score_samples(shattered, load_classifier("mnist-classifier"), num_samples=1000)
    assert scores.adjusted_mutual_information > 0.75
    assert return_rate(shattered, num_samples=20).overall == 1


def test_a_single_cluster_is_everything_and_nothing_is_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the default method, on the shipped generator."""

    def fail(*arguments: object, **more: object) -> None:
        pytest.fail("learned, or judged")

    monkeypatch.setattr("pgmkit_plugins.partitioners.self_trained.learn_labels", fail)
    monkeypatch.setattr("pgmkit_plugins.features.contrastive.minimise", fail)
    monkeypatch.setattr("pgmkit_plugins.partitioners.most_stable.choose_num_clusters", fail)
    monkeypatch.setattr("pgmkit_plugins.partitioners.most_stable.refitted_stability", fail)
    generator = pgmkit.load_generator("mnist-dcgan", device="cpu")
    latents = generator.sample_latents(200, seed=0)
    values = torch.ones(200, generator.latent.dim, dtype=torch.float64)
    given = pgmkit.Spectrum(latents, values, generator.log_prior(latents))
    shattered = pgmkit.shatter(generator, density="none", remove=0, clusters=1, spectrum=given)
    assert shattered.cluster_sizes == [200]
    assert shattered.origin.sampler["params"]["partitioner"]["name"] == "pgmkit:self-trained"
    assert (shattered.predict(shattered.sample_latents(20, cluster=0)) == 0).all()
    fitted = pgmkit.fit_partitioner(
        defaults.PARTITIONER, GeneratedImages(generator, latents), partitions=1, device="cpu"
    )
    assert fitted.sizes == [200]
    assert fitted.logits(generator.images(latents)).shape == (200, 1)


def test_draws_of_clusters_that_fail_are_missing_and_the_rest_is_the_same(
    spectrum: pgmkit.Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    shattered = shatter(spectrum)
    latents, clusters = shattered.draw(100, seed=3)
    let_no_sample_of_cluster_1_be_drawn(monkeypatch)
    with pytest.warns(PgmkitWarning, match="cluster 1 cannot be sampled and is left out: took 0"):
        rest, others = shattered.draw(100, seed=3)
    assert torch.equal(rest, latents[clusters == 0])
    assert (others == 0).all()
    assert len(others) == int((clusters == 0).sum())


def test_further_arguments_of_the_spectrum_stand_in_a_table(tmp_path: Path) -> None:
    settings = {"sampler": "kmeans-gmm", "clusters": 2, "latents": 300, "seed": 5}
    table = {"out": tmp_path / "spectrum", "block_size": 100}
    whole = pgmkit.shatter(generator_of(), **settings, spectrum=table)  # type: ignore[arg-type]
    assert (tmp_path / "spectrum" / "manifest.json").exists()
    assert whole.spectrum is not None
    assert torch.equal(whole.spectrum.latents, generator_of().sample_latents(300, seed=5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"sampler": "kmeans-gmm", "partitioner": "kmeans"},
            "cluster-sampler 'kmeans-gmm' has no parameter 'partitioner'",
        ),
        (
            {"sampler": "kmeans-gmm", "mapper": "mixture"},
            "cluster-sampler 'kmeans-gmm' has no parameter 'mapper'",
        ),
        ({"sampler": "halves", "mapper": "mixture"}, "mapper would be ignored, since the sampler"),
        (
            {"sampler": "halves", "partitioner": "kmeans", "mapper": "prior"},
            "partitioner and mapper would be ignored, since the sampler is an object",
        ),
        (
            {"sampler": "built", "clusters": 3},
            "'pgmkit:kmeans-gmm' has 2 clusters, and 3 are asked for",
        ),
        ({"partitioner": "built", "clusters": 3}, "'pgmkit:kmeans' has 2 parts, and 3 are asked"),
        (
            {"sampler": {"name": "kmeans-gmm", "num_clusters": 3}},
            "num_clusters stands in the table of the sampler; give the number of clusters",
        ),
        (
            {"sampler": {"name": "partition", "mapper": "prior"}, "mapper": "mixture"},
            "mapper stands in the table of the sampler",
        ),
        ({"latents": 999}, "latents is 999, and the spectrum has 1000; leave latents out"),
        ({"spectrum": {"latents": 50}}, "latents stands in the table of the spectrum"),
        ({"spectrum": {"num_latents": 50}}, "has no parameter 'num_latents'"),
        ({"spectrum": {"seed": 1}}, "seed stands in the table of the spectrum"),
        (
            {"spectrum": {"probe": 2}},
            "table of the spectrum has no parameter 'probe'; did you mean",
        ),
        ({"spectrum": {"probes": "2"}}, "takes probes = a whole number or nothing, not '2'"),
        ({"spectrum": 3}, "spectrum is a Spectrum or a table of further arguments .*, not 3"),
        ({"density": "built", "remove": 2}, r"remove is a fraction of prior mass in \[0, 1\)"),
    ],
)
def test_what_would_be_ignored_is_an_error(
    spectrum: pgmkit.Spectrum, arguments: dict[str, Any], said: str
) -> None:
    objects = {
        ("sampler", "halves"): Halves(),
        ("sampler", "built"): build("cluster-samplers", "kmeans-gmm", num_clusters=2),
        ("partitioner", "built"): build("partitioners", "kmeans", num_partitions=2),
        ("density", "built"): build("density-estimators", "jbt"),
    }
    given = {
        name: objects.get((name, value), value) if isinstance(value, str) else value
        for name, value in arguments.items()
    }
    with pytest.raises(ParameterError, match=said):
        pgmkit.shatter(generator_of(), **{"spectrum": spectrum, **given})


def test_a_spectrum_of_another_generator_is_refused(spectrum: pgmkit.Spectrum) -> None:
    other = generator_of(pgmkit.LatentSpec(2, std=0.5))
    with pytest.raises(ParameterError, match="another generator"):
        pgmkit.shatter(other, sampler="kmeans-gmm", clusters=2, spectrum=spectrum)


def test_scores_agree_with_a_case_worked_out_by_hand() -> None:
    clusters = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    classes = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    scores = cluster_scores(clusters, classes, num_clusters=3, class_names=["a", "b", "c"])
    assert scores.purity == [0.75, 1.0, 0.0]
    assert scores.majority == ["a", "c", ""]
    shares = torch.tensor([3 / 8, 1 / 8, 4 / 8], dtype=torch.float64)
    entropy = float(-(shares * shares.log()).sum())
    assert scores.class_entropy == pytest.approx(entropy)
    mutual = torch.tensor(2.0, dtype=torch.float64).log().item()
    assert scores.homogeneity == pytest.approx(mutual / entropy)
    assert scores.completeness == pytest.approx(1.0)


def test_scores_of_unrelated_labels_are_about_zero() -> None:
    random = torch.Generator().manual_seed(0)
    clusters, classes = torch.randint(0, 10, (2, 5000), generator=random)
    scores = cluster_scores(clusters, classes, 10, [str(c) for c in range(10)])
    assert abs(scores.adjusted_mutual_information) < 0.01
    assert scores.homogeneity > scores.adjusted_mutual_information


def test_seeds_of_parts_are_apart() -> None:
    seeds = {derive_seed(seed, "block", block) for seed in range(20) for block in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
