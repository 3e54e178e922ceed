"""The number of clusters and the removed mass, chosen without labels."""

import json
import warnings
from pathlib import Path
from typing import Any

import groups
import pytest
import tiny
import torch
from torch import Tensor, nn

import pgmkit
from pgmkit.choosing import (
    CRITERIA,
    Choice,
    choose_num_clusters,
    choose_removed_mass,
    make_kmeans,
)
from pgmkit.errors import ParameterError, PgmkitWarning, PluginError, UnknownNameError
from pgmkit.plugins import build

FEW = range(2, 8)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(k: int, dim: int, seed: int, count: int = 600, distance: float = 9) -> Tensor:
    """Unit Gaussians of equal size around points of a sphere, or of a line in one dimension."""
    centres = torch.eye(max(k, dim))[:k, :dim] * distance
    if k > dim:
        centres = torch.stack([torch.arange(k) % 3, torch.arange(k) // 3], dim=1) * distance
        centres = nn.functional.pad(centres, (0, dim - 2))
    noise = torch.randn(count, dim, generator=random(seed))
    return centres[torch.arange(count) % k] + noise


def bridged(
    k: int, dim: int, share: float, seed: int, count: int = 2000
) -> tuple[Tensor, Tensor, Tensor]:
    """Blobs, points between two of them each, and noisy log-weights that are lower there."""
    points = blobs(k, dim, seed, count)
    between = torch.rand(count, generator=random(seed + 1)) < share
    other = points.roll(1, dims=0)  # of the next blob
    where = torch.rand(count, 1, generator=random(seed + 2)) * 0.6 + 0.2
    points = torch.where(between[:, None], points * (1 - where) + other * where, points)
    noise = torch.randn(count, generator=random(seed + 3))
    return points, noise - 8 * between, between


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("k", "dim", "seed"), [(2, 2, 0), (3, 2, 1), (4, 16, 2), (6, 16, 3), (5, 64, 4)]
)
def test_well_separated_blobs_are_counted(criterion: str, k: int, dim: int, seed: int) -> None:
    choice = choose_num_clusters(blobs(k, dim, seed), FEW, criterion, seed=seed)
    assert choice.value == k
    assert choice.convincing
    assert choice.candidates == tuple(FEW)
    assert len(choice.mean) == len(choice.std) == len(FEW)
    assert choice.criterion == criterion
    assert choice.diversity == ()


def test_a_perfectly_stable_number_has_a_stability_of_1_and_points_without_clusters_of_0() -> None:
    stable = choose_num_clusters(blobs(4, 8, 0), [4])
    assert stable.mean == (1.0,)
    assert stable.std == (0.0,)
    with pytest.warns(PgmkitWarning):
        unstable = choose_num_clusters(blobs(1, 8, 0), FEW)
    assert all(abs(mean) < 0.5 for mean in unstable.mean)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("dim", "seed"), [(2, 0), (16, 1)])
def test_for_a_gaussian_the_best_candidate_comes_with_a_warning(
    criterion: str, dim: int, seed: int
) -> None:
    stretched = blobs(1, dim, seed) * torch.linspace(1, 4, dim)
    with pytest.warns(PgmkitWarning, match=f"no number of clusters is convincing: the {criterion}"):
        choice = choose_num_clusters(stretched, FEW, criterion, seed=seed)
    assert not choice.convincing
    assert choice.value in FEW


def test_two_far_clusters_are_found_although_a_stretched_gaussian_splits_stably() -> None:
    assert choose_num_clusters(blobs(2, 4, 0, distance=60), FEW).value == 2


def test_a_choice_obeys_the_seed_and_not_the_order_of_candidates() -> None:
    points = blobs(3, 4, 0, count=200, distance=3)
    choice = choose_num_clusters(points, [5, 2, 3, 3], seed=1)
    assert choice == choose_num_clusters(points, (2, 3, 5), seed=1)
    assert choice.candidates == (2, 3, 5)
    assert choice.mean != choose_num_clusters(points, (2, 3, 5), seed=2).mean


