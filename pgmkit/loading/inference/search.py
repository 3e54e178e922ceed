"""Architectures from state dicts: what follows from shapes, and what batch norms remember.

Every batch norm keeps the mean and the variance of what it saw in training. Latents are pushed
through each way to fill in what the file does not say, and what a norm then sees is held against
what it remembers; the way that agrees best is taken (`drafts` lists the ways).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.errors import LoadError
from pgmkit.loading.inference import drafts as ways
from pgmkit.loading.inference.drafts import Draft, Op
from pgmkit.loading.inference.parts import (
    Block,
    Contents,
    Element,
    Part,
    arrangements,
    is_registered,
    read_parts,
    refusal,
    reorderings,
    unordered,
)
from pgmkit.plugins import installed

_LATENTS = 1024
_MOST_VALUES = 2**23
_WORK_OF_VALUE = 60
_SCREENED_WORK = 5e7
_JUDGED_WORK = 6e8
_RUN_WORK = 3e9
_SHOWN = 8
_NARROW = 24
_WIDE = 64
_FINALISTS = 8
_MOST_DRAFTS = 3
_MOST_ORDERS = 6
_POOR = 0.1
_MOST_UNSCORED = 150
_COST_SHARE = 0.1
_NOISE = 0.01
_WORST = 2.0
_AGREEMENT = 0.25


@dataclass(frozen=True)
class Inferred:
    """A network that was worked out from a state dict.

    Args:
        architecture: the generator-loader component that builds it.
        model_args: what that component is called with; plain JSON values.
        latent_dim: M, the number of latent dimensions.
        image_shape: (C, H, W).
        image_range: lowest and highest value, from the last activation that was guessed.
        distribution: the prior, "normal" or "uniform", as guessed.
        rename: key in the file -> key of the built module, for every tensor of the generator.
        facts: what follows from names and shapes, one line each.
        guesses: what was guessed, with the evidence and how to say otherwise, one line each.
    """

    architecture: str
    model_args: dict[str, Any]
    latent_dim: int
    image_shape: tuple[int, int, int]
    image_range: tuple[float, float]
    distribution: str
    rename: dict[str, str]
    facts: tuple[str, ...]
    guesses: tuple[str, ...]


@dataclass
class _Evidence:
    """For each choice and each of its values, the best deviation where it was last compared."""

    deviations: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, drafts: Sequence[Draft]) -> None:
        for name in {name for draft in drafts for name in draft.choices}:
            best: dict[str, float] = {}
            for draft in drafts:
                value = draft.choices.get(name)
                if value is not None:
                    best[value] = min(best.get(value, math.inf), draft.deviation)
            if len(best) > 1:
                self.deviations.setdefault(name, {}).update(best)

    def rivals(self, name: str, value: str) -> list[tuple[float, str]]:
        """Returns the other values of a choice with their deviations, the best first."""
        found = self.deviations.get(name, {})
        return sorted((d, other) for other, d in found.items() if other != value)


_Finding = tuple[Draft, list[Element], _Evidence]
"""The best network of some elements, with them and what spoke for it."""


def infer(state: Mapping[str, Tensor]) -> Inferred:
    """Works out the network that a generator's state dict belongs to.

    Handles stacks of transposed convolutions, of up-sampling and convolutions, of linear layers,
    and of residual blocks, with batch or instance norm, spectral or weight norm; of a VAE it takes
    the decoder.

    Args:
        state: named tensors, without wrappers' prefixes, in the order of the layers or sorted.

    Raises:
        LoadError: it is something else, or its layers do not fit together.
    """
    contents = read_parts(state)
    candidates = arrangements(contents.parts)
    _refuse_others(contents, candidates)
    found: list[_Finding] = []
    for elements in candidates:
        found += _findings(elements)
        if found and 0 < found[-1][0].deviation < _POOR:
            break
    if not found:
        raise LoadError(
            refusal(
                "no strides and sizes make an image of the layers in this order", contents.parts
            )
        )
    best = min(found, key=lambda entry: _rank(entry[0]))
    if [element.body for element in best[1]] != _registered(contents, best[1]):
        best = _in_known_order(best, contents)
    draft, elements, evidence = best
    return _report(draft, elements, contents, evidence)


def _findings(elements: list[Element]) -> list[_Finding]:
    """Returns the best network of elements in this order; none if they make none."""
    evidence = _Evidence()
    finished = _search(elements, evidence)
    return [(min(finished, key=_rank), elements, evidence)] if finished else []


def _registered(contents: Contents, elements: Sequence[Element]) -> list[Part | Block] | None:
    """Returns weights and blocks in the order of the file, if a network was written in it."""
    if not is_registered(contents.parts):
        return None
    place = {part.path: index for index, part in enumerate(contents.parts)}
    bodies = [element.body for element in elements]
    firsts = {id(b): b.convs[0].path if isinstance(b, Block) else b.path for b in bodies}
    return sorted(bodies, key=lambda body: place[firsts[id(body)]])


def _in_known_order(best: _Finding, contents: Contents) -> _Finding:
    """Returns the network in the order that batch norms confirm, if names and shapes leave several.

    Raises:
        LoadError: nothing tells which order it is.
    """
    alike = unordered(best[1])
    if alike is not None:
        raise _order_unknown(*alike, contents)
    found = [best]
    for elements in reorderings(best[1]):
        found += _findings(elements)
        if len(found) > (_MOST_ORDERS if best[0].count else 1):
            break
    found.sort(key=lambda entry: _rank(entry[0]))
    if len(found) > 1:
        first, second = found[0][0], found[1][0]
        clear = first.count and first.deviation < min(_AGREEMENT, second.deviation / 2)
        if not clear or len(found) > _MOST_ORDERS:
            pairs = zip(found[0][1], found[1][1], strict=True)
            one, other = next((a.body, b.body) for a, b in pairs if a.body != b.body)
            raise _order_unknown(one, other, contents)
    return found[0]


def _order_unknown(one: Part | Block, other: Part | Block, contents: Contents) -> LoadError:
    return LoadError(
        refusal(
            f"nothing tells which of {one.path} and {other.path} comes first: the file is sorted "
            "by name, or not in the order of layers, and either order fits",
            contents.parts,
        )
    )


def _refuse_others(contents: Contents, candidates: Sequence[Any]) -> None:
    weights = [part for part in contents.parts if part.is_weight]
    first, last = weights[0], weights[-1]
    takes_images = first.kind == "conv" and first.shape[1] <= 4 < first.shape[0]
    outputs = last.shape[0] if last.kind == "linear" or takes_images else 0
    reason = None
    if takes_images and outputs == 1:
        reason = (
            f"these look like a discriminator: the first layer takes images ({first}) "
            "and the last has one output"
        )
    elif last.kind == "linear" and outputs == 1:
        reason = "these look like a discriminator: the last layer has one output"
    elif takes_images and (last.kind == "linear" or outputs > 4):
        reason = (
            f"these look like a classifier or an encoder: the first layer takes images ({first}) "
            f"and the last has {outputs} outputs"
        )
    elif not candidates:
        reason = "the channels of the layers do not follow each other"
    if reason:
        raise LoadError(refusal(reason, contents.parts))


def _search(elements: Sequence[Element], evidence: _Evidence) -> list[Draft]:
    """Returns the drafts of whole networks that agree best with what the norms remember."""
    latent_dim = _latent_dim(elements[0])
    if latent_dim is None:
        return []
    last_to_tell = next((e for e in reversed(elements) if _can_tell(e)), None)
    drafts = _beginnings(latent_dim, last_to_tell is not None)
    before: Element | None = None
    for element in elements:
        grown = [new for draft in drafts for new in ways.continuations(draft, before, element)]
        if _can_tell(element):
            last = element is last_to_tell
            drafts = [
                _run_on(draft, seen, _SHOWN if last else _affordable(draft, _RUN_WORK))
                for draft, seen in _judged(grown, element, evidence)
            ]
        else:
            drafts = _cheapest(grown)
        before = element
    assert before is not None
    closed = [ways.closing(draft, before) for draft in drafts]
    return [draft for draft in closed if draft is not None]


def _latent_dim(first: Element) -> int | None:
    if isinstance(first.body, Block):
        return None
    sides = first.body.sides()
    if first.body.kind == "conv":
        # Before the first convolution the image is one pixel; only a transposed one enlarges it.
        sides = {side for side in sides if side[2]}
    return next((inputs for inputs, _, _ in sides), None)


def _can_tell(element: Element) -> bool:
    norms = element.body.norms if isinstance(element.body, Block) else ()
    own = (element.norm,) if element.norm is not None else ()
    return any(map(ways.has_evidence, (*norms, *own)))


def _beginnings(latent_dim: int, tested: bool) -> list[Draft]:
    normal = _trial_latents(latent_dim)
    drafts = [Draft((), (latent_dim,), {"prior": "normal"}, output=normal)]
    if tested:
        drafts.append(Draft((), (latent_dim,), {"prior": "uniform"}, 0.3, output=_uniform(normal)))
    return drafts


def _trial_latents(latent_dim: int) -> Tensor:
    """Draws standard normal latents whose mean, variance and, if few, correlations are exact."""
    random = torch.Generator().manual_seed(0)
    half = torch.randn(_LATENTS // 2, latent_dim, generator=random, dtype=torch.float64)
    if latent_dim <= len(half) // 2:
        root = torch.linalg.cholesky(half.T @ half / len(half))
        half = torch.linalg.solve_triangular(root, half.T, upper=False).T
    else:
        half = half / half.square().mean(dim=0).sqrt()
    return torch.stack([half, -half], dim=1).flatten(0, 1).float()


def _uniform(normal: Tensor) -> Tensor:
    """Turns standard normal latents into latents from U(-1, 1) with exact variances."""
    uniform: Tensor = 2 * torch.special.ndtr(normal) - 1
    return uniform / uniform.square().mean(dim=0).sqrt() / math.sqrt(3)


def _cheapest(drafts: Sequence[Draft]) -> list[Draft]:
    """Keeps the most usual draft of each shape and set of choices."""
    best: dict[Any, Draft] = {}
    for draft in sorted(drafts, key=lambda draft: draft.cost):
        general = {k: v for k, v in draft.choices.items() if not k.startswith("layer ")}
        # What was run already is not the same for two drafts with one output each.
        key = (draft.shape, draft.acted, id(draft.output), tuple(sorted(general.items())))
        best.setdefault(key, draft)
    return list(best.values())[:_MOST_UNSCORED]


def _judged(
    drafts: Sequence[Draft], element: Element, evidence: _Evidence
) -> list[tuple[Draft, Draft]]:
    """Runs drafts up to the next norm; returns those that agree with it, and what was seen of each.

    A look at few latents and channels picks those worth a closer one.
    """
    if not drafts:
        return []
    finalists = list(drafts)
    if len(finalists) > _FINALISTS:
        screened = _screened(drafts, element)
        evidence.add([seen for _, seen in screened])
        finalists = [draft for draft, _ in screened[:_FINALISTS]]
    # As many latents for each, so that chance is the same for all.
    latents = min(_affordable(draft, _JUDGED_WORK, _WIDE) for draft in finalists)
    judged = [(draft, _observed(draft, element, latents, _WIDE)) for draft in finalists]
    judged.sort(key=lambda pair: _rank(pair[1]))
    evidence.add([seen for _, seen in judged])
    best = judged[0][1].deviation
    kept = [pair for pair in judged if pair[1].deviation <= max(1.25 * best, best + 0.01)]
    return kept[:_MOST_DRAFTS]


def _screened(drafts: Sequence[Draft], element: Element) -> list[tuple[Draft, Draft]]:
    """Returns drafts, and what a quick look at each says, the best first.

    Strides and all the rest are varied in turn, beginning with the most usual; everything is tried
    with everything only where nothing agrees well that way.
    """
    moves = [_moves(draft, element) for draft in drafts]
    others = [_others(draft, element) for draft in drafts]
    seen: dict[int, Draft] = {}

    def look(indices: Iterable[int]) -> int:
        for index in indices:
            if index not in seen:
                latents = _affordable(drafts[index], _SCREENED_WORK, _NARROW)
                seen[index] = _observed(drafts[index], element, latents, _NARROW)
        return min(seen, key=lambda index: _rank(seen[index]))

    everything = range(len(drafts))
    usual = min(everything, key=lambda index: drafts[index].cost)
    for held in (others, moves):
        best = look(index for index in everything if held[index] == held[usual])
    for held in (others, moves):
        best = look(index for index in everything if held[index] == held[best])
    if seen[best].deviation > _POOR:
        look(everything)
    return [(drafts[index], seen[index]) for index in sorted(seen, key=lambda i: _rank(seen[i]))]


def _moves(draft: Draft, element: Element) -> tuple[Any, ...]:
    """Returns what was chosen in this step of strides and up-sampling."""
    names = (f"layer {element.body.path}", "up-sampling", "block")
    return (draft.shape, *(draft.choices.get(name) for name in names))


def _others(draft: Draft, element: Element) -> tuple[Any, ...]:
    """Returns what was chosen beside that, and before."""
    names = (f"layer {element.body.path}", "up-sampling", "block")
    rest = sorted(item for item in draft.choices.items() if item[0] not in names)
    return (id(draft.output), draft.acted, *rest)


def _rank(draft: Draft) -> float:
    """Returns the deviation, a little more for what is unusual; the cost alone without norms."""
    if not draft.count:
        return draft.cost
    return math.hypot(draft.deviation, _NOISE) * (1 + _COST_SHARE * draft.cost)


def _observed(draft: Draft, element: Element, latents: int, channels: int) -> Draft:
    """Returns the draft with its deviations at the norms up to the next, seen on some latents."""
    assert draft.output is not None
    norm = element.norm if element.norm and ways.has_evidence(element.norm) else None
    ops = tuple(op.folded() for op in draft.pending)
    ops = _narrowed(ops, channels) if norm is not None else ops
    deviations, output = _run(ops, draft.output[:latents])
    if norm is not None:
        deviations.append(_deviation(output, norm.tensors))
    return replace(
        draft,
        squares=draft.squares + sum(d * d for d in deviations),
        count=draft.count + len(deviations),
    )


def _run_on(draft: Draft, seen: Draft, latents: int) -> Draft:
    """Returns what was seen of a draft, with what all that was pending gives for some latents."""
    assert draft.output is not None
    _, output = _run(draft.pending, draft.output[:latents])
    return replace(seen, pending=(), output=output)


def _affordable(draft: Draft, work: float, channels: int | None = None) -> int:
    """Returns how many latents can be pushed through what is pending with so many operations."""
    ops = draft.pending
    if channels is not None:
        ops = _narrowed([op.folded() for op in ops], channels)
    side = draft.shape[1] if len(draft.shape) == 3 else 1
    each = sum(_multiplications(op, side) for op in ops)
    size = math.prod(draft.shape)
    fitting = min(work / (each + _WORK_OF_VALUE * size), _MOST_VALUES / size)
    return min(_LATENTS, max(16, int(fitting) // 2 * 2))


def _multiplications(op: Op, side: int) -> float:
    record = op.record
    nested = sum(_multiplications(inner, side) for inner in (*op.body, *op.shortcut))
    if "inputs" not in record:
        return nested
    area = (side / record.get("stride", 1)) ** 2 if record["op"] != "linear" else 1
    return nested + float(
        record["inputs"] * record["outputs"] * record.get("kernel", 1) ** 2 * area
    )


def _narrowed(pending: Sequence[Op], channels: int) -> tuple[Op, ...]:
    """Returns ops with fewer channels in the last convolution."""
    ops = list(pending)
    index = max((i for i, op in enumerate(ops) if "inputs" in op.record), default=None)
    if index is None or index + 2 < len(ops):
        return tuple(ops)
    op = ops[index]
    transposed = op.record["op"] == "conv-transpose"
    if op.record["op"] == "linear" or "weight" in op.record or op.record["outputs"] <= channels:
        return tuple(ops)
    tensors = {
        name: value.narrow(1 if transposed and name == "weight" else 0, 0, channels)
        for name, value in op.tensors.items()
    }
    ops[index] = replace(op, record={**op.record, "outputs": channels}, tensors=tensors)
    return tuple(ops)


@torch.no_grad()
def _run(ops: Sequence[Op], x: Tensor) -> tuple[list[float], Tensor]:
    """Runs ops in eval mode; returns the deviations at norms within blocks, and what comes out."""
    if not ops:
        return [], x
    module = _build([op.folded() for op in ops])
    deviations: list[float] = []

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        deviations.append(_deviation(inputs[0], dict(norm.named_buffers())))

    for name, op in ways.placed(ops):
        if name.count(".") > 1 and "running_var" in op.tensors:
            module.get_submodule(name).register_forward_pre_hook(observe)
    return deviations, module(x)


def _build(ops: Sequence[Op]) -> nn.Module:
    """Builds the module of ops around their tensors, in eval mode and float32."""
    factory = installed().find("generator-loaders", "layers").resolve()
    with torch.device("meta"):
        module: nn.Module = factory(latent_dim=1, layers=ways.records(ops))
    state = {
        f"{name}.{key}": value.float() if value.is_floating_point() else value
        for name, op in ways.placed(ops)
        for key, value in op.tensors.items()
    }
    module.load_state_dict(state, strict=False, assign=True)
    return module.eval()


def _deviation(x: Tensor, norm: Mapping[str, Tensor]) -> float:
    """Returns how far what a norm sees is from what it remembers, over channels, at most 2.

    The root mean square of (difference of means / standard deviation) and of the relative error of
    the standard deviation; channels that hardly vary are left out.
    """
    mean, variance = norm["running_mean"].float(), norm["running_var"].float()
    maps = x.reshape(len(x), -1, x.shape[-1] * x.shape[-2]) if x.ndim == 4 else x[:, :, None]
    if maps.shape[1] > len(mean) and maps.shape[1] % len(mean) == 0 and x.ndim == 2:
        maps = x.reshape(len(x), len(mean), -1)
    channels = maps.shape[1]
    mean, variance = mean[:channels], variance[:channels].clamp(min=1e-30)
    scale = variance.sqrt()
    # Around what is remembered this is exact enough, and in half the time of torch.var_mean.
    around = maps - mean[:, None]
    shift = around.mean(dim=(0, 2))
    seen = (around.square_().mean(dim=(0, 2)) - shift.square()).clamp(min=0).sqrt()
    squares = (shift / scale).square() + (seen / scale - 1).square()
    squares = squares[variance > 1e-6 * variance.mean()].clamp(max=_WORST**2)
    found = squares.mean().sqrt().item()
    return found if math.isfinite(found) else _WORST


def _report(
    draft: Draft, elements: Sequence[Element], contents: Contents, evidence: _Evidence
) -> Inferred:
    latent_dim = _latent_dim(elements[0])
    assert latent_dim is not None
    assert len(draft.shape) == 3
    last = "sigmoid" if contents.has_encoder else "tanh"
    ops = (*draft.ops, Op({"op": last}))
    rename = {key: f"{name}.{new}" for name, op in ways.placed(ops) for key, new in op.keys.items()}
    rename |= {key: rename[same] for key, same in contents.aliases.items() if same in rename}
    architecture, model_args = "layers", {"latent_dim": latent_dim, "layers": ways.records(ops)}
    simple = _as_dcgan(ops)
    if simple is not None:
        architecture, model_args = "dcgan", {"latent_dim": latent_dim, **simple}
        rename = {key: _one_less(name) for key, name in rename.items()}
    return Inferred(
        architecture,
        model_args,
        latent_dim,
        draft.shape,
        (0.0, 1.0) if last == "sigmoid" else (-1.0, 1.0),
        draft.choices["prior"],
        rename,
        tuple(_facts(draft, elements, contents)),
        tuple(_guesses(draft, elements, contents, evidence, last)),
    )


def _as_dcgan(ops: Sequence[Op]) -> dict[str, Any] | None:
    """Returns the parameters of the component "dcgan" if it is this very network."""
    convs = [op.record for op in ops if op.record["op"] == "conv-transpose"]
    if len(convs) < 2:
        return None
    plain = {"op": "conv-transpose", "kernel": 4, "bias": False, "output_padding": 0}
    expected: list[dict[str, Any]] = [{"op": "reshape", "shape": [convs[0]["inputs"], 1, 1]}]
    for index, conv in enumerate(convs):
        moves = {"stride": 2, "padding": 1} if index else {"stride": 1, "padding": 0}
        sizes = {"inputs": conv["inputs"], "outputs": conv["outputs"]}
        expected.append({**plain, **moves, **sizes})
        if index + 1 < len(convs):
            norm = {"op": "batch-norm", "features": conv["outputs"], "eps": 1e-5, "affine": True}
            expected += [norm, {"op": "relu"}]
    if ways.records(ops) != [*expected, {"op": "tanh"}]:
        return None
    channels = [conv["outputs"] for conv in convs]
    return {"channels": channels[:-1], "image_channels": channels[-1]}


def _one_less(name: str) -> str:
    """The component "dcgan" reshapes without a layer, so its layers count from one less."""
    first, index, rest = name.split(".", 2)
    return f"{first}.{int(index) - 1}.{rest}"


def _facts(draft: Draft, elements: Sequence[Element], contents: Contents) -> list[str]:
    first, last = elements[0].body, elements[-1].body
    weights = sum(isinstance(element.body, Part) for element in elements)
    blocks = len(elements) - weights
    norms = [p for p in contents.parts if p.kind in ("batch-norm", "norm")]
    told = sum(map(ways.has_evidence, norms))
    facts = [
        f"latent size {_latent_dim(elements[0])}: the first weight is {first}",
        f"{draft.shape[0]} image channels: the last weight is {last}"
        if isinstance(last, Part) and last.kind == "conv"
        else f"{math.prod(draft.shape)} values in an image: the last weight is {last}",
        f"{weights} layers with weights"
        + (f" and {blocks} residual blocks" if blocks else "")
        + f", {len(norms)} norms, {told} of them with statistics from training",
    ]
    wrapped = {part.wrapped for part in contents.parts if part.wrapped}
    facts += [f"{kind.replace('-', ' ')} on weights" for kind in sorted(wrapped)]
    facts += [f"left out: {count} tensors of the {what}" for what, count in contents.left_out]
    if contents.aliases:
        facts.append(f"{len(contents.aliases)} tensors stand in the file twice")
    return facts


def _guesses(
    draft: Draft,
    elements: Sequence[Element],
    contents: Contents,
    evidence: _Evidence,
    last: str,
) -> list[str]:
    choices = draft.choices
    other = "normal" if choices["prior"] == "uniform" else "uniform"
    other_prior = f"{other}:{_latent_dim(elements[0])}"
    low, high = (0, 1) if last == "sigmoid" else (-1, 1)
    guesses = [
        f"prior {choices['prior']}: {_why(draft, evidence, 'prior')}; to say otherwise: "
        f"latent='{other_prior}' (--latent {other_prior})",
    ]
    for name in ("activation", "order", "up-sampling", "eps", "block"):
        if name in choices:
            label = "eps of the norms" if name == "eps" else name
            guesses.append(f"{label} {choices[name]}: {_why(draft, evidence, name)}")
    for name, value in choices.items():
        if name.startswith("layer "):
            guesses.append(f"{name}: {value}: {_why(draft, evidence, name)}")
    guesses += _norm_guesses(draft.ops)
    channels, height, width = draft.shape
    shown = f"{channels}x{height}x{width}:{'-1,1' if last == 'sigmoid' else '0,1'}"
    guesses.append(
        f"image size {height}×{width}: it follows from these strides; "
        "28 and powers of two count as usual"
    )
    reason = "decoders of VAEs usually end in it" if last == "sigmoid" else "GANs usually end in it"
    guesses.append(
        f"{last} at the end, image range [{low}, {high}]: {reason}, and no tensor says it"
        f"{_before_last(draft)}; to say otherwise: correct the last layer in model_args, and "
        f"image='{shown}' (--image {shown})"
    )
    return guesses


def _norm_guesses(ops: Sequence[Op]) -> list[str]:
    """Tells of norms whose kind neither names nor shapes show."""
    alike = {
        "instance-norm": "group norm and batch norm without statistics look",
        "layer-norm": "batch norm without statistics looks",
    }
    flat = [inner for op in ops for inner in (op, *op.body, *op.shortcut)]
    kinds = {op.record["op"] for op in flat if len(op.record.get("shape", ())) <= 1}
    return [
        f"{kind.replace('-', ' ')}: by convention; {others} the same; to say otherwise: correct "
        "the norms in model_args, or give the class: architecture=YourClass (--architecture "
        "package.module:YourClass)"
        for kind, others in alike.items()
        if kind in kinds
    ]


def _why(draft: Draft, evidence: _Evidence, name: str) -> str:
    """Returns the evidence for a choice in words and numbers."""
    value = draft.choices[name]
    rivals = evidence.rivals(name, value)
    if not draft.count or not rivals:
        return "by convention; nothing in the file can confirm it"
    own = evidence.deviations[name].get(value, draft.deviation)
    shown = ", ".join(f"{other}: {_percent(deviation)}" for deviation, other in rivals[:3])
    words = f"batch-norm statistics agree to {_percent(own)} ({shown})"
    if own > _AGREEMENT:
        return f"{words}, which is poor: something else differs, too"
    if rivals[0][0] < 1.15 * own + 0.002:
        return f"{words}, too close to tell"
    return words


def _percent(share: float) -> str:
    if share >= _WORST:
        return f"{100 * _WORST:.0f} % or more"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _before_last(draft: Draft) -> str:
    """Describes what goes into the last activation."""
    assert draft.output is not None
    _, values = _run(draft.pending, draft.output[:_SHOWN])
    low, high = torch.quantile(values.flatten()[:100_000], torch.tensor([0.01, 0.99])).tolist()
    return f" (98 % of what enters it lies from {low:.1f} to {high:.1f})"
