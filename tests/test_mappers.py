"""Mappers: what is drawn from a cluster, how much of it lies there, and what that costs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import ParameterError, PgmkitWarning, SamplingError
from pgmkit.plugins import build, list_components
from pgmkit.states import load_state_of, state_of, table_of

PROPOSALS = ["mixture", "refined", "prior"]
WAYS = [
    *[(mapper, {}) for mapper in PROPOSALS],
    *[("rejection", {"proposal": proposal}) for proposal in PROPOSALS],
]
NAMES = [" ".join([mapper, *map(str, parameters.values())]) for mapper, parameters in WAYS]
every_way = pytest.mark.parametrize(("mapper", "mapper_args"), WAYS, ids=NAMES)

PRIORS = {
    "normal": pgmkit.LatentSpec(2, std=3.0),
    "uniform": pgmkit.LatentSpec(2, "uniform", low=-1, high=3),
    "truncated": pgmkit.LatentSpec(2, "truncated-normal", std=2.0, low=-1, high=1.5),
}


def generator_of(latent: pgmkit.LatentSpec) -> pgmkit.Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(latent.dim, 16), nn.Tanh())
    return pgmkit.Generator(net, latent=latent, image=pgmkit.ImageSpec((1, 4, 4)), name="toy")


def cells_of(
    latent: pgmkit.LatentSpec, mapper: str, *, k: int = 5, n: int = 2000, **args: Any
) -> Any:
    """Clusters latents of a prior by k-means, which cuts it into polygons."""
    generator = generator_of(latent)
    sampler = sampler_of({"name": mapper, **args}, k)
    sampler.fit(generator.sample_latents(n, seed=0), generator=generator, seed=0)
    return sampler


def sampler_of(mapper: Any, num_clusters: int) -> Any:
    partitioner = {"name": "kmeans", "features": "latents", "num_starts": 2}
    return build(
        "cluster-samplers",
        "partition",
        num_clusters=num_clusters,
        partitioner=partitioner,
        mapper=mapper,
    )


def fidelity(sampler: Any, count: int = 2000, seed: int = 1) -> float:
    shares = [
        (sampler.predict(sampler.sample(count, cluster, seed)) == cluster).double().mean()
        for cluster in range(sampler.num_clusters_)
    ]
    return float(torch.stack(shares).mean())


def fitted(
    name: str,
    latents: Tensor,
    labels: Tensor,
    *,
    assign: Callable[..., Tensor] | None = None,
    prior: pgmkit.LatentSpec = PRIORS["normal"],
    **args: Any,
) -> Any:
    """Fits a mapper on its own; without `assign`, no draw ever lands in a cluster."""
    mapper = build("mappers", name, **args)
    data = {"num_clusters": int(labels.max()) + 1, "assign": assign or nowhere, "prior": prior}
    mapper.fit(latents, labels, seed=0, **data)
    return mapper


def nowhere(latents: Tensor, core: float = 1.0) -> Tensor:
    return torch.full((len(latents),), -1)


def by_sign(latents: Tensor, core: float = 1.0) -> Tensor:
    return (latents[:, 0] > 0).long()


def by_sign_from_above(latents: Tensor, core: float = 1.0) -> Tensor:
    return 1 - by_sign(latents)


def gaussian(count: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


# What lands where


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("prior", PRIORS)
def test_rejection_draws_nothing_from_other_clusters(proposal: str, prior: str) -> None:
    assert fidelity(cells_of(PRIORS[prior], "rejection", proposal=proposal), 500) == 1


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_core_is_what_lies_the_most_clearly_in_its_cluster(proposal: str) -> None:
    sampler = cells_of(PRIORS["normal"], "rejection", proposal=proposal, core=0.25)
    members = sampler.assign(generator_of(PRIORS["normal"]).sample_latents(2000, seed=0), 0.25)
    assert (members >= 0).double().mean() == pytest.approx(0.25, abs=0.02)
    for cluster in range(5):
        drawn = sampler.sample(200, cluster, seed=1)
        assert (sampler.assign(drawn, 0.25) == cluster).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_a_mixture_leaks_from_cells_and_refinement_repairs_part_of_it(prior: str) -> None:
    plain = fidelity(cells_of(PRIORS[prior], "mixture"))
    refined = fidelity(cells_of(PRIORS[prior], "refined"))
    assert plain < 0.95
    assert plain + 0.01 < refined <= 1


def test_more_rounds_leak_less() -> None:
    found = [fidelity(cells_of(PRIORS["normal"], "refined", rounds=rounds)) for rounds in (1, 5)]
    assert found[0] < found[1]


@pytest.mark.parametrize("prior", PRIORS)
def test_proposals_from_the_prior_give_the_prior_restricted_to_the_cell(prior: str) -> None:
    """Against fresh latents of the prior that lie in the cell."""
    sampler = cells_of(PRIORS[prior], "rejection", proposal="prior")
    fresh = generator_of(PRIORS[prior]).sample_latents(20_000, seed=5)
    cells = sampler.predict(fresh)
    for cluster in range(5):
        drawn = sampler.sample(3000, cluster, seed=1)
        for axis in range(2):
            there = fresh[cells == cluster, axis]
            assert stats.ks_2samp(drawn[:, axis].numpy(), there.numpy()).pvalue > 1e-3


def test_rejected_mixtures_are_the_mixture_restricted_to_the_cell() -> None:
    labels = torch.zeros(500, dtype=torch.int64)
    latents = gaussian(500)
    one = {"name": "mixture", "num_components": 1}
    mixture = fitted(**one, latents=latents, labels=labels)
    rejection = fitted("rejection", latents, labels, assign=by_sign_from_above, proposal=one)
    data: dict[str, Any] = {"assign": by_sign_from_above, "prior": None}
    everything = mixture.sample(20_000, 0, seed=3, **data)
    drawn = rejection.sample(5000, 0, seed=4, **data)
    for axis in range(2):
        there = everything[everything[:, 0] > 0, axis].numpy()
        assert stats.ks_2samp(drawn[:, axis].numpy(), there).pvalue > 1e-3


# Priors with bounds


@every_way
@pytest.mark.parametrize("prior", ["uniform", "truncated"])
def test_draws_lie_within_the_bounds_and_do_not_pile_up_there(
    prior: str, mapper: str, mapper_args: dict[str, Any]
) -> None:
    latent = PRIORS[prior]
    sampler = cells_of(latent, mapper, **mapper_args)
    drawn = torch.cat([sampler.sample(500, cluster, seed=1) for cluster in range(5)])
    assert drawn.dtype == torch.float32
    assert drawn.min() >= latent.low
    assert drawn.max() <= latent.high
    nearest = torch.minimum(drawn - latent.low, latent.high - drawn).double()
    assert (nearest < 1e-3).double().mean() < 0.01
    assert len(drawn.unique(dim=0)) > 0.99 * len(drawn)


def test_one_cluster_of_a_bounded_prior_is_the_prior() -> None:
    for prior in ("uniform", "truncated"):
        drawn = cells_of(PRIORS[prior], "mixture", k=1, n=5000, num_components=1).sample(5000, 0, 1)
        fresh = generator_of(PRIORS[prior]).sample_latents(5000, seed=7)
        for axis in range(2):
            found = stats.ks_2samp(drawn[:, axis].numpy(), fresh[:, axis].numpy())
            assert found.pvalue > 1e-3


CODES = pgmkit.LatentSpec(
    parts=[
        {"dim": 2, "distribution": "uniform"},
        {"dim": 3, "distribution": "categorical", "probabilities": [0.2, 0.3, 0.5]},
        {"dim": 2, "distribution": "categorical"},
    ]
)
MODES = pgmkit.LatentSpec(2, "mixture", weights=[0.3, 0.7], means=[-3, [1, 2]], stds=[0.5, 1])


@pytest.mark.parametrize("prior", [CODES, MODES], ids=["categorical", "mixture"])
@every_way
def test_every_draw_is_a_latent_of_the_prior(
    mapper: str, mapper_args: dict[str, Any], prior: pgmkit.LatentSpec
) -> None:
    sampler = cells_of(prior, mapper, **mapper_args)
    for cluster in range(5):
        assert prior.log_prior(sampler.sample(200, cluster, seed=1)).isfinite().all()


def test_one_cluster_of_a_prior_with_categories_is_the_prior() -> None:
    drawn = cells_of(CODES, "mixture", k=1, n=5000, num_components=1).sample(5000, 0, 1)
    fresh = generator_of(CODES).sample_latents(5000, seed=7)
    for axis in range(2):
        assert stats.ks_2samp(drawn[:, axis].numpy(), fresh[:, axis].numpy()).pvalue > 1e-3
    for place in CODES.categories:
        counts = [z[:, place].sum(dim=0).tolist() for z in (drawn, fresh)]
        assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_a_cluster_of_one_category_gives_no_other() -> None:
    latents = generator_of(CODES).sample_latents(600, seed=0)
    labels = latents[:, 2:5].argmax(dim=1)
    mapper = fitted("mixture", latents, labels, prior=CODES)
    for cluster in range(3):
        drawn = mapper.sample(300, cluster, assign=nowhere, prior=CODES, seed=0)
        assert (drawn[:, 2:5].argmax(dim=1) == cluster).all()
        assert 100 < drawn[:, 5].sum() < 200


def test_gaussians_of_a_cluster_have_categories_of_their_own() -> None:
    """Where the first coordinate is positive, the last category is always the second one."""
    latents = generator_of(CODES).sample_latents(2000, seed=0)
    latents[:, 0] = latents[:, 0].sign() * 0.9
    latents[:, 5:] = torch.stack([latents[:, 0] < 0, latents[:, 0] > 0], dim=1).float()
    mapper = fitted("mixture", latents, torch.zeros(2000).long(), prior=CODES, num_components=2)
    drawn = mapper.sample(1000, 0, assign=nowhere, prior=CODES, seed=0)
    assert torch.equal(drawn[:, 6] == 1, drawn[:, 0] > 0)


def test_latents_without_a_continuous_part_are_refused() -> None:
    with pytest.raises(ParameterError, match="4 categorical latents have none"):
        cells_of(pgmkit.LatentSpec(4, "categorical"), "mixture", k=2)


def test_a_sampler_of_categorical_latents_is_saved_and_loaded(tmp_path: Path) -> None:
    shattered = pgmkit.shatter(generator_of(CODES), sampler="kmeans-gmm", clusters=2, latents=300)
    shattered.save_pretrained(tmp_path)
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path, architecture=lambda: generator_of(CODES).module
    )
    assert loaded.generator.latent == CODES
    drawn = loaded.sample_latents(50)
    assert torch.equal(drawn, shattered.sample_latents(50))
    assert CODES.log_prior(drawn).isfinite().all()


def test_a_sampler_of_bounded_latents_asks_for_its_generator_back() -> None:
    sampler = cells_of(PRIORS["uniform"], "mixture")
    before = sampler.sample(5, 0, seed=0)
    sampler.bind(None)
    with pytest.raises(ParameterError, match="bind the sampler to its generator"):
        sampler.sample(5, 0, seed=0)
    sampler.bind(generator_of(PRIORS["uniform"]))
    assert torch.equal(sampler.sample(5, 0, seed=0), before)


# Cost


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_acceptance_rates_are_those_that_are_seen(proposal: str) -> None:
    sampler = cells_of(PRIORS["normal"], "rejection", proposal=proposal)
    asked = []
    assign = sampler.assign

    def counted(latents: Tensor, core: float = 1.0) -> Tensor:
        asked.append(len(latents))
        return assign(latents, core)

    sampler.assign = counted
    for cluster in range(5):
        asked.clear()
        sampler.sample(2000, cluster, seed=3)
        seen = 2000 / sum(asked)
        # Five deviations of 256 trials, and the margin of a last batch.
        expected = sampler.acceptance_rate(cluster)
        assert abs(seen - expected) < 5 * math.sqrt(expected * (1 - expected) / 256) + 0.02 * seen


def test_mixtures_have_no_acceptance_rate() -> None:
    assert cells_of(PRIORS["normal"], "mixture").acceptance_rate(0) is None


def test_no_proposal_is_wasted_where_all_are_accepted() -> None:
    asked = []

    def everywhere(latents: Tensor, core: float = 1.0) -> Tensor:
        asked.append(len(latents))
        return torch.zeros(len(latents), dtype=torch.int64)

    latents = gaussian(300)
    mapper = fitted("rejection", latents, torch.zeros(300).long(), assign=everywhere)
    asked.clear()
    mapper.sample(37, 0, assign=everywhere, prior=None, seed=0)
    assert asked == [37]


def test_rare_clusters_cost_a_few_calls_and_not_one_per_latent() -> None:
    calls = []

    def rare(latents: Tensor, core: float = 1.0) -> Tensor:
        calls.append(len(latents))
        return torch.where(latents[:, 0] > 3 * 1.6449, 0, -1)  # 5 % of N(0, 3²)

    mapper = fitted(
        "rejection", gaussian(300), torch.zeros(300).long(), assign=rare, proposal="prior"
    )
    assert mapper.acceptance_[0] == pytest.approx(0.05, abs=0.05)
    calls.clear()
    drawn = mapper.sample(200, 0, assign=rare, prior=PRIORS["normal"], seed=0)
    assert len(drawn) == 200
    assert len(calls) <= 5
    assert 2500 < sum(calls) < 7000


# What cannot be drawn


def test_giving_up_says_after_how_many_tries() -> None:
    calls = []

    def never(latents: Tensor, core: float = 1.0) -> Tensor:
        calls.append(len(latents))
        return nowhere(latents)

    with pytest.warns(
        PgmkitWarning, match="1 of 1 clusters took none .* of 'pgmkit:mixture'.*: 0;"
    ):
        mapper = fitted(
            "rejection", gaussian(300), torch.zeros(300).long(), assign=never, max_tries=70
        )
    calls.clear()
    with pytest.raises(
        SamplingError,
        match=r"cluster 0 took 0 of 700 proposals, and 10 latents .*max_tries \(now 70",
    ):
        mapper.sample(10, 0, assign=never, prior=None, seed=0)
    assert sum(calls) == 700


def test_giving_up_counts_what_was_accepted() -> None:
    mapper = fitted(
        "rejection",
        gaussian(300),
        torch.zeros(300).long(),
        assign=by_sign_from_above,
        max_tries=1,
    )
    with pytest.raises(SamplingError, match=r"took [34]\d of 80 proposals, and 80 latents"):
        mapper.sample(80, 0, assign=by_sign_from_above, prior=None, seed=0)


def test_proposals_from_the_prior_need_a_prior() -> None:
    sampler = sampler_of({"name": "rejection", "proposal": "prior"}, 2)
    with pytest.raises(ParameterError, match="'prior' needs the generator"):
        sampler.fit(gaussian(50), seed=0)


# Small clusters


@pytest.mark.parametrize(
    ("mapper", "mapper_args"),
    [way for way, name in zip(WAYS, NAMES, strict=True) if "prior" not in name],
)
def test_tiny_clusters_and_repeated_latents_end_in_finite_draws(
    mapper: str, mapper_args: dict[str, Any]
) -> None:
    generator = generator_of(PRIORS["normal"])
    lonely = torch.tensor([[30.0, 30.0], [30.0, 30.0], [-30.0, 9.0]])
    latents = torch.cat([generator.sample_latents(100, seed=0), lonely])
    sampler = sampler_of({"name": mapper, **mapper_args}, 6)
    with pytest.warns(PgmkitWarning, match="have fewer latents"):
        sampler.fit(latents, generator=generator, seed=0)
    for cluster in range(6):
        drawn = sampler.sample(20, cluster, seed=0)
        assert drawn.shape == (20, 2)
        assert drawn.isfinite().all()


def test_clusters_that_are_points_are_drawn_as_points() -> None:
    points = torch.tensor([[0.1, 0.7], [0.3, 0.9], [5.3, 0.1]])
    labels = torch.arange(3).repeat(7)
    mixture = fitted("mixture", points.repeat(7, 1), labels)
    for cluster, point in enumerate(points):
        drawn = mixture.sample(50, cluster, assign=nowhere, prior=None, seed=0)
        torch.testing.assert_close(drawn, point.expand(50, 2), rtol=0, atol=1e-5)


def test_a_cluster_without_latents_is_no_obstacle() -> None:
    latents, labels = gaussian(100), torch.arange(100) % 2 * 2  # there is no cluster 1
    with pytest.warns(PgmkitWarning, match=r"1 of 3 clusters .*: 1 \(0\)"):
        mixture = fitted("mixture", latents, labels)
    assert mixture.sample(20, 1, assign=nowhere, prior=None, seed=0).isfinite().all()

    def never_1(latents: Tensor, core: float = 1.0) -> Tensor:
        return by_sign(latents) * 2

    with pytest.warns(PgmkitWarning) as caught:
        mapper = fitted("rejection", latents, labels, assign=never_1)
    assert "1 of 3 clusters took none of the trial proposals" in str(caught[-1].message)
    assert mapper.acceptance_[1] == 0
    with pytest.raises(SamplingError, match="cluster 1 took 0 of 2,000 proposals"):
        mapper.sample(2, 1, assign=never_1, prior=None, seed=0)


@pytest.mark.parametrize("mapper", ["mixture", "refined"])
def test_small_clusters_are_warned_of_once(mapper: str) -> None:
    latents = torch.cat([gaussian(100), torch.tensor([[30.0, 0.0]])])
    labels = (torch.arange(101) >= 100).long()
    with pytest.warns(PgmkitWarning, match=r"1 of 2 clusters .*: 1 \(1\)") as caught:
        fitted(mapper, latents, labels)
    assert len(caught) == 1


def test_latents_without_a_cluster_take_no_part() -> None:
    latents = torch.cat([gaussian(200), gaussian(200) + 1000])
    labels = torch.where(torch.arange(400) < 200, 0, -1)
    for name in ("mixture", "refined"):
        mapper = fitted(name, latents, labels, assign=by_sign)
        assert mapper.sample(500, 0, assign=by_sign, prior=None, seed=0).abs().max() < 10


def test_narrow_clusters_far_apart_keep_their_width() -> None:
    """What keeps covariances from being singular is small beside the clusters, not the latents."""
    latents = torch.cat([gaussian(300) * 1e-2, gaussian(300) * 1e-2 + 1000])
    mixture = fitted("mixture", latents, (torch.arange(600) >= 300).long(), num_components=1)
    drawn = mixture.sample(3000, 0, assign=nowhere, prior=None, seed=0)
    assert drawn.std(0).tolist() == pytest.approx([1e-2, 1e-2], rel=0.15)


# Seeds, and saving


@every_way
def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads(
    mapper: str, mapper_args: dict[str, Any]
) -> None:
    threads = torch.get_num_threads()
    latent = pgmkit.LatentSpec(16)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            sampler = cells_of(latent, mapper, n=800, **mapper_args)
            found.append((sampler, sampler.sample(300, 2, seed=1)))
    finally:
        torch.set_num_threads(threads)
    (first, drawn), (again, same) = found
    assert torch.equal(drawn, same)
    states = state_of(first), state_of(again)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert not torch.equal(drawn, first.sample(300, 2, seed=2))
    assert not torch.equal(drawn, first.sample(300, 1, seed=1))


@every_way
@pytest.mark.parametrize("prior", PRIORS)
def test_a_saved_result_draws_the_same(
    prior: str, mapper: str, mapper_args: dict[str, Any], tmp_path: Path
) -> None:
    shattered = pgmkit.shatter(
        generator_of(PRIORS[prior]),
        density="none",
        clusters=3,
        latents=200,
        partitioner={"name": "kmeans", "features": "latents"},
        mapper={"name": mapper, **mapper_args},
    )
    shattered.save_pretrained(tmp_path)
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path, architecture=lambda: nn.Sequential(nn.Linear(2, 16), nn.Tanh())
    )
    for cluster in (None, 0, 2):
        assert torch.equal(
            loaded.sample_latents(20, cluster, seed=4),
            shattered.sample_latents(20, cluster, seed=4),
        )
    for cluster in range(3):
        rates = [m.sampler.acceptance_rate(cluster) for m in (loaded, shattered)]
        assert rates[0] == rates[1]


@pytest.mark.parametrize("mapper", ["mixture", "refined", "rejection"])
def test_a_state_with_a_part_missing_is_refused(mapper: str) -> None:
    sampler = cells_of(PRIORS["normal"], mapper, n=200)
    complete = state_of(sampler.mapper)
    assert complete
    for name in complete:
        fresh = build("mappers", mapper)
        with pytest.raises(KeyError, match=name.rpartition(".")[2]):
            load_state_of(fresh, {key: value for key, value in complete.items() if key != name})


# Parameters


@pytest.mark.parametrize(
    ("mapper", "parameters", "message"),
    [
        ("mixtures", {}, "did you mean 'mixture'"),
        ("mixture", {"num_components": "bic"}, "takes num_components = a whole number, not 'bic'"),
        ("mixture", {"num_components": 0}, "whole number from 1, not 0"),
        ("mixture", {"rounds": 2}, "mapper 'mixture' has no parameter 'rounds'"),
        ("refined", {"rounds": 0}, "rounds must be a whole number from 1, not 0"),
        ("refined", {"draws": 0}, "draws must be a number above 0, not 0"),
        ("refined", {"draws": math.inf}, "draws must be a number above 0, not inf"),
        ("refined", {"draws": "2"}, "takes draws = a number, not '2'"),
        ("rejection", {"proposal": "priors"}, "did you mean 'prior'"),
        ("rejection", {"max_tries": 0}, "max_tries must be a whole number from 1, not 0"),
        ("rejection", {"core": 0}, r"core must be in \(0, 1\], not 0"),
        ("rejection", {"core": 1.5}, r"core must be in \(0, 1\], not 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_fitted(
    mapper: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(pgmkit.errors.PgmkitError, match=message):
        sampler_of({"name": mapper, **parameters}, 2)


def test_a_proposal_has_parameters_of_its_own_which_records_hold() -> None:
    mapper = build(
        "mappers", {"name": "rejection", "proposal": {"name": "mixture", "num_components": 3}}
    )
    assert table_of(mapper) == {
        "name": "pgmkit:rejection",
        "params": {
            "proposal": {"name": "pgmkit:mixture", "num_components": 3},
            "max_tries": 1000,
            "core": 1.0,
        },
    }


def test_every_mapper_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "partitioners.md").read_text()
    for component in list_components("mappers"):
        assert f"| `{component.name}` |" in page
