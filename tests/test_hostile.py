"""Hostile, broken and absurd input at the command line: one true line, soon, with the next step."""

import bz2
import contextlib
import gc
import gzip
import io
import json
import lzma
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from processes import forked
from tiny import (
    Finished,
    command,
    copied,
    environment,
    every_file,
    run_pgmkit,
    write_tiny_generator,
)

import pgmkit
from pgmkit import files, machine, runs
from pgmkit.cache import cache_folder
from pgmkit.cli import main
from pgmkit.errors import (
    DataError,
    LoadError,
    OutputError,
    ParameterError,
    PgmkitWarning,
    PluginError,
)
from pgmkit.images import load_images

SMALL = ("--clusters", 3, "--latents", 60, "--sampler", "kmeans-gmm")
DEEP = "[" * 2000 + "]" * 2000
LONG = "b" * 300


@pytest.fixture(autouse=True)
def _no_garbage_is_collected() -> Iterator[None]:
    """Finalizers fail where a reader of nested input has used the whole stack."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_generator(tmp_path_factory.mktemp("inputs") / "tiny")


@pytest.fixture(scope="module")
def result(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("result") / "out"
    finished = run_pgmkit("shatter", tiny, "-o", out, *SMALL)
    assert finished.code == 0, finished.stderr
    return out


def last_line(finished: Finished, code: int = 1) -> str:
    """Returns the error of a run that printed no data and no traceback."""
    assert finished.code == code, finished
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert line.lower().startswith("error: ")
    assert len(line) < 2500
    return line


def soon(*words: object) -> str:
    """Returns the only line that a command prints, which takes it less than five seconds."""
    begun = time.monotonic()
    finished = run_pgmkit(*words)
    assert time.monotonic() - begun < 5
    assert finished.stderr.count("\n") == 1, finished.stderr
    return last_line(finished)


SETTINGS = {
    "a bool as a word": ("density.prior_term=maybe", "true or false, not 'maybe'"),
    "a quoted bool": ("density.prior_term='False'", "'False'; write it without quotes"),
    "a number for a bool": ("density.prior_term=0", "true or false, not 0"),
    "a number in quotes": ("density.rank_rtol='0.1'", "a number, not '0.1'; write it without"),
    "a word for a number": ("density.rank_rtol=small", "rank_rtol = a number, not 'small'"),
    "a misspelt word": ("density.null=flor", "did you mean 'floor'"),
    "a list for a number": ("sampler.num_starts=[1]", "a whole number, not [1]"),
    "a list for a table": ("generator=[1]", "'generator' in the config must be a table"),
    "a quoted number of workers": (
        "spectrum.engine.workers='2'",
        "workers = a whole number or nothing",
    ),
    "a setting of the run": ("spectrum.cache=maybe", "'cache' in the table 'spectrum' must be"),
    "nesting": (f"sampler.x={DEEP}", "--set sampler.x is nested more than 100 levels"),
    "parts of a value": (f"seed.{LONG}=1", "'seed' is a value and has no parts"),
    "no value": ("x" * 5000, "--set takes name=value"),
    "an unknown parameter": (f"density.{LONG}=1", "has no parameter"),
    "an unknown parameter of the engine": ("spectrum.engine.wrkers=1", "did you mean 'workers'"),
    "a mapper of another type": ("mapper=[1]", "mapper"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_of_another_type_is_refused(case: str, tiny: str, tmp_path: Path) -> None:
    override, said = SETTINGS[case]
    words = ("--set", "seed=1", "--set", override)
    sampler = ("--sampler", "kmeans-gmm") if override.startswith("sampler") else ()
    error = soon("shatter", tiny, "-o", tmp_path / "out", *sampler, *words)
    assert said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_estimate")
@pytest.mark.parametrize(("word", "meant"), [("False", False), ("True", True), ("false", False)])
def test_words_of_python_mean_what_they_mean_there(word: str, meant: bool, tiny: str) -> None:
    finished = run_pgmkit("shatter", tiny, "--dry-run", "--set", f"density.prior_term={word}")
    assert json.loads(finished.stdout)["settings"]["density"]["params"]["prior_term"] is meant


@pytest.mark.usefixtures("no_estimate")
def test_none_of_python_is_nothing(tiny: str) -> None:
    polarity = ("--density", "polarity", "--set", "density.top_k=None")
    finished = run_pgmkit("shatter", tiny, "--dry-run", *polarity)
    assert json.loads(finished.stdout)["settings"]["density"]["params"]["top_k"] is None


def picture(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, 128).save(buffer, "PNG")
    return buffer.getvalue()


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return path


def tar_of(path: Path, *names: str, **changed: Any) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 0 if "type" in changed else len(picture())
            for key, value in changed.items():
                setattr(member, key, value)
            archive.addfile(member, None if "size" in changed else io.BytesIO(picture()))
    return path


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def overlong(path: Path, magic: str) -> Path:
    """A few kilobytes that become many megabytes."""
    opened: Any = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}[magic](path, "wb")
    with opened as file:
        for _ in range(24):
            file.write(bytes(2**20))
    return path


def changed_byte(path: Path, place: int) -> Path:
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)
    return path


ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip up": (
        lambda p: zip_of(p / "x.zip", ("../a.png", picture())),
        "holds '../a.png', a path that leads out of it",
    ),
    "zip absolute": (
        lambda p: zip_of(p / "x.zip", ("/etc/a.png", picture())),
        "holds '/etc/a.png', a path that leads out of it",
    ),
    "zip of another system": (
        lambda p: zip_of(p / "x.zip", ("C:\\a\\a.png", picture())),
        "a path that leads out of it",
    ),
    "zip upwards in Windows": (
        lambda p: zip_of(p / "x.zip", ("a\\..\\..\\a.png", picture())),
        "a path that leads out of it",
    ),
    "zip link": (
        lambda p: zip_of(p / "x.zip", (link("a.png"), b"/etc/passwd")),
        "holds 'a.png', which is a link or no regular file",
    ),
    "zip bomb": (
        lambda p: zip_of(p / "x.zip", ("a/a.png", picture()), ("a/b.png", bytes(2**25))),
        "holds 'a/b.png', which becomes unduly large when it is unpacked",
    ),
    "tar large": (
        lambda p: tar_of(p / "x.tar", "a/b.png", size=2**40),
        "holds 'a/b.png', which becomes unduly large when it is unpacked",
    ),
    "zip twice": (
        lambda p: zip_of(p / "x.zip", ("a/b.png", picture()), ("a\\b.png", picture())),
        "holds 'a/b.png', twice; make the archive again without it",
    ),
    "zip damaged": (
        lambda p: changed_byte(zip_of(p / "x.zip", ("a/b.png", picture((99, 99)))), 60),
        "x.zip/b.png cannot be read as an image: ",
    ),
    "zip of no pictures": (
        lambda p: zip_of(p / "x.zip", ("a/b.png", b"<html>not found</html>")),
        "x.zip/b.png cannot be read as an image: its content is of no known kind",
    ),
    "tar up": (lambda p: tar_of(p / "x.tar", "a/../../a.png"), "a path that leads out of it"),
    "tar absolute": (lambda p: tar_of(p / "x.tar", "/etc/a.png"), "a path that leads out of it"),
    "tar symbolic link": (
        lambda p: tar_of(p / "x.tar", "a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "holds 'a.png', which is a link or no regular file",
    ),
    "tar hard link": (
        lambda p: tar_of(p / "x.tar", "a.png", type=tarfile.LNKTYPE, linkname="b.png"),
        "which is a link or no regular file",
    ),
    "tar device": (
        lambda p: tar_of(p / "x.tar", "a.png", type=tarfile.CHRTYPE),
        "which is a link or no regular file",
    ),
    "tar twice": (lambda p: tar_of(p / "x.tar", "a.png", "a.png"), "holds 'a.png', twice"),
    "tar.gz bomb": (lambda p: overlong(p / "x.tar.gz", "gz"), "becomes more than 200 times as"),
    "tar.xz bomb": (lambda p: overlong(p / "x.tar.xz", "xz"), "becomes more than 200 times as"),
    "tar.bz2 bomb": (lambda p: overlong(p / "x.tar.bz2", "bz2"), "becomes more than 200 times as"),
    "text": (
        lambda p: p / "x.tar" if (p / "x.tar").write_text("hello" * 300) else p,
        "x.tar is no zip or tar archive, or a damaged one",
    ),
    "nothing": (
        lambda p: p / "x.zip" if (p / "x.zip").write_bytes(b"") == 0 else p,
        "x.zip is no zip or tar archive, or a damaged one",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_of_pictures_that_mean_harm_are_refused(case: str, tmp_path: Path) -> None:
    make, said = ARCHIVES[case]
    path = make(tmp_path)
    before = every_file(tmp_path)
    begun = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_images(str(path))
    assert time.monotonic() - begun < 5
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert every_file(tmp_path) == before  # nothing in it became a file


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_that_were_cut_off_are_told(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    content = [(f"a/{index}.png", picture((64, 64))) for index in range(9)]
    if kind == "zip":
        zip_of(path, *content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, data in content:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    whole = path.read_bytes()
    for share in (0.2, 0.3, 0.4, 0.5):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match="no zip or tar archive, or a damaged one"):
            load_images(str(path))


CONFIGS = {
    "nested arrays": (f"x = {DEEP}", "nested more than 100 levels"),
    "nested tables": ("[" + ".".join("a" * 1000) + "]", "nested more than 100 levels"),
    "a bool as text": ("[density]\nname = 'lash'\nprior_term = 'False'", "write it without quotes"),
    "not UTF-8": (b"seed = '\xff'", "is not valid TOML"),
    "two megabytes": ("#" * 2**21, "larger than 1 MiB"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_broken_config_file_is_told(case: str, tiny: str, tmp_path: Path) -> None:
    text, said = CONFIGS[case]
    (tmp_path / "c.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    error = soon("shatter", tiny, "-o", tmp_path / "out", "--config", tmp_path / "c.toml")
    assert said in error


OUTPUTS: dict[str, tuple[str, str]] = {
    "too long": (LONG, "File name too long; choose a shorter name"),
    "too deep": ("/".join(["c" * 100] * 60), "File name too long"),
    "a device": ("/dev/stdout", "is a file; choose another"),
    "under a file": ("file/run", "Not a directory"),
    "in a result": ("result/inner", "holds a result of pgmkit; choose a place outside"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_folder_that_cannot_be_one_is_refused(
    case: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "run.json").write_text("{}")
    out, said = OUTPUTS[case]
    finished = run_pgmkit("shatter", tiny, "-q", "-o", out, *SMALL)
    assert said in last_line(finished)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run"])
@pytest.mark.parametrize("name", ["shatter", "sample"])
def test_a_url_is_no_place_for_what_goes_to_a_disk(
    name: str, url: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is a URL, and this command writes to a disk" in last_line(
        run_pgmkit(name, tiny, "-o", url), code=2
    )
    assert not list(tmp_path.iterdir())


def test_a_spectrum_is_written_to_a_url(tiny: str, tmp_path: Path) -> None:
    finished = run_pgmkit("spectrum", "compute", tiny, "-o", "memory://run", "--latents", 8)
    assert finished.code == 0, finished.stderr
    assert len(pgmkit.spectrum.load_spectrum("memory://run")) == 8


SAMPLES: dict[str, tuple[str, str]] = {
    "a result": ("result", "holds a result of pgmkit"),
    "in a result": ("result/x.png", "holds a result of pgmkit"),
    "a folder with other files": ("mine", "holds other things, such as thesis.tex"),
    "a folder with pictures": ("pictures", "holds pictures already"),
    "a picture that is there": ("x.png", "is there already; choose another name"),
    "a folder with a suffix": ("folder.png", "is a folder; give a file"),
    "a device": ("/dev/stdout", "is no folder"),
    "a file": ("notes", "is no folder"),
    "too long": (f"{LONG}.png", "choose a shorter name"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_sample_spoils_nothing_that_is_there(
    case: str, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied(result, tmp_path / "result")
    for folder in ("mine", "pictures", "folder.png"):
        (tmp_path / folder).mkdir()
    for name in ("mine/thesis.tex", "pictures/0.png", "x.png", "notes"):
        (tmp_path / name).write_text("work")
    before = every_file(tmp_path)
    out, said = SAMPLES[case]
    assert said in soon("sample", result, "-n", 2, "-o", out)
    assert every_file(tmp_path) == before


def test_a_sample_is_replaced_where_that_is_asked_for(result: Path, tmp_path: Path) -> None:
    for out, count in (("x.png", 2), ("folder", 12), ("folder", 3)):
        words = ("sample", result, "-n", count, "-o", tmp_path / out, "--overwrite")
        assert run_pgmkit(*words).code == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
    ]


SIZES: dict[str, tuple[list[object], str]] = {
    "latents": (["shatter", "TINY", "--latents", 10**12], "ask for fewer latents"),
    "clusters": (
        ["shatter", "TINY", "--latents", 10**7, "--clusters", 10**6, "--sampler", "kmeans-gmm"],
        "ask for fewer",
    ),
    "more clusters than latents": (["shatter", "TINY", "--clusters", 10**6], "as many latents"),
    "samples": (["sample", "RESULT", "-n", 10**9], "1,000,000,000 images need about"),
    "evaluation": (["evaluate", "RESULT", "-n", 10**10], "10,000,000,000 images need about"),
}


@pytest.mark.parametrize("case", SIZES)
def test_what_no_memory_holds_is_told_before_it_is_taken(
    case: str, tiny: str, result: Path, tmp_path: Path
) -> None:
    words, said = SIZES[case]
    given = [{"TINY": tiny, "RESULT": result}.get(str(word), word) for word in words]
    name = "x.png" if words[0] == "sample" else "out"
    assert said in soon(*given, "-o", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_memory_counts_what_a_shell_allows() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 10**8, limits[1]))
    try:
        left = machine.available_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert left is not None
    assert left <= 10**8
    with pytest.raises(ParameterError, match=r"things need about 1,000,000\.0 GB .* free; wait"):
        machine.check_memory(10**15, "things", "wait")


def damage(**changes: object) -> Callable[[Path], None]:
    """Returns what changes fields of `sampler.json`; None removes one."""

    def change(folder: Path) -> None:
        description = json.loads((folder / "sampler.json").read_text())
        for name, value in changes.items():
            description[name] = value
            if value is None:
                del description[name]
        (folder / "sampler.json").write_text(json.dumps(description))

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Returns what replaces a file."""

    def change(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return change


def sampler(name: str = "kmeans-gmm", **params: object) -> Callable[[Path], None]:
    return damage(sampler={"name": name, "params": params})


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "sizes of words": (damage(cluster_sizes=[-1, "x", None]), "cluster_sizes are whole numbers"),
    "sizes of zero": (damage(cluster_sizes=[0, 0, 0]), "there is nothing in its clusters"),
    "negative sizes": (damage(cluster_sizes=[5, -1, 5]), "cluster_sizes are whole numbers"),
    "too many sizes": (damage(cluster_sizes=[9] * 8), "8 cluster_sizes, and the cluster sampler"),
    "sizes as a table": (damage(cluster_sizes={"a": 1}), "cluster_sizes are whole numbers"),
    "true as a size": (damage(cluster_sizes=[True, 1, 1]), "cluster_sizes are whole numbers"),
    "no sizes": (damage(cluster_sizes=None), "cluster_sizes are whole numbers"),
    "no origin": (damage(statistics=None), "'statistics' must be a table"),
    "sampler a list": (damage(sampler=[1]), "'sampler' must be a table"),
    "sampler without a name": (damage(sampler={"params": {}}), "there is no 'name'"),
    "an unknown sampler": (sampler("os:system"), "no cluster-sampler is called 'os:system'"),
    "another sampler": (sampler("partition", partitioner="kmeans"), "sampler.safetensors"),
    "unknown parameters": (sampler(evil=1), "has no parameter 'evil'"),
    "parameters of other types": (sampler(num_starts="3"), "num_starts = a whole number"),
    "parameters as a list": (damage(sampler={"name": "x", "params": [1]}), "there is no 'params'"),
    "a model from elsewhere": (
        sampler(
            "partition",
            partitioner={"name": "kmeans", "features": {"name": "timm", "model": "hf-hub:a/b"}},
        ),
        "no timm model",
    ),
    "nesting": (text("sampler.json", "[" * 10**5), "nested more than 100 levels"),
    "nesting that closes": (text("sampler.json", DEEP), "nested more than 100 levels"),
    "a list": (text("sampler.json", "[]"), "must be a JSON object"),
    "not UTF-8": (text("sampler.json", b"\xff\xfe\xfd"), "is not valid JSON"),
    "100 MB of brackets": (text("sampler.json", "[" * 10**8), "larger than 64 MiB"),
    "config nested": (text("config.json", "[" * 10**5), "nested more than 100 levels"),
    "state of another kind": (text("sampler.safetensors", b"x" * 100), "truncated or damaged"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_result_that_was_tampered_with_is_refused(
    case: str, result: Path, tmp_path: Path
) -> None:
    folder = copied(result, tmp_path / "result")
    change, said = TAMPERED[case]
    change(folder)
    assert said in soon("sample", folder, "-n", 2, "-o", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_loading_a_result_imports_nothing_that_it_names(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = pgmkit.load_generator(tiny)
    made = pgmkit.shatter(generator, clusters=3, latents=60, partitioner="clusterer")
    made.save_pretrained(tmp_path / "result")
    path = tmp_path / "result" / "sampler.json"
    description = json.loads(path.read_text())
    description["sampler"]["params"]["partitioner"]["clusterer"] = "evil_module:Evil"
    path.write_text(json.dumps(description))
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    shattered = pgmkit.ShatteredGenerator.from_pretrained(tmp_path / "result")
    assert shattered.sample(2, cluster=1).shape == (2, 1, 32, 32)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    "report",
    ["[" * 10**5, '{"clusters": [{"name": 1}], "seconds": {}}'],
)
def test_a_damaged_report_is_made_anew(
    report: str, tiny: str, result: Path, tmp_path: Path
) -> None:
    folder = copied(result, tmp_path / "result")
    (folder / "report.json").write_text(report)
    finished = run_pgmkit("shatter", tiny, "-q", "-o", folder, *SMALL)
    assert finished.code == 0, finished.stderr
    assert "(the report is made anew)" in finished.stderr
    again = json.loads((folder / "report.json").read_text())
    assert again["clusters"] == json.loads((result / "report.json").read_text())["clusters"]


WRONG: dict[str, tuple[list[object], str]] = {
    "a cluster of a generator": (
        ["sample", "mnist-dcgan", "--cluster", 3, "-o", "x.png"],
        "pgmkit shatter mnist-dcgan -o",
    ),
    "the clusters of a generator": (["evaluate", "TINY"], "pgmkit shatter local-dir:"),
    "a run for a spectrum": (["spectrum", "info", "RESULT"], "there is one in"),
    "an unknown user": (["info", "local-dir:~nosuchuser"], "write the whole path"),
    "an endless name": (["info", "a" * 5000], "a"),
    "an endless folder": (["info", f"local-dir:{'a' * 5000}"], "File name too long"),
    "an unknown kind": (["components", "ls", "density"], "did you mean 'density-estimators'"),
    "an unknown device": (
        ["spectrum", "compute", "TINY", "-o", "s", "--device", "x"],
        "cpu always",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_was_meant_is_told(
    case: str, tiny: str, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, said = WRONG[case]
    assert said in soon(*({"TINY": tiny, "RESULT": result}.get(str(w), w) for w in words))


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["shater"], "shatter"), (["spectrum", "comput"], "compute"), (["plugin"], "plugins")],
)
def test_a_misspelt_command_gets_a_suggestion(words: list[str], meant: str) -> None:
    assert f"Did you mean '{meant}'" in last_line(run_pgmkit(*words), code=2)


def test_a_missing_output_is_told_before_torch_is_imported() -> None:
    code = (
        "import sys; from pgmkit.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "shatter", "mnist-dcgan"]
    run = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert run.stdout == "False\n"
    assert "Missing option '-o'" in run.stderr


def test_terminals_obey_nothing_from_a_foreign_file(tmp_path: Path) -> None:
    write_tiny_generator(tmp_path / "tiny")
    path = tmp_path / "tiny" / "config.json"
    config = json.loads(path.read_text())
    config |= {"license": "MIT\x1b[2J\x9b1m\nname  evil", "architecture": "x\x07\x1b]0;t"}
    path.write_text(json.dumps(config))
    told = run_pgmkit("info", f"local-dir:{tmp_path / 'tiny'}")
    assert told.code == 0
    error = last_line(run_pgmkit("shatter", f"local-dir:{tmp_path / 'tiny'}", "-o", tmp_path / "o"))
    for shown in (told.stdout, error):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert r"MIT\x1b[2J\x9b1m name  evil" in told.stdout


def test_reading_and_writing_errors_say_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path / "folder", "it")
    with pytest.raises(OutputError, match=r"Is a directory; choose another place$"):
        files.write_bytes(tmp_path / "folder", b"x")
    assert not list(tmp_path.glob(".pgmkit*"))
    denied = PermissionError(13, "Permission denied")
    assert files.remedied(denied) == "Permission denied; choose a place that you may write to"
    full = OSError(28, os.strerror(28))
    assert files.remedied(full).startswith("No space left on device; free some space")


def test_what_is_stopped_while_it_writes_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "x", b"half")
    assert not list(tmp_path.iterdir())


WRITING = """
import pathlib, click
from pgmkit import files
from pgmkit.cli import main

@click.command()
@click.argument("out", type=pathlib.Path)
def write(out):
    with files.single_writer(out):
        while True:
            files.write_bytes(out / "data", bytes(2**20))

main(write)
"""


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT], 1), ([signal.SIGINT] * 3, 1)]
)
def test_signals_end_a_run_in_one_line_and_leave_nothing_half_written(
    signals: list[signal.Signals], code: int, tmp_path: Path
) -> None:
    with forked("-c", WRITING, tmp_path / "out") as process:
        while not (tmp_path / "out" / "data").exists() and process.poll() is None:
            time.sleep(0.01)
        for number in signals:
            process.send_signal(number)
        run = process.finished(30)
    assert (run.code, run.stdout) == (code, "")
    assert run.stderr.strip().startswith("stopped")
    assert run.stderr.strip().count("\n") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "data"}
    assert (tmp_path / "out" / "data").stat().st_size == 2**20


