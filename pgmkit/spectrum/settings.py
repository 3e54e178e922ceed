"""How a spectrum is computed, as it stands in a config file."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from pgmkit import defaults
from pgmkit.config import make_settings, with_names
from pgmkit.contracts import Engine
from pgmkit.generator import Generator
from pgmkit.plugins import build
from pgmkit.spectrum.compute import BLOCK_SIZE, check_block_size, compute_spectrum
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra
from pgmkit.spectrum.spectrum import Spectrum

_CHANGES_NO_RESULT = ("engine", "cache", "memory_budget")
_TRIED = 192
_TRIED_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class SpectrumSettings:
    """All that `compute_spectrum` takes beside generator, latents, seed and folder.

    Args:
        engine: its name, or a table of `name` and parameters.
        block_size: latents per block of work.
        dtype, probes, sketch, min_rank_correlation, memory_budget: what is computed, how exactly
            and in how much memory; see `compute_spectrum`.
        cache: whether to take up a spectrum that was computed before, and keep this one for later.
    """

    engine: str | Mapping[str, Any] = defaults.ENGINE
    block_size: int = BLOCK_SIZE
    dtype: str = "auto"
    probes: int | None = None
    sketch: str = "volume"
    min_rank_correlation: float | None = None
    memory_budget: int | None = None
    cache: bool = True

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> Self:
        """Returns the settings of a table.

        Raises:
            ParameterError: a setting is unknown or of another type.
        """
        return make_settings(cls, with_names(table, engine=defaults.ENGINE), where)

    def determining(self) -> dict[str, Any]:
        """Returns those settings that the result depends on, as plain values."""
        return {k: v for k, v in asdict(self).items() if k not in _CHANGES_NO_RESULT}

    def check(self) -> None:
        """Raises PgmkitError if a setting is outside its range, as far as can be told quickly."""
        check_block_size(self.block_size)
        self.jacobian()
        self.build_engine()

    def jacobian(self) -> JacobianSettings:
        """Returns what is computed of each Jacobian."""
        return JacobianSettings(
            self.dtype, self.probes, self.sketch, self.min_rank_correlation, self.memory_budget
        )

    def build_engine(self) -> Engine:
        """Builds the engine."""
        engine: Engine = build("engines", self.engine)
        return engine

    def compute(
        self,
        generator: Generator,
        latents: int | Tensor,
        *,
        seed: int,
        out: Path | str | None,
        engine: Engine,
    ) -> Spectrum:
        """Computes a spectrum by what `build_engine` returned; see `compute_spectrum`."""
        names = [f.name for f in fields(SpectrumSettings) if f.name != "engine"]
        own = {name: getattr(self, name) for name in names}
        return compute_spectrum(generator, latents, seed=seed, out=out, engine=engine, **own)

    def tried(
        self, generator: Generator, latents: int, *, seed: int, count: int = _TRIED
    ) -> tuple[Spectrum, float]:
        """Returns the spectrum of `count` latents, and about how many seconds that of all takes."""
        count, engine = min(latents, count), self.build_engine()
        started = time.perf_counter()
        JacobianSpectra(generator, self.jacobian())  # which tries how Jacobians are computed best
        once = time.perf_counter() - started
        started = time.perf_counter()
        settings = replace(self, cache=False, block_size=min(self.block_size, _TRIED_BLOCK))
        spectrum = settings.compute(generator, count, seed=seed, out=None, engine=engine)
        each = max(time.perf_counter() - started - once, 0.0) / count
        return spectrum, once + each * latents
