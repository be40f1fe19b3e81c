"""What is not run: rows too large, too long, or for which the time is up. Each says its size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from kernels._bench.cases import Case
from kernels._bench.contenders import Contender

MEMORY_LIMIT = 8 * 2**30  # bytes of one call
TIME_LIMIT = 60.0  # seconds of one row: warm-up and all repeats
MIN_REPEATS = 3
MAX_REPEATS = 200
# A row may take this part of the time that is left although many rows follow.
LARGEST_SHARE = 0.2
# This part of everything is nobody's: float64 answers, inputs, comparisons.
RESERVED = 0.3
EXACT_SHARE = 0.05  # the same for a float64 answer
# Rows take a fair share of what is left, times this: many later rows turn out not to run at all.
GENEROSITY = 4.0
EXACT = "float64 reference"
STEP_BY_STEP = ("reference", EXACT)


class Rates:
    """Estimated times of calls, from the calls that were measured so far."""

    def __init__(self) -> None:
        self._measured: dict[tuple[str, str], list[tuple[int, int, float]]] = {}

    def add(self, name: str, which: str, case: Case, seconds: float) -> None:
        known = self._measured.setdefault((name, which), [])
        known.append((case.shape[2], case.n_states, seconds))

    def knows(self, name: str, which: str) -> bool:
        return (name, which) in self._measured

    def seconds(self, name: str, which: str, case: Case) -> float:
        """Time of the most similar measured call, scaled by the cost model's state updates.

        What goes step by step takes at least its time per step, whatever the width.
        """
        length, n_states = case.shape[2], case.n_states
        nearest = min(
            self._measured[name, which],
            key=lambda m: abs(math.log(length / m[0])) + abs(math.log(n_states / m[1])),
        )
        ratio = n_states / nearest[1]
        if name in STEP_BY_STEP:
            ratio = max(ratio, length / nearest[0])
        return nearest[2] * ratio


class Budget:
    """The seconds that everything may take together, a part of them for each who shares them:
    a slow contender cannot use up what the others need."""

    def __init__(
        self,
        seconds: float,
        sharers: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock()
        self._part = (1 - RESERVED) * seconds / max(1, len(sharers))
        self._spent = dict.fromkeys(sharers, 0.0)

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - (self._clock() - self._start))

    def left_of(self, name: str) -> float:
        """What one sharer may still use."""
        return max(0.0, min(self.left, self._part - self._spent[name]))

    def spend(self, name: str, seconds: float) -> None:
        self._spent[name] += seconds

    def allows(self, name: str, seconds: float, rows_left: int) -> bool:
        return seconds <= _share(LARGEST_SHARE, rows_left) * self.left_of(name)

    def allows_exact(self, seconds: float, rows_left: int) -> bool:
        """Whether a float64 answer is affordable; it serves all contenders of a shape."""
        return seconds <= _share(EXACT_SHARE, rows_left) * self.left

    def repeats(self, name: str, one_call: float, rows_left: int, wanted: float) -> int:
        """How often a row's call is timed in about `wanted` seconds or its share; 0 is never."""
        left = self.left_of(name)
        share = min(wanted, GENEROSITY * left / max(1, rows_left), LARGEST_SHARE * left)
        repeats = int(min(MAX_REPEATS, max(MIN_REPEATS, share / max(one_call, 1e-6))))
        return repeats if self.allows(name, repeats * one_call, rows_left) else 0


def _share(least: float, rows_left: int) -> float:
    """The part of what is left that one row may take: more where few rows follow."""
    return min(1.0, max(least, 2.0 / max(1, rows_left)))


def why_too_large(contender: Contender, case: Case, which: str) -> str | None:
    """Words with the computed size; None if the call fits."""
    return memory_words(contender.bytes_needed(case, which))


def memory_words(n_bytes: float) -> str | None:
    return f"not run: {n_bytes / 2**30:.1f} GiB" if n_bytes > MEMORY_LIMIT else None


def why_too_long(name: str, one_call: float, budget: Budget, rows_left: int) -> str | None:
    """Words with the computed time; None if a warm-up and the fewest repeats fit."""
    row = (1 + MIN_REPEATS) * one_call
    if row > TIME_LIMIT:
        return f"not run: about {row:.0f} s"
    if not budget.allows(name, row, rows_left):
        return f"not run: time budget, about {row:.1f} s of {budget.left_of(name):.0f} s left"
    return None
