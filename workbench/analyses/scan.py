"""The scan path of a stage, read back from the operator that the model runs: probe, don't draw."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from kernels import ScanOrder, ScanSpec, scan_order
from workbench.analyses.fingerprint import wrong_tokens
from workbench.analyses.maps import stage_shape
from workbench.analyses.probe import Reading, read_path
from workbench.labels import scan_label
from workbench.results import Provenance, ScanResult

DEFINITION = (
    "token read at each step of each sequence, recovered by pushing token numbers through the "
    "running operator and compared with the scheme's table"
)
SHARED_DEFINITION = (
    DEFINITION + "; where sequences share a parameter set and are added, sums of random token "
    "values through the running operator, compared with the sums that the table predicts"
)
PATH_ONLY_DEFINITION = (
    "token read at each step of each sequence, from the table of the published scheme: no network "
    "of this workbench runs it, so there is no operator to probe"
)


def scan_path(
    model: Any,
    stage: int,
    height: int,
    width: int,
    *,
    provenance: Provenance,
    spec: ScanSpec | None = None,
) -> ScanResult:
    """Path of `stage` (1-based) for an input of `height` x `width` px; no photo is needed.

    `spec`: None for the scheme that the model runs, which is probed, or the scheme of another
    network, whose path is drawn from its table.
    """
    started = time.perf_counter()
    rows, columns, stride = stage_shape(model, stage, height, width)
    blocks = [block for block in model.blocks() if block.stage == stage]
    scanning = [block for block in blocks if block.has_scan]
    is_runnable = spec is None or spec.is_runnable
    if spec is not None and is_runnable and spec != model.scan_spec:
        raise ValueError(f"the model runs {model.scan_spec}, not {spec}: probe a model that does.")

    def result(definition: str = DEFINITION, **fields: Any) -> ScanResult:
        return ScanResult(
            provenance=replace(
                provenance,
                definition=definition,
                parameters={**provenance.parameters, "stage": stage},
                seconds=time.perf_counter() - started,
            ),
            stage=stage,
            height=rows,
            width=columns,
            stride=stride,
            n_blocks=len(blocks),
            is_runnable=is_runnable,
            **fields,
        )

    if not scanning:
        return result(
            has_scan=False,
            note=no_scan(stage),
            index=np.empty((0, 0), dtype=np.int32),
            parameter_set=np.empty(0, dtype=np.int32),
            merge="",
            is_verified=False,
            disagreement="",
            metrics={},
        )
    if spec is not None and not is_runnable:
        path = scan_order(spec, rows, columns)
        return result(
            PATH_ONLY_DEFINITION,
            has_scan=True,
            note=f"Path only: {path.why_not_runnable}.",
            index=path.index,
            parameter_set=np.asarray(path.parameter_set, dtype=np.int32),
            merge=path.merge,
            is_verified=False,
            disagreement="",
            metrics=path.metrics(),
        )
    table = scan_order(model.scan_spec, rows, columns)
    op = model.get_submodule(scanning[0].name).op
    shared = shared_sets(table)
    disagreement, readings = verify(op, table, shared)
    if disagreement and not shared:
        index, parameter_set = observed_sequences(readings)
    else:
        index, parameter_set = table.index, table.parameter_set
    if disagreement and shared:
        disagreement += "; the path drawn is the table's"
    return result(
        SHARED_DEFINITION if shared else DEFINITION,
        has_scan=True,
        note=_note(table, provenance),
        index=np.asarray(index, dtype=np.int32),
        parameter_set=np.asarray(parameter_set, dtype=np.int32),
        merge=table.merge,
        is_verified=not disagreement,
        disagreement=disagreement,
        metrics=table.metrics(),
    )


def verify(op: Any, table: ScanOrder, shared: dict[int, np.ndarray]) -> tuple[str, list[Reading]]:
    """First difference between the table and the running operator, and what was read back."""
    wrong_sums = {}
    if shared:
        if len(shared) == len(np.unique(table.parameter_set)):
            # Nothing else to read back: sets without a sequence must add up to zero.
            none = np.zeros(0, dtype=np.int64)
            every = {s: shared.get(s, none) for s in range(op.x_proj_weight.shape[0])}
            wrong_sums = wrong_tokens(op, table, every)
            return _compare_sums(table, every, wrong_sums), []
        wrong_sums = wrong_tokens(op, table, shared)
    readings = read_path(op, table.height, table.width, most_pads(table))
    separate = [reading for reading in readings if reading.parameter_set not in shared]
    return compare(table, separate) or _compare_sums(table, shared, wrong_sums), readings


def no_scan(stage: int) -> str:
    return f"Stage {stage} has no scan: its blocks are convolutions."


def compare(table: ScanOrder, readings: list[Reading]) -> str:
    """First difference between the table and what the operator read, in words; "" if there is none.

    Pads are part of the comparison wherever they change an output: not before a sequence's first
    token or after its last. Sequences and steps are counted from 1, tokens are (y, x) from 0.
    """
    for reading in readings:
        mine = np.flatnonzero(table.parameter_set == reading.parameter_set)
        previous, distance, is_read = _expected(table, mine)
        if is_read.any() or reading.is_read.any():
            wrong = (
                (reading.is_read != is_read)
                | reading.is_read_again
                | (reading.previous != previous)
                | (np.abs(reading.distance - distance) > reading.tolerance)
            )
            if wrong.any():
                return _first_difference(table, mine, reading, previous, distance, wrong)
    return ""


def most_pads(table: ScanOrder) -> int:
    """The most pads in a row between two tokens of a sequence."""
    row, step = np.nonzero(table.index >= 0)
    gaps = np.diff(step)[row[1:] == row[:-1]]
    return int(gaps.max(initial=1)) - 1


def shared_sets(table: ScanOrder) -> dict[int, np.ndarray]:
    """Parameter sets with which the table reads some token more than once -> their sequences."""
    found = {}
    for s in np.unique(table.parameter_set):
        mine = np.flatnonzero(table.parameter_set == s)
        index = table.index[mine]
        if np.bincount(index[index >= 0], minlength=1).max() > 1:
            found[int(s)] = mine
    return found


def _compare_sums(
    table: ScanOrder, sequences: dict[int, np.ndarray], wrong_sums: dict[int, np.ndarray]
) -> str:
    """The first token at which sequences of one set add up to another sum than the table's."""

    def at(token: int) -> str:
        return f"({token // table.width}, {token % table.width})"

    for s, wrong in wrong_sums.items():
        if not wrong.any():
            continue
        for k in sequences[s]:
            steps = np.flatnonzero(table.index[k] >= 0)
            differs = wrong[table.index[k][steps]]
            if differs.any():
                step = steps[differs.argmax()]
                listed = ", ".join(str(m + 1) for m in sequences[s])
                return (
                    f"sequence {k + 1}, step {step + 1}: at token {at(table.index[k][step])} the "
                    f"operator does not add up what the table's sequences {listed} read with "
                    f"parameter set {s}"
                )
        token = int(np.flatnonzero(wrong)[0])
        return (
            f"the table does not read token {at(token)} with parameter set {s}, the operator does"
        )
    return ""


