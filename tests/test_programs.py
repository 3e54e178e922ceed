"""Files that are whole programs: TorchScript, torch.export, ONNX."""

import contextlib
import copy
import io
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pgmkit.errors import GeneratorError, LoadError, PluginError
from pgmkit.generator import Generator, LatentSpec
from pgmkit.images.source import ImageSpec
from pgmkit.loading.programs import (
    kind_of_file,
    load_exported,
    load_onnx,
    load_program,
    load_torchscript,
    program_bytes,
)
from pgmkit.loading.programs import onnx as loading_onnx
from pgmkit.spectrum.jacobian import JacobianSpectra
from pgmkit_plugins.backbones.dcgan import DCGANGenerator

# Files of TorchScript are there to stay, whatever becomes of writing them.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning"
)

LATENTS = 6
ANY_NUMBER = ({0: torch.export.Dim.DYNAMIC},)


class Upsampler(nn.Module):
    """Interpolation, norms, indexing, an assignment in place, a branch, a loop and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENTS, 32)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(2)])
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).view(-1, 2, 4, 4) if z.dim() == 2 else z
        x = self.norm(self.first(F.interpolate(x, scale_factor=2.0)))
        kept = [x]
        for block in self.blocks:
            kept.append(block(F.leaky_relu(kept[-1], 0.2)))
        x = torch.stack(kept).sum(0)
        x[:, 0] = 2 * x[:, 1]
        x = F.interpolate(x, size=[8, 8], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.last(F.dropout(x, 0.5, self.training)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENTS, 32)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.end = nn.Linear(8, 4)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).reshape(-1, 4, 8)
        x = self.end(x + self.attention(x, x, x, need_weights=False)[0])
        return torch.tanh(F.pixel_shuffle(x.unflatten(2, (2, 2)), 2))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = {
        "dcgan": lambda: DCGANGenerator(LATENTS, (8, 4)),
        "upsampler": Upsampler,
        "attention": Attention,
        "mlp": lambda: nn.Sequential(nn.Linear(LATENTS, 9), nn.ELU(), nn.Linear(9, 4), nn.Tanh()),
    }[name]()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return made.eval()


def latents(count: int = 5) -> Tensor:
    return torch.randn(count, LATENTS, generator=torch.Generator().manual_seed(1))


def write_script(path: Path, module: nn.Module, how: str = "script") -> Path:
    if how == "script":
        torch.jit.script(module).save(path)
    elif how == "frozen":
        torch.jit.freeze(torch.jit.script(module)).save(path)
    else:
        torch.jit.trace(module, latents(2), check_trace=False).save(path)
    return path


def write_exported(path: Path, module: nn.Module | str, how: str = "any number") -> Path:
    """Exports a module, or a network of that name, once for all ways but for the numbers."""
    program = export(module, None if how == "two at a time" else "any number")
    torch.export.save(program.run_decompositions() if how == "decomposed" else program, path)
    return path


@cache
def export(module: nn.Module | str, numbers: str | None) -> torch.export.ExportedProgram:
    made = network(module) if isinstance(module, str) else module
    shapes = ANY_NUMBER if numbers else None
    return torch.export.export(made, (latents(2),), dynamic_shapes=shapes)


def edited(path: Path, changes: dict[str, bytes]) -> Path:
    """Replaces or adds records of an archive; names are without its folder."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(records)).partition("/")[0]
    records |= {f"{folder}/{name}": data for name, data in changes.items()}
    changed = path.with_name(f"edited-{path.name}")
    with zipfile.ZipFile(changed, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return changed


def record(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(name)))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mknod, (self.path,)


def fingerprint(module: nn.Module) -> str:
    return Generator(module, LatentSpec(LATENTS), ImageSpec((1, 2, 2))).fingerprint()


def wrap(module: nn.Module) -> Generator:
    with torch.no_grad():
        shape = tuple(module(latents(2)).shape[1:])
    return Generator(module, LatentSpec(LATENTS), ImageSpec(shape if len(shape) > 1 else (1, 2, 2)))


def singular_values(module: nn.Module, z: Tensor) -> Tensor:
    """Returns singular values of reverse-mode Jacobians, in float64."""
    module = copy.deepcopy(module).double()
    jacobians = [
        torch.autograd.functional.jacobian(lambda v: module(v[None]).flatten(), latent.double())
        for latent in z
    ]
    return torch.linalg.svdvals(torch.stack(jacobians))


