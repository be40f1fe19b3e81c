"""Reads what training programs write: a run's folder or `log.json`, a card, `ablations.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import BadInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEpoch:
    number: int  # from 1, over all phases of the curve
    size: int  # side of the training images, px
    loss: float
    images_per_second: float
    top1: float | None  # %, of the validation set; None where it was not evaluated
    val_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCurve:
    name: str
    seed: int
    eval_size: int  # side of the validation images, px
    epochs: tuple[TrainingEpoch, ...]
    phase_starts: tuple[int, ...]  # number of the first epoch of each phase


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    name: str
    n_parameters: int
    macs: float
    top1: float  # %
    curve: TrainingCurve


def read_training(path: Path) -> TrainingCurve | tuple[AblationRow, ...]:
    """The curve of a run or card, or the rows of an ablation table."""
    file = path / "log.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("not an object")
        if "rows" in content:
            return tuple(_ablation(row) for row in content["rows"])
        if "phases" in content:
            return _curve(file.stem, [(p["config"], p["curve"]) for p in content["phases"]])
        name = path.name if path.is_dir() else file.parent.name or file.stem
        return _curve(name, [(content["config"], content["epochs"])])
    except OSError as error:
        raise BadInputError(
            f"{file} cannot be read: {error.strerror}. Give a run's folder, its log.json, a card "
            "of models/weights or an ablations.json."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{file} is no training log ({type(error).__name__}: {error}). Give a run's folder, "
            "its log.json, a card of models/weights or an ablations.json."
        ) from error


def _ablation(row: dict[str, Any]) -> AblationRow:
    config = {"seed": row["seed"], "eval_size": row["eval_size"]}
    return AblationRow(
        name=str(row["variant"]),
        n_parameters=int(row["n_parameters"]),
        macs=float(row["macs"]),
        top1=float(row["top1"]),
        curve=_curve(str(row["variant"]), [(config, row["epochs"])]),
    )


def _curve(name: str, phases: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> TrainingCurve:
    epochs: list[TrainingEpoch] = []
    starts = []
    for _, rows in phases:
        starts.append(len(epochs) + 1)
        for row in rows:
            epochs.append(
                TrainingEpoch(
                    number=len(epochs) + 1,
                    size=int(row["size"]),
                    loss=float(row["loss"]),
                    images_per_second=float(row.get("images_per_second") or float("nan")),
                    top1=None if row.get("top1") is None else float(row["top1"]),
                    val_loss=None if row.get("val_loss") is None else float(row["val_loss"]),
                )
            )
    if not epochs:
        raise ValueError("no epoch is finished yet")
    config = phases[-1][0]
    return TrainingCurve(
        name=name,
        seed=int(config["seed"]),
        eval_size=int(config["eval_size"]),
        epochs=tuple(epochs),
        phase_starts=tuple(starts),
    )
