"""Features: what all of them promise, and what each is for."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import groups
import numpy as np
import pytest
import safetensors.torch
import timm
import tiny
import torch
from groups import Pictures, agreement, every, made, pictures
from sklearn import decomposition
from sklearn.cluster import KMeans
from torch import Tensor, nn

from pgmkit import contracts
from pgmkit.errors import (
    GeneratorError,
    LoadError,
    ParameterError,
    PgmkitError,
    PgmkitWarning,
    PluginError,
    UnknownNameError,
)
from pgmkit.images import GeneratedImages, shrunk
from pgmkit.learning.encoder import image_bytes, looked_at
from pgmkit.learning.pca import leading_eigenvectors, principal_components
from pgmkit.loading.discriminators import load_discriminator
from pgmkit.partition import fit_partitioner, load_partitioner
from pgmkit.plugins import build, list_components
from pgmkit.states import load_state_of, state_of

TINY = "test_resnet"
"""A timm model with 0.5 million weights, made for tests."""

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SEES_IMAGES_ALONE = ("classifier", "contrastive", "discriminator", "network", "timm")


def timm_table(**parameters: Any) -> dict[str, Any]:
    return {"name": "timm", "model": TINY, "pretrained": False, "input_size": 32, **parameters}


def convolution() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3, stride=2)


TABLES: dict[str, Callable[[], dict[str, Any]]] = {
    "latents": lambda: {"name": "latents"},
    "pixels": lambda: {"name": "pixels", "image_size": 4},
    "pca": lambda: {"name": "pca", "num_dims": 5},
    "pca of timm": lambda: {"name": "pca", "features": timm_table(), "num_dims": 5},
    "timm": timm_table,
    "network": lambda: {"name": "network", "module": convolution()},
    "classifier": lambda: {"name": "classifier"},
    "discriminator": lambda: {"name": "discriminator"},
    "contrastive": lambda: {"name": "contrastive", "steps": 4, "batch_size": 32, "width": 4},
}
WIDTHS = {
    "latents": 6,
    "pixels": 48,
    "pca": 5,
    "pca of timm": 5,
    "timm": 96,
    "network": 36,
    "classifier": 128,
    "discriminator": 128,
    "contrastive": 128,
}


@dataclass(frozen=True)
class Case:
    """One kind of features, as a table, and images that it can look at."""

    label: str
    table: dict[str, Any]
    source: Pictures

    def build(self) -> Any:
        return build("features", self.table)

    def fitted(self, seed: int = 0, source: Pictures | None = None) -> Any:
        features = self.build()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the weights of .* are random", PgmkitWarning)
            contracts.fit("features", features, source or self.source, seed)
        return features


@pytest.fixture(scope="module", params=TABLES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    table, seen = TABLES[request.param](), pictures(80)[0]
    if request.param == "latents":
        seen = Pictures(made(80)[1])
    if request.param == "classifier":
        table["classifier"] = tiny.write_tiny_classifier(tmp_path_factory.mktemp("x") / "y")
        seen = Pictures(seen.values[:, :1])
    if request.param == "discriminator":
        table["source"] = tiny.write_tiny_gan(tmp_path_factory.mktemp("x") / "gan")
    return Case(request.param, table, seen)


@pytest.fixture(scope="module")
def fitted(case: Case) -> Any:
    return case.fitted()


def test_every_built_in_is_among_the_cases() -> None:
    offered = {component.name for component in list_components("features")}
    assert offered == {table()["name"] for table in TABLES.values()} | {"fixed"}


def test_points_are_finite_and_one_for_each_image(case: Case, fitted: Any) -> None:
    x = every(case.source)
    points = contracts.points_of(fitted, x)
    assert points.shape == (80, WIDTHS[case.label])
    assert points.is_floating_point()
    assert points.isfinite().all()
    assert not torch.equal(points[0], points[1])
    alone = contracts.points_of(fitted, x[5:8])
    torch.testing.assert_close(alone, points[5:8], rtol=1e-4, atol=1e-5)
    assert contracts.points_of(fitted, x[:0]).shape == (0, points.shape[1])


def test_points_have_a_gradient_by_the_image(case: Case, fitted: Any) -> None:
    """So that logits made of them can guide a generator."""
    x = every(case.source)[:3].requires_grad_()
    points = contracts.points_of(fitted, x)
    (points * torch.linspace(-1, 1, points.shape[1])).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax(dim=tuple(range(1, x.ndim))).min() > 0
    parameters = fitted.parameters() if isinstance(fitted, nn.Module) else ()
    assert not any(parameter.requires_grad for parameter in parameters)


def test_the_same_seed_gives_the_same_points(case: Case, fitted: Any, one_thread: None) -> None:
    x = every(case.source)
    before = torch.random.get_rng_state()
    points, again, other = (contracts.points_of(case.fitted(seed), x) for seed in (3, 3, 4))
    assert torch.equal(points, again)
    drawn = case.label in ("contrastive", "timm", "pca of timm")
    assert torch.equal(points, other) is not drawn
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_saved_gives_the_same_points(case: Case, fitted: Any) -> None:
    if case.label == "network":
        with pytest.raises(
            PluginError, match=r"cannot be saved: .*(object of your own|neither state)"
        ):
            state_of(fitted)
        return
    state = state_of(fitted)
    assert all(isinstance(value, Tensor) for value in state.values())
    loaded = case.build()
    load_state_of(loaded, state)
    x = every(case.source)
    assert torch.equal(contracts.points_of(loaded, x), contracts.points_of(fitted, x))


def test_points_lie_where_the_images_lie(case: Case, fitted: Any) -> None:
    for device in DEVICES:
        there = Pictures(case.source.values, torch.device(device))
        x = every(there)
        found = contracts.points_of(case.fitted(source=there), x)
        assert found.device == x.device
        assert contracts.points_of(fitted, x).device == x.device


def test_points_of_the_plane_are_refused_by_what_looks_at_images(case: Case) -> None:
    if case.table["name"] in SEES_IMAGES_ALONE or case.label == "pca of timm":
        with pytest.raises(ParameterError, match=r"looks? at images|cannot look at"):
            case.fitted(source=groups.points())
    else:
        found = contracts.points_of(case.fitted(source=groups.points()), groups.points().values)
        assert found.shape == (60, 2)


def test_groups_are_apart_in_their_pixels_and_components() -> None:
    source, group = pictures(300)
    for table in ({"name": "pixels"}, {"name": "pca"}, {"name": "pca", "features": "pixels"}):
        features = build("features", table)
        features.fit(source, seed=0)
        found = KMeans(4, n_init=4, random_state=0).fit_predict(features(every(source)).numpy())
        assert agreement(torch.from_numpy(found), group) > 0.95


def test_latents_stay_as_they_are() -> None:
    features, latents = build("features", "latents"), made(9)[1]
    assert features.space == "latents"
    assert build("features", {"name": "pca", "features": "latents"}).space == "latents"
    assert build("features", "pca").space == "images"
    assert torch.equal(features(latents), latents.double())


def test_images_are_shrunk_in_proportion_and_smoothed() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 32, 64)
    small = shrunk(stripes, 16)
    assert small.shape == (1, 3, 8, 16)
    torch.testing.assert_close(small[..., 2:-2], torch.full((1, 3, 8, 12), 0.5), atol=0.05, rtol=0)
    assert shrunk(stripes, 64) is stripes
    torch.testing.assert_close(
        build("features", {"name": "pixels", "image_size": 16})(stripes), small.flatten(1).double()
    )


def test_components_are_those_of_all_rows_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(500, 40, generator=random).double() @ torch.diag(torch.arange(1.0, 41)).double()
    )
    rows += 1000.0
    mean, components = principal_components(rows.split(64), 5)
    expected = decomposition.PCA(5, svd_solver="full").fit(rows.numpy())
    torch.testing.assert_close(mean, torch.from_numpy(expected.mean_))
    torch.testing.assert_close(components.abs(), torch.from_numpy(expected.components_).abs())
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    alone = principal_components(rows[:, :1].split(64), 3)  # of points on a line
    assert torch.allclose(alone[0], rows[:, 0].mean(dim=0, keepdim=True))
    assert alone[1].tolist() == [[1.0]]
    _, few = principal_components(iter([rows[:3]]), 10)
    assert len(few) == 2
    with pytest.raises(GeneratorError, match="not finite"):
        principal_components(iter([torch.full((4, 3), torch.nan).double()]), 2)


def test_few_and_all_eigenvectors_agree() -> None:
    half = np.random.default_rng(0).standard_normal((60, 60))
    matrix = half @ half.T
    values, vectors = leading_eigenvectors(matrix, 4)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:4])
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-9)
    assert leading_eigenvectors(matrix, 99)[0].shape == (60,)


def test_components_are_projected_on_around_their_mean() -> None:
    source, _ = pictures(100)
    features = build("features", {"name": "pca", "num_dims": 4})
    features.fit(source, seed=0)
    found = features(every(source))
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(4).double(), atol=1e-5, rtol=0)
    variances = found.var(dim=0)
    assert (variances[:-1] >= variances[1:]).all()
    covariance = found.T @ found
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4 * covariance.max()


def test_images_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(GeneratorError, match=r"all 40 .* are the same"):
        build("features", "pca").fit(Pictures(torch.full((40, 1, 4, 4), 0.3)), seed=0)


class Recorder(nn.Module):
    """A module that keeps what it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.flatten(2).mean(dim=2)


