"""What identifies a generator: all that changes its map, and nothing else."""

import argparse
import copy
import enum
import functools
import itertools
import linecache
import os
import subprocess
import sys
import time
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import OutputError, ParameterError
from pgmkit.spectrum.landmarks import agree, landmarks

PSI = 1.0
PLACE = "PSI_OF_A_TEST"
SEEN: list[int] = []
NUMBERS = itertools.count()


def generator_of(module: nn.Module, name: str = "mine") -> pgmkit.Generator:
    return pgmkit.Generator(
        module, latent=pgmkit.LatentSpec(3), image=pgmkit.ImageSpec((1, 4, 4)), name=name
    )


def fingerprint(module: nn.Module) -> str:
    return generator_of(module).fingerprint()


def seeded_linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(3, 16)


class Net(nn.Module):
    def __init__(self, psi: Any = 1.0) -> None:
        super().__init__()
        self.net = seeded_linear()
        self.psi = psi

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.psi * z).tanh()


CALLED = "import types\ndef scaled(z, config): return z * config.psi\n"
CALLER = "def part(z, config=options): return scaled(z, config)\n"
SQUARE = """
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x
"""


def written(
    forward: str, before: str = "", attributes: str = "pass", home: str = "written_elsewhere"
) -> nn.Module:
    """Returns a module of a class that stands in a file of this text; always the same class name.

    Args:
        forward: what it returns.
        before: what stands above the class.
        attributes: what is set when it is made.
        home: the name of the module that it stands in.
    """
    text = (
        f"import torch\nfrom torch import nn\n{before}\n"
        "class Written(nn.Module):\n"
        "    def __init__(self, linear):\n"
        "        super().__init__()\n"
        "        self.net = linear\n"
        f"        {attributes}\n"
        "    def forward(self, z):\n"
        f"        return {forward}\n"
    )
    filename = f"<written {next(NUMBERS)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"__name__": home}
    exec(compile(text, filename, "exec"), scope)
    module = scope["Written"](seeded_linear())
    assert isinstance(module, nn.Module)
    return module


def edited(module: nn.Module) -> nn.Module:
    """Puts a comment at the head of the file that the class of a module stands in."""
    filename = type(module).forward.__code__.co_filename
    size, _, lines, _ = cast(Any, linecache.cache[filename])
    linecache.cache[filename] = (size, None, ["# Changed.\n", *lines], filename)
    return module


class Buffered(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.net = seeded_linear()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z) * self.scale


def closed_over(psi: Any) -> nn.Module:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = seeded_linear()

        def forward(self, z: Tensor) -> Tensor:
            return self.net(psi * z)

    return Closed()


def hooked(factor: float) -> nn.Module:
    module = seeded_linear()
    module.register_forward_hook(lambda _module, _inputs, output: output * factor)
    return module


def replaced(factor: float) -> nn.Module:
    module = Net()
    module.forward = lambda z: Net.forward(module, z) * factor  # type: ignore[method-assign]
    return module


class Config:
    def __init__(self, psi: float, path: str = "") -> None:
        self.psi = psi
        self.path = path


class Configured(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.net = seeded_linear()
        self.config = config

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.config.psi * z)


class Slotted:
    __slots__ = ("psi",)

    def __init__(self, psi: float) -> None:
        self.psi = psi

    def scaled(self, z: Tensor) -> Tensor:
        return self.psi * z


class Clamped(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.config.limit)


def shared(limit: float) -> nn.Module:
    """Returns two layers with one config, of which the second alone reads the limit."""
    config = types.SimpleNamespace(psi=1.0, limit=limit)
    return nn.Sequential(Configured(config), Clamped(config))


def doubled(x: Tensor) -> Tensor:
    return x * 2


def halved(x: Tensor) -> Tensor:
    return x / 2


