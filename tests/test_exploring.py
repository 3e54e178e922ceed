"""Results to be looked at and changed, without a browser."""

import gc
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import run_pgmkit, write_tiny_classifier, write_tiny_generator
from torch import Tensor, nn

import pgmkit
from pgmkit import contracts, files, progress
from pgmkit.errors import LoadError, OutputError, ParameterError, PgmkitError, UnknownNameError
from pgmkit.exploring import (
    ConditionalExhibit,
    PartitionerExhibit,
    Samples,
    ShatteredExhibit,
    mapping,
    markup,
    open_exhibit,
)
from pgmkit.exploring import shattered as shattered_module
from pgmkit.exploring.kept import Kept
from pgmkit.exploring.mapping import features_of
from pgmkit.exploring.moving import path_between, singular_directions
from pgmkit.exploring.space import write_space
from pgmkit.images import GeneratedImages
from pgmkit.learning.folder import folder_of
from pgmkit.learning.points import gathered_points
from pgmkit.plugins import build
from pgmkit.sampling import MergedSampler, SplitSampler
from pgmkit.testing.trials import source_for

SMALL = ("--latents", 240, "--clusters", 4, "--partitioner", "kmeans", "--mapper", "rejection")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exploring")
    source = write_tiny_generator(root / "tiny")
    finished = run_pgmkit("shatter", source, "-o", root / "result", *SMALL)
    assert finished.code == 0, finished.stderr
    return root / "result"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judged")
    source = write_tiny_generator(root / "tiny")
    classifier = write_tiny_classifier(root / "classifier", image_size=32)
    words = ("shatter", source, "-o", root / "result", *SMALL, "--classifier", classifier)
    finished = run_pgmkit(*words)
    assert finished.code == 0, finished.stderr
    return root / "result"


@pytest.fixture(scope="module")
def exhibit(result: Path) -> ShatteredExhibit:
    found = open_exhibit(f"local-dir:{result}")
    assert isinstance(found, ShatteredExhibit)
    assert found.notes == []
    return found


def test_samples_are_latents_of_the_cluster_the_clearest_first(exhibit: ShatteredExhibit) -> None:
    for fresh in (False, True):
        some = exhibit.samples(2, 20, fresh=fresh)
        assert some.latents is not None
        assert some.margins is not None
        assert (exhibit.shattered.predict(some.latents) == 2).all()
        assert (some.margins.diff() <= 0).all()
        again = exhibit.samples(2, 20, fresh=fresh)
        assert torch.equal(again.images, some.images)
    kept = {tuple(row) for row in exhibit.kept.tolist()}
    assert all(tuple(z) in kept for z in exhibit.samples(1, 500).latents.tolist())  # type: ignore[union-attr]
    assert len(exhibit.samples(1, 500)) == exhibit.shattered.cluster_sizes[1]


def test_what_is_removed_is_what_a_run_would_remove(exhibit: ShatteredExhibit) -> None:
    shattered = exhibit.shattered
    as_it_is = exhibit.removal(float(shattered.origin.settings["remove"]))
    assert as_it_is.kept == shattered.origin.statistics["num_kept"]
    assert list(as_it_is.sizes) == shattered.cluster_sizes
    half = exhibit.removal(0.5)
    assert (half.kept, half.removed) == (120, 120)
    assert sum(half.sizes) == 120  # all of those that are kept by less are kept by more
    assert exhibit.spectrum is not None
    run = pgmkit.shatter(
        exhibit.generator,
        "jbt",
        partitioner="kmeans",
        clusters=2,
        remove=0.5,
        spectrum=exhibit.spectrum,
    )
    assert run.selection is not None
    assert exhibit.removal(0.5, "jbt").cut == pytest.approx(run.selection.cut)


def test_a_preview_finds_what_a_run_finds(exhibit: ShatteredExhibit) -> None:
    assert {"kmeans", "mixture"} <= set(exhibit.partitioners())
    assert "fixed" not in exhibit.partitioners()
    same = exhibit.preview("lash", "kmeans", 4, 0.2)
    assert sum(same.sizes) == sum(exhibit.shattered.cluster_sizes)
    assert same.agreement is not None
    assert same.agreement > 0.9  # features are learned from all latents, removed ones among them
    fewer = exhibit.preview("jbt", "kmeans", 3, 0.5)
    assert (len(fewer.sizes), sum(fewer.sizes)) == (3, 120)
    with pytest.raises(ParameterError, match="finds its parts at once"):
        exhibit.preview("lash", "random", 3, 0.5)
    made = exhibit.made("jbt", "kmeans", "rejection", 3, 0.5)
    assert (len(made.called), sum(made.shattered.cluster_sizes)) == (3, 120)
    assert made.shattered.origin.density["name"] == "pgmkit:jbt"


