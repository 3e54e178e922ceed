"""The operators that a program from a file may use: an allow-list, and nothing beside it.

TorchScript archives and `torch.export` programs name torch's operators. A program that comes from
elsewhere must not reach those that read or write files, draw random numbers, look at uninitialised
memory or change storage, and not those that nobody here has looked at; so the list is of what may
be used, not of what may not.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.errors import GeneratorError, first_line

ADVICE = "save its weights alone with safetensors and pass architecture=YourModule"

TYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    8: torch.complex32,
    9: torch.complex64,
    10: torch.complex128,
    11: torch.bool,
    15: torch.bfloat16,
}
"""How torch numbers types."""

_LARGEST = 2**63
"""Program integers have 64 bits; without an end they could fill the memory."""

_LONGEST = 100_000
"""Lists hold shapes and parts; without an end they, too, could fill the memory."""

_MOST_ENTRIES = 10_000_000
"""Of all lists that are made in one run."""

MOST_VALUES = 2**27
"""A step may make so many values for each latent: 128 channels of 1024 pixels squared."""

_MOST_IN_ALL = 2**33
"""All steps of a run may make so many values for each latent."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TENSOR = _words(
    "_adaptive_avg_pool2d _log_softmax _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _reshape_alias _shape_as_tensor _softmax _to_copy "
    "_unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d "
    "_weight_norm _weight_norm_interface abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_max_pool2d add addbmm addcdiv addcmul addmm addmv addr affine_grid_generator alias "
    "all amax amin aminmax any arange argmax argmin argsort asin asinh atan atan2 atanh "
    "avg_pool1d avg_pool2d baddbmm batch_norm bilinear bitwise_and bitwise_not bitwise_or "
    "bitwise_xor bmm broadcast_tensors broadcast_to bucketize cat ceil celu channel_shuffle chunk "
    "clamp clamp_max clamp_min clone col2im column_stack complex concat concatenate conj "
    "constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d convolution copy copy_ cos cosh cosine_similarity cross cumprod cumsum "
    "deg2rad detach diag diag_embed diagonal diff dim div divide dot dstack einsum elu embedding "
    "eq erf erfc erfinv exp exp2 expand expand_as expand_copy expm1 eye fft_fft2 fft_fftshift "
    "fft_ifft2 fft_ifftshift fft_irfft2 fft_rfft2 fill fill_ flatten flip fliplr flipud floor "
    "floor_divide fmod frac full full_like gather ge gelu glu greater greater_equal grid_sampler "
    "grid_sampler_2d group_norm gru gru_cell gt hardshrink hardsigmoid hardswish hardtanh hstack "
    "hypot im2col imag index index_add index_copy index_fill index_put index_put_ index_select "
    "instance_norm inverse isfinite isinf isnan item kron layer_norm le leaky_relu lerp less "
    "less_equal lgamma lift_fresh lift_fresh_copy linalg_matrix_norm linalg_norm "
    "linalg_vector_norm linear linspace log "
    "log10 log1p log2 log_sigmoid log_softmax logaddexp logical_and logical_not logical_or "
    "logical_xor logit logsumexp lstm lstm_cell lt masked_fill masked_scatter matmul max "
    "max_pool1d max_pool2d maximum mean median meshgrid min minimum mish mm moveaxis movedim mul "
    "multiply mv nan_to_num narrow narrow_copy native_batch_norm native_group_norm "
    "native_layer_norm ne neg negative new_full new_ones new_zeros norm numel ones ones_like "
    "outer pad permute pixel_shuffle pixel_unshuffle pow prelu prod ravel real reciprocal "
    "reflection_pad1d reflection_pad2d relu relu6 remainder repeat repeat_interleave "
    "replication_pad1d replication_pad2d reshape reshape_as rms_norm rnn_relu rnn_relu_cell "
    "rnn_tanh rnn_tanh_cell roll rot90 round rsqrt rsub scalar_tensor "
    "scaled_dot_product_attention scatter scatter_add select select_scatter selu sgn sigmoid sign "
    "silu sin sinc sinh size slice slice_scatter softmax softplus softshrink sort special_expit "
    "split split_with_sizes sqrt square squeeze stack std stride sub subtract sum swapaxes "
    "swapdims t take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace "
    "transpose tril triu true_divide trunc type_as unbind unflatten unfold unsafe_chunk "
    "unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d "
    "upsample_nearest1d upsample_nearest2d var var_mean view view_as view_as_complex view_as_real "
    "view_copy vstack where xlogy zeros zeros_like"
)
_NOTHING_TO_DO = _words(
    "warn _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range "
    "sym_constrain_range_for_size requires_grad_"
)
_CONVOLUTION = (
    *("input", "weight", "bias", "stride", "padding"),
    *("dilation", "transposed", "output_padding", "groups"),
)
_MAKERS = _words("arange eye full linspace ones scalar_tensor zeros")
_NEVER_LARGER = _words("item to _to_copy")
_BATCH_NORMS = _words("batch_norm native_batch_norm _native_batch_norm_legit")
_RECURRENT = _words("gru lstm rnn_relu rnn_tanh")
_DROPOUT = _words("dropout dropout_ alpha_dropout feature_dropout")
_RANDOM = _words(
    "rand rand_like randn randn_like randint randint_like randperm normal bernoulli multinomial "
    "uniform_ normal_ bernoulli_ random_ exponential_ cauchy_ geometric_ log_normal_ poisson rrelu"
)


