"""The prior over latents: what a generator was trained on, and is sampled from."""

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pgmkit.config import make_settings
from pgmkit.errors import ParameterError

Numbers = float | tuple[float, ...]

DISTRIBUTIONS = {
    "normal": ("mean", "std"),
    "uniform": ("low", "high"),
    "truncated-normal": ("mean", "std", "low", "high"),
    "categorical": ("probabilities",),
    "mixture": ("means", "stds", "weights"),
}
"""What each distribution is described by, beside its dimension."""

_LARGEST_DIM = 2**31
_SMALLEST_SHARE = 1e-7
_SMALLEST_MASS = 1e-6
_HALVINGS = 45
_FARTHEST = 5.3
"""Beyond so many standard deviations lies less than the smallest share."""


@dataclass(frozen=True, repr=False)
class LatentSpec:
    """The prior over flat latents z (M,): one distribution, or parts that stand side by side.

    Args:
        dim: M, the number of coordinates, at least 1. With parts it is their sum, and with a shape
            its product, and may be left out.
        distribution: "normal" is N(mean, std²), "uniform" is U(low, high), "truncated-normal" is
            N(mean, std²) restricted to [low, high], each coordinate on its own; "categorical" is a
            one-hot vector of M categories; "mixture" is one of Gaussians.
        mean: of the normal distribution, before truncation; one number, or M.
        std: its standard deviation, above 0; one number, or M.
        low: lower bounds; one number, or M.
        high: upper bounds; one number, or M.
        probabilities: of the M categories, each above 0, which sum to 1; equal by default.
        weights: of the K components of a mixture, each above 0, which sum to 1; equal by default.
        means: of the K components, each one number, or M.
        stds: standard deviations of the K components, each one number, or M; 1 by default.
        parts: priors, or tables with their settings, that are independent of each other; their
            coordinates follow one another.
        shape: in which the module takes each latent, such as (100, 1, 1); (M,) by default. Latents
            are flat everywhere else.

    Raises:
        ParameterError: a value is outside its range, or of no use to the distribution.

    Example:
        >>> prior = LatentSpec(parts=[LatentSpec(2), LatentSpec(3, "categorical")])
        >>> prior.dim
        5
        >>> prior.clamp(torch.tensor([[0.5, -4.0, 0.1, 0.7, 0.2]])).tolist()
        [[0.5, -4.0, 0.0, 1.0, 0.0]]
    """

    dim: int = 0
    distribution: Literal["normal", "uniform", "truncated-normal", "categorical", "mixture"] = (
        "normal"
    )
    mean: Numbers = 0.0
    std: Numbers = 1.0
    low: Numbers = -1.0
    high: Numbers = 1.0
    probabilities: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    means: tuple[Numbers, ...] = ()
    stds: tuple[Numbers, ...] = ()
    parts: "tuple[LatentSpec, ...]" = ()
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._set(shape=_checked_shape(self.shape), parts=_checked_parts(self.parts))
        self._set_dim()
        if not isinstance(self.distribution, str) or self.distribution not in DISTRIBUTIONS:
            raise ParameterError(
                f"latent.distribution must be one of {', '.join(DISTRIBUTIONS)}, "
                f"not {self.distribution!r:.60}"
            )
        self._check_use()
        if not self.parts:
            self._check_values()

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Draws latents (count, M), float32, on the CPU."""
        return torch.cat([law.sample(count, random) for law in self._laws], dim=1)

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, float64 (B,), for z (B, M); -inf outside the support.

        A categorical part counts with the log probability of its category, and what is no one-hot
        vector lies outside.
        """
        parts = zip(self._laws, self._split(z.cpu()), strict=True)
        total = torch.stack([law.log_prior(part) for law, part in parts]).sum(dim=0)
        return total.to(z.device)

    def to_normal(self, z: Tensor) -> Tensor:
        """Returns x (B, M), float64, such that z from this prior gives x from N(0, 1).

        Coordinates on a bound, whose x would be infinite, count as 1e-7 of the mass away from it.
        Mixtures are turned by the map of Rosenblatt ("Remarks on a Multivariate Transformation",
        1952): each coordinate by its distribution given those before it. Categorical coordinates
        have no normal ones, and stay as they are.
        """
        parts = zip(self._laws, self._split(z.double().cpu()), strict=True)
        return torch.cat([law.to_normal(part) for law, part in parts], dim=1).to(z.device)

    def from_normal(self, x: Tensor) -> Tensor:
        """Returns the latents z (B, M), float32, of x (B, M): the inverse of `to_normal`.

        Of a categorical part, the largest coordinate becomes 1 and the others 0.
        """
        parts = zip(self._laws, self._split(x.double().cpu()), strict=True)
        turned = torch.cat([law.from_normal(part) for law, part in parts], dim=1)
        return turned.float().to(x.device)

    def clamp(self, z: Tensor) -> Tensor:
        """Returns the latents nearest to z (B, M) that the prior allows."""
        parts = zip(self._laws, self._split(z.cpu()), strict=True)
        return torch.cat([law.clamp(part) for law, part in parts], dim=1).to(z.device)

    @property
    def continuous(self) -> Tensor:
        """Which coordinates have a density, bool (M,): all but those of categorical parts."""
        flags = [torch.full((part.dim,), part.distribution != "categorical") for part in self._own]
        return torch.cat(flags)

    @property
    def even(self) -> bool:
        """Whether it is one normal distribution, the same along all coordinates, or one mixture."""
        if self.parts or self.distribution not in ("normal", "mixture"):
            return False
        return isinstance(self.mean, float) and isinstance(self.std, float)

    @property
    def categories(self) -> list[slice]:
        """Where each categorical part stands among the coordinates."""
        places = zip(self._own, self._places, strict=True)
        return [place for part, place in places if part.distribution == "categorical"]

    def table(self) -> dict[str, Any]:
        """Returns what is not as by default, as it stands in `config.json`."""
        if self.parts:
            table: dict[str, Any] = {"parts": [part.table() for part in self.parts]}
        else:
            table = {"dim": self.dim, "distribution": self.distribution}
            for name in DISTRIBUTIONS[self.distribution]:
                if getattr(self, name) != _DEFAULTS[name]:
                    table[name] = _plain(getattr(self, name))
        return table | ({"shape": list(self.shape)} if self.shape else {})

    def __str__(self) -> str:
        if not self.parts:
            return f"{self.dim} {self.distribution}"
        return f"{self.dim} ({', '.join(map(str, self.parts))})"

    def __repr__(self) -> str:
        table = {"parts": list(self.parts)} if self.parts else self.table()
        table |= {"shape": self.shape} if self.shape else {}
        return f"LatentSpec({', '.join(f'{name}={value!r}' for name, value in table.items())})"

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _set_dim(self) -> None:
        sizes = {}
        if self.parts:
            sizes["parts"] = sum(part.dim for part in self.parts)
        if self.shape:
            sizes["shape"] = math.prod(self.shape)
        if self.dim == 0 and sizes:
            self._set(dim=next(iter(sizes.values())))
        if (
            not isinstance(self.dim, int)
            or isinstance(self.dim, bool)
            or not 1 <= self.dim <= _LARGEST_DIM
        ):
            raise ParameterError(
                f"latent.dim must be a whole number from 1 to {_LARGEST_DIM}, not {self.dim!r:.60}"
            )
        for name, size in sizes.items():
            if size != self.dim:
                raise ParameterError(
                    f"latent.{name} stands for {size} coordinates, and there are {self.dim}; "
                    f"correct latent.{name} or latent.dim"
                )

    def _check_use(self) -> None:
        """Raises ParameterError for a value that would be passed over in silence."""
        used = () if self.parts else DISTRIBUTIONS[self.distribution]
        names = {name for group in DISTRIBUTIONS.values() for name in group}
        for name in [f.name for f in fields(self) if f.name in names and f.name not in used]:
            value, default = _plain(getattr(self, name)), _plain(_DEFAULTS[name])
            if value == default:
                continue
            if self.parts:
                raise ParameterError(
                    f"latent.{name} stands beside latent.parts; put it into one of them"
                )
            others = " or ".join(
                repr(other) for other in DISTRIBUTIONS if name in DISTRIBUTIONS[other]
            )
            raise ParameterError(
                f"latent.{name} has no use in a {self.distribution!r} prior, which takes "
                f"{', '.join(used)}; it is for {others}"
            )
        if self.parts and self.distribution != "normal":
            raise ParameterError(
                "latent.distribution stands beside latent.parts; put it into one of them"
            )

    def _check_values(self) -> None:
        if self.distribution == "categorical":
            if self.dim < 2:
                raise ParameterError("latent.dim of a categorical prior must be at least 2, not 1")
            shares = _shares(self.probabilities, self.dim, "latent.probabilities")
            self._set(probabilities=shares)
            return
        if self.distribution == "mixture":
            self._check_mixture()
            return
        for name in ("mean", "std", "low", "high"):
            self._set(**{name: _per_dim(getattr(self, name), self.dim, f"latent.{name}")})
        _check_above(self.std, "latent.std")
        if not (_tensor(self.low) < _tensor(self.high)).all():
            raise ParameterError(
                f"latent.low must be below latent.high, not {self.low} and {self.high}"
            )
        if self.distribution == "truncated-normal":
            mass = float(_Truncated(self).mass.min())
            if mass < _SMALLEST_MASS:
                raise ParameterError(
                    f"latent.low and latent.high leave {mass:.2g} of the mass of the normal "
                    f"distribution between them; it must be at least {_SMALLEST_MASS:g}"
                )

    def _check_mixture(self) -> None:
        means = _listed(self.means, "latent.means")
        if not means:
            raise ParameterError(
                "a mixture prior needs latent.means, one entry per component, such as [-2, 2]"
            )
        stds = _listed(self.stds, "latent.stds") or [1.0] * len(means)
        if len(stds) != len(means):
            raise ParameterError(
                f"latent.stds has {len(stds)} entries and latent.means {len(means)}; a mixture has "
                "one of each per component"
            )
        self._set(
            weights=_shares(self.weights, len(means), "latent.weights"),
            means=_components(means, self.dim, "latent.means"),
            stds=_components(stds, self.dim, "latent.stds"),
        )
        for index, std in enumerate(self.stds):
            _check_above(std, f"latent.stds[{index}]")

    @property
    def _own(self) -> "tuple[LatentSpec, ...]":
        return self.parts or (self,)

    @property
    def _places(self) -> list[slice]:
        ends = torch.tensor([part.dim for part in self._own]).cumsum(0).tolist()
        return [slice(end - part.dim, end) for end, part in zip(ends, self._own, strict=True)]

    @functools.cached_property
    def _laws(self) -> "list[_Law]":
        return [_LAWS[part.distribution](part) for part in self._own]

    def _split(self, z: Tensor) -> list[Tensor]:
        return list(z.split([part.dim for part in self._own], dim=1))


