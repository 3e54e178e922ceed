"""The training loop: steps, chance, checkpoints, what is kept and what is refused."""

import csv
import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_forked
from safetensors import safe_open
from torch import Tensor, nn

from pgmkit.errors import DataError, LoadError, ParameterError, PgmkitError, PgmkitWarning
from pgmkit.images import ArrayImages
from pgmkit.learning import Batch, Clock, keeping, learn, minimise
from pgmkit.learning.checkpoints import Part, read, write
from pgmkit.learning.clock import clock_at
from pgmkit.learning.ema import Average
from pgmkit.learning.optimizers import eager
from pgmkit.learning.schedules import cosine, linear, one_cycle, set_rate, warm_up
from pgmkit.learning.trial import batch_of_trial, try_steps, trying
from pgmkit.machine import tensor_threads

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12


def pictures(count: int = 20) -> ArrayImages:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 2, 4, 4), generator=random, dtype=torch.uint8)
    return ArrayImages(images, labels=torch.arange(count), name="pictures")


class Everything:
    """A task with a part of every kind; two batches a step, dropout, and chance of its own."""

    def __init__(self, stop_at: int | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(
                nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
            )
            network.append(nn.Linear(16, 1))
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer = eager(torch.optim.Adam)(network.parameters(), lr=1e-2, fused=True)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.9)
        self.scaler = torch.amp.GradScaler("cpu", enabled=True, growth_interval=2)
        self.average = Average(self.network)
        self.bank = torch.zeros(3, 2)
        self.counts: dict[str, Any] = {"seen": 0, "by place": {"last": torch.zeros(2)}}
        self.stop_at = stop_at
        self.made: list[int] = []
        self.seen: list[list[int]] = []

    @property
    def parts(self) -> Mapping[str, Part]:
        names = ("network", "optimizer", "schedule", "scaler", "average", "bank", "counts")
        return {name: getattr(self, name) for name in names}

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        self.made.append(clock.step)
        total = torch.zeros(())
        self.optimizer.zero_grad()
        for _ in range(2):
            batch = next(batches)
            self.seen.append(batch.index.tolist())
            images = batch.images.contiguous(memory_format=torch.channels_last)
            loss = (self.network(images) - torch.randn(1, generator=clock.random)).square().mean()
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update(self.network, clock)
        self.bank[clock.step % 3] = total
        self.counts["seen"] += batch.size
        self.counts["by place"]["last"][clock.step % 2] = total
        if clock.step + 1 == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": total}


def run(task: Everything, folder: Path | None = None, **more: Any) -> Everything:
    settings = {"steps": STEPS, "seed": 3, "name": "all", "source": pictures(), "batch_size": 3}
    learn(task, folder=folder, log_steps=2, **(settings | more))  # type: ignore[arg-type]
    return task


def state(task: Everything, path: Path) -> bytes:
    write(path, task.parts, {})
    return path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The final state, and the losses as they were logged, of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    task = run(Everything(), folder)
    return state(task, folder / "state"), (folder / "losses.csv").read_bytes()


def test_steps_take_batches_that_go_through_the_images_again_and_again() -> None:
    task = run(Everything())
    assert task.made == list(range(STEPS))
    assert len(task.seen) == 2 * STEPS
    for epoch in range(4):
        indices = [i for batch in task.seen[6 * epoch : 6 * epoch + 6] for i in batch]
        assert len(set(indices)) == 18
    assert task.seen[:6] != task.seen[6:12]


def test_one_seed_gives_the_same_bytes_with_dropout_and_another_seed_others(
    undisturbed: tuple[bytes, bytes], tmp_path: Path
) -> None:
    torch.manual_seed(99)
    assert state(run(Everything()), tmp_path / "a") == undisturbed[0]
    assert state(run(Everything(), seed=4), tmp_path / "b") != undisturbed[0]


def test_the_caller_s_chance_and_gradient_mode_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        run(Everything())
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)


