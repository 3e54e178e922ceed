"""Fits partitioners to data sets and writes tables of how well their parts match the labels.

    python benchmarks/partition/run.py ls
    python benchmarks/partition/run.py fit mnist --data ../data/mnist.npz
    python benchmarks/partition/run.py fit mnist --data ../data/mnist.npz --only self-trained
    python benchmarks/partition/run.py pages

No method but `labels` sees a label. What is done already in `--out` is read back, and a fit that
was stopped continues there; its time is then that of the last start. Where a generator of such
images ships, what was fitted shatters it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit import files, load_generator, progress, shatter
from pgmkit.cli import main
from pgmkit.config import in_toml, read_toml
from pgmkit.errors import UnknownNameError
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.metrics import score_samples
from pgmkit.images import load_images
from pgmkit.jobs.partition import assign_images, prepare
from pgmkit.machine import check_device
from pgmkit.partition import load_partitioner

HERE = Path(__file__).parent
LATENTS, SAMPLES = 4_000, 10_000
PUBLISHED = read_toml(HERE / "published.toml")
SCORES = {
    "normalized_mutual_information": "NMI",
    "adjusted_mutual_information": "AMI",
    "adjusted_rand_index": "ARI",
    "matched_accuracy": "accuracy",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Compare partitioners on data sets with labels."""


@cli.command("ls")
def list_data_sets() -> None:
    """List the data sets, with their methods and which are done."""
    for name, config in configs().items():
        click.echo(f"{name:16} {config['title']}")
        for method in config["methods"]:
            done = len(list((HERE / name).glob(f"{method}-*.json")))
            click.echo(f"  {method:22} {f'{done} done' if done else '-'}")


