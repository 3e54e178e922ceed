"""Fidelity: the numbers, the features they are made from, and the cache of those."""

import warnings
from dataclasses import replace
from pathlib import Path
from pickle import Unpickler
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

import pgmkit
from pgmkit.cache import cache_folder
from pgmkit.errors import (
    DataError,
    LoadError,
    ParameterError,
    PgmkitWarning,
    SamplingError,
    UnknownNameError,
)
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.extractors import FeatureExtractor, load_extractor
from pgmkit.evaluate.fidelity import fidelity, shattering_fidelity
from pgmkit.evaluate.fidelity_scores import FeatureStatistics, compare, manifold_scores
from pgmkit.evaluate.reference_images import ReferenceImages, reference_features
from pgmkit.images import ArrayImages


def normal(
    count: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0
) -> FeatureStatistics:
    values = np.random.default_rng(seed).normal(shift, scale, (count, dim))
    return FeatureStatistics.of(torch.from_numpy(values))


def exactly(count: int, dim: int, seed: int, shift: float, scale: float) -> FeatureStatistics:
    """Points whose mean and covariance are exactly those that are asked for."""
    values = np.random.default_rng(seed).normal(size=(count, dim))
    values -= values.mean(axis=0)
    factor = np.linalg.cholesky(np.linalg.inv(np.cov(values, rowvar=False)))
    return FeatureStatistics.of(torch.from_numpy(values @ factor * scale + shift))


def test_identical_sets_are_at_distance_zero() -> None:
    points = normal(300, 8, seed=0)
    scores = compare(points, points, "points", "themselves")
    assert scores.fid == pytest.approx(0, abs=1e-9)
    assert abs(scores.kid) < 4 * scores.kid_std
    assert (scores.precision, scores.recall, scores.coverage) == (1, 1, 1)
    assert scores.density == pytest.approx(1, abs=0.05)
    assert (scores.num_samples, scores.num_reference, scores.num_features) == (300, 300, 8)
    assert scores.kid_subset_size == 150


def test_the_distance_of_gaussians_is_that_of_the_formula() -> None:
    """‖μ - ν‖² + Tr(Σ + T - 2 √(ΣT)), also where float32 would lose all of it."""
    a = exactly(500, 5, seed=0, shift=1000.0, scale=1.0)
    b = exactly(400, 5, seed=1, shift=1000.25, scale=1.5)
    assert compare(a, b, "points", "b").fid == pytest.approx(5 * 0.25**2 + 5 * 0.5**2, rel=1e-6)
    near = exactly(500, 5, seed=0, shift=1000.0 + 1e-4, scale=1.0)
    assert compare(a, near, "points", "near").fid == pytest.approx(5e-8, rel=0.05)


def test_the_kernel_distance_is_that_of_the_formula() -> None:
    x, y = (normal(40, 3, seed, shift).features.double() for seed, shift in ((0, 0.0), (1, 1.0)))
    whole = {"xx": x @ x.T, "yy": y @ y.T, "xy": x @ y.T}
    kernel = {name: (product / 3 + 1) ** 3 for name, product in whole.items()}
    within = [(kernel[n].sum() - kernel[n].trace()) / (40 * 39) for n in ("xx", "yy")]
    expected = float(sum(within) - 2 * kernel["xy"].mean())
    scores = compare(FeatureStatistics.of(x), FeatureStatistics.of(y), "points", "y")
    error = 4 * scores.kid_std / np.sqrt(100)
    assert scores.kid == pytest.approx(expected, abs=error)
    assert scores.kid_subset_size == 20