def partly_hooked(factor: float) -> nn.Module:
    def hook(factor: float, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * factor

    module = seeded_linear()
    module.register_forward_hook(functools.partial(hook, factor))
    return module


def limited_by_hook(limit: float) -> nn.Module:
    module = seeded_linear()
    module.register_forward_hook(lambda _module, _inputs, output: output.clamp(max=limit))
    return module


class Base(nn.Module):
    def __init__(self, psi: float = 1.0) -> None:
        super().__init__()
        self.net = seeded_linear()
        self._psi = psi

    @property
    def truncation(self) -> float:
        return self._psi

    def part(self, z: Tensor) -> Tensor:
        return self.net(self.truncation * z)

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        return self.part(z)


class Derived(Base):
    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = super().forward(z) * 2
        return out


OTHERS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "an attribute": lambda: (Net(1.0), Net(0.1)),
    "an attribute that is a tensor": lambda: (Net(torch.ones(3)), Net(torch.ones(3) * 2)),
    "a private attribute behind a property": lambda: (Base(1.0), Base(0.5)),
    "an attribute that an inherited method reads": lambda: (Derived(1.0), Derived(0.5)),
    "an attribute of a config": lambda: (Configured(Config(1.0)), Configured(Config(0.5))),
    "a buffer that is not saved": lambda: (Buffered(1.0), Buffered(3.0)),
    "a number in a closure": lambda: (closed_over(1.0), closed_over(0.5)),
    "a tensor in a closure": lambda: (closed_over(torch.ones(1)), closed_over(torch.zeros(1))),
    "a hook": lambda: (hooked(2.0), hooked(3.0)),
    "a hook or none": lambda: (seeded_linear(), hooked(3.0)),
    "a forward of the instance": lambda: (replaced(2.0), replaced(3.0)),
    "a method or the inherited one": lambda: (Base(), Derived()),
    "code": lambda: (written("self.net(z)"), written("self.net(z).tanh()")),
    "a constant in the code": lambda: (written("self.net(z * 2)"), written("self.net(z * 3)")),
    "a global constant": lambda: (
        written("self.net(z * PSI)", "PSI = 1.0"),
        written("self.net(z * PSI)", "PSI = 0.5"),
    ),
    "a function that is called": lambda: (
        written("self.net(part(z))", "def part(z): return z * 2"),
        written("self.net(part(z))", "def part(z): return z * 3"),
    ),
    "a function of torch": lambda: (
        written("self.act(self.net(z))", attributes="self.act = torch.tanh"),
        written("self.act(self.net(z))", attributes="self.act = torch.relu"),
    ),
    "a default": lambda: (
        written("self.net(part(z))", "def part(z, psi=1.0): return z * psi"),
        written("self.net(part(z))", "def part(z, psi=0.5): return z * psi"),
    ),
    "the order of layers": lambda: (
        nn.Sequential(seeded_linear(), nn.ReLU(), nn.Tanh()),
        nn.Sequential(seeded_linear(), nn.Tanh(), nn.ReLU()),
    ),
    "a number of a layer": lambda: (
        nn.Sequential(seeded_linear(), nn.LeakyReLU(0.1)),
        nn.Sequential(seeded_linear(), nn.LeakyReLU(0.2)),
    ),
    "precision": lambda: (seeded_linear(), seeded_linear().double()),
    "an attribute of a config that two layers share": lambda: (shared(6.0), shared(4.0)),
    "an attribute that a method of a config reads": lambda: (
        with_attribute(Net(), "psi", Slotted(1.0).scaled),
        with_attribute(Net(), "psi", Slotted(0.5).scaled),
    ),
    "an attribute of what a partial function has": lambda: (
        Net(functools.partial(Slotted.scaled, Slotted(1.0))),
        Net(functools.partial(Slotted.scaled, Slotted(0.5))),
    ),
    "an attribute of a default that a called function reads": lambda: (
        written("part(z)", f"{CALLED}options = types.SimpleNamespace(psi=1.0)\n{CALLER}"),
        written("part(z)", f"{CALLED}options = types.SimpleNamespace(psi=0.5)\n{CALLER}"),
    ),
    "a namespace": lambda: (
        Configured(argparse.Namespace(psi=1.0)),
        Configured(argparse.Namespace(psi=0.5)),
    ),
    "slots": lambda: (Configured(Slotted(1.0)), Configured(Slotted(0.5))),
    "the value of an enumeration": lambda: (
        Configured(enum.Enum("Limit", {"HIGH": 6.0})["HIGH"]),
        Configured(enum.Enum("Limit", {"HIGH": 4.0})["HIGH"]),
    ),
    "a deque": lambda: (Net(deque([1.0])), Net(deque([0.5]))),
    "a range": lambda: (Net(range(3)), Net(range(0, 6, 2))),
    "a fraction": lambda: (Net(Fraction(1, 2)), Net(Fraction(1, 3))),
    "a private key": lambda: (
        written("self.net(z * self.psi['_psi'])", attributes="self.psi = {'_psi': 1.0}"),
        written("self.net(z * self.psi['_psi'])", attributes="self.psi = {'_psi': 0.5}"),
    ),
    "a scripted function": lambda: (Net(scripted(doubled)), Net(scripted(halved))),
    "an attribute of a global class": lambda: (
        written("self.net(z * Options.psi)", "class Options: psi = 1.0"),
        written("self.net(z * Options.psi)", "class Options: psi = 0.5"),
    ),
    "an attribute of a function": lambda: (
        written("part(self.net(z))", "def part(x): return x * part.psi\npart.psi = 1.0"),
        written("part(self.net(z))", "def part(x): return x * part.psi\npart.psi = 0.5"),
    ),
    "a global list": lambda: (
        written("self.net(z * PSI[0])", "PSI = [1.0]"),
        written("self.net(z * PSI[0])", "PSI = [0.5]"),
    ),
    "the order of a dictionary": lambda: (
        Net({"a": torch.relu, "b": torch.neg}),
        Net({"b": torch.neg, "a": torch.relu}),
    ),
    "the order of a dictionary of layers": lambda: (
        Net(nn.ModuleDict({"a": nn.ReLU(), "b": nn.Tanh()})),
        Net(nn.ModuleDict({"b": nn.Tanh(), "a": nn.ReLU()})),
    ),
    "a partial hook": lambda: (partly_hooked(2.0), partly_hooked(3.0)),
    "a hook that few images reach": lambda: (limited_by_hook(2.0), limited_by_hook(1.9)),
    "a scripted attribute": lambda: (scripted(Net(1.0)), scripted(Net(0.5))),
}


