"""Programs of tangents against float64 reverse-mode autograd."""

import math
import threading
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pgmkit.tangents import TangentProgram, UnsupportedModuleError

LATENT = 4

Function = Callable[[Tensor], Any]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Around(nn.Module):
    """Applies a function to values of a shape that depend on the latents."""

    def __init__(self, shape: tuple[int, ...], function: Function, *, bent: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, math.prod(shape))
        self.shape = shape
        self.bent = bent
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(-1, *self.shape)
        y = self.function(torch.sin(2 * x) if self.bent else x)
        return y.flatten(1) if isinstance(y, Tensor) else torch.cat([p.flatten(1) for p in y], 1)


def random_statistics(module: nn.Module) -> nn.Module:
    """Gives norms statistics and scales that matter."""
    for part in module.modules():
        if isinstance(getattr(part, "running_var", None), Tensor):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.3, 2.0)
        if "Norm" in type(part).__name__ and isinstance(getattr(part, "weight", None), Tensor):
            nn.init.normal_(part.weight)
    return module


def reference(module: nn.Module, z: Tensor) -> Tensor:
    """Returns Jᵀ for each latent (B, M, N) by ordinary reverse mode; latents are independent."""
    rows = torch.autograd.functional.jacobian(lambda v: module(v).flatten(1).sum(0), z)
    return rows.permute(1, 2, 0)


def check(module: nn.Module, *, latents: int = 3, generic: tuple[str, ...] = ()) -> TangentProgram:
    """Compares Jacobians in float64 and returns the program."""
    module = random_statistics(module).double().eval().requires_grad_(False)
    z = torch.randn(latents, LATENT, dtype=torch.float64)
    program = TangentProgram(module)
    expected = reference(module, z)
    torch.testing.assert_close(program.push_forward(z), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(program.push_forward(z[:1]), expected[:1], rtol=1e-8, atol=1e-8)
    assert program.generic == generic
    return program


def check_function(shape: tuple[int, ...], function: Function) -> None:
    """A rule is right for tangents that all latents share, and for those of their own."""
    for bent in (True, False):
        program = check(Around(shape, function, bent=bent))
        assert not program.one_latent_at_a_time


LINEAR: dict[str, tuple[tuple[int, ...], Function]] = {
    "linear": ((6,), nn.Linear(6, 5)),
    "linear without bias on rows": ((3, 6), nn.Linear(6, 5, bias=False)),
    "F.linear by keywords": ((6,), lambda x: F.linear(x, weight=W[:5, :6], bias=W[0, :5])),
    "conv1d": ((2, 9), nn.Conv1d(2, 3, 3, stride=2, padding=1)),
    "conv2d": ((4, 6, 5), nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), groups=2)),
    "conv2d dilated": ((2, 6, 6), nn.Conv2d(2, 3, 3, dilation=2, bias=False)),
    "conv2d same": ((2, 4, 4), nn.Conv2d(2, 3, 3, padding="same")),
    "conv2d reflect": ((2, 4, 4), nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")),
    "conv2d circular": ((2, 4, 4), nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")),
    "conv2d replicate": ((2, 4, 4), nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")),
    "F.conv2d by keywords": (
        (2, 4, 4),
        lambda x: F.conv2d(x, K, stride=(1, 2), padding=1, bias=W[0, :3]),
    ),
    "conv transpose 1d": ((2, 4), nn.ConvTranspose1d(2, 3, 3, 2, output_padding=1)),
    "conv transpose 2d": ((4, 3, 3), nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2)),
    "conv transpose 2d dilated": (
        (2, 3, 3),
        nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1, dilation=2, bias=False),
    ),
    "F.conv_transpose2d": ((3, 3, 3), lambda x: F.conv_transpose2d(x, K, None, 2, padding=1)),
    "weight norm": ((6,), parametrizations.weight_norm(nn.Linear(6, 5))),
    "spectral norm": ((2, 4, 4), parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))),
    "matmul with a constant": ((3, 6), lambda x: x @ W[:6, :4]),
    "constant matmul": ((6, 3), lambda x: W[:4, :6] @ x),
    "matmul with a vector": ((3, 6), lambda x: x.matmul(W[0, :6])),
    "einsum with a constant": ((2, 3, 3), lambda x: torch.einsum("bchw,oc->bohw", x, W[:4, :2])),
    "nearest": ((2, 3, 3), nn.Upsample(scale_factor=2)),
    "bilinear": ((2, 3, 3), nn.Upsample(size=(5, 6), mode="bilinear", align_corners=True)),
    "bicubic": ((2, 3, 3), lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic")),
    "linear upsampling": ((2, 3), lambda x: F.interpolate(x, size=5, mode="linear")),
    "area": ((2, 4, 4), lambda x: F.interpolate(x, scale_factor=0.5, mode="area")),
    "pixel shuffle": ((4, 3, 2), nn.PixelShuffle(2)),
    "pixel unshuffle": ((2, 4, 4), lambda x: F.pixel_unshuffle(x, 2)),
    "unfold and fold": (
        (2, 4, 4),
        lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1),
    ),
    "average pooling": ((2, 4, 4), nn.AvgPool2d(3, 2, 1)),
    "average pooling 1d": ((2, 4), lambda x: F.avg_pool1d(x, kernel_size=2)),
    "adaptive average pooling": ((2, 5, 4), nn.AdaptiveAvgPool2d(3)),
    "zero padding": ((2, 3, 3), nn.ZeroPad2d((1, 2, 0, 1))),
    "constant padding": ((2, 3, 3), lambda x: F.pad(x, (1, 0, 1, 1, 1, 1), value=3.0)),
    "reflection padding": ((2, 3, 3), nn.ReflectionPad2d(2)),
    "replication padding": ((2, 3, 3), lambda x: F.pad(x, (1, 1, 0, 2), mode="replicate")),
    "circular padding": ((2, 3, 3), lambda x: F.pad(x, (1, 1, 0, 2), "circular")),
    "dropout": ((6,), nn.Dropout(0.5)),
    "feature dropout": ((2, 3, 3), lambda x: F.dropout2d(x, 0.5, training=False)),
}

