"""What the names and shapes in a file of weights say about the network that they belong to."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import LoadError
from pgmkit.loading.checkpoints import natural

_OWN_NAMES = (
    *(f"parametrizations.weight.{name}" for name in ("original", "original0", "original1")),
    *("parametrizations.weight.0._u", "parametrizations.weight.0._v", "weight", "bias"),
    *("running_mean", "running_var", "num_batches_tracked"),
)
_SUFFIXES = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
    "weight_g": "parametrizations.weight.original0",
    **dict(zip(_OWN_NAMES, _OWN_NAMES, strict=True)),
}
"""How a tensor is called in files, and how in a module made by the component "layers"."""

_MOST_PARTS = 300
_MOST_TRIES = 5000
_ENCODER = re.compile(
    r"(encoder\w*|enc\w{0,3}|encode\w*|net_?e|inference_net|prior\w*|"
    r"(fc|linear|lin|to|conv|l)?_?(z_?)?(mu|mean|log_?var|log_?sigma|logstd|var|std|sigma)\d*)",
    re.IGNORECASE,
)
_DISCRIMINATOR = re.compile(r"(discriminator\w*|dis|disc|critic\w*|net_?d\w*|d)", re.IGNORECASE)
_SHORTCUT = re.compile(r"(shortcut|skip|bypass|c_?sc|conv_?s|sc|conv_?res|res_?conv|identity)\w*$")

_FOREIGN = (
    (r"^(G\.)?synthesis\.b\d+\.|^(G\.)?mapping\.fc\d+\.", "StyleGAN2 of NVIDIA's code"),
    (r"^(G\.)?(synthesis|mapping)\.", "a StyleGAN of NVIDIA's code"),
    (r"conv\.modulation\.|to_rgbs?\.\d+\.conv", "StyleGAN2 in rosinality's code"),
    (r"(^|\.)(to_style|style_mapping|adain\w*)\b", "a StyleGAN"),
    (r"\.(gain|bn\d)\.(gain|bias)\.weight|^shared\.", "BigGAN, whose norms depend on a class"),
    (r"(in_proj_weight|to_qkv|attn|attention|q_proj|query|\.qkv\.)", "a network with attention"),
    (r"(^|\.)transformer\b|pos_embed|position_embedding", "a transformer"),
    (r"mid_block|post_quant_conv|up_blocks\.\d+\.resnets", "an autoencoder of diffusers"),
    (r"(label|class)_?emb\w*|(^|\.)embed\w*\.weight", "a conditional generator (it embeds labels)"),
    (r"weight_(ih|hh)_l\d", "a recurrent network"),
)


@dataclass(frozen=True)
class Part:
    """One module with tensors of its own.

    Args:
        path: its name in the file, such as "main.0".
        kind: "linear", "conv", "batch-norm", "norm" or "prelu".
        shape: that of the weight as it is applied.
        tensors: by their names in a module of the component "layers".
        keys: name in the file -> the same names.
        wrapped: what `weight` of a record says: None, "spectral-norm" or "weight-norm".
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    keys: Mapping[str, str] = field(repr=False)
    wrapped: str | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it mixes channels."""
        return self.kind in ("linear", "conv")

    @property
    def features(self) -> int:
        """The channels of a norm."""
        return self.shape[0]

    @property
    def weight_dim(self) -> int | None:
        """The dimension that a norm of the weight keeps, or None for torch's own choice."""
        if self.wrapped == "weight-norm":
            magnitudes = self.tensors["parametrizations.weight.original0"].shape
            kept = [dim for dim, size in enumerate(magnitudes) if size > 1]
            return kept[0] if kept else (0 if len(magnitudes) == len(self.shape) else -1)
        vector = len(self.tensors["parametrizations.weight.0._u"])
        fitting = [dim for dim in (0, 1) if self.shape[dim] == vector]
        return fitting[0] if len(fitting) == 1 else None

    @cached_property
    def applied(self) -> Tensor | None:
        """The weight as its norm makes it; None without one, or if its tensors do not fit."""
        try:
            return _applied(self)
        except (KeyError, RuntimeError, IndexError):
            return None

    @property
    def has_statistics(self) -> bool:
        """Whether it holds the mean and the variance of what it saw in training."""
        return "running_var" in self.tensors

    def sides(self) -> set[tuple[int, int, bool]]:
        """Returns what (inputs, outputs, transposed) its weight can be; the shape leaves two."""
        if self.kind == "linear":
            return {(self.shape[1], self.shape[0], False)}
        found = {(self.shape[1], self.shape[0], False), (self.shape[0], self.shape[1], True)}
        if "bias" in self.tensors:
            found = {s for s in found if s[1] == len(self.tensors["bias"])}
        return found

    def __str__(self) -> str:
        return f"{self.path} {self.shape}"


