"""`pgmkit spectrum`, and shattering with a spectrum that is there already."""

import dataclasses
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Finished, copied, environment, every_file, run_pgmkit, write_tiny_generator

import pgmkit
from pgmkit import files
from pgmkit.evaluate import figures
from pgmkit.jobs.spectrum import prepare
from pgmkit.loading.saving import write_generator
from pgmkit.spectrum import load_spectrum
from pgmkit.spectrum.blocks import count_blocks
from pgmkit.spectrum.jacobian import JacobianSpectra
from pgmkit.spectrum.settings import SpectrumSettings
from pgmkit.spectrum.summary import summarize

LATENTS, BLOCK = 90, 20
SMALL = ("--latents", LATENTS, "--block-size", BLOCK)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny generator, one of other weights, and configs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_generator(folder / "tiny")
    other = pgmkit.load_generator(write_tiny_generator(folder / "copy"))
    with torch.no_grad():
        next(other.module.parameters()).mul_(2)
    other.name = "double"
    write_generator(folder / "double", other)
    (folder / "words.toml").write_text('latents = 40\nseed = 3\nengine = "local"')
    (folder / "used").mkdir()
    (folder / "used" / "thesis.tex").write_text("years of work")
    return folder


@pytest.fixture(scope="module")
def tiny(inputs: Path) -> str:
    return f"local-dir:{inputs / 'tiny'}"