_DEFAULTS = {field.name: field.default for field in fields(LatentSpec)}


class _Law(Protocol):
    """The arithmetic of one distribution; z and x are (B, M), on the CPU."""

    def sample(self, count: int, random: torch.Generator) -> Tensor: ...

    def log_prior(self, z: Tensor) -> Tensor: ...

    def to_normal(self, z: Tensor) -> Tensor: ...

    def from_normal(self, x: Tensor) -> Tensor: ...

    def clamp(self, z: Tensor) -> Tensor: ...


class _Normal:
    def __init__(self, spec: LatentSpec) -> None:
        self.dim, self.mean, self.std = spec.dim, _tensor(spec.mean), _tensor(spec.std)

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        drawn = torch.randn(count, self.dim, generator=random)
        return drawn * self.std.float() + self.mean.float()

    def log_prior(self, z: Tensor) -> Tensor:
        return _log_normal(z.double(), self.mean, self.std).sum(dim=1)

    def to_normal(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.std

    def from_normal(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    def clamp(self, z: Tensor) -> Tensor:
        return z


class _Bounded:
    """Coordinates on their own within bounds, each by its distribution function."""

    def __init__(self, spec: LatentSpec) -> None:
        self.dim, self.low, self.high = spec.dim, _tensor(spec.low), _tensor(spec.high)

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        share = torch.rand(count, self.dim, generator=random, dtype=torch.float64)
        return self.quantile(share).float()

    def log_prior(self, z: Tensor) -> Tensor:
        # Bounds in the precision of the latents, since a latent that lies on one is inside.
        outside = (z < self.low.to(z.dtype)) | (z > self.high.to(z.dtype))
        return self.log_density(z.double()).masked_fill(outside, -math.inf).sum(dim=1)

    def to_normal(self, z: Tensor) -> Tensor:
        return _normal_quantile(self.share(z))

    def from_normal(self, x: Tensor) -> Tensor:
        return self.quantile(_normal_share(x))

    def clamp(self, z: Tensor) -> Tensor:
        return z.clamp(self.low.to(z.dtype), self.high.to(z.dtype))

    def log_density(self, z: Tensor) -> Tensor:
        return -(self.high - self.low).log().expand_as(z)

    def share(self, z: Tensor) -> Tensor:
        """Returns the share of the mass that lies below z."""
        return (z - self.low) / (self.high - self.low)

    def quantile(self, share: Tensor) -> Tensor:
        """Returns the coordinates below which shares of the mass lie."""
        return self.low + (self.high - self.low) * share


class _Truncated(_Bounded):
    def __init__(self, spec: LatentSpec) -> None:
        super().__init__(spec)
        self.mean, self.std = _tensor(spec.mean), _tensor(spec.std)
        self.below = self._normal_cdf(self.low)
        self.mass = self._normal_cdf(self.high) - self.below

    def log_density(self, z: Tensor) -> Tensor:
        return _log_normal(z, self.mean, self.std) - self.mass.log()

    def share(self, z: Tensor) -> Tensor:
        return (self._normal_cdf(z) - self.below) / self.mass

    def quantile(self, share: Tensor) -> Tensor:
        standard: Tensor = torch.special.ndtri(self.below + self.mass * share)
        return (standard * self.std + self.mean).clamp(self.low, self.high)

    def _normal_cdf(self, z: Tensor) -> Tensor:
        share: Tensor = torch.special.ndtr((z - self.mean) / self.std)
        return share


class _Categorical:
    def __init__(self, spec: LatentSpec) -> None:
        self.probabilities = _weights(spec.probabilities, spec.dim)

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        drawn = torch.multinomial(self.probabilities, count, replacement=True, generator=random)
        return functional.one_hot(drawn, len(self.probabilities)).float()

    def log_prior(self, z: Tensor) -> Tensor:
        outside = (z != self.clamp(z)).any(dim=1)
        found: Tensor = self.probabilities.log()[z.argmax(dim=1)].masked_fill(outside, -math.inf)
        return found

    def to_normal(self, z: Tensor) -> Tensor:
        return z

    def from_normal(self, x: Tensor) -> Tensor:
        return self.clamp(x)

    def clamp(self, z: Tensor) -> Tensor:
        return functional.one_hot(z.argmax(dim=1), z.shape[1]).to(z.dtype)


class _Mixture:
    def __init__(self, spec: LatentSpec) -> None:
        self.weights = _weights(spec.weights, len(spec.means))
        self.means = torch.stack([_tensor(mean).expand(spec.dim) for mean in spec.means])
        self.stds = torch.stack([_tensor(std).expand(spec.dim) for std in spec.stds])
        self.shared = ((self.means == self.means[0]) & (self.stds == self.stds[0])).all(dim=0)
        """Which coordinates (M,) tell nothing of the component."""

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=random)
        drawn = torch.randn(count, self.means.shape[1], generator=random)
        return (drawn * self.stds[chosen] + self.means[chosen]).float()

    def log_prior(self, z: Tensor) -> Tensor:
        z, own = z.double(), ~self.shared
        each = _log_normal(z[:, None, own], self.means[:, own], self.stds[:, own]).sum(dim=2)
        alike = (z[:, self.shared], self.means[0, self.shared], self.stds[0, self.shared])
        return (each + self.weights.log()).logsumexp(dim=1) + _log_normal(*alike).sum(dim=1)

    def to_normal(self, z: Tensor) -> Tensor:
        log_weights = self.weights.log().expand(len(z), -1)
        turned = torch.empty_like(z)
        for index in range(z.shape[1]):
            value = z[:, index, None]
            if self.shared[index]:
                turned[:, index] = (z[:, index] - self.means[0, index]) / self.stds[0, index]
                continue
            share = self._share(value, log_weights.softmax(dim=1), index)
            turned[:, index] = _normal_quantile(share)
            log_weights = self._given(value, log_weights, index)
        return turned

    def from_normal(self, x: Tensor) -> Tensor:
        log_weights = self.weights.log().expand(len(x), -1)
        turned = torch.empty_like(x)
        for index, share in enumerate(_normal_share(x).unbind(1)):
            if self.shared[index]:
                turned[:, index] = x[:, index] * self.stds[0, index] + self.means[0, index]
                continue
            value = self._quantile(share, log_weights.softmax(dim=1), index)[:, None]
            turned[:, index] = value[:, 0]
            log_weights = self._given(value, log_weights, index)
        return turned

    def clamp(self, z: Tensor) -> Tensor:
        return z

    def _share(self, value: Tensor, weights: Tensor, index: int) -> Tensor:
        """Returns the mass below values (B, 1) of one coordinate, for weights (B, K); (B,)."""
        standard = (value - self.means[:, index]) / self.stds[:, index]
        # As exact as ndtr down to the smallest share, and several times as fast.
        share: Tensor = (weights * torch.erf(standard * math.sqrt(0.5))).sum(dim=1)
        return (share + 1) / 2

    def _quantile(self, share: Tensor, weights: Tensor, index: int) -> Tensor:
        """Finds, by halves, the values (B,) of one coordinate below which shares (B,) lie."""
        means, reach = self.means[:, index], _FARTHEST * self.stds[:, index]
        low = (means - reach).min().expand_as(share)
        high = (means + reach).max().expand_as(share)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = self._share(middle[:, None], weights, index) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _given(self, value: Tensor, log_weights: Tensor, index: int) -> Tensor:
        """Returns the log weights (B, K) of the components once a coordinate (B, 1) is known."""
        return log_weights + _log_normal(value, self.means[:, index], self.stds[:, index])


_LAWS: dict[str, Any] = {
    "normal": _Normal,
    "uniform": _Bounded,
    "truncated-normal": _Truncated,
    "categorical": _Categorical,
    "mixture": _Mixture,
}


def _log_normal(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((z - mean) / std) ** 2 - (std * math.sqrt(2 * math.pi)).log()


def _normal_quantile(share: Tensor) -> Tensor:
    x: Tensor = torch.special.ndtri(share.clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE))
    return x


def _normal_share(x: Tensor) -> Tensor:
    share: Tensor = torch.special.ndtr(x).clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE)
    return share