def test_the_map_shows_kept_and_removed_latents(exhibit: ShatteredExhibit) -> None:
    found = exhibit.map()
    assert found.places.shape == (240, 2)
    assert (found.places.amin(), found.places.amax()) == (0, 1)
    assert int((found.clusters < 0).sum()) == 48
    assert re.search(r"of the images, which hold \d+% of their variance; 240 latents", found.about)
    removed = found.weights[found.clusters < 0]
    assert removed.max() < found.weights[found.clusters >= 0].min()
    page = markup.latents_map(found, exhibit.called, "cluster")
    data = json.loads(page.partition('data-points="')[2].partition('"')[0].replace("&quot;", '"'))
    assert len(data["x"]) == len(data["labels"]) == 240
    assert data["labels"].count("removed; density rank 0 %") == 1
    assert set(data["colour"]) == {0, 1, 2, 3, 4}
    with pytest.raises(UnknownNameError, match="layout of a map"):
        exhibit.map("t-SNE")
    with pytest.raises(ParameterError, match="make the map of the images"):
        exhibit.map(of="sounds")


def test_a_map_of_features_is_that_of_what_the_clusters_were_found_by(
    exhibit: ShatteredExhibit,
) -> None:
    assert exhibit.has_features
    found = exhibit.map(of="features")
    assert found.about.startswith("The two leading principal components of the features")
    points = gathered_points(exhibit.shattered.sampler.partitioner.features, _all(exhibit))  # type: ignore[attr-defined]
    _, _, vectors = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    for axis in (0, 1):
        wanted = points @ vectors[axis]
        pair = torch.stack([wanted, found.places[:, axis].double()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) > 0.999
    merged = exhibit.merged([0, 1])  # which holds the sampler that it was made of
    assert torch.equal(merged.map(of="features").places, found.places)


def _all(exhibit: ShatteredExhibit) -> GeneratedImages:
    assert exhibit.spectrum is not None
    return GeneratedImages(exhibit.generator, exhibit.spectrum.latents)


@pytest.mark.filterwarnings("ignore:the network gives no images")
def test_what_partitioners_see_is_found_wherever_it_is() -> None:
    x = torch.zeros(2, 3, 8, 8)
    source = source_for(object(), (3, 8, 8))
    for table, dim in (
        ("kmeans", None),
        ({"name": "self-trained", "base": "kmeans", "steps": 2, "width": 4}, 128),
        ({"name": "most-stable", "candidates": ["mixture", "kmeans"]}, None),
    ):
        partitioner = pgmkit.fit_partitioner(table, source, partitions=4).partitioner
        found = features_of(partitioner)
        assert found is not None
        assert found(x).shape[0] == 2
        assert dim in (None, found(x).shape[1])
    assert features_of(build("partitioners", "single")) is None
    latents = build("partitioners", {"name": "kmeans", "features": "latents"})
    assert features_of(latents) is None
    assert features_of(build("cluster-samplers", "kmeans-gmm")) is None


def test_without_umap_a_map_by_it_says_what_to_install(
    exhibit: ShatteredExhibit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "has_umap", lambda: False)
    with pytest.raises(ParameterError, match=r"pip install 'pgmkit\[umap\]'"):
        exhibit.map("UMAP")


def test_umap_keeps_groups_together() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed; see make test-browser")
    random = torch.Generator().manual_seed(0)
    groups = torch.arange(90) % 3
    points = 20 * torch.randn(3, 12, generator=random)[groups]
    points += torch.randn(90, 12, generator=random)
    places, about = mapping.places_of(points, "UMAP", "images", 0)
    assert (places.amin(), places.amax()) == (0, 1)
    assert about == (
        "UMAP of the images, by 12 principal components: neighbours look alike, and how far apart "
        "groups lie says little; 90 latents."
    )
    apart = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert torch.equal(groups[apart.argmin(dim=1)], groups)
    again, _ = mapping.places_of(points, "UMAP", "images", 0)
    assert torch.equal(again, places)
    with pytest.raises(ParameterError, match="takes more than 15 latents"):
        mapping.places_of(points[:9], "UMAP", "images", 0)


def test_what_was_not_asked_for_the_longest_is_forgotten_first() -> None:
    kept, made = Kept(most=100), list[str]()

    def value(name: str, size: int) -> Tensor:
        def make() -> Tensor:
            made.append(name)
            return torch.zeros(size, dtype=torch.uint8)

        return kept.get(name, make)

    value("a", 40), value("b", 40), value("a", 40)
    assert made == ["a", "b"]
    value("c", 40)
    assert ("a" in kept, "b" in kept, "c" in kept) == (True, False, True)
    assert kept.num_bytes == 80
    value("large", 1000)  # which stays, alone
    assert kept.num_bytes == 1000
    value("a", 40)
    assert kept.num_bytes == 40
    samples = Samples(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), None)
    kept.get("samples", lambda: (samples, [torch.zeros(3)]))
    assert kept.num_bytes == 40 + 32 + 8 + 12


