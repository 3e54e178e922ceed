"""What is pushed to the Hub, and what its card tells."""

import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import snapshot_download
from PIL import Image
from tiny import run_pgmkit, write_tiny_classifier, write_tiny_generator
from torch import nn

import pgmkit
from pgmkit.errors import LoadError, PgmkitError, PgmkitWarning
from pgmkit.generator import Generator, LatentSpec
from pgmkit.images.source import ImageSpec
from pgmkit.loading.cards import card_header, plain, public
from pgmkit.loading.hub import push_folder
from pgmkit.shattering import ShatteredGenerator

NETWORK = """
from torch import Tensor, nn

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 16)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).tanh()
"""


@pytest.fixture(autouse=True)
def _logged_in(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_generator(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def result(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `pgmkit shatter`, with scores of a classifier."""
    root = tmp_path_factory.mktemp("run")
    done = run_pgmkit(
        *("shatter", source, "-o", root / "out", "--latents", 60, "--clusters", 3),
        *("--sampler", "kmeans-gmm", "--set", "sampler.num_components=1"),
        *("--density", "lash", "--set", "density.prior_term=false", "--seed", 4),
        *("--classifier", write_tiny_classifier(root / "classifier")),
    )
    assert done.code == 0, done.stderr
    return root / "out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small file and one that is always large to the Hub."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Generator]:
    """A generator whose class no plugin offers."""
    (tmp_path / "flat_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    from flat_network import Flat  # type: ignore[import-not-found]

    yield Generator(Flat(), LatentSpec(3), ImageSpec((1, 4, 4)), name="flat")
    sys.modules.pop("flat_network")


def card(server: HubServer, name: str = "me/tiny") -> str:
    return server.files(name)["README.md"].decode()


def header(text: str) -> dict[str, Any]:
    _, metadata, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(metadata)
    return found


def snippets(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_snippet(snippet: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    return names


# There and back


def test_what_was_pushed_comes_back_byte_for_byte(
    server: HubServer, result: Path, tmp_path: Path
) -> None:
    shattered = ShatteredGenerator.from_pretrained(result)
    shattered.push_to_hub("me/tiny")
    for name in ("model.safetensors", "sampler.safetensors", "sampler.json", "samples.png"):
        assert server.files("me/tiny")[name] == (result / name).read_bytes(), name
    back = Path(snapshot_download("me/tiny", local_dir=tmp_path / "back"))
    for name, content in server.files("me/tiny").items():
        assert (back / name).read_bytes() == content
    loaded = pgmkit.load("hf-hub:me/tiny")
    assert isinstance(loaded, ShatteredGenerator)
    assert torch.equal(loaded.sample(9, seed=2), shattered.sample(9, seed=2))


class Heavy(nn.Module):
    """Holds 11 MB and uses little of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 2_750_000))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ self.weight[:12].view(3, 4))


def test_files_of_more_than_ten_megabytes_go_through_lfs_and_come_back(
    server: HubServer,
) -> None:
    heavy = Generator(Heavy(), LatentSpec(3), ImageSpec((1, 2, 2)), name="heavy")
    heavy.push_to_hub("me/heavy")
    content = server.files("me/heavy")["model.safetensors"]
    assert len(content) > 10_000_000
    stored = f"/storage/{hashlib.sha256(content).hexdigest()}"
    assert stored in [r.path for r in server.requests if r.method == "PUT"]
    back = pgmkit.load_generator("hf-hub:me/heavy", architecture=Heavy)
    assert torch.equal(back.module.weight, heavy.module.weight)
    path = snapshot_download("me/heavy", allow_patterns="*.safetensors")
    assert (Path(path) / "model.safetensors").read_bytes() == content


def test_a_plain_generator_is_pushed_with_samples(server: HubServer, source: str) -> None:
    address = pgmkit.load_generator(source).push_to_hub("me/plain", private=True, message="mine")
    assert address == f"{server.url}/me/plain"
    files = server.files("me/plain")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert server.repositories["me/plain"].private
    (snippet,) = snippets(card(server, "me/plain"))
    assert run_snippet(snippet)["images"].shape == (16, 1, 32, 32)


def test_hidden_files_spectra_and_leftovers_stay_behind(server: HubServer, tmp_path: Path) -> None:
    for name in (
        *("config.json", ".lock", ".pgmkit-tmp-1", "sub/.hidden", ".git/config", "sub/x.png"),
        *("spectrum/block-0.safetensors", "spectrum/manifest.json"),
    ):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(name.encode())
    push_folder(tmp_path / "model", "me/tiny")
    assert sorted(server.files("me/tiny")) == ["config.json", "sub/x.png"]


