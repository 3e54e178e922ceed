"""Drafts of a network: what a stack of weights and norms may be, step by step.

Weights say what they mix, not how: activations, strides, up-sampling, eps and the order of norm and
activation leave no tensor. A draft is one way to fill them in; each way has a cost, which is 0
where it follows the usual convention.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pgmkit.loading.inference.parts import Block, Element, Part

ACTIVATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "ReLU": ({"op": "relu"}, 0.0),
    "LeakyReLU 0.2": ({"op": "leaky-relu", "slope": 0.2}, 0.2),
    "LeakyReLU 0.01": ({"op": "leaky-relu", "slope": 0.01}, 0.3),
    "LeakyReLU 0.1": ({"op": "leaky-relu", "slope": 0.1}, 0.6),
    "ELU": ({"op": "elu"}, 0.7),
    "SELU": ({"op": "selu"}, 0.9),
    "GELU": ({"op": "gelu"}, 0.8),
    "SiLU": ({"op": "silu"}, 0.8),
    "tanh": ({"op": "tanh"}, 1.0),
}
"""Each activation with its record and its cost."""

_EPS = {1e-5: 0.0, 0.8: 0.5, 1e-3: 1.0}
_UPSAMPLING: dict[str, tuple[dict[str, Any], float]] = {
    "nearest": ({"op": "upsample", "factor": 2, "mode": "nearest"}, 0.0),
    "bilinear": ({"op": "upsample", "factor": 2, "mode": "bilinear"}, 0.5),
    "bilinear with aligned corners": (
        {"op": "upsample", "factor": 2, "mode": "bilinear", "align_corners": True},
        0.8,
    ),
}
_LARGEST_SIDE = 512
_NORM_FIRST = "norm, then activation"
_NORM_LAST = "activation, then norm"
_POST_NORM = "norm after each convolution"
_DECONVOLUTION = ("deconv", "tconv", "convt", "conv_t", "transp", "upconv")


@dataclass(frozen=True)
class Op:
    """One record of the component "layers", with the tensors that belong into it.

    Args:
        record: the record without what is nested.
        tensors: by their names in that layer.
        keys: name in the file -> name in that layer.
        body: for a residual block.
        shortcut: for a residual block.
        applied: the weight as spectral or weight norm make it.
    """

    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: tuple["Op", ...] = ()
    shortcut: tuple["Op", ...] = ()
    applied: Tensor | None = field(default=None, repr=False)

    def folded(self) -> "Op":
        """Returns an op that does the same, with its norms of weights worked out."""
        body = tuple(op.folded() for op in self.body)
        shortcut = tuple(op.folded() for op in self.shortcut)
        if self.applied is None:
            return replace(self, body=body, shortcut=shortcut)
        record = {k: v for k, v in self.record.items() if k not in ("weight", "weight_dim")}
        bias = {k: v for k, v in self.tensors.items() if k == "bias"}
        return Op(record, {"weight": self.applied, **bias})


@dataclass(frozen=True)
class Draft:
    """The network as far as it is filled in.

    Args:
        ops: from the latents on.
        shape: of what comes out, without the batch: (F,) or (C, H, W).
        choices: what was chosen where the file says nothing.
        cost: how far that is from what is usual.
        acted: whether the activation stands already, before the norm that follows.
        pending: the last of `ops`, which have not been run.
        output: what the ops before `pending` give for the trial latents.
        squares: sum of the squared deviations from the statistics of norms.
        count: how many norms that is.
    """

    ops: tuple[Op, ...]
    shape: tuple[int, ...]
    choices: Mapping[str, str]
    cost: float = 0.0
    acted: bool = False
    pending: tuple[Op, ...] = ()
    output: Tensor | None = field(default=None, repr=False)
    squares: float = 0.0
    count: int = 0

    @property
    def deviation(self) -> float:
        """Root mean square over norms; 0 without any."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0

    def then(self, piece: "Piece") -> "Draft":
        """Returns the draft with more behind it."""
        return replace(
            self,
            ops=(*self.ops, *piece.ops),
            shape=piece.shape,
            choices={**self.choices, **piece.choices},
            cost=self.cost + piece.cost,
            acted=piece.acted,
            pending=(*self.pending, *piece.ops),
        )


