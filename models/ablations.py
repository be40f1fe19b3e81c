"""The paper's ablations on one short budget: `python -m models.ablations DATA --out FOLDER`.

Trains the full model and each ablation with the same settings and seed (every flag of
`models.train` may follow) and writes `ablations.json`: per variant parameters, MACs, accuracy and
its log. Variants that have finished are kept, so an interrupted run goes on where it stopped.
Several processes: `torchrun --nproc_per_node=2 -m models.ablations DATA ...`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from models import complexity, train
from models.training.config import ABLATIONS
from models.training.distributed import join, leave
from models.training.errors import TrainingError
from models.training.export import build_model
from models.training.state import write_json

FULL = "full"
DEFAULTS = ("--sizes", "64:8", "--eval-size", "64")


def variant_arguments(variant: str, data: Path, out: Path, others: list[str]) -> list[str]:
    """Command line of `models.train` for one variant; later flags win over the defaults."""
    arguments = [str(data), "--out", str(out / variant), *DEFAULTS, *others]
    if variant != FULL:
        arguments += ["--ablate", variant]
    if (out / variant / train.STATE_FILE).exists():
        arguments.append("--resume")
    return arguments


def row(variant: str, out: Path, config: train.TrainConfig) -> dict[str, Any]:
    """What the table says about a finished variant."""
    log = json.loads((out / variant / "log.json").read_text())
    n_classes = len(log["data"][0]["classes"])
    model = build_model(config.replace(ablate=None if variant == FULL else variant), n_classes)
    cost = complexity(model, config.eval_size)
    last = log["epochs"][-1]
    return {
        "variant": variant,
        "n_parameters": cost.n_parameters,
        "macs": cost.macs,
        "top1": last["top1"],
        "top5": last["top5"],
        "val_loss": last["val_loss"],
        "eval_size": config.eval_size,
        "seed": config.seed,
        "command": log["command"],
        **{key: log[key] for key in ("device", "processes", "threads", "versions", "data")},
        "wall_minutes": round(sum(epoch["seconds"] for epoch in log["epochs"]) / 60, 1),
        "epochs": log["epochs"],
    }


def train_all(data: Path, out: Path, others: list[str]) -> list[dict[str, Any]] | None:
    """The rows of the table, none in other processes than the first; None after an interrupt."""
    rows = []
    settings = train.parser().parse_args([str(data), *others])
    processes = join(train.device_of(settings).type)
    try:
        for variant in (FULL, *ABLATIONS):
            arguments = variant_arguments(variant, data, out, others)
            args = train.parser().parse_args(arguments)
            args.command = train.command_of([a for a in arguments if a != "--resume"])
            config, _ = train.configuration(args)
            if processes.is_main:
                print(f"{variant}: {config.sizes} px:epochs, seed {config.seed}")
            if not train.run_with(args, processes):
                return None
            if processes.is_main:
                rows.append(row(variant, out, config))
    finally:
        leave(processes)
    return rows


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m models.ablations",
        description=__doc__.split("\n\n")[0],
        epilog="Other flags go to models.train.",
    )
    p.add_argument("data", type=Path, help="folder with train/<class> and val/<class>")
    p.add_argument("--out", type=Path, default=Path("runs/ablations"))
    args, others = p.parse_known_args(arguments)
    if any(flag in others for flag in ("--ablate", "--resume")):
        print("error: leave out --ablate and --resume, this program sets them", file=sys.stderr)
        return 2
    try:
        rows = train_all(args.data, args.out, others)
    except (TrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rows is None:
        return 130
    if not rows:
        return 0
    note = "One seed and a short budget: differences of a few tenths of a per cent carry nothing."
    write_json(args.out / "ablations.json", {"format": 1, "note": note, "rows": rows})
    for entry in rows:
        print(
            f"{entry['variant']:10} top-1 {entry['top1']:.2f} %, "
            f"{entry['n_parameters'] / 1e6:.3f} M parameters"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
