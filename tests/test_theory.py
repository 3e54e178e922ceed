"""The theorems of "Partition-Guided GANs" as tools: numbers against closed forms, and the audit."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from groups import Pictures, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm
from torch import Tensor, nn

import pgmkit
from pgmkit import FittedPartitioner, contracts
from pgmkit.errors import GeneratorError, ParameterError, PluginError
from pgmkit.images import ImageSpec, load_images
from pgmkit.partition import assign, guide
from pgmkit.theory import (
    PartitionerAudit,
    audit_partitioner,
    distances,
    jsd_decomposition,
    lipschitz_estimate,
    measure_parts,
    tv_lower_bound,
)
from pgmkit.theory.descent import descend, joined, pull
from pgmkit.theory.representation import look_at
from pgmkit.theory.words import audit_in_words, bound_in_words

Array = np.ndarray[Any, np.dtype[np.float64]]

often = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# Theorem 1


def test_the_bound_is_its_closed_form() -> None:
    found = tv_lower_bound([0.3, 0.7], [2, 2], 4)
    assert found.value == pytest.approx(0.3 - norm.cdf(norm.ppf(0.3) - 0.5), abs=1e-15)
    assert found.part in (0, 1)
    assert tv_lower_bound([0.25, 0.75], [2, 2], 4).part == 0
    masses, apart = torch.tensor([0.2, 0.5, 0.3]), np.array([0.1, 0.4, 3.0])
    found = tv_lower_bound(masses, apart, 2.0)
    assert found.value == pytest.approx(0.3 - norm.cdf(norm.ppf(0.3) - 1.5), abs=1e-7)
    assert found.part == 2


def shares(draw: st.DrawFn, count: int) -> Array:
    given = draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    return np.array(given) / sum(given)


@st.composite
def parts_apart(draw: st.DrawFn) -> tuple[Array, Array]:
    masses = shares(draw, draw(st.integers(2, 6)))
    apart = draw(st.lists(st.floats(0, 50), min_size=len(masses), max_size=len(masses)))
    return masses, np.array(apart)


@given(parts_apart(), st.floats(0.01, 100))
@often
def test_the_bound_grows_with_distances_and_falls_with_c(
    parts: tuple[Array, Array], c: float
) -> None:
    """So a c that is too small, and distances that are too large, make it too large."""
    masses, apart = parts
    found = tv_lower_bound(masses, apart, c)
    least = np.minimum(masses, 1 - masses)
    each = least - norm.cdf(norm.ppf(least) - apart / c)
    assert found.value == pytest.approx(each.max(), abs=1e-12)
    assert 0 <= found.value <= 0.5
    assert each[found.part] == pytest.approx(each.max(), abs=1e-12)
    assert tv_lower_bound(masses, apart, 1.5 * c).value <= found.value + 1e-15
    assert tv_lower_bound(masses, apart + 1, c).value >= found.value - 1e-15
    assert tv_lower_bound(masses, 0 * apart, c).value == pytest.approx(0, abs=1e-15)


@given(st.floats(0.02, 0.5), st.floats(0.1, 5), st.floats(0.1, 5), st.floats(-3, 3))
@often
def test_no_line_misses_less_than_the_bound_and_one_misses_just_that(
    mass: float, apart: float, c: float, shift: float
) -> None:
    """G(z) = c·z + s, and data with the given masses left of 0 and right of a distance d.

    What lies between is in no part, so the probabilities of the three regions tell how far G is
    from the data at least.
    """

    def missed(shift: float) -> float:
        left, right = norm.cdf(-shift / c), norm.sf((apart - shift) / c)
        return (abs(mass - left) + abs(1 - mass - right) + (1 - left - right)) / 2

    bound = tv_lower_bound([mass, 1 - mass], [apart, apart], c).value
    assert missed(shift) >= bound - 1e-12
    best = apart - c * norm.isf(1 - mass)  # as much on the right as the data have there
    assert missed(best) == pytest.approx(bound, abs=1e-12)


def test_a_part_without_mass_asks_for_nothing() -> None:
    assert tv_lower_bound([0, 0.5, 0.5], [math.inf, 1, 1], 1).part == 1
    assert tv_lower_bound([0, 1], [math.inf, math.inf], 1).value == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.3, 0.6], [1, 1], 1), "sum to 1, not to 0.9; divide"),
        (([1.2, -0.2], [1, 1], 1), "at least 0, that sum to 1"),
        (([math.nan, 1], [1, 1], 1), "sum to 1, not to nan"),
        (([0.3, 0.7], [1, -2], 1), "distances must be at least 0, not -2"),
        (([0.3, 0.7], [1, math.nan], 1), "distances must be at least 0, not nan"),
        (([0.3, 0.7], [1], 1), "each of 2 parts has one distance"),
        (([1.0], [1], 1), "at least two parts"),
        (([[0.5, 0.5]], [1, 1], 1), "at least two parts"),
        (([0.3, 0.7], [1, 1], 0), "must be above 0, not 0"),
        (([0.3, 0.7], [1, 1], math.inf), "must be above 0, not inf"),
        (([0.3, 0.7], [1, 1], math.nan), "must be above 0, not nan"),
        (([0.3, 0.7], [1, 1], "4"), "must be above 0, not '4'"),
    ],
)
def test_a_bound_of_no_distribution_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        tv_lower_bound(*arguments)


def linear(latent: Any, image: ImageSpec) -> tuple[pgmkit.Generator, Array]:
    """Returns a linear generator of images of 9 pixels, and its matrix (9, 4)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(4, 9)
    return pgmkit.Generator(layer, latent, image), layer.weight.detach().double().numpy()


