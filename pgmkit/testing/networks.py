"""Checks of backbones, generator loaders and classifiers: modules that are built to be trained."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from pgmkit import contracts
from pgmkit.components import speaking_for
from pgmkit.contracts import check_discriminator, class_logits_of, images_of, network_of
from pgmkit.errors import ParameterError
from pgmkit.forms import shape_of
from pgmkit.generator import Generator
from pgmkit.images.source import ImageSpec
from pgmkit.loading.building import build
from pgmkit.loading.networks import latent_dim_in
from pgmkit.plugins import installed
from pgmkit.priors import LatentSpec
from pgmkit.seeds import random_generator
from pgmkit.testing.case import Case, is_offered, needs

_COUNT = 3
_PARTS = 3
_DIM = 5
_RTOL = 1e-5
_SLACK = 1e-3


# Backbones


def networks_fit_each_other(case: Case) -> None:
    """The generator makes images, or points, and the discriminator gives each a logit."""
    case.once("images of None", lambda: _fitting(case, None))


def networks_with_partitions_fit_each_other(case: Case) -> None:
    """So they do with partitions."""
    case.once(f"images of {_PARTS}", lambda: _fitting(case, _PARTS))


def images_are_within_range(case: Case) -> None:
    """Images are finite and lie in [-1, 1]; points are finite."""
    images = _images(case)
    case.require(bool(images.isfinite().all()), "makes images that are not finite")
    case.require(
        images.ndim == 2 or float(images.abs().max()) <= 1 + _SLACK,
        f"makes images from {float(images.min()):.3g} to {float(images.max()):.3g}; they must lie "
        "in [-1, 1], such as behind a tanh",
    )


def every_weight_learns(case: Case) -> None:
    """Logits of what the generator makes have a finite gradient by all weights of both networks."""
    with needs("images_are_within_range"):
        images_are_within_range(case)
    for number in (None, _PARTS):
        _images(case, number)
        generator, discriminator, z = _pair(case, number)
        given = () if number is None else (_parts(),)
        discriminator(generator(z, *given), *given).sum().backward()
        for which, network in (("generator", generator), ("discriminator", discriminator)):
            _require_gradients(case, network, f"the {which}")


def partitions_have_weights(case: Case) -> None:
    """With partitions both networks have more weights than without, so they can be told apart."""
    _images(case, _PARTS)
    pairs = [_pair(case, number)[:2] for number in (_PARTS, None)]
    for which, conditional, plain in zip(("generator", "discriminator"), *pairs, strict=True):
        more, fewer = (sum(p.numel() for p in net.parameters()) for net in (conditional, plain))
        case.require(
            more > fewer,
            f"builds a {which} with partitions that has no more weights than one without, so it "
            "can tell no partition from another",
        )


def global_seed_decides_the_weights(case: Case) -> None:
    """The global seed of torch decides the first weights of both networks."""
    backbone = case.built()
    for which in ("generator", "discriminator"):
        states = []
        for seed in (0, 0, 1):
            with torch.random.fork_rng(devices=[]), needs("networks_fit_each_other"):
                torch.manual_seed(seed)
                states.append(network_of(backbone, which).state_dict())
        case.require(_same(states[0], states[1]), f"builds a {which} whose weights no seed decides")
        case.require(
            not _same(states[0], states[2]),
            f"builds a {which} that has the same weights for every seed of torch",
        )


def no_partitions_are_refused(case: Case) -> None:
    """A number of partitions below 1 is a ParameterError."""
    backbone = case.built()
    for which in ("generator", "discriminator"):
        for number in (0, -1):
            try:
                getattr(backbone, which)(number)
            except ParameterError:
                continue
            except Exception as error:
                case.require(
                    False,
                    f"raises {type(error).__name__} in {which}({number}); raise a "
                    "pgmkit.errors.ParameterError that says what to do",
                )
            case.require(False, f"builds a {which} with {number} partitions")


def takes_latent_dim(case: Case) -> None:
    """The factory takes latent_dim, and the generator latents of so many dimensions."""
    case.built()
    case.require(
        "latent_dim" in inspect.signature(case.factory()).parameters,
        "has a factory without latent_dim, the number of dimensions of the prior",
    )


def a_loader_takes_its_weights(case: Case) -> None:
    """The generator loader of its name and parameters takes the weights, and makes the images."""
    if not is_offered(case.component):
        raise SkipTest("no plugin offers it, nor a loader")
    name = case.component.qualified_name
    for number in (None, _PARTS):
        _images(case, number)
        generator, _, z = _pair(case, number)
        more = {} if number is None else {"num_partitions": number}
        given = () if number is None else (_parts(),)
        offered = installed().find("generator-loaders", name)
        arguments = {"latent_dim": z.shape[1], **case.parameters, **more}
        loaded = _reloaded(offered.resolve(), arguments, generator)
        with torch.no_grad():
            case.require(
                bool(loaded.eval()(z, *given).equal(generator.eval()(z, *given))),
                "has a generator loader of its name that makes other images with its weights",
            )


def seen_features_are_rows(case: Case) -> None:
    """`features(x)` of a discriminator has one row for each image."""
    images = _images(case)
    discriminator: Any = _pair(case, None)[1].eval()
    if not hasattr(discriminator, "features"):
        raise SkipTest("its discriminator has no features(x)")
    with torch.no_grad():
        seen = discriminator.features(images)
    case.require(
        isinstance(seen, Tensor) and len(seen) == len(images) and bool(seen.isfinite().all()),
        f"has a discriminator whose features(x) are no finite tensor of {len(images)} rows",
    )


# Generator loaders


def makes_images_of_latents(case: Case) -> None:
    """It maps latents to images, or points, of one shape; see `Generator.check_runs`."""
    case.once("module with latents", lambda: _with_latents(case))


def an_image_is_the_same_in_any_batch(case: Case) -> None:
    """What a module makes of one row does not depend on the others, in eval mode and float64.

    In float32 rounding alone may tell them apart, where weights are as they are before training.
    """
    module, x = _module(case)
    with needs("the_same_comes_out_again"):
        the_same_comes_out_again(case)
    module, x = copy.deepcopy(module).double(), x.double()
    with torch.no_grad():
        whole, alone = module(x), torch.cat([module(row) for row in x.split(1)])
    scale = float(whole.abs().max())
    case.require(
        bool(((whole - alone).abs() <= _RTOL * scale).all()),
        "makes something else of a row alone than of it in a batch, in eval mode",
    )


def the_same_comes_out_again(case: Case) -> None:
    """In eval mode nothing is left to chance."""
    module, x = _module(case)

    def is_same() -> bool:
        with torch.no_grad():
            return bool(module(x).equal(module(x)))

    case.require(case.once("same again", is_same), "makes something else each time, in eval mode")


def weights_come_back(case: Case) -> None:
    """A fresh module takes the weights, strictly, and does the same."""
    module, x = _module(case)
    with needs("the_same_comes_out_again"):
        the_same_comes_out_again(case)
    again = _reloaded(case.factory(), case.parameters, case.once("module", case.built))
    if case.kind == "generator-loaders":
        again = _generator(case, again).network()
    with torch.no_grad():
        case.require(
            bool(again.eval()(x).equal(module(x))),
            "does something else with the same weights; register all that is not drawn anew",
        )


def images_have_a_gradient(case: Case) -> None:
    """The gradient of images by latents, of which spectra are made, is finite and not zero."""
    module, z = _module(case)
    z = z.clone().requires_grad_()
    made = module(z)
    case.require(made.requires_grad, "makes images without a gradient by the latents")
    made.sum().backward()
    case.require(
        z.grad is not None and bool(z.grad.isfinite().all()) and bool(z.grad.any()),
        "makes images whose gradient by the latents is zero or not finite",
    )


def makes_images_of_partitions(case: Case) -> None:
    """With num_partitions it maps latents and partitions to images of the same shape."""
    module, z = _module(case)
    if "num_partitions" not in inspect.signature(case.factory()).parameters:
        raise SkipTest("it takes no num_partitions, so it is not conditional")
    conditional = case.component.build(**{**case.parameters, "num_partitions": _PARTS}).eval()
    with torch.no_grad():
        made, plain = conditional(z, _parts()), module(z)
    case.require(
        made.shape == plain.shape and bool(made.isfinite().all()),
        f"makes {tuple(made.shape)} of latents and partitions, and {tuple(plain.shape)} of latents",
    )


def own_names_stay(case: Case) -> None:
    """`convert_state_dict`, which renames foreign weights, leaves its own loadable."""
    module, _ = _module(case)
    convert = getattr(module, "convert_state_dict", None)
    if convert is None:
        raise SkipTest("it has no convert_state_dict")
    own = module.state_dict()
    converted = convert(dict(own))
    case.require(
        converted.keys() == own.keys(), "has a convert_state_dict that renames its own weights"
    )


# Classifiers


def classes_are_counted(case: Case) -> None:
    """It says how many classes it knows."""
    with needs("is_built"):
        module = case.built()
    contracts.num_classes_of(module, case.component.qualified_name)


def logits_are_one_for_each_class(case: Case) -> None:
    """It gives each image a finite logit for each class."""
    with needs("is_built"):
        module, x = case.built().eval(), _pictures(case)
    with needs("classes_are_counted"):
        number = contracts.num_classes_of(module, case.component.qualified_name)
    with torch.no_grad():
        class_logits_of(module, x, number, case.component.qualified_name)


def what_it_sees_is_said_in_numbers(case: Case) -> None:
    """`image_channels` and `image_size` are whole numbers, where they are there."""
    module = case.built()
    said = {name: getattr(module, name, None) for name in ("image_channels", "image_size")}
    if not any(value is not None for value in said.values()):
        raise SkipTest("it has neither image_channels nor image_size")
    for name, value in said.items():
        case.require(
            value is None or (type(value) is int and value > 0),
            f"has {name} = {value!r:.40}; it must be a whole number from 1",
        )


def features_are_rows(case: Case) -> None:
    """`features(x)`, by which fidelity can be measured, is (B, d) and finite."""
    module, x = _module(case)
    features: Any = getattr(module, "features", None)
    if features is None:
        raise SkipTest("it has no features(x), so no fidelity by classifier:NAME")
    with torch.no_grad():
        seen = features(x)
    case.require(
        isinstance(seen, Tensor)
        and seen.ndim == 2
        and len(seen) == len(x)
        and bool(seen.isfinite().all()),
        f"has features(x) that are no finite tensor of shape ({len(x)}, d)",
    )


def weights_have_gradients(case: Case) -> None:
    """What comes out has a finite gradient by every weight."""
    module, x = _module(case)
    module.train().zero_grad()
    module.requires_grad_()(x).sum().backward()
    module.eval()
    _require_gradients(case, module, "the network")


def _module(case: Case) -> tuple[nn.Module, Tensor]:
    """Returns a loader's module with latents, or a classifier with images; in eval mode."""
    if case.kind == "generator-loaders":
        with needs("makes_images_of_latents"):
            module, z = case.once("module with latents", lambda: _with_latents(case))
        return module, z.clone()
    with needs("logits_are_one_for_each_class"):
        logits_are_one_for_each_class(case)
        module = case.built().eval()
    return module, _pictures(case)