def test_a_full_stdout_is_told_and_the_run_is_complete(tiny: str, tmp_path: Path) -> None:
    stderr = io.StringIO()
    words = ("spectrum", "compute", tiny, "-q", "-o", tmp_path / "out", "--latents", 8)
    with (
        Path("/dev/full").open("w") as full,
        mock.patch.object(sys, "argv", ["pgmkit", *map(str, words)]),
        contextlib.redirect_stdout(full),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    assert stop.value.code == 1
    assert stderr.getvalue().count("\n") == 1
    assert "cannot be printed: No space left on device" in stderr.getvalue()
    assert len(pgmkit.spectrum.load_spectrum(tmp_path / "out")) == 8


def test_a_closed_stdout_is_no_error() -> None:
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command("components", "ls")]
    run = subprocess.run(closed, stderr=subprocess.PIPE, text=True, env=environment())
    assert (run.returncode, run.stderr) == (0, "")


def test_a_user_without_a_home_has_a_cache_that_ends_with_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pwd

    def nobody(number: int) -> None:
        raise KeyError(number)

    for name in ("PGMKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.warns(PgmkitWarning, match="no home folder.*set PGMKIT_CACHE"):
        folder = cache_folder("spectra")
    assert folder.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_device_is_the_best_that_is_there(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert machine.check_device("auto") == torch.device(chosen)
    assert machine.check_device("cpu") == torch.device("cpu")


def test_records_say_which_device_was_used(result: Path) -> None:
    used = machine.check_device("auto").type
    assert json.loads((result / "run.json").read_text())["devices"] == [used]
    report = json.loads((result / "report.json").read_text())
    assert torch.device(report["device"]).type == used
    assert report["spectrum"]["settings"]["device"] == used


def test_a_run_that_continues_on_another_device_says_so(tmp_path: Path) -> None:
    runs.record(tmp_path, {"seed": 0}, device="cuda:1")
    runs.record(tmp_path, {"seed": 0}, device="cuda:0")
    with pytest.warns(PgmkitWarning, match="was begun on cuda and continues on cpu"):
        runs.record(tmp_path, {"seed": 0}, device="cpu")
    runs.record(tmp_path, {"seed": 0}, device="cpu")
    assert json.loads((tmp_path / "run.json").read_text())["devices"] == ["cuda", "cpu"]


class Sampler:
    """A cluster sampler of another hand, broken in the way that it is told."""

    def __init__(self, **broken: object) -> None:
        self.broken = broken

    def fit(self, latents: torch.Tensor, **_: object) -> None:
        self.labels_ = self.broken.get("labels", torch.arange(len(latents)) % 2)
        if "fit" in self.broken:
            raise ZeroDivisionError("no\nreason")
        if "nothing" in self.broken:
            del self.labels_

    def predict(self, latents: torch.Tensor) -> object:
        return self.broken.get("predict", torch.zeros(len(latents), dtype=torch.int64))

    def sample(self, n: int, cluster: int, seed: int) -> object:
        return self.broken.get("sample", torch.zeros(n, 4))


def shattered(tiny: str, **broken: object) -> pgmkit.ShatteredGenerator:
    generator = pgmkit.load_generator(tiny)
    return pgmkit.shatter(generator, sampler=Sampler(**broken), clusters=3, latents=10, remove=0.0)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"fit": True}, "failed in fit: ZeroDivisionError: no"),
        ({"nothing": True}, "has no labels_"),
        ({"labels": torch.full((10,), -1)}, "has labels_ from -1 to -1"),
        ({"labels": torch.zeros(10)}, r"has labels_ of float32 numbers of shape \(10,\)"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, r"of shape \(9,\)"),
        ({"labels": "aaaaaaaaaa"}, "has labels_ of type str for 10 latents; they must be a tensor"),
        ({"labels": np.arange(10) % 3}, "has labels_ of type ndarray and shape"),
    ],
)
def test_a_sampler_that_breaks_its_contract_is_named(
    broken: dict[str, object], said: str, tiny: str
) -> None:
    with pytest.raises(PluginError, match=said) as error:
        shattered(tiny, **broken)
    assert "'Sampler'" in str(error.value)