def test_points_that_repeat_have_no_more_clusters_than_distinct_values() -> None:
    corners = torch.eye(3).repeat(50, 1)
    for criterion in CRITERIA:
        assert choose_num_clusters(corners, range(2, 6), criterion).value >= 3
    assert choose_num_clusters(corners, (2, 3)).value == 3


@pytest.mark.parametrize(
    ("k", "dim", "share", "seed"),
    [(3, 2, 0.2, 0), (5, 16, 0.1, 1), (5, 16, 0.4, 2), (8, 64, 0.3, 3)],
)
def test_bridges_are_removed_with_about_their_share(
    k: int, dim: int, share: float, seed: int
) -> None:
    points, weights, between = bridged(k, dim, share, seed)
    choice = choose_removed_mass(points, weights, num_clusters=k, seed=seed)
    assert choice.value == pytest.approx(share, abs=0.051)
    assert choice.convincing
    removed = weights.argsort()[: int(choice.value * len(points))]
    assert between[removed].float().mean() > 0.75
    assert min(choice.diversity) > 0.9


def test_weights_that_say_nothing_remove_nothing_that_convinces() -> None:
    points, _, _ = bridged(4, 8, 0.2, 0)
    weights = torch.rand(len(points), generator=random(9))
    with pytest.warns(PgmkitWarning, match="no removed mass is convincing: at the best"):
        choice = choose_removed_mass(points, weights, num_clusters=4)
    assert max(choice.mean) < 0.03


def test_weights_that_keep_the_bridges_are_seen_as_worse_than_removing_nothing() -> None:
    points, weights, _ = bridged(4, 8, 0.3, 0)
    with pytest.warns(PgmkitWarning, match="no removed mass"):
        choice = choose_removed_mass(points, -weights, num_clusters=4)
    assert choice.value == 0
    assert choice.mean[0] == 0
    assert max(choice.mean[1:]) < 0


def test_no_more_of_the_clusters_is_lost_than_was_allowed() -> None:
    points, weights, _ = bridged(4, 8, 0.3, 0)
    weights[::4] -= 12  # one cluster goes before all bridges
    free = choose_removed_mass(points, weights, num_clusters=4, max_loss=0.5)
    assert 0.24 < 1 - free.diversity[free.candidates.index(free.value)] <= 0.5
    bound = choose_removed_mass(points, weights, num_clusters=4, max_loss=0.02)
    assert 1 - bound.diversity[bound.candidates.index(bound.value)] <= 0.02
    assert bound.value < free.value


def test_the_smallest_candidate_is_taken_if_each_loses_too_much() -> None:
    points = blobs(4, 8, 0)
    weights = -(torch.arange(len(points)) % 4).float()
    with pytest.warns(PgmkitWarning, match=r"each loses more than 0\.1"):
        choice = choose_removed_mass(points, weights, [0.6, 0.5], num_clusters=4)
    assert choice.value == 0.5
    assert not choice.convincing
    assert choice.diversity == pytest.approx((0.5, 0.4875), abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"criterion": "gaps"}, "did you mean 'gap'"),
        ({"criterion": "silhouette"}, r"no criterion .* 'silhouette'"),
        ({"candidates": []}, r"a list of numbers, not \[\]"),
        ({"candidates": 5}, "a list of numbers, not 5"),
        ({"candidates": [1, 2]}, "from 2, not 1"),
        ({"candidates": [2, 2.5]}, "not 2.5"),
        ({"candidates": [2, 16]}, "at least 64 points, and there are 60"),
    ],
)
def test_bad_arguments_for_the_number_of_clusters_are_refused(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=said):
        choose_num_clusters(torch.zeros(60, 2), **arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"candidates": [0, 1.0]}, "not 1.0"),
        ({"candidates": ["half"]}, "not 'half'"),
        ({"candidates": []}, "a list of numbers"),
        ({"num_clusters": 1}, "at least 2 clusters"),
        ({"num_clusters": 30}, "leaves fewer than the 30"),
        ({"max_loss": 1}, "not 1"),
        ({"log_weights": torch.zeros(3)}, r"shape \(3,\) for 60 points"),
        ({"points": torch.full((60, 2), torch.nan)}, "finite"),
    ],
)
def test_bad_arguments_for_the_removed_mass_are_refused(
    arguments: dict[str, Any], said: str
) -> None:
    usual = {"points": torch.zeros(60, 2), "log_weights": torch.zeros(60), "num_clusters": 2}
    with pytest.raises(ParameterError, match=said):
        choose_removed_mass(**{**usual, **arguments})