def assert_right_spectrum(program: nn.Module, original: nn.Module) -> None:
    z = latents(3)
    with mock.patch("pgmkit.spectrum.differentiation._CALIBRATION_SECONDS", 0):
        found = JacobianSpectra(wrap(program)).compute(z)["singular_values"]
    torch.testing.assert_close(found, singular_values(original, z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["script", "frozen", "trace"])
@pytest.mark.parametrize("name", ["dcgan", "upsampler", "attention"])
def test_torchscript_gives_the_images_of_the_network(name: str, how: str, tmp_path: Path) -> None:
    module = network(name)
    path = write_script(tmp_path / "model.pt", module, how)
    program = load_torchscript(path)
    with torch.no_grad():
        torch.testing.assert_close(program(latents()), module(latents()))


def test_torchscript_keeps_the_names_of_weights(tmp_path: Path) -> None:
    module = network("dcgan")
    program = load_torchscript(write_script(tmp_path / "model.pt", module))
    weights = {k.removeprefix("root."): v for k, v in program.state_dict().items()}
    torch.testing.assert_close(weights, dict(module.state_dict()))
    assert all(not parameter.requires_grad for parameter in program.parameters())


def test_torchscript_has_the_spectrum_of_the_network(tmp_path: Path) -> None:
    module = network("dcgan")
    assert_right_spectrum(load_torchscript(write_script(tmp_path / "a.pt", module)), module)


def test_exported_programs_have_the_spectrum_of_the_network(tmp_path: Path) -> None:
    program = load_exported(write_exported(tmp_path / "a.pt2", "upsampler"))
    assert_right_spectrum(program, network("upsampler"))


@pytest.mark.parametrize("how", ["any number", "two at a time", "decomposed"])
@pytest.mark.parametrize("name", ["dcgan", "upsampler", "attention"])
def test_exported_programs_give_the_images_of_the_network(
    name: str, how: str, tmp_path: Path
) -> None:
    module = network(name)
    program = load_exported(write_exported(tmp_path / "model.pt2", name, how))
    with torch.no_grad():
        for count in (1, 2, 5):
            z = latents(count)
            torch.testing.assert_close(program(z), module(z), rtol=1e-4, atol=1e-5)


def test_exported_programs_keep_the_names_of_weights(tmp_path: Path) -> None:
    module = network("dcgan")
    program = load_exported(write_exported(tmp_path / "model.pt2", "dcgan"))
    expected = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    found = {k: v for k, v in program.state_dict().items() if "num_batches" not in k}
    torch.testing.assert_close(found, expected)
    assert {name for name, _ in program.named_parameters()} == {
        name for name, _ in module.named_parameters()
    }


def test_programs_can_be_copied_and_sent_to_workers(tmp_path: Path) -> None:
    module = network("upsampler")
    for program in (
        load_torchscript(write_script(tmp_path / "a.pt", module)),
        load_exported(write_exported(tmp_path / "a.pt2", "upsampler")),
    ):
        for twin in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
            torch.testing.assert_close(twin(latents()), program(latents()))


def test_programs_of_the_same_weights_are_told_apart(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, psi: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(LATENTS, 4)
            self.psi = psi

        def forward(self, z: Tensor) -> Tensor:
            return self.net(self.psi * z)

    def write_onnx(path: Path, module: nn.Module) -> Path:
        psi = helper.make_tensor("psi", TensorProto.FLOAT, [], [module.psi])
        nodes = [
            helper.make_node("Constant", [], ["psi"], value=psi),
            helper.make_node("Mul", ["z", "psi"], ["images"]),
        ]
        onnx.save(onnx_model(nodes, {}, (LATENTS,)), path)
        return path

    for write, name in (
        (write_script, "script.pt"),
        (partial(write_script, how="trace"), "trace.pt"),
        (partial(write_script, how="frozen"), "frozen.pt"),
        (write_exported, "a.pt2"),
        (write_onnx, "a.onnx"),
    ):
        paths = [write(tmp_path / f"{psi}-{name}", Scaled(psi).eval()) for psi in (1.0, 0.1)]
        one, other = (fingerprint(load_program(path)) for path in paths)
        assert one != other
        shutil.copy(paths[0], tmp_path / f"copy-{name}")
        assert fingerprint(load_program(tmp_path / f"copy-{name}")) == one


def test_the_state_of_training_is_not_taken_over(tmp_path: Path) -> None:
    module = network("upsampler")
    expected = module(latents())
    path = write_script(tmp_path / "model.pt", module.train())
    torch.testing.assert_close(load_torchscript(path)(latents()), expected)


class WritesAFile(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, z: Tensor) -> Tensor:
        return z + torch.from_file(self.path, shared=True, size=6)


class WritesAFileOnLoading(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1] and bool(torch.from_file(state[0], shared=True, size=6).any())

    def forward(self, z: Tensor) -> Tensor:
        return z


def test_torchscript_that_writes_a_file_when_called_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = write_script(tmp_path / "model.pt", WritesAFile(str(mark)))
    torch.jit.load(path)(latents())
    assert mark.exists()  # what torch does, and pgmkit must not
    mark.unlink()
    with pytest.raises(GeneratorError, match=r"'from_file'.*architecture=YourModule"):
        load_torchscript(path)(latents())
    assert not mark.exists()


def test_torchscript_that_writes_a_file_when_loaded_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = write_script(tmp_path / "model.pt", WritesAFileOnLoading(str(mark)))
    torch.jit.load(path)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(LoadError, match="save its weights alone"):
        load_torchscript(path)
    assert not mark.exists()


def test_what_torchscript_pickles_is_not_unpickled_freely(tmp_path: Path) -> None:
    path = write_script(tmp_path / "model.pt", network("mlp"))
    for name in ("data.pkl", "constants.pkl"):
        evil = edited(path, {name: pickle.dumps(Touch(tmp_path / "mark"), protocol=2)})
        with pytest.raises(LoadError, match=r"cannot be read as data \(it holds posix\.mknod\)"):
            load_torchscript(evil)
    assert not (tmp_path / "mark").exists()


def with_code(path: Path, code: bytes) -> Path:
    """Replaces the code of the archive's outermost class, an `nn.Sequential`."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if "/container" in n and n.endswith(".py"))
    return edited(path, {name.partition("/")[2]: code})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("while True:\n      pass\n    return input", "does not end"),
        ("return (self).forward(input, )", "calls itself without end"),
        ("return torch.randn_like(input)", "draws random numbers"),
        ("return ops.prim.PythonOp(input)", "'PythonOp'"),
        ("return __import__('os').getcwd()", "does not run from a file"),
        ("return input.__class__", "'__class__'"),
        ("return (input).cpu()", "'cpu'"),
        ("return open('mark', 'w')", "does not run from a file"),
        ("return [part for part in (1, 2)]", "does not run from a file"),
        ("import os\n    return input", "does not run from a file"),
        ("self.weight = input\n    return input", "changes itself"),
        ("return torch.mul([1, 2], 99999999999)", "cannot compute mul"),
        ("x = [1]\n    while True:\n      x = torch.add(x, x)", "makes a list of 131072"),
        ("return torch.mul(9223372036854775807, 2)", "more than 64 bits"),
        ("return torch.format('{0.__class__}', input)", None),
        ("ops.prim.RaiseException('no latents today')\n    return input", "no latents today"),
    ],
)
def test_torchscript_does_nothing_but_compute(
    body: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.loading.programs.torchscript._STEPS", 10_000)
    path = write_script(tmp_path / "model.pt", network("mlp"))
    code = f"class Sequential(Module):\n  def forward(self, input):\n    {body}\n"
    program = load_torchscript(with_code(path, code.encode()))
    if message is None:
        assert program(latents()) == "{0.__class__}"
        return
    with pytest.raises(GeneratorError, match=message):
        program(latents())


@pytest.mark.parametrize("code", [b"def", b"(" * 5000, b"\xff", b"x = " + b"-" * 100_000 + b"1"])
def test_code_that_cannot_be_parsed_is_said(code: bytes, tmp_path: Path) -> None:
    path = write_script(tmp_path / "model.pt", network("mlp"))
    with pytest.raises(LoadError, match="cannot be read"):
        load_torchscript(with_code(path, code))


def test_torchscript_with_more_inputs_is_said(tmp_path: Path) -> None:
    class Conditional(nn.Module):
        def forward(self, z: Tensor, label: Tensor) -> Tensor:
            return z + label

    program = load_torchscript(write_script(tmp_path / "model.pt", Conditional()))
    with pytest.raises(GeneratorError, match=r"takes 2 inputs .*z, label.*latents alone"):
        program(latents())


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(LATENTS, 4)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(z), z


def test_what_a_program_returns_beside_images_is_returned(tmp_path: Path) -> None:
    module = Several().eval()
    for program in (
        load_torchscript(write_script(tmp_path / "a.pt", module)),
        load_exported(write_exported(tmp_path / "a.pt2", module)),
    ):
        returned = program(latents())
        assert isinstance(returned, tuple)
        torch.testing.assert_close(returned, module(latents()))


def test_weights_that_claim_more_bytes_than_the_file_has_are_refused(tmp_path: Path) -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("noise", torch.zeros(1).expand(10**12))

        def forward(self, z: Tensor) -> Tensor:
            return z

    path = write_script(tmp_path / "a.pt", Repeated())
    with pytest.raises(LoadError, match=r"claims 4,000,000,000,000 bytes"):
        load_torchscript(path)
    path = write_exported(tmp_path / "a.pt2", "mlp")
    table = json.loads(record(path, "model_weights_config.json"))
    for entry in table["config"].values():
        entry["tensor_meta"] |= {"sizes": [{"as_int": 10**12}], "strides": [{"as_int": 0}]}
    with pytest.raises(LoadError, match=r"claims .* bytes"):
        load_exported(
            edited(path, {"data/weights/model_weights_config.json": json.dumps(table).encode()})
        )


def model_json(path: Path) -> dict:
    return json.loads(record(path, "models/model.json"))


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.mknod",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.linear.__setattr__",
        "torch.ops.aten.__setattr__.default",
        "evil",
    ],
)
def test_exported_programs_call_no_function_but_operators(target: str, tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", "mlp")
    model = model_json(path)
    model["graph_module"]["graph"]["nodes"][0]["target"] = target
    program = load_exported(edited(path, {"models/model.json": json.dumps(model).encode()}))
    with pytest.raises(
        GeneratorError, match=r"architecture=YourModule|which torch .* does not have"
    ):
        program(latents())


def test_exported_programs_evaluate_no_shapes(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", "mlp")
    mark = tmp_path / "mark"
    code = f"\"expr_str\": \"__import__('os').mknod('{mark}')\""
    text = record(path, "models/model.json").decode()
    changed, count = re.subn(r'"expr_str": "[^"]*"', lambda _: code, text)
    assert count
    evil = edited(path, {"models/model.json": changed.encode()})
    load_exported(evil)(latents())
    assert not mark.exists()


def test_exported_programs_unpickle_nothing_freely(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", "mlp")
    mark = tmp_path / "mark"
    evil = io.BytesIO()
    torch.save(Touch(mark), evil)
    inputs = edited(path, {"data/sample_inputs/model.pt": evil.getvalue()})
    load_exported(inputs)(latents())
    table = json.loads(record(path, "model_weights_config.json"))
    for entry in table["config"].values():
        entry["use_pickle"] = True
    changes = {"data/weights/model_weights_config.json": json.dumps(table).encode()}
    changes["data/weights/weight_0"] = evil.getvalue()
    with pytest.raises(LoadError, match="which is no tensor"):
        load_exported(edited(path, changes))
    assert not mark.exists()


def test_exported_weights_with_too_few_bytes_are_said(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "model.pt2", "mlp")
    with pytest.raises(LoadError, match="fewer bytes"):
        load_exported(edited(path, {"data/weights/weight_0": b"1234"}))


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"{}", b"[]", b'{"graph_module": 1}'])
def test_damaged_graphs_are_said(text: bytes, tmp_path: Path) -> None:
    path = edited(write_exported(tmp_path / "model.pt2", "mlp"), {"models/model.json": text})
    with pytest.raises(LoadError, match="export it again"):
        load_exported(path)


def test_exported_programs_of_the_old_form_are_said(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    assert kind_of_file(path) == "exported"
    with pytest.raises(LoadError, match=r"before torch 2\.7"):
        load_exported(path)


def test_exported_programs_reshape_flat_latents(tmp_path: Path) -> None:
    module = nn.Sequential(nn.ConvTranspose2d(LATENTS, 1, 4), nn.Tanh()).eval()
    z = latents()[:, :, None, None]
    program = torch.export.export(module, (z,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "model.pt2")
    torch.testing.assert_close(load_exported(tmp_path / "model.pt2")(latents()), module(z))


def onnx_model(
    nodes: list, weights: dict[str, Tensor], shape: tuple, batch: int | str = "n"
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "generator",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, LATENTS])],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *shape])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def onnx_dcgan(module: nn.Module, batch: int | str = "n") -> onnx.ModelProto:
    """Writes out a DCGAN as torch's exporter does, batch norms and all."""
    sides = numpy_helper.from_array(np.array([2, 3]), "sides")
    nodes = [
        helper.make_node("Constant", [], ["sides"], value=sides),
        helper.make_node("Unsqueeze", ["z", "sides"], ["0"]),
    ]
    for index, layer in enumerate(module.layers):
        name, out = f"layers.{index}", str(index + 1)
        if isinstance(layer, nn.ConvTranspose2d):
            (stride, _), (pad, _) = layer.stride, layer.padding
            told = {"strides": [stride] * 2, "pads": [pad] * 4, "kernel_shape": [4, 4]}
            node = helper.make_node("ConvTranspose", [str(index), f"{name}.weight"], [out], **told)
        elif isinstance(layer, nn.BatchNorm2d):
            parts = ("weight", "bias", "running_mean", "running_var")
            names = [str(index), *(f"{name}.{part}" for part in parts)]
            node = helper.make_node("BatchNormalization", names, [out], training_mode=0)
        else:
            node = helper.make_node(
                type(layer).__name__.replace("ReLU", "Relu"), [str(index)], [out]
            )
        nodes.append(node)
    nodes[-1].output[0] = "images"
    weights = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    return onnx_model(nodes, weights, (1, 16, 16), batch)


@pytest.mark.parametrize("batch", ["n", 2])
def test_onnx_gives_images_and_spectrum_of_the_network(batch: int | str, tmp_path: Path) -> None:
    module, path = network("dcgan"), tmp_path / "model.onnx"
    onnx.save(onnx_dcgan(module, batch), path)
    program = load_onnx(path)
    torch.testing.assert_close(program(latents()), module(latents()))
    if batch == "n":
        assert_right_spectrum(program, module)


def test_onnx_finds_weights_beside_the_program_only(tmp_path: Path) -> None:
    module, path = network("dcgan"), tmp_path / "model.onnx"
    onnx.save(
        onnx_dcgan(module), path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    torch.testing.assert_close(load_onnx(path)(latents()), module(latents()))
    model = onnx.load(path, load_external_data=False)
    (tmp_path / "w.data").unlink()
    with pytest.raises(LoadError, match=r"'w\.data', which cannot be read beside it; fetch"):
        load_onnx(path)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../w.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="no file beside it"):
        load_onnx(path)


def test_onnx_norms_with_constants_are_converted_rightly(tmp_path: Path) -> None:
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [2], [1.0, 2.0])
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 2, 3])
    nodes = [
        helper.make_node("Constant", [], ["scale"], value=scale),
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["z", "shape"], ["x"]),
        helper.make_node("InstanceNormalization", ["x", "scale", "scale"], ["images"]),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(onnx_model(nodes, {}, (2, 3)), path)
    weight = torch.tensor([1.0, 2.0])
    expected = F.instance_norm(latents().view(-1, 2, 3), weight=weight, bias=weight)
    torch.testing.assert_close(load_onnx(path)(latents()), expected)