ELEMENTWISE: dict[str, Function] = {
    "relu": nn.ReLU(),
    "relu in place": lambda x: F.relu(x * 1, inplace=True),
    "leaky relu": nn.LeakyReLU(0.2, inplace=True),
    "prelu": nn.PReLU(3),
    "rrelu": nn.RReLU().eval(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "threshold": nn.Threshold(0.1, 0.2),
    "elu": nn.ELU(inplace=True),
    "selu": nn.SELU(),
    "celu": nn.CELU(0.5),
    "silu": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": nn.Mish(),
    "tanh": nn.Tanh(),
    "tanh method": lambda x: x.tanh(),
    "sigmoid": nn.Sigmoid(),
    "torch.sigmoid": torch.sigmoid,
    "softplus": nn.Softplus(beta=2),
    "softsign": nn.Softsign(),
    "logsigmoid": nn.LogSigmoid(),
    "glu": lambda x: F.glu(x, dim=2),
    "number arithmetic": lambda x: 1 - (2 * x + 1) / 3 - x / 2 + (-x) + 0.5 * x,
    "constant arithmetic": lambda x: C * x + C - x / (C * C + 1) + (C - x) * (x - C),
    "broadcast constants": lambda x: x[:, :1] * C + x[:, :, :1] + C + 1 / (3 + x[..., :1] * C),
    "alpha": lambda x: torch.add(x, x.square(), alpha=0.5) - torch.sub(C, x, alpha=2),
    "products": lambda x: x * x[:, :1] / (2 + x[:, :, :1]),
    "powers": lambda x: x**2 + (x + 2) ** 0.5 + (2 + x).pow(-1) + 2**x,
    "power of itself": lambda x: (x + 2) ** x,
    "roots": lambda x: (x + 2).sqrt() * torch.rsqrt(x + 3) + x.square(),
    "exponentials": lambda x: x.exp() + (x + 2).log() + torch.log1p(x.abs()) + torch.expm1(x),
    "waves": lambda x: x.sin() * torch.cos(3 * x) + x.atan(),
    "absolute values": lambda x: abs(x) + x.abs(),
    "reciprocal": lambda x: 1 / (2 + x) + (2 + x).reciprocal(),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0) + torch.clamp_min(x, 0.1),
    "maxout": lambda x: torch.maximum(x[:, :, :2], x[:, :, 2:]) + x.max(dim=2, keepdim=True)[0],
    "maximum of tensors": lambda x: torch.max(x, C) + torch.min(x, -C),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x.exp()) + x.where(x < 0, C),
    "masked fill": lambda x: x.masked_fill(C > 0, 1.0) + x.masked_fill(x > 0.2, 0),
    "lerp and addcmul": lambda x: torch.lerp(x, C, 0.3) + torch.addcmul(x, C, x, value=2),
    "augmented assignment": lambda x: augmented(x),
    "types": lambda x: x.to(torch.float64).double().type_as(C).contiguous().clone(),
    "like another": lambda x: like_another(x),
    "rounded": lambda x: x.round() * x + torch.zeros_like(x) + x.detach() * x,
}