PLAIN = ImageSpec((1, 3, 3))


def test_c_is_measured_in_images_from_minus_1_to_1_and_standard_normal_latents() -> None:
    generator, matrix = linear(pgmkit.LatentSpec(4), PLAIN)
    found = lipschitz_estimate(generator, 5)
    c = np.linalg.svd(matrix)[1][0]
    assert found.value == pytest.approx(c, rel=1e-5)
    assert found.median == pytest.approx(c, rel=1e-5)
    assert found.num_latents == 5
    bright, _ = linear(pgmkit.LatentSpec(4), ImageSpec((1, 3, 3), (0, 1)))
    assert lipschitz_estimate(bright, 5).value == pytest.approx(2 * c, rel=1e-5)
    points, _ = linear(pgmkit.LatentSpec(4), ImageSpec((9,), (-3, 3)))
    assert lipschitz_estimate(points, 5).value == pytest.approx(c, rel=1e-5)
    stds = (0.5, 1.0, 2.0, 0.1)
    other, _ = linear(pgmkit.LatentSpec(4, mean=3.0, std=stds), PLAIN)
    wanted = np.linalg.svd(matrix * np.array(stds))[1][0]
    assert lipschitz_estimate(other, 5).value == pytest.approx(wanted, rel=1e-5)


def test_c_of_a_uniform_prior_is_that_of_the_way_there() -> None:
    """From N(0, 1) to U(-1, 1) it is 2Φ - 1, of derivative 2φ at each coordinate."""
    generator, matrix = linear(pgmkit.LatentSpec(4, "uniform"), PLAIN)
    x = pgmkit.Generator(nn.Linear(4, 9), pgmkit.LatentSpec(4), PLAIN).sample_latents(20, seed=3)
    slopes = 2 * norm.pdf(x.double().numpy())
    largest = [np.linalg.svd(matrix * slope)[1][0] for slope in slopes]
    found = lipschitz_estimate(generator, 20, seed=3)
    assert found.value == pytest.approx(max(largest), rel=1e-4)
    assert found.median == pytest.approx(sorted(largest)[9], rel=1e-4)