@pytest.mark.parametrize(("n", "m", "shift"), [(50, 80, 0.0), (120, 60, 0.7), (30, 30, 9.0)])
def test_manifold_scores_agree_with_every_pair_counted(n: int, m: int, shift: float) -> None:
    x, y = normal(n, 4, 0, shift), normal(m, 4, 1)
    scores = compare(x, y, "points", "y")
    a, b = x.features.numpy(), y.features.numpy()
    across = cdist(a, b)

    def reach(points: Any, k: int) -> Any:
        return np.sort(cdist(points, points), axis=1)[:, k]

    assert scores.precision == pytest.approx((across <= reach(b, 3)).any(axis=1).mean(), abs=1e-6)
    recalled = (across <= reach(a, 3)[:, None]).any(axis=0).mean()
    assert scores.recall == pytest.approx(recalled, abs=1e-6)
    inside = across < reach(b, 5)
    assert scores.density == pytest.approx(inside.sum() / (5 * n))
    assert scores.coverage == pytest.approx(inside.any(axis=0).mean())


def test_distances_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = manifold_scores(normal(300, 3, 0), normal(200, 3, 1))
    monkeypatch.setattr("pgmkit.evaluate.fidelity_scores._ROWS", 7)
    assert manifold_scores(normal(300, 3, 0), normal(200, 3, 1)) == whole


def test_ties_are_ties_whatever_the_rounding() -> None:
    """Points of a lattice, far from 0, are at few different distances, many on the surface."""
    steps = torch.arange(4, dtype=torch.float64) / 3
    lattice = torch.cartesian_prod(steps, steps, steps) + 1000
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    a, b = FeatureStatistics.of(lattice[order]), FeatureStatistics.of(lattice)
    radii = (b.radii * 9).round()
    assert set(radii.flatten().tolist()) == {1, 2}
    inside = (torch.cdist(lattice, lattice).square() * 9).round() < radii[:, 1]
    assert manifold_scores(a, b) == (1, 1, pytest.approx(float(inside.sum()) / (5 * 64)), 1)


