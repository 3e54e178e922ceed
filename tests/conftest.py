"""What holds in all tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps fixtures of whole modules out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test a cache of its own, so that none depends on another."""
    monkeypatch.setenv("PGMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
