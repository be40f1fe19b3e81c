"""What the kernels need of a scan order, on the device, made once per order and device.

A sequence whose tokens lie at constant distances (every sequence of es2d, ss2d and raster scans)
is six numbers instead of a table; `kernels/_triton/device.py:load_walk` says which.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from kernels._triton.configs import ROWS, STRIDES, TABLE
from kernels.scan_order import PAD, ScanOrder


@dataclass(frozen=True)
class Plan:
    """An order as the kernels take it. Tensors are int32, `sets` and `visits` too."""

    kind: int
    n_tokens: int
    length: int
    sets_list: tuple[int, ...]
    is_sum: bool = False
    reads_all: bool = True
    order: Tensor | None = None  # [K, 6] or [K, L]
    sets: Tensor | None = None  # [K]
    visits: Tensor | None = None  # [V, T]: which steps k*L+l read a token, -1 for none

    @property
    def n_sequences(self) -> int:
        return len(self.sets_list)


def rows_plan(n_sequences: int, length: int) -> Plan:
    """Sequences that lie in memory one after the other (Mamba's layout)."""
    return Plan(ROWS, n_sequences * length, length, tuple(range(n_sequences)))


_plans: weakref.WeakKeyDictionary[ScanOrder, dict[torch.device, Plan]] = weakref.WeakKeyDictionary()


def plan_of(order: ScanOrder, device: torch.device) -> Plan:
    """The plan of an order on a device."""
    plans = _plans.setdefault(order, {})
    if device not in plans:
        plans[device] = _make_plan(order, device)
    return plans[device]


def _make_plan(order: ScanOrder, device: torch.device) -> Plan:
    walks = find_walks(order)
    table = order.index if walks is None else walks

    def place(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=np.int32)).to(device)

    return Plan(
        TABLE if walks is None else STRIDES,
        order.n_tokens,
        order.length,
        tuple(order.parameter_set.tolist()),
        is_sum=order.merge == "sum",
        reads_all=bool(order.visits.min() > 0),
        order=place(table),
        sets=place(order.parameter_set),
        visits=place(visits_of(order)) if order.merge == "sum" else None,
    )


def visits_of(order: ScanOrder) -> np.ndarray:
    """For every token the steps that read it, first sequence first: `[most visits, tokens]`.

    A step is `k * length + l`; -1 where a token is read less often.
    """
    tokens = order.index.reshape(-1)
    steps = np.flatnonzero(tokens != PAD)
    steps = steps[np.argsort(tokens[steps], kind="stable")]
    owners = tokens[steps]
    first_of_token = np.concatenate([[0], np.cumsum(order.visits)[:-1]])
    table = np.full((max(1, int(order.visits.max())), order.n_tokens), PAD, dtype=np.int32)
    table[np.arange(len(steps)) - first_of_token[owners], owners] = steps
    return table


def find_walks(order: ScanOrder) -> np.ndarray | None:
    """`[K, 6]` if all sequences have constant strides, else None.

    Candidates come from the number of sequences, and count only if they give the order's own
    table, so a table that a user made is never mistaken for a scheme.
    """
    height, width, n = order.height, order.width, order.n_sequences
    step = isqrt(n)
    candidates = [_es2d_walks(height, width, step)] if step * step == n else []
    if n == 4:
        candidates.append(_ss2d_walks(height, width))
    for walks in candidates:
        if np.array_equal(_tokens_of(walks, order.length), order.index):
            return walks
    return None


def _es2d_walks(height: int, width: int, step: int) -> np.ndarray:
    rows, columns = -(-height // step), -(-width // step)
    walks = []
    for k in range(step * step):
        i, j = k % step, k // step
        n_rows, n_columns = -(-(height - i) // step), -(-(width - j) // step)
        down, right = step * width, step
        by_row = (columns, right, down, max(0, n_columns), max(0, n_rows))
        by_column = (rows, down, right, max(0, n_rows), max(0, n_columns))
        walks.append((i * width + j, *(by_row if i % 2 == 0 else by_column)))
    return np.array(walks, dtype=np.int64)


def _ss2d_walks(height: int, width: int) -> np.ndarray:
    last = height * width - 1
    return np.array(
        [
            (0, width, 1, width, width, height),
            (0, height, width, 1, height, width),
            (last, width, -1, -width, width, height),
            (last, height, -width, -1, height, width),
        ],
        dtype=np.int64,
    )


def _tokens_of(walks: np.ndarray, length: int) -> np.ndarray:
    """The index table `[K, length]` that the walks stand for; what the kernels compute."""
    first, size, inner_stride, outer_stride, inner_end, outer_end = walks.T[:, :, None]
    outer, inner = np.divmod(np.arange(length), size)
    tokens = first + outer * outer_stride + inner * inner_stride
    return np.where((inner < inner_end) & (outer < outer_end), tokens, PAD)