def _with_latents(case: Case) -> tuple[nn.Module, Tensor]:
    generator = _generator(case)
    generator.check_runs()
    return generator.network(), generator.sample_latents(_COUNT, seed=0)


def _generator(case: Case, module: nn.Module | None = None) -> Generator:
    """Returns what a loader builds, or a module of the same parameters, as a generator."""
    with needs("is_built"):
        module = module or case.once("module", case.build)
    known = {**_defaults(case.factory()), **case.parameters}
    told = latent_dim_in(known) or latent_dim_in(known.get("model_args", {}))
    if case.latent is None and told is None:
        raise SkipTest("its parameters do not say how many latent dimensions there are; say latent")
    latent = case.latent or LatentSpec(told[1] if told else 1)
    with torch.no_grad(), speaking_for(case.component.called, "on latents"):
        shape = latent.shape or (latent.dim,)
        made = module.eval()(latent.sample(2, random_generator(0, "z")).reshape(2, *shape))
    return Generator(module, latent, ImageSpec(_shape(made)), name=case.component.qualified_name)


def _shape(made: Any) -> tuple[int, ...]:
    """Returns the shape of images or points; flat where it cannot be told, which shows later."""
    flat = tuple(made.shape[1:]) if isinstance(made, Tensor) else (1,)
    return shape_of(made, 2) or flat