def test_convolutions_sum_in_one_order_while_it_lasts() -> None:
    seen: list[bool] = []

    class Looks(Everything):
        def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor | float]:
            seen.append(torch.backends.cudnn.deterministic)
            return super().step(batches, clock)

    run(Looks())
    assert seen == [True] * STEPS
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("at", [1, 5, 11, STEPS])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    at: int, undisturbed: tuple[bytes, bytes], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(Everything(stop_at=at), tmp_path)
    assert stop.value.args == (signal.SIGTERM,)
    assert signal.getsignal(signal.SIGTERM) == before
    task = run(Everything(), tmp_path)
    assert task.made == list(range(at, STEPS))
    assert state(task, tmp_path / "state") == undisturbed[0]
    assert (tmp_path / "losses.csv").read_bytes() == undisturbed[1]


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def stopped(folder: Path, at: int = 8, **more: Any) -> list[Path]:
    """Stops a run that saves every second step, and returns its checkpoints."""
    with pytest.raises(KeyboardInterrupt):
        run(Everything(stop_at=at), folder, save_steps=2, **more)
    return checkpoints(folder)


def test_two_generations_are_kept(tmp_path: Path) -> None:
    assert [path.name[11:-12] for path in stopped(tmp_path)] == ["000000006", "000000008"]


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty", "header"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    how: str, undisturbed: tuple[bytes, bytes], tmp_path: Path
) -> None:
    _, newest = stopped(tmp_path)
    whole = bytearray(newest.read_bytes())
    if how == "truncated":
        whole = whole[:-10]
    elif how == "empty":
        whole = bytearray()
    else:
        whole[-1 if how == "one bit" else 200] ^= 0b100
    newest.write_bytes(whole)
    task = Everything()
    said = rf"{newest.name} is damaged .*going on from the one before, checkpoint-000000006"
    with pytest.warns(PgmkitWarning, match=said):
        run(task, tmp_path)
    assert task.made == list(range(6, STEPS))
    assert newest.with_name(f"damaged-{newest.name}").read_bytes() == whole
    assert state(task, tmp_path / "state") == undisturbed[0]


def test_when_all_are_damaged_the_run_ends_with_what_to_do(tmp_path: Path) -> None:
    for path in stopped(tmp_path):
        path.write_bytes(path.read_bytes()[:-10])
    task = Everything()
    with pytest.raises(LoadError, match=r"damaged .*no other is left, so remove them"):
        run(task, tmp_path)
    assert not task.made
    assert len(checkpoints(tmp_path)) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import Everything, run, state