def test_a_module_of_your_own_sees_the_images_as_they_are() -> None:
    source, _ = made(60)
    recorder = Recorder().train()
    features = build("features", "network", module=recorder, normalize=False)
    features.fit(source, seed=0)
    assert not recorder.training
    x = every(source)[:5]
    torch.testing.assert_close(features(x), x.flatten(2).mean(dim=2))
    assert torch.equal(recorder.images, x)


@pytest.mark.parametrize("label", ["timm", "network", "classifier", "discriminator"])
def test_features_have_length_1_unless_that_is_not_wanted(label: str, tmp_path: Path) -> None:
    table, (source, _) = TABLES[label](), pictures(20)
    if label == "classifier":
        table["classifier"] = tiny.write_tiny_classifier(tmp_path / "classifier")
        source = Pictures(source.values[:, :1])
    if label == "discriminator":
        table["source"] = tiny.write_tiny_gan(tmp_path / "gan")
    found = []
    for normalize in (True, False):
        features = Case(label, {**table, "normalize": normalize}, source).fitted()
        found.append(features(every(source)).double())
    torch.testing.assert_close(found[0].norm(dim=1), torch.ones(20).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0] * found[1].norm(dim=1, keepdim=True), found[1])


def test_a_network_that_cannot_look_at_the_images_is_named() -> None:
    with pytest.raises(
        ParameterError, match=r"network Conv2d cannot look at images of \(3, 8, 8\)"
    ):
        build("features", "network", module=nn.Conv2d(1, 2, 3)).fit(pictures(4)[0], seed=0)
    with pytest.raises(ParameterError, match=r"module must be a torch.nn.Module, not 'resnet'"):
        build("features", "network", module="resnet")