def _defaults(factory: Callable[..., Any]) -> Mapping[str, Any]:
    return {name: part.default for name, part in inspect.signature(factory).parameters.items()}


def _pair(case: Case, number: int | None) -> tuple[nn.Module, nn.Module, Tensor]:
    """Returns copies of both networks of a backbone, the same each time, and latents."""
    with needs("is_built"):
        backbone = case.built()

    def make() -> tuple[nn.Module, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            generator = network_of(backbone, "generator", number)
            return generator, network_of(backbone, "discriminator", number)

    generator, discriminator = copy.deepcopy(case.once(f"pair of {number}", make))
    dim = {**_defaults(case.factory()), **case.parameters}.get("latent_dim")
    latent = LatentSpec(dim if isinstance(dim, int) else _DIM)
    return generator, discriminator, latent.sample(_COUNT, random_generator(0, "latents"))


def _images(case: Case, number: int | None = None) -> Tensor:
    """Returns images; raises SkipTest where the networks do not fit each other."""
    check = networks_fit_each_other if number is None else networks_with_partitions_fit_each_other
    with needs(check.__name__):
        return case.once(f"images of {number}", lambda: _fitting(case, number))


def _fitting(case: Case, number: int | None) -> Tensor:
    """Returns images that the discriminator gives logits of."""
    parts = None if number is None else _parts()
    generator, discriminator, z = _pair(case, number)
    images = images_of(case.built(), generator.eval(), z, parts)
    check_discriminator(case.built(), discriminator.eval(), images, parts)
    return images


def _parts() -> Tensor:
    return torch.arange(_COUNT) % _PARTS


def _pictures(case: Case) -> Tensor:
    """Returns images (B, C, H, W) of the size and channels that a classifier asks for."""
    module = case.built()
    channels, height, width = case.image
    side = getattr(module, "image_size", None)
    channels = getattr(module, "image_channels", None) or channels
    height, width = (side, side) if isinstance(side, int) else (height, width)
    return torch.rand(_COUNT, channels, height, width, generator=random_generator(0, "x")) * 2 - 1


def _reloaded(
    factory: Callable[..., Any], arguments: Mapping[str, Any], module: nn.Module
) -> nn.Module:
    """Returns a fresh module with the weights of another, built as what a folder names is."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    fresh = build(factory, dict(arguments), "the checks", state)
    fresh.load_state_dict(state)
    return fresh.eval()


def _require_gradients(case: Case, network: nn.Module, which: str) -> None:
    for name, weight in network.named_parameters():
        case.require(
            weight.grad is not None, f"has the weight {name} in {which}, which has no gradient"
        )
        case.require(
            bool(weight.grad is not None and weight.grad.isfinite().all()),
            f"has the weight {name} in {which}, whose gradient is not finite",
        )


def _same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)
