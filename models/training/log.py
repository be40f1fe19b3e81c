"""The log of a run: `log.json` (run, provenance and every epoch) and `log.csv` (epochs only)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from models.training.state import write_atomically, write_json

COLUMNS = (
    "epoch",
    "size",
    "loss",
    "distill_loss",
    "lr",
    "grad_norm",
    "images_per_second",
    "top1",
    "top5",
    "val_loss",
    "seconds",
    "n_skipped",
)


class TrainLog:
    """Rows of the epochs so far; rewritten whole after each, so both files are always complete."""

    def __init__(self, folder: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.folder, self.run, self.rows = folder, run, rows

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({name: row.get(name) for name in COLUMNS})
        self.write()

    def write(self) -> None:
        log = {"format": 1, **self.run, "epochs": self.rows}
        write_json(self.folder / "log.json", log)
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "log.csv", lambda out: out.write(table.getvalue().encode()))