def test_onnx_that_is_converted_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx_dcgan(network("dcgan")), path)
    other = network("dcgan")
    other.layers[0].weight.data *= 1.1
    monkeypatch.setattr(loading_onnx, "_reference", lambda o, m, n, z, p: other(z).detach())
    with pytest.raises(LoadError, match="computes other values than it says"):
        load_onnx(path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("RandomNormalLike", ["z"], ["images"])], "draws random numbers"),
        ([helper.make_node("NoSuchThing", ["z"], ["images"])], "does not run|cannot convert"),
        (
            [
                helper.make_node(
                    "Loop", ["z"], ["images"], body=helper.make_graph([], "body", [], [])
                )
            ],
            "branches or repeats",
        ),
    ],
)
def test_onnx_does_nothing_but_compute(nodes: list, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(nodes, {}, (LATENTS,)).SerializeToString())
    with pytest.raises(LoadError, match=message):
        load_onnx(path)


def test_onnx_without_its_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx_dcgan(network("dcgan")), path)
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    with pytest.raises(PluginError, match=r"pip install 'pgmkit\[onnx\]'"):
        load_onnx(path)


def test_programs_say_what_latents_their_files_state(tmp_path: Path) -> None:
    module = network("dcgan")
    exported = load_exported(write_exported(tmp_path / "a.pt2", "dcgan"))
    assert exported.latent_shape == (None, LATENTS)
    fixed = load_exported(write_exported(tmp_path / "b.pt2", "dcgan", "two at a time"))
    assert fixed.latent_shape == (2, LATENTS)
    onnx.save(onnx_dcgan(module), tmp_path / "a.onnx")
    assert load_onnx(tmp_path / "a.onnx").latent_shape == (None, LATENTS)
    scripted = load_torchscript(write_script(tmp_path / "a.pt", module))
    assert not hasattr(scripted, "latent_shape")


