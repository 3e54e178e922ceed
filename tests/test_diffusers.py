"""Folders of the diffusers library: the decoder of an autoencoder as a generator."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import LoadError, ParameterError, PgmkitNote, PluginError
from pgmkit.generator import Generator
from pgmkit.images.source import ImageSpec
from pgmkit.loading.diffusers import build_decoder, is_diffusers, read_decoder
from pgmkit.loading.folders import open_local_folder
from pgmkit.spectrum.jacobian import JacobianSpectra

WEIGHTS = "diffusion_pytorch_model.safetensors"


def class_of(kind: str) -> type[nn.Module]:
    import diffusers  # takes seconds

    return getattr(diffusers, kind)


def write(folder: Path, kind="AutoencoderKL", max_shard_size="1GB", **changes) -> Path:
    """Saves an autoencoder of 8×8 pixels and 2×4×4 latents as diffusers saves it."""
    torch.manual_seed(0)
    arguments = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [4, 8],
        "norm_num_groups": 2,
        "latent_channels": 2,
        "sample_size": 8,
    }
    model = class_of(kind)(**{**arguments, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load(folder: Path, **options) -> tuple[Generator, list[str]]:
    found = read_decoder(open_local_folder(folder, "local-dir:model"), **options)
    generator = Generator(found.module, found.latent, found.image)
    generator.check_runs()
    return generator, found.notes


def by_diffusers(folder: Path, z: Tensor) -> Tensor:
    """Decodes latents with diffusers' own class and its weights."""
    config = json.loads((folder / "config.json").read_text())
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    kind = config["_class_name"]
    model = class_of(kind)(**arguments).eval()
    model.load_state_dict(load_file(folder / WEIGHTS))
    latents = z.reshape(len(z), 2, 4, 4)
    with torch.no_grad():
        if kind == "VQModel":
            latents = latents + load_file(folder / WEIGHTS)["quantize.embedding.weight"].mean(
                dim=0
            ).reshape(-1, 1, 1)
            return model.decode(latents, force_not_quantize=True).sample
        return model.decode(latents + (config["shift_factor"] or 0)).sample


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("AutoencoderKL", {}),
        ("AutoencoderKL", {"shift_factor": 0.5, "use_post_quant_conv": False}),
        ("AutoencoderKL", {"use_quant_conv": False, "mid_block_add_attention": False}),
        ("VQModel", {"num_vq_embeddings": 7}),
        ("VQModel", {"latent_channels": 4, "vq_embed_dim": 2}),
        ("VQModel", {"norm_type": "spatial", "block_out_channels": [32, 32]}),
    ],
)
def test_a_decoder_makes_the_images_of_diffusers(kind: str, changes: dict, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", kind, **changes)
    generator, _ = load(folder)
    z = generator.sample_latents(3, seed=0)
    torch.testing.assert_close(generator.images(z), by_diffusers(folder, z))
    assert generator.image == ImageSpec((3, 8, 8), (-1, 1))


def test_a_decoder_has_the_spectrum_of_reverse_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.spectrum.differentiation._CALIBRATION_SECONDS", 0)
    generator, _ = load(write(tmp_path / "model"))
    z = generator.sample_latents(1, seed=0)
    found = JacobianSpectra(generator).compute(z)["singular_values"]
    module = generator.module.double()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: module(v[None]).flatten(), z[0].double()
    )
    expected = torch.linalg.svdvals(jacobian)[None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_weights_may_be_shards_or_pickled_tensors_or_of_half_precision(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole")
    expected = load(whole)[0]
    z = expected.sample_latents(2, seed=0)
    shards = write(tmp_path / "shards", max_shard_size="5KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(whole / "config.json", pickled)
    torch.save(load_file(whole / WEIGHTS), pickled / "diffusion_pytorch_model.bin")
    for folder in (shards, pickled):
        torch.testing.assert_close(load(folder)[0].images(z), expected.images(z))
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(whole / "config.json", half)
    halves = {name: value.bfloat16() for name, value in load_file(whole / WEIGHTS).items()}
    save_file(halves, half / "diffusion_pytorch_model.fp16.safetensors")
    assert load(half)[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*the declared range", "ignore:.*clusters have fewer latents")
def test_a_decoder_inside_a_pipeline_is_shattered_and_comes_back(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    write(pipeline / "vae")
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    assert is_diffusers(open_local_folder(pipeline, "x"), {})
    with pytest.warns(PgmkitNote, match="the prior is taken for normal"):
        generator = pgmkit.load_generator(str(pipeline))
    z = generator.sample_latents(3, seed=0)
    assert z.shape == (3, 32)
    expected = by_diffusers(pipeline / "vae", z)
    torch.testing.assert_close(generator(z), expected)
    shattered = pgmkit.shatter(generator, sampler="kmeans-gmm", clusters=2, latents=60)
    shattered.save_pretrained(tmp_path / "out")
    back = pgmkit.load(tmp_path / "out").generator
    torch.testing.assert_close(back(z), expected)
    assert back.fingerprint() == generator.fingerprint()


def test_attention_may_have_its_old_names_and_shapes(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    expected = load(folder)[0]
    old = {}
    for name, value in load_file(folder / WEIGHTS).items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(f".{new}.", f".{former}.")
        name = name.replace(".to_out.0.", ".proj_attn.")
        old[name] = value[..., None, None] if name.endswith(".query.weight") else value
    save_file(old, folder / WEIGHTS)
    z = expected.sample_latents(2, seed=0)
    torch.testing.assert_close(load(folder)[0].images(z), expected.images(z))


def test_the_prior_and_what_it_assumes_are_said(tmp_path: Path) -> None:
    generator, notes = load(write(tmp_path / "kl", scaling_factor=0.5, shift_factor=0.25))
    assert generator.latent.std == 2
    assert "std 2 (1 / scaling_factor) around 0.25" in notes[0]
    folder = write(tmp_path / "vq", "VQModel")
    generator, notes = load(folder)
    book = load_file(folder / WEIGHTS)["quantize.embedding.weight"]
    assert generator.latent.std == pytest.approx(float((book - book.mean(0)).std()), rel=0.01)
    assert "without looking up the codebook" in notes[0]


def test_images_may_be_of_another_size(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    generator, _ = load(folder, sides=(16, 16))
    assert (generator.latent.dim, generator.image.shape) == (2 * 8 * 8, (3, 16, 16))
    with pytest.raises(LoadError, match="must be a multiple of 2"):
        load(folder, sides=(7, 7))


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_size": 2**11},
        {
            "sample_size": 2**11,
            "mid_block_add_attention": False,
            "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
        },
        {"sample_size": 2**14, "mid_block_add_attention": False},
    ],
)
def test_images_that_no_memory_holds_are_refused_at_once(
    changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.machine.available_memory", lambda: 2**34)
    folder = changed(write(tmp_path / "model"), **changes)
    message = r"of memory, and .* are free; give smaller ones: image=\(3, H, W\) \(--image 3xHxW\)"
    with pytest.raises(ParameterError, match=message):
        load(folder)
    with pytest.raises(ParameterError, match=message):
        build_decoder(json.loads((folder / "config.json").read_text()))


def test_a_large_size_in_the_config_is_no_hindrance_to_small_images(tmp_path: Path) -> None:
    folder = changed(write(tmp_path / "model"), sample_size=2**14)
    assert load(folder, sides=(8, 8))[0].image.shape == (3, 8, 8)


def changed(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "the class 'UNet2DModel'"),
        ({"_class_name": ["os", "system"]}, "the class"),
        ({"block_out_channels": [4] * 100_000}, "100000 entries where the weights have 2"),
        ({"block_out_channels": [4, 800_000]}, "of another shape"),
        ({"block_out_channels": [4, 10**12]}, "whole numbers"),
        ({"block_out_channels": "many"}, "'many' where the weights have 2"),
        ({"layers_per_block": 100_000}, "100000 where the weights have 1"),
        ({"latent_channels": 10**9}, "whole numbers"),
        ({"out_channels": 1}, "of another shape"),
        ({"up_block_types": ["os.system", "eval"]}, "cannot be built"),
        ({"act_fn": "no_such"}, "cannot be built"),
        ({"surprise": 1}, "cannot be built"),
        ({"sample_size": 10**9}, "'sample_size' must"),
        ({"sample_size": "big"}, "'sample_size' must"),
        ({"scaling_factor": 0}, "'scaling_factor'"),
        ({"latents_mean": [1]}, "'latents_mean'"),
    ],
)
def test_configs_that_do_not_fit_are_one_line(changes: dict, message: str, tmp_path: Path) -> None:
    folder = changed(write(tmp_path / "model"), **changes)
    with pytest.raises(LoadError, match=message):
        load(folder)


def test_missing_and_unsafe_weights_are_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    weights = load_file(folder / WEIGHTS)
    del weights["decoder.conv_in.weight"]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(LoadError, match=r"missing: decoder\.conv_in\.weight"):
        load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(LoadError, match="has no weights"):
        load(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Path.cwd))
    with pytest.raises(LoadError):
        load(folder)
    with pytest.raises(LoadError, match="has no autoencoder"):
        load(tmp_path)


def test_without_its_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PluginError, match=r"pip install 'pgmkit\[diffusers\]'"):
        load(folder)


def test_configs_of_others_are_not_taken_for_diffusers(tmp_path: Path) -> None:
    folder = open_local_folder(tmp_path, "x")
    assert not is_diffusers(folder, {"architecture": "dcgan", "latent": {"dim": 4}})
    assert not is_diffusers(folder, {})
    assert is_diffusers(folder, {"_class_name": "VQModel"})
