"""Small networks: a loss that is called again and again, and what it is to change."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.learning import ranks
from pgmkit.learning.batches import Batch
from pgmkit.learning.checkpoints import Part
from pgmkit.learning.clock import Clock
from pgmkit.learning.loop import learn
from pgmkit.learning.optimizers import eager
from pgmkit.learning.schedules import one_cycle, set_rate
from pgmkit.machine import tensor_threads

_MOMENTA = (0.95, 0.85)


def minimise(
    loss: Callable[[Clock], Tensor],
    learning: Sequence[nn.Module | nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    seed: int,
    name: str,
    identity: Mapping[str, Any] | None = None,
) -> Tensor:
    """Trains by AdamW, with one cycle of the learning rate and of the first moment's decay.

    The curves are those of `torch.optim.lr_scheduler.OneCycleLR`. Modules are in training mode or
    not as the caller left them. Tensor operations have one thread: to share small ones among
    several takes longer than they do; see `pgmkit.learning.halves`.

    Args:
        loss: of one step, a number; whatever it draws comes from `clock.random`, or from the
            global generators, as dropout does.
        learning: what is trained. Only modules keep buffers, such as the statistics of a batch
            norm, in checkpoints.
        steps: at least 1.
        learning_rate: the highest.
        weight_decay: of AdamW.
        seed: of the run.
        name: of the loop; see `pgmkit.learning.learn`.
        identity: what tells it from all else; the numbers here are added.

    Returns:
        The loss of every step, float64 (steps,), on the CPU.
    """
    task = _Minimised(loss, learning, steps, learning_rate, weight_decay)
    told = {**(identity or {}), "learning_rate": learning_rate, "weight_decay": weight_decay}
    with tensor_threads(1):
        learn(task, steps=steps, seed=seed, name=name, identity=told)
    return task.losses.double().cpu()


class _Minimised:
    def __init__(
        self,
        loss: Callable[[Clock], Tensor],
        learning: Sequence[nn.Module | nn.Parameter],
        steps: int,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.loss = loss
        self.parameters = [
            parameter
            for part in learning
            for parameter in (part.parameters() if isinstance(part, nn.Module) else [part])
        ]
        self.learning_rate = learning_rate
        self.optimizer = eager(torch.optim.AdamW)(
            self.parameters, lr=learning_rate, weight_decay=weight_decay, fused=True
        )
        device = self.parameters[0].device
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.losses = torch.zeros(steps, dtype=exact, device=device)
        self.parts: dict[str, Part] = {f"{index}": part for index, part in enumerate(learning)}
        self.parts |= {"optimizer": self.optimizer, "losses": self.losses}

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        set_rate(self.optimizer, one_cycle(clock, self.learning_rate))
        first, second = _MOMENTA
        for group in self.optimizer.param_groups:
            group["betas"] = (one_cycle(clock, second, first, first), group["betas"][1])
        value = self.loss(clock)
        self.optimizer.zero_grad()
        value.backward()
        ranks.average_gradients(self.parameters)
        self.optimizer.step()
        self.losses[clock.step] = value.detach()
        return {"loss": value.detach()}
