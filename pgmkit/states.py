"""The fitted state of components as tensors by name, whatever they are made of."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pgmkit.components import (
    arguments_of,
    components_of,
    name_of,
    origin_of,
    parameters_of,
    speaking_for,
)
from pgmkit.contracts import Composed, Distrusts, Saves
from pgmkit.errors import PluginError


def why_not_saved(component: Any) -> str | None:
    """Returns why a component cannot be saved, or None if it can.

    It can if an installed plugin offers it and all that it was built with, and if it is a
    `torch.nn.Module` or has `state` and `load_state`; and so can all that it is made of.
    """
    reason = why_not_built(component)
    if reason is None and not isinstance(component, nn.Module | Saves):
        name = name_of(component)
        reason = f"{name!r} has neither state() and load_state(), nor is it a torch.nn.Module"
    reasons = (reason, *map(why_not_saved, parts_of(component).values()))
    return next((reason for reason in reasons if reason is not None), None)


def why_not_built(component: Any) -> str | None:
    """Returns why a component could not be built again from its record, or None if it could."""
    if origin_of(component) is None:
        return (
            f"{name_of(component)} is an object of your own; offer it in a plugin, and pass its "
            "name"
        )
    parts = parts_of(component)
    rest = {name: value for name, value in arguments_of(component).items() if name not in parts}
    reasons = map(why_not_built, _objects(rest))
    return next((reason for reason in reasons if reason is not None), None)


def _objects(value: Any) -> Iterator[Any]:
    """Yields what no record can hold, wherever it stands in an argument."""
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _objects(part)
    elif value is not None and not isinstance(value, bool | int | float | str):
        yield value


def parts_of(component: Any) -> Mapping[str, Any]:
    """Returns the components that one is made of; none for most."""
    return component.parts if isinstance(component, Composed) else {}


def state_of(component: Any) -> dict[str, Tensor]:
    """Returns all that was fitted, by name; that of parts has the part's name and a dot in front.

    Raises:
        PluginError: it cannot be saved, or fails to tell its state.
    """
    reason = why_not_saved(component)
    if reason is not None:
        raise PluginError(f"this cannot be saved: {reason}")
    with speaking_for(repr(name_of(component)), "in state"):
        own = component.state() if isinstance(component, Saves) else _tensors_of(component)
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise PluginError(
                f"{name_of(component)!r} has {name!r} of type {type(value).__name__} in its state; "
                "a state holds tensors alone"
            )
    state = {name: value.detach().cpu() for name, value in own.items()}
    for name, part in parts_of(component).items():
        state |= with_prefix(f"{name}.", state_of(part))
    return state


def _tensors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """Returns the tensors of a module; raises PluginError if a fresh one has no place for them."""
    state, origin = module.state_dict(), origin_of(module)
    assert origin is not None
    fresh = origin.build(**arguments_of(module))
    places = {name for name, _ in fresh.named_modules(remove_duplicate=False)}
    for name in state:
        if name.rpartition(".")[0] not in places:
            raise PluginError(
                f"this cannot be saved: {name!r} of {name_of(module)!r} is of a network that it "
                "makes in fit; make it in __init__, or offer state() and load_state()"
            )
    return state


def load_state_of(component: Any, state: Mapping[str, Tensor]) -> None:
    """Takes up what `state_of` returned, in a component that was built with the same parameters."""
    _distrust(component)
    of_parts = tuple(f"{name}." for name in parts_of(component))
    own = {name: value for name, value in state.items() if not name.startswith(of_parts)}
    if isinstance(component, Saves):
        component.load_state(own)
    else:
        _make_room(component, own)
        component.load_state_dict({name: state[name] for name in component.state_dict()})
    for name, part in parts_of(component).items():
        load_state_of(part, without_prefix(f"{name}.", state))


def _distrust(component: Any) -> None:
    """Tells a component, and all that it was built with, that a folder names its parameters."""
    if isinstance(component, Distrusts):
        component.distrust()
    for part in components_of(component):
        _distrust(part)


def _make_room(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Registers the tensors of a module that `fit` makes, or gives another shape or type."""
    for name, value in state.items():
        place, _, leaf = name.rpartition(".")
        owner = module.get_submodule(place)
        known = getattr(owner, leaf, None)
        if not isinstance(known, nn.Parameter):
            owner.register_buffer(leaf, value)
        elif not is_lazy(known):
            known.data = value


def table_of(component: Any) -> dict[str, Any]:
    """Returns name and parameters of a component, as records have them.

    Parameters that name other components are tables themselves, with all of their parameters.
    """
    parameters, parts = parameters_of(component), parts_of(component)
    for name, value in parameters.items():
        now = parts.get(name, getattr(component, name, value))
        if isinstance(now, int | float | str) and type(value) in (type(now), type(None)):
            parameters[name] = now  # such as a number of parts that was found
        elif name in parts or origin_of(now) is not None:
            parameters[name] = _nested(now)
        elif isinstance(now, list) and any(origin_of(part) is not None for part in now):
            parameters[name] = [_nested(part) for part in now]
    return {"name": name_of(component), "params": parameters}


def _nested(component: Any) -> dict[str, Any]:
    table = table_of(component)
    return {"name": table["name"], **table["params"]}


def versions_of(*tables: Mapping[str, Any]) -> dict[str, str]:
    """Returns the versions of pgmkit, its numerics and the plugins that took part."""
    distributions = {"pgmkit", "torch", "scikit-learn"}
    distributions |= {name.partition(":")[0] for name in _names(tables) if ":" in name}
    return {name: importlib.metadata.version(name) for name in sorted(distributions)}


def _names(value: Any) -> Iterator[str]:
    """Yields the names of all components in tables, whatever stands in them."""
    if isinstance(value, Mapping):
        name = value.get("name")
        yield from [name] if isinstance(name, str) else []
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _names(part)


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state whose names begin with a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def without_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns that part of a state whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
