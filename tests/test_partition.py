"""What follows from a partitioner: parts, margins, the guide, folders, and samplers of latents."""

import json
import re
from pathlib import Path
from typing import Any

import groups
import pytest
import safetensors.torch
import torch
from groups import Pictures, agreement, every, gated, pictures, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pgmkit
from pgmkit import FittedPartitioner, fit_partitioner, load_partitioner
from pgmkit.errors import (
    LoadError,
    OutputError,
    ParameterError,
    PgmkitWarning,
    PluginError,
    SamplingError,
    UnknownNameError,
)
from pgmkit.partition import assign, guide, margins_of
from pgmkit.plugins import build
from pgmkit.sampling import PartitionSampler
from pgmkit.seeds import random_generator
from pgmkit.states import load_state_of, state_of

quiet = pytest.mark.filterwarnings("ignore::pgmkit.errors.PgmkitWarning")
K = 4
SMALL = {"batch_size": 24, "width": 6, "strength": 0.3, "deformations": "digits"}


class Layers(nn.Module):
    """A partitioner of images of 2×3 pixels with random weights, linear or a small network."""

    def __init__(self, num_partitions: int, seed: int, hidden: int = 0) -> None:
        super().__init__()
        self.num_partitions = num_partitions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(hidden or 6, num_partitions)
            first = [nn.Linear(6, hidden), nn.SiLU()] if hidden else []
            self.layers = nn.Sequential(nn.Flatten(), *first, last).double()

    def fit(self, source: Any, *, seed: int) -> None:
        pass

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def images(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 2, 3, generator=random, dtype=torch.float64) * 2 - 1


seeds = st.integers(0, 2**32 - 1)
layers = st.builds(Layers, st.integers(1, 7), seeds, st.sampled_from([0, 5]))
some = st.builds(images, st.integers(1, 40), seeds)
often = settings(max_examples=60, deadline=None)


@given(layers, some)
@often
def test_a_part_is_the_largest_logit(partitioner: Layers, x: Tensor) -> None:
    found, logits = assign(partitioner, x), partitioner.logits(x)
    assert found.dtype == torch.int64
    assert (logits.gather(1, found[:, None]) >= logits).all()
    assert not found.requires_grad


@given(layers, some)
@often
def test_the_guide_is_zero_inside_a_part_and_positive_outside(
    partitioner: Layers, x: Tensor
) -> None:
    """Exactly zero: an image that is where it belongs is not pulled by rounding."""
    found = assign(partitioner, x)
    assert (guide(partitioner, x, found) == 0).all()
    for part in range(partitioner.num_partitions):
        pulled = guide(partitioner, x, part)
        assert pulled.shape == (len(x),)
        assert torch.equal(pulled > 0, found != part)
        assert torch.equal(pulled == 0, found == part)


@given(layers, some, seeds)
@often
def test_the_guide_sums_over_parts_what_their_code_averages(
    partitioner: Layers, x: Tensor, seed: int
) -> None:
    """Eq. 6 written out, image by image and part by part; the authors' code divides it by k."""
    k = partitioner.num_partitions
    wanted = torch.randint(k, (len(x),), generator=torch.Generator().manual_seed(seed))
    logits = partitioner.logits(x).tolist()
    mean_form = [
        sum(max(value - row[part], 0.0) for value in row) / k
        for row, part in zip(logits, wanted.tolist(), strict=True)
    ]
    pulled = guide(partitioner, x, wanted)
    torch.testing.assert_close(pulled, k * torch.tensor(mean_form, dtype=torch.float64))


@given(layers, some, st.data())
@often
def test_one_part_for_all_is_the_same_part_for_each(
    partitioner: Layers, x: Tensor, data: st.DataObject
) -> None:
    part = data.draw(st.integers(0, partitioner.num_partitions - 1))
    pulled = guide(partitioner, x, part)
    for same in (torch.tensor(part), torch.full((len(x),), part), torch.full((1,), part)):
        assert torch.equal(guide(partitioner, x, same), pulled)
        assert torch.equal(guide(partitioner, x, same.to(torch.int32)), pulled)


