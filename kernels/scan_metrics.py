"""Numbers that describe a scan order: how far it jumps and which tokens can influence which."""

from __future__ import annotations

import numpy as np

# Rows of the [targets, sources] comparison that are held at once: 64 MiB of bytes at most.
_CHUNK_BYTES = 1 << 26


def scan_metrics(index: np.ndarray, height: int, width: int) -> dict[str, int | float]:
    """Metrics of the table `index` `[K, L]` (-1 = pad) over a map of `height` x `width` tokens.

    `tokens_scanned`: visits of real tokens; `n_pads`: steps that read none. `mean_reach`,
    `max_reach`: the share (0 to 1) of all tokens that can influence a token through one scan,
    itself included, exact, mean and maximum over tokens. `farthest_steps`: the most steps back
    along a sequence from a token to one that influences it. `mean_jump`, `max_jump`: Manhattan
    distance in tokens between consecutive tokens of a sequence; `n_jumps`: moves that go farther
    (Chebyshev) than the order's shortest move.
    """
    n_tokens = height * width
    visits = np.bincount(index[index >= 0], minlength=n_tokens)
    counts = reach_counts(index, n_tokens)
    manhattan, chebyshev, farthest = _moves(index, width)
    return {
        "n_sequences": int(index.shape[0]),
        "length": int(index.shape[1]),
        "tokens_scanned": int(visits.sum()),
        "n_pads": int((index < 0).sum()),
        "visits_min": int(visits.min()),
        "visits_max": int(visits.max()),
        "mean_reach": float(counts.mean() / n_tokens),
        "max_reach": float(counts.max() / n_tokens),
        "farthest_steps": farthest,
        "mean_jump": float(manhattan.mean()) if manhattan.size else 0.0,
        "max_jump": int(manhattan.max()) if manhattan.size else 0,
        "n_jumps": int((chebyshev > chebyshev.min()).sum()) if chebyshev.size else 0,
    }


def reach_counts(index: np.ndarray, n_tokens: int) -> np.ndarray:
    """For each token, how many tokens (itself included) can influence it; int64 `[n_tokens]`.

    A source reaches a target if some sequence reads the source no later than it last reads the
    target.
    """
    counts = np.zeros(n_tokens, dtype=np.int64)
    first, last = _first_and_last(index, n_tokens)
    for sequences in _components(index, n_tokens):
        tokens = np.flatnonzero((last[sequences] >= 0).any(axis=0))
        counts[tokens] = _component_counts(first[sequences][:, tokens], last[sequences][:, tokens])
    return counts


def _first_and_last(index: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last step at which a sequence reads a token `[K, n_tokens]`; L and -1: never."""
    n_sequences, length = index.shape
    first = np.full((n_sequences, n_tokens), length, dtype=np.int64)
    last = np.full((n_sequences, n_tokens), -1, dtype=np.int64)
    for k, row in enumerate(index):
        steps = np.flatnonzero(row >= 0)
        last[k, row[steps]] = steps
        first[k, row[steps[::-1]]] = steps[::-1]
    return first, last


def _components(index: np.ndarray, n_tokens: int) -> list[list[int]]:
    """Sequences grouped so that two groups share no token (each phase of ES2D is its own group)."""
    group_of_token = np.full(n_tokens, -1, dtype=np.int64)
    groups: dict[int, list[int]] = {}
    for k, row in enumerate(index):
        tokens = row[row >= 0]
        if tokens.size == 0:
            continue
        merged = [k]
        for group in np.unique(group_of_token[tokens]):
            if group >= 0:
                merged += groups.pop(int(group))
                group_of_token[group_of_token == group] = k
        group_of_token[tokens] = k
        groups[k] = sorted(merged)
    return list(groups.values())


def _component_counts(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """`reach_counts` for sequences that share tokens; `first`, `last` are `[K, tokens]`."""
    n_tokens = first.shape[1]
    if first.shape[0] == 1:
        # The distinct tokens of a prefix: those whose first visit lies in it.
        return np.searchsorted(np.sort(first[0]), last[0], side="right")
    reads_all_once = (first == last).all(axis=1)
    for k in np.flatnonzero(reads_all_once):
        for m in np.flatnonzero(reads_all_once[:k]):
            if np.ptp(first[k] + first[m]) == 0:
                # One sequence and its reverse: what comes after in one comes before in the other.
                return np.full(n_tokens, n_tokens)
    counts = np.empty(n_tokens, dtype=np.int64)
    rows = max(1, _CHUNK_BYTES // n_tokens)
    for start in range(0, n_tokens, rows):
        reached = np.zeros((min(rows, n_tokens - start), n_tokens), dtype=bool)
        for opened, closed in zip(first, last, strict=True):
            reached |= opened[None, :] <= closed[start : start + rows, None]
        counts[start : start + rows] = reached.sum(axis=1)
    return counts


def _moves(index: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Manhattan and Chebyshev distance of every move between tokens; the longest span."""
    manhattan, chebyshev, farthest = [], [], 0
    for row in index:
        steps = np.flatnonzero(row >= 0)
        if steps.size == 0:
            continue
        farthest = max(farthest, int(steps[-1] - steps[0]))
        dy = np.abs(np.diff(row[steps] // width))
        dx = np.abs(np.diff(row[steps] % width))
        manhattan.append(dy + dx)
        chebyshev.append(np.maximum(dy, dx))
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *manhattan]), np.concatenate([empty, *chebyshev]), farthest
