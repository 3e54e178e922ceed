import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, use_hub
from safetensors.torch import save
from torch import Tensor, nn

from pgmkit.errors import (
    GeneratorError,
    LoadError,
    ParameterError,
    PgmkitError,
    PgmkitNote,
    UnknownNameError,
)
from pgmkit.generator import Generator
from pgmkit.images.source import ImageSpec
from pgmkit.loading.generators import generator_from_folder, load_generator
from pgmkit.loading.hub import push_folder
from pgmkit.loading.references import open_folder
from pgmkit.loading.saving import write_generator
from pgmkit.priors import LatentSpec
from pgmkit.shattering import ShatteredGenerator, shatter
from pgmkit_plugins.backbones.dcgan import DCGANGenerator

CUT = r"is (truncated or damaged|empty|cut off|of no kind).*; "
MODEL_ARGS = {"latent_dim": 4, "channels": [8, 4, 4]}


class Flat(nn.Module):
    """A generator that no plugin offers."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 16)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).tanh()


class Renamed(Flat):
    """Reads weights that were saved under another name."""

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("fc.", "linear."): value for name, value in state.items()}


class Bomb:
    """Runs code of its own when it is unpickled: it creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def tiny_generator(seed: int = 0) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DCGANGenerator(**MODEL_ARGS)
    return Generator(
        module,
        LatentSpec(4),
        ImageSpec((1, 32, 32)),
        name="tiny",
        architecture="dcgan",
        model_args=MODEL_ARGS,
        provenance={"license": "MIT", "trained_on": "noise"},
    )


