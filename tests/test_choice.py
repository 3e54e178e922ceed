"""The number of clusters and the removed mass, chosen without labels."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import pgmkit
from pgmkit.choice import CRITERIA, Choice, choose_num_clusters, choose_removed_mass
from pgmkit.errors import ParameterError, PgmkitWarning, PluginError, UnknownNameError

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
    stable = choose_num_clusters(blobs(4, 8, 0), FEW)
    assert stable.mean[FEW.index(4)] == 1.0
    assert stable.std[FEW.index(4)] == 0.0
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
    points = blobs(3, 4, 0, distance=3)
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
        self.seen: list[int] = []

    def set_params(self, num_clusters: int) -> None:
        self.num_clusters = num_clusters

    def features(self, latents: Tensor, *, generator: pgmkit.Generator, seed: int) -> Tensor:
        self.seen.append(len(latents))
        return generator(latents).flatten(1)

    def fit(self, latents: Tensor, *, images: object = None, generator: Any, seed: int) -> None:
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
    return pgmkit.compute_spectrum(corners, num_latents=500, seed=0)


AUTO = {"name": "auto", "candidates": FEW}


def test_both_are_chosen_among_the_features_of_the_sampler(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum
) -> None:
    sampler = ByImage()
    shattered = pgmkit.shatter(
        corners, "jbt", sampler, num_clusters=AUTO, remove="auto", spectrum=spectrum
    )
    assert sampler.seen == [500]
    assert sampler.num_clusters == shattered.num_clusters == 4
    settings = shattered.origin.settings
    assert settings["num_clusters"] == 4
    assert 0.1 <= settings["remove"] <= 0.6
    assert sum(shattered.cluster_sizes) == round(500 * (1 - settings["remove"]))
    chosen = settings["chosen"]
    assert chosen["num_clusters"]["criterion"] == "stability"
    assert chosen["num_clusters"]["value"] == 4
    assert chosen["remove"]["value"] == settings["remove"]
    assert json.loads(json.dumps(chosen)) == chosen
    assert "choices" in shattered.seconds


def test_the_number_is_chosen_among_the_latents_that_a_given_fraction_leaves(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def choose(points: Tensor, **options: Any) -> Choice:
        seen.append(points)
        return Choice(3, (3,), (1.0,), (0.0,), "test", "", True)

    monkeypatch.setattr("pgmkit.shattering.choose_num_clusters", choose)
    for density in ("lash", "polarity"):
        shattered = pgmkit.shatter(
            corners, density=density, num_clusters="auto", remove=0.4, spectrum=spectrum
        )
        assert shattered.num_clusters == 3
        assert shattered.sampler.get_params()["num_clusters"] == 3  # type: ignore[attr-defined]
        assert shattered.selection is not None
        assert torch.equal(seen.pop(), spectrum.latents[shattered.selection.kept])


def test_without_auto_nothing_is_chosen_or_recorded(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum
) -> None:
    sampler = ByImage(2)
    shattered = pgmkit.shatter(corners, sampler=sampler, num_clusters=2, spectrum=spectrum)
    assert sampler.seen == []
    assert "chosen" not in shattered.origin.settings
    assert "choices" not in shattered.seconds


def test_features_of_another_shape_are_the_plugin_s_fault(
    corners: pgmkit.Generator, spectrum: pgmkit.Spectrum, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByImage, "features", lambda *_, **__: torch.zeros(3, 2))
    with pytest.raises(PluginError, match=r"shape \(3, 2\) for 500 latents"):
        pgmkit.shatter(corners, sampler=ByImage(), remove="auto", spectrum=spectrum)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_clusters": "many"}, "is a number, \"auto\", or a table .* not 'many'"),
        ({"num_clusters": {"name": "manual"}}, "name \"auto\", not {'name': 'manual'}"),
        ({"num_clusters": {"name": "auto", "criteria": "gap"}}, "did you mean 'criterion'"),
        ({"num_clusters": {"name": "auto", "criterion": "elbow"}}, "no criterion .* 'elbow'"),
        ({"num_clusters": "auto", "num_latents": 90}, "at least 80 points, and there are 72"),
        ({"num_clusters": 1, "remove": "auto"}, "at least 2 clusters"),
        ({"remove": "some"}, "not 'some'"),
        ({"remove": None}, "not None"),
        ({"remove": {"name": "auto", "criterion": "gap"}}, "has no option 'criterion'"),
        ({"num_clusters": 50, "remove": "auto", "num_latents": 100}, "fewer than the 50"),
    ],
)
def test_bad_choices_fail_before_anything_is_computed(
    corners: pgmkit.Generator,
    arguments: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "pgmkit.shattering.compute_spectrum", lambda *a, **k: pytest.fail("computed")
    )
    with pytest.raises((ParameterError, UnknownNameError), match=said):
        pgmkit.shatter(corners, **arguments)


def test_a_sampler_object_whose_clusters_cannot_be_set_needs_a_number(
    corners: pgmkit.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ByImage, "set_params")
    with pytest.raises(ParameterError, match=r"it has no set_params; give num_clusters"):
        pgmkit.shatter(corners, sampler=ByImage(), num_clusters="auto", num_latents=200)


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
    assert chosen["num_clusters"]["candidates"] == [2, 3, 4]
    assert report["settings"]["num_clusters"] == chosen["num_clusters"]["value"]
    assert len(report["clusters"]) == report["settings"]["num_clusters"]
    for name in ("choice-of-num-clusters.png", "choice-of-remove.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    for line in (
        "number of clusters {} of 2 to 4, chosen by stability",
        "removed mass {:g} of 0 to 0.6",
    ):
        value = chosen["num_clusters" if "clusters" in line else "remove"]["value"]
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
