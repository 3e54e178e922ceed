"""Two processes, as torchrun starts them, that train one model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from ranked import GUIDED, POINTS, STEPS, Small, run, weights
from safetensors.torch import load_file
from tiny import TRAIN_CONFIG, run_pgmkit, write_tiny_images
from torch import Tensor

import pgmkit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the processes worked in; they are started once for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny_images(folder / "noise.npz")
    (folder / "train.toml").write_text(TRAIN_CONFIG.replace("epochs = 40", "epochs = 2"))
    (folder / "guided.toml").write_text(GUIDED)
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("years of work")
    ranks = run_ranks(2, Path(__file__).with_name("ranked.py"), folder)
    assert [run.code for run in ranks] == [0, 0], ranks
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[Mapping[str, Any]]:
    """What the two processes told."""
    found = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert [(one["rank"], one["world size"]) for one in found] == [(0, 2), (1, 2)]
    return found


def test_two_processes_end_where_one_with_the_joint_batch_does(
    told: list[Mapping[str, Any]],
) -> None:
    assert told[0]["weights"] == told[1]["weights"]
    alone, start = weights(run(Small())), weights(Small())
    for expected, found, before in zip(alone, told[0]["weights"], start, strict=True):
        torch.testing.assert_close(tensor(found), tensor(expected), rtol=1e-5, atol=1e-5)
        assert (tensor(found) - tensor(before)).abs().max() > 0.01


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values)


def test_a_signal_to_one_stops_all_after_the_same_step_and_they_go_on_to_the_same_end(
    told: list[Mapping[str, Any]],
) -> None:
    for one in told:
        names = [f"checkpoint-{step:09d}.safetensors" for step in (4, 5)]
        assert one["stopped at"] == names
        assert one["made again"] == list(range(5, STEPS))
        assert one["same"]


def test_losses_are_those_of_the_joint_batch(folder: Path, tmp_path: Path) -> None:
    run(Small(), tmp_path)
    alone = (tmp_path / "losses.csv").read_text().split()
    both = (folder / "undisturbed" / "losses.csv").read_text().split()
    assert alone[0] == both[0] == "step,epoch,discriminator,generator"
    for expected, found in zip(alone[1:], both[1:], strict=True):
        numbers = [[float(value) for value in row.split(",")] for row in (expected, found)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)


def test_only_the_coordinator_measures(told: list[Mapping[str, Any]]) -> None:
    assert told[0]["measured"] == [0, 3, 6, 9, 12]
    assert told[1]["measured"] == []


def test_what_one_process_decides_it_does_alone(told: list[Mapping[str, Any]]) -> None:
    assert told[0]["decided"] == told[1]["decided"]
    world_size, *losses = told[0]["decided"]
    assert world_size == 1
    assert losses[0] == 1.0
    assert losses == sorted(losses, reverse=True)


def test_a_batch_that_cannot_be_shared_out_is_refused(told: list[Mapping[str, Any]]) -> None:
    for one in told:
        assert "shared among 2 processes, so it must be a multiple" in one["refused"]


def test_pgmkit_train_trains_under_torchrun_and_one_process_tells(
    folder: Path, told: list[Mapping[str, Any]], tmp_path: Path
) -> None:
    model = folder / "trained" / "model"
    assert told[0]["trained"] == [0, f"{model}\n", ""]
    assert told[1]["trained"] == [0, "", ""]
    both = pgmkit.load_generator(f"local-dir:{model}")
    assert both.provenance["training"]["steps"] == 8
    train = ("train", folder / "train.toml", "--data", folder / "noise.npz", "--device", "cpu")
    assert run_pgmkit(*train, "-o", tmp_path / "alone", "-q").code == 0
    alone = pgmkit.load_generator(f"local-dir:{tmp_path / 'alone' / 'model'}")
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(both.module.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert [one["refused folder"][0] for one in told] == [1, 1]
    assert all("holds thesis.tex" in one["refused folder"][1] for one in told)


def test_two_processes_train_a_guided_gan_as_one_does(
    folder: Path, told: list[Mapping[str, Any]], tmp_path: Path
) -> None:
    assert [one["guided"] for one in told] == [[0, ""], [0, ""]]
    words = ("train", folder / "guided.toml", "--data", POINTS, "--device", "cpu")
    assert run_pgmkit(*words, "-o", tmp_path / "alone", "-q").code == 0
    for name in ("model.safetensors", "discriminator.safetensors"):
        both, alone = (
            load_file(place / "model" / name) for place in (folder / "guided", tmp_path / "alone")
        )
        assert both.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(both[key], value, rtol=1e-5, atol=1e-5)


def test_no_thread_of_the_processes_outlives_their_group(told: list[Mapping[str, Any]]) -> None:
    """One that does may abort its process, which has done all it should, at the very end."""
    assert not [name for one in told for name in one["threads"] if "gloo" in name]


def test_one_process_takes_up_what_two_have_done(folder: Path) -> None:
    train = ("train", folder / "train.toml", "--data", folder / "noise.npz", "--device", "cpu")
    before = (folder / "trained" / "model" / "model.safetensors").stat().st_mtime_ns
    again = run_pgmkit(*train, "-o", folder / "trained")
    assert again.code == 0, again.stderr
    assert (folder / "trained" / "model" / "model.safetensors").stat().st_mtime_ns == before