REDUCTIONS: dict[str, Function] = {
    "mean": lambda x: x.mean(dim=(1, 3)) + torch.mean(x, [1, 3]),
    "sum": lambda x: x.sum(-1) * x.sum(axis=2, keepdim=True)[..., 0],
    "var": lambda x: x.var(dim=[2, 3]) + torch.var(x, (2, 3), unbiased=False),
    "std and mean": lambda x: torch.std_mean(x, 1),
    "var and mean": lambda x: torch.var_mean(x, dim=(2, 3), keepdim=True),
    "amax": lambda x: x.amax((2, 3)) - x.amin(dim=(2, 3)),
    "max of a dimension": lambda x: x.max(1).values + torch.min(x, dim=1)[0],
    "norm": lambda x: x.norm(dim=1) + torch.linalg.vector_norm(x, dim=1),
    "norm to the three": lambda x: x.norm(3, 1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "cumsum": lambda x: x.cumsum(1),
    "softmax": nn.Softmax(dim=1),
    "softmax by function": lambda x: F.softmax(x, -1) + x.softmax(dim=2),
    "log softmax": lambda x: F.log_softmax(x, dim=1),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "batch norm": nn.BatchNorm2d(4),
    "batch norm without scale": nn.BatchNorm2d(4, affine=False),
    "instance norm": nn.InstanceNorm2d(4),
    "instance norm with scale": nn.InstanceNorm2d(4, affine=True, track_running_stats=False),
    "instance norm with statistics": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "group norm": nn.GroupNorm(2, 4),
    "group norm by function": lambda x: F.group_norm(x, num_groups=4, eps=1e-3),
    "layer norm": nn.LayerNorm((4, 4)),
    "layer norm of all": lambda x: F.layer_norm(x, [4, 4, 4]),
    "rms norm": nn.RMSNorm(4),
    "pixel norm": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8),
    "pixel norm otherwise": lambda x: x / ((x**2).mean(dim=1, keepdim=True) + 1e-8).sqrt(),
}

STRUCTURAL: dict[str, Function] = {
    "view": lambda x: x.view(x.size(0), -1).reshape(x.shape[0], 2, -1),
    "flatten": lambda x: torch.flatten(x, 1).unflatten(1, (4, -1)),
    "modules": nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (2, 8)), nn.Identity()),
    "squeeze": lambda x: x.unsqueeze(2).squeeze(2).unsqueeze(-1),
    "permute": lambda x: x.permute(0, 2, 3, 1).transpose(1, 2).movedim(-1, 1),
    "transposes": lambda x: x.mT.swapaxes(1, 3) * x[:, :, 0, :].mT[:, None],
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1) * x[:, 1:2].expand(x.shape[0], 3, 4, 4),
    "expand as": lambda x: x[:, :1].expand_as(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, dim=1),
    "chunk": lambda x: x.chunk(2, dim=1)[0] * torch.chunk(x, 2, 1)[1],
    "split": lambda x: [part.sin() for part in x.split([1, 3], dim=1)] + list(x.split(2, 2)),
    "unbind": lambda x: x.unbind(1)[0] * x.unbind(dim=2)[1],
    "index": lambda x: x[:, 0] * x[..., 1] + x[:, 1:3, ::2, 0].sum((1, 2))[:, None, None],
    "new axis": lambda x: x[:, None] * x[:, :, None, :],
    "index by numbers": lambda x: x[:, [2, 0]] + x[:, :2].index_select(1, torch.tensor([1, 0])),
    "select and narrow": lambda x: x.select(1, 0) + x.narrow(2, 1, 1).squeeze(2),
    "cat": lambda x: torch.cat([x, x.square(), C.expand(x.shape[0], -1, -1)[:, None]], dim=1),
    "cat with shared tangents": lambda x: torch.cat((x, x.sin()), -1),
    "stack": lambda x: torch.stack([x, 2 * x.sin()], dim=1),
    "flip and roll": lambda x: x.flip(1, 2) + x.flip([-1]) + x.roll(1, 2) + x.roll(1, dims=-1),
    "set item": lambda x: with_items(x),
    "filled buffer": lambda x: filled(x),
    "residual": lambda x: x + F.relu(x) + x,
    "shape arithmetic": lambda x: (
        x.reshape(len(x), x.shape[1] * x.size(2), -1) / x.shape[-1] ** 0.5
    ),
    "used again after a change": lambda x: used_again(x),
}

PRODUCTS: dict[str, tuple[tuple[int, ...], Function]] = {
    "matmul": ((3, 4), lambda x: x @ x.transpose(1, 2)),
    "bmm": ((3, 4), lambda x: torch.bmm(x, x.mT)),
    "matmul with heads": ((2, 3, 4), lambda x: torch.matmul(x, x.transpose(-1, -2)) @ x),
    "baddbmm": ((3, 3), lambda x: torch.baddbmm(x, x, x.square(), beta=2, alpha=0.5)),
    "einsum": ((2, 3, 4), lambda x: torch.einsum("bhid,bhjd->bhij", x, x.sin())),
    "einsum over style": ((3, 4), lambda x: torch.einsum("b i d , d e , b j e -> b i j", x, S, x)),
    "attention": ((2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x.sin(), 2 * x)),
    "causal attention": (
        (2, 3, 4),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    ),
    "masked attention": (
        (3, 4),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=S[:3, :3], scale=0.3),
    ),
}

W = torch.randn(8, 8, dtype=torch.float64)
S = torch.randn(4, 4, dtype=torch.float64)
C = torch.randn(4, 4, dtype=torch.float64)
K = torch.randn(3, 2, 3, 3, dtype=torch.float64)


def augmented(x: Tensor) -> Tensor:
    y = x.clone()
    y += 1
    y *= x
    y -= 2 * x
    y /= 3
    y.add_(x).mul_(2).relu_()
    return y * x


def used_again(x: Tensor) -> Tensor:
    y = x.sin()
    z = y.relu_()  # is y
    return y.view(len(x), -1) + z.tanh().view(len(x), -1) + x.view(len(x), -1)


