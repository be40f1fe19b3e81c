"""`--tune`: which tile is fastest here. Every candidate is compared first; wrong ones are out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from kernels._bench.cases import PASSES, STATES, Case
from kernels._bench.contenders import CONTENDERS
from kernels._bench.gate import Exact
from kernels._bench.limits import Budget
from kernels._bench.rows import Outcome, runner
from kernels._bench.timing import GpuClock
from kernels._triton import tiles
from kernels._triton import trials as kept
from kernels._triton.tiles import KERNELS, Tile

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# The launcher takes the chunked kernels for few programs, the others for many.
BATCH_OF_REGIME = {"chunks": 1, "steps": 256}
# Less than this part faster is noise: the table's own tile stays.
LEAST_GAIN = 0.02
REPEATS = 30


@dataclass(frozen=True)
class Job:
    """One row of the table: a kernel at the widths and the type that share a tile."""

    kernel: str
    case: Case
    dtype: torch.dtype

    @property
    def key(self) -> str:
        return tiles.row_key(self.kernel, self.case.channels, STATES, self.dtype)

    @property
    def which(self) -> str:
        """The pass to time. A forward pass takes part in both, with the same tile every time."""
        return PASSES[self.kernel.endswith("backward")]


@dataclass(frozen=True)
class Trial:
    """A candidate: its time, or why it has none."""

    tile: Tile
    seconds: float | None
    reason: str = ""


def jobs() -> list[Job]:
    """Every kernel at every width of the released networks, widths that share a row once."""
    found: dict[str, Job] = {}
    for model, stage in (("tiny", 1), ("tiny", 2), ("base", 2)):
        for kernel in KERNELS:
            for dtype in TOLERANCE:
                batch = BATCH_OF_REGIME[kernel.partition("_")[0]]
                job = Job(kernel, Case(model, stage, batch), dtype)
                found.setdefault(job.key, job)
    return list(found.values())


def choose(
    candidates: Sequence[Tile],
    error_of: Callable[[Tile], float],
    seconds_of: Callable[[Tile], float],
    tolerance: float,
    budget: Budget,
) -> tuple[Tile | None, list[Trial]]:
    """The fastest right tile; the first candidate unless another is faster by more than noise.

    None where nothing was right, or where the time was up before all were tried.
    """
    trials: list[Trial] = []
    for tile in candidates:
        if budget.left <= 0:
            return None, [*trials, Trial(tile, None, "time budget")]
        try:
            error = error_of(tile)
            # `not <=` also catches NaN.
            if not error <= tolerance:
                trials.append(Trial(tile, None, f"WRONG: relative L2 {error:.1e}"))
                continue
            trials.append(Trial(tile, seconds_of(tile)))
        except Exception as problem:  # a compiler may fail with anything: too many resources, …
            trials.append(Trial(tile, None, f"{type(problem).__name__}: {problem}"))
    timed = [t for t in trials if t.seconds is not None]
    if not timed:
        return None, trials
    best = min(timed, key=lambda t: t.seconds or 0.0)
    first = trials[0]
    if first.seconds is not None and (best.seconds or 0.0) > (1 - LEAST_GAIN) * first.seconds:
        best = first
    return best.tile, trials


def tune(device: torch.device, budget: Budget, table: Path = tiles.TABLE) -> Iterator[str]:
    """Measures all rows and writes them to `table`; yields a sentence about each."""
    device_name = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    kind = "hip" if torch.version.hip else "cuda"
    target = f"{kind}:{major}{minor}"
    chosen: dict[str, Tile] = {}
    tried: dict[str, list[tuple[Tile, dict[str, object]]]] = {}
    for job in jobs():
        trial = GpuTrial(job, device, table)
        candidates = tiles.candidates(job.kernel, job.case.channels, STATES, job.dtype, target)
        best, trials = choose(
            candidates, trial.error_of, trial.seconds_of, TOLERANCE[job.dtype], budget
        )
        if best is not None:
            chosen[job.key] = best
        tried[job.key] = [(t.tile, values_of(t, best)) for t in trials]
        yield sentence(job, best, trials)
    if chosen:
        save(table, device_name, chosen)
    kept.write(kept.path_beside(table), device_name, now(), tried)
    yield f"{len(chosen)} of {len(jobs())} rows written for {device_name} to {table}"


class GpuTrial:
    """Compares and times one job's kernel with a candidate in the place of the table's tile."""

    def __init__(self, job: Job, device: torch.device, table: Path) -> None:
        self._job = job
        self._table = table
        self._device = device
        self._clock = GpuClock(device)
        self._exact = Exact(replace(job.case, batch=1), job.dtype)
        self._alone = self._runner(replace(job.case, batch=1))
        self._whole = self._runner(job.case)

    def error_of(self, tile: Tile) -> float:
        """Of one image with all gradients, and of the first image of the batch."""
        with self._with(tile):
            errors = [self._exact.error(*run()) for run in (self._alone, self._whole)]
        return float(np.max(errors))  # NaN if one is

    def seconds_of(self, tile: Tile) -> float:
        with self._with(tile):
            self._whole()
            return float(np.median(self._clock.measure(self._whole, REPEATS).seconds))

    def _with(self, tile: Tile) -> AbstractContextManager[None]:
        name = torch.cuda.get_device_name(self._device)
        return trial_table(self._table, name, self._job.key, tile)

    def _runner(self, case: Case) -> Callable[[], Outcome]:
        inputs = [t.to(self._device) for t in case.inputs()]
        inputs[0] = inputs[0].to(self._job.dtype)
        grad_y = self._exact.full_grad_y(inputs[0])
        return runner(case, CONTENDERS["triton"], inputs, self._job.which, grad_y)


@contextmanager
def trial_table(table: Path, device_name: str, key: str, tile: Tile) -> Iterator[None]:
    """While inside, `tiles.tile_for` gives `tile` for `key`; the table on disk is not touched."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tiles.json"
        copy.write_text(table.read_text(encoding="utf-8"), encoding="utf-8")
        before, tiles.TABLE = tiles.TABLE, copy
        try:
            tiles.save_measured(copy, device_name, {key: tile})  # also forgets the table in memory
            yield
        finally:
            tiles.TABLE = before
            tiles._table.cache_clear()


