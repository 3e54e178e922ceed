"""The checks for authors of plugins: what keeps its contract passes, and what does not is found."""

import ast
import functools
import inspect
import itertools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import save_file
from tiny import install, write_tiny_gan
from torch import Tensor, nn

import pgmkit
from pgmkit import templates
from pgmkit.components import KINDS
from pgmkit.errors import ParameterError, PluginError, UnknownNameError
from pgmkit.plugins import build, list_components
from pgmkit.testing import (
    Case,
    Report,
    check_component,
    check_features,
    checks_of,
    parametrize_with_checks,
)
from pgmkit.testing.case import Check, case_of, run
from pgmkit.testing.trials import source_for

PCA = {"name": "pca", "num_dims": 5}
QUICK = {"steps": 3, "batch_size": 16, "width": 4}
TOLD: dict[str, dict[str, Any]] = {
    "features/network": {"module": nn.Conv2d(3, 4, 3, stride=2)},
    "features/classifier": {"classifier": "CLASSIFIER"},
    "features/discriminator": {"source": "GAN"},
    "features/fixed": {"source": "PARTS"},
    "partitioners/fixed": {"source": "PARTS"},
}
"""What some built-in components need to be told; all others are built as their records say."""

OWN = [
    (kind, component.name)
    for kind in KINDS
    for component in list_components(kind)
    if component.distribution == "pgmkit" and component.name not in ("torchrun", "ray")
]
"""Engines that start processes stand in tests/test_engines.py."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What some built-in components are made of, by what stands for it above."""
    folder = tmp_path_factory.mktemp("folders")
    gan = write_tiny_gan(folder / "gan")
    source = source_for(object(), (3, 8, 8))
    kmeans = {"name": "kmeans", "features": PCA}
    pgmkit.fit_partitioner(kmeans, source, partitions=4).save_pretrained(folder / "parts")
    classifier = build("classifiers", "lash-classifier", image_size=8, image_channels=3)
    (folder / "classifier").mkdir()
    save_file(classifier.state_dict(), folder / "classifier" / "model.safetensors")
    config = {
        "architecture": "lash-classifier",
        "model_args": {"image_size": 8, "image_channels": 3},
    }
    (folder / "classifier" / "config.json").write_text(json.dumps(config))
    return {
        "GAN": gan,
        "PARTS": f"local-dir:{folder / 'parts'}",
        "CLASSIFIER": f"local-dir:{folder / 'classifier'}",
    }


def latent_of(name: str) -> pgmkit.LatentSpec | None:
    return pgmkit.LatentSpec(32, shape=(2, 4, 4)) if name == "diffusers-decoder" else None


def test_every_kind_has_checks_that_say_what_they_look_at() -> None:
    for kind in KINDS:
        checks = [check.__name__ for check in checks_of(kind)]
        assert len(set(checks)) == len(checks)
        assert all(check.__doc__ for check in checks_of(kind))


@pytest.mark.parametrize(("kind", "name"), OWN, ids=map("/".join, OWN))
def test_every_built_in_component_keeps_its_contract(
    kind: str, name: str, folders: dict[str, str]
) -> None:
    told = TOLD.get(f"{kind}/{name}", {})
    table = {
        key: folders.get(value, value) if isinstance(value, str) else value
        for key, value in told.items()
    }
    report = check_component(kind, {"name": name, **table}, latent=latent_of(name))
    assert report.counts()["failed"] == 0
    assert report.counts()["run"] >= 12
    assert all(len(outcome.reason) > 10 for outcome in report.with_status("skipped"))


def test_a_record_says_with_which_parameters_its_component_is_small() -> None:
    assert case_of("features", "contrastive").parameters == {
        "steps": 3,
        "batch_size": 16,
        "width": 4,
    }
    given = case_of("features", {"name": "contrastive", "steps": 5}).parameters
    assert given == {"steps": 5, "batch_size": 16, "width": 4}