def find_operator(name: str, overload: str = "", *, where: str) -> Callable[..., Any]:
    """Returns one of torch's operators that a program may use.

    Args:
        name: its bare name, such as "conv2d", "relu_" or "_convolution".
        overload: which of its forms; found by the arguments if empty.
        where: what asks for it, for messages.

    Raises:
        GeneratorError: it is not on the list.
    """
    if name in _NOTHING_TO_DO:
        return _nothing
    if name in ("_convolution", "convolution"):
        return _convolution
    if name == "copy":
        return _copy
    if name in _DROPOUT:
        return partial(_dropout, where)
    base = name[:-1] if name.endswith("_") and not name.startswith("__") else name
    if name not in _TENSOR and base not in _TENSOR:
        raise GeneratorError(_refusal(name, base, where))
    packet = getattr(torch.ops.aten, name, None)
    found = packet
    if packet is not None and overload:
        found = getattr(packet, overload) if overload in packet.overloads() else None
    if found is None:
        raise GeneratorError(
            f"{where} uses the operator {name}{'.' * bool(overload)}{overload}, which torch "
            f"{torch.__version__} does not have; save it again with this version of torch"
        )
    operator: Callable[..., Any] = found
    return operator


def _refusal(name: str, base: str, where: str) -> str:
    if _RANDOM & {name, base}:
        return (
            f"{where} draws random numbers ({name!r:.60}), so its images are not a function of the "
            "latents; save it without its noise"
        )
    return (
        f"{where} uses the operator {name!r:.60}, which is not among those that pgmkit runs from a "
        f"file; {ADVICE}"
    )


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for operators that neither compute nor change anything."""


def _copy(values: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The operator behind assignments; torch's own has no derivative."""
    return source.to(values.dtype).expand_as(values).clone()


def _dropout(where: str, values: Tensor, p: float, train: bool) -> Tensor:
    """Drops nothing, as generators are not being trained."""
    if train:
        raise GeneratorError(_dropping(where))
    return values


def _dropping(where: str) -> str:
    return (
        f"{where} draws random numbers (dropout), so its images are not a function of the latents; "
        "call .eval() on the module before it is traced or exported"
    )


def _convolution(*args: Any, **kwargs: Any) -> Tensor:
    """The operator behind all convolutions, which traced programs call, by its common names."""
    given = dict(zip(_CONVOLUTION, args, strict=False)) | kwargs
    sides = given["weight"].ndim - 2
    if sides not in (1, 2, 3):
        raise GeneratorError(f"a convolution over {sides} sides is none that torch has")
    begin = [given[name] for name in ("input", "weight", "bias", "stride", "padding")]
    if given["transposed"]:
        convolve = getattr(torch, f"conv_transpose{sides}d")
        end = [given["output_padding"], given["groups"], given["dilation"]]
    else:
        convolve, end = getattr(torch, f"conv{sides}d"), [given["dilation"], given["groups"]]
    made: Tensor = convolve(*begin, *end)
    return made


def _divide(a: float, b: float, rounding_mode: str | None = None) -> float:
    if rounding_mode == "floor":
        return a // b
    return math.trunc(a / b) if rounding_mode == "trunc" else a / b