@dataclass(frozen=True)
class Piece:
    """A way to go on: some ops, the shape behind them, and what was chosen at which cost."""

    ops: tuple[Op, ...]
    shape: tuple[int, ...]
    choices: Mapping[str, str] = field(default_factory=dict)
    cost: float = 0.0
    acted: bool = False


def records(ops: Sequence[Op]) -> list[dict[str, Any]]:
    """Returns the records that build ops, as they stand in `model_args`."""
    return [
        {**op.record, "body": records(op.body), "shortcut": records(op.shortcut)}
        if op.record["op"] == "residual"
        else dict(op.record)
        for op in ops
    ]


def placed(ops: Sequence[Op], prefix: str = "layers") -> Iterator[tuple[str, Op]]:
    """Yields each op that holds tensors, with its name in the module that the records build."""
    for index, op in enumerate(ops):
        name = f"{prefix}.{index}"
        if op.tensors:
            yield name, op
        yield from placed(op.body, f"{name}.body")
        yield from placed(op.shortcut, f"{name}.shortcut")


def continuations(draft: Draft, before: Element | None, element: Element) -> Iterator[Draft]:
    """Yields the draft with `element` behind it, in each way that its shapes allow.

    Args:
        draft: ends with the weight or block of `before`.
        before: None at the start.
        element: what comes next; its norm is left for the next step.
    """
    body = element.body
    sides = (
        sorted(body.sides()) if isinstance(body, Part) else [(i, 0, False) for i in body.inputs()]
    )
    for inputs, outputs, transposed in sides:
        last = element.norm is None and outputs <= 4
        absent = 0.0 if last else 0.6
        upsamples = isinstance(body, Part) and body.kind == "conv" and not transposed
        for joint in _joints(draft, before, body, inputs, absent if upsamples else None):
            joined = draft.then(joint)
            for piece in _bodies(joined, body, outputs, transposed, last):
                if piece.shape[-1] > _LARGEST_SIDE and len(piece.shape) == 3:
                    continue
                for end in _ends(piece, joined.choices, element):
                    yield joined.then(end)


def closing(draft: Draft, last: Element) -> Draft | None:
    """Returns the draft with the last norm, reshaped to an image, or None if it makes none."""
    if last.norm is not None:
        draft = draft.then(Piece((norm_op(last.norm, 1e-5, draft.shape),), draft.shape))
    shape = draft.shape if len(draft.shape) == 3 else _image_shape(draft.shape[0])
    if shape is None or shape[0] > 4 or shape[1] < 4:
        return None
    ops = () if len(draft.shape) == 3 else (_reshape(shape),)
    return draft.then(Piece(ops, shape, cost=_implausible(shape[1])))


def norm_op(part: Part, eps: float, shape: tuple[int, ...]) -> Op:
    """Returns the op of a norm of what has a shape, without the batch."""
    affine = "weight" in part.tensors
    if part.kind == "batch-norm":
        record = {"op": "batch-norm", "features": part.features, "eps": eps, "affine": affine}
    elif len(part.shape) == 3 or shape == part.shape:
        record = {"op": "layer-norm", "shape": list(part.shape), "eps": eps}
    else:
        record = {"op": "instance-norm", "features": part.features, "eps": eps, "affine": affine}
    return Op(record, part.tensors, part.keys)


def _joints(
    draft: Draft, before: Element | None, body: Part | Block, inputs: int, not_up: float | None
) -> Iterator[Piece]:
    """Yields what may stand between two weights: norm, activation, reshape, up-sampling."""
    to_maps = not (isinstance(body, Part) and body.kind == "linear")
    if before is None:
        if inputs != draft.shape[0]:
            return
        shape: tuple[int, ...] = (inputs, 1, 1) if to_maps else (inputs,)
        yield Piece((_reshape(shape),) if to_maps else (), shape)
        return
    entered = _entered(draft.shape, inputs, to_maps)
    if entered is None:
        return
    reshaped = len(draft.shape) != len(entered)
    early = before.norm is not None and before.norm.features != draft.shape[0]
    for act, act_choice, act_cost in _activations(draft, before, body):
        for up, up_choice, up_cost in _upsamplings(draft, not_up):
            # A block may end in an activation that is no module of the sequence around it.
            inside = isinstance(before.body, Block) and before.norm is None
            spent = _gap_cost(before, [act and not inside, up, reshaped and not early])
            if spent is None:
                continue
            cost = act_cost + spent + (up_cost if up or before.before_next is None else 0.0)
            for norm, eps_choice, eps_cost in _norms(draft, before.norm):
                ops = [norm, act]
                if reshaped:
                    ops.insert(0 if early else 2, _reshape(entered))
                scale = 2 if up else 1
                yield Piece(
                    tuple(op for op in [*ops, up] if op is not None),
                    (entered[0], *(scale * side for side in entered[1:])),
                    {**act_choice, **up_choice, **eps_choice},
                    cost + eps_cost,
                )