def test_what_needs_to_be_told_parameters_to_be_fitted_is_skipped_and_says_so() -> None:
    report = check_component("features", "discriminator")
    reasons = {outcome.check: outcome.reason for outcome in report.with_status("skipped")}
    assert reasons["is_fitted"].startswith("it needs to be told parameters: features 'discrim")


# What does not keep its contract


def template(kind: str) -> Any:
    """Returns the factory of a template, which keeps its contract."""
    path = Path(templates.__file__).parent / kind / "PACKAGE" / "component.py.in"
    names: dict[str, Any] = {"__name__": "templates"}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names[templates._last_definition(ast.parse(path.read_text()))]


RIGHT = {kind: template(kind) for kind in KINDS}
TURN = itertools.count(1)


def but(kind: str, **attributes: Any) -> Callable[[], Any]:
    """Returns the class of a template with some attributes replaced."""
    return type("Wrong", (RIGHT[kind],), attributes)


def raises(*arguments: object, **more: object) -> Any:
    raise RuntimeError("broken")


def then(kind: str, method: str, change: Callable[..., Any]) -> Callable[[], Any]:
    """Returns the class of a template that changes what one of its methods returns.

    `change` takes what is returned, the object and the arguments.
    """
    base = RIGHT[kind]

    def changed(self: Any, *arguments: Any, **more: Any) -> Any:
        return change(getattr(base, method)(self, *arguments, **more), self, *arguments)

    return but(kind, **{method: changed})


def that_saw(kind: str, findings: Callable[[Any], Any]) -> Callable[[], Any]:
    """Returns one with findings that are made of `seen`, which `fit` leaves and nobody saves."""

    def fit(self: Any, *arguments: Any, **more: Any) -> Any:
        self.seen = True
        return RIGHT[kind].fit(self, *arguments, **more)

    return but(kind, fit=fit, findings=findings)


def lenient(kind: str) -> Callable[..., Any]:
    """Returns a factory that takes what that of a template does, and whatever else is given."""

    def factory(**given: Any) -> Any:
        return RIGHT[kind](**{name: given[name] for name in known & given.keys()})

    signature = inspect.signature(RIGHT[kind])
    known = signature.parameters.keys()
    rest = inspect.Parameter("rest", inspect.Parameter.VAR_KEYWORD)
    factory.__signature__ = inspect.Signature([*signature.parameters.values(), rest])  # type: ignore[attr-defined]
    return factory


def of_any(kind: str) -> dict[str, Any]:
    return {
        "is_built": but(kind, __init__=functools.wraps(RIGHT[kind].__init__)(lambda *_: raises())),
        "unknown_parameters_are_refused": lenient(kind),
        "parameters_are_on_record": but(kind, get_params=lambda self: {"nothing": 1}),
        "repr_is_a_text": but(kind, __repr__=raises),
    }


def uses_chance(value: Any, *rest: Any) -> Any:
    torch.rand(1)
    return value


def another_each_time(value: Tensor, *rest: Any) -> Tensor:
    return value + next(TURN)


def as_it_was_given(kind: str, method: str) -> Callable[[], Any]:
    """Changes the first argument of a method in place, once the method is done."""
    return then(kind, method, lambda value, self, given, *rest: (given.data.mul_(1.5), value)[1])


def of_results(kind: str, method: str) -> dict[str, Any]:
    """Wrong results: `method` makes them of what it is given."""
    return {
        **of_any(kind),
        "results_keep_the_contract": [
            then(kind, method, lambda value, *rest: value[1:]),
            then(kind, method, lambda value, *rest: value.numpy()),
            then(kind, method, lambda value, *rest: None),
            but(kind, **{method: raises}),
        ],
        "one_seed_gives_one_result": then(kind, method, another_each_time),
        "global_chance_is_left_alone": then(kind, method, uses_chance),
    }