def test_what_was_learned_goes_with_what_keeps_it() -> None:
    kept = Kept()
    folder = kept.folder
    (folder / "learned").write_text("much")
    assert kept.folder == folder
    del kept
    gc.collect()
    assert not folder.exists()


def test_whoever_tries_methods_shares_what_was_learned_of_one_spectrum(
    exhibit: ShatteredExhibit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()

    def learned(partitioner: Any, source: Any, seed: int) -> Tensor:
        seen.append(type(partitioner).__name__)
        assert folder_of("features") is not None  # where several find what one has learned
        return prepared_points(partitioner, source, seed)

    prepared_points = contracts.prepared_points
    monkeypatch.setattr(contracts, "prepared_points", learned)
    fresh = open_exhibit(str(exhibit.folder))
    assert isinstance(fresh, ShatteredExhibit)
    for density, clusters in (("lash", 3), ("jbt", 5), ("lash", 6)):
        fresh.preview(density, "mixture", clusters, 0.2)
    edited = fresh.merged([0, 1])
    edited.preview("lash", "mixture", 4, 0.3)
    made = edited.made("jbt", "kmeans", "rejection", 3, 0.5)
    assert seen == ["MixturePartitioner"]
    made.preview("lash", "mixture", 4, 0.3)
    assert seen == ["MixturePartitioner"]
    told = list[str]()
    with progress.followed(lambda name, done, total: told.append(name)):
        fresh.preview("lash", "kmeans", 3, 0.2)
    assert told[0] == "what kmeans learns of 240 latents"
    assert told[-1] == "3 clusters of 192 latents"


def test_images_of_any_size_are_small_on_the_map() -> None:
    module = nn.Sequential(
        nn.Linear(3, 3), nn.Tanh(), nn.Unflatten(1, (3, 1, 1)), nn.Upsample((192, 256))
    )
    generator = pgmkit.Generator(
        module, latent=pgmkit.LatentSpec(3), image=pgmkit.ImageSpec((3, 192, 256))
    )
    spectrum = pgmkit.compute_spectrum(generator, latents=24, seed=0)
    shattered = pgmkit.shatter(generator, sampler="kmeans-gmm", clusters=2, spectrum=spectrum)
    found = ShatteredExhibit(shattered, spectrum)
    assert not found.has_features
    assert found.map().images.shape == (24, 3, 72, 96)
    assert found.samples(0, 4).images.shape[1:] == (3, 192, 256)
    assert found.removal(0.5).first.shape[1:] == (3, 72, 96)


def test_a_path_keeps_to_what_the_prior_finds_likely() -> None:
    prior = pgmkit.LatentSpec(64)
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    path = path_between(a, b, prior, 9)
    assert torch.allclose(path[[0, -1]], torch.stack([a, b]), atol=1e-5)
    norms = path.norm(dim=1)
    assert norms.min() > 0.98 * min(a.norm(), b.norm())
    steps = torch.nn.functional.normalize(path, dim=1)
    angles = (steps[:-1] * steps[1:]).sum(dim=1).clamp(-1, 1).acos()
    assert torch.allclose(angles, angles.mean().expand_as(angles), atol=1e-4)
    assert torch.allclose(path_between(a, a, prior, 4), a.expand(4, -1), atol=1e-5)
    uniform = pgmkit.LatentSpec(8, distribution="uniform")
    z = uniform.sample(2, torch.Generator().manual_seed(0))
    between = path_between(*z, uniform, 5)
    assert between.abs().max() <= 1


def test_singular_directions_are_those_of_the_jacobian() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 5, dtype=torch.float64).float()
    linear = torch.nn.Linear(5, 12, bias=False)
    linear.weight.data.copy_(weight)
    generator = pgmkit.Generator(
        linear, latent=pgmkit.LatentSpec(5), image=pgmkit.ImageSpec((3, 2, 2))
    )
    z = torch.randn(5)
    found = singular_directions(generator, z, 3)
    _, values, vectors = torch.linalg.svd(weight.double(), full_matrices=False)
    assert torch.allclose(found.values, values[:3], rtol=1e-5)
    cosine = (found.vectors.double() * vectors[:3]).sum(dim=1).abs()
    assert torch.allclose(cosine, torch.ones(3, dtype=torch.float64), atol=1e-5)
    there = found.moved(torch.tensor([0.5]), generator.latent)
    change = (generator.images(there[None]) - generator.images(z[None])).norm()
    assert float(change) == pytest.approx(0.5 * float(values[0]), rel=1e-4)


