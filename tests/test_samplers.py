"""The cluster sampler kmeans-gmm."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.plugins import build
from pgmkit.states import load_state_of, state_of

CENTRES = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [0.0, 6.0, 0.0]])


def blobs(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % 3
    return CENTRES[truth] + torch.randn(count, 3, generator=random) * 0.5, truth


def sampler_of(num_clusters: int = 3, **parameters: int) -> Any:
    return build("cluster-samplers", "kmeans-gmm", num_clusters=num_clusters, **parameters)


def fitted(latents: Tensor, num_clusters: int = 3, *, seed: int = 0, **parameters: int) -> Any:
    sampler = sampler_of(num_clusters, **parameters)
    sampler.fit(latents, seed=seed)
    return sampler


def same_partition(left: Tensor, right: Tensor) -> bool:
    pairs = {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)}
    return len(pairs) == len(set(left.tolist())) == len(set(right.tolist()))


def test_separated_blobs_are_found() -> None:
    latents, truth = blobs()
    sampler = fitted(latents)
    assert same_partition(sampler.labels_, truth)
    assert torch.equal(sampler.predict(latents), sampler.labels_)


def test_samples_follow_the_cluster_they_were_asked_from() -> None:
    latents, _ = blobs(3000)
    sampler = fitted(latents)
    for cluster in range(3):
        drawn = sampler.sample(4000, cluster, seed=1)
        members = latents[sampler.labels_ == cluster]
        assert drawn.shape == (4000, 3)
        assert drawn.dtype == torch.float32
        torch.testing.assert_close(drawn.mean(0), members.mean(0), rtol=0, atol=0.05)
        torch.testing.assert_close(drawn.T.cov(), members.T.cov(), rtol=0, atol=0.06)
        assert (sampler.predict(drawn) == cluster).float().mean() > 0.999


def test_a_mixture_models_a_cluster_of_two_parts() -> None:
    """Two components describe a cluster that one Gaussian cannot."""
    random = torch.Generator().manual_seed(0)
    sides = (torch.arange(2000) % 2 * 2 - 1).float()
    latents = torch.stack([sides * 3, torch.zeros(2000)], 1)
    latents += 0.1 * torch.randn(2000, 2, generator=random)
    drawn = fitted(latents, 1, num_components=2).sample(1000, 0, seed=0)
    assert (drawn[:, 0].abs() > 2).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    latents, _ = blobs()
    first, again = (fitted(latents, 5, seed=3) for _ in range(2))
    states = state_of(first), state_of(again)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert torch.equal(first.sample(9, 2, seed=1), again.sample(9, 2, seed=1))
    assert not torch.equal(first.sample(9, 2, seed=1), first.sample(9, 2, seed=2))
    assert not torch.equal(first.sample(9, 2, seed=1), first.sample(9, 1, seed=1))


def test_state_carries_everything() -> None:
    latents, _ = blobs()
    sampler = fitted(latents)
    fresh = sampler_of()
    load_state_of(fresh, state_of(sampler))
    assert torch.equal(fresh.predict(latents), sampler.labels_)
    assert torch.equal(fresh.sample(5, 1, seed=0), sampler.sample(5, 1, seed=0))


def test_small_clusters_get_a_shared_covariance_and_one_warning() -> None:
    latents, _ = blobs()
    lonely = torch.cat([latents, torch.tensor([[0.0, 0.0, 40.0]])])
    with pytest.warns(PgmkitWarning, match=r"1 of 4 clusters .* \d \(1\)") as caught:
        sampler = fitted(lonely, 4)
    assert len(caught) == 1
    cluster = int(sampler.labels_[-1])
    drawn = sampler.sample(2000, cluster, seed=0)
    torch.testing.assert_close(drawn.mean(0), lonely[-1], rtol=0, atol=0.1)
    assert 0.3 < drawn.std(0).mean() < 0.7


def test_large_and_small_scales_make_no_difference() -> None:
    latents, truth = blobs()
    for scale in (1e-6, 1e6):
        sampler = fitted(latents * scale)
        assert same_partition(sampler.labels_, truth)
        assert sampler.sample(10, 0, seed=0).isfinite().all()


def test_one_dimension_and_one_cluster_are_fine() -> None:
    latents = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = fitted(latents, 1)
    assert sampler.sample(3, 0, seed=0).shape == (3, 1)


def test_more_clusters_than_distinct_latents_are_refused() -> None:
    with pytest.raises(ParameterError, match="3 clusters need as many distinct latents"):
        fitted(torch.ones(10, 2))


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("num_clusters", "number of clusters"),
        ("num_components", "num_components"),
        ("num_starts", "num_starts"),
    ],
)
def test_counts_start_at_one(name: str, called: str) -> None:
    with pytest.raises(ParameterError, match=called):
        build("cluster-samplers", "kmeans-gmm", **{name: 0})
