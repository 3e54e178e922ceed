"""The hook specifications: the contract between pgmkit and its plugins.

A plugin is an importable module that implements any of these hooks and is named by an entry point
in the group `pgmkit.plugins`. Each hook returns an iterable of `pgmkit.Component`. Hooks run when
components are listed, so a plugin's module must not import torch; the factories may.
"""

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import pluggy

from pgmkit.components import Component

PROJECT_NAME = "pgmkit"
ENTRY_POINT_GROUP = "pgmkit.plugins"
API_VERSION = 1
"""What a plugin module may declare as `PGMKIT_API_VERSION`; another number is refused."""

_Hook = TypeVar("_Hook")
_hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a function of a plugin as the implementation of the hook with the same name."""


def hookspec(function: _Hook) -> _Hook:
    """Marks a hook specification and keeps its type."""
    return cast(_Hook, cast(Any, _hookspec)(function))


@hookspec
def pgmkit_density_estimators() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers density estimators: functions of a Spectrum that weigh its latents.

    The factory builds an object with `log_weights(spectrum) -> (n,)`; `-inf` removes a latent.

    Example:
        A plugin that keeps the latents nearest to the prior's centre::

            from pgmkit import Component, hookimpl

            @hookimpl
            def pgmkit_density_estimators():
                return [Component("central", "my_plugin.central:Central", "near the centre")]

        and in `my_plugin/central.py`::

            class Central:
                def log_weights(self, spectrum):
                    return -spectrum.latents.norm(dim=1)
    """


@hookspec
def pgmkit_features() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers features: they make points of images, among which parts are sought.

    The factory builds an object with `fit(source, *, seed)` and `__call__(x) -> (B, d)`, for images
    x (B, C, H, W) in [-1, 1]; see `pgmkit.contracts.Features`. Partitioners name features by name
    or table. A `torch.nn.Module` is saved as it is; anything else needs `state()` and
    `load_state(state)`.

    Example:
        How bright each quarter of an image is::

            @hookimpl
            def pgmkit_features():
                return [Component("quarters", "my_plugin.quarters:Quarters", "their brightness")]

        and in `my_plugin/quarters.py`::

            class Quarters(torch.nn.Module):
                def fit(self, source, *, seed):
                    pass

                def forward(self, x):
                    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
    """


@hookspec
def pgmkit_partitioners() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers partitioners: they split images, or latents, into parts without labels.

    The factory takes `num_partitions`, with a default for where no number is asked for, and builds
    an object with `num_partitions`, `fit(source, *, seed)` and `logits(x) -> (B, k)`; the part of
    an image is its largest logit. See `pgmkit.contracts.Partitioner`. Parts, guide, margins and
    samplers the engine derives. With `prepare`, `make_clusterer` and `split`
    (`pgmkit.contracts.Prepares`) the number of parts can be chosen; `findings() -> dict` holds what
    reports should tell; with `represent` and `head` (`pgmkit.contracts.Represents`) `pgmkit audit`
    can look at what lies before its last layer. Saving is as for features; other components that it
    is made of stand in `parts`, by the names of the parameters that name them.

    Example:
        Images below or above the median brightness::

            @hookimpl
            def pgmkit_partitioners():
                return [Component("halves", "my_plugin.halves:Halves", "dark and bright")]

        and in `my_plugin/halves.py`::

            from pgmkit.images import batches

            class Halves:
                num_partitions = 2

                def __init__(self, num_partitions=2):
                    pass

                def fit(self, source, *, seed):
                    self.median = torch.cat([_brightness(x) for x in batches(source)]).median()

                def logits(self, x):
                    above = _brightness(x) - self.median
                    return torch.stack([-above, above], dim=1)

                def state(self):
                    return {"median": self.median}

                def load_state(self, state):
                    self.median = state["median"]

            def _brightness(x):
                return x.mean(dim=(1, 2, 3))
    """


@hookspec
def pgmkit_mappers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers mappers: they draw latents of one cluster.

    The factory builds an object with
    `fit(latents, labels, *, num_clusters, assign, prior, seed)` and
    `sample(n, cluster, *, assign, prior, seed) -> (n, M)`; see `pgmkit.contracts.Mapper`.
    `assign(latents, core=1.0)` says in which cluster latents lie, `prior` is the generator's
    `LatentSpec`. `sample` raises `pgmkit.errors.SamplingError` for a cluster that it cannot find
    latents of. Saving is as for features.

    Example:
        Members of the cluster, moved a little::

            @hookimpl
            def pgmkit_mappers():
                return [Component("nearby", "my_plugin.nearby:Nearby", "members, moved a little")]

        and in `my_plugin/nearby.py`::

            class Nearby:
                def fit(self, latents, labels, *, num_clusters, assign, prior, seed):
                    self.latents, self.labels = latents, labels

                def sample(self, n, cluster, *, assign, prior, seed):
                    random = torch.Generator().manual_seed(seed)
                    members = self.latents[self.labels == cluster]
                    chosen = members[torch.randint(len(members), (n,), generator=random)]
                    return chosen + 0.1 * torch.randn(chosen.shape, generator=random)

                def state(self):
                    return {"latents": self.latents, "labels": self.labels}

                def load_state(self, state):
                    self.latents, self.labels = state["latents"], state["labels"]
    """


@hookspec
def pgmkit_cluster_samplers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers cluster samplers: they find clusters of latents and draw new ones, both in one.

    Where the two can be told apart, a partitioner and a mapper serve more people. The factory takes
    `num_clusters`, with a default for where no number is asked for, and builds an object with
    `fit(latents, *, generator, seed)`, `labels_ (n,)`, `predict(latents) -> (n,)` and
    `sample(n, cluster, seed) -> (n, M)`; see `pgmkit.contracts.ClusterSampler`.

    Optional parts: `bind(generator)` is called after loading, for a sampler that needs its
    generator; `prepare`, `make_clusterer` and `split` let the number of clusters be chosen
    (`pgmkit.contracts.PreparesClusters`); `acceptance_rate(cluster)` is the share of the latents it
    tries that `sample` returns, in [0, 1], or None if that is all of them; `findings() -> dict`
    holds what reports should tell. `num_clusters_`, set by `fit`, is the number of clusters where
    the sampler finds it itself. Saving is as for features.

    Example:
        ::

            @hookimpl
            def pgmkit_cluster_samplers():
                return [Component("grid", "my_plugin.grid:GridSampler", "cells of a grid")]

        and in `my_plugin/grid.py`::

            class GridSampler:
                def __init__(self, num_clusters=4):
                    self.num_clusters = num_clusters

                def fit(self, latents, *, generator, seed):
                    steps = torch.linspace(0, 1, self.num_clusters + 1)[1:-1]
                    self.cuts = latents[:, 0].quantile(steps)
                    self.latents, self.labels_ = latents, self.predict(latents)

                def predict(self, latents):
                    return torch.bucketize(latents[:, 0].contiguous(), self.cuts)

                def sample(self, n, cluster, seed):
                    random = torch.Generator().manual_seed(seed)
                    members = self.latents[self.labels_ == cluster]
                    return members[torch.randint(len(members), (n,), generator=random)]
    """