def test_a_walk_begins_in_one_cluster_and_ends_in_the_other(exhibit: ShatteredExhibit) -> None:
    images, clusters = exhibit.walk(0, 3, steps=7)
    assert (len(images), clusters[0], clusters[-1]) == (7, 0, 3)


# Edits


def test_edits_are_new_results_that_load_and_are_drawn_from(
    exhibit: ShatteredExhibit, tmp_path: Path
) -> None:
    before = exhibit.shattered
    named = exhibit.renamed(3, " sandals ")
    merged = named.merged([2, 0])
    assert merged.called == ["cluster 0", "cluster 1", "2: sandals"]
    sizes = before.cluster_sizes
    assert merged.shattered.cluster_sizes == [sizes[0] + sizes[2], sizes[1], sizes[3]]
    split = merged.split(0, parts=2)
    assert split.called == ["cluster 0", "cluster 1", "2: sandals", "cluster 3"]
    inside = split.shattered.cluster_sizes
    assert inside[0] + inside[3] == sizes[0] + sizes[2]
    assert min(inside) > 0
    last = split.with_hidden(1, True)
    assert before.names == [""] * 4  # what was edited stays as it was
    last.save(tmp_path / "saved")
    loaded = pgmkit.load(tmp_path / "saved")
    assert isinstance(loaded, pgmkit.ShatteredGenerator)
    assert (loaded.names, loaded.hidden) == (["", "", "sandals", ""], [1])
    latents = exhibit.kept
    assert torch.equal(loaded.predict(latents), last.shattered.predict(latents))
    assert torch.equal(loaded.predict(latents), torch.as_tensor(loaded.sampler.labels_))
    for cluster in ("sandals", 0, 3):
        drawn = loaded.sample_latents(20, cluster)
        assert (loaded.predict(drawn) == loaded.number_of(cluster)).all()
    _, clusters = loaded.draw(200)
    assert set(clusters.tolist()) == {0, 2, 3}
    again = open_exhibit(tmp_path / "saved")
    assert isinstance(again, ShatteredExhibit)
    assert again.notes == []
    assert torch.equal(again.samples(2, 9).images, last.samples(2, 9).images)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| 2 | sandals |" in card
    assert "| 1 |  (hidden) |" in card
    page = (tmp_path / "saved" / "report.html").read_text()
    assert "cluster 2, sandals" in page
    finished = run_pgmkit(
        *("sample", tmp_path / "saved", "--cluster", "sandals", "-n", 4),
        *("-o", tmp_path / "x.npz", "--json"),
    )
    assert finished.code == 0, finished.stderr
    by_number = loaded.sample_latents(4, 2)
    assert np.array_equal(np.load(tmp_path / "x.npz")["latents"], by_number.numpy())
    with pytest.raises(ParameterError, match="holds something already"):
        last.save(tmp_path / "saved")


