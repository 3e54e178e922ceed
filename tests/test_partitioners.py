"""Partitioners: what all of them promise, and what each is for."""

import json
import math
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import groups
import numpy as np
import pytest
import torch
from groups import Pictures, agreement, every, made, pictures, truth
from torch import Tensor, nn

import pgmkit
from pgmkit import contracts
from pgmkit.choosing import Choice
from pgmkit.errors import DataError, ParameterError, PgmkitWarning, PluginError, UnknownNameError
from pgmkit.partition import assign, fit_partitioner, load_partitioner
from pgmkit.plugins import build, list_components
from pgmkit.states import load_state_of, state_of, table_of
from pgmkit_plugins.partitioners.manifold import spectral_embedding
from pgmkit_plugins.partitioners.self_trained import SelfTrained

Array = np.ndarray[Any, np.dtype[np.float64]]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
COUNT, K = 400, 4
QUICK: dict[str, Any] = {
    "steps": 30,
    "batch_size": 24,
    "width": 6,
    "strength": 0.3,
    "deformations": "digits",
    "learning_rate": 1e-2,
}
CONTRAST = {
    **QUICK,
    "name": "contrastive",
    "steps": 20,
    "batch_size": 32,
    "width": 8,
    "learning_rate": 5e-3,
    "move": 0.0,
}

TABLES: dict[str, dict[str, Any]] = {
    "kmeans": {},
    "kmeans of few pixels": {
        "name": "kmeans",
        "num_starts": 4,
        "features": {"name": "pca", "features": {"name": "pixels", "image_size": 4}, "num_dims": 5},
    },
    "kmeans of timm": {
        "name": "kmeans",
        "num_starts": 4,
        "features": {
            "name": "pca",
            "features": {
                "name": "timm",
                "model": "test_resnet",
                "pretrained": False,
                "input_size": 32,
            },
        },
    },
    "kmeans of contrast": {"name": "kmeans", "num_starts": 4, "features": CONTRAST},
    "mixture": {"features": {"name": "pca", "num_dims": 8}},
    "clusterer": {"max_points": 300},
    "clusterer with a number of its own": {
        "name": "clusterer",
        "clusterer": "sklearn.cluster:HDBSCAN",
        "clusterer_args": {"min_cluster_size": 20, "copy": True},
    },
    "manifold": {},
    "manifold with k-means": {
        "name": "manifold",
        "clusterer": "kmeans",
        "embedding_dims": 4,
        "max_points": 300,
    },
    "most-stable": {"candidates": [{"name": "kmeans", "num_starts": 1}, "mixture"]},
    "self-trained": {"base": {"name": "kmeans", "num_starts": 2}, **QUICK},
    "self-trained from the most stable": {
        "name": "self-trained",
        "base": {"name": "most-stable", "candidates": ["kmeans", "mixture"]},
        **QUICK,
    },
    "labels": {**QUICK, "steps": 50},
    "random": {},
    "iresnet": {
        "network": {"blocks": [1, 1], "width": 8, "power_iterations": 1},
        "pretext": {"steps": 20, "batch_size": 24, "learning_rate": 0.1, "projection": [32, 16]},
        "partition": {"steps": 80, "batch_size": 24, "learning_rate": 6e-3, "num_neighbors": 5},
        "deformations": "digits",
        "strength": 0.3,
    },
}
NO_GRADIENT = ("clusterer", "manifold")
NO_POINTS = ("labels", "random")
DRAWN = ("self-trained", "kmeans of contrast", "kmeans of timm", "labels", "random", "iresnet")
quiet = pytest.mark.filterwarnings("ignore::pgmkit.errors.PgmkitWarning")


def hurried(value: Any) -> Any:
    """Returns a table in which nothing is trained for more than a few steps."""
    if not isinstance(value, dict):
        return value
    return {key: 3 if key == "steps" else hurried(part) for key, part in value.items()}


@dataclass(frozen=True)
class Case:
    """One partitioner, as a table; in a hurry where it need not find the groups."""

    label: str
    in_a_hurry: bool = False

    @property
    def table(self) -> dict[str, Any]:
        table = {"name": self.label, **TABLES[self.label]}
        return hurried(table) if self.in_a_hurry else table

    @property
    def name(self) -> str:
        return self.table["name"]

    def build(self, k: int | None = K, **parameters: Any) -> Any:
        return build("partitioners", {**self.table, **parameters}, num_partitions=k)

    def fitted(self, source: Any, k: int = K, seed: int = 0) -> Any:
        partitioner = self.build(k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PgmkitWarning)
            contracts.fit("partitioners", partitioner, source, seed)
        return partitioner


@pytest.fixture(scope="module")
def seen() -> tuple[Pictures, Tensor]:
    return pictures(COUNT)