def _entered(shape: tuple[int, ...], inputs: int, to_maps: bool) -> tuple[int, ...] | None:
    """Returns the shape in which the next weight takes what comes, or None if it cannot."""
    if len(shape) == 3 or not to_maps:
        return shape if shape[0] == inputs and (len(shape) == 3) == to_maps else None
    side = round((shape[0] / inputs) ** 0.5)
    return (inputs, side, side) if inputs * side * side == shape[0] else None


def _gap_cost(before: Element, modules: Sequence[Any]) -> float | None:
    """Returns the cost of modules in a gap of known size, or None if there are too many."""
    if before.before_next is None:
        return 0.0
    unused = before.before_next - sum(bool(module) for module in modules)
    return 0.4 * unused if unused >= 0 else None


def _activations(
    draft: Draft, before: Element, body: Part | Block
) -> Iterator[tuple[Op | None, dict[str, str], float]]:
    """Yields activations between two weights, None among them."""
    if draft.acted:
        yield None, {}, 0.0
        return
    if before.prelu is not None:
        prelu = before.prelu
        record = {"op": "prelu", "features": prelu.features}
        yield Op(record, prelu.tensors, prelu.keys), {}, 0.0
        return
    between = isinstance(body, Block) and draft.choices.get("block") != _POST_NORM
    to_maps = len(draft.shape) == 1 and not (isinstance(body, Part) and body.kind == "linear")
    absent = 0.0 if between else 0.3 if to_maps and before.norm is None else 1.0
    yield None, {}, absent
    for op, choice, cost in _acts(draft.choices):
        yield op, choice, cost + 0.5 * between


def _acts(choices: Mapping[str, str]) -> Iterator[tuple[Op, dict[str, str], float]]:
    chosen = choices.get("activation")
    for name, (record, cost) in ACTIVATIONS.items():
        if chosen in (None, name):
            yield Op(record), {"activation": name}, 0.0 if chosen else cost


def _upsamplings(
    draft: Draft, absent: float | None
) -> Iterator[tuple[Op | None, dict[str, str], float]]:
    """Yields ways of up-sampling; `absent` is the cost of none, or None where there can be none."""
    yield None, {}, absent or 0.0
    chosen = draft.choices.get("up-sampling")
    for name, (record, cost) in _UPSAMPLING.items() if absent is not None else ():
        if chosen in (None, name):
            extra = 0.0 if absent else 0.6
            yield Op(record), {"up-sampling": name}, extra + (0.0 if chosen else cost)


def _norms(draft: Draft, norm: Part | None) -> Iterator[tuple[Op | None, dict[str, str], float]]:
    if norm is None:
        yield None, {}, 0.0
        return
    for eps, cost in _eps(draft, [norm]):
        yield norm_op(norm, eps, draft.shape), {"eps": f"{eps:g}"}, cost


def _eps(draft: Draft, norms: Sequence[Part]) -> Iterator[tuple[float, float]]:
    """Yields values of eps with their costs; norms usually have that of the norm before."""
    if not any(map(has_evidence, norms)):
        yield 1e-5, 0.0
        return
    chosen = draft.choices.get("eps")
    for eps, cost in _EPS.items():
        yield eps, 0.0 if chosen == f"{eps:g}" else cost if chosen is None else cost + 0.5


def has_evidence(norm: Part) -> bool:
    """Returns whether a norm holds statistics that are not those it was made with."""
    if not norm.has_statistics:
        return False
    mean, variance = norm.tensors["running_mean"], norm.tensors["running_var"]
    return bool((mean != 0).any() or (variance != 1).any())