def like_another(x: Tensor) -> Tensor:
    """Takes type, device and shape from values whose tangents must not come along."""
    signs = (x > 0).to(x) + (x > 0.2).type_as(x)
    rows = torch.ones(len(x), 1, 4, 4, dtype=x.dtype)
    plain = torch.ones(x.numel(), dtype=x.dtype)
    return x.sin() + signs + rows.expand_as(x) + plain.view_as(x) * plain.reshape_as(x)


def with_items(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 1.0
    y[:, 1] += x[:, 2]
    y[..., 3] = x[..., 0].sin()
    return y


def filled(x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 2, *x.shape[1:], dtype=x.dtype)
    y[:, 0] = x
    y[:, 1, :2] = x[:, 2:]
    return y


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_have_their_rule(name: str) -> None:
    check_function(*LINEAR[name])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_single_values_have_their_rule(name: str) -> None:
    function = ELEMENTWISE[name]
    if isinstance(function, nn.Module):
        function.double()
    check_function((3, 4, 4), function)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_and_norms_have_their_rule(name: str) -> None:
    check_function((4, 4, 4), REDUCTIONS[name])


POOLS: dict[str, tuple[tuple[int, ...], Function]] = {
    "max pool 1d": ((2, 6), lambda x: F.max_pool1d(x, 2)),
    "max pool 2d": ((2, 4, 6), nn.MaxPool2d((2, 3))),
    "max pool 2d overlapping": ((2, 4, 4), nn.MaxPool2d(2, stride=1, padding=1)),
    "max pool 2d dilated": ((2, 5, 5), nn.MaxPool2d(2, 2, dilation=2, ceil_mode=True)),
    "max pool 2d behind a ReLU": ((2, 4, 4), lambda x: F.max_pool2d(F.relu(x - 0.1), 2)),
    "max pool 3d": ((2, 4, 4, 4), nn.MaxPool3d(2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pools_have_their_rule(name: str) -> None:
    check_function(*POOLS[name])


@pytest.mark.parametrize("name", STRUCTURAL)
def test_what_moves_values_has_its_rule(name: str) -> None:
    check_function((4, 4, 4), STRUCTURAL[name])


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_activations_have_their_rule(name: str) -> None:
    check_function(*PRODUCTS[name])


class ModulatedConvolution(nn.Module):
    """A convolution of StyleGAN2, whose weights depend on the latents."""

    def __init__(self, channels: int, out: int, *, fused: bool, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, channels, 3, 3))
        self.affine = nn.Linear(8, channels)
        self.noise = nn.Parameter(torch.randn(out, 1, 1))
        self.fused = fused
        self.up = up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        style = self.affine(w)
        weight = self.weight[None] * style.reshape(batch, 1, -1, 1, 1)
        scale = (weight.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt()
        if self.fused:
            weight = weight * scale.reshape(batch, -1, 1, 1, 1)
            x = x.reshape(1, batch * channels, height, width)
            if self.up:
                weight = weight.transpose(1, 2).reshape(batch * channels, -1, 3, 3)
                x = F.conv_transpose2d(x, weight, stride=2, padding=1, groups=batch)
            else:
                weight = weight.reshape(-1, channels, 3, 3)
                x = F.conv2d(x, weight, padding=1, groups=batch)
            x = x.reshape(batch, -1, *x.shape[2:])
        else:
            x = x * style.reshape(batch, -1, 1, 1)
            if self.up:
                x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2, padding=1)
            else:
                x = F.conv2d(x, self.weight, padding=1)
            x = x * scale[:, :, None, None]
        return F.leaky_relu(x.add_(self.noise), 0.2) * math.sqrt(2)


class StyleGenerator(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(LATENT, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8))
        self.constant = nn.Parameter(torch.randn(1, 4, 3, 3))
        self.first = ModulatedConvolution(4, 4, fused=fused)
        self.second = ModulatedConvolution(4, 3, fused=fused, up=True)
        self.to_image = nn.Conv2d(4, 2, 1)
        self.register_buffer("blur", torch.tensor([[1.0, 2.0], [2.0, 1.0]])[None, None] / 6)

    def forward(self, z: Tensor) -> Tensor:
        z = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        ws = self.mapping(z).unsqueeze(1).repeat(1, 2, 1)
        x = self.constant.repeat(len(z), 1, 1, 1)
        x = self.first(x, ws[:, 0])
        image = F.interpolate(self.to_image(x), size=5, mode="bilinear", align_corners=False)
        x = self.second(x, ws[:, 1])
        x = F.conv2d(F.pad(x, [1, 0, 1, 0]), self.blur.repeat(3, 1, 1, 1), groups=3)
        return image + x[:, :2] * x[:, 2:]


class SelfAttention(nn.Module):
    """The block of SAGAN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            parametrizations.spectral_norm(nn.Conv2d(channels, channels, 1)) for _ in range(3)
        )
        self.gamma = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.size()
        query = self.query(x).view(batch, -1, width * height).permute(0, 2, 1)
        weights = torch.softmax(torch.bmm(query, self.key(x).view(batch, -1, width * height)), -1)
        value = self.value(x).view(batch, -1, width * height)
        out = torch.bmm(value, weights.permute(0, 2, 1)).view(batch, channels, height, width)
        return self.gamma * out + x


class ResidualBlock(nn.Module):
    """The upsampling block of SNGAN."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(out)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)]
        )
        self.shortcut = nn.Conv2d(channels, out, 1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norms[0](x))
        h = self.convolutions[0](F.interpolate(h, scale_factor=2))
        h = self.convolutions[1](self.activation(self.norms[1](h)))
        h += self.shortcut(F.interpolate(x, scale_factor=2))
        return h


def residual_generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(LATENT, 24),
        nn.Unflatten(1, (6, 2, 2)),
        ResidualBlock(6, 4),
        SelfAttention(4),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.Tanh(),
    )


class TransformerBlock(nn.Module):
    """The block of timm's vision transformers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.projection = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads = heads
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.scale = nn.Parameter(torch.rand(dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        assert dim % self.heads == 0, f"{dim} channels for {self.heads} heads"
        qkv = self.qkv(self.first(x)).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.scale * self.projection(attended.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.mlp(self.second(x))


class TransformerGenerator(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.tokens = nn.Linear(LATENT, 3 * 8)
        self.position = nn.Parameter(torch.randn(1, 3, 8))
        self.extra = nn.Parameter(torch.randn(1, 1, 8))
        self.block = block

    def forward(self, z: Tensor) -> Tensor:
        x = self.tokens(z).view(-1, 3, 8) + self.position
        x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], dim=1)
        return self.block(x)[:, 1:]


def vae_decoder() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)),
        nn.ConvTranspose2d(LATENT, 8, 3),
        nn.GroupNorm(2, 8),
        nn.SiLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        parametrizations.weight_norm(nn.Conv2d(8, 4, 3, padding=1)),
        nn.InstanceNorm2d(4, affine=True),
        nn.ELU(),
        nn.Conv2d(4, 12, 1),
        nn.PixelShuffle(2),
        nn.Sigmoid(),
    )


@pytest.mark.parametrize(
    "build",
    [
        residual_generator,
        vae_decoder,
        lambda: StyleGenerator(fused=False),
        lambda: TransformerGenerator(nn.LayerNorm(8)),
    ],
    ids=["sngan", "vae", "stylegan2", "tokens"],
)
def test_generators_are_pushed_through_for_several_latents_at_once(
    build: Callable[[], nn.Module],
) -> None:
    assert not check(build()).one_latent_at_a_time


@pytest.mark.parametrize(
    "build",
    [
        lambda: StyleGenerator(fused=True),
        lambda: TransformerGenerator(TransformerBlock(8, 2)),
        lambda: TransformerGenerator(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        ),
    ],
    ids=["stylegan2 fused", "vision transformer", "torch transformer"],
)
def test_where_the_latents_move_they_are_taken_one_at_a_time(
    build: Callable[[], nn.Module],
) -> None:
    assert check(build()).one_latent_at_a_time


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        (x,) = context.saved_tensors
        return 3 * x**2 * gradient


class _OnceDifferentiable(_Cube):
    """Its backward cannot be differentiated, so that rows of the Jacobian are the only way."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        (x,) = context.saved_tensors
        return 3 * x**2 * gradient


class _SetUp(torch.autograd.Function):
    """The newer style."""

    @staticmethod
    def forward(x: Tensor, power: int) -> Tensor:
        return x**power

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        x, context.power = inputs
        context.save_for_backward(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        (x,) = context.saved_tensors
        return context.power * x ** (context.power - 1) * gradient, None


class _Straight(torch.autograd.Function):
    """Has another derivative than what it computes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return gradient


@pytest.mark.parametrize("custom", [_Cube, _OnceDifferentiable, _Straight])
def test_custom_functions_keep_their_own_derivative(custom: Any) -> None:
    for bent in (True, False):
        network = nn.Sequential(
            Around((2, 3), lambda x: custom.apply(3 * x), bent=bent), nn.Linear(6, 5), nn.Tanh()
        )
        program = check(network, generic=(f"custom function {custom.__name__}",))
        assert not program.one_latent_at_a_time


def test_custom_functions_are_seen_however_they_are_called() -> None:
    stored, name = _Cube.apply, ("custom function _Cube",)
    check(Around((3,), lambda x: x.sin() + stored(x)), generic=name)
    check(Around((3,), lambda x: _SetUp.apply(x, 3)), generic=("custom function _SetUp",))
    assert "noted" not in repr(_Cube.forward)


WITHOUT_A_RULE: dict[str, tuple[tuple[int, ...], Function]] = {
    "max_pool2d_with_indices": ((2, 4, 4), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "adaptive_max_pool1d": ((2, 6), nn.AdaptiveMaxPool1d(4)),
    "adaptive_max_pool2d": ((2, 5, 4), nn.AdaptiveMaxPool2d(2)),
    "adaptive_max_pool3d": ((2, 3, 3, 3), nn.AdaptiveMaxPool3d(2)),
    "conv3d": ((2, 3, 3, 3), nn.Conv3d(2, 2, 2)),
    "conv_transpose3d": ((2, 2, 2, 2), nn.ConvTranspose3d(2, 2, 2, 2)),
    "sort": ((4, 4), lambda x: torch.sort(x, dim=2)[0]),
    "topk": ((4, 4), lambda x: x.topk(2, dim=1).values),
    "kthvalue": ((4, 4), lambda x: x.kthvalue(2, dim=1).values),
    "cummax": ((4, 4), lambda x: x.cummax(1).values),
    "cummin": ((4, 4), lambda x: x.cummin(1).values),
    "mode": ((4, 4), lambda x: x.mode(2).values),
    "median": ((4, 4), lambda x: x.median(dim=2).values),
    "prod": ((4, 4), lambda x: (x + 2).prod(2)),
    "kron": ((3, 4), lambda x: torch.kron(x, S[:1])),
    "cdist": ((3, 4), lambda x: torch.cdist(x, x + 1)),
    "digamma": ((3, 4), lambda x: (x + 2).digamma()),
}


@pytest.mark.parametrize("name", WITHOUT_A_RULE)
def test_functions_without_a_rule_are_differentiated_on_their_own(name: str) -> None:
    shape, function = WITHOUT_A_RULE[name]
    for bent in (True, False):
        program = check(Around(shape, function, bent=bent), generic=(name,))
        assert not program.one_latent_at_a_time


def test_products_of_vectors_without_a_rule_are_differentiated_for_each_latent() -> None:
    def products(x: Tensor) -> Tensor:
        a, b = x.sin(), x.square()
        outer = torch.stack([torch.outer(u, v).flatten() for u, v in zip(a, b, strict=True)])
        dots = [torch.dot(u, v) + torch.vdot(v, u) + u.inner(v) for u, v in zip(a, b, strict=True)]
        return torch.cat([outer, torch.stack(dots)[:, None]], 1)

    program = check(Around((3,), products), generic=("dot", "inner", "outer", "vdot"))
    assert program.one_latent_at_a_time


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning"
)
def test_a_scripted_part_is_one_call() -> None:
    part = torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh()).double())
    check(nn.Sequential(Around((6,), torch.sin), part), generic=("scripted module",))


class Branching(nn.Module):
    """Decides by values what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(LATENT, LATENT) for _ in range(3)])

    def forward(self, z: Tensor) -> Tensor:
        if z.sum() > 0:
            z = self.layers[0](z).tanh()
        for _ in range(int(z.abs().max().item() * 2)):
            z = self.layers[1](z).sin()
        return self.layers[2](z)