class Corners(nn.Module):
    """Four plateaus with steep walls between them: one for each sign of two latents."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(4 * z).repeat(1, 8)


class ByImage:
    """A cluster sampler of a user's own that looks at images, and counts its calls."""

    def __init__(self, num_clusters: int = 1) -> None:
        self.num_clusters = num_clusters
        self.prepared: list[int] = []
        self.was_split: list[int] = []

    def prepare(self, latents: Tensor, *, generator: pgmkit.Generator, seed: int) -> Tensor:
        self.prepared.append(len(latents))
        return generator(latents).flatten(1)

    def make_clusterer(self, num_clusters: int, seed: int) -> Any:
        return make_kmeans(num_clusters, seed)

    def split(self, latents: Tensor, *, generator: pgmkit.Generator, seed: int) -> None:
        self.was_split.append(len(latents))
        self.labels_ = torch.arange(len(latents)) % self.num_clusters

    def fit(self, latents: Tensor, *, generator: Any, seed: int) -> None:
        self.labels_ = torch.arange(len(latents)) % self.num_clusters

    def predict(self, latents: Tensor) -> Tensor:
        return torch.zeros(len(latents), dtype=torch.int64)

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        return torch.zeros(n, 2)


@pytest.fixture(scope="module")
def corners() -> pgmkit.Generator:
    return pgmkit.Generator(
        Corners(), latent=pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((1, 4, 4)), name="corners"
    )


@pytest.fixture(scope="module")
def spectrum(corners: pgmkit.Generator) -> pgmkit.Spectrum:
    return pgmkit.compute_spectrum(corners, latents=500, seed=0)


@pytest.fixture(scope="module")
def grouped() -> pgmkit.Spectrum:
    return pgmkit.compute_spectrum(groups.gated(), latents=300, seed=0, dtype="float32")


AUTO = {"name": "auto", "candidates": FEW}


def test_both_are_chosen_among_the_points_that_the_sampler_prepares(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum
) -> None:
    sampler = ByImage()
    shattered = pgmkit.shatter(
        corners, "jbt", sampler=sampler, clusters=AUTO, remove="auto", spectrum=spectrum
    )
    assert sampler.prepared == [500]
    assert sampler.was_split == [sum(shattered.cluster_sizes)]
    assert sampler.num_clusters == shattered.num_clusters == 4
    recorded = shattered.origin.settings
    assert recorded["clusters"] == 4
    assert 0.1 <= recorded["remove"] <= 0.6
    assert sum(shattered.cluster_sizes) == round(500 * (1 - recorded["remove"]))
    chosen = recorded["chosen"]
    assert set(chosen) == {"clusters", "remove"}
    assert chosen["clusters"]["criterion"] == "stability"
    assert chosen["clusters"]["value"] == 4
    assert chosen["remove"]["value"] == recorded["remove"]
    assert json.loads(json.dumps(chosen)) == chosen
    assert "choices" in shattered.seconds


@pytest.mark.parametrize(
    "partitioner",
    [
        "kmeans",
        {"name": "kmeans", "features": "pixels"},
        "clusterer",
        {"name": "most-stable", "candidates": ["kmeans"]},
        {"name": "manifold", "embedding_dims": 4},
        "object",
    ],
)
def test_parts_that_are_named_or_built_are_chosen_as_many(
    grouped: pgmkit.Spectrum, partitioner: Any
) -> None:
    """A partitioner tells its points through the sampler that it is a part of."""
    if partitioner == "object":
        partitioner = build("partitioners", "kmeans", num_partitions=7)
    shattered = pgmkit.shatter(
        groups.gated(),
        "none",
        partitioner,
        "mixture",
        clusters={"name": "auto", "candidates": [2, 4, 7]},
        remove=0.0,
        spectrum=grouped,
    )
    assert shattered.num_clusters == shattered.origin.settings["chosen"]["clusters"]["value"] == 4
    params = shattered.origin.sampler["params"]
    assert params["num_clusters"] in (4, None)
    assert params["partitioner"]["num_partitions"] == 4
    found = shattered.predict(grouped.latents)
    assert groups.agreement(found, groups.truth(grouped.latents)) > 0.9