def _expected(table: ScanOrder, sequences: np.ndarray) -> tuple[np.ndarray, ...]:
    """(previous, distance, is_read) by token, as `Reading` has them, of the table's `sequences`."""
    previous = np.full(table.n_tokens, -1, dtype=np.int64)
    distance = np.zeros(table.n_tokens, dtype=np.int64)
    is_read = np.zeros(table.n_tokens, dtype=bool)
    for k in sequences:
        steps = np.flatnonzero(table.index[k] >= 0)
        tokens = table.index[k][steps]
        is_read[tokens] = True
        previous[tokens[1:]] = tokens[:-1]
        distance[tokens[1:]] = np.diff(steps)
    return previous, distance, is_read


def _first_difference(
    table: ScanOrder,
    sequences: np.ndarray,
    reading: Reading,
    previous: np.ndarray,
    distance: np.ndarray,
    wrong: np.ndarray,
) -> str:
    """Walk the table until a token whose reading is `wrong` and say what was read there."""

    def at(token: int) -> str:
        return f"({token // table.width}, {token % table.width})"

    for k in sequences:
        for step, token in enumerate(table.index[k]):
            if token < 0 or not wrong[token]:
                continue
            place = f"sequence {k + 1}, step {step + 1}: the table says token {at(token)}"
            if not reading.is_read[token]:
                return (
                    f"{place}, which the operator never reads with parameter set "
                    f"{reading.parameter_set}"
                )
            if reading.is_read_again[token]:
                return f"{place}, which the operator reads more than once"
            before = previous[token]
            if reading.previous[token] == before:
                wanted, found = _pads(distance[token] - 1), _pads(reading.distance[token] - 1)
                return f"{place} after {wanted}, the operator read {found} before it"
            if before < 0:
                return f"{place} first, the operator read {at(reading.previous[token])} before it"
            follower = np.flatnonzero(reading.previous == before)
            if follower.size:
                return f"{place}, the operator read {at(follower[0])}"
            return f"{place}, the operator's sequence ended after {at(before)}"
    token = int(np.flatnonzero(wrong)[0])
    return (
        f"the table does not read token {at(token)} with parameter set {reading.parameter_set}, "
        "the operator does"
    )