def fitted_anew(kind: str) -> Callable[[], Any]:
    """What is found in fit, and saved, differs by a number each time."""

    def fit(self: Any, *arguments: Any, **more: Any) -> None:
        RIGHT[kind].fit(self, *arguments, **more)
        if kind == "features":
            self.register_buffer("moved", torch.tensor(float(next(TURN))))
        moved = 0.1 * next(TURN)
        for name in {"centres", "cuts", "latents"} & vars(self).keys():
            setattr(self, name, getattr(self, name) + moved)

    def forward(self: Any, x: Tensor) -> Tensor:
        made: Tensor = RIGHT[kind].forward(self, x)
        return made + self.moved

    return but(kind, fit=fit, **({"forward": forward} if kind == "features" else {}))


def of_fitted(kind: str, method: str) -> dict[str, Any]:
    return {
        **of_results(kind, method),
        "one_seed_gives_one_result": fitted_anew(kind),
        "is_fitted": but(kind, fit=lambda self, *given, **more: raises()),
    }


def forgets(kind: str, method: str) -> list[Any]:
    """What is saved is not all: a number that fit finds, or nothing can be loaded."""

    def fit(self: Any, *arguments: Any, **more: Any) -> Any:
        RIGHT[kind].fit(self, *arguments, **more)
        self.found = 1.0

    def changed(self: Any, *arguments: Any, **more: Any) -> Any:
        value = getattr(RIGHT[kind], method)(self, *arguments, **more)
        return value + getattr(self, "found", 0.0)

    return [
        but(kind, fit=fit, **{method: changed}),
        but(kind, state=lambda self: {}, load_state=raises),
        but(kind, state=lambda self: {"mine": 3.0}, load_state=lambda self, state: None),
    ]


OF_IMAGES = {
    "an_image_is_the_same_in_any_company": lambda value, *rest: value - value.mean(dim=0),
    "no_images_are_no_error": lambda value, self, x, *rest: value if len(x) else raises(),
    "gradients_are_finite": lambda value, *rest: value + (value * 0).abs().sqrt(),
    "results_lie_where_images_lie": lambda value, *rest: value.cpu(),
}


def of_images(kind: str, method: str) -> dict[str, Any]:
    return {
        **of_fitted(kind, method),
        **{check: then(kind, method, change) for check, change in OF_IMAGES.items()},
        "inputs_are_left_alone": as_it_was_given(kind, method),
        "what_is_saved_comes_back": forgets(kind, method),
    }


def spoilt(drawn: Tensor, *rest: Any) -> Tensor:
    return drawn * torch.nan


def of_latents(kind: str) -> dict[str, Any]:
    """Of mappers and cluster samplers, which draw."""
    keeps = RIGHT[kind].load_state
    same = {"mappers": {"seed": 0}, "cluster-samplers": {}}[kind]

    def sample(self: Any, n: int, cluster: int, *seed: int, **more: Any) -> Any:
        given = [0] if seed else []
        return RIGHT[kind].sample(self, n, cluster, *given, **{**more, **same})

    def fit(self: Any, latents: Tensor, *labels: Tensor, **more: Any) -> None:
        RIGHT[kind].fit(self, latents.clone(), *labels, **more)
        latents.mul_(1.5)

    def load(self: Any, state: Any) -> None:
        keeps(self, {name: value + 1 for name, value in state.items()})

    wrong = of_fitted(kind, "sample")
    wrong["results_keep_the_contract"].append(then(kind, "sample", spoilt))
    return {
        **wrong,
        "inputs_are_left_alone": but(kind, fit=fit),
        "what_is_saved_comes_back": [but(kind, load_state=load), forgets(kind, "sample")[1]],
        "another_seed_draws_others": but(kind, sample=sample),
        "acceptance_rates_are_shares": but(kind, acceptance_rate=lambda self, cluster: 50),
    }