def test_a_classifier_shows_what_its_last_layer_sees(tmp_path: Path) -> None:
    name = tiny.write_tiny_classifier(tmp_path / "classifier")
    x = pictures(6)[0].values[:, :1]
    features = build("features", "classifier", classifier=name, normalize=False)
    assert torch.equal(features(x), features._module.features(x))
    with pytest.raises(LoadError, match="nowhere"):
        build("features", "classifier", classifier=f"local-dir:{tmp_path / 'nowhere'}")


def of_discriminator(source: str, **more: Any) -> Any:
    return build("features", "discriminator", source=source, **more)


def test_a_discriminator_shows_what_its_last_layer_sees(tmp_path: Path) -> None:
    """A convolution of all that is seen, which gives the logit."""
    name, (source, _) = tiny.write_tiny_gan(tmp_path), pictures(6)
    features = of_discriminator(name, normalize=False)
    features.fit(source, seed=0)
    module = load_discriminator(name).module
    x = every(source)
    logits = features(x) @ module.layers[-1].weight.flatten()  # type: ignore[operator, union-attr, index]
    torch.testing.assert_close(logits, module(x))
    assert module(x).std() > 0


def test_a_discriminator_is_read_again_by_each_fit(tmp_path: Path) -> None:
    source, _ = pictures(6)
    name = tiny.write_tiny_gan(tmp_path, seed=0)
    features = of_discriminator(name)
    features.fit(source, seed=0)
    before = features(every(source))
    tiny.write_tiny_gan(tmp_path, seed=1)
    assert torch.equal(features(every(source)), before)
    features.fit(source, seed=0)
    assert not torch.allclose(features(every(source)), before, atol=1e-3)


