"""`python -m kernels.bench`: the operators on this machine, correctness first.

Every row is compared with the float64 reference before it is timed; what is wrong is not timed. On
the CPU the yardstick is `torch.exp` over as many numbers as the scan has state updates, written to
memory that is there already: nothing in this repository can move it. Runs of one case take turns.
All rows take at most about 9 minutes on a CPU and 7 on a GPU: repeats get fewer, and what does not
fit is written as not run (--budget). --quick takes about one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kernels._bench.cases import ORDERS, Case, cases, quick_cases, scaling_cases
from kernels._bench.contenders import CONTENDERS
from kernels._bench.limits import Budget
from kernels._bench.report import HEADINGS, describe, sentence, write
from kernels._bench.rows import Bench, Row
from kernels._bench.tune import tune

__all__ = ["Case", "cases", "main"]

# Seconds for everything.
BUDGET = {"cpu": 540.0, "cuda": 420.0}
QUICK_BUDGET = 90.0
TUNE_BUDGET = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.tune:
        return _tune(device, options.budget or TUNE_BUDGET)
    chosen = _chosen(options)
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        print("no case fits what was asked for; --list alone shows all names", file=sys.stderr)
        return 2
    names = options.backend or [
        name for name, c in CONTENDERS.items() if device.type == "cuda" or not c.needs_gpu
    ]
    environment = describe(device)
    print(" · ".join(f"{key} {value}" for key, value in environment.items()))
    print(HEADINGS)
    default = QUICK_BUDGET if options.quick else BUDGET[device.type]
    rows = []
    # An exponent compares short with long calls, which the rest of the machine disturbs unequally.
    cpu_clock = "process" if options.scaling else "wall"
    seconds = options.budget or default
    bench = Bench(names, device, seconds, options.seconds, cpu_clock=cpu_clock)
    for row in bench.run(chosen):
        rows.append(row)
        print(sentence(row), flush=True)
    fits = scaling(rows, chosen) if options.scaling else []
    for fit in fits:
        print(
            f"{fit['backend']} {fit['pass']}: time grows with tokens to the power "
            f"{fit['exponent']:.3f} ({fit['tokens'][0]} to {fit['tokens'][-1]} tokens)"
        )
    if options.out:
        name = "scaling" if options.scaling else "kernels"
        write(options.out, name, environment, rows, {"fits": fits} if fits else None)
    return 0 if all(not row["status"].startswith("WRONG") for row in rows) else 1


def scaling(rows: Sequence[Row], chosen: Sequence[Case]) -> list[Row]:
    """Fitted exponent of time over tokens for each backend and pass, from the fastest repeats."""
    tokens = {case.name: int(np.prod(case.map_shape)) for case in chosen}
    times: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if "min_ms" in row:
            own = times.setdefault((row["backend"], row["pass"]), {})
            own[tokens[row["case"]]] = row["min_ms"]
    fits = []
    for (backend, which), points in times.items():
        if len(points) > 1:
            x, y = np.log(list(points)), np.log(list(points.values()))
            exponent = float(np.polyfit(x, y, 1)[0])
            fits.append(
                {"backend": backend, "pass": which, "exponent": exponent, "tokens": list(points)}
            )
    return fits


def _chosen(options: argparse.Namespace) -> list[Case]:
    if options.scaling:
        found = scaling_cases()
    else:
        found = quick_cases() if options.quick else cases()
    return [
        case
        for case in found
        if (not options.case or any(part in case.name for part in options.case))
        and (not options.batch or case.batch in options.batch)
        and (not options.size or case.pixels in options.size)
        and (not options.order or case.order in options.order)
    ]


def _tune(device: torch.device, seconds: float) -> int:
    if device.type != "cuda" or not torch.cuda.is_available():
        print(
            "--tune measures tiles on a GPU and this machine has no CUDA device: the table stays "
            "as it is. Run it where the kernels will run.",
            file=sys.stderr,
        )
        return 2
    for line in tune(device, Budget(seconds)):
        print(line, flush=True)
    return 0


def _size(text: str) -> tuple[int, int]:
    """ "224" or "800x1280", pixels, height first."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--case", action="append", help="part of a case's name; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument(
        "--backend", action="append", choices=tuple(CONTENDERS), help="may be repeated"
    )
    parser.add_argument("--batch", type=int, action="append", help="1, 8 or 128; may be repeated")
    parser.add_argument("--size", type=_size, action="append", help="pixels: 224, 384, 800x1280")
    parser.add_argument("--order", choices=ORDERS, action="append", help="scan order")
    parser.add_argument("--quick", action="store_true", help="Tiny at 224 px, one image")
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="instead: how time (on a CPU: CPU time) grows from 14x14 to 224x224 tokens",
    )
    parser.add_argument(
        "--tune", action="store_true", help="instead, on a GPU: measure tiles, rewrite their table"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="about this long for each row")
    parser.add_argument(
        "--budget",
        type=float,
        help=f"seconds for everything; default {BUDGET['cpu']:.0f}, on a GPU {BUDGET['cuda']:.0f}, "
        f"with --quick {QUICK_BUDGET:.0f}, with --tune {TUNE_BUDGET:.0f}",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's own choice")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for the JSON and CSV files"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
