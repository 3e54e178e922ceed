"""Disturbs spectra in every way that machines do, and counts what that costs.

    python benchmarks/faults.py

Every disturbed run is continued by the same command, and must end in the bytes of a run that
nothing disturbed. Ends with an error if one does not.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pgmkit
from pgmkit.machine import machine

BLOCK_SIZE = 2


@dataclass(frozen=True)
class Row:
    """What one kind of disturbance did.

    Args:
        name: of the disturbance.
        times: how often.
        lost: finished blocks that were computed again.
    """

    name: str
    times: int
    lost: int


class Bench:
    """Runs of one spectrum in folders below `root`, each compared with an undisturbed one."""

    def __init__(self, root: Path, latents: int, seed: int) -> None:
        self.root = root
        self.latents = latents
        self.random = random.Random(seed)
        self.whole = root / "whole"
        self.generator = pgmkit.load_generator("mnist-dcgan")
        started = time.monotonic()
        with self.started(self.whole) as process:
            assert process.wait() == 0
        self.seconds = time.monotonic() - started

    @contextmanager
    def started(self, out: Path, *, limit: int | None = None) -> Iterator[subprocess.Popen[str]]:
        """Starts the computation in a process, with a limit on the size of files in bytes."""
        code = (
            "import sys, pgmkit\n"
            "from pgmkit.errors import OutputError\n"
            "generator = pgmkit.load_generator('mnist-dcgan')\n"
            "try:\n"
            "    pgmkit.compute_spectrum(\n"
            "        generator, latents=int(sys.argv[1]), block_size=int(sys.argv[2]),\n"
            "        out=sys.argv[3],\n"
            "    )\n"
            "except OutputError as error:\n"
            "    sys.exit(f'error: {error}')\n"
        )

        def restrict() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        words = [sys.executable, "-c", code, str(self.latents), str(BLOCK_SIZE), str(out)]
        with subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, preexec_fn=restrict
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def begun(self, name: str) -> Path:
        """Returns a folder in which the spectrum is begun and no block is done.

        How the Jacobians are computed comes from a timed trial and is on record from then on.
        """
        out = self.root / name
        out.mkdir()
        manifest = json.loads((self.whole / "manifest.json").read_text())
        (out / "manifest.json").write_text(json.dumps({**manifest, "blocks": {}}, indent=2) + "\n")
        return out

    def finish(self, out: Path, before: dict[str, int]) -> int:
        """Runs to the end; returns how many of the blocks `before` were computed again."""
        pgmkit.compute_spectrum(
            self.generator, latents=self.latents, block_size=BLOCK_SIZE, out=out
        )
        assert contents(out) == contents(self.whole), f"{out} differs from {self.whole}"
        return self.lost(out, before)

    def lost(self, out: Path, before: dict[str, int]) -> int:
        """Returns how many of the blocks `before` have been written again."""
        after = blocks(out)
        return sum(after[name] != written for name, written in before.items())

    def killed(self, kills: int) -> Row:
        """Kills runs at random moments and continues them, in a new folder once one is done."""
        lost, folders = 0, 0
        out: Path | None = None
        for _ in range(kills):
            if out is None:
                out = self.begun(f"killed-{folders}")
                folders += 1
            before = blocks(out)
            with self.started(out) as process:
                try:
                    process.wait(timeout=self.random.uniform(0, self.seconds))
                except subprocess.TimeoutExpired:
                    process.kill()
            lost += self.lost(out, before)
            if process.returncode == 0:
                assert contents(out) == contents(self.whole)
                out = None
        if out is not None:
            lost += self.finish(out, blocks(out))
        return Row("kill -9 at a random moment", kills, lost)

    def disk_full(self, name: str, full_at: str) -> Row:
        """Lets no file grow as large as one of the undisturbed run, then lifts that."""
        limit = (self.whole / full_at).stat().st_size - 1
        out = self.begun(name.replace(" ", "-"))
        with self.started(out, limit=limit) as process:
            _, stderr = process.communicate()
        assert process.returncode == 1, stderr
        assert stderr.startswith("error: cannot write "), stderr
        assert stderr.count("\n") == 1, stderr
        return Row(name, 1, self.finish(out, blocks(out)))

    def damaged(self, name: str, times: int, damage: Callable[[Path], None]) -> Row:
        """Damages blocks of a complete spectrum; no other block may be computed again."""
        out = shutil.copytree(self.whole, self.root / name.replace(" ", "-"))
        chosen = self.random.sample(sorted(blocks(out)), times)
        for shard in chosen:
            damage(out / shard)
        before = {key: written for key, written in blocks(out).items() if key not in chosen}
        return Row(name, times, self.finish(out, before))

    def without_manifest(self) -> Row:
        """Removes the manifest of a complete spectrum."""
        out = shutil.copytree(self.whole, self.root / "manifest")
        (out / "manifest.json").unlink()
        return Row("missing manifest", 1, self.finish(out, blocks(out)))

    def truncate(self, shard: Path) -> None:
        data = shard.read_bytes()
        shard.write_bytes(data[: self.random.randrange(len(data))])

    def flip_a_bit(self, shard: Path) -> None:
        data = bytearray(shard.read_bytes())
        data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        shard.write_bytes(data)


def blocks(folder: Path) -> dict[str, int]:
    """Returns the blocks that are there, with their times of change."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("block-*.safetensors")}


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file but the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--latents", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), options.latents, options.seed)
        count = len(blocks(bench.whole))
        each = min(options.kills, count)
        rows = [
            bench.killed(options.kills),
            bench.disk_full("disk full at a block", "block-000000.safetensors"),
            bench.disk_full("disk full at the manifest", "manifest.json"),
            bench.damaged("missing block", each, Path.unlink),
            bench.damaged("truncated block", each, bench.truncate),
            bench.damaged("block with one bit flipped", each, bench.flip_a_bit),
            bench.without_manifest(),
        ]
    print("# Spectra under faults\n")
    print(
        f"`python benchmarks/faults.py --kills {options.kills} --latents {options.latents} --seed "
        f"{options.seed}`, {machine()}\n\n"
        f"{count} blocks of {BLOCK_SIZE} latents of mnist-dcgan. Each disturbed run is continued "
        'and must end in the bytes of an undisturbed one; for damage, "whole blocks" are all but '
        "the damaged ones. A limit on the size of files stands in for the full disk.\n"
    )
    print("| disturbance | times | whole blocks computed again | bytes as undisturbed |")
    print("|---|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.times} | {row.lost} | yes |")
    total, lost = sum(row.times for row in rows), sum(row.lost for row in rows)
    print(f"\n{total} disturbances, {lost} whole blocks lost, every folder identical.")
    if lost:
        sys.exit(3)


if __name__ == "__main__":
    main()
