"""The checks for authors of plugins: what keeps its contract passes, and what does not is found."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import install, run_pgmkit, write_tiny_gan
from torch import Tensor, nn

import pgmkit
from pgmkit.components import KINDS
from pgmkit.errors import ParameterError, PluginError, UnknownNameError
from pgmkit.images import ArrayImages
from pgmkit.plugins import installed, list_components
from pgmkit.testing import Report, check_component, check_features, checks_of
from pgmkit.testing.case import case_of, run
from pgmkit.testing.trials import source_for

PCA = {"name": "pca", "num_dims": 5}
QUICK = {"steps": 3, "batch_size": 16, "width": 4}
CONVOLUTIONS = {"latent_dim": 4, "channels": [6, 5]}
LAYERS = [{"op": "linear", "inputs": 2, "outputs": 48}, {"op": "reshape", "shape": [3, 4, 4]}]
DECODER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 2,
    "sample_size": 8,
}

BUILT_IN: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "density-estimators": [("lash", {}), ("jbt", {}), ("polarity", {}), ("none", {})],
    "features": [
        ("latents", {}),
        ("pixels", {"image_size": 4}),
        ("pca", {"num_dims": 5}),
        ("timm", {"model": "test_resnet", "pretrained": False, "input_size": 32}),
        ("network", {"module": nn.Conv2d(3, 4, 3, stride=2)}),
        ("classifier", {"classifier": "CLASSIFIER"}),
        ("discriminator", {"source": "GAN"}),
        ("contrastive", QUICK),
        ("fixed", {"source": "PARTS"}),
    ],
    "partitioners": [
        ("kmeans", {"num_partitions": 4}),
        ("mixture", {"num_partitions": 4, "features": PCA}),
        ("clusterer", {"num_partitions": 4}),
        ("manifold", {"num_partitions": 4}),
        ("most-stable", {"num_partitions": 4, "candidates": ["kmeans"]}),
        ("self-trained", {"num_partitions": 4, "base": "kmeans", **QUICK}),
        ("fixed", {"source": "PARTS"}),
        ("labels", QUICK),
        ("random", {}),
        ("single", {}),
        (
            "iresnet",
            {
                "num_partitions": 4,
                "network": {"blocks": [1, 1], "width": 16, "power_iterations": 1},
                "pretext": {"steps": 3, "batch_size": 24, "projection": [32, 16]},
                "partition": {"steps": 3, "batch_size": 24, "num_neighbors": 5},
                "deformations": "digits",
            },
        ),
    ],
    "mappers": [("mixture", {}), ("refined", {}), ("prior", {}), ("rejection", {})],
    "cluster-samplers": [
        ("partition", {"num_clusters": 4, "partitioner": {"name": "kmeans", "features": PCA}}),
        ("kmeans-gmm", {"num_clusters": 4}),
    ],
    "backbones": [
        ("dcgan", CONVOLUTIONS),
        ("mlp-2d", {"width": 24, "depth": 2}),
        ("sngan-32", {"latent_dim": 4, "width": 5}),
        ("sngan-48", {"latent_dim": 4, "width": 1, "image_channels": 1}),
        (
            "biggan-128",
            {"latent_dim": 6, "width": 2, "embedding_dim": 3, "image_channels": 1},
        ),
    ],
    "generator-loaders": [
        ("dcgan", CONVOLUTIONS),
        ("mlp-2d", {"width": 24, "depth": 2}),
        ("sngan-32", {"latent_dim": 4, "width": 5}),
        ("sngan-48", {"latent_dim": 4, "width": 1, "image_channels": 1}),
        (
            "biggan-128",
            {"latent_dim": 6, "width": 2, "embedding_dim": 3, "image_channels": 1},
        ),
        ("layers", {"latent_dim": 2, "layers": LAYERS}),
        ("diffusers-decoder", {"config": DECODER}),
        (
            "one-partition",
            {
                "architecture": "dcgan",
                "model_args": {**CONVOLUTIONS, "num_partitions": 3},
                "partition": 1,
            },
        ),
        (
            "all-partitions",
            {
                "architecture": "dcgan",
                "model_args": {**CONVOLUTIONS, "num_partitions": 3},
                "partitions": [0, 1, 2],
                "latent_dim": 4,
            },
        ),
    ],
    "classifiers": [("lash-classifier", {})],
    "engines": [("local", {"workers": 2})],
}
"""Every built-in component, with parameters that make it small; engines that start processes stand
in tests/test_engines.py."""

ALL = [(kind, name, table) for kind, tables in BUILT_IN.items() for name, table in tables]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What some built-in components are made of, by what stands for it above."""
    folder = tmp_path_factory.mktemp("folders")
    gan = write_tiny_gan(folder / "gan")
    source = source_for(object(), (3, 8, 8))
    kmeans = {"name": "kmeans", "features": PCA}
    pgmkit.fit_partitioner(kmeans, source, partitions=4).save_pretrained(folder / "parts")
    classifier = pgmkit.plugins.build(
        "classifiers", "lash-classifier", image_size=8, image_channels=3
    )
    (folder / "classifier").mkdir()
    from safetensors.torch import save_file

    save_file(classifier.state_dict(), folder / "classifier" / "model.safetensors")
    config = {
        "architecture": "lash-classifier",
        "model_args": {"image_size": 8, "image_channels": 3},
    }
    (folder / "classifier" / "config.json").write_text(json.dumps(config))
    return {
        "GAN": gan,
        "PARTS": f"local-dir:{folder / 'parts'}",
        "CLASSIFIER": f"local-dir:{folder / 'classifier'}",
    }


def latent_of(name: str) -> pgmkit.LatentSpec | None:
    return pgmkit.LatentSpec(32, shape=(2, 4, 4)) if name == "diffusers-decoder" else None


@pytest.mark.parametrize(("kind", "name", "parameters"), ALL, ids=[f"{k}/{n}" for k, n, _ in ALL])
def test_every_built_in_component_keeps_its_contract(
    kind: str, name: str, parameters: dict[str, Any], folders: dict[str, str]
) -> None:
    table = {
        key: folders.get(value, value) if isinstance(value, str) else value
        for key, value in parameters.items()
    }
    report = check_component(kind, {"name": name, **table}, latent=latent_of(name))
    assert not report.with_status("failed")
    print(report.counts(), [(o.check, o.reason) for o in report.with_status("skipped")])
    assert report.counts()["run"] >= 11