@hookspec
def pgmkit_backbones() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers backbones: matching generator and discriminator networks for training.

    The factory builds an object with `generator(num_partitions=None)` and
    `discriminator(num_partitions=None)`; see `pgmkit.contracts.Backbone`. Without partitions they
    return modules that map latents `z (B, M)` to images and images `x` to logits `(B,)`; with
    `num_partitions`, at least 1, modules that map `(z, y)` and `(x, y)`, where `y (B,)`, int64,
    holds parts from 0 to `num_partitions - 1`. The factory takes `latent_dim` and whatever else a
    training config gives. What is trained is exported under the backbone's name, so the plugin also
    offers a generator loader of the same name and parameters, and `num_partitions: int | None =
    None`. Discriminators may have `features(x) -> (B, ...)`, what their last layer sees, for
    features `discriminator`.

    Example:
        ::

            @hookimpl
            def pgmkit_backbones():
                return [Component("tiny", "my_plugin.tiny:Tiny", "two layers, for tests")]
    """


@hookspec
def pgmkit_generator_loaders() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers generator architectures that a generator folder's `config.json` may name.

    The factory is called with `model_args` of that file and returns a `torch.nn.Module` that maps
    flat latents `z (B, M)` to images `(B, C, H, W)`. pgmkit loads the weights into it strictly. A
    module with a method `convert_state_dict(state_dict) -> state_dict` may rename foreign keys.

    Example:
        ::

            @hookimpl
            def pgmkit_generator_loaders():
                return [Component("my-gan", "my_plugin.gan:Generator", "the network of my paper")]
    """


@hookspec
def pgmkit_classifiers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers classifiers, which score clusters; a classifier folder's `config.json` names them.

    The factory is called with `model_args` of that file, or with what the table `model` of a
    training config holds, and returns a `torch.nn.Module` that maps images `x (B, C, H, W)` in
    [-1, 1] to logits `(B, num_classes)`. It has the attribute `num_classes`.

    Optional parts: `image_channels`, the C that it takes; grey and RGB are then turned into each
    other. `image_size`, the side of the square in the middle that it looks at. `features(x) ->
    (B, d)`, what its last layer sees, for fidelity by `classifier:NAME`.

    Example:
        ::

            @hookimpl
            def pgmkit_classifiers():
                return [Component("linear", "my_plugin.linear:Linear", "one layer on pixels")]

        and in `my_plugin/linear.py`::

            class Linear(torch.nn.Module):
                def __init__(self, num_classes=10, num_pixels=1024):
                    super().__init__()
                    self.num_classes = num_classes
                    self.layer = torch.nn.Linear(num_pixels, num_classes)

                def forward(self, x):
                    return self.layer(x.flatten(1))
    """


@hookspec
def pgmkit_engines() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers engines: where numbered blocks of work run.

    The factory builds an object with `map(function, blocks, *, parallel=True) -> iterator`, which
    calls `function(block)` for each block number and yields `(block, result)` in any order. With
    `parallel=False` one process runs one block at a time; or a few, where the function's attribute
    `device_type`, which says where it computes, such as "cpu" or "cuda", is that of an accelerator:
    it takes them one by one. Function and results can be pickled.

    Optional parts: `threads` is the number of threads that a worker gives to tensor operations
    where `parallel` is false; without it, as many as this process. An engine for which several
    processes run the same command has `coordinator`, true in the one that writes and prints, and
    `decide(function)`, which returns in all processes what `function()` is in that one, or raises
    its error in all; its `map` is called in all processes and yields all blocks in each.

    Example:
        ::

            @hookimpl
            def pgmkit_engines():
                return [Component("threads", "my_plugin.threads:ThreadEngine", "a thread pool")]
    """


@hookspec
def pgmkit_commands() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers commands for the `pgmkit` command line.

    The factory names a `click.Command`, which becomes `pgmkit NAME`. It is imported only when the
    command runs.

    Example:
        ::

            @hookimpl
            def pgmkit_commands():
                return [Component("hello", "my_plugin.hello:hello", "says hello")]
    """