@pytest.fixture(scope="module")
def saved(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete spectrum."""
    out = tmp_path_factory.mktemp("saved") / "spectrum"
    finished = run_pgmkit("spectrum", "compute", tiny, "-o", out, *SMALL)
    assert finished.code == 0, finished.stderr
    return out


@pytest.fixture
def unfinished(saved: Path, tmp_path: Path) -> Path:
    """A spectrum that was stopped after three of five blocks."""
    folder = copied(saved, tmp_path / "unfinished")
    manifest = json.loads((folder / "manifest.json").read_text())
    for block in ("3", "4"):
        del manifest["blocks"][block]
        (folder / f"block-00000{block}.safetensors").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def one_error(finished: Finished) -> str:
    """Returns the error of a run that printed nothing but one line on stderr."""
    assert finished.stdout == ""
    return last_error(finished)


def last_error(finished: Finished) -> str:
    assert finished.code == 1
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    return finished.stderr


def told(*words: object) -> dict[str, Any]:
    finished = run_pgmkit(*words, "--json")
    assert finished.code == 0, finished.stderr
    printed: dict[str, Any] = json.loads(finished.stdout)
    return printed


def shatter(*words: object) -> Finished:
    return run_pgmkit("shatter", *words, "--clusters", 2, "--sampler", "kmeans-gmm")


def whole_files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.name != ".lock"}


class TestCompute:
    """`pgmkit spectrum compute`."""

    def test_the_folder_holds_what_python_computes(self, tiny: str, saved: Path) -> None:
        expected = pgmkit.compute_spectrum(
            pgmkit.load_generator(tiny), latents=LATENTS, seed=0, block_size=BLOCK
        )
        loaded = load_spectrum(saved)
        assert torch.equal(loaded.latents, expected.latents)
        torch.testing.assert_close(
            loaded.singular_values, expected.singular_values, rtol=1e-5, atol=0
        )
        assert loaded.provenance == expected.provenance

    def test_a_stopped_one_continues_to_the_same_bytes(
        self, tiny: str, saved: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed = []
        compute = JacobianSpectra.compute

        def counted(self: JacobianSpectra, z: torch.Tensor) -> dict[str, torch.Tensor]:
            computed.append(len(z))
            return compute(self, z)

        monkeypatch.setattr(JacobianSpectra, "compute", counted)
        assert run_pgmkit("spectrum", "compute", tiny, "-o", unfinished, *SMALL).code == 0
        assert sorted(computed) == [10, 20]
        assert whole_files(unfinished) == whole_files(saved)

    def test_a_complete_one_is_read_back(
        self, tiny: str, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(JacobianSpectra, "compute", lambda *_: pytest.fail("computed"))
        before = every_file(saved)
        again = run_pgmkit("spectrum", "compute", tiny, "-o", saved, *SMALL)
        assert again.stdout == run_pgmkit("spectrum", "info", saved).stdout
        assert every_file(saved) == before

    def test_it_prints_what_info_prints(self, tiny: str, saved: Path) -> None:
        printed = told("spectrum", "compute", tiny, "-o", saved, *SMALL)
        assert printed == told("spectrum", "info", saved)

    def test_one_that_was_stopped_within_its_first_block_continues(
        self, tiny: str, saved: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "block-000000.safetensors").write_bytes(b"no manifest names it")
        assert run_pgmkit("spectrum", "compute", tiny, "-o", tmp_path, *SMALL).code == 0
        assert whole_files(tmp_path) == whole_files(saved)

    def test_a_generator_that_moved_is_still_the_same(
        self, inputs: Path, unfinished: Path, saved: Path
    ) -> None:
        moved = copied(inputs / "tiny", unfinished.parent / "moved")
        config = json.loads((moved / "config.json").read_text())
        (moved / "config.json").write_text(json.dumps({**config, "name": "renamed"}))
        words = ("spectrum", "compute", f"local-dir:{moved}", "-o", unfinished, *SMALL)
        assert run_pgmkit(*words).code == 0
        assert torch.equal(
            load_spectrum(unfinished).singular_values, load_spectrum(saved).singular_values
        )

    @pytest.mark.usefixtures("no_estimate")
    def test_config_then_flags_then_set(self, inputs: Path, tiny: str, tmp_path: Path) -> None:
        words = ("spectrum", "compute", tiny, "--config", inputs / "words.toml", "--dry-run")

        def settings(*more: object) -> tuple[object, ...]:
            finished = run_pgmkit(*words, "-o", tmp_path / "out", *more)
            assert finished.code == 0, finished.stderr
            printed = json.loads(finished.stdout)
            assert printed["generator"].startswith("Generator('tiny'")
            assert printed["seconds"] == {"spectrum": 1.0}
            found = printed["settings"]
            assert len(found["generator"]["sha256"]) == 64
            return found["latents"], found["seed"], found["engine"]

        assert settings() == (40, 3, "local")
        assert settings("--seed", 4, "--engine", "local") == (40, 4, "local")
        both = settings("--latents", 50, "--set", "latents=60", "--set", "engine.workers=2")
        assert both == (60, 3, {"name": "local", "workers": 2})
        assert not list(tmp_path.iterdir())

    def test_its_settings_are_the_arguments_of_compute_spectrum(self, tiny: str) -> None:
        arguments = set(inspect.signature(pgmkit.compute_spectrum).parameters)
        own = {field.name for field in dataclasses.fields(SpectrumSettings)}
        assert own == arguments - {"generator", "latents", "seed", "out"}
        resolved = prepare({"source": tiny, "latents": 9, "engine": "local"}).resolved()
        assert set(resolved) == own | {"source", "generator", "latents", "seed", "device"}
        assert (resolved["latents"], resolved["engine"]) == (9, "local")

    def test_without_an_output_folder_it_is_wrong_usage(self, tiny: str) -> None:
        finished = run_pgmkit("spectrum", "compute", tiny)
        assert finished.code == 2
        assert "'--out'" in finished.stderr


BAD_COMPUTE: dict[str, tuple[list[object], str]] = {
    "no generator": ([], "no generator is given"),
    "unknown generator": (["mnist-dcgna"], "did you mean 'mnist-dcgan'"),
    "unknown setting": (["{tiny}", "--set", "latent=9"], "no setting 'latent'; did you mean"),
    "setting of shattering": (["{tiny}", "--set", "clusters=9"], "no setting 'clusters'"),
    "unknown engine": (["{tiny}", "--engine", "locla"], "did you mean 'local'"),
    "unknown engine parameter": (["{tiny}", "--set", "engine.worker=1"], "'workers'"),
    "engine as a number": (
        ["{tiny}", "--set", "engine=1"],
        "'engine' in the config must be a string or a table, not 1",
    ),
    "block size of zero": (["{tiny}", "--block-size", 0], "block_size"),
    "block size beyond all": (["{tiny}", "--block-size", 10**13], "at most 1,000,000"),
    "more latents than memory holds": (["{tiny}", "--latents", 10**13], "GB of memory, and"),
    "no latents": (["{tiny}", "--latents", 0], "the number of latents"),
    "latents as a word": (["{tiny}", "--set", "latents=many"], "not 'many'"),
    "device that is not there": (["{tiny}", "--device", "abacus"], "'abacus'"),
    "config that is not there": (["{tiny}", "--config", "{inputs}/none.toml"], "none.toml"),
}


@pytest.mark.parametrize("case", BAD_COMPUTE)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_bad_computation_is_one_line_and_leaves_no_folder(
    case: str, dry: tuple[str, ...], inputs: Path, tiny: str, tmp_path: Path
) -> None:
    words, said = BAD_COMPUTE[case]
    words = [str(word).format(inputs=inputs, tiny=tiny) for word in words]
    finished = run_pgmkit("spectrum", "compute", *words, "-o", tmp_path / "out", *dry)
    assert said in one_error(finished)
    assert not list(tmp_path.iterdir())


DAMAGED_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "latents beyond all": ({"num_latents": 10**12}, "is missing or damaged"),
    "a block beyond all": ({"num_latents": 10**12, "block_size": 10**12}, "block 0 of 1"),
    "latents as a word": ({"num_latents": "many"}, "num_latents is 'many'"),
    "blocks of zero": ({"block_size": 0}, "block_size is 0"),
    "no plan": ({"jacobian": [1]}, "must be objects"),
    "a plan of another kind": (
        {"jacobian": {"mode": "magic", "batch_size": 1, "tangents": 1}},
        "mode of jacobian is 'magic'",
    ),
    "probes as a word": ({"computed": {"probes": "x", "sketch": None}}, "computed is"),
    "landmarks of another kind": ({"landmarks": {"a": 1}}, "block 0 of 5"),
    "another format": ({"format_version": 2}, "of format 2"),
}


def test_a_folder_of_other_files_or_of_another_spectrum_is_left_alone(
    inputs: Path, tiny: str, saved: Path
) -> None:
    used = inputs / "used"
    before = every_file(used), every_file(saved)

    def compute(source: str, out: Path, *more: object) -> str:
        return one_error(run_pgmkit("spectrum", "compute", source, "-o", out, *SMALL, *more))

    assert "holds thesis.tex and no pgmkit spectrum" in compute(tiny, used)
    assert "another num_latents (90, not 91)" in compute(tiny, saved, "--set", "latents=91")
    assert "another block_size (20, not 21)" in compute(tiny, saved, "--set", "block_size=21")
    assert "another latents" in compute(tiny, saved, "--seed", 1)
    assert "another generator" in compute(f"local-dir:{inputs / 'double'}", saved)
    assert (every_file(used), every_file(saved)) == before


class TestInfo:
    """`pgmkit spectrum info`."""

    def test_the_numbers_are_those_of_numpy(self, saved: Path) -> None:
        loaded = load_spectrum(saved)
        values = loaded.singular_values.numpy()
        statistics = told("spectrum", "info", saved, "--rank-rtol", "0.3")["statistics"]
        expected = {
            "numeric_rank": (values > 0.3 * values[:, :1]).sum(axis=1),
            "condition_number": values[:, 0] / values[:, -1],
            "log_volume": np.log(np.maximum(values, 0.3 * values[:, :1])).sum(axis=1),
            "frobenius_norm": np.linalg.norm(values, axis=1),
            "log_prior": loaded.log_prior.numpy(),
        }
        assert statistics["quantiles"].keys() == expected.keys()
        shares = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}
        for name, numbers in expected.items():
            for label, share in shares.items():
                nearest = np.quantile(numbers, share, method="nearest")
                assert statistics["quantiles"][name][label] == pytest.approx(nearest, rel=1e-9)
        prior, volume = expected["log_prior"].std(), expected["log_volume"].std()
        assert statistics["std_ratio"] == pytest.approx(prior / volume)
        assert statistics["num_latents"] == LATENTS
        assert statistics["not_finite"] == 0

    def test_the_provenance_is_told(self, tiny: str, saved: Path) -> None:
        printed = told("spectrum", "info", saved)
        assert printed["complete"] is True
        assert printed["blocks"] == {"whole": 5, "of": 5}
        settings = printed["settings"]
        assert settings["generator"] == pgmkit.load_generator(tiny).fingerprint()
        assert (settings["generator_name"], settings["seed"]) == ("tiny", 0)
        assert settings["jacobian"]["mode"] == "layers"
        assert settings["dtype"] == "auto"
        table = run_pgmkit("spectrum", "info", saved).stdout
        for part in ("tiny", settings["generator"], "mode layers", "auto", "dominates"):
            assert part in table

    def test_the_term_of_larger_spread_is_named(self, saved: Path) -> None:
        statistics = told("spectrum", "info", saved)["statistics"]
        larger = "log prior" if statistics["std_ratio"] > 1 else "log-volume"
        assert f"{larger} dominates" in run_pgmkit("spectrum", "info", saved).stdout

    def test_an_unfinished_one_is_reported_and_is_an_error(self, unfinished: Path) -> None:
        finished = run_pgmkit("spectrum", "info", unfinished)
        assert "incomplete: 3 of 5 blocks are whole" in finished.stdout
        assert "block 3 of 5" in last_error(finished)
        printed = run_pgmkit("spectrum", "info", unfinished, "--json")
        last_error(printed)
        record = json.loads(printed.stdout)
        assert record["complete"] is False
        assert record["blocks"] == {"whole": 3, "of": 5}
        assert record["statistics"] is None

    def test_a_damaged_block_does_not_count(self, saved: Path, tmp_path: Path) -> None:
        folder = copied(saved, tmp_path / "damaged")
        shard = folder / "block-000001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
        assert count_blocks(folder)[1:] == (4, 5)
        finished = run_pgmkit("spectrum", "info", folder)
        assert "4 of 5 blocks are whole" in finished.stdout
        assert "block 1 of 5" in last_error(finished)

    def test_no_spectrum_and_a_damaged_manifest_are_one_line(
        self, saved: Path, inputs: Path, tmp_path: Path
    ) -> None:
        for folder in (tmp_path / "none", inputs / "used"):
            assert "holds no spectrum" in one_error(run_pgmkit("spectrum", "info", folder))
        folder = copied(saved, tmp_path / "damaged")
        (folder / "manifest.json").write_text("{")
        assert "manifest.json is damaged" in one_error(run_pgmkit("spectrum", "info", folder))

    @pytest.mark.parametrize("case", DAMAGED_SETTINGS)
    def test_a_manifest_that_claims_what_cannot_be_is_one_line(
        self, case: str, saved: Path, tiny: str, tmp_path: Path
    ) -> None:
        changes, said = DAMAGED_SETTINGS[case]
        folder = copied(saved, tmp_path / "damaged")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["settings"].update(changes)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        started = time.perf_counter()
        assert said in last_error(run_pgmkit("spectrum", "info", folder))
        last_error(shatter(tiny, "-o", tmp_path / "out", "--spectrum", folder))
        last_error(run_pgmkit("spectrum", "compute", tiny, "-o", folder, *SMALL))
        assert time.perf_counter() - started < 20

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"settings": ' * 2000, '{"blocks": [1]}'])
    def test_a_manifest_of_another_form_is_one_line(
        self, text: str, saved: Path, tiny: str, tmp_path: Path
    ) -> None:
        folder = copied(saved, tmp_path / "damaged")
        (folder / "manifest.json").write_text(text)
        assert "is damaged (" in one_error(run_pgmkit("spectrum", "info", folder))
        words = ("spectrum", "compute", tiny, "-o", folder, *SMALL)
        assert "is damaged (" in one_error(run_pgmkit(*words))

    def test_a_shattered_generator_names_the_folder_of_its_spectrum(
        self, saved: Path, tmp_path: Path
    ) -> None:
        copied(saved, tmp_path / "run" / "spectrum")
        error = one_error(run_pgmkit("spectrum", "info", tmp_path / "run"))
        assert f"there is one in {tmp_path / 'run' / 'spectrum'}" in error

    def test_a_rank_tolerance_outside_its_range_is_refused(self, saved: Path) -> None:
        for value in ("1", "-0.1", "nan"):
            finished = run_pgmkit("spectrum", "info", saved, "--rank-rtol", value)
            assert "rank_rtol" in one_error(finished)

    def test_infinite_numbers_are_null_and_spoil_no_others(self) -> None:
        values = torch.tensor([[2.0, 1.0], [3.0, 0.0], [4.0, 1.0], [torch.nan, torch.nan]])
        spectrum = pgmkit.Spectrum(torch.zeros(4, 2), values.double(), torch.zeros(4).double())
        statistics = summarize(spectrum)
        assert statistics["not_finite"] == 1
        assert statistics["quantiles"]["condition_number"] == {
            "min": 2.0,
            "q05": 2.0,
            "median": 4.0,
            "q95": None,
            "max": None,
        }
        assert statistics["quantiles"]["numeric_rank"]["min"] == 1
        json.dumps(statistics, allow_nan=False)
        nothing = summarize(pgmkit.Spectrum(*(part[3:] for part in vars_of(spectrum))))
        assert nothing["quantiles"] is None


def vars_of(spectrum: pgmkit.Spectrum) -> tuple[torch.Tensor, ...]:
    return spectrum.latents, spectrum.singular_values, spectrum.log_prior


class TestPlot:
    """`pgmkit spectrum plot`."""

    def test_the_panels_show_the_spectrum(self, saved: Path) -> None:
        spectrum = load_spectrum(saved)
        values = spectrum.singular_values.numpy()
        figure = figures.spectrum_overview(spectrum, rank_rtol=0.3)
        singular, volume, condition, rank, terms = figure.axes
        median, floor = (np.asarray(line.get_ydata()) for line in singular.lines)
        np.testing.assert_allclose(median, np.quantile(values, 0.5, axis=0))
        np.testing.assert_allclose(floor, spectrum.singular_values[:, 0].median() * 0.3)
        band = singular.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(band[:, 1].min(), np.quantile(values, 0.05, axis=0).min())
        np.testing.assert_allclose(band[:, 1].max(), np.quantile(values, 0.95, axis=0).max())
        for axes in (volume, condition, rank):
            assert sum(bar.get_height() for bar in axes.patches) == LATENTS
        ranks = {round(b.get_x() + b.get_width() / 2): b.get_height() for b in rank.patches}
        counts = spectrum.numeric_rank(0.3).bincount()
        assert ranks == {int(r): int(counts[r]) for r in counts.nonzero()}
        (points,) = terms.lines
        np.testing.assert_array_equal(points.get_xdata(), spectrum.log_prior)
        np.testing.assert_array_equal(points.get_ydata(), spectrum.log_volume(rank_rtol=0.3))
        assert (singular.get_yscale(), condition.get_xscale()) == ("log", "log")
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
        assert "tiny" in figure.get_suptitle()

    def test_latents_that_are_not_finite_and_infinite_conditions_are_left_out(self) -> None:
        values = torch.tensor([[2.0, 1.0], [3.0, 0.0], [torch.nan, torch.nan]]).double()
        spectrum = pgmkit.Spectrum(torch.zeros(3, 2), values, torch.zeros(3).double())
        _, volume, condition, rank, _ = figures.spectrum_overview(spectrum).axes
        drawn = [sum(b.get_height() for b in axes.patches) for axes in (volume, condition, rank)]
        assert drawn == [2, 1, 2]
        assert "1 infinite" in condition.get_xlabel()

    @pytest.mark.usefixtures("full_figures")
    def test_a_picture_is_written(self, saved: Path, tmp_path: Path) -> None:
        out = tmp_path / "new" / "spectrum.png"
        finished = run_pgmkit("spectrum", "plot", saved, "-o", out)
        assert (finished.code, finished.stdout) == (0, f"{out}\n")
        with Image.open(out) as picture:
            picture.load()
            assert picture.size == (1920, 1080)

    def test_what_cannot_be_drawn_is_one_line_and_no_file(
        self, saved: Path, unfinished: Path, tmp_path: Path
    ) -> None:
        def error(*words: object) -> str:
            return one_error(run_pgmkit("spectrum", "plot", *words))

        assert "not 'x.pdf'" in error(saved, "-o", tmp_path / "x.pdf")
        assert "block 3 of 5" in error(unfinished, "-o", tmp_path / "x.png")
        assert "holds no spectrum" in error(tmp_path / "none", "-o", tmp_path / "x.png")
        assert "rank_rtol" in error(saved, "-o", tmp_path / "x.png", "--rank-rtol", 2)
        assert not list(tmp_path.glob("x.*"))

    def test_nothing_finite_is_nothing_to_draw(self) -> None:
        values = torch.full((2, 2), torch.nan).double()
        spectrum = pgmkit.Spectrum(torch.zeros(2, 2), values, torch.zeros(2).double())
        with pytest.raises(pgmkit.PgmkitError, match="no latent"):
            figures.spectrum_overview(spectrum)


class TestShatterWithASpectrum:
    """`pgmkit shatter --spectrum`."""

    def test_it_computes_no_jacobian_and_ends_as_if_it_had(
        self, tiny: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fresh = shatter(tiny, "-o", tmp_path / "fresh", "--latents", LATENTS)
        assert fresh.code == 0, fresh.stderr
        monkeypatch.setattr(JacobianSpectra, "compute", lambda *_: pytest.fail("computed"))
        given = shatter(tiny, "-o", tmp_path / "given", "--spectrum", saved)
        assert given.code == 0, given.stderr
        for name in ("sampler.json", "sampler.safetensors", "samples.png", "model.safetensors"):
            assert (tmp_path / "given" / name).read_bytes() == (
                tmp_path / "fresh" / name
            ).read_bytes()
        assert not (tmp_path / "given" / "spectrum").exists()

    def test_every_density_reads_the_same_spectrum(
        self, tiny: str, saved: Path, tmp_path: Path
    ) -> None:
        for density in ("none", "polarity", "jbt", "lash"):
            words = ("-o", tmp_path / density, "--spectrum", saved, "--density", density)
            assert shatter(tiny, *words).code == 0

    def test_a_shattering_leaves_a_spectrum_for_the_next(self, tiny: str, tmp_path: Path) -> None:
        assert shatter(tiny, "-o", tmp_path / "a", "--latents", 40).code == 0
        words = ("-o", tmp_path / "b", "--spectrum", tmp_path / "a" / "spectrum", "--seed", 1)
        assert shatter(tiny, *words, "--density", "jbt").code == 0

    def test_the_report_and_the_record_say_where_it_came_from(
        self, tiny: str, saved: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        assert shatter(tiny, "-o", out, "--spectrum", saved).code == 0
        checksum = files.sha256(saved / "manifest.json")
        source = {"folder": str(saved), "manifest_sha256": checksum}
        recorded = json.loads((out / "run.json").read_text())["settings"]
        assert recorded["spectrum"] == source
        assert recorded["latents"] == LATENTS
        report = json.loads((out / "report.json").read_text())
        assert report["spectrum"] == {**source, "settings": dict(load_spectrum(saved).provenance)}
        assert checksum in (out / "report.html").read_text()

    def test_a_computed_one_is_in_the_report_too(self, tiny: str, tmp_path: Path) -> None:
        assert shatter(tiny, "-o", tmp_path, "--latents", 40).code == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["spectrum"].keys() == {"settings"}
        assert report["spectrum"]["settings"]["jacobian"]["mode"] == "layers"
        assert "computed in this run (layers mode, auto)" in (tmp_path / "report.html").read_text()

    def test_a_changed_spectrum_does_not_continue_the_run(
        self, tiny: str, saved: Path, tmp_path: Path
    ) -> None:
        folder, out = copied(saved, tmp_path / "spectrum"), tmp_path / "out"
        words = (tiny, "-o", out, "--spectrum", folder)
        assert shatter(*words).code == 0
        before = every_file(out)
        assert shatter(*words).code == 0
        for path in folder.iterdir():
            path.unlink()
        seeded = ("spectrum", "compute", tiny, "-o", folder, *SMALL, "--seed", 1)
        assert run_pgmkit(*seeded).code == 0
        assert "holds a run with spectrum" in one_error(shatter(*words))
        assert every_file(out) == before

    @pytest.mark.usefixtures("no_estimate")
    def test_it_may_stand_in_a_config(self, tiny: str, saved: Path, tmp_path: Path) -> None:
        config = tmp_path / "config.toml"
        config.write_text(f"source = '{tiny}'\nspectrum = '{saved}'\nclusters = 2")
        finished = run_pgmkit("shatter", "--config", config, "--dry-run")
        settings = json.loads(finished.stdout)["settings"]
        assert settings["latents"] == LATENTS
        assert settings["spectrum"]["folder"] == str(saved)

    def test_a_spectrum_of_another_generator_is_refused_with_both_names(
        self, inputs: Path, saved: Path, tmp_path: Path
    ) -> None:
        for source, name in (
            (f"local-dir:{inputs / 'double'}", "double"),
            ("mnist-dcgan", "mnist-dcgan"),
        ):
            error = one_error(shatter(source, "-o", tmp_path / "out", "--spectrum", saved))
            assert "another generator: 'tiny' (fingerprint " in error
            assert f"not '{name}' (" in error
        assert not (tmp_path / "out").exists()

    @pytest.mark.usefixtures("no_estimate")
    def test_the_number_of_latents_agrees_or_is_left_out(
        self, tiny: str, saved: Path, tmp_path: Path
    ) -> None:
        words = (tiny, "-o", tmp_path / "out", "--spectrum", saved)
        error = one_error(shatter(*words, "--latents", 100))
        assert "latents is 100" in error
        assert "has 90" in error
        assert "has 90" in one_error(shatter(*words, "--set", "latents=20000"))
        assert "leaves 72 of 90" in one_error(run_pgmkit("shatter", *words, "--clusters", 80))
        assert not (tmp_path / "out").exists()
        assert shatter(*words, "--latents", LATENTS, "--dry-run").code == 0

    def test_one_that_is_not_whole_is_one_line(
        self, tiny: str, unfinished: Path, tmp_path: Path
    ) -> None:
        words = (tiny, "-o", tmp_path / "out", "--spectrum")
        assert "block 3 of 5" in one_error(shatter(*words, unfinished))
        assert "holds no spectrum" in one_error(shatter(*words, tmp_path / "none"))
        assert "must be a string" in one_error(shatter(*words[:3], "--set", "spectrum=1"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--help"], ["spectrum", "--help"], ["spectrum", "plot", "-h"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from pgmkit.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    assert "spectrum" in finished.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["spectrum", "computer"],
        ["spectrum", "info"],
        ["spectrum", "info", "x", "--rank-rtol", "small"],
        ["spectrum", "plot", "x"],
        ["spectrum", "compute", "tiny", "--latents", "many"],
        ["spectrum", "compute", "tiny", "--clusters", "3"],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    finished = run_pgmkit(*words)
    assert finished.code == 2
    assert finished.stdout == ""
    assert "Usage: " in finished.stderr
