"""A conditional generator to explore: its partitions, as clusters."""

from pathlib import Path

from pgmkit.conditional import ConditionalGenerator
from pgmkit.evaluate import figures
from pgmkit.exploring.exhibit import Samples, sorted_samples, to_show
from pgmkit.images import GeneratedImages
from pgmkit.images.generated import as_source

_ON_PLANE = 4_000


class ConditionalExhibit:
    """A conditional generator; see `Exhibit`."""

    def __init__(self, model: ConditionalGenerator, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder
        self.title = f"{model.name}, of {model.num_partitions} partitions"
        self.image = model.image
        self.lead = f"{model.num_partitions} partitions of {model.image}."
        self.notes = (
            []
            if model.partitioner is not None
            else ["Its partitioner is not there, so samples are not sorted by how clear they are."]
        )

    @property
    def called(self) -> list[str]:
        """Returns the names of the partitions."""
        return [f"partition {number}" for number in range(self.model.num_partitions)]

    @property
    def shares(self) -> list[float]:
        """Returns their masses."""
        return list(self.model.masses)

    def samples(self, cluster: int, n: int, *, fresh: bool = False, seed: int = 0) -> Samples:
        """Returns n samples of a partition, which are always drawn anew."""
        drawn = self.model.draw(n, cluster, seed=seed + 1 if fresh else 0)
        margins = None
        if self.model.partitioner is not None:
            x = as_source(drawn.images.to(self.model.device), self.image)
            logits = self.model.partitioner.logits(x).cpu()
            own = logits[:, cluster].clone()
            if logits.shape[1] > 1:
                logits[:, cluster] = -float("inf")
                margins = own - logits.amax(dim=1)
        return sorted_samples(to_show(drawn.images, self.image), margins, drawn.latents)

    @property
    def is_plane(self) -> bool:
        """Whether it makes points of the plane, whose parts are known."""
        return self.image.shape == (2,) and self.model.partitioner is not None

    def plane(self, part: int | None) -> bytes:
        """Returns a PNG of what it makes, on its partitions, with the field of the guide to one.

        Raises:
            ParameterError: the logits have no gradient.
        """
        assert self.model.partitioner is not None
        whole = self.model.whole()
        made = GeneratedImages(whole, whole.sample_latents(_ON_PLANE, seed=0))
        return figures.plane(self.model.partitioner, made, part)