def test_kinds_of_files_are_told_by_content(tmp_path: Path) -> None:
    module = network("dcgan")

    def write(kind: str, data: bytes) -> None:
        (tmp_path / kind).write_bytes(data)

    save_file(dict(module.state_dict()), tmp_path / "safetensors")
    torch.save(module.state_dict(), tmp_path / "torch-zip")
    torch.save(module.state_dict(), tmp_path / "torch-legacy", _use_new_zipfile_serialization=False)
    write_script(tmp_path / "torchscript", module)
    write_exported(tmp_path / "a.pt2", "dcgan").rename(tmp_path / "exported")
    onnx.save(onnx_dcgan(module), tmp_path / "onnx")
    write(
        "git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n"
    )
    write("html", b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.npz").rename(tmp_path / "npz")
    write("pickle", pickle.dumps({"G": 1}))
    write("tensorflow", b"\x89HDF\r\n\x1a\n" + bytes(100))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("README.md", "hello")
    write("truncated-zip", (tmp_path / "torch-zip").read_bytes()[:-200])
    write("empty", b"")
    write("unknown", b"hello world, this is text")
    found = {path.name: kind_of_file(path) for path in tmp_path.iterdir()}
    assert found == {name: name for name in found}
    assert len(found) == 15


@pytest.mark.parametrize("start", [b"\x08", b"\x08\x09", b"\x08\x09\x3a\xff\xff", b"\xff" * 40])
def test_fragments_have_a_kind(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "fragment").write_bytes(start)
    assert kind_of_file(tmp_path / "fragment") in {"unknown", "onnx"}


def test_what_is_no_program_is_said(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(LoadError, match="is no program: it is a torch checkpoint"):
        load_program(tmp_path / "model.pt")
    with pytest.raises(LoadError, match=r"cannot be read \(No such file"):
        load_program(tmp_path / "nothing.pt")


def test_damaged_archives_end_in_one_error(tmp_path: Path) -> None:
    module = network("mlp")
    for load, path in (
        (load_torchscript, write_script(tmp_path / "a.pt", module)),
        (load_exported, write_exported(tmp_path / "a.pt2", "mlp")),
    ):
        data = path.read_bytes()
        for place in range(0, len(data) - 100, 977):
            path.write_bytes(data[:place] + bytes(40) + data[place + 40 :])
            # What can still be read may do anything with numbers.
            with contextlib.suppress(LoadError, GeneratorError, RuntimeError):
                load(path)(latents())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = torch.ones([10000, 40000])", "makes 400,000,000 values at once"),
        ("x = torch.new_zeros(input, [10000, 400000])", "values at once"),
        ("x = torch.repeat(torch.sum(input), [9999999999])", "values at once"),
        ("x = torch.arange(torch.mul(torch.ones([]), 9999999999))", "values at once"),
        ("n = torch.arange(90000)\n    x = torch.mul(torch.unsqueeze(n, 1), n)", "values at once"),
        ("x = torch.matmul(torch.ones([90000, 1]), torch.ones([1, 90000]))", "values at once"),
        ("n = torch.ones([2])\n    x = torch.repeat_interleave(n, n)", "cannot compute"),
        ("while True:\n      x = torch.ones([50000, 100])", "in all"),
        ("while True:\n      x = torch.mul([0], 99999)", "lists of 10"),
        ("x = torch.mul(500000000, [0])", "a list of 500000000"),
        ("x = torch.mul((0,), 500000000)", "a list of 500000000"),
        ("x = torch.mul([0], torch.sum(torch.ones([20000, 10])))", "a list of 200000"),
        ("x = " + "-" * 1500 + "1", "cannot be run .RecursionError"),
        ("x = annotate()", "cannot be run .IndexError"),
    ],
)
def test_torchscript_fills_no_memory(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.loading.programs.operators._MOST_IN_ALL", 2**28)
    path = write_script(tmp_path / "model.pt", network("mlp"))
    code = f"class Sequential(Module):\n  def forward(self, input):\n    {body}\n    return x\n"
    program = load_torchscript(with_code(path, code.encode()))
    with pytest.raises(GeneratorError, match=message):
        program(latents())


def with_steps(path: Path, *targets: tuple[str, list[dict]]) -> Path:
    """Puts steps before those of an exported program."""
    model = model_json(path)
    for target, inputs in targets:
        step = {
            "target": target,
            "inputs": [{"name": "", "arg": arg, "kind": 1} for arg in inputs],
            "outputs": [{"as_tensor": {"name": "made"}}],
            "metadata": {},
        }
        model["graph_module"]["graph"]["nodes"].insert(0, step)
    return edited(path, {"models/model.json": json.dumps(model).encode()})


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("torch.ops.aten.ones.default", [{"as_ints": [10000, 400000]}]),
        ("torch.ops.aten.mul.left_t", [{"as_ints": [0]}, {"as_int": 10**9}]),
        ("_operator.mul", [{"as_int": 10**9}, {"as_ints": [0]}]),
    ],
)
def test_exported_programs_fill_no_memory(target: str, inputs: list, tmp_path: Path) -> None:
    path = with_steps(write_exported(tmp_path / "a.pt2", "mlp"), (target, inputs))
    with pytest.raises(GeneratorError, match=r"values at once|a list of"):
        load_exported(path)(latents())