def scripted(code: Any) -> Any:
    with pytest.warns(FutureWarning, match="torch.jit"):
        return torch.jit.script(code.eval() if isinstance(code, nn.Module) else code)


@pytest.mark.parametrize("what", OTHERS)
def test_generators_that_compute_something_else_have_another_fingerprint(what: str) -> None:
    one, other = OTHERS[what]()
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(OTHERS[what]()[0])


class Counting(Net):
    """Notes what it has done, as a cache or a counter does."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.last: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        self.runs += 1
        self.last = z
        return super().forward(z)


class Remembering(Net):
    """Puts what it has made into containers of its own and into a global one."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: dict[tuple[int, str], Tensor] = {}
        self.rows: dict[int, Tensor] = {}
        self.sizes: list[int] = []
        self.counts = [0]

    def forward(self, z: Tensor) -> Tensor:
        key = (len(z), str(z.dtype))
        if key not in self.scales:
            self.scales[len(z), str(z.dtype)] = torch.ones(len(z), 1)
        rows = self.rows
        rows[len(z)] = z
        self.sizes.append(len(z))
        self.counts[0] += 1
        SEEN.append(len(z))
        return super().forward(z) * self.scales[key]


class Reordered(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        parts = {"a": seeded_linear(), "b": nn.Tanh()}
        for name in order:
            self.add_module(name, parts[name])

    def forward(self, z: Tensor) -> Tensor:
        return self.get_submodule("b")(self.get_submodule("a")(z))


def run_once(module: nn.Module) -> nn.Module:
    module(torch.ones(2, 3))
    return module


def with_attribute(module: nn.Module, name: str, value: object) -> nn.Module:
    setattr(module, name, value)
    return module


def watched() -> nn.Module:
    module = Net()
    seen: list[Any] = []
    module.net.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    module.net.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    module.net.register_full_backward_hook(lambda *_: None)
    return module


def normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        norm: nn.Module = nn.utils.weight_norm(seeded_linear())
    return norm


SAME: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "made twice": lambda: (Net(), Net()),
    "copied": lambda: (Net(), copy.deepcopy(Net())),
    "whole numbers": lambda: (Net(1), Net(1.0)),
    "lists for tuples": lambda: (Net((1, 2)), Net([1, 2])),
    "an attribute that nothing reads": lambda: (Net(), with_attribute(Net(), "title", "x")),
    "in a loop of references": lambda: (Net(), with_attribute(Net(), "itself", [Net()])),
    "a path in a config": lambda: (Configured(Config(1.0)), Configured(Config(1.0, "/here"))),
    "has run": lambda: (Counting(), run_once(run_once(Counting()))),
    "has filled its caches": lambda: (Remembering(), run_once(Remembering())),
    "a global name that is an attribute elsewhere": lambda: (
        written("self.net(z * self.psi)", attributes="self.psi = 1.0"),
        written("self.net(z * self.psi)", "psi = net = z = 0.5", attributes="self.psi = 1.0"),
    ),
    "module of a class": lambda: (
        written("Square.apply(self.net(z))", SQUARE),
        written("Square.apply(self.net(z))", SQUARE, home="__main__"),
    ),
    "a comment above": lambda: (written("self.net(z)"), edited(written("self.net(z)"))),
    "old weight norm that has run": lambda: (normed(), run_once(normed())),
    "order of construction": lambda: (Reordered("ab"), Reordered("ba")),
    "names of layers": lambda: (
        nn.Sequential(seeded_linear(), nn.Tanh()),
        nn.Sequential(OrderedDict(first=seeded_linear(), second=nn.Tanh())),
    ),
    "in place": lambda: (
        nn.Sequential(seeded_linear(), nn.ReLU()),
        nn.Sequential(seeded_linear(), nn.ReLU(inplace=True)),
    ),
    "gradients on": lambda: (Net().requires_grad_(False), Net()),
    "hooks that only look": lambda: (Net(), watched()),
    "compiled": lambda: (Net(), torch.compile(Net())),  # type: ignore[dict-item]
    "comments and docstrings": lambda: (
        written("self.net(part(z))", "def part(z):\n    return z * 2"),
        written("self.net(part(z))", '# Why.\ndef part(z):\n    """What."""\n    return z  *  2'),
    ),
}


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_change_the_map_does_not_change_the_fingerprint(what: str) -> None:
    one, other = SAME[what]()
    assert fingerprint(one) == fingerprint(other)


