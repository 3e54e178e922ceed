"""Model cards: what a folder of a model, and its page on the Hub, tell of it.

Names and facts come from foreign files: they are shown without control characters and markup, and
without what only the machine of their author knows or may know.
"""

import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgmkit import defaults
from pgmkit.components import KINDS, OWN_DISTRIBUTION
from pgmkit.config import fits, in_toml
from pgmkit.errors import PgmkitError
from pgmkit.generator import Generator
from pgmkit.loading.folders import PARTITIONER_FOLDER
from pgmkit.loading.requests import without_secrets
from pgmkit.plugins import installed

SAMPLES_FILE = "samples.png"
PER_CLUSTER = 8
"""Samples of each cluster in the picture."""

MOST_ROWS = 16
"""Partitions in the picture, at most."""

_PIPELINE = "unconditional-image-generation"
_HERE = "local-dir:path/to/this/folder"
_PARTS = "local-dir:path/to/its/partitioner"
_LOCAL = re.compile(r"(local-dir:|file:|/|~|\.{1,2}/|[A-Za-z]:[\\/])")
_MARKUP = re.compile(r"([\\`*_\[\]<>|#!$])")
_LICENSES = {
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigscience-openrail-m", "bsd"),
    *("bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0"),
    *("creativeml-openrail-m", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gfdl"),
    *("gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "lppl-1.3c"),
    *("mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "other"),
    *("pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib"),
}
"""The names of licences that the Hub knows; it refuses a card with another."""


@dataclass(frozen=True)
class Origin:
    """What a shattered generator was made with; kept when it is saved.

    Args:
        density: name and parameters of the density estimator.
        sampler: qualified name and parameters of the cluster sampler, and its `findings`.
        settings: clusters, remove, latents and seed; under `chosen`, how those were chosen
            that were to be.
        statistics: mass kept, effective sample size, numeric rank; see `pgmkit.selection.select`.
        versions: of pgmkit, torch and the plugins that took part.
    """

    density: Mapping[str, Any]
    sampler: Mapping[str, Any]
    settings: Mapping[str, Any]
    statistics: Mapping[str, Any]
    versions: Mapping[str, str]


def kept_in_words(statistics: Mapping[str, Any]) -> str:
    """Returns how many latents a density estimator kept, with what that says of them."""
    rank = statistics["numeric_rank"]
    return (
        f"{statistics['num_kept']:,} of {statistics['num_latents']:,} latents (mass "
        f"{statistics['mass_kept']:.3f}, effective sample size "
        f"{statistics['effective_sample_size']:,.0f}, numeric rank {rank['smallest']} to "
        f"{rank['largest']} of {rank['of']})"
    )


def card_header(license_name: Any, pipeline_tag: str, tags: Sequence[str] = ()) -> list[str]:
    """Returns the lines with which the Hub expects a model card to begin.

    Args:
        license_name: such as "Apache-2.0"; None is unknown. One that the Hub does not know is
            "other", with its name.
        pipeline_tag: the Hub's name for what the model does.
        tags: further words to find it by.
    """
    name = "-".join(re.findall(r"[a-z0-9.+]+", str(license_name or "unknown").lower()))
    known = name in _LICENSES
    lines = ["---", "library_name: pgmkit"]
    lines += [f"license: {name}"] if known else ["license: other", f"license_name: {name[:60]}"]
    lines += [f"pipeline_tag: {pipeline_tag}"]
    if tags:
        lines += ["tags:", *(f"- {tag}" for tag in tags)]
    return [*lines, "---", ""]


def generator_card(generator: Generator, repository: str | None = None) -> str:
    """Returns the card of a generator.

    Args:
        generator: what the folder holds.
        repository: "org/name" on the Hub; None is a folder of which nobody knows where it will be.
    """
    reference = _reference(repository)
    use = [
        f'g = pgmkit.load("{reference}"{_argument(generator)})',
        f"images = g.images(g.sample_latents(16, seed=0))  # {_shape(generator, 16)}",
    ]
    command = f"pgmkit shatter {reference} -o shattered"
    shatter = ["To find its clusters:", "", *_block(command, "bash")]
    lines = [
        *card_header(generator.provenance.get("license"), _PIPELINE, _tags(generator)),
        f"# {plain(generator.name)}",
        "",
        f"![Samples]({SAMPLES_FILE})",
        "",
        *_use(generator, use),
        *(shatter if generator.architecture is not None else []),
        *_weights(generator),
    ]
    return "\n".join(lines)


def shattered_card(
    generator: Generator,
    origin: Origin,
    sizes: Sequence[int],
    repository: str | None = None,
    numbers: Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] = (),
    hidden: Sequence[int] = (),
) -> str:
    """Returns the card of a shattered generator; see `generator_card`.

    Args:
        generator: G.
        origin: what it was made with.
        sizes: number of kept latents in each cluster.
        repository: "org/name" on the Hub, or None.
        numbers: what `report.json` of the same result says, with the scores; None if there is none.
        names: of the clusters, "" where one has none.
        hidden: clusters that are not mixed.
    """
    largest = sizes.index(max(sizes))
    cluster = json.dumps(names[largest]) if any(names[largest : largest + 1]) else str(largest)
    use = [
        f'm = pgmkit.load("{_reference(repository)}"{_argument(generator)})',
        f"images = m.sample(16, cluster={cluster})  # {_shape(generator, 16)}",
    ]
    lines = [
        *card_header(
            generator.provenance.get("license"),
            _PIPELINE,
            [*_tags(generator), "latent-shattering", "conditional-image-generation"],
        ),
        f"# {plain(generator.name)}, shattered into {len(sizes)} clusters",
        "",
        f"![{PER_CLUSTER} samples of each cluster]({SAMPLES_FILE})",
        "",
        f"Each row of the picture shows {PER_CLUSTER} samples of the cluster of its number.",
        "",
        *_use(generator, use),
        *_clusters(sizes, numbers or {}, names, hidden),
        *_recipe(generator, origin, repository),
        *_weights(generator),
    ]
    return "\n".join(lines)


def conditional_card(
    generator: Generator,
    masses: Sequence[float],
    partitioner: Any = None,
    repository: str | None = None,
) -> str:
    """Returns the card of a conditional generator; see `generator_card`.

    Args:
        generator: the network, which takes a partition beside latents, and what is known of it.
        masses: how often each partition is drawn.
        partitioner: name and parameters of what found the partitions; None if it is not there.
        repository: "org/name" on the Hub, or None.
    """
    reference, count = _reference(repository), len(masses)
    use = [
        f'm = pgmkit.load("{reference}"{_argument(generator)})',
        f"images = m.sample(16, partition={count - 1})  # {_shape(generator, 16)}",
    ]
    rows = [[str(number), f"{mass:.2%}"] for number, mass in enumerate(masses)]
    header, record = ["partition", "mass"], dict(generator.provenance)
    acceptance = record.pop("acceptance", None)
    if fits(acceptance, list[float | None]) and len(acceptance) == count:
        header.append("acceptance")
        for row, share in zip(rows, acceptance, strict=True):
            row.append("-" if share is None else f"{share:.1%}")
    found = "The partitioner that tells them is not here."
    if partitioner is not None:
        name = _name_of(partitioner)
        found = f"The partitioner that tells them, `{_code(name)}`, is in `{PARTITIONER_FOLDER}`."
    command = f"pgmkit shatter {reference} --partition {count - 1} -o shattered"
    shatter = ["To find clusters in one of them:", "", *_block(command, "bash")]
    shown = min(count, MOST_ROWS)
    lines = [
        *card_header(
            generator.provenance.get("license"),
            _PIPELINE,
            [*_tags(generator), "partition-guided", "conditional-image-generation"],
        ),
        f"# {plain(_title(generator))}, of {count} partition{'s' if count > 1 else ''}",
        "",
        f"![{PER_CLUSTER} samples of each of {shown} partitions]({SAMPLES_FILE})",
        "",
        f"Each row of the picture shows {PER_CLUSTER} samples of the partition of its number.",
        "",
        *_use(generator, use),
        *(shatter if generator.architecture is not None else []),
        "## Partitions",
        "",
        found,
        "",
        *_table(header, rows),
        *_weights(generator, record),
    ]
    return "\n".join(lines)


def _title(generator: Generator) -> object:
    """Returns what a training config calls the model, or its name."""
    card = generator.provenance.get("training")
    for key in ("card", "title"):
        card = card.get(key) if isinstance(card, Mapping) else None
    return card or generator.name


def plain(text: object) -> str:
    """Returns a foreign text as one line of Markdown that shows it and does nothing else."""
    line = " ".join(str(text).split())
    line = "".join(character for character in line if character.isprintable())
    return _MARKUP.sub(r"\\\1", without_secrets(line))


def public(value: Any) -> Any:
    """Returns a record without paths of this machine, passwords and tokens; None if empty."""
    if isinstance(value, Mapping):
        kept = {str(name): public(part) for name, part in value.items()}
        return {name: part for name, part in kept.items() if part is not None} or None
    if isinstance(value, list | tuple):
        return [part for part in map(public, value) if part is not None]
    if isinstance(value, str):
        return None if _LOCAL.match(value) else without_secrets(value)
    return value


def local_paths(value: Any) -> list[str]:
    """Returns the paths of this machine that stand in a record."""
    if isinstance(value, Mapping):
        return [path for part in value.values() for path in local_paths(part)]
    if isinstance(value, list | tuple):
        return [path for part in value for path in local_paths(part)]
    return [value] if isinstance(value, str) and _LOCAL.match(value) else []


def _reference(repository: str | None) -> str:
    return _HERE if repository is None else f"hf-hub:{repository}"


def _shape(generator: Generator, count: int) -> str:
    low, high = generator.image.range
    return f"({count}, {', '.join(map(str, generator.image.shape))}), from {low:g} to {high:g}"


def _tags(generator: Generator) -> list[str]:
    kinds = [kind for kind in ("gan", "vae") if kind in str(generator.architecture).lower()]
    return ["pgmkit", *kinds]


def _block(text: str, language: str) -> list[str]:
    return [f"```{language}", *text.splitlines(), "```", ""]


def _use(generator: Generator, lines: Sequence[str]) -> list[str]:
    """Returns the section with a snippet, and what it needs where no plugin builds the network."""
    heading = ["## Use", ""]
    if generator.architecture is not None:
        return [*heading, *_block(_script(generator, lines), "python")]
    module, name, importable = _class(generator)
    return [
        *heading,
        f"The network is a `{name}`"
        + (f" of the module `{module}`" if importable else "")
        + ", which no plugin of pgmkit offers and which is not in this repository. Get its code "
        f"from the author: `{name}(**model_args)` must build the network below, where "
        "`model_args` are those in `config.json`, or given as `model_args=...`.",
        "",
        *_block(_script(generator, lines), "python"),
        "<details><summary>The network</summary>",
        "",
        *_block(_printed(generator), "text"),
        "</details>",
        "",
    ]


def _script(generator: Generator, lines: Sequence[str]) -> str:
    """Returns a program of these lines, with the imports that they need."""
    if generator.architecture is not None:
        return "\n".join(["import pgmkit", "", *lines])
    module, name, importable = _class(generator)
    needed = f"{name} = ...  # in place of the dots, what builds the network"
    if importable:
        needed = f"from {module} import {name}"
    return "\n".join(["import pgmkit", needed, "", *lines])


def _class(generator: Generator) -> tuple[str, str, bool]:
    """Returns module and name of the network's class, and whether they can be imported."""
    kind = type(generator.module)
    named = str(generator.provenance.get("class") or f"{kind.__module__}:{kind.__qualname__}")
    module, _, name = named.partition(":")
    parts = [*module.split("."), name]
    if not all(part.isidentifier() for part in parts):
        return "", re.sub(r"\W", "", name.rpartition(".")[2]) or "Network", False
    return module, name, parts[0] not in ("__main__", "torch", "builtins")


def _argument(generator: Generator) -> str:
    return "" if generator.architecture is not None else f", architecture={_class(generator)[1]}"


def _printed(generator: Generator) -> str:
    lines = repr(generator.module).replace("```", "'''").splitlines()
    more = [f"... and {len(lines) - 80} more lines"] if len(lines) > 80 else []
    shown = ["".join(c for c in line if c.isprintable())[:160] for line in lines[:80]]
    return "\n".join([*shown, *more])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def shares(sizes: Sequence[int]) -> list[list[str]]:
    """Returns the rows of a table of parts: number, size and share of each."""
    total = max(1, sum(sizes))
    return [[str(i), f"{size:,}", f"{size / total:.1%}"] for i, size in enumerate(sizes)]


def _clusters(
    sizes: Sequence[int], numbers: Mapping[str, Any], names: Sequence[str], hidden: Sequence[int]
) -> list[str]:
    """Returns the table of clusters, with what the report knows of the same clusters."""
    rows, header = shares(sizes), ["cluster", "latents", "share"]
    if any(names) or hidden:
        header.insert(1, "name")
        for number, (row, name) in enumerate(zip(rows, names, strict=True)):
            row.insert(1, plain(name) + (" (hidden)" if number in hidden else ""))
    known = numbers.get("clusters") if numbers.get("scores") else None
    if known:
        header += ["mostly", "purity"]
        for row, cluster in zip(rows, known, strict=True):
            row += [plain(cluster.get("mostly") or ""), f"{cluster['purity']:.2f}"]
    scores = [
        f"{plain(protocol)}: AMI {found['adjusted_mutual_information']:.3f}, purity "
        f"{found['overall_purity']:.3f}"
        for protocol, found in numbers.get("scores", {}).items()
    ]
    judge = (numbers.get("classifier") or {}).get("name")
    said = [f"Classes are those of the classifier {plain(judge)}. {'; '.join(scores)}.", ""]
    return ["## Clusters", "", *_table(header, rows), *(said if scores else [])]


def _recipe(generator: Generator, origin: Origin, repository: str | None) -> list[str]:
    """Returns how the clusters were made, and how to make them again."""
    said = (
        f"`{_code(origin.density['name'])}` kept {kept_in_words(origin.statistics)}. "
        f"`{_code(origin.sampler['name'])}` found the clusters among them."
    )
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    lines = ["## Recipe", "", said, "", f"Made with {plain(versions)}.", ""]
    if ":" not in str(origin.density["name"]):
        return [*lines, "The density estimator is an object of its author's own.", ""]
    lines += ["The same again, from the weights here:", ""]
    if generator.architecture is not None:
        lines += _block(_command(origin, _reference(repository)), "bash")
    return [*lines, *_block(_program(generator, origin, _reference(repository)), "python")]


def _code(text: object) -> str:
    return "".join(c for c in str(text) if c.isprintable() and c != "`")


def _settings(origin: Origin) -> dict[str, Any]:
    """Returns the settings that make the same again: those of `shatter` that matter, in order."""
    sampler = shortened_table("cluster-samplers", origin.sampler)
    if isinstance(sampler, str):
        sampler = {"name": sampler}
    sampler.pop("num_clusters", None)
    of_parts = {name: sampler.pop(name) for name in ("partitioner", "mapper") if name in sampler}
    named: Any = sampler if len(sampler) > 1 else sampler["name"]
    return {
        "density": shortened_table("density-estimators", origin.density),
        **({} if named == defaults.SAMPLER else {"sampler": named}),
        **of_parts,
        "clusters": origin.sampler["params"].get("num_clusters", origin.settings["clusters"]),
        **{name: origin.settings[name] for name in ("remove", "latents", "seed")},
    }


def shortened_table(kind: str, table: Mapping[str, Any]) -> Any:
    """Returns what says the same as a component's `name` and `params` in fewer words.

    Returns:
        The name alone where all parameters are what they are by default, or else a table.
    """
    name = _name_of(table)
    usual, changed = _parameters(kind, table["name"]), {}
    for parameter, value in table["params"].items():
        short = _shortened_value(value)
        if parameter not in usual or _as_json(usual[parameter].default) != _as_json(short):
            changed[parameter] = short
    return {"name": name, **changed} if changed else name


def _name_of(table: Mapping[str, Any]) -> str:
    return str(table["name"]).removeprefix(f"{OWN_DISTRIBUTION}:")


def _shortened_value(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("name") == f"{OWN_DISTRIBUTION}:fixed":
        return value.get("source") or _PARTS
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        rest = {name: part for name, part in value.items() if name != "name"}
        for kind in KINDS:
            # A component of another kind may have its name, and other parameters.
            if (
                installed().offers(kind, value["name"])
                and rest.keys() <= _parameters(kind, value["name"]).keys()
            ):
                short = shortened_table(kind, {"name": value["name"], "params": rest})
                # How many parts there are is said by the number of clusters.
                if isinstance(short, dict):
                    short.pop("num_partitions", None)
                    short = short if len(short) > 1 else short["name"]
                return short
    return value


def _parameters(kind: str, name: str) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a component by name; none where that cannot be told."""
    try:
        return inspect.signature(installed().find(kind, name).resolve()).parameters
    except (PgmkitError, ValueError, TypeError):
        return {}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _command(origin: Origin, reference: str) -> str:
    words = ["pgmkit", "shatter", reference, "-o", "shattered"]
    overrides = []
    for name, value in _settings(origin).items():
        table = value if isinstance(value, dict) else {"name": value}
        words += [f"--{name}", str(table["name"])]
        for parameter, part in table.items():
            if parameter != "name" and part is not None:
                overrides += ["--set", f"{name}.{parameter}={in_toml(part)}"]
    return shlex.join([*words, *overrides])


def _program(generator: Generator, origin: Origin, reference: str) -> str:
    lines = [
        f'g = pgmkit.load_generator("{reference}"{_argument(generator)})',
        "m = pgmkit.shatter(",
        "    g,",
        *(
            f"    {name}={json.dumps(value) if isinstance(value, str) else repr(value)},"
            for name, value in _settings(origin).items()
        ),
        ")",
    ]
    return _script(generator, lines)


def partitioner_card(config: Mapping[str, Any], repository: str | None = None) -> str:
    """Returns the card of a fitted partitioner, by what its `partitioner.json` holds."""
    table, data, sizes = config["partitioner"], public(config["data"]) or {}, config["sizes"]
    shape = "×".join(map(str, config["image"]["shape"]))
    facts = {
        "partitioner": json.dumps(shortened_table("partitioners", table)),
        **{f"found: {name}": value for name, value in config.get("findings", {}).items()},
        **{f"data, {name}": value for name, value in data.items()},
        "seed": config["seed"],
        "seconds": config["seconds"],
        "machine": config["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
    }
    use = [
        "import pgmkit",
        "",
        f'p = pgmkit.load_partitioner("{_reference(repository)}")',
        f"parts = p.assign(x)  # of images x (n, {', '.join(map(str, config['image']['shape']))})",
        'm = pgmkit.shatter(pgmkit.load_generator("mnist-dcgan"), partitioner=p)',
    ]
    lines = [
        *card_header(None, "image-classification", ["pgmkit", "partitioner"]),
        f"# {len(sizes)} parts of {shape} images",
        "",
        f"![{PER_CLUSTER} images of each part]({SAMPLES_FILE})",
        "",
        f"Each row of the picture shows {PER_CLUSTER} images of the part of its number.",
        "",
        "## Use",
        "",
        *_block("\n".join(use), "python"),
        "## Parts",
        "",
        *_table(("part", "images", "share"), shares(sizes)),
        "## Recipe",
        "",
        *_table(("", ""), [(plain(name), plain(value)) for name, value in facts.items()]),
    ]
    return "\n".join(lines)


def _weights(generator: Generator, facts: Mapping[str, Any] | None = None) -> list[str]:
    """Returns size, licence and origin of the weights; the facts are the provenance by default."""
    parameters = sum(parameter.numel() for parameter in generator.module.parameters())
    record = public(generator.provenance if facts is None else facts) or {}
    licence = record.pop("license", None)
    low, high = generator.image.range
    rows = [
        ("licence", licence or "not stated; ask the author of the weights before you use them"),
        ("network", f"{generator.architecture or _class(generator)[1]}, {parameters:,} parameters"),
        ("latents", str(generator.latent)),
        ("makes", f"{generator.image}, values from {low:g} to {high:g}"),
        *_flat(record),
    ]
    cells = [(plain(name), plain(value)) for name, value in rows]
    return ["## Weights", "", *_table(("", ""), cells)]


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns the facts of a nested record as rows."""
    rows: list[tuple[str, str]] = []
    for name, value in record.items():
        called = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{called}, ")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append((called, text[:400]))
    return rows
