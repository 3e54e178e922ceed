"""A network, worked out from a state dict.

`parts` reads layers from names and shapes; `drafts` are the ways to fill in what they do not say;
`search` takes the way that agrees best with the statistics of batch norms.
"""

from pgmkit.loading.inference.search import Inferred, infer

__all__ = ["Inferred", "infer"]