def test_names_and_memory_layout_do_not_count() -> None:
    def convolutional() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 1, 4))

    plain = generator_of(convolutional())
    other = generator_of(convolutional().to(memory_format=torch.channels_last), name="yours")
    assert plain.fingerprint() == other.fingerprint()


def test_a_single_value_may_lie_in_memory_as_it_will() -> None:
    plain, spread = Net(), Net()
    plain.register_buffer("shift", torch.ones(1))
    spread.register_buffer("shift", torch.ones(()).expand(1))
    assert spread.shift.stride() == (0,)
    assert fingerprint(plain) == fingerprint(spread)


def test_the_fingerprint_lasts_while_the_generator_is_used() -> None:
    generator = generator_of(Counting())
    before = generator.fingerprint()
    spectrum = pgmkit.compute_spectrum(generator, latents=300, seed=0)
    assert generator.fingerprint() == before
    pgmkit.shatter(generator, spectrum=spectrum, clusters=2, sampler="kmeans-gmm")


def test_a_generator_that_is_saved_and_loaded_takes_its_own_spectrum(tmp_path: Path) -> None:
    module = nn.Sequential(seeded_linear(), nn.Tanh())
    shattered = pgmkit.shatter(
        generator_of(module), latents=300, clusters=2, sampler="kmeans-gmm", seed=0
    )
    shattered.save_pretrained(tmp_path)
    loaded = pgmkit.load_generator(
        f"local-dir:{tmp_path}", architecture=lambda: nn.Sequential(nn.Linear(3, 16), nn.Tanh())
    )
    assert loaded.fingerprint() == shattered.generator.fingerprint()
    pgmkit.shatter(loaded, spectrum=shattered.spectrum, clusters=2, sampler="kmeans-gmm")


