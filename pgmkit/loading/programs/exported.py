"""Programs of `torch.export` as modules, without `torch.export.load`.

A .pt2 archive holds a graph in JSON, whose steps name operators, and weights as plain bytes.
`torch.export.load` evaluates shapes as Python expressions, falls back to unpickling sample inputs
without restriction, and unpickles weights so that the archive says are pickled. None of that is
needed: the graph is read as JSON, the weights as bytes, and `Exported` takes step after step with
the operators that `pgmkit.loading.programs.operators` lists.
"""

import hashlib
import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.errors import GeneratorError, LoadError, first_line
from pgmkit.loading.programs.archives import Archive, check_claim, open_archive
from pgmkit.loading.programs.operators import ADVICE, TYPES, Run, running
from pgmkit.loading.programs.shapes import run_in_shape

# How torch.export numbers types, layouts and memory formats.
_TYPES = {number + 1: dtype for number, dtype in TYPES.items() if number < 12}
_TYPES[13] = torch.bfloat16
_LAYOUTS = {7: torch.strided}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_PLAIN = re.compile(r"(?:_operator|math|torch)\.(\w+)")
_AS_THEY_ARE = {f"as_{kind}{s}" for kind in ("int", "float", "bool", "string") for s in ("", "s")}
_BY_NAME = {"as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"}


@dataclass(frozen=True)
class Step:
    """One call of an operator.

    Args:
        target: the operator, such as "torch.ops.aten.relu.default".
        args: what it takes by place, as the file puts it.
        kwargs: what it takes by name.
        results: the names of what it gives; one name in a list of its own is a list.
    """

    target: str
    args: list[Mapping[str, Any]]
    kwargs: dict[str, Mapping[str, Any]]
    results: list[str]
    gives_list: bool


