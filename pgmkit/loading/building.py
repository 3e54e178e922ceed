"""Building a network whose sizes come from a file that may say anything.

A folder's `model_args` are bounded by its weights: what they ask for is built on the meta device
first, where tensors take no memory, and building stops once there is more than the weights fill.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from pgmkit.components import check_parameters
from pgmkit.errors import LoadError, ParameterError, PgmkitError, UnknownNameError, first_line
from pgmkit.plugins import installed

Architecture = Callable[..., nn.Module] | str
"""A class or function that builds a module, or the name of a component."""

_SPARE_VALUES = 2**20
_SPARE_TENSORS = 64
"""What a module may hold beside its weights: fixed filters, grids of positions."""


class _TooLargeError(LoadError):
    """More is asked for than the weights fill."""


class _Undrawn(TorchFunctionMode):
    """Draws no normal numbers on the meta device, for which torch imports its compiler: seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)


def find_architecture(chosen: Architecture, where: str, *, trusted: bool) -> Callable[..., Any]:
    """Returns what builds the module.

    Args:
        chosen: a class or function; the name of a generator loader; or "package.module:Class".
        where: who names it, for messages.
        trusted: whether the user named it. Only then may it be "package.module:Class", whose
            import runs that module; a model folder can name installed components alone.

    Raises:
        UnknownNameError: no component has the name.
        ParameterError: the class cannot be imported.
    """
    if not isinstance(chosen, str):
        return chosen
    if installed().offers("generator-loaders", chosen):
        factory: Callable[..., Any] = installed().find("generator-loaders", chosen).resolve()
        return factory
    if ":" in chosen and trusted:
        return _imported(chosen)
    hint = (
        "install a plugin that offers it, or pass architecture=YourClass "
        "(--architecture package.module:Class)"
    )
    known = [component.name for component in installed().of_kind("generator-loaders")]
    raise UnknownNameError(f"architecture (in {where})", chosen, known, hint)


def build(
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    where: str,
    weights: Mapping[str, Tensor],
) -> nn.Module:
    """Builds a module that holds not much more than the weights that are to go into it.

    The state of torch's global random generator stays as it was.

    Raises:
        ParameterError: the arguments do not fit the factory.
        LoadError: they ask for much more than the weights fill, or it builds no module.
    """
    what = f"'model_args' in {where}"
    check_parameters(factory, dict(arguments), what)
    values = sum(tensor.numel() for tensor in weights.values())
    try:
        with torch.random.fork_rng(devices=[]), _at_most(values, len(weights), where):
            try:
                with torch.device("meta"), _Undrawn():
                    factory(**arguments)
            except _TooLargeError:
                raise
            except Exception:  # noqa: S110
                pass  # some cannot be built there; what is wrong with them shows below
            module = factory(**arguments)
    except PgmkitError:
        raise
    except TypeError as error:
        raise ParameterError(f"{what} do not fit: {error}") from error
    except Exception as error:
        raise LoadError(
            f"the architecture of {where} cannot be built with {dict(arguments)!r:.200}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"the architecture in {where} builds a {type(module).__name__}, no module")
    return module


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ParameterError(
            f"the architecture {name!r} cannot be imported: {type(error).__name__}: "
            f"{first_line(error)}; it is written package.module:Class, and the module must be on "
            "PYTHONPATH"
        ) from error
    if not callable(found):
        raise ParameterError(f"the architecture {name!r} is a {type(found).__name__}, no class")
    result: Callable[..., Any] = found
    return result


@contextlib.contextmanager
def _at_most(values: int, tensors: int, where: str) -> Iterator[None]:
    """Stops modules from registering much more than so many values in so many tensors."""
    seen = {"values": 0, "tensors": 0, "names": 0}

    def count(_: nn.Module, name: str, parameter: Any) -> None:
        if not isinstance(parameter, Tensor):
            return
        seen["tensors"] += 1
        seen["values"] += parameter.numel()
        # Twice, since it is built on the meta device, too.
        if seen["values"] > 2 * (2 * values + _SPARE_VALUES) or seen["tensors"] > 2 * (
            2 * tensors + _SPARE_TENSORS
        ):
            raise _TooLargeError(
                f"'model_args' in {where} ask for a network of {seen['values']:,} values and more "
                f"in {seen['tensors']:,} tensors, and the weights are {values:,} in {tensors:,}; "
                "correct them"
            )

    handles = [
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