def test_more_latents_only_raise_c() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        curved = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 9))
    generator = pgmkit.Generator(curved, pgmkit.LatentSpec(4), PLAIN)
    found = [lipschitz_estimate(generator, count).value for count in (1, 8, 64)]
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize(
    ("prior", "count", "message"),
    [
        (pgmkit.LatentSpec(4, "mixture", means=(-1.0, 1.0)), 5, "prior of 'Linear' is mixture"),
        (
            pgmkit.LatentSpec(parts=[{"dim": 2}, {"dim": 2, "distribution": "categorical"}]),
            5,
            "is categorical",
        ),
        (pgmkit.LatentSpec(4), 0, "number of latents"),
    ],
)
def test_a_generator_that_the_theorem_is_not_about_is_refused(
    prior: pgmkit.LatentSpec, count: int, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        lipschitz_estimate(linear(prior, PLAIN)[0], count)


@pytest.mark.filterwarnings("ignore::pgmkit.errors.PgmkitWarning")
def test_a_generator_without_a_finite_jacobian_has_no_c() -> None:
    class Root(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z * 0).abs().sqrt().repeat(1, 3)[:, :9]

    generator = pgmkit.Generator(Root(), pgmkit.LatentSpec(4), PLAIN)
    with pytest.raises(GeneratorError, match=r"finite|differentiated"):
        lipschitz_estimate(generator, 3)


class Fixed:
    """Parts by the brightness of the first pixel, or the first coordinate, of images."""

    def __init__(self, num_partitions: int) -> None:
        self.num_partitions = num_partitions

    def fit(self, source: Any, *, seed: int) -> None:
        pass

    def logits(self, x: Tensor) -> Tensor:
        places = torch.linspace(-1, 1, self.num_partitions, device=x.device)
        return -(x.flatten(1)[:, :1] - places).abs()


def fitted(partitioner: Any, shape: tuple[int, ...]) -> FittedPartitioner:
    sizes = [0] * partitioner.num_partitions
    return FittedPartitioner(partitioner, ImageSpec(shape), sizes)


def noise(count: int, *shape: int, seed: int = 0) -> Pictures:
    return Pictures(
        torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )


@pytest.mark.parametrize("rows", [7, 1024])
def test_distances_are_those_of_the_nearest_images_of_two_parts(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "_ROWS", rows)
    source, partitioner = noise(60, 1, 2, 3), Fixed(4)
    found = measure_parts(fitted(partitioner, (1, 2, 3)), source)
    parts = assign(partitioner, source.values).numpy()
    x = source.values.double().flatten(1).numpy()
    wanted = [
        min(np.linalg.norm(a - b) for a in x[parts == part] for b in x[parts != part])
        for part in range(4)
    ]
    assert found.distances == pytest.approx(wanted, rel=1e-12)
    assert found.sizes == np.bincount(parts).tolist()
    assert sum(found.masses) == pytest.approx(1)
    assert found.num_images == 60


def test_distances_are_exact_where_images_are_nearly_the_same() -> None:
    """A product of matrices alone would lose all digits of this distance."""
    x = torch.full((2, 1, 20, 20), 0.9)
    x[:, 0, 0, 0] = torch.tensor([-1e-6, 1e-6])
    found = measure_parts(fitted(Fixed(2), (1, 20, 20)), Pictures(x))
    assert found.distances == pytest.approx([2e-6, 2e-6], rel=1e-6)


def test_fewer_images_are_never_nearer_and_large_ones_are_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, parts = noise(300, 1, 2, 3), fitted(Fixed(3), (1, 2, 3))
    few, all_ = measure_parts(parts, source, images=40), measure_parts(parts, source)
    assert few.num_images == 40
    assert all(a >= b for a, b in zip(few.distances, all_.distances, strict=True))
    assert measure_parts(parts, source, images=40) == few
    assert measure_parts(parts, source, images=40, seed=1) != few
    monkeypatch.setattr(distances, "_KEPT", 50 * 6 * 4)
    assert measure_parts(parts, source).num_images == 50


def test_an_empty_part_is_infinitely_far_and_asks_for_nothing() -> None:
    halves = Pictures(torch.tensor([[-1.0, 0.0], [-1.0, 3.0], [1.0, 0.0]]))
    found = measure_parts(fitted(Fixed(3), (2,)), halves)
    assert found.sizes == [2, 0, 1]
    assert found.distances == [2.0, math.inf, 2.0]
    assert tv_lower_bound(found.masses, found.distances, 2).value == pytest.approx(
        1 / 3 - norm.cdf(norm.ppf(1 / 3) - 1)
    )


@pytest.mark.parametrize(
    ("partitioner", "source", "options", "message"),
    [
        (Fixed(1), noise(5, 1, 2, 3), {}, "a single part is everything"),
        (Fixed(2), noise(5, 1, 3, 3), {}, r"fitted to images of \(1, 2, 3\)"),
        (Fixed(2), Pictures(torch.ones(5, 1, 2, 3)), {}, "all 5 images of .* lie in one part"),
        (Fixed(2), noise(5, 1, 2, 3), {"images": 0}, "number of images"),
    ],
)
def test_what_has_no_distances_is_refused(
    partitioner: Any, source: Any, options: Any, message: str
) -> None:
    for measure in (measure_parts, audit_partitioner):
        call: Callable[..., Any] = measure
        with pytest.raises(ParameterError, match=message):
            call(fitted(partitioner, (1, 2, 3)), source, **options)


# Theorem 2


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Array, list[Array], list[Array]]:
    masses = shares(draw, draw(st.integers(1, 4)))
    counts = [draw(st.integers(1, 5)) for _ in masses]
    return masses, *([shares(draw, count) for count in counts] for _ in range(2))  # type: ignore[return-value]


