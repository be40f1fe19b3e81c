"""Verify sequences that cannot be told apart from outside: by sums of random token values.

Where several sequences share a parameter set and their outputs are added, a token's predecessors
come back as one sum. So a few seeded random values per token go through the running operator, with
known gates, and what returns is compared with what the scheme's table predicts.

What this shows: with these gates the operator is linear in the values, y = M x. If M differs from
the table's M' in the row of some token by d, a random x hides it only if |d x| stays below the
tolerance, a chance of about one in a thousand for each of several independent vectors. A short
memory (the state halves per token) makes nearby predecessors and pads count, a long one (0.999 per
token) those a thousand steps back. So at every token the predecessors of all sequences of the set,
taken together, and their distances are those of the table. What it does not show: which of these
sequences read which token, where exchanging them changes no sum; no output depends on it either.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels import ScanOrder
from workbench.analyses.probe import TOKEN_DECAY, record, recording_channels

DECAYS = (0.5, 0.9, 0.99, 0.999)  # per token, taken in turn by the channels
PAD_DECAY = TOKEN_DECAY**0.25  # a pad counts as a quarter of a token
MAX_VALUES = 4
SEED = 0
# Of the typical size of a sum; float32 stays a hundred times below it.
TOLERANCE = 1e-3
BLOCK = 128


def wrong_tokens(op: Any, table: ScanOrder, shared: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """For each parameter set of `shared` (set -> its sequences), bool `[N]`: whose sums differ."""
    _, per_set = recording_channels(op)
    decays = np.array([DECAYS[i % len(DECAYS)] for i in range(per_set)])
    n_values = min(per_set - 1, MAX_VALUES)
    values = np.random.default_rng(SEED).uniform(-1, 1, (n_values, table.n_tokens))
    values = values.astype(np.float32)
    recorded = record(op, values, decays, PAD_DECAY, table.height, table.width)
    sent = np.concatenate([np.ones((1, table.n_tokens), np.float32), values])
    found = {}
    for s, sequences in shared.items():
        ones, sums = recorded[s]
        expected = predicted_sums(table.index[sequences], sent, decays[: n_values + 1])
        # A vector of random values adds up like a random walk, ones add up straight.
        n = max(1, len(sequences))
        walk = np.sqrt(n / (1 - decays[: n_values + 1] ** 2))
        walk[0] = n / (1 - decays[0])
        error = np.abs(np.concatenate([ones[None], sums]) - expected) / walk[:, None]
        # Not `error > TOLERANCE`: what is not a number is wrong, too.
        found[s] = ~(error < TOLERANCE).all(0)
    return found


def predicted_sums(index: np.ndarray, values: np.ndarray, decays: np.ndarray) -> np.ndarray:
    """What the sequences `index` `[K, L]` add up to at each token for `values` `[V, N]`, float64.

    h = a h + x at tokens, h = a^(1/4) h at pads; `decays` `[V]` are the a. `[V, N]`.
    """
    n_values, n_tokens = values.shape
    n_sequences, length = index.shape
    n_blocks = -(-length // BLOCK)
    padded = np.full((n_sequences, n_blocks * BLOCK), -1, dtype=np.int64)
    padded[:, :length] = index
    x = np.concatenate([values, np.zeros((n_values, 1))], axis=1)[:, padded]  # [V, K, L]
    gate = np.where(padded >= 0, decays[:, None, None], decays[:, None, None] ** 0.25)
    h = x.reshape(n_values, n_sequences, n_blocks, BLOCK)
    gate = gate.reshape(h.shape)
    # Every block from an empty state, all blocks at once; then what each block hands to the next.
    for t in range(1, BLOCK):
        h[..., t] += gate[..., t] * h[..., t - 1]
        gate[..., t] *= gate[..., t - 1]
    for block in range(1, n_blocks):
        h[:, :, block] += gate[:, :, block] * h[:, :, block - 1, -1:]
    sums = np.zeros((n_values, n_tokens + 1))
    for k in range(n_sequences):
        for v in range(n_values):
            sums[v] += np.bincount(padded[k] + 1, h[v, k].reshape(-1), n_tokens + 1)
    return sums[:, 1:]