# The command


def test_a_result_is_pushed_from_the_command_line(server: HubServer, result: Path) -> None:
    done = run_pgmkit("generators", "push", result, "me/tiny", "--private", "-m", "first")
    assert (done.code, done.stdout) == (0, f"{server.url}/me/tiny\n"), done.stderr
    report = json.loads((result / "report.json").read_text())
    text = card(server)
    for cluster in report["clusters"]:
        row = f"| {cluster['index']} | {cluster['size']:,} | {cluster['share']:.1%} | "
        assert row in text
        assert f"{cluster['purity']:.2f} |" in text
    for scores in report["scores"].values():
        assert f"AMI {scores['adjusted_mutual_information']:.3f}" in text
        assert f"purity {scores['overall_purity']:.3f}" in text


def test_a_generator_is_pushed_from_the_command_line(server: HubServer, source: str) -> None:
    done = run_pgmkit("generators", "push", source, "me/plain", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["address"] == f"{server.url}/me/plain"
    assert pgmkit.load_generator("hf-hub:me/plain").name == "tiny"


def test_scores_of_another_result_are_not_shown(
    server: HubServer, result: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    ShatteredGenerator.from_pretrained(result).save_pretrained(copied)
    report = json.loads((result / "report.json").read_text())
    report["clusters"][0]["size"] += 1
    for text in (json.dumps(report), "{", "[]", '{"clusters": 3}'):
        (copied / "report.json").write_text(text)
        done = run_pgmkit("generators", "push", copied, "me/tiny")
        assert done.code == 0, done.stderr
        assert "AMI" not in card(server)
        assert "purity" not in card(server)


# Refusals


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/na me", "", "https://huggingface.co/me/x"])
def test_a_name_that_is_none_is_refused_before_anything_is_loaded(
    server: HubServer, name: str
) -> None:
    done = run_pgmkit("generators", "push", "local-dir:/nowhere", name)
    assert done.code == 1
    assert "that is no name of a repository; write org/name" in done.stderr
    assert server.requests == []


def fail_at(server: HubServer, step: str, status: int) -> None:
    """Lets the server answer a step of a push, which is part of its address, with a status."""

    def fail(handler: Any) -> bool:
        server.failure = status if step in handler.path else None
        return False

    server.fault, server.failure_headers = fail, {"Retry-After": "90"}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "answers HTTP 400 (the Hub is out of order): correct what it says"),
        (401, "there is no token, or a wrong one; log in with a token that may write"),
        (403, "your token may not write to 'me'"),
        (404, "has no such repository for you"),
        (413, "too large for this Hub"),
        (429, "asks to come again in 90 s"),
        (500, "is out of order (HTTP 500); try again later"),
    ],
)
def test_a_refused_push_says_why(server: HubServer, folder: Path, status: int, said: str) -> None:
    fail_at(server, "create", status)
    with pytest.raises(LoadError) as caught:
        push_folder(folder, "me/tiny")
    assert said in str(caught.value)


