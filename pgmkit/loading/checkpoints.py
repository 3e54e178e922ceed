"""The weights of a generator in what people save: nested, wrapped, beside a discriminator.

Two questions are answered here: which entry of a checkpoint holds the generator's tensors, and
which of them is which of a module's. Whatever was not said and had to be found is noted.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pgmkit.errors import LoadError, listed, nearest_names
from pgmkit.loading.weights import tensors_in, told

_DEEPEST = 4
"""How many dictionaries deep weights are looked for."""

_LEFTOVERS = ("total_ops", "total_params")
"""What counting operations leaves in state dicts, beside the weights."""

_WORST = 2**31

_OPTIONAL = "num_batches_tracked"
"""Batch norm counts its batches since torch 0.4.1; older files have no such entry."""

_EMA = re.compile(
    r"(g|gen|generator|netg|g_?net|params|model|module|decoder)?_?(ema|avg|averaged|shadow|running)"
    r"|(ema|avg)_?(g|gen|generator|netg|params|model|decoder)?|ge"
)
_GENERATOR = re.compile(
    r"(net|model|params|gan)?_?(g|gen|generator|dec|decoder)(_?(net|model|network|params))?"
)
_WRAPPER = re.compile(
    r"state|params|weights?|model|models|module|modules|_orig_mod|net|nets|network|gan|vae|gan_?model"
    r"|autoencoder|online_model|model_?state|inner|wrapped"
)
_OTHER = re.compile(
    r"(net|model|params|gan)?_?(d|dis|disc|discriminator|critic|de)(_?(net|model|network|params"
    r"|optimizer|optim|ema))?|(enc|encoder|net_?enc)\d*|.*optim.*|opt_?\w?|.*sched.*|.*loss.*|lpips|vgg\w*"
    r"|inception\w*|(fc|linear|to)?_?(mu|mean|var|logvar|log_var|log_sigma|sigma)|quant_conv"
    r"|classifier|scaler|rng.*|callbacks|hyper_parameters|args|opt|config|step|epoch|initted"
)


@dataclass(frozen=True)
class Found:
    """Tensors of a checkpoint that may be those of a generator.

    Args:
        tensors: by name, without the parts of the name that they all share and nobody needs.
        place: where they are in the file, such as "GAN.GE"; "" is the top.
        notes: what was taken without having been said, one sentence each.
        dropped: names at the same level that were left out.
    """

    tensors: dict[str, Tensor]
    place: str = ""
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def inside(
        self, name: str, tensors: dict[str, Tensor], note: str = "", dropped: Iterable[str] = ()
    ) -> "Found":
        """Returns what is found one step further in."""
        place = f"{self.place}.{name}" if self.place else name
        notes = (*self.notes, note) if note else self.notes
        return Found(tensors, place, notes, (*self.dropped, *dropped))


def candidates(
    loaded: Any, where: str, *, key: str | None = None, prefix: str | None = None
) -> list[Found]:
    """Returns what of a checkpoint may be a generator's weights, from the outermost to the best.

    Args:
        loaded: what `read_checkpoint` returned.
        where: the file, for messages.
        key: the entry to take, "a" or "a.b"; if None, entries are known by their usual names, and
            averaged weights (EMA) go before others.
        prefix: what names begin with; the others are left out, and it is taken off. If None, usual
            wrappers' prefixes are taken off.

    Raises:
        LoadError: there is no such key or prefix, there are no weights, or several entries might be
            them.
    """
    notes: tuple[str, ...] = ()
    place = ""
    if key is not None:
        loaded, place = _at(loaded, key, where), key
    else:
        loaded, place, notes = _descended(loaded, where)
    found = Found(_flat(loaded, where, place), place, notes)
    if prefix is not None:
        return [_with_prefix(found, prefix, where)]
    steps = [found]
    while (further := _step_in(steps[-1])) is not None:
        steps.append(further)
    return steps


def _at(loaded: Any, key: str, where: str) -> Any:
    """Returns the entry of that name, which may go down several levels."""
    if not isinstance(loaded, Mapping):
        raise LoadError(f"{where} holds {told(loaded)} and no entries, so key={key!r} names none")
    if key in loaded:
        return loaded[key]
    for name in sorted(map(str, loaded), key=len, reverse=True):
        if key.startswith(f"{name}.") and isinstance(loaded.get(name), Mapping):
            return _at(loaded[name], key[len(name) + 1 :], where)
    if any(str(name).startswith(f"{key}.") for name in loaded):
        raise LoadError(
            f"{where} has no entry {key!r}, but names that begin with it; write "
            f"prefix={key + '.'!r} instead of key"
        )
    raise LoadError(f"{where} has no entry {key!r}; it holds {told(loaded)}")


def _descended(loaded: Any, where: str) -> tuple[Any, str, tuple[str, ...]]:
    """Goes down through dictionaries to the one that holds tensors."""
    place: list[str] = []
    notes: list[str] = []
    while isinstance(loaded, Mapping) and not _is_state(loaded):
        entries = {str(name): value for name, value in loaded.items() if _holds_weights(value)}
        if not entries or len(place) == _DEEPEST:
            break
        name = _chosen(list(entries), where, loaded)
        unnamed = [n for n in loaded if str(n) not in entries and _is(_EMA, str(n))]
        if any(True for entry in unnamed for _ in tensors_in(loaded[entry])):
            notes.append(
                f"left out {unnamed[0]!r} of {where}: averaged weights without their names"
            )
        others = [other for other in entries if other != name]
        if others:
            kind = "averaged weights (EMA)" if _is(_EMA, name) else "weights"
            notes.append(f"took the {kind} {name!r} of {where}, not {', '.join(others)}")
        place.append(name)
        loaded = entries[name]
    return loaded, ".".join(place), tuple(notes)


def _chosen(names: Sequence[str], where: str, loaded: Any) -> str:
    """Returns which entry holds the generator.

    Raises:
        LoadError: several might.
    """
    if len(names) == 1:
        return names[0]
    for kind in (_EMA, _GENERATOR, _WRAPPER):
        fitting = [name for name in names if _is(kind, name) and not _is(_OTHER, name)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = fitting
            break
    own = [name for name in names if not _is(_OTHER, name)]
    if len(own) == 1:
        return own[0]
    first = (own or names)[0]
    raise LoadError(
        f"{where} holds {told(loaded)}, and several may be the generator; name one, such as "
        f"key={first!r} (--key {first})"
    )


def _flat(loaded: Any, where: str, place: str) -> dict[str, Tensor]:
    """Returns the tensors of one dictionary; what else stands in it is left out."""
    inside = f"{where}, under {place!r}," if place else where
    if not isinstance(loaded, Mapping):
        raise LoadError(f"{inside} holds {told(loaded)} and no tensors by name; save a state_dict")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise LoadError(f"{inside} holds no weights but {told(loaded)}; name another file or key")
    return {n: v for n, v in tensors.items() if n.rpartition(".")[2] not in _LEFTOVERS}


def _with_prefix(found: Found, prefix: str, where: str) -> Found:
    tensors = {
        name.removeprefix(prefix): value
        for name, value in found.tensors.items()
        if name.startswith(prefix)
    }
    if not tensors:
        there = sorted({f"{name.partition('.')[0]}." for name in found.tensors if "." in name})
        raise LoadError(
            f"no weight in {where} has a name that begins with {prefix!r}; "
            f"{nearest_names(prefix, there or found.tensors)}"
        )
    return found.inside(prefix.rstrip("."), tensors)


def _step_in(found: Found) -> Found | None:
    """Returns the tensors without what a wrapper added to their names; None if there is none."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in found.tensors.items():
        first, dot, rest = name.partition(".")
        groups.setdefault(first if dot else "", {})[rest if dot else name] = value
    names = [name for name in groups if name and not name.isdigit()]
    loose = groups.get("", {})
    for kind, called in ((_EMA, "averaged weights (EMA)"), (_GENERATOR, "generator")):
        fitting = [name for name in names if _is(kind, name)]
        others = [name for name in names if name not in fitting]
        # Averaged weights stand beside those that they are the average of.
        strangers = [o for o in others if not (_is_other(o) or (kind is _EMA and _is_net(o)))]
        apart = not strangers and not _weighty(loose)
        if len(fitting) == 1 and apart and len(groups[fitting[0]]) > 1:
            name = fitting[0]
            note = f"took the {called} {name!r}, not {', '.join(others)}" if others else ""
            return found.inside(name, groups[name], note, others)
    kept = [name for name in names if not _is_other(name)]
    if len(kept) == 1 and _is(_WRAPPER, kept[0]) and not _weighty(loose):
        dropped = [name for name in names if name not in kept]
        return found.inside(kept[0], groups[kept[0]], _left_out(dropped), dropped)
    dropped = [name for name in names if name not in kept]
    if kept and dropped:
        tensors = {n: v for n, v in found.tensors.items() if n.partition(".")[0] not in dropped}
        return Found(tensors, found.place, (*found.notes, _left_out(dropped)), tuple(dropped))
    return None