def test_control_flow_may_depend_on_a_latent() -> None:
    network = Branching().double().requires_grad_(False)
    program = TangentProgram(network)
    for z in torch.randn(8, 1, LATENT, dtype=torch.float64):
        torch.testing.assert_close(program.push_forward(z), reference(network, z))


def test_control_flow_that_no_latent_changes_is_harmless() -> None:
    def guarded(x: Tensor) -> Tensor:
        return x.clamp(-9, 9) if x.isfinite().all() else x / 0

    assert check(Around((3,), guarded)).one_latent_at_a_time


MIXING: dict[str, Function] = {
    "minibatch statistics": lambda x: torch.cat(
        [x, x.std(0).mean().expand(len(x), 1, *x.shape[2:])], 1
    ),
    "the mean of a batch": lambda x: x - x.mean(dim=0, keepdim=True),
    "the mean of all": lambda x: x - x.mean(),
    "softmax over latents": lambda x: x.softmax(0),
    "attention between latents": lambda x: (
        (x.flatten(1) @ x.flatten(1).T / 99).softmax(-1) @ x.flatten(1)
    ),
    "einsum over latents": lambda x: torch.einsum("bchw,ncij->bhw", x, x),
    "flipped latents": lambda x: x + x.flip(0),
    "rolled latents": lambda x: x.roll(1, 0),
    "cumulated latents": lambda x: x.cumsum(0),
    "the first latent": lambda x: x + x[:1],
    "groups of latents": lambda x: x.view(-1, 2, *x.shape[1:]).mean(1).repeat(2, 1, 1, 1),
    "a reshape across latents": lambda x: x.permute(1, 0, 2, 3).reshape(x.shape),
    "batch norm in training mode": lambda x: F.batch_norm(x, None, None, training=True),
    "batch norm without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "an unknown function of a batch": lambda x: torch.cdist(x.flatten(1), x.flatten(1).sin()),
    "noise": lambda x: x + torch.randn_like(x),
    "control flow on a batch": lambda x: x if x[0, 0, 0, 0] > x[1:].sum() + 50 else x * x.sum(),
}


