"""A generator that is spelt out layer by layer, so that a config file holds the whole network."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pgmkit.errors import ParameterError

_MOST_LAYERS = 1000
_MOST_NESTING = 3
_LARGEST_SIZE = 2**24
_LARGEST_KERNEL = 64
_LARGEST_SIDE = 4096
_MOST_VALUES = 2**26
_MOST_FEATURES = 2**22
_MOST_WORK = 2**40

Check = Callable[[Any], bool]


class LayeredGenerator(nn.Module):
    """Runs a list of layers, each given by a record of plain values.

    A record is an object with "op" and the numbers of that layer. Weights carry the names
    `layers.0.weight`, and in a residual block `layers.3.body.1.weight` or
    `layers.3.shortcut.0.weight`.

    | op | fields (= default) |
    |---|---|
    | `linear` | inputs, outputs, bias = true, weight = null, weight_dim = null |
    | `conv` | as linear, and kernel, stride = 1, padding = 0 |
    | `conv-transpose` | as conv, and output_padding = 0 |
    | `batch-norm` | features, eps = 1e-5, affine = true, statistics = true |
    | `instance-norm` | features, eps = 1e-5, affine = true |
    | `group-norm` | features, groups, eps = 1e-5 |
    | `layer-norm` | shape, eps = 1e-5 |
    | `reshape` | shape, without the batch |
    | `upsample` | factor = 2, mode = "nearest" or "bilinear", align_corners = false |
    | `leaky-relu` | slope = 0.01 |
    | `prelu` | features = 1 |
    | `relu`, `elu`, `gelu`, `selu`, `silu`, `softplus`, `tanh`, `sigmoid` | |
    | `residual` | body and shortcut: lists of records whose results are added |

    `weight` is null, "spectral-norm" or "weight-norm" (with torch's parametrizations), and
    `weight_dim` the dimension that is kept, null for torch's own choice.

    Args:
        latent_dim: M, the number of latent dimensions.
        layers: the records; they begin with latents (B, M).

    Raises:
        ParameterError: a record is malformed, or there is more of something than any network has.

    Example:
        >>> import torch
        >>> linear = {"op": "linear", "inputs": 2, "outputs": 16}
        >>> module = LayeredGenerator(2, [linear, {"op": "reshape", "shape": [1, 4, 4]}])
        >>> module(torch.ones(3, 2)).shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(self, latent_dim: int, layers: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if not _is_size(latent_dim):
            raise ParameterError(
                f"latent_dim must be a whole number from 1, not {latent_dim!r:.60}"
            )
        _check_records(layers)
        _Sizes().check(layers, (latent_dim,), "layers")
        self.layers = _sequence(layers, "layers")

    def forward(self, z: Tensor) -> Tensor:
        """Returns images (B, C, H, W) for latents z (B, M)."""
        images: Tensor = self.layers(z)
        return images


class _Reshape(nn.Module):
    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)

    def extra_repr(self) -> str:
        return str(self.shape)


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over features (B, F) and over maps (B, F, H, W) alike."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.ndim not in (2, 4):
            raise ValueError(f"batch norm takes (B, F) or (B, F, H, W), not {tuple(input.shape)}")


def _sequence(records: Sequence[Mapping[str, Any]], where: str) -> nn.Sequential:
    return nn.Sequential(*(_layer(r, f"{where}[{i}]") for i, r in enumerate(records)))


def _layer(record: Mapping[str, Any], where: str) -> nn.Module:
    op = record["op"]
    build = _OPS[op][2]
    try:
        return build(**_values(record, where), **({"where": where} if op == "residual" else {}))
    except (ValueError, RuntimeError) as error:
        raise ParameterError(f"{where} ({op}) cannot be built: {error}") from error


def _values(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of a record with their defaults, or raises ParameterError."""
    op = record["op"]
    needed, optional, _ = _OPS[op]
    given = {name: value for name, value in record.items() if name != "op"}
    unknown = given.keys() - needed.keys() - optional.keys()
    missing = needed.keys() - given.keys()
    if unknown or missing:
        problem = f"no field {min(unknown)!r}" if unknown else f"to be told {min(missing)!r}"
        takes = ", ".join([*needed, *optional]) or "no fields"
        raise ParameterError(
            f"{where} ({op}) {'has' if unknown else 'needs'} {problem}; it takes {takes}"
        )
    values = {name: default for name, (_, default) in optional.items()} | given
    checks = needed | {name: check for name, (check, _) in optional.items()}
    for name, value in values.items():
        if not checks[name](value):
            raise ParameterError(f"{name!r} of {where} ({op}) cannot be {value!r:.60}")
    return values


def _check_records(layers: Any) -> None:
    """Raises ParameterError unless these are not too many records of known layers."""
    count = 0
    waiting = [(layers, "layers", 0)]
    while waiting:
        records, where, depth = waiting.pop()
        if not isinstance(records, list | tuple):
            raise ParameterError(f"{where} must be a list of layers, not {records!r:.60}")
        count += len(records)
        if count > _MOST_LAYERS or depth > _MOST_NESTING:
            raise ParameterError(
                f"layers holds more than {_MOST_LAYERS} layers, or nests them deeper than "
                f"{_MOST_NESTING} times; no generator is like that"
            )
        for index, record in enumerate(records):
            place = f"{where}[{index}]"
            op = record.get("op") if isinstance(record, Mapping) else None
            if not isinstance(op, str) or op not in _OPS:
                raise ParameterError(
                    f"{place} must be an object with 'op', one of {', '.join(_OPS)}, "
                    f"not {record!r:.60}"
                )
            for part in ("body", "shortcut") if op == "residual" else ():
                waiting.append((record.get(part, []), f"{place}.{part}", depth + 1))
    if not count:
        raise ParameterError("layers is empty; it needs one record for each layer")


class _Sizes:
    """Follows the shape of what layers make, so that nothing is built that takes too much.

    Sides are only known behind a reshape; maps before one cannot come from flat latents.
    """

    def __init__(self) -> None:
        self.features = 0
        self.work = 0

    def check(
        self, records: Sequence[Mapping[str, Any]], shape: tuple[int, ...], where: str
    ) -> tuple[int, ...]:
        """Returns the shape, without the batch, behind records, or raises ParameterError."""
        for index, record in enumerate(records):
            place = f"{where}[{index}]"
            values = _values(record, place)
            if record["op"] == "residual":
                # What has one value along a dimension is repeated along it when both are added.
                ends = [
                    self.check(values[part], shape, f"{place}.{part}")
                    for part in ("body", "shortcut")
                ]
                pairs = itertools.zip_longest(*(end[::-1] for end in ends), fillvalue=1)
                after = tuple(map(max, pairs))[::-1]
            else:
                after = _shape_after(record["op"], values, shape)
                self._count(record["op"], values, shape, after)
            self._check_bounds(after, f"{place} ({record['op']})")
            shape = after
        return shape

    def _count(
        self, op: str, values: Mapping[str, Any], shape: tuple[int, ...], after: tuple[int, ...]
    ) -> None:
        if op == "batch-norm":
            self.features += values["features"]
        each = values.get("kernel", 1) ** 2
        if op == "conv":
            self.work += math.prod(after) * values["inputs"] * each
        else:
            self.work += math.prod(shape) * values.get("outputs", 1) * each

    def _check_bounds(self, shape: tuple[int, ...], place: str) -> None:
        made = f"{place} makes {'×'.join(map(str, shape))} values of a latent"
        if min(shape) < 1:
            raise ParameterError(f"{made}; correct its kernel, stride or padding")
        if max(shape[1:], default=1) > _LARGEST_SIDE or math.prod(shape) > _MOST_VALUES:
            raise ParameterError(
                f"{made}, more than any generator; sides are at most {_LARGEST_SIDE} and values "
                f"{_MOST_VALUES}"
            )
        if self.features > _MOST_FEATURES:
            raise ParameterError(
                f"up to {place}, batch norms hold {self.features} features, more than any "
                f"generator; at most {_MOST_FEATURES} are taken"
            )
        if self.work > _MOST_WORK:
            raise ParameterError(
                f"up to {place}, an image takes {self.work:.1e} multiplications, more than any "
                f"generator; at most {_MOST_WORK:.1e} are taken"
            )


def _shape_after(op: str, values: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape behind one layer; whether its input fits is left to torch."""
    if op == "reshape":
        new = tuple(values["shape"])
        return new if len(new) != 2 else (1, *new)  # torch takes (B, H, W) for one map
    if op == "linear":
        return (*shape[:-1], values["outputs"])
    if op not in ("conv", "conv-transpose", "upsample"):
        return shape
    channels, *sides = shape
    if op == "upsample":
        return (channels, *(side * values["factor"] for side in sides))
    kernel, stride, padding = values["kernel"], values["stride"], values["padding"]
    if op == "conv":
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
    else:
        extra = values["output_padding"]
        sides = [(side - 1) * stride - 2 * padding + kernel + extra for side in sides]
    return (values["outputs"], *sides)


def _whole(lowest: int, highest: int) -> Check:
    """Returns what tells whole numbers within bounds."""
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and lowest <= v <= highest


def _one_of(*words: str | None) -> Check:
    return lambda value: value in words


_is_size = _whole(1, _LARGEST_SIZE)
_is_kernel = _whole(1, _LARGEST_KERNEL)
_is_padding = _whole(0, _LARGEST_KERNEL)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not _is_flag(value) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_shape(value: Any) -> bool:
    return _is_list(value) and 1 <= len(value) <= 3 and all(map(_is_size, value))


def _weighted(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Returns what builds layers of a kind, with the norm of their weight that is asked for."""

    def build(
        inputs: int,
        outputs: int,
        weight: str | None,
        weight_dim: int | None,
        kernel: int | None = None,
        **moves: Any,
    ) -> nn.Module:
        layer = kind(inputs, outputs, *([] if kernel is None else [kernel]), **moves)
        if weight == "spectral-norm":
            parametrizations.spectral_norm(layer, dim=weight_dim)
        elif weight == "weight-norm":
            parametrizations.weight_norm(layer, dim=0 if weight_dim is None else weight_dim)
        return layer

    return build


def _batch_norm(features: int, eps: float, affine: bool, statistics: bool) -> nn.Module:
    return _BatchNorm(features, eps, affine=affine, track_running_stats=statistics)


def _upsample(factor: int, mode: str, align_corners: bool) -> nn.Module:
    corners = align_corners if mode == "bilinear" else None
    return nn.Upsample(scale_factor=factor, mode=mode, align_corners=corners)


def _residual(body: Sequence[Any], shortcut: Sequence[Any], where: str) -> nn.Module:
    return _Residual(_sequence(body, f"{where}.body"), _sequence(shortcut, f"{where}.shortcut"))


Fields = dict[str, tuple[Check, Any]]
_EPS: Fields = {"eps": (lambda value: _is_number(value) and value >= 0, 1e-5)}
_AFFINE: Fields = {"affine": (_is_flag, True)}
_WEIGHT: Fields = {
    "bias": (_is_flag, True),
    "weight": (_one_of(None, "spectral-norm", "weight-norm"), None),
    "weight_dim": (lambda value: value is None or _whole(-1, 1)(value), None),
}
_SIZES: dict[str, Check] = {"inputs": _is_size, "outputs": _is_size}
_MOVES: Fields = {"stride": (_is_kernel, 1), "padding": (_is_padding, 0)}
_OPS: dict[str, tuple[dict[str, Check], Fields, Callable[..., nn.Module]]] = {
    "linear": (_SIZES, _WEIGHT, _weighted(nn.Linear)),
    "conv": (_SIZES | {"kernel": _is_kernel}, _MOVES | _WEIGHT, _weighted(nn.Conv2d)),
    "conv-transpose": (
        _SIZES | {"kernel": _is_kernel},
        _MOVES | {"output_padding": (_is_padding, 0)} | _WEIGHT,
        _weighted(nn.ConvTranspose2d),
    ),
    "batch-norm": (
        {"features": _is_size},
        _EPS | _AFFINE | {"statistics": (_is_flag, True)},
        _batch_norm,
    ),
    "instance-norm": (
        {"features": _is_size},
        _EPS | _AFFINE,
        lambda features, **how: nn.InstanceNorm2d(features, **how),
    ),
    "group-norm": (
        {"features": _is_size, "groups": _is_size},
        _EPS,
        lambda features, groups, eps: nn.GroupNorm(groups, features, eps),
    ),
    "layer-norm": ({"shape": _is_shape}, _EPS, lambda shape, eps: nn.LayerNorm(list(shape), eps)),
    "reshape": ({"shape": _is_shape}, {}, _Reshape),
    "upsample": (
        {},
        {
            "factor": (_whole(1, 16), 2),
            "mode": (_one_of("nearest", "bilinear"), "nearest"),
            "align_corners": (_is_flag, False),
        },
        _upsample,
    ),
    "leaky-relu": ({}, {"slope": (_is_number, 0.01)}, lambda slope: nn.LeakyReLU(slope)),
    "prelu": ({}, {"features": (_is_size, 1)}, lambda features: nn.PReLU(features)),
    "relu": ({}, {}, nn.ReLU),
    "elu": ({}, {}, nn.ELU),
    "gelu": ({}, {}, nn.GELU),
    "selu": ({}, {}, nn.SELU),
    "silu": ({}, {}, nn.SiLU),
    "softplus": ({}, {}, nn.Softplus),
    "tanh": ({}, {}, nn.Tanh),
    "sigmoid": ({}, {}, nn.Sigmoid),
    "residual": ({"body": _is_list}, {"shortcut": (_is_list, ())}, _residual),
}
"""For each op: what it needs, what it may be told (with the default), and what builds it."""
