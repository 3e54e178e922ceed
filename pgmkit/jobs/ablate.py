"""An ablation as a run, told in tables and figures."""

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pgmkit import files, progress, runs
from pgmkit.contracts import Engine
from pgmkit.engines import decide, is_coordinator
from pgmkit.engines.processes import in_processes
from pgmkit.errors import EngineError, LoadError, OutputError
from pgmkit.evaluate.ablation.cells import (
    Measurer,
    Result,
    SharedFiles,
    failure,
    load_models,
)
from pgmkit.evaluate.ablation.charts import draw_all
from pgmkit.evaluate.ablation.plan import Ablation, Cell, check_names, make_ablation
from pgmkit.evaluate.ablation.report import write_ablation_report
from pgmkit.evaluate.ablation.tables import (
    Row,
    Table,
    make_tables,
    records,
    to_csv,
    to_latex,
    to_markdown,
)
from pgmkit.learning import ranks
from pgmkit.plugins import build, installed
from pgmkit.shattering.algorithm import build_sampler
from pgmkit.spectrum.blocks import MANIFEST_FILE
from pgmkit.states import table_of

ABLATION_FILE = "ablation.json"


class Job:
    """An ablation whose settings have been checked and whose models are loaded.

    Attributes:
        ablation: the same; every generator has its name.
        models: by name of the generator.
        cells: all that the ablation consists of.

    Raises:
        PgmkitError: a model cannot be loaded, or generators cannot be told apart.
    """

    def __init__(self, ablation: Ablation) -> None:
        wanted = ablation.generators
        if not ablation.needing("reference"):
            wanted = [replace(generator, reference=None) for generator in wanted]
        loaded = [load_models(one, cache=ablation.spectrum.cache) for one in wanted]
        named = [
            replace(generator, name=generator.name or models.generator.name)
            for generator, models in zip(wanted, loaded, strict=True)
        ]
        check_names(named)
        self.ablation = replace(ablation, generators=named)
        self.models = {one.name: found for one, found in zip(named, loaded, strict=True)}
        pins = {name: found.pins() for name, found in self.models.items()}
        self.cells = self.ablation.cells(pins)

    @property
    def spectra(self) -> list[tuple[str, int]]:
        """Generator and seed of each spectrum."""
        return list(dict.fromkeys((cell.generator, cell.seed) for cell in self.cells))

    def resolved(self) -> dict[str, Any]:
        """Returns all settings as plain values, pinned to the weights of the generators.

        Methods have all their parameters, those of samplers as for the first number of clusters.
        """
        ablation = self.ablation
        first = ablation.clusters(ablation.generators[0])[0]
        generators = [
            {**asdict(g), "clusters": ablation.clusters(g), "weights": self.models[g.name].pins()}
            for g in ablation.generators
        ]
        return {
            "generators": generators,
            "densities": [
                {"label": one.label, **table_of(build("density-estimators", one.table))}
                for one in ablation.densities
            ],
            "samplers": [
                {"label": one.label, **table_of(build_sampler(one.table, None, None, first))}
                for one in ablation.samplers
            ],
            "latents": ablation.latents,
            "remove": ablation.remove,
            "seeds": ablation.seeds,
            "samples": ablation.settings.samples,
            "measures": ablation.measures,
            "jobs": ablation.jobs,
            "threads": ablation.settings.threads,
            "spectrum": asdict(ablation.spectrum),
        }

    def run(self, out: Path | str) -> dict[str, Any] | None:
        """Computes the cells that `out` lacks, and writes tables and figures of all.

        Cells of the same generator, methods, numbers and seed are taken up also where the other
        axes of the ablation have changed, so an ablation may grow in its folder. Cells that failed
        are tried again. With several `jobs` this starts processes, so a script calls it under
        `if __name__ == "__main__":`.

        Returns:
            What `ablation.json` holds; None where another process of the engine is to tell.

        Raises:
            OutputError: `out` holds something else, is in use, or cannot be written.
        """
        out, started = Path(out), time.perf_counter()
        engine = self.ablation.spectrum.build_engine()
        leads = is_coordinator(engine)
        with contextlib.ExitStack() as held, progress.shown(progress.is_shown() and leads):
            missing = decide(engine, lambda: _begin(self, out, held))
            ready = _share(self, missing, out, engine)
            if not leads:
                return None
            with ranks.alone():
                _compute(self, ready, out)
            rows = []
            for cell in self.cells:
                gone = LoadError(f"{_path(out, cell)} is gone; run the same command again")
                rows.append(Row(cell, _read(out, cell) or failure(gone)))
            tables = make_tables(rows, self.ablation.measures)
            summary = _summary(self, rows, tables, len(missing), out)
            summary["seconds"]["run"] = round(time.perf_counter() - started, 2)
            _write(out, rows, tables, summary, self.ablation.measures)
            return summary


