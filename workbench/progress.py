"""Progress and cancelling: the two small values that every long analysis understands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.errors import CancelledError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long run is. `done` and `total` count the same thing, `what` says it in words."""

    done: int
    total: int
    what: str
    seconds_left: float | None = None


class CancelToken:
    """Set by the Stop button, read by the running analysis.

    Gradio's `cancels=` frees the queue slot but not the thread (measured, see ui-facts 2.5), so the
    work itself has to look: `check()` at least once a second.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise `CancelledError` once the token is cancelled."""
        if self._event.is_set():
            raise CancelledError("Stopped. What was finished before is kept.")


class Pace:
    """Estimates the time left from the steps done so far."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.perf_counter()

    def at(self, done: int, what: str) -> Progress:
        left = None
        if done > 0:
            left = (time.perf_counter() - self.started) / done * (self.total - done)
        return Progress(done, self.total, what, left)


def result_of(items: Iterator[Any]) -> Any:
    """The last result of a generator of progress and growing results."""
    result = None
    for item in items:
        if not isinstance(item, Progress):
            result = item
    return result
