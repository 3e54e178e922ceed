"""An ablation as a run: checked before it starts, resumable, and told in tables and figures."""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pgmkit import files, runs
from pgmkit.engines import Engine, decide, is_coordinator
from pgmkit.engines.processes import in_processes
from pgmkit.errors import EngineError, LoadError, OutputError
from pgmkit.evaluate.ablation.cells import (
    Measurer,
    Models,
    Result,
    SharedFiles,
    failure,
    load_models,
)
from pgmkit.evaluate.ablation.charts import draw_all
from pgmkit.evaluate.ablation.plan import OF_SPECTRUM, Cell, Plan, check_names, make_plan
from pgmkit.evaluate.ablation.tables import (
    Row,
    Table,
    make_tables,
    records,
    to_csv,
    to_latex,
    to_markdown,
)
from pgmkit.plugins import build_from_table, registry
from pgmkit.spectrum.store import MANIFEST_FILE

ABLATION_FILE = "ablation.json"
_CHANGES_NO_RESULT = ("cache", "memory_budget")


@dataclass(frozen=True)
class PreparedAblation:
    """An ablation whose settings have been checked and whose models are loaded.

    Args:
        plan: settings and axes; every generator has its name.
        models: by name of the generator.
        cells: all that the ablation consists of.
    """

    plan: Plan
    models: Mapping[str, Models]
    cells: Sequence[Cell]

    @property
    def spectra(self) -> list[tuple[str, int]]:
        """Generator and seed of each spectrum."""
        return list(dict.fromkeys((cell.generator, cell.seed) for cell in self.cells))

    def resolved(self) -> dict[str, Any]:
        """Returns all settings as plain values, pinned to the weights of the generators."""
        plan = self.plan
        spectrum = asdict(plan.spectrum_settings(plan.generators[0], plan.seeds[0]))
        for name in ("source", "device", "latents", "seed"):
            del spectrum[name]
        methods = {"densities": plan.densities, "samplers": plan.samplers}
        generators = [
            {**asdict(g), "clusters": plan.clusters(g), "weights": self.models[g.name].pins()}
            for g in plan.generators
        ]
        return {
            "generators": generators,
            **{
                name: [{"label": method.label, **method.table} for method in found]
                for name, found in methods.items()
            },
            "latents": plan.latents,
            "remove": plan.remove,
            "seeds": plan.seeds,
            "samples": plan.settings.samples,
            "measures": plan.measures,
            "jobs": plan.jobs,
            "threads": plan.settings.threads,
            **spectrum,
        }


def prepare(values: Mapping[str, Any]) -> PreparedAblation:
    """Checks all settings and loads the models; writes nothing.

    Args:
        values: see `AblationSettings` and `SpectrumSettings`.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    plan = make_plan(values)
    wanted = plan.generators
    if not plan.needing("reference"):
        wanted = [replace(generator, reference=None) for generator in wanted]
    loaded = [load_models(generator, cache=plan.cache) for generator in wanted]
    named = [
        replace(generator, name=generator.name or models.generator.name)
        for generator, models in zip(wanted, loaded, strict=True)
    ]
    check_names(named)
    plan = replace(plan, generators=named)
    models = {generator.name: found for generator, found in zip(named, loaded, strict=True)}
    pins = {name: found.pins() for name, found in models.items()}
    return PreparedAblation(plan, models, plan.cells(pins))


def run(
    prepared: PreparedAblation,
    out: Path | str,
    *,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Computes the cells that `out` lacks, and writes tables and figures of all.

    Cells of the same generator, methods, numbers and seed are taken up also where the other axes of
    the ablation have changed, so an ablation may grow in its folder. Cells that failed are tried
    again. With several `jobs` this starts processes, so a script calls it under
    `if __name__ == "__main__":`.

    Args:
        prepared: what `prepare` returned.
        out: the output folder.
        progress: whether to show progress bars on stderr.
        report: takes a line for each cell, and for each spectrum that came from the cache.

    Returns:
        What `ablation.json` holds; None where another process of the engine is to tell.

    Raises:
        OutputError: `out` holds something else, is in use, or cannot be written.
    """
    out, started = Path(out), time.perf_counter()
    tell = _teller(report)
    engine = build_from_table("engines", prepared.plan.engine)
    with contextlib.ExitStack() as held:
        missing = decide(engine, lambda: _begin(prepared, out, held))
        ready = _share(prepared, missing, out, engine, progress=progress, tell=tell)
        if not is_coordinator(engine):
            return None
        _compute(prepared, ready, out, progress=progress, tell=tell)
        rows = [Row(cell, _read(out, cell) or _lost(cell, out)) for cell in prepared.cells]
        tables = make_tables(rows, prepared.plan.measures)
        summary = _summary(prepared, rows, tables, len(missing), out)
        summary["seconds"]["run"] = round(time.perf_counter() - started, 2)
        _write(out, rows, tables, summary, prepared.plan.measures)
        return summary


def _begin(prepared: PreparedAblation, out: Path, held: contextlib.ExitStack) -> list[Cell]:
    """Takes the output folder; returns the cells that it lacks."""
    runs.check_folder(out)
    held.enter_context(files.single_writer(out))
    settings = prepared.resolved()
    fixed = {k: settings[k] for k in OF_SPECTRUM if k not in _CHANGES_NO_RESULT}
    found = ((cell, _read(out, cell)) for cell in prepared.cells)
    missing = [cell for cell, result in found if result is None or result.error is not None]
    device = prepared.plan.generators[0].device if missing else None
    runs.record(out, {"command": "ablate", **fixed}, device=device or "")
    return missing