def fit_to_members(self: Any, latents: Tensor, labels: Tensor, **more: Any) -> None:
    RIGHT["mappers"].fit(self, latents, labels, **more)
    for cluster in range(more["num_clusters"]):
        _ = latents[labels == cluster][0]


def sample_or_fail(self: Any, n: int, cluster: int, **more: Any) -> Tensor:
    drawn: Tensor = RIGHT["mappers"].sample(self, n, cluster, **more)
    if (more["assign"](drawn) < 0).all():
        raise ValueError("there is nothing there")
    return drawn


class Twisted(nn.Module):
    """A network, and what is done to what comes out of it."""

    def __init__(self, inner: nn.Module, change: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *given: Tensor) -> Any:
        return self.change(self.inner(*given))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Idle(Twisted):
    """A network with a weight that does nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner, lambda value: value)
        self.idle = nn.Parameter(torch.ones(1))


class Deaf(nn.Module):
    """A network that does not hear of partitions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *parts: Tensor) -> Any:
        return self.inner(x)


def networks(which: str, make: Callable[[Any, int | None], nn.Module]) -> Callable[[], Any]:
    return but("backbones", **{which: make})


def pair(which: str, change: Callable[..., Any], conditional: bool | None) -> Callable[[], Any]:
    """A backbone one of whose networks returns something else, with or without partitions."""
    base = getattr(RIGHT["backbones"], which)

    def make(self: Any, number: int | None = None) -> Any:
        network = base(self, number)
        return network if conditional is not (number is not None) else Twisted(network, change)

    return networks(which, make)