def test_a_scripted_generator_keeps_its_fingerprint_when_it_is_saved(tmp_path: Path) -> None:
    script: Any = scripted(nn.Sequential(Net(), nn.BatchNorm1d(16)))
    script.save(str(tmp_path / "net.pt"))
    with pytest.warns(FutureWarning, match="torch.jit"):
        loaded = torch.jit.load(str(tmp_path / "net.pt"))
    assert fingerprint(script) == fingerprint(loaded)


def test_a_program_in_a_file_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    found = []
    for place, psi in (("here", 1.0), ("there", 1.0), ("other", 0.5)):
        scripted(Net(psi)).save(str(tmp_path / f"{place}.pt"))  # type: ignore[operator]
        specs = {"latent": pgmkit.LatentSpec(3), "image": pgmkit.ImageSpec((1, 4, 4))}
        generator = pgmkit.load_generator(str(tmp_path / f"{place}.pt"), **specs)
        found.append(generator.fingerprint())
    assert found[0] == found[1] != found[2]


def test_functions_of_other_packages_count_by_their_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "package_of_another"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '1'\ndef part(z):\n    return z * 2\n")
    monkeypatch.syspath_prepend(str(package.parent))
    module = written("self.net(part(z))", "from package_of_another import part")
    before = fingerprint(module)
    assert fingerprint(module) == before
    monkeypatch.setattr("package_of_another.__version__", "2")
    assert fingerprint(module) != before


def test_a_file_that_was_edited_after_import_is_not_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    text = "def part(z):\n    return z * 2\n"
    scope: dict[str, Any] = {"__name__": "edited"}
    path.write_text(text.replace("2", "3"))
    exec(compile(text, str(path), "exec"), scope)
    other: dict[str, Any] = {"__name__": "edited"}
    exec(compile(text.replace("2", "3"), str(path), "exec"), other)
    modules = [closed_over(1.0) for _ in range(2)]
    for module, part in zip(modules, (scope["part"], other["part"]), strict=True):
        module.forward = part  # type: ignore[method-assign]
    assert fingerprint(modules[0]) != fingerprint(modules[1])


def test_code_without_a_file_has_one_fingerprint_in_all_processes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one that orders sets as this one does not, too."""
    text = (
        "import torch, pgmkit\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, z):\n"
        f"        return z if str(z.dtype) in {set('abcdefghijklmnopqrstuvwxyz')} else z * 2\n"
        "toy = pgmkit.Generator(Net(), pgmkit.LatentSpec(4), pgmkit.ImageSpec((1, 2, 2)))\n"
        "print(toy.fingerprint())\n"
    )
    exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
    other = subprocess.run(
        [sys.executable, "-c", text],
        env={
            **os.environ,
            "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == capsys.readouterr().out


def test_the_fingerprint_of_many_weights_takes_less_than_a_second() -> None:
    generator = pgmkit.Generator(
        nn.Sequential(*[nn.Linear(1600, 1600, bias=False) for _ in range(10)]),
        pgmkit.LatentSpec(1600),
        pgmkit.ImageSpec((1, 40, 40)),
    )
    started = time.process_time()
    generator.fingerprint()
    assert (
        time.process_time() - started < 1
    )  # 26 million; a hundred take 0.4 s when nothing else runs


class Hidden(nn.Module):
    """Reads a number from where no fingerprint looks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = seeded_linear()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(float(os.environ[PLACE]) * z)


