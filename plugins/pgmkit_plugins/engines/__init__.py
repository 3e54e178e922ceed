"""Places where blocks of work run."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_engines() -> list[Component]:
    """Offers threads, the processes of torchrun, and Ray."""
    return [
        Component(
            "local",
            "pgmkit.engines.local:LocalEngine",
            "threads of this process",
            trial={"workers": 2},
        ),
        Component(
            "torchrun",
            "pgmkit_plugins.engines.torchrun:TorchrunEngine",
            "processes that torchrun starts",
        ),
        Component(
            "ray",
            "pgmkit_plugins.engines.ray:RayEngine",
            "tasks on a Ray cluster",
            requires=("pgmkit[ray]",),
        ),
    ]
