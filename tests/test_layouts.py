"""Model folders as people lay them out: where the weights lie, and under which names."""

import argparse
import json
import pathlib
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import PyTorchModelHubMixin
from processes import run_forked
from safetensors.torch import save_file
from tiny import run_pgmkit, write_tiny_generator
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import LoadError, OutputError, ParameterError, PgmkitNote, PgmkitWarning

DIM, SHAPE = 6, (1, 4, 4)


class Net(nn.Sequential):
    """A generator of somebody's own, with every kind of entry that a state dict has."""

    def __init__(self, width: int = 20) -> None:
        super().__init__(
            nn.Linear(DIM, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 16),
            nn.Tanh(),
            nn.Unflatten(1, SHAPE),
        )


class Wrapped(nn.Module):
    """The same network as an attribute, as most classes have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


def trained(seed: int = 0, cls: type[nn.Module] = Net) -> nn.Module:
    """A network whose batch norm has seen data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = cls()
        net(torch.randn(64, DIM))
    return net.eval()


RIGHT, OTHER = trained(0), trained(1)
Z = torch.randn(5, DIM, generator=torch.Generator().manual_seed(3))
SPECS = {"latent": DIM, "image": SHAPE}


def state(net: nn.Module = RIGHT, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value for name, value in net.state_dict().items()}


def discriminator(prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}0.weight": torch.zeros(1, 16), f"{prefix}0.bias": torch.zeros(1)}


