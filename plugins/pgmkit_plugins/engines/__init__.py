"""Places where blocks of work run."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_engines() -> list[Component]:
    """Offers the engine that needs nothing else."""
    return [Component("local", "pgmkit.engines.local:LocalEngine", "threads of this process")]
