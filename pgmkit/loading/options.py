"""What a user says of a generator where its folder does not, however it is said."""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import nn

from pgmkit.config import fits, in_toml, make_settings
from pgmkit.errors import LoadError, ParameterError, nearest_names
from pgmkit.images.source import ImageSpec
from pgmkit.loading.building import Architecture
from pgmkit.priors import LatentSpec

AUTO = "auto"
"""The architecture that is inferred from the weights."""

_Spec = TypeVar("_Spec", LatentSpec, ImageSpec)
Latent = LatentSpec | Mapping[str, Any] | int | str
Image = ImageSpec | Mapping[str, Any] | tuple[int, ...] | list[int] | str


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """What goes before anything that a model folder says; None leaves it to the folder.

    The fields are arguments of `pgmkit.load_generator`, where they are told.

    Raises:
        ParameterError: a value is of another form.
    """

    architecture: Architecture | None = None
    latent: Latent | None = None
    image: Image | None = None
    model_args: Mapping[str, Any] | None = None
    weights: str | None = None
    key: str | None = None
    prefix: str | None = None
    recalibrate: bool = False
    partition: int | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "key", "prefix"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ParameterError(f"{name} must be a string, not {value!r:.60}")
        if self.model_args is not None and not isinstance(self.model_args, Mapping):
            raise ParameterError(f"model_args must be a table, not {self.model_args!r:.60}")
        if not isinstance(self.recalibrate, bool):
            raise ParameterError(f"recalibrate must be true or false, not {self.recalibrate!r:.60}")
        if self.partition is not None and (not fits(self.partition, int) or self.partition < 0):
            raise ParameterError(
                f"partition must be a whole number from 0, not {self.partition!r:.60}"
            )
        if isinstance(self.architecture, nn.Module | Mapping) or not (
            self.architecture is None
            or isinstance(self.architecture, str)
            or callable(self.architecture)
        ):
            raise ParameterError(
                "architecture must be a class or function that builds the network, not the network "
                f"itself, a {type(self.architecture).__name__}; wrap that in pgmkit.Generator"
                if not isinstance(self.architecture, Mapping)
                else "architecture must be a name, not a table; give its arguments as model_args"
            )
        if self.latent is not None:
            object.__setattr__(self, "latent", as_latent(self.latent, "latent"))
        if self.image is not None:
            object.__setattr__(self, "image", as_image(self.image, "image"))

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], where: str = "the generator"
    ) -> "GeneratorOptions":
        """Returns the options of a table, as it stands in a TOML file.

        Raises:
            ParameterError: a key is unknown, or a value is of another form.
        """
        known = [field.name for field in fields(cls)]
        for name in table:
            if name not in known:
                raise ParameterError(
                    f"{where} has no option {name!r}; {nearest_names(str(name), known)}"
                )
        return cls(**table)


def as_latent(value: Any, where: str) -> LatentSpec:
    """Returns a prior however it was said; see `pgmkit.load_generator`.

    Raises:
        ParameterError: it is none.
    """
    if isinstance(value, LatentSpec):
        return value
    if isinstance(value, str):
        name, colon, number = value.rpartition(":")
        if not re.fullmatch(r"\s*\d+\s*", number):
            raise ParameterError(
                f"{where} is a number of dimensions, such as 100, uniform:100, or a table such as "
                f"{{dim = 100, std = 0.5}}, not {value!r}"
            )
        value = {"dim": int(number), **({"distribution": name.strip()} if colon else {})}
    elif isinstance(value, int) and not isinstance(value, bool):
        value = {"dim": value}
    return _spec(LatentSpec, value, where)


def as_image(value: Any, where: str) -> ImageSpec:
    """Returns an image spec however it was said; see `pgmkit.load_generator`.

    Raises:
        ParameterError: it is none.
    """
    if isinstance(value, ImageSpec):
        return value
    if isinstance(value, str):
        shape, colon, bounds = value.partition(":")
        sizes = re.split(r"\s*[x×]\s*", shape.strip())
        ends = bounds.split(",") if colon else ["-1", "1"]
        if not all(size.isdecimal() for size in sizes) or not all(map(_is_number, ends)):
            raise ParameterError(
                f"{where} is a shape C×H×W, such as 3x64x64, or 3x64x64:0,1 with the range of "
                f"values, not {value!r}"
            )
        value = {"shape": [int(size) for size in sizes], "range": [float(end) for end in ends]}
    elif isinstance(value, list | tuple):
        value = {"shape": value}
    return _spec(ImageSpec, value, where)


def shatter_command(source: str, options: GeneratorOptions) -> str:
    """Returns the command that shatters a source, with the options as they are typed.

    A class, which cannot be typed, stays out.
    """
    words = ["pgmkit", "shatter", source]
    for field in fields(options):
        value = getattr(options, field.name)
        if value is True:
            words.append(f"--{field.name}")
        elif value is None or value is False or (callable(value) and not isinstance(value, str)):
            continue
        else:
            words += [f"--{field.name.replace('_', '-')}", _typed(value)]
    return shlex.join([*words, "-o", "shattered"])


def _typed(value: Any) -> str:
    if isinstance(value, LatentSpec):
        table = value.table()
        plain = set(table) == {"dim", "distribution"}
        return f"{table['distribution']}:{table['dim']}" if plain else in_toml(table)
    if isinstance(value, ImageSpec):
        return f"{'x'.join(map(str, value.shape))}:{value.range[0]:g},{value.range[1]:g}"
    return value if isinstance(value, str) else in_toml(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _spec(cls: type[_Spec], values: Any, where: str) -> _Spec:
    if not isinstance(values, Mapping):
        raise LoadError(f"{where} must be an object, not {values!r:.60}")
    try:
        return make_settings(cls, values, where)
    except ParameterError:
        raise
    except (TypeError, ValueError) as error:
        raise LoadError(f"{where} is not valid: {error}") from error
