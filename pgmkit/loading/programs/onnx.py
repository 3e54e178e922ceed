"""ONNX programs as modules, by the converter of the extra `pgmkit[onnx]`.

ONNX is data: a graph of operators with its weights. onnx2pytorch turns it into a module; what that
makes of two latents is compared with ONNX's own reference, as no converter knows all operators as
they are meant.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.errors import LoadError, PluginError, first_line
from pgmkit.loading.programs.archives import check_claim
from pgmkit.loading.programs.operators import ADVICE, MOST_VALUES
from pgmkit.loading.programs.shapes import run_in_shape
from pgmkit.seeds import random_generator

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform")
_MOST_BYTES = 2**31
_MOST_STEPS = 100_000
_OF_VALUES = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
"""The shapes that these make depend on values, and are no larger than what they are given."""

_TOLERANCE = 1e-3
"""How far, of the largest value, a converted program may be from the reference."""


class Converted(nn.Module):
    """A program that was ONNX.

    Args:
        network: what the converter made of it.
        shape: of latents as the program takes them, the number of latents first; None is any size.
        digest: stands for the file, as programs of one set of weights may differ.
        where: the file, for messages.
    """

    def __init__(
        self, network: nn.Module, shape: tuple[int | None, ...], digest: str, where: str
    ) -> None:
        super().__init__()
        self.network = network
        self._shape = shape
        self.program_digest = digest
        self._where = where

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        """Shape of latents as the program takes them; see `shape`."""
        return self._shape

    def forward(self, z: Tensor) -> Any:
        """Returns what the program returns for latents z, in batches and a shape of its own."""
        return run_in_shape(self.network, z, self._shape, self._where)


def load_onnx(path: Path) -> nn.Module:
    """Reads an ONNX program as a module in eval mode.

    Raises:
        PluginError: the extra `pgmkit[onnx]` is not installed.
        LoadError: the file is damaged, does what no generator does, cannot be converted, or is
            converted wrongly.
    """
    onnx, converter = _libraries(path)
    model = _read_whole(onnx, path)
    # The same for a program in one file and with weights beside it.
    large = model.ByteSize() >= _MOST_BYTES
    whole = path.read_bytes() if large else model.SerializeToString(deterministic=True)
    digest = hashlib.sha256(whole).hexdigest()
    _check_nodes(model, path)
    if model.functions:
        _check_functions(model, path)
        model = onnx.inliner.inline_local_functions(model)
    _leave_out_defaults(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = model.graph.output
    if len(inputs) != 1 or len(outputs) != 1:
        raise LoadError(
            f"the ONNX program {path} has {len(inputs)} inputs and {len(outputs)} outputs; a "
            "generator takes latents alone and returns images alone: export it so"
        )
    shape = _shape(inputs[0])
    if shape is None or len(shape) < 2 or None in shape[1:]:
        raise LoadError(
            f"the ONNX program {path} does not say how many dimensions its latents have "
            f"({shape}); export it with latents of a known size"
        )
    sizes = [size for size in shape[1:] if size is not None]
    z = torch.randn(shape[0] or 2, *sizes, generator=random_generator(0, "onnx"))
    expected = _reference(onnx, model, inputs[0].name, z, path)
    problem = ""
    # The converter takes constants rightly, some as steps of the graph and some as weights.
    for form in (model, _with_constants_as_weights(onnx, model)):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # on attributes; the comparison tells
                network = converter.ConvertModel(form).eval().requires_grad_(False)
                program = Converted(network, shape, digest, f"the ONNX program {path}").eval()
                problem = _difference(program(z), expected)
        except Exception as error:
            problem = f"cannot convert it ({first_line(error)[:160]})"
        if not problem:
            return program
    raise LoadError(f"{path} is an ONNX program, and onnx2pytorch {problem}; {ADVICE}")


def self_contained(path: Path) -> bytes:
    """Returns an ONNX program with all its weights in it, also those in a file beside it.

    Raises:
        PluginError: the extra `pgmkit[onnx]` is not installed.
        LoadError: the file is damaged, or larger with its weights than one file of ONNX may be.
    """
    onnx, _ = _libraries(path)
    if not any(_is_external(onnx, tensor) for tensor in _tensors(onnx, _read(onnx, path))):
        return path.read_bytes()
    model = _read_whole(onnx, path)
    if model.ByteSize() >= _MOST_BYTES:
        raise LoadError(
            f"the ONNX program {path} and the weights beside it are {model.ByteSize():,} bytes, "
            f"and one file of ONNX has less than 2 GiB; {ADVICE}"
        )
    whole: bytes = model.SerializeToString()
    return whole


def _libraries(path: Path) -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnx.helper
        import onnx.inliner
        import onnx.reference
        import onnx.shape_inference
        import onnx2pytorch
    except ImportError as error:
        raise PluginError(
            f"{path} is an ONNX program, and {error.name} is not installed; "
            "run pip install 'pgmkit[onnx]'"
        ) from error
    return onnx, onnx2pytorch


def _read(onnx: Any, path: Path) -> Any:
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of protobuf, which is no dependency of its own
        raise LoadError(
            f"{path} is truncated or damaged ({first_line(error)[:80]}); fetch or export it again"
        ) from error


def _read_whole(onnx: Any, path: Path) -> Any:
    """Returns the program with the weights beside it, and with data from no other place."""
    model = _read(onnx, path)
    _fill_in_external(onnx, model, path)
    for tensor in _tensors(onnx, model):
        if _is_external(onnx, tensor):  # which libraries would look for in the current folder
            raise LoadError(
                f"the ONNX program {path} keeps the constant {tensor.name!r:.60} of a step in "
                "another file, which pgmkit reads for weights alone; export it as one file"
            )
    return model


def _tensors(onnx: Any, message: Any) -> Iterator[Any]:
    """Yields all tensors in a model, wherever they are."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for part in value if hasattr(value, "extend") else [value]:
            if hasattr(part, "ListFields"):
                yield from _tensors(onnx, part)