def test_self_training_is_chosen_by_the_points_of_its_base(grouped: pgmkit.Spectrum) -> None:
    quick = {"steps": 15, "batch_size": 24, "width": 6, "learning_rate": 1e-2, "rounds": 1}
    learned = {
        "name": "self-trained",
        "base": "kmeans",
        "strength": 0.3,
        "deformations": "digits",
        **quick,
    }
    few = {"name": "auto", "candidates": [2, 4, 7]}
    chosen = [
        pgmkit.shatter(
            groups.gated(), "none", table, "mixture", clusters=few, remove=0.0, spectrum=grouped
        ).origin.settings["chosen"]
        for table in (learned, "kmeans")
    ]
    assert chosen[0] == chosen[1]


def test_the_number_of_parts_is_chosen_with_the_partitioner_s_own_clusterer() -> None:
    """A mixture sees two groups of one mean, where k-means sees none."""
    chosen = {}
    for name in ("mixture", "kmeans"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PgmkitWarning)
            chosen[name] = pgmkit.shatter(
                groups.spread(),
                "none",
                name,
                "mixture",
                clusters={"name": "auto", "candidates": [2, 5]},
                latents=400,
                spectrum={"dtype": "float32"},
            ).origin.settings["chosen"]["clusters"]
    assert chosen["mixture"]["mean"][0] > chosen["kmeans"]["mean"][0] + 0.3


def test_the_number_is_chosen_among_the_latents_that_a_given_fraction_leaves(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def choose(points: Tensor, **options: Any) -> Choice:
        seen.append(points)
        return Choice(3, (3,), (1.0,), (0.0,), "test", "", True)

    monkeypatch.setattr("pgmkit.shattering.algorithm.choose_num_clusters", choose)
    for density in ("lash", "polarity"):
        shattered = pgmkit.shatter(
            corners, density, sampler="kmeans-gmm", clusters="auto", remove=0.4, spectrum=spectrum
        )
        assert shattered.num_clusters == 3
        assert shattered.origin.sampler["params"]["num_clusters"] == 3
        assert shattered.selection is not None
        kept = spectrum.latents[shattered.selection.kept]
        assert torch.equal(seen.pop(), kept.double())


def test_a_sampler_that_prepares_nothing_is_chosen_by_latents(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def choose(points: Tensor, scores: Tensor, **options: Any) -> Choice:
        seen.append(points)
        assert options["num_clusters"] == 2
        return Choice(0.5, (0.5,), (1.0,), (0.0,), "test", "", True)

    monkeypatch.setattr("pgmkit.shattering.algorithm.choose_removed_mass", choose)
    for name in ("prepare", "make_clusterer", "split"):
        monkeypatch.delattr(ByImage, name)
    shattered = pgmkit.shatter(corners, sampler=ByImage(2), remove="auto", spectrum=spectrum)
    assert torch.equal(seen.pop(), spectrum.latents)
    assert sum(shattered.cluster_sizes) == 250
    with pytest.raises(ParameterError, match=r"ByImage cannot be chosen, .* not prepare; give"):
        pgmkit.shatter(corners, sampler=ByImage(), clusters="auto", spectrum=spectrum)


def test_without_auto_nothing_is_chosen_or_recorded(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum
) -> None:
    sampler = ByImage(2)
    shattered = pgmkit.shatter(corners, sampler=sampler, clusters=2, spectrum=spectrum)
    assert sampler.prepared == sampler.was_split == []
    assert "chosen" not in shattered.origin.settings
    assert "choices" not in shattered.seconds


def test_points_of_another_shape_are_the_plugin_s_fault(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByImage, "prepare", lambda *_, **__: torch.zeros(3, 2))
    with pytest.raises(PluginError, match=r"\[3, 2\]\) for 500 latents; they must be .*\(500, d\)"):
        pgmkit.shatter(corners, sampler=ByImage(2), remove="auto", spectrum=spectrum)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clusters": "many"}, "is a number, \"auto\", or a table .* not 'many'"),
        ({"clusters": {"name": "manual"}}, "name \"auto\", not {'name': 'manual'}"),
        ({"clusters": {"name": "auto", "criteria": "gap"}}, "did you mean 'criterion'"),
        ({"clusters": {"name": "auto", "criterion": "elbow"}}, "no criterion .* 'elbow'"),
        ({"clusters": "auto", "latents": 90}, "at least 80 points, and there are 72"),
        ({"clusters": 1, "remove": "auto"}, "at least 2 clusters"),
        ({"remove": "some"}, "not 'some'"),
        ({"remove": None}, "not None"),
        ({"remove": {"name": "auto", "criterion": "gap"}}, "has no option 'criterion'"),
        ({"clusters": 50, "remove": "auto", "latents": 100}, "fewer than the 50"),
    ],
)
def test_bad_choices_fail_before_anything_is_computed(
    corners: pgmkit.Generator,
    arguments: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "pgmkit.shattering.algorithm.compute_spectrum", lambda *a, **k: pytest.fail("computed")
    )
    with pytest.raises((ParameterError, UnknownNameError), match=said):
        pgmkit.shatter(corners, **arguments)


