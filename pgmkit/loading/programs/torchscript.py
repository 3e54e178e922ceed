"""TorchScript archives as modules, without TorchScript.

An archive holds code, in a small language with the syntax of Python, and a pickle of objects.
`torch.jit.load` compiles the code, runs what it says is to run on loading, and gives it all of
torch's operators, those that write files among them. Here the archive is data: the pickle is read
by torch's weights-only reader, with empty stand-ins for the classes of the archive; the code is
parsed, and `Scripted` walks through it with the operators that `operators` lists.
The walk calls ordinary torch functions, so the module is differentiated as any other.
"""

import ast
import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.errors import GeneratorError, LoadError
from pgmkit.loading.programs.archives import Archive, check_claim, open_archive
from pgmkit.loading.programs.operators import ADVICE, TYPES, Run, running

_STEPS = 1_000_000
"""A program that has done so much for one batch of latents does not end, or should."""

_CODE_BYTES = 16 * 2**20

_QUERIES: Mapping[str, Any] = {
    "device": None,
    "dtype": None,
    "is_cpu": True,
    "is_cuda": False,
    "is_mkldnn": False,
    "is_nested": False,
    "is_quantized": False,
    "is_sparse": False,
    "requires_grad": True,
}
"""What programs ask of tensors; as in training, where modules take no special ways."""

_STATE: Mapping[str, bool] = {
    "is_autocast_cpu_enabled": False,
    "is_autocast_enabled": False,
    "is_grad_enabled": True,
}
_NUMBERS = {dtype: number for number, dtype in TYPES.items()}


@dataclass(frozen=True)
class Code:
    """The code of an archive, parsed.

    Args:
        functions: by qualified name, methods as "class.method".
        parameters: by qualified name of a class, which of its tensors are parameters.
    """

    functions: Mapping[str, ast.FunctionDef]
    parameters: Mapping[str, frozenset[str]]


class Part(nn.Module):
    """An object of the archive: tensors, parts and plain values by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self._values: dict[str, Any] = {}

    def extra_repr(self) -> str:
        """Returns what tells two parts of one class apart."""
        return ", ".join([self._kind, *(f"{k}={v!r}" for k, v in sorted(self._values.items()))])


class Scripted(nn.Module):
    """Runs the `forward` of a TorchScript archive on latents.

    Args:
        root: the archive's object.
        code: the archive's code.
        constants: tensors that the code refers to by number.
        digest: stands for code and values, in which programs of one set of weights may differ.
        where: the archive, for messages.
    """

    def __init__(
        self, root: Part, code: Code, constants: list[Any], digest: str, where: str
    ) -> None:
        super().__init__()
        self.program_digest = digest
        self.root = root
        self._code = code
        self._where = where
        self._constants: dict[str, Any] = {}
        for number, value in enumerate(constants):
            if isinstance(value, Tensor) and value.ndim:  # frozen weights
                self.register_buffer(f"constant_{number}", value.detach())
            else:  # numbers of the code are none of the module's weights, and keep their type
                self._constants[f"c{number}"] = value

    def forward(self, z: Tensor) -> Any:
        """Returns what the program returns for latents z."""
        with running(self, self._where):
            return _Walk(self, z).call_method(self.root, "forward", [z], {})

    def constant(self, name: str) -> Any:
        """Returns a constant by the name that the code uses for it, such as "c0"."""
        key = f"constant_{name[1:]}"
        return self._buffers[key] if key in self._buffers else self._constants[name]


def load_torchscript(path: Path) -> nn.Module:
    """Reads a TorchScript archive as a module in eval mode; `torch.jit` never sees it.

    Raises:
        LoadError: it is damaged, or holds something that cannot be read as data.
    """
    with open_archive(path) as archive:
        code = _read_code(archive, path)
        root = _read_objects(archive, "data", path)
        constants = _read_objects(archive, "constants", path)
        digest = _digest(archive)
    if not isinstance(root, _Object):
        raise LoadError(f"{path} holds a {type(root).__name__} and no TorchScript module")
    if not isinstance(constants, list | tuple):
        raise LoadError(f"the constants in {path} are no list; fetch or save the file again")
    part = _part(root, code, path, inside=())
    if f"{type(root).kind}.forward" not in code.functions:
        raise LoadError(f"the TorchScript program {path} has no method 'forward'; {ADVICE}")
    program = Scripted(part, code, list(constants), digest, f"the TorchScript program {path}")
    weights = [*program.parameters(), *program.buffers()]
    check_claim(sum(weight.nbytes for weight in weights), path)
    return program.eval().requires_grad_(False)


_TENSOR_PARTS = re.compile(r"torch\._utils\._rebuild\w+|torch\.\w+Storage|collections\.OrderedDict")
_TYPED_VALUES = frozenset(
    f"torch.jit._pickle.{name}"
    for name in (
        *("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist"),
        "restore_type_tag",
    )
)
"""Functions that give lists and dictionaries the types of TorchScript, and change no value."""


class _Object:
    """Stands for an object of any class of an archive; `kind` is that class."""

    kind = ""


def _read_objects(archive: Archive, name: str, path: Path) -> Any:
    """Reads a pickle of an archive with torch's weights-only reader and stand-ins."""
    pickled = archive.read(f"{name}.pkl")
    kinds: dict[str, Callable[..., Any]] = {}
    strange: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            full = str(argument).replace(" ", ".")
            if operation.name != "GLOBAL" or full in kinds:
                continue
            if full.startswith("__torch__.") and not full.startswith("__torch__.torch.classes."):
                kinds[full] = type("Object", (_Object,), {"kind": full})
            elif full in _TYPED_VALUES:
                kinds[full] = _as_it_is
            elif not _TENSOR_PARTS.fullmatch(full):
                strange.append(full)
        with torch.serialization.safe_globals([(value, key) for key, value in kinds.items()]):
            return torch.load(
                _as_checkpoint(archive, name, pickled), map_location="cpu", weights_only=True
            )
    except LoadError:
        raise
    except Exception as error:  # what damaged pickles lead to is not documented
        held = f"it holds {strange[0]:.80}" if strange else "it is damaged"
        raise LoadError(
            f"the TorchScript program {path} cannot be read as data ({held}); {ADVICE}"
        ) from error


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