@cli.command()
@click.argument("name")
@click.option(
    "--data", required=True, help="The images, see docs/images.md; of Stacked MNIST, MNIST."
)
@click.option("--only", multiple=True, help="A method; may be given several times.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("runs/partition"))
@click.option(
    "--gans",
    type=click.Path(path_type=Path),
    default=Path("runs/pgmgan"),
    help="Where benchmarks/pgmgan left its trainings.",
)
@click.option(
    "--results", type=click.Path(path_type=Path), default=HERE, help="Beside this script."
)
def fit(
    name: str,
    data: str,
    only: tuple[str, ...],
    seed: int,
    device: str,
    out: Path,
    gans: Path,
    results: Path,
) -> None:
    """Fit the methods of the data set NAME, one after the other, and write the pages."""
    if name not in configs():
        raise UnknownNameError("data set", name, configs())
    config = configs()[name]
    for method in only:
        if method not in config["methods"]:
            raise UnknownNameError(f"method of {name}", method, config["methods"])
    for method in only or config["methods"]:
        folders = {"fits": (out / name).absolute(), "gans": (gans / name).absolute()}
        table = filled(config["methods"][method], **folders, seed=seed)
        numbers = table.pop("partitions", config["partitions"])
        for partitions in numbers if isinstance(numbers, list) else [numbers]:
            cell = f"{method}-{partitions}-{seed}"
            values = {
                "data": config["data"].format(data=data),
                "size": config["size"],
                "partitioner": table,
                "partitions": partitions,
                "seed": seed,
                "device": device,
            }
            with progress.shown():
                progress.tell(f"{name}: {cell}")
                prepare(values).run(out / name / cell)
                record = result_of(out / name / cell, values)
                record |= shattered_by(out / name / cell, config, seed, device)
            kept = json.dumps({"method": method, **record})
            for known, folder in folders.items():
                kept = kept.replace(str(folder), f"{{{known}}}")
            files.write_json(results / name / f"{cell}.json", json.loads(kept))
            write_pages(results)


@cli.command()
def pages() -> None:
    """Write the tables again, from the results beside this script."""
    write_pages(HERE)


def configs() -> dict[str, dict[str, Any]]:
    """Returns the config of each data set by name."""
    return {path.stem: read_toml(path) for path in sorted((HERE / "configs").glob("*.toml"))}


def filled(value: Any, **known: Any) -> Any:
    """Returns a table in which `{fits}` and `{gans}`, folders, and `{seed}` are filled in."""
    if isinstance(value, Mapping):
        return {key: filled(inner, **known) for key, inner in value.items()}
    return value.format(**known) if isinstance(value, str) else value


def result_of(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is to be kept of a fit: scores of its images and of others, and its making."""
    fitted = load_partitioner(folder)
    others = load_images(values["data"], split="test", size=values["size"])
    others = others.to(check_device(values["device"]))
    found = assign_images(fitted, others)
    origin = fitted.origin
    return {
        "partitioner": origin["partitioner"],
        "partitions": len(fitted.sizes),
        "dead": sum(size == 0 for size in fitted.sizes),
        "images": sum(fitted.sizes),
        "scores": origin["scores"],
        "test_scores": found["scores"],
        "findings": origin["findings"],
        "seed": origin["seed"],
        "seconds": origin["seconds"],
        "device": origin["device"],
        "machine": origin["machine"],
        "versions": origin["versions"],
    }


def shattered_by(
    folder: Path, config: Mapping[str, Any], seed: int, device: str
) -> dict[str, float]:
    """Returns how well samples of clusters match classes where a fit shatters a generator."""
    if "generator" not in config:
        return {}
    generator = load_generator(config["generator"], device=device)
    fitted = load_partitioner(folder)
    spectrum = {"cache": True}
    shattered = shatter(
        generator, partitioner=fitted, latents=LATENTS, seed=seed, spectrum=spectrum
    )
    scores = score_samples(shattered, load_classifier(config["classifier"]), SAMPLES, seed)
    return {"shattered": scores.adjusted_mutual_information}


def write_pages(results: Path) -> None:
    """Writes README.md: a table for each data set, with the published numbers below."""
    lines = [
        "# Partitioners on data sets",
        "",
        "Written by `python benchmarks/partition/run.py pages`; do not edit. What it says: "
        "[docs/results.md](../../docs/results.md#partitions-of-data-sets).",
        "",
        "Scores are of the images that were fitted; in brackets of test images, which no method "
        "saw. Accuracy is by the best one-to-one matching of parts with classes, so it cannot be "
        "high where there are more parts than classes. Dead parts have no image. Minutes are of "
        "the fit alone, and where it looks at the features of another (`{fits}`) without theirs. "
        f"Shattered is AMI of {SAMPLES:,} samples of clusters where these parts "
        f"shatter a generator that ships, with {LATENTS:,} latents and all else by default; a "
        "classifier that ships is the judge.",
    ]
    for name, config in configs().items():
        lines += ["", f"## {config['title']}", "", *table_of(results / name, config)]
    files.write_text(results / "README.md", "\n".join(lines) + "\n")


def table_of(results: Path, config: Mapping[str, Any]) -> list[str]:
    """Returns the table of a data set, in Markdown, and what stands below it."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(results.glob("*.json")):
        cell = files.read_json(path, str(path))
        cells[cell["method"], cell["partitions"]].append(cell)
    header = ["method", "k", *SCORES.values(), "shattered", "dead", "minutes", "device", "seeds"]
    rows = [header, ["---"] * len(header)]
    machines: set[str] = set()
    for method in config["methods"]:
        for (_, partitions), found in sorted(i for i in cells.items() if i[0][0] == method):
            rows.append([f"`{method}`", str(partitions), *map(str, row_of(found))])
            machines |= {f"{cell['machine']}, torch {cell['versions']['torch']}" for cell in found}
    published = PUBLISHED.get(results.name, {})
    rows += [
        [label, "", f"{nmi:.3f}", *[""] * (len(header) - 3)] for label, nmi in published.items()
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    methods = {m: in_toml(t) for m, t in config["methods"].items() if any(c[0] == m for c in cells)}
    lines += ["", f"Images: {config['about']}", ""]
    lines += [f"* `{method}`: `{table}`" for method, table in methods.items()]
    lines += ["", *(f"Machine: {machine}." for machine in sorted(machines))]
    return lines


def row_of(cells: list[dict[str, Any]]) -> list[str]:
    """Returns the columns of one method and number of parts, as means over seeds."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    columns = []
    for score in SCORES:
        own, other = (
            mean([cell[kind][score] for cell in cells]) for kind in ("scores", "test_scores")
        )
        columns.append(f"{own:.3f} ({other:.3f})")
    shattered = [cell["shattered"] for cell in cells if "shattered" in cell]
    columns.append(f"{mean(shattered):.3f}" if shattered else "")
    minutes = mean([cell["seconds"] for cell in cells]) / 60
    dead = "/".join(str(cell["dead"]) for cell in cells)
    seeds = ", ".join(str(cell["seed"]) for cell in cells)
    return [*columns, dead, f"{minutes:.1f}", cells[0]["device"], seeds]


if __name__ == "__main__":
    main(cli)
