"""Shows a recorder what no torch function mode sees by itself.

Most of what a module does goes through such a mode. Three things do not, and modules that people
have are full of them:

* A function that torch writes in Python, such as `interpolate`, first asks whether somebody
  overrides it. While the recorder is on, that leads back to the recorder and never to the calls
  that the function makes; `without_dispatch` runs its body with that question answered with no.
* A custom `autograd.Function`. `apply` asks nobody, and modules keep it under names of their own;
  what it calls is `forward`, so that is replaced, in every such class, until the recording ends.
* A scripted module runs outside Python; that it is called is all there is to see.

Tracing by `torch.fx`, `torch.export` or a torch dispatch mode does not spare us this: the first two
refuse modules or fix their control flow, the last shows the pieces that functions are made of and
not the functions, for which the rules are. All changes are undone when the recording ends; other
threads pass through them meanwhile.

This leans on the inside of torch: on names that begin with `has_torch_function`, and on `apply`
looking `forward` up when it is called. It was tried with torch 2.6.0, the oldest that pgmkit takes,
and with 2.14.1; tests/test_tangents.py is what to run with another.
"""

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgmkit.tangents.tape import UnsupportedModuleError, values_of

if TYPE_CHECKING:
    from pgmkit.tangents.recording import Recorder

_bare_globals: dict[int, dict[str, Any]] = {}


def without_dispatch(function: Any) -> Callable[..., Any]:
    """Returns a torch function written in Python that runs its body at once.

    As it stands it would first ask whether someone overrides it, and come back here.
    """
    code = function.__func__ if isinstance(function, types.MethodType) else function
    names = _bare_globals.get(id(code.__globals__))
    if names is None:
        names = {
            name: (lambda *_: False) if name.startswith("has_torch_function") else value
            for name, value in code.__globals__.items()
        }
        _bare_globals[id(code.__globals__)] = names
    bare = types.FunctionType(
        code.__code__, names, code.__name__, code.__defaults__, code.__closure__
    )
    bare.__kwdefaults__ = code.__kwdefaults__
    if isinstance(function, types.MethodType):
        return types.MethodType(bare, function.__self__)
    return bare


def not_compiled() -> AbstractContextManager[Any]:
    """Runs compiled modules as they were written; dynamo would compile the recorder with them.

    The switch is one for all threads; recorders run one after the other.
    """
    if "torch._dynamo" not in sys.modules:  # takes seconds to import
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


_patching = threading.Lock()
_current = threading.local()


@contextmanager
def opaque_calls_noted_by(recorder: "Recorder") -> Iterator[None]:
    """Notes calls of custom autograd functions and of scripted modules as one call each.

    No torch function mode sees them. Other threads meanwhile pass through unchanged.
    """
    scripted: Any = torch.jit.ScriptModule
    with _patching:
        patched = [(cls, cls.forward, vars(cls).get("forward")) for cls in _custom_functions()]
        for cls, forward, _ in patched:
            cls.forward = staticmethod(_noted_forward(cls, forward))
        scripted.__call__ = _noted_script
        _current.recorder = recorder
        try:
            yield
        finally:
            _current.recorder = None
            del scripted.__call__
            for cls, _, own in patched:
                if own is None:
                    del cls.forward
                else:
                    cls.forward = own


def _custom_functions() -> Iterator[Any]:
    """Yields every custom function; `apply` may be stored anywhere, but calls their `forward`.

    Those that torch makes for custom operators, a hundred of its own, are left out: a mode sees
    these operators.
    """
    remaining: list[Any] = [torch.autograd.Function]
    while remaining:
        found = remaining.pop().__subclasses__()
        remaining += found
        yield from (cls for cls in found if cls.__module__ != "torch._library.autograd")


def _noted_forward(cls: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    has_context = cls.setup_context is torch.autograd.Function.setup_context

    def noted(*args: Any, **kwargs: Any) -> Any:
        inputs = args[1:] if has_context else args
        name = f"custom function {cls.__name__}"
        return _note_opaque(name, cls.apply, inputs, kwargs, lambda: forward(*args, **kwargs))

    return noted


def _noted_script(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    function = types.MethodType(nn.Module.__call__, module)
    run = partial(function, *args, **kwargs)
    return _note_opaque("scripted module", function, args, kwargs, run)


def _note_opaque(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Callable[[], Any],
) -> Any:
    recorder: Recorder | None = getattr(_current, "recorder", None)
    tensors = values_of(Tensor, (args, kwargs))
    if recorder is None or not any(map(recorder.knows, tensors)):
        return run()
    versions = [tensor._version for tensor in tensors]
    with torch._C.DisableTorchFunction():
        result = recorder.note(name, function, args, kwargs, run)
    if versions != [tensor._version for tensor in tensors]:
        raise UnsupportedModuleError(f"{name} writes into its arguments")
    return result