@given(layers, some, seeds)
@often
def test_the_guide_has_the_gradient_of_finite_differences(
    partitioner: Layers, x: Tensor, seed: int
) -> None:
    """Away from ties, where it has a kink."""
    random = torch.Generator().manual_seed(seed)
    part = torch.randint(partitioner.num_partitions, (len(x),), generator=random)
    logits = partitioner.logits(x)
    gaps = (logits - logits.gather(1, part[:, None])).abs()
    gaps.scatter_(1, part[:, None], torch.inf)
    smooth = gaps.amin(dim=1) > 1e-3
    x, part = x[smooth].clone().requires_grad_(), part[smooth]
    direction = torch.randn(x.shape, generator=random, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(guide(partitioner, x, part).sum(), x)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (guide(partitioner, x + way * direction, part) for way in (step, -step))
    slope = (gradient * direction).sum(dim=(1, 2, 3))
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, atol=1e-7, rtol=1e-5)


@given(layers, some)
@often
def test_a_margin_is_the_lead_of_the_best_logit(partitioner: Layers, x: Tensor) -> None:
    logits = partitioner.logits(x).detach()
    margins = margins_of(logits)
    assert margins.shape == (len(x),)
    if partitioner.num_partitions == 1:
        assert (margins == 0).all()
        return
    best = logits.argmax(dim=1, keepdim=True)
    others = logits.scatter(1, best, -torch.inf).amax(dim=1)
    assert torch.equal(margins, logits.amax(dim=1) - others)
    assert (margins >= 0).all()
    assert torch.equal(margins_of(logits + 1) > 0, margins_of(logits) > 0)


@pytest.mark.parametrize("part", [-1, 3, torch.tensor([0, 1, 3]), torch.tensor([0, -1, 1])])
def test_parts_out_of_range_are_refused(part: Any) -> None:
    with pytest.raises(ParameterError, match="parts are numbered from 0 to 2, and"):
        guide(Layers(3, 0), images(3, 0), part)


@pytest.mark.parametrize(
    "part", [torch.tensor([0, 1]), torch.zeros(3, 1).long(), 1.5, True, "a", None]
)
def test_parts_that_are_no_numbers_of_the_images_are_refused(part: Any) -> None:
    with pytest.raises(ParameterError, match=r"a part is a whole number, or one for each of 3"):
        guide(Layers(3, 0), images(3, 0), part)


def test_nothing_is_guided_by_logits_without_a_gradient() -> None:
    source, _ = pictures(100)
    manifold = fit_partitioner("manifold", source, partitions=K)
    x = every(source)[:5]
    assert guide(manifold.partitioner, x, 0).shape == (5,)
    x.requires_grad_()
    with pytest.raises(
        ParameterError, match=r"'pgmkit:manifold' have no gradient.*make it the base"
    ):
        guide(manifold.partitioner, x, 0)
    with pytest.raises(ParameterError, match="no gradient"):
        manifold.guide(x, 0)
    with torch.no_grad():
        assert not guide(manifold.partitioner, x, 0).requires_grad


def test_self_training_makes_a_guide_of_parts_that_have_none() -> None:
    source, group = pictures(300)
    table = {
        "name": "self-trained",
        "base": "manifold",
        "steps": 30,
        "learning_rate": 1e-2,
        **SMALL,
    }
    learned = fit_partitioner(table, source, partitions=K)
    assert agreement(learned.labels, group) > 0.9
    x = every(source)[:50].requires_grad_()
    wanted = (learned.assign(x) + 1) % K
    before = learned.guide(x, wanted)
    assert (before > 0).all()
    (gradient,) = torch.autograd.grad(before.sum(), x)
    length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    after = learned.guide((x - 0.05 * gradient / length).detach(), wanted)
    assert (after < before).float().mean() > 0.9


def test_a_plugin_whose_logits_are_none_is_named() -> None:
    class Wrong(Layers):
        def logits(self, x: Tensor) -> Any:
            return super().logits(x)[:, :2]

    for call in (assign, lambda partitioner, x: guide(partitioner, x, 0)):
        with pytest.raises(PluginError, match=r"'Wrong' returns logits of .*\(3, 2\) for 3 images"):
            call(Wrong(3, 0), images(3, 0))


@pytest.fixture(scope="module")
def fitted() -> FittedPartitioner:
    return fit_partitioner("kmeans", pictures(300)[0], partitions=K, seed=5)


