"""Which tokens of a stage's map can matter for which: exact sets, no floats, block by block.

A scan passes a token on to every later step of the sequences that read it, the 3x3 depthwise
convolutions to the eight neighbours, everything else of a block (norms, linear maps, the gate `z`,
the residual) stays at its token. The squeeze-excitation gates are global means: with them every
token matters for every other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels import ScanOrder, ScanSpec, scan_order
from kernels.scan_reach import reads_of, slots_of

# Sources are followed 64 at a time, as the bits of one word per token.
WORD = 64
LARGEST_EXACT = 128 * 128  # tokens; a larger map is counted from N_SAMPLED sources
N_SAMPLED = 4096


def through_scan(order: ScanOrder, wanted: np.ndarray) -> np.ndarray:
    """Tokens at the scan's input that can matter for one of `wanted` at its output, `[H, W]`."""
    slots = slots_of(order.index, order.n_tokens)
    is_wanted = np.append(wanted.reshape(-1), False)
    is_before = np.logical_or.accumulate(is_wanted[slots][:, ::-1], axis=1)[:, ::-1]
    found = np.zeros(order.n_tokens + 1, dtype=bool)
    found[slots[is_before]] = True
    return found[:-1].reshape(order.height, order.width)


def through_convolution(values: np.ndarray) -> np.ndarray:
    """Each token together (bitwise or) with its eight neighbours, `[H, W]` of bools or words."""
    tall = values.copy()
    tall[1:] |= values[:-1]
    tall[:-1] |= values[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def through_op(order: ScanOrder, wanted: np.ndarray) -> np.ndarray:
    """The mixer: 3x3 convolution, scan, times a gate of the token itself."""
    return wanted | through_convolution(through_scan(order, wanted))


def through_block(order: ScanOrder, wanted: np.ndarray, has_branch: bool) -> np.ndarray:
    """An EVSS block with frozen squeeze-excitation gates; `has_branch`: with its conv branch."""
    found = through_op(order, wanted)
    return found | through_convolution(wanted) if has_branch else found


@lru_cache(maxsize=128)
def mean_shares(
    spec: ScanSpec, height: int, width: int, branches: tuple[bool, ...]
) -> tuple[tuple[float, ...], bool]:
    """Mean share (0 to 1) of the tokens that can matter for a token, and whether it is exact.

    After the mixer of the first block, after the first block, and after all of them; `branches`:
    for each block whether it has a convolution branch. Counted over all pairs of tokens, on a map
    of more than 128 x 128 tokens over 4,096 sources.
    """
    order = scan_order(spec, height, width)
    n = order.n_tokens
    places = reads_of(order, [order.index], with_extra=False).place
    slots = slots_of(order.index, n)
    sources = np.arange(n)
    if n > LARGEST_EXACT:
        sources = np.random.RandomState(0).permutation(n)[:N_SAMPLED]

    def scanned(words: np.ndarray) -> np.ndarray:
        padded = np.append(words.reshape(-1), np.uint64(0))
        states = np.bitwise_or.accumulate(padded[slots], axis=1).reshape(-1)
        states = np.append(states, np.uint64(0))
        found = states[places[0]]
        for place in places[1:]:
            found |= states[place]
        return found.reshape(height, width)

    bits = np.uint64(1) << np.arange(WORD, dtype=np.uint64)
    totals = np.zeros(3, dtype=np.int64)
    for start in range(0, sources.size, WORD):
        chosen = sources[start : start + WORD]
        words = np.zeros((height, width), dtype=np.uint64)
        words.reshape(-1)[chosen] = bits[: chosen.size]
        for i, has_branch in enumerate(branches):
            near = through_convolution(words)
            words = words | scanned(near)
            if i == 0:
                totals[0] += int(np.bitwise_count(words).sum(dtype=np.int64))
            if has_branch:
                words |= near
            if i == 0:
                totals[1] += int(np.bitwise_count(words).sum(dtype=np.int64))
        totals[2] += int(np.bitwise_count(words).sum(dtype=np.int64))
    shares = totals / (n * sources.size)
    return tuple(float(share) for share in shares), sources.size == n