def test_the_command_line_chooses_reports_and_records(tmp_path: Path) -> None:
    source = tiny.write_tiny_generator(tmp_path / "tiny")
    out = tmp_path / "out"
    words = ["shatter", source, "-o", out, "--latents", 200, "--clusters", "auto"]
    words += [
        "--sampler",
        "kmeans-gmm",
        "--remove",
        "auto",
        "--set",
        "clusters.candidates=[2, 3, 4]",
    ]
    finished = tiny.run_pgmkit(*words)
    assert finished.code == 0, finished.stderr
    report = json.loads((out / "report.json").read_text())
    chosen = report["settings"]["chosen"]
    assert chosen["clusters"]["candidates"] == [2, 3, 4]
    assert report["settings"]["clusters"] == chosen["clusters"]["value"]
    assert len(report["clusters"]) == report["settings"]["clusters"]
    for name in ("choice-of-clusters.png", "choice-of-remove.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    for line in (
        "number of clusters {} of 2 to 4, chosen by stability",
        "removed mass {:g} of 0 to 0.6",
    ):
        value = chosen["clusters" if "clusters" in line else "remove"]["value"]
        assert line.format(value) in finished.stdout
        assert line.format(value) in page
    saved = pgmkit.ShatteredGenerator.from_pretrained(out)
    assert saved.origin.settings["chosen"] == chosen
    recorded = json.loads((out / "run.json").read_text())["settings"]
    assert recorded["clusters"] == {"name": "auto", "candidates": [2, 3, 4]}
    assert recorded["remove"] == {"name": "auto"}
    again = tiny.run_pgmkit(*words)
    assert again.code == 0
    assert again.stdout == finished.stdout


@pytest.mark.parametrize("flag", ["--clusters", "--remove"])
def test_a_flag_that_is_neither_a_number_nor_auto_is_wrong_usage(flag: str) -> None:
    finished = tiny.run_pgmkit("shatter", "mnist-dcgan", flag, "some")
    assert finished.code == 2
    assert "'some' is neither a number nor auto" in finished.stderr


@pytest.mark.usefixtures("no_estimate")
def test_a_config_file_may_say_auto(tmp_path: Path) -> None:
    source = tiny.write_tiny_generator(tmp_path / "tiny")
    config = tmp_path / "auto.toml"
    config.write_text(
        f'source = "{source}"\nclusters = {{ name = "auto", criterion = "gap" }}\nremove = "auto"\n'
    )
    finished = tiny.run_pgmkit("shatter", "--config", config, "--dry-run")
    settings = json.loads(finished.stdout)["settings"]
    assert settings["clusters"] == {"name": "auto", "criterion": "gap"}
    assert settings["remove"] == {"name": "auto"}
    config.write_text(f'source = "{source}"\nclusters = "lots"\n')
    finished = tiny.run_pgmkit("shatter", "--config", config, "--dry-run")
    assert finished.code == 1
    assert "the number of clusters is a number" in finished.stderr
