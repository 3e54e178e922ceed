"""Architectures worked out from state dicts, and the generator that is spelt out in records."""

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from wild_networks import LAYOUTS, Wild, pytorch_example, spectral

import pgmkit
from pgmkit.errors import LoadError, ParameterError
from pgmkit.loading.inference import Inferred, infer, search
from pgmkit.loading.inference.parts import read_parts
from pgmkit.plugins import build

pytestmark = pytest.mark.usefixtures("one_thread")

_QUICK = ("norms registered apart", "an MLP with eps 0.8", "a flat VAE", "a β-VAE without norms")
_NO_EVIDENCE = {"a β-VAE without norms", "a flat VAE", "weight norm", "instance norm"}


@cache
def _trained(layout: str) -> tuple[Wild, nn.Module]:
    wild = LAYOUTS[layout]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wild, wild.trained()


@cache
def _inferred(layout: str) -> Inferred:
    """Infers a network from less evidence than users have: fewer latents, and less work on each."""
    shares = {"_LATENTS": 2, "_SCREENED_WORK": 2, "_JUDGED_WORK": 4, "_RUN_WORK": 4}
    with pytest.MonkeyPatch.context() as patch:
        for name, share in shares.items():
            patch.setattr(search, name, getattr(search, name) // share)
        return infer(_trained(layout)[1].state_dict())


def _rebuilt(inferred: Inferred, state: dict[str, Tensor]) -> nn.Module:
    """Builds what was inferred from its plain values, and loads the renamed weights strictly."""
    arguments = json.loads(json.dumps(inferred.model_args))
    module: nn.Module = build("generator-loaders", inferred.architecture, **arguments)
    module.load_state_dict({new: state[name] for name, new in inferred.rename.items()})
    return module.eval()


def _assert_same(wild: Wild, original: nn.Module, inferred: Inferred) -> None:
    rebuilt = _rebuilt(inferred, original.state_dict())
    z = torch.randn(4, wild.latent_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images, again = wild.images(original, z), rebuilt(z)
    assert again.shape == (4, *wild.image_shape)
    torch.testing.assert_close(again, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_network_of_a_wild_file_is_found(layout: str) -> None:
    wild, original = _trained(layout)

    inferred = _inferred(layout)

    assert (inferred.latent_dim, inferred.image_shape) == (wild.latent_dim, wild.image_shape)
    assert inferred.distribution == wild.prior
    _assert_same(wild, original, inferred)
    told = [guess for guess in inferred.guesses if "statistics agree to" in guess]
    assert bool(told) == (layout not in _NO_EVIDENCE)
    if not told:
        assert "nothing in the file can confirm it" in inferred.guesses[0]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weights_are_those_that_their_norms_make(norm: Callable[[nn.Module], nn.Module]) -> None:
    layers = [nn.Linear(6, 32), nn.ConvTranspose2d(8, 5, 4), nn.Conv2d(5, 3, 3)]
    network = nn.Sequential(*map(norm, layers)).eval()
    for part in read_parts(network.state_dict()).parts:
        assert part.applied is not None
        torch.testing.assert_close(part.applied, network[int(part.path)].weight)


@pytest.mark.parametrize("layout", _QUICK)
def test_sorted_names_are_put_back_in_order(layout: str) -> None:
    wild, original = _trained(layout)

    _assert_same(wild, original, infer(_sorted(original)))


def _words(norms: bool) -> nn.Module:
    """An MLP whose layers are named in words, two of them of one shape."""
    sizes = {"a_in": (8, 32), "two": (32, 32), "three": (32, 32), "z_out": (32, 784)}
    layers: dict[str, nn.Module] = {}
    for name, (inputs, outputs) in sizes.items():
        layers[name] = nn.Linear(inputs, outputs)
        if norms and name != "z_out":
            layers[f"{name}_norm"] = nn.BatchNorm1d(outputs)
        layers[f"{name}_act"] = nn.Tanh() if name == "z_out" else nn.ReLU()
    return nn.Sequential(OrderedDict(layers))


def _sorted(module: nn.Module) -> dict[str, Tensor]:
    return dict(sorted(module.state_dict().items()))


def test_layers_that_could_change_places_are_told_apart_by_statistics() -> None:
    wild = Wild(lambda: _words(norms=True), 8, (1, 28, 28))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = wild.trained()

    _assert_same(wild, original, infer(_sorted(original)))


def test_layers_that_could_change_places_are_refused_where_nothing_tells() -> None:
    wild = Wild(lambda: _words(norms=False), 8, (1, 28, 28))
    original = wild.make().eval()

    with pytest.raises(LoadError, match=r"which of three and two comes first.*YourClass"):
        infer(_sorted(original))
    with pytest.raises(LoadError, match=r"which of (three|two) and (three|two) comes first"):
        infer(_sorted(_words(norms=True)))
    _assert_same(wild, original, infer(original.state_dict()))


def test_convolutions_of_a_block_that_could_change_places_are_refused() -> None:
    def block(first: str, second: str) -> nn.Module:
        convs = {first: nn.Conv2d(8, 8, 3, padding=1), second: nn.Conv2d(8, 8, 3, padding=1)}
        return nn.ModuleDict({**convs, "shortcut": nn.Conv2d(8, 8, 1)})

    def state(first: str, second: str) -> dict[str, Tensor]:
        parts = {"a": nn.Linear(8, 8 * 8 * 8), "z": nn.Conv2d(8, 3, 3, padding=1)}
        parts |= {f"block{i}": block(first, second) for i in (1, 2)}
        return _sorted(nn.ModuleDict(parts))

    assert infer(state("conv1", "conv2")).image_shape[0] == 3
    with pytest.raises(LoadError, match=r"which of block1\.inner and block1\.outer comes first"):
        infer(state("outer", "inner"))


def test_norms_that_could_change_places_are_refused_where_no_name_tells() -> None:
    def state(first: str, second: str) -> dict[str, Tensor]:
        layers = {"a": nn.Linear(8, 32), "m": nn.Linear(32, 32), "z": nn.Linear(32, 784)}
        norms = {first: nn.BatchNorm1d(32), second: nn.BatchNorm1d(32)}
        return _sorted(nn.ModuleDict({**layers, **norms}))

    assert infer(state("norm1", "norm2")).image_shape == (1, 28, 28)
    assert infer(state("norm_a", "norm_m")).image_shape == (1, 28, 28)
    with pytest.raises(LoadError, match="which of norm_low and norm_up comes first"):
        infer(state("norm_low", "norm_up"))


def test_numbers_order_layers_in_sorted_files() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.ReLU())]
    original = nn.Sequential(*layers, nn.Linear(8, 784), nn.Tanh())
    state = _sorted(original)
    assert list(state).index("10.weight") < list(state).index("2.weight")

    renamed = infer(state).rename

    names = [name for name in original.state_dict() if name.endswith("weight")]
    places = [int(renamed[name].split(".")[1]) for name in names]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "norm",
    [lambda width: nn.GroupNorm(2, width), partial(nn.BatchNorm2d, track_running_stats=False)],
)
def test_norms_that_look_like_instance_norms_are_named(norm: Callable[[int], nn.Module]) -> None:
    layers = [nn.ConvTranspose2d(8, 16, 4), norm(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)]

    told = [g for g in infer(nn.Sequential(*layers).state_dict()).guesses if "norm: by conv" in g]

    assert told[0].startswith(
        "instance norm: by convention; group norm and batch norm without statistics look the same"
    )
    assert "--architecture package.module:YourClass" in told[0]


