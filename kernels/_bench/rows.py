"""From a case to its rows: decide what can run, compare it, time it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels._bench.cases import PASSES, Case
from kernels._bench.contenders import CONTENDERS, Contender, why_unavailable
from kernels._bench.floors import floor_columns
from kernels._bench.gate import Exact, is_right
from kernels._bench.limits import (
    EXACT,
    Budget,
    Rates,
    memory_words,
    why_too_large,
    why_too_long,
)
from kernels._bench.timing import CPU_CLOCKS, GpuClock, Run, Timing, interleaved, seconds_of
from kernels.cost import ScanCost, backward_cost, convention_flops, forward_cost

YARDSTICK = "torch.exp"
CALIBRATION = Case("tiny", 2, 1)
# Seconds. A first call below this may be mostly compilation: a second one is the better estimate.
COMPILED_WITHIN = 5.0
Row = dict[str, Any]
Outcome = tuple[Tensor, Sequence[Tensor]]  # output and gradients


class Bench:
    """Runs cases one after the other and remembers what was compared and how long calls take."""

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        budget: float,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: str = "wall",
    ) -> None:
        """`budget`: seconds for everything; `seconds`: wanted for each row; `cpu_clock`: one of
        `CPU_CLOCKS`."""
        self._cpu_clock = CPU_CLOCKS[cpu_clock]
        self.names = names
        self.device = device
        self.seconds = seconds
        self._rates = Rates()
        self._clock = GpuClock(device) if device.type == "cuda" else None
        self._unavailable = {name: why_unavailable(name, device) for name in names}
        present = [name for name, reason in self._unavailable.items() if reason is None]
        self.budget = Budget(budget, [*present, YARDSTICK], clock)
        self._exact: dict[Case, Exact] = {}
        self._errors: dict[tuple[Case, str, str], float] = {}  # of one image

    def run(self, cases: Sequence[Case]) -> Iterator[Row]:
        """A row for each case, pass and contender; those on the CPU beside the yardstick's."""
        self._calibrate()
        rows_left = len(cases) * len(PASSES)  # of each contender
        for case in cases:
            for which in PASSES:
                yield from self._rows(case, which, rows_left)
                rows_left -= 1

    def _calibrate(self) -> None:
        """A first rate of each contender on one small shape, so that every row has an estimate."""
        for name in self.names:
            if self._unavailable[name] is not None:
                continue
            contender = CONTENDERS[name]
            device = contender.device(self.device)
            inputs = [t.to(device) for t in CALIBRATION.inputs()]
            for which in PASSES:
                run = runner(CALIBRATION, contender, inputs, which, torch.ones_like(inputs[0]))
                # The first call compiles.
                taken = [seconds_of(run, device)[0] for _ in range(3)]
                self._rates.add(name, which, CALIBRATION, min(taken))

    def _rows(self, case: Case, which: str, rows_left: int) -> Iterator[Row]:
        cost = cost_of(case, which)
        facts = {
            "case": case.name,
            "pass": which,
            "n_states": case.n_states,
            "convention_flops": convention_flops(*case.shape),
            "model_bytes": cost.bytes,
            "model_flops": cost.flops,
            "model_exps": cost.exps,
        }
        rows: dict[str, Row] = {}
        runs: dict[str, Run] = {}
        inputs: dict[torch.device, list[Tensor]] = {}
        for name in self.names:
            contender = CONTENDERS[name]
            device = contender.device(self.device)
            status = self._why_not(case, which, contender, rows_left)
            error = None
            if status is None:
                error = self._one_image_error(case, which, contender)
                if is_right(error):
                    if device not in inputs:
                        inputs[device] = [t.to(device) for t in case.inputs()]
                    error, runs[name] = self._warm(case, which, contender, inputs[device], error)
                if not is_right(error):
                    status = f"WRONG: relative L2 {error:.1e}"
                    runs.pop(name, None)
            rows[name] = {**facts, "backend": name, "device": device.type, "relative_l2": error}
            if error is not None and math.isnan(error):
                rows[name]["relative_l2"] = None  # JSON has no NaN; the status says it
            rows[name]["status"] = status or "ok"
        timings = self._times(case, which, runs, rows_left)
        if YARDSTICK in timings:
            yield {**facts, "backend": YARDSTICK, "device": "cpu", "status": "ok"} | (
                timings[YARDSTICK].columns()
            )
        for name, row in rows.items():
            if name in timings:
                row |= timings[name].columns()
                row |= floor_columns(cost, CONTENDERS[name].device(self.device))
                if YARDSTICK in timings and row["device"] == "cpu":
                    row["times_exp"] = row["p50_ms"] / timings[YARDSTICK].columns()["p50_ms"]
            elif name in runs:
                row["status"] = f"not run: time budget, {self.budget.left_of(name):.0f} s left"
            yield row

    def _why_not(self, case: Case, which: str, contender: Contender, rows_left: int) -> str | None:
        """Words for a row that cannot or may not run."""
        reason = self._unavailable[contender.name]
        if reason is not None:
            return reason
        reason = why_too_large(contender, case, which)
        if reason is not None:
            return reason
        one_call = self._rates.seconds(contender.name, which, case)
        reason = why_too_long(contender.name, one_call, self.budget, rows_left)
        if reason is not None:
            return reason
        return self._why_no_comparison(replace(case, batch=1), rows_left)

    def _why_no_comparison(self, one_image: Case, rows_left: int) -> str | None:
        if one_image in self._exact:
            return None
        if self._rates.knows(EXACT, EXACT):
            estimate = self._rates.seconds(EXACT, EXACT, one_image)
            if not self.budget.allows_exact(estimate, rows_left):
                left = self.budget.left
                return (
                    f"not run: time budget, {estimate:.0f} of {left:.0f} s for the float64 answer"
                )
        taken, exact = seconds_of(lambda: Exact(one_image), torch.device("cpu"))
        self._rates.add(EXACT, EXACT, one_image, taken)
        self._exact[one_image] = exact
        return None

    def _one_image_error(self, case: Case, which: str, contender: Contender) -> float:
        """Error of the first image alone, output and, with the backward pass, all gradients."""
        one_image = replace(case, batch=1)
        key = (one_image, contender.name, which)
        if key not in self._errors:
            inputs = [t.to(contender.device(self.device)) for t in one_image.inputs()]
            self._errors[key], _ = self._warm(one_image, which, contender, inputs, 0.0)
        return self._errors[key]

    def _warm(
        self, case: Case, which: str, contender: Contender, inputs: list[Tensor], error: float
    ) -> tuple[float, Run]:
        """The run to time, called and compared; the larger of its error and `error`."""
        exact = self._exact[replace(case, batch=1)]
        run = runner(case, contender, inputs, which, exact.full_grad_y(inputs[0]))
        device = contender.device(self.device)
        taken, outcome = seconds_of(run, device)
        self.budget.spend(contender.name, taken)
        given = exact.error(*outcome)
        del outcome
        if taken < COMPILED_WITHIN:
            taken = min(taken, seconds_of(run, device)[0])
        self._rates.add(contender.name, which, case, taken)
        # `max` would lose a NaN.
        return (given if not given <= error else error), run

    def _times(
        self, case: Case, which: str, runs: dict[str, Run], rows_left: int
    ) -> dict[str, Timing]:
        timings: dict[str, Timing] = {}
        host: dict[str, Run] = {}
        repeats: dict[str, int] = {}

        def is_affordable(name: str, one_call: float) -> bool:
            repeats[name] = self.budget.repeats(name, one_call, rows_left, self.seconds)
            return repeats[name] > 0

        for name, run in runs.items():
            if not is_affordable(name, self._rates.seconds(name, which, case)):
                continue
            if CONTENDERS[name].device(self.device).type == "cpu":
                host[name] = run
            else:
                assert self._clock is not None
                timings[name] = self._clock.measure(run, repeats[name])
        if host and memory_words(8.0 * case.n_states) is None:
            exp = yardstick(case.n_states)
            if is_affordable(YARDSTICK, seconds_of(exp, torch.device("cpu"))[0]):
                host = {YARDSTICK: exp} | host
        timings |= interleaved(host, {name: repeats[name] for name in host}, *self._cpu_clock)
        for name, timing in timings.items():
            self.budget.spend(name, sum(timing.seconds))
            self._rates.add(name, which, case, float(np.median(timing.seconds)))
        return timings


def runner(
    case: Case, contender: Contender, inputs: Sequence[Tensor], which: str, grad_y: Tensor
) -> Callable[[], Outcome]:
    """One call of the contender: output and, with the backward pass, all gradients."""
    if which == "forward":

        def forward() -> Outcome:
            with torch.no_grad():
                return contender.operate(case, inputs), ()

        return forward
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> Outcome:
        y = contender.operate(case, leaves)
        return y.detach(), torch.autograd.grad(y, leaves, grad_y)

    return both


def yardstick(n_states: int) -> Run:
    """`torch.exp` of one number per state update, into memory that is there already."""
    numbers = torch.randn(min(n_states, 2**20)).repeat(-(-n_states // 2**20))[:n_states]
    room = torch.empty_like(numbers)

    def run() -> None:
        torch.exp(numbers, out=room)

    run()
    return run


def cost_of(case: Case, which: str) -> ScanCost:
    """What the cost model says of the operator's scan; mamba's layout has dt at full width."""
    rank = case.rank if case.operator == "scan2d" else 0
    cost = forward_cost(*case.shape, rank=rank)
    return cost if which == "forward" else cost + backward_cost(*case.shape, rank=rank)
