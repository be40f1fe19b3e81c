"""Which tokens can influence which through one scan: causal and exact, from the order alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kernels.schemes.base import PAD

if TYPE_CHECKING:
    from kernels.scan_order import ScanOrder

# Sources that are followed at once, as the bits of one word per token.
_WORD = 64
# Array elements that `reach_counts` may touch (words x steps, about 2 s) before it samples sources.
_LARGEST_WORK = 1 << 30
_N_SAMPLED_WORDS = 64
_FAR = np.int64(1) << 40


@dataclass(frozen=True, eq=False)
class TokenReach:
    """Who can influence one token through one scan, and whom it can influence.

    Maps are int32 `[H, W]`, -1 where there is no influence. `steps_back`: the fewest steps of the
    scan from a token to this one, over all sequences that read both; `steps_on`: from this one to
    a token. `sequences` `[S]`: those that read this token; `steps_back_by_sequence`,
    `steps_on_by_sequence` `[S, H, W]`: the same through that sequence alone.
    """

    y: int
    x: int
    steps_back: np.ndarray
    steps_on: np.ndarray
    sequences: np.ndarray
    steps_back_by_sequence: np.ndarray
    steps_on_by_sequence: np.ndarray

    @property
    def share(self) -> float:
        """Share (0 to 1) of all tokens that can influence this one, itself included."""
        return float((self.steps_back >= 0).mean())


def reach_of(order: ScanOrder, y: int, x: int) -> TokenReach:
    """The exact reach of token (y, x), both ways."""
    if not (0 <= y < order.height and 0 <= x < order.width):
        raise ValueError(
            f"there is no token ({y}, {x}); the map has y from 0 to {order.height - 1} and x from "
            f"0 to {order.width - 1}."
        )
    token = y * order.width + x
    passes = rows_by_pass(order)
    reading = np.flatnonzero((order.index == token).any(axis=1))
    alone = [[[_rows_of(order, int(k))]] for k in reading]

    def as_maps(steps: list[np.ndarray]) -> np.ndarray:
        return np.array(steps, dtype=np.int32).reshape(-1, order.height, order.width)

    return TokenReach(
        y=y,
        x=x,
        steps_back=as_maps([_steps_back(order, passes, token)])[0],
        steps_on=as_maps([_steps_on(order, passes, token)])[0],
        sequences=reading,
        steps_back_by_sequence=as_maps([_steps_back(order, rows, token) for rows in alone]),
        steps_on_by_sequence=as_maps([_steps_on(order, rows, token) for rows in alone]),
    )


def reach_counts(order: ScanOrder) -> tuple[np.ndarray, bool]:
    """For each token, how many tokens (itself included) can influence it, `[H*W]`; and if exact.

    A source reaches a target if some sequence reads the source no later than the target. Counted
    exactly unless the table is so large that it would take seconds (beyond about 256 x 256 tokens
    in an order without a shortcut): then estimated from 4,096 sources, the same at every call.
    """
    if order.other is None or not (order.other.restart_every or order.other.pass_number):
        if order.n_extra == 0 and order.visits.max() <= 1:
            return _counts_of_single_visits(order), True
        if _has_a_path_both_ways(order):
            return np.full(order.n_tokens, order.n_tokens), True
    return _counts_by_words(order)


def rows_by_pass(order: ScanOrder) -> list[list[np.ndarray]]:
    """Tables of codes `[n, L]` whose rows start from an empty state, first pass first."""
    other = order.other
    if other is None or not (other.lengths or other.restart_every or other.pass_number):
        return [[order.index]]
    numbers = other.pass_number or (0,) * order.n_sequences
    return [
        [_rows_of(order, k) for k in range(order.n_sequences) if numbers[k] == n]
        for n in sorted(set(numbers))
    ]


def _rows_of(order: ScanOrder, k: int) -> np.ndarray:
    """Sequence k as rows that each start from an empty state."""
    row = order.index[k, : order.lengths[k]]
    restarts = order.other.restart_every if order.other is not None else ()
    return row.reshape(-1, restarts[k] if restarts and restarts[k] else row.size)


def slots_of(codes: np.ndarray, n_tokens: int) -> np.ndarray:
    """Codes as places of an array that has the tokens first, then the pad, then the extra items."""
    return np.where(codes >= 0, codes, n_tokens - 1 - codes)


@dataclass(frozen=True, eq=False)
class Reads:
    """Which rows read a token, in layers: `place`, `row`, `step` `[V, n_tokens]`.

    `place` counts through all steps of all rows; where a token has no v-th reading it is the number
    of steps, and `row` and `step` are -1. Of several readings by one row the last counts.
    """

    place: np.ndarray
    row: np.ndarray
    step: np.ndarray


def reads_of(order: ScanOrder, blocks: list[np.ndarray], with_extra: bool) -> Reads:
    """Readings in `blocks`; `with_extra`: an extra item counts as a reading of all its tokens."""
    codes = np.concatenate([block.reshape(-1) for block in blocks])
    heights = [len(block) for block in blocks]
    row = np.repeat(np.arange(sum(heights)), np.repeat([b.shape[1] for b in blocks], heights))
    step = np.concatenate([np.tile(np.arange(b.shape[1]), len(b)) for b in blocks])
    place = np.flatnonzero(codes >= 0)
    token = codes[place]
    extra = order.other.extra if order.other is not None else None
    if with_extra and extra is not None:
        items = np.flatnonzero(codes < PAD)
        own = extra.tokens[PAD - 1 - codes[items]]  # [items, M]
        token = np.concatenate([token, own[own >= 0]])
        place = np.concatenate([place, np.broadcast_to(items[:, None], own.shape)[own >= 0]])
    by_token = np.lexsort((place, token))
    token, place = token[by_token], place[by_token]
    is_again = (token[1:] == token[:-1]) & (row[place[1:]] == row[place[:-1]])
    keep = np.append(~is_again, [True] * min(1, token.size))
    token, place = token[keep], place[keep]
    n_reads = np.bincount(token, minlength=order.n_tokens)
    layer = np.arange(token.size) - np.repeat(np.cumsum(n_reads) - n_reads, n_reads)
    places = np.full((max(1, n_reads.max()), order.n_tokens), codes.size, dtype=np.int64)
    places[layer, token] = place
    return Reads(places, np.append(row, -1)[places], np.append(step, -1)[places])


def _counts_of_single_visits(order: ScanOrder) -> np.ndarray:
    """Each token is read once at most: it sees the tokens before it in its sequence."""
    counts = np.zeros(order.n_tokens, dtype=np.int64)
    is_token = order.index >= 0
    counts[order.index[is_token]] = np.cumsum(is_token, axis=1)[is_token]
    return counts


def _has_a_path_both_ways(order: ScanOrder) -> bool:
    """Two sequences read the whole map in opposite directions: then everything sees everything."""
    if order.n_sequences > _WORD:
        return False
    for k, row in enumerate(order.index):
        for later in order.index[k + 1 :]:
            if np.array_equal(row, later[::-1]):
                tokens = row[row >= 0]
                if np.bincount(tokens, minlength=order.n_tokens).all():
                    return True
    return False


def _counts_by_words(order: ScanOrder) -> tuple[np.ndarray, bool]:
    """Follow 64 sources at a time: a token's bits say which of them have reached it."""
    n = order.n_tokens
    extra = order.other.extra if order.other is not None else None
    own = None if extra is None else np.where(extra.tokens >= 0, extra.tokens, n)
    passes = [
        (
            [slots_of(block, n).astype(np.intp) for block in blocks],
            reads_of(order, blocks, with_extra=True).place.astype(np.intp),
        )
        for blocks in rows_by_pass(order)
    ]
    work = sum(sum(b.size for b in blocks) + places.size for blocks, places in passes)
    n_words = -(-n // _WORD)
    is_exact = n_words * work <= _LARGEST_WORK
    sources = np.arange(n)
    if not is_exact:
        # Not the generator of the scheme "random": its scan would read exactly these tokens first.
        sources = np.random.default_rng(0).permutation(n)[: _N_SAMPLED_WORDS * _WORD]
    counts = np.zeros(n, dtype=np.int64)
    bits = np.uint64(1) << np.arange(_WORD, dtype=np.uint64)
    for start in range(0, sources.size, _WORD):
        chosen = sources[start : start + _WORD]
        words = np.zeros(n + 1 + order.n_extra, dtype=np.uint64)
        words[chosen] = bits[: chosen.size]
        for blocks, places in passes:
            if own is not None:
                words[n + 1 :] = np.bitwise_or.reduce(words[own], axis=1)
            states = np.zeros(sum(block.size for block in blocks) + 1, dtype=np.uint64)
            end = 0
            for block in blocks:
                row = states[end : end + block.size].reshape(block.shape)
                np.bitwise_or.accumulate(words.take(block), axis=1, out=row)
                end += block.size
            words[:n] = states.take(places[0])
            for place in places[1:]:
                words[:n] |= states.take(place)
        counts += np.bitwise_count(words[:n])
    if not is_exact:
        return counts * (n / sources.size), False
    return counts, True


def _steps_back(order: ScanOrder, passes: list[list[np.ndarray]], token: int) -> np.ndarray:
    """Fewest steps from each token to `token`, int64 `[n_tokens]`, -1 where it cannot get there."""
    return _fewest_steps(order, passes[::-1], token, is_back=True)


def _steps_on(order: ScanOrder, passes: list[list[np.ndarray]], token: int) -> np.ndarray:
    """Fewest steps from `token` to each token, int64 `[n_tokens]`, -1 where it cannot get there."""
    return _fewest_steps(order, passes, token, is_back=False)


def _fewest_steps(
    order: ScanOrder, passes: list[list[np.ndarray]], token: int, is_back: bool
) -> np.ndarray:
    n = order.n_tokens
    extra = order.other.extra if order.other is not None else None
    distance = np.full(n + 1 + order.n_extra, _FAR)
    distance[token] = 0
    for blocks in passes:
        if extra is not None and extra.tokens.size:
            own = np.where(extra.tokens >= 0, distance[extra.tokens], _FAR)
            distance[n + 1 :] = own.min(axis=1)
        after = np.full_like(distance, _FAR)
        for block in blocks:
            slots = slots_of(block, n)
            if is_back:
                slots = slots[:, ::-1]
            # Along a row the distance grows by one a step, unless a nearer start comes in.
            step = np.arange(slots.shape[1])
            nearest = np.minimum.accumulate(distance[slots] - step, axis=1) + step
            np.minimum.at(after, slots, nearest)
        if extra is not None and extra.tokens.size:
            is_own = extra.tokens >= 0
            given = np.broadcast_to(after[n + 1 :, None], is_own.shape)
            np.minimum.at(after, extra.tokens[is_own], given[is_own])
        distance = after
        distance[n] = _FAR
    return np.where(distance[:n] < _FAR // 2, distance[:n], -1)