@dataclass(frozen=True)
class Block:
    """A residual block: its convolutions in order, its norms, and what stands on the shortcut."""

    path: str
    convs: tuple[Part, ...]
    norms: tuple[Part, ...]
    shortcut: Part | None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them."""
        return (*self.convs, *self.norms, *((self.shortcut,) if self.shortcut else ()))

    def inputs(self) -> set[int]:
        """Returns how many channels it can take."""
        inputs = {i for i, _, _ in self.convs[0].sides()}
        return inputs & {i for i, _, _ in (self.shortcut or self.convs[0]).sides()}


@dataclass(frozen=True)
class Element:
    """A weight or a block, with the norm that follows it.

    Args:
        body: a weight or a block.
        norm: the norm after it.
        prelu: an activation with a parameter after it.
        before_norm: modules without tensors between the weight and its norm, if the names tell.
        before_next: such modules between this element and the next, if the names tell.
    """

    body: Part | Block
    norm: Part | None = None
    prelu: Part | None = None
    before_norm: int | None = None
    before_next: int | None = None


@dataclass(frozen=True)
class Contents:
    """The parts of the generator in a file.

    Args:
        parts: in the order of the file.
        aliases: key in the file -> key of an equal tensor that stands for it.
        left_out: what was taken for something else, as (what, number of tensors).
        has_encoder: whether an encoder was among it.
    """

    parts: tuple[Part, ...]
    aliases: Mapping[str, str]
    left_out: tuple[tuple[str, int], ...]
    has_encoder: bool


def read_parts(state: Mapping[str, Tensor]) -> Contents:
    """Groups tensors into parts and leaves out what is no generator.

    Raises:
        LoadError: there is nothing, something that is no stack of layers, or no generator.
    """
    if not state:
        raise LoadError("the file holds no tensors; name the entry that holds the generator's")
    groups: dict[str, dict[str, str]] = {}
    strange = []
    for name in state:
        path, suffix = _split(name)
        if suffix is None:
            strange.append(name)
        else:
            groups.setdefault(path, {})[suffix] = name
    kept, left_out = _without_others(groups, strange)
    foreign = _foreign(
        [*itertools.chain.from_iterable(g.values() for g in kept.values()), *strange]
    )
    strange = [name for name in strange if not _is_other(name)]
    parts = [part for path, group in kept.items() if (part := _part(path, group, state, strange))]
    if foreign:
        raise LoadError(refusal(f"these look like {foreign}", parts))
    if strange:
        what = f"{strange[0]} {tuple(state[strange[0]].shape)}"
        raise LoadError(refusal(f"the tensor {what} is of no layer that is known here", parts))
    if not any(part.is_weight for part in parts):
        raise LoadError(refusal("there is no layer of a generator among the tensors", parts))
    if len(parts) > _MOST_PARTS:
        raise LoadError(refusal(f"{len(parts)} layers are more than such a stack has", parts))
    parts, aliases = _without_copies(parts)
    parts, encoder = _after_bottleneck(parts)
    if encoder:
        left_out.append(("encoder", encoder))
    has_encoder = any(what == "encoder" for what, _ in left_out)
    return Contents(tuple(parts), aliases, tuple(left_out), has_encoder)


def refusal(reason: str, parts: Iterable[Part]) -> str:
    """Returns a message: the reason, the layers that were seen, and what to do."""
    seen = [str(part) for part in parts]
    shown = ", ".join([*seen[:8], *(["..."] if len(seen) > 9 else []), *seen[8:][-1:]])
    return (
        f"the architecture cannot be inferred: {reason} (layers seen: {shown or 'none'}); "
        "pass the network's class: architecture=YourClass, or on the command line "
        "--architecture package.module:YourClass"
    )


def arrangements(parts: Sequence[Part]) -> list[list[Element]]:
    """Returns in which orders, and with which residual blocks, the parts may form a network.

    The order of the file comes first, unless it is that of sorted names; then that of the numbers
    in the names, then others in which the channels fit; for each, blocks that the names tell, then
    a plain stack.
    """
    found: list[list[Element]] = []
    for ordered in _orders(parts):
        for bodies, norms, prelus in _readings(ordered):
            elements = _assemble(ordered, bodies, norms, prelus)
            if elements is not None and fits(elements) and elements not in found:
                found.append(elements)
        if found:
            break
    return found


def is_registered(parts: Sequence[Part]) -> bool:
    """Returns whether parts stand as a network registers them, and not in the order of names."""
    paths = [part.path for part in parts]
    names = [list(part.tensors) for part in parts if {"weight", "bias"} <= part.tensors.keys()]
    biases_first = any(name.index("bias") < name.index("weight") for name in names)
    return paths != sorted(paths) and not biases_first


def reorderings(elements: Sequence[Element]) -> Iterator[list[Element]]:
    """Yields the other orders in which the channels fit, and which no number in a name forbids."""
    paths = [element.body.path for element in elements]
    before = [{i for i, p in enumerate(paths) if _number_order(p, path) < 0} for path in paths]
    tries = itertools.count()

    def grown(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == len(paths):
            yield order
            return
        for index in range(len(paths)):
            free = index not in order and before[index] <= set(order)
            if free and next(tries) < _MOST_TRIES and fits([elements[i] for i in (*order, index)]):
                yield from grown((*order, index))

    for order in grown(()):
        if list(order) != sorted(order):
            placed = [elements[index] for index in order]
            gaps = itertools.zip_longest(placed, placed[1:])
            yield [_with_gaps(element, after) for element, after in gaps]


def unordered(elements: Sequence[Element]) -> tuple[Part, Part] | None:
    """Returns two parts that could change places within or behind the elements, if names allow."""
    blocks = [element.body for element in elements if isinstance(element.body, Block)]
    for parts in (parts for block in blocks for parts in (block.convs, block.norms)):
        for one, other in itertools.combinations(parts, 2):
            if one.shape == other.shape and not _number_order(one.path, other.path):
                return one, other
    owned = [(element.body.path, element.norm) for element in elements if element.norm]
    for (owner, one), (other_owner, other) in itertools.combinations(owned, 2):
        alike = one.shape == other.shape and one.kind == other.kind
        if alike and not _number_order(one.path, other.path):
            near = _shared(one.path, owner) > _shared(one.path, other_owner)
            if not near and _shared(other.path, other_owner) <= _shared(other.path, owner):
                return one, other
    return None


def _shared(one: str, other: str) -> int:
    """Returns with how many equal characters two names begin and end."""
    ends = zip(one, other, strict=False), zip(one[::-1], other[::-1], strict=False)
    return sum(len([*itertools.takewhile(lambda pair: pair[0] == pair[1], end)]) for end in ends)


def _number_order(one: str, other: str) -> int:
    """Returns -1 or 1 where the first difference of two names is a number, 0 where it is a word."""
    for mine, others in zip(natural(one), natural(other), strict=False):
        if mine != others:
            is_number = isinstance(mine[1], int) and isinstance(others[1], int)
            return (-1 if mine < others else 1) if is_number else 0
    return 0


def fits(elements: Sequence[Element]) -> bool:
    """Returns whether the channels of the elements can follow each other."""
    sizes: set[int] | None = None
    flat = False
    for element in elements:
        body = element.body
        if isinstance(body, Block):
            starts = {i for i in body.inputs() if any(_enters(c, i, flat) for c in sizes or ())}
            sizes, flat = {o for i in starts for o in _block_outputs(body, i)}, False
        else:
            linear = body.kind == "linear"
            if linear and sizes is not None and not flat:
                return False
            sides = {
                (i, o)
                for i, o, _ in body.sides()
                if sizes is None or any(_enters(size, i, flat and not linear) for size in sizes)
            }
            sizes, flat = {o for _, o in sides}, linear
        if element.norm is not None:
            features = element.norm.features
            sizes = {s for s in sizes if s == features or (flat and s % features == 0)}
        if not sizes:
            return False
    return True


def _block_outputs(block: Block, channels: int) -> set[int]:
    sizes = {channels}
    for conv in block.convs:
        sizes = {o for i, o, _ in conv.sides() if i in sizes}
    if block.shortcut is None:
        return sizes & {channels}
    return sizes & {o for i, o, _ in block.shortcut.sides() if i == channels}


def _enters(size: int, inputs: int, reshaped: bool) -> bool:
    if not reshaped:
        return size == inputs
    side = round((size / inputs) ** 0.5)
    return bool(inputs * side * side == size)


def _split(name: str) -> tuple[str, str | None]:
    for suffix in _SUFFIXES:
        if name == suffix or name.endswith(f".{suffix}"):
            return name[: -len(suffix)].rstrip("."), suffix
    return name, None


def _part(
    path: str, group: Mapping[str, str], state: Mapping[str, Tensor], strange: list[str]
) -> Part | None:
    """Makes a part of the tensors under one path; those that are of none go to `strange`."""
    keys = {name: _SUFFIXES[suffix] for suffix, name in group.items()}
    if "weight_g" in group and "weight_v" in group:
        keys[group["weight_v"]] = "parametrizations.weight.original1"
    tensors = {new: state[name] for name, new in keys.items()}
    kind: str | None
    wrapped, weight = None, tensors.get("weight")
    if "parametrizations.weight.original" in tensors:
        wrapped, weight = "spectral-norm", tensors["parametrizations.weight.original"]
    elif "parametrizations.weight.original1" in tensors:
        wrapped, weight = "weight-norm", tensors["parametrizations.weight.original1"]
    if "running_var" in tensors and "running_mean" in tensors:
        kind, shape = "batch-norm", tuple(tensors["running_var"].shape)
    elif weight is None:
        strange.extend(keys)
        return None
    else:
        shape = tuple(weight.shape)
        kind = _kind(shape, "bias" in tensors)
    if kind is None or 0 in shape:
        strange.extend(keys)
        return None
    return Part(path, kind, shape, tensors, keys, wrapped)


def _applied(part: Part) -> Tensor | None:
    if part.wrapped is None:
        return None
    values = [value.float() for key, value in part.tensors.items() if key != "bias"]
    named = dict(zip((k for k in part.tensors if k != "bias"), values, strict=True))
    if part.wrapped == "weight-norm":
        direction = named["parametrizations.weight.original1"]
        length = named["parametrizations.weight.original0"]
        dims = [dim for dim in range(direction.ndim) if length.ndim and length.shape[dim] == 1]
        norm = torch.linalg.vector_norm(direction, dim=dims or None, keepdim=True)
        weight: Tensor = direction * length / norm
        return weight
    weight = named["parametrizations.weight.original"]
    kept = part.weight_dim or 0
    flat = weight.transpose(0, kept).flatten(1)
    u, v = named["parametrizations.weight.0._u"], named["parametrizations.weight.0._v"]
    return weight / torch.dot(u, flat @ v)


def _kind(shape: tuple[int, ...], has_bias: bool) -> str | None:
    if len(shape) == 4 and shape[2] == shape[3]:
        return "conv"
    if len(shape) == 2:
        return "linear"
    if len(shape) == 1 and not has_bias:
        return "prelu"
    return "norm" if len(shape) in (1, 3) and has_bias else None


def _is_other(name: str) -> str | None:
    """Returns what else than a generator the first names on a path speak of."""
    for token in name.split(".")[:2]:
        if _ENCODER.fullmatch(token):
            return "encoder"
        if _DISCRIMINATOR.fullmatch(token):
            return "discriminator"
    return None


def _without_others(
    groups: Mapping[str, dict[str, str]], strange: Sequence[str]
) -> tuple[dict[str, dict[str, str]], list[tuple[str, int]]]:
    """Leaves out encoders and discriminators, unless nothing else is there."""
    what = {path: _is_other(path) for path in groups}
    kept = {path: group for path, group in groups.items() if what[path] is None}
    if not kept:
        return dict(groups), []
    counts: dict[str, int] = {}
    for path in groups:
        other = what[path]
        if other is not None:
            counts[other] = counts.get(other, 0) + len(groups[path])
    return kept, list(counts.items())


def _foreign(names: Sequence[str]) -> str | None:
    for pattern, what in _FOREIGN:
        if any(re.search(pattern, name) for name in names):
            return what
    return None


def _without_copies(parts: Sequence[Part]) -> tuple[list[Part], dict[str, str]]:
    """Drops weights that stand twice in the file, under the name of a class and in a sequence."""
    kept: list[Part] = []
    aliases: dict[str, str] = {}
    for part in parts:
        for index, other in enumerate(kept):
            if part.is_weight and _are_equal(part, other):
                by_name = {new: name for name, new in part.keys.items()}
                aliases |= {name: by_name[new] for name, new in other.keys.items()}
                del kept[index]
                break
        kept.append(part)
    return kept, aliases


def _are_equal(one: Part, other: Part) -> bool:
    if one.shape != other.shape or one.tensors.keys() != other.tensors.keys():
        return False
    return all(torch.equal(value, other.tensors[new]) for new, value in one.tensors.items())


def _after_bottleneck(parts: Sequence[Part]) -> tuple[list[Part], int]:
    """Cuts off the encoder of a VAE: mean and log-variance are two equal layers in a row."""
    weights = [part for part in parts if part.is_weight]
    for first, second, after in zip(weights, weights[1:], weights[2:], strict=False):
        outputs = first.shape[0]
        narrow = first.shape == second.shape and outputs < first.shape[1]
        if narrow and first.kind == "linear" and any(i == outputs for i, _, _ in after.sides()):
            index = list(parts).index(second) + 1
            return list(parts[index:]), sum(len(part.keys) for part in parts[:index])
    return list(parts), 0


def _orders(parts: Sequence[Part]) -> Iterable[list[Part]]:
    if is_registered(parts):
        yield list(parts)
    by_number = sorted(parts, key=lambda part: natural(part.path))
    yield by_number
    stems: dict[str, list[Part]] = {}
    for part in by_number:
        stems.setdefault(_stem(part.path), []).append(part)
    if len(stems) <= 6:
        for permutation in itertools.permutations(stems.values()):
            yield list(itertools.chain.from_iterable(permutation))


def _stem(path: str) -> str:
    """Returns the name without numbers of the highest module that differs between parts."""
    return re.sub(r"\d+", "", path.split(".")[0])


Reading = tuple[list[Part | Block], list[Part], list[Part]]


def _readings(ordered: Sequence[Part]) -> Iterable[Reading]:
    """Yields the weights and blocks, the norms outside of blocks and the PReLUs."""
    for blocks in _block_sets(ordered):
        inside = {id(part): block for block in blocks for part in block.parts}
        bodies: list[Part | Block] = []
        for part in ordered:
            block = inside.get(id(part))
            if block is not None and block not in bodies:
                bodies.append(block)
            elif block is None and part.is_weight:
                bodies.append(part)
        outside = [part for part in ordered if id(part) not in inside]
        norms = [part for part in outside if part.kind in ("norm", "batch-norm")]
        yield bodies, norms, [part for part in outside if part.kind == "prelu"]


def _block_sets(ordered: Sequence[Part]) -> Iterable[list[Block]]:
    families: dict[tuple[str, ...], dict[str, list[Part]]] = {}
    for part in ordered:
        tokens = part.path.split(".")
        for depth in range(1, len(tokens)):
            prefix = ".".join(tokens[:depth])
            if prefix[-1].isdigit():
                family = (re.sub(r"\d+$", "", prefix), str(depth))
                families.setdefault(family, {}).setdefault(prefix, []).append(part)
    for members in families.values():
        blocks = [block for prefix, inside in members.items() if (block := _block(prefix, inside))]
        if blocks and (len(blocks) > 1 or blocks[0].shortcut is not None):
            yield blocks
    yield []


def _block(prefix: str, inside: Sequence[Part]) -> Block | None:
    convs = [part for part in inside if part.kind == "conv"]
    norms = [part for part in inside if part.kind in ("norm", "batch-norm")]
    if len(convs) + len(norms) < len(inside):
        return None
    named = [
        part
        for part in convs
        if any(map(_SHORTCUT.match, part.path.removeprefix(prefix).split(".")))
    ]
    small = [part for part in convs if part.shape[2] == 1]
    shortcut = next(iter(named or small), None) if len(convs) > 2 or named else None
    main = tuple(part for part in convs if part is not shortcut)
    if not 1 <= len(main) <= 3 or (len(main) == 1 and shortcut is None):
        return None
    return Block(prefix, main, tuple(norms), shortcut)


def _assemble(
    ordered: Sequence[Part], bodies: Sequence[Part | Block], norms: Sequence[Part], prelus: Any
) -> list[Element] | None:
    """Gives each norm to the weight or block before it, or else, by order, to one that it fits."""
    place = {id(part): index for index, part in enumerate(ordered)}
    ends = [
        max(place[id(p)] for p in body.parts) if isinstance(body, Block) else place[id(body)]
        for body in bodies
    ]
    owners = [
        max((i for i, end in enumerate(ends) if end < place[id(n)]), default=-1) for n in norms
    ]
    known = len(set(owners)) == len(owners) and -1 not in owners
    if not known or not all(_norm_fits(bodies[o], n) for o, n in zip(owners, norms, strict=True)):
        given = _match(bodies, norms)
        if given is None:
            return None
        owners = given
    elements = [Element(body) for body in bodies]
    for norm, owner in zip(norms, owners, strict=True):
        elements[owner] = replace(elements[owner], norm=norm)
    for prelu in prelus:
        owner = max((i for i, end in enumerate(ends) if end < place[id(prelu)]), default=-1)
        if owner < 0 or elements[owner].prelu is not None:
            return None
        elements[owner] = replace(elements[owner], prelu=prelu)
    return [
        _with_gaps(element, after)
        for element, after in itertools.zip_longest(elements, elements[1:])
    ]


def _outputs(body: Part | Block) -> tuple[bool, set[int]]:
    last = body.convs[-1] if isinstance(body, Block) else body
    return last.kind == "linear", {o for _, o, _ in last.sides()}


def _norm_fits(body: Part | Block, norm: Part) -> bool:
    flat, outputs = _outputs(body)
    return norm.features in outputs or (flat and any(o % norm.features == 0 for o in outputs))


def _match(bodies: Sequence[Part | Block], norms: Sequence[Part]) -> list[int] | None:
    owners: list[int] = []
    for norm in norms:
        start = owners[-1] + 1 if owners else 0
        fitting = (i for i in range(start, len(bodies)) if _norm_fits(bodies[i], norm))
        owner = next(fitting, None)
        if owner is None:
            return None
        owners.append(owner)
    return owners


def _with_gaps(element: Element, after: Element | None) -> Element:
    last = element.body.path
    before_norm = None
    if element.norm is not None:
        before_norm = _gap(last, element.norm.path)
        last = element.norm.path
    before_next = _gap(last, after.body.path) if after is not None else None
    if element.prelu is not None:
        before_next = None
    return replace(element, before_norm=before_norm, before_next=before_next)


def _gap(one: str, other: str) -> int | None:
    """Returns how many modules without tensors stand between two of one sequence."""
    parent, _, index = one.rpartition(".")
    other_parent, _, other_index = other.rpartition(".")
    if parent != other_parent or not (index.isdigit() and other_index.isdigit()):
        return None
    gap = int(other_index) - int(index) - 1
    return gap if gap >= 0 else None