def test_a_loaded_discriminator_needs_no_folder_and_takes_no_more_than_its_weights(
    tmp_path: Path,
) -> None:
    source, _ = pictures(60)
    name = tiny.write_tiny_gan(tmp_path / "gan")
    table = {"name": "kmeans", "features": {"name": "discriminator", "source": name}}
    fitted = fit_partitioner(table, source, partitions=2)
    fitted.save_pretrained(tmp_path / "parts")
    shutil.rmtree(tmp_path / "gan")
    loaded = load_partitioner(tmp_path / "parts")
    assert torch.equal(loaded.logits(every(source)), fitted.logits(every(source)))
    state = dict(state_of(fitted.partitioner.features))
    assert json.loads(state["network"].numpy().tobytes())[0] == "dcgan"
    for network, said in (
        (["dcgan", {"channels": [2**15, 2**15], "image_channels": 3}], "ask for a network"),
        (["dcgan", {"channels": [8, 8], "image_channels": 3}], "do not fit the backbone"),
        (["os:system", {}], "no backbone is called 'os:system'"),
    ):
        text = json.dumps(network).encode()
        tampered = {**state, "network": torch.tensor(list(text), dtype=torch.uint8)}
        with pytest.raises(PgmkitError, match=said):
            of_discriminator(name).load_state(tampered)


def test_what_has_no_discriminator_to_look_at_the_images_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = pictures(4)
    with pytest.raises(LoadError, match="mnist-dcgan holds no discriminator: it has no discrim"):
        of_discriminator("mnist-dcgan").fit(source, seed=0)
    with pytest.raises(LoadError, match="no folder"):
        of_discriminator(f"local-dir:{tmp_path / 'none'}").fit(source, seed=0)
    name = tiny.write_tiny_gan(tmp_path)
    with pytest.raises(ParameterError, match=r"at images of \(3, 8, 8\), and these are \(1, 8, 8"):
        of_discriminator(name).fit(Pictures(source.values[:, :1]), seed=0)
    monkeypatch.delattr("pgmkit_plugins.backbones.dcgan.DCGANDiscriminator.features")
    with pytest.raises(ParameterError, match="'dcgan' does not tell what its last layer sees"):
        of_discriminator(name).fit(source, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("ignore:the weights of")
def test_a_timm_model_gets_what_it_was_trained_on(channels: int) -> None:
    """Black and white become what the data config makes of 0 and 1, at the model's own size."""
    x = torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, channels, 6, 8)
    features = build("features", "timm", model="test_efficientnet", pretrained=False)
    features.fit(Pictures(x), seed=0)
    seen: list[Tensor] = []
    features.network_.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    features(x)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    assert seen[0].shape == (2, 3, 160, 160)
    torch.testing.assert_close(seen[0][0, :, 80, 80], (1 - mean) / std)
    torch.testing.assert_close(seen[0][1, :, 80, 80], -mean / std)


@pytest.mark.filterwarnings("ignore:the weights of")
def test_images_of_two_channels_are_refused() -> None:
    with pytest.raises(ParameterError, match="images of 3 channels, and these have 2"):
        build("features", timm_table()).fit(Pictures(torch.zeros(4, 2, 4, 4)), seed=0)


