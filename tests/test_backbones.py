"""Networks for training: the sizes of the papers, partitions, spectral norm and derivatives."""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pgmkit
from pgmkit.contracts import check_discriminator, network_of
from pgmkit.errors import ParameterError
from pgmkit.learning.clock import Clock
from pgmkit.learning.ema import Average
from pgmkit.loading.saving import save_generator
from pgmkit.plugins import build, installed
from pgmkit.tangents import TangentProgram
from pgmkit_plugins.backbones.biggan import BigGANDiscriminator, BigGANGenerator
from pgmkit_plugins.backbones.conditioning import ConditionalBatchNorm
from pgmkit_plugins.backbones.residual import DownBlock, NonLocalBlock, UpBlock, _mean_of_four
from pgmkit_plugins.backbones.spectral import (
    Spectral,
    SpectralConv2d,
    SpectralEmbedding,
    SpectralLinear,
    SpectralNetwork,
)

PAGE = (Path(__file__).parent.parent / "docs" / "backbones.md").read_text()
K = 3

SMALL: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "dcgan": ("dcgan", {"latent_dim": 4, "channels": [6, 5]}, (1, 16, 16)),
    "dcgan of 28 pixels": (
        "dcgan",
        {"latent_dim": 4, "channels": [6, 5], "first_side": 7},
        (1, 28, 28),
    ),
    "mlp-2d": ("mlp-2d", {"width": 24, "depth": 2}, (2,)),
    "sngan-32": ("sngan-32", {"latent_dim": 4, "width": 5}, (3, 32, 32)),
    "sngan-48": ("sngan-48", {"latent_dim": 4, "width": 1, "image_channels": 1}, (1, 48, 48)),
    "biggan-128": (
        "biggan-128",
        {"latent_dim": 6, "width": 2, "embedding_dim": 3, "image_channels": 1},
        (1, 128, 128),
    ),
}
"""A backbone, parameters that make it small, and the shape of its images."""


class Fixed(nn.Module):
    """A conditional generator of one partition."""

    def __init__(self, module: nn.Module, partition: int) -> None:
        super().__init__()
        self.module = module
        self.partition = partition

    def forward(self, z: Tensor) -> Tensor:
        y = torch.full((len(z),), self.partition, device=z.device)
        images: Tensor = self.module(z, y)
        return images


def small(name: str, num_partitions: int | None = None) -> tuple[nn.Module, nn.Module]:
    """Returns a small generator and discriminator, as they are before training."""
    backbone, arguments, _ = SMALL[name]
    built = build("backbones", backbone, **arguments)
    torch.manual_seed(0)
    return built.generator(num_partitions), built.discriminator(num_partitions)


@torch.no_grad()
def trained(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """Gives a network weights as training might, and the statistics of inputs; in eval mode."""
    torch.manual_seed(1)
    for name, weight in network.named_parameters():
        nn.init.normal_(weight, 1.0 if "norm" in name and weight.ndim == 1 else 0.0, 0.3)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval().requires_grad_(False)


def trained_generator(name: str, num_partitions: int | None = None) -> nn.Module:
    given = () if num_partitions is None else (torch.arange(5) % num_partitions,)
    return trained(small(name, num_partitions)[0], latents(name, 5), *given)


def partitions(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def latents(name: str, count: int = 3) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(count, SMALL[name][1].get("latent_dim", 2))


# The contract


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_a_backbone_fit_each_other(name: str) -> None:
    shape = SMALL[name][2]
    for given in ((), (partitions(0, 2, 1),)):
        generator, discriminator = small(name, K if given else None)
        images = generator(latents(name), *given)
        assert images.shape == (3, *shape)
        logits = discriminator(images, *given)
        assert logits.shape == (3,)
        logits.sum().backward()
        for network in (generator, discriminator):
            learnt = {n for n, p in network.named_parameters() if p.grad is not None}
            assert learnt == {n for n, _ in network.named_parameters()}
        assert discriminator.features(images).shape[0] == 3


@pytest.mark.parametrize("name", SMALL)
def test_the_contract_of_backbones_is_kept(name: str) -> None:
    backbone, arguments, _ = SMALL[name]
    built = build("backbones", backbone, **arguments)
    images = network_of(built, "generator").eval()(latents(name))
    check_discriminator(built, network_of(built, "discriminator").eval(), images.detach())


@pytest.mark.parametrize("name", SMALL)
def test_a_loader_takes_what_its_backbone_takes_and_the_partitions(name: str) -> None:
    backbone, arguments, _ = SMALL[name]
    for num_partitions in (None, K):
        weights = small(name, num_partitions)[0].state_dict()
        more = {} if num_partitions is None else {"num_partitions": num_partitions}
        loaded = build("generator-loaders", backbone, **arguments, **more)
        loaded.load_state_dict(weights)


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_first_weights(name: str) -> None:
    for num_partitions in (None, K):
        first, again = small(name, num_partitions), small(name, num_partitions)
        for one, other in zip(first, again, strict=True):
            assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    backbone, arguments, _ = SMALL[name]
    other = build("backbones", backbone, **arguments).generator()
    state = small(name)[0].state_dict()
    assert not all(map(torch.equal, other.state_dict().values(), state.values()))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "biggan-128"])
