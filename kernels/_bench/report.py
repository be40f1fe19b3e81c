"""What the numbers depend on, one line per row on the screen, and the files."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

HEADINGS = (
    f"{'case':42} {'pass':16} {'backend':12} {'p20':>9} {'p50':>9} {'p80':>9} ms {'n':>3}  x exp"
)
OTHERS = ("triton", "mambapy", "mamba_ssm", "selective_scan_cuda_oflex")


def describe(device: torch.device) -> dict[str, str]:
    """What the numbers depend on."""
    facts = {
        "device": processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        facts |= {
            "device": torch.cuda.get_device_name(device),
            "processor": facts["device"],
            "cuda": str(torch.version.cuda or torch.version.hip),
        }
    return facts | {name: found for name in OTHERS if (found := _version(name))}


def processor() -> str:
    """The processor's name as its maker writes it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def sentence(row: dict[str, Any]) -> str:
    start = f"{row['case']:42} {row['pass']:16} {row['backend']:12}"
    if "p50_ms" not in row:
        return f"{start} {row['status']}"
    times = " ".join(f"{row[key]:9.3f}" for key in ("p20_ms", "p50_ms", "p80_ms"))
    ratio = f"{row['times_exp']:6.2f}" if "times_exp" in row else " " * 6
    error = f"  error {row['relative_l2']:.0e}" if row.get("relative_l2") is not None else ""
    floor = f"  floor {row['floor_us']:.1f} us ({row['floor_label']})" if "floor_us" in row else ""
    return f"{start} {times}    {row['repeats']:3d} {ratio}{error}{floor}"


def write(
    folder: Path,
    name: str,
    environment: dict[str, str],
    rows: Sequence[dict[str, Any]],
    more: dict[str, Any] | None = None,
) -> None:
    """`name.json` and `name.csv`; each line of the table carries the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment, **(more or {}), "rows": list(rows)}
    text = json.dumps(report, indent=1, allow_nan=False)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    columns = dict.fromkeys(key for row in rows for key in row)
    # `device` of a row says where it ran, that of the environment which one it is.
    names = {key: "device_name" if key == "device" else key for key in environment}
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names.values(), *columns])
        writer.writeheader()
        known = {names[key]: value for key, value in environment.items()}
        writer.writerows({**known, **row} for row in rows)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
