"""One process of a field over a folder: `python field_worker.py FOLDER OUT`, alone or by torchrun.

Every process writes what it found to OUT/field-RANK.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

import models
from workbench.analyses.erf import Target, fields
from workbench.analyses.erf.distributed import join, leave
from workbench.analyses.scan_network import ScanNetwork
from workbench.image_sets import FolderImages
from workbench.results import Provenance

PROVENANCE = Provenance(
    model="efficientvmamba_test",
    weights="random, seed 1",
    weights_sha256="",
    is_random=True,
    trained_scan=None,
    scan="es2d:step=2",
    image="",
    image_sha256="",
    crop=(0, 0, 64, 64),
    input_size=(64, 64),
    definition="",
)
TARGETS = [Target("stage1", 8, 7), Target("stage2.block1.scan", 3, 4)]


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    group = join()
    rank, world = (0, 1) if group is None else (group.rank, group.world)
    model = models.create_model("efficientvmamba_test", num_classes=10, seed=1)
    network = ScanNetwork(model.eval().requires_grad_(False), "Test")
    images = FolderImages(folder, (64, 64))
    facts: dict[str, object] = {"rank": rank, "world": world}
    arrays: dict[str, np.ndarray] = {}
    for definition in ("mass", "openerf"):
        run = fields(
            network, images, TARGETS, definition=definition, provenance=PROVENANCE, group=group
        )
        *_, results = run
        for number, result in enumerate(results):
            key = f"{definition}{number}"
            arrays |= {
                f"{key} mass": result.mass,
                f"{key} low": np.array(list(result.metric_low.values())),
                f"{key} high": np.array(list(result.metric_high.values())),
                f"{key} numbers": np.array(list(result.metrics.values())),
                f"{key} radial": result.radial_low,
                f"{key} convergence": result.convergence_area50,
                f"{key} raw sum": np.array(result.raw_sum),
            }
            facts[key] = {
                "names": result.image_names,
                "skipped": result.skipped,
                "metrics": list(result.metrics),
                "bands": list(result.metric_low),
                "n": [result.n_images, result.n_planned, result.n_bootstrap],
                "is_final": result.is_final,
            }
    if group is not None:
        mine = {"whole": np.full(3, rank + 1), "half": np.full((1, 2), 0.5, dtype=np.float32)}
        sums = group.sum(mine)
        facts["sums"] = {name: [str(a.dtype), a.tolist()] for name, a in sums.items()}
        facts["unchanged"] = mine["whole"].tolist() == [rank + 1] * 3
    leave(group)
    np.savez(out / f"field-{rank}.npz", facts=json.dumps(facts), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
