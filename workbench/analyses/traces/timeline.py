"""What to draw of a trace: lanes, nesting, the longest events."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.analyses.traces.events import Events, Kind
from workbench.profiler_results import Timeline

MAX_EVENTS = 20_000
WORK = (Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET)


def timeline_of(events: Events, zero: int) -> tuple[Timeline, tuple[str, ...]]:
    """The longest events, at most `MAX_EVENTS`, and notes.

    Python functions are drawn only where there is nothing else.
    """
    notes = []
    can = np.flatnonzero(~np.isin(events.kind, (Kind.SPAN, Kind.PYTHON)))
    n_python = int((events.kind == Kind.PYTHON).sum())
    if not len(can):
        can = events.of(Kind.PYTHON)
    elif n_python:
        notes.append(f"The timeline leaves out {n_python:,} Python functions.")
    longest = np.argsort(-events.duration[can], kind="stable")[:MAX_EVENTS]
    at = np.sort(can[longest])
    shortest = 0
    if len(can) > len(at):
        shortest = int(events.duration[at].min())
        n_equal = int((events.duration[can] == shortest).sum())
        n_drawn = int((events.duration[at] == shortest).sum())
        if n_drawn < n_equal:
            notes.append(
                f"The timeline has {n_drawn:,} of the {n_equal:,} events of {shortest:,} ns."
            )
    lanes, place = _lanes(events, at)
    lane = place[events.lane[at]]
    order = np.lexsort((-events.duration[at], events.start[at], lane))
    at, lane = at[order], lane[order]
    name_ids, name = np.unique(events.name[at], return_inverse=True)
    category_ids, category = np.unique(events.category[at], return_inverse=True)
    return Timeline(
        lanes=lanes,
        names=tuple(events.names[i] for i in name_ids),
        categories=tuple(events.categories[i] for i in category_ids),
        start_ns=events.start[at] - zero,
        duration_ns=events.duration[at],
        lane=lane.astype(np.int32),
        depth=_depth(lane, events.start[at], events.end[at]),
        name=name.astype(np.int32),
        category=category.astype(np.int32),
        n_all=len(can),
        shortest_ns=shortest,
    ), tuple(notes)


def _lanes(events: Events, at: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the lanes, the busiest thread first and GPUs last, and the place of each lane."""
    used = np.unique(events.lane[at])
    busy = np.bincount(events.lane[at], weights=events.duration[at], minlength=len(events.lanes))
    work = np.unique(events.lane[events.of(*WORK)])
    n_processes = len({events.lanes[i][0] for i in used.tolist() if i not in work})

    def is_gpu(i: int) -> bool:
        label = events.process_labels.get(events.lanes[i][0], "")
        return bool(np.isin(i, work)) or label.startswith("GPU")

    def name_of(i: int) -> str:
        process, thread = events.lanes[i]
        known = events.thread_names.get((process, thread), "")
        if is_gpu(i):
            stream = known if known.startswith("stream") else f"stream {_short(thread)}"
            stream = "all streams" if thread == -1 else stream
            return f"GPU {_short(process)}, {stream}"
        text = known if known.startswith("thread") else f"thread {_short(thread)} {known}".strip()
        return text if n_processes < 2 else f"process {_short(process)}, {text}"

    def rank(i: int) -> tuple[bool, float, str]:
        return (True, 0.0, name_of(i)) if is_gpu(i) else (False, -busy[i], "")

    order = sorted(used.tolist(), key=rank)
    place = np.zeros(len(events.lanes), dtype=np.int64)
    place[order] = np.arange(len(order))
    return tuple(name_of(i) for i in order), place


def _short(value: Any) -> str:
    return str(value)[:60]


def _depth(lane: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Rows inside each lane: below all events that are still open. Sorted by (lane, start)."""
    depth = np.zeros(len(lane), dtype=np.int32)
    stack: list[int] = []
    last = -1
    ends = end.tolist()
    for i, (own, begin) in enumerate(zip(lane.tolist(), start.tolist(), strict=True)):
        if own != last:
            stack.clear()
            last = own
        while stack and stack[-1] <= begin:
            stack.pop()
        depth[i] = len(stack)
        stack.append(ends[i])
    return depth
