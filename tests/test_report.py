"""What reports are made of: pictures that fit, words, and clusters side by side."""

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import pgmkit
from pgmkit.evaluate import figures, pages, report
from pgmkit.evaluate.figures import png
from pgmkit.evaluate.neighbours import neighbours
from pgmkit.evaluate.report import check_numbers, describe, write_report
from pgmkit.evaluate.training_report import write_training_report
from pgmkit.images import load_images


class Halves:
    """Two clusters of latents, left and right of 0."""

    def fit(self, latents: torch.Tensor, *, generator: object, seed: int) -> None:
        self.labels_ = self.predict(latents)

    def predict(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents[:, 0] > 0).long()

    def sample(self, n: int, cluster: int, seed: int) -> torch.Tensor:
        z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed % 2**60))
        z[:, 0] = z[:, 0].abs() * (2 * cluster - 1)
        return z


@pytest.fixture(scope="module")
def shattered() -> pgmkit.ShatteredGenerator:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 48), torch.nn.Tanh())
    generator = pgmkit.Generator(
        net, latent=pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((3, 4, 4)), name="<toy> & co"
    )
    return pgmkit.shatter(generator, "none", sampler=Halves(), latents=4_000, remove=0.1)


@pytest.mark.parametrize("step", [0.05, 0.2, 0.6])
def test_how_many_latents_stay_is_known_of_halves_of_a_gaussian(
    shattered: pgmkit.ShatteredGenerator, step: float
) -> None:
    found = neighbours(shattered, step=step, seed=1)
    expected = 1 - math.asin(step) / math.pi  # Sheppard's: the angle between z and z' is asin s
    assert found.num_latents == 2_000
    assert abs(found.stay - expected) < 4 * math.sqrt(expected * (1 - expected) / 2_000)
    assert found.nearest == [1, 0]
    assert min(x for x in found.stays if x is not None) <= found.stay


def test_clusters_that_nothing_leaves_have_no_neighbour(
    shattered: pgmkit.ShatteredGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pgmkit.ShatteredGenerator, "predict", lambda self, z: torch.zeros(len(z)).long()
    )
    found = neighbours(shattered)
    assert (found.stays[0], found.stays[1]) == (1, 0)
    assert found.nearest == [None, 0]


def test_pictures_take_the_bytes_that_they_may_and_no_more() -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (300, 200, 3), dtype=np.uint8) for _ in range(4)]
    whole = pages.fitting(noise)
    with Image.open(io.BytesIO(whole[0])) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), noise[0])
    for most in (300_000, 60_000, 20_000):
        small = pages.fitting(noise, most)
        assert sum(map(len, small)) <= most
        with Image.open(io.BytesIO(small[0])) as picture:
            assert picture.format == "JPEG"
            assert (picture.width == 200) == (most == 300_000)


def test_the_page_says_in_words_what_was_found_and_shows_no_markup_of_names(
    shattered: pgmkit.ShatteredGenerator, tmp_path: Path
) -> None:
    numbers = describe(shattered)
    check_numbers(json.loads(json.dumps(numbers)))
    page = write_report(tmp_path, shattered, numbers).read_text()
    stay = pages.percent(numbers["neighbours"]["stay"])
    assert f"{stay} of those that are moved a little stay in their cluster. Nothing was" in page
    assert "&lt;toy&gt; &amp; co in 2 clusters" in page
    assert "<toy>" not in page
    assert "kept: 48 of 3,600" in page
    assert "removed: 48 of 400" in page
    scores = {"kept latents": {"adjusted_mutual_information": 0.03}}
    judged = {**numbers, "scores": scores, "classifier": {"name": "judge"}}
    assert "agree hardly with the classes of judge (AMI 0.03" in report._in_words(judged)


@pytest.mark.usefixtures("full_figures")
def test_labels_have_places_of_their_own_in_every_figure(
    shattered: pgmkit.ShatteredGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectrum, selection, drawn = shattered.spectrum, shattered.selection, []
    assert spectrum is not None
    assert selection is not None

    def kept(figure: Figure) -> bytes:
        drawn.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", kept)
    log = tmp_path / "log.csv"
    log.write_text("step,loss,accuracy\n1,2000.5,0.1\n2,3,0.2\n")
    ring = load_images("points:ring:n=60")
    fitted = pgmkit.fit_partitioner("kmeans", ring, partitions=3)
    record = {"candidates": [2, 4], "value": 4, "mean": [0.1, 0.2], "std": [0, 0.1]}
    figures.sizes([1_000, 20_000], "cluster", "kept latents")
    figures.curves([log])
    figures.plane(fitted, ring, part=1)
    figures.points(torch.randn(20, 2), None, (-2, 2))
    figures.log_density(selection, "none")
    figures.singular_values(spectrum)
    figures.choice({**record, "criterion": "stability", "diversity": [1, 0.5]}, "clusters")
    figures.png(figures.spectrum_overview(spectrum))
    assert len(drawn) == 8
    for figure in drawn:
        boxes = {axes: axes.get_tightbbox() for axes in figure.axes if axes.get_visible()}
        for axes, box in boxes.items():
            assert box is not None
            assert (box.min >= figure.bbox.min).all()
            assert (box.max <= figure.bbox.max).all()
            for axis in (axes.xaxis, axes.yaxis):
                assert any(label.get_text() for label in axis.get_ticklabels())
        if "share of clusters left" not in {axes.get_ylabel() for axes in boxes}:  # on another's
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))


def test_a_training_and_its_pictures_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step, shade in ((1, 0), (2, 255)):
        picture = Image.fromarray(np.full((4, 4), shade, dtype=np.uint8))
        picture.save(tmp_path / "samples" / f"step-{step}.png")
    lead, facts = "dcgan, trained on 3 images.", {"seed": "0"}
    page = write_training_report(tmp_path, lead, facts, {"FID": "3.5"}, None).read_text()
    assert page.index("Samples at step 2") < page.index("Samples at step 1") < page.index("FID")
    assert page.index(lead) < page.index("<img")
