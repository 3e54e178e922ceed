"""What a module computes, told from its parts: weights, layers, attributes and code.

Two modules with one description compute the same, as far as can be told without running them. What
does not change the map is left out: names of classes, memory layout, devices, gradients, comments
and docstrings, the order in which parts were made, attributes that no code reads, and those that
the code writes itself, such as counters and caches.
"""

import ast
import contextlib
import copy
import dis
import enum
import functools
import hashlib
import importlib.metadata
import inspect
import json
import linecache
import re
import sys
import types
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Set,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_FOUNDATIONS = {"torch", "numpy", "builtins", *sys.stdlib_module_names}
"""Packages whose code is told by name; that of all others is told by what it says."""

_OWN_STATE = frozenset(vars(nn.Module()))
"""What every module has; parameters, buffers, children and hooks are told apart from the rest."""

_NOT_READ = {"inplace", "device"}
"""Attributes of torch's own layers that do not change what they compute."""

_ENTRIES = ("forward", "__call__", "__getattr__", "__getattribute__")
_NO_PART_OF_THE_MAP = {"__init__", "__repr__", "extra_repr", "__setstate__", "__getstate__"}
_ANY_ATTRIBUTE = {"__dict__", "vars", "getattr"}
_ALL_CHILDREN = {"children", "named_children", "modules", "named_modules", "_modules"}
_WRITES = {"STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "STORE_DEREF"}
_LOADS = {"LOAD_ATTR", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}
_CHANGES = {
    "add", "append", "appendleft", "clear", "extend", "insert", "pop", "popitem", "popleft",
    "remove", "setdefault", "update", "__setitem__",
}  # fmt: skip
"""Methods that change a container."""


def digest(module: nn.Module, specs: Mapping[str, Any], *, hooks: bool) -> str:
    """Returns a SHA-256, in hexadecimal, of what a module computes.

    Args:
        module: on any device but meta.
        specs: plain values that count, too.
        hooks: whether hooks that are not torch's own count.
    """
    description = [_Description(hooks).value(module), specs]
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def has_hooks(module: nn.Module) -> bool:
    """Whether there are forward hooks that are not torch's own."""
    return any(True for part in module.modules() for _ in _foreign_hooks(part))


@contextlib.contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Takes forward hooks that are not torch's own out of a module for a while."""
    parts = [part for part in module.modules() if any(True for _ in _foreign_hooks(part))]
    kept = [(part._forward_pre_hooks.copy(), part._forward_hooks.copy()) for part in parts]
    try:
        for part in parts:
            foreign = [id(hook) for hook in _foreign_hooks(part)]
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                for key in [key for key, hook in hooks.items() if id(hook) in foreign]:
                    del hooks[key]
        yield
    finally:
        for part, (before, after) in zip(parts, kept, strict=True):
            for hooks, all_hooks in (
                (part._forward_pre_hooks, before),
                (part._forward_hooks, after),
            ):
                hooks.clear()  # the same dictionary as before, which handles of hooks refer to
                hooks.update(all_hooks)


class _Description:
    """Turns values into plain lists that are equal where the values compute the same."""

    def __init__(self, hooks: bool) -> None:
        self._hooks = hooks
        # What code around a value reads decides what counts of it. Values stay, so ids are theirs.
        self._known: dict[tuple[int, frozenset[str]], tuple[Any, Any]] = {}
        self._open: set[int] = set()

    def value(self, value: Any, read: Set[str] = frozenset()) -> Any:
        """Describes any value; `read` are the names that the code around it mentions."""
        if isinstance(value, bool | str | bytes | complex | type(None) | torch.dtype):
            return [type(value).__name__, repr(value)]
        if isinstance(value, np.generic):
            return self.value(value.item())
        if isinstance(value, int | float):
            # JSON turns 1.0 into 1 and back.
            return ["number", repr(float(value) if abs(value) < 2**53 else value)]
        if isinstance(value, Tensor | np.ndarray | nn.Module | types.FunctionType):
            read = frozenset()  # told the same everywhere
        key = id(value), frozenset(read)
        if key not in self._known:
            if id(value) in self._open:
                return "itself"
            self._open.add(id(value))
            self._known[key] = value, self._compound(value, read)
            self._open.remove(id(value))
        return self._known[key][1]

    def _compound(self, value: Any, read: Set[str]) -> Any:
        if isinstance(value, enum.Enum):
            return ["enum", value.name, self.value(value.value, read)]
        if isinstance(value, Tensor | np.ndarray):
            return _array(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, list | tuple):
            return ["sequence", *(self.value(part, read) for part in value)]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(json.dumps(self.value(part, read)) for part in value)]
        if isinstance(value, Mapping):
            return ["mapping", *self._pairs(value, read)]
        if isinstance(value, functools.partial):
            read = read | _reach(value.func)[0]
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(self.value(part, read) for part in parts)]
        if isinstance(value, types.MethodType):
            read = read | _reach(value.__func__)[0]
            return ["method", self.value(value.__func__), self.value(value.__self__, read)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, property):
            return ["property", self.value(value.fget)]
        if isinstance(value, staticmethod | classmethod) or hasattr(value, "cache_info"):
            return self.value(value.__wrapped__)
        if isinstance(value, torch.jit.ScriptFunction):
            return ["script", _graph(value)]
        if isinstance(value, type):
            functions = _functions(_foreign(value)).values()
            attributes = self._named(_class_attributes(value, read), read)
            return ["class", _base(value), *map(self.value, functions), *attributes]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if callable(value) and hasattr(value, "__qualname__"):
            return ["builtin", f"{getattr(value, '__module__', '')}.{value.__qualname__}"]
        of_torch = type(value).__module__.startswith("torch")
        if hasattr(value, "__dict__") or _foreign(type(value)):
            told = self._instance(value, {"__call__", *read}, everything=of_torch)
        else:
            told = [] if of_torch else self._content(value, read)  # devices do not count
        return ["object", _base(type(value)), *told]

    def _content(self, value: Any, read: Set[str]) -> list[Any]:
        """Describes what the copy of a value would be made from."""
        try:
            parts = value.__reduce_ex__(4)[1:]
        except Exception:  # a lock, a file, and others that are no numbers
            return []
        return [self.value([*p] if isinstance(p, Iterator) else p, read) for p in parts]

    def _pairs(self, values: Mapping[Any, Any], read: Set[str]) -> Iterator[Any]:
        """Describes a mapping; private keys that no code mentions hold paths and versions."""
        for key, value in values.items():
            if not str(key).startswith("_") or key in read:
                yield [self.value(key), self.value(value, read)]

    def _named(self, values: Mapping[str, Any], read: Set[str]) -> list[Any]:
        return [[name, self.value(value, read)] for name, value in sorted(values.items())]

    def _module(self, module: nn.Module) -> Any:
        original = getattr(module, "_orig_mod", None)
        if isinstance(original, nn.Module) and _name(type(module)).startswith("torch._dynamo"):
            return self.value(original)
        program = getattr(module, "program_digest", None)
        if isinstance(program, str):  # read from a file; the digest stands for all but the weights
            tensors = (*module.named_parameters(), *module.named_buffers())
            return ["program", program, *([name, self.value(t)] for name, t in sorted(tensors))]
        if isinstance(module, torch.jit.ScriptModule):
            return ["script", *_script(module), *self._tensors(module)]
        if isinstance(module, torch.fx.GraphModule):
            code = ["graph", module.code]
            return [*code, *self._tensors(module), *self._children(module, ordered=False)]
        if type(module).__module__.startswith("pgmkit.") and "extra_repr" in vars(type(module)):
            # What pgmkit reads of a program in a file says itself what stands for it.
            told = ["program", _name(type(module)), module.extra_repr()]
            return [*told, *self._tensors(module), *self._children(module, ordered=False)]
        foreign = _foreign(type(module))
        functions = _functions(foreign)
        entries = [name for name in _ENTRIES if name in functions]
        if "forward" not in functions:  # what is overridden is called by torch's own forward
            entries += sorted(functions.keys() - _NO_PART_OF_THE_MAP)
        read = {"forward", *entries}
        instance = self._instance(module, read, everything="forward" not in functions)
        container = isinstance(module, nn.Sequential | nn.ModuleList) and "forward" not in functions
        ordered = container or isinstance(module, nn.ModuleDict) or bool(read & _ALL_CHILDREN)
        children = self._children(module, ordered=ordered, named=not container)
        mode = ["training"] if module.training else []
        return [
            "layer", _base(type(module)), *mode, instance, *self._tensors(module), *children,
            *self._module_hooks(module),
        ]  # fmt: skip

    def _tensors(self, module: nn.Module) -> Iterator[Any]:
        for name, tensor in sorted(_own_tensors(module)):
            if tensor is not None and name != "num_batches_tracked":
                yield [name, self.value(tensor)]

    def _children(self, module: nn.Module, *, ordered: bool, named: bool = True) -> Iterator[Any]:
        children = [item for item in module._modules.items() if item[1] is not None]
        for name, child in children if ordered else sorted(children):
            yield [name, self.value(child)] if named else self.value(child)

    def _module_hooks(self, module: nn.Module) -> Iterator[Any]:
        for hook in _norm_hooks(module):
            yield ["hook", _name(type(hook)), *self._pairs(vars(hook), frozenset())]
        if self._hooks:
            for hook in _foreign_hooks(module):
                yield ["hook", self.value(hook)]

    def _instance(self, value: Any, read: set[str], *, everything: bool = False) -> Any:
        """Describes the code of an object that is reached, and the attributes that it reads."""
        classes = _foreign(type(value))
        own = _slots(value, classes) | getattr(value, "__dict__", {})
        reachable = {
            f"{name} of {place}": (name, function)
            for place, cls in enumerate(classes[1:])
            for name, function in _functions([cls]).items()
        }
        reachable |= {name: (name, function) for name, function in _functions(classes).items()}
        reachable |= {name: (name, part) for name, part in own.items() if _is_code(part)}
        described: dict[str, Any] = {}
        written: set[str] = set()
        found = True
        while found:
            found = False
            for label, (name, function) in reachable.items():
                inherited = label != name
                if label in described or name not in read or (inherited and "super" not in read):
                    continue
                mentioned, changed = _reach(function)
                read |= mentioned
                written |= changed
                described[label] = self.value(function)
                found = True
        told = _class_attributes(type(value), read)
        for name, part in own.items():
            open_to_all = everything and name not in _NOT_READ and not name.startswith("_")
            counts = open_to_all or name in read or bool(read & _ANY_ATTRIBUTE)
            if counts and not _is_changed(name, part, written) and not _is_own_state(value, name):
                told[name] = part
        return [
            [described[name] for name in sorted(described)],
            self._named({name: told[name] for name in told if name not in described}, read),
        ]

    def _function(self, function: types.FunctionType) -> Any:
        if not _is_foreign(_home(function)):
            code = f"{_home(function)}.{function.__code__.co_qualname}"
            names, written = frozenset[str](), frozenset[str]()
        else:
            code = _code_text(function.__code__)
            names, written, _ = _names(function.__code__)
        read = _reach(function)[0]
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closure = [
            [name, self.value(_cell(cell), read)]
            for name, cell in cells
            if name != "__class__" and not _is_changed(name, _cell(cell), written)
        ]
        defaults = [
            self.value(part, read) for part in (function.__defaults__, function.__kwdefaults__)
        ]
        reached = [
            [name, self.value(found, read)] for name, found in _globals_of(function, names, written)
        ]
        own = {name: part for name, part in vars(function).items() if name in names}
        return ["function", code, defaults, closure, reached, *self._named(own, read)]