def test_what_is_saved_has_the_record_of_a_run_and_says_from_what(
    judged: Path, tmp_path: Path
) -> None:
    opened = open_exhibit(judged)
    assert isinstance(opened, ShatteredExhibit)
    edited = opened.merged([0, 1]).renamed(0, "both")
    edited.save(tmp_path / "saved")
    before, after = _contents(judged), _contents(tmp_path / "saved")
    assert before - after == {"samples.png"} - after
    run = json.loads((judged / "run.json").read_text())["settings"]
    record = json.loads((tmp_path / "saved" / "run.json").read_text())["settings"]
    assert record.pop("edited_from") == {
        "result": str(judged),
        "sampler_sha256": files.sha256(judged / "sampler.json"),
    }
    assert record.keys() == run.keys()
    changed = {name for name in run if record[name] != run[name]}
    assert changed == {"sampler", "clusters"}
    assert record["sampler"]["name"] == "pgmkit:merged"
    again = open_exhibit(tmp_path / "saved")
    assert isinstance(again, ShatteredExhibit)
    assert again.title == opened.title.replace("4 clusters", "3 clusters")
    assert again.map().classes is not None
    assert torch.equal(again.map().classes, opened.map().classes)  # type: ignore[arg-type]
    numbers = json.loads((tmp_path / "saved" / "report.json").read_text())
    assert numbers["edited_from"]["result"] == str(judged)
    assert numbers["scores"]
    assert "edited from" in (tmp_path / "saved" / "report.html").read_text()
    again.renamed(1, "one").save(tmp_path / "twice")
    record = json.loads((tmp_path / "twice" / "run.json").read_text())["settings"]
    assert record["edited_from"]["result"] == str(tmp_path / "saved")
    opened.made("jbt", "kmeans", "rejection", 3, 0.5).save(tmp_path / "other")
    record = json.loads((tmp_path / "other" / "run.json").read_text())["settings"]
    assert (record["density"]["name"], record["remove"]) == ("pgmkit:jbt", 0.5)
    assert open_exhibit(tmp_path / "other").notes == []
    told = run_pgmkit("info", tmp_path / "saved")
    assert told.code == 0, told.stderr
    source = f"local-dir:{judged.parent / 'tiny'}"
    finished = run_pgmkit("shatter", source, "-o", tmp_path / "saved", *SMALL)
    assert finished.code == 1
    assert "holds a run with" in finished.stderr


