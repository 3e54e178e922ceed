"""Checks of what is fitted, or weighs latents: chance, saving, and what it may touch.

Estimators, features, partitioners, mappers and cluster samplers are alike in these.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import SkipTest

import safetensors.torch
import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.errors import ParameterError, first_line
from pgmkit.loading.weights import serialise
from pgmkit.states import load_state_of, state_of, table_of, why_not_saved
from pgmkit.testing.case import Case, global_chance, needs
from pgmkit.testing.trials import OfSamplers, Trial, trial_of

_SEED = 3


def is_fitted(case: Case) -> None:
    """It is fitted without an error."""
    with needs("is_built"):
        case.built()
    try:
        case.once("fitted", lambda: _fit(case, 1))
    except ParameterError as error:
        if case.parameters:
            raise
        raise SkipTest(f"it needs to be told parameters: {first_line(error)}") from error


def results_keep_the_contract(case: Case) -> None:
    """What it returns has the shape, type and values that its contract says."""
    component, trial = fitted(case), trial_of(case)
    with _watched(case, trial):
        case.once("results", lambda: trial.results(component))


def one_seed_gives_one_result(case: Case) -> None:
    """Fitted again with the same seed, it does the same to the last bit."""
    first = results(case)
    with needs("is_fitted"):
        again = case.once("again", lambda: _fit(case, 2))
    with global_chance(2):
        _require_same(case, first, trial_of(case).results(again), "with the same seed, again,")


def global_chance_is_left_alone(case: Case) -> None:
    """It draws from generators of its own, and leaves those of torch, numpy and Python alone."""
    component, trial = fitted(case), trial_of(case)
    with global_chance(0) as is_untouched, needs("results_keep_the_contract"):
        trial.results(component)
        used = not is_untouched()
    case.require(
        not used and not _noted(case, "used"),
        "draws from the global generator of torch, numpy or Python; draw from one of its own, "
        "seeded by the seed that it is given",
    )


def inputs_are_left_alone(case: Case) -> None:
    """It changes nothing of what it is given."""
    results(case)
    case.require(not _noted(case, "changed"), "changes in place what it is given; change a copy")


def what_is_saved_comes_back(case: Case) -> None:
    """Its state in a file, taken up by one with the recorded parameters, does the same."""
    first, again = results(case), _loaded(case)
    _require_same(case, first, trial_of(case).results(again), "after it was saved and loaded")


def findings_are_plain(case: Case) -> None:
    """What it has to tell in reports is numbers and texts."""
    component = fitted(case)
    if not isinstance(component, contracts.Finds):
        raise SkipTest("it has no findings()")
    contracts.findings_of(case.kind, component)


def findings_come_back(case: Case) -> None:
    """After it was saved and loaded it tells the same in reports, or less, and does not fail."""
    with needs("findings_are_plain"):
        findings_are_plain(case)
        before = contracts.findings_of(case.kind, fitted(case))
    with needs("what_is_saved_comes_back"):
        again = _loaded(case)
    for name, value in contracts.findings_of(case.kind, again).items():
        case.require(
            name in before and before[name] == value,
            f"tells {name!r} {value!r:.40} after it was saved and loaded, which it did not before",
        )


def fitted(case: Case) -> Any:
    """Returns one that was fitted; raises SkipTest where `is_fitted` fails."""
    with needs("is_fitted"):
        is_fitted(case)
        return case.once("fitted", lambda: None)


def results(case: Case) -> Mapping[str, Tensor]:
    """Returns what it does; raises SkipTest where `results_keep_the_contract` fails."""
    with needs("results_keep_the_contract"):
        results_keep_the_contract(case)
        found: Mapping[str, Tensor] = case.once("results", dict)
        return found


def _loaded(case: Case) -> Any:
    """Returns one that was saved and loaded; raises SkipTest where it cannot be saved."""
    component = fitted(case)
    reason = why_not_saved(component)
    if reason is not None:
        raise SkipTest(reason)
    state = safetensors.torch.load(serialise(state_of(component)))
    with needs("parameters_are_on_record"):
        again = case.component.build(**table_of(component)["params"])
    load_state_of(again, state)
    trial = trial_of(case)
    if isinstance(trial, OfSamplers) and isinstance(again, contracts.Binds):
        again.bind(trial.generator)
    return again


def _fit(case: Case, chance: int) -> Any:
    """Builds and fits one, with global generators that say nothing of the seed."""
    component, trial = case.build(), trial_of(case)
    with global_chance(chance) as is_untouched, _watched(case, trial):
        trial.fit(component, _SEED)
        if not is_untouched():
            _noted(case, "used").append(True)
    return component


@contextlib.contextmanager
def _watched(case: Case, trial: Trial) -> Iterator[None]:
    """Keeps in mind whether the inputs of a trial are changed."""
    before = [value.clone() for value in trial.inputs]
    yield
    if not all(map(torch.equal, before, trial.inputs)):
        _noted(case, "changed").append(True)


def _noted(case: Case, what: str) -> list[bool]:
    """Returns what was noted of a component on the way."""
    empty: list[bool] = []
    return case.once(what, lambda: empty)


def _require_same(
    case: Case, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], when: str
) -> None:
    for what, value in wanted.items():
        case.require(what in found and _is_same(found[what], value), f"{when} has other {what}")


def _is_same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