def put_together(masses: Array, inside: list[Array]) -> Array:
    return np.concatenate([mass * p for mass, p in zip(masses, inside, strict=True)])


def numbers_of(inside: list[Array]) -> Any:
    return np.repeat(np.arange(len(inside)), [len(p) for p in inside])


@given(mixtures())
@often
def test_the_divergence_is_the_sum_over_parts_of_equal_masses(
    mixture: tuple[Array, list[Array], list[Array]],
) -> None:
    masses, p, q = mixture
    whole = put_together(masses, p), put_together(masses, q)
    found = jsd_decomposition(*whole, numbers_of(p))
    each = [jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]
    assert found.total == pytest.approx(jensenshannon(*whole) ** 2, abs=1e-12)
    assert found.between == pytest.approx(0, abs=1e-14)
    np.testing.assert_allclose(found.within, np.nan_to_num(each), atol=1e-7)
    np.testing.assert_allclose(found.masses, masses)
    assert found.total == pytest.approx(found.masses @ found.within, abs=1e-12)


@given(mixtures(), st.data())
@often
def test_other_masses_come_on_top(
    mixture: tuple[Array, list[Array], list[Array]], data: st.DataObject
) -> None:
    masses, p, q = mixture
    others = data.draw(st.composite(shares)(len(masses)))
    found = jsd_decomposition(put_together(masses, p), put_together(others, q), numbers_of(p))
    whole = jensenshannon(put_together(masses, p), put_together(others, q)) ** 2
    assert found.total == pytest.approx(whole, abs=1e-12)
    between = jensenshannon(masses, others) ** 2 if len(masses) > 1 else 0
    assert found.between == pytest.approx(between, abs=1e-9)
    assert found.total == pytest.approx(found.between + found.masses @ found.within, abs=1e-12)
    assert (found.within >= -1e-15).all()


def test_the_divergence_of_normal_distributions_splits_at_zero() -> None:
    """N(0, 1) and N(0, 4) have equal halves, N(0, 1) and N(1, 1) have not."""

    def divergence(p: Any, q: Any, low: float, high: float) -> float:
        def integrand(x: float) -> float:
            mean = (p(x) + q(x)) / 2
            return float(p(x) * np.log(p(x) / mean) + q(x) * np.log(q(x) / mean)) / 2

        return float(integrate.quad(integrand, low, high, epsabs=1e-12)[0])

    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = np.concatenate([6 * nodes - 6, 6 * nodes + 6])
    weights, parts = np.tile(6 * weights, 2), (x > 0).astype(int)
    narrow, wide, moved = norm(0, 1).pdf, norm(0, 2).pdf, norm(1, 1).pdf
    same = jsd_decomposition(narrow(x), wide(x), parts, weights=weights)
    assert same.total == pytest.approx(divergence(narrow, wide, -12, 12), abs=1e-8)
    halves = [
        divergence(lambda t: 2 * narrow(t), lambda t: 2 * wide(t), *r) for r in ((-12, 0), (0, 12))
    ]
    np.testing.assert_allclose(same.within, halves, atol=1e-8)
    assert same.between == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(same.masses, 0.5, atol=1e-8)
    other = jsd_decomposition(narrow(x), moved(x), parts, weights=weights)
    left = norm.cdf(0), norm.cdf(-1)
    assert other.total == pytest.approx(divergence(narrow, moved, -12, 12), abs=1e-8)
    assert other.between == pytest.approx(
        jensenshannon([left[0], 1 - left[0]], [left[1], 1 - left[1]]) ** 2, abs=1e-8
    )
    assert other.total == pytest.approx(other.between + other.masses @ other.within, abs=1e-12)


