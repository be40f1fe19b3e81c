"""Settings of a training run: one frozen value, its recipe file and its size schedule."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.training.errors import TrainingError

RECIPES = Path(__file__).parent.parent / "weights" / "recipes"
ABLATIONS = ("no-conv", "no-se", "late-evss")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers of a run. Sizes in pixels, rates per optimiser step."""

    model: str = "efficientvmamba_tiny"
    scan: str = "es2d"
    ablate: str | None = None
    init: str | None = None  # weights to start from; None = random by seed
    seed: int = 0
    sizes: str = "128:10"  # "96:6,128:4" = six epochs at 96 px, then four at 128 px
    batch_size: int = 64  # images per process and backward pass
    accumulate: int = 1  # backward passes per optimiser step
    lr: float = 2e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    clip: float = 1.0
    smoothing: float = 0.1
    mixup: float = 0.0  # alpha; 0 = off
    cutmix: float = 0.0
    mix_probability: float = 0.5
    erasing: float = 0.0
    randaugment: int = 0
    min_scale: float = 0.35  # smallest area of a random crop, as a fraction of the image
    drop_path: float = 0.0
    ema_decay: float = 0.9995
    teacher: str | None = None
    teacher_size: int = 224
    distill_weight: float = 1.0
    distill_temperature: float = 2.0
    precision: str = "fp32"  # fp32 | bf16 | fp16
    eval_size: int = 160
    eval_every: int = 1

    def __post_init__(self) -> None:
        checks = (
            (self.batch_size >= 1, f"--batch-size {self.batch_size}: at least 1"),
            (self.accumulate >= 1, f"--accumulate {self.accumulate}: at least 1"),
            (self.lr > 0, f"--lr {self.lr}: above 0"),
            (0 <= self.smoothing < 1, f"--smoothing {self.smoothing}: 0 to 1, 1 excluded"),
            (0 < self.min_scale <= 1, f"--min-scale {self.min_scale}: above 0, at most 1"),
            (0 <= self.drop_path < 1, f"--drop-path {self.drop_path}: 0 to 1, 1 excluded"),
            (0 <= self.ema_decay < 1, f"--ema-decay {self.ema_decay}: 0 to 1, 1 excluded"),
            (self.distill_temperature > 0, "--distill-temperature: above 0"),
            (
                self.precision in ("fp32", "bf16", "fp16"),
                f"--precision {self.precision}: fp32, bf16 or fp16",
            ),
            (
                self.ablate is None or self.ablate in ABLATIONS,
                f"--ablate {self.ablate}: one of {', '.join(ABLATIONS)}",
            ),
        )
        for is_good, message in checks:
            if not is_good:
                raise TrainingError(message)
        self.schedule()

    def schedule(self) -> tuple[int, ...]:
        """The image size of every epoch, in order."""
        sizes: list[int] = []
        try:
            for part in self.sizes.split(","):
                size, epochs = (int(v) for v in part.split(":"))
                if size < 32 or epochs < 1:
                    raise ValueError
                sizes += [size] * epochs
        except ValueError:
            raise TrainingError(
                f"--sizes {self.sizes!r}: write pixels:epochs with commas between, pixels at "
                'least 32, for example "96:6,128:4".'
            ) from None
        return tuple(sizes)

    @property
    def epochs(self) -> int:
        return len(self.schedule())

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> TrainConfig:
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise TrainingError(f"Unknown settings {unknown}. Allowed: {', '.join(sorted(known))}.")
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Recipe:
    """One phase of a recipe: its settings, and readable names for class folders."""

    settings: dict[str, Any]
    class_names: dict[str, str]


def load_recipe(name: str, phase: int) -> Recipe:
    """Phase `phase` (from 1) of a recipe: a JSON file `{"all": {}, "phases": [{}]}`, given as a
    path or by the name of one that ships. Optional: `"class_names": {folder: name}`."""
    file = Path(name) if name.endswith(".json") else RECIPES / f"{name}.json"
    if not file.is_file():
        shipped = sorted(p.stem for p in RECIPES.glob("*.json"))
        raise TrainingError(
            f"No recipe {file}. Give a .json file or one of: {', '.join(shipped) or 'none ship'}."
        )
    try:
        recipe = json.loads(file.read_text())
        phases = recipe["phases"]
    except (json.JSONDecodeError, KeyError) as error:
        raise TrainingError(
            f'{file} is no recipe ({error}); expected {{"all": {{}}, "phases": [{{}}]}}.'
        ) from None
    if not 1 <= phase <= len(phases):
        raise TrainingError(f"--phase {phase}: {file} has phases 1 to {len(phases)}.")
    settings = {**recipe.get("all", {}), **phases[phase - 1]}
    return Recipe(settings, recipe.get("class_names", {}))