def test_weights_begin_small_and_partitions_alike(name: str) -> None:
    backbone, arguments, _ = SMALL[name]
    wide = {key: value for key, value in arguments.items() if key not in ("width", "channels")}
    generator = build("backbones", backbone, **wide).generator(K)
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 10_000:
            assert abs(float(module.weight.detach().std()) - 0.02) < 2e-3
        if isinstance(module, ConditionalBatchNorm):
            assert not module.gain.weight.any()
            assert not module.bias.weight.any()
    z, generator = latents(name), generator.eval()
    assert torch.equal(generator(z, partitions(0, 0, 0)), generator(z, partitions(0, 1, 2)))


def test_the_weights_of_biggan_begin_orthogonal() -> None:
    for network in small("biggan-128", K):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                matrix = module.weight.flatten(1)
                matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
                torch.testing.assert_close(
                    matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5
                )


@pytest.mark.parametrize("name", SMALL)
def test_each_partition_makes_other_images_of_one_latent(name: str) -> None:
    generator = trained_generator(name, K)
    z = latents(name, 1).expand(K, -1)
    images = generator(z, torch.arange(K))
    for one, other in pairwise([*images, images[0]]):
        assert (one - other).abs().max() > 1e-3
    torch.testing.assert_close(generator(z[:1], partitions(2)), images[2:])


