"""Spectra on any number of workers: threads, processes of torchrun, and a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from processes import run_ranks, torchrun
from ray.cluster_utils import Cluster
from tiny import (
    begin_like,
    begin_run_like,
    children,
    environment,
    run_pgmkit,
    write_tiny_generator,
)

import pgmkit
from pgmkit.components import Component, RegisteredComponent
from pgmkit.engines.local import LocalEngine
from pgmkit.errors import LoadError, OutputError, ParameterError, PluginError
from pgmkit.plugins import build
from pgmkit.spectrum import load_spectrum
from pgmkit.spectrum.folders import folder_at
from pgmkit.spectrum.jacobian import JacobianSpectra
from pgmkit.testing import check_engine

LATENTS = 61
BLOCK_SIZE = 4
BLOCKS = 16
TIMEOUT = 120

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Ray leaves sockets and the processes that it started to the garbage collector.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_generator(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def generator(tiny: str) -> pgmkit.Generator:
    return pgmkit.load_generator(tiny)


def compute(
    generator: pgmkit.Generator, out: object, engine: object, **arguments: object
) -> pgmkit.Spectrum:
    arguments = {"latents": LATENTS, "seed": 3, "block_size": BLOCK_SIZE, **arguments}
    return pgmkit.compute_spectrum(generator, out=out, engine=engine, **arguments)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a spectrum but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix}


def shards(folder: Path) -> dict[str, int]:
    """Returns all blocks that are there, with their times of change."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("block-*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(
    generator: pgmkit.Generator, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one worker of this process leaves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    compute(generator, folder, LocalEngine(1))
    found = contents(folder)
    assert len(found) == BLOCKS + 1
    return found


@pytest.fixture
def begun(undisturbed: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder in which the same spectrum is begun and no block is done."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "manifest.json").write_bytes(undisturbed["manifest.json"])
    return begin_like(whole, tmp_path / "begun")


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_threads_leaves_the_same_bytes(
    workers: int, generator: pgmkit.Generator, undisturbed: dict[str, bytes], begun: Path
) -> None:
    spectrum = compute(generator, begun, LocalEngine(workers))
    assert contents(begun) == undisturbed
    assert torch.equal(load_spectrum(begun).singular_values, spectrum.singular_values)


def test_an_accelerator_is_given_blocks_while_others_are_finished() -> None:
    meeting = threading.Barrier(3)

    class Work:
        device_type = "cuda"

        def __call__(self, block: int) -> int:
            meeting.wait(10)
            return block

    done = LocalEngine(8).map(Work(), range(6), parallel=False)
    assert sorted(done) == [(block, block) for block in range(6)]


def test_a_block_that_cannot_be_written_is_one_error_and_costs_no_other(
    generator: pgmkit.Generator, undisturbed: dict[str, bytes], begun: Path
) -> None:
    obstacle = begun / "block-000005.safetensors"
    obstacle.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*block-000005"):
        compute(generator, begun, LocalEngine(1))
    obstacle.rmdir()
    before = shards(begun)
    assert len(before) >= 5
    compute(generator, begun, LocalEngine(1))
    assert before.items() <= shards(begun).items()
    assert contents(begun) == undisturbed


def test_a_block_is_computed_without_a_view_of_all_latents(
    generator: pgmkit.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward mode gives the whole that a view belongs to a tangent: n latents for each block."""
    sizes = []
    compute_block = JacobianSpectra.compute

    def watched(jacobians: JacobianSpectra, z: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(z.untyped_storage().nbytes() // z.element_size())
        return compute_block(jacobians, z)

    monkeypatch.setattr(JacobianSpectra, "compute", watched)
    compute(generator, None, LocalEngine(1))
    assert max(sizes) == BLOCK_SIZE * generator.latent.dim


class TestUrls:
    """A folder may be anything that fsspec opens."""

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest) -> str:
        return f"memory://{request.node.name}/run"

    def test_a_spectrum_behind_a_url_is_the_same_bytes(
        self, url: str, generator: pgmkit.Generator, undisturbed: dict[str, bytes], begun: Path
    ) -> None:
        folder = folder_at(url)
        folder.write("manifest.json", undisturbed["manifest.json"])
        spectrum = compute(generator, url, LocalEngine(2))
        assert {name: folder.read(name) for name in folder.names()} == undisturbed
        assert torch.equal(load_spectrum(url).singular_values, spectrum.singular_values)
        compute(generator, begun.as_uri(), LocalEngine(2))
        assert contents(begun) == undisturbed

    def test_damage_behind_a_url_is_repaired(
        self, url: str, generator: pgmkit.Generator, undisturbed: dict[str, bytes]
    ) -> None:
        folder = folder_at(url)
        for shard, data in undisturbed.items():
            folder.write(shard, data)
        name = "block-000007.safetensors"
        folder.write(name, undisturbed[name][:-3])
        with pytest.raises(LoadError, match="block 7 of 16"):
            load_spectrum(url)
        compute(generator, url, LocalEngine(2))
        assert folder.read(name) == undisturbed[name]

    def test_a_url_that_nothing_opens_is_refused(self, generator: pgmkit.Generator) -> None:
        with pytest.raises(ParameterError, match="cannot open nowhere://x"):
            compute(generator, "nowhere://x", LocalEngine(1))


def wait_until_some_blocks_are_there(folder: Path, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while len(shards(folder)) < count:
        assert time.monotonic() < deadline, f"fewer than {count} blocks after {TIMEOUT} s"
        time.sleep(0.002)


class TestTorchrun:
    """The processes of torchrun, which itself takes part where one of them is killed."""

    def test_a_killed_process_ends_the_run_and_the_same_command_continues_it(
        self, tiny: str, tmp_path: Path
    ) -> None:
        shatter = ("shatter", tiny, "--clusters", 3, "--latents", 200, "--no-cache")
        shatter += ("--set", "spectrum.block_size=2", "--partitioner", "self-trained")
        shatter += ("--set", "partitioner.base=kmeans")
        shatter += ("--set", "partitioner.steps=3", "--set", "partitioner.width=8")
        expected, out = tmp_path / "expected", tmp_path / "out"
        assert run_pgmkit(*shatter, "-o", expected).code == 0
        begin_run_like(expected, out)
        words = ("-m", "pgmkit", *shatter, "--engine", "torchrun", "-o", out)
        with torchrun(2, *words) as process:
            wait_until_some_blocks_are_there(out / "spectrum", 8)
            workers = children(process.pid)
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            os.kill(workers[1], signal.SIGKILL)
            os.kill(workers[0], signal.SIGCONT)
            assert process.finished(TIMEOUT).code != 0
        before = shards(out / "spectrum")
        assert 8 <= len(before) < 100
        assert not (out / "sampler.json").exists()

        ranks = run_ranks(2, *words)
        assert [run.code for run in ranks] == [0, 0], ranks
        assert sum(run.stdout.count("report: ") for run in ranks) == 1
        assert before.items() <= shards(out / "spectrum").items()
        assert contents(out / "spectrum") == contents(expected / "spectrum")
        sampler = "sampler.safetensors"
        assert (out / sampler).read_bytes() == (expected / sampler).read_bytes()

    def test_all_processes_have_the_whole_spectrum_also_when_some_of_it_was_there(
        self, tiny: str, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        for name in list(undisturbed)[:5]:
            (out / name).write_bytes(undisturbed[name])
        script = tmp_path / "script.py"
        script.write_text(
            "import os, sys, hashlib\n"
            "import pgmkit\n"
            "from pgmkit import progress\n"
            "from pgmkit.errors import OutputError\n"
            "progress._SECONDS = 0.0\n"
            "generator = pgmkit.load_generator(sys.argv[1])\n"
            f"arguments = dict(latents={LATENTS}, block_size={BLOCK_SIZE})\n"
            "arguments |= dict(engine='torchrun', out=sys.argv[2])\n"
            "with progress.shown():\n"
            "    spectrum = pgmkit.compute_spectrum(generator, seed=3, **arguments)\n"
            "digest = hashlib.sha256(spectrum.singular_values.numpy().tobytes()).hexdigest()\n"
            "os.write(1, f'{digest} {len(spectrum)}\\n'.encode())  # in one piece\n"
            "try:\n"
            "    pgmkit.compute_spectrum(generator, seed=4, **arguments)\n"
            "except OutputError:\n"
            "    os.write(1, b'refused\\n')\n"
        )
        ranks = run_ranks(3, script, tiny, out)
        assert [run.code for run in ranks] == [0, 0, 0], ranks
        lines = "".join(run.stdout for run in ranks).splitlines()
        assert lines.count("refused") == 3
        stderr = "".join(run.stderr for run in ranks)
        assert stderr.count(f"Jacobians of {LATENTS} latents") == 1  # the coordinator alone tells
        lines = [line for line in lines if line != "refused"]
        assert len(lines) == 3
        assert len(set(lines)) == 1
        assert contents(out) == undisturbed

    def test_one_process_is_enough(self, tiny: str, tmp_path: Path) -> None:
        out, expected = tmp_path / "out", tmp_path / "expected"
        words = ("shatter", tiny, "--clusters", 3, "--latents", 60)
        words += ("--sampler", "kmeans-gmm", "--no-cache", "-o")
        assert run_pgmkit(*words, expected).code == 0
        begin_run_like(expected, out)
        (run,) = run_ranks(1, "-m", "pgmkit", *words, out, "--engine", "torchrun")
        assert run.code == 0, run.stderr
        assert contents(out / "spectrum") == contents(expected / "spectrum")

    def test_one_process_computes_all_cells_of_an_ablation(self, tiny: str, tmp_path: Path) -> None:
        """They train networks, which the others, that have ended, take no part in."""
        out, config = tmp_path / "out", tmp_path / "ablation.toml"
        learns = '{ name = "self-trained", base = "kmeans", steps = 3, width = 8 }'
        config.write_text(
            f'generators = [{{ source = "{tiny}", classifier = "mnist-classifier" }}]\n'
            f'partitioners = ["kmeans", {learns}]\nclusters = 2\nlatents = 60\nseeds = [0]\n'
            'samples = 20\njobs = 1\nmeasures = ["clusters"]\n'
            '[spectrum]\nengine = "torchrun"\ncache = false\n'
        )
        ranks = run_ranks(2, "-m", "pgmkit", "ablate", config, "-o", out)
        assert [run.code for run in ranks] == [0, 0], ranks
        assert sum(run.stdout.count("Adjusted MI") for run in ranks) == 1

    def test_one_process_keeps_the_contract_of_engines(self) -> None:
        (run,) = run_ranks(1, "-m", "pgmkit", "plugins", "check", "torchrun", "--json")
        assert run.code == 0, run.stderr
        assert json.loads(run.stdout)["counts"] == {
            "run": 14,
            "passed": 14,
            "failed": 0,
            "skipped": 1,
        }

    def test_outside_torchrun_the_error_tells_the_command(self, tiny: str, tmp_path: Path) -> None:
        run = run_pgmkit("shatter", tiny, "--engine", "torchrun", "-o", tmp_path / "out")
        assert run.code == 1
        assert "torchrun --nproc-per-node 2 -m pgmkit" in run.stderr
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with two processors, and a node with one."""
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    head = {**node, "num_cpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class TestRay:
    """Tasks on a cluster of this machine, with the real Ray."""

    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_any_number_of_workers_leaves_the_same_bytes(
        self,
        workers: int,
        cluster: Cluster,
        generator: pgmkit.Generator,
        undisturbed: dict[str, bytes],
        begun: Path,
    ) -> None:
        engine = build("engines", "ray", workers=workers)
        spectrum = compute(generator, begun, engine)
        assert contents(begun) == undisturbed
        assert len(spectrum) == LATENTS

    def test_it_keeps_the_contract_of_engines(self, cluster: Cluster) -> None:
        assert check_engine({"name": "ray", "workers": 2}).counts()["passed"] == 14

    def test_a_node_that_is_lost_in_the_middle_loses_nothing(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        generator = pgmkit.load_generator("mnist-dcgan")
        size = {"latents": 60, "block_size": 4}
        expected, out = tmp_path / "expected", tmp_path / "out"
        compute(generator, expected, "local", **size)
        begin_like(expected, out)
        before: dict[str, int] = {}

        def remove_a_node() -> None:
            wait_until_some_blocks_are_there(out, 3)
            before.update(shards(out))
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

        thread = threading.Thread(target=remove_a_node)
        thread.start()
        compute(generator, out, "ray", **size)
        thread.join(TIMEOUT)
        assert 3 <= len(before) < 15
        assert not cluster.worker_nodes
        assert contents(out) == contents(expected)

    def test_what_is_there_is_not_computed_again(
        self,
        cluster: Cluster,
        generator: pgmkit.Generator,
        undisturbed: dict[str, bytes],
        begun: Path,
    ) -> None:
        compute(generator, begun, "local")
        for block in (2, 9):
            (begun / f"block-{block:06d}.safetensors").unlink()
        before = shards(begun)
        compute(generator, begun, "ray")
        assert before.items() <= shards(begun).items()
        assert contents(begun) == undisturbed

    def test_an_error_in_a_worker_is_the_error_here(
        self, cluster: Cluster, generator: pgmkit.Generator, tmp_path: Path
    ) -> None:
        """The last, as it costs the cluster the processes that are at work."""
        (tmp_path / "block-000003.safetensors").mkdir()
        with pytest.raises(OutputError, match=r"cannot write .*block-000003"):
            compute(generator, tmp_path, "ray")

    @pytest.mark.parametrize(
        "parameters", [{"workers": 0}, {"num_cpus": 0}, {"num_gpus": -1}, {"retries": -2}]
    )
    def test_bad_parameters_are_refused(self, parameters: dict[str, int]) -> None:
        with pytest.raises(ParameterError, match=next(iter(parameters))):
            build("engines", "ray", **parameters)


def test_listing_engines_imports_none_of_them() -> None:
    code = (
        "import sys; from pgmkit.plugins import list_components; "
        "assert 'ray' in [c.name for c in list_components('engines')]; "
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_an_engine_whose_extra_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "far_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: far-engine\nVersion: 1.0\nRequires-Dist: torch\n"
        'Requires-Dist: no-such-thing>=2; extra == "cluster"\nProvides-Extra: cluster\n'
        'Requires-Dist: torch; extra == "plain"\nProvides-Extra: plain\n'
    )

    def engine(*requires: str) -> RegisteredComponent:
        component = Component("far", "pgmkit.engines.local:LocalEngine", requires=requires)
        return RegisteredComponent(component, "engines", "far-engine:main")

    with pytest.raises(PluginError, match=r"run: pip install far-engine\[cluster\]"):
        engine("far-engine[cluster]").build()
    assert isinstance(engine("far-engine[plain]").build(), LocalEngine)
