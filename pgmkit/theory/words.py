"""What was measured, what the theorems make of it, and what that means, in words."""

import math
from dataclasses import dataclass

import torch

from pgmkit.theory.audit import PartitionerAudit
from pgmkit.theory.bound import LipschitzEstimate, TotalVariationBound
from pgmkit.theory.distances import MeasuredParts
from pgmkit.theory.representation import MOST_DIMS, Representation

_SMALL = 0.01


@dataclass(frozen=True)
class Words:
    """What is told of one theorem.

    Args:
        rows: what the theorem speaks of, how it stands here, and by what measurement.
        meaning: what follows.
    """

    rows: list[tuple[str, str, str]]
    meaning: str


def bound_in_words(
    lipschitz: LipschitzEstimate,
    parts: MeasuredParts | None,
    bound: TotalVariationBound | None,
    are_own: bool,
) -> Words:
    """Returns what is told of Theorem 1.

    Args:
        lipschitz: of the generator.
        parts: of images; None without a partitioner.
        bound: from both; None likewise.
        are_own: whether the generator made them.
    """
    rows = [
        (
            "c, how far images move with z",
            f"at least {lipschitz.value:.4g}",
            f"the largest singular value of the Jacobian at {lipschitz.num_latents:,} latents; "
            f"half of them have less than {lipschitz.median:.4g}",
        )
    ]
    if parts is None or bound is None:
        return Words(
            rows,
            "The more c exceeds the distances between parts of the data, the less the generator "
            "has to miss. For the bound δ, name a partitioner with --partitioner, and --data.",
        )
    masses = [size / parts.num_images for size in parts.sizes if size]
    distances = [distance for distance in parts.distances if not math.isinf(distance)]
    rows += [
        (
            "π, masses of the parts",
            f"{min(masses):.3g} to {max(masses):.3g}",
            f"shares of {parts.num_images:,} images",
        ),
        (
            "d, distances of the parts from each other",
            f"at most {min(distances):.4g} to {max(distances):.4g}",
            "between the nearest two images, over all pixels in [-1, 1]; the parts themselves are "
            "nearer, and more images show more of it",
        ),
        (
            "δ, what the generator must miss",
            f"at most {bound.value:.4g}",
            f"with c, π and d as measured, by part {bound.part}",
        ),
    ]
    meaning = (
        "The total variation distance between data and generator is at least δ. But δ grows as c "
        "falls and as d grows, and c is measured too small and d too large. So the true δ is, but "
        f"for chance in π, at most {bound.value:.4g}: nothing proves that anything is missing."
    )
    if are_own:
        meaning += (
            " These are images of the generator itself. They hang together, so that d is truly 0; "
            "the theorem is about data (--data)."
        )
    elif bound.value < _SMALL:
        meaning += " So small a δ does not stand in this generator's way."
    return Words(rows, meaning)


def audit_in_words(audit: PartitionerAudit) -> Words:
    """Returns what is told of Theorem 3."""
    found, (tried, arrived) = audit.representation, (sum(audit.starts), sum(audit.reached))
    pairs, joined, straight = sum(audit.pairs), sum(audit.joined), sum(audit.straight)
    usual = float(torch.tensor(audit.first_gradients).median())
    rows = [
        _form(found),
        ("needs φ that is C¹", "not measured", "layers with ReLU are not, layers with ELU are"),
        _lipschitz(found),
        (
            "promises no dead ends",
            _seen(arrived == tried, audit),
            f"{arrived} of {tried} descents on R_i from images of other parts reached part i "
            f"within {audit.steps} steps",
        ),
        (
            "promises a gradient outside",
            _seen(not audit.vanishes, audit),
            f"the smallest ‖∇R_i‖ on these descents is {min(audit.gradients):.4g}; where they "
            f"start, half are above {usual:.4g}",
        ),
        (
            "promises connected parts",
            _seen(joined == pairs, audit),
            f"paths within the part were found between {joined} of {pairs} pairs of images, "
            f"{straight} of them straight",
        ),
    ]
    return Words(rows, _meaning(audit))


def _form(found: Representation) -> tuple[str, str, str]:
    needs = "needs f = W φ(x)"
    if found.is_told:
        return needs, "holds", f"φ is the {found.num_dims:,} numbers that the linear head looks at"
    return needs, "not told", "the partitioner tells no φ, so its logits are taken for it"


def _lipschitz(found: Representation) -> tuple[str, str, str]:
    needs = "needs c₀ > 0"
    seen = (
        f"between pairs of {found.num_images:,} images, φ changes distances by factors from "
        f"{found.closest:.3g} to {found.farthest:.3g}"
    )
    if found.num_dims < found.image_dims:
        return (
            needs,
            "fails",
            f"φ has {found.num_dims:,} numbers and an image {found.image_dims:,}, so different "
            f"images have the same φ somewhere, and c₀ is 0; {seen}",
        )
    if found.singular_values is None:
        seen += f"; the Jacobian of more than {MOST_DIMS:,} numbers is not computed"
    else:
        least, most = found.singular_values
        seen += (
            f"; at {found.num_jacobians} images its Jacobian has singular values from {least:.3g} "
            f"to {most:.3g}"
        )
    if found.num_dims > found.image_dims:
        return (
            needs,
            "fails",
            f"the theorem is about a φ of as many numbers as an image, {found.image_dims:,}, and "
            f"this has {found.num_dims:,}; {seen}",
        )
    if found.c0 == 0:
        return needs, "fails", f"φ is singular; {seen}"
    return needs, "as far as seen", f"c₀ is at most {found.c0:.3g}; {seen}"


def _seen(kept: bool, audit: PartitionerAudit) -> str:
    if kept:
        return "as far as seen"
    return "not seen" if audit.applies else "fails"


def _meaning(audit: PartitionerAudit) -> str:
    if audit.applies and audit.keeps:
        return (
            "Nothing speaks against the theorem here: as far as these images show, the guide "
            "leads into every part from everywhere. That is no proof."
        )
    if audit.keeps:
        return (
            "The theorem does not apply, so nothing guarantees what it promises; here it was seen "
            "all the same."
        )
    if audit.applies:
        said = (
            "Not all that the theorem promises was seen: its condition fails where nobody looked, "
            "or steps and paths were too few."
        )
    else:
        said = "The theorem does not apply, and not all that it promises was seen."
    if audit.reached != audit.starts:
        said += " Where a descent ended, the guide leaves a generator outside the part."
    if audit.vanishes:
        said += " Where the gradient vanishes, the guide pulls nowhere."
    if audit.joined != audit.pairs:
        said += " A part in pieces is as hard for one generator as data in pieces (Theorem 1)."
    return said
