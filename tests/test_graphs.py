"""Steps that are recorded. What stands in for CUDA runs a piece again, where a graph would."""

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from test_gan import conditioned
from torch import Tensor

from pgmkit.errors import PgmkitNote
from pgmkit.learning import graphs
from pgmkit.learning.graphs import Graphs
from pgmkit.train.gan import GANTask

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is recorded."""
    names: list[str] = []

    def record(piece: Any, inputs: Any, pool: object, device: object) -> graphs._Recorded:
        outputs: dict[str, Tensor] = {}
        names.append(piece.__name__)
        return graphs._Recorded(lambda: outputs.update(piece(*inputs)), inputs, outputs)

    monkeypatch.setattr(graphs, "_can_record", lambda device: True)
    monkeypatch.setattr(graphs, "_watched", lambda piece, inputs: (piece(*inputs), ""))
    monkeypatch.setattr(graphs, "_recorded", record)
    return names


@pytest.mark.parametrize(
    ("overrides", "pieces"),
    [
        ([], ["_judge_both", "_judge_and_keep", "_convince_kept"]),
        (["model.accumulate=2", "model.labels=reused"], ["_judge_both", "_convince"]),
        (
            [
                "model.discriminator_steps=1",
                "model.loss=wasserstein",
                "model.guide={start=0, end=0}",
            ],
            ["_judge_and_keep", "_convince_kept"],
        ),
    ],
    ids=str,
)
def test_a_recorded_training_ends_in_the_same_bytes(
    overrides: list[str], pieces: list[str], recorded: list[str]
) -> None:
    states = []
    for more in ("model.graphs=false", "model.graphs=true"):
        made, task = conditioned(*overrides, more)
        made._learn()
        made._learn()  # which finds them recorded
        states.append([*task.generator.state_dict().values(), *task.shown.state_dict().values()])
    assert recorded == pieces
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_gradients_stay_where_they_are_recorded_and_other_batches_are_recorded_anew(
    recorded: list[str],
) -> None:
    made, task = conditioned()
    made._learn()
    places = [p.grad.data_ptr() for p in task.generator.parameters() if p.grad is not None]
    made._learn()
    assert places == [p.grad.data_ptr() for p in task.generator.parameters() if p.grad is not None]
    assert len(recorded) == 3
    smaller = dataclasses.replace(made, settings=dataclasses.replace(made.settings, batch_size=10))
    smaller._learn()
    assert len(recorded) == 6


def double(x: Tensor) -> dict[str, Tensor]:
    return {"twice": 2 * x}


def run(pieces: Graphs, times: int) -> list[float]:
    found = []
    for turn in range(times):
        pieces.begin()
        found.append(float(pieces.run(double, torch.tensor(float(turn)))["twice"]))
    return found


@pytest.mark.parametrize("fault", ["waits", "raises"])
def test_what_cannot_be_recorded_is_said_once_and_goes_on(
    fault: str, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no\nplace")

    if fault == "waits":
        monkeypatch.setattr(graphs, "_watched", lambda f, x: (f(*x), "logits.py:3"))
    else:
        monkeypatch.setattr(graphs, "_recorded", refuse)
    reason = {"waits": r"waits for the device at logits\.py:3", "raises": r"\(no\)"}[fault]
    pieces = Graphs(CPU, [[double]])
    with pytest.warns(PgmkitNote, match=f"part 'double' .*{reason}.* which is slower") as told:
        assert run(pieces, 6) == [0, 2, 4, 6, 8, 10]
    assert len(told) == 1
    assert not pieces.are_kept


def test_a_piece_runs_by_itself_twice_first_and_then_never(recorded: list[str]) -> None:
    pieces = Graphs(CPU, [[double]])
    assert run(pieces, 2) == [0, 2]
    assert not recorded
    assert run(pieces, 4) == [0, 2, 4, 6]
    assert recorded == ["double"]
    pieces.stop()
    assert run(pieces, 4) == [0, 2, 4, 6]
    assert recorded == ["double"]


def test_nothing_is_recorded_on_a_cpu() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, task = conditioned()
    assert isinstance(task, GANTask)
    assert not task.graphs.chains