def test_random_weights_are_warned_of_and_follow_the_seed() -> None:
    source, _ = pictures(8)
    before, found = torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        features = build("features", timm_table())
        with pytest.warns(PgmkitWarning, match="'test_resnet' are random"):
            features.fit(source, seed=seed)
        found.append(features(every(source)))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def from_file(path: Path) -> Any:
    return build("features", timm_table(weights=str(path)))


def test_weights_come_from_a_file_with_or_without_a_head(tmp_path: Path) -> None:
    source, _ = pictures(8)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = timm.create_model(TINY, num_classes=5)
    weights = whole.state_dict()
    safetensors.torch.save_file(weights, tmp_path / "whole.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    torch.save(body, tmp_path / "body.pt")
    found = []
    for name in ("whole.safetensors", "body.pt"):
        features = from_file(tmp_path / name)
        features.fit(source, seed=0)
        found.append(features(every(source)))
    assert torch.equal(*found)
    (tmp_path / "bad.safetensors").write_bytes(b"0123456789")
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    for name, message in (
        ("none.pt", "no file of weights"),
        ("bad.safetensors", "damaged"),
        ("other.safetensors", "another model than test_resnet"),
    ):
        with pytest.raises(LoadError, match=message):
            from_file(tmp_path / name).fit(source, seed=0)


def test_a_loaded_one_needs_neither_the_hub_nor_the_file(tmp_path: Path) -> None:
    source, _ = pictures(8)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model(TINY).state_dict(), path)
    features = from_file(path)
    features.fit(source, seed=0)
    path.unlink()
    loaded = from_file(path)
    load_state_of(loaded, state_of(features))
    assert torch.equal(loaded(every(source)), features(every(source)))


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> nn.Module:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(LoadError, match=r"cannot be fetched \(no route to host\).* weights='"):
        build("features", "timm").fit(pictures(4)[0], seed=0)


@pytest.mark.parametrize("generator", [groups.bars, groups.gated])
def test_what_a_network_of_ours_sees_is_32_pixels_wide_from_minus_one_to_one(
    generator: Any,
) -> None:
    source, _ = made(5, generator=generator)
    seen = looked_at(every(source))
    assert seen.shape == (5, source.image.shape[0], 32, 32)
    assert -1 <= seen.min() <= seen.max() <= 1
    kept = image_bytes(source)
    assert kept.dtype == torch.uint8
    torch.testing.assert_close(kept.float() / 127.5 - 1, seen, atol=1 / 255 + 1e-6, rtol=0)
    assert looked_at(torch.full((1, 1, 50, 50), 7.0)).max() == 1


@pytest.mark.parametrize(("deep", "blocks"), [(False, 5), (True, 8)])
def test_contrast_learns_in_residual_blocks_and_in_bfloat16(deep: bool, blocks: int) -> None:
    source, _ = pictures(64)
    quick = {"steps": 2, "batch_size": 16, "width": 2, "residual": True, "deep": deep}
    exact, mixed = (
        build("features", "contrastive", mixed_precision=choice, **quick)
        for choice in (False, True)
    )
    for features in (exact, mixed):
        contracts.fit("features", features, source, 0)
    x = source.batch(torch.arange(64))
    assert exact(x).dtype == mixed(x).dtype == torch.float32
    assert (exact(x) * mixed(x)).sum(dim=1).mean() > 0.9  # cosines: almost the same features
    assert not torch.equal(exact(x), mixed(x))
    again = build("features", "contrastive", **quick)
    load_state_of(again, state_of(exact))
    assert torch.equal(again(x), exact(x))
    assert sum(name.endswith("shortcut.0.weight") for name in state_of(again)) == blocks