def test_a_fitted_partitioner_knows_what_it_was_fitted_to(fitted: FittedPartitioner) -> None:
    source, group = pictures(300)
    assert fitted.num_partitions == K
    assert fitted.image == pgmkit.ImageSpec((3, 8, 8))
    assert fitted.labels is not None
    assert agreement(fitted.labels, group) > 0.95
    assert fitted.sizes == fitted.labels.bincount().tolist()
    assert fitted.samples is not None
    assert fitted.samples.shape == (8 * K, 3, 8, 8)
    assert fitted.assign(fitted.samples).tolist() == [part for part in range(K) for _ in range(8)]
    origin = dict(fitted.origin)
    assert origin["partitioner"]["name"] == "pgmkit:kmeans"
    assert origin["partitioner"]["params"]["num_partitions"] == K
    assert origin["partitioner"]["params"]["features"]["name"] == "pgmkit:pca"
    assert origin["data"] == source.summary()
    assert origin["seed"] == 5
    assert json.loads(json.dumps(origin)) == origin
    assert fitted.with_origin(note="x").origin == {**origin, "note": "x"}


def test_its_methods_are_those_of_its_partitioner(fitted: FittedPartitioner) -> None:
    x = every(pictures(20)[0])
    assert torch.equal(fitted.logits(x), fitted.partitioner.logits(x))
    assert torch.equal(fitted.assign(x), assign(fitted.partitioner, x))
    assert torch.equal(fitted.guide(x, 2), guide(fitted.partitioner, x, 2))
    assert torch.equal(fitted.margins(x), margins_of(fitted.logits(x)))


def test_images_of_another_shape_are_refused(fitted: FittedPartitioner) -> None:
    message = r"'pgmkit:kmeans' was fitted to images of \(3, 8, 8\).*\(3, 16, 16\); give images of"
    x = torch.zeros(2, 3, 16, 16)
    for call in (fitted.logits, fitted.assign, fitted.margins, lambda x: fitted.guide(x, 0)):
        with pytest.raises(ParameterError, match=message):
            call(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x * 255).byte(), r"tensor of floats in \[-1, 1\], not of torch.uint8; scale"),
        (lambda x: x.numpy(), "not ndarray; scale them, or read them with pgmkit.images"),
        (lambda x: x.tolist(), "not list"),
        (lambda x: 0 * x + 255, "these go from 255 to 255; scale them"),
        (lambda x: x - 0.5, r"in \[-1, 1\], and these go from -1.\d+ to"),
        (lambda x: x * torch.nan, "from nan to nan"),
    ],
)
def test_images_of_another_type_or_range_are_refused(
    change: Any, message: str, fitted: FittedPartitioner
) -> None:
    """They would all get a part, mostly one and the same."""
    x = every(pictures(20)[0])
    own = fitted.partitioner
    calls = [fitted.logits, fitted.assign, fitted.margins, lambda x: fitted.guide(x, 0)]
    calls.append(lambda x: assign(own, x))
    if "not" in message:  # the guide may lead images out of their range
        calls.append(lambda x: guide(own, x, 0))
    for call in calls:
        with pytest.raises(ParameterError, match=message):
            call(change(x))
    assert fitted.assign(x.clamp(-1, 1) * 1.001).shape == (20,)  # as bfloat16 rounds
    assert fitted.assign(x[:0]).shape == (0,)


def test_fewer_images_than_parts_have_blank_samples() -> None:
    few = fit_partitioner("kmeans", pictures(6)[0], partitions=K)
    assert few.samples is not None
    assert sum(few.sizes) == 6
    rows = few.samples.reshape(K, 8, -1)
    blank = (rows == 1).all(dim=2).sum(dim=1)
    assert blank.tolist() == [8 - size for size in few.sizes]


