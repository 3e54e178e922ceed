"""The small classifier of points, and the principal components that points often are."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from pgmkit.errors import GeneratorError, PgmkitWarning
from pgmkit.learning import keeping
from pgmkit.learning.assigner import Assigner
from pgmkit.learning.pca import leading_eigenvectors, principal_components


def rings(count: int) -> tuple[Tensor, Tensor]:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return points, (points.norm(dim=1) > 1.5).long()


def test_a_classifier_measures_itself_on_what_was_held_out() -> None:
    points, labels = rings(3000)
    assigner = Assigner().fit(points[:2000], labels[:2000], seed=0)
    right = float((assigner.scores(points[2000:]).argmax(1) == labels[2000:]).double().mean())
    assert right > 0.93
    assert abs(assigner.agreement_ - right) < 0.04


def test_a_classifier_takes_what_does_better() -> None:
    """In many dimensions neighbours say little about a plane, which a perceptron finds."""
    points, labels = plane(1500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        assigner = Assigner().fit(points, labels, seed=0)
    assert "weight.0" in assigner.state()
    assert assigner.agreement_ > 0.85


@pytest.mark.usefixtures("narrow")
def test_a_classifier_warns_of_labels_that_follow_from_nothing() -> None:
    points, _ = plane()
    chance = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(0))
    with pytest.warns(PgmkitWarning, match="only .*% of the points held out"):
        assigner = Assigner().fit(points, chance, seed=0)
    assert assigner.agreement_ < 0.8


def plane(count: int = 400) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    points = torch.randn(count, 60, generator=random, dtype=torch.float64)
    return points, (points[:, :20].sum(dim=1) > 0).long()


@pytest.mark.usefixtures("narrow")
@pytest.mark.filterwarnings("ignore:the classifier that assigns")
def test_one_seed_gives_one_perceptron_whatever_the_global_seed() -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(Assigner().fit(*plane(), seed=0).state())
    assert "weight.0" in states[0]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    other = Assigner().fit(*plane(), seed=3).state()
    assert not torch.equal(other["weight.0"], states[0]["weight.0"])


@pytest.mark.usefixtures("narrow")
@pytest.mark.filterwarnings("ignore:the classifier that assigns")
def test_a_trained_assigner_is_kept_and_taken_up_with_the_same_scores(tmp_path: Path) -> None:
    with keeping(tmp_path):
        first = Assigner().fit(*plane(), seed=0)
        (kept,) = (tmp_path / "assigner").glob("checkpoint-*")
        written = kept.stat().st_mtime_ns
        again = Assigner().fit(*plane(), seed=0)
    assert kept.stat().st_mtime_ns == written
    points, _ = plane(30)
    assert np.array_equal(first.scores(points), again.scores(points))
    loaded = Assigner()
    loaded.load_state(first.state())
    assert torch.equal(loaded.scores(points), first.scores(points))


def test_components_are_those_of_all_rows_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(500, 40, generator=random).double() @ torch.diag(torch.arange(1.0, 41)).double()
    )
    rows += 1000.0
    mean, components = principal_components(rows.split(64), 5)
    expected = PCA(5, svd_solver="full").fit(rows.numpy())
    torch.testing.assert_close(mean, torch.from_numpy(expected.mean_))
    torch.testing.assert_close(components.abs(), torch.from_numpy(expected.components_).abs())
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
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