def test_what_shares_nothing_is_log_2_apart_and_an_empty_part_adds_nothing() -> None:
    found = jsd_decomposition([1, 0, 0], [0, 1, 0], [0, 0, 2])
    assert found.total == pytest.approx(math.log(2))
    assert found.within.tolist() == pytest.approx([math.log(2), 0, 0])
    assert found.masses.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.4], [0.5, 0.5], [0, 1]), "p must be at least 0 and sum to 1.*not to 0.9"),
        (([0.5, 0.5], [1.5, -0.5], [0, 1]), "q must be at least 0"),
        (([0.5, 0.5], [1.0], [0, 1]), r"rows of one length.*\(2,\) and q \(1,\)"),
        (([0.5, 0.5], [0.5, 0.5], [0, -1]), "whole numbers from 0"),
        (([0.5, 0.5], [0.5, 0.5], [0.0, 1.0]), "whole numbers from 0"),
        (([0.5, 0.5], [0.5, 0.5], [0, 1], [1, -1]), "weights must be above 0, not -1"),
    ],
)
def test_a_divergence_of_no_distributions_is_refused(arguments: Any, message: str) -> None:
    p, q, parts, *weights = arguments
    with pytest.raises(ParameterError, match=message):
        jsd_decomposition(p, q, parts, weights=weights[0] if weights else None)


# Theorem 3


class Bent(nn.Module):
    """f = W φ(x) of points, with φ(x) = A x + bend · tanh(Q x), Q orthogonal.

    So φ keeps points apart by c₀ ≥ σ_min(A) − bend, and by σ_min(A) exactly where it is not bent.
    """

    def __init__(self, num_partitions: int, dim: int, seed: int, bend: float = 0.0) -> None:
        super().__init__()
        self.num_partitions, self.bend = num_partitions, bend
        random = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        turned, back, self.turn = (torch.linalg.qr(drawn(dim, dim))[0] for _ in range(3))
        stretch = 1 + torch.rand(dim, generator=random, dtype=torch.float64)
        self.matrix = turned @ torch.diag(stretch) @ back
        self.head = nn.Linear(dim, num_partitions, bias=False, dtype=torch.float64)
        self.head.weight.data = drawn(num_partitions, dim)

    def fit(self, source: Any, *, seed: int) -> None:
        pass

    def represent(self, x: Tensor) -> Tensor:
        return x.double() @ self.matrix.T + self.bend * torch.tanh(x.double() @ self.turn.T)

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.represent(x))
        return found

    @property
    def c0(self) -> float:
        """What is known of c₀ without looking: exact if φ is not bent, else a lower bound."""
        return float(torch.linalg.svdvals(self.matrix)[-1]) - self.bend

    def directions(self, x: Tensor, part: int) -> Array:
        """Returns v = Σ (w_c − w_i) over the parts c that lie above part i at x, (n, d)."""
        weights, logits = (t.detach().numpy() for t in (self.head.weight, self.logits(x)))
        rows = [(weights[row > row[part]] - weights[part]).sum(axis=0) for row in logits]
        return np.stack(rows)


def points(count: int, dim: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, dim, generator=random, dtype=torch.float64)


bent = st.builds(Bent, st.integers(2, 6), st.integers(1, 4), seeds, st.sampled_from([0.0, 0.9]))


@given(bent, seeds, st.data())
@often
def test_the_gradient_of_the_guide_does_not_vanish_outside_a_part(
    partitioner: Bent, seed: int, data: st.DataObject
) -> None:
    """‖∇R_i‖ ≥ c₀ ‖v‖, with v from the head alone; and nothing pulls inside."""
    part = data.draw(st.integers(0, partitioner.num_partitions - 1))
    x = points(30, partitioner.matrix.shape[0], seed)
    value, gradient, length = pull(partitioner, x, torch.full((30,), part))
    outside = assign(partitioner, x) != part
    assert torch.equal(value > 0, outside)
    assert torch.equal(value == 0, ~outside)
    assert (gradient[~outside] == 0).all()
    b0 = partitioner.c0 * np.linalg.norm(partitioner.directions(x, part), axis=1)
    assert (b0[outside.numpy()] > 0).all()
    assert (length.numpy() >= b0 * (1 - 1e-9)).all()