def _left_out(names: Sequence[str]) -> str:
    return f"left out {', '.join(names)}" if names else ""


def fit(module: nn.Module, steps: Sequence[Found], where: str) -> tuple[Found, str]:
    """Loads weights into a module, in place: by name, by name after a prefix, or by order.

    torch itself judges names and shapes, and so its rules for old files hold. By order means that
    the tensors of file and module, one after the other, have the same last name and shape.

    Args:
        module: may have `convert_state_dict(state_dict)` to rename foreign keys.
        steps: what `candidates` returned.
        where: the file, for messages.

    Returns:
        What fitted, and a note on how, "" if by its own names.

    Raises:
        LoadError: nothing fits; the message holds what was nearest.
    """
    convert = getattr(module, "convert_state_dict", None)
    problems: list[tuple[int, str, Found]] = []
    for found in steps:
        try:
            state = dict(found.tensors) if convert is None else convert(dict(found.tensors))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            problems.append((_WORST, f"convert_state_dict failed: {error!r}", found))
            continue
        unfit = _try(module, state)
        if unfit is None:
            return found, ""
        problems.append((*unfit, found))
    for found in reversed(steps):
        for state, note in _renamed(module, found.tensors):
            if _try(module, state) is None:
                return found, note
    _, problem, found = min(problems, key=lambda item: item[0])
    unlike = _unlike_in_order(module.state_dict(), steps[-1].tensors)
    if unlike and set(module.state_dict()).isdisjoint(found.tensors):
        problem = f"by their order, {', '.join(unlike[:3])}"
    inside = f"{where} (under {found.place})" if found.place else where
    raise LoadError(
        f"the weights in {inside} do not fit {type(module).__name__}: {problem}; {_advice(found)}"
    )


