"""The events of a trace as columns: what a reader keeps of each, and nothing more.

An event costs some 60 bytes here instead of the 2 kB of a decoded JSON object.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import IntEnum
from typing import Any

import numpy as np

MAX_TIME = 2**62  # ns
MAX_DURATION = 30 * 86_400 * 10**9  # ns: thirty days
MAX_NAME = 2_000  # characters shown
# Our CPU kernels' fused passes (`kernels.map_ops`) do the work of operators; they run outside of
# torch's dispatcher, which then has annotations instead.
FUSED = "map_ops::"
BACKWARD = "autograd::engine::evaluate_function"


class Kind(IntEnum):
    OTHER = 0
    OPERATOR = 1
    ANNOTATION = 2
    PYTHON = 3
    RUNTIME = 4
    KERNEL = 5
    MEMCPY = 6
    MEMSET = 7
    SPAN = 8  # the profiler's own span, longer than what it recorded


KINDS = {
    "cpu_op": Kind.OPERATOR,
    "operator": Kind.OPERATOR,
    "user_annotation": Kind.ANNOTATION,
    "python_function": Kind.PYTHON,
    "kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.MEMCPY,
    "memcpy": Kind.MEMCPY,
    "gpu_memset": Kind.MEMSET,
    "memset": Kind.MEMSET,
    "trace": Kind.SPAN,
    **dict.fromkeys(
        ("runtime", "cuda_runtime", "cuda_driver", "driver", "hip", "hip_runtime", "hip_driver")
        + ("xpu_runtime", "xpu_driver", "mtia_runtime", "privateuse1_runtime"),
        Kind.RUNTIME,
    ),
}


class Number(str):
    """A JSON number with a point, as it is written: a float would lose nanoseconds."""

    __slots__ = ()


def to_ns(value: Any) -> int | None:
    """Whole nanoseconds of a JSON number of microseconds; None for what is not such a number."""
    if type(value) is int:
        ns = value * 1000
    elif type(value) is Number:
        whole, _, part = value.partition(".")
        if len(part) == 3 and part.isdigit() and len(whole) < 20:
            ns = int(whole + part)
        else:
            try:
                exact = Decimal(value)
            except InvalidOperation:
                return None
            if not exact.is_finite() or exact.adjusted() > 17:
                return None
            ns = round(exact * 1000)
    else:
        return None
    return ns if -MAX_TIME < ns < MAX_TIME else None


def clean_name(text: str) -> str:
    """Half surrogate pairs cannot be written as UTF-8, and a name may be a megabyte."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"


@dataclass(frozen=True, slots=True)
class Marks:
    """The allocator's marks, in the order of time: int64 [M] each."""

    time: np.ndarray  # ns
    n_bytes: np.ndarray  # negative: freed
    address: np.ndarray
    total: np.ndarray  # allocated after the mark; -1 where the trace does not say
    device_type: np.ndarray
    device_id: np.ndarray
    lane: np.ndarray


@dataclass(frozen=True, slots=True)
class Flows:
    """From a forward operator (is_start) to its backward one: two points of one id."""

    id: np.ndarray
    time: np.ndarray
    lane: np.ndarray
    is_start: np.ndarray


@dataclass(frozen=True, slots=True)
class Detail:
    """How a kernel was launched."""

    grid: str
    block: str
    registers: int
    shared_bytes: int
    occupancy: float


@dataclass(frozen=True, slots=True)
class Events:
    """All events with a duration, sorted by (lane, start, longest first): [E] each."""

    start: np.ndarray  # int64, ns as the trace counts
    duration: np.ndarray  # int64, ns
    name: np.ndarray  # into names
    kind: np.ndarray  # `Kind`
    category: np.ndarray  # into categories
    lane: np.ndarray  # into lanes
    correlation: np.ndarray  # of a runtime call and what it launched; -1: none, as the next
    external: np.ndarray
    sequence: np.ndarray  # of a forward operator and its backward one
    forward_thread: np.ndarray  # above 0 in backward
    device: np.ndarray  # of kernels, copies and fills
    detail: np.ndarray  # into details
    names: tuple[str, ...]
    categories: tuple[str, ...]
    lanes: tuple[tuple[Any, Any], ...]  # (process, thread) as the trace names them
    details: tuple[Detail, ...]
    thread_names: dict[tuple[Any, Any], str]
    process_labels: dict[Any, str]
    marks: Marks
    flows: Flows
    is_whole_us: bool  # times in whole microseconds, as traces had them before torch 2.4

    @property
    def end(self) -> np.ndarray:
        return self.start + self.duration

    def of(self, *kinds: Kind) -> np.ndarray:
        """Indices of the events of these kinds, rising."""
        return np.flatnonzero(np.isin(self.kind, kinds))