def _part(values: Any, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return values[slice(start, end, step)]


def _append(values: list[Any], value: Any) -> list[Any]:
    values.append(value)
    return values


def _format(text: str, *values: Any) -> str:
    """Fills in "{}" and nothing else, for error messages; `str.format` would reach attributes."""
    first, *pieces = text.split("{}")
    filled = [f"{value!s:.80}{piece}" for piece, value in zip(pieces, values, strict=False)]
    return first + "".join(filled + [f"{{}}{piece}" for piece in pieces[len(filled) :]])


_PLAIN: dict[str, Callable[..., Any]] = {
    "__and__": lambda a, b: a & b,
    "__contains__": lambda values, value: value in values,
    "__derive_index": lambda index, start, step: start + index * step,
    "__getitem__": lambda values, index: values[index],
    "__not__": lambda a: not a,
    "__or__": lambda a, b: a | b,
    "__range_length": lambda low, high, step: len(range(low, high, step)),
    "__xor__": lambda a, b: a ^ b,
    "Bool": bool,
    "Float": float,
    "Int": int,
    "abs": abs,
    "add": lambda a, b: a + b,
    "append": _append,
    "ceil": math.ceil,
    "div": _divide,
    "eq": lambda a, b: a == b,
    "floor": math.floor,
    "floordiv": lambda a, b: a // b,
    "format": _format,
    "ge": lambda a, b: a >= b,
    "gt": lambda a, b: a > b,
    "le": lambda a, b: a <= b,
    "len": len,
    "list": list,
    "log": math.log,
    "lt": lambda a, b: a < b,
    "max": max,
    "min": min,
    "mod": lambda a, b: a % b,
    "mul": lambda a, b: _times(a, b),
    "ne": lambda a, b: a != b,
    "neg": lambda a: -a,
    "pow": lambda a, b: math.pow(a, b),
    "remainder": lambda a, b: a % b,
    "round": round,
    "select": lambda values, index: values[index],
    "slice": _part,
    "sqrt": math.sqrt,
    "sub": lambda a, b: a - b,
    "sym_float": float,
    "sym_int": int,
    "sym_max": max,
    "sym_min": min,
    "sym_not": lambda a: not a,
    "truediv": lambda a, b: a / b,
    "trunc": math.trunc,
}
"""What programs do with numbers and lists, most of it with shapes."""

PLAIN_NAMES = frozenset(_PLAIN)


def compute_plain(name: str, args: list[Any], kwargs: dict[str, Any], *, where: str) -> Any:
    """Computes with numbers, strings and lists as a program does with shapes.

    Raises:
        GeneratorError: the operator is not known, or its result is out of bounds.
    """
    if name not in _PLAIN:
        raise GeneratorError(_refusal(name, name, where))
    try:
        result = _PLAIN[name](*args, **kwargs)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise GeneratorError(f"{where} cannot compute {name}: {error}") from error
    if isinstance(result, list | tuple | str) and len(result) > _LONGEST:
        raise GeneratorError(f"{where} makes a list of {len(result)} entries")
    if isinstance(result, int) and not -_LARGEST <= result < _LARGEST:
        raise GeneratorError(f"{where} computes a number with more than 64 bits")
    return result


def _times(a: Any, b: Any) -> Any:
    """Multiplies numbers, and repeats what has a length within bounds."""
    for values, times in ((a, b), (b, a)):
        if isinstance(values, list | tuple | str) and len(values) * times > _LONGEST:
            raise ValueError(f"a list of {len(values) * times} entries")
    return a * b


class Run:
    """One run of a program, which may make so many values for a latent and no more."""

    def __init__(self, latents: int, where: str) -> None:
        self._where = where
        self._latents = max(1, latents)
        self._values = 0
        self._entries = 0

    def compute(
        self, name: str, args: list[Any], kwargs: dict[str, Any], *, overload: str = ""
    ) -> Any:
        """Computes one operator, on tensors or else on numbers and lists.

        Raises:
            GeneratorError: it may not be used, cannot be computed, or makes too much.
        """
        tensors = any(isinstance(part, Tensor) for part in args)
        lists = any(isinstance(part, list | tuple | str) for part in args[:2])
        if name in PLAIN_NAMES and (lists or not tensors):
            return self.compute_plain(name, args, kwargs)
        operator = find_operator(name, overload, where=self._where)
        _check_not_training(name, args, self._where)
        try:
            if name not in _NEVER_LARGER:
                self._take(name, self._foresee(name, overload, args, kwargs))
            return operator(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            # Out of memory is the caller's to handle, and so are torch's own signals.
            if type(error) not in (RuntimeError, TypeError, ValueError, IndexError):
                raise
            if "memory" in str(error) or "allocate" in str(error):
                raise
            raise GeneratorError(
                f"{self._where} cannot compute {name}: {first_line(error)[:160]}"
            ) from error

    def compute_plain(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Computes with numbers, strings and lists; see the function of this name."""
        result = compute_plain(name, args, kwargs, where=self._where)
        if isinstance(result, list | tuple | str) and name != "append":
            self._entries += len(result)
            if self._entries > _MOST_ENTRIES:
                raise GeneratorError(f"{self._where} makes lists of {self._entries} entries")
        return result

    def _foresee(self, name: str, overload: str, args: list[Any], kwargs: dict[str, Any]) -> int:
        """Returns how many values an operator will make; what cannot be foreseen is an error."""
        problem = Exception()
        for numbers in (False, True):  # single values may stand for sizes
            try:
                given = tuple(_described(part, numbers) for part in args)
                by_name = tuple((key, _described(part, numbers)) for key, part in kwargs.items())
                return _values_made(name, overload, self._where, given, by_name)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                problem = problem if numbers else error
        raise GeneratorError(
            f"{self._where} cannot compute {name}: {first_line(problem)[:160]}"
        ) from problem

    def _take(self, name: str, values: int) -> None:
        self._values += values
        most = MOST_VALUES * (1 if name in _MAKERS else self._latents)
        if values > most or self._values > _MOST_IN_ALL * self._latents:
            raise GeneratorError(
                f"{self._where} makes {values:,} values at once ({name}), {self._values:,} in all, "
                f"of {self._latents} latents, more than a generator needs; {ADVICE}"
            )


@contextmanager
def running(program: nn.Module, where: str) -> Iterator[None]:
    """Watches over a program while it runs.

    Raises:
        GeneratorError: it is not of the form that it should be, or has changed its own weights, so
            that the next run would give other images.
    """
    weights = [*program.parameters(), *program.buffers()]
    before = [0 if weight.is_inference() else weight._version for weight in weights]
    try:
        yield
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise GeneratorError(
            f"{where} cannot be run ({type(error).__name__}: {first_line(error)[:80]}); {ADVICE}"
        ) from error
    after = [0 if weight.is_inference() else weight._version for weight in weights]
    if before != after:
        raise GeneratorError(
            f"{where} changes its own weights, so its images are not a function of the latents; "
            f"{ADVICE}"
        )


@dataclass(frozen=True)
class _Sizes:
    """Stands for a tensor."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


def _described(value: Any, numbers: bool) -> Any:
    """Returns an argument without its values; numbers: with those of tensors of one value."""
    if isinstance(value, Tensor):
        if numbers and value.ndim == 0:
            return value.item()
        return _Sizes(tuple(value.shape), value.dtype)
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, list | tuple):
        return tuple(_described(part, numbers) for part in value)
    return value


def _without_values(value: Any) -> Any:
    if isinstance(value, _Sizes):
        return torch.empty(value.sizes, dtype=value.dtype, device="meta")
    if isinstance(value, tuple):
        return [_without_values(part) for part in value]
    return value


@lru_cache(maxsize=4096)
def _values_made(
    name: str, overload: str, where: str, args: tuple[Any, ...], kwargs: tuple[Any, ...]
) -> int:
    """Returns how many values an operator makes, found without making them."""
    by_name = {key: _without_values(value) for key, value in kwargs}
    if name in _MAKERS:
        by_name["device"] = torch.device("meta")
    with torch.no_grad():
        operator = find_operator(name, overload, where=where)
        made = operator(*(_without_values(value) for value in args), **by_name)
    parts = made if isinstance(made, list | tuple) else [made]
    return sum(part.numel() for part in parts if isinstance(part, Tensor))


def _check_not_training(name: str, args: list[Any], where: str) -> None:
    """Refuses what was recorded while the module was being trained."""
    given = [*args, *[None] * 9]
    if name in _BATCH_NORMS:
        stats, training = (given[3], given[5]) if given[5] in (True, False) else (None, given[3])
        # Instance norms are written out as batch norms of one.
        if training and (isinstance(stats, Tensor) or len(given[0]) > 1):
            raise GeneratorError(
                f"{where} normalises by the batch ({name}), so its images depend on each other; "
                "call .eval() on the module before it is traced or exported"
            )
    drops = name == "scaled_dot_product_attention" and given[4]
    if name in _RECURRENT:
        rates = [index for index, part in enumerate(args) if isinstance(part, float)]
        drops = bool(rates and given[rates[0]] and given[rates[0] + 1])
    if drops:
        raise GeneratorError(_dropping(where))