@pytest.mark.parametrize(
    ("partitioner", "partitions", "error", "message"),
    [
        ("kmean", None, UnknownNameError, "did you mean 'kmeans'"),
        ("kmeans", 0, ParameterError, "the number of partitions"),
        ("kmeans", 2.5, ParameterError, "the number of partitions"),
        ("kmeans", 21, ParameterError, "21 partitions need as many images, and there are 20"),
        ({"features": "pca"}, None, ParameterError, "needs a name"),
        ({"name": "kmeans", "feature": "pca"}, None, ParameterError, "'features'"),
        ({"name": "kmeans", "num_partitions": 3}, 4, ParameterError, "3 parts, and 4 are asked"),
        ({"name": "kmeans", "features": "latents"}, None, ParameterError, "looks at latents"),
        (Layers(3, 0), 4, ParameterError, "'Layers' has 3 parts, and 4 are asked for"),
        (Layers, None, PluginError, r"has no method fit|is a class; give an object"),
        (3, None, PluginError, "has no method fit"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    partitioner: Any, partitions: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_partitioner(partitioner, pictures(20)[0], partitions=partitions)


@pytest.mark.parametrize("seed", ["a", 1.5, None, True, -1, 2**63])
def test_a_seed_is_a_whole_number_that_random_generators_take(seed: Any) -> None:
    generator = gated()
    calls = (
        lambda: fit_partitioner("kmeans", pictures(20)[0], partitions=2, seed=seed),
        lambda: pgmkit.compute_spectrum(generator, 4, seed=seed),
        lambda: pgmkit.compute_spectrum(generator, generator.sample_latents(4, 0), seed=seed),
        lambda: generator.sample_latents(4, seed=seed),
        lambda: pgmkit.shatter(generator, partitioner="kmeans", latents=40, seed=seed),
        lambda: random_generator(seed),
    )
    for call in calls:
        with pytest.raises(ParameterError, match=r"a seed must be a whole number in \[0"):
            call()


def test_there_are_10_parts_where_nobody_says_a_number() -> None:
    source, _ = pictures(40)
    assert fit_partitioner("kmeans", source).num_partitions == 10
    table = {"name": "kmeans", "num_partitions": 3}
    assert fit_partitioner(table, source).num_partitions == 3
    own = build("partitioners", "kmeans", num_partitions=5)
    assert fit_partitioner(own, source).num_partitions == 5


WAYS: dict[str, Any] = {
    "kmeans": "kmeans",
    "manifold": {"name": "manifold", "embedding_dims": 4},
    "own number": {
        "name": "clusterer",
        "clusterer": "sklearn.cluster:HDBSCAN",
        "clusterer_args": {"min_cluster_size": 20, "copy": True},
    },
    "most-stable": {"name": "most-stable", "candidates": ["kmeans", {"name": "mixture"}]},
    "self-trained": {"name": "self-trained", "base": "kmeans", "steps": 5, **SMALL},
}


@pytest.mark.parametrize("way", WAYS)
@quiet
def test_a_saved_partitioner_comes_back(way: str, tmp_path: Path) -> None:
    source, _ = pictures(200)
    before = fit_partitioner(WAYS[way], source, partitions=K).with_origin(note="kept")
    before.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"partitioner.json", "partitioner.safetensors", "README.md", "samples.png"}
    x = every(source)
    for reference in (tmp_path / "saved", f"local-dir:{tmp_path / 'saved'}"):
        after = load_partitioner(reference)
        assert torch.equal(after.logits(x), before.logits(x))
        assert after.num_partitions == before.num_partitions == K
        assert after.image == before.image
        assert after.sizes == before.sizes
        assert after.origin == json.loads(json.dumps(before.origin))
        assert after.samples is None
        assert after.labels is None
    after.save_pretrained(tmp_path / "again")
    for name in ("partitioner.json", "partitioner.safetensors", "README.md"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "saved" / name).read_bytes()


def test_the_example_on_the_card_loads_it(fitted: FittedPartitioner, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "# 4 parts of 3×8×8 images" in card
    assert "pgmkit.load_partitioner(" in card
    assert str(tmp_path) not in card
    for size in fitted.sizes:
        assert f"{size}" in card


@quiet
def test_objects_of_one_s_own_cannot_be_saved(tmp_path: Path) -> None:
    source, _ = pictures(40)
    network = {"name": "network", "module": nn.Flatten()}
    own = {
        "Layers is an object of your own": Layers(3, 0),
        "cannot be saved: ": {"name": "kmeans", "features": network},
        "Own is an object of your own": {
            "name": "self-trained",
            "base": Own(),
            "num_partitions": 2,
            "steps": 2,
            **SMALL,
        },
        "Own is an object of your own; ": {
            "name": "most-stable",
            "candidates": [Own()],
            "num_partitions": 2,
        },
    }
    for message, partitioner in own.items():
        seen = Pictures(source.values[:, :1, :2, :3].double()) if "Layers" in message else source
        fitted = fit_partitioner(partitioner, seen)
        with pytest.raises(PluginError, match=re.escape(message)):
            fitted.save_pretrained(tmp_path / "none")
        assert not (tmp_path / "none" / "partitioner.json").exists()


class Own:
    """A partitioner of a user's own: dark and bright."""

    num_partitions = 2

    def fit(self, source: Any, *, seed: int) -> None:
        self.median = every(source).mean(dim=(1, 2, 3)).median()

    def logits(self, x: Tensor) -> Tensor:
        above = x.mean(dim=(1, 2, 3)) - self.median
        return torch.stack([-above, above], dim=1)


@quiet
def test_a_base_that_is_an_object_is_on_record_with_its_parameters(tmp_path: Path) -> None:
    source, _ = pictures(100)
    features = build("features", "pca", num_dims=3)
    base = build("partitioners", "kmeans", num_partitions=K, num_starts=2, features=features)
    kept = fit_partitioner({"name": "most-stable", "candidates": [base]}, source, partitions=K)
    kept.save_pretrained(tmp_path)
    (recorded,) = kept.origin["partitioner"]["params"]["candidates"]
    assert recorded["name"] == "pgmkit:kmeans"
    assert recorded["num_starts"] == 2
    assert recorded["features"]["num_dims"] == 3
    assert torch.equal(load_partitioner(tmp_path).logits(every(source)), kept.logits(every(source)))


def test_what_is_no_partitioner_is_not_loaded(fitted: FittedPartitioner, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match=r"has no partitioner.json; fit one with pgmkit partition"):
        load_partitioner(tmp_path / "empty")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError):
        fitted.save_pretrained(file / "below")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", [1, 2]),
        ("sizes", None),
        ("image", {"shape": [3, 0, 8], "range": [-1, 1]}),
        ("image", {"shape": [1, 8, 8], "range": [-1, 1]}),
        ("partitioner", {"name": "kmeans"}),
        ("partitioner", {"name": "kmeans", "params": {"num_partitions": "x"}}),
        ("partitioner", []),
        ("state", {"centers": torch.ones(4, 3).double()}),
        ("state", {}),
    ],
)
def test_a_damaged_folder_is_named(
    key: str, value: Any, fitted: FittedPartitioner, tmp_path: Path
) -> None:
    fitted.save_pretrained(tmp_path)
    if key == "state":
        kept = safetensors.torch.load_file(tmp_path / "partitioner.safetensors")
        changed = {**kept, **value} if value else {"x": torch.ones(1)}
        safetensors.torch.save_file(changed, tmp_path / "partitioner.safetensors")
    else:
        path = tmp_path / "partitioner.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(
        LoadError, match=r"damaged or of another version.*; fit the partitioner again"
    ):
        load_partitioner(tmp_path)


