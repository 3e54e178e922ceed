"""Scores, label-free diagnostics, and `pgmkit evaluate`."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from tiny import run_pgmkit, write_tiny_classifier, write_tiny_generator
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import LoadError, ParameterError, PgmkitWarning, SamplingError
from pgmkit.evaluate import diagnostics
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.diagnostics import (
    diagnose,
    latent_output_agreement,
    reproducibility,
    return_rate,
    silhouette,
)
from pgmkit.evaluate.metrics import (
    classify_latents,
    cluster_scores,
    score_known,
    score_latents,
    score_samples,
)
from pgmkit.evaluate.report import describe, write_report
from pgmkit.jobs.shatter import prepare

NAMES = ["a", "b", "c", "d"]


def test_a_perfect_clustering_has_perfect_scores() -> None:
    classes = torch.arange(400) % 4
    scores = cluster_scores((classes + 1) % 4, classes, 4, NAMES)
    for name in ("homogeneity", "completeness", "v_measure", "overall_purity"):
        assert getattr(scores, name) == pytest.approx(1)
    assert scores.adjusted_mutual_information == pytest.approx(1)
    assert scores.normalized_mutual_information == pytest.approx(1)
    assert scores.class_entropy == pytest.approx(math.log(4))
    assert scores.cluster_entropy == [0, 0, 0, 0]
    assert scores.mean_cluster_entropy == 0
    assert scores.majority == ["d", "a", "b", "c"]
    assert scores.counts == [[0, 0, 0, 100], [100, 0, 0, 0], [0, 100, 0, 0], [0, 0, 100, 0]]


def test_clusters_that_know_nothing_of_classes_score_as_chance() -> None:
    clusters, classes = torch.arange(1600) // 4 % 4, torch.arange(1600) % 4
    scores = cluster_scores(clusters, classes, 4, NAMES)
    assert scores.adjusted_mutual_information == pytest.approx(0, abs=3e-3)
    assert scores.normalized_mutual_information == pytest.approx(0, abs=1e-9)
    assert scores.overall_purity == 0.25
    assert scores.mean_cluster_entropy == pytest.approx(math.log(4))


def test_empty_clusters_weigh_nothing() -> None:
    clusters = torch.tensor([0, 0, 0, 0, 2, 2])
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    scores = cluster_scores(clusters, classes, 4, NAMES)
    assert scores.purity == [0.5, 0, 1, 0]
    assert scores.cluster_entropy == [pytest.approx(math.log(2), abs=1e-6), 0, 0, 0]
    assert scores.overall_purity == pytest.approx(4 / 6)
    assert scores.mean_cluster_entropy == pytest.approx(math.log(2) / 2)
    assert scores.counts == [[2, 2, 0, 0], [0] * 4, [0, 0, 2, 0], [0] * 4]
    assert scores.majority == ["a", "", "c", ""]


def test_scores_are_those_of_scikit_learn() -> None:
    random = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 4, (500,), generator=random)
    clusters = (classes + torch.randint(0, 2, (500,), generator=random)) % 4
    scores = cluster_scores(clusters, classes, 4, NAMES)
    pair = classes.numpy(), clusters.numpy()
    assert scores.normalized_mutual_information == metrics.normalized_mutual_info_score(*pair)
    assert scores.adjusted_mutual_information == metrics.adjusted_mutual_info_score(*pair)
    table = metrics.cluster.contingency_matrix(*pair)
    assert np.array_equal(np.array(scores.counts).T, table)
    assert scores.overall_purity == pytest.approx(table.max(axis=0).sum() / 500)
    weighted = np.average(scores.cluster_entropy, weights=table.sum(axis=0))
    assert weighted == pytest.approx(scores.class_entropy * (1 - scores.homogeneity), abs=1e-6)
    assert scores.mean_cluster_entropy == pytest.approx(np.mean(scores.cluster_entropy), abs=1e-6)


@pytest.mark.parametrize(
    ("clusters", "classes", "said"),
    [
        ([0, 1], [0], "same length"),
        ([], [], "same length"),
        ([0, 4], [0, 1], "clusters go from 0 to 4, and there are 4"),
        ([0, -1], [0, 1], "clusters go from -1 to 0"),
        ([0, 1], [0, 9], "classes go from 0 to 9"),
    ],
)
def test_numbers_that_cannot_be_compared_are_refused(
    clusters: list[int], classes: list[int], said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        cluster_scores(torch.tensor(clusters), torch.tensor(classes), 4, NAMES)


class Corners(nn.Module):
    """Four images, one for each pair of signs of the first two latents, and a little of all."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(30.0))

    def forward(self, z: Tensor) -> Tensor:
        corner = torch.tanh(self.slope * z[:, :2])
        return torch.cat([corner, 0.01 * z], dim=1).reshape(-1, 1, 2, 3)


