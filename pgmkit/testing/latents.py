"""Checks of mappers and cluster samplers: what they draw."""

from typing import Any
from unittest import SkipTest

import torch

from pgmkit import contracts
from pgmkit.errors import PgmkitError, SamplingError
from pgmkit.testing.case import Case, needs
from pgmkit.testing.component import check_takes
from pgmkit.testing.fitted import fitted, results
from pgmkit.testing.trials import COUNT, GROUPS, OfMappers, OfSamplers, nowhere, trial_of


def another_seed_draws_others(case: Case) -> None:
    """Draws depend on the seed of `sample`."""
    component, first = fitted(case), results(case)
    for what, drawn in trial_of(case).results(component, seed=1).items():
        case.require(
            not what.startswith("draws") or not drawn.equal(first[what]),
            f"has the same {what} for every seed of sample",
        )


def acceptance_rates_are_shares(case: Case) -> None:
    """`acceptance_rate` is a number from 0 to 1, or None."""
    component = fitted(case)
    if not isinstance(component, contracts.Rejects):
        raise SkipTest("it has no acceptance_rate(cluster)")
    for cluster in range(_number(component)):
        contracts.acceptance_rate_of(case.kind, component, cluster)


def an_empty_cluster_does_no_harm(case: Case) -> None:
    """Where a cluster has no members, a mapper is fitted and draws of the others."""
    results(case)
    trial = trial_of(case)
    assert isinstance(trial, OfMappers)
    with needs("is_built"):
        component = case.build()
    trial.fit(component, 0, num_clusters=GROUPS + 1)
    trial.results(component)


def what_is_not_found_is_a_sampling_error(case: Case) -> None:
    """Where no latent lies in the cluster, a mapper draws all the same or raises SamplingError."""
    component, trial = fitted(case), trial_of(case)
    results(case)
    assert isinstance(trial, OfMappers)
    try:
        trial.draw(component, 0, 0, assign=nowhere)
    except SamplingError:
        return
    except PgmkitError as error:
        case.require(False, f"raises no SamplingError where it finds no latent, but: {error}")


def takes_num_clusters(case: Case) -> None:
    """The factory takes the number of clusters, with a default."""
    check_takes(case, "num_clusters")


def a_latent_is_the_same_in_any_company(case: Case) -> None:
    """The cluster of a latent does not depend on the others that are predicted with it."""
    component, trial = fitted(case), trial_of(case)
    assert isinstance(trial, OfSamplers)
    whole = results(case)["predicted clusters"][:8]
    found = [contracts.predicted_by(component, z) for z in trial.latents[:8].split(1)]
    case.require(
        torch.cat(found).equal(whole), "predicts another cluster of a latent alone than among many"
    )


def clusters_can_be_sought_in_two_steps(case: Case) -> None:
    """`prepare`, `make_clusterer` and `split`, by which k is chosen, keep their contract."""
    trial = trial_of(case)
    assert isinstance(trial, OfSamplers)
    with needs("is_built"):
        component: Any = case.build()
    if not isinstance(component, contracts.PreparesClusters):
        raise SkipTest("it has no prepare, make_clusterer and split, so k cannot be chosen")
    context: dict[str, Any] = {"generator": trial.generator, "seed": 0}
    points = contracts.prepared_clusters(component, trial.latents, **context)
    array = points.detach().cpu().double().numpy()
    contracts.Clusterer(case.kind, component, component.num_clusters, 0).fit(array).predict(array)
    contracts.split_clusters(component, trial.latents, **context)
    trial.results(component)


def _number(component: Any) -> int:
    if not hasattr(component, "labels_"):
        return GROUPS
    labels, number = contracts.labels_of(component, COUNT)
    return number or int(labels.max()) + 1
