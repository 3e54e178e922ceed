"""`pgmkit audit`: what it measures, what it says of it, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Finished, run_pgmkit, write_tiny_generator

import pgmkit
from pgmkit.images import load_images
from pgmkit.partition import load_partitioner
from pgmkit.theory import audit_partitioner, lipschitz_estimate, measure_parts, tv_lower_bound

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of two brightnesses, partitioners of it, and an untrained generator."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 90, (60, SIDE, SIDE)) + 150 * (np.arange(60) % 2)[:, None, None]
    images = pixels.astype(np.uint8)
    np.savez(folder / "images.npz", images=images)
    np.savez(folder / "bright.npz", images=images[1::2])
    np.savez(folder / "small.npz", images=images[:, :16, :16])
    source = load_images(str(folder / "images.npz"))
    network = {"base": "kmeans", "steps": 8, "batch_size": 32, "width": 4, "rounds": 1}
    for name, table, k in (
        ("kmeans", {"name": "kmeans"}, 2),
        ("whole", {"name": "kmeans"}, 1),
        ("manifold", {"name": "manifold", "features": "pixels"}, 2),
        ("learned", {"name": "self-trained", **network}, 2),
    ):
        fitted = pgmkit.fit_partitioner(table, source, partitions=k, device="cpu")
        fitted.save_pretrained(folder / name)
    write_tiny_generator(folder / "tiny")
    return folder


def audited(folder: Path, *words: object) -> Finished:
    given = [folder / str(w)[1:] if str(w).startswith("@") else w for w in words]
    return run_pgmkit("audit", *given, "--device", "cpu")


def told(folder: Path, *words: object) -> Any:
    finished = audited(folder, *words, "--json")
    assert finished.code == 0, finished.stderr
    return json.loads(finished.stdout)


def row(numbers: Any, theorem: str, begins: str) -> Any:
    (found,) = [r for r in numbers[theorem]["words"] if r["what"].startswith(begins)]
    return found


def test_a_partitioner_is_held_against_theorem_3(inputs: Path) -> None:
    words = ("@kmeans", "--data", "@images.npz", "--tries", 8, "--steps", 40)
    numbers = told(inputs, *words)
    source = load_images(str(inputs / "images.npz"))
    wanted = audit_partitioner(load_partitioner(inputs / "kmeans"), source, tries=8, steps=40)
    assert numbers["parts"]["sizes"] == wanted.parts.sizes == [30, 30]
    assert numbers["parts"]["distances"] == pytest.approx(wanted.parts.distances)
    assert numbers["parts"]["reached"] == wanted.reached
    assert numbers["images"] == source.summary()
    found = numbers["theorem_3"]
    assert found["smallest_gradient"] == pytest.approx(min(wanted.gradients))
    assert found["representation"]["c0"] == 0
    assert not found["representation"]["is_told"]
    assert (found["applies"], found["keeps"]) == (False, True)
    assert row(numbers, "theorem_3", "needs f = W")["found"] == "not told"
    assert row(numbers, "theorem_3", "needs c₀")["found"] == "fails"
    assert "theorem_1" not in numbers
    printed = audited(inputs, *words).stdout
    assert "images.npz: 60 images" in printed
    assert "4 of 4" in printed
    assert "promises no dead ends: as far as seen" in printed
    assert "does not apply" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100


def test_the_network_of_a_partitioner_is_told_by_its_last_layer(inputs: Path) -> None:
    numbers = told(inputs, "@learned", "--data", "@images.npz", "--tries", 4, "--steps", 5)
    assert row(numbers, "theorem_3", "needs f = W")["found"] == "holds"
    assert numbers["theorem_3"]["representation"]["num_dims"] == 128
    assert "128 numbers" in row(numbers, "theorem_3", "needs c₀")["measured"]


def test_the_same_seed_says_the_same_and_another_does_not(inputs: Path) -> None:
    words = ("@kmeans", "--data", "@images.npz", "--tries", 4, "-n", 30)
    first, again, other = (told(inputs, *words, "--seed", seed) for seed in (3, 3, 4))
    for numbers in (first, again, other):
        del numbers["seconds"], numbers["seed"]
    assert first == again != other
    assert sum(first["parts"]["sizes"]) == 30


def test_a_generator_alone_tells_its_c(inputs: Path) -> None:
    numbers = told(inputs, "@tiny", "--latents", 5)
    tiny = pgmkit.load_generator(f"local-dir:{inputs / 'tiny'}", device="cpu")
    c = lipschitz_estimate(tiny, 5)
    assert numbers["theorem_1"]["lipschitz"]["value"] == pytest.approx(c.value, rel=1e-4)
    assert numbers["theorem_1"]["bound"] is None
    assert numbers["parts"] is None
    printed = audited(inputs, "@tiny", "--latents", 5).stdout
    assert "at least" in printed
    assert "5 latents" in printed
    assert "--partitioner" in printed


@pytest.mark.filterwarnings("ignore::pgmkit.errors.PgmkitWarning")
def test_a_generator_is_measured_by_the_parts_of_data(inputs: Path) -> None:
    """Also with a partitioner that has no gradient: Theorem 1 needs none."""
    for name in ("kmeans", "manifold"):
        words = ("@tiny", "--partitioner", inputs / name, "--data", "@images.npz", "--latents", 5)
        numbers = told(inputs, *words)
        source = load_images(str(inputs / "images.npz"))
        parts = measure_parts(load_partitioner(inputs / name), source)
        c = numbers["theorem_1"]["lipschitz"]["value"]
        bound = tv_lower_bound(parts.masses, parts.distances, c)
        assert numbers["theorem_1"]["bound"]["value"] == pytest.approx(bound.value)
        assert row(numbers, "theorem_1", "δ")["found"].startswith("at most")
        assert "nothing proves" in numbers["theorem_1"]["meaning"]
        assert "itself" not in numbers["theorem_1"]["meaning"]


def test_without_data_the_parts_are_those_of_the_generator_s_own_images(
    inputs: Path, tmp_path: Path
) -> None:
    tiny = pgmkit.load_generator(f"local-dir:{inputs / 'tiny'}", device="cpu")
    own = pgmkit.images.GeneratedImages(tiny, tiny.sample_latents(80, seed=0))
    pgmkit.fit_partitioner("kmeans", own, partitions=2).save_pretrained(tmp_path / "own")
    numbers = told(inputs, "@tiny", "--partitioner", tmp_path / "own", "-n", 50, "--latents", 3)
    assert numbers["images"]["source"].startswith("images of")
    assert sum(numbers["parts"]["sizes"]) == 50
    assert "d is truly 0" in numbers["theorem_1"]["meaning"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["@kmeans"], "a partitioner is audited on images; name an .npz file"),
        (["@kmeans", "--data", "none.npz"], "there are no images at none.npz"),
        (["@kmeans", "--data", "@small.npz"], "fitted to images of (1, 32, 32)"),
        (["@manifold", "--data", "@images.npz"], "have no gradient, so they guide nothing"),
        (["@whole", "--data", "@images.npz"], "a single part is everything"),
        (["@kmeans", "--data", "@bright.npz"], "all 30 images of bright.npz lie in one part"),
        (["@kmeans", "--data", "@images.npz", "--tries", 0], "number of tries must be a whole"),
        (["@kmeans", "--data", "@images.npz", "--steps", -1], "number of steps must be a whole"),
        (["@kmeans", "--data", "@images.npz", "-n", 0], "number of images must be a whole"),
        (["@kmeans", "--data", "@images.npz", "--size", 0], "size must be a whole number from 1"),
        (["@kmeans", "--data", "@images.npz", "--latents", 3], "--latents would be ignored"),
        (["@kmeans", "--data", "@images.npz", "--device", "tpu"], "the device 'tpu' cannot"),
        (["@tiny", "--tries", 3], "--tries would be ignored, since"),
        (["@tiny", "--data", "@images.npz"], "--data would be ignored, since no --partitioner"),
        (["@tiny", "-n", 3], "--images would be ignored, since no --partitioner"),
        (["@tiny", "--size", 3], "--size would be ignored, since there are no --data"),
        (["@tiny", "--latents", 0], "number of latents must be a whole"),
        (["@tiny", "--partitioner", "@tiny"], "holds no partitioner"),
        (["mnist-dcgam"], "did you mean 'mnist-dcgan'"),
    ],
)
def test_what_cannot_be_audited_is_one_line(words: list[Any], said: str, inputs: Path) -> None:
    finished = (
        audited(inputs, *words)
        if "--device" not in words
        else run_pgmkit(
            "audit", *(inputs / str(w)[1:] if str(w).startswith("@") else w for w in words)
        )
    )
    assert finished.code == 1
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert finished.stdout == ""


def test_a_source_is_needed(inputs: Path) -> None:
    finished = run_pgmkit("audit")
    assert finished.code == 2
    assert "'SOURCE'" in finished.stderr