def test_an_unknown_partitioner_of_a_folder_is_named(
    fitted: FittedPartitioner, tmp_path: Path
) -> None:
    fitted.save_pretrained(tmp_path)
    path = tmp_path / "partitioner.json"
    config = json.loads(path.read_text())
    config["partitioner"]["name"] = "theirs:parts"
    path.write_text(json.dumps(config))
    with pytest.raises(UnknownNameError, match="theirs:parts"):
        load_partitioner(tmp_path)


def tensors(partitioner: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state_of(partitioner).items()}


def shattered(partitioner: Any, **given: Any) -> pgmkit.ShatteredGenerator:
    return pgmkit.shatter(
        gated(), "none", partitioner, latents=300, spectrum={"dtype": "float32"}, **given
    )


def test_parts_of_a_data_set_shatter_a_generator_and_stay_as_they_are(
    fitted: FittedPartitioner, tmp_path: Path
) -> None:
    """The partitioner is fitted to stored images once; G only pulls its parts back to latents."""
    before = tensors(fitted.partitioner)
    whole = shattered(fitted)
    assert whole.num_clusters == K
    assert before.keys() == tensors(fitted.partitioner).keys()
    for name, value in tensors(fitted.partitioner).items():
        assert torch.equal(value, before[name]), name
    latents = whole.generator.sample_latents(200, seed=9)
    images = every(groups.GeneratedImages(whole.generator, latents))
    assert torch.equal(whole.predict(latents), fitted.assign(images))
    drawn = whole.sample_latents(30, cluster=2)
    assert (whole.predict(drawn) == 2).all()
    fitted.save_pretrained(tmp_path / "parts")
    for same in (load_partitioner(tmp_path / "parts"), f"local-dir:{tmp_path / 'parts'}"):
        again = shattered(same)
        assert torch.equal(again.predict(latents), whole.predict(latents))
        assert torch.equal(again.sample_latents(30, cluster=2), drawn)
    whole.save_pretrained(tmp_path / "whole")
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path / "whole", architecture=groups.Gated
    )
    assert torch.equal(loaded.predict(latents), whole.predict(latents))
    assert torch.equal(loaded.sample_latents(30, cluster=2), drawn)


