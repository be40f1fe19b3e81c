"""Read a scan path back from the running operator: send token numbers through it and decode.

The operator is called exactly as the model calls it (same module, backend, scheme and parameter
shapes), only with parameters that turn the S6 into a recorder. With one active state, input x,
`dt B = 1` and `C = 1` at tokens and a decay a at each token it computes

    y_t = x_t + a x_{t-1} + a^2 x_{t-2} + ...

dt is read from the tokens, so pads (read as zeros: they write nothing) decay by another, milder
factor g. If x is one bit of the token number, the leading term of `y_t - x_t` is the bit of the
token read just before, times `a g^n` with n pads between; a channel of ones shows `a g^n` itself
and so n. Where a table has many pads in a row, each bit's complement is sent, too: for every token
one of the two is 0, and there `y_t` has no part of its own and keeps all digits of float32.
Sequences with other parameter sets are told apart by channel: in the channels of set s only set s
has a time step above 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

TOKEN_DECAY = 2.0**-8
PAD_DECAY = 2.0 ** (-1 / 32)
# Beside a token's own part up to this many pads can be counted, without it up to FAR, where the
# factor is 2^-108: float32 ends at 2^-126. Beyond FAR pads are counted to about 1 % of a factor e.
NEAR = 192
FAR = 3200
FAR_EXPONENT = 100
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
    tolerance: float = (
        0.0  # steps by which `distance` may be off: 0 unless thousands of pads follow
    )


def read_path(op: Any, height: int, width: int, most_pads: int = NEAR) -> list[Reading]:
    """Probe `op.scan` on a map of `height` x `width` tokens; one reading per parameter set.

    `op` holds the scan's parameters (their shapes and device are used, not their values) and
    `scan`, the module that calls the kernel. A token with more than `most_pads` pads before it may
    come back as one without a predecessor.
    """
    n_sets, per_set = recording_channels(op)
    n_tokens = height * width
    n_bits = max(1, (n_tokens - 1).bit_length())
    bits = (np.arange(n_tokens)[None] >> np.arange(n_bits)[:, None]) & 1  # [bits, tokens]
    codes = bits if most_pads <= NEAR else np.concatenate([bits, 1 - bits])
    pad_decay = PAD_DECAY if most_pads <= FAR else 2.0 ** (-FAR_EXPONENT / most_pads)
    recorded = record(op, codes, np.full(per_set, TOKEN_DECAY), pad_decay, height, width)
    return [_decode(s, ones, back, bits, pad_decay) for s, (ones, back) in enumerate(recorded)]


def recording_channels(op: Any) -> tuple[int, int]:
    """(parameter sets, channels that record for one set) of an operator."""
    n_sets, _, channels = op.x_proj_weight.shape
    if channels // n_sets < 2:
        raise ValueError(f"probing {n_sets} parameter sets needs {2 * n_sets} channels or more.")
    return n_sets, channels // n_sets


def record(
    op: Any,
    codes: np.ndarray,
    decays: np.ndarray,
    pad_decay: float,
    height: int,
    width: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Send `codes` `[M, tokens]` through `op.scan`; per parameter set (ones `[tokens]`, codes as
    they come back `[M, tokens]`).

    `decays` `[channels of a set]`: by which factor a token lets the state of each channel decay;
    channel 0 carries ones, code m is in channel 1 + m mod (channels - 1). A pad lets a channel with
    TOKEN_DECAY decay by `pad_decay`, others in proportion of the logarithm.
    """
    n_sets, per_set = recording_channels(op)
    _, n_projected, channels = op.x_proj_weight.shape
    n_states = op.A_logs.shape[1]
    rank = n_projected - 2 * n_states
    n_tokens = height * width
    n_batches = -(-len(codes) // (per_set - 1))

    x = np.zeros((n_batches, channels, n_tokens), dtype=np.float32)
    x_proj = np.zeros((n_sets, n_projected, channels), dtype=np.float32)
    # dt, B and C of state 0 read channel 0: 1 at tokens, 0 at pads.
    x_proj[:, 0, 0] = 1.0
    x_proj[:, rank, 0] = 1.0 / TIME_STEP
    x_proj[:, rank + n_states, 0] = 1.0
    pad_step = TIME_STEP * math.log(pad_decay) / math.log(TOKEN_DECAY)
    pad_bias = math.log(math.expm1(pad_step))
    dt_weight = np.zeros((n_sets, channels, rank), dtype=np.float32)
    dt_bias = np.full((n_sets, channels), OFF, dtype=np.float32)
    A_log = np.zeros((n_sets, channels, n_states), dtype=np.float32)
    for s in range(n_sets):
        mine = slice(s * per_set, (s + 1) * per_set)
        dt_bias[s, mine] = pad_bias
        dt_weight[s, mine, 0] = TIME_STEP - pad_bias
        A_log[s, mine] = np.log(-np.log(decays) / TIME_STEP)[:, None]
        x[:, s * per_set] = 1.0
        for m, code in enumerate(codes):
            batch, place = divmod(m, per_set - 1)
            x[batch, s * per_set + 1 + place] = code

    def like(parameter: torch.Tensor, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(parameter.device, parameter.dtype)

    with torch.no_grad():
        y = op.scan(
            # Channels-last memory, as the model hands it over.
            like(op.x_proj_weight, x.reshape(n_batches, channels, height, width)).contiguous(
                memory_format=torch.channels_last
            ),
            like(op.x_proj_weight, x_proj),
            like(op.dt_projs_weight, dt_weight),
            like(op.dt_projs_bias, dt_bias),
            like(op.A_logs, A_log.reshape(n_sets * channels, n_states)),
            torch.zeros_like(op.Ds, requires_grad=False),
        )
    y = y.reshape(n_batches, channels, n_tokens).cpu().numpy()
    found = []
    for s in range(n_sets):
        mine = y[:, s * per_set : (s + 1) * per_set]
        found.append((mine[0, 0], mine[:, 1:].reshape(-1, n_tokens)[: len(codes)]))
    return found


def _decode(
    s: int, ones: np.ndarray, codes: np.ndarray, bits: np.ndarray, pad_decay: float
) -> Reading:
    """`ones` `[tokens]` and `codes` `[bits or 2 * bits, tokens]` as recorded, `bits` as sent."""
    is_read = ones > 0.5
    is_read_again = ones > 1.5  # once: at most 1 + a + a^2 + ... = 1.004
    # What a token gets from others, and the factor a g^n of its predecessor, up to 0.4 % too large
    # by tokens farther back.
    if len(codes) == len(bits):
        foreign = codes - bits.astype(codes.dtype)
        factor = (ones - 1.0).astype(np.float64)
        smallest = TOKEN_DECAY * pad_decay ** (NEAR + 8)
        has_bit = foreign > factor / 2
    else:
        foreign = np.where(bits == 0, codes[: len(bits)], codes[len(bits) :])
        factor = foreign.max(0).astype(np.float64)
        smallest = TOKEN_DECAY * 2.0 ** -(FAR_EXPONENT + 1)
        has_bit = (foreign > factor / 2) ^ (bits == 1)
    seen = is_read & ~is_read_again & (factor > smallest)
    factor = np.where(seen, factor, 1.0)
    n_pads = np.log(factor / (1.002 * TOKEN_DECAY)) / math.log(pad_decay)
    previous = (has_bit.astype(np.int64) << np.arange(len(bits))[:, None]).sum(0)
    seen &= previous < ones.size
    return Reading(
        s,
        is_read,
        is_read_again,
        np.where(seen, previous, -1),
        np.where(seen, np.maximum(np.rint(n_pads).astype(np.int64), 0) + 1, 0),
        0.0 if pad_decay == PAD_DECAY else -0.01 / math.log(pad_decay),
    )
