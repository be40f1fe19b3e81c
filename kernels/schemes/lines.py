"""Schemes that read whole rows and columns: rasters, the atrous scan, snakes."""

from __future__ import annotations

import numpy as np

from kernels.schemes.base import (
    COMBINATIONS,
    N_TRAINED_SETS,
    PAD,
    Parameter,
    Scheme,
    Table,
    combined,
    table,
    tokens_of,
)

# With more phases than this (65,536) a table is longer than any map that it could be for.
LARGEST_STEP = 256


def build_es2d(height: int, width: int, step: int) -> Table:
    """Tables `[p*p, L]` and `[p*p]` of the atrous scan; see `SCHEMES["es2d"]`.

    A step larger than a side leaves some phases without tokens: they stay, as sequences of pads
    only, so that K is always p*p and sequence k always means phase (k mod p, k div p).
    """
    p = step
    rows, columns = -(-height // p), -(-width // p)
    padded = np.full((rows * p, columns * p), PAD, dtype=np.int32)
    padded[:height, :width] = tokens_of(height, width)
    phases = padded.reshape(rows, p, columns, p).transpose(3, 1, 0, 2)  # [j, i, row, column]
    index = np.empty((p, p, rows * columns), dtype=np.int32)
    index[:, ::2] = phases[:, ::2].reshape(p, -1, rows * columns)
    index[:, 1::2] = phases[:, 1::2].transpose(0, 1, 3, 2).reshape(p, -1, rows * columns)
    i, j = np.arange(p), np.arange(p)[:, None]
    return Table(index.reshape(p * p, -1), (i % 2 + 2 * (j % 2)).reshape(-1))


def cross_scan(height: int, width: int) -> np.ndarray:
    """Rows, columns and both in reverse, `[4, H*W]`."""
    tokens = tokens_of(height, width)
    by_row, by_column = tokens.reshape(-1), tokens.T.reshape(-1)
    return np.stack([by_row, by_column, by_row[::-1], by_column[::-1]])


def raster(height: int, width: int) -> np.ndarray:
    """Row by row, each from left to right, `[H*W]`."""
    return tokens_of(height, width).reshape(-1)


def snake(height: int, width: int) -> np.ndarray:
    """Row by row, every second one from right to left, `[H*W]`."""
    return _snake_over(tokens_of(height, width))


def _snake_over(tokens: np.ndarray) -> np.ndarray:
    """A snake along the rows of any view `[A, B]` of token ids."""
    path = tokens.copy()
    path[1::2] = path[1::2, ::-1]
    return path.reshape(-1)


def build_plain_mamba(height: int, width: int) -> Table:
    """The four snakes in the authors' order: row, its reverse, column, its reverse."""
    tokens = tokens_of(height, width)
    rows, columns = _snake_over(tokens), _snake_over(tokens.T)
    return table(np.stack([rows, rows[::-1], columns, columns[::-1]]))


def build_zigma(height: int, width: int, path: int) -> Table:
    """One of the eight snakes (`path` 1 to 8) or all of them (0); see `SCHEMES["zigma"]`."""
    tokens = tokens_of(height, width)
    corners = (tokens, tokens[:, ::-1], tokens[::-1], tokens[::-1, ::-1])
    views = [view for corner in corners for view in (corner, corner.T)]
    return table(np.stack([_snake_over(v) for v in (views[path - 1 : path] if path else views)]))


SCHEMES = {
    "es2d": Scheme(
        "ES2D, atrous",
        "Atrous scan: p x p phases, each token read once; the phase that starts at row i, column j "
        "is sequence i + p*j, row-major for even i and column-major for odd i, with parameter set "
        "(i mod 2) + 2*(j mod 2)",
        "EfficientVMamba, Pei et al. 2024, arXiv:2403.09977; theirs is step 2",
        build_es2d,
        (
            Parameter(
                "step",
                default=2,
                minimum=1,
                maximum=LARGEST_STEP,
                meaning="distance in tokens between phases",
            ),
        ),
        note="The authors' code runs step 2 only: step 1 raises, and from step 3 on it visits four "
        "phases and leaves the rest of the output uninitialised. Other steps are defined here.",
    ),
    "ss2d": Scheme(
        "SS2D, cross-scan",
        "Cross-scan: every token read four times, row by row, column by column and both in "
        "reverse; the four outputs are added",
        "VMamba, Liu et al. 2024, arXiv:2401.10166",
        lambda height, width: table(cross_scan(height, width)),
    ),
    "raster": Scheme(
        "Raster, one direction",
        "Row by row from left to right, once; what comes later is never seen",
        "the plain one-dimensional scan, as in MambaVision, arXiv:2407.08083",
        combined(raster),
        COMBINATIONS,
        note="VMamba's ablation 'unidi' reads this path four times, with four parameter sets.",
    ),
    "bidirectional": Scheme(
        "Bidirectional raster",
        "Row by row, and the same path backwards with parameters of its own; the two outputs are "
        "added",
        "Vim without its class token, Zhu et al. 2024, arXiv:2401.09417",
        lambda height, width: table(cross_scan(height, width)[[0, 2]]),
        note="Vim also has a causal convolution before each of the two scans, which a path does "
        "not show. VMamba's ablation 'bidi' reads each direction twice.",
    ),
    "snake": Scheme(
        "Snake",
        "Row by row, every second row from right to left, so that each step goes to a neighbour",
        "the first of PlainMamba's four, arXiv:2403.17695; 'scan' in MambaAD, arXiv:2404.06564",
        combined(snake),
        COMBINATIONS,
    ),
    "plainmamba": Scheme(
        "PlainMamba, four snakes",
        "Four continuous snakes: along rows, the same backwards, along columns, the same "
        "backwards; the four outputs are added",
        "PlainMamba, Yang et al. 2024, arXiv:2403.17695",
        build_plain_mamba,
        note="The published code reorders the tokens only: dt, B and C stay in raster order, so "
        "a step mixes one token with another one's parameters. Here they travel together. "
        "PlainMamba shares one parameter set and adds a learned direction to B.",
    ),
    "zigma": Scheme(
        "ZigMa, eight snakes",
        "Snakes from each corner (top left, top right, bottom left, bottom right), along rows, "
        "then along columns: paths 1 to 8; path 0 reads all eight and adds the outputs",
        "ZigMa, Hu et al. 2024, arXiv:2403.13802",
        build_zigma,
        (
            Parameter(
                "path",
                default=0,
                minimum=0,
                maximum=8,
                meaning="0 all eight, 1 to 8 one of them",
            ),
        ),
        note="ZigMa runs one path per layer, in turn; here all layers run the same. With path 0 "
        f"eight sequences share {N_TRAINED_SETS} parameter sets. The published 'hilbert' paths use "
        "ranks as if they were an order and are no Hilbert curve; they are not offered.",
    ),
}
