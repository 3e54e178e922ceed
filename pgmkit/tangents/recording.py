"""Writes down which torch functions a module calls on its latents.

The module runs once, on real latents, as it would anywhere else, while a torch function mode notes
every call that a latent reaches. So modules, functions, methods, operators and in-place variants
all become calls of one form, whatever does not depend on the latents becomes a constant (an
effective weight is computed once), and control flow that depends on shapes needs no care.
"""

import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pgmkit.tangents.checkpoints import checkpoints_run_through
from pgmkit.tangents.interception import not_compiled, opaque_calls_noted_by, without_dispatch
from pgmkit.tangents.tape import (
    Call,
    Slot,
    Tape,
    UnsupportedModuleError,
    map_values,
    note_last_uses,
    values_of,
)


def record(
    module: nn.Module,
    z: Tensor,
    primitives: Collection[str],
    compositions: Mapping[str, Callable[..., Any]],
) -> Tape:
    """Runs the module on latents z (B, M) and returns its calls.

    Args:
        module: in eval mode; returns one tensor.
        z: latents (B, M).
        primitives: names of functions written in Python that are noted as one call; all others are
            noted as the calls that they make.
        compositions: functions that are noted as the calls that these make in their place.

    Raises:
        UnsupportedModuleError: what the module does cannot be written down.
    """
    recorder = Recorder(module, primitives, compositions)
    z = z.detach().clone()
    recorder.track(z)
    # Gradients are on so that a `no_grad` inside the module shows.
    with (
        opaque_calls_noted_by(recorder),
        checkpoints_run_through(),
        not_compiled(),
        torch.enable_grad(),
        recorder,
    ):
        images = module(z)
    if not isinstance(images, Tensor):
        raise UnsupportedModuleError(f"it returns a {type(images).__name__}, not a tensor")
    if not recorder.knows(images):
        raise UnsupportedModuleError("its output does not depend on the latents")
    output = recorder.refer(images)
    note_last_uses(recorder.calls, output)
    return Tape(recorder.calls, output, recorder.size, recorder.data_dependent)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUERIES = _words(
    "size dim ndimension numel nelement stride storage_offset is_contiguous element_size "
    "is_floating_point is_complex get_device type __len__ __hash__ is_same_size _is_view "
    "untyped_storage data_ptr is_pinned is_inference is_neg is_conj requires_grad_ "
    "register_hook shape dtype device ndim layout requires_grad is_cuda is_mps is_cpu is_meta "
    "is_sparse is_quantized is_nested is_leaf grad grad_fn names _version itemsize nbytes "
    "is_mkldnn is_xpu is_vulkan is_ipu is_maia is_mtia is_xla result_type can_cast"
)
"""Functions that tell nothing about values."""


