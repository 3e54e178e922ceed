"""The partitioner of Partition-Guided GANs: its network, its two stages, and what they refuse."""

import copy
import json
import math
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from groups import Pictures, agreement, every, gated, pictures
from scipy.stats import entropy
from torch import Tensor, nn

import pgmkit
from pgmkit import learning
from pgmkit.errors import LoadError, ParameterError, PgmkitError, PgmkitWarning, UnknownNameError
from pgmkit.images import preset
from pgmkit.learning.clock import clock_at
from pgmkit.learning.neighbours import by_products, nearest_neighbors
from pgmkit.learning.precision import InBfloat16
from pgmkit.partition import assign, fit_partitioner, guide, load_partitioner
from pgmkit.plugins import build
from pgmkit.states import load_state_of, state_of
from pgmkit_plugins.partitioners import iresnet, stages
from pgmkit_plugins.partitioners.invertible import (
    Block,
    Headed,
    NormalisedConv,
    Representation,
    SoftLeakyReLU,
    Trunk,
)

pytestmark = pytest.mark.usefixtures("one_thread")

K = 4
QUICK: dict[str, Any] = {
    "name": "iresnet",
    "network": {"blocks": [1, 1], "width": 16, "power_iterations": 1},
    "pretext": {"steps": 30, "batch_size": 24, "learning_rate": 0.1, "projection": [32, 16]},
    "partition": {"steps": 60, "batch_size": 24, "learning_rate": 1e-2, "num_neighbors": 5},
    "deformations": "digits",
    "strength": 0.3,
}
PAPER = {"blocks": (4, 4, 4, 4, 4), "width": 160, "coefficient": 0.9, "negative_slope": 0.2}
quiet = pytest.mark.filterwarnings("ignore::pgmkit.errors.PgmkitWarning")


