"""pgmkit turns pretrained unconditional image generators into conditional ones.

Importing it is cheap: torch is imported with the first name that needs it.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from pgmkit.components import Component
from pgmkit.errors import PgmkitError
from pgmkit.hookspecs import hookimpl
from pgmkit.plugins import list_components

if TYPE_CHECKING:
    from pgmkit.conditional import ConditionalGenerator
    from pgmkit.generator import Generator
    from pgmkit.images.source import ImageSpec
    from pgmkit.loading.generators import load_generator
    from pgmkit.models import load
    from pgmkit.partition import FittedPartitioner, fit_partitioner, load_partitioner
    from pgmkit.priors import LatentSpec
    from pgmkit.shattering import ShatteredGenerator, shatter
    from pgmkit.spectrum import Spectrum, compute_spectrum

__version__: str

__all__ = [
    "Component",
    "ConditionalGenerator",
    "FittedPartitioner",
    "Generator",
    "ImageSpec",
    "LatentSpec",
    "PgmkitError",
    "ShatteredGenerator",
    "Spectrum",
    "compute_spectrum",
    "fit_partitioner",
    "hookimpl",
    "list_components",
    "load",
    "load_generator",
    "load_partitioner",
    "shatter",
]

_LAZY = {
    "ConditionalGenerator": "pgmkit.conditional",
    "FittedPartitioner": "pgmkit.partition",
    "Generator": "pgmkit.generator",
    "ImageSpec": "pgmkit.images.source",
    "LatentSpec": "pgmkit.priors",
    "ShatteredGenerator": "pgmkit.shattering",
    "Spectrum": "pgmkit.spectrum",
    "compute_spectrum": "pgmkit.spectrum",
    "fit_partitioner": "pgmkit.partition",
    "load": "pgmkit.models",
    "load_generator": "pgmkit.loading.generators",
    "load_partitioner": "pgmkit.partition",
    "shatter": "pgmkit.shattering",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.metadata.version("pgmkit")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'pgmkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