def _reach(function: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names that a function, and the functions it mentions, read and write."""
    read: set[str] = set()
    written: set[str] = set()
    remaining, seen = [function], set()
    while remaining:
        found = _plain_function(remaining.pop())
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        names, changed, _ = _names(found.__code__)
        if _is_foreign(_home(found)):
            read |= names
            if found.__name__ != "__init__":
                written |= changed
            remaining += [value for _, value in _globals_of(found, names, changed)]
        remaining += [_cell(cell) for cell in found.__closure__ or ()]
    return frozenset(read), frozenset(written)


def _plain_function(value: Any) -> types.FunctionType | None:
    for attribute in ("fget", "__func__", "__wrapped__"):
        if not isinstance(value, types.FunctionType) and hasattr(value, attribute):
            value = getattr(value, attribute)
    return value if isinstance(value, types.FunctionType) else None


def _home(function: types.FunctionType) -> str:
    return str(function.__globals__.get("__name__", ""))


def _globals_of(
    function: types.FunctionType, names: Set[str], written: Set[str]
) -> Iterator[tuple[str, Any]]:
    """Yields what a function refers to outside itself, by name, but for what it changes."""
    scope = function.__globals__
    for name in sorted(_names(function.__code__)[2] & scope.keys()):
        value = scope[name]
        if _is_changed(name, value, written):
            continue
        if isinstance(value, types.ModuleType) and _is_foreign(value.__name__):
            parts = {f"{name}.{part}": vars(value)[part] for part in names & vars(value).keys()}
        else:
            parts = {name: value}
        for place, part in sorted(parts.items()):
            if not isinstance(part, types.ModuleType):
                other = _is_of_another_package(part, function)
                yield place, f"{_name(part)} {_version(part)}" if other else part


def _is_of_another_package(value: Any, function: types.FunctionType) -> bool:
    """Whether a function or class comes from another installed package, which ends the search."""
    if not isinstance(value, type | types.FunctionType):
        return False
    module = sys.modules.get(value.__module__ or "")
    installed = "-packages" in (getattr(module, "__file__", None) or "")
    return installed and value.__module__.partition(".")[0] != _home(function).partition(".")[0]


def _version(value: Any) -> str:
    """Returns the version of the package that a function or class comes from, "" if unknown."""
    package = value.__module__.partition(".")[0]
    return _installed(package) or str(getattr(sys.modules.get(package), "__version__", ""))


@functools.lru_cache(maxsize=256)
def _installed(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _array(value: Tensor | np.ndarray[Any, Any]) -> list[Any]:
    if isinstance(value, np.ndarray):
        plain = value.dtype != object
        data = np.ascontiguousarray(value).tobytes() if plain else repr(value).encode()
        return ["array", str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    kind = ["tensor", str(value.dtype), list(value.shape)]
    tensor = value.detach()
    if tensor.is_quantized:
        kind.append(str(tensor.qscheme()))
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    flat = flat.as_strided(flat.shape, (1,))  # of a single value the stride may be another
    return [*kind, hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()]


def _name(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_foreign(module_name: str) -> bool:
    return module_name.partition(".")[0] not in _FOUNDATIONS or module_name == "__main__"


def _foreign(cls: type) -> list[type]:
    """Returns the classes, in order of resolution, whose code is told by what it says."""
    return [part for part in cls.__mro__ if _is_foreign(part.__module__)]


def _base(cls: type) -> str:
    """Returns the name of the first class whose code is told by name."""
    return next(_name(part) for part in cls.__mro__ if not _is_foreign(part.__module__))


def _class_attributes(cls: type, read: Set[str]) -> dict[str, Any]:
    """Returns the attributes that are read of a class and those it inherits from."""
    return {
        name: vars(part)[name]
        for part in reversed(_foreign(cls))
        for name in read & vars(part).keys()
        if not name.startswith("__")
    }


def _slots(value: Any, classes: Iterable[type]) -> dict[str, Any]:
    names = (n for cls in classes for n in vars(cls) if inspect.ismemberdescriptor(vars(cls)[n]))
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.named_parameters()
        yield from module.named_buffers()
    else:
        yield from module._parameters.items()
        yield from module._buffers.items()


def _is_code(value: Any) -> bool:
    return isinstance(value, types.FunctionType | property | staticmethod | classmethod)


def _functions(classes: Iterable[type]) -> dict[str, Any]:
    """Returns the methods and properties of classes; the first class that has one gives it."""
    found: dict[str, Any] = {}
    for cls in reversed(list(classes)):
        found |= {name: value for name, value in vars(cls).items() if _is_code(value)}
    return dict(sorted(found.items()))


def _is_own_state(value: Any, name: str) -> bool:
    if not isinstance(value, nn.Module):
        return False
    return name in _OWN_STATE or name in {hook.name for hook in _norm_hooks(value)}


def _norm_hooks(module: nn.Module) -> list[Any]:
    """Returns torch's old weight and spectral norms, which set a weight before each run."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    return [
        hook
        for hook in module._forward_pre_hooks.values()
        if type(hook).__module__.startswith("torch.nn.utils") and hasattr(hook, "name")
    ]


