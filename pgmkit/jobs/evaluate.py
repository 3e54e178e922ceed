"""The evaluation of a shattered generator as one record, as `pgmkit evaluate` prints it."""

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from pgmkit.config import check_count, check_seed
from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.diagnostics import diagnose
from pgmkit.evaluate.extractors import check_extractor, load_extractor
from pgmkit.evaluate.fidelity import check_num_samples, shattering_fidelity
from pgmkit.evaluate.metrics import score_samples
from pgmkit.evaluate.reference_images import check_features, check_fidelity, load_reference
from pgmkit.images import check_source
from pgmkit.loading.options import GeneratorOptions, shatter_command
from pgmkit.machine import check_device, check_memory, machine
from pgmkit.models import load
from pgmkit.progress import phase
from pgmkit.shattering import ShatteredGenerator


def evaluate(
    source: str,
    *,
    generator: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    data: str | None = None,
    split: str = "train",
    extractor: str = "inception",
    num_samples: int = 10_000,
    seed: int = 0,
    device: str = "auto",
    cache: bool = True,
) -> Mapping[str, Any]:
    """Evaluates a saved shattered generator and returns all numbers as plain values.

    Args:
        source: the shattered generator; see `ShatteredGenerator.from_pretrained`.
        generator: what its folder does not say; further arguments of `pgmkit.load`.
        classifier: reference of a classifier; without one there are no `scores`.
        data: reference images, see `pgmkit.images.load_images`; without any there is no `fidelity`.
        split: "train" or "test", where the data has both.
        extractor: looks at both kinds of images; see `load_extractor`.
        num_samples: how many latents or images each score is made from.
        seed: of everything random.
        device: where generator, classifier and extractor run; "auto" is CUDA, then MPS, then the
            CPU.
        cache: whether to keep the features of the reference images for later.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    check_count("the number of samples", num_samples)
    check_seed(seed)
    where = check_device(device)
    check_extractor(extractor)
    if data is None:
        _check_unused(split=split, extractor=extractor, cache=cache)
    else:
        check_source(data)
    judge = None if classifier is None else load_classifier(classifier)
    shattered = _load_shattered(source, generator or {}, where)
    image = shattered.generator.image
    check_memory(
        4 * num_samples * math.prod(image.shape), f"{num_samples:,} images", "score fewer (-n)"
    )
    if judge is not None:
        judge.check_images(image.shape)
        judge.module.to(where)
    images, looks = None, None
    if data is not None:
        check_num_samples(num_samples, shattered.num_clusters)
        images = load_reference(data, shattered.generator, split=split)
        check_fidelity(images, judge)
        looks = load_extractor(extractor, where)
        check_features(looks, shattered.generator, images)
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - started - sum(seconds.values()), 2)

    with phase(f"diagnostics: samples of each cluster on {where}"):
        diagnostics = asdict(diagnose(shattered, num_latents=min(num_samples, 5_000), seed=seed))
    return_rate = diagnostics.pop("return_rate")
    lap("diagnostics")
    scores = None
    if judge is not None:
        with phase(f"scores: {num_samples:,} samples and the classes of {judge.name}"):
            scores = asdict(score_samples(shattered, judge, num_samples, seed))
        lap("scores")
    fidelity = None
    if images is not None and looks is not None:
        with phase(f"fidelity: {num_samples:,} images, looked at by {looks.name}"):
            found = shattering_fidelity(
                shattered,
                images,
                looks,
                classifier=judge,
                num_samples=num_samples,
                seed=seed,
                cache=cache,
                device=where,
            )
        fidelity = {**asdict(found), "data": images.summary()}
        lap("fidelity")
    return {
        "generator": repr(shattered.generator),
        **{name: part for name, part in asdict(shattered.origin).items() if name != "statistics"},
        "evaluation": {
            "source": source,
            "split": None if images is None else split,
            "num_samples": num_samples,
            "seed": seed,
        },
        "classifier": None if judge is None else {"name": judge.name, **judge.measured},
        "scores": {} if scores is None else {"mapper samples": scores},
        "return_rate": return_rate,
        "diagnostics": diagnostics,
        "fidelity": fidelity,
        "seconds": seconds,
        "device": str(where),
        "machine": machine(),
    }


def _check_unused(**given: Any) -> None:
    """Raises ParameterError if something is said of reference images, and there are none."""
    usual = inspect.signature(evaluate).parameters
    said = [name for name, value in given.items() if value != usual[name].default]
    if said:
        raise ParameterError(
            f"{' and '.join(said)} would be ignored, since there are no reference images; give "
            "some (--reference), or leave it out"
        )


def _load_shattered(
    source: str, options: Mapping[str, Any], device: torch.device
) -> ShatteredGenerator:
    model = load(source, device=device, **options)
    if not isinstance(model, ShatteredGenerator):
        raise ParameterError(
            f"{source} is a generator without clusters, and clusters are what is evaluated; find "
            f"them first: {shatter_command(source, GeneratorOptions.from_table(options))}"
        )
    return model
