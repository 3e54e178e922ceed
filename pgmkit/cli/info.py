"""`pgmkit info`."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from pgmkit import files
from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, json_option, print_json, print_table
from pgmkit.cli.reports import class_of, report_beside
from pgmkit.errors import LoadError, listed, printable
from pgmkit.loading.configs import facts_of, read_config, read_masses
from pgmkit.loading.folders import (
    CONDITIONAL_CONFIG,
    PARTITIONER_CONFIG,
    WEIGHT_SUFFIXES,
    ModelFolder,
)
from pgmkit.loading.references import open_folder, registry_configs
from pgmkit.plugins import installed
from pgmkit.runs import RUN_FILE

_SAMPLER, _SPECTRUM, _ABLATION = "sampler.json", "manifest.json", "ablation.json"
_STOPPED = "stopped or going on"
_CHECKSUMS = ("sha256", "fingerprint", "labels")


@dataclass(frozen=True)
class _Told:
    """What is told of a folder.

    Args:
        kind: what it holds.
        facts: texts by name.
        record: plain values by name, for programs.
        parts: a row of texts for each cluster or partition, after one of names.
        next: commands for what is done with it.
    """

    kind: str
    facts: Mapping[str, str]
    record: Mapping[str, Any]
    parts: Sequence[Sequence[str]] = ()
    next: Sequence[str] = ()


@click.command(
    epilog=examples(
        "pgmkit info mnist-pgmgan", "pgmkit info shattered", "pgmkit info runs/digits --json"
    )
)
@click.argument("reference", shell_complete=complete_models("generator"))
@json_option
def info(reference: str, as_json: bool) -> None:
    """Tell what a folder or a reference holds, and what to do with it; nothing is loaded.

    REFERENCE is a folder that any command of pgmkit wrote, complete or not: a generator, shattered
    or conditional or neither, a classifier, a partitioner, a spectrum, a training, an ablation. Or
    it is a registry name, a weight file or hf-hub:org/name[@revision].
    """
    what = "classifier" if reference in registry_configs("classifier") else "generator"
    told = _told_of(open_folder(reference, what))
    if as_json:
        print_json({"reference": reference, "kind": told.kind, **told.record})
        return
    rows = {"reference": reference, "holds": told.kind, **told.facts}
    print_table([*rows.items()], ("field", "value"))
    if told.parts:
        click.echo()
        print_table(told.parts[1:], told.parts[0])
    if told.next:
        click.echo("\nnext")
        for command in told.next:
            click.echo(printable(f"  {command}"))


def _told_of(folder: ModelFolder) -> _Told:
    """Returns what there is to tell, by the first file that says what the folder is."""
    for name, tell in _TELLERS.items() if folder.weights is None else ():
        path = folder.fetch(name)
        if path is None:
            continue
        content = files.read_json(path, folder.reference)
        try:
            return tell(folder, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LoadError(
                f"{name} of {folder.reference} is damaged or of another version "
                f"({type(error).__name__}: {error}); run the command that wrote it again"
            ) from error
    return _model(folder)


def _shattered(folder: ModelFolder, content: Mapping[str, Any]) -> _Told:
    config, settings = read_config(folder).ours, content["settings"]
    sizes, kept = content["cluster_sizes"], content["statistics"]
    report = report_beside(folder, sizes)
    clusters = [] if report is None else report["clusters"]
    classes = [class_of(cluster) for cluster in clusters]
    parts = [("cluster", "latents", "share", "mostly", "purity")]
    for index, size in enumerate(sizes):
        purity = clusters[index]["purity"] if clusters else None
        mostly = classes[index] if classes else None
        share = f"{size / sum(sizes):.1%}"
        judged = "-" if purity is None else f"{purity:.2f}"
        parts.append((str(index), f"{size:,}", share, mostly or "-", judged))
    facts = {
        **facts_of(config),
        "density": content["density"]["name"],
        **_made_by(content["sampler"]),
        "clusters": str(len(sizes)),
        "kept": f"{kept['num_kept']:,} of {kept['num_latents']:,} latents, mass "
        f"{kept['mass_kept']:.3f}",
        "seed": str(settings["seed"]),
        "versions": _listed(content["versions"]),
    }
    if report is not None:
        facts["made in"] = f"{sum(report['seconds'].values()):,.0f} s"
        facts |= {
            f"AMI of {protocol}": f"{scores['adjusted_mutual_information']:.4f}"
            for protocol, scores in report["scores"].items()
        }
    quoted = shlex.quote(folder.reference)
    known = next((name for name in classes if name is not None), None)
    chosen = "--cluster 0" if known is None else f"--class {shlex.quote(known)}"
    commands = [f"pgmkit sample {quoted} {chosen} -o samples.png", f"pgmkit explore {quoted}"]
    if known is None:
        commands.append(f"pgmkit evaluate {quoted} --classifier CLASSIFIER")
    record = {**content, "config": config, "report": report}
    return _Told("a shattered generator", facts, record, parts, commands)


def _made_by(sampler: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names of a sampler and of what it is made of."""
    parts = {
        name: value["name"]
        for name, value in sampler["params"].items()
        if name in ("partitioner", "mapper") and isinstance(value, Mapping)
    }
    return parts or {"sampler": sampler["name"]}


