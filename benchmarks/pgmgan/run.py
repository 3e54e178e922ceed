"""Trains GANs with partitions, guide, both or neither, and writes tables of what they make.

    python benchmarks/pgmgan/run.py ls
    python benchmarks/pgmgan/run.py run ring
    python benchmarks/pgmgan/run.py run mnist --data ../data/mnist.npz --only guided --seed 0
    python benchmarks/pgmgan/run.py run cifar10 --data cifar10.npz --parts runs/partition/cifar10
    python benchmarks/pgmgan/run.py pages

All methods of a data set have the networks and as many steps. A result that is there is left as it
is, and a training that was stopped continues. Samples are drawn from the model that was written.
"""

import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import pgmkit
from pgmkit import ConditionalGenerator, files, pictures, progress
from pgmkit.cli import main
from pgmkit.cli.settings import device_option, set_option
from pgmkit.config import apply_overrides, in_toml, read_toml
from pgmkit.errors import UnknownNameError
from pgmkit.evaluate import figures
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.extractors import FeatureExtractor, load_extractor
from pgmkit.evaluate.fidelity_scores import Moments, frechet_distance
from pgmkit.evaluate.modes import ModeScores, class_mode_scores, mode_scores
from pgmkit.evaluate.partitions import partition_scores
from pgmkit.images import batches, load_images
from pgmkit.images.generated import as_source
from pgmkit.images.points import PLANES, find_points
from pgmkit.jobs.train import PARTITIONER, prepare
from pgmkit.machine import machine

