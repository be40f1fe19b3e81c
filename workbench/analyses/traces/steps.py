"""Steps of a trace, what fills them, and where the device had nothing to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from workbench.analyses.traces.calls import Calls
from workbench.analyses.traces.events import Events, Kind
from workbench.analyses.traces.nesting import covered, union
from workbench.profiler_results import LaunchGap, StepRow

StepOf = Callable[[np.ndarray], np.ndarray]  # times ns -> step of each, -1: none

STEP = re.compile(r"ProfilerStep#\d+$")
COLLECTIVE = re.compile(r"(nccl|rccl|msccl|oneccl|gloo:|nccl:|mpi:|c10d::)")
MAX_GAPS = 200
WHOLE = "whole trace"
# Of time that several fill, the first here takes it, as in torch's TensorBoard plugin.
PARTS = ("kernel", "memcpy", "memset", "communication", "runtime", "operator")


def steps_of(
    events: Events, calls: Calls, zero: int, span: int
) -> tuple[tuple[StepRow, ...], np.ndarray, tuple[str, ...]]:
    """Rows, their windows [steps, 2] in the trace's own ns, notes."""
    windows, names, notes = _windows(events, calls)
    if not names:
        windows, names = np.array([[zero, zero + span]], dtype=np.int64), [WHOLE]
        notes.append("This trace marks no steps: it is one row as a whole.")
    filled: dict[str, np.ndarray] = {}
    start, end = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    before = np.zeros(len(names), dtype=np.int64)
    for part in PARTS:
        at = _events_of(part, events)
        start, end = union(np.r_[start, events.start[at]], np.r_[end, events.end[at]])
        now = covered(start, end, windows[:, 1]) - covered(start, end, windows[:, 0])
        filled[part] = now - before
        before = now
    filled["other"] = windows[:, 1] - windows[:, 0] - before
    shown = [p for p, ns in filled.items() if ns.any() or p in ("operator", "other")]
    rows = tuple(
        StepRow(
            name=name,
            start_ns=int(windows[i, 0]) - zero,
            duration_ns=int(windows[i, 1] - windows[i, 0]),
            parts={p: int(filled[p][i]) for p in shown},
        )
        for i, name in enumerate(names)
    )
    late = step_index(windows)(events.start[calls.gpu]) < 0
    if late.any():
        notes.append(
            f"{int(late.sum()):,} kernels, copies and fills began outside all steps: no bar of "
            "the steps holds them."
        )
    return rows, windows, tuple(notes)


def step_index(windows: np.ndarray) -> StepOf:
    """Which step a moment is in; steps do not overlap."""

    def index(time: np.ndarray) -> np.ndarray:
        i = np.searchsorted(windows[:, 0], time, side="right") - 1
        return np.where((i >= 0) & (time < windows[np.maximum(i, 0), 1]), i, -1)

    return index


def gaps_of(
    events: Events, calls: Calls, windows: np.ndarray, zero: int
) -> tuple[tuple[LaunchGap, ...], int]:
    """The largest gaps inside the steps, and all of them together, ns.

    Of a GPU: between two pieces of its work, all streams together. Without one: between operators
    that no other calls, on the thread that spends most time in them.
    """
    steps = union(windows[:, 0], windows[:, 1])
    found: list[tuple[int, int, str, str]] = []
    for at in _devices(events, calls):
        found += _gaps(events, at, steps)
    found.sort(key=lambda g: (-g[1], g[0]))
    rows = tuple(LaunchGap(start_ns=s - zero, duration_ns=d, after=a, before=b)
                 for s, d, a, b in found[:MAX_GAPS])  # fmt: skip
    return rows, sum(g[1] for g in found)


def main_lane(calls: Calls) -> int:
    """The thread that spends most time in operators; -1 without any."""
    is_top = calls.parent < 0
    if not is_top.any():
        return -1
    return int(np.bincount(calls.lane[is_top], weights=calls.duration[is_top]).argmax())


def _windows(events: Events, calls: Calls) -> tuple[np.ndarray, list[str], list[str]]:
    notes: list[str] = []
    at = events.of(Kind.ANNOTATION)
    is_step = {i for i, name in enumerate(events.names) if STEP.match(name)}
    places = [i for i in at.tolist() if events.name[i] in is_step]
    if not places:
        return np.zeros((0, 2), dtype=np.int64), [], notes
    lanes = np.unique(events.lane[places])
    lane = main_lane(calls)
    if lane not in lanes:
        lane = int(lanes[0])
    ends, names, n_inside = [(-1, -1)], [], 0
    for i in places:
        start = int(events.start[i])
        if events.lane[i] != lane or not events.duration[i]:
            continue
        if start < ends[-1][1]:
            n_inside += 1
            continue
        ends.append((start, start + int(events.duration[i])))
        names.append(events.names[events.name[i]])
    if n_inside:
        notes.append(f"Left out: {n_inside} steps that begin inside another one.")
    if len(lanes) > 1:
        notes.append(f"{len(lanes)} threads mark steps: those of the busiest one count.")
    return np.array(ends[1:], dtype=np.int64).reshape(-1, 2), names, notes


def _events_of(part: str, events: Events) -> np.ndarray:
    if part in ("memcpy", "memset", "runtime"):
        return events.of({"memcpy": Kind.MEMCPY, "memset": Kind.MEMSET}.get(part, Kind.RUNTIME))
    is_collective = np.array([bool(COLLECTIVE.match(n)) for n in events.names], dtype=bool)
    if part == "communication":
        at = events.of(Kind.KERNEL, Kind.OPERATOR, Kind.ANNOTATION)
        return at[is_collective[events.name[at]]]
    at = events.of(Kind.KERNEL if part == "kernel" else Kind.OPERATOR)
    return at[~is_collective[events.name[at]]]


def _devices(events: Events, calls: Calls) -> list[np.ndarray]:
    """Events of each device that can be busy or not, in the order of time."""
    if len(calls.gpu):
        devices = events.device[calls.gpu]
        groups = [calls.gpu[devices == d] for d in np.unique(devices)]
    else:
        groups = [calls.index[(calls.parent < 0) & (calls.lane == main_lane(calls))]]
    return [g[np.argsort(events.start[g], kind="stable")] for g in groups]


def _gaps(
    events: Events, at: np.ndarray, steps: tuple[np.ndarray, np.ndarray]
) -> list[tuple[int, int, str, str]]:
    if len(at) < 2:
        return []
    start, end = events.start[at], events.end[at]
    last = np.maximum.accumulate(end)
    # Whose end is the latest so far: the one that stopped the device from being idle.
    place = np.maximum.accumulate(np.where(end == last, np.arange(len(at)), 0))
    found = []
    for i in (np.flatnonzero(start[1:] > last[:-1]) + 1).tolist():
        begin, stop = int(last[i - 1]), int(start[i])
        first = np.searchsorted(steps[1], begin, side="right")
        for window in range(int(first), len(steps[0])):
            if steps[0][window] >= stop:
                break
            low, high = max(begin, int(steps[0][window])), min(stop, int(steps[1][window]))
            if high > low:
                names = (
                    events.names[events.name[at[place[i - 1]]]],
                    events.names[events.name[at[i]]],
                )
                found.append((low, high - low, *names))
    return found
