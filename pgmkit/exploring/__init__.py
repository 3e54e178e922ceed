"""Results to be looked at, compared and changed: what is behind the page of `pgmkit explore`.

Nothing here knows of a browser but `page`, which alone imports Gradio.
"""

from pgmkit.exploring.conditional import ConditionalExhibit
from pgmkit.exploring.exhibit import Exhibit, Samples
from pgmkit.exploring.opening import open_exhibit
from pgmkit.exploring.parts import PartitionerExhibit
from pgmkit.exploring.shattered import Preview, Removal, ShatteredExhibit

__all__ = [
    "ConditionalExhibit",
    "Exhibit",
    "PartitionerExhibit",
    "Preview",
    "Removal",
    "Samples",
    "ShatteredExhibit",
    "open_exhibit",
]