def _pads(n: int) -> str:
    return f"{n or 'no'} pad{'s' if n > 1 else ''}"


def observed_sequences(readings: list[Reading]) -> tuple[np.ndarray, np.ndarray]:
    """What the operator read as a table: index `[K, L]` (-1 = pad) and parameter set `[K]`."""
    sequences: list[list[int]] = []
    sets: list[int] = []
    for reading in readings:
        following: dict[int, int] = {}
        for token in np.flatnonzero(reading.is_read & (reading.previous >= 0)):
            following.setdefault(int(reading.previous[token]), int(token))
        for first in np.flatnonzero(reading.is_read & (reading.previous < 0)):
            # A token has one predecessor at most, so a walk from a first token never comes back.
            path = [int(first)]
            while path[-1] in following:
                after = following[path[-1]]
                path += [-1] * int(reading.distance[after] - 1) + [after]
            sequences.append(path)
            sets.append(reading.parameter_set)
    length = max((len(path) for path in sequences), default=0)
    index = np.full((len(sequences), length), -1, dtype=np.int32)
    for k, path in enumerate(sequences):
        index[k, : len(path)] = path
    return index, np.array(sets, dtype=np.int32)


def _note(table: ScanOrder, provenance: Provenance) -> str:
    """What a reader must know: unusual steps, pads, a scheme that the weights do not know."""
    parts = []
    step = table.params.get("step")
    if table.name == "es2d" and step == 1:
        parts.append(
            "Step 1 is one row-by-row scan with parameter set 0; it is not the full scan, which "
            "reads the map four times."
        )
    elif table.name == "es2d" and step != 2:
        uses = np.bincount(table.parameter_set, minlength=4)
        parts.append(
            f"Step {step} has {table.n_sequences} phases for four parameter sets: sets 0 to 3 "
            f"serve {', '.join(str(n) for n in uses[:-1])} and {uses[-1]} phases."
        )
    if table.n_pads:
        parts.append(
            f"{table.n_pads} pad {'tokens are' if table.n_pads > 1 else 'token is'} scanned as "
            f"zeros ({table.height} x {table.width} tokens do not divide evenly)."
        )
    trained = provenance.trained_scan
    if trained is not None and trained != provenance.scan:
        parts.append(f"Not what it was trained with ({scan_label(trained)}).")
    return " ".join(parts)