def _tensor(value: Numbers) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _weights(shares: tuple[float, ...], count: int) -> Tensor:
    """Returns shares as they are, or equal ones if there are none."""
    return torch.tensor(shares or [1 / count] * count, dtype=torch.float64)


def _plain(value: Any) -> Any:
    """Returns lists for tuples, arrays and tensors, all the way down."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _listed(value: Any, what: str) -> list[Any]:
    value = _plain(value)
    if not isinstance(value, list):
        raise ParameterError(f"{what} must be a list, not {value!r:.60}")
    return value


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # which whole numbers may exceed


def _per_dim(value: Any, dim: int, what: str) -> Numbers:
    """Returns one number, or one for each dimension."""
    value = _plain(value)
    if _is_number(value):
        return float(value)
    if isinstance(value, list) and len(value) != dim:
        raise ParameterError(
            f"{what} has {len(value)} numbers, and there are {dim} dimensions; give one number "
            f"or {dim}"
        )
    if not isinstance(value, list) or not all(map(_is_number, value)):
        raise ParameterError(
            f"{what} must be a finite number, or one for each dimension, not {value!r:.60}"
        )
    return tuple(map(float, value))


def _components(values: list[Any], dim: int, what: str) -> tuple[Numbers, ...]:
    return tuple(_per_dim(value, dim, f"{what}[{index}]") for index, value in enumerate(values))


def _shares(values: Any, count: int, what: str) -> tuple[float, ...]:
    """Returns numbers that sum to 1, or none."""
    listed = _listed(values, what)
    if not listed:
        return ()
    if len(listed) != count:
        raise ParameterError(f"{what} must be {count} numbers, not {len(listed)}")
    if not all(_is_number(value) and value > 0 for value in listed):
        raise ParameterError(f"{what} must be numbers above 0, not {listed!r:.60}")
    if abs(math.fsum(listed) - 1) > 1e-6:
        raise ParameterError(f"{what} must sum to 1, not {math.fsum(listed):g}")
    return tuple(map(float, listed))


def _check_above(value: Numbers, what: str) -> None:
    lowest = min(value) if isinstance(value, tuple) else value
    if lowest <= 0:
        raise ParameterError(f"{what} must be above 0, not {lowest}")


def _checked_shape(shape: Any) -> tuple[int, ...]:
    listed = _listed(shape, "latent.shape")
    if not all(isinstance(side, int) and side >= 1 for side in listed):
        raise ParameterError(
            f"latent.shape must be whole numbers from 1, such as [100, 1, 1], not {shape!r:.60}"
        )
    return tuple(listed)


def _checked_parts(parts: Any) -> tuple[LatentSpec, ...]:
    if not isinstance(parts, list | tuple):
        raise ParameterError(
            f"latent.parts must be a list of tables, such as "
            f'[{{"dim": 10}}, {{"dim": 10, "distribution": "categorical"}}], not {parts!r:.60}'
        )
    made = tuple(_part(part, f"latent.parts[{index}]") for index, part in enumerate(parts))
    for index, part in enumerate(made):
        if part.parts or part.shape:
            name = "parts" if part.parts else "shape"
            raise ParameterError(f"latent.parts[{index}] cannot have {name} of its own")
    return made


def _part(part: Any, where: str) -> LatentSpec:
    if isinstance(part, LatentSpec):
        return part
    if not isinstance(part, Mapping):
        raise ParameterError(f"{where} must be a table such as {{'dim': 10}}, not {part!r:.60}")
    try:
        return make_settings(LatentSpec, part, where)
    except ParameterError as error:
        text = str(error)
        if not text.startswith(where):
            text = text.replace("latent.", f"{where}.", 1)
        raise ParameterError(text) from error