def seeded(self: Any, number: int | None = None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RIGHT["backbones"].generator(self, number)


def seen(features: Callable[[Tensor], Any]) -> Callable[[], Any]:
    def make(self: Any, number: int | None = None) -> Any:
        network = RIGHT["backbones"].discriminator(self, number)
        network.features = features
        return network

    return networks("discriminator", make)


def of_modules(kind: str) -> dict[str, Any]:
    base = RIGHT[kind]

    @functools.wraps(base.__init__)
    def not_saved(self: Any, *sizes: int, **more: int) -> None:
        base.__init__(self, *sizes, **more)
        self.hidden = [torch.rand(1)]

    return {
        **of_any(kind),
        "an_image_is_the_same_in_any_batch": then(
            kind, "forward", lambda value, *rest: value - value.mean(dim=0) / 2
        ),
        "the_same_comes_out_again": then(
            kind, "forward", lambda value, *rest: value * (1 + 1e-5 * (next(TURN) % 7))
        ),
        "weights_come_back": but(
            kind,
            __init__=not_saved,
            forward=lambda self, x: base.forward(self, x) * (1 + self.hidden[0]),
        ),
    }


def conditional(latent_dim: int = 8, side: int = 8, num_partitions: int | None = None) -> nn.Module:
    inner = RIGHT["generator-loaders"](latent_dim, side)
    return inner if num_partitions is None else Twisted(Deaf(inner), lambda made: made[..., :2])


def classifier(**attributes: Any) -> Callable[[], Any]:
    def init(self: Any) -> None:
        RIGHT["classifiers"].__init__(self)
        for name, value in attributes.items():
            setattr(self, name, value)

    return but("classifiers", __init__=init)


def engine(results: Callable[[Any, list[int], bool], Any], **more: Any) -> Callable[[], Any]:
    def work(self: Any, function: Any, blocks: Any, *, parallel: bool = True) -> Any:
        yield from results(function, list(blocks), parallel)

    return but("engines", map=work, **more)


def plain(function: Any, blocks: list[int], parallel: bool) -> Any:
    return ((block, function(block)) for block in blocks)


def crowded(function: Any, blocks: list[int], parallel: bool) -> Any:
    with ThreadPoolExecutor(4) as pool:
        yield from zip(blocks, pool.map(function, blocks), strict=True)


def hushed(function: Any, blocks: list[int], parallel: bool) -> Any:
    for block in blocks:
        try:
            yield block, function(block)
        except Exception:
            yield block, None


def altered(function: Any, blocks: list[int], parallel: bool) -> Any:
    for block in blocks:
        yield block, {name: value + 1 for name, value in function(block).items()}


def renamed(function: Any, blocks: list[int], parallel: bool) -> Any:
    try:
        yield from plain(function, blocks, parallel)
    except Exception as error:
        raise OSError("a worker died") from error


@click.command()
def silent() -> None:
    pass


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("rest", nargs=-1)
def careless(rest: tuple[str, ...]) -> None:
    """Take whatever is given."""


WRONG: dict[str, dict[str, Any]] = {
    "density-estimators": {
        **of_results("density-estimators", "log_weights"),
        "inputs_are_left_alone": then(
            "density-estimators",
            "log_weights",
            lambda value, self, spectrum: (spectrum.latents.mul_(2), value)[1],
        ),
        "weights_are_numbers": then(
            "density-estimators",
            "log_weights",
            lambda value, *rest: value.masked_fill(torch.arange(len(value)) == 5, torch.nan),
        ),
        "latents_can_be_selected": [
            then(
                "density-estimators",
                "log_weights",
                lambda value, *rest, few=few: value.masked_fill(
                    torch.arange(len(value)) >= few, -torch.inf
                ),
            )
            for few in (0, 10)
        ],
        "latents_without_a_jacobian_do_no_harm": then(
            "density-estimators",
            "log_weights",
            lambda value, self, spectrum: value + spectrum.singular_values.mean(),
        ),
    },
    "features": {
        **of_images("features", "forward"),
    },
    "partitioners": {
        **of_images("partitioners", "logits"),
        "takes_num_partitions": but(
            "partitioners", __init__=lambda self: setattr(self, "num_partitions", 2)
        ),
        "a_copy_does_the_same": but(
            "partitioners",
            __deepcopy__=lambda self, memo: RIGHT["partitioners"](self.num_partitions),
        ),
        "held_out_logits_keep_the_contract": but("partitioners", held_out_logits=torch.zeros(3, 9)),
        "the_head_gives_the_logits": but(
            "partitioners",
            represent=lambda self, x: x.flatten(1)[:, :3],
            head=lambda self, points: points[:, :2],
        ),
        "parts_can_be_sought_in_two_steps": but(
            "partitioners",
            prepare=lambda self, source, *, seed: torch.zeros(3, 2),
            make_clusterer=lambda self, num_partitions, seed: None,
            split=lambda self, source, *, seed: None,
        ),
        "demands_are_met_by_what_it_was_fitted_to": [
            but("partitioners", least_images=10**6, check_image=lambda self, image: None),
            but("partitioners", least_images=1, check_image=raises),
        ],
        "findings_are_plain": but("partitioners", findings=lambda self: {"x": torch.ones(2)}),
        "findings_come_back": [
            that_saw("partitioners", lambda self: {"seen": self.seen}),
            that_saw("partitioners", lambda self: {"seen": hasattr(self, "seen")}),
        ],
    },
    "mappers": {
        **of_latents("mappers"),
        "an_empty_cluster_does_no_harm": but("mappers", fit=fit_to_members),
        "what_is_not_found_is_a_sampling_error": but("mappers", sample=sample_or_fail),
    },
    "cluster-samplers": {
        **of_latents("cluster-samplers"),
        "takes_num_clusters": but(
            "cluster-samplers", __init__=lambda self: setattr(self, "num_clusters", 4)
        ),
        "a_latent_is_the_same_in_any_company": but(
            "cluster-samplers",
            predict=lambda self, latents: (latents[:, 0] > latents[:, 0].mean()).long(),
        ),
        "clusters_can_be_sought_in_two_steps": but(
            "cluster-samplers",
            prepare=lambda self, latents, *, generator, seed: torch.zeros(3, 2),
            make_clusterer=lambda self, num_clusters, seed: None,
            split=lambda self, latents, *, generator, seed: None,
        ),
        "findings_are_plain": but("cluster-samplers", findings=lambda self: {"x": [1, 2]}),
        "findings_come_back": [
            that_saw("cluster-samplers", lambda self: {"seen": self.seen}),
            that_saw("cluster-samplers", lambda self: {"seen": hasattr(self, "seen")}),
        ],
    },
    "backbones": {
        **of_any("backbones"),
        "takes_latent_dim": but(
            "backbones", __init__=lambda self: RIGHT["backbones"].__init__(self, 5)
        ),
        "networks_fit_each_other": [
            pair("discriminator", lambda logits: logits[:, None], False),
            pair("generator", lambda images: images[1:], False),
        ],
        "networks_with_partitions_fit_each_other": [
            pair("discriminator", lambda logits: logits.mean(), True),
            pair("generator", lambda images: images.numpy(), True),
        ],
        "images_are_within_range": [
            pair("generator", lambda images: images * 30, False),
            pair("generator", lambda images: images + torch.inf, False),
        ],
        "every_weight_learns": networks(
            "generator", lambda self, number=None: Idle(RIGHT["backbones"].generator(self, number))
        ),
        "partitions_have_weights": networks(
            "generator",
            lambda self, number=None: Deaf(
                RIGHT["backbones"].generator(self, None if number is None or number > 0 else number)
            ),
        ),
        "global_seed_decides_the_weights": networks("generator", seeded),
        "no_partitions_are_refused": networks(
            "generator",
            lambda self, number=None: RIGHT["backbones"].generator(self, number or None),
        ),
        "seen_features_are_rows": [seen(lambda x: x.mean()), seen(lambda x: x.numpy())],
    },
    "generator-loaders": {
        **of_modules("generator-loaders"),
        "makes_images_of_latents": [
            then("generator-loaders", "forward", lambda made, *rest: made.long()),
            then("generator-loaders", "forward", lambda made, *rest: made * torch.nan),
            then("generator-loaders", "forward", lambda made, *rest: made.mean()),
            then("generator-loaders", "forward", lambda made, *rest: made.numpy()),
        ],
        "images_have_a_gradient": [
            then("generator-loaders", "forward", lambda made, *rest: made.detach()),
            then("generator-loaders", "forward", lambda made, *rest: made.round()),
        ],
        "makes_images_of_partitions": conditional,
        "own_names_stay": but(
            "generator-loaders",
            convert_state_dict=lambda self, state: {f"net.{name}": state[name] for name in state},
        ),
    },
    "classifiers": {
        **of_modules("classifiers"),
        "classes_are_counted": [classifier(num_classes=None), classifier(num_classes="10")],
        "logits_are_one_for_each_class": [
            then("classifiers", "forward", lambda logits, *rest: logits[:, 1:]),
            then("classifiers", "forward", lambda logits, *rest: logits * torch.nan),
        ],
        "what_it_sees_is_said_in_numbers": classifier(image_size="28"),
        "weights_have_gradients": classifier(idle=nn.Parameter(torch.ones(1))),
        "features_are_rows": but(
            "classifiers",
            features=lambda self, x: x,
            forward=lambda self, x: self.layer(self.shrink(x)),
        ),
    },
    "engines": {
        **of_any("engines"),
        "each_block_is_yielded_once": [
            engine(lambda function, blocks, parallel: plain(function, blocks[1:], parallel)),
            engine(lambda function, blocks, parallel: plain(function, blocks * 2, parallel)),
            engine(lambda function, blocks, parallel: map(function, blocks)),
            engine(raises),
        ],
        "results_are_not_changed": engine(altered),
        "no_blocks_are_no_error": engine(
            lambda function, blocks, parallel: (
                plain(function, blocks, parallel) if blocks else raises()
            )
        ),
        "blocks_can_come_one_at_a_time": engine(crowded),
        "errors_of_the_work_stay": [engine(hushed), engine(renamed)],
        "processes_agree": [
            but("engines", decide=lambda self, function: None),
            but("engines", decide=lambda self, function: 7),
            but("engines", coordinator="yes"),
        ],
        "threads_are_counted": [but("engines", threads=0), but("engines", threads="two")],
    },
    "commands": {
        "is_a_click_command": raises,
        "help_is_printed": silent,
        "unknown_options_are_usage_errors": careless,
    },
}


OF_PLUGINS = {
    "plugin_is_imported_quickly": "import sys, time\n'pytest' in sys.modules or time.sleep(1.1)",
    "plugin_imports_no_torch": "import sys\nsys.modules.setdefault('torch', sys)",
    "plugin_prints_nothing": "print('please cite us')",
    "summary_is_one_line": "",
}
WITH_A_PLUGIN = {*OF_PLUGINS, "a_loader_takes_its_weights"}
CASES = [
    pytest.param(kind, check, factory, id=f"{kind}-{check}-{number}")
    for kind, table in WRONG.items()
    for check, wrong in table.items()
    for number, factory in enumerate(wrong if isinstance(wrong, list) else [wrong])
]


def failed(report: Report) -> set[str]:
    return {outcome.check for outcome in report.with_status("failed")}


def test_every_check_can_fail() -> None:
    for kind in KINDS:
        assert {check.__name__ for check in checks_of(kind)} - WITH_A_PLUGIN == WRONG[kind].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_keeps_its_contract(kind: str) -> None:
    report = check_component(kind, RIGHT[kind])
    assert report.counts()["passed"] == report.counts()["run"] >= 3


@pytest.mark.parametrize(("kind", "check", "factory"), CASES)
def test_what_is_wrong_fails_in_the_check_that_names_it_and_in_no_other(
    kind: str, check: str, factory: Callable[[], Any]
) -> None:
    if check == "results_lie_where_images_lie" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    report = run(case_of(kind, factory), checks_of(kind))
    assert failed(report) == {check}
    (outcome,) = report.with_status("failed")
    assert outcome.reason
    assert "\n" not in outcome.reason


def test_where_a_check_fails_is_told_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def log_weights(self, spectrum: object) -> Tensor:
            raise KeyError("middle")

    for wanted in ("", "1"):
        monkeypatch.setenv("PGMKIT_DEBUG", wanted)
        assert failed(run(case_of("density-estimators", Broken), checks_of("density-estimators")))
        assert ("in log_weights" in capsys.readouterr().err) == bool(wanted)


PLUGIN = """
WRONG
from pgmkit import Component, hookimpl

@hookimpl
def pgmkit_mappers():
    return [Component("nearby", "MODULE_component:Nearby", "SUMMARY")]
"""


@pytest.mark.parametrize("check", OF_PLUGINS)
def test_what_is_wrong_with_a_plugin_s_module_fails_in_its_check(check: str, site: Path) -> None:
    code = PLUGIN.replace("WRONG", OF_PLUGINS[check])
    summary = "" if check == "summary_is_one_line" else "near members"
    install(site, "acme-near", code.replace("SUMMARY", summary))
    component = Path(templates.__file__).parent / "mappers" / "PACKAGE" / "component.py.in"
    (site / "acme_near_component.py").write_text(component.read_text())
    report = run(case_of("mappers", "acme-near:nearby"), checks_of("mappers"))
    assert failed(report) == {check}
    assert report.counts()["skipped"] == 1 + (check == "plugin_imports_no_torch")


BACKBONE = """
from pgmkit import Component, hookimpl

@hookimpl
def pgmkit_backbones():
    return [Component("two", "acme_two_component:TwoLayers", "two layers")]

@hookimpl
def pgmkit_generator_loaders():
    return [Component("NAME", "acme_two_component:OTHER", "its generator")]
"""


@pytest.mark.parametrize(
    ("name", "loader", "said"),
    [
        ("two", "Generator", ""),
        ("three", "Generator", "no generator-loader is called 'acme-two:two'"),
        ("two", "Bent", "makes other images with its weights"),
    ],
)
def test_a_backbone_without_a_loader_for_its_weights_fails_in_its_check(
    name: str, loader: str, said: str, site: Path
) -> None:
    install(site, "acme-two", BACKBONE.replace("NAME", name).replace("OTHER", loader))
    component = Path(templates.__file__).parent / "backbones" / "PACKAGE" / "component.py.in"
    bent = "class Bent(Generator):\n    def forward(self, *z): return -super().forward(*z)\n"
    (site / "acme_two_component.py").write_text(f"{component.read_text()}\n\n{bent}")
    sys.modules.pop("acme_two_component", None)
    report = run(case_of("backbones", "two"), checks_of("backbones"))
    assert failed(report) == ({"a_loader_takes_its_weights"} if said else set())
    assert not said or said in report.with_status("failed")[0].reason


# How the checks are run


def test_an_author_is_told_of_all_that_fails_in_one_line() -> None:
    wrong = but("features", __repr__=raises, get_params=lambda self: {"nothing": 1})
    with pytest.raises(PluginError) as caught:
        check_features(wrong)
    said = str(caught.value)
    assert said.startswith("the features 'Wrong' does not keep its contract (")
    assert " run, " in said
    assert " 2 failed, " in said
    assert "parameters_are_on_record: " in said
    assert "repr_is_a_text: the features 'Wrong' raises RuntimeError: broken" in said
    assert "\n" not in said
    report = check_features(partial(RIGHT["features"], side=3))
    assert str(report).startswith("features/Quarters: ")
    assert str(report).count(",") == 3


@pytest.mark.parametrize(
    ("kind", "component", "error", "said"),
    [
        ("features", "pixls", UnknownNameError, "did you mean 'pixels'"),
        ("feature", "pixels", UnknownNameError, "did you mean 'features'"),
        ("features", RIGHT["features"](), ParameterError, "a factory such as a class, not Quart"),
        ("features", {"image_size": 3}, ParameterError, "a table with a name"),
    ],
)
def test_what_is_no_component_is_refused(
    kind: str, component: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        check_component(kind, component)


@pytest.mark.parametrize(
    ("kind", "component", "said"),
    [
        ("partitioners", "fixed", "it needs to be told parameters: source must say which partit"),
        ("features", "network", "it needs to be told module; give them as parameters"),
        ("engines", "torchrun", "it cannot run here: the engine 'torchrun' runs under torchrun"),
        ("mappers", "acme-needs:nearby", "it needs umap-not-there, which is not installed"),
    ],
)
def test_what_cannot_be_tried_is_skipped_and_says_why(
    kind: str, component: str, said: str, site: Path
) -> None:
    code = PLUGIN.replace("WRONG", "").replace('"SUMMARY"', '"near", requires=("umap-not-there",)')
    install(site, "acme-needs", code)
    report = check_component(kind, component)
    told = {outcome.check: outcome.reason for outcome in report.with_status("skipped")}
    assert told["is_built"].startswith(said)
    assert told["repr_is_a_text"] == told["is_built"]


@parametrize_with_checks(
    "features", [RIGHT["features"], {"name": "pixels", "image_size": 4}], image=(1, 8, 8)
)
def test_parametrized(component: Case, check: Check) -> None:
    assert component.image == (1, 8, 8)
    check(component)


def test_parametrized_tests_have_names_that_can_be_read() -> None:
    (mark,) = test_parametrized.pytestmark  # type: ignore[attr-defined]
    names = [parameters.id for parameters in mark.args[1]]
    assert len(names) == 2 * len(checks_of("features"))
    assert "Quarters-points" not in names
    assert "Quarters-no_images_are_no_error" in names
    assert "pgmkit:pixels(image_size=4)-what_is_saved_comes_back" in names
