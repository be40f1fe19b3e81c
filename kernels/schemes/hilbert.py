"""A Hilbert curve for any rectangle, all its pieces split at once, level by level."""

from __future__ import annotations

import numpy as np

# A piece of the curve: corner where it starts (y, x), unit vector along its main side, unit vector
# along its other side, lengths of the two. It ends at the far end of its main side.
_START, _MAIN, _SIDE = slice(0, 2), slice(2, 4), slice(4, 6)
_LENGTH, _BREADTH = slice(6, 7), slice(7, 8)


def hilbert(height: int, width: int, is_along_shorter: bool = False) -> np.ndarray:
    """Token ids along the generalised curve that starts at the top left, `[H*W]`.

    It ends at the far end of the longer side (the upper one of a square), or of the shorter.
    """
    if (width >= height) != is_along_shorter:
        whole = (0, 0, 0, 1, 1, 0, width, height)
    else:
        whole = (0, 0, 1, 0, 0, 1, height, width)
    pieces = np.array([whole], dtype=np.int32)
    while (pieces[:, 6:].min(axis=1) > 1).any():
        pieces = _split(pieces)
    return _walk(pieces, width)


def _split(pieces: np.ndarray) -> np.ndarray:
    """Each piece `[n, 8]` replaced by its parts, in the order in which the curve runs.

    A piece that is much longer than broad is cut across in two. Any other is cut in three: up half
    of its breadth, along its whole length on the far half, down again. Cut lengths are even where
    there is a choice, which keeps the ends of pieces next to each other.
    """
    length, breadth = pieces[:, 6], pieces[:, 7]
    is_line = (length == 1) | (breadth == 1)
    is_long = ~is_line & (2 * length > 3 * breadth)
    is_square = ~is_line & ~is_long
    n_parts = 1 + ~is_line + is_square
    first = np.cumsum(n_parts) - n_parts
    parts = np.empty((n_parts.sum(), 8), dtype=pieces.dtype)
    parts[first[is_line]] = pieces[is_line]
    for chosen, cut in ((is_long, _in_two), (is_square, _in_three)):
        for place, part in enumerate(cut(pieces[chosen])):
            parts[first[chosen] + place] = np.concatenate(part, axis=1)
    return parts


Part = tuple[np.ndarray, ...]


def _in_two(pieces: np.ndarray) -> tuple[Part, Part]:
    start, main, side = pieces[:, _START], pieces[:, _MAIN], pieces[:, _SIDE]
    length, breadth = pieces[:, _LENGTH], pieces[:, _BREADTH]
    cut = _even_half(length)
    return (
        (start, main, side, cut, breadth),
        (start + main * cut, main, side, length - cut, breadth),
    )


def _in_three(pieces: np.ndarray) -> tuple[Part, Part, Part]:
    start, main, side = pieces[:, _START], pieces[:, _MAIN], pieces[:, _SIDE]
    length, breadth = pieces[:, _LENGTH], pieces[:, _BREADTH]
    half, rise = length // 2, _even_half(breadth)
    top = start + main * (length - 1) + side * (rise - 1)
    return (
        (start, side, main, rise, half),
        (start + side * rise, main, side, length, breadth - rise),
        (top, -side, -main, rise, length - half),
    )


def _even_half(length: np.ndarray) -> np.ndarray:
    half = length // 2
    return half + half % 2 * (length > 2)


def _walk(lines: np.ndarray, width: int) -> np.ndarray:
    """Token ids of pieces that are one token broad, one after the other."""
    length, breadth = lines[:, 6], lines[:, 7]
    n = length * breadth
    step = np.where((breadth > 1)[:, None], lines[:, _SIDE], lines[:, _MAIN])
    along = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    token = lines[:, 0] * width + lines[:, 1]
    stride = step[:, 0] * width + step[:, 1]
    return (np.repeat(token, n) + along * np.repeat(stride, n)).astype(np.int32)
