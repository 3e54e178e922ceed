"""The cache of finished spectra: used when whole, never in the way."""

import dataclasses
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from tiny import begin_like, run_pgmkit, write_tiny_generator
from torch import nn

import pgmkit
from pgmkit import progress
from pgmkit.cache import cache_folder
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.files import write_bytes
from pgmkit.spectrum.differentiation import Differentiator, JacobianPlan
from pgmkit.spectrum.jacobian import JacobianSpectra


def toy(width: int = 16) -> pgmkit.Generator:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, width), nn.Tanh())
    return pgmkit.Generator(network, pgmkit.LatentSpec(3), pgmkit.ImageSpec((1, 1, width)))


class Computed:
    """Counts the blocks that are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = 0
        compute = JacobianSpectra.compute

        def counted(jacobians: JacobianSpectra, z: torch.Tensor) -> dict[str, torch.Tensor]:
            self.blocks += 1
            return compute(jacobians, z)

        monkeypatch.setattr(JacobianSpectra, "compute", counted)

    def during(self, **arguments: object) -> int:
        """Returns how many blocks this spectrum needed."""
        before = self.blocks
        arguments = {"latents": 30, "block_size": 8, "cache": True, **arguments}
        generator = arguments.pop("generator", None) or toy()
        pgmkit.compute_spectrum(generator, **arguments)  # type: ignore[arg-type]
        return self.blocks - before


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(monkeypatch)


def entries() -> list[Path]:
    return sorted(cache_folder("spectra").glob("[!.]*"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix}


def test_a_second_spectrum_of_the_same_generator_and_latents_is_not_computed(
    computed: Computed, tmp_path: Path
) -> None:
    assert computed.during() == 4
    assert computed.during() == 0
    assert computed.during(out=tmp_path / "a") == 0
    begin_like(tmp_path / "a", tmp_path / "b")
    assert computed.during(cache=False, out=tmp_path / "b") == 4
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b") == bytes_of(entries()[0])
    assert len(entries()) == 1


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"latents": 31}, {"block_size": 9}, {"generator": toy(12)}]
)
def test_another_generator_or_other_latents_are_computed(
    computed: Computed, other: dict[str, object]
) -> None:
    assert computed.during() == 4
    assert computed.during(**other) == 4
    assert len(entries()) == 2


def test_the_cache_is_off_unless_it_is_asked_for(computed: Computed) -> None:
    assert computed.during(cache=False) == 4
    assert not entries()


def test_another_density_or_sampler_setting_uses_the_same_entry(
    computed: Computed, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "partitioner": {"name": "kmeans", "features": "latents"},
        "clusters": 2,
        "latents": 300,
        "spectrum": {"cache": True},
    }
    with progress.shown():
        pgmkit.shatter(toy(), **arguments)  # type: ignore[arg-type]
        assert capsys.readouterr().err == ""
        before = computed.blocks
        pgmkit.shatter(toy(), density="jbt", remove=0.5, **arguments)  # type: ignore[arg-type]
    assert computed.blocks == before
    assert capsys.readouterr().err == "spectrum read from the cache\n"


def test_blocks_that_the_cache_lacks_are_told_only_where_progress_is_shown(
    computed: Computed, capsys: pytest.CaptureFixture[str]
) -> None:
    computed.during()
    (entries()[0] / "block-000002.safetensors").unlink()
    with progress.shown():
        assert computed.during() == 1
    assert capsys.readouterr().err == "spectrum read from the cache, 3 of 4 blocks\n"
    assert computed.during() == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["missing", "truncated", "bit flipped"])
def test_only_a_damaged_block_of_an_entry_is_computed_and_the_entry_is_mended(
    computed: Computed, damage: str
) -> None:
    computed.during()
    whole = bytes_of(entries()[0])
    shard = entries()[0] / "block-000002.safetensors"
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-5])
    else:
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert computed.during() == 1
    assert computed.during() == 0
    assert bytes_of(entries()[0]) == whole


@pytest.mark.parametrize("manifest", [b"{}", b"\xff", None])
def test_a_damaged_manifest_of_an_entry_is_no_error(
    computed: Computed, manifest: bytes | None
) -> None:
    computed.during()
    path = entries()[0] / "manifest.json"
    path.unlink()
    if manifest is not None:
        path.write_bytes(manifest)
    computed.during()
    assert computed.during() == 0


def test_a_started_folder_goes_on_with_its_own_plan(
    computed: Computed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Differentiator._choose_plan

    def otherwise(self: Differentiator, memory: int) -> JacobianPlan:
        return dataclasses.replace(choose(self, memory), batch_size=3)

    computed.during()
    with monkeypatch.context() as patch:
        patch.setattr(Differentiator, "_choose_plan", otherwise)
        computed.during(cache=False, out=tmp_path)
    whole = bytes_of(tmp_path)
    (tmp_path / "block-000001.safetensors").unlink()
    assert computed.during(out=tmp_path) == 1
    assert bytes_of(tmp_path) == whole


def test_a_cache_that_cannot_be_written_is_a_warning(
    computed: Computed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstacle = tmp_path / "file"
    obstacle.write_text("")
    monkeypatch.setenv("PGMKIT_CACHE", str(obstacle))
    with pytest.warns(PgmkitWarning, match="was not put into the cache"):
        assert computed.during() == 4


def test_a_full_disk_is_a_warning_and_leaves_nothing_half_done(
    computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) > 2:
            raise OSError(28, os.strerror(28))
        write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("pgmkit.files.write_bytes", full)
        with pytest.warns(PgmkitWarning, match="No space left"):
            computed.during()
    assert not entries()
    assert computed.during() == 4
    assert computed.during() == 0


def test_the_entries_used_longest_ago_go_first(
    computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1, 2):
        computed.during(seed=seed)
        for entry in entries():
            os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - 100))
    assert computed.during(seed=0) == 0
    size = sum(path.stat().st_size for path in entries()[0].iterdir())
    monkeypatch.setenv("PGMKIT_CACHE_SIZE", str(3.1 * size / 2**30))
    computed.during(seed=3)
    assert len(entries()) == 3
    assert [computed.during(seed=seed) for seed in (0, 2, 3)] == [0, 0, 0]
    monkeypatch.setenv("PGMKIT_CACHE_SIZE", "0")
    assert computed.during(seed=4) == 4
    assert len(entries()) == 3


def test_a_size_that_is_no_number_is_refused_before_anything_is_computed(
    computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGMKIT_CACHE_SIZE", "2GB")
    with pytest.raises(ParameterError, match="PGMKIT_CACHE_SIZE"):
        computed.during()
    assert computed.blocks == 0


def test_several_at_once_are_fine() -> None:
    generator = toy()
    failures = []

    def compute() -> None:
        try:
            pgmkit.compute_spectrum(generator, latents=30, block_size=8, cache=True)
        except Exception as error:  # a warning is one, too
            failures.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=compute) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        (entry,) = entries()
        assert len(bytes_of(entry)) == 5
        shutil.rmtree(entry)


def test_the_folder_is_the_users_cache_folder_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PGMKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("spectra") == tmp_path / "pgmkit" / "spectra"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("spectra") == tmp_path / "home" / ".cache" / "pgmkit" / "spectra"


def test_the_command_uses_the_cache_unless_told_otherwise(
    computed: Computed, tmp_path: Path
) -> None:
    source = write_tiny_generator(tmp_path / "tiny")
    words = ("shatter", source, "--clusters", 2, "--latents", 40, "--sampler", "kmeans-gmm")
    assert run_pgmkit(*words, "-o", tmp_path / "a", "--no-cache").code == 0
    assert not entries()
    first = run_pgmkit(*words, "-o", tmp_path / "b")
    before = computed.blocks
    second = run_pgmkit(*words, "-o", tmp_path / "c", "--density", "jbt")
    assert computed.blocks == before
    assert first.code == second.code == 0
    assert "cache" not in first.stderr
    assert "spectrum read from the cache\n" in second.stderr
    assert bytes_of(tmp_path / "b" / "spectrum") == bytes_of(tmp_path / "c" / "spectrum")
    third = run_pgmkit(*words, "-o", tmp_path / "a")
    assert third.code == 0