def _try(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """Loads a state dict if all of it fits; else returns how much does not, and what."""
    expected = module.state_dict()
    miscast = {
        f"{name} {_type(state[name])} instead of {_type(expected[name])}"
        for name in expected.keys() & state.keys()
        if _is_lossy(state[name], expected[name])
    }
    if miscast:  # torch would copy them and lose what they say
        return len(miscast), "; ".join(_listed("of another type", miscast))
    try:
        result = module.load_state_dict(dict(state), strict=False)
        missing, unknown = set(result.missing_keys), set(result.unexpected_keys)
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        if "size mismatch" not in str(error):
            return _WORST, " ".join(str(error).split())[:300]
        missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    unknown = {name for name in unknown if name.rpartition(".")[2] not in _LEFTOVERS}
    misshapen = {
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if expected[name].shape != state[name].shape
    }
    if not (missing or unknown or misshapen):
        return None
    parts = (
        *_listed("missing", missing),
        *_listed("unknown", unknown),
        *_listed("of another shape", misshapen),
    )
    return len(missing) + len(unknown) + len(misshapen), "; ".join(parts)


def _renamed(
    module: nn.Module, tensors: Mapping[str, Tensor]
) -> list[tuple[dict[str, Tensor], str]]:
    """Returns the tensors under the module's names: with another prefix, or by order."""
    expected = module.state_dict()
    results = []
    for ours, theirs in {
        (_shared(expected), ""),
        ("", _shared(tensors)),
        (_shared(expected), _shared(tensors)),
    }:
        if ours == theirs:
            continue
        state = {ours + name.removeprefix(theirs): value for name, value in tensors.items()}
        note = f"names begin with {theirs!r} in the file and with {ours!r} in the module"
        results.append((state, note))
    for group in sorted({name.partition(".")[0] for name in tensors if "." in name}):
        inside = {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith(f"{group}.")}
        if inside.keys() == expected.keys():
            results.append(
                (inside, f"took the weights under {group!r}, whose names are the module's")
            )
    ordered = _in_order(expected, tensors)
    if ordered is not None:
        note = (
            "names differ, and weights were matched by their order, in which every shape fits "
            f"(the first is {next(iter(ordered[1]))!r} for {next(iter(ordered[0]))!r})"
        )
        results.append((ordered[0], note))
    return results


def _in_order(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]] | None:
    """Returns tensors by the names of a module where last names and shapes agree in order."""
    if _is_order_lost(tensors):
        return None
    for pairs in _paired(expected, tensors):
        if all(expected[ours].shape == tensors[theirs].shape for ours, theirs in pairs):
            state = {ours: tensors[theirs] for ours, theirs in pairs}
            counts = {name: value for name, value in expected.items() if name.endswith(_OPTIONAL)}
            return {**state, **counts}, [theirs for _, theirs in pairs]
    return None