@given(st.builds(Bent, st.integers(2, 6), st.integers(1, 4), seeds), seeds)
@often
def test_of_a_linear_representation_gradients_are_known_exactly(
    partitioner: Bent, seed: int
) -> None:
    x = points(20, partitioner.matrix.shape[0], seed)
    _, gradient, length = pull(partitioner, x, torch.zeros(20, dtype=torch.int64))
    wanted = partitioner.directions(x, 0) @ partitioner.matrix.numpy()
    np.testing.assert_allclose(gradient.numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(length.numpy(), np.linalg.norm(wanted, axis=1), atol=1e-12)


def test_descents_reach_the_parts_of_representations_that_keep_points_apart() -> None:
    """Of nearly 400, and those that do not arrive end near a narrow part, at no other minimum."""
    reached, left = [], []
    for seed in range(60):
        partitioner = Bent(2 + seed % 5, 1 + seed % 4, seed, bend=0.9 * (seed % 2))
        dim = partitioner.matrix.shape[0]
        seen = assign(partitioner, points(200, dim, seed)).unique()
        parts = seen[torch.arange(8) % len(seen)]
        x = points(8, dim, seed + 1)
        led = descend(partitioner, x, parts, x.norm(dim=1) + 1, 200)
        values = guide(partitioner, led.ends, parts)
        assert torch.equal(led.reached, values == 0)
        reached += led.reached.tolist()
        left += (values / guide(partitioner, x, parts)).nan_to_num().tolist()
    assert np.mean(reached) > 0.99
    assert max(left) < 0.05


def audited(partitioner: Any, x: Tensor, **options: Any) -> PartitionerAudit:
    return audit_partitioner(fitted(partitioner, tuple(x.shape[1:])), Pictures(x), **options)


def test_the_audit_of_a_linear_representation_is_exact() -> None:
    partitioner, x = Bent(4, 3, seed=2), points(400, 3)
    found = audited(partitioner, x, tries=60)
    assert found.representation.is_told
    assert found.representation.c0 == pytest.approx(partitioner.c0, rel=1e-9)
    ratios = [
        np.linalg.norm(partitioner.matrix.numpy() @ d) / np.linalg.norm(d)
        for d in (a - b for a, b in itertools.combinations(x.numpy()[:200], 2))
    ]
    pairs = look_at(partitioner, x[:200])
    assert pairs.closest == pytest.approx(min(ratios), rel=1e-9)
    assert pairs.farthest == pytest.approx(max(ratios), rel=1e-9)
    assert pairs.singular_values == pytest.approx(
        np.linalg.svd(partitioner.matrix.numpy())[1][[-1, 0]].tolist(), rel=1e-9
    )
    weights = partitioner.head.weight.detach().numpy()
    possible = {
        round(float(np.linalg.norm(v @ partitioner.matrix.numpy())), 9)
        for part in range(4)
        for number in range(1, 4)
        for above in itertools.combinations(sorted({0, 1, 2, 3} - {part}), number)
        for v in [(weights[list(above)] - weights[part]).sum(axis=0)]
    }
    assert {round(value, 9) for value in found.gradients} <= possible
    assert {round(value, 9) for value in found.first_gradients} <= possible
    assert sum(found.starts) == sum(found.pairs) == 60
    assert found.reached == found.starts
    assert found.straight == found.joined == found.pairs
    assert found.applies
    assert found.keeps
    told = audit_in_words(found)
    assert not any(row[1] == "fails" for row in told.rows)
    assert "Nothing speaks against the theorem" in told.meaning


class Spiral(nn.Module):
    """Four quarters of the plane, wound up: connected, and no straight line stays within."""

    num_partitions = 4

    def fit(self, source: Any, *, seed: int) -> None:
        pass

    def represent(self, x: Tensor) -> Tensor:
        angle = x.norm(dim=1)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)

    def head(self, points: Tensor) -> Tensor:
        return points @ torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=points.dtype).T

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.represent(x))


def test_paths_within_a_part_bend() -> None:
    found = audited(Spiral(), points(300, 2) / 2, tries=80)
    assert found.applies
    assert 0.2 < found.representation.c0 < 0.5
    assert found.reached == found.starts
    assert sum(found.straight) < 65
    assert sum(found.joined) >= 78


class Valley:
    """R_1 has a spurious minimum at -1, where it is 0.4; part 1 lies around 1 alone."""

    num_partitions = 2

    def fit(self, source: Any, *, seed: int) -> None:
        pass

    def height(self, x: Tensor) -> Tensor:
        return (x[:, 0] ** 2 - 1) ** 2 - 0.4 * x[:, 0] + x[:, 1] ** 2

    def logits(self, x: Tensor) -> Tensor:
        above = self.height(x)
        return torch.stack([above, torch.zeros_like(above)], dim=1)


class Split(Valley):
    """Part 0 is left of -1 and right of 1: two pieces."""

    def height(self, x: Tensor) -> Tensor:
        return x[:, 0] ** 2 - 1


class Flat(Valley):
    """Left of 0 nothing pulls to part 1, which is right of 1."""

    def height(self, x: Tensor) -> Tensor:
        return 1 - x[:, 0].relu()