def test_contrast_finds_a_shape_whatever_its_place_and_brightness() -> None:
    """What moves of the latent and deformations change is left out of the features."""
    source, latents = made(400, generator=groups.bars)
    features = build("features", "contrastive", steps=60, batch_size=32, width=4)
    features.fit(source, seed=0)
    found = features(every(source)).double()
    shape = (latents[:, 0] * latents[:, 1] > 0).long()
    assert agreement(_halves(found), shape) > 0.9
    assert agreement(_halves(every(source).flatten(1).double()), shape) < 0.3
    assert features.losses_.shape == (60,)
    assert features.losses_.dtype == torch.float64
    assert features.losses_[-10:].mean() < features.losses_[:10].mean() - 0.5


def _halves(points: Tensor) -> Tensor:
    return torch.from_numpy(KMeans(2, n_init=4, random_state=0).fit_predict(points.numpy()))


@pytest.mark.parametrize(("move", "made"), [(0.0, [64, 120]), (0.12, [40, 64, 120, 120])])
def test_contrast_learns_from_more_images_than_there_are_if_a_generator_makes_them(
    move: float, made: list[int]
) -> None:
    """Four times as many, each with a moved one (64 others tell one generator from another)."""
    generator, count = groups.gated(), list[int]()
    source = GeneratedImages(generator, generator.sample_latents(40, seed=0))
    stored = Pictures(every(source))
    generator.module.register_forward_hook(lambda *_: count.append(len(_[2])))
    quick = {"steps": 3, "batch_size": 16, "width": 4}
    found = []
    for images in (source, stored):
        count.clear()
        features = build("features", "contrastive", move=move, **quick)
        features.fit(images, seed=0)
        found.append(features(stored.values))
        assert sorted(count) == (made if images is source else [])
    assert not torch.equal(*found)


def test_too_few_images_to_learn_from_are_refused() -> None:
    with pytest.raises(ParameterError, match="at least 16 images to learn from, not 15"):
        build("features", "contrastive").fit(pictures(15)[0], seed=0)


def test_more_than_two_threads_change_nothing() -> None:
    source, _ = made(100, generator=groups.bars)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            features = build("features", "contrastive", steps=5, batch_size=64, width=4)
            features.fit(source, seed=0)
            found.append(state_of(features))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize(
    ("name", "parameters", "error", "message"),
    [
        ("pixels", {"image_size": 0}, ParameterError, "image_size"),
        ("pca", {"num_dims": 0}, ParameterError, "num_dims"),
        ("pca", {"features": "pixel"}, UnknownNameError, "did you mean 'pixels'"),
        ("pca", {"features": {"image_size": 3}}, ParameterError, "needs a name"),
        ("timm", {"model": "resnet81"}, UnknownNameError, "did you mean .*resnet18"),
        ("timm", {"model": "hf-hub:org/name"}, UnknownNameError, "no timm model"),
        ("timm", {"input_size": 0}, ParameterError, "input_size"),
        ("network", {}, ParameterError, "module"),
        ("classifier", {}, ParameterError, "classifier"),
        ("discriminator", {"normalize": "yes"}, ParameterError, "normalize"),
        ("contrastive", {"steps": 0}, ParameterError, "steps must be .*0"),
        ("contrastive", {"width": 0}, ParameterError, "width must be .*0"),
        ("contrastive", {"batch_size": 0}, ParameterError, "batch_size must be .*0"),
        ("contrastive", {"temperature": 0.0}, ParameterError, "temperature must be .*0.0"),
        ("contrastive", {"learning_rate": -1.0}, ParameterError, "learning_rate must be .*-1.0"),
        ("contrastive", {"learning_rate": "fast"}, ParameterError, "a number, not 'fast'"),
        ("contrastive", {"deep": True}, ParameterError, "set residual = true"),
        ("contrastive", {"move": 1.0}, ParameterError, "move must be .*1.0"),
        ("contrastive", {"move": -0.1}, ParameterError, "move must be .*-0.1"),
        ("contrastive", {"strength": -1.0}, ParameterError, "strength must be .*-1.0"),
        ("contrastive", {"deformations": "no"}, UnknownNameError, "kind of images"),
    ],
)
def test_parameters_outside_their_range_are_refused(
    name: str, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build("features", name, **parameters)