def test_a_norm_of_flat_features_is_a_layer_norm() -> None:
    layers = [nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 784), nn.Tanh()]
    wild = Wild(lambda: nn.Sequential(*layers), 8, (1, 28, 28))
    original = wild.make()

    inferred = infer(original.state_dict())

    _assert_same(wild, original, inferred)
    assert any(guess.startswith("layer norm: by convention") for guess in inferred.guesses)


@pytest.mark.parametrize("layout", ["a course's DCGAN without padding", "an MLP with eps 0.8"])
def test_singular_values_are_those_of_the_original(layout: str) -> None:
    wild, original = _trained(layout)
    rebuilt = _rebuilt(_inferred(layout), original.state_dict())
    z = torch.randn(1, wild.latent_dim)

    def spectrum(images: Callable[[Tensor], Tensor]) -> Tensor:
        jacobian = torch.func.jacfwd(lambda latent: images(latent).flatten())(z)
        return torch.linalg.svdvals(jacobian[:, 0])

    expected = spectrum(lambda latent: wild.images(original, latent))
    torch.testing.assert_close(spectrum(rebuilt), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "prefix"), [("mnist-dcgan", "gen.network."), ("fashion-mnist-dcgan", "")]
)
def test_a_trained_generator_is_told_by_what_its_norms_remember(name: str, prefix: str) -> None:
    weights = Path(str(resources.files("pgmkit_registry"))) / name / "model.safetensors"
    state = {key.replace("layers.", prefix): value for key, value in load_file(weights).items()}
    original = pgmkit.load_generator(name)

    inferred = infer(state)

    assert inferred.architecture == "dcgan"
    assert inferred.model_args == original.model_args
    z = original.sample_latents(4, seed=0)
    assert torch.equal(_rebuilt(inferred, state)(z), original(z))
    activation = next(guess for guess in inferred.guesses if guess.startswith("activation"))
    assert activation.startswith("activation ReLU: batch-norm statistics agree to")
    assert "LeakyReLU 0.1: 1" in activation