def two_sides(count: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(count, 2, generator=random, dtype=torch.float64)
    x[:, 0] += torch.where(torch.arange(count) % 2 == 0, -1.5, 1.5)
    return x


def test_a_spurious_minimum_is_found() -> None:
    x = torch.where(two_sides(100) > 0.5, two_sides(100) - 0.5, two_sides(100))
    found = audited(Valley(), x, tries=40)
    assert found.parts.sizes == [50, 50]
    assert found.starts == [20, 20]
    assert found.reached == [20, 0]
    assert min(found.gradients) < 0.05 * np.median(found.first_gradients)
    assert not found.keeps
    told = audit_in_words(found)
    (row,) = [row for row in told.rows if "dead ends" in row[0]]
    assert row[1] == "fails"
    assert row[2].startswith("20 of 40 descents")
    assert "leaves a generator outside" in told.meaning


def test_a_part_in_two_pieces_is_found() -> None:
    x = torch.cat([two_sides(100), points(60, 2) * torch.tensor([0.1, 1.0])])
    found = audited(Split(), x, tries=60)
    assert 0 < found.joined[0] < found.pairs[0]
    assert found.joined[1] == found.pairs[1]
    assert found.reached == found.starts
    assert not found.keeps
    told = audit_in_words(found)
    assert [row[1] for row in told.rows if "connected" in row[0]] == ["fails"]
    assert "in pieces" in told.meaning


def test_only_pairs_in_one_piece_are_joined() -> None:
    left, right = torch.tensor([[-2.0, 0.0]] * 3), torch.tensor([[-3.0, 1.0], [2, 0], [1.5, -1]])
    found, straight = joined(Split(), left, right, torch.zeros(3, dtype=torch.int64), 50)
    assert found.tolist() == straight.tolist() == [True, False, False]


def test_a_gradient_that_vanishes_is_found() -> None:
    found = audited(Flat(), two_sides(100), tries=20)
    assert found.reached[1] == 0
    assert min(found.gradients) == 0
    assert found.vanishes
    assert "pulls nowhere" in audit_in_words(found).meaning


def test_a_representation_of_fewer_dimensions_cannot_keep_images_apart() -> None:
    class Fewer(Bent):
        def represent(self, x: Tensor) -> Tensor:
            return super().represent(x.flatten(1)[:, : self.matrix.shape[0]])

    found = audited(Fewer(3, 2, seed=0), points(200, 5).reshape(200, 1, 1, 5), tries=12)
    assert found.representation.c0 == 0
    assert found.representation.closest > 0
    assert found.representation.singular_values is None
    assert not found.applies
    assert found.keeps
    told = audit_in_words(found)
    assert "2 numbers and an image 5" in next(r[2] for r in told.rows if r[0] == "needs c₀ > 0")
    assert "does not apply" in told.meaning


def test_more_dimensions_and_singular_ones_are_told() -> None:
    class More(Bent):
        def represent(self, x: Tensor) -> Tensor:
            return torch.cat([super().represent(x), x.double()], dim=1)

        def logits(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.represent(x))
            return found

    more = More(3, 2, seed=0)
    more.head = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    found = audited(more, points(100, 2), tries=3)
    assert found.representation.c0 > 0
    assert not found.applies
    assert "has 4" in next(r[2] for r in audit_in_words(found).rows if r[0] == "needs c₀ > 0")
    flat = Bent(3, 2, seed=0)
    flat.matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = audited(flat, points(100, 2), tries=3)
    assert found.representation.c0 == 0
    assert "is singular" in next(r[2] for r in audit_in_words(found).rows if r[0] == "needs c₀ > 0")


def test_too_few_steps_are_no_evidence_against_a_representation_that_keeps_points_apart() -> None:
    found = audited(Bent(4, 3, seed=2), points(200, 3), tries=20, steps=1)
    assert found.applies
    assert sum(found.reached) < 20
    told = audit_in_words(found)
    assert [row[1] for row in told.rows if "dead ends" in row[0]] == ["not seen"]
    assert "steps and paths were too few" in told.meaning


def test_logits_stand_for_a_representation_that_nobody_tells() -> None:
    found = look_at(Valley(), two_sides(20))
    assert not found.is_told
    assert found.num_dims == found.image_dims == 2
    assert found.c0 == 0  # the second logit is always 0


def test_a_head_of_other_logits_is_refused() -> None:
    class Other(Bent):
        def logits(self, x: Tensor) -> Tensor:
            return super().logits(x) + 1

    class Curved(Bent):
        def logits(self, x: Tensor) -> Tensor:
            return self.head(self.represent(x))

    with pytest.raises(PluginError, match="'Other' has a head that gives other logits"):
        audited(Other(3, 2, seed=0), points(50, 2))
    curved = Curved(3, 2, seed=0)
    curved.head = nn.Sequential(curved.head, nn.Tanh())  # type: ignore[assignment]
    with pytest.raises(PluginError, match=r"'Curved' has a head .* not linear"):
        audited(curved, points(50, 2))


def test_the_network_of_self_training_tells_what_its_last_layer_sees() -> None:
    source, _ = pictures(60)
    table = {"name": "self-trained", "base": "kmeans", "steps": 30, "batch_size": 24, "width": 6}
    table |= {"learning_rate": 1e-2, "strength": 0.3, "deformations": "digits"}
    learned = pgmkit.fit_partitioner(table, source, partitions=4)
    assert isinstance(learned.partitioner, contracts.Represents)
    x = source.values
    points_ = contracts.represented(learned.partitioner, x)
    assert points_.shape == (60, 128)
    assert torch.equal(learned.partitioner.head(points_), learned.logits(x))
    found = audit_partitioner(learned, source, tries=4, steps=5)
    assert found.representation.is_told
    assert found.representation.num_dims == 128
    kmeans = pgmkit.fit_partitioner("kmeans", source, partitions=4).partitioner
    assert not isinstance(kmeans, contracts.Represents)


def test_a_partitioner_without_a_gradient_is_refused_before_anything_is_looked_at() -> None:
    asked: list[int] = []

    class Counted(Pictures):
        def batch(self, index: Tensor) -> Tensor:
            asked.append(len(index))
            return super().batch(index)

    class Detached(Bent):
        def logits(self, x: Tensor) -> Tensor:
            return super().logits(x.detach())

    class Wild(Bent):
        def logits(self, x: Tensor) -> Tensor:
            return super().logits(x) + (x[:, :1] * 0).abs().sqrt()

    source, _ = pictures(100)
    manifold = pgmkit.fit_partitioner("manifold", source, partitions=4)
    with pytest.raises(ParameterError, match="have no gradient, so they guide nothing"):
        audit_partitioner(manifold, Counted(source.values))
    assert asked == [1]
    with pytest.raises(ParameterError, match="'Detached' have a gradient, but not by the images"):
        audited(Detached(3, 2, seed=0), points(50, 2))
    with pytest.raises(PluginError, match="'Wild' has logits whose gradient is not finite"):
        audited(Wild(3, 2, seed=0), points(50, 2))


@pytest.mark.parametrize("name", ["tries", "steps", "images"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(ParameterError, match=f"number of {name} must be a whole number from 1"):
        audited(Bent(3, 2, seed=0), points(50, 2), **{name: 0})


def test_the_same_seed_gives_the_same_audit_and_images_need_not_be_many() -> None:
    partitioner, x = Bent(3, 2, seed=0, bend=0.5), points(100, 2)
    assert audited(partitioner, x, tries=5) == audited(partitioner, x, tries=5)
    assert audited(partitioner, x, tries=5) != audited(partitioner, x, tries=5, seed=1)
    few = audited(Split(), torch.tensor([[2.0, 0.0], [0.0, 0.0]]), tries=5)
    assert few.pairs == [0, 0]
    assert sum(few.starts) == 5
    ring = load_images("points:ring:n=200")
    kmeans = pgmkit.fit_partitioner({"name": "kmeans", "features": "pixels"}, ring, partitions=8)
    assert audit_partitioner(kmeans, ring, tries=8).keeps


def test_a_bound_by_measured_numbers_is_told_for_what_it_is() -> None:
    generator, _ = linear(pgmkit.LatentSpec(4), PLAIN)
    c = lipschitz_estimate(generator, 4)
    alone = bound_in_words(c, None, None, are_own=False)
    assert len(alone.rows) == 1
    assert "at least" in alone.rows[0][1]
    assert "--partitioner" in alone.meaning
    parts = measure_parts(fitted(Fixed(2), (1, 3, 3)), noise(50, 1, 3, 3))
    bound = tv_lower_bound(parts.masses, parts.distances, c.value)
    for are_own in (True, False):
        told = bound_in_words(c, parts, bound, are_own=are_own)
        assert [row[1].split(" ")[:2] for row in told.rows[2:]] == [["at", "most"]] * 2
        assert "c is measured too small and d too large" in told.meaning
        assert "nothing proves" in told.meaning
        assert ("images of the generator itself" in told.meaning) is are_own