def prepare(values: Mapping[str, Any]) -> Job:
    """Checks all settings (`AblationSettings`) and loads the models; writes nothing.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    return Job(make_ablation(values))


def _begin(job: Job, out: Path, held: contextlib.ExitStack) -> list[Cell]:
    """Takes the output folder; returns the cells that it lacks."""
    runs.check_folder(out)
    held.enter_context(files.single_writer(out))
    fixed = job.ablation.spectrum.determining()
    found = ((cell, _read(out, cell)) for cell in job.cells)
    missing = [cell for cell, result in found if result is None or result.error is not None]
    device = job.ablation.generators[0].device if missing else None
    runs.record(out, {"command": "ablate", **fixed}, device=device or "")
    return missing


def _share(job: Job, missing: Sequence[Cell], out: Path, engine: Engine) -> list[Cell]:
    """Computes spectra and class labels for the cells; returns those that can be computed now.

    Where a spectrum fails, so do its cells, and no others.
    """
    ready = []
    for name, seed in job.spectra:
        cells = [cell for cell in missing if (cell.generator, cell.seed) == (name, seed)]
        if not cells:
            continue
        shared = SharedFiles(out / "spectra", name, max(job.ablation.latents), seed)
        begun = (shared.spectrum / MANIFEST_FILE).exists()
        try:
            seconds, reused = shared.compute(job.ablation.spectrum, job.models[name], engine)
        except OutputError:
            raise
        except Exception as error:
            if is_coordinator(engine):
                progress.tell(f"{shared.name}: {type(error).__name__}: {error}")
                for cell in cells:
                    _save(out, cell, failure(error))
            continue
        ready += cells
        if is_coordinator(engine):
            if not shared.record.exists():
                from_cache = reused > 0 and not begun
                told = {"seconds": seconds, "from_cache": from_cache, "continued": begun}
                files.write_json(shared.record, told)
            took = sum(seconds.values())
            progress.tell(f"{shared.name}: spectrum and classes in {took:.1f} s")
    return ready


def _compute(job: Job, cells: Sequence[Cell], out: Path) -> None:
    """Computes cells, here or in other processes, and saves each when it is done."""
    measurer = Measurer(job.ablation, out / "spectra", job.models)
    total, done = len(job.cells), len(job.cells) - len(cells)
    with (
        contextlib.closing(_results(measurer, cells, job.ablation.jobs)) as results,
        progress.phase("cells", total, "cell", done) as bar,
    ):
        for cell, result in results:
            if isinstance(result, int):
                result = failure(_died(result))
            _save(out, cell, result)
            bar.advance()
            done += 1
            progress.tell(f"{done} of {total}  {cell.id}  {_line(result)}")


def _results(
    measurer: Measurer, cells: Sequence[Cell], jobs: int
) -> Generator[tuple[Cell, Result | int], None, None]:
    """Yields cells as they are done, with the exit code of a process that died over one."""
    if jobs > 1:
        yield from in_processes(measurer, cells, jobs)
        return
    for cell in cells:
        with progress.shown(False):  # what goes on within a cell would drown the cells
            result = measurer(cell)
        yield cell, result


def _died(code: int) -> EngineError:
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return EngineError(
        f"the process that computed the cell ended {reason}; if memory ran out, take fewer jobs"
    )


def _line(result: Result) -> str:
    noted = f"; warned: {'; '.join(result.warnings)}" if result.warnings else ""
    if result.error is not None:
        return f"failed: {result.error}{noted}"
    return f"{result.seconds.get('total', 0.0):.1f} s{noted}"


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


def _summary(
    job: Job,
    rows: Sequence[Row],
    tables: Sequence[Table],
    computed: int,
    out: Path,
) -> dict[str, Any]:
    failed = [row for row in rows if row.result.error is not None]
    spectra = {}
    for name, seed in job.spectra:
        shared = SharedFiles(out / "spectra", name, max(job.ablation.latents), seed)
        if shared.record.exists():
            spectra[shared.name] = files.read_json(shared.record, str(out))
    plugins = {r.name: r.version for r in installed().records if r.status == "loaded"}
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
        "settings": job.resolved(),
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
    figures = dict(draw_all(rows, measures))
    with files.replaced_folder(out / "figures") as folder:
        for name, data in figures.items():
            (folder / name).write_bytes(data)
    write_ablation_report(out, tables, figures, summary)
    files.write_json(out / ABLATION_FILE, summary)
