"""S6 in plain PyTorch, parallel over chunks: what one gets without a kernel of one's own.

The sequence is cut into about sqrt(L) chunks. All chunks run together from a zero state, a short
loop carries the state from chunk to chunk, and all chunks run again from the state they really
start with. Nothing is divided by a product of decays, so nothing overflows however long a chunk is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def chunked_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """As `kernels.selective_scan`, in u's dtype; `chunk` steps are taken one after another."""
    batch, rows, length = u.shape
    groups, states = (1, B.shape[1]) if B.dim() == 3 else B.shape[1:3]
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    steps = chunk or max(1, math.isqrt(length))
    n_chunks = -(-length // steps)

    def cut(values: Tensor, *inner: int) -> tuple[Tensor, ...]:
        """`[B, ..., L]` to one `[B, K, *inner, n_chunks]` per step of a chunk, zero at the end."""
        padded = F.pad(values, (0, n_chunks * steps - length))
        return padded.reshape(batch, groups, *inner, n_chunks, steps).unbind(-1)

    gates = cut(dt, rows // groups, 1)  # a padded step has dt 0 and leaves the state alone
    inputs = cut(dt * u, rows // groups, 1)
    Bs, Cs = cut(B, 1, states), cut(C, 1, states)
    rates = A.view(groups, rows // groups, states, 1)
    decays = [torch.exp(gate * rates) for gate in gates]  # each [B, K, d, N, n_chunks]
    added = [x * b for x, b in zip(inputs, Bs, strict=True)]

    ends, decay_of_chunk = added[0], decays[0]
    for decay, new in zip(decays[1:], added[1:], strict=True):
        ends = torch.addcmul(new, decay, ends)
        decay_of_chunk = decay_of_chunk * decay
    carried = [torch.zeros_like(ends[..., 0])]
    for decay, end in zip(decay_of_chunk.unbind(-1)[:-1], ends.unbind(-1)[:-1], strict=True):
        carried.append(torch.addcmul(end, decay, carried[-1]))

    h = torch.stack(carried, dim=-1)
    outputs = []
    for decay, new, c in zip(decays, added, Cs, strict=True):
        h = torch.addcmul(new, decay, h)
        outputs.append((h * c).sum(3))  # [B, K, d, n_chunks]
    y = torch.stack(outputs, dim=-1).reshape(batch, rows, -1)[..., :length]
    return y if D is None else y + D[:, None] * u