@pytest.mark.parametrize("name", MIXING)
def test_modules_that_mix_latents_are_refused(name: str) -> None:
    network = Around((4, 4, 4), MIXING[name]).double().eval()
    with pytest.raises(UnsupportedModuleError):
        TangentProgram(network).push_forward(torch.randn(4, LATENT, dtype=torch.float64))


def written_through_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0].relu_()
    return y


UNSUPPORTED: dict[str, tuple[Function, str]] = {
    "written through a view": (written_through_a_view, "by a view"),
    "constant": (lambda x: torch.ones(len(x), 2), "does not depend"),
    "detached": (lambda x: x.detach() * 2, "no derivative"),
    "complex": (lambda x: torch.fft.fft(x).abs(), "complex"),
    "dropout in training": (lambda x: F.dropout(x, 0.5, training=True), "training|random"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_followed_is_refused_with_a_reason(name: str) -> None:
    function, reason = UNSUPPORTED[name]
    network = Around((4,), function).double().eval()
    with pytest.raises(UnsupportedModuleError, match=reason):
        TangentProgram(network).push_forward(torch.randn(2, LATENT, dtype=torch.float64))


def test_a_module_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return z, 2 * z

    with pytest.raises(UnsupportedModuleError, match="returns a tuple, not a tensor"):
        TangentProgram(Pair()).push_forward(torch.randn(2, LATENT))


def test_no_derivative_goes_through_no_grad() -> None:
    def partly(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.square().sum(1, keepdim=True)
        return x * scale

    check(Around((4,), partly))


def test_a_convolution_with_weights_that_follow_the_latents_is_made_anew_for_each() -> None:
    def dynamic(x: Tensor) -> Tensor:
        weight = x.detach()[:1, :2, :3].reshape(2, 1, 3)
        return F.conv1d(x[:, 2:], weight)

    network = Around((3, 5), dynamic).double().requires_grad_(False)
    program = TangentProgram(network)
    for z in torch.randn(3, 1, LATENT, dtype=torch.float64):
        torch.testing.assert_close(program.push_forward(z), reference(network, z))


def test_any_directions_can_be_pushed() -> None:
    network = residual_generator().double().eval().requires_grad_(False)
    z, directions = torch.randn(2, LATENT).double(), torch.randn(7, LATENT).double()
    program = TangentProgram(network)
    expected = directions @ program.push_forward(z)
    torch.testing.assert_close(program.push_forward(z, directions), expected)


class NormsBehindConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=affine) for affine in (True, False))
        self.transposed = nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False)
        self.convolution = nn.Conv2d(6, 6, 2, groups=3)
        self.grid = nn.Linear(LATENT, 16)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norms[0](self.transposed(self.grid(z).view(-1, 4, 2, 2)))
        y = self.convolution(x.relu())
        return self.norms[1](self.convolution(x.relu())) + self.norms[1](y) * y