folder, left = Path(sys.argv[2]), int(sys.argv[3])
sync = os.fsync
def fsync(descriptor):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = fsync
task = run(Everything(), folder, save_steps=2)
os.fsync = sync
state(task, folder / "state")
"""


def test_a_run_that_is_killed_while_it_saves_again_and_again_ends_in_the_same_bytes(
    undisturbed: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """Each save syncs losses and their folder, then a checkpoint and its folder."""
    arguments = ["-c", KILLED, Path(__file__).parent, tmp_path]
    found = []
    for syncs in (7, 3):
        run = run_forked(*arguments, syncs)
        assert run.code == -signal.SIGKILL, run.stderr
        found.append([int(path.name[11:-12]) for path in checkpoints(tmp_path)])
    assert found == [[2], [2]]
    assert run_forked(*arguments, -1).code == 0
    assert (tmp_path / "state").read_bytes() == undisturbed[0]
    assert (tmp_path / "losses.csv").read_bytes() == undisturbed[1]


def test_what_is_done_is_taken_up_at_once(undisturbed: tuple[bytes, bytes], tmp_path: Path) -> None:
    for made in (list(range(STEPS)), []):
        task = Everything()
        with keeping(tmp_path):
            run(task)
        assert task.made == made
        assert state(task, tmp_path / "state") == undisturbed[0]
    assert checkpoints(tmp_path / "all")


@pytest.mark.parametrize("other", [{"seed": 4}, {"steps": 13}, {"identity": {"width": 8}}])
def test_a_checkpoint_of_something_else_is_set_aside_and_said(
    other: dict[str, Any], tmp_path: Path
) -> None:
    before = [path.read_bytes() for path in stopped(tmp_path)]
    losses = (tmp_path / "losses.csv").read_bytes()
    task, (key,) = Everything(), other.get("identity", other)
    with pytest.warns(PgmkitWarning, match=rf"other {key}\): they were moved to set-aside-1"):
        run(task, tmp_path, **other)
    assert task.made[0] == 0
    aside = tmp_path / "set-aside-1"
    assert [path.read_bytes() for path in checkpoints(aside)] == before
    assert (aside / "losses.csv").read_bytes() == losses


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Everything())
    assert not list(tmp_path.iterdir())


def test_it_saves_after_minutes_too(tmp_path: Path) -> None:
    class Looks(Everything):
        def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
            found.append([int(path.name[11:-12]) for path in checkpoints(tmp_path)])
            return super().step(batches, clock)

    found: list[list[int]] = []
    run(Looks(), tmp_path, save_minutes=0.0)
    assert found[:4] == [[], [1], [1, 2], [2, 3]]
    shutil.rmtree(tmp_path)
    found.clear()
    run(Looks(), tmp_path, save_minutes=None)
    assert found == [[]] * STEPS


class Diverges(Everything):
    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        losses = super().step(batches, clock)
        return losses if clock.step < 7 else {"loss": losses["loss"] * torch.nan}


@pytest.mark.parametrize(("log_steps", "at"), [(100, 8), (1, 8)])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_good_state_is_kept(
    log_steps: int, at: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": STEPS, "seed": 3, "name": "all", "batch_size": 3}
    settings |= {"source": pictures(), "folder": tmp_path, "log_steps": log_steps}
    with pytest.raises(PgmkitError, match=rf"loss loss is nan at step {at}; lower the learning"):
        learn(Diverges(), save_steps=2, **settings)
    assert read(checkpoints(tmp_path)[-1]).header["step"] == 6


class Measured(Everything):
    """Measures its own steps, and exports how many there were."""

    fails_at = -1

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        if clock.step == self.fails_at:
            raise PgmkitError("no room for pictures")
        (folder / "looked.txt").write_text(f"{clock.step} {clock.epoch}")
        return {"twice": 2.0 * clock.step, "chance": float(torch.rand(1))}

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "record.txt").write_text(f"{record['steps']} {record['epochs']} {record['a']}")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_task_is_measured_and_exported_on_the_way_which_changes_nothing(
    undisturbed: tuple[bytes, bytes], tmp_path: Path
) -> None:
    out, model = tmp_path / "out", tmp_path / "model"
    early = tmp_path / "early"
    task = run(Measured(), out, identity={"a": 1}, exports={model: STEPS, early: 5})
    assert state(task, tmp_path / "state") == undisturbed[0]
    measured = rows(out / "measurements.csv")
    assert [(row["step"], row["epoch"], row["twice"]) for row in measured] == [
        ("3", "1", "6"),
        ("6", "2", "12"),
        ("9", "3", "18"),
        ("12", "4", "24"),
    ]
    assert len({row["chance"] for row in measured}) == 4
    assert (out / "looked.txt").read_text() == "12 4"
    assert (model / "record.txt").read_text() == "12 4 1"
    assert (early / "record.txt").read_text() == "5 1 1"
    assert not list(out.glob(".trial-*"))


def test_measurements_come_every_so_many_steps_and_after_the_last(tmp_path: Path) -> None:
    run(Measured(), tmp_path, measure_steps=5)
    assert [row["step"] for row in rows(tmp_path / "measurements.csv")] == ["5", "10", "12"]


def test_what_comes_at_the_end_is_tried_before_the_first_step(tmp_path: Path) -> None:
    task = Measured()
    task.fails_at = 0
    with pytest.raises(PgmkitError, match="no room"):
        run(task, tmp_path)
    assert not task.made


def test_a_checkpoint_is_plain_safetensors_and_costs_no_copies(tmp_path: Path) -> None:
    big = torch.rand(4, 8, 32, 2**13).contiguous(memory_format=torch.channels_last)
    path = tmp_path / "checkpoint.safetensors"
    tracemalloc.start()
    write(path, {"big": big, "plain": {"numbers": [1, 2.5, None], "pair": (True, "x")}}, {"a": 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.02 * big.numel() * 4
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("big").permute(0, 3, 1, 2), big)
    saved, plain = read(path), {"numbers": []}
    other = torch.zeros_like(big)
    saved.give({"big": other, "plain": plain})
    assert torch.equal(other, big)
    assert plain == {"numbers": [1, 2.5, None], "pair": (True, "x")}
    assert saved.header == {"a": 1}


def test_every_type_of_tensor_comes_back_as_it_was(tmp_path: Path) -> None:
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    part: dict[str, Any] = {
        str(t): torch.arange(6).reshape(2, 3).to(t)
        for t in (*types, torch.int8, torch.uint8, torch.bool)
    }
    part |= {"none": torch.empty(0, 3), "one": torch.tensor(2.0), "turned": torch.rand(3, 4).T}
    write(tmp_path / "x", {"part": part}, {})
    back: dict[str, Any] = {}
    read(tmp_path / "x").give({"part": back})
    for name, value in part.items():
        assert torch.equal(back[name], value)
        assert (back[name].dtype, back[name].stride()) == (value.dtype, value.stride())


def test_what_no_checkpoint_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="odd/deep is a PosixPath"):
        write(tmp_path / "x", {"odd": {"deep": tmp_path}}, {})
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", {"network": nn.Linear(2, 2)}, {})
    saved = read(tmp_path / "x")
    for parts in ({"network": nn.Linear(3, 2)}, {"other": nn.Linear(2, 2)}):
        with pytest.raises(LoadError, match="does not fit what is trained"):
            saved.give(parts)


def test_too_few_images_and_numbers_outside_their_range_are_refused() -> None:
    with pytest.raises(DataError, match="there are 2 images, fewer than one batch of 3"):
        run(Everything(), source=pictures(2))
    for name in ("steps", "save_steps", "measure_steps", "batch_size"):
        with pytest.raises(ParameterError, match=name):
            run(Everything(), **{name: -1})
    with pytest.raises(ParameterError, match="name of a loop"):
        run(Everything(), name="../up")


def test_one_cycle_is_the_curve_of_torch() -> None:
    for steps in (1, 2, 7, 100):
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=max(steps, 2))
        for step in range(steps):
            clock = clock_at(0, step, steps)
            group = optimizer.param_groups[0]
            assert one_cycle(clock, 0.1) == pytest.approx(group["lr"], rel=1e-12)
            momentum = one_cycle(clock, 0.85, 0.95, 0.95)
            assert momentum == pytest.approx(group["betas"][0], rel=1e-12)
            optimizer.step()
            if step + 1 < max(steps, 2):
                schedule.step()


def test_schedules_begin_and_end_where_they_say() -> None:
    clocks = [clock_at(0, step, 101) for step in range(101)]
    for schedule in (linear, cosine):
        values = [schedule(clock, 6.0, 1e-4) for clock in clocks]
        assert (values[0], values[-1]) == (6.0, 1e-4)
        assert values == sorted(values, reverse=True)
        assert schedule(clocks[50], 6.0, 2.0) == pytest.approx(4.0)
        assert schedule(clocks[25], 6.0, 2.0, over=0.5) == pytest.approx(4.0)
        assert schedule(clocks[70], 6.0, 2.0, over=0.5) == 2.0
    assert [warm_up(clock, 4) for clock in clocks[:5]] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear(clock_at(0, 0, 1), 6.0, 2.0) == 6.0


def test_an_average_follows_weights_and_buffers() -> None:
    module = nn.BatchNorm1d(2)
    average = Average(module, decay=0.75)
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(8.0)  # type: ignore[union-attr]
        module.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    average.update(module, clock_at(0, 1000, 2000))
    assert torch.equal(average.module.weight, torch.full((2,), 2.0))
    assert torch.equal(average.module.running_mean, torch.full((2,), 2.0))
    assert average.module.num_batches_tracked == 7
    assert not any(p.requires_grad for p in average.module.parameters())
    early = Average(nn.BatchNorm1d(2), decay=0.75)
    early.update(module, clock_at(0, 0, 2000))
    torch.testing.assert_close(early.module.weight, torch.full((2,), 1 + 4 * 0.9))


def line(clock: Clock, layer: nn.Module) -> Tensor:
    x = torch.randn(16, 3, generator=clock.random)
    loss: Tensor = (layer(x) - x.sum(1, keepdim=True)).square().mean()
    return loss


def test_small_networks_learn_on_one_thread() -> None:
    weight, seen = nn.Parameter(torch.ones(1)), []

    def loss(clock: Clock) -> Tensor:
        seen.append(torch.get_num_threads())
        return weight.square().sum()

    with tensor_threads(3):
        minimise(loss, [weight], steps=2, learning_rate=0.1, seed=0, name="small")
        assert (seen, torch.get_num_threads()) == ([1, 1], 3)


def test_minimise_is_adamw_with_one_cycle(tmp_path: Path) -> None:
    def layer() -> nn.Linear:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Linear(3, 1)

    expected, found = layer(), layer()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.1, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=60)
    losses = []
    for step in range(60):
        loss = line(clock_at(7, step, 60), expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach().double())
    settings: dict[str, Any] = {"steps": 60, "learning_rate": 0.1, "weight_decay": 0.01, "seed": 7}
    with keeping(tmp_path):
        made = minimise(lambda clock: line(clock, found), [found], name="line", **settings)
    torch.testing.assert_close(made, torch.stack(losses))
    torch.testing.assert_close(found.weight, expected.weight)
    assert made[-1] < 0.1 * made[0]

    def never(clock: Clock) -> Tensor:
        raise AssertionError("it is done")

    again = layer()
    with keeping(tmp_path):
        assert torch.equal(minimise(never, [again], name="line", **settings), made)
    assert torch.equal(again.weight, found.weight)


def test_parameters_alone_are_learned_too() -> None:
    place = nn.Parameter(torch.zeros(2))
    losses = minimise(
        lambda clock: (place - 1).square().sum(),
        [place],
        steps=1,
        learning_rate=0.5,
        seed=0,
        name="place",
    )
    assert losses.tolist() == [2.0]
    assert losses.dtype == torch.float64
    assert (place > 0).all()


def test_rates_are_set_in_all_groups() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_without_a_folder_ctrl_c_acts_at_once() -> None:
    class Interrupted(Everything):
        def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it was held back")

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted())


def test_a_trial_makes_two_steps_and_tells_the_time_of_all(tmp_path: Path) -> None:
    seen: list[int] = []
    weight = nn.Parameter(torch.ones(1))

    def loss(clock: Clock) -> Tensor:
        seen.append(clock.step)
        time.sleep(0.02)
        return weight.square().sum()

    with keeping(tmp_path), trying() as loops:
        minimise(loss, [weight], steps=53, learning_rate=0.1, seed=0, name="tried")
    assert seen == [0, 1]
    assert 2 * 0.02 <= loops.spent < 2 * 0.2
    assert loops.spent + 51 * 0.02 <= loops.whole < 53 * 0.2
    assert not list(tmp_path.iterdir())
    assert float(weight.detach()) == 1  # what was tried is not learned


def test_a_trial_on_cuda_tries_more_images_and_steps_that_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append(-1))
    seen: list[int] = []
    with trying():
        try_steps(lambda: seen.append(len(seen)), 10)
    assert seen == [0, 1, 2, -1, 4, -1]  # what is timed is the fourth, and waited for
    assert [batch_of_trial(size, (3, 32, 32)) for size in (100, 500)] == [100, 340]
