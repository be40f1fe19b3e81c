"""The gradient at the input, split by the path that it takes through each block.

A block's output is a sum: residual, gated scan, gated convolution; its gates are functions of the
same input. So the gradient of a token's objective, g at the block's output, reaches the input as
the sum of what passes each path (one backward pass from g each), exactly and with its sign: the
objective is differentiated before anything is rectified. The sum is compared with the whole
gradient on every image, and the difference is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from workbench.analyses.erf.definitions import DEFINITIONS
from workbench.analyses.erf.engine import (
    NO_GRADIENT,
    NOT_FINITE,
    check_token,
    check_weights,
    empty_field,
    unit_of,
)
from workbench.analyses.erf.images import Images, first_size, read_image
from workbench.analyses.networks import Grid, Network, Unit
from workbench.analyses.scan_network import BlockParts, Place, ScanNetwork
from workbench.progress import CancelToken
from workbench.results import ErfBlockPaths, ErfPathsResult, Provenance

DEFINITION = (
    "d sum_c ReLU(feature[c, y, x]) / d input, split by the path through each block; signed, "
    "summed over RGB, over the image's sum of |d|, mean over images"
)
LARGEST_SIDE = 256  # cells of a map


@dataclass
class _Sums:
    """Of one block, over the images."""

    place: Place
    kind: str
    paths: tuple[str, ...]
    maps: np.ndarray  # float64 [P, H, W] cells
    absolute: np.ndarray  # [P] sum |path| / sum |whole|
    signed: np.ndarray  # [P] sum path sign(whole) / sum |whole|
    error: float = 0.0


@dataclass
class _Found:
    total: np.ndarray  # float64 [H, W] cells
    blocks: dict[Place, _Sums] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def paths(
    network: Network,
    images: Images,
    unit: str,
    y: int,
    x: int,
    *,
    gates: str = "live",
    provenance: Provenance,
    token: CancelToken | None = None,
) -> Iterator[ErfPathsResult]:
    """Running means over the images of the split through every block up to the unit.

    One image at a time: a block takes as many backward passes as it has paths. A network of another
    family has no paths: one result without blocks, whose `note` says so.
    """
    started = time.perf_counter()
    height, width = first_size(images)
    grid = network.grid(unit, height, width)
    what = unit_of(network, unit)
    check_token(what, grid, y, x)
    cell = -(-max(height, width) // LARGEST_SIDE)
    found = _Found(np.zeros((-(-height // cell), -(-width // cell))))
    if not isinstance(network, ScanNetwork):
        note = f"{network.label} is not one of our networks: the paths of its blocks are not known."
        yield _result(network, what, grid, (y, x), gates, provenance, started, cell, found, note)
        return
    for number in range(len(images)):
        if token is not None:
            token.check()
        name, read = read_image(images, number, (height, width))
        if isinstance(read, str):
            found.skipped.append(f"{name}: {read}")
        elif why_not := _look(network, read, what, (y, x), gates, cell, found, token):
            found.skipped.append(f"{name}: {why_not}")
        else:
            found.names.append(name)
        is_final = number + 1 == len(images)
        if is_final and not found.names:
            raise empty_field(network, what, y, x, found.skipped)
        if found.names:
            note = _note(what, found)
            yield _result(
                network, what, grid, (y, x), gates, provenance, started, cell, found, note, is_final
            )


def _look(
    network: ScanNetwork,
    image: np.ndarray,
    unit: Unit,
    at: tuple[int, int],
    gates: str,
    cell: int,
    found: _Found,
    token: CancelToken | None,
) -> str:
    """Add one image to the sums; or say why it cannot be added."""
    parameter = next(network.module.parameters())
    deepest = network.place(unit)
    with torch.enable_grad():
        pixels = torch.from_numpy(image)[None].to(parameter.device, parameter.dtype)
        pixels.requires_grad_(True)
        outputs: list[tuple[Place, Tensor, BlockParts]] = []
        every = {(block.stage, block.block) for block in network.model.blocks()}
        for place, output, parts in network.run(pixels, deepest, gates == "frozen", every):
            assert parts is not None
            outputs.append((place, output, parts))
            if token is not None:
                token.check()
        feature = outputs[-1][1]
        if unit.path is not None:
            # The block itself is passed on one path only; the blocks before it are split.
            feature = outputs.pop()[2].through(unit.path)
        objective = DEFINITIONS["mass"].objective.of(feature.permute(0, 3, 1, 2), *at).sum()
        if not objective.requires_grad:
            return NO_GRADIENT
        wanted = [pixels, *(output for _, output, _ in outputs)]
        whole, *arriving = torch.autograd.grad(
            objective, wanted, retain_graph=True, allow_unused=True
        )
        scale = 0.0 if whole is None else float(whole.double().abs().sum())
        if not np.isfinite(scale):
            check_weights(network)
            return NOT_FINITE
        if scale == 0:
            return NO_GRADIENT
        found.total += _cells(whole, cell) / scale
        for (place, _, parts), gradient in zip(outputs, arriving, strict=True):
            if token is not None:
                token.check()
            if gradient is not None:  # else the path asked for passes this block by
                _split(place, parts, gradient, pixels, whole, scale, cell, found)
    return ""


def _split(
    place: Place,
    parts: BlockParts,
    gradient: Tensor,
    pixels: Tensor,
    whole: Tensor,
    scale: float,
    cell: int,
    found: _Found,
) -> None:
    """What of `gradient`, at a block's output, arrives at the pixels by each path."""
    if place not in found.blocks:
        n = len(parts.paths)
        maps = np.zeros((n, *found.total.shape))
        found.blocks[place] = _Sums(place, parts.kind, parts.paths, maps, np.zeros(n), np.zeros(n))
    sums = found.blocks[place]
    added = torch.zeros_like(whole)
    for i, path in enumerate(sums.paths):
        (arrived,) = torch.autograd.grad(
            parts.through(path), pixels, gradient, retain_graph=True, allow_unused=True
        )
        if arrived is None:
            continue
        added += arrived
        sums.maps[i] += _cells(arrived, cell) / scale
        sums.absolute[i] += float(arrived.double().abs().sum()) / scale
        sums.signed[i] += float((arrived.double() * whole.sign()).sum()) / scale
    error = (added.double() - whole.double()).norm() / whole.double().norm()
    sums.error = max(sums.error, float(error))