def test_exported_weights_are_read_once_and_as_far_as_they_are_used(tmp_path: Path) -> None:
    path = write_exported(tmp_path / "a.pt2", nn.Linear(LATENTS, 2**16).eval())
    config = "data/weights/model_weights_config.json"
    table = json.loads(record(path, config))
    used = table["config"]["weight"]
    table["config"] |= {f"unused {index}": used for index in range(1000)}
    program = load_exported(edited(path, {config: json.dumps(table).encode()}))
    assert set(program.state_dict()) == {"weight", "bias"}

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(LATENTS, 2**14) for _ in range(20))

        def forward(self, z: Tensor) -> Tensor:
            return sum(part(z) for part in self.parts)

    path = write_exported(tmp_path / "b.pt2", Many().eval())
    table = json.loads(record(path, config))
    first = table["config"]["parts.0.weight"]
    table["config"] = {
        name: first if name.endswith("weight") else entry for name, entry in table["config"].items()
    }
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if len(data) < 2**16 or name.endswith(first["path_name"]):
                archive.writestr(name, json.dumps(table) if name.endswith(config) else data)
    with pytest.raises(LoadError, match=r"claims .* bytes|has no record"):
        load_exported(path)


def test_what_is_packed_in_exported_weights_stays_in_bounds(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as inside:
        inside.writestr("archive/data.pkl", bytes(2**25))
    path = write_exported(tmp_path / "a.pt2", "mlp")
    config = "data/weights/model_weights_config.json"
    table = json.loads(record(path, config))
    for entry in table["config"].values():
        entry["use_pickle"] = True
    changes = {config: json.dumps(table).encode(), "data/weights/weight_0": packed.getvalue()}
    with pytest.raises(LoadError, match="claims 33,554,432 bytes"):
        load_exported(edited(path, changes))


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([helper.make_node("ConstantOfShape", ["sizes"], ["x"])], {"sizes": [20000, 20000]}),
        (
            [
                helper.make_node("Mul", ["sizes", "sizes"], ["more"]),
                helper.make_node("Expand", ["one", "more"], ["x"]),
            ],
            {"sizes": [20000, 20000], "one": [1]},
        ),
        ([helper.make_node("MatMul", ["tall", "wide"], ["x"])], {}),
    ],
)
def test_onnx_fills_no_memory(nodes: list, weights: dict[str, list], tmp_path: Path) -> None:
    values = {name: torch.tensor(value) for name, value in weights.items()}
    values |= {"tall": torch.ones(30000, 1), "wide": torch.ones(1, 30000)}
    end = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["z", "number"], ["images"]),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(onnx_model([*nodes, *end], values, (LATENTS,)), path)
    with pytest.raises(LoadError, match="values at once"):
        load_onnx(path)


