"""Ablations: generators × density estimators × partitioners × mappers × parameters × seeds.

All cells of one generator and seed share its spectrum and its class labels. The experiment is that
of section 5 of the LASH paper; `pgmkit ablate` runs it (`pgmkit.jobs.ablate`).
"""
