"""Checks of components, for authors of plugins: does mine keep the contract of its kind?

For each kind there is a sequence of checks, plain functions with names that say what they look at
(`checks_of`). `check_features(Mine)` and its like run them all; `parametrize_with_checks` makes a
pytest test of each; `pgmkit plugins check NAME` does it on the command line. A check that does not
apply is skipped, with the reason. Each component is tried on small images or latents of its own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pgmkit.components import KINDS, singular
from pgmkit.errors import PluginError, UnknownNameError
from pgmkit.priors import LatentSpec
from pgmkit.testing import commands, component, density, engines, fitted, images, latents, networks
from pgmkit.testing.case import IMAGE, Case, Check, Outcome, Report, case_of, quietly, run, told

if TYPE_CHECKING:
    import pytest

__all__ = [
    "Case",
    "Outcome",
    "Report",
    "check_backbone",
    "check_classifier",
    "check_cluster_sampler",
    "check_command",
    "check_component",
    "check_density_estimator",
    "check_engine",
    "check_features",
    "check_generator_loader",
    "check_mapper",
    "check_partitioner",
    "checks_of",
    "parametrize_with_checks",
]

_OF_PLUGINS: tuple[Check, ...] = (
    component.plugin_is_imported_quickly,
    component.plugin_imports_no_torch,
    component.plugin_prints_nothing,
    component.summary_is_one_line,
)
_OF_OBJECTS: tuple[Check, ...] = (
    *_OF_PLUGINS,
    component.is_built,
    component.unknown_parameters_are_refused,
    component.parameters_are_on_record,
    component.repr_is_a_text,
)
_RESULTS: tuple[Check, ...] = (
    fitted.results_keep_the_contract,
    fitted.one_seed_gives_one_result,
    fitted.global_chance_is_left_alone,
    fitted.inputs_are_left_alone,
)
_OF_FITTED: tuple[Check, ...] = (
    *_OF_OBJECTS,
    fitted.is_fitted,
    *_RESULTS,
    fitted.what_is_saved_comes_back,
)
_OF_IMAGES: tuple[Check, ...] = (
    *_OF_FITTED,
    images.an_image_is_the_same_in_any_company,
    images.no_images_are_no_error,
    images.gradients_are_finite,
    images.results_lie_where_images_lie,
)
_CHECKS: dict[str, tuple[Check, ...]] = {
    "density-estimators": (
        *_OF_OBJECTS,
        *_RESULTS,
        density.weights_are_numbers,
        density.latents_can_be_selected,
        density.latents_without_a_jacobian_do_no_harm,
    ),
    "features": _OF_IMAGES,
    "partitioners": (
        *_OF_IMAGES,
        images.takes_num_partitions,
        images.a_copy_does_the_same,
        images.held_out_logits_keep_the_contract,
        images.the_head_gives_the_logits,
        images.parts_can_be_sought_in_two_steps,
        images.demands_are_met_by_what_it_was_fitted_to,
        fitted.findings_are_plain,
        fitted.findings_come_back,
    ),
    "mappers": (
        *_OF_FITTED,
        latents.another_seed_draws_others,
        latents.acceptance_rates_are_shares,
        latents.an_empty_cluster_does_no_harm,
        latents.what_is_not_found_is_a_sampling_error,
    ),
    "cluster-samplers": (
        *_OF_FITTED,
        latents.takes_num_clusters,
        latents.a_latent_is_the_same_in_any_company,
        latents.another_seed_draws_others,
        latents.acceptance_rates_are_shares,
        latents.clusters_can_be_sought_in_two_steps,
        fitted.findings_are_plain,
        fitted.findings_come_back,
    ),
    "backbones": (
        *_OF_OBJECTS,
        networks.takes_latent_dim,
        networks.networks_fit_each_other,
        networks.networks_with_partitions_fit_each_other,
        networks.images_are_within_range,
        networks.every_weight_learns,
        networks.partitions_have_weights,
        networks.global_seed_decides_the_weights,
        networks.no_partitions_are_refused,
        networks.a_loader_takes_its_weights,
        networks.seen_features_are_rows,
    ),
    "generator-loaders": (
        *_OF_OBJECTS,
        networks.makes_images_of_latents,
        networks.the_same_comes_out_again,
        networks.an_image_is_the_same_in_any_batch,
        networks.weights_come_back,
        networks.images_have_a_gradient,
        networks.makes_images_of_partitions,
        networks.own_names_stay,
    ),
    "classifiers": (
        *_OF_OBJECTS,
        networks.classes_are_counted,
        networks.logits_are_one_for_each_class,
        networks.what_it_sees_is_said_in_numbers,
        networks.the_same_comes_out_again,
        networks.an_image_is_the_same_in_any_batch,
        networks.weights_come_back,
        networks.weights_have_gradients,
        networks.features_are_rows,
    ),
    "engines": (
        *_OF_OBJECTS,
        engines.each_block_is_yielded_once,
        engines.results_are_not_changed,
        engines.no_blocks_are_no_error,
        engines.blocks_can_come_one_at_a_time,
        engines.errors_of_the_work_stay,
        engines.processes_agree,
        engines.threads_are_counted,
    ),
    "commands": (
        *_OF_PLUGINS,
        commands.is_a_click_command,
        commands.help_is_printed,
        commands.unknown_options_are_usage_errors,
    ),
}


def checks_of(kind: str) -> tuple[Check, ...]:
    """Returns the checks of a kind, in their order.

    Raises:
        UnknownNameError: there is no such kind.
    """
    if kind not in _CHECKS:
        raise UnknownNameError("kind of component", kind, KINDS)
    return _CHECKS[kind]


def check_component(
    kind: str,
    component: Any,
    *,
    image: tuple[int, ...] = IMAGE,
    latent: LatentSpec | int | None = None,
) -> Report:
    """Runs all checks of one component, whatever its kind.

    Args:
        kind: one of `pgmkit.components.KINDS`.
        component: a name, a table of name and parameters, or a factory, such as its class.
        image: shape, (C, H, W) or (d,), of the images that it is tried on.
        latent: the prior that a generator loader is tried on, or its number of dimensions; None
            takes what its parameters say.

    Returns:
        What the checks found, all of which passed or were skipped.

    Raises:
        PluginError: checks failed; says which, and why.
        UnknownNameError: no plugin offers it, or there is no such kind.
        ParameterError: it is none of these.
    """
    checks = checks_of(kind)
    report = run(case_of(kind, component, image=image, latent=latent), checks)
    failed = report.with_status("failed")
    if failed:
        raise PluginError(
            f"the {singular(kind)} {report.name!r} does not keep its contract "
            f"({told(report.counts())}): "
            + "; ".join(f"{outcome.check}: {outcome.reason}" for outcome in failed)
        )
    return report


def check_density_estimator(component: Any) -> Report:
    """Checks a density estimator; see `check_component`."""
    return check_component("density-estimators", component)


def check_features(component: Any, *, image: tuple[int, ...] = IMAGE) -> Report:
    """Checks features; see `check_component`."""
    return check_component("features", component, image=image)


def check_partitioner(component: Any, *, image: tuple[int, ...] = IMAGE) -> Report:
    """Checks a partitioner; see `check_component`."""
    return check_component("partitioners", component, image=image)


def check_mapper(component: Any) -> Report:
    """Checks a mapper; see `check_component`."""
    return check_component("mappers", component)


def check_cluster_sampler(component: Any, *, image: tuple[int, ...] = IMAGE) -> Report:
    """Checks a cluster sampler; see `check_component`."""
    return check_component("cluster-samplers", component, image=image)


def check_backbone(component: Any) -> Report:
    """Checks a backbone; see `check_component`."""
    return check_component("backbones", component)


def check_generator_loader(component: Any, *, latent: LatentSpec | int | None = None) -> Report:
    """Checks a generator loader; see `check_component`."""
    return check_component("generator-loaders", component, latent=latent)


def check_classifier(component: Any, *, image: tuple[int, ...] = IMAGE) -> Report:
    """Checks a classifier; see `check_component`."""
    return check_component("classifiers", component, image=image)


def check_engine(component: Any) -> Report:
    """Checks an engine; see `check_component`."""
    return check_component("engines", component)


def check_command(component: Any) -> Report:
    """Checks a command; see `check_component`."""
    return check_component("commands", component)


def parametrize_with_checks(
    kind: str,
    components: Iterable[Any],
    *,
    image: tuple[int, ...] = IMAGE,
    latent: LatentSpec | int | None = None,
) -> "pytest.MarkDecorator":
    """Makes one pytest test of each check of each component; arguments as `check_component` has.

    Raises:
        UnknownNameError: no plugin offers a component, or there is no such kind.

    Example:
        ::

            @parametrize_with_checks("features", ["quarters", {"name": "quarters", "side": 4}])
            def test_contract(component, check):
                check(component)
    """
    import pytest

    checks = checks_of(kind)
    cases = [case_of(kind, component, image=image, latent=latent) for component in components]
    return pytest.mark.parametrize(
        ("component", "check"),
        [
            pytest.param(case, quietly(check), id=f"{case}-{check.__name__}")
            for case in cases
            for check in checks
        ],
    )