@pytest.mark.parametrize("name", SMALL)
def test_a_conditional_discriminator_adds_the_projection_of_its_features(name: str) -> None:
    x, y = torch.randn(3, *SMALL[name][2]), partitions(2, 0, 2)
    discriminator = trained(small(name, K)[1], x, y)
    (embedding,) = [part for part in discriminator.modules() if isinstance(part, nn.Embedding)]
    h = discriminator.features(x).flatten(1)
    table = embedding(torch.arange(K))
    expected = torch.stack([(h[row] * table[part]).sum() for row, part in enumerate(y)])
    difference = discriminator(x, y) - discriminator(x, partitions(1, 1, 1))
    torch.testing.assert_close(difference, expected - h @ table[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_partitions_that_are_missing_needless_or_none_are_refused(name: str) -> None:
    z, x = latents(name), torch.randn(3, *SMALL[name][2])
    for plain, conditional, value in zip(small(name), small(name, K), (z, x), strict=True):
        with pytest.raises(ParameterError, match=r"3 partitions and was given none; give y \(B,\)"):
            conditional.eval()(value)
        for outside in (3, -1):
            with pytest.raises(ParameterError, match="numbered 0 to 2, and y holds"):
                conditional(value, partitions(0, 1, outside))
        with pytest.raises((ParameterError, TypeError), match=r"takes no y|takes 2 positional"):
            plain(value, partitions(0, 1, 2))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("number", [0, -1, True, 1.5])
def test_a_number_of_partitions_below_one_is_refused(name: str, number: Any) -> None:
    backbone, arguments, _ = SMALL[name]
    built = build("backbones", backbone, **arguments)
    for network in (built.generator, built.discriminator):
        with pytest.raises(ParameterError, match="num_partitions must be a whole number from 1"):
            network(number)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("dcgan", {"channels": [8, 0]}, r"channels\[1\] must be a whole number from 1, not 0"),
        ("dcgan", {"channels": []}, "channels is empty; it needs one number"),
        ("dcgan", {"first_side": 0}, "first_side must be"),
        ("mlp-2d", {"depth": 0}, "depth must be"),
        ("mlp-2d", {"width": -5}, "width must be"),
        ("sngan-32", {"width": 0}, "width must be"),
        ("sngan-48", {"width": 0}, "width must be"),
        ("sngan-48", {"image_channels": 0}, "image_channels must be"),
        ("biggan-128", {"width": 0}, "width must be"),
        ("biggan-128", {"embedding_dim": 0}, "embedding_dim must be"),
        ("biggan-128", {"latent_dim": 100}, "must be a multiple of 6, one chunk .*, not 100"),
    ],
)
def test_sizes_of_no_network_are_refused(
    name: str, arguments: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        build("backbones", name, **arguments).generator()


# The sizes of the papers


def outputs_of(network: nn.Module, kinds: tuple[type[nn.Module], ...], *given: Tensor) -> Any:
    """Returns the shapes, without the batch, of what layers of some kinds make, and the output."""
    shapes: list[tuple[int, ...]] = []
    handles = [
        module.register_forward_hook(lambda _, __, made: shapes.append(tuple(made.shape[1:])))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    output = network(*given)
    for handle in handles:
        handle.remove()
    return shapes, output


BLOCKS = (UpBlock, DownBlock, NonLocalBlock)


def test_sngan_32_is_table_6() -> None:
    built = build("backbones", "sngan-32")
    generator, discriminator = built.generator(K), built.discriminator(K)
    y = partitions(0, 2)
    assert generator.linear.weight.shape == (4 * 4 * 256, 128)
    shapes, images = outputs_of(generator, BLOCKS, torch.randn(2, 128), y)
    assert shapes == [(256, 8, 8), (256, 16, 16), (256, 32, 32)]
    assert images.shape == (2, 3, 32, 32)
    shapes, logits = outputs_of(discriminator, BLOCKS, images, y)
    assert shapes == [(128, 16, 16), (128, 8, 8), (128, 8, 8), (128, 8, 8)]
    assert logits.shape == (2,)
    assert discriminator.features(images).shape == (2, 128)


def test_sngan_48_is_table_7() -> None:
    built = build("backbones", "sngan-48")
    generator, discriminator = built.generator(K), built.discriminator(K)
    y = partitions(0, 2)
    assert generator.linear.weight.shape == (3 * 3 * 1024, 128)
    shapes, images = outputs_of(generator, BLOCKS, torch.randn(2, 128), y)
    assert shapes == [(512, 6, 6), (256, 12, 12), (128, 24, 24), (64, 48, 48)]
    assert images.shape == (2, 3, 48, 48)
    shapes, _ = outputs_of(discriminator, BLOCKS, images, y)
    assert shapes == [(64, 24, 24), (128, 12, 12), (256, 6, 6), (512, 3, 3), (1024, 3, 3)]
    assert discriminator.features(images).shape == (2, 1024)


def test_biggan_128_is_table_8() -> None:
    """Forward and back, in shapes without numbers."""
    with FakeTensorMode():
        assert_biggan_runs_both_ways(96)


def test_biggan_128_leaves_all_weights_a_gradient() -> None:
    for weight in assert_biggan_runs_both_ways(8):
        assert weight.grad is not None
        assert weight.grad.isfinite().all()


def assert_biggan_runs_both_ways(ch: int) -> list[nn.Parameter]:
    """Returns all weights."""
    generator = BigGANGenerator(num_partitions=K, width=ch)
    discriminator = BigGANDiscriminator(width=ch)
    assert generator.linear.weight.shape == (4 * 4 * 16 * ch, 20 + 128)
    shapes, images = outputs_of(generator, BLOCKS, torch.randn(2, 120), partitions(0, 2))
    assert shapes == [
        (16 * ch, 8, 8),
        (8 * ch, 16, 16),
        (4 * ch, 32, 32),
        (2 * ch, 64, 64),
        (2 * ch, 64, 64),
        (ch, 128, 128),
    ]
    assert images.shape == (2, 3, 128, 128)
    shapes, logits = outputs_of(discriminator, BLOCKS, images)
    assert shapes == [
        (2 * ch, 64, 64),
        (2 * ch, 64, 64),
        (4 * ch, 32, 32),
        (8 * ch, 16, 16),
        (16 * ch, 8, 8),
        (16 * ch, 4, 4),
        (16 * ch, 4, 4),
    ]
    logits.sum().backward()
    weights = [*generator.parameters(), *discriminator.parameters()]
    assert all(weight.grad is not None for weight in weights)
    return weights


def test_the_generator_of_biggan_has_the_published_parameters() -> None:
    """70,433,988 with 1,000 classes, but for an embedding that reaches the first layer, too."""
    with torch.device("meta"):
        generator = BigGANGenerator(num_partitions=1000)
    assert number_of_values(generator) == 70_433_988 + 128 * 4 * 4 * 16 * 96


def number_of_values(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


ROWS = {
    row[0]: tuple(int(number.replace(",", "")) for number in re.findall(r"[\d,]{4,}", row[1]))
    for row in re.findall(r"^\| `([\w-]+)` \|.*?\| ([\d, /]+ \| [\d, /]+) \|$", PAGE, re.MULTILINE)
}


@pytest.mark.parametrize("name", ["dcgan", "mlp-2d", "sngan-32", "sngan-48", "biggan-128"])
def test_the_numbers_of_parameters_are_documented(name: str) -> None:
    built = build("backbones", name)
    with torch.device("meta"):
        networks = [
            network(number)
            for network in (built.generator, built.discriminator)
            for number in (None, 200)
        ]
    assert ROWS[name] == tuple(map(number_of_values, networks))


def test_every_backbone_is_documented() -> None:
    assert ROWS.keys() == {component.name for component in installed().of_kind("backbones")}


# Spectral norm


class Layers(SpectralNetwork):
    """Spectral layers of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(SpectralConv2d(4, 4, 3, padding=1) for _ in range(3))
        self.linear = SpectralLinear(4, 6)
        self.table = SpectralEmbedding(5, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with self.power_iteration():
            for layer in self.convolutions:
                x = F.relu(layer(x))
            h: Tensor = self.linear(x.sum((2, 3))) * self.table(y)
            return h


def test_the_largest_singular_value_is_found_and_divided_by() -> None:
    torch.manual_seed(0)
    network = Layers()
    x, y = torch.randn(5, 4, 6, 6), torch.arange(5)
    for _ in range(200):
        network(x, y)
    for part in network.modules():
        if isinstance(part, Spectral):
            weight = part.weight.detach().flatten(1)
            expected = weight / torch.linalg.matrix_norm(weight, 2)
            torch.testing.assert_close(
                part.normalised().detach().flatten(1), expected, rtol=1e-4, atol=1e-5
            )


def test_one_step_is_taken_for_each_forward_pass_of_training_and_none_otherwise() -> None:
    torch.manual_seed(0)
    network = Layers()
    x, y = torch.randn(5, 4, 6, 6), torch.arange(5)
    layers = [part for part in network.modules() if isinstance(part, Spectral)]
    before = [layer.u.clone() for layer in layers]
    pointers = [layer.u.data_ptr() for layer in layers]
    network.eval()(x, y)
    assert all(map(torch.equal, before, [layer.u for layer in layers]))
    network.train()(x, y)
    for layer, u in zip(layers, before, strict=True):
        matrix = layer.weight.flatten(1)
        step = F.normalize(matrix @ F.normalize(matrix.T @ u, dim=0), dim=0)
        torch.testing.assert_close(layer.u, step, rtol=1e-5, atol=1e-6)
    # In place, as graphs of a device need it.
    assert pointers == [layer.u.data_ptr() for layer in layers]


class One(SpectralNetwork):
    """A single layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = SpectralLinear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        with self.power_iteration():
            h: Tensor = self.layer(x)
            return h


def test_gradients_take_the_singular_vectors_as_constants() -> None:
    torch.manual_seed(0)
    network, x = One().double(), torch.randn(5, 4, dtype=torch.float64)
    weight, u = network.layer.weight.detach().clone().requires_grad_(), network.layer.u.clone()
    network(x).square().sum().backward()
    v = F.normalize(weight.detach().T @ u, dim=0)
    u = F.normalize(weight.detach() @ v, dim=0)
    F.linear(x, weight / (u @ weight @ v), network.layer.bias).square().sum().backward()
    torch.testing.assert_close(network.layer.weight.grad, weight.grad)


def test_two_passes_may_come_before_one_backward() -> None:
    network = Layers()
    real, fake = torch.randn(2, 5, 4, 6, 6)
    y = torch.arange(5)
    (network(real, y) - network(fake, y)).sum().backward()
    assert all(part.weight.grad.any() for part in network.modules() if isinstance(part, Spectral))


def test_an_average_of_spectral_layers_is_normalised_by_its_own_weights() -> None:
    torch.manual_seed(0)
    network = One()
    average = Average(network, decay=0.9)
    clock = Clock(step=0, steps=50, epoch=0, seed=0, random=torch.Generator())
    for step in range(1, 50):
        with torch.no_grad():
            network.layer.weight.add_(torch.randn(6, 4), alpha=0.02)
        network(torch.randn(2, 4))
        average.update(network, replace(clock, step=step))
    weight = average.module.layer.normalised()
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.02)


def test_halves_on_cuda_are_those_on_the_cpu() -> None:
    x = torch.randn(3, 5, 8, 4, dtype=torch.float64, requires_grad=True)
    given = x.to(memory_format=torch.channels_last)
    found, expected = _mean_of_four(given), F.avg_pool2d(given, 2)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((weights * y).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_pass_leaves_nothing_behind_that_hinders_copies() -> None:
    network, x = One(), torch.randn(5, 4)
    h = network(x)
    assert copy.deepcopy(network).state_dict().keys() == {"layer.weight", "layer.bias", "layer.u"}
    h.sum().backward()
    with pytest.raises(RuntimeError):
        network(x[:, :3])
    assert torch.equal(copy.deepcopy(network).eval()(x), network.eval()(x))


# Derivatives and folders


@pytest.mark.parametrize("num_partitions", [None, K])
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_of_generators_need_no_more_than_rules(
    name: str, num_partitions: int | None
) -> None:
    module = trained_generator(name, num_partitions).double()
    if num_partitions is not None:
        module = Fixed(module, 1)
    z = latents(name, 1 if name == "biggan-128" else 2).double()
    program = TangentProgram(module)
    directions = torch.randn(2, z.shape[1], dtype=z.dtype)
    pushed = program.push_forward(z, directions)
    assert program.generic == ()
    assert not program.one_latent_at_a_time
    _, expected = torch.func.jvp(module, (z,), (directions[:1].expand_as(z),))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(pushed[:, 0], expected.flatten(1), rtol=1e-8, atol=1e-8)


class ByLatent(nn.Module):
    """A conditional generator whose latent decides the partition."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.module(z, (z[:, 0] > 0).long())
        return images


@pytest.mark.parametrize("name", ["dcgan", "mlp-2d", "sngan-32"])
def test_a_partition_that_follows_from_the_latent_is_a_constant(name: str) -> None:
    module = ByLatent(trained_generator(name, K).double())
    z = latents(name, 4).double()
    assert len((z[:, 0] > 0).unique()) == 2
    program = TangentProgram(module)
    expected = torch.stack([torch.func.jacfwd(module)(part[None]).flatten(0, -2).mT for part in z])
    torch.testing.assert_close(program.push_forward(z), expected.flatten(2))
    assert program.generic == ()
    assert not program.one_latent_at_a_time


@pytest.mark.parametrize("name", ["dcgan", "mlp-2d", "sngan-32"])
def test_a_conditional_generator_has_a_spectrum_for_each_partition(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.spectrum.differentiation._CALIBRATION_SECONDS", 0)
    shape = SMALL[name][2]
    module = trained_generator(name, K)
    spectra = []
    for partition in (0, 2):
        generator = pgmkit.Generator(
            Fixed(module, partition),
            latent=pgmkit.LatentSpec(SMALL[name][1].get("latent_dim", 2)),
            image=pgmkit.ImageSpec(shape),
        )
        spectrum = pgmkit.compute_spectrum(generator, latents=3)
        assert spectrum.provenance["jacobian"]["generic"] == []
        for z, values in zip(spectrum.latents, spectrum.singular_values, strict=True):
            jacobian = torch.func.jacfwd(
                lambda v, generator=generator: generator(v[None]).flatten()
            )(z)
            expected = torch.linalg.svdvals(jacobian)
            torch.testing.assert_close(values.float(), expected, rtol=1e-3, atol=1e-5)
        spectra.append(spectrum.singular_values)
    assert not torch.allclose(*spectra, rtol=1e-2)


def test_an_unconditional_generator_is_saved_and_loaded(tmp_path: Path) -> None:
    name = "sngan-32"
    backbone, arguments, shape = SMALL[name]
    generator = pgmkit.Generator(
        trained_generator(name),
        latent=pgmkit.LatentSpec(arguments["latent_dim"]),
        image=pgmkit.ImageSpec(shape),
        name="small",
        architecture=backbone,
        model_args=arguments,
    )
    z = generator.sample_latents(4, seed=0)
    images = generator.images(z)
    save_generator(tmp_path / "model", generator, card="", samples=images)
    loaded = pgmkit.load_generator(str(tmp_path / "model"))
    assert torch.equal(loaded.images(z), images)
    assert loaded.fingerprint() == generator.fingerprint()
