"""Ablations: generators × density estimators × cluster samplers × parameters × seeds.

All cells of one generator and seed share its spectrum and its class labels. The experiment is that
of section 5 of the LASH paper; `pgmkit ablate` runs it.
"""

from pgmkit.evaluate.ablation.run import PreparedAblation, prepare, run

__all__ = ["PreparedAblation", "prepare", "run"]
