"""Checks of density estimators."""

import math
from dataclasses import replace

from pgmkit.contracts import log_weights_of
from pgmkit.selection import select
from pgmkit.testing.case import Case
from pgmkit.testing.fitted import results
from pgmkit.testing.trials import COUNT, spectrum

_REMOVED = 0.25


def weights_are_numbers(case: Case) -> None:
    """No weight of a latent with a finite Jacobian is NaN or +∞; -∞ removes it."""
    weights = results(case)["log-weights"]
    case.require(
        not weights.isnan().any() and not (weights == math.inf).any(),
        "returns log-weights that are not a number, or infinite; only -inf has a meaning",
    )


def latents_can_be_selected(case: Case) -> None:
    """Its weights leave as many latents as are asked for."""
    results(case)
    kept = select(case.built(), spectrum(), remove=_REMOVED, seed=0).kept
    case.require(
        len(kept) == round(COUNT * (1 - _REMOVED)),
        f"leaves {len(kept)} of {COUNT} latents where remove is {_REMOVED}; it gives too many "
        "latents the weight -inf",
    )


def latents_without_a_jacobian_do_no_harm(case: Case) -> None:
    """A spectrum in which singular values of one latent are not finite is weighed all the same."""
    results(case)
    whole = spectrum()
    values = whole.singular_values.clone()
    values[5] = math.nan
    weights = log_weights_of(case.built(), replace(whole, singular_values=values))
    others = weights[[index for index in range(COUNT) if index != 5]]
    case.require(
        not others.isnan().any(),
        "gives latents no weight because the Jacobian of another is not finite",
    )