def _conditional(folder: ModelFolder, content: Mapping[str, Any]) -> _Told:
    config = {**read_config(folder).ours, **folder.provenance}
    masses = read_masses(folder) or ()
    rates = config.get("provenance", {}).get("acceptance") or [None] * len(masses)
    parts = [("partition", "mass", "acceptance")]
    for number, (mass, rate) in enumerate(zip(masses, rates, strict=True)):
        parts.append((str(number), f"{mass:.4f}", "-" if rate is None else f"{rate:.1%}"))
    facts = {
        **facts_of(config),
        "partitions": f"{len(masses)}, with masses from {min(masses):.3g} to {max(masses):.3g}",
        "partitioner": "there, to draw again by (--redraws)" if content.get("partitioner") else "-",
    }
    quoted = shlex.quote(folder.reference)
    commands = [
        f"pgmkit sample {quoted} --partition 0 -o samples.png",
        f"pgmkit shatter {quoted} --partition 0 -o shattered",
    ]
    record = {**config, "masses": list(masses)}
    return _Told("a conditional generator", facts, record, parts, commands)


def _spectrum(folder: ModelFolder, content: Mapping[str, Any]) -> _Told:
    settings = content["settings"]
    total = math.ceil(settings["num_latents"] / settings["block_size"])
    facts = {
        "generator": settings["generator_name"],
        "latents": f"{settings['num_latents']:,}, of seed {settings['seed']}",
        "sketch": _listed({name: settings.get(name) for name in ("sketch", "probes")}),
        "computed on": str(settings["device"]),
        "blocks on record": f"{len(content['blocks'])} of {total}",
    }
    quoted = shlex.quote(folder.reference)
    commands = [
        f"pgmkit spectrum info {quoted}",
        f"pgmkit shatter SOURCE --spectrum {quoted} -o shattered",
    ]
    return _Told("a spectrum", facts, {"settings": settings, "blocks": total}, (), commands)


def _partitioner(folder: ModelFolder, content: Mapping[str, Any]) -> _Told:
    sizes, data = content["sizes"], content["data"]
    parts = [("part", "images", "share")]
    parts += [(str(i), f"{size:,}", f"{size / sum(sizes):.1%}") for i, size in enumerate(sizes)]
    scores = content.get("scores") or {}
    facts = {
        "partitioner": content["partitioner"]["name"],
        "images": f"{data['source']}, {'×'.join(map(str, data['shape']))}",
        "parts": str(len(sizes)),
        "seed": str(content["seed"]),
        "findings": _listed(content.get("findings") or {}),
        "against labels": _listed(scores),
        "versions": _listed(content["versions"]),
    }
    named = folder.reference if ":" in folder.reference else f"local-dir:{folder.reference}"
    commands = [
        f"pgmkit partition assign {shlex.quote(folder.reference)} --data IMAGES -o parts.csv",
        f"pgmkit shatter SOURCE --partitioner {shlex.quote(named)} -o shattered",
    ]
    return _Told("a partitioner", facts, content, parts, commands)