@pytest.fixture
def spectrum_of_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pgmkit.Spectrum:
    """Computes the spectrum of a generator, and then changes what that computes."""
    monkeypatch.setenv(PLACE, "1")
    spectrum = pgmkit.compute_spectrum(
        generator_of(Hidden()), latents=40, cache=True, out=tmp_path / "spectrum"
    )
    before = fingerprint(Hidden())
    monkeypatch.setenv(PLACE, "0.1")
    assert fingerprint(Hidden()) == before
    return spectrum


def test_images_tell_apart_what_the_fingerprint_cannot(
    spectrum_of_another: pgmkit.Spectrum, tmp_path: Path
) -> None:
    generator = generator_of(Hidden())
    with pytest.raises(ParameterError, match="makes other images"):
        pgmkit.shatter(generator, spectrum=spectrum_of_another, clusters=2)
    with pytest.raises(OutputError, match="makes other images"):
        pgmkit.compute_spectrum(generator, latents=40, out=tmp_path / "spectrum")
    for _ in range(2):
        cached = pgmkit.compute_spectrum(generator, latents=40, cache=True)
        ratio = cached.singular_values / spectrum_of_another.singular_values
        torch.testing.assert_close(ratio, torch.full_like(ratio, 0.1), rtol=1e-4, atol=0)


def test_landmarks_agree_up_to_rounding_only() -> None:
    own = landmarks(generator_of(Net()))
    assert len(own) == 64
    assert agree([value * (1 + 1e-5) for value in own], own)
    assert not agree(landmarks(generator_of(Net(1.0005))), own)
    assert not agree([*own[:-1], own[-1] + 1e-3], own)
    for damaged in (None, "text", [], own[:3], [own], ["a"] * 64, [float("nan")] * 64):
        assert not agree(damaged, own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_landmarks_of_half_precision_are_those_of_its_weights_in_float32(
    dtype: torch.dtype,
) -> None:
    own = landmarks(generator_of(Net().to(dtype)))
    assert agree(landmarks(generator_of(Net().to(dtype).float())), own)
    assert not agree(landmarks(generator_of(Net(1.001).to(dtype))), own)


def test_landmarks_see_a_limit_that_few_images_reach() -> None:
    z = generator_of(Net()).sample_latents(64, seed=0)
    net = seeded_linear().requires_grad_(False)
    limit = float(net(z).abs().amax(dim=1).topk(3).values[-1])
    assert not (net(z[:2]).abs() > limit).any()
    limited = nn.Sequential(seeded_linear(), nn.Hardtanh(-limit, limit))
    own = landmarks(generator_of(seeded_linear()))
    assert not agree(landmarks(generator_of(limited)), own)


def test_images_that_are_not_finite_do_not_make_landmarks_disagree() -> None:
    class Logarithm(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).abs().log() + (z[:, :1] > 1.5) * torch.inf

    own = landmarks(generator_of(Logarithm(3, 16)))
    assert 0.0 in own
    assert agree(own, own)


def test_a_hook_can_be_removed_after_the_fingerprint() -> None:
    module = seeded_linear()
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: output * 2),
        module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,)),
    ]
    generator = generator_of(module)
    hooked = generator.fingerprint()
    for handle in handles:
        handle.remove()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert generator.fingerprint() == fingerprint(seeded_linear()) != hooked