def test_batch_norms_are_folded_where_nothing_else_uses_the_convolution() -> None:
    program = check(NormsBehindConvolutions())
    names = [call.name for tape in program._tapes.values() for call in tape.calls]
    assert names.count("batch_norm") == len(program._tapes)


@pytest.mark.parametrize(
    "build",
    [residual_generator, vae_decoder, lambda: StyleGenerator(fused=True)],
    ids=["sngan", "vae", "stylegan2 fused"],
)
def test_singular_values_in_float32_agree_with_float64(build: Callable[[], nn.Module]) -> None:
    network = random_statistics(build()).eval().requires_grad_(False)
    z = torch.randn(3, LATENT)
    values = torch.linalg.svdvals(TangentProgram(network).push_forward(z).double())
    expected = torch.linalg.svdvals(reference(network.double(), z.double()))
    above_noise = expected > 1e-5 * expected[:, :1]
    torch.testing.assert_close(values[above_noise], expected[above_noise], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "build",
    [residual_generator, vae_decoder, lambda: StyleGenerator(fused=True), lambda: custom()],
    ids=["sngan", "vae", "stylegan2 fused", "custom function"],
)
def test_bfloat16_tangents_are_near_float32_ones(build: Callable[[], nn.Module]) -> None:
    network = random_statistics(build()).eval().requires_grad_(False)
    z = torch.randn(3, LATENT)
    expected = TangentProgram(network).push_forward(z)
    actual = TangentProgram(network, tangent_dtype=torch.bfloat16).push_forward(z)
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.04 * expected.norm()
    assert not torch.equal(actual.float(), expected)


def custom() -> nn.Module:
    return nn.Sequential(Around((8,), _Cube.apply), nn.Linear(8, 8))


def test_a_module_in_lower_precision_is_followed_through_its_changes_of_type() -> None:
    network = Around((4, 4), lambda x: (x.float() * 2).softmax(-1).to(x.dtype)).bfloat16()
    z = torch.randn(2, LATENT).bfloat16()
    jacobian = TangentProgram(network.requires_grad_(False)).push_forward(z)
    expected = TangentProgram(network.double()).push_forward(z.double())
    assert jacobian.dtype == torch.bfloat16
    assert (jacobian - expected).norm() < 0.05 * expected.norm()


def test_what_a_module_does_may_depend_on_the_size_of_the_batch() -> None:
    class Halving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 3:
                return self.convolution(x.unflatten(2, (2, 3)).flatten(2))
            return torch.cat([self.convolution(part) for part in x.split(2)])

    network = Around((1, 6), torch.sin).double()
    convolution = Halving().double()
    module = nn.Sequential(network, nn.Unflatten(1, (1, 6)), convolution).requires_grad_(False)
    program = TangentProgram(module)
    z = torch.randn(4, LATENT, dtype=torch.float64)
    for part in (z[:1], z, z[:2]):
        torch.testing.assert_close(program.push_forward(part), reference(module, part))