def _run(folder: ModelFolder, content: Mapping[str, Any]) -> _Told:
    """Tells of a run whose result is not in its own folder, or not there yet."""
    settings, names = content["settings"], folder.names()
    facts = {
        name: _listed(_without_checksums(value))
        for name, value in settings.items()
        if value not in (None, {}, [])
    }
    inside = shlex.quote(f"{folder.reference}/model")
    if settings.get("command") == "ablate":
        cells = sum(name.startswith("cells/") for name in names)
        done = _ABLATION in names
        state = "complete" if done else _STOPPED
        facts = {"cells on record": f"{cells:,}", **facts}
        return _Told(f"an ablation, {state}", facts, dict(content), (), _again(done))
    if "task" in settings:
        done = "model/config.json" in names
        steps = sorted(name for name in names if name.startswith("checkpoint-"))
        state = "complete" if done else _STOPPED
        at = steps[-1].removeprefix("checkpoint-").partition(".")[0].lstrip("0") if steps else "-"
        facts = {"last checkpoint": f"step {at or 0}", **facts}
        commands = [f"pgmkit info {inside}"] if done else _again(done)
        return _Told(f"a training, {state}", facts, dict(content), (), commands)
    what = "a shattering" if "density" in settings else "a partition"
    if "report.json" in names:
        return _Told(f"{what}, which could not be saved", facts, dict(content))
    return _Told(f"{what}, {_STOPPED}", facts, dict(content), (), _again(False))


def _without_checksums(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {k: _without_checksums(part) for k, part in value.items() if k not in _CHECKSUMS}


def _again(is_done: bool) -> Sequence[str]:
    return () if is_done else (files.CONTINUES,)


def _model(folder: ModelFolder) -> _Told:
    """Tells of a generator or a classifier, or of a folder with weights that says nothing."""
    config = folder.config() if folder.weights is None else {}
    quoted = shlex.quote(folder.reference)
    network = config.get("architecture")
    if isinstance(network, str) and installed().offers("classifiers", network):
        facts = {
            "architecture": network,
            "classes": _listed(config.get("classes") or "-"),
            "measured": _listed(config.get("measured") or {}),
            "license": str(config.get("license", "-")),
        }
        commands = [f"pgmkit shatter SOURCE -o shattered --classifier {quoted}"]
        return _Told("a classifier", facts, config, (), commands)
    known = {**read_config(folder).ours, **folder.provenance}
    facts = facts_of(known)
    facts |= {name: str(known[name]) for name in ("paper", "repo", "revision") if name in known}
    if "architecture" in known:
        return _Told("a generator", facts, known, (), [f"pgmkit shatter {quoted} -o shattered"])
    names = folder.names()
    if not any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        raise LoadError(
            f"{folder.reference} holds nothing that pgmkit knows, but "
            f"{listed(names, 8) or 'no files'}; give the folder that a command wrote, or one with "
            "weights"
        )
    return _Told("weights", facts, known, (), [f"pgmkit generators inspect {quoted}"])


def _listed(value: Any) -> str:
    """Returns a plain value as a text; a table as its entries, and an empty one as a dash."""
    if isinstance(value, Mapping):
        entries = (f"{name} {_listed(part)}" for name, part in value.items() if part is not None)
        return ", ".join(entries) or "-"
    if isinstance(value, list):
        return listed([_listed(part) for part in value], 12) or "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_TELLERS: Mapping[str, Callable[[ModelFolder, Mapping[str, Any]], _Told]] = {
    _SAMPLER: _shattered,
    CONDITIONAL_CONFIG: _conditional,
    _SPECTRUM: _spectrum,
    PARTITIONER_CONFIG: _partitioner,
    RUN_FILE: _run,
}