def load(folder: Path | str, **options: Any) -> tuple[pgmkit.Generator, list[str]]:
    """Loads with `Net`; returns the generator, and what was noted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generator = pgmkit.load_generator(str(folder), **{"architecture": Net, **SPECS, **options})
    return generator, [str(w.message) for w in caught if issubclass(w.category, PgmkitNote)]


def assert_right(generator: pgmkit.Generator) -> None:
    assert torch.equal(generator(Z), RIGHT(Z))


def optimizer_state() -> dict[str, Any]:
    optimizer = torch.optim.Adam(RIGHT.parameters())
    sum(p.sum() for p in RIGHT.parameters()).backward()
    optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
    return {"state": {0: {"exp_avg": torch.zeros(20, DIM)}}, "param_groups": [{"lr": 1e-3}]}


CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "a bare state dict": state,
    "state_dict": lambda: {"state_dict": state(), "epoch": 3},
    "model_state_dict beside an optimizer": lambda: {
        "model_state_dict": state(),
        "optimizer_state_dict": optimizer_state(),
    },
    "netG_state_dict": lambda: {
        "netG_state_dict": state(),
        "netD_state_dict": discriminator(),
        "optimizerG": optimizer_state(),
    },
    "generator": lambda: {"generator": state(), "discriminator": discriminator()},
    "g_ema beside g and d": lambda: {"g": state(OTHER), "d": discriminator(), "g_ema": state()},
    "params_ema beside params": lambda: {"params": state(OTHER), "params_ema": state()},
    "GAN with G, GE and D": lambda: {
        "GAN": {**state(OTHER, "G."), **state(RIGHT, "GE."), **discriminator("D.")},
        "version": "1.5",
    },
    "nested twice": lambda: {"model": {"generator": state(), "critic": discriminator()}},
    "Lightning": lambda: {
        "state_dict": {**state(RIGHT, "generator."), **discriminator("discriminator.")},
        "hyper_parameters": {"lr": 1e-4},
        "global_step": 7,
    },
    "a numpy scalar and arguments beside": lambda: {
        "g_ema": state(),
        "fid": np.float64(7.1),
        "losses": np.arange(3),
        "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("runs")),
    },
    "DataParallel": lambda: state(RIGHT, "module."),
    "torch.compile": lambda: state(RIGHT, "_orig_mod."),
    "model.": lambda: state(RIGHT, "model."),
    "a compiled DataParallel in a checkpoint": lambda: {
        "state_dict": state(RIGHT, "module._orig_mod.")
    },
    "decoder beside an encoder": lambda: {
        **state(RIGHT, "decoder."),
        "encoder.0.weight": torch.zeros(3, 16),
        "fc_mu.weight": torch.zeros(DIM, 3),
        "fc_logvar.weight": torch.zeros(DIM, 3),
    },
    "ema_pytorch": lambda: {
        **state(OTHER, "online_model."),
        **state(RIGHT, "ema_model."),
        "initted": torch.tensor(True),
        "step": torch.tensor(10),
    },
    "total_ops left by counting": lambda: {
        **state(),
        "total_ops": torch.zeros(1, dtype=torch.float64),
        "0.total_params": torch.zeros(1, dtype=torch.float64),
    },
    "before num_batches_tracked": lambda: {
        name: value for name, value in state().items() if "num_batches" not in name
    },
    "names of another container": lambda: state(RIGHT, "layers.main."),
    "names that are all different": lambda: {
        f"block{int(name[0]) + 9}.{name[2:]}": value for name, value in state().items()
    },
}


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_as_people_save_them_load_without_a_word_of_where(
    tmp_path: Path, content: Callable[[], Any]
) -> None:
    torch.save(content(), tmp_path / "netG.pth")
    assert_right(load(tmp_path / "netG.pth")[0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("g_ema beside g and d", "took the averaged weights (EMA) 'g_ema' of"),
        ("params_ema beside params", "took the averaged weights (EMA) 'params_ema' of"),
        ("GAN with G, GE and D", "took the averaged weights (EMA) 'GE', not G, D"),
        ("Lightning", "took the generator 'generator', not discriminator"),
        (
            "decoder beside an encoder",
            "took the generator 'decoder', not encoder, fc_mu",
        ),
        ("names that are all different", "matched by their order, in which every shape fits"),
    ],
)
def test_what_was_chosen_is_said_and_kept(tmp_path: Path, name: str, said: str) -> None:
    torch.save(CHECKPOINTS[name](), tmp_path / "netG.pth")
    generator, notes = load(tmp_path / "netG.pth")
    assert any(said in note for note in notes)
    assert generator.provenance["notes"] == notes


def test_a_wrapper_that_nobody_misses_is_taken_off_in_silence(tmp_path: Path) -> None:
    torch.save(state(RIGHT, "module."), tmp_path / "netG.pth")
    assert load(tmp_path / "netG.pth")[1] == []


def test_names_of_a_class_with_an_attribute_fit_however_they_were_wrapped(tmp_path: Path) -> None:
    for number, prefix in enumerate(("net.", "module.net.", "", "generator.net.")):
        path = tmp_path / f"{number}.pth"
        torch.save(state(RIGHT, prefix), path)
        assert_right(load(path, architecture=Wrapped)[0])


def test_a_layer_of_another_shape_is_named_where_names_differ(tmp_path: Path) -> None:
    renamed = {f"main.{n}": v for n, v in state().items()}
    renamed["main.3.weight"] = torch.zeros(16, 21)
    torch.save(renamed, tmp_path / "g.pth")
    said = r"by their order, main\.3\.weight \(16, 21\) would be 3\.weight \(16, 20\)"
    with pytest.raises(LoadError, match=said):
        load(tmp_path / "g.pth")


def test_key_and_prefix_say_what_no_rule_could_know(tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    torch.save({"run1": {"a": state(OTHER), "b": state(RIGHT, "x.")}, "run2": state(OTHER)}, path)
    with pytest.raises(LoadError, match=r"several may be the generator.*--key run1"):
        load(path)
    assert_right(load(path, key="run1.b", prefix="x.")[0])
    assert torch.equal(load(path, key="run2")[0](Z), OTHER(Z))


def test_a_wrong_key_or_prefix_lists_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "g.pth"
    torch.save({"netG": state(RIGHT, "main."), "epoch": 3}, path)
    with pytest.raises(LoadError, match=r"no entry 'ema'; it holds netG \(9 entries\), epoch"):
        load(path, key="ema")
    with pytest.raises(LoadError, match=r"begins with 'module.'; .*'main.'"):
        load(path, prefix="module.")
    torch.save(state(RIGHT, "main."), path)
    with pytest.raises(LoadError, match=r"write prefix='main.' instead of key"):
        load(path, key="main")


def write_shards(folder: Path, suffix: str) -> None:
    parts = list(state().items())
    index = {}
    for number, part in enumerate((parts[:4], parts[4:]), 1):
        name = f"model-{number:05d}-of-00002.{suffix}"
        index |= dict.fromkeys(dict(part), name)
        write = save_file if suffix == "safetensors" else torch.save
        write(dict(part), folder / name)
    base = "model" if suffix == "safetensors" else "pytorch_model"
    path = folder / f"{base}.{suffix}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_one(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(state(), path)
        else:
            torch.save(state(), path)

    return write


def write_with_others(folder: Path) -> None:
    write_one("netG_epoch_24.pth")(folder)
    torch.save(discriminator(), folder / "netD_epoch_24.pth")
    torch.save(optimizer_state(), folder / "optimizer.pt")
    (folder / "README.md").write_text("a GAN")
    (folder / "train.py").write_text("raise SystemExit")


def write_twice(folder: Path) -> None:
    write_one("generator.pth")(folder)
    write_one("generator.safetensors")(folder)


FOLDERS: dict[str, Callable[[Path], None]] = {
    **{
        name: write_one(name)
        for name in (
            "model.safetensors",
            "pytorch_model.bin",
            "model.pt",
            "generator.pth",
            "generator.pt",
            "generator.pkl",
            "G.pth",
            "weights/netG.pth",
            "checkpoints/last.ckpt",
        )
    },
    "a discriminator and an optimizer beside": write_with_others,
    "two formats of the same": write_twice,
    "shards of safetensors": lambda folder: write_shards(folder, "safetensors"),
    "shards of torch files": lambda folder: write_shards(folder, "bin"),
}


@pytest.mark.parametrize("write", FOLDERS.values(), ids=FOLDERS)
def test_folders_and_repositories_with_weights_alone_load_given_an_architecture(
    tmp_path: Path, server: HubServer, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder)
    assert_right(load(folder)[0])
    commit = server.add("org/gan", folder)
    generator, _ = load("hf-hub:org/gan")
    assert_right(generator)
    assert generator.provenance["revision"] == commit
    assert not [path for path in server.downloads() if path.endswith((".py", ".md"))]


@pytest.mark.parametrize("name", ["GAN with G, GE and D", "Lightning", "nested twice"])
def test_wrapped_checkpoints_come_from_the_hub_too(
    tmp_path: Path, server: HubServer, name: str
) -> None:
    torch.save(CHECKPOINTS[name](), tmp_path / "netG.pth")
    server.add("org/gan", {"ckpt/netG.pth": (tmp_path / "netG.pth").read_bytes()})
    assert_right(load("hf-hub:org/gan@main")[0])
    assert_right(load(f"{server.url}/org/gan/blob/main/ckpt/netG.pth")[0])


def test_of_several_weight_files_one_has_to_be_named(tmp_path: Path) -> None:
    for epoch in (9, 10):
        torch.save(state(RIGHT if epoch == 10 else OTHER), tmp_path / f"netG_epoch_{epoch}.pth")
    with pytest.raises(LoadError, match=r"netG_epoch_9\.pth, netG_epoch_10\.pth; .*--weights net"):
        load(tmp_path)
    assert_right(load(tmp_path, weights="netG_epoch_10.pth")[0])
    with pytest.raises(LoadError, match=r"no file 'netG_epoch_1.pth'; did you mean"):
        load(tmp_path, weights="netG_epoch_1.pth")
    with pytest.raises(LoadError, match="must be a file in it"):
        load(tmp_path, weights="../netG.pth")


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"0.weight": "../secret.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="names files outside of its folder"):
        load(tmp_path)


class Mixed(nn.Module, PyTorchModelHubMixin):
    """A class of somebody's own that the Hub's mixin saves."""

    def __init__(self, latent_dim: int = 8, slope: float = 0.2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent_dim, 16), nn.LeakyReLU(slope), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).view(-1, 1, 4, 4)


def test_flat_arguments_of_the_hubs_mixin_are_taken(tmp_path: Path) -> None:
    module = Mixed(latent_dim=5, slope=-0.9)
    module.save_pretrained(tmp_path)
    with pytest.warns(PgmkitNote, match="5 normal dimensions, as latent_dim is 5"):
        generator = pgmkit.load_generator(str(tmp_path), architecture=Mixed, image="1x4x4:0,1")
    z = generator.sample_latents(8, seed=0)
    assert torch.equal(generator(z), module(z))
    assert generator.model_args == {"latent_dim": 5, "slope": -0.9}


def test_a_field_that_nobody_understands_is_refused(tmp_path: Path) -> None:
    Mixed().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "slop": 0.1}))
    with pytest.raises(LoadError, match="'slop', which is neither a field of pgmkit nor an arg"):
        pgmkit.load_generator(str(tmp_path), architecture=Mixed, latent=8, image=(1, 4, 4))
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_args": {}, "latents": {"dim": 6}}))
    with pytest.raises(LoadError, match="no field 'latents'; did you mean 'latent'"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_keep_their_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({n: v.to(dtype) for n, v in state().items()}, tmp_path / "model.safetensors")
    generator, _ = load(tmp_path)
    assert generator.dtype == dtype
    assert torch.equal(generator.module[0].weight, RIGHT[0].weight.to(dtype))


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "g.pth")
    before = torch.get_rng_state()
    load(tmp_path / "g.pth")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"latent_dim": 10**9},
        {"channels": [10**6]},
        {"channels": [30_000, 30_000]},
        {"channels": [1] * 100_000},
    ],
)
def test_what_is_built_is_bounded_by_the_weights(
    tmp_path: Path, arguments: Mapping[str, Any]
) -> None:
    torch.save(state(), tmp_path / "g.pth")
    dim = arguments.get("latent_dim", 64)
    with pytest.raises(LoadError, match=r"ask for a network of .* and the weights are 557 in 9"):
        load(tmp_path / "g.pth", architecture="dcgan", model_args=arguments, latent=dim)


def test_a_file_cannot_claim_more_than_it_holds(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1).expand(10**12)}, tmp_path / "g.pth")
    with pytest.raises(LoadError, match="claims 4,000,000,000,000 bytes"):
        load(tmp_path / "g.pth")


def test_a_class_is_imported_for_the_user_and_never_for_a_folder(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "model.pth")
    generator, _ = load(tmp_path, architecture="test_layouts:Net")
    assert_right(generator)
    assert generator.provenance["class"] == "test_layouts:Net"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_layouts:Net"}))
    with pytest.raises(LookupError, match=r"no architecture .* is called 'test_layouts:Net'"):
        load(tmp_path, architecture=None)
    with pytest.raises(ParameterError, match="cannot be imported: ModuleNotFoundError"):
        load(tmp_path, architecture="no.such.module:Net")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent": "uniform:x"}, "latent is a number of dimensions, such as 100, uniform:100"),
        ({"latent": {"dim": 6, "sigma": 1}}, "latent has no setting 'sigma'"),
        ({"image": "4 by 4"}, "image is a shape C×H×W, such as 3x64x64"),
        ({"image": (4, 4)}, r"image.shape must be \(C, H, W\)"),
        ({"model_args": ["width"]}, "model_args must be a table"),
        ({"weights": 3}, "weights must be a string"),
        ({"architecture": RIGHT}, "not the network itself"),
    ],
)
def test_options_of_another_form_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    torch.save(state(), tmp_path / "model.pth")
    with pytest.raises((ParameterError, LoadError), match=said):
        load(tmp_path, **options)


def test_options_mean_the_same_however_they_are_said(tmp_path: Path) -> None:
    torch.save({"netG": state(RIGHT, "x.")}, tmp_path / "a.pth")
    torch.save(state(OTHER), tmp_path / "b.pth")
    lines = ['architecture = "test_layouts:Net"', "latent = 6", 'image = "1x4x4"']
    more = [f'source = "{tmp_path}"', 'weights = "a.pth"', 'key = "netG"', 'prefix = "x."']
    (tmp_path / "g.toml").write_text("\n".join([*lines, *more]))
    flags = ("--architecture", "test_layouts:Net", "--latent", "6", "--image", "1x4x4")
    flags += ("--weights", "a.pth", "--key", "netG", "--prefix", "x.")
    runs = [
        ("spectrum", "compute", "--generator", tmp_path / "g.toml"),
        ("spectrum", "compute", tmp_path, *flags),
    ]
    found = []
    for number, words in enumerate(runs):
        out = tmp_path / f"spectrum{number}"
        done = run_pgmkit(*words, "--latents", 20, "--no-cache", "-o", out, "--json")
        assert done.code == 0, done.stderr
        found.append(json.loads(done.stdout)["settings"]["generator"])
    given, _ = load(tmp_path, weights="a.pth", key="netG", prefix="x.")
    assert found == [given.fingerprint()] * 2


def test_load_gives_what_is_there(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "g.pth")
    generator = pgmkit.load(tmp_path / "g.pth", architecture=Net, **SPECS)
    assert isinstance(generator, pgmkit.Generator)
    pgmkit.shatter(generator, sampler="kmeans-gmm", clusters=2, latents=60).save_pretrained(
        tmp_path / "out"
    )
    shattered = pgmkit.load(tmp_path / "out", architecture=Net)
    assert isinstance(shattered, pgmkit.ShatteredGenerator)
    assert_right(shattered.generator)
    with pytest.raises(ParameterError, match="whose folder says its latent; leave it out"):
        pgmkit.load(tmp_path / "out", architecture=Net, latent=6)
    with pytest.raises(ParameterError, match="no option 'latents'; did you mean 'latent'"):
        pgmkit.load(tmp_path / "g.pth", latents=6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_a_network_would_misread_are_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    changed = {n: v.to(dtype) if n == "0.weight" else v for n, v in state().items()}
    torch.save(changed, tmp_path / "g.pth")
    with pytest.raises(LoadError, match=r"of another type: 0\.weight \w+ instead of float32"):
        load(tmp_path / "g.pth")


def test_a_weight_that_is_no_number_is_said(tmp_path: Path) -> None:
    changed = {n: v.clone() for n, v in state().items()}
    changed["3.bias"][2] = float("inf")
    torch.save(changed, tmp_path / "g.pth")
    with pytest.warns(PgmkitWarning, match=r"infinite or no numbers are among the weights 3\.bias"):
        pgmkit.load_generator(str(tmp_path / "g.pth"), architecture=Net, **SPECS)


def script(folder: Path) -> None:
    torch.jit.script(RIGHT).save(str(folder / "generator.pt"))


def export(folder: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(RIGHT, (torch.zeros(3, DIM),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "generator.pt2")


@pytest.mark.parametrize("write", [script, export])
def test_a_program_is_a_generator_and_is_saved_as_it_is(
    tmp_path: Path, server: HubServer, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    write(folder)
    generator, _ = load(folder, architecture=None)
    torch.testing.assert_close(generator(Z), RIGHT(Z))
    shattered = pgmkit.shatter(generator, sampler="kmeans-gmm", clusters=2, latents=60)
    server.add("me/nothing", {"README.md": b""})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", server.token)
        shattered.push_to_hub("me/program")
    pulled = pgmkit.load("hf-hub:me/program")
    assert isinstance(pulled, pgmkit.ShatteredGenerator)
    assert torch.equal(pulled.sample(5), shattered.sample(5))
    (file,) = folder.iterdir()
    assert server.files("me/program")[f"program{file.suffix}"] == file.read_bytes()
    file.write_bytes(b"another")
    with pytest.raises(OutputError, match="has changed since"):
        shattered.save_pretrained(tmp_path / "out")


def test_tensors_of_a_program_fill_a_class(tmp_path: Path) -> None:
    script(tmp_path)
    assert_right(load(tmp_path)[0])


class Evil:
    """Asks NumPy for an array that takes a number for a pointer."""

    def __reduce__(self) -> tuple[Any, ...]:
        pointers = np.dtype("V8"), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 1)

        class Type:
            def __reduce__(self) -> tuple[Any, ...]:
                return np.dtype, ("V8", False, True), pointers[1]

        state = (1, (1,), Type(), False, struct.pack("<Q", 0x4141414141414141))
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


def test_nothing_of_numpy_is_built_from_a_file(tmp_path: Path) -> None:
    torch.save({"netG": state(), "meta": Evil()}, tmp_path / "netG.pth")
    command = "import sys, pathlib; from pgmkit.loading.weights import read_checkpoint as r; "
    command += "x = r(pathlib.Path(sys.argv[1])); print(type(x['meta']).__module__); del x"
    done = run_forked("-c", command, tmp_path / "netG.pth")
    assert done.code == 0, done.stderr
    assert done.stdout == "pgmkit.loading.weights\n"
    assert_right(load(tmp_path / "netG.pth")[0])


def test_a_file_that_grows_as_it_is_read_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2**24 + 2**20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "g.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    (tmp_path / "plain.pth").unlink()
    assert (tmp_path / "g.pth").stat().st_size < 2**20
    with pytest.raises(LoadError, match="is a zip file that torch did not write"):
        load(tmp_path / "g.pth")


def test_loose_weights_beside_a_wrapper_are_not_dropped(tmp_path: Path) -> None:
    content = {**state(RIGHT, "generator."), "scale": torch.ones(1), "d.0.bias": torch.ones(1)}
    torch.save(content, tmp_path / "g.pth")
    with pytest.raises(LoadError, match="unknown: "):
        load(tmp_path / "g.pth", architecture="dcgan", model_args={"latent_dim": DIM})


def test_loose_tensors_beside_networks_do_not_hide_them(tmp_path: Path) -> None:
    content = {"netG": state(), "netD": discriminator(), "fixed_noise": torch.zeros(4, DIM)}
    torch.save(content, tmp_path / "g.pth")
    assert_right(load(tmp_path / "g.pth")[0])


def test_a_part_with_the_names_of_the_module_is_found_among_others(tmp_path: Path) -> None:
    content = {
        **state(RIGHT, "painter."),
        "criterion.pos_weight": torch.ones(1),
        "lpips_net.lin.weight": torch.ones(3, 3),
    }
    torch.save(content, tmp_path / "g.ckpt")
    generator, notes = load(tmp_path / "g.ckpt")
    assert_right(generator)
    assert notes == ["took the weights under 'painter', whose names are the module's"]


def test_layers_of_one_shape_are_not_told_apart_by_sorted_names(tmp_path: Path) -> None:
    class Deep(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                nn.Linear(DIM, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()
            )

    names = {"0": "first", "1": "second", "3": "middle"}  # sorted, they would be 0, 3, 1
    swapped = {"0": "a", "1": "z", "3": "m"}
    weights = Deep().state_dict()
    for number, stems in enumerate((names, swapped)):
        renamed = {f"{stems[n[0]]}.{n[2:]}": v for n, v in weights.items()}
        path = tmp_path / f"{number}.safetensors"
        save_file(renamed, path)
        with pytest.raises(LoadError, match="do not fit Deep"):
            load(path, architecture=Deep)


def test_averaged_weights_beside_a_usual_name_are_told_of(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "model.pt")
    torch.save(state(OTHER), tmp_path / "model_ema.pt")
    generator, notes = load(tmp_path)
    assert_right(generator)
    assert "--weights model_ema.pt" in notes[0]


@pytest.mark.parametrize("option", [{"key": "x"}, {"prefix": "y."}, {"model_args": {"a": 1}}])
def test_options_that_mean_nothing_for_a_program_are_refused(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    script(tmp_path)
    with pytest.raises(LoadError, match="means nothing for a program"):
        load(tmp_path, architecture=None, **option)


def test_a_run_does_not_continue_with_another_generator(tmp_path: Path) -> None:
    """The weights are the same; the prior in config.json is not."""
    write_tiny_generator(tmp_path / "model")
    words = ("shatter", tmp_path / "model", "-q", "--latents", 60, "--sampler", "kmeans-gmm")
    words += ("--clusters", 2, "--density", "none", "-o", tmp_path / "out")
    assert run_pgmkit(*words).code == 0
    assert run_pgmkit(*words).code == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["latent"]["std"] = 0.5
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    again = run_pgmkit(*words)
    assert again.code == 1
    assert "holds a run with generator" in again.stderr


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_no_inferred_network_has_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    changed = {n: v.to(dtype) if n == "0.weight" else v for n, v in state().items()}
    torch.save(changed, tmp_path / "g.pth")
    with pytest.raises(LoadError, match=r"0\.weight is of type \w+.*--architecture package"):
        load(tmp_path / "g.pth", architecture="auto", latent=None, image=None)


def test_a_prior_that_is_not_the_networks_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "g.pth")
    with pytest.raises(LoadError, match="has 1000000000 dimensions, and its latent_dim is 64"):
        load(tmp_path / "g.pth", architecture="dcgan", model_args={"latent_dim": 64}, latent=10**9)