@pytest.mark.parametrize("step", ["preupload", "batch", "storage", "verify", "/commit/"])
@pytest.mark.parametrize("status", [403, 500])
def test_every_step_of_a_push_is_refused_in_one_line(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, status: int, step: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    fail_at(server, step, status)
    with pytest.raises(LoadError) as caught:
        push_folder(folder, "me/tiny")
    message = str(caught.value)
    assert message.startswith("cannot push to 'me/tiny': ")
    assert f"HTTP {status}" in message
    assert "\n" not in message
    assert server.files("me/tiny") == {}


def test_a_token_that_only_reads_is_told_from_none(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("me/tiny", {"config.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", server.reader)
    with pytest.raises(LoadError, match=r"HTTP 403 .*: your token may not write to 'me'; use a"):
        push_folder(folder, "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LoadError, match=r"HTTP 401 .*: there is no token, or a wrong one"):
        push_folder(folder, "me/tiny")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_hub_that_falls_silent_in_a_push_is_not_waited_for(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def silent(handler: Any) -> bool:
        if handler.command == method:
            server.stopped.wait()
        return handler.command == method

    server.fault = silent
    monkeypatch.setattr("pgmkit.loading.requests.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("pgmkit.loading.requests.STALL_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(LoadError, match=rf"{server.url} cannot be reached \(no answer"):
        push_folder(folder, "me/tiny")
    assert time.monotonic() - started < 5


# Cards


def test_the_snippet_and_the_recipe_of_a_pushed_card_run(
    server: HubServer, result: Path, tmp_path: Path
) -> None:
    pushed = ShatteredGenerator.from_pretrained(result)
    pushed.push_to_hub("me/tiny")
    use, recipe = snippets(card(server))
    assert run_snippet(use)["images"].shape == (16, 1, 32, 32)
    again = run_snippet(recipe)["m"]
    assert again.cluster_sizes == pushed.cluster_sizes
    assert torch.equal(again.sample(5, seed=1), pushed.sample(5, seed=1))
    (command,) = snippets(card(server), "bash")
    program, *arguments = shlex.split(command)
    assert program == "pgmkit"
    arguments[arguments.index("-o") + 1] = str(tmp_path / "again")
    done = run_pgmkit(*arguments)
    assert done.code == 0, done.stderr
    saved = ShatteredGenerator.from_pretrained(tmp_path / "again")
    assert saved.cluster_sizes == pushed.cluster_sizes
    assert saved.origin.density == pushed.origin.density
    assert saved.origin.sampler == pushed.origin.sampler


def test_the_snippet_of_a_network_of_one_s_own_names_its_class(
    server: HubServer, own: Generator
) -> None:
    own.push_to_hub("me/flat")
    text = card(server, "me/flat")
    assert "from flat_network import Flat" in text
    assert "`Flat` of the module `flat_network`, which no plugin of pgmkit offers" in text
    assert "Linear(in_features=3, out_features=16, bias=True)" in text
    (snippet,) = snippets(text)
    assert run_snippet(snippet)["images"].shape == (16, 1, 4, 4)
    shattered = pgmkit.shatter(own, partitioner="kmeans", clusters=2, latents=40)
    shattered.push_to_hub("me/split")
    for snippet in snippets(card(server, "me/split")):
        assert run_snippet(snippet)["m"].cluster_sizes == shattered.cluster_sizes


def test_a_network_of_one_s_own_is_pushed_from_the_command_line(
    server: HubServer, own: Generator, tmp_path: Path
) -> None:
    pgmkit.shatter(own, partitioner="kmeans", clusters=2, latents=40).save_pretrained(
        tmp_path / "split"
    )
    arguments = ("generators", "push", tmp_path / "split", "me/split")
    assert run_pgmkit(*arguments).code == 1
    done = run_pgmkit(*arguments, "--architecture", "flat_network:Flat")
    assert done.code == 0, done.stderr
    assert "from flat_network import Flat" in card(server, "me/split")


def test_a_network_built_by_hand_is_printed(server: HubServer) -> None:
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh())
    toy = Generator(net, LatentSpec(2), ImageSpec((1, 4, 4)), name="toy")
    toy.push_to_hub("me/toy")
    text = card(server, "me/toy")
    assert "Sequential = ...  # in place of the dots" in text
    assert "(0): Linear(in_features=2, out_features=16, bias=True)" in text


def test_the_picture_has_a_numbered_row_for_each_cluster(server: HubServer, result: Path) -> None:
    shattered = ShatteredGenerator.from_pretrained(result)
    shattered.push_to_hub("me/tiny")
    shown = snapshot_download("me/tiny", allow_patterns="samples.png")
    with Image.open(Path(shown) / "samples.png") as picture:
        # Images of 32 pixels with a border of one, enlarged twice.
        height, margin = 2 * 34, picture.width - 2 * (8 * 33 + 1)
        assert picture.height == height * shattered.num_clusters
        numbers = [
            picture.crop((0, row * height, margin, (row + 1) * height)).tobytes()
            for row in range(shattered.num_clusters)
        ]
    assert len(set(numbers)) == shattered.num_clusters


def test_points_are_drawn_in_a_square_for_each_cluster(server: HubServer) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    toy = Generator(net, LatentSpec(2), ImageSpec((2,)), name="plane")
    pgmkit.shatter(toy, partitioner="kmeans", clusters=3, latents=60).push_to_hub("me/plane")
    assert "points of 2 coordinates" in card(server, "me/plane")
    shown = snapshot_download("me/plane", allow_patterns="samples.png")
    with Image.open(Path(shown) / "samples.png") as picture:
        assert picture.height == 3 * 2 * 256


def test_a_card_tells_the_numbers_of_the_removal(server: HubServer, result: Path) -> None:
    shattered = ShatteredGenerator.from_pretrained(result)
    shattered.push_to_hub("me/tiny")
    statistics, text = shattered.origin.statistics, card(server)
    assert f"`pgmkit:lash` kept {statistics['num_kept']} of 60 latents" in text
    assert f"mass {statistics['mass_kept']:.3f}" in text
    assert f"effective sample size {statistics['effective_sample_size']:,.0f}" in text


def test_the_header_of_a_card_has_tags_and_licence(server: HubServer, source: str) -> None:
    generator = pgmkit.load_generator(source)
    generator.provenance["license"] = "Apache-2.0"
    generator.push_to_hub("me/tiny")
    assert header(card(server)) == {
        "library_name": "pgmkit",
        "license": "apache-2.0",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["pgmkit", "gan"],
    }
    assert "| licence | Apache-2.0 |" in card(server)


@pytest.mark.parametrize(
    ("name", "license_name"),
    [
        ("MIT\nevil: true", "mit-evil-true"),
        ("MIT\n---\n# mine", "mit-mine"),
        ("my own: {licence}", "my-own-licence"),
        ("\x1b[31mred", "31mred"),
    ],
)
def test_a_licence_cannot_add_lines_to_a_card(name: str, license_name: str) -> None:
    assert header("\n".join(card_header(name, "x"))) == {
        "library_name": "pgmkit",
        "license": "other",
        "license_name": license_name,
        "pipeline_tag": "x",
    }


def test_texts_of_others_are_shown_and_do_nothing(server: HubServer, source: str) -> None:
    generator = pgmkit.load_generator(source)
    generator.name = "\x1b]0;title\x07<script>alert(1)</script> [x](http://evil)\n# head"
    generator.provenance |= {"note|": "a | b\n\n```\nrm\n```", "license": "MIT"}
    generator.push_to_hub("me/tiny")
    text = card(server)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "<script" not in text.replace(r"\<", "")
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]", text)
    assert text.count("\n# ") == 1
    assert len(snippets(text)) == 1
    assert plain("a_b*c") == r"a\_b\*c"


def test_paths_passwords_and_tokens_stay_on_this_machine(
    server: HubServer, source: str, tmp_path: Path
) -> None:
    generator = pgmkit.load_generator(source)
    token = "hf_" + "Abc123" * 5
    generator.provenance |= {
        "data": str(tmp_path / "images.npz"),
        "training": {"root": "~/data", "epochs": 3, "files": ["./a", "b"]},
        "mirror": "https://user:hunter2@mirror.org/x",
        "log": f"logged in with {token}",
    }
    shattered = pgmkit.shatter(generator, sampler="kmeans-gmm", clusters=2, latents=40)
    for push in (generator.push_to_hub, shattered.push_to_hub):
        push("me/tiny")
        everything = b"\n".join(server.files("me/tiny").values())
        for secret in (str(tmp_path), "~/data", "./a", "hunter2", token, source):
            assert secret.encode() not in everything
        config = json.loads(server.files("me/tiny")["config.json"])
        assert config["provenance"]["training"] == {"epochs": 3, "files": ["b"]}
        assert len(config["provenance"]["sha256"]) == 64
    assert generator.provenance["reference"] == source


def test_a_sampler_that_needs_a_path_is_warned_of(server: HubServer, result: Path) -> None:
    shattered = ShatteredGenerator.from_pretrained(result)
    shattered.origin.sampler["params"]["extractor"] = "/home/me/net.pt"  # type: ignore[index]
    with pytest.warns(PgmkitWarning, match=r"me/tiny names /home/me/net\.pt, which others do not"):
        shattered.push_to_hub("me/tiny")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me", None),
        ("local-dir:x", None),
        (r"C:\data", None),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("mnist-dcgan", "mnist-dcgan"),
        ({"a": {"b": "~/x"}}, None),
        ([1, "/x", 2.5, True, None], [1, 2.5, True]),
    ],
)
def test_what_is_public_of_a_record(value: Any, shown: Any) -> None:
    assert public(value) == shown


def test_a_sampler_that_cannot_be_saved_is_not_pushed(server: HubServer, source: str) -> None:
    from sklearn.mixture import GaussianMixture

    class Mine:
        def fit(self, latents: torch.Tensor, **_: Any) -> None:
            self.labels_ = torch.as_tensor(GaussianMixture(2).fit_predict(latents))

        def predict(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(latents), dtype=torch.int64)

        def sample(self, n: int, cluster: int, seed: int) -> torch.Tensor:
            return torch.zeros(n, 4)

    shattered = pgmkit.shatter(pgmkit.load_generator(source), sampler=Mine(), latents=40)
    with pytest.raises(PgmkitError, match="cannot be saved"):
        shattered.push_to_hub("me/tiny")
    assert server.repositories == {}