@pytest.fixture(scope="module", params=TABLES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def brief(case: Case) -> Case:
    return Case(case.label, in_a_hurry=True)


@pytest.fixture(scope="module")
def fitted(case: Case, seen: tuple[Pictures, Tensor]) -> Any:
    return case.fitted(seen[0])


def parts(partitioner: Any, source: Any) -> Tensor:
    return assign(partitioner, every(source))


def test_every_built_in_is_among_the_cases() -> None:
    """All but the one of a single part and that of parts found before, which have their own."""
    offered = {component.name for component in list_components("partitioners")}
    assert offered == {Case(label).name for label in TABLES} | {"fixed", "single"}


def test_groups_are_found_and_told_of_new_images(case: Case, fitted: Any, seen: Any) -> None:
    source, group = seen
    assert fitted.num_partitions == K
    logits = contracts.logits_of(fitted, every(source))
    assert logits.shape == (COUNT, K)
    assert logits.is_floating_point()
    assert logits.isfinite().all()
    found = parts(fitted, source)
    assert found.dtype == torch.int64
    assert found.unique().tolist() == list(range(K))
    if case.name == "random":  # which does not look for groups
        return
    assert agreement(found, group) > 0.95
    new, truly = pictures(300, seed=1)
    assert agreement(parts(fitted, new), truly) > 0.93
    assert contracts.logits_of(fitted, every(source)[:0]).shape == (0, K)


def test_an_image_has_the_same_logits_in_any_company(fitted: Any, seen: Any) -> None:
    x = every(seen[0])
    alone = torch.cat([contracts.logits_of(fitted, part) for part in x[:20].split(3)])
    torch.testing.assert_close(alone, contracts.logits_of(fitted, x)[:20], rtol=1e-4, atol=1e-5)


def test_images_that_a_generator_makes_are_split_as_those_of_a_data_set(brief: Case) -> None:
    """Where latents do not move, a source is what its images are."""
    source, _ = made(100)
    stored = Pictures(every(source))
    if brief.name == "labels":
        with pytest.raises(DataError, match="images of gated has no labels"):
            brief.fitted(source)
        return
    assert torch.equal(parts(brief.fitted(source), source), parts(brief.fitted(stored), source))


def test_the_same_seed_gives_the_same_bits(brief: Case, one_thread: None) -> None:
    source, _ = pictures(100)
    before = torch.random.get_rng_state()
    first, again, other = (brief.fitted(source, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in state_of(first).items():
        torch.testing.assert_close(value, state_of(again)[name], rtol=0, atol=0, equal_nan=True)
    x = every(source)
    assert torch.equal(first.logits(x), again.logits(x))
    if brief.label in DRAWN:
        assert not torch.equal(first.logits(x), other.logits(x))


def test_what_is_saved_has_the_same_logits(case: Case, fitted: Any, seen: Any) -> None:
    state = {name: value.clone() for name, value in state_of(fitted).items()}
    assert all(isinstance(value, Tensor) for value in state.values())
    loaded = case.build()
    load_state_of(loaded, state)
    x = every(seen[0])
    assert torch.equal(loaded.logits(x), fitted.logits(x))
    assert loaded.num_partitions == K


def test_findings_are_plain_values(fitted: Any) -> None:
    findings = dict(fitted.findings()) if isinstance(fitted, contracts.Finds) else {}
    assert json.loads(json.dumps(findings)) == findings


def test_logits_guide_where_they_have_a_gradient(case: Case, fitted: Any, seen: Any) -> None:
    x = every(seen[0])[:3].clone().requires_grad_()
    logits = contracts.logits_of(fitted, x)
    assert logits.requires_grad is (case.name not in NO_GRADIENT)
    if logits.requires_grad:
        logits[:, 0].sum().backward()
        assert x.grad is not None
        assert x.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_logits_lie_where_the_images_lie(case: Case, fitted: Any, seen: Any) -> None:
    for device in DEVICES:
        here = seen[0].subset(torch.arange(100))
        there = replace(here, device=torch.device(device))
        x = every(there)
        assert contracts.logits_of(fitted, x).device == x.device
        if device != "cpu":
            again = case.fitted(there)
            assert contracts.logits_of(again, x).device == x.device
            assert agreement(parts(again, there).cpu(), parts(case.fitted(here), here)) > 0.9


@pytest.mark.usefixtures("narrow")
def test_a_few_images_are_enough_and_too_few_are_refused(brief: Case) -> None:
    source, _ = pictures(24)
    if brief.label == "clusterer with a number of its own":
        with pytest.raises(ParameterError, match="takes all 24 images for noise"):
            brief.fitted(source)
    else:
        found = parts(brief.fitted(source), source)
        assert 0 <= found.min() <= found.max() < K
    few = source.subset(torch.arange(K - 1))
    with pytest.raises(ParameterError, match="4 partitions need as many images, and there are 3"):
        fit_partitioner(brief.build(), few)


def test_a_single_part_is_everything_unless_the_number_is_found(brief: Case) -> None:
    source, _ = pictures(200)
    if brief.name == "labels":
        source = replace(source, labels=torch.full((200,), 7))
    one = brief.fitted(source, k=1)
    count = K if brief.label == "clusterer with a number of its own" else 1
    assert one.num_partitions == count
    assert contracts.logits_of(one, every(source)).shape == (200, count)
    loaded = build("partitioners", {**brief.table, "num_partitions": count})
    load_state_of(loaded, state_of(one))
    assert torch.equal(loaded.logits(every(source)), one.logits(every(source)))


def test_points_of_the_plane_are_split_or_refused(case: Case) -> None:
    source = groups.points(100)
    networks = case.name in ("self-trained", "labels", "iresnet")
    if networks or "timm" in case.label or "contrast" in case.label:
        with pytest.raises(ParameterError, match="looks at images, and these are points; choose"):
            case.fitted(source, k=2)
    else:
        few = {"embedding_dims": 2} if case.name == "manifold" else {}
        partitioner = case.build(2, **few)
        contracts.fit("partitioners", partitioner, source, 0)
        found = parts(partitioner, source)
        assert found.unique().tolist() == [0, 1]
        if case.name != "random":
            assert agreement(found, torch.arange(100) % 2) > 0.95


@quiet
def test_points_come_before_parts(brief: Case) -> None:
    """What is learned first does not depend on k, and the parts are those of a fit in one go."""
    source, _ = pictures(200)
    first, second = brief.build(), brief.build(K if "stable" in brief.label else 9)
    assert isinstance(first, contracts.Prepares) is (brief.name not in NO_POINTS)
    if brief.name in NO_POINTS:
        return
    points, same = (contracts.prepared_points(part, source, 0) for part in (first, second))
    assert points.is_floating_point()
    assert len(points) == 200
    assert torch.equal(points, same)
    labels = first.make_clusterer(3, 0).fit(points.numpy()).predict(points.numpy())
    assert set(labels) == {0, 1, 2}
    contracts.split(first, source, 0)
    assert torch.equal(parts(first, source), parts(brief.fitted(source), source))
    second.num_partitions = K
    some = source.subset(torch.arange(0, 200, 2))
    contracts.split(second, some, 0)
    assert second.num_partitions == K
    assert contracts.logits_of(second, every(some)).shape == (100, K)


@pytest.mark.parametrize("name", ["kmeans", "mixture", "clusterer", "manifold", "most-stable"])
def test_latents_are_split_where_features_look_at_them(name: str) -> None:
    latents = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    source = Pictures(latents + 3 * (torch.arange(200) % 2)[:, None])
    table: dict[str, Any] = {"name": name, "features": "latents"}
    if name == "most-stable":
        table = {"name": name, "candidates": [{"name": "kmeans", "features": "latents"}]}
    partitioner = build("partitioners", table, num_partitions=2)
    assert partitioner.space == "latents"
    contracts.fit("partitioners", partitioner, source, 0)
    assert agreement(parts(partitioner, source), torch.arange(200) % 2) == 1.0
    with pytest.raises(ParameterError, match="looks at latents, and these are images"):
        fit_partitioner({**table, "num_partitions": 2}, pictures(20)[0])


@pytest.mark.parametrize("name", ["kmeans", "self-trained"])
def test_more_than_two_threads_change_nothing(name: str) -> None:
    source, _ = pictures(200)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            found.append(state_of(Case(name, in_a_hurry=True).fitted(source)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("name", ["kmeans", "self-trained"])
def test_images_come_in_batches(name: str) -> None:
    asked: list[int] = []

    class Counted(Pictures):
        def batch(self, index: Tensor) -> Tensor:
            asked.append(len(index))
            return super().batch(index)

    Case(name, in_a_hurry=True).fitted(Counted(pictures(600)[0].values))
    assert max(asked) == 256


def test_a_mixture_tells_groups_apart_that_differ_in_spread_alone() -> None:
    source, latents = made(500, generator=groups.spread)
    near = (latents[:, 0] <= 0).long()
    found = {name: parts(Case(name).fitted(source, k=2), source) for name in ("mixture", "kmeans")}
    assert agreement(found["mixture"], near) > 0.9
    assert agreement(found["kmeans"], near) < 0.4


def rings(count: int) -> tuple[Pictures, Tensor]:
    """Returns points of two rings, one in the other, and the ring of each."""
    random = torch.Generator().manual_seed(0)
    ring = torch.arange(count) % 2
    angle = torch.rand(count, generator=random) * 2 * math.pi
    radius = 0.3 + 0.6 * ring + 0.02 * torch.randn(count, generator=random)
    return Pictures(torch.stack([angle.cos(), angle.sin()], dim=1) * radius[:, None]), ring


def test_a_manifold_is_followed_where_k_means_cuts_across() -> None:
    source, ring = rings(500)
    table = {"embedding_dims": 2, "features": "pixels"}
    followed = build("partitioners", "manifold", num_partitions=2, **table)
    followed.fit(source, seed=0)
    assert agreement(parts(followed, source), ring) > 0.98
    new, truly = rings(311)
    assert agreement(parts(followed, new), truly) > 0.98
    cut = build("partitioners", "kmeans", num_partitions=2, features="pixels")
    cut.fit(source, seed=0)
    assert agreement(parts(cut, source), ring) < 0.1


def test_a_spectral_embedding_keeps_apart_what_hangs_together() -> None:
    """A solver that trusted one starting vector would miss most of these equal eigenvalues."""
    random = np.random.default_rng(0)
    group = np.arange(640) % 8
    points = random.standard_normal((8, 5))[group] * 10 + random.standard_normal((640, 5)) * 0.01
    embedded = spectral_embedding(points, 10, 8)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1)
    within = max(np.ptp(embedded[group == g], axis=0).max() for g in range(8))
    centres = np.stack([embedded[group == g].mean(axis=0) for g in range(8)])
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)[~np.eye(8, dtype=bool)].min()
    assert apart > 0.5
    assert within < apart


class Fixed:
    """A partitioner of a user's own that knows the part of each image; it tells no points."""

    def __init__(self, labels: Tensor, num_partitions: int = K) -> None:
        self.labels = labels
        self.num_partitions = num_partitions

    def fit(self, source: Any, *, seed: int) -> None:
        self.images = every(source).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.images).argmin(dim=1)
        return nn.functional.one_hot(self.labels[nearest], self.num_partitions).double()


def test_self_training_corrects_what_the_images_do_not_bear_out() -> None:
    source, group = pictures(600)
    mistaken = (group + (torch.arange(600) % 7 == 0)) % 4
    learned = Case("self-trained").build(base=Fixed(mistaken), rounds=2)
    learned.fit(source, seed=0)
    assert agreement(parts(learned, source), group) > 0.97
    assert learned.unchanged_ == pytest.approx(6 / 7, abs=0.02)
    assert learned.findings()["unchanged"] == pytest.approx(6 / 7, abs=0.02)
    with pytest.raises(ParameterError, match="does not tell its points, so nothing can be chosen"):
        learned.prepare(source, seed=0)
    with pytest.raises(ParameterError, match="does not tell its points"):
        learned.make_clusterer(3, 0)


@quiet
def test_self_training_takes_the_number_of_parts_of_its_base() -> None:
    source, _ = pictures(300)
    own_number = Case("clusterer with a number of its own").table
    learned = Case("self-trained").build(9, base=own_number)
    learned.fit(source, seed=0)
    assert learned.num_partitions == K
    assert contracts.logits_of(learned, every(source)).shape == (300, K)
    assert learned.findings()["base agreement"] > 0.9


@pytest.mark.parametrize("outer", ["most-stable", "self-trained"])
@pytest.mark.parametrize("form", ["table", "object"])
def test_what_is_nested_has_as_many_parts_as_are_asked_for(outer: str, form: str) -> None:
    inner: Any = {"name": "kmeans", "num_partitions": 3}
    inner = build("partitioners", inner) if form == "object" else inner
    parameters = {"candidates": ["mixture", inner]} if outer == "most-stable" else {"base": inner}
    with pytest.raises(ParameterError, match="kmeans' has 3 parts, and 4 are asked for; ask"):
        fit_partitioner({"name": outer, **parameters}, pictures(60)[0], partitions=4)
    assert inner == {"name": "kmeans", "num_partitions": 3} or inner.num_partitions == 3


@quiet
def test_a_small_part_is_learned_again_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    source, latents = made(600)
    rare = (truth(latents) == 3) & (latents[:, 0] > 1.4)
    assert 5 < rare.sum() < 40
    taken: list[bool] = []
    train = SelfTrained._train

    def counted(self: Any, pool: Tensor, labels: Tensor, even: bool, *rest: Any) -> nn.Module:
        taken.append(even)
        return train(self, pool, labels, even, *rest)

    monkeypatch.setattr(SelfTrained, "_train", counted)
    learned = build(
        "partitioners",
        "self-trained",
        num_partitions=3,
        base=Fixed(truth(latents) % 2 + 2 * rare * (1 - truth(latents) % 2), 3),
        rounds=1,
        steps=10,
        width=4,
        deformations="digits",
    )
    learned.fit(source, seed=0)
    assert taken == [False, True]


class Constant(nn.Module):
    """Gives images to the first few parts in turn."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.arange(len(images)) % self.groups, K).float()


def test_a_round_that_loses_a_part_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = pictures(300)
    turns = iter([(4, False), (4, False), (3, False), (3, True)])

    def train(self: Any, pool: Tensor, labels: Tensor, even: bool, *_: Any) -> nn.Module:
        count, wanted = next(turns)
        assert even is wanted
        return Constant(count)

    monkeypatch.setattr(SelfTrained, "_train", train)
    learned = Case("self-trained").build(rounds=9)
    learned.fit(source, seed=0)
    assert learned.network_.groups == 4
    assert next(turns, None) is None


def test_a_part_that_the_first_round_loses_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SelfTrained, "_train", lambda *_: Constant(2))
    with pytest.warns(PgmkitWarning, match="gives no images to 2 parts .*: 2, 3; ask for fewer"):
        Case("self-trained").build().fit(pictures(100)[0], seed=0)


def stable(*candidates: Any, k: int = K, source: Any = None) -> Any:
    partitioner = build("partitioners", "most-stable", num_partitions=k, candidates=candidates)
    partitioner.fit(source or pictures(COUNT)[0], seed=0)
    return partitioner


def test_the_most_stable_candidate_is_kept_and_named() -> None:
    source, _ = made(500, generator=groups.spread)
    kept = stable("kmeans", "mixture", k=2, source=source)
    assert kept.stability_.shape == (2,)
    assert kept.stability_[1] > max(0.8, float(kept.stability_[0]) + 0.2)
    findings = kept.findings()
    assert findings["chosen"] == "mixture of pca"
    assert findings["stability"].startswith("kmeans of pca ")
    alone = Case("mixture").build(k=2, features="pca")
    alone.fit(source, seed=0)
    assert torch.equal(parts(alone, source), parts(kept, source))


class Judged(Fixed):
    """A candidate whose points are as stable as it is told."""

    def __init__(self, stability: float) -> None:
        super().__init__(torch.arange(K))
        self.stability = stability
        self.was_tried = False

    def prepare(self, source: Any, *, seed: int) -> Tensor:
        self.was_tried = True
        return torch.full((len(source), 1), self.stability)

    def make_clusterer(self, num_partitions: int, seed: int) -> Any:
        return None

    def split(self, source: Any, *, seed: int) -> None:
        self.fit(source, seed=seed)


@pytest.mark.parametrize(
    ("stability", "kept", "tried"),
    [
        ((0.3, 0.75, 0.9, 0.1), 1, 4),
        ((0.65, 0.84, 0.9, 1.0), 1, 3),
        ((0.5, 0.85, 1.0), 1, 2),
        ((0.8, 1.0), 0, 1),
        ((-0.1, 0.0), 0, 2),
        ((0.1, 0.2, 0.7), 2, 3),
    ],
)
def test_the_first_within_a_fifth_of_the_best_is_kept(
    stability: tuple[float, ...], kept: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none is tried once one that would be kept reaches 0.8, since none is above 1."""

    def judge(points: Tensor, candidates: list[int], **_: Any) -> Choice:
        assert candidates == [K]
        return Choice(K, (K,), (float(points[0, 0]),), (0.0,), "test", "", True)

    monkeypatch.setattr("pgmkit_plugins.partitioners.most_stable.choose_num_clusters", judge)
    candidates = [Judged(value) for value in stability]
    found = stable(*candidates)
    assert found.chosen_ is candidates[kept]
    assert [candidate.was_tried for candidate in candidates] == [
        number < tried for number in range(len(stability))
    ]
    assert found.stability_[:tried].tolist() == pytest.approx(stability[:tried])
    assert found.stability_[tried:].isnan().all()
    findings = found.findings()
    assert findings["chosen"] == f"Judged ({kept + 1})"
    assert findings["stability"].count("Judged") == tried


@pytest.mark.parametrize(("count", "k"), [(200, 1), (12, 4)])
@quiet
def test_where_nothing_can_be_compared_the_first_candidate_is_kept(count: int, k: int) -> None:
    kept = stable("kmeans", "mixture", k=k, source=pictures(count)[0])
    assert kept.findings()["chosen"] == "kmeans of pca"
    assert kept.stability_.isnan().all()


def test_candidates_are_judged_again_when_another_number_of_parts_is_chosen() -> None:
    source, group = pictures(COUNT)
    kept = Case("most-stable").build(2)
    kept.prepare(source, seed=0)
    at_two = kept.stability_
    kept.num_partitions = K
    some = source.subset(torch.arange(300))
    kept.split(some, seed=0)
    assert kept.num_partitions == K
    assert not torch.equal(kept.stability_, at_two)
    assert agreement(parts(kept, some), group[:300]) > 0.95


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ([], ParameterError, r"must be a list of partitioners, .* not \[\]"),
        ("kmeans", ParameterError, "not 'kmeans'"),
        (["kmean"], UnknownNameError, "did you mean 'kmeans'"),
        ([{"name": "kmeans", "num_start": 3}], ParameterError, "'num_start'"),
        (["kmeans", 3], PluginError, "has no method fit"),
        (["kmeans", {"name": "kmeans", "features": "latents"}], ParameterError, "all look at"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(
    candidates: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build("partitioners", "most-stable", candidates=candidates)


def test_a_candidate_that_tells_no_points_is_fitted_to_halves() -> None:
    source, group = pictures(COUNT)

    class Random(Fixed):
        """Parts that say nothing of an image: others in each fit."""

        def fit(self, source: Any, *, seed: int) -> None:
            super().fit(source, seed=seed)
            random = torch.Generator().manual_seed(seed)
            self.labels = torch.randint(4, (len(self.images),), generator=random)

    class Known(Fixed):
        def fit(self, source: Any, *, seed: int) -> None:
            super().fit(Pictures(every(seen)), seed=seed)

    seen = source
    kept = stable(Random(group), Known(group), source=source)
    assert abs(kept.stability_[0]) < 0.1
    assert kept.stability_[1] == 1.0
    assert kept.findings()["chosen"] == "Known"
    assert torch.equal(parts(kept, source), group)
    with pytest.raises(ParameterError, match="does not tell"):
        kept.prepare(source, seed=0)


@quiet
@pytest.mark.parametrize("rest", [["mixture"], [Fixed(torch.arange(60), 2)]], ids=["built", "own"])
def test_a_candidate_may_find_another_number_of_parts(rest: list[Any]) -> None:
    source, group = pictures(300)
    own_number = Case("clusterer with a number of its own").table
    kept = build("partitioners", "most-stable", num_partitions=2, candidates=[own_number, *rest])
    kept.fit(source, seed=0)
    assert kept.num_partitions == K
    assert contracts.logits_of(kept, every(source)).shape == (300, K)
    assert agreement(parts(kept, source), group) > 0.95
    if rest == ["mixture"]:
        table = table_of(kept)
        again = build("partitioners", {"name": table["name"], **table["params"]})
        load_state_of(again, state_of(kept))
        assert torch.equal(again.logits(every(source)), kept.logits(every(source)))


def test_candidates_are_split_after_they_were_prepared() -> None:
    source, _ = pictures(60)
    kept = Case("most-stable").build(2)
    for _ in range(2):
        with pytest.raises(ParameterError, match="call prepare first"):
            kept.split(source, seed=0)
        kept.fit(source, seed=0)
        kept.num_partitions = 2


def test_labels_are_learned_and_how_well_is_told() -> None:
    """A part for each class, in the order of their numbers."""
    source, group = pictures(300)
    named = torch.tensor([9, 3, 40, 5])[group]
    found = Case("labels").build(k=None)
    found.fit(replace(source, labels=named), seed=0)
    assert found.num_partitions == 4
    right = torch.tensor([3, 5, 9, 40])[parts(found, source)] == named
    told = dict(found.findings())
    assert told.pop("supervised") is True
    # Of 300 images, 30 are held out.
    shares = 0.9 * told["training accuracy"] + 0.1 * told["held-out accuracy"]
    assert float(right.double().mean()) == pytest.approx(shares, abs=1e-4)
    assert min(told.values()) > 0.95
    mistaken = replace(source, labels=torch.arange(300) % 4)
    found.fit(mistaken, seed=0)
    assert found.findings()["held-out accuracy"] < 0.6


@pytest.mark.filterwarnings("ignore:the network gives no images")
@pytest.mark.parametrize(("deep", "blocks"), [(False, 5), (True, 8)])
def test_labels_are_learned_in_residual_blocks_too(deep: bool, blocks: int) -> None:
    source, group = pictures(60)
    quick = {"steps": 2, "batch_size": 16, "width": 2, "residual": True, "deep": deep}
    base = {"name": "labels", **quick}
    found = build("partitioners", {"name": "self-trained", "base": base, **quick}, num_partitions=4)
    found.fit(replace(source, labels=group), seed=0)
    for learned in (found, found.base):
        state = state_of(learned)
        assert sum(name.endswith("shortcut.0.weight") for name in state) == blocks
        again = build("partitioners", "labels")
        again.load_state(state)
        x = source.batch(torch.arange(9))
        assert torch.equal(again.logits(x), learned.logits(x))


def test_what_is_made_of_labels_is_called_supervised_too() -> None:
    source, _ = pictures(100)
    learned = Case("self-trained", in_a_hurry=True).build(base=Case("labels", True).build())
    learned.fit(source, seed=0)
    assert learned.findings()["base supervised"] is True


def test_labels_that_are_not_there_or_of_another_number_are_refused(tmp_path: Path) -> None:
    source, _ = pictures(60)
    with pytest.raises(ParameterError, match=r"'pgmkit:labels' learns from labels, .* have none"):
        fit_partitioner("labels", replace(source, labels=None))
    with pytest.raises(ParameterError, match="have 4 classes, and 3 parts are asked for; leave"):
        fit_partitioner("labels", source, partitions=3)
    with pytest.raises(ParameterError, match="needs at least 5 images to learn from"):
        fit_partitioner("labels", source.subset(torch.arange(4)))
    fitted = fit_partitioner(Case("labels", in_a_hurry=True).table, source)
    fitted.save_pretrained(tmp_path)
    loaded = load_partitioner(tmp_path)
    assert fitted.num_partitions == loaded.num_partitions == 4
    assert loaded.origin["findings"]["supervised"] is True


def test_a_generator_is_not_shattered_by_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is said before a spectrum is computed."""

    def never(generator: Any, **_: Any) -> None:
        raise AssertionError("computed a spectrum")

    monkeypatch.setattr("pgmkit.shattering.algorithm.compute_spectrum", never)
    with pytest.raises(ParameterError, match="learns from labels, and what a generator makes has"):
        pgmkit.shatter(groups.gated(), partitioner="labels", latents=100)


@pytest.mark.parametrize("k", [2, 10, 40])
def test_parts_by_chance_have_about_equal_mass(k: int) -> None:
    random = torch.Generator().manual_seed(0)
    skewed = torch.randn(2, 4000, 1, 6, 6, generator=random).exp().div(4).sub(1).clamp(-1, 1)
    source, new = (Pictures(values) for values in skewed)
    found, other = (Case("random").fitted(source, k=k, seed=seed) for seed in (0, 1))
    shares = parts(found, source).bincount(minlength=k) * (k / 4000)
    assert (shares - 1).abs().max() <= 0.1
    of_new = parts(found, new).bincount(minlength=k) * (k / 4000)
    assert (of_new - 1).abs().max() < 0.5
    assert agreement(parts(found, source), parts(other, source)) < 0.2


def test_functions_by_chance_are_scaled_and_linear() -> None:
    source, _ = pictures(300)
    found = Case("random").fitted(source, k=5)
    x = every(source).double()
    logits = found.logits(x)
    torch.testing.assert_close(logits.std(dim=0, correction=0), torch.ones(5).double())
    middle = (x[:10] + x[10:20]) / 2
    between = (logits[:10] + logits[10:20]) / 2
    torch.testing.assert_close(found.logits(middle), between, rtol=1e-5, atol=1e-5)


def test_a_single_part_has_no_border(tmp_path: Path) -> None:
    source, _ = pictures(40)
    fitted = fit_partitioner("single", source)
    assert fitted.sizes == [40]
    x = every(source).requires_grad_()
    assert torch.equal(fitted.assign(x), torch.zeros(40).long())
    pull = fitted.guide(x, 0)
    (slope,) = torch.autograd.grad(pull.sum(), x)
    assert torch.equal(pull, torch.zeros(40))
    assert torch.equal(slope, torch.zeros_like(x))
    fitted.save_pretrained(tmp_path)
    loaded = load_partitioner(tmp_path)
    assert torch.equal(loaded.logits(x), torch.zeros(40, 1))
    assert fit_partitioner("single", groups.points(), partitions=1).sizes == [60]
    for given in ({"partitions": 3}, {"partitioner": {"name": "single", "num_partitions": 3}}):
        with pytest.raises(ParameterError, match="one part, so num_partitions must be 1 or left"):
            fit_partitioner(**{"partitioner": "single", "source": source, **given})


def test_a_generator_with_a_single_part_is_unconditional() -> None:
    shattered = pgmkit.shatter(groups.gated(), partitioner="single", remove=0.0, latents=50)
    assert shattered.cluster_sizes == [50]
    assert shattered.sample(3, cluster=0).shape == (3, 3, 8, 8)


HDBSCAN = Case("clusterer with a number of its own").table


def clusterer(name: str, k: int = 2, **given: Any) -> Any:
    return build(
        "partitioners", "clusterer", num_partitions=k, clusterer=name, features="pixels", **given
    )


def test_a_clusterer_without_a_number_finds_it_itself() -> None:
    source, group = pictures(300)
    found = build("partitioners", HDBSCAN, num_partitions=9)
    assert found.num_partitions == 9
    found.fit(source, seed=0)
    assert found.num_partitions == K
    assert agreement(parts(found, source), group) > 0.95


@pytest.mark.parametrize("name", ["KMeans", "BisectingKMeans", "SpectralClustering"])
def test_any_class_of_scikit_learn_gets_the_number_of_parts(name: str) -> None:
    source = groups.points(100)
    found = clusterer(f"sklearn.cluster:{name}")
    found.fit(source, seed=0)
    assert found.num_partitions == 2
    assert agreement(parts(found, source), torch.arange(100) % 2) == 1.0


def test_a_mixture_of_scikit_learn_gets_the_number_of_parts_as_its_components() -> None:
    found = clusterer("sklearn.mixture:GaussianMixture", clusterer_args={"tol": 1e-2})
    found.fit(groups.points(100), seed=0)
    assert agreement(parts(found, groups.points(100)), torch.arange(100) % 2) == 1.0


def test_a_clusterer_that_calls_everything_noise_is_refused() -> None:
    with pytest.raises(ParameterError, match="takes all 60 images for noise; make it less strict"):
        clusterer("sklearn.cluster:DBSCAN", clusterer_args={"eps": 1e-9}).fit(
            groups.points(60), seed=0
        )


def test_noise_goes_to_the_nearest_part() -> None:
    points = groups.points(300).values
    points[0] = torch.tensor([0.95, 0.95])
    source = Pictures(points)
    found = clusterer("sklearn.cluster:DBSCAN", k=9, clusterer_args={"eps": 0.1})
    found.fit(source, seed=0)
    assert found.num_partitions == 2
    labels = parts(found, source)
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Thing", "cannot be imported"),
        ("sklearn.cluster:NoSuch", "cannot be imported"),
        ("subprocess:Popen", "no class with fit_predict"),
        ("sklearn.cluster:k_means", "no class with fit_predict"),
    ],
)
def test_what_is_no_clusterer_is_refused(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        clusterer(name).fit(groups.points(20), seed=0)


def test_parameters_of_a_clusterer_are_checked() -> None:
    for args, message in (
        ({"n_clusters": 3}, "give num_partitions instead"),
        ({"linkag": "ward"}, "'linkage'"),
    ):
        with pytest.raises(ParameterError, match=message):
            clusterer("sklearn.cluster:AgglomerativeClustering", clusterer_args=args).fit(
                groups.points(20), seed=0
            )
    for name in ("AgglomerativeClustering", "sklearn.cluster:", ":Thing"):
        with pytest.raises(ParameterError, match="'module:Class'"):
            clusterer(name)


def test_labels_of_another_shape_are_the_clusterer_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "class Half:\n    def fit_predict(self, points):\n        return [0] * 3\n"
    (tmp_path / "halved.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"labels of shape \(3,\) for 20 points"):
        clusterer("halved:Half").fit(groups.points(20), seed=0)


def test_what_is_loaded_imports_no_clusterer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that a folder names runs neither when it is loaded nor when it is fitted again."""
    (tmp_path / "trap.py").write_text("raise SystemExit('ran code of the folder')\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = groups.points(60)
    found = clusterer("sklearn.cluster:AgglomerativeClustering")
    found.fit(source, seed=0)
    trapped = clusterer("trap:Clusterer")
    load_state_of(trapped, state_of(found))
    assert torch.equal(trapped.logits(source.values), found.logits(source.values))
    for call in (trapped.fit, trapped.prepare, trapped.split):
        with pytest.raises(ParameterError, match="was loaded is not fitted again"):
            call(source, seed=0)
    assert "trap" not in sys.modules


@quiet
@pytest.mark.parametrize(
    ("outer", "of"),
    [
        ({"name": "self-trained", **QUICK, "steps": 1}, "base"),
        ({"name": "most-stable"}, "candidates"),
    ],
    ids=["self-trained", "most-stable"],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_what_was_not_saved_of_a_loaded_one_imports_no_clusterer(
    outer: dict[str, Any], of: str, depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a base nor a candidate that was not kept runs code that the folder names."""
    (tmp_path / "snare.py").write_text("raise SystemExit('ran code of the folder')\n")
    monkeypatch.syspath_prepend(tmp_path)
    inner: Any = {"name": "clusterer", "features": "pixels"}
    for _ in range(depth - 1):
        inner = {"name": "self-trained", **QUICK, "steps": 1, "base": inner}
    plain = {"name": "kmeans", "features": "pixels"}
    table = {**outer, of: inner if of == "base" else [plain, inner]}
    source = pictures(60)[0]
    fit_partitioner(table, source, partitions=2).save_pretrained(tmp_path / "parts")
    config = tmp_path / "parts" / "partitioner.json"
    written = config.read_text()
    assert "sklearn.cluster:AgglomerativeClustering" in written
    config.write_text(written.replace("sklearn.cluster:Agglomerative", "snare:Agglomerative"))
    loaded = load_partitioner(tmp_path / "parts").partitioner
    unsaved = loaded.base if of == "base" else loaded.candidates[1]
    innermost = unsaved if depth == 1 else unsaved.base
    for one in (innermost, unsaved, *([loaded] if of == "base" else [])):
        for call in (one.fit, one.prepare, one.split):
            with pytest.raises(ParameterError, match="was loaded is not fitted again"):
                call(source, seed=0)
    with pytest.raises(ParameterError, match="call prepare first" if of != "base" else "loaded"):
        loaded.split(source, seed=0)
    assert "snare" not in sys.modules


@pytest.mark.parametrize("name", ["clusterer", "manifold"])
def test_what_is_learned_by_heart_is_measured_on_what_was_held_out(name: str, seen: Any) -> None:
    found = Case(name).build(max_points=300)
    assert isinstance(found.fit(seen[0], seed=0) or found, contracts.HeldOut)
    assert found.held_out_logits.shape == (30, K)
    assert found.findings() == {"agreement": round(found.assigner_.agreement_, 4)}
    assert found.findings()["agreement"] > 0.95


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("kmeans", {"num_partitions": 0}, "num_partitions"),
        ("kmeans", {"num_starts": 0}, "num_starts"),
        ("kmeans", {"features": "nothing"}, "nothing"),
        ("mixture", {"num_starts": 0}, "num_starts"),
        ("manifold", {"embedding": "umap"}, "'embedding'"),
        ("manifold", {"clusterer": "hdbscan"}, "no clusterer"),
        ("manifold", {"num_neighbors": 0}, "num_neighbors"),
        ("manifold", {"embedding_dims": 0}, "embedding_dims"),
        ("manifold", {"max_points": 3}, "from the number of parts, 10, not 3"),
        ("clusterer", {"max_points": 3}, "from the number of parts, 10, not 3"),
        ("clusterer", {"max_points": 20.5}, "max_points"),
        ("clusterer", {"features": "kmeans"}, "kmeans"),
        ("self-trained", {"base": "nothing"}, "nothing"),
        ("self-trained", {"base": {"name": "kmeans", "features": "latents"}}, "look at images"),
        ("self-trained", {"rounds": 0}, "rounds"),
        ("self-trained", {"steps": 0}, "steps"),
        ("self-trained", {"batch_size": 1}, "batch_size"),
        ("self-trained", {"strength": -1}, "strength"),
        ("self-trained", {"learning_rate": 0}, "learning_rate"),
        ("labels", {"num_partitions": 0}, "num_partitions"),
        ("labels", {"steps": 0}, "steps"),
        ("labels", {"batch_size": 3}, "batch_size"),
        ("labels", {"deep": True}, "set residual = true"),
        ("self-trained", {"deep": True}, "set residual = true"),
        ("random", {"num_partitions": 0}, "num_partitions"),
        ("random", {"features": "nothing"}, "nothing"),
        ("self-trained", {"deformations": "no"}, "kind of images"),
    ],
)
def test_parameters_are_checked(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=message):
        build("partitioners", name, **parameters)