def test_what_is_left_out_is_said() -> None:
    inferred = _inferred("a β-VAE without norms")

    assert "left out: 4 tensors of the encoder" in inferred.facts
    assert all(name.startswith("decoder.") for name in inferred.rename)
    assert inferred.image_range == (0.0, 1.0)
    assert any(guess.startswith("sigmoid at the end") for guess in inferred.guesses)


def test_weights_that_stand_twice_are_taken_once() -> None:
    _, original = _trained("an SNGAN whose weights stand twice")

    inferred = _inferred("an SNGAN whose weights stand twice")

    assert set(inferred.rename) == set(original.state_dict())
    assert inferred.rename["final.weight"] == inferred.rename["model.4.weight"]


def test_statistics_of_a_network_that_never_ran_are_no_evidence() -> None:
    inferred = infer(pytorch_example().state_dict())

    assert inferred.architecture == "dcgan"
    assert all("statistics agree" not in guess for guess in inferred.guesses)


def test_uniform_latents_show_in_the_first_norm() -> None:
    guess = _inferred("an MLP for colours").guesses[0]

    assert guess.startswith("prior uniform: batch-norm statistics agree to")
    assert "normal: " in guess
    assert guess.endswith("latent='normal:24' (--latent normal:24)")


def _zeros(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes}


FOREIGN = {
    "a discriminator": (
        nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1), nn.Conv2d(32, 1, 4)),
        "look like a discriminator",
    ),
    "a flat discriminator": (nn.Sequential(nn.Linear(784, 64), nn.Linear(64, 1)), "discriminator"),
    "a classifier": (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(32, 10)),
        "look like a classifier",
    ),
    "a transformer": (nn.TransformerEncoderLayer(8, 2, 16), "attention"),
    "a recurrent network": (nn.LSTM(4, 8), "recurrent"),
    "a stack that does not fit": (
        nn.Sequential(nn.Linear(8, 512), nn.ConvTranspose2d(17, 5, 4), nn.Conv2d(23, 3, 3)),
        "do not follow each other",
    ),
    "hundreds of layers": (nn.Sequential(*(nn.Linear(2, 2) for _ in range(301))), "301 layers"),
    "too many channels": (
        nn.Sequential(nn.ConvTranspose2d(8, 16, 4), nn.ConvTranspose2d(16, 7, 4, 2, 1)),
        "no strides and sizes make an image",
    ),
}

