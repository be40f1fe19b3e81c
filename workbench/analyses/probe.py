"""Read a scan path back from the running operator: send token numbers through it and decode.

The operator is called exactly as the model calls it (same module, backend, scheme and parameter
shapes), only with parameters that turn the S6 into a recorder. With one active state, input x,
`dt B = 1`, `C = 1` and decay 1/4 it computes

    y_t = x_t + x_{t-1} / 4 + x_{t-2} / 16 + ...

If x is one bit of the token number, the bit of the token that was read just before is the leading
term of `y_t - x_t`. One channel per bit gives every token the number of its predecessor, and one
channel of ones says how many steps ago that was (pads are scanned, so they count). Sequences with
other parameter sets are told apart by channel: in the channels of set s only set s has a time step
above 0. Everything is one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

DECAY = 0.25
# A predecessor more than this many steps back is lost in float32 noise: y is near 1, 4^-8 is
# 1.5e-5.
FARTHEST = 8
TIME_STEP = 32.0  # softplus(32) = 32 exactly; B = 1/32 makes the product 1
OFF = -200.0  # softplus(-200) = 0 exactly


@dataclass(frozen=True)
class Reading:
    """What the operator read with one parameter set. All arrays are `[H * W]`, by token number."""

    parameter_set: int
    is_read: np.ndarray  # bool
    is_read_again: np.ndarray  # bool: more than once, so the predecessor cannot be told
    previous: np.ndarray  # token read before this one in its sequence, -1 = none seen
    distance: np.ndarray  # steps since then; more than 1 where pads lie between, 0 = none seen


def read_path(op: Any, height: int, width: int) -> list[Reading]:
    """Probe `op.scan` on a map of `height` x `width` tokens; one reading per parameter set.

    `op` holds the scan's parameters (their shapes and device are used, not their values) and
    `scan`, the module that calls the kernel.
    """
    n_sets, n_projected, channels = op.x_proj_weight.shape
    n_states = op.A_logs.shape[1]
    rank = n_projected - 2 * n_states
    n_tokens = height * width
    n_bits = max(1, (n_tokens - 1).bit_length())
    per_set = channels // n_sets  # channels that record for one set: ones, then bits
    if per_set < 2:
        raise ValueError(f"probing {n_sets} parameter sets needs {2 * n_sets} channels or more.")
    n_batches = -(-n_bits // (per_set - 1))

    numbers = np.arange(n_tokens)
    bits = (numbers[None] >> np.arange(n_bits)[:, None]) & 1  # [bits, tokens]
    x = np.zeros((n_batches, channels, n_tokens), dtype=np.float32)
    where = []  # (batch, place within the set's channels) of each bit
    for b in range(n_bits):
        where.append((b // (per_set - 1), 1 + b % (per_set - 1)))
    x_proj = np.zeros((n_sets, n_projected, channels), dtype=np.float32)
    x_proj[:, rank, 0] = (
        1.0 / TIME_STEP
    )  # B of state 0, read from channel 0: ones at tokens, 0 at pads
    x_proj[:, rank + n_states, 0] = 1.0  # C of state 0
    dt_bias = np.full((n_sets, channels), OFF, dtype=np.float32)
    for s in range(n_sets):
        first = s * per_set
        dt_bias[s, first : first + per_set] = TIME_STEP
        x[:, first] = 1.0
        for b, (batch, place) in enumerate(where):
            x[batch, first + place] = bits[b]

    def like(parameter: torch.Tensor, values: np.ndarray | float) -> torch.Tensor:
        if isinstance(values, float):
            return torch.full_like(parameter, values, requires_grad=False)
        return torch.from_numpy(values).to(parameter.device, parameter.dtype)

    with torch.no_grad():
        y = op.scan(
            # Channels-last memory, as the model hands it over.
            like(op.x_proj_weight, x.reshape(n_batches, channels, height, width)).contiguous(
                memory_format=torch.channels_last
            ),
            like(op.x_proj_weight, x_proj),
            like(op.dt_projs_weight, 0.0),
            like(op.dt_projs_bias, dt_bias),
            like(op.A_logs, math.log(-math.log(DECAY) / TIME_STEP)),
            like(op.Ds, 0.0),
        )
    recorded = y.reshape(n_batches, channels, n_tokens).double().cpu().numpy()
    readings = []
    for s in range(n_sets):
        first = s * per_set
        bit_rows = np.stack([recorded[batch, first + place] for batch, place in where])
        readings.append(_decode(s, recorded[0, first], bit_rows, bits))
    return readings


def _decode(s: int, ones: np.ndarray, bit_rows: np.ndarray, bits: np.ndarray) -> Reading:
    """`ones` `[tokens]` and `bit_rows` `[bits, tokens]` as recorded, `bits` as sent."""
    is_read = ones > 0.5
    is_read_again = ones > 1.5  # once: at most 1 + 1/4 + 1/16 + ... = 4/3
    rest = np.where(is_read & ~is_read_again, ones - 1.0, 0.0)
    # The ones before a token sum to between DECAY^d and 4/3 DECAY^d, d the distance of the nearest.
    seen = rest > 0.9 * DECAY**FARTHEST
    distance = np.zeros(ones.size, dtype=np.int64)
    distance[seen] = np.ceil(np.log(rest[seen]) / math.log(DECAY) - 1e-3).astype(np.int64)
    scale = DECAY ** distance.astype(np.float64)
    previous_bits = (bit_rows - bits) > 2 / 3 * scale
    previous = (previous_bits.astype(np.int64) << np.arange(len(bits))[:, None]).sum(0)
    previous = np.where(seen & (previous < ones.size), previous, -1)
    return Reading(s, is_read, is_read_again, previous, distance)
