"""The checks of pgmkit, each of them a test (see pgmkit.testing), and what this one promises."""

import torch
from pgmkit_rank_volume.component import RankVolume

from pgmkit import Spectrum
from pgmkit.plugins import build
from pgmkit.testing import parametrize_with_checks


@parametrize_with_checks("density-estimators", ["rank-volume"])
def test_contract(component, check):
    check(component)


def spectrum(*values):
    """Returns a spectrum of one latent for each row of singular values."""
    return Spectrum(
        torch.zeros(len(values), 3), torch.tensor(values).double(), torch.zeros(len(values))
    )


def test_where_all_ranks_are_the_same_it_is_lash():
    given = spectrum([3.0, 2.0, 1.0], [9.0, 0.5, 0.1])
    torch.testing.assert_close(
        RankVolume().log_weights(given), build("density-estimators", "lash").log_weights(given)
    )


def test_a_null_direction_counts_neither_for_a_latent_nor_against_it():
    given = spectrum([4.0, 4.0, 4.0], [4.0, 4.0, 1e-12])
    one, other = RankVolume().log_weights(given)
    torch.testing.assert_close(one, other)
    one, other = build("density-estimators", "lash").log_weights(given)
    assert other > one + 10