def _bodies(
    draft: Draft, body: Part | Block, outputs: int, transposed: bool, last: bool
) -> Iterator[Piece]:
    if isinstance(body, Block):
        yield from _blocks(draft, body)
    elif body.kind == "linear":
        yield Piece((_weight_op(body, "linear", outputs, {}),), (outputs,))
    else:
        side = draft.shape[1]
        ways = _transposed if transposed else _straight
        doubt = _doubt(body, transposed) if len(body.sides()) > 1 else 0.0
        for moves, size, cost in ways(body.shape[2], side, last):
            op = _weight_op(body, "conv-transpose" if transposed else "conv", outputs, moves)
            said = "transposed convolution" if transposed else "convolution"
            choices = {f"layer {body.path}": f"{said}, {_moves_text(moves)}"}
            yield Piece((op,), (outputs, size, size), choices, cost + doubt)


def _moves_text(moves: Mapping[str, int]) -> str:
    said = {name: value for name, value in moves.items() if value or name == "padding"}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())


def _doubt(part: Part, transposed: bool) -> float:
    """Returns the cost of reading a weight with as many inputs as outputs in one of two ways."""
    if any(word in part.path.lower() for word in _DECONVOLUTION):
        return 0.0 if transposed else 1.5
    if part.shape[2] % 2 == 0:
        return 0.0 if transposed else 1.5
    return 0.7 if transposed else 0.0


def _weight_op(part: Part, op: str, outputs: int, moves: Mapping[str, int]) -> Op:
    shape = part.shape
    inputs = shape[0] if op == "conv-transpose" else shape[1]
    record: dict[str, Any] = {"op": op, "inputs": inputs, "outputs": outputs}
    if op != "linear":
        record |= {"kernel": shape[2], **moves}
    record["bias"] = "bias" in part.tensors
    if part.wrapped:
        record |= {"weight": part.wrapped, "weight_dim": part.weight_dim}
    return Op(record, part.tensors, part.keys, applied=part.applied)


Moves = tuple[dict[str, int], int, float]