def test_threads_do_not_disturb_each_other() -> None:
    networks = [
        residual_generator(),
        StyleGenerator(fused=True),
        custom(),
        StyleGenerator(fused=False),
    ]
    z = torch.randn(2, LATENT)
    expected, results = [], {}
    for network in networks:
        network.eval().requires_grad_(False)
        expected.append(TangentProgram(network).push_forward(z))
    programs = [TangentProgram(network) for network in networks]

    def push(worker: int) -> None:
        for turn in range(3):
            for index in range(len(programs)):
                place = (index + worker) % len(programs)
                results[worker, turn, place] = programs[place].push_forward(z)

    threads = [threading.Thread(target=push, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 48
    for (_, _, place), result in results.items():
        torch.testing.assert_close(result, expected[place])


def test_a_push_changes_neither_latents_nor_directions_nor_the_module() -> None:
    network = random_statistics(residual_generator()).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    z, directions = torch.randn(2, LATENT), torch.randn(3, LATENT)
    copies = z.clone(), directions.clone()
    program = TangentProgram(nn.Sequential(nn.ReLU(inplace=True), network))
    first = program.push_forward(z, directions)
    assert torch.equal(program.push_forward(z, directions), first)
    assert torch.equal(z, copies[0])
    assert torch.equal(directions, copies[1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_tangents_stay_shared_by_all_latents_as_long_as_they_are_the_same() -> None:
    shapes = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    network = nn.Sequential(
        nn.Linear(LATENT, 18),
        nn.Unflatten(1, (2, 3, 3)),
        nn.Conv2d(2, 2, 3),
        nn.Flatten(),
        Watched(),
    )
    program = TangentProgram(network.requires_grad_(False))
    jacobian = program.push_forward(torch.randn(5, LATENT))
    shapes.append(jacobian.shape)
    assert shapes == [(5, LATENT, 2)]
    assert jacobian.stride(0) == 0


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Random stacks of layers on small feature maps."""
    channels = draw(st.sampled_from([2, 4]))
    layers: list[nn.Module] = [nn.Linear(LATENT, 9 * channels), nn.Unflatten(1, (channels, 3, 3))]
    size = 3
    for kind in draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=6)):
        layer = LAYERS[kind](draw, channels)
        with torch.no_grad():
            try:
                shape = layer.eval()(torch.zeros(2, channels, size, size)).shape
            except (RuntimeError, ValueError):  # such as a kernel larger than the image
                continue
        if shape[2] != shape[3] or not 2 <= shape[2] <= 8:
            continue
        layers.append(layer)
        channels, size = shape[1], shape[2]
    return nn.Sequential(*layers)


def _convolution(draw: st.DrawFn, channels: int) -> nn.Module:
    return nn.Conv2d(
        channels,
        draw(st.sampled_from([2, 4])),
        draw(st.integers(1, 4)),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


def _transposed(draw: st.DrawFn, channels: int) -> nn.Module:
    stride = draw(st.integers(1, 2))
    return nn.ConvTranspose2d(
        channels,
        draw(st.sampled_from([2, 4])),
        draw(st.integers(1, 4)),
        stride=stride,
        padding=draw(st.integers(0, 1)),
        output_padding=draw(st.integers(0, stride - 1)),
        groups=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    )


def _norm(draw: st.DrawFn, channels: int) -> nn.Module:
    affine = draw(st.booleans())
    norms = [
        nn.BatchNorm2d(channels, affine=affine),
        nn.InstanceNorm2d(channels, affine=affine),
        nn.GroupNorm(2, channels, affine=affine),
    ]
    return draw(st.sampled_from(norms))


def _activation(draw: st.DrawFn, channels: int) -> nn.Module:
    del channels
    inplace = draw(st.booleans())
    kinds = [nn.ReLU, nn.ELU, nn.SiLU, nn.Mish, nn.LeakyReLU]
    return draw(st.sampled_from([*(kind(inplace=inplace) for kind in kinds), nn.Tanh(), nn.GELU()]))


def _resampling(draw: st.DrawFn, channels: int) -> nn.Module:
    del channels
    kinds = [nn.Upsample(scale_factor=2), nn.Upsample(size=5, mode="bilinear"), nn.AvgPool2d(2, 1)]
    return draw(st.sampled_from([*kinds, nn.ReflectionPad2d(1)]))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y += x
        return y


LAYERS: dict[str, Callable[[st.DrawFn, int], nn.Module]] = {
    "convolution": _convolution,
    "transposed": _transposed,
    "norm": _norm,
    "activation": _activation,
    "resampling": _resampling,
    "residual": lambda draw, channels: _Residual(channels),
    "attention": lambda draw, channels: SelfAttention(channels),
}


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True, database=None)
@hypothesis.given(networks())
def test_any_stack_of_layers_agrees_with_autograd(network: nn.Module) -> None:
    torch.manual_seed(0)
    assert not check(network, latents=2).one_latent_at_a_time