def test_names_alone_are_saved_without_measuring_the_clusters_again(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_exhibit(judged)
    assert isinstance(opened, ShatteredExhibit)
    named, damaged = opened.renamed(1, "sandals"), tmp_path / "damaged"
    shutil.copytree(judged, damaged)
    (damaged / "report.json").write_text("{")
    measured_again = open_exhibit(damaged)
    assert isinstance(measured_again, ShatteredExhibit)
    measured_again.renamed(1, "sandals").save(tmp_path / "measured")

    def describe(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(shattered_module, "describe", describe)
    named.save(tmp_path / "named")
    numbers, again = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("named", "measured")
    )
    assert numbers["clusters"][1]["name"] == "cluster 1, sandals"
    assert numbers["clusters"][0]["name"].startswith("cluster 0, mostly ")
    assert numbers["edited_from"]["result"] == str(judged)
    for told in (numbers, again):
        for of_the_run in ("edited_from", "seconds"):
            told.pop(of_the_run)
    assert numbers == again
    assert "cluster 1, sandals" in (tmp_path / "named" / "report.html").read_text()
    for other in (named.with_hidden(0, True), named.merged([0, 1])):
        with pytest.raises(AssertionError, match="measured again"):
            other.renamed(0, "zero").save(tmp_path / "other")


def test_what_cannot_be_saved_leaves_nothing(
    exhibit: ShatteredExhibit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(shattered_module, "write_report", full)
    with pytest.raises(OutputError, match="the disk is full"):
        exhibit.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    assert exhibit.folder is not None
    with pytest.raises(OutputError, match="lies in"):
        exhibit.save(exhibit.folder / "inside")


def test_a_spectrum_of_elsewhere_is_found_again_after_an_edit(tmp_path: Path) -> None:
    source = write_tiny_generator(tmp_path / "tiny")
    words = ("spectrum", "compute", source, "-o", tmp_path / "spectrum", "--latents", 120)
    assert run_pgmkit(*words).code == 0
    more = ("--partitioner", "kmeans", "--clusters", 3, "--spectrum", tmp_path / "spectrum")
    assert run_pgmkit("shatter", source, "-o", tmp_path / "result", *more).code == 0
    opened = open_exhibit(tmp_path / "result")
    assert isinstance(opened, ShatteredExhibit)
    opened.renamed(0, "first").save(tmp_path / "saved")
    again = open_exhibit(tmp_path / "saved")
    assert again.notes == []
    assert isinstance(again, ShatteredExhibit)
    assert torch.equal(again.map().places, opened.map().places)


def _contents(folder: Path) -> set[str]:
    """Returns the names of all files of a result, but for the pictures of single clusters."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "clusters"]
    return {str(p.relative_to(folder)) for p in paths if not p.name.startswith(".")}


def test_logits_of_regrouped_clusters_agree_with_predict(exhibit: ShatteredExhibit) -> None:
    latents = exhibit.kept[:100]
    for edited in (
        exhibit.merged([1, 3]),
        exhibit.split(2, parts=3),
        exhibit.split(1).merged([0, 4]),
    ):
        sampler = edited.shattered.sampler
        assert isinstance(sampler, MergedSampler | SplitSampler)
        logits = sampler.logits(latents)
        assert logits.shape == (100, edited.shattered.num_clusters)
        assert torch.equal(logits.argmax(dim=1), edited.shattered.predict(latents))
        some = edited.samples(0, 10)
        assert some.margins is not None
        assert (some.margins >= 0).all()


BAD_EDITS: dict[str, Any] = {
    "two clusters or more can be merged": lambda e: e.merged([1]),
    "there is no cluster 9": lambda e: e.merged([1, 9]),
    "of its own, or": lambda e: e.renamed(0, "x").renamed(1, "x"),
    "no number, not '3'": lambda e: e.renamed(0, "3"),
    "on one line": lambda e: e.renamed(0, "a\nb"),
    "no cluster is left": lambda e: (
        e.with_hidden(0, True).with_hidden(1, True).with_hidden(2, True).with_hidden(3, True)
    ),
    "split a larger one": lambda e: e.split(0, parts=239),
}


@pytest.mark.parametrize("said", BAD_EDITS)
def test_a_bad_edit_is_one_line(exhibit: ShatteredExhibit, said: str) -> None:
    with pytest.raises(ParameterError) as raised:
        BAD_EDITS[said](exhibit)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a", "a", "", ""]},
        {"names": "abcd"},
        {"names": [1, 2, 3, 4]},
        {"names": ["a"]},
        {"hidden": [7]},
        {"hidden": 3},
        {"hidden": [0, 1, 2, 3]},
    ],
)
def test_damaged_names_are_told_of(change: dict[str, Any], result: Path, tmp_path: Path) -> None:
    shutil.copytree(result, tmp_path / "copy")
    path = tmp_path / "copy" / "sampler.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LoadError, match=r"sampler\.json is damaged or of another version"):
        open_exhibit(tmp_path / "copy")


# What else is opened


def test_without_its_spectrum_a_result_shows_what_it_can(result: Path, tmp_path: Path) -> None:
    shutil.copytree(result, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "spectrum")
    found = open_exhibit(tmp_path / "copy")
    assert isinstance(found, ShatteredExhibit)
    assert "Its spectrum is not there" in found.notes[0]
    assert len(found.samples(0, 8)) == 8
    with pytest.raises(ParameterError, match="spectrum is not there"):
        found.removal(0.1)
    (tmp_path / "copy" / "spectrum").mkdir()
    assert "cannot be shown" in open_exhibit(tmp_path / "copy").notes[0]


def test_a_spectrum_of_another_run_is_not_taken(result: Path, tmp_path: Path) -> None:
    shutil.copytree(result, tmp_path / "copy")
    path = tmp_path / "copy" / "sampler.json"
    described = json.loads(path.read_text())
    described["settings"]["remove"] = 0.4
    path.write_text(json.dumps(described))
    found = open_exhibit(tmp_path / "copy")
    assert "is of another result" in found.notes[0]
    assert len(found.samples(0, 8)) == 8


def test_partitions_of_a_conditional_generator_are_shown_by_their_margins() -> None:
    found = open_exhibit("mnist-pgmgan")
    assert isinstance(found, ConditionalExhibit)
    assert len(found.called) == len(found.shares) == 10
    some = found.samples(3, 12)
    assert some.margins is not None
    assert (some.margins.diff() <= 0).all()
    assert found.model.partitioner is not None
    parts = found.model.partitioner.assign(some.images.float() / 127.5 - 1)
    assert int((parts == 3).sum()) >= 11
    assert not torch.equal(found.samples(3, 12, fresh=True).images, some.images)


def test_points_of_a_partitioner_show_the_plane_and_its_guide(tmp_path: Path) -> None:
    data = "points:ring:n=200"
    told = run_pgmkit(
        *("partition", "fit", "kmeans", "--data", data, "-o", tmp_path / "parts"),
        *("--partitions", 8),
    )
    assert told.code == 0, told.stderr
    found = open_exhibit(tmp_path / "parts")
    assert isinstance(found, PartitionerExhibit)
    assert (found.notes, found.is_plane) == ([], True)
    some = found.samples(2, 5)
    assert (found.fitted.assign(some.images) == 2).all()
    plain, guided = found.plane(None), found.plane(3)
    assert plain.startswith(b"\x89PNG")
    assert plain != guided
    (tmp_path / "parts" / "run.json").unlink()
    alone = open_exhibit(tmp_path / "parts")
    assert "cannot be read" in alone.notes[0]
    assert len(alone.samples(2, 5)) == 0


def test_what_has_no_clusters_says_how_to_find_some(tmp_path: Path) -> None:
    source = write_tiny_generator(tmp_path / "tiny")
    with pytest.raises(ParameterError, match="has no clusters to explore; find them first: pgmkit"):
        open_exhibit(source)
    with pytest.raises(PgmkitError, match="there is no folder"):
        open_exhibit(tmp_path / "none")


# What is written


def test_a_space_is_an_app_with_the_result(result: Path, tmp_path: Path) -> None:
    write_space(result, tmp_path / "space")
    assert sorted(p.name for p in (tmp_path / "space").iterdir()) == [
        *("README.md", "app.py", "requirements.txt", "result"),
    ]
    compile((tmp_path / "space" / "app.py").read_text(), "app.py", "exec")
    head = (tmp_path / "space" / "README.md").read_text().split("---")[1]
    assert "sdk: " in head
    assert 'app_file: "app.py"' in head
    found = open_exhibit(tmp_path / "space" / "result")
    assert found.notes == []
    assert not list((tmp_path / "space").rglob(".lock"))
    with pytest.raises(OutputError, match="holds something already"):
        write_space(result, tmp_path / "space")
    with pytest.raises(LoadError, match="holds nothing to explore"):
        write_space(tmp_path / "space", tmp_path / "other")


def test_pages_show_names_and_never_markup_of_them(exhibit: ShatteredExhibit) -> None:
    named = exhibit.renamed(0, '<b>"x"</b>')
    some = named.samples(0, 10)
    for page in (
        markup.wall(named, [some.images] * 4, 0, [2]),
        markup.tiles(some, named.called[0]),
        markup.removal(named.removal(0.3), named.called, named.shattered.cluster_sizes),
        markup.strip(some.images, named.called[:1] * 10),
        markup.latents_map(named.map(), named.called, "density"),
        markup.failure(named.called[0]),
    ):
        assert "<b>&quot;x" not in page
        assert '<b>"x' not in page
        assert page.count("<script") == 0
    wall = markup.wall(named, [some.images] * 4, 1, [2])
    assert wall.count("<button") == wall.count("aria-label=") - 1 == 4
    assert wall.count('aria-current="true"') == 1
    assert wall.count(" data-hidden") == 1
    tiles = markup.tiles(some, "x")
    assert tiles.count('aria-pressed="false"') == 10
    assert tiles.count("data:image/png") == 1  # one picture for all


def test_every_tile_shows_its_own_image() -> None:
    images = torch.arange(7, dtype=torch.uint8).reshape(7, 1, 1, 1).expand(7, 1, 4, 8) * 30
    made = markup.sheet(images)
    assert made.ratio == 2
    assert made.columns * made.rows >= 7
    across = [float(made.place(i).split(":")[1].split("%")[0]) for i in range(7)]
    down = [float(made.place(i).split("%")[1]) for i in range(7)]
    places = {(round(x), round(y)) for x, y in zip(across, down, strict=True)}
    assert len(places) == 7
    step = 100 / max(1, made.columns - 1)
    assert all(math.isclose(x / step, round(x / step), abs_tol=1e-3) for x in across)
