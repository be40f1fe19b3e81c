"""Schemes that keep near tokens near: windows, diagonals, space-filling curves; and a control."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.schemes.base import (
    COMBINATIONS,
    PAD,
    Parameter,
    Scheme,
    combined,
    tokens_of,
)
from kernels.schemes.hilbert import hilbert

LARGEST_WINDOW = 256
LARGEST_SEED = 2**32 - 1


def windows(height: int, width: int, size: int) -> np.ndarray:
    """Windows row by row, tokens row by row inside; windows that stick out are filled with pads."""
    rows, columns = -(-height // size), -(-width // size)
    padded = np.full((rows * size, columns * size), PAD, dtype=np.int32)
    padded[:height, :width] = tokens_of(height, width)
    return padded.reshape(rows, size, columns, size).transpose(0, 2, 1, 3).reshape(-1)


def diagonals(height: int, width: int, alternate: int, anti: int) -> np.ndarray:
    """Lines y + x = const from the top-left corner, y - x = const from the top-right, `[P, L]`."""
    y, x = np.indices((height, width)).reshape(2, -1)
    paths = []
    for column in (x, width - 1 - x)[: anti + 1] if anti != 1 else (width - 1 - x,):
        line = y + column
        is_upwards = (line % 2 == 0) & bool(alternate)
        paths.append(np.lexsort((np.where(is_upwards, -y, y), line)))
    return np.stack(paths).astype(np.int32)


def morton(height: int, width: int) -> np.ndarray:
    """Tokens by the number that the bits of y and x give when interleaved, y first."""
    y, x = np.indices((height, width)).reshape(2, -1)
    key = np.zeros(height * width, dtype=np.int64)
    for bit in range(max(height, width).bit_length()):
        key |= ((x >> bit & 1) << 2 * bit) | ((y >> bit & 1) << (2 * bit + 1))
    return np.argsort(key).astype(np.int32)


def spiral(height: int, width: int) -> np.ndarray:
    """Rings from the outside in, each clockwise from its top-left corner."""
    y, x = np.indices((height, width)).reshape(2, -1)
    ring = np.minimum(np.minimum(y, x), np.minimum(height - 1 - y, width - 1 - x))
    bottom, right = height - 1 - ring, width - 1 - ring
    across, down = right - ring, bottom - ring
    place = np.select(
        [y == ring, x == right, y == bottom],
        [x - ring, across + y - ring, across + down + right - x],
        default=2 * across + down + bottom - y,
    )
    return np.lexsort((place, ring)).astype(np.int32)


def shuffled(height: int, width: int, seed: int) -> np.ndarray:
    """A random permutation; the legacy generator, whose numbers never change between versions."""
    return np.random.RandomState(seed).permutation(height * width).astype(np.int32)


SCHEMES = {
    "windows": Scheme(
        "Windows",
        "Windows of w x w tokens row by row, inside each row by row; windows that stick out of the "
        "map are filled with pads, which are scanned",
        "LocalMamba, Huang et al. 2024, arXiv:2403.09338; theirs are w = 2 and 7",
        combined(windows),
        (
            Parameter(
                "size",
                default=7,
                minimum=1,
                maximum=LARGEST_WINDOW,
                meaning="side of a window in tokens",
            ),
            *COMBINATIONS,
        ),
        note="LocalMamba picks four of eight directions per layer by search; here every layer runs "
        "the same. Pads are as in the published code. Its inverse of the vertical scan is right on "
        "square maps only.",
    ),
    "diagonal": Scheme(
        "Diagonals",
        "Diagonals y + x = const from the top-left corner, each downwards; alternate=1 turns every "
        "second one round (the JPEG zigzag), anti=1 starts at the top-right corner",
        "diagonal and zigzag scans of EAMamba, Lin et al. 2025, arXiv:2506.22246",
        combined(diagonals),
        (
            Parameter(
                "alternate",
                default=0,
                minimum=0,
                maximum=1,
                meaning="0 every diagonal downwards, 1 every second one upwards",
                always_written=False,
            ),
            Parameter(
                "anti",
                default=0,
                minimum=0,
                maximum=2,
                meaning="0 from the top left, 1 from the top right, 2 both (outputs added)",
                always_written=False,
            ),
            *COMBINATIONS,
        ),
        note="True diagonals of the map. RS-Mamba's (arXiv:2404.02668) wrap around at the side.",
    ),
    "morton": Scheme(
        "Morton, z-order",
        "Tokens sorted by the interleaved bits of y and x; on sides that are no power of two, the "
        "curve of the next power without the places outside the map",
        "z-order of EAMamba, Lin et al. 2025, arXiv:2506.22246",
        combined(morton),
        COMBINATIONS,
    ),
    "hilbert": Scheme(
        "Hilbert",
        "Generalised Hilbert curve along the longer side, for any rectangle: every step goes to a "
        "neighbour, but for one diagonal step on some maps with an odd longer and an even shorter "
        "side",
        "after Cerveny's generalised curve, github.com/jakubcerveny/gilbert; as a scan in MambaAD, "
        "He et al. 2024, arXiv:2404.06564",
        combined(hilbert, partial(hilbert, is_along_shorter=True)),
        COMBINATIONS,
        note="transpose=1 runs along the shorter side. MambaAD's works on powers of two only, "
        "EAMamba's leaves out the places outside the map and jumps there, ZigMa's is none.",
    ),
    "spiral": Scheme(
        "Spiral",
        "Rings from the outside in, each clockwise from its top-left corner",
        "one of the patch orders of Wang et al. 2025, arXiv:2502.20764",
        combined(spiral),
        COMBINATIONS,
    ),
    "random": Scheme(
        "Random, a control",
        "A random permutation of the tokens, the same for every image and layer: what an order "
        "without any geometry gives",
        "control defined here, numpy's RandomState of that seed; nobody's published scan",
        combined(shuffled),
        (
            Parameter(
                "seed",
                default=0,
                minimum=0,
                maximum=LARGEST_SEED,
                meaning="seed of the permutation",
            ),
            *COMBINATIONS,
        ),
    ),
}