def _straight(kernel: int, side: int, last: bool) -> Iterator[Moves]:
    """Yields stride, padding, side and cost of a convolution."""
    for padding in range(kernel // 2 + 1):
        size = side + 2 * padding - kernel + 1
        if size >= 1:
            cost = 0.0 if size == side else 2.5 if padding == 0 else 3.0
            yield {"stride": 1, "padding": padding}, size, cost


def _transposed(kernel: int, side: int, last: bool) -> Iterator[Moves]:
    """Yields stride, padding, output padding, side and cost of a transposed convolution."""
    if kernel == 1 and last and side == 32:
        # The MNIST variant of the 32-pixel DCGAN crops its last 32×32 maps to 28×28 like this.
        yield {"stride": 1, "padding": 2, "output_padding": 0}, 28, -0.5
    for stride in (1, 2, 4) if kernel >= 8 else (1, 2):
        for padding in range((kernel - 1) // 2 + 1 if kernel > 1 else 1):
            for extra in range(2 if stride > 1 and kernel % 2 else 1):
                size = (side - 1) * stride - 2 * padding + kernel + extra
                if size >= side and not (side == 1 and stride > 1 and padding == 0):
                    moves = {"stride": stride, "padding": padding, "output_padding": extra}
                    yield moves, size, _move_cost(side, size, stride, padding, extra)


def _move_cost(side: int, size: int, stride: int, padding: int, extra: int) -> float:
    if side == 1:
        return 0.0 if padding == 0 else 1.0 if size == 2 else 1.5
    if stride == 2 and size == 2 * side:
        return 0.0
    if stride == 1 and size == side:
        return 0.6
    if stride == 2 and size == 2 * side - 1:
        return 1.0
    if padding == 0 and not extra:
        return 1.2
    return 1.8


def _blocks(draft: Draft, block: Block) -> Iterator[Piece]:
    """Yields the ways to read a residual block: norm first or last, with or without up-sampling."""
    inputs, side = draft.shape[0], draft.shape[1]
    widths = _widths(block, inputs)
    if widths is None:
        return
    for up, up_choice, up_cost in _upsamplings(draft, 0.8):
        ups = (up,) if up is not None else ()
        for act, act_choice, act_cost in _acts(draft.choices):
            for eps, eps_cost in _eps(draft, block.norms):
                for style, body, shortcut in _styles(block, widths, ups, act, eps):
                    size = 2 * side if ups else side
                    residual = Op({"op": "residual"}, body=body, shortcut=shortcut)
                    choices = {**up_choice, **act_choice, "block": style}
                    choices |= {"eps": f"{eps:g}"} if block.norms else {}
                    cost = up_cost + act_cost + eps_cost
                    yield Piece((residual,), (widths[-1], size, size), choices, cost)


def _widths(block: Block, inputs: int) -> list[int] | None:
    """Returns the channels before and after each convolution of a block."""
    widths = [inputs]
    for conv in block.convs:
        outputs = [o for i, o, transposed in conv.sides() if i == widths[-1] and not transposed]
        if not outputs or conv.shape[2] % 2 == 0:
            return None
        widths.append(outputs[0])
    if block.shortcut is None and widths[0] != widths[-1]:
        return None
    return widths


def _styles(
    block: Block, widths: Sequence[int], ups: tuple[Op, ...], act: Op, eps: float
) -> Iterator[tuple[str, tuple[Op, ...], tuple[Op, ...]]]:
    convs = [
        _weight_op(conv, "conv", outputs, {"stride": 1, "padding": conv.shape[2] // 2})
        for conv, outputs in zip(block.convs, widths[1:], strict=True)
    ]
    shortcut = list(ups)
    if block.shortcut is not None:
        moves = {"stride": 1, "padding": block.shortcut.shape[2] // 2}
        shortcut.append(_weight_op(block.shortcut, "conv", widths[-1], moves))
    norms = [norm_op(norm, eps, (norm.features, 1, 1)) for norm in block.norms]
    features = [norm.features for norm in block.norms]
    count = len(convs)
    if not norms:
        pairs = [op for i, conv in enumerate(convs) for op in (act, *(ups if i == 0 else ()), conv)]
        yield "activation first", tuple(pairs), tuple(shortcut)
        yield "activation between", tuple(pairs[1:]), tuple(shortcut)
        return
    if features == list(widths[:count]):
        body = [
            op
            for i, (norm, conv) in enumerate(zip(norms, convs, strict=True))
            for op in (norm, act, *(ups if i == 0 else ()), conv)
        ]
        yield "norm and activation before each convolution", tuple(body), tuple(shortcut)
    if features[:count] == list(widths[1:]) and len(features) <= count + 1:
        body = list(ups)
        for index, (conv, norm) in enumerate(zip(convs, norms[:count], strict=True)):
            body += [conv, norm, *([act] if index + 1 < count else [])]
        extra = norms[count:] if block.shortcut is not None else []
        if len(extra) == len(norms) - count:
            yield _POST_NORM, tuple(body), (*shortcut, *extra)


def _ends(piece: Piece, choices: Mapping[str, str], element: Element) -> Iterator[Piece]:
    """Yields a piece as it is and, if a norm follows, with the activation before that norm."""
    norm = element.norm
    if norm is None or element.prelu is not None or isinstance(element.body, Block):
        yield piece
        return
    gap = element.before_norm
    reshaped = len(piece.shape) == 1 and norm.features != piece.shape[0]
    order = choices.get("order")
    first = gap is None or gap == 0 or reshaped
    if order in (None, _NORM_FIRST) or first:
        cost = 0.0 if first or order else 1.0
        decided = {"order": _NORM_FIRST} if gap is None else {}
        yield replace(piece, choices={**piece.choices, **decided}, cost=piece.cost + cost)
    if gap == 0 or (order == _NORM_FIRST and gap is None):
        return
    for act, choice, act_cost in _acts({**choices, **piece.choices}):
        yield Piece(
            (*piece.ops, act),
            piece.shape,
            {**piece.choices, **choice, "order": _NORM_LAST},
            piece.cost + act_cost + (1.0 if gap is None and order is None else 0.0),
            acted=True,
        )


def _reshape(shape: tuple[int, ...]) -> Op:
    return Op({"op": "reshape", "shape": list(shape)})


def _image_shape(size: int) -> tuple[int, int, int] | None:
    for channels in (1, 3):
        side = round((size / channels) ** 0.5)
        if channels * side * side == size:
            return channels, side, side
    return None


def _implausible(side: int) -> float:
    """Returns the cost of an image size: none for 28 and powers of two from 32."""
    if side == 28 or (side >= 32 and side & (side - 1) == 0):
        return 0.0
    if side in (8, 16):
        return 0.8
    return 2.0 if side % 4 == 0 else 3.0