def table_of(**tables: Any) -> dict[str, Any]:
    """Returns `QUICK` with tables laid over its own."""
    merged = {
        name: {**QUICK.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in tables.items()
    }
    return {**QUICK, **merged}


HASTY = table_of(pretext={"steps": 3}, partition={"steps": 3})


def quick(k: int = K, **tables: Any) -> Any:
    return build("partitioners", table_of(**tables), num_partitions=k)


def hasty() -> Any:
    return build("partitioners", HASTY, num_partitions=K)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_trunk(coefficient: float = 0.9) -> Trunk:
    """Returns a trunk in float64 that bends what goes through it about as far as it may."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = Trunk((2, 8, 8), [1, 0, 2], width=6, coefficient=coefficient).double()
    with torch.no_grad():
        for module in trunk.modules():
            if isinstance(module, NormalisedConv):
                module.weight.mul_(5)
                module.settle()
    trunk.eval().initialise(drawn(16, 2, 8, 8))
    return trunk


def matrix_of(convolution: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Returns a convolution without its constants as a matrix, from what it makes of a basis."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    constant = convolution(torch.zeros(1, *shape, dtype=torch.float64))
    matrix: Tensor = (convolution(basis) - constant).flatten(1).T
    return matrix


def norm_of(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), ord=2))


# The network


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("factor", [0.01, 8.0])
def test_a_convolution_keeps_to_the_norm_of_its_matrix(kernel: int, factor: float) -> None:
    torch.manual_seed(0)
    convolution = NormalisedConv(2, 3, kernel, (6, 5), coefficient=0.9).double()
    with torch.no_grad():
        convolution.weight.mul_(factor)
    before = convolution.weight.detach().clone()
    convolution.iterate(200)
    training = matrix_of(convolution, (2, 6, 5))
    convolution.settle()
    settled = matrix_of(convolution.eval(), (2, 6, 5))
    norm = norm_of(settled)
    torch.testing.assert_close(training, settled)
    if factor < 1:
        assert norm < 0.9
        assert torch.equal(convolution.weight, before)
    else:
        assert norm == pytest.approx(0.9, abs=1e-9)


def test_the_gradient_of_a_normalised_weight_is_that_of_its_exact_norm() -> None:
    torch.manual_seed(0)
    convolution = NormalisedConv(2, 3, 3, (4, 4), coefficient=0.5).double()
    with torch.no_grad():
        convolution.weight.mul_(5)
    convolution.iterate(500)
    x, y = drawn(3, 2, 4, 4, seed=1), drawn(3, 3, 4, 4, seed=2)
    (found,) = torch.autograd.grad((convolution(x) * y).sum(), convolution.weight)
    weight = convolution.weight.detach().clone().requires_grad_()

    def apply(images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, weight, padding=1)

    norm = torch.linalg.matrix_norm(matrix_of(apply, (2, 4, 4)), ord=2)  # type: ignore[arg-type]
    exact = (apply(x) * 0.5 / norm * y).sum()
    (wanted,) = torch.autograd.grad(exact, weight)
    torch.testing.assert_close(found, wanted)


def test_a_block_adds_a_contraction() -> None:
    torch.manual_seed(0)
    block = Block(2, 5, (4, 4), coefficient=0.9).double()
    with torch.no_grad():
        for module in block.bottleneck:
            if isinstance(module, NormalisedConv):
                module.weight.mul_(20)
                module.settle()
    x = drawn(2, 4, 4)
    norms = []
    for scale in (0.1, 1.0, 10.0):
        jacobian = torch.autograd.functional.jacobian(
            lambda n: block.eval().bottleneck(n[None]), scale * x
        )
        norms.append(norm_of(jacobian.reshape(32, 32)))
    assert 0.1 < max(norms) <= 0.9**3 + 1e-9


def test_act_norm_begins_with_mean_0_and_variance_1_everywhere() -> None:
    network = Representation(
        (3, 8, 8), **{**PAPER, "blocks": [1, 2], "width": 8}, smooth=False, pooled=True
    )
    x = 0.3 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network.initialise(x)
    seen: list[Tensor] = []
    for module in network.modules():
        if type(module).__name__ == "ActNorm":
            module.register_forward_hook(lambda _, __, y: seen.append(y))
    network(x)
    assert len(seen) == 3 + 1
    for y in seen:
        torch.testing.assert_close(
            y.mean(dim=(0, 2, 3)), torch.zeros(y.shape[1]), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(y.std(dim=(0, 2, 3)), torch.ones(y.shape[1]), rtol=1e-2, atol=0)


def test_a_channel_without_variance_is_not_blown_up() -> None:
    network = Trunk((1, 4, 4), [1], width=4, coefficient=0.9)
    y = network.initialise(torch.full((8, 1, 4, 4), 0.5))
    assert y.isfinite().all()
    assert network(torch.full((8, 1, 4, 4), 0.51)).abs().max() < 10


def test_a_trunk_is_inverted_to_rounding() -> None:
    trunk = small_trunk()
    x = drawn(5, 2, 8, 8, seed=3)
    y = trunk(x)
    assert y.shape == (5, *trunk.output) == (5, 32, 2, 2)
    assert (y.flatten(1) - x.flatten(1)).abs().mean() > 0.3  # it does something
    found, errors = trunk.inverse(y)
    assert errors.shape == (5,)
    assert errors.max() < 1e-12
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
    single = trunk.float()
    found, errors = single.inverse(single(x.float()))
    assert errors.max() < 1e-5
    torch.testing.assert_close(found, x.float(), rtol=0, atol=1e-5)


def test_an_inverse_that_was_cut_short_says_how_far_off_it_is() -> None:
    trunk = small_trunk()
    y = trunk(drawn(5, 2, 8, 8, seed=3))
    far = []
    for iterations in (1, 4, 16):
        x, errors = trunk.inverse(y, max_iterations=iterations)
        torch.testing.assert_close(errors, (trunk(x) - y).abs().amax(dim=(1, 2, 3)))
        far.append(float(errors.max()))
    assert far[0] > 0.01 > far[1] > 100 * far[2]


def test_the_soft_leaky_relu_has_no_kink_and_slopes_from_a_to_1() -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    slopes = {}
    for leaky in (SoftLeakyReLU(0.2), nn.LeakyReLU(0.2)):
        (slope,) = torch.autograd.grad(leaky(x).sum(), x)
        slopes[type(leaky)] = slope
        assert slope.min() == pytest.approx(0.2, abs=1e-9)
        assert slope.max() == pytest.approx(1.0, abs=1e-9)
    assert slopes[SoftLeakyReLU].diff().abs().max() < 0.03
    assert slopes[nn.LeakyReLU].diff().abs().max() > 0.7
    torch.testing.assert_close(SoftLeakyReLU(0.2)(x)[[0, -1]], nn.LeakyReLU(0.2)(x)[[0, -1]])


@pytest.mark.parametrize("smooth", [False, True])
def test_without_pooling_the_representation_is_invertible(smooth: bool) -> None:
    """Theorem 3 wants φ to keep distances, up to a factor; a mean over all places does not."""
    torch.manual_seed(0)
    smallest = {}
    for pooled in (False, True):
        network = Representation(
            (1, 4, 4), **{**PAPER, "blocks": [1, 1], "width": 8}, smooth=smooth, pooled=pooled
        ).double()
        network.initialise(drawn(32, 1, 4, 4))
        network.iterate(20)
        network.settle()
        jacobian = torch.autograd.functional.jacobian(
            lambda x, net=network: net(x[None])[0], drawn(1, 4, 4)
        )
        values = torch.linalg.svdvals(jacobian.reshape(network.num_features, 16))
        smallest[pooled] = float(values[-1]) if len(values) == 16 else 0.0
    assert smallest[False] > 0.2 * (1 - 0.9**3) ** 2 / 10
    assert smallest[True] == 0


@pytest.mark.parametrize(
    ("image", "features", "count"),
    [((3, 32, 32), 768, 12_317_172), ((1, 32, 32), 256, 4_451_324), ((3, 48, 48), 768, 12_317_172)],
)
def test_the_paper_s_network_has_as_many_parameters_as_the_page_says(
    image: tuple[int, int, int], features: int, count: int
) -> None:
    with torch.device("meta"):
        network = Representation(image, **PAPER, smooth=False, pooled=True)
    channels, width = image[0] * 4 ** torch.arange(5), 160
    by_hand = (
        int((18 * channels * width + width**2 + 2 * width + 3 * channels).sum()) * 4 + 2 * features
    )
    assert sum(weight.numel() for weight in network.parameters()) == by_hand == count
    assert network.num_features == features
    page = (Path(__file__).parent.parent / "docs" / "partitioners.md").read_text()
    assert f"{count:,}" in page


def test_the_paper_s_network_goes_forward_and_back_on_images_in_colour() -> None:
    torch.manual_seed(0)
    representation = Representation((3, 32, 32), **PAPER, smooth=False, pooled=True)
    network = Headed(representation, nn.Linear(768, 10, bias=False))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    representation.initialise(x)
    representation.iterate(1)
    x.requires_grad_()
    logits = network(x)
    assert logits.shape == (2, 10)
    nn.functional.cross_entropy(logits, torch.tensor([3, 7])).backward()
    gradients = [x.grad, *(weight.grad for weight in network.parameters())]
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_under_autocast_the_network_does_nearly_the_same() -> None:
    representation = Representation(
        (3, 8, 8), **{**PAPER, "blocks": [1, 1], "width": 8}, smooth=False, pooled=True
    )
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    representation.initialise(x)
    mixed = InBfloat16(representation)(x)
    exact = representation(x)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0.05)
    representation.iterate(1)
    mixed.sum().backward()
    assert all(
        w.grad is not None and w.grad.dtype == torch.float32 for w in representation.parameters()
    )


# What is learned


def test_the_terms_of_eq_5_are_those_of_the_formula() -> None:
    own, other = drawn(6, 3), drawn(6, 3, seed=1)
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(axis=1, keepdims=True) for x in (own, other))
    terms = stages.partition_losses(own, other)
    assert float(terms["disagreement"]) == pytest.approx(-np.log((p * q).sum(axis=1)).mean())
    assert float(terms["entropy"]) == pytest.approx(entropy(p.mean(axis=0)))
    assert float(terms["doubt"]) == pytest.approx(entropy(p.T).mean())


def first_losses(network: Headed, **settings: Any) -> dict[str, float]:
    source, _ = pictures(40)
    stage = stages.PartitionStage(
        network,
        source,
        stages.PartitionSettings(epochs=None, steps=1, batch_size=8, **settings),
        torch.arange(40)[:, None].roll(1, 0),
        steps=1,
        power_iterations=1,
        deformations=preset("digits", 3).scaled(0.3),
        in_bfloat16=False,
    )
    batch = learning.Batch(source.batch(torch.arange(8)), None, torch.arange(8), 8)
    return {
        name: float(v.detach()) for name, v in stage.losses_of(batch, clock_at(0, 0, 1)).items()
    }


def test_the_third_term_is_the_one_that_is_named() -> None:
    torch.manual_seed(0)
    representation = Representation(
        (3, 8, 8), **{**PAPER, "blocks": [1], "width": 4}, smooth=False, pooled=True
    )
    network = Headed(representation, nn.Linear(3, K, bias=False))
    plain = first_losses(network, alpha=2.0)
    assert plain["loss"] == pytest.approx(plain["disagreement"] - 2 * plain["entropy"], rel=1e-5)
    confident = first_losses(network, alpha=2.0, third_term="confidence", beta=0.5)
    assert confident["loss"] - plain["loss"] == pytest.approx(0.5 * plain["doubt"], rel=1e-4)
    light = first_losses(network, alpha=2.0, third_term="weights", beta=0.5)
    squares = float(network.head.weight.detach().square().sum())  # type: ignore[operator, union-attr]
    assert light["loss"] - plain["loss"] == pytest.approx(0.5 * squares, rel=1e-4)


@pytest.fixture(scope="module")
def labelled() -> Pictures:
    source, group = pictures(200)
    return Pictures(source.values, labels=group)


@pytest.fixture(scope="module")
def whole(labelled: Pictures) -> Any:
    return fit_partitioner(QUICK, labelled, partitions=K)


@pytest.fixture(scope="module")
def fitted(whole: Any) -> Any:
    return whole.partitioner


def test_findings_tell_how_it_ended(fitted: Any, labelled: Pictures) -> None:
    found = fitted.findings()
    names = [
        "pretext loss",
        "partition loss",
        "entropy",
        "dead parts",
        "neighbours of the same label",
    ]
    assert list(found) == names
    assert found["dead parts"] == 0
    assert found["neighbours of the same label"] > 0.9
    mean = fitted.logits(every(labelled)).double().softmax(dim=1).mean(dim=0)
    assert found["entropy"] == pytest.approx(entropy(mean), abs=1e-4)
    assert found["entropy"] <= math.log(K)
    assert found["partition loss"] < -4 * math.log(K)
    unlabelled = hasty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        unlabelled.fit(Pictures(labelled.values), seed=0)
    assert "neighbours of the same label" not in unlabelled.findings()


def test_labels_are_for_the_eye_alone(labelled: Pictures) -> None:
    found = []
    for labels in (labelled.labels, None):
        partitioner = hasty()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PgmkitWarning)
            partitioner.fit(Pictures(labelled.values, labels=labels), seed=0)
        found.append(state_of(partitioner))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_logits_are_w_times_phi(fitted: Any, labelled: Pictures) -> None:
    x = every(labelled)[:5]
    represented, matrix = fitted.represent(x), fitted.network_.head.weight
    assert (represented.shape, matrix.shape) == ((5, 12), (K, 12))
    assert fitted.network_.head.bias is None
    torch.testing.assert_close(represented @ matrix.T, fitted.logits(x))
    assert torch.equal(fitted.head(represented), fitted.logits(x))
    before = fitted.network_
    try:
        fitted.network_ = copy.deepcopy(before).double()
        exact = fitted.logits(x.double())
    finally:
        fitted.network_ = before
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), fitted.logits(x), rtol=1e-4, atol=1e-4)


def test_no_weight_exceeds_the_coefficient_once_it_is_fitted(fitted: Any) -> None:
    norms = []
    for module in fitted.network_.modules():
        if isinstance(module, NormalisedConv):
            shape = (module.weight.shape[1], 4, 4)
            norms.append(norm_of(matrix_of(module.double(), shape)))
            module.float()
    assert len(norms) == 6
    assert max(norms) <= 0.9 + 1e-3


def test_the_trunk_that_was_fitted_is_inverted(fitted: Any, labelled: Pictures) -> None:
    trunk = fitted.network_.representation.trunk
    x = every(labelled)[:8]
    found, errors = trunk.inverse(trunk(x))
    assert errors.max() < 1e-4
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)


def test_unpooled_logits_guide_from_wherever_an_image_lies(labelled: Pictures) -> None:
    few = {"pretext": {"steps": 10}, "partition": {"steps": 15}}
    partitioner = quick(network={"pooled": False, "smooth": True}, **few)
    partitioner.fit(labelled, seed=0)
    assert partitioner.represent(every(labelled)[:1]).shape == (1, 3 * 8 * 8)
    x = (drawn(20, 3, 8, 8) * 0.5).float().requires_grad_()
    for part in range(K):
        pull = guide(partitioner, x, part)
        (gradient,) = torch.autograd.grad(pull.sum(), x)
        outside = pull > 0
        assert torch.equal(outside, partitioner.logits(x).argmax(dim=1) != part)
        assert gradient[outside].flatten(1).norm(dim=1).min() > 1e-3


def test_dead_parts_and_a_collapse_are_warned_of() -> None:
    with pytest.warns(PgmkitWarning, match=r"^2 of 5 parts have no images: 1, 3; ask for fewer"):
        iresnet._warn_of(torch.tensor([50, 0, 60, 0, 40]))
    many = torch.ones(40, dtype=torch.int64)
    many[5:15] = 0
    with pytest.warns(PgmkitWarning, match=r"10 of 40 .*: 5, 6, 7, 8, 9, 10, 11, 12, \.\.\.; ask"):
        iresnet._warn_of(many)
    with pytest.warns(
        PgmkitWarning, match=r"as few of them as if there were 1\.2 of one size, of 3"
    ):
        iresnet._warn_of(torch.tensor([97, 2, 1]))
    iresnet._warn_of(torch.tensor([60, 20, 10, 10]))


def test_a_pretext_that_tells_no_images_apart_is_warned_of() -> None:
    source = Pictures(torch.full((40, 1, 4, 4), 0.25))
    with pytest.warns(PgmkitWarning, match="the pretext has collapsed"):
        hasty().prepare(source, seed=0)


def test_neighbours_are_the_nearest_others() -> None:
    found = drawn(60, 5)
    distances = torch.cdist(found, found).fill_diagonal_(math.inf)
    assert torch.equal(nearest_neighbors(found, 7), distances.argsort(dim=1)[:, :7])
    assert nearest_neighbors(found[:5], 7).shape == (5, 4)
    assert torch.equal(by_products(found.float(), 8)[:, 1:], nearest_neighbors(found, 7))
    same = nearest_neighbors(torch.zeros(9, 2), 4)
    assert not (same == torch.arange(9)[:, None]).any()
    assert all(len(set(row)) == 4 for row in same.tolist())


def test_faiss_finds_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    found = drawn(300, 8).float()
    by_faiss = nearest_neighbors(found, 10)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert torch.equal(nearest_neighbors(found, 10), by_faiss)


# Stopped, and gone wrong


@pytest.mark.parametrize("stage", ["pretext", "partition"])
@quiet
def test_a_stage_that_was_stopped_ends_as_one_that_was_not(
    stage: str, labelled: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(folder: str) -> Any:
        partitioner = quick(pretext={"steps": 6}, partition={"steps": 6})
        with learning.keeping(tmp_path / folder):
            partitioner.fit(labelled, seed=0)
        return partitioner

    whole = fit("whole")
    name = "contrastive_loss" if stage == "pretext" else "partition_losses"
    original, calls = getattr(stages, name), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(stages, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit("out")
    assert list((tmp_path / "out" / f"{stage} stage").glob("checkpoint-*4.safetensors"))
    again = fit("out")
    assert len(calls) == 6
    assert again.findings() == whole.findings()
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(again)[name]), name
    for path in sorted((tmp_path / "whole").glob("*/*.csv")):
        other = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("stage", ["pretext", "partition"])
@quiet
def test_a_loss_that_is_not_finite_ends_the_fit_and_leaves_the_checkpoint_before(
    stage: str, labelled: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "contrastive_loss" if stage == "pretext" else "partition_losses"
    original, calls = getattr(stages, name), []

    def failing(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        found = original(*arguments)
        if len(calls) < 3:
            return found
        return (
            found * math.nan if stage == "pretext" else {n: v * math.nan for n, v in found.items()}
        )

    monkeypatch.setattr(stages, name, failing)
    with learning.keeping(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            hasty().fit(labelled, seed=0)
        with pytest.raises(PgmkitError, match=r"loss is nan at step 3; lower the learning rate"):
            hasty().fit(labelled, seed=0)
    assert [path.name for path in (tmp_path / f"{stage} stage").glob("*.safetensors")] == [
        "checkpoint-000000002.safetensors"
    ]


# Parameters


def test_a_preset_is_a_table_that_parameters_override() -> None:
    paper = build("partitioners", "iresnet")
    assert (paper.preset, paper.pretext.epochs, paper.pretext.batch_size) == (
        "paper-cifar",
        500,
        400,
    )
    assert (paper.pretext.learning_rate, paper.pretext.momentum) == (0.4, 0.9)
    assert (paper.pretext.weight_decay, paper.pretext.temperature) == (3e-5, 0.1)
    assert (paper.partition.epochs, paper.partition.batch_size) == (100, 128)
    assert (paper.partition.learning_rate, paper.partition.alpha) == (1e-4, 5.0)
    assert (paper.partition.num_neighbors, paper.partition.beta) == (20, 1e-3)
    assert (sum(paper.network.blocks), paper.network.width) == (20, 160)
    assert (paper.network.coefficient, paper.network.power_iterations) == (0.9, 5)
    stl = build("partitioners", {"name": "iresnet", "preset": "paper-stl"})
    assert stl.pretext.batch_size == 200
    tiny = build("partitioners", {"name": "iresnet", "preset": "tiny"})
    assert tiny.pretext.epochs is None
    mine = {"name": "iresnet", "preset": "tiny", "pretext": {"epochs": 3}, "network": {"width": 8}}
    own = build("partitioners", mine)
    assert (own.pretext.epochs, own.pretext.steps) == (3, None)
    assert own.pretext.batch_size == tiny.pretext.batch_size
    assert (own.network.width, own.network.blocks) == (8, tiny.network.blocks)


def test_epochs_are_passes_over_the_images(
    labelled: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: dict[str, int] = {}
    learn = iresnet.learn

    def counted(task: Any, *, steps: int, name: str, **more: Any) -> None:
        lengths[name] = steps
        learn(task, steps=2, name=name, **more)

    monkeypatch.setattr(iresnet, "learn", counted)
    tables = {"pretext": {"epochs": 3, "steps": None}, "partition": {"epochs": 1, "steps": None}}
    partitioner = quick(**tables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        partitioner.fit(labelled, seed=0)
    assert lengths == {"pretext stage": 3 * (200 // 24), "partition stage": 200 // 24}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_partitions": 0}, "num_partitions must be a whole number from 1"),
        ({"preset": "huge"}, "no preset of 'iresnet' is called 'huge'; there is 'paper-cifar'"),
        ({"deformations": "cats"}, "no kind of images is called 'cats'"),
        ({"strength": -1}, "strength must be at least 0"),
        ({"network": {"widht": 8}}, "the table 'network' of 'iresnet' has no setting 'widht'; did"),
        ({"network": {"blocks": []}}, r"network.blocks must be whole numbers from 0, .* not \[\]"),
        ({"network": {"blocks": [0, 0]}}, "network.blocks"),
        ({"network": {"blocks": [1, -1]}}, "network.blocks"),
        ({"network": {"blocks": 4}}, "'blocks' in the table 'network' .* must be a list"),
        ({"network": {"width": 0}}, "network.width must be a whole number from 1, not 0"),
        ({"network": {"coefficient": 1}}, "network.coefficient must be above 0 and below 1, not 1"),
        ({"network": {"power_iterations": 0}}, "network.power_iterations"),
        ({"network": {"negative_slope": 0.0}}, "network.negative_slope must be above 0"),
        ({"pretext": {"epochs": 1, "steps": 1}}, "pretext stage is either epochs or steps"),
        ({"pretext": {"steps": 0}}, "pretext.steps must be a whole number from 1, not 0"),
        ({"pretext": {"batch_size": 1}}, "pretext.batch_size must be a whole number from 2, not 1"),
        ({"pretext": {"learning_rate": 0}}, "pretext.learning_rate must be above 0, not 0"),
        ({"pretext": {"learning_rate": math.inf}}, "pretext.learning_rate"),
        ({"pretext": {"momentum": 1}}, "pretext.momentum must be at least 0 and below 1, not 1"),
        ({"pretext": {"weight_decay": -1}}, "pretext.weight_decay must be at least 0, not -1"),
        ({"pretext": {"temperature": 0}}, "pretext.temperature must be above 0"),
        ({"pretext": {"projection": [8]}}, "'projection' .* must be a list of 2"),
        ({"pretext": {"projection": [8, 0]}}, "each of pretext.projection must be a whole number"),
        ({"partition": {"alpha": math.nan}}, "partition.alpha must be at least 0, not nan"),
        ({"partition": {"beta": -1}}, "partition.beta must be at least 0"),
        ({"partition": {"num_neighbors": 0}}, "partition.num_neighbors"),
        ({"partition": {"third_term": "l2"}}, "no third term of Eq. 5 is called 'l2'; there is"),
        ({"mixed_precision": "yes"}, "mixed_precision = true or false"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ParameterError, UnknownNameError), match=message) as caught:
        build("partitioners", {"name": "iresnet", **parameters})
    assert "\n" not in str(caught.value)


# Images, and other architectures


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((1, 28, 28), 400, "halves the sides of images 4 times, so both must be multiples of 16"),
        ((3, 32, 40), 400, "these are 32×40; give images of another size"),
        ((3, 32, 32), 399, "needs at least 400 images to learn from, and there are 399"),
        ((2,), 400, "looks at images, and these are points"),
    ],
)
def test_images_that_it_cannot_learn_from_are_refused_before_anything_is_computed(
    shape: tuple[int, ...], count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pictures, "batch", lambda *_: pytest.fail("looked at images"))
    source = Pictures(torch.zeros(count, *shape))
    nested = {"name": "self-trained", "base": "iresnet"}
    for partitioner in ("iresnet", *([] if shape == (2,) else [nested])):
        with pytest.raises(ParameterError, match=message) as caught:
            fit_partitioner(partitioner, source)
        assert "\n" not in str(caught.value)


def test_a_generator_whose_images_do_not_fit_is_refused_before_its_spectrum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail = lambda *_, **__: pytest.fail("computed")  # noqa: E731
    monkeypatch.setattr("pgmkit.shattering.algorithm.compute_spectrum", fail)
    with pytest.raises(ParameterError, match="multiples of 16, and these are 8×8"):
        pgmkit.shatter(gated(), partitioner="iresnet", clusters=2, latents=600)
    with pytest.raises(
        ParameterError, match="needs at least 24 images to learn from, and there are 16"
    ):
        pgmkit.shatter(gated(), partitioner=QUICK, clusters=2, latents=20)


def test_images_of_another_shape_than_those_of_the_fit_are_refused(fitted: Any) -> None:
    for call in (fitted.logits, fitted.represent):
        with pytest.raises(ParameterError, match=r"fitted to images of \(3, 8, 8\), and these are"):
            call(torch.zeros(2, 1, 8, 8))


def test_parts_are_sought_after_the_pretext_alone() -> None:
    with pytest.raises(ParameterError, match="call prepare first"):
        quick().split(pictures(40)[0], seed=0)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"network": {"width": 8}}, r"'representation.trunk.layers.0.* is \(16, 3, 3, 3\), and in"),
        ({"network": {"blocks": [1, 2]}}, "is none, and in"),
        ({"network": {"blocks": [2]}}, "another architecture"),
        ({"network": {"pooled": False}}, r"'head.weight' is \(4, 12\), and in .* it is \(4, 192\)"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    fitted: Any, tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        load_state_of(quick(**tables), state_of(fitted))
    assert "another architecture" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_loaded_is_what_was_fitted_and_of_its_parameters(
    whole: Any, labelled: Pictures, tmp_path: Path
) -> None:
    whole.save_pretrained(tmp_path)
    loaded = load_partitioner(tmp_path)
    x = every(labelled)
    assert torch.equal(loaded.logits(x), whole.logits(x))
    assert torch.equal(loaded.partitioner.represent(x), whole.partitioner.represent(x))
    assert loaded.partitioner.get_params() == whole.partitioner.get_params()
    trunk = loaded.partitioner.network_.representation.trunk
    assert trunk.inverse(trunk(x))[1].max() < 1e-4
    config = tmp_path / "partitioner.json"
    told = json.loads(config.read_text())
    assert told["partitioner"]["params"]["network"]["width"] == 16
    assert told["partitioner"]["params"]["pretext"]["temperature"] == 0.1  # as the preset has it
    told["partitioner"]["params"]["network"]["width"] = 8
    config.write_text(json.dumps(told))
    with pytest.raises(LoadError, match="these are weights of another architecture") as caught:
        load_partitioner(tmp_path)
    assert "\n" not in str(caught.value)


# With the rest of the house


@quiet
def test_the_number_of_parts_can_be_chosen_by_its_projections() -> None:
    source, group = pictures(300)
    table = table_of(partition={"steps": 40})
    kept = build("partitioners", "most-stable", num_partitions=K, candidates=[table, "mixture"])
    kept.fit(source, seed=0)
    assert kept.findings()["chosen"] == "iresnet"
    assert kept.stability_[0] > 0.8
    assert agreement(assign(kept, every(source)), group) > 0.5


@quiet
def test_it_is_the_base_of_self_training() -> None:
    source, _ = pictures(60)
    few = {"steps": 2, "width": 4, "batch_size": 16, "rounds": 1, "deformations": "digits"}
    learned = build(
        "partitioners", {"name": "self-trained", "base": HASTY, **few}, num_partitions=K
    )
    learned.fit(source, seed=0)
    assert "base pretext loss" in learned.findings()
    assert learned.logits(every(source)).shape == (60, K)


@quiet
def test_it_shatters_a_generator() -> None:
    shattered = pgmkit.shatter(
        gated(), partitioner=HASTY, mapper="mixture", clusters=K, latents=150
    )
    assert sum(shattered.cluster_sizes) == 120
    z = shattered.generator.sample_latents(20, seed=1)
    logits = shattered.sampler.partitioner.logits(shattered.images(z))
    assert torch.equal(shattered.predict(z), logits.argmax(dim=1))