def test_parts_of_images_of_another_shape_do_not_fit_a_generator() -> None:
    other = fit_partitioner("kmeans", Pictures(torch.rand(40, 1, 8, 8)), partitions=2)
    with pytest.raises(
        ParameterError, match=r"fitted to images of \(1, 8, 8\), and these are \(3, 8, 8\)"
    ):
        shattered(other)


def test_nothing_is_chosen_for_parts_that_are_fixed(fitted: FittedPartitioner) -> None:
    with pytest.raises(ParameterError, match="has 4 parts, and 3 are asked for"):
        shattered(fitted, clusters=3)
    for choice in ({"clusters": "auto"}, {"remove": "auto"}):
        with pytest.raises(
            ParameterError, match="cannot be chosen by parts that were found before"
        ):
            shattered(fitted, **choice)


def test_an_object_that_is_not_fitted_is_fitted_to_what_is_kept() -> None:
    own = build("partitioners", "kmeans", num_partitions=K)
    whole = shattered(own, remove=0.5)
    assert whole.num_clusters == K
    assert sum(whole.cluster_sizes) == 150
    assert own.centers_.shape[0] == K


def sampler_of(**given: Any) -> PartitionSampler:
    table = {"num_clusters": K, "partitioner": "kmeans", "mapper": "mixture", **given}
    built: PartitionSampler = build("cluster-samplers", "partition", **table)
    return built