class Pixels(nn.Module):
    """Features that can be read: the pixels themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def images(count: int, seed: int = 0, channels: int = 1, size: int = 2, low: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (count, channels, size, size), generator=random).byte()


def test_bytes_and_floats_of_the_same_images_score_alike() -> None:
    real, fake = images(50), images(60, seed=1)
    floats = fake.float() / 255 * 2 - 1
    assert fidelity(fake, real, Pixels()) == fidelity(floats, real, Pixels())
    unit = fidelity(fake.float() / 255, real, Pixels(), value_range=(0, 1))
    assert unit == fidelity(fake, ArrayImages(real, name="the reference"), Pixels())
    assert (unit.extractor, unit.reference) == ("Pixels", "all of the reference")


def test_images_are_prepared_as_the_extractor_asks() -> None:
    def prepared(pixels: Tensor, **wanted: Any) -> Tensor:
        return FeatureExtractor(Pixels(), "pixels", **wanted).prepare(pixels)

    grey, colour = images(3), images(3, channels=3)
    assert torch.equal(prepared(grey, channels=3, range=(0, 255)), grey.float().expand(3, 3, 2, 2))
    luma = (colour.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True)
    assert (prepared(colour, channels=1, range=(0, 255)) - luma).abs().max() <= 0.5 + 1e-4
    there_and_back = grey.expand(-1, 3, -1, -1)
    assert torch.equal(prepared(there_and_back, channels=1, range=(0, 255)), grey.float())
    assert torch.equal(prepared(colour, channels=3, range=(0, 255)), colour.float())
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert prepared(ends).flatten().tolist() == [-1, 1]
    assert prepared(ends, range=(0.0, 1.0)).flatten().tolist() == [0, 1]


def test_images_are_made_smaller_with_antialias() -> None:
    """Without it, single bright columns would vanish or take over."""
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::4] = 255
    for interpolation in ("bilinear", "bicubic"):
        extractor = FeatureExtractor(
            Pixels(), "pixels", size=4, range=(0, 255), interpolation=interpolation
        )
        small = extractor.prepare(stripes)
        assert small.shape == (1, 1, 4, 4)
        assert (small - 255 / 4).abs().max() < 20
        assert extractor.prepare(images(1, size=2, low=200)).max() <= 255


def test_a_number_of_channels_that_cannot_be_turned_is_refused() -> None:
    with pytest.raises(ParameterError, match="3 channels, and these have 4"):
        FeatureExtractor(Pixels(), "pixels", channels=3).prepare(images(2, channels=4))
    with pytest.raises(ParameterError, match="must be bytes"):
        FeatureExtractor(Pixels(), "pixels").prepare(torch.zeros(2, 1, 4, 4))


class Broken(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(
    "result", [torch.zeros(7), torch.zeros(2, 3), [1], torch.full((7, 2), torch.nan)]
)
def test_a_network_that_gives_no_features_is_named(result: Any) -> None:
    with pytest.raises(ParameterError, match="the extractor 'Broken' returns"):
        load_extractor(Broken(result)).features(images(7))


def test_features_of_a_classifier_are_what_its_last_layer_sees() -> None:
    extractor = load_extractor("classifier:mnist-classifier")
    digits = images(5, size=32)
    features = extractor.features(digits)
    assert features.shape == (5, 32 * 7 * 7)
    classifier = load_classifier("mnist-classifier")
    last = classifier.module.layers[-1]  # type: ignore[index]
    with torch.no_grad():
        labels = last(features).argmax(dim=1)
    assert torch.equal(labels, classifier.labels(digits, (0, 255)))
    assert torch.equal(extractor.features(digits.expand(-1, 3, -1, -1)), features)
    assert extractor.name == "classifier:mnist-classifier"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small model of timm, with those of its last layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = timm.create_model("test_resnet").state_dict()
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(state, path)
    return path


def test_a_model_of_timm_gets_images_as_it_was_trained_with(weights: Path) -> None:
    extractor = load_extractor(f"timm:test_resnet@{weights}")
    assert (extractor.size, extractor.channels, extractor.range) == (160, 3, (0, 1))
    network = timm.create_model("test_resnet", checkpoint_path=str(weights)).eval()
    pixels = images(2, size=20)
    large = transforms.resize(pixels.expand(-1, 3, -1, -1) / 255, [160, 160], antialias=True)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features((large - 0.5) / 0.5), True)
    assert torch.allclose(extractor.features(pixels), expected, atol=1e-4)


def test_weights_that_do_not_fit_or_cannot_be_had_are_one_clear_error(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model("test_resnet").state_dict()
    first = next(iter(state))
    save_file({k: v for k, v in state.items() if k != first}, tmp_path / "part.safetensors")
    with pytest.raises(LoadError, match="do not fit 'test_resnet'"):
        load_extractor(f"timm:test_resnet@{tmp_path / 'part.safetensors'}")
    with pytest.raises(LoadError, match="no weights at"):
        load_extractor(f"timm:test_resnet@{tmp_path / 'none.safetensors'}")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(LoadError, match=r"no weights of Inception-v3"):
        load_extractor(f"inception@{tmp_path / 'other.pth'}")
    torch.save({"x": Unpickler}, tmp_path / "code.pth")
    with pytest.raises(LoadError, match="would run code"):
        load_extractor(f"inception@{tmp_path / 'code.pth'}")

    def unreachable(*arguments: Any, **named: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)
    with pytest.raises(
        LoadError, match=r"unreachable.*put them at .*torch/hub/checkpoints/weights"
    ):
        load_extractor("inception")
    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(LoadError, match=r"unreachable.*give timm:test_resnet@FILE"):
        load_extractor("timm:test_resnet")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("incepton", "did you mean 'inception'"),
        ("timm:test_resnt", "did you mean 'test_resnet'"),
        ("timm:", "feature extractor"),
        ("classifier:mnist-classifer", "did you mean 'mnist-classifier'"),
    ],
)
def test_unknown_extractors_name_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UnknownNameError, match=said):
        load_extractor(name)


def test_inception_runs_on_grey_images_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights drawn here, since its own are too large to ship."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    with monkeypatch.context() as patch:
        patch.setattr(Network, "load_state_dict", lambda self, state: None)
        torch.save({}, tmp_path / "none.pth")
        drawn = Network("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth"))
    torch.save(drawn.state_dict(), tmp_path / "inception.pth")
    extractor = load_extractor(f"inception@{tmp_path / 'inception.pth'}")
    pixels = images(1, size=8)
    features = extractor.features(pixels)
    assert features.shape == (1, 2048)
    (expected,) = drawn(pixels.expand(-1, 3, -1, -1))
    assert torch.equal(features, expected)
    assert extractor.name.startswith("inception@")


class Counted(Pixels):
    """Counts how many images it was shown."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.seen += len(x)
        return x


