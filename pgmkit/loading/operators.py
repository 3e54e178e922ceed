"""The operators that a program from a file may use: an allow-list, and nothing beside it.

TorchScript archives and `torch.export` programs name torch's operators. A program that comes from
elsewhere must not reach those that read or write files, draw random numbers, look at uninitialised
memory or change storage, and not those that nobody here has looked at; so the list is of what may
be used, not of what may not.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import GeneratorError

_LARGEST = 2**63
"""Program integers have 64 bits; without an end they could fill the memory."""

_LONGEST = 100_000
"""Lists hold shapes and parts; without an end they, too, could fill the memory."""


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
    "less_equal lgamma linalg_matrix_norm linalg_norm linalg_vector_norm linear linspace log "
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
        "file; save the weights alone with safetensors and pass architecture=YourModule"
    )


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for operators that neither compute nor change anything."""


def _copy(values: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The operator behind assignments; torch's own has no derivative."""
    return source.to(values.dtype).expand_as(values).clone()


def _dropout(where: str, values: Tensor, p: float, train: bool) -> Tensor:
    """Drops nothing, as generators are not being trained."""
    if train:
        raise GeneratorError(_refusal("bernoulli", "bernoulli", where))
    return values


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
    "mul": lambda a, b: a * b if not isinstance(a, list | str) else _repeated(a, b),
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
    if isinstance(result, list | str) and len(result) > _LONGEST:
        raise GeneratorError(f"{where} makes a list of {len(result)} entries")
    if isinstance(result, int) and not -_LARGEST <= result < _LARGEST:
        raise GeneratorError(f"{where} computes a number with more than 64 bits")
    return result


def _repeated(values: Any, times: int) -> Any:
    if len(values) * times > _LONGEST:
        raise ValueError(f"a list of {len(values) * times} entries")
    return values * times