def test_the_cluster_of_a_latent_is_the_part_of_its_image() -> None:
    generator = gated()
    latents = generator.sample_latents(400, seed=0)
    sampler = sampler_of()
    sampler.fit(latents, generator=generator, seed=0)
    assert sampler.labels_.dtype == torch.int64
    assert agreement(sampler.labels_, truth(latents)) > 0.95
    assert torch.equal(sampler.predict(latents), sampler.labels_)
    assert torch.equal(sampler.assign(latents), sampler.labels_)
    assert sampler.predict(latents[:0]).shape == (0,)
    blind = sampler_of(partitioner={"name": "kmeans", "features": "latents"})
    blind.fit(latents, seed=0)
    assert agreement(blind.labels_, truth(latents)) < 0.5


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What predicts clusters from latents is trained sooner."""
    monkeypatch.setattr("pgmkit.learning.assigner._BATCH", 64)


@pytest.mark.usefixtures("small_batches")
@quiet
def test_clusters_may_be_told_from_latents_without_making_an_image() -> None:
    generator = gated()
    latents = generator.sample_latents(600, seed=0)
    sampler = sampler_of(predict_from="latents", mapper={"name": "rejection"})
    sampler.fit(latents, generator=generator, seed=0)
    assert agreement(sampler.labels_, truth(latents)) > 0.95
    assert (sampler.predict(latents) == sampler.labels_).float().mean() > 0.85
    assert 0.25 < sampler.findings()["agreement"] <= 1
    made_before = generator.module.images_made
    new = generator.sample_latents(300, seed=1)
    assert agreement(sampler.predict(new), truth(new)) > 0.3
    drawn = sampler.sample(20, 1, seed=0)
    assert (sampler.predict(drawn) == 1).all()
    assert generator.module.images_made == made_before
    loaded = sampler_of(predict_from="latents", mapper={"name": "rejection"})
    load_state_of(loaded, state_of(sampler))
    loaded.bind(generator)
    assert torch.equal(loaded.predict(new), sampler.predict(new))
    assert torch.equal(loaded.sample(20, 1, seed=0), drawn)


MAPPERS: dict[str, Any] = {
    "mixture": "mixture",
    "refined": {"name": "refined", "rounds": 1},
    "prior": "prior",
    "rejection": "rejection",
    "rejection of the prior": {"name": "rejection", "proposal": "prior"},
    "rejection of refined": {"name": "rejection", "proposal": {"name": "refined", "rounds": 1}},
    "rejection in the core": {"name": "rejection", "core": 0.4},
}


@pytest.mark.parametrize("mapper", MAPPERS)
def test_each_mapper_draws_from_the_parts(mapper: str, one_thread: None) -> None:
    generator = gated()
    latents = generator.sample_latents(400, seed=0)
    sampler = sampler_of(mapper=MAPPERS[mapper])
    sampler.fit(latents, generator=generator, seed=0)
    for cluster in range(K):
        drawn = sampler.sample(30, cluster, seed=3)
        assert drawn.shape == (30, groups.DIM)
        assert drawn.dtype == torch.float32
        assert torch.equal(drawn, sampler.sample(30, cluster, seed=3))
        assert not torch.equal(drawn, sampler.sample(30, cluster, seed=4))
        share = float((sampler.predict(drawn) == cluster).float().mean())
        if mapper.startswith("rejection"):
            assert share == 1
            assert 0 < sampler.acceptance_rate(cluster) <= 1
            core = 0.4 if "core" in mapper else 1.0
            assert (sampler.assign(drawn, core) == cluster).all()
        else:
            assert sampler.acceptance_rate(cluster) is None
    assert ("acceptance" in sampler.findings()) is mapper.startswith("rejection")
    loaded = sampler_of(mapper=MAPPERS[mapper])
    load_state_of(loaded, state_of(sampler))
    loaded.bind(generator)
    assert torch.equal(loaded.sample(30, 1, seed=3), sampler.sample(30, 1, seed=3))
    assert torch.equal(loaded.labels_, sampler.labels_)


@pytest.mark.parametrize("distribution", ["uniform", "truncated-normal"])
def test_draws_stay_inside_a_prior_with_bounds(distribution: str) -> None:
    generator = gated(distribution=distribution, low=-2.0, high=2.0)
    latents = generator.sample_latents(300, seed=0)
    sampler = sampler_of()
    sampler.fit(latents, generator=generator, seed=0)
    assert agreement(sampler.labels_, truth(latents)) > 0.9
    drawn = torch.cat([sampler.sample(100, cluster, seed=0) for cluster in range(K)])
    assert 1.5 < drawn.abs().max() <= 2


PARTS: dict[str, Any] = {
    "kmeans": "kmeans",
    "mixture": {"name": "mixture", "features": {"name": "pca", "num_dims": 8}},
    "manifold": {"name": "manifold", "embedding_dims": 4},
    "latents": {"name": "kmeans", "features": "latents"},
}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("way", [*PARTS, "predicted from latents"])
@quiet
def test_a_smaller_core_lies_inside_a_larger_and_has_about_its_share(way: str) -> None:
    generator = gated(sharpness=1.0)
    latents = generator.sample_latents(600, seed=0)
    told = {"predict_from": "latents"} if way not in PARTS else {}
    sampler = sampler_of(partitioner=PARTS.get(way, "kmeans"), **told)
    sampler.fit(latents, generator=generator, seed=0)
    new = generator.sample_latents(2000, seed=9)
    whole = sampler.assign(new)
    assert torch.equal(whole, sampler.predict(new))
    larger = whole >= 0
    for core in (0.9, 0.503, 0.5, 0.3, 0.01):
        found = sampler.assign(new, core)
        inside = found >= 0
        assert torch.equal(found[inside], whole[inside])
        assert (found[~inside] == -1).all()
        assert not (inside & ~larger).any()
        if way in ("kmeans", "mixture", "latents"):  # others are measured on what is held out
            for cluster in range(K):
                share = inside[whole == cluster].float().mean()
                assert float(share) == pytest.approx(core, abs=0.12)
        larger = inside
    fitted = sampler.assign(latents, 0.3)
    if way in ("kmeans", "mixture", "latents"):
        for cluster in range(K):
            members = sampler.labels_ == cluster
            share = float((fitted[members] == cluster).float().mean())
            assert share == pytest.approx(0.3, abs=1.5 / int(members.sum()) + 0.01)


def test_the_core_of_a_cluster_is_what_lies_the_most_clearly_in_it() -> None:
    generator = gated(sharpness=1.0)
    latents = generator.sample_latents(600, seed=0)
    sampler = sampler_of()
    sampler.fit(latents, generator=generator, seed=0)
    margins = margins_of(
        sampler.partitioner.logits(every(groups.GeneratedImages(generator, latents)))
    )
    inside = sampler.assign(latents, 0.5) >= 0
    for cluster in range(K):
        members = sampler.labels_ == cluster
        assert margins[members & inside].min() >= margins[members & ~inside].max()


def test_nothing_is_left_out_of_a_single_cluster() -> None:
    generator = gated()
    sampler = sampler_of(num_clusters=1)
    sampler.fit(generator.sample_latents(50, seed=0), generator=generator, seed=0)
    assert (sampler.assign(generator.sample_latents(50, seed=1), 0.1) == 0).all()


def test_a_sampler_of_images_says_when_it_has_no_generator() -> None:
    generator = gated()
    latents = generator.sample_latents(200, seed=0)
    sampler = sampler_of()
    for call in (sampler.fit, sampler.prepare):
        with pytest.raises(ParameterError, match="looks at images, so it needs the generator"):
            call(latents, generator=None, seed=0)
    sampler.fit(latents, generator=generator, seed=0)
    loaded = sampler_of()
    load_state_of(loaded, state_of(sampler))
    with pytest.raises(ParameterError, match="there is no generator; bind the sampler to it"):
        loaded.predict(latents)


def test_more_clusters_than_distinct_latents_are_refused() -> None:
    latents = torch.zeros(9, groups.DIM)
    with pytest.raises(ParameterError, match="4 clusters need as many distinct latents, and there"):
        sampler_of().fit(latents, generator=gated(), seed=0)


def test_an_unreachable_core_ends_in_an_error_that_says_what_to_do() -> None:
    generator = gated()
    far = {"name": "rejection", "proposal": "prior", "max_tries": 1, "core": 1e-3}
    sampler = sampler_of(mapper=far)
    with pytest.warns(PgmkitWarning, match="took none of the trial proposals") as warned:
        sampler.fit(generator.sample_latents(200, seed=0), generator=generator, seed=0)
    assert len(warned) == 1
    cluster = min(range(K), key=sampler.acceptance_rate)
    with pytest.raises(SamplingError, match=r"raise max_tries \(now 1 per latent\)"):
        sampler.sample(20, cluster, seed=0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_clusters": 0}, ParameterError, "number of clusters"),
        ({"predict_from": "image"}, UnknownNameError, "did you mean 'images'"),
        ({"partitioner": "kmean"}, UnknownNameError, "did you mean 'kmeans'"),
        ({"partitioner": "local-dir:/nowhere/at/all"}, LoadError, "nowhere"),
        ({"mapper": "mixtur"}, UnknownNameError, "did you mean 'mixture'"),
        ({"mapper": {"name": "rejection", "core": 0}}, ParameterError, "core must be in"),
    ],
)
def test_parameters_of_a_sampler_are_checked(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sampler_of(**given)


@pytest.mark.parametrize("part", ["partitioner.centers", "partitioner.features.components"])
def test_parts_that_do_not_fit_are_damage(part: str, tmp_path: Path) -> None:
    whole = shattered("kmeans", clusters=K, mapper="mixture")
    whole.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "sampler.safetensors")
    assert part in state
    state[part] = torch.ones(3, 3, dtype=torch.float64)
    safetensors.torch.save_file(state, tmp_path / "sampler.safetensors")
    with pytest.raises(LoadError, match="damaged or of another version"):
        pgmkit.ShatteredGenerator.from_pretrained(tmp_path, architecture=groups.Gated)


@pytest.mark.parametrize("way", ["kmeans", "manifold", "most-stable", "self-trained"])
@quiet
def test_a_shattered_generator_with_any_parts_comes_back(
    way: str, tmp_path: Path, one_thread: None
) -> None:
    whole = shattered(WAYS[way], clusters=K, mapper="mixture")
    whole.save_pretrained(tmp_path)
    loaded = pgmkit.ShatteredGenerator.from_pretrained(tmp_path, architecture=groups.Gated)
    latents = whole.generator.sample_latents(100, seed=5)
    assert torch.equal(loaded.predict(latents), whole.predict(latents))
    cluster = max(range(K), key=whole.cluster_sizes.__getitem__)
    assert torch.equal(loaded.sample(4, cluster, seed=2), whole.sample(4, cluster, seed=2))
    assert loaded.cluster_sizes == whole.cluster_sizes
    assert loaded.origin.sampler == whole.origin.sampler
    kept: Any = whole.sampler
    assert whole.origin.sampler.get("findings", {}) == dict(kept.findings())
