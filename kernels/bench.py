"""`python -m kernels.bench`: the operators on this machine, correctness first.

Every case is compared with the float64 reference before it is timed; what is wrong is not timed.
The yardstick is `torch.exp` over as many numbers as the scan has states, written to memory that is
there already: nothing in this repository can move it. Runs of one case are interleaved.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import scan2d, scan_order, selective_scan
from kernels.cost import backward_cost, convention_flops, forward_cost

TOLERANCE = 1e-5  # relative L2, output and every gradient
MEMORY_LIMIT = 8 * 2**30  # bytes
TIME_LIMIT = 60.0  # seconds for one row
MIN_REPEATS = 5
REFERENCE_REPEATS = 3
STATES = 16
WIDTHS = {"tiny": 48, "small": 64, "base": 96}
BATCHES = (1, 8)
SIZE = 224
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One operator at the shape of one stage."""

    model: str
    stage: int  # 1-based; stages 1 and 2 have scans
    batch: int
    operator: str = "scan2d"
    size: int = SIZE
    order: str = "es2d"

    @property
    def name(self) -> str:
        return f"{self.operator}-{self.model}-stage{self.stage}-{self.size}px-b{self.batch}"

    @property
    def channels(self) -> int:
        return 2 * WIDTHS[self.model] * 2 ** (self.stage - 1)

    @property
    def rank(self) -> int:
        return -(-WIDTHS[self.model] * 2 ** (self.stage - 1) // 16)

    @property
    def side(self) -> int:
        """Tokens along one side of the stage's map."""
        return -(-self.size // (4 * 2 ** (self.stage - 1)))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Batch, sequences, length, channels, states."""
        order = scan_order(self.order, self.side, self.side)
        return self.batch, order.n_sequences, order.length, self.channels, STATES

    @property
    def n_states(self) -> int:
        return int(np.prod(self.shape))

    def inputs(self, batch: int | None = None) -> list[Tensor]:
        """Seeded inputs of the size that training gives; the first image is the same in any
        batch."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        _, sequences, length, channels, states = self.shape
        n_images, rank, rows = batch or self.batch, self.rank, sequences * channels
        decay = torch.log(torch.arange(1, states + 1.0)).repeat(rows, 1)
        if self.operator == "scan2d":
            parameters = [
                normal(sequences, rank + 2 * states, channels) / channels**0.5,
                normal(sequences, channels, rank) / rank**0.5,
                0.5 * normal(sequences, channels) - 3,
                decay + 0.1 * normal(rows, states),
                1 + 0.1 * normal(rows),
            ]
            x = torch.stack([normal(self.side, self.side, channels) for _ in range(n_images)])
            return [x.permute(0, 3, 1, 2), *parameters]
        A, D, bias = -decay.exp(), normal(rows), 0.5 * normal(rows) - 3
        images = [
            [normal(rows, length), normal(rows, length)]
            + [normal(sequences, states, length) for _ in range(2)]
            for _ in range(n_images)
        ]
        u, delta, B, C = (torch.stack(parts) for parts in zip(*images, strict=True))
        return [u, delta, A, B, C, D, bias]

    def operate(self, inputs: Sequence[Tensor], backend: str) -> Tensor:
        if self.operator == "scan2d":
            return scan2d(*inputs, order=self.order, backend=backend)
        u, delta, A, B, C, D, bias = inputs
        return selective_scan(u, delta, A, B, C, D, bias, True, backend=backend)


def cases() -> list[Case]:
    scans = [Case(model, stage, batch) for model in WIDTHS for stage in (1, 2) for batch in BATCHES]
    mamba = [Case("tiny", stage, batch, "selective_scan") for stage in (1, 2) for batch in BATCHES]
    return scans + mamba


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in cases()))
        return 0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    chosen = [case for case in cases() if any(part in case.name for part in options.case or [""])]
    if not chosen:
        print(f"no case has {options.case} in its name; --list shows all names", file=sys.stderr)
        return 2
    environment = describe()
    print(" · ".join(f"{key} {value}" for key, value in environment.items()))
    print(f"{'case':34} {'pass':17} {'backend':10} {'p20':>8} {'p50':>8} {'p80':>8} ms  x exp")
    rows = []
    for case in chosen:
        for row in bench_case(case, options.seconds, options.backend or ["cpu", "reference"]):
            rows.append(row)
            print(sentence(row))
    if options.out:
        write(options.out, environment, rows)
    return 0 if all(row["status"] != "WRONG" for row in rows) else 1


def bench_case(case: Case, seconds: float, backends: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each backend and pass, and one for the yardstick before them."""
    exact = Exact(case)
    errors = {backend: exact.error_of(backend) for backend in backends}
    numbers = torch.randn(case.n_states)
    room = torch.empty_like(numbers)
    inputs = case.inputs()
    for which in PASSES:
        cost = forward_cost(*case.shape, rank=case.rank)
        if which != "forward":
            cost += backward_cost(*case.shape, rank=case.rank)
        runs: dict[str, Callable[[], object]] = {"torch.exp": lambda: torch.exp(numbers, out=room)}
        rows: dict[str, dict[str, Any]] = {}
        for backend in ("torch.exp", *backends):
            rows[backend] = {
                "case": case.name,
                "pass": which,
                "backend": backend,
                "status": "ok",
                "relative_l2": errors.get(backend, 0.0),
                "n_states": case.n_states,
                "model_bytes": cost.bytes,
                "model_flops": cost.flops,
                "model_exps": cost.exps,
                "convention_flops": convention_flops(*case.shape),
            }
        for backend in backends:
            status = why_not(case, which, backend, errors[backend], exact.seconds)
            rows[backend]["status"] = status
            if status == "ok":
                runs[backend] = runner(case, inputs, backend, which)
        for backend, times in interleaved(runs, seconds).items():
            p20, p50, p80 = np.percentile(times, (20, 50, 80))
            rows[backend] |= {
                "p20_ms": p20 * 1e3,
                "p50_ms": p50 * 1e3,
                "p80_ms": p80 * 1e3,
                "repeats": len(times),
            }
        yardstick = rows["torch.exp"]["p50_ms"]
        for row in rows.values():
            if "p50_ms" in row:
                row["times_exp"] = row["p50_ms"] / yardstick
            yield row


class Exact:
    """The float64 reference's answer for one image, and how long it took."""

    def __init__(self, case: Case) -> None:
        self.case = case
        started = time.perf_counter()
        doubles = [t.double() for t in case.inputs(batch=1)]
        self.results = results(case, doubles, "reference")
        self.seconds = time.perf_counter() - started

    def error_of(self, backend: str) -> float:
        """Largest relative L2 error of the output or a gradient for one image.

        The whole batch must then give that image's output again.
        """
        exact = list(self.results)
        given = results(self.case, self.case.inputs(batch=1), backend)
        if self.case.batch > 1 and backend != "reference":
            exact.append(exact[0])
            given.append(self.case.operate(self.case.inputs(), backend)[:1])
        return max(relative_l2(a, b) for a, b in zip(given, exact, strict=True))


def results(case: Case, inputs: Sequence[Tensor], backend: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = case.operate(leaves, backend)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


def relative_l2(given: Tensor, exact: Tensor) -> float:
    return float((given.double() - exact).norm() / exact.norm())


def why_not(case: Case, which: str, backend: str, error: float, exact_seconds: float) -> str:
    """ "ok", or why this row is not timed, with the size that was computed."""
    # `not <=` also catches NaN.
    if not error <= TOLERANCE:
        return "WRONG"
    if backend == "reference":
        # Autograd keeps the decay, the state and three products of every step.
        needed = 4 * case.n_states * (1 if which == "forward" else 5)
        # The float64 answer for one image took about a third of its time for the forward pass.
        once = exact_seconds * case.batch * (1 / 3 if which == "forward" else 1)
        seconds = once * (1 + REFERENCE_REPEATS)
        if needed > MEMORY_LIMIT:
            return f"not run: {needed / 2**30:.1f} GiB"
        if seconds > TIME_LIMIT:
            return f"not run: about {seconds:.0f} s"
    return "ok"


def runner(case: Case, inputs: Sequence[Tensor], backend: str, which: str) -> Callable[[], object]:
    if which == "forward":

        def forward() -> None:
            with torch.no_grad():
                case.operate(inputs, backend)

        return forward
    leaves = [t.detach().requires_grad_() for t in inputs]
    grad_y = torch.randn_like(inputs[0])

    def both() -> None:
        torch.autograd.grad(case.operate(leaves, backend), leaves, grad_y)

    return both


def interleaved(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Times of each, taking turns, for about `seconds` each and `MIN_REPEATS` times at least.

    The slow reference takes part in the first `REFERENCE_REPEATS` turns only.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    turn, spent = 0, 0.0
    while spent < seconds or turn < MIN_REPEATS:
        for name, run in runs.items():
            if name == "reference" and turn >= REFERENCE_REPEATS:
                continue
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
        turn += 1
        spent = max(sum(t) for name, t in times.items() if name != "reference")
    return times


def describe() -> dict[str, str]:
    """What the numbers depend on."""
    import numba

    return {
        "device": _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def sentence(row: dict[str, Any]) -> str:
    start = f"{row['case']:34} {row['pass']:17} {row['backend']:10}"
    if "p50_ms" not in row:
        return f"{start} {row['status']}"
    times = " ".join(f"{row[key]:8.2f}" for key in ("p20_ms", "p50_ms", "p80_ms"))
    return f"{start} {times}     {row['times_exp']:5.2f}  error {row['relative_l2']:.0e}"


def write(folder: Path, environment: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    """`kernels.json` and `kernels.csv`; each line of the table carries the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment, "rows": list(rows)}
    (folder / "kernels.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    columns = dict.fromkeys(key for row in rows for key in row)
    with (folder / "kernels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*environment, *columns])
        writer.writeheader()
        writer.writerows({**environment, **row} for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--case", action="append", help="part of a case's name; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument(
        "--backend", action="append", choices=("reference", "cpu"), help="default: both"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="about this long for each row")
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's own choice")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for kernels.{json,csv}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
