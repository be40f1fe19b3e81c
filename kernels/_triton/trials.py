"""Every tile that `python -m kernels.bench --tune` tried, kept beside the tiles that it chose.

`tile_trials.json` is written on a machine with a GPU. Nothing here imports Triton.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels._triton import tiles
from kernels._triton.tiles import Tile

NAME = "tile_trials.json"


@dataclass(frozen=True)
class Trial:
    """A tile with its time, or the reason why it has none."""

    device: str
    kernel: str  # "steps_forward"
    row: str  # sizes and type that share tiles: "channels=128,states=16,fp32"
    tile: Tile
    microseconds: float  # median of one call; nan where it was not timed
    status: str  # "", else why it was not timed
    is_chosen: bool
    measured_at: str  # UTC


def path_beside(table: Path | None = None) -> Path:
    """Where the trials of a table of tiles are."""
    return (table or tiles.TABLE).with_name(NAME)


def trials(path: Path | None = None) -> tuple[Trial, ...]:
    """What was tried on any device; () where no GPU ran it, or where the file is damaged: then
    the next `--tune` says so and writes a new one."""
    try:
        content = read(path or path_beside())
    except ValueError:
        return ()
    return tuple(
        Trial(
            device=device,
            kernel=key.partition(",")[0],
            row=key.partition(",")[2],
            tile=Tile(row["channels"], row["steps"], row["num_warps"], row["num_stages"]),
            microseconds=math.nan if row["us"] is None else float(row["us"]),
            status=row["status"],
            is_chosen=row["is_chosen"],
            measured_at=entry["measured_at"],
        )
        for device, rows in content.items()
        for key, entry in rows.items()
        for row in entry["trials"]
    )


def read(path: Path) -> dict[str, Any]:
    """Device -> row key -> {"measured_at", "trials"}; {} without a file, ValueError if damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for rows in content.values():
            for entry in rows.values():
                str(entry["measured_at"])
                for row in entry["trials"]:
                    values = {name: row[name] for name in ROW}
                    if not all(isinstance(values[name], kinds) for name, kinds in ROW.items()):
                        raise TypeError(f"a trial is {row!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return dict(content)


ROW: dict[str, Any] = {
    **dict.fromkeys(("channels", "steps", "num_warps", "num_stages"), int),
    "us": (float, int, type(None)),
    "status": str,
    "is_chosen": bool,
}


def write(
    path: Path, device: str, measured_at: str, tried: Mapping[str, Sequence[tuple[Tile, Any]]]
) -> None:
    """Row key -> (tile, {"us", "status", "is_chosen"}) of one device, in place of its earlier
    trials of these rows; a damaged file is set aside as `NAME.damaged`."""
    try:
        content = read(path)
    except ValueError:
        path.replace(path.with_name(f"{path.name}.damaged"))
        content = {}
    own = content.setdefault(device, {})
    for key, rows in tried.items():
        own[key] = {
            "measured_at": measured_at,
            "trials": [
                {
                    "channels": tile.channels,
                    "steps": tile.steps,
                    "num_warps": tile.num_warps,
                    "num_stages": tile.num_stages,
                    **found,
                }
                for tile, found in rows
            ],
        }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
