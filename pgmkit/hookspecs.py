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
def pgmkit_cluster_samplers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers cluster samplers: they find clusters of latents and draw new ones from each.

    The factory takes `num_clusters` and builds an object with
    `fit(latents, *, images=None, generator=None, seed)`, `labels_ (n,)`, `predict(latents) -> (n,)`
    and `sample(n, cluster, seed) -> (n, M)`. To be saved it has `get_params() -> dict`,
    `state() -> dict[str, Tensor]` and `load_state(state)`.

    Optional parts: `bind(generator)` is called after loading, for a sampler that needs its
    generator. `features(latents, *, generator, seed) -> (n, d)` gives the points in which clusters
    are sought, before `fit` and for any `num_clusters`; k can be chosen from them, and
    `set_params(num_clusters=k)` then sets it. `make_clusterer(num_clusters, seed)` builds what
    clusters those points, with `fit(points)` and `predict(points)`, if that is not k-means.
    `acceptance_rate(cluster)` is the share of the latents it tries that `sample` returns, in
    [0, 1], or None if that is all of them.
    `summary() -> dict` holds what reports should tell of a fitted sampler, as plain values.
    `num_clusters_`, set by `fit`, is the number of clusters where the sampler finds it itself; k is
    `num_clusters` otherwise. `sample` raises `pgmkit.errors.SamplingError` for a cluster that it
    cannot find latents of.

    Example:
        ::

            @hookimpl
            def pgmkit_cluster_samplers():
                return [Component("grid", "my_plugin.grid:GridSampler", "cells of a grid")]

        and in `my_plugin/grid.py`, without what is only needed to save it::

            class GridSampler:
                def __init__(self, num_clusters=4):
                    self.num_clusters = num_clusters

                def fit(self, latents, *, images=None, generator=None, seed=0):
                    steps = torch.linspace(0, 1, self.num_clusters + 1)[1:-1]
                    self.cuts = latents[:, 0].quantile(steps)
                    self.latents, self.labels_ = latents, self.predict(latents)
                    return self

                def predict(self, latents):
                    return torch.bucketize(latents[:, 0].contiguous(), self.cuts)

                def sample(self, n, cluster, seed):
                    random = torch.Generator().manual_seed(seed)
                    members = self.latents[self.labels_ == cluster]
                    return members[torch.randint(len(members), (n,), generator=random)]
    """


@hookspec
def pgmkit_partitioners() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers partitioners: they split image space into k parts without labels.

    The factory builds a module with `fit(images)`, `logits(x) -> (B, k)`, `assign(x) -> (B,)` and
    `guide(x, i) -> (B,)`.

    Example:
        ::

            @hookimpl
            def pgmkit_partitioners():
                return [Component("halves", "my_plugin.halves:Halves", "left and right")]
    """


@hookspec
def pgmkit_backbones() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers backbones: matching generator and discriminator networks for training.

    The factory builds an object with `generator(num_partitions=None)` and
    `discriminator(num_partitions=None)`. Without partitions they return modules that map latents
    `z (B, M)` to images and images `x` to logits `(B,)`; with partitions the modules also take the
    part `y (B,)`. The factory takes `latent_dim` and whatever else a training config gives. What is
    trained is exported under the backbone's name, so the plugin also offers a generator loader of
    the same name and parameters.

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
def pgmkit_engines() -> Iterable[Component]:  # type: ignore[empty-body]
    """Offers engines: where numbered blocks of work run.

    The factory builds an object with `map(function, blocks, *, parallel=True) -> iterator`, which
    calls `function(block)` for each block number and yields `(block, result)` in any order. With
    `parallel=False` one process runs one block at a time. Function and results can be pickled; the
    function's attribute `device_type` says where it computes, such as "cpu" or "cuda".

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