def save(table: Path, device_name: str, chosen: dict[str, Tile]) -> None:
    """The chosen rows, and when they were measured."""
    tiles.save_measured(table, device_name, chosen)
    content = json.loads(table.read_text(encoding="utf-8"))
    dates = content.setdefault("measured_at", {})
    dates[device_name] = now()
    table.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def values_of(trial: Trial, best: Tile | None) -> dict[str, object]:
    """A trial as `kernels._triton.trials` keeps it."""
    microseconds = None if trial.seconds is None else 1e6 * trial.seconds
    return {"us": microseconds, "status": trial.reason, "is_chosen": trial.tile == best}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def sentence(job: Job, best: Tile | None, trials: Sequence[Trial]) -> str:
    """`steps_forward,channels=128,…: 32 channels x 1 step, 4 warps, 41.2 us (table's 44.0 us)`."""
    timed = {t.tile: t.seconds for t in trials if t.seconds is not None}
    n_wrong = sum(t.reason.startswith("WRONG") for t in trials)
    counts = f"{len(timed)} of {len(trials)} candidates timed, {n_wrong} wrong"
    if best is None:
        reason = trials[-1].reason if trials else "no candidates"
        return f"{job.key}: nothing chosen ({counts}; last: {reason})"
    first = timed.get(trials[0].tile)
    beside = "" if first is None else f", the table's {1e6 * first:.1f} us"
    return (
        f"{job.key}: {best.channels} channels x {best.steps} steps, {best.num_warps} warps, "
        f"{1e6 * timed[best]:.1f} us{beside} ({counts})"
    )