def seen_for(data: ArrayImages, **changed: Any) -> int:
    before = Counted.seen
    wanted = {"version": "1", "range": (0.0, 1.0), **changed}
    reference_features(data, FeatureExtractor(Counted(), "counted", **wanted))
    return Counted.seen - before


def entries() -> list[Path]:
    return sorted(cache_folder("references").glob("[!.]*"))


def test_features_of_the_reference_are_computed_once_and_again_after_any_change() -> None:
    pixels = images(20)
    data = ArrayImages(pixels, name="data")
    assert [seen_for(data), seen_for(data)] == [20, 0]
    assert seen_for(ArrayImages(pixels.clone(), torch.zeros(20), name="elsewhere")) == 0
    other = pixels.clone()
    other[7, 0, 1, 1] ^= 1
    assert seen_for(ArrayImages(other, name="data")) == 20
    assert seen_for(ArrayImages(pixels.reshape(20, 1, 1, 4), name="data")) == 20
    for changed in (
        {"version": "2"},
        {"range": (0.0, 2.0)},
        {"size": 4},
        {"size": 4, "interpolation": "bicubic"},
        {"channels": 3},
    ):
        assert [seen_for(data, **changed), seen_for(data, **changed)] == [20, 0], changed
    assert seen_for(data, version=None) == seen_for(data, version=None) == 20


def test_other_weights_or_code_are_another_version(weights: Path, tmp_path: Path) -> None:
    first = load_extractor(f"timm:test_resnet@{weights}").version
    state = timm.create_model("test_resnet", checkpoint_path=str(weights)).state_dict()
    save_file(state, tmp_path / "same.safetensors")
    assert load_extractor(f"timm:test_resnet@{tmp_path / 'same.safetensors'}").version == first
    name = next(name for name in state if name.endswith("running_mean"))
    state[name] = state[name] + 1e-6
    save_file(state, tmp_path / "other.safetensors")
    assert load_extractor(f"timm:test_resnet@{tmp_path / 'other.safetensors'}").version != first
    assert load_extractor(nn.Identity()).version is None


@pytest.mark.parametrize("file", ["content", "content.sha256"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "bit flipped"])
def test_a_damaged_entry_is_computed_again_and_mended(file: str, damage: str) -> None:
    data = ArrayImages(images(20), name="data")
    seen_for(data)
    (entry,) = entries()
    path = entry / file
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        end = b"" if damage == "truncated" else bytes([whole[-1] ^ 1])
        path.write_bytes(whole[:-1] + end)
    assert [seen_for(data), seen_for(data)] == [20, 0]
    assert path.read_bytes() == whole


def test_what_comes_from_the_cache_is_what_was_computed() -> None:
    data, wanted = ArrayImages(images(20), name="data"), {"range": (0.0, 1.0), "version": "1"}
    extractor = FeatureExtractor(Pixels(), "pixels", **wanted)  # type: ignore[arg-type]
    first, second = (reference_features(data, extractor) for _ in range(2))
    fresh = reference_features(data, extractor, cache=False)
    for name, value in vars(fresh).items():
        assert torch.equal(value, vars(first)[name])
        assert torch.equal(value, vars(second)[name])
    points = images(20).flatten(1).double() / 255
    assert torch.allclose(fresh.mean, points.mean(dim=0))
    assert torch.allclose(fresh.covariance, points.T.cov())
    assert fresh.mean.dtype == fresh.covariance.dtype == torch.float64


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PGMKIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(PgmkitWarning, match="set of reference features is complete but was not"):
        assert seen_for(ArrayImages(images(20), name="data")) == 20


