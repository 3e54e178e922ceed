"""A normalising flow per cluster."""

import copy

import torch
import zuko

from pgmkit.errors import ParameterError
from pgmkit.machine import thread_limit
from pgmkit.seeds import derive_seed, random_generator


class Flow(torch.nn.Module):
    """The flow of one cluster, between its latents, centred and scaled, and a normal prior."""

    def __init__(self, dim, transforms, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.flow = zuko.flows.MAF(dim, transforms=transforms, hidden_features=(width, width))

    def learn(self, z, steps):
        """Fits latents z (n, M), and keeps the weights that are best for a fifth, left out."""
        self.mean, self.scale = z.mean(dim=0), z.std(dim=0).clamp(min=1e-6)
        shuffled = ((z - self.mean) / self.scale)[torch.randperm(len(z))]
        left_out, known = shuffled.tensor_split([len(z) // 5])
        adam = torch.optim.Adam(self.flow.parameters(), lr=3e-3)
        best, kept = -torch.inf, copy.deepcopy(self.flow.state_dict())
        for step in range(steps + 1):
            if step % 10 == 0:
                with torch.no_grad():
                    found = self.flow().log_prob(left_out).mean()
                if found > best:
                    best, kept = found, copy.deepcopy(self.flow.state_dict())
            adam.zero_grad()
            (-self.flow().log_prob(known).mean()).backward()
            adam.step()
        self.flow.load_state_dict(kept)

    @torch.no_grad()
    def draw(self, noise):
        """Returns latents (n, M) of normal noise (n, M)."""
        return self.flow().transform.inv(noise) * self.scale + self.mean


class Flows:
    """Draws latents of a cluster by a flow that was fitted to its members.

    A fifth of the members is left out, and the weights are kept that give those the highest
    likelihood. Latents of a prior with bounds are turned into normal ones before, and back.

    Args:
        transforms: maps of each flow, at least 1.
        width: of their two hidden layers, at least 1.
        steps: of Adam, at least 1.
    """

    def __init__(self, transforms: int = 3, width: int = 32, steps: int = 300):
        if min(transforms, width, steps) < 1:
            raise ParameterError(
                "transforms, width and steps must be at least 1, not "
                f"{transforms}, {width} and {steps}"
            )
        self.transforms, self.width, self.steps = transforms, width, steps

    def fit(self, latents, labels, *, num_clusters, assign, prior, seed):
        """Fits a flow to the latents (n, M) of each cluster that has five members or more."""
        if prior is not None and not prior.continuous.all():
            raise ParameterError(
                f"flows draw continuous latents, and {prior} ones have categories; take 'mixture'"
            )
        z = (latents if prior is None else prior.to_normal(latents)).cpu().float()
        with thread_limit(1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "flows"))
            self._build(num_clusters, z.shape[1])
            for cluster, flow in enumerate(self.flows):
                members = z[labels == cluster]
                if len(members) >= 5:
                    flow.learn(members, self.steps)

    def sample(self, n, cluster, *, assign, prior, seed):
        """Draws latents (n, M) of one cluster; some may lie beside it."""
        flow = self.flows[cluster]
        noise = torch.randn(n, len(flow.mean), generator=random_generator(seed, cluster))
        with thread_limit(1):
            x = flow.draw(noise)
        return x if prior is None else prior.from_normal(x)

    def state(self):
        """Returns the weights, which is what is saved."""
        return self.flows.state_dict()

    def load_state(self, state):
        """Takes up what `state` returned."""
        number = len({name.partition(".")[0] for name in state})
        self._build(number, len(state["0.mean"]))
        self.flows.load_state_dict(state)

    def _build(self, number, dim):
        self.flows = torch.nn.ModuleList(
            Flow(dim, self.transforms, self.width) for _ in range(number)
        )