class Signs(nn.Module):
    """Knows the four images."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = nn.Parameter(torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] @ self.signs.T


JUDGE = Classifier(Signs(), "signs", ("--", "-+", "+-", "++"))


class Quadrants:
    """The clusters that Corners has, and a mapper that misses cluster 3 half of the time."""

    signs = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])

    def fit(self, latents: Tensor, **ignored: Any) -> "Quadrants":
        self.labels_ = self.predict(latents)
        return self

    def predict(self, latents: Tensor) -> Tensor:
        return (latents[:, :2] @ self.signs.T).argmax(dim=1)

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        drawn = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).abs()
        drawn[:, :2] *= self.signs[cluster]
        if cluster == 3:
            drawn[::2, 0] *= -1
        return drawn

    def acceptance_rate(self, cluster: int) -> float:
        return 1 / (1 + cluster)


@pytest.fixture(scope="module")
def generator() -> pgmkit.Generator:
    spec = pgmkit.ImageSpec((1, 2, 3))
    return pgmkit.Generator(Corners(), pgmkit.LatentSpec(4), spec, name="corners")


@pytest.fixture(scope="module")
def spectrum(generator: pgmkit.Generator) -> pgmkit.Spectrum:
    return pgmkit.compute_spectrum(generator, latents=600, seed=0)


@pytest.fixture(scope="module")
def quadrants(generator: pgmkit.Generator, spectrum: pgmkit.Spectrum) -> pgmkit.ShatteredGenerator:
    return pgmkit.shatter(generator, "jbt", sampler=Quadrants(), clusters=4, spectrum=spectrum)


@pytest.fixture(scope="module")
def means(generator: pgmkit.Generator, spectrum: pgmkit.Spectrum) -> pgmkit.ShatteredGenerator:
    return pgmkit.shatter(
        generator, "none", sampler="kmeans-gmm", clusters=4, remove=0.0, spectrum=spectrum
    )


def test_a_report_scores_as_many_samples_as_latents_are_kept(
    quadrants: pgmkit.ShatteredGenerator,
) -> None:
    scores = describe(quadrants, JUDGE)["scores"]
    kept = sum(quadrants.cluster_sizes)
    assert {name: found["num_samples"] for name, found in scores.items()} == {
        "kept latents": kept,
        "mapper samples": kept,
    }


def test_known_classes_score_as_those_that_are_found_again(
    quadrants: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quadrants.spectrum is not None
    classes = classify_latents(quadrants.generator, JUDGE, quadrants.spectrum.latents)
    found = score_latents(quadrants, JUDGE)
    with monkeypatch.context() as patch:
        patch.setattr(quadrants.generator, "module", None)
        assert score_known(quadrants, classes, JUDGE.classes) == found
    assert found.adjusted_mutual_information == pytest.approx(1)
    assert found.num_samples == 480
    with pytest.raises(ParameterError, match=r"each of the 600 latents.*shape \(480,\)"):
        score_known(quadrants, classes[:480], JUDGE.classes)


def test_samples_are_scored_by_the_cluster_they_were_asked_from(
    quadrants: pgmkit.ShatteredGenerator,
) -> None:
    scores = score_samples(quadrants, JUDGE, 2000)
    assert scores.purity[:3] == [1, 1, 1]
    assert scores.purity[3] == pytest.approx(0.5, abs=0.05)
    assert scores.counts[3][1] + scores.counts[3][3] == sum(scores.counts[3])


def test_silhouette_agrees_with_scikit_learn_and_tells_apart_from_touching() -> None:
    random = torch.Generator().manual_seed(0)
    clusters = torch.arange(300) % 3
    points = torch.randn(300, 2, generator=random) + 50.0 * clusters[:, None]
    found = silhouette(points, clusters)
    assert found == pytest.approx(metrics.silhouette_score(points.double(), clusters))
    assert found is not None
    assert found > 0.9
    one = torch.randn(300, 2, generator=random)
    assert silhouette(one, clusters) == pytest.approx(0, abs=0.05)
    part = silhouette(points, clusters, max_points=60, seed=1)
    assert part == pytest.approx(found, abs=0.05)
    assert part != found
    assert silhouette(points.reshape(300, 1, 1, 2), clusters) == pytest.approx(found)


@pytest.mark.parametrize("clusters", [torch.zeros(9), torch.arange(9)])
def test_there_is_no_silhouette_of_one_cluster_or_of_single_points(clusters: Tensor) -> None:
    assert silhouette(torch.randn(9, 2), clusters) is None


def test_agreement_with_the_output_is_one_if_clusters_show_and_zero_if_not(
    quadrants: pgmkit.ShatteredGenerator,
) -> None:
    z = quadrants.generator.sample_latents(500, seed=0)
    images, clusters = quadrants.images(z), quadrants.predict(z)
    assert latent_output_agreement(images, clusters) > 0.85
    assert latent_output_agreement(images, clusters, num_components=2) > 0.85
    hidden = (z[:, 2] > 0).long() + 2 * (z[:, 3] > 0).long()
    assert latent_output_agreement(images, hidden) == pytest.approx(0, abs=0.03)
    assert latent_output_agreement(torch.zeros(20, 1, 2, 2), torch.arange(20) % 4) == 0


def test_samples_that_do_not_come_back_are_counted(quadrants: pgmkit.ShatteredGenerator) -> None:
    found = return_rate(quadrants, 400)
    assert found.clusters == [1, 1, 1, 0.5]
    expected = 1 - 0.5 * quadrants.cluster_sizes[3] / sum(quadrants.cluster_sizes)
    assert found.overall == pytest.approx(expected)
    assert found.acceptance_rates == [1, 1 / 2, 1 / 3, 1 / 4]
    assert found.seconds_per_accepted is not None
    assert found.seconds_per_accepted > 0
    assert found.num_samples == 400


def test_a_mapper_that_never_hits_has_no_time_per_sample(
    quadrants: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadrants, "predict", lambda z: torch.full((len(z),), -1))
    monkeypatch.setattr(quadrants.sampler, "acceptance_rate", lambda cluster: None)
    found = return_rate(quadrants, 10)
    assert (found.overall, found.seconds_per_accepted) == (0, None)
    assert found.acceptance_rates is None


def test_an_empty_cluster_is_not_asked(quadrants: pgmkit.ShatteredGenerator) -> None:
    sizes = [10, 10, 10, 0]
    emptied = pgmkit.ShatteredGenerator(
        quadrants.generator, quadrants.sampler, sizes, quadrants.origin
    )
    found = return_rate(emptied, 10)
    assert (found.overall, found.clusters) == (pytest.approx(1), [1, 1, 1, None])


def test_a_sampler_finds_groups_that_are_apart_with_every_seed(
    means: pgmkit.ShatteredGenerator, spectrum: pgmkit.Spectrum
) -> None:
    unclear = reproducibility(means)
    assert (unclear.num_fits, unclear.num_fitted, unclear.num_held_out) == (3, 450, 150)
    assert unclear.lowest <= unclear.mean < 0.95
    assert reproducibility(means) == unclear
    middle = torch.sign(spectrum.latents[:, :2]) * 20
    apart = pgmkit.Spectrum(
        latents=torch.cat([middle, spectrum.latents[:, 2:]], dim=1),
        singular_values=spectrum.singular_values,
        log_prior=spectrum.log_prior,
    )
    clear = pgmkit.shatter(
        means.generator, "none", sampler="kmeans-gmm", clusters=4, remove=0.0, spectrum=apart
    )
    assert reproducibility(clear).lowest == pytest.approx(1)


def test_reproducibility_needs_a_component_and_its_latents(
    means: pgmkit.ShatteredGenerator, quadrants: pgmkit.ShatteredGenerator
) -> None:
    with pytest.raises(ParameterError, match="'Quadrants' is no component"):
        reproducibility(quadrants)
    with pytest.raises(ParameterError, match="at least 2 fits, not 1"):
        reproducibility(means, num_fits=1)
    loaded = pgmkit.ShatteredGenerator(
        means.generator, means.sampler, means.cluster_sizes, means.origin
    )
    with pytest.raises(ParameterError, match="the kept latents are not saved"):
        reproducibility(loaded)


def test_a_fresh_result_is_diagnosed_by_its_latents_and_a_loaded_one_by_samples(
    means: pgmkit.ShatteredGenerator,
) -> None:
    fresh = diagnose(means, num_latents=300)
    assert (fresh.latents, fresh.num_latents) == ("kept latents", 300)
    assert fresh.reproducibility is not None
    assert fresh.silhouette_images is not None
    assert fresh.silhouette_latents is not None
    assert fresh.return_rate.num_samples == 75
    loaded = pgmkit.ShatteredGenerator(
        means.generator, means.sampler, means.cluster_sizes, means.origin
    )
    found = diagnose(loaded, num_latents=300)
    assert (found.latents, found.num_latents, found.reproducibility) == (
        "mapper samples",
        300,
        None,
    )
    with pytest.raises(ParameterError, match="not 0"):
        diagnose(means, num_latents=0)


def keep_from_sampling(
    shattered: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch, clusters: set[int]
) -> None:
    sample = shattered.sampler.sample

    def rarely(n: int, cluster: int, seed: int) -> Tensor:
        if cluster in clusters:
            raise SamplingError(f"cluster {cluster} took 0 of 80 proposals")
        return sample(n, cluster, seed)

    monkeypatch.setattr(shattered.sampler, "sample", rarely)


def test_a_cluster_that_cannot_be_sampled_is_left_out_of_scores_with_a_warning(
    quadrants: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quadrants.draw(400, seed=3)
    assert torch.equal(quadrants.sample_latents(400, seed=3), whole[0])
    keep_from_sampling(quadrants, monkeypatch, {1})
    with pytest.warns(PgmkitWarning, match="cluster 1 cannot be sampled and is left out: cluster"):
        latents, clusters = quadrants.draw(400, seed=3)
    others = whole[1] != 1
    assert torch.equal(latents, whole[0][others])
    assert torch.equal(clusters, whole[1][others])
    with pytest.warns(PgmkitWarning, match="cluster 1"):
        scores = score_samples(quadrants, JUDGE, 400)
    assert scores.majority[1] == ""
    assert sum(scores.counts[1]) == 0 < sum(scores.counts[2])
    assert scores.num_samples < 400
    with pytest.warns(PgmkitWarning, match="cluster 1"):
        found = return_rate(quadrants, 400)
    assert found.clusters == [1, None, 1, 0.5]
    sizes = quadrants.cluster_sizes
    assert found.overall == pytest.approx(1 - 0.5 * sizes[3] / (sum(sizes) - sizes[1]))
    with pytest.raises(SamplingError, match="took 0 of 80"):  # who asks for it is told
        quadrants.sample(10, cluster=1)
    with pytest.raises(SamplingError, match="took 0 of 80"):
        quadrants.sample(400)


@pytest.mark.filterwarnings("ignore:cluster . cannot be sampled")
def test_without_any_cluster_that_can_be_sampled_there_is_an_error(
    quadrants: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_from_sampling(quadrants, monkeypatch, {0, 1, 2, 3})
    for call in (lambda: score_samples(quadrants, JUDGE, 40), lambda: return_rate(quadrants)):
        with pytest.raises(SamplingError):
            call()


def test_a_result_with_a_cluster_that_cannot_be_sampled_is_saved_and_reported(
    folder: Path, tmp_path: Path
) -> None:
    """Its pictures are blank."""
    tiny = pgmkit.load_generator(f"local-dir:{folder / 'tiny'}")
    made = pgmkit.shatter(
        tiny,
        partitioner={"name": "kmeans", "features": "latents"},
        mapper={"name": "rejection", "max_tries": 2},
        clusters=2,
        latents=200,
    )
    made.sampler.assign = lambda z, core=1.0: torch.zeros(len(z), dtype=torch.int64)
    with pytest.warns(PgmkitWarning, match="cluster 1 cannot be sampled"):
        made.save_pretrained(tmp_path / "result")
    with Image.open(tmp_path / "result" / "samples.png") as picture:
        pixels = np.asarray(picture)
    rows, numbers = len(pixels) // 2, pixels.shape[1] - 8 * 2 * 33
    assert (pixels[rows + 1 :, numbers:] == 255).all()
    assert (pixels[:rows] < 128).any()
    with pytest.warns(PgmkitWarning, match="cluster 1 cannot be sampled"):
        write_report(tmp_path, made, describe(made))
    with Image.open(tmp_path / "clusters" / "cluster-01.png") as picture:
        assert (np.asarray(picture) == 255).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved result of the tiny generator, and labelled noise of its size."""
    root = tmp_path_factory.mktemp("evaluate")
    source = write_tiny_generator(root / "tiny")
    tiny = pgmkit.load_generator(source)
    result = pgmkit.shatter(tiny, sampler="kmeans-gmm", clusters=2, latents=200, seed=0)
    result.save_pretrained(root / "result")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40) % 10
    np.savez(root / "noise.npz", x_train=pixels, y_train=labels, x_test=pixels[:9])
    write_tiny_classifier(root / "judge")
    write_tiny_classifier(root / "large", image_size=64)
    return root