def test_too_few_images_are_refused_or_warned_of() -> None:
    with pytest.raises(ParameterError, match=r"at least 6 generated images.*there are 5"):
        fidelity(images(5), images(20), Pixels())
    with pytest.raises(ParameterError, match=r"at least 6 reference images.*there are 5"):
        fidelity(images(20), images(5), Pixels())
    with pytest.warns(PgmkitWarning, match="down to 12 samples and 50 references in 12 dimensions"):
        fidelity(images(12, channels=3), images(50, channels=3), Pixels())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fidelity(images(13, channels=3), images(50, channels=3), Pixels())
    with pytest.raises(ParameterError, match=r"gives 4 features .* and 9 for the reference"):
        fidelity(images(20), images(20, size=3), Pixels())


class Shade(nn.Module):
    """Paints 2×2 images dark or bright by the sign of the first latent."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(4.0))

    def forward(self, z: Tensor) -> Tensor:
        level = torch.tanh(self.slope * z[:, :1])
        return (0.6 * level + 0.1 * torch.tanh(z)).reshape(-1, 1, 2, 2)


class Brightness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(dim=1) * self.scale
        return torch.stack([-level, level], dim=1)


@pytest.fixture(scope="module")
def shaded() -> pgmkit.ShatteredGenerator:
    generator = pgmkit.Generator(Shade(), pgmkit.LatentSpec(4), pgmkit.ImageSpec((1, 2, 2)))
    return pgmkit.shatter(
        generator, density="none", sampler="kmeans-gmm", clusters=2, latents=400, remove=0.0
    )


def shades(
    count: int, labels: Tensor | None = None, classes: dict[int, str] | None = None
) -> ArrayImages:
    """Dark and bright images by turns, which their labels say unless others are given."""
    dark = torch.arange(count) % 2 == 0
    pixels = images(count) // 3
    pixels[~dark] += 170
    labels = (~dark).long() if labels is None else labels
    return ArrayImages(pixels, labels, classes, name="shades")


JUDGE = Classifier(Brightness(), "brightness", ("dark", "bright"))


def test_clusters_are_compared_with_the_images_of_their_class(
    shaded: pgmkit.ShatteredGenerator,
) -> None:
    reference = shades(120)
    scores = shattering_fidelity(shaded, reference, Pixels(), classifier=JUDGE, num_samples=200)
    assert scores.before.reference == scores.after.reference == "all of shades"
    assert scores.before.num_samples == scores.after.num_samples == 200
    for cluster, part in enumerate(scores.clusters):
        assert part is not None
        assert (part.num_samples, part.num_reference) == (100, 60)
        drawn = shaded.sample(200, cluster)
        bright = bool((drawn.mean(dim=(1, 2, 3)) > 0).float().mean() > 0.5)
        assert part.reference == f"class {('dark', 'bright')[bright]} of shades"


def test_without_classes_clusters_are_compared_with_all_images(
    shaded: pgmkit.ShatteredGenerator,
) -> None:
    reference = shades(60)
    unlabelled = shades(60)
    unlabelled.labels = None
    rare = shades(60, torch.ones(60))
    for data, judge in ((reference, None), (unlabelled, JUDGE)):
        scores = shattering_fidelity(shaded, data, Pixels(), classifier=judge, num_samples=40)
        assert {part.reference for part in scores.clusters if part} == {"all of shades"}
    scores = shattering_fidelity(shaded, rare, Pixels(), classifier=JUDGE, num_samples=40)
    named = {part.reference for part in scores.clusters if part}
    assert "class dark of shades" not in named


def test_a_cluster_of_no_latents_has_no_scores(shaded: pgmkit.ShatteredGenerator) -> None:
    emptied = pgmkit.ShatteredGenerator(shaded.generator, shaded.sampler, [400, 0], shaded.origin)
    scores = shattering_fidelity(emptied, shades(60), Pixels(), num_samples=40)
    assert scores.clusters[0] is not None
    assert scores.clusters[1] is None


def test_a_reference_is_looked_at_once_for_several_results(
    shaded: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shades(60)
    alone = shattering_fidelity(shaded, data, Pixels(), classifier=JUDGE, num_samples=40)
    reference = ReferenceImages(data, load_extractor(Pixels()))
    first = shattering_fidelity(shaded, reference, classifier=JUDGE, num_samples=40)
    made = []
    batches = shaded.generator.image_batches
    with monkeypatch.context() as patch:
        patch.setattr(
            shaded.generator, "image_batches", lambda z: (made.append(len(z)), batches(z))[1]
        )
        second = shattering_fidelity(shaded, reference, classifier=JUDGE, num_samples=40)
    assert first == second == alone
    assert made == [40, 20, 20]  # after and clusters, but not before again


def test_a_cluster_that_cannot_be_sampled_has_no_scores(
    shaded: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = shaded.sampler.sample

    def rarely(n: int, cluster: int, seed: int) -> Tensor:
        if cluster == 1:
            raise SamplingError("took 0 of 80 proposals")
        return sample(n, cluster, seed)

    monkeypatch.setattr(shaded.sampler, "sample", rarely)
    with pytest.warns(PgmkitWarning, match="cluster 1 cannot be sampled and is left out: took 0"):
        scores = shattering_fidelity(shaded, shades(60), Pixels(), num_samples=40)
    assert scores.before.num_samples == 40
    assert scores.after.num_samples < 40
    assert [part is None for part in scores.clusters] == [False, True]


def test_samples_and_classes_that_do_not_do_are_refused(shaded: pgmkit.ShatteredGenerator) -> None:
    with pytest.raises(ParameterError, match="11 samples are 5 for each of 2 clusters"):
        shattering_fidelity(shaded, shades(60), Pixels(), num_samples=11)
    strange = shades(60, torch.arange(60) % 3)
    with pytest.raises(DataError, match="go from 0 to 2, and the classifier 'brightness' knows"):
        shattering_fidelity(shaded, strange, Pixels(), classifier=JUDGE, num_samples=40)
    other = shades(60, classes={0: "dark", 1: "brigth"})
    with pytest.raises(DataError, match=r"'brigth', which the classifier 'brightness'.*'bright'?"):
        shattering_fidelity(shaded, other, Pixels(), classifier=JUDGE, num_samples=40)


def test_classes_are_compared_by_name_where_the_reference_has_names(
    shaded: pgmkit.ShatteredGenerator,
) -> None:
    reference = shades(120)
    assert reference.labels is not None
    turned = shades(120, 1 - reference.labels, {0: "bright", 1: "dark"})
    settings: dict[str, Any] = {"classifier": JUDGE, "num_samples": 200}
    by_number = shattering_fidelity(shaded, reference, Pixels(), **settings)
    assert shattering_fidelity(shaded, turned, Pixels(), **settings) == by_number
    kept = ReferenceImages(turned, load_extractor(Pixels()))
    assert shattering_fidelity(shaded, kept, **settings) == by_number


class Grey(nn.Module):
    """Calls bright what is brighter than the middle; takes grey images of 2×2 and more."""

    image_channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        level = nn.functional.conv2d(x, self.weight).flatten(1).mean(dim=1)
        return torch.stack([-level, level], dim=1)


def test_a_grey_classifier_sees_the_luma_of_colours() -> None:
    judge = Classifier(Grey(), "grey", ("dark", "bright"))
    red, green = torch.zeros(2, 3, 2, 2)
    red[0], green[1] = 1, 1
    assert judge.labels(torch.stack([red, green]), (0.0, 1.0)).tolist() == [0, 1]
    with pytest.raises(ParameterError, match="'grey' takes images of 1 channels, and these have 2"):
        judge.check_images((2, 4, 4))


def test_a_colour_classifier_sees_grey_as_a_colour() -> None:
    judge = load_classifier("mnist-classifier")
    module = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), judge.module)
    module.image_channels = 3  # type: ignore[assignment]
    nn.init.constant_(module[0].weight, 1 / 3)  # type: ignore[arg-type]
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = replace(judge, module=module).labels(images, (0.0, 1.0))
    assert torch.equal(found, judge.labels(images, (0.0, 1.0)))
