"""From the state of a run to the file that ships: averaged weights, half precision, class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from models.checkpoints import save_safetensors
from models.training.config import TrainConfig
from models.training.state import load_state

ABLATION_OPTIONS: dict[str, dict[str, Any]] = {
    "no-conv": {"conv_branch": False},
    "no-se": {"se": False},
    # Scans where the maps are small, convolutions where they are large: the layout reversed.
    "late-evss": {"evss_stages": (3, 4)},
}


def build_model(config: TrainConfig, n_classes: int) -> models.EfficientVMamba:
    """The network with random weights, or with those of `init`, which must have as many classes."""
    options = ABLATION_OPTIONS[config.ablate] if config.ablate else {}
    return models.create_model(
        config.model,
        weights=config.init,
        num_classes=n_classes,
        scan=config.scan,
        seed=config.seed,
        **options,
    )


def export_weights(state_file: Path, file: Path, title: str = "") -> Path:
    """Writes the averaged weights of a run's state as fp16 safetensors; `title` names the data."""
    state = load_state(state_file)
    config = TrainConfig().replace(**state["config"])
    run, rows = state["log"]["run"], state["log"]["rows"]
    classes = run.get("class_names") or state["classes"]
    model = build_model(config.replace(init=None), len(classes))
    model.load_state_dict(state["ema"])
    save_safetensors(
        model,
        file,
        model_name=config.model,
        classes=classes,
        description=f"{title or f'{len(classes)} classes'}, trained with {model.scan_spec}",
        recipe={**config.as_dict(), "command": run.get("command"), "epochs_done": len(rows)},
    )
    return file