class Recorder(TorchFunctionMode):
    """Notes every call that a value depending on the latents reaches."""

    def __init__(
        self,
        module: nn.Module,
        primitives: Collection[str],
        compositions: Mapping[str, Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.data_dependent = False
        self.size = 0
        self._primitives = primitives
        self._compositions = compositions
        self._slots: dict[int, Slot] = {}
        self._kept: list[Any] = []  # so that no two values have one id
        self._owned = {id(part) for part in (*module.parameters(), *module.buffers())}
        self._gradients_on = True
        self._unfolding: list[str] = []
        self._writes: dict[int, tuple[int, int]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = _bare_name(func)
        if name == "_set_grad_enabled":
            # torch also turns gradients off inside custom functions, which means nothing here.
            self._gradients_on = bool(args[0])
        if not any(map(self.knows, values_of(Tensor, (args, kwargs)))):
            return func(*args, **kwargs)
        if name in _QUERIES:
            answer = func(*args, **kwargs)
            if not isinstance(answer, Tensor):
                return answer
        if name in self._compositions:
            with self:
                return self._compositions[name](*args, **kwargs)
        # One that comes back under its own name has reached its compiled part.
        if isinstance(func, _PYTHON) and name not in {*self._primitives, *self._unfolding}:
            self._unfolding.append(name)
            try:
                with self:
                    return without_dispatch(func)(*args, **kwargs)
            finally:
                self._unfolding.pop()
        return self.note(name, func, args, kwargs)

    def track(self, tensor: Tensor) -> Slot:
        """Gives a tensor a new slot; earlier calls keep the one it had."""
        slot = Slot(self.size)
        self.size += 1
        self._slots[id(tensor)] = slot
        self._kept.append(tensor)
        return slot

    def knows(self, tensor: Tensor) -> bool:
        """Returns whether a tensor depends on the latents."""
        return id(tensor) in self._slots

    def refer(self, value: Any) -> Any:
        """Returns what stands for a value in a call: a slot, or the constant itself."""
        if not isinstance(value, Tensor):
            return value
        slot = self._slots.get(id(value))
        written, _ = self._writes.get(_storage(value), (-1, 0))
        if written > (-1 if slot is None else slot.number):
            raise UnsupportedModuleError("it writes into a tensor that it also uses by a view")
        if slot is not None:
            return slot
        # A copy, for the module may go on to change its own.
        return value.detach() if id(value) in self._owned else value.detach().clone()

    def note(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[[], Any] | None = None,
    ) -> Any:
        """Runs a function, or what stands for it, and writes down a call without side effects."""
        written, pure = self._written(name, function, args, kwargs)
        if name == "__setitem__":
            _, writer = self._writes.get(_storage(args[0]), (-1, 0))
            if writer == id(args[2]):  # x[i] += 1 writes into x before it says so
                del self._writes[_storage(args[0])]
        pure_kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        if pure_kwargs.get("inplace"):
            pure_kwargs["inplace"] = False
        self.data_dependent |= name in _DATA_SHAPED or _is_masked(name, args)
        noted_args, noted_kwargs = map_values(self.refer, (args, pure_kwargs))
        result = function(*args, **kwargs) if run is None else run()
        outcome = written if name == "__setitem__" else result
        if name == "__set__":
            raise UnsupportedModuleError("it sets an attribute of a tensor")
        if not values_of(Tensor, (outcome,)):
            self.data_dependent = True
            return result
        slots = map_values(
            lambda leaf: self.track(leaf) if isinstance(leaf, Tensor) else leaf, outcome
        )
        if written is not None:
            slot = self._slots[id(written)]
            self._writes[_storage(written)] = (slot.number, id(written))
        self.calls.append(
            Call(_rule_name(name), pure, noted_args, noted_kwargs, slots, self._gradients_on)
        )
        return result

    def _written(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, Callable[..., Any]]:
        """Returns the tensor that a call writes into and the function without that effect."""
        if kwargs.get("out") is not None:
            return kwargs["out"], function
        if kwargs.get("inplace") and args:
            return args[0], function
        if " " in name or not _works_in_place(name):
            return None, function
        if id(args[0]) in self._owned:
            raise UnsupportedModuleError(f"{name} changes a weight or buffer of the module")
        return args[0], _out_of_place(name)


_DATA_SHAPED = _words("nonzero masked_select argwhere unique _unique2 unique_dim")


def _is_masked(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask, for which the values decide what shape comes out."""
    masks = values_of(Tensor, args[1:2])
    return name == "__getitem__" and any(mask.dtype == torch.bool for mask in masks)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


_PYTHON = (types.FunctionType, types.MethodType)


def _bare_name(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    owner = getattr(function, "__self__", None)
    if name == "__get__" and owner is not None:
        return str(getattr(owner, "__name__", name))
    return name.split(".")[0]  # relu.default


def _works_in_place(name: str) -> bool:
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name in _IN_PLACE_OPERATORS)
    return name.endswith("_") and name != "detach_"


_IN_PLACE_OPERATORS = _words(
    "__iadd__ __isub__ __imul__ __idiv__ __itruediv__ __ifloordiv__ __ipow__ __imod__ "
    "__iand__ __ior__ __ixor__"
)


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Returns a copy of x with x[index] = value."""
    x = x.clone()
    x[index] = value
    return x


def copied(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Returns what `x.copy_(source)` makes of x."""
    return source.to(x).expand_as(x)


_OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "__setitem__": with_item,
    "copy_": copied,
    "zero_": torch.zeros_like,
    "fill_": torch.full_like,
}


def _out_of_place(name: str) -> Callable[..., Any]:
    if name in _OUT_OF_PLACE:
        return _OUT_OF_PLACE[name]
    bare = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
    for owner in (Tensor, torch, torch._C._nn):
        if hasattr(owner, bare):
            function: Callable[..., Any] = getattr(owner, bare)
            return function
    raise UnsupportedModuleError(f"{name} works in place only")


_SYNONYMS = {
    "__setitem__": "with_item",
    "copy": "copied",
    "radd": "add",
    "rmul": "mul",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "idiv": "div",
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
}


def _rule_name(name: str) -> str:
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    bare = name.strip("_") if name.startswith("__") else name.removesuffix("_")
    return _SYNONYMS.get(bare, bare)