def _is_external(onnx: Any, tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _fill_in_external(onnx: Any, model: Any, path: Path) -> None:
    """Reads the weights that lie in a file beside the program, and in no other place."""
    read: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if not _is_external(onnx, tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise LoadError(
                f"the ONNX program {path} keeps weights in {name!r:.60}, which is no file beside it"
            )
        try:
            with (path.parent / name).open("rb") as file:
                file.seek(int(entries.get("offset", 0)))
                length = entries.get("length")
                tensor.raw_data = file.read(int(length) if length else -1)
            read[name] = read.get(name, 0) + len(tensor.raw_data)
            check_claim(read[name], path.parent / name)
        except (OSError, ValueError, OverflowError) as error:
            raise LoadError(
                f"the ONNX program {path} keeps weights in {name!r:.60}, which cannot be read "
                "beside it; fetch that file, too"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_nodes(model: Any, path: Path) -> None:
    for node in (*model.graph.node, *(node for part in model.functions for node in part.node)):
        if node.op_type.startswith(_RANDOM):
            raise LoadError(
                f"the ONNX program {path} draws random numbers ({node.op_type}), so its images are "
                "not a function of the latents; export it without its noise"
            )
        if any(part.type in (5, 10) for part in node.attribute):  # graphs in graphs
            raise LoadError(
                f"the ONNX program {path} branches or repeats ({node.op_type:.40}), which pgmkit "
                "does not run from a file; export it with latents of a fixed size"
            )


def _check_functions(model: Any, path: Path) -> None:
    """Refuses functions that call functions until no memory holds their steps."""
    bodies = {(part.domain, part.name): part.node for part in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Any, inside: tuple[tuple[str, str], ...]) -> int:
        keys = [(node.domain, node.op_type) for node in nodes]
        for key in keys:
            if key in inside or len(inside) > 100:
                raise LoadError(f"functions of the ONNX program {path} call themselves")
            if key in bodies and key not in counts:
                counts[key] = count(bodies[key], (*inside, key))
        return sum(counts.get(key, 1) for key in keys)

    steps = count(model.graph.node, ())
    if steps > _MOST_STEPS:
        raise LoadError(f"the ONNX program {path} has {steps:,} steps, too many; {ADVICE}")


def _with_constants_as_weights(onnx: Any, model: Any) -> Any:
    """Returns the same program without steps that do nothing but give a constant."""
    simple = onnx.ModelProto()
    simple.CopyFrom(model)
    graph = simple.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        constant = node.op_type == "Constant" and value is not None
        if constant or (node.op_type == "Identity" and node.input[0] in weights):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value if constant else weights[node.input[0]])
            tensor.name = node.output[0]
            weights[tensor.name] = tensor
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    # Kept nodes belong to the graph, and are gone when it is emptied.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    return simple


def _leave_out_defaults(model: Any) -> None:
    """Leaves out what the converter does not know though it says what holds anyway."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            told = [a for a in node.attribute if not (a.name == "training_mode" and a.i == 0)]
            told = [type(a).FromString(a.SerializeToString()) for a in told]
            del node.attribute[:]
            node.attribute.extend(told)


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Returns the sizes of an input or output as far as they are stated."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)


def _reference(onnx: Any, model: Any, name: str, z: Tensor, path: Path) -> Tensor:
    """Returns what ONNX's own reference makes of latents, step by step."""
    graph = model.graph
    opsets = {part.domain: part.version for part in model.opset_import}
    values: dict[str, Any] = {"": None}
    try:
        for tensor in graph.initializer:
            values[tensor.name] = onnx.numpy_helper.to_array(tensor)
        values[name] = z.numpy()
        for node in graph.node:
            step = onnx.reference.ReferenceEvaluator(node, opsets=opsets)
            _check_sizes(onnx, model, node, values, len(z), path)
            given = {key: values[key] for key in node.input if key}
            made = step.run(None, given)
            values |= dict(zip(node.output, made, strict=False))
        return torch.from_numpy(values[graph.output[0].name])
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(
            f"the ONNX program {path} does not run on latents of shape {tuple(z.shape)}: "
            f"{first_line(error)[:160]}; export it again, or pass weights and an architecture"
        ) from error


def _check_sizes(
    onnx: Any, model: Any, node: Any, values: dict[str, Any], latents: int, path: Path
) -> None:
    """Refuses a step that makes more values than a generator needs, before it is taken."""
    for key, shape in _foreseen(onnx, model, node, values).items():
        if None in shape and node.op_type not in _OF_VALUES:
            raise LoadError(
                f"the ONNX program {path} does not say how large {key!r:.60} ({node.op_type:.40}) "
                "is; export it with latents of a fixed size"
            )
        count = math.prod(size for size in shape if size is not None)
        if count > MOST_VALUES * latents:
            raise LoadError(
                f"the ONNX program {path} makes {count:,} values at once ({node.op_type:.40}) of "
                f"{latents} latents, more than a generator needs; {ADVICE}"
            )


def _foreseen(
    onnx: Any, model: Any, node: Any, values: dict[str, Any]
) -> dict[str, Sequence[int | None]]:
    """Returns the shapes that ONNX infers for what a step makes; None is an unknown size."""
    known = {key: values[key] for key in node.input if key}
    graph = onnx.helper.make_graph(
        [node],
        "step",
        [
            onnx.helper.make_tensor_value_info(
                key, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for key, value in known.items()
        ],
        [onnx.ValueInfoProto(name=key) for key in node.output if key],
        [  # sizes are among the short ones
            onnx.numpy_helper.from_array(value, key)
            for key, value in known.items()
            if value.size <= 1000
        ],
    )
    step = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    inferred = onnx.shape_inference.infer_shapes(step, strict_mode=True, data_prop=True)
    shapes: dict[str, Sequence[int | None]] = {}
    for value in inferred.graph.output:
        shape = _shape(value)
        shapes[value.name] = (None,) if shape is None else shape
    return shapes


def _difference(images: Any, expected: Tensor) -> str:
    """Returns in words how images are not what they should be; nothing if they are."""
    if not isinstance(images, Tensor) or images.shape != expected.shape:
        return "makes images of another shape than it says"
    difference = float((images - expected).abs().max())
    if difference <= _TOLERANCE * float(expected.abs().max()):
        return ""
    return f"computes other values than it says (by up to {difference:.3g})"