@pytest.mark.parametrize(
    "drawn", [torch.zeros(3, 4), torch.zeros(2, 5), torch.full((2, 4), torch.nan), "latents"]
)
def test_draws_of_another_shape_are_refused(drawn: object, tiny: str) -> None:
    with pytest.raises(PluginError, match=r"cluster.sampler 'Sampler' (draws|failed to draw)"):
        shattered(tiny, sample=drawn).sample(2, cluster=0)


def test_clusters_beyond_those_of_the_labels_are_refused(tiny: str) -> None:
    made = shattered(tiny, labels=torch.arange(10, dtype=torch.int32) % 3)
    assert made.cluster_sizes == [4, 3, 3]
    assert made.predict(torch.zeros(2, 4)).tolist() == [0, 0]
    with pytest.raises(PluginError, match="from 7 to 7; clusters are counted from 0 to 2"):
        shattered(tiny, predict=torch.tensor([7, 7])).predict(torch.zeros(2, 4))


def test_a_density_estimator_that_fails_is_named(tiny: str) -> None:
    class Density:
        def log_weights(self, spectrum: pgmkit.Spectrum) -> torch.Tensor:
            raise IndexError("17")

    with pytest.raises(PluginError, match="'Density' failed in log_weights: IndexError: 17"):
        pgmkit.shatter(pgmkit.load_generator(tiny), density=Density(), latents=20)