def against_noise(folder: Path) -> tuple[object, ...]:
    extractor = f"classifier:local-dir:{folder / 'judge'}"
    data = ("--reference", folder / "noise.npz", "--extractor", extractor)
    return ("evaluate", folder / "result", *data, "-n", 60)


class Wide(nn.Module):
    """Makes images of 3×48×96, each of one brightness per colour."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :3, None, None].tanh().expand(-1, -1, 48, 96)


def test_large_images_are_made_smaller_before_they_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = pgmkit.Generator(
        Wide(), latent=pgmkit.LatentSpec(4), image=pgmkit.ImageSpec((3, 48, 96)), name="wide"
    )
    shattered = pgmkit.shatter(
        generator, density="none", sampler="kmeans-gmm", clusters=2, latents=60
    )
    seen: list[Tensor] = []

    def recorded(images: Tensor, clusters: Tensor, **options: Any) -> float:
        seen.append(images)
        return latent_output_agreement(images, clusters, **options)

    monkeypatch.setattr(diagnostics, "latent_output_agreement", recorded)
    diagnose(shattered, num_latents=40, refit=False)
    (images,) = seen
    assert images.shape == (40, 3, 16, 32)
    assert torch.allclose(images, images[..., :1, :1].expand_as(images), atol=1e-6)
    assert len(images.unique(dim=0)) == 40


def test_evaluate_prints_and_writes_all_numbers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    words = against_noise(folder)
    finished = run_pgmkit(*words, "--classifier", "mnist-classifier", "--json", "-o", out)
    assert finished.code == 0, finished.stderr
    numbers = json.loads(finished.stdout)
    assert numbers == json.loads(out.read_text())
    fidelity = numbers["fidelity"]
    for part in (fidelity["before"], fidelity["after"], *fidelity["clusters"]):
        assert part["extractor"] == f"classifier:local-dir:{folder / 'judge'}"
        assert part["num_features"] == 128
    assert (fidelity["before"]["num_samples"], fidelity["before"]["num_reference"]) == (60, 40)
    assert fidelity["data"]["shape"] == [40, 1, 32, 32]
    said = {"source": str(folder / "result"), "split": "train", "num_samples": 60, "seed": 0}
    assert numbers["evaluation"] == said
    assert numbers["scores"]["mapper samples"]["num_samples"] == 60
    assert 0 <= numbers["return_rate"]["overall"] <= 1
    assert numbers["diagnostics"]["latents"] == "mapper samples"
    assert set(numbers["seconds"]) == {"diagnostics", "scores", "fidelity"}
    assert "warning: 4 of 4 FIDs come from no more images than features" in finished.stderr
    again = json.loads(run_pgmkit(*words, "--classifier", "mnist-classifier", "--json").stdout)
    for name in ("scores", "fidelity", "diagnostics"):
        assert again[name] == numbers[name]


def test_evaluate_says_what_takes_long_and_how_many_images_there_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.progress._SECONDS", 0.0)
    image_batches = pgmkit.Generator.image_batches

    def slowly(generator: pgmkit.Generator, latents: Tensor, *size: int) -> Iterator[Tensor]:
        for batch in image_batches(generator, latents, *size):
            time.sleep(0.1)  # for the timer of the phase
            yield batch

    monkeypatch.setattr(pgmkit.Generator, "image_batches", slowly)
    finished = run_pgmkit(*against_noise(folder), "--classifier", "mnist-classifier")
    said = finished.stderr.splitlines()
    for line in (
        "diagnostics: samples of each cluster on cpu",
        "scores: 60 samples and the classes of mnist-classifier",
        "classes of images by mnist-classifier: 60 images",
        f"fidelity: 60 images, looked at by classifier:local-dir:{folder}/judge",
        f"images of {folder}/result looked at by classifier:local-dir:{folder}/judge: 60 images",
    ):
        assert line in said


def test_evaluate_prints_a_summary_with_the_extractor_beside_the_numbers(folder: Path) -> None:
    finished = run_pgmkit(*against_noise(folder), "--split", "test")
    assert finished.code == 0, finished.stderr
    for said in (
        "return rate",
        "silhouette of latents",
        "latent-output agreement (AMI)",
        "fidelity by 128 features of classifier:local-dir:",
        "9, all of noise.npz",
    ):
        assert said in finished.stdout
    assert "AMI 0" not in finished.stdout


def test_evaluate_needs_no_data_and_no_classifier(folder: Path) -> None:
    finished = run_pgmkit("evaluate", folder / "result", "-n", 60, "--json", "-q")
    assert finished.code == 0, finished.stderr
    numbers = json.loads(finished.stdout)
    assert (numbers["fidelity"], numbers["scores"]) == (None, {})
    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./none"], "there is no folder"),
        (["mnist-dcgan"], "pgmkit shatter mnist-dcgan -o"),
        (["{folder}/result", "-n", 0], "the number of samples"),
        (["{folder}/result", "--classifier", "mnist"], "'mnist-classifier'"),
        (["{folder}/result", "--reference", "none.npz"], "there are no images at none.npz"),
        (["{folder}/result", "--reference", "{folder}/noise.npz", "--extractor", "x"], "'x'"),
        (["{folder}/result", "--reference", "{folder}/noise.npz", "-n", 11], "needs 6"),
        (["{folder}/result", "--reference", "none.npz", "--extractor", "x"], "'x'"),
        (
            ["none", "--reference", "{folder}/noise.npz", "--extractor", "inception@x"],
            "weights at x",
        ),
        (["none", "--reference", "none.npz"], "there are no images at none.npz"),
        (["{folder}/result", "--reference", "torchvision:NOPE:x"], "data set of images called"),
        (["{folder}/result", "--classifier", "local-dir:{folder}/large"], "looks at 64×64 pixels"),
        (
            [
                "{folder}/result",
                "--reference",
                "{folder}/noise.npz",
                "--extractor",
                "classifier:local-dir:{folder}/large",
            ],
            "looks at 64×64 pixels",
        ),
        (["{folder}/result", "--device", "abacus"], "'abacus'"),
        (["{folder}/result", "-o", "{folder}"], "is a folder; give a file"),
    ],
)
def test_a_bad_evaluation_is_one_line(words: list[object], said: str, folder: Path) -> None:
    finished = run_pgmkit("evaluate", *(str(word).format(folder=folder) for word in words))
    assert (finished.code, finished.stdout) == (1, "")
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert said in finished.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--split", "test"), "error: split would be ignored, since there are no reference images"),
        (("--extractor", "classifier:mnist-classifier"), "extractor would be ignored"),
        (("--no-cache", "--split", "test"), "split and cache would be ignored"),
    ],
)
def test_what_is_said_of_images_that_are_not_there_is_refused(
    words: tuple[str, ...], said: str, folder: Path
) -> None:
    finished = run_pgmkit("evaluate", folder / "result", *words)
    assert (finished.code, finished.stdout) == (1, "")
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_images_that_a_classifier_cannot_see_are_refused_before_any_work(
    folder: Path, tmp_path: Path
) -> None:
    source, judge = f"local-dir:{folder / 'tiny'}", f"local-dir:{folder / 'large'}"
    with pytest.raises(ParameterError, match="looks at 64×64 pixels, and the images have 32×32"):
        prepare({"source": source, "classifier": judge})


def test_a_classifier_that_sees_little_of_the_images_is_warned_of(folder: Path) -> None:
    judge = ("--classifier", f"local-dir:{folder / 'judge'}")
    finished = run_pgmkit("evaluate", folder / "result", "-n", 60, "-q", *judge)
    assert finished.code == 0
    assert finished.stderr.count("sees the middle 8×8 of the 32×32 pixels") == 1
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_args": {"image_size": 2**20}}, "ask for a network of 21,990,232,568,768 values"),
        ({"model_args": {"num_classes": 10**12}}, "and the weights are 14,538 in 6"),
        ({"model_args": {"image_size": "8"}}, "takes image_size = a whole number, not '8'"),
        ({"model_args": {"colour": 3}}, "has no parameter 'colour'"),
        ({"model_args": [3]}, "'model_args' in the config.json of .* must be a table"),
        ({"classes": ["cat", "dog"]}, "must be a list of 10 names"),
        ({"classes": 3}, "must be a list of 10 names, not 3"),
        ({"measured": 3}, "'measured' in the config.json of .* must be a table"),
    ],
)
def test_a_classifier_is_no_larger_than_its_weights_and_as_its_config_should_be(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    reference = write_tiny_classifier(tmp_path / "judge")
    path = tmp_path / "judge" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(LoadError, match=said):
        load_classifier(reference)
