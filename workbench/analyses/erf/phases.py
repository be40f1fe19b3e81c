"""Fields of the step x step neighbouring tokens of one cell under ES2D.

ES2D reads the rows and columns of each phase (y mod step, x mod step) as a sequence of its own, so
neighbours of one cell see different parts of the image: the field of one token is one phase of the
truth. From the first patch merging after the last scan on, every token holds all phases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kernels import scan_order
from workbench.analyses.erf.engine import (
    Target,
    check_token,
    definition_of,
    fields,
    unit_of,
)
from workbench.analyses.erf.images import Images, first_size
from workbench.analyses.networks import Network
from workbench.analyses.scan_network import ScanNetwork
from workbench.progress import CancelToken
from workbench.results import ErfPhase, ErfPhasesResult, ErfResult, Provenance


def phases(
    network: Network,
    images: Images,
    stage: int,
    y: int,
    x: int,
    *,
    definition: str = "mass",
    gates: str = "live",
    provenance: Provenance,
    token: CancelToken | None = None,
    seed: int = 0,
) -> Iterator[ErfPhasesResult]:
    """Running fields of all tokens of the cell of token `(y, x)` of a stage; the last is final.

    All of them come from one forward pass an image. Without phases the one result says why in its
    `note`: another scheme, step 1, a stage whose blocks do not scan, another family of networks.
    """
    line = definition_of(definition).line
    height, width = first_size(images)
    name = f"stage{stage}"
    grid = network.grid(name, height, width)
    check_token(unit_of(network, name), grid, y, x)
    step, note = _step(network, stage)
    if note:
        yield ErfPhasesResult(
            provenance=replace(provenance, definition=line),
            stage=stage,
            step=step,
            phases=(),
            note=note,
        )
        return
    assert isinstance(network, ScanNetwork)
    corner = y - y % step, x - x % step
    tokens = [
        (row, column)
        for row in range(corner[0], min(corner[0] + step, grid.rows))
        for column in range(corner[1], min(corner[1] + step, grid.columns))
    ]
    order = scan_order(network.model.scan_spec, grid.rows, grid.columns)
    readers = [
        _reader(order.index, row * grid.columns + column, grid.columns) for row, column in tokens
    ]
    missing = step * step - len(tokens)
    note = f"{missing} of the cell's {step * step} tokens lie outside the map." if missing else ""
    targets = [Target(name, *at) for at in tokens]
    run = fields(
        network,
        images,
        targets,
        definition=definition,
        gates=gates,
        provenance=provenance,
        token=token,
        seed=seed,
    )
    for found in run:
        yield ErfPhasesResult(
            provenance=found[0].provenance,
            stage=stage,
            step=step,
            phases=tuple(
                _phase(result, step, reader) for result, reader in zip(found, readers, strict=True)
            ),
            is_final=found[0].is_final,
            note=note,
        )


def _step(network: Network, stage: int) -> tuple[int, str]:
    """Step of the scheme, and why the stage has no phases; "" where it has."""
    if not isinstance(network, ScanNetwork):
        return 1, f"{network.label} has no scan, so its tokens have no phases."
    spec = network.model.scan_spec
    scanning = sorted({block.stage for block in network.model.blocks() if block.has_scan})
    step = spec.params.get("step", 1)
    if spec.name != "es2d":
        return 1, f"{spec.scheme.label} reads every token in each sequence: there are no phases."
    if step == 1:
        return 1, "ES2D with step 1 reads every token in each sequence: there are no phases."
    if stage not in scanning:
        before = [other for other in scanning if other < stage]
        if before:
            return step, (
                f"Stage {stage} does not scan, and patch merging after stage {max(before)} has "
                f"mixed the phases: every token holds all of them. Look at stage "
                f"{' or '.join(map(str, before))}."
            )
        return step, f"Stage {stage} does not scan: its tokens have no phases."
    return step, ""


def _reader(index: np.ndarray, token: int, columns: int) -> tuple[int, str]:
    """The sequence (from 0) that reads a token, and the direction in which it runs.

    -1 where several sequences read it; "" where the table shows no direction.
    """
    sequences = np.flatnonzero((index == token).any(axis=1))
    if sequences.size != 1:
        return -1, ""
    read = index[sequences[0]]
    return int(sequences[0]), _direction(read[read >= 0], columns)


def _direction(tokens: np.ndarray, columns: int) -> str:
    """Along a row or along a column: where most moves of a sequence stay."""
    rows, places = np.divmod(tokens, columns)
    along_rows = int((np.diff(rows) == 0).sum())
    along_columns = int((np.diff(places) == 0).sum())
    if along_rows == along_columns:
        return ""
    return "row-major" if along_rows > along_columns else "column-major"


def _phase(result: ErfResult, step: int, reader: tuple[int, str]) -> ErfPhase:
    group, direction = reader
    return ErfPhase(
        row=result.y % step,
        column=result.x % step,
        group=group,
        direction=direction,
        field=result,
    )
