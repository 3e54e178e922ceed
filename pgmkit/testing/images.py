"""Checks of features and partitioners: what they make of images."""

from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.components import copied
from pgmkit.errors import ParameterError
from pgmkit.images.source import ImageSpec
from pgmkit.testing.case import Case, needs
from pgmkit.testing.component import check_takes
from pgmkit.testing.fitted import fitted, results
from pgmkit.testing.trials import COUNT, OfImages, trial_of

_RTOL = 1e-4
_FEW = 6


def an_image_is_the_same_in_any_company(case: Case) -> None:
    """What it makes of an image does not depend on the other images of a batch."""
    trial, component = _ready(case)
    whole = results(case)[trial.what]
    few = trial.of(component, trial.x[:_FEW])
    alone = torch.cat([trial.of(component, x) for x in trial.x[:_FEW].split(1)])
    for found in (few, alone):
        case.require(
            _close(found, whole[:_FEW]),
            f"makes other {trial.what} of an image among {COUNT} than of it alone; take the "
            "statistics of a batch in fit",
        )


def no_images_are_no_error(case: Case) -> None:
    """Of an empty batch it makes an empty tensor."""
    trial, component = _ready(case)
    width = results(case)[trial.what].shape[1]
    found = trial.of(component, trial.x[:0])
    case.require(
        found.shape == (0, width),
        f"makes {trial.what} of shape {tuple(found.shape)} of no images; they must be (0, {width})",
    )


def gradients_are_finite(case: Case) -> None:
    """The gradient by the image, by which training is guided, is finite, where there is one."""
    trial, component = _ready(case)
    results(case)
    x = trial.x[:_FEW].clone().requires_grad_()
    found = trial.of(component, x)
    if not found.requires_grad:
        raise SkipTest("it has no gradient by the image, so it cannot guide training")
    found.sum().backward()
    case.require(
        x.grad is not None and bool(x.grad.isfinite().all()),
        "has a gradient by the image that is not finite",
    )


def results_lie_where_images_lie(case: Case) -> None:
    """Of images on another device it makes what lies there, too."""
    trial, component = _ready(case)
    results(case)
    if not torch.cuda.is_available():
        raise SkipTest("there is no CUDA device")
    there = trial.x[:_FEW].cuda()
    found = trial.of(component, there)
    case.require(
        found.device == there.device,
        f"makes {trial.what} on {found.device} of images on {there.device}",
    )


def takes_num_partitions(case: Case) -> None:
    """The factory takes the number of parts, with a default."""
    check_takes(case, "num_partitions")


def a_copy_does_the_same(case: Case) -> None:
    """A deep copy, as is fitted to halves of the images, has the same logits."""
    trial, component = _ready(case)
    whole = results(case)[trial.what]
    case.require(
        trial.of(copied(component), trial.x).equal(whole), "has other logits when it is copied"
    )


def held_out_logits_keep_the_contract(case: Case) -> None:
    """Logits of images that it did not learn from have a column for each part."""
    _, component = _ready(case)
    if contracts.held_out_logits_of(component) is None:
        raise SkipTest("it has no held_out_logits")


def the_head_gives_the_logits(case: Case) -> None:
    """`head` is linear, and gives the logits of what `represent` makes."""
    trial, component = _ready(case)
    results(case)
    if not isinstance(component, contracts.Represents):
        raise SkipTest("it has no represent(x) and head(points)")
    contracts.check_head(component, trial.x)


def parts_can_be_sought_in_two_steps(case: Case) -> None:
    """`prepare`, `make_clusterer` and `split`, by which k is chosen, keep their contract."""
    trial, component = _ready(case)
    if not isinstance(component, contracts.Prepares):
        raise SkipTest("it has no prepare, make_clusterer and split, so k cannot be chosen")
    with needs("is_built"):
        again: Any = case.build()
    try:
        points = contracts.prepared_points(again, trial.source, 0)
    except ParameterError as error:  # such as of a part that does not prepare
        raise SkipTest(str(error)) from error
    number = contracts.num_partitions_of(again)
    array = points.double().numpy()
    clusterer = contracts.Clusterer(case.kind, again, number, 0).fit(array)
    clusterer.predict(array)
    contracts.split(again, trial.source, 0)
    trial.of(again, trial.x)


def demands_are_met_by_what_it_was_fitted_to(case: Case) -> None:
    """`least_images` and `check_image` accept images that it can be fitted to, and no strangers."""
    trial, component = _ready(case)
    if not isinstance(component, contracts.Demands):
        raise SkipTest("it has no least_images and check_image, so it demands nothing")
    image = ImageSpec(tuple(trial.x.shape[1:]))
    contracts.check_images(component, image, COUNT)


def _ready(case: Case) -> tuple[OfImages, Any]:
    component, trial = fitted(case), trial_of(case)
    assert isinstance(trial, OfImages)
    return trial, component


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    return bool(((found - wanted).abs() <= _RTOL * scale).all())