FOREIGN_NAMES = {
    "StyleGAN2 of NVIDIA's code": _zeros(
        ("mapping.fc0.weight", (8, 8)), ("synthesis.b4.const", (8, 4, 4))
    ),
    "StyleGAN2 in rosinality's code": _zeros(
        ("style.1.weight", (8, 8)), ("convs.0.conv.modulation.weight", (8, 8))
    ),
    "BigGAN": _zeros(
        ("shared.weight", (10, 4)), ("blocks.0.0.bn1.gain.weight", (8, 8)), ("l.bias", (3,))
    ),
    "attention": _zeros(("l1.weight", (8, 4)), ("attn.query.weight", (8, 8, 1, 1))),
    "embeds labels": _zeros(("label_emb.weight", (10, 10)), ("model.0.weight", (8, 20))),
    "holds no tensors": {},
    "of no layer that is known": _zeros(("l1.weight", (8, 4)), ("noise.strength", (3,))),
    "no layer of a generator": _zeros(("bn.weight", (8,)), ("bn.bias", (8,))),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_such_generator_is_refused_by_name(what: str) -> None:
    module, said = FOREIGN[what]

    with pytest.raises(LoadError, match=said) as caught:
        infer(module.state_dict())

    assert "architecture=YourClass" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", FOREIGN_NAMES)
def test_known_families_are_called_by_name(said: str) -> None:
    with pytest.raises(LoadError, match=said):
        infer(FOREIGN_NAMES[said])


def test_weights_that_are_not_finite_do_not_stop_the_search() -> None:
    state = spectral().state_dict()
    state["main.0.weight_orig"][0, 0] = torch.nan

    assert infer(state).image_shape == (3, 32, 32)


LINEAR = {"op": "linear", "inputs": 2, "outputs": 16}
UPSAMPLE = {"op": "upsample", "factor": 16}


MAPS = [LINEAR, {"op": "reshape", "shape": [1, 4, 4]}]


def _conv(outputs: int = 1, inputs: int = 1, kernel: int = 1, **more: int) -> dict[str, object]:
    return {"op": "conv", "inputs": inputs, "outputs": outputs, "kernel": kernel, **more}


def _nested(depth: int) -> dict[str, object]:
    return {"op": "residual", "body": [_nested(depth - 1)] if depth else [LINEAR]}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "empty"),
        ("linear", "takes layers = a list"),
        ([7], "each part a table"),
        ([{"op": "eval"}], "must be an object with 'op'"),
        ([{"op": ["linear"]}], "must be an object with 'op'"),
        ([{**LINEAR, "code": 1}], "no field 'code'"),
        ([{"op": "linear", "inputs": 2}], "needs to be told 'outputs'"),
        ([{**LINEAR, "outputs": 0}], "'outputs' of layers.0. .linear. cannot be 0"),
        ([{**LINEAR, "outputs": True}], "cannot be True"),
        ([{**LINEAR, "outputs": 10**12}], "cannot be 1000000000000"),
        ([{**LINEAR, "weight": "pickle"}], "cannot be 'pickle'"),
        ([{"op": "leaky-relu", "slope": float("nan")}], "cannot be nan"),
        ([{"op": "group-norm", "features": 8, "groups": 3}], "cannot be built"),
        ([*MAPS, *[UPSAMPLE] * 3], "makes 1×16384×16384 values of a latent"),
        ([*MAPS, _conv(64, padding=64), *[_conv(padding=64)] * 40], "sides are at most 4096"),
        ([*MAPS, {"op": "residual", "body": [UPSAMPLE] * 3}], "sides are at most 4096"),
        (
            [*MAPS, {"op": "residual", "body": [_conv(stride=4)], "shortcut": [UPSAMPLE] * 3}],
            "sides are at most 4096",
        ),
        ([*MAPS, *[UPSAMPLE] * 2, _conv(2**7)], "more than any generator"),
        ([*MAPS, _conv(kernel=7)], "correct its kernel, stride or padding"),
        ([LINEAR, *[{"op": "batch-norm", "features": 2**21, "affine": False}] * 3], "batch norms"),
        (
            [*MAPS, *[UPSAMPLE] * 2, *[_conv(16, 16, kernel=63, padding=31)] * 3],
            "an image takes .* multiplications",
        ),
        ([{"op": "relu"}] * 1001, "more than 1000 layers"),
        ([_nested(5)], "deeper than 3"),
        ([{"op": "residual", "body": [{"op": "eval"}]}], "layers.0..body.0. must be an object"),
    ],
)
def test_records_are_checked_before_anything_is_built(layers: object, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        build("generator-loaders", "layers", latent_dim=2, layers=layers)


def test_every_op_runs_and_is_written_as_plain_values() -> None:
    def conv(inputs: int, outputs: int, **more: object) -> dict[str, object]:
        return {"op": "conv", "inputs": inputs, "outputs": outputs, "kernel": 1, **more}

    activations = ["relu", "elu", "gelu", "selu", "silu", "softplus", "tanh", "sigmoid"]
    layers = [
        LINEAR,
        {"op": "layer-norm", "shape": [16]},
        {"op": "reshape", "shape": [4, 2, 2]},
        {"op": "conv-transpose", "inputs": 4, "outputs": 8, "kernel": 4, "stride": 2, "padding": 1},
        {"op": "batch-norm", "features": 8, "statistics": False},
        {"op": "instance-norm", "features": 8},
        {"op": "group-norm", "features": 8, "groups": 2},
        {"op": "leaky-relu", "slope": 0.2},
        {"op": "prelu"},
        {"op": "upsample", "mode": "bilinear"},
        {"op": "residual", "body": [conv(8, 3, weight="weight-norm")], "shortcut": [conv(8, 3)]},
        conv(3, 3, weight="spectral-norm"),
        *({"op": name} for name in activations),
    ]
    module = build(
        "generator-loaders", "layers", latent_dim=2, layers=json.loads(json.dumps(layers))
    )

    assert module(torch.ones(3, 2)).shape == (3, 3, 8, 8)