def _as_checkpoint(archive: Archive, name: str, pickled: bytes) -> io.BytesIO:
    """Returns a pickle and its tensors as the checkpoint that `torch.load` reads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as checkpoint:
        checkpoint.writestr("archive/data.pkl", pickled)
        checkpoint.writestr("archive/version", "3\n")
        if archive.has("byteorder"):
            checkpoint.writestr("archive/byteorder", archive.read("byteorder"))
        for record in dict.fromkeys(archive.names):
            if record.startswith(f"{name}/"):
                key = record.removeprefix(f"{name}/")
                checkpoint.writestr(f"archive/data/{key}", archive.read(record))
    buffer.seek(0)
    return buffer


def _read_code(archive: Archive, path: Path) -> Code:
    functions: dict[str, ast.FunctionDef] = {}
    parameters: dict[str, frozenset[str]] = {}
    names = [n for n in archive.names if n.startswith("code/") and n.endswith(".py")]
    if sum(archive.size(name) for name in names) > _CODE_BYTES:
        raise LoadError(f"the TorchScript program {path} has more than 16 MiB of code; {ADVICE}")
    for name in names:
        module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        try:
            tree = ast.parse(archive.read(name).decode("utf-8"))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise LoadError(
                f"the code {name} in {path} cannot be read ({type(error).__name__}); {ADVICE}"
            ) from error
        for part in tree.body:
            if isinstance(part, ast.FunctionDef):
                functions[f"{module}.{part.name}"] = part
            elif isinstance(part, ast.ClassDef):
                kind = f"{module}.{part.name}"
                parameters[kind] = _parameters(part)
                for method in part.body:
                    if isinstance(method, ast.FunctionDef):
                        functions[f"{kind}.{method.name}"] = method
    return Code(functions, parameters)


def _digest(archive: Archive) -> str:
    """Returns what stands for code and values of an archive."""
    digest = hashlib.sha256()
    for name in sorted(archive.names):
        if name.endswith(".py") or name == "data.pkl" or name.startswith("constants"):
            data = archive.read(name)
            digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()


def _parameters(kind: ast.ClassDef) -> frozenset[str]:
    """Returns the names in the `__parameters__` of a class."""
    for line in kind.body:
        if (
            isinstance(line, ast.Assign)
            and isinstance(line.targets[0], ast.Name)
            and line.targets[0].id == "__parameters__"
            and isinstance(line.value, ast.List)
        ):
            return frozenset(str(e.value) for e in line.value.elts if isinstance(e, ast.Constant))
    return frozenset()


def _part(thing: _Object, code: Code, path: Path, inside: tuple[int, ...]) -> Part:
    """Makes a module of an object and the objects in it."""
    if id(thing) in inside or len(inside) > 100:
        raise LoadError(f"the TorchScript program {path} holds a module that holds itself")
    part = Part(type(thing).kind)
    parameters = code.parameters.get(type(thing).kind, frozenset())
    for name, value in vars(thing).items():
        try:
            if isinstance(value, _Object):
                part.add_module(name, _part(value, code, path, (*inside, id(thing))))
            elif isinstance(value, Tensor) and name in parameters and value.is_floating_point():
                part.register_parameter(name, nn.Parameter(value.detach()))
            elif isinstance(value, Tensor):
                part.register_buffer(name, value.detach())
            else:
                part._values[name] = _plain(value, name, path)
        except (KeyError, TypeError) as error:
            raise LoadError(
                f"the TorchScript program {path} calls a part {name!r:.60}, which no module of "
                f"torch can have; {ADVICE}"
            ) from error
    part._values["training"] = False
    return part


def _plain(value: Any, name: str, path: Path) -> Any:
    """Returns a value made of numbers, strings, lists, tuples and dicts."""
    if value is None or isinstance(value, bool | int | float | str | torch.device | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        return type(value)([_plain(part, name, path) for part in value])
    if isinstance(value, dict):
        return {key: _plain(part, name, path) for key, part in value.items()}
    raise LoadError(
        f"the TorchScript program {path} keeps a {type(value).__name__} inside {name!r:.60}; "
        f"{ADVICE}"
    )


class _Return(Exception):  # noqa: N818
    """Carries what a function of the program returns."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _Walk:
    """One run of a program; the methods that begin with `_eval` and `_run` know the language."""

    def __init__(self, program: Scripted, z: Tensor) -> None:
        self._program = program
        self._functions = program._code.functions
        self._where = program._where
        self._device = z.device
        self._made = Run(len(z), program._where)
        self._steps = 0
        self._depth = 0

    def call_method(self, part: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if not isinstance(part, Part) or f"{part._kind}.{name}" not in self._functions:
            raise self._unknown(f"the method {name!r:.60}")
        return self._call(self._functions[f"{part._kind}.{name}"], [part, *args], kwargs)

    def _call(self, function: ast.FunctionDef, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if self._depth > 60:
            raise GeneratorError(f"{self._where} calls itself without end")
        names = [argument.arg for argument in function.args.args]
        scope: dict[str, Any] = {}
        defaults = function.args.defaults
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
            scope[name] = self._eval(default, scope)
        scope |= dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or set(names) != set(scope):
            raise GeneratorError(
                f"{self._where} takes {len(names) - 1} inputs beside itself ({', '.join(names[1:])}"
                f") and was given {len(args) - 1}; a generator takes latents alone"
            )
        self._depth += 1
        try:
            self._run(function.body, scope)
        except _Return as returned:
            return returned.value
        finally:
            self._depth -= 1
        return None

    def _run(self, body: list[ast.stmt], scope: dict[str, Any]) -> None:
        for line in body:
            self._steps += 1
            if self._steps > _STEPS:
                raise GeneratorError(f"{self._where} does not end after {_STEPS} steps")
            run = getattr(self, f"_run_{type(line).__name__}", None)
            if run is None:
                raise self._unknown(f"a line like {ast.unparse(line)!r:.60}")
            run(line, scope)

    def _run_Pass(self, line: ast.Pass, scope: dict[str, Any]) -> None:  # noqa: N802
        """Does nothing."""

    def _run_Expr(self, line: ast.Expr, scope: dict[str, Any]) -> None:  # noqa: N802
        self._eval(line.value, scope)

    def _run_Return(self, line: ast.Return, scope: dict[str, Any]) -> None:  # noqa: N802
        raise _Return(None if line.value is None else self._eval(line.value, scope))

    def _run_Assign(self, line: ast.Assign, scope: dict[str, Any]) -> None:  # noqa: N802
        value = self._eval(line.value, scope)
        for target in line.targets:
            self._assign(target, value, scope)

    def _run_AnnAssign(self, line: ast.AnnAssign, scope: dict[str, Any]) -> None:  # noqa: N802
        if line.value is not None:
            self._assign(line.target, self._eval(line.value, scope), scope)

    def _assign(self, target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            if not isinstance(value, tuple | list) or len(value) != len(target.elts):
                raise self._unknown(f"what goes into {ast.unparse(target)!r:.60}")
            for part, given in zip(target.elts, value, strict=True):
                self._assign(part, given, scope)
        else:
            raise GeneratorError(
                f"{self._where} changes itself ({ast.unparse(target)[:60]} = ...), so its images "
                f"are not a function of the latents; {ADVICE}"
            )

    def _run_If(self, line: ast.If, scope: dict[str, Any]) -> None:  # noqa: N802
        self._run(line.body if self._eval(line.test, scope) else line.orelse, scope)

    def _run_While(self, line: ast.While, scope: dict[str, Any]) -> None:  # noqa: N802
        while self._eval(line.test, scope):
            self._steps += 1
            self._run(line.body, scope)

    def _run_For(self, line: ast.For, scope: dict[str, Any]) -> None:  # noqa: N802
        for value in self._turns(line.iter, scope):
            self._assign(line.target, value, scope)
            self._run(line.body, scope)

    def _turns(self, over: ast.expr, scope: dict[str, Any]) -> Iterator[Any]:
        if isinstance(over, ast.Call) and _dotted(over.func) == "range":
            return iter(range(*(int(self._eval(part, scope)) for part in over.args)))
        values = self._eval(over, scope)
        if not isinstance(values, list | tuple):
            raise self._unknown(f"a loop over {ast.unparse(over)!r:.60}")
        return iter(values)

    def _eval(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        evaluate = getattr(self, f"_eval_{type(node).__name__}", None)
        if evaluate is None:
            raise self._unknown(f"an expression like {ast.unparse(node)!r:.60}")
        return evaluate(node, scope)

    def _eval_Constant(self, node: ast.Constant, scope: dict[str, Any]) -> Any:  # noqa: N802
        return node.value

    def _eval_Name(self, node: ast.Name, scope: dict[str, Any]) -> Any:  # noqa: N802
        if node.id in scope:
            return scope[node.id]
        if node.id in ("inf", "nan"):
            return float(node.id)
        raise self._unknown(f"the name {node.id!r:.60}")

    def _eval_List(self, node: ast.List, scope: dict[str, Any]) -> list[Any]:  # noqa: N802
        return [self._eval(part, scope) for part in node.elts]

    def _eval_Tuple(self, node: ast.Tuple, scope: dict[str, Any]) -> tuple[Any, ...]:  # noqa: N802
        return tuple(self._eval(part, scope) for part in node.elts)

    def _eval_Dict(self, node: ast.Dict, scope: dict[str, Any]) -> dict[Any, Any]:  # noqa: N802
        keys = [self._eval(key, scope) for key in node.keys if key is not None]
        return dict(zip(keys, (self._eval(value, scope) for value in node.values), strict=True))

    def _eval_IfExp(self, node: ast.IfExp, scope: dict[str, Any]) -> Any:  # noqa: N802
        return self._eval(node.body if self._eval(node.test, scope) else node.orelse, scope)

    def _eval_BoolOp(self, node: ast.BoolOp, scope: dict[str, Any]) -> Any:  # noqa: N802
        value: Any = None
        for part in node.values:
            value = self._eval(part, scope)
            if bool(value) == isinstance(node.op, ast.Or):
                return value
        return value

    def _eval_UnaryOp(self, node: ast.UnaryOp, scope: dict[str, Any]) -> Any:  # noqa: N802
        value = self._eval(node.operand, scope)
        if isinstance(node.op, ast.Not):
            return not value
        if isinstance(node.op, ast.USub):
            return -value
        raise self._unknown(f"an expression like {ast.unparse(node)!r:.60}")

    def _eval_Subscript(self, node: ast.Subscript, scope: dict[str, Any]) -> Any:  # noqa: N802
        values, index = self._eval(node.value, scope), self._eval(node.slice, scope)
        if not isinstance(values, list | tuple | dict | torch.Size):
            raise self._unknown(f"an expression like {ast.unparse(node)!r:.60}")
        try:
            return values[index]
        except (IndexError, KeyError, TypeError) as error:
            raise GeneratorError(f"{self._where} cannot look up {index!r:.40}: {error}") from error

    def _eval_Attribute(self, node: ast.Attribute, scope: dict[str, Any]) -> Any:  # noqa: N802
        path = _dotted(node)
        if path.startswith("CONSTANTS."):
            try:
                value = self._program.constant(node.attr)
                return value.to(self._device) if isinstance(value, Tensor) else value
            except KeyError:
                raise self._unknown(f"the constant {node.attr!r:.60}") from None
        if path.startswith("__torch__."):
            return self._function(path)
        return self._attribute(self._eval(node.value, scope), node.attr)

    def _attribute(self, part: Any, name: str) -> Any:
        if isinstance(part, Part):
            for among in (part._parameters, part._buffers, part._modules, part._values):
                if name in among:
                    return among[name]
        if isinstance(part, Tensor) and name in _QUERIES:
            own = {"dtype": _NUMBERS.get(part.dtype), "device": part.device}
            return own.get(name, _QUERIES[name])
        raise self._unknown(f"the attribute {name!r:.60}")

    def _function(self, path: str) -> ast.FunctionDef:
        if path not in self._functions:
            raise self._unknown(f"the function {path!r:.80}")
        return self._functions[path]

    def _eval_Call(self, node: ast.Call, scope: dict[str, Any]) -> Any:  # noqa: N802
        path = _dotted(node.func)
        if path in ("annotate", "unchecked_cast"):  # the first argument is a type
            return self._eval(node.args[-1], scope)
        if path == "uninitialized":
            return None
        args = [self._eval(part, scope) for part in node.args]
        kwargs = {str(part.arg): self._eval(part.value, scope) for part in node.keywords}
        if path == "getattr" and len(args) == 2:
            return self._attribute(*args)
        if path in ("int", "float", "bool"):
            return {"int": int, "float": float, "bool": bool}[path](*args)
        if path == "torch.device":  # where the program was made does not matter here
            return self._device
        if path.startswith(("torch.", "ops.aten.")):
            return self._operator(path.rpartition(".")[2], args, kwargs)
        if path.startswith("ops.prim."):
            return self._primitive(path.removeprefix("ops.prim."), args)
        if isinstance(node.func, ast.Attribute) and not path.startswith("__torch__."):
            return self.call_method(
                self._eval(node.func.value, scope), node.func.attr, args, kwargs
            )
        function = self._eval(node.func, scope)
        if not isinstance(function, ast.FunctionDef):
            raise self._unknown(f"a call of {ast.unparse(node.func)!r:.60}")
        return self._call(function, args, kwargs)

    def _operator(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if name in ("__is__", "__isnot__") and len(args) == 2:
            return (args[0] is args[1]) == (name == "__is__")
        if name == "dict":
            return dict(*args)
        if name in _STATE:
            return _STATE[name]
        if name in _QUERIES and args:
            return self._attribute(args[0], name)
        if name in ("append", "__contains__", "format", "len"):
            return self._made.compute_plain(name, args, kwargs)
        converts = ("Int", "Float", "Bool", "IntImplicit", "FloatImplicit", "ScalarImplicit")
        if name in converts and args and isinstance(args[0], Tensor):
            return args[0].item()
        return self._made.compute(name, args, kwargs)

    def _primitive(self, name: str, args: list[Any]) -> Any:
        if name == "RaiseException":
            raise GeneratorError(f"{self._where} stops and says: {args[0]!s:.160}")
        if name == "NumToTensor":
            return torch.tensor(args[0])
        if name in ("min", "max", "abs"):
            return self._made.compute_plain(name, args, {})
        if name in _QUERIES:
            return self._attribute(args[0], name)
        if name == "type" and isinstance(args[0], torch.device):
            return args[0].type
        if name == "data":
            return args[0].detach()
        if name in ("unchecked_unwrap_optional", "unchecked_cast"):
            return args[-1]
        raise self._unknown(f"the operator {name!r:.60}")

    def _unknown(self, what: str) -> GeneratorError:
        return GeneratorError(
            f"{self._where} uses {what}, which pgmkit does not run from a file; {ADVICE}"
        )


def _dotted(node: ast.expr) -> str:
    """Returns "a.b.c" for names with dots between, and "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
