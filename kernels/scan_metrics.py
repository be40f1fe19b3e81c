"""Numbers that describe a scan order: how far it jumps and which tokens can influence which."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kernels.scan_reach import Reads, reach_counts, reads_of, rows_by_pass, slots_of
from kernels.schemes.base import PAD

if TYPE_CHECKING:
    from kernels.scan_order import ScanOrder


def scan_metrics(order: ScanOrder) -> dict[str, int | float]:
    """Metrics of an order; a move goes from one token of a row to the next, pads left out.

    - `n_sequences`, `length` (of the longest), `n_parameter_sets` that they use
    - `tokens_scanned`: visits of tokens; `n_pads`: steps that read nothing; `n_extra_steps`: steps
      that read something else (class token, cell of a smaller map); `visits_min`, `visits_max`
    - `mean_reach`, `max_reach`: share (0 to 1) of all tokens that can influence a token through one
      scan, itself included, mean and maximum over tokens; `is_reach_exact`: 0 where they are
      estimated from a sample of sources (very large maps)
    - `farthest_steps`: most steps back along a sequence from a token to one that influences it
    - `mean_jump`, `max_jump`: Manhattan distance of a move, in tokens
    - `n_jumps`: moves that do not go to one of the four neighbours; `n_diagonal`: those of them
      that go to a diagonal neighbour; `n_breaks`: moves that go farther (Chebyshev) than the
      order's shortest move, which is what a picture should set apart
    - `mean_gap`, `max_gap`: steps between two 4-neighbours, over all pairs and sequences that read
      both; nan if none does. `neighbours_together`: share (0 to 1) of pairs that some sequence
      reads both of
    """
    counts, is_exact = reach_counts(order)
    return {
        "n_sequences": order.n_sequences,
        "length": order.length,
        "n_parameter_sets": int(np.unique(order.parameter_set).size),
        "tokens_scanned": int(order.visits.sum()),
        "n_pads": order.n_pads,
        "n_extra_steps": int((order.index < PAD).sum()),
        "visits_min": int(order.visits.min()),
        "visits_max": int(order.visits.max()),
        "mean_reach": float(counts.mean() / order.n_tokens),
        "max_reach": float(counts.max() / order.n_tokens),
        "is_reach_exact": int(is_exact),
        **_moves(order),
        **_gaps(order),
    }


def _moves(order: ScanOrder) -> dict[str, int | float]:
    y, x = _places(order)
    manhattan, chebyshev, farthest = [], [], 0
    for blocks in rows_by_pass(order):
        for block in blocks:
            slots = slots_of(block, order.n_tokens)
            row, step = np.nonzero(np.isfinite(y)[slots])
            at = slots[row, step]
            is_move = row[1:] == row[:-1]
            dy, dx = np.abs(np.diff(y[at]))[is_move], np.abs(np.diff(x[at]))[is_move]
            manhattan.append(dy + dx)
            chebyshev.append(np.maximum(dy, dx))
            last = np.append(~is_move, True)
            first = np.insert(~is_move, 0, True)
            if step.size:
                farthest = max(farthest, int((step[last] - step[first]).max()))
    far, wide = np.concatenate(manhattan), np.concatenate(chebyshev)
    if far.size == 0:
        return {
            "farthest_steps": farthest,
            "mean_jump": 0.0,
            "max_jump": 0,
            "n_jumps": 0,
            "n_diagonal": 0,
            "n_breaks": 0,
        }
    return {
        "farthest_steps": farthest,
        "mean_jump": float(far.mean()),
        "max_jump": int(far.max()),
        "n_jumps": int((far > 1).sum()),
        "n_diagonal": int(((far == 2) & (wide == 1)).sum()),
        "n_breaks": int((wide > wide.min()).sum()),
    }


def _places(order: ScanOrder) -> tuple[np.ndarray, np.ndarray]:
    """y and x by slot: tokens, then the pad (nan), then the extra items."""
    y, x = np.indices((order.height, order.width)).reshape(2, -1)
    parts = [np.stack([y, x]), np.full((2, 1), np.nan)]
    if order.other is not None and order.other.extra is not None:
        parts.append(order.other.extra.places.T)
    together = np.concatenate(parts, axis=1)
    return together[0], together[1]


def _gaps(order: ScanOrder) -> dict[str, int | float]:
    blocks = [block for blocks in rows_by_pass(order) for block in blocks]
    reads = reads_of(order, blocks, with_extra=False)
    tokens = np.arange(order.n_tokens).reshape(order.height, order.width)
    total = n_gaps = largest = n_pairs = n_together = 0
    for here, there in ((tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])):
        is_together = np.zeros(here.size, dtype=bool)
        for v in range(len(reads.row)):
            for w in range(len(reads.row)):
                is_same, gap = _gap(reads, v, here.reshape(-1), w, there.reshape(-1))
                is_together |= is_same
                total += int(gap.sum())
                n_gaps += gap.size
                largest = max(largest, int(gap.max(initial=0)))
        n_pairs += here.size
        n_together += int(is_together.sum())
    return {
        "mean_gap": total / n_gaps if n_gaps else math.nan,
        "max_gap": largest if n_gaps else math.nan,
        "neighbours_together": n_together / n_pairs if n_pairs else math.nan,
    }


def _gap(
    reads: Reads, v: int, here: np.ndarray, w: int, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the v-th row that reads `here` is the w-th that reads `there`; steps between them."""
    row = reads.row[v][here]
    is_same = (row == reads.row[w][there]) & (row >= 0)
    return is_same, np.abs(reads.step[v][here] - reads.step[w][there])[is_same]
