"""The cluster sampler kmeans-gmm."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.plugins import build_component

CENTRES = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [0.0, 6.0, 0.0]])


def blobs(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % 3
    return CENTRES[truth] + torch.randn(count, 3, generator=random) * 0.5, truth


def sampler_of(num_clusters: int = 3, **parameters: int) -> Any:
    return build_component(
        "cluster-samplers", "kmeans-gmm", num_clusters=num_clusters, **parameters
    )


def same_partition(left: Tensor, right: Tensor) -> bool:
    pairs = {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)}
    return len(pairs) == len(set(left.tolist())) == len(set(right.tolist()))


def test_separated_blobs_are_found() -> None:
    latents, truth = blobs()
    sampler = sampler_of().fit(latents, seed=0)
    assert same_partition(sampler.labels_, truth)
    assert torch.equal(sampler.predict(latents), sampler.labels_)


def test_samples_follow_the_cluster_they_were_asked_from() -> None:
    latents, _ = blobs(3000)
    sampler = sampler_of().fit(latents, seed=0)
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
    drawn = sampler_of(1, num_components=2).fit(latents, seed=0).sample(1000, 0, seed=0)
    assert (drawn[:, 0].abs() > 2).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    latents, _ = blobs()
    first, again = (sampler_of(5).fit(latents, seed=3) for _ in range(2))
    for name, value in first.state().items():
        assert torch.equal(value, again.state()[name]), name
    assert torch.equal(first.sample(9, 2, seed=1), again.sample(9, 2, seed=1))
    assert not torch.equal(first.sample(9, 2, seed=1), first.sample(9, 2, seed=2))
    assert not torch.equal(first.sample(9, 2, seed=1), first.sample(9, 1, seed=1))


def test_state_carries_everything() -> None:
    latents, _ = blobs()
    fitted = sampler_of().fit(latents, seed=0)
    fresh = sampler_of()
    fresh.load_state(fitted.state())
    assert torch.equal(fresh.predict(latents), fitted.labels_)
    assert torch.equal(fresh.sample(5, 1, seed=0), fitted.sample(5, 1, seed=0))


def test_small_clusters_get_a_shared_covariance_and_one_warning() -> None:
    latents, _ = blobs()
    lonely = torch.cat([latents, torch.tensor([[0.0, 0.0, 40.0]])])
    with pytest.warns(PgmkitWarning, match=r"1 of 4 clusters .* \d \(1\)") as caught:
        sampler = sampler_of(4).fit(lonely, seed=0)
    assert len(caught) == 1
    cluster = int(sampler.labels_[-1])
    drawn = sampler.sample(2000, cluster, seed=0)
    torch.testing.assert_close(drawn.mean(0), lonely[-1], rtol=0, atol=0.1)
    assert 0.3 < drawn.std(0).mean() < 0.7


def test_large_and_small_scales_make_no_difference() -> None:
    latents, truth = blobs()
    for scale in (1e-6, 1e6):
        sampler = sampler_of().fit(latents * scale, seed=0)
        assert same_partition(sampler.labels_, truth)
        assert sampler.sample(10, 0, seed=0).isfinite().all()


def test_one_dimension_and_one_cluster_are_fine() -> None:
    latents = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = sampler_of(1).fit(latents, seed=0)
    assert sampler.sample(3, 0, seed=0).shape == (3, 1)


def test_more_clusters_than_distinct_latents_are_refused() -> None:
    with pytest.raises(ParameterError, match="3 clusters need as many distinct latents"):
        sampler_of(3).fit(torch.ones(10, 2), seed=0)


@pytest.mark.parametrize("name", ["num_clusters", "num_components", "num_starts"])
def test_counts_start_at_one(name: str) -> None:
    with pytest.raises(ParameterError, match=name):
        build_component("cluster-samplers", "kmeans-gmm", **{name: 0})