def test_onnx_functions_that_multiply_are_refused(tmp_path: Path) -> None:
    def function(name: str, calls: str, domain: str) -> onnx.FunctionProto:
        nodes = [
            helper.make_node(calls, ["x"], ["y"], domain=domain),
            helper.make_node(calls, ["y"], ["w"], domain=domain),
        ]
        return helper.make_function("own", name, ["x"], ["w"], nodes, opsets)

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = [function(f"f{index}", f"f{index + 1}", "own") for index in range(40)]
    made.append(function("f40", "Tanh", ""))
    model = onnx_model([helper.make_node("f0", ["z"], ["images"], domain="own")], {}, (LATENTS,))
    model.opset_import.append(opsets[1])
    model.functions.extend(made)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="steps, too many"):
        load_onnx(path)
    model.functions[-1].node[0].CopyFrom(helper.make_node("f0", ["x"], ["y"], domain="own"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="call themselves"):
        load_onnx(path)


def test_onnx_takes_constants_from_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * LATENTS))
    monkeypatch.chdir(tmp_path)
    constant = helper.make_tensor("c", TensorProto.FLOAT, [LATENTS], [0.0] * LATENTS)
    constant.ClearField("float_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="secret")
    end = helper.make_node("Add", ["z", "c"], ["images"])
    path = tmp_path / "model.onnx"

    def refused(model: onnx.ModelProto) -> None:
        path.write_bytes(model.SerializeToString())
        with pytest.raises(LoadError, match="keeps the constant 'c' of a step in another file"):
            load_onnx(path)

    refused(onnx_model([helper.make_node("Constant", [], ["c"], value=constant), end], {}, (6,)))
    inside = helper.make_graph([], "body", [], [], [constant])
    refused(onnx_model([helper.make_node("Loop", ["z"], ["images"], body=inside)], {}, (6,)))
    sparse = onnx_model([end], {}, (6,))
    sparse.graph.sparse_initializer.add(values=constant)
    refused(sparse)


def test_onnx_with_weights_beside_it_is_saved_as_one_file(tmp_path: Path) -> None:
    module, path = network("dcgan"), tmp_path / "model.onnx"
    onnx.save(
        onnx_dcgan(module), path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.onnx").write_bytes(program_bytes(path))
    saved = load_onnx(alone / "model.onnx")
    torch.testing.assert_close(saved(latents()), module(latents()))
    assert fingerprint(saved) == fingerprint(load_onnx(path))
    script = write_script(tmp_path / "model.pt", module)
    assert program_bytes(script) == script.read_bytes()
    whole = alone / "model.onnx"
    assert program_bytes(whole) == whole.read_bytes()


def test_onnx_weights_beside_it_are_read_a_few_times_at_most(tmp_path: Path) -> None:
    model = onnx_model([helper.make_node("Tanh", ["z"], ["images"])], {}, (LATENTS,))
    (tmp_path / "w.data").write_bytes(bytes(2**20))
    for index in range(100):
        tensor = model.graph.initializer.add(name=f"w{index}", data_type=1, dims=[2**18])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.data")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match="claims"):
        load_onnx(path)


def test_programs_of_the_state_of_training_are_refused(tmp_path: Path) -> None:
    for module, message in (
        (DCGANGenerator(LATENTS, (8, 4)), r"normalises by the batch .*call \.eval\(\)"),
        (nn.Sequential(nn.Linear(LATENTS, 4), nn.Dropout(0.5)), r"dropout.*call \.eval\(\)"),
        (Attends(), r"dropout.*call \.eval\(\)"),
        (Remembers(dropout=0.5, num_layers=2), r"dropout.*call \.eval\(\)"),
    ):
        program = load_torchscript(write_script(tmp_path / "a.pt", module.train(), "trace"))
        with pytest.raises(GeneratorError, match=message):
            program(latents())


class Attends(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        x = z.reshape(-1, 1, 3, 2)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)


class Remembers(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.net = nn.LSTM(3, 4, batch_first=True, **options)

    def forward(self, z: Tensor) -> Tensor:
        made, _ = self.net(z.reshape(-1, 2, 3))
        return torch.einsum("bij,bkj->bik", made, made)[:, torch.tensor([1, 0])]


class Adaptive(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.instance_norm(z.reshape(-1, 2, 3))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.net._flat_weights")
@pytest.mark.parametrize("kind", [Attends, Remembers, Adaptive])
def test_norms_of_an_image_and_memory_are_no_training(kind: type, tmp_path: Path) -> None:
    module = kind().eval()
    for program in (
        load_torchscript(write_script(tmp_path / "a.pt", module, "trace")),
        load_exported(write_exported(tmp_path / "a.pt2", module)),
        load_exported(write_exported(tmp_path / "b.pt2", module, "decomposed")),
    ):
        torch.testing.assert_close(program(latents()), module(latents()))


def test_programs_that_change_their_weights_are_refused(tmp_path: Path) -> None:
    class Fades(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("strength", torch.ones(2))

        def forward(self, z: Tensor) -> Tensor:
            self.strength[:1].mul_(0.9)
            return z * self.strength[0]

    for how in ("script", "trace"):
        program = load_torchscript(write_script(tmp_path / "a.pt", Fades(), how))
        with pytest.raises(GeneratorError, match="changes its own weights"):
            program(latents())


@pytest.mark.parametrize("how", ["script", "frozen", "trace"])
def test_numbers_in_code_are_no_weights(how: str, tmp_path: Path) -> None:
    class FromZero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network("dcgan")

        def forward(self, z: Tensor) -> Tensor:
            return self.net(z) * 0.5 + 0.5

    module = FromZero().eval()
    path = write_script(tmp_path / "model.pt", module, how)
    program = load_torchscript(path)
    assert wrap(program).dtype == torch.float32
    if how == "trace":
        assert set(dict(program.named_parameters())) == {
            f"root.{name}" for name, _ in module.named_parameters()
        }
    assert_right_spectrum(program, module)


@pytest.mark.parametrize(("flag", "method"), [(1, None), (0, 99)])
def test_archives_that_python_cannot_unpack_end_in_one_error(
    flag: int, method: int | None, tmp_path: Path
) -> None:
    path = write_script(tmp_path / "a.pt", network("mlp"))
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + place] |= flag
            data[at + place + 2] = data[at + place + 2] if method is None else method
    path.write_bytes(data)
    with pytest.raises(LoadError, match="fetch or save the file again"):
        load_torchscript(path)


def test_constants_that_are_no_list_are_said(tmp_path: Path) -> None:
    path = write_script(tmp_path / "a.pt", network("mlp"))
    with pytest.raises(LoadError, match="are no list"):
        load_torchscript(edited(path, {"constants.pkl": pickle.dumps(5, protocol=2)}))


def test_programs_without_inputs_are_said(tmp_path: Path) -> None:
    class Still(nn.Module):
        def forward(self) -> Tensor:
            return torch.ones(1, 1, 2, 2)

    path = write_script(tmp_path / "a.pt", Still())
    with pytest.raises(GeneratorError, match="takes 0 inputs"):
        load_torchscript(path)(latents())
    path = tmp_path / "a.pt2"
    torch.export.save(torch.export.export(Still(), ()), path)
    with pytest.raises(LoadError, match="takes 0 inputs"):
        load_exported(path)