def _is_order_lost(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names were sorted, as safetensors does, and layers of one shape may be swapped."""
    names = [name for name in tensors if not name.endswith(_OPTIONAL)]
    if names != sorted(names):
        return False
    seen: dict[tuple[str, tuple[int, ...]], str] = {}
    for name in names:
        key = (_last(name), tuple(tensors[name].shape))
        without_numbers = re.sub(r"\d+", "", name)
        if seen.setdefault(key, without_numbers) != without_numbers and tensors[name].ndim > 1:
            return True
    return False


def _paired(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Iterator[list[tuple[str, str]]]:
    """Yields names of module and file, one after the other, where their last parts agree."""
    wanted = [name for name in expected if not name.endswith(_OPTIONAL)]
    for order in (list(tensors), sorted(tensors, key=natural)):
        names = [name for name in order if not name.endswith(_OPTIONAL)]
        if len(names) == len(wanted) and [*map(_last, names)] == [*map(_last, wanted)]:
            yield list(zip(wanted, names, strict=True))


def _unlike_in_order(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Tells of the layers of another shape where all else agrees in order."""
    for pairs in _paired(expected, tensors):
        unlike = [(o, t) for o, t in pairs if expected[o].shape != tensors[t].shape]
        if len(unlike) <= len(pairs) // 2:
            return [
                f"{theirs} {tuple(tensors[theirs].shape)} would be {ours} "
                f"{tuple(expected[ours].shape)}"
                for ours, theirs in unlike
            ]
    return []


def natural(name: str) -> list[tuple[int, int | str]]:
    """Returns a key that sorts names with numbers as people count: layer2 before layer10."""
    return [
        (0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d{1,18})", name)
    ]


def _advice(found: Found) -> str:
    shared = _shared(found.tensors)
    named = f" (all names in the file begin with {shared!r})" if shared else ""
    left = f"; {', '.join(found.dropped)} of the file were left out" if found.dropped else ""
    return (
        "give the class that made them (architecture) or its arguments (model_args), or let the "
        f"network be inferred from them: architecture='auto' (--architecture auto){named}{left}"
    )


def _shared(names: Iterable[str]) -> str:
    """Returns the parts, with a dot at the end, that all names begin with; "" if there are none."""
    split = [name.split(".")[:-1] for name in names]
    if not split:
        return ""
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def check_readable(tensors: Mapping[str, Tensor]) -> None:
    """Raises LoadError if there are weights that are no real floating-point numbers."""
    for name, value in tensors.items():
        if value.ndim and not value.is_floating_point():
            raise LoadError(
                f"{name} is of type {_type(value)}, and networks that pgmkit infers have real "
                "floating-point weights; save them dequantised, or give the class that reads them: "
                "--architecture package.module:Class"
            )


def _is_lossy(value: Tensor, wanted: Tensor) -> bool:
    """Whether values would lose their meaning in a parameter: quantised, truth values, complex."""
    if wanted.is_complex():
        return not (value.is_complex() or value.is_floating_point())
    return wanted.is_floating_point() and not value.is_floating_point()


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _listed(what: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    return [f"{what}: {listed(ordered, 3)}"] if ordered else []


def _is(kind: re.Pattern[str], name: str) -> bool:
    plain = re.sub(r"[_-]?(state(_?dict)?|dict)$|^(state_?dict)_", "", name, flags=re.IGNORECASE)
    return kind.fullmatch(plain.lower() or "state") is not None


def _is_other(name: str) -> bool:
    return _is(_OTHER, name)


def _is_net(name: str) -> bool:
    return _is(_GENERATOR, name) or _is(_WRAPPER, name)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_state(loaded: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is a state dict, and not one that holds some beside loose tensors."""
    if not _has_tensors(loaded) or not any(map(_holds_weights, loaded.values())):
        return _has_tensors(loaded)
    names = [str(name) for name, value in loaded.items() if isinstance(value, Tensor)]
    return any("." in name or name in ("weight", "bias") for name in names)


def _has_tensors(loaded: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in loaded.values())


def _holds_weights(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether a value is a dictionary with tensors by name, at some level."""
    if not isinstance(value, Mapping) or not depth:
        return False
    return _has_tensors(value) or any(_holds_weights(part, depth - 1) for part in value.values())


def _weighty(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are weights among tensors, and not only counters."""
    return any(value.is_floating_point() for value in tensors.values())