def _cells(gradient: Tensor, cell: int) -> np.ndarray:
    """`[1, 3, H, W]` summed over RGB and over `cell` x `cell` pixels, float64."""
    values = gradient[0].sum(0, dtype=torch.float64).cpu().numpy()
    for axis in (0, 1):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], cell), axis=axis)
    return values


def _note(unit: Unit, found: _Found) -> str:
    sentences = []
    if unit.path is not None:
        sentences.append(
            f"Block {unit.block} of stage {unit.stage} itself is passed on one path only; the "
            "blocks before it are split."
        )
    if found.skipped:
        sentences.append(f"Left out: {'; '.join(found.skipped)}.")
    return " ".join(sentences)


def _result(
    network: Network,
    unit: Unit,
    grid: Grid,
    at: tuple[int, int],
    gates: str,
    provenance: Provenance,
    started: float,
    cell: int,
    found: _Found,
    note: str,
    is_final: bool = True,
) -> ErfPathsResult:
    n = max(len(found.names), 1)
    state = gates if network.has_gates else "none"
    y, x = at
    return ErfPathsResult(
        provenance=replace(
            provenance,
            definition=DEFINITION,
            parameters={
                **provenance.parameters,
                "unit": unit.name,
                "stage": unit.stage,
                "y": y,
                "x": x,
                "gates": state,
                "n_images": len(found.names),
            },
            seconds=time.perf_counter() - started,
        ),
        unit=unit.name,
        unit_label=unit.label,
        gates=state,
        stage=unit.stage,
        y=y,
        x=x,
        stride=grid.stride,
        cell=cell,
        total=(found.total / n).astype(np.float32),
        blocks=tuple(
            ErfBlockPaths(
                stage=sums.place[0],
                block=sums.place[1],
                kind=sums.kind,
                paths=sums.paths,
                maps=(sums.maps / n).astype(np.float32),
                shares=tuple(float(v) for v in sums.absolute / max(sums.absolute.sum(), 1e-300)),
                signed=tuple(float(v) for v in sums.signed / n),
                error=sums.error,
            )
            for _, sums in sorted(found.blocks.items())
        ),
        n_images=len(found.names),
        image_names=tuple(found.names),
        is_final=is_final,
        note=note,
    )
