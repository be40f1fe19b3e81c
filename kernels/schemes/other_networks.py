"""Paths of networks that none of our models can run: drawn and measured, never scanned."""

from __future__ import annotations

import numpy as np

from kernels.schemes.base import FIRST_EXTRA, PAD, Extra, OtherNetwork, Scheme, Table, tokens_of
from kernels.schemes.lines import cross_scan

CASCADE_NEEDS = (
    "needs another network: its column scans read what its row scans wrote, and every row and "
    "column starts from an empty state"
)
VIM_NEEDS = "needs another network: one with a class token in the middle of its sequences"
GROUP_NEEDS = (
    "needs another network: each direction scans its own quarter of the channels, and the quarters "
    "are put side by side, not added"
)
MULTI_SCALE_NEEDS = (
    "needs another network: three of its four directions scan a map of half the size, which a "
    "convolution of its own makes"
)


def build_cascade(height: int, width: int) -> Table:
    """Rows and rows backwards in pass 0, columns and columns backwards in pass 1."""
    rows, columns, rows_back, columns_back = cross_scan(height, width)
    other = OtherNetwork(
        CASCADE_NEEDS,
        restart_every=(width, width, height, height),
        pass_number=(0, 0, 1, 1),
    )
    return Table(np.stack([rows, rows_back, columns, columns_back]), np.arange(4), other)


def build_vim(height: int, width: int) -> Table:
    """The raster with the class token after half of the tokens, and its reverse."""
    n = height * width
    class_token = Extra(
        "class token", np.full((1, 2), np.nan, dtype=np.float32), np.empty((1, 0), dtype=np.int32)
    )
    forwards = np.insert(np.arange(n, dtype=np.int32), n // 2, FIRST_EXTRA)
    index = np.stack([forwards, forwards[::-1]])
    return Table(index, np.arange(2), OtherNetwork(VIM_NEEDS, class_token))


def build_group_mamba(height: int, width: int) -> Table:
    """Rows, columns and both in reverse, one for each quarter of the channels."""
    return Table(cross_scan(height, width), np.arange(4), OtherNetwork(GROUP_NEEDS))


def build_multi_scale(height: int, width: int) -> Table:
    """The raster of the map, and one sequence over the half-size map; see `SCHEMES["msvmamba"]`."""
    rows, columns = -(-height // 2), -(-width // 2)
    padded = np.full((2 * rows, 2 * columns), PAD, dtype=np.int32)
    padded[:height, :width] = tokens_of(height, width)
    # A cell's 7 x 7 convolution is centred at (2i, 2j); what it writes goes back to 2 x 2 tokens.
    places = 2 * np.indices((rows, columns)).reshape(2, -1).T
    blocks = padded.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    cells = FIRST_EXTRA - cross_scan(rows, columns)
    half = np.concatenate([cells[2], cells[1], cells[3]])
    lengths = (height * width, half.size)
    index = np.full((2, max(lengths)), PAD, dtype=np.int32)
    index[0, : lengths[0]] = np.arange(height * width)
    index[1, : lengths[1]] = half
    extra = Extra("cell of the half-size map", places.astype(np.float32), blocks)
    other = OtherNetwork(MULTI_SCALE_NEEDS, extra, lengths)
    return Table(index, np.array([1, 0]), other)


SCHEMES = {
    "cascade2d": Scheme(
        "Cascade, rows then columns",
        "Every row forwards and backwards, each from an empty state, outputs added; then every "
        "column of the result in the same way",
        "VMamba's ablation 'cascade2d', Liu et al. 2024, arXiv:2401.10166",
        build_cascade,
        needs=CASCADE_NEEDS,
    ),
    "vim": Scheme(
        "Vim with class token",
        "Row by row with the class token after half of the tokens, and the same path backwards; "
        "the two outputs are added",
        "Vim, Zhu et al. 2024, arXiv:2401.09417",
        build_vim,
        note="The class token has no place on the map. Vim also has a causal convolution before "
        "each of the two scans, which a path does not show.",
        needs=VIM_NEEDS,
    ),
    "groupmamba": Scheme(
        "GroupMamba",
        "The channels in four quarters: one is read row by row, one column by column, the others "
        "along the same paths backwards; one parameter set each",
        "GroupMamba, Shaker et al. 2024, arXiv:2407.13772",
        build_group_mamba,
        note="A channel sees one direction only; reach and visits here count all four quarters. "
        "The published backward pass of the column scans is wrong on maps that are not square.",
        needs=GROUP_NEEDS,
    ),
    "msvmamba": Scheme(
        "MSVMamba, two scales",
        "The map row by row; and a map of half the size, made by a 7 x 7 convolution of stride 2, "
        "row by row backwards, then column by column, then column by column backwards; its output "
        "is enlarged and added",
        "MSVMamba, Shi et al. 2024, arXiv:2405.14174",
        build_multi_scale,
        note="The paper draws four scans; the published code joins the three small ones to one "
        "sequence with one parameter set, so the state runs on from each into the next. Reach "
        "counts a cell as its 2 x 2 tokens: without the convolution's and the enlargement's edges.",
        needs=MULTI_SCALE_NEEDS,
    ),
}