def _foreign_hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    if isinstance(module, torch.jit.ScriptModule):
        return
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        home = getattr(hook, "__module__", None) or type(hook).__module__
        if not home.startswith("torch."):
            yield hook


def _script(module: Any) -> list[Any]:
    """Returns graph and plain attributes of a scripted module."""
    graph = _graph(module)
    read = sorted(set(re.findall(r'prim::GetAttr\[name="(\w+)"\]', graph)))
    attributes = [
        [place, name, repr(getattr(part, name))]
        for place, part in module.named_modules()
        for name in read
        if not isinstance(getattr(part, name, None), Tensor | nn.Module | None)
    ]
    return [graph, attributes]


def _graph(script: Any) -> str:
    """Returns the graph of a scripted module or function, the same after saving and loading.

    Loading counts compilations, gives other names to values, and puts constants in another order.
    """
    graph = re.sub(r"\.?___torch_mangle_\d+|,? +(#|scope:) [^\n]*", "", str(script.inlined_graph))
    graph = re.sub(r": [A-Z]\w*\([^()]*\)", ": Tensor", graph)  # shapes seen while tracing
    constants = dict(re.findall(r"(%[\w.]+) : [^\n]*prim::Constant(.*)\(\)\n", graph))
    graph = re.sub(r" *%[\w.]+ : [^\n]*prim::Constant.*\n", "", graph)
    names: dict[str, str] = {}
    return re.sub(
        r"%[\w.]+",
        lambda found: constants.get(found[0]) or names.setdefault(found[0], f"%{len(names)}"),
        graph,
    )


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Returns the names that code mentions, those it changes, and those of global values.

    Names that it mentions are also strings that may be names.
    """
    steps = list(dis.get_instructions(code))
    read = {*code.co_names, *code.co_freevars}
    read |= {value for value in code.co_consts if isinstance(value, str) and value.isidentifier()}
    written = {step.argval for step in steps if step.opname in _WRITES} | _changed(steps)
    outside = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            more_read, more_written, more_outside = _names(part)
            read |= more_read
            written |= more_written - {*part.co_cellvars}
            outside |= more_outside
    return frozenset(read), frozenset(written), frozenset(outside)


def _changed(steps: list[dis.Instruction]) -> set[str]:
    """Returns which containers code puts something into, or takes it out of, as `name[]`."""
    found: set[str] = set()
    local: dict[str, str] = {}  # what variables stand for
    for index, step in enumerate(steps):
        before = steps[index - 1]
        if step.opname.startswith("STORE_FAST") and before.opname in _LOADS:
            local[_variables(step)[0]] = before.argval
            continue
        if step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            before = _container(steps, index)
        elif not (step.opname in ("LOAD_METHOD", "LOAD_ATTR") and step.argval in _CHANGES):
            continue
        if before.opname in _LOADS:
            found.add(f"{before.argval}[]")
        elif "LOAD_FAST" in before.opname and _variables(before)[-1] in local:
            found.add(f"{local[_variables(before)[-1]]}[]")
    return found


def _variables(step: dis.Instruction) -> tuple[str, ...]:
    return step.argval if isinstance(step.argval, tuple) else (step.argval,)


def _container(steps: list[dis.Instruction], index: int) -> dis.Instruction:
    """Returns the step that loads the container whose part is set or deleted at `index`."""
    place = index - 1
    if steps[place].opname == "SWAP":  # as in `+=`, which copies container and key
        while place > 1 and not steps[place].opname == steps[place - 1].opname == "COPY":
            place -= 1
        place -= 2
    size = 0  # of the key, which stands between
    while place > 0 and size < 1:
        size += dis.stack_effect(steps[place].opcode, steps[place].arg, jump=False)
        place -= 1
    return steps[place]


def _is_changed(name: str, value: Any, written: Set[str]) -> bool:
    kept = isinstance(value, MutableMapping | MutableSequence | MutableSet)
    return name in written or (kept and f"{name}[]" in written)


@functools.lru_cache(maxsize=4096)
def _code_text(code: types.CodeType) -> str:
    """Returns what code says: its source without comments, names and types, or else its bytecode.

    The source is the same for all versions of Python, but a file may have been edited since it was
    imported. So it counts only if it compiles to the code that runs.
    """
    compiled = json.dumps(_bytecode(code))
    source = "".join(linecache.getlines(code.co_filename))
    return _parsed(source, code.co_filename).get(compiled, compiled)


@functools.lru_cache(maxsize=64)
def _parsed(source: str, filename: str) -> dict[str, str]:
    """Returns the plain source of each function in a file by the bytecode that it compiles to."""
    try:
        tree = ast.parse(source)
        whole = compile(source, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    nodes: dict[tuple[str, int], list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
            nodes.setdefault((node.name, first), []).append(_plain_source(node))
        elif isinstance(node, ast.Lambda):
            nodes.setdefault(("<lambda>", node.lineno), []).append(ast.unparse(node))
    found: dict[str, str] = {}
    for code in _all_code(whole):
        texts = nodes.get((code.co_name, code.co_firstlineno), [])
        if len(texts) == 1:
            found[json.dumps(_bytecode(code))] = texts[0]
    return found


def _plain_source(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    class Plain(ast.NodeTransformer):
        def visit_arg(self, node: ast.arg) -> ast.arg:
            return ast.arg(node.arg, None)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
            node.returns = None
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            return self.generic_visit(node)

    plain = Plain().visit(copy.deepcopy(node))
    plain.name = "function"
    plain.decorator_list = []  # what they make of it is what runs
    return ast.unparse(ast.fix_missing_locations(plain))


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _all_code(part)


def _bytecode(code: types.CodeType) -> list[Any]:
    constants = [
        _bytecode(part)
        if isinstance(part, types.CodeType)
        else sorted(map(repr, part))  # the order of a set is another in each process
        if isinstance(part, frozenset)
        else repr(part)
        for part in code.co_consts
    ]
    takes = [code.co_argcount, code.co_kwonlyargcount, code.co_flags]
    version = list(sys.version_info[:2])
    return [version, takes, code.co_code.hex(), constants, list(code.co_names)]
