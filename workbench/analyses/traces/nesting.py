"""Intervals: which call runs inside which, and how much of the time a set of them covers."""

from __future__ import annotations

import numpy as np


def nest(
    lane: np.ndarray, start: np.ndarray, duration: np.ndarray, slack: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Parents of calls sorted by (lane, start, longest first): (parent [N], duration [N]).

    A call is inside another if it ends no later; calls that only overlap are not nested, as in
    torch. One that ends up to `slack` ns after its parent is cut there: whole microseconds round.
    """
    lanes, starts, ends = lane.tolist(), start.tolist(), (start + duration).tolist()
    parent = [-1] * len(lanes)
    stack: list[int] = []
    last_lane = None
    for i, (own_lane, begin) in enumerate(zip(lanes, starts, strict=True)):
        if own_lane != last_lane:
            stack.clear()
            last_lane = own_lane
        while stack:
            above = stack[-1]
            limit = ends[above]
            if begin >= limit or ends[i] > limit + slack:
                stack.pop()
            else:
                parent[i] = above
                ends[i] = min(ends[i], limit)
                break
        stack.append(i)
    found = np.array(parent, dtype=np.int64)
    return found, np.array(ends, dtype=np.int64) - start


def innermost(
    lane: np.ndarray,
    start: np.ndarray,
    duration: np.ndarray,
    at_lane: np.ndarray,
    at_time: np.ndarray,
) -> np.ndarray:
    """The innermost call that is open at each place, as an index into the calls; -1: none.

    Calls are sorted as for `nest`; a call that starts at the very moment is open, one that ends
    then is not.
    """
    order = np.lexsort((at_time, at_lane))
    lanes, starts, ends = lane.tolist(), start.tolist(), (start + duration).tolist()
    found = np.full(len(order), -1, dtype=np.int64)
    stack: list[int] = []
    last_lane, i, n = None, 0, len(lanes)
    wanted = zip(order.tolist(), at_lane[order].tolist(), at_time[order].tolist(), strict=True)
    for place, own_lane, time in wanted:
        if own_lane != last_lane:
            stack.clear()
            last_lane = own_lane
            while i < n and lanes[i] < own_lane:
                i += 1
        while i < n and lanes[i] == own_lane and starts[i] <= time:
            while stack and (starts[i] >= ends[stack[-1]] or ends[i] > ends[stack[-1]]):
                stack.pop()
            stack.append(i)
            i += 1
        while stack and ends[stack[-1]] <= time:
            stack.pop()
        if stack:
            found[place] = stack[-1]
    return found


def is_outermost(parent: np.ndarray, name: np.ndarray) -> np.ndarray:
    """True where no call around this one has its name."""
    names = name.tolist()
    n_open = dict.fromkeys(names, 0)
    found = np.ones(len(names), dtype=bool)
    stack: list[int] = []
    for i, above in enumerate(parent.tolist()):
        while stack and stack[-1] != above:
            n_open[names[stack.pop()]] -= 1
        found[i] = n_open[names[i]] == 0
        n_open[names[i]] += 1
        stack.append(i)
    return found


def with_children(parent: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Sums of own values and of all calls inside; parents come before their children."""
    total = own.tolist()
    above = parent.tolist()
    for i in range(len(total) - 1, -1, -1):
        if above[i] >= 0:
            total[above[i]] += total[i]
    return np.array(total, dtype=np.int64)


def without_children(parent: np.ndarray, duration: np.ndarray) -> np.ndarray:
    """Durations less those of the calls directly inside."""
    own = duration.copy()
    is_inside = parent >= 0
    np.subtract.at(own, parent[is_inside], duration[is_inside])
    return own


def union(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint intervals in the order of time that cover the same; those that touch are joined."""
    is_real = end > start
    start, end = start[is_real], end[is_real]
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    if not len(start):
        return start, end
    is_new = np.r_[True, start[1:] > end[:-1]]
    return start[is_new], end[np.r_[is_new[1:], True]]


def covered(start: np.ndarray, end: np.ndarray, time: np.ndarray) -> np.ndarray:
    """How much of the disjoint intervals lies before each time, ns."""
    before = np.r_[0, np.cumsum(end - start)]
    i = np.searchsorted(start, time, side="right")
    at = np.maximum(i - 1, 0)
    if not len(start):
        return np.zeros(len(time), dtype=np.int64)
    inside = np.clip(time - start[at], 0, end[at] - start[at])
    return before[at] + np.where(i > 0, inside, 0)
