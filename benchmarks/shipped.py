"""Measures 10,000 samples of each generator that ships against test images, by its classifier.

    python benchmarks/shipped.py mnist.npz fashion-mnist.npz

Each file goes with the generators whose names begin like its own. The numbers are those under
`measured` in `registry/*/config.json`, which `pgmkit generators ls` shows.
"""

import json
import sys
from pathlib import Path

import pgmkit
from pgmkit.evaluate.extractors import load_extractor
from pgmkit.evaluate.fidelity import fidelity
from pgmkit.images import load_images
from pgmkit.loading.references import registry_configs
from pgmkit.machine import machine

SAMPLES = 10_000

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        classifier = f"{path.stem}-classifier"
        extractor = load_extractor(f"classifier:{classifier}")
        for name in registry_configs("generator"):
            if name.rpartition("-")[0] != path.stem:
                continue
            model = pgmkit.load(name, device="cpu")
            real = load_images(str(path), split="test", size=model.image.shape[-1])
            scores = fidelity(
                model.sample(SAMPLES, seed=0)
                if isinstance(model, pgmkit.ConditionalGenerator)
                else model.images(model.sample_latents(SAMPLES, seed=0)),
                real,
                extractor,
                value_range=model.image.range,
            )
            measured = {
                "fid": round(scores.fid, 1),
                "precision": round(scores.precision, 3),
                "recall": round(scores.recall, 3),
                "features": classifier,
            }
            print(name, json.dumps(measured), machine(), flush=True)