def _share(
    prepared: PreparedAblation,
    missing: Sequence[Cell],
    out: Path,
    engine: Engine,
    *,
    progress: bool,
    tell: Callable[[str], None],
) -> list[Cell]:
    """Computes spectra and class labels for the cells; returns those that can be computed now.

    Where a spectrum fails, so do its cells, and no others.
    """
    plan, ready = prepared.plan, []
    generators = {generator.name: generator for generator in plan.generators}
    for name, seed in prepared.spectra:
        cells = [cell for cell in missing if (cell.generator, cell.seed) == (name, seed)]
        if not cells:
            continue
        shared = SharedFiles(out / "spectra", name, max(plan.latents), seed)
        lines: list[str] = []
        begun = (shared.spectrum / MANIFEST_FILE).exists()
        try:
            seconds = shared.compute(
                plan.spectrum_settings(generators[name], seed),
                prepared.models[name],
                engine,
                progress=progress,
                report=lines.append,
            )
        except OutputError:
            raise
        except Exception as error:
            if is_coordinator(engine):
                tell(f"{shared.name}: {type(error).__name__}: {error}")
                for cell in cells:
                    _save(out, cell, failure(error))
            continue
        ready += cells
        if is_coordinator(engine):
            record = shared.record
            if not record.exists():
                files.write_json(
                    record, {"seconds": seconds, "from_cache": lines, "continued": begun}
                )
            for line in (*lines, f"spectrum and classes in {_seconds(sum(seconds.values()))}"):
                tell(f"{shared.name}: {line}")
    return ready


def _compute(
    prepared: PreparedAblation,
    cells: Sequence[Cell],
    out: Path,
    *,
    progress: bool,
    tell: Callable[[str], None],
) -> None:
    """Computes cells, here or in other processes, and saves each when it is done."""
    measurer = Measurer(prepared.plan, out / "spectra", prepared.models)
    total, done = len(prepared.cells), len(prepared.cells) - len(cells)
    with (
        contextlib.closing(_results(measurer, cells, prepared.plan.jobs)) as results,
        tqdm(total=total, initial=done, unit="cell", desc="cells", disable=not progress) as bar,
    ):
        for cell, result in results:
            if isinstance(result, int):
                result = failure(_died(result))
            _save(out, cell, result)
            bar.update()
            done += 1
            tell(f"{done} of {total}  {cell.id}  {_line(result)}")


def _results(
    measurer: Measurer, cells: Sequence[Cell], jobs: int
) -> Generator[tuple[Cell, Result | int], None, None]:
    """Yields cells as they are done, with the exit code of a process that died over one."""
    if jobs > 1:
        yield from in_processes(measurer, cells, jobs)
        return
    for cell in cells:
        yield cell, measurer(cell)


def _died(code: int) -> EngineError:
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return EngineError(
        f"the process that computed the cell ended {reason}; if memory ran out, take fewer jobs"
    )


def _line(result: Result) -> str:
    noted = f"; warned: {'; '.join(result.warnings)}" if result.warnings else ""
    if result.error is not None:
        return f"failed: {result.error}{noted}"
    return f"{_seconds(result.seconds.get('total', 0.0))}{noted}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _teller(report: Callable[[str], None] | None) -> Callable[[str], None]:
    """Returns what reports a line without disturbing a progress bar."""

    def tell(line: str) -> None:
        if report is not None:
            with tqdm.external_write_mode():
                report(line)

    return tell


def _path(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.id}.json"


def _save(out: Path, cell: Cell, result: Result) -> None:
    files.write_json(_path(out, cell), asdict(result))


def _read(out: Path, cell: Cell) -> Result | None:
    """Returns the result of a cell; None if there is none, or a damaged one."""
    try:
        return Result(**files.read_json(_path(out, cell), str(out)))
    except (LoadError, TypeError):
        return None


def _lost(cell: Cell, out: Path) -> Result:
    return failure(LoadError(f"{_path(out, cell)} is gone; run the same command again"))


def _summary(
    prepared: PreparedAblation,
    rows: Sequence[Row],
    tables: Sequence[Table],
    computed: int,
    out: Path,
) -> dict[str, Any]:
    failed = [row for row in rows if row.result.error is not None]
    spectra = {}
    for name, seed in prepared.spectra:
        shared = SharedFiles(out / "spectra", name, max(prepared.plan.latents), seed)
        if shared.record.exists():
            spectra[shared.name] = files.read_json(shared.record, str(out))
    plugins = {r.name: r.version for r in registry().records if r.status == "loaded"}
    versions: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row.result.origin.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    return {
        "cells": len(rows),
        "computed": computed,
        "failed": len(failed),
        "errors": {row.cell.id: row.result.error for row in failed},
        "seconds": {
            "spectra": round(sum(sum(s["seconds"].values()) for s in spectra.values()), 2),
            "cells": round(sum(row.result.seconds.get("total", 0.0) for row in rows), 2),
        },
        "spectra_taken_up": sum(
            bool(s["from_cache"] or s.get("continued")) for s in spectra.values()
        ),
        "tables": [asdict(table) for table in tables],
        "settings": prepared.resolved(),
        "spectra": spectra,
        "plugins": plugins,
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "machines": sorted({row.result.machine for row in rows if row.result.machine}),
    }


def _write(
    out: Path,
    rows: Sequence[Row],
    tables: Sequence[Table],
    summary: Mapping[str, Any],
    measures: Sequence[str],
) -> None:
    files.write_text(out / "cells.csv", to_csv(rows))
    files.write_json(out / "cells.json", records(rows))
    files.write_text(out / "table.md", to_markdown(tables))
    files.write_text(out / "table.tex", to_latex(tables))
    with files.replaced_folder(out / "figures") as folder:
        for name, data in draw_all(rows, measures):
            (folder / name).write_bytes(data)
    files.write_json(out / ABLATION_FILE, summary)