def write_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes the folder of a tiny generator; None takes a key out of its config.json."""
    write_generator(folder, tiny_generator(seed))
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_torch_folder(folder: Path, contents: Any, name: str = "model.pt", **changes: Any) -> Path:
    """Like `write_folder`, with `contents` in a torch file instead of the safetensors."""
    write_folder(folder, **changes)
    (folder / "model.safetensors").unlink()
    torch.save(contents, folder / name)
    return folder


def flat_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    """Writes a folder whose config.json names no architecture."""
    folder.mkdir()
    config = {"latent": {"dim": 3}, "image": {"shape": [1, 4, 4]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(save(state))
    return folder


def load_local(folder: Path, **options: Any) -> Generator:
    return load_generator(f"local-dir:{folder}", **options)


@pytest.fixture(scope="module")
def shattered() -> ShatteredGenerator:
    return shatter(tiny_generator(), sampler="kmeans-gmm", clusters=2, latents=40)


# The Hub: which files come


def test_a_repository_gives_the_generator_that_was_put_there(
    server: HubServer, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    commit = server.add("org/tiny", folder)
    generator = load_generator("hf-hub:org/tiny")
    assert generator.fingerprint() == tiny_generator().fingerprint()
    assert generator(generator.sample_latents(3, seed=0)).shape == (3, 1, 32, 32)
    weights = (folder / "model.safetensors").read_bytes()
    assert generator.provenance == {
        "license": "MIT",
        "trained_on": "noise",
        "reference": "hf-hub:org/tiny",
        "repo": "org/tiny",
        "revision": commit,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


@pytest.mark.parametrize("kind", ["commit", "tag", "branch with a slash"])
def test_a_revision_picks_its_own_weights(server: HubServer, tmp_path: Path, kind: str) -> None:
    first = server.add("org/tiny", write_folder(tmp_path / "first", seed=1))
    server.repositories["org/tiny"].refs |= {"v1": first, "refs/pr/1": first}
    second = server.add("org/tiny", write_folder(tmp_path / "second", seed=2))
    revision = {"commit": first, "tag": "v1", "branch with a slash": "refs/pr/1"}[kind]
    pinned = load_generator(f"hf-hub:org/tiny@{revision}")
    assert pinned.fingerprint() == tiny_generator(1).fingerprint()
    assert pinned.provenance["revision"] == first
    newest = load_generator("hf-hub:org/tiny")
    assert newest.fingerprint() == tiny_generator(2).fingerprint()
    assert newest.provenance["revision"] == second


def test_files_of_two_commits_are_never_mixed(server: HubServer, tmp_path: Path) -> None:
    first = server.add("org/tiny", write_folder(tmp_path / "first", seed=1))
    folder = open_folder("hf-hub:org/tiny")
    server.add("org/tiny", write_folder(tmp_path / "second", seed=2))
    generator = generator_from_folder(folder)
    assert generator.fingerprint() == tiny_generator(1).fingerprint()
    assert generator.provenance["revision"] == first


def test_a_file_is_downloaded_once(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", write_folder(tmp_path / "model"))
    load_generator("hf-hub:org/tiny")
    downloads = server.downloads()
    load_generator("hf-hub:org/tiny")
    assert len(downloads) == 2
    assert server.downloads() == downloads


def test_a_new_commit_is_seen_by_the_next_load(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", write_folder(tmp_path / "first", seed=1))
    load_generator("hf-hub:org/tiny")
    server.add("org/tiny", write_folder(tmp_path / "second", seed=2))
    assert load_generator("hf-hub:org/tiny").fingerprint() == tiny_generator(2).fingerprint()


# The Hub: without a network


def test_the_cache_serves_while_the_hub_is_down(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", write_folder(tmp_path / "model"))
    online = load_generator("hf-hub:org/tiny")
    server.stop()
    cached = load_generator("hf-hub:org/tiny")
    assert cached.fingerprint() == online.fingerprint()
    assert cached.provenance == online.provenance


@pytest.mark.parametrize("pinned", [False, True])
def test_the_cache_serves_offline_without_a_request(
    server: HubServer, tmp_path: Path, offline: Callable[[], None], pinned: bool
) -> None:
    commit = server.add("org/tiny", write_folder(tmp_path / "model"))
    reference = f"hf-hub:org/tiny@{commit}" if pinned else "hf-hub:org/tiny"
    online = load_generator(reference)
    offline()
    server.requests.clear()
    cached = load_generator(reference)
    assert cached.provenance == online.provenance
    assert cached.fingerprint() == online.fingerprint()
    assert server.requests == []


def test_a_cached_torch_file_serves_offline(
    server: HubServer, tmp_path: Path, offline: Callable[[], None]
) -> None:
    state = tiny_generator().module.state_dict()
    server.add("org/tiny", write_torch_folder(tmp_path / "model", state))
    online = load_generator("hf-hub:org/tiny")
    offline()
    assert load_generator("hf-hub:org/tiny").fingerprint() == online.fingerprint()


def test_a_cached_torch_file_serves_while_the_hub_is_down(
    server: HubServer, tmp_path: Path, no_pauses: list[float]
) -> None:
    state = tiny_generator().module.state_dict()
    server.add("org/tiny", write_torch_folder(tmp_path / "model", state))
    online = load_generator("hf-hub:org/tiny")
    server.stop()
    assert load_generator("hf-hub:org/tiny").fingerprint() == online.fingerprint()
    assert no_pauses == []


def test_offline_without_a_cache_names_hf_hub_offline(
    server: HubServer, tmp_path: Path, offline: Callable[[], None]
) -> None:
    server.add("org/tiny", write_folder(tmp_path / "model"))
    offline()
    with pytest.raises(LoadError, match=r"HF_HUB_OFFLINE is set .* local-dir:/path"):
        load_generator("hf-hub:org/tiny")
    assert server.requests == []


def test_a_hub_out_of_reach_is_named_with_its_address(
    server: HubServer, no_pauses: list[float]
) -> None:
    server.stop()
    with pytest.raises(LoadError, match="cannot be reached") as caught:
        load_generator("hf-hub:org/tiny")
    assert server.url in str(caught.value)
    assert "HF_ENDPOINT" in str(caught.value)


def test_a_broken_hub_is_named_with_its_address(server: HubServer, no_pauses: list[float]) -> None:
    server.failure = 503
    with pytest.raises(LoadError, match=rf"{server.url} is out of order \(HTTP 503\)"):
        load_generator("hf-hub:org/tiny")
    assert no_pauses


def test_a_hub_that_hangs_up_is_named_with_its_address(
    server: HubServer, no_pauses: list[float]
) -> None:
    server.hangs_up = True
    with pytest.raises(LoadError, match=f"{server.url} closed the connection .*HF_ENDPOINT"):
        load_generator("hf-hub:org/tiny")


def test_an_endpoint_that_is_no_address_is_named(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_hub(monkeypatch, "hub.local", tmp_path / "home")
    with pytest.raises(LoadError, match=r"hub\.local.*HF_ENDPOINT"):
        load_generator("hf-hub:org/tiny")


def test_the_environment_of_the_hub_is_honoured(server: HubServer, tmp_path: Path) -> None:
    commit = server.add("org/secret", write_folder(tmp_path / "model"), private=True)
    # The folder alone is enough here, and its process is quick, since it imports no torch.
    script = (
        "import json; from pgmkit.loading.references import open_folder\n"
        "folder = open_folder('hf-hub:org/secret')\n"
        "folder.config()\npath = folder.fetch('model.safetensors')\n"
        "print(json.dumps({**folder.provenance, 'weights': str(path)}))\n"
    )

    def run(**environment: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "HF_HOME": str(tmp_path / "other"), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    online = run(HF_ENDPOINT=server.url, HF_TOKEN=server.token)
    assert online["revision"] == commit
    assert Path(online["weights"]).is_relative_to(tmp_path / "other" / "hub")
    assert len(server.downloads()) == 2
    server.stop()
    assert run(HF_ENDPOINT="http://hub.invalid", HF_HUB_OFFLINE="1") == online


# The Hub: what is not there, and who may see it


def test_a_missing_repository_is_named(server: HubServer) -> None:
    with pytest.raises(LoadError, match=f"no repository 'org/nothing' on {server.url}"):
        load_generator("hf-hub:org/nothing")


def test_a_missing_revision_is_named(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", write_folder(tmp_path / "model"))
    with pytest.raises(LoadError, match="'org/tiny' has no revision 'v9'; leave '@revision' out"):
        load_generator("hf-hub:org/tiny@v9")


def test_a_repository_without_config_json_takes_what_the_user_says(
    server: HubServer, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "config.json").unlink()
    commit = server.add("org/bare", folder)
    given = {"architecture": "dcgan", "model_args": MODEL_ARGS}
    specs = {"latent": LatentSpec(4), "image": ImageSpec((1, 32, 32))}
    generator = load_generator("hf-hub:org/bare", **given, **specs)  # type: ignore[arg-type]
    assert generator.fingerprint() == tiny_generator().fingerprint()
    assert generator.provenance["revision"] == commit


def test_a_repository_without_weights_names_what_it_needs(
    server: HubServer, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    server.add("org/tiny", folder)
    with pytest.raises(LoadError, match=r"has no weights: it holds config\.json"):
        load_generator("hf-hub:org/tiny")


def test_weights_that_config_json_names_must_be_there(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", write_folder(tmp_path / "model", weights="ema.safetensors"))
    with pytest.raises(LoadError, match=r"has no file 'ema\.safetensors'"):
        load_generator("hf-hub:org/tiny")


def test_weights_outside_of_the_repository_are_refused(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", write_folder(tmp_path / "model", weights="../../token"))
    with pytest.raises(LoadError, match=r"\.\./\.\./token"):
        load_generator("hf-hub:org/tiny")


@pytest.mark.parametrize("name", ["", "a/b/c", "org/na me", "org/tiny.git", "-org/tiny"])
def test_what_is_no_repository_name_is_refused_without_a_request(
    server: HubServer, name: str
) -> None:
    with pytest.raises(LoadError, match=r"is not a repository name; write hf-hub:org/name") as e:
        load_generator(f"hf-hub:{name}")
    assert repr(name) in str(e.value)
    assert server.requests == []


def test_a_private_repository_needs_a_token(server: HubServer, tmp_path: Path) -> None:
    server.add("org/secret", write_folder(tmp_path / "model"), private=True)
    with pytest.raises(LoadError, match=r"'org/secret' .* or it is private; .*hf auth login"):
        load_generator("hf-hub:org/secret")
    assert server.downloads() == []


@pytest.mark.parametrize("source", ["HF_TOKEN", "hf auth login"])
def test_a_token_opens_a_private_repository(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    server.add("org/secret", write_folder(tmp_path / "model"), private=True)
    if source == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", server.token)
    else:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(server.token)
    generator = load_generator("hf-hub:org/secret")
    assert generator.fingerprint() == tiny_generator().fingerprint()
    assert {request.token for request in server.requests} == {server.token}


def test_a_wrong_token_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/secret", write_folder(tmp_path / "model"), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(LoadError, match=r"401.*token \(hf auth login\)") as caught:
        load_generator("hf-hub:org/secret")
    assert "hf_wrong" not in str(caught.value)


def test_a_gated_repository_asks_to_accept_its_terms(server: HubServer, tmp_path: Path) -> None:
    server.add("org/gated", write_folder(tmp_path / "model"), gated=True)
    with pytest.raises(LoadError, match="'org/gated' is gated; accept its terms"):
        load_generator("hf-hub:org/gated")


# The Hub: pushing


@pytest.fixture
def token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", server.token)
    return server.token


def test_a_pushed_generator_comes_back_the_same(
    server: HubServer, token: str, shattered: ShatteredGenerator
) -> None:
    address = shattered.push_to_hub("me/tiny")
    assert address == f"{server.url}/me/tiny"
    back = ShatteredGenerator.from_pretrained("hf-hub:me/tiny")
    assert back.cluster_sizes == shattered.cluster_sizes
    assert torch.equal(back.sample(5, cluster=1, seed=3), shattered.sample(5, cluster=1, seed=3))
    commit = server.repositories["me/tiny"].refs["main"]
    assert back.generator.provenance["revision"] == commit
    assert sorted(server.files("me/tiny")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "sampler.json",
        "sampler.safetensors",
        "samples.png",
    ]


def test_a_pushed_folder_loads_as_a_plain_generator_too(
    server: HubServer, token: str, shattered: ShatteredGenerator
) -> None:
    shattered.push_to_hub("me/tiny")
    assert load_generator("hf-hub:me/tiny").fingerprint() == shattered.generator.fingerprint()


def test_a_cached_shattered_generator_serves_offline(
    server: HubServer, token: str, shattered: ShatteredGenerator, offline: Callable[[], None]
) -> None:
    shattered.push_to_hub("me/tiny")
    ShatteredGenerator.from_pretrained("hf-hub:me/tiny")
    offline()
    server.requests.clear()
    cached = ShatteredGenerator.from_pretrained("hf-hub:me/tiny")
    assert torch.equal(cached.sample(4, seed=1), shattered.sample(4, seed=1))
    assert server.requests == []


def test_pushing_the_same_twice_makes_one_commit(
    server: HubServer, token: str, shattered: ShatteredGenerator
) -> None:
    shattered.push_to_hub("me/tiny")
    commit = server.repositories["me/tiny"].refs["main"]
    assert shattered.push_to_hub("me/tiny") == f"{server.url}/me/tiny"
    assert server.repositories["me/tiny"].refs["main"] == commit


def test_pushing_anew_replaces_the_files(
    server: HubServer, token: str, shattered: ShatteredGenerator
) -> None:
    server.add("me/tiny", {"config.json": b"old", "notes.txt": b"kept"})
    shattered.push_to_hub("me/tiny")
    assert server.files("me/tiny")["notes.txt"] == b"kept"
    assert ShatteredGenerator.from_pretrained("hf-hub:me/tiny").num_clusters == 2


def test_a_private_push_is_hidden_from_others(
    server: HubServer, token: str, shattered: ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    shattered.push_to_hub("me/secret", private=True)
    assert load_generator("hf-hub:me/secret").name == "tiny"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LoadError, match="private"):
        load_generator("hf-hub:me/secret@refs/pr/1")


def test_spectra_and_hidden_files_are_not_pushed(
    server: HubServer, token: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "spectrum").mkdir()
    (folder / "spectrum" / "block-0.safetensors").write_bytes(b"large")
    (folder / ".lock").touch()
    push_folder(folder, "me/tiny")
    assert sorted(server.files("me/tiny")) == ["config.json", "model.safetensors"]


def test_a_push_without_a_token_says_how_to_log_in(
    server: HubServer, shattered: ShatteredGenerator
) -> None:
    with pytest.raises(LoadError, match=r"cannot push to 'me/tiny': .*401.*hf auth login"):
        shattered.push_to_hub("me/tiny")
    assert server.repositories == {}


def test_a_push_to_a_hub_out_of_reach_is_a_load_error(
    server: HubServer, token: str, shattered: ShatteredGenerator
) -> None:
    server.stop()
    with pytest.raises(LoadError, match=r"cannot push to 'me/tiny': .*the network"):
        shattered.push_to_hub("me/tiny")


def test_an_offline_push_names_hf_hub_offline(
    server: HubServer, token: str, shattered: ShatteredGenerator, offline: Callable[[], None]
) -> None:
    offline()
    with pytest.raises(LoadError, match="HF_HUB_OFFLINE"):
        shattered.push_to_hub("me/tiny")
    assert server.requests == []


def test_a_push_to_what_is_no_repository_name_is_refused(
    server: HubServer, token: str, shattered: ShatteredGenerator
) -> None:
    with pytest.raises(LoadError, match="cannot push to 'a/b/c'"):
        shattered.push_to_hub("a/b/c")
    assert server.requests == []


def test_a_model_card_that_the_hub_refuses_is_a_load_error(
    server: HubServer, token: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: my own\n---\n")
    with pytest.raises(LoadError, match=r"README\.md.*license.* must be one of") as caught:
        push_folder(folder, "me/tiny")
    assert "\n" not in str(caught.value)


# Local folders and other references


def test_a_written_generator_comes_back_byte_for_byte(tmp_path: Path) -> None:
    original = tiny_generator()
    write_generator(tmp_path / "first", original)
    loaded = load_local(tmp_path / "first")
    assert loaded.fingerprint() == original.fingerprint()
    assert (loaded.latent, loaded.image) == (original.latent, original.image)
    assert loaded.provenance["license"] == "MIT"
    assert loaded.provenance["trained_on"] == "noise"
    write_generator(tmp_path / "second", loaded)
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_loaded_generator_is_frozen(tmp_path: Path) -> None:
    generator = load_local(write_folder(tmp_path / "model"))
    assert not generator.module.training
    assert not any(parameter.requires_grad for parameter in generator.module.parameters())


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    generator = load_generator("local-dir:~/model")
    assert generator.provenance["reference"] == "local-dir:~/model"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"no folder {tmp_path}/nothing; check the path"):
        load_local(tmp_path / "nothing")


def test_a_path_is_a_reference(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    for reference in (str(folder), f"{folder}/model.safetensors", f"local-dir:{folder}"):
        generator = load_generator(reference)
        assert generator.fingerprint() == tiny_generator().fingerprint()
        assert generator.provenance["reference"] == reference


def test_a_weight_file_that_is_not_there_is_named() -> None:
    with pytest.raises(LoadError, match=r"no folder or file runs/netG\.pth; check the path"):
        load_generator("runs/netG.pth")


def test_a_bare_repository_gets_the_hint_hf_hub() -> None:
    with pytest.raises(UnknownNameError, match="for a repository on the Hub write hf-hub:org/tiny"):
        load_generator("org/tiny")


def test_an_unknown_name_lists_the_nearest_of_the_registry() -> None:
    with pytest.raises(UnknownNameError, match="'mnist-dcgn'; did you mean 'mnist-dcgan'"):
        load_generator("mnist-dcgn")


def test_a_folder_without_a_sampler_is_no_shattered_generator(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(LoadError, match=r"holds no shattered generator: it has no sampler\.json"):
        ShatteredGenerator.from_pretrained(folder)


# config.json


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '"text"'])
def test_a_config_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(LoadError, match=r"config\.json of local-dir:.* (JSON|JSON object)"):
        load_local(folder)


def test_a_config_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "config.json").write_bytes(b'{"name": "caf\xe9"}')
    with pytest.raises(LoadError, match="is not valid JSON"):
        load_local(folder)


def test_a_newer_format_asks_for_another_pgmkit(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="format_version 2 and this pgmkit reads 1; install"):
        load_local(write_folder(tmp_path / "model", format_version=2))


def test_a_missing_architecture_is_named_with_what_replaces_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", architecture=None)
    with pytest.raises(LoadError, match="nothing says of which network") as caught:
        load_local(folder)
    assert "--architecture auto" in str(caught.value)
    assert f"pgmkit generators inspect local-dir:{folder}" in str(caught.value)
    given = load_local(folder, architecture="dcgan")
    assert given.fingerprint() == tiny_generator().fingerprint()


@pytest.mark.parametrize(
    ("key", "said"),
    [("latent", "4 normal dimensions, as latent_dim is 4"), ("image", r"1x32x32 .*\[-1, 1\]")],
)
def test_missing_specs_are_found_and_said(tmp_path: Path, key: str, said: str) -> None:
    folder = write_folder(tmp_path / "model", **{key: None})
    with pytest.warns(PgmkitNote, match=said):
        found = load_local(folder)
    assert found.fingerprint() == tiny_generator().fingerprint()
    assert any(re.search(said, note) for note in found.provenance["notes"])
    given = {"latent": LatentSpec(4), "image": ImageSpec((1, 32, 32))}
    assert "notes" not in load_local(folder, **{key: given[key]}).provenance


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": ["dcgan"]}, "'architecture'"),
        ({"architecture": {"name": "dcgan"}}, "'architecture'"),
        ({"model_args": ["latent_dim"]}, "'model_args'"),
        ({"model_args": {"channels": "wide"}}, "channels"),
        ({"model_args": {"width": 4}}, "'width'"),
        ({"latent": 4}, "'latent'"),
        ({"latent": {"dim": "4"}}, "dim"),
        ({"latent": {"dim": 4, "sigma": 1}}, "'sigma'"),
        ({"image": [1, 32, 32]}, "'image'"),
        ({"image": {"shape": 32}}, "'shape' in 'image'"),
        ({"image": {"shape": [1, 32, 32], "range": ["a", 1]}}, "'range' in 'image'"),
        ({"image": {"range": [0, 1]}}, "'shape'"),
        ({"provenance": "a paper"}, "'provenance'"),
        ({"name": 5}, "'name'"),
        ({"weights_key": ["ema"]}, "'weights_key'"),
        ({"weights": ["a"]}, "'weights'"),
    ],
)
def test_a_misshapen_field_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises((LoadError, ParameterError), match=named) as caught:
        load_local(write_folder(tmp_path / "model", **changes))
    assert isinstance(caught.value, PgmkitError)


def test_arguments_of_a_component_that_are_missing_are_inferred_and_said(tmp_path: Path) -> None:
    with pytest.warns(PgmkitNote) as caught:
        generator = load_local(write_folder(tmp_path / "model", model_args=None))
    assert any("the first weight is" in str(warning.message) for warning in caught)
    assert generator.fingerprint() == tiny_generator().fingerprint()
    assert list(generator.model_args["channels"]) == MODEL_ARGS["channels"]


def test_an_unknown_architecture_lists_the_nearest_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'dcgn'; did you mean 'dcgan'") as caught:
        load_local(write_folder(tmp_path / "model", architecture="dcgn"))
    assert "install a plugin that offers it, or pass architecture=YourClass" in str(caught.value)


def test_an_architecture_can_be_named_with_its_distribution(tmp_path: Path) -> None:
    generator = load_local(write_folder(tmp_path / "model", architecture="pgmkit:dcgan"))
    assert generator.fingerprint() == tiny_generator().fingerprint()


def test_a_class_of_the_user_takes_the_weights(tmp_path: Path) -> None:
    module = Flat()
    folder = flat_folder(tmp_path / "flat", module.state_dict())
    generator = load_local(folder, architecture=Flat)
    z = generator.sample_latents(5, seed=0)
    assert isinstance(generator.module, Flat)
    assert torch.equal(generator(z).flatten(1), module(z).detach())
    assert generator.architecture is None


def test_a_generator_of_the_user_comes_back_with_its_class_alone(tmp_path: Path) -> None:
    original = Generator(Flat(), LatentSpec(3, "uniform"), ImageSpec((1, 4, 4)), name="flat")
    write_generator(tmp_path, original)
    with pytest.raises(LoadError, match=r"own, test_hub:Flat, .*--architecture test_hub:Flat"):
        load_local(tmp_path)
    assert load_local(tmp_path, architecture=Flat).fingerprint() == original.fingerprint()


def test_a_class_of_the_user_may_rename_the_weights(tmp_path: Path) -> None:
    module = Flat()
    state = {name.replace("linear.", "fc."): v for name, v in module.state_dict().items()}
    folder = flat_folder(tmp_path / "flat", state)
    generator = load_local(folder, architecture=Renamed)
    assert torch.equal(generator.module.linear.weight, module.linear.weight)


def test_an_architecture_that_builds_no_module_is_refused(tmp_path: Path) -> None:
    folder = flat_folder(tmp_path / "flat", Flat().state_dict())
    with pytest.raises(LoadError, match="builds a list, no module"):
        load_local(folder, architecture=list)


def test_specs_that_do_not_fit_the_module_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", image={"shape": [3, 32, 32]})
    with pytest.raises(GeneratorError, match=r"its image spec says \(2, 3, 32, 32\)"):
        load_local(folder)


# Weights


def test_missing_unknown_and_misshapen_weights_are_all_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    state = tiny_generator().module.state_dict()
    del state["layers.0.weight"]
    state["extra"] = torch.zeros(1)
    state["layers.1.bias"] = torch.zeros(5)
    (folder / "model.safetensors").write_bytes(save(state))
    with pytest.raises(LoadError, match="do not fit DCGANGenerator") as caught:
        load_local(folder)
    message = str(caught.value)
    assert "missing: layers.0.weight" in message
    assert "unknown: extra" in message
    assert "of another shape: layers.1.bias (5,) instead of (8,)" in message
    assert "give the class that made them (architecture) or its arguments (model_args)" in message


def test_many_missing_weights_are_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(save({"layers.0.weight": torch.zeros(2)}))
    with pytest.raises(LoadError, match=r"missing: .* and \d+ more"):
        load_local(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_safetensors_file_is_named(tmp_path: Path, kept: int) -> None:
    path = write_folder(tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LoadError, match=f"{path} {CUT}"):
        load_local(path.parent)


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_truncated_torch_file_is_named(tmp_path: Path, kept: int) -> None:
    state = tiny_generator().module.state_dict()
    path = write_torch_folder(tmp_path / "model", state) / "model.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LoadError, match=f"{path} {CUT}"):
        load_local(path.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_file_that_git_lfs_did_not_fetch_is_called_a_pointer(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "model", weights=name)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7128\n"
    (folder / name).write_bytes(pointer)
    with pytest.raises(LoadError, match=r"is a Git LFS pointer .*; run git lfs pull"):
        load_local(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_torch_file_of_tensors_loads(tmp_path: Path, name: str) -> None:
    state = tiny_generator().module.state_dict()
    generator = load_local(write_torch_folder(tmp_path / "model", state, name))
    assert generator.fingerprint() == tiny_generator().fingerprint()
    path = tmp_path / "model" / name
    assert generator.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_weights_key_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    contents = {"ema": tiny_generator().module.state_dict(), "step": 7}
    folder = write_torch_folder(tmp_path / "model", contents, weights_key="model")
    with pytest.raises(LoadError, match=r"no entry 'model'; it holds ema \(19 entries\), step"):
        load_local(folder)


def save_module(path: Path, bomb: Bomb) -> None:
    module = tiny_generator().module
    module.bomb = bomb  # type: ignore[assignment]
    torch.save(module, path)


def save_checkpoint(path: Path, bomb: Bomb) -> None:
    torch.save({**tiny_generator().module.state_dict(), "bomb": bomb}, path)


def save_old_format(path: Path, bomb: Bomb) -> None:
    torch.save({"bomb": bomb}, path, _use_new_zipfile_serialization=False)


def save_plain_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def save_plain_text_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=0))


@pytest.mark.parametrize(
    "save_bomb",
    [save_module, save_checkpoint, save_old_format, save_plain_pickle],
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickled_module_is_refused_without_running_it(
    tmp_path: Path, save_bomb: Callable[[Path, Bomb], None], name: str
) -> None:
    marker = tmp_path / "code-was-run"
    folder = write_folder(tmp_path / "model", weights=name)
    save_bomb(folder / name, Bomb(marker))
    with pytest.raises(LoadError, match="loading it would run code") as caught:
        load_local(folder)
    assert "safetensors.torch.save_file(module.state_dict(), 'model.safetensors')" in str(
        caught.value
    )
    assert not marker.exists()


@pytest.mark.parametrize("save_bomb", [save_module, save_plain_pickle, save_plain_text_pickle])
def test_a_pickle_named_safetensors_is_not_run_either(
    tmp_path: Path, save_bomb: Callable[[Path, Bomb], None]
) -> None:
    marker = tmp_path / "code-was-run"
    folder = write_folder(tmp_path / "model")
    save_bomb(folder / "model.safetensors", Bomb(marker))
    with pytest.raises(LoadError, match="is truncated or damaged"):
        load_local(folder)
    assert not marker.exists()


def test_a_pickle_from_the_hub_is_refused_without_running_it(
    server: HubServer, tmp_path: Path
) -> None:
    marker = tmp_path / "code-was-run"
    folder = write_folder(tmp_path / "model", weights="model.pt")
    save_module(folder / "model.pt", Bomb(marker))
    server.add("org/bomb", {**server_files(folder), "modeling.py": b"raise SystemExit"})
    with pytest.raises(LoadError, match="loading it would run code"):
        load_generator("hf-hub:org/bomb")
    assert not marker.exists()
    assert not any(path.endswith(".py") for path in server.downloads())


@pytest.mark.parametrize("save_bomb", [save_checkpoint, save_plain_pickle, save_plain_text_pickle])
def test_the_bomb_of_these_tests_does_go_off(
    tmp_path: Path, save_bomb: Callable[[Path, Bomb], None]
) -> None:
    marker = tmp_path / "code-was-run"
    save_bomb(tmp_path / "file", Bomb(marker))
    if save_bomb is save_checkpoint:
        torch.load(tmp_path / "file", weights_only=False)
    else:
        pickle.loads((tmp_path / "file").read_bytes())
    assert marker.exists()


def server_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
