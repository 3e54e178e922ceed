"""The checks of pgmkit, each of them a test (see pgmkit.testing), and what this one promises."""

import tempfile
from pathlib import Path

import pytest
import torch
from pgmkit_own_network.component import Net, OwnNetwork

from pgmkit.errors import LoadError
from pgmkit.images import ArrayImages
from pgmkit.testing import parametrize_with_checks

WEIGHTS = Path(tempfile.mkdtemp()) / "net.pt"
torch.save(Net().state_dict(), WEIGHTS)


@parametrize_with_checks("features", [{"name": "own-network", "weights": str(WEIGHTS)}])
def test_contract(component, check):
    check(component)


def test_it_sees_what_the_network_sees_and_says_where_there_is_no_file():
    x = torch.rand(4, 1, 16, 16) * 2 - 1
    features, net = OwnNetwork(str(WEIGHTS)), Net()
    features.fit(ArrayImages(x, value_range=(-1, 1)), seed=0)
    net.load_state_dict(torch.load(WEIGHTS))
    assert features(x).equal(net(x.expand(-1, 3, -1, -1)))
    with pytest.raises(LoadError, match=r"nowhere\.pt"):
        OwnNetwork("nowhere.pt").fit(ArrayImages(x, value_range=(-1, 1)), seed=0)