HERE = Path(__file__).parent
PICTURED = 0
"""The seed whose samples are drawn."""
REDRAWS = 20
"""How often the paper's authors draw a sample again that the partitioner finds elsewhere."""
COLUMNS = {
    "modes": "modes",
    "high_quality": "high quality",
    "reverse_kl": "reverse KL",
    "spread": "spread",
    "fid": "FID",
    "nmi": "NMI, samples",
    "diversity": "diversity",
    "inside": "inside",
}
DIGITS = {"modes": 1, "reverse_kl": 4, "fid": 2}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Compare partition-guided GANs with what they are made of."""


@cli.command("ls")
def list_data_sets() -> None:
    """List the data sets, with their methods and how many seeds are done."""
    for name, config in configs().items():
        click.echo(f"{name:16} {config['title']}")
        for method in config["methods"]:
            done = len(cells_of(HERE / name, method))
            click.echo(f"  {method:22} {f'{done} done' if done else '-'}")


@cli.command()
@click.argument("name")
@click.option("--data", help="The images, see docs/images.md; of Stacked MNIST, MNIST.")
@click.option("--only", multiple=True, help="A method; may be given several times.")
@click.option("--seed", "seeds", multiple=True, type=int, default=range(5), show_default=True)
@click.option(
    "--parts", help="Where benchmarks/partition left its fits.  [default: runs/partition/NAME]"
)
@click.option("--classifier", help="Of the samples' classes, where the data set has none.")
@click.option("--features", help="Of FID and diversity, where the data set has none.")
@device_option
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("runs/pgmgan"))
@click.option("--results", type=click.Path(path_type=Path), help="[default: beside this script]")
@set_option
def run(
    name: str,
    data: str | None,
    only: tuple[str, ...],
    seeds: tuple[int, ...],
    device: str | None,
    out: Path,
    results: Path | None,
    overrides: tuple[str, ...],
    parts: str | None,
    **judges: str | None,
) -> None:
    """Train the methods of the data set NAME, one after the other, and write the pages."""
    if name not in configs():
        raise UnknownNameError("data set", name, configs())
    if overrides and results is None:
        raise click.UsageError(
            "--set makes another experiment; name a folder for its results with --results"
        )
    config = {**apply_overrides(configs()[name], overrides)}
    if "{data}" in config["data"] and data is None:
        raise click.UsageError(f"{name} does not ship; name its images with --data")
    config["data"] = config["data"].format(data=data)
    config["parts"] = parts or f"runs/partition/{name}"
    config |= {kind: judge for kind, judge in judges.items() if judge is not None}
    for method in only:
        if method not in config["methods"]:
            raise UnknownNameError(f"method of {name}", method, config["methods"])
    for method in only or config["methods"]:
        for seed in seeds:
            cell = (results or HERE) / name / f"{method}-{seed}.json"
            if cell.exists():
                continue
            with progress.shown():
                progress.tell(f"{name}: {method}, seed {seed}")
                files.write_json(cell, result_of(config, method, seed, device, out / name, cell))
            write_pages(results or HERE)


@cli.command()
@click.option("--results", type=click.Path(path_type=Path), default=HERE, help="Where they lie.")
def pages(results: Path) -> None:
    """Write the tables again, from the results."""
    write_pages(results)


def configs() -> dict[str, dict[str, Any]]:
    """Returns the config of each data set by name."""
    return {path.stem: read_toml(path) for path in sorted((HERE / "configs").glob("*.toml"))}


def cells_of(results: Path, method: str) -> list[dict[str, Any]]:
    """Returns what is known of a method, by seeds."""
    paths = sorted(results.glob(f"{method}-[0-9]*.json"))
    return [files.read_json(path, str(path)) for path in paths]


def training_of(
    config: Mapping[str, Any], method: str, seed: int, device: str | None
) -> dict[str, Any]:
    """Returns the training config of a method: that of all, and what it adds to `model`."""
    training = config["training"]
    model = {**training["model"], **config["methods"][method]}
    if isinstance(model.get("partitioner"), str):
        model["partitioner"] = model["partitioner"].format(parts=config["parts"])
    given = {"data": config["data"], "seed": seed, "device": device or "auto"}
    return {**training, "model": model, **given}


def result_of(
    config: Mapping[str, Any], method: str, seed: int, device: str | None, out: Path, cell: Path
) -> dict[str, Any]:
    """Trains a method, or reads what was trained, and returns what is to be kept of it."""
    values = training_of(config, method, seed, device)
    job = prepare(values)
    folder = out / f"{method}-{seed}"
    job.run(folder)
    model: Any = pgmkit.load(f"local-dir:{folder / 'model'}", device=job.task.device)
    scorer = Scorer(config, values.get("image_size"), job.task.device)
    is_conditional = isinstance(model, ConditionalGenerator)
    scores = {}
    for redraws in (0, REDRAWS) if is_conditional else (0,):
        images, parts = drawn(model, config["samples"], seed, redraws)
        scores[f"redraws {redraws}"] = scorer.scores(images, parts)
        if is_conditional and not redraws:
            assert parts is not None
            inside = found_in(model, images, job.task.device) == parts
            scores["redraws 0"]["inside"] = float(inside.double().mean())
        if seed == PICTURED and not redraws:
            draw(cell.parent, method, job.source, model, images, parts)
    training = model.provenance["training"]
    origin = pgmkit.load_partitioner(folder / PARTITIONER).origin if is_conditional else {}
    return {
        "method": method,
        "model": {**config["training"]["model"], **config["methods"][method]},
        "partitions": model.num_partitions if is_conditional else None,
        "parts": origin.get("scores"),
        "seconds_of_parts": origin.get("seconds"),
        "samples": config["samples"],
        "scores": scores,
        "features": config.get("features"),
        "classifier": config.get("classifier"),
        "seed": seed,
        "steps": training["steps"],
        "seconds": training["seconds"],
        "device": str(job.task.device),
        "machine": machine(),
        "versions": {name: version(name) for name in ("pgmkit", "torch")},
    }


def drawn(model: Any, count: int, seed: int, redraws: int) -> tuple[Tensor, Tensor | None]:
    """Returns samples, on the CPU, with their partitions where the model has such."""
    if isinstance(model, ConditionalGenerator):
        found = model.draw(count, seed=seed, redraws=redraws)
        return found.images, found.partitions
    return model.images(model.sample_latents(count, seed)), None


def found_in(model: ConditionalGenerator, images: Tensor, device: torch.device) -> Tensor:
    """Returns the partition (n,) in which the partitioner finds each sample."""
    assert model.partitioner is not None
    found = [
        model.partitioner.assign(as_source(x.to(device), model.image)).cpu()
        for x in images.split(250)
    ]
    return torch.cat(found)


class Scorer:
    """Scores samples of a data set.

    Args:
        config: of the data set: `data`, and `classifier` and `features` if there are any.
        size: side of the images.
        device: where networks run.
    """

    def __init__(self, config: Mapping[str, Any], size: int | None, device: torch.device) -> None:
        self.data, self.size = config["data"], size
        self.source = load_images(self.data, size=size)
        self.judge = self.extractor = None
        if config.get("classifier"):
            self.judge = load_classifier(config["classifier"])
            self.judge.module.to(device)
        if config.get("features"):
            self.extractor = load_extractor(config["features"], device)
            found = [self.features(x, self.extractor) for x in batches(self.source)]
            self.reference = Moments.of(torch.cat(found))

    def scores(self, images: Tensor, parts: Tensor | None) -> dict[str, float]:
        """Returns the scores of samples (n, ...) of partitions (n,), by names of `COLUMNS`."""
        if self.source.image.is_points:
            modes = mode_scores(images, PLANES[find_points(self.data)[0]])
            assert modes.spread is not None
            found = {"high_quality": modes.high_quality, "spread": modes.spread}
            return {**of_modes(modes), **found}
        told: dict[str, float] = {}
        if self.judge is not None:
            classes, number = self.classes(images)
            told |= of_modes(class_mode_scores(classes, number))
            if parts is not None:
                told["nmi"] = partition_scores(parts, classes).normalized_mutual_information
        if self.extractor is not None:
            features = self.features(images, self.extractor)
            told["fid"] = frechet_distance(Moments.of(features), self.reference)
            if parts is not None:
                told["diversity"] = diversity(features, parts)
        return told

    def classes(self, images: Tensor) -> tuple[Tensor, int]:
        """Returns the classes (n,) of images and their number; of channels of their own, if grey.

        A classifier of grey images sees each channel by itself, and the classes of the channels are
        the digits of that of the image.
        """
        assert self.judge is not None
        base = len(self.judge.classes)
        is_grey = getattr(self.judge.module, "image_channels", None) == 1
        pieces = images.split(1, dim=1) if is_grey else (images,)
        classes = torch.zeros(len(images), dtype=torch.int64)
        for piece in pieces:
            classes = base * classes + self.judge.labels(piece, self.source.image.range)
        return classes, base ** len(pieces)

    def features(self, images: Tensor, extractor: FeatureExtractor) -> Tensor:
        """Returns the features (n, d) of images; one of grey images sees channels by themselves."""
        pixels = pictures.to_uint8(images.cpu(), self.source.image.range)
        pieces = pixels.split(1, dim=1) if extractor.channels == 1 else (pixels,)
        return torch.cat([extractor.features(piece) for piece in pieces], dim=1)


def of_modes(scores: ModeScores) -> dict[str, float]:
    return {"modes": scores.covered, "reverse_kl": scores.reverse_kl}


def diversity(features: Tensor, parts: Tensor) -> float:
    """Returns how far apart samples of one partition are, beside all samples.

    It is the root mean square distance of two samples of one partition, in features (n, d), over
    that of any two: 1 where partitions make no difference, and 0 where each is a single image.
    """
    features = features.double()
    squares, pairs, whole = 0.0, 0, squared_distances(features) / (len(features) - 1)
    for part in parts.unique():
        some = features[parts == part]
        squares += len(some) * squared_distances(some)
        pairs += len(some) * (len(some) - 1)
    return (squares / pairs / whole) ** 0.5 if squares else 0.0


def squared_distances(x: Tensor) -> float:
    """Returns n - 1 times the mean of ‖x - y‖² over pairs of different rows of x (n, d)."""
    return 2 * float((x - x.mean(dim=0)).square().sum())


def draw(
    folder: Path, method: str, source: Any, model: Any, images: Tensor, parts: Tensor | None
) -> None:
    """Draws data and samples, and of points the parts with the guide to one of them."""
    if not source.image.is_points:
        picture = folder / f"{method}.png"
        if parts is None:
            pictures.write_grid(picture, images[:64], source.image.range)
        else:
            few = range(min(model.num_partitions, 16))
            rows = torch.cat([model.sample(10, part) for part in few])
            pictures.write_rows(picture, rows, source.image.range, 10)
        return
    shown = source.image.range
    some = source.subset(torch.arange(min(len(source), 10_000)))
    data = some.batch(torch.arange(len(some)))
    files.write_bytes(folder / "data.png", figures.points(data, some.labels, shown))
    few = None if parts is None else parts[:10_000]
    files.write_bytes(folder / f"{method}.png", figures.points(images[:10_000], few, shown))
    if parts is not None:
        parted = figures.plane(model.partitioner, some.to(model.device), 0)
        files.write_bytes(folder / "parts.png", parted)


def write_pages(results: Path) -> None:
    """Writes README.md: a table for each data set, beside what is published."""
    lines = [
        "# Partition-guided GANs",
        "",
        "Written by `python benchmarks/pgmgan/run.py pages`; do not edit. How the numbers are "
        "made: [docs/results.md](../../docs/results.md#partition-guided-gans).",
        "",
        "Means ± standard deviations over seeds. Rows with redraws: samples that the partitioner "
        f"finds in another partition are drawn again, up to {REDRAWS} times, as the paper's "
        "authors do. Seconds are of a step, without the parts, with what is measured on the way; "
        "accelerators were shared by several trainings.",
    ]
    for name, config in configs().items():
        if any(cells_of(results / name, method) for method in config["methods"]):
            lines += ["", f"## {config['title']}", "", *table_of(results / name, config)]
    files.write_text(results / "README.md", "\n".join(lines) + "\n")


def table_of(results: Path, config: Mapping[str, Any]) -> list[str]:
    """Returns the table of a data set, in Markdown, and what stands below it."""
    rows: list[tuple[str, dict[str, str]]] = []
    made = {method: cells for method in config["methods"] if (cells := cells_of(results, method))}
    for method, cells in made.items():
        for redraws in cells[0]["scores"]:
            label = f"`{method}`" if redraws == "redraws 0" else f"`{method}`, {redraws}"
            rows.append((label, row_of(cells, redraws)))
    for label, published in config.get("published", {}).items():
        rows.append((label, {k: f"{v:.{DIGITS.get(k, 3)}f}" for k, v in published.items()}))
    titles = {**COLUMNS, "k": "k", "parts": "NMI, parts", "seconds": "seconds", "seeds": "seeds"}
    used = [column for column in titles if any(row.get(column) for _, row in rows)]
    table = [["method", *(titles[column] for column in used)], ["---"] * (len(used) + 1)]
    table += [[label, *(row.get(column, "") for column in used)] for label, row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    first = next(iter(made.values()))[0]
    lines += ["", f"{config['about']} {first['samples']:,} samples; {first['steps']:,} steps."]
    if first["features"]:
        lines[-1] += f" FID and diversity are in features {first['features']}."
    if first["classifier"]:
        lines[-1] += f" Classes of samples are by {first['classifier']}."
    lines += ["", f"All: `{in_toml(config['training'])}`", ""]
    lines += [f"* `{m}`: `{in_toml(config['methods'][m])}`" for m in made]
    shown = [path.name for path in sorted(results.glob("*.png"))]
    lines += ["", *(f"![{name}]({results.name}/{name})" for name in shown)] if shown else []
    machines = {
        f"Machine: {cell['device']} of {cell['machine']}, torch {cell['versions']['torch']}."
        for cells in made.values()
        for cell in cells
    }
    return [*lines, "", *sorted(machines)]


def row_of(cells: list[dict[str, Any]], redraws: str) -> dict[str, str]:
    """Returns the columns of one method, as text."""
    columns = {
        name: spread([cell["scores"][redraws][name] for cell in cells], DIGITS.get(name, 3))
        for name in cells[0]["scores"][redraws]
    }
    if redraws == "redraws 0":
        columns["k"] = str(cells[0]["partitions"] or "")
        if cells[0]["parts"]:
            scores = [cell["parts"]["normalized_mutual_information"] for cell in cells]
            columns["parts"] = spread(scores, 3)
        columns["seconds"] = spread([cell["seconds"] / cell["steps"] for cell in cells], 3)
        columns["seeds"] = ", ".join(str(cell["seed"]) for cell in cells)
    return columns


def spread(values: list[float], digits: int) -> str:
    """Returns the mean, and with several values their standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main(cli)
