"""What the machine is asked for."""

import sys
from types import ModuleType

import pytest
import threadpoolctl
import torch

from pgmkit import machine


def threads() -> set[int]:
    import sklearn.cluster  # noqa: F401  which brings libraries with threads

    return {library["num_threads"] for library in threadpoolctl.threadpool_info()}


def test_fits_have_as_many_threads_as_are_asked_for_and_then_what_they_had() -> None:
    threads()
    with machine.thread_limit(2):
        with machine.thread_limit(1):
            assert threads() == {1}
            assert torch.get_num_threads() == 1
        assert threads() == {2}
        assert torch.get_num_threads() == 2


def test_libraries_are_looked_for_again_where_modules_have_come_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []
    find = machine.ThreadpoolController

    def counted() -> threadpoolctl.ThreadpoolController:
        looked.append(len(sys.modules))
        return find()

    threads()
    machine._libraries.cache_clear()
    monkeypatch.setattr(machine, "ThreadpoolController", counted)
    for name in ("", "", "brings_a_library", ""):
        if name:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        with machine.thread_limit(2):
            assert threads() == {2}
    assert len(looked) == 2