class Exported(nn.Module):
    """Takes the steps of an exported program on latents.

    Weights are parameters, buffers and constants by their name in the state dict, which `names`
    gives for the names in the graph; shapes have the number of latents first, and None for any.
    """

    def __init__(
        self,
        steps: list[Step],
        weights: Mapping[str, Tensor],
        parameters: set[str],
        names: Mapping[str, str],
        latents: str,
        outputs: list[Mapping[str, Any]],
        shape: tuple[int | None, ...],
        where: str,
    ) -> None:
        super().__init__()
        self._steps = steps
        self._names = dict(names)
        self._latents = latents
        self._outputs = outputs
        self._shape = shape
        self.program_digest = hashlib.sha256(repr((steps, names, outputs)).encode()).hexdigest()
        self._where = where
        for name, weight in weights.items():
            _register(self, name, weight, trained=name in parameters)

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        """Shape of latents as the program takes them; see `shape`."""
        return self._shape

    def forward(self, z: Tensor) -> Any:
        """Returns what the program returns for latents z, in batches and a shape of its own."""
        return run_in_shape(self._run, z, self._shape, self._where)

    def _run(self, z: Tensor) -> Any:
        with running(self, self._where):
            return self._take_steps(z)

    def _take_steps(self, z: Tensor) -> Any:
        run = Run(len(z), self._where)
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        values: dict[str, Any] = {name: weights[key] for name, key in self._names.items()}
        values[self._latents] = z
        for step in self._steps:
            args = [self._value(part, values) for part in step.args]
            kwargs = {name: self._value(part, values) for name, part in step.kwargs.items()}
            made = self._compute(run, step.target, args, kwargs)
            if step.gives_list or len(step.results) > 1:
                values |= dict(zip(step.results, made, strict=True))
            elif step.results:
                values[step.results[0]] = made
        returned = tuple(self._value(output, values) for output in self._outputs)
        return returned if len(returned) > 1 else returned[0]

    def _compute(self, run: Run, target: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if found := _OPERATOR.fullmatch(target):
            name, overload = found.groups()
            if name in ("sym_size", "sym_stride", "sym_numel"):
                values = args[0]
                answer = {"sym_size": values.shape, "sym_stride": values.stride()}.get(name)
                return values.numel() if answer is None else answer[args[1]]
            return run.compute(name, args, kwargs, overload=overload)
        if found := _PLAIN.fullmatch(target):
            return run.compute_plain(found[1], args, kwargs)
        raise GeneratorError(
            f"{self._where} uses {target!r:.80}, which pgmkit does not run from a file; {ADVICE}"
        )

    def _value(self, argument: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """Returns what an argument of the graph stands for."""
        ((kind, value),) = argument.items()
        if kind in _AS_THEY_ARE:
            # JSON has no infinity, which is written as a string.
            if kind == "as_floats":
                return [float(v) for v in value]
            return float(value) if kind == "as_float" else value
        if kind == "as_none":
            return None
        if kind in _BY_NAME:
            return self._look_up(value, values)
        if kind in ("as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._look_up(part, values) for part in value]
        if kind in ("as_optional_tensors", "as_optional_tensor"):
            parts = value if isinstance(value, list) else [value]
            found = [self._value(part, values) for part in parts]
            return found if isinstance(value, list) else found[0]
        if kind == "as_device":
            return values[self._latents].device
        tables: dict[str, Mapping[int, Any]] = {
            "as_scalar_type": _TYPES,
            "as_layout": _LAYOUTS,
            "as_memory_format": _MEMORY_FORMATS,
        }
        if value in tables.get(kind, {}):
            return tables[kind][value]
        raise GeneratorError(
            f"{self._where} passes {str(argument)[:60]}, which pgmkit does not know; {ADVICE}"
        )

    def _look_up(self, value: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        name = value.get("as_name", value.get("name"))
        return next(iter(value.values())) if name is None else values[name]


def _register(module: nn.Module, name: str, weight: Tensor, *, trained: bool) -> None:
    """Puts a parameter or buffer where its name, with dots between, says."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module.get_submodule(parent)
    if trained and weight.is_floating_point():
        module.register_parameter(last, nn.Parameter(weight))
    else:
        module.register_buffer(last, weight)


def load_exported(path: Path) -> nn.Module:
    """Reads a .pt2 archive as a module in eval mode; `torch.export` never sees it.

    Raises:
        LoadError: it is damaged, of an old form, or holds something that cannot be read as data.
    """
    with open_archive(path) as archive:
        try:
            return _read(archive, path).eval().requires_grad_(False)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise LoadError(
                f"the exported program {path} is not as torch.export writes it "
                f"({type(error).__name__}: {first_line(error)[:80]}); export it again"
            ) from error


def _read_graph(archive: Archive, path: Path) -> tuple[str, dict[str, Any]]:
    """Returns name and contents of the model in a .pt2 archive.

    Raises:
        LoadError: there is none, or more than one.
    """
    if archive.has("serialized_exported_program.json"):
        raise LoadError(
            f"the exported program {path} is of the form before torch 2.7; load it there with "
            "torch.export.load, and save it again with a newer torch"
        )
    models = [n for n in archive.names if n.startswith("models/") and n.endswith(".json")]
    if len(models) != 1:
        raise LoadError(
            f"{path} holds {len(models)} exported programs, and a generator is one; "
            "save one with torch.export.save"
        )
    try:
        model = json.loads(archive.read(models[0]))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"the graph in {path} is not valid JSON; export it again") from error
    return models[0].removeprefix("models/").removesuffix(".json"), model


def _read(archive: Archive, path: Path) -> Exported:
    name, model = _read_graph(archive, path)
    graph, signature = model["graph_module"]["graph"], model["graph_module"]["signature"]
    listed = {
        **_listed(archive, "weights", f"{name}_weights_config.json"),
        **_listed(archive, "constants", f"{name}_constants_config.json"),
    }
    names: dict[str, str] = {}
    parameters: set[str] = set()
    latents: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            latents.append(next(iter(value["arg"].values()))["name"])
            continue
        key = next((value[k] for k in _KEYS if k in value), None)
        if key not in listed:
            raise LoadError(f"the exported program {path} needs {key!r:.60}, which is no tensor")
        names[value["arg"]["name"]] = key
        if kind == "parameter":
            parameters.add(key)
    if len(latents) != 1:
        raise LoadError(
            f"the exported program {path} takes {len(latents)} inputs; a generator takes latents "
            "alone: export a module that makes the others itself"
        )
    return Exported(
        [_step(node) for node in graph["nodes"]],
        _read_tensors(archive, {key: listed[key] for key in names.values()}, path),
        parameters,
        names,
        latents[0],
        _outputs(signature, path),
        _shape(graph["tensor_values"][latents[0]]),
        f"the exported program {path}",
    )


_KEYS = ("parameter_name", "buffer_name", "tensor_constant_name")


def _outputs(signature: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    found = []
    for spec in signature["output_specs"]:
        ((kind, value),) = spec.items()
        if kind != "user_output":
            raise LoadError(
                f"the exported program {path} changes its own weights ({kind}); call .eval() on "
                "the module before torch.export.export"
            )
        found.append(value["arg"])
    if not found:
        raise LoadError(f"the exported program {path} returns nothing; a generator returns images")
    return found


def _step(node: Mapping[str, Any]) -> Step:
    by_name = {i["name"]: i["arg"] for i in node["inputs"] if i.get("kind") == 2}
    results: list[str] = []
    gives_list = False
    for output in node["outputs"]:
        ((kind, value),) = output.items()
        gives_list |= kind == "as_tensors"
        values = value if isinstance(value, list) else [value]
        results += [str(v.get("as_name", v.get("name"))) for v in values if isinstance(v, dict)]
    args = [i["arg"] for i in node["inputs"] if i.get("kind") != 2]
    return Step(node["target"], args, by_name, results, gives_list)


def _listed(archive: Archive, folder: str, config: str) -> dict[str, tuple[str, Any]]:
    """Returns record and description of the tensors that a table in the archive lists."""
    place = f"data/{folder}/"
    if not archive.has(place + config):
        return {}
    table = json.loads(archive.read(place + config))["config"]
    return {name: (place + entry["path_name"], entry) for name, entry in table.items()}


def _read_tensors(
    archive: Archive, listed: Mapping[str, tuple[str, Any]], path: Path
) -> dict[str, Tensor]:
    """Reads tensors by name, and every record once."""
    records = {record: b"" for record, _ in listed.values()}
    check_claim(sum(archive.size(record) for record in records if archive.has(record)), path)
    check_claim(sum(_bytes(entry) for _, entry in listed.values()), path)
    for record in records:
        records[record] = archive.read(record)
    found: dict[str, Tensor] = {}
    unpickled: dict[str, Tensor] = {}
    for name, (record, entry) in listed.items():
        if not _is_pickled(entry):
            found[name] = _tensor(records[record], entry["tensor_meta"], name, path)
            continue
        if record not in unpickled:
            unpickled[record] = _unpickled(records[record], name, path)
        found[name] = unpickled[record]
    check_claim(sum(tensor.nbytes for tensor in found.values()), path)
    return found


def _is_pickled(entry: Mapping[str, Any]) -> bool:
    return bool(entry["use_pickle"]) or entry["tensor_meta"] is None


def _bytes(entry: Mapping[str, Any]) -> int:
    """Returns how many bytes a tensor claims."""
    if _is_pickled(entry):
        return 0
    meta = entry["tensor_meta"]
    values = math.prod(int(size["as_int"]) for size in meta["sizes"])
    return values * _TYPES[meta["dtype"]].itemsize


def _unpickled(data: bytes, name: str, path: Path) -> Tensor:
    """Reads what torch could not write as plain bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inside:
            check_claim(sum(entry.file_size for entry in inside.infolist()), path)
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise LoadError(
            f"the exported program {path} holds {name!r:.60}, which is no tensor; {ADVICE}"
        ) from error
    if not isinstance(value, Tensor):
        raise LoadError(f"{name!r:.60} in {path} is a {type(value).__name__} and no tensor")
    return value.detach()


def _tensor(data: bytes, meta: Mapping[str, Any], name: str, path: Path) -> Tensor:
    sizes, strides = ([int(s["as_int"]) for s in meta[key]] for key in ("sizes", "strides"))
    offset, dtype = int(meta["storage_offset"]["as_int"]), _TYPES[meta["dtype"]]
    if not math.prod(sizes):
        return torch.zeros(sizes, dtype=dtype)
    try:
        values = torch.frombuffer(bytearray(data), dtype=dtype)
        return values.as_strided(sizes, strides, offset).clone()
    except (RuntimeError, ValueError) as error:
        raise LoadError(
            f"{name!r:.60} in {path} has fewer bytes than its shape needs; export it again"
        ) from error


def _shape(meta: Mapping[str, Any]) -> tuple[int | None, ...]:
    return tuple(int(size["as_int"]) if "as_int" in size else None for size in meta["sizes"])
