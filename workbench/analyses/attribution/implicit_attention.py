"""Implicit attention: how strongly one token of a scan reads every other, exactly.

The selective scan is linear in what it reads. With dt, B and C taken from the running operator,
output i of a sequence is `sum_j alpha(i, j) x_j + D x_i` for every channel,

    alpha(i, j) = sum_n C_i[n] exp(A[n] sum_{m=j+1..i} dt_m) dt_j B_j[n]     for j at or before i

(Ali et al., "The Hidden Attention of Mamba Models", arXiv:2403.01590, for S6). Only the token's own
row and column are computed, in time O(L D N) and memory O(L D). The exponents are differences of
sums and never above 0, so no quotient of two tiny products is taken: nothing is lost that is not
itself next to 0. Projections and sums are in float64, exponentials in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ScanOrder, ScanSpec, scan2d, scan_order
from models import EfficientVMamba, with_scan
from workbench.analyses.checks import explain_non_finite
from workbench.analyses.maps import stage_shape
from workbench.analyses.reach import ScanInput
from workbench.analyses.scan import no_scan
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import AttentionResult, Provenance

DEFINITION = (
    "alpha(i, j) = sum_n C_i[n] exp(A[n] sum_{m=j+1..i} dt_m) dt_j B_j[n] for j at or before i in "
    "a sequence of the scan, else 0; dt, B, C from this photo, A from the weights; several "
    "readings of a token by one sequence are added; decay: mean |alpha| over channels at each "
    "distance, nan at pads and past the start"
)

# Exponent of 2 below which a share, 8e-31, counts as 0. Arithmetic on the denormal numbers just
# above float32's own end (2^-149) takes up to fifty times as long.
GONE = -100.0


class _Captured(Exception):
    """The scan has run: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Steps:
    """What one sequence of a scan does at each step, float32; steps lie last, so that what one
    channel or state does to all of them is one long loop."""

    x: Tensor  # [C, L]
    dt: Tensor  # [C, L]
    clock: Tensor  # [C, L] sum of dt so far, float64: its differences are exact to 1e-11
    B: Tensor  # [N, L]
    C: Tensor  # [N, L]


@dataclass(frozen=True)
class WatchedScan:
    """What the scan of one block read and returned for one photo, and along which order.

    Reusable for every token of the map; the parameters are the model's own, not copies.
    """

    stage: int
    block: int
    stride: int  # input pixels per token
    order: ScanOrder
    given: ScanInput
    output: Tensor  # [C, H, W]
    backend: str

    @cached_property
    def read(self) -> Tensor:
        """What the steps read, `[C, H * W + 1]`: the tokens, and last the zero of a pad."""
        return F.pad(self.given.x.flatten(1), (0, 1))

    @cached_property
    def steps(self) -> tuple[Steps, ...]:
        """Of every sequence, computed when the first token is asked for."""
        with torch.no_grad():
            return tuple(
                _steps(self.given, int(s), self.read[:, self.slots(k)])
                for k, s in enumerate(self.order.parameter_set)
            )

    def slots(self, k: int) -> Tensor:
        """Which row of `read` each step of sequence k reads, `[L]`."""
        codes = self.order.index[k]
        slots = np.where(codes < 0, self.order.n_tokens, codes).astype(np.int64)
        return torch.from_numpy(slots).to(self.read.device)

    @property
    def n_channels(self) -> int:
        return self.given.x.shape[0]


def implicit_attention(
    model: Any,
    image: np.ndarray,
    stage: int,
    block: int,
    y: int,
    x: int,
    *,
    channel: int | None = None,
    scan: str | ScanSpec | None = None,
    watched: WatchedScan | None = None,
    provenance: Provenance,
    token: CancelToken | None = None,
) -> AttentionResult:
    """Row and column of token (y, x) in the scan of one block (both 1-based), for one normalised
    `[3, H, W]` image.

    `channel`: None for the mean over channels. `scan`: None for the scheme that the model runs, or
    another one, under which the same input of this block is scanned. `watched`: what `watch_scan`
    gave for this block and image, where it was kept.
    """
    started = time.perf_counter()
    blocks = scanning_blocks(model, stage)
    rows, columns, stride = stage_shape(model, stage, *image.shape[-2:])
    _check_token(stage, rows, columns, y, x)
    if blocks:
        if watched is None:
            watched = watch_scan(model, image, stage, block, token)
        if scan is not None:
            watched = rescanned(watched, scan)
        if token is not None:
            token.check()
        fields = {
            "layer": watched.given.layer,
            "n_channels": watched.n_channels,
            **attention_of(watched, y, x, channel),
        }
    else:
        fields = {"layer": "", "n_channels": 0, **_nothing(rows, columns), "note": no_scan(stage)}
    asked = {
        "stage": stage,
        "block": block,
        "y": y,
        "x": x,
        "channel": channel,
        "rescanned": None if scan is None else str(ScanSpec.of(scan)),
    }
    return AttentionResult(
        provenance=replace(
            provenance,
            definition=DEFINITION,
            parameters={**provenance.parameters, **asked},
            seconds=time.perf_counter() - started,
        ),
        stage=stage,
        block=block,
        y=y,
        x=x,
        height=rows,
        width=columns,
        stride=stride,
        has_scan=bool(blocks),
        channel=channel,
        **fields,
    )


def scanning_blocks(model: Any, stage: int) -> list[Any]:
    """The blocks of `stage` (1-based) that scan; none in a stage of convolutions."""
    if not isinstance(model, EfficientVMamba):
        raise BadInputError(
            f"{type(model).__name__} has no scan, so there is no implicit attention to read. "
            "Choose an EfficientVMamba."
        )
    n_stages = len(model.feature_info)
    if not 1 <= stage <= n_stages:
        raise BadInputError(
            f"There is no stage {stage}: this model has stages 1 to {n_stages}. Choose one of them."
        )
    return [b for b in model.blocks() if b.stage == stage and b.has_scan]


def watch_scan(
    model: Any, image: np.ndarray, stage: int, block: int, token: CancelToken | None = None
) -> WatchedScan:
    """Run the network on one normalised `[3, H, W]` image up to the scan of a block."""
    scanning = scanning_blocks(model, stage)
    info = next((b for b in scanning if b.block == block), None)
    if info is None:
        numbers = ", ".join(str(b.block) for b in scanning)
        raise BadInputError(
            f"There is no block {block} with a scan in stage {stage}. "
            + (f"Choose one of: {numbers}." if scanning else no_scan(stage))
        )
    # A twin on the same weights: a hook that is set here can never be seen by another session.
    twin = with_scan(model, model.scan_spec)
    found: list[Tensor] = []

    def capture(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend(value.detach() for value in (output, *inputs))
        raise _Captured

    def check(*_: Any) -> None:
        if token is not None:
            token.check()

    for other in twin.blocks():
        twin.get_submodule(other.name).register_forward_pre_hook(check)
    operator = twin.get_submodule(info.name).op
    operator.scan.register_forward_hook(capture)
    parameter = next(twin.parameters())
    try:
        with torch.no_grad():
            twin(torch.from_numpy(image)[None].to(parameter.device, parameter.dtype))
    except _Captured:
        pass
    output, x, *parameters = found
    if not (torch.isfinite(x).all() and torch.isfinite(output).all()):
        raise BadInputError(explain_non_finite(model, "the scan's input or output"))
    return WatchedScan(
        stage=stage,
        block=block,
        stride=model.feature_info[stage - 1]["reduction"],
        order=scan_order(operator.scan.spec, *x.shape[-2:]),
        given=ScanInput(f"{info.name}.op", x[0], *parameters),
        output=output[0],
        backend=operator.scan.backend,
    )


def rescanned(watched: WatchedScan, scan: str | ScanSpec) -> WatchedScan:
    """The same input and parameters, scanned along another scheme."""
    spec = ScanSpec.of(scan)
    order = scan_order(spec, watched.order.height, watched.order.width)
    n_given = watched.given.x_proj_weight.shape[0]
    n_needed = int(order.parameter_set.max()) + 1
    if not order.is_runnable or n_needed > n_given:
        why = order.why_not_runnable or f"needs {n_needed} parameter sets, the block has {n_given}"
        raise BadInputError(
            f"{spec} cannot scan the input of this block: it {why}. Choose a scheme that models "
            "run, such as ss2d."
        )
    with torch.no_grad():
        output = scan2d(
            watched.given.x[None], *watched.given.parameters, order=spec, backend=watched.backend
        )
    return replace(watched, order=order, output=output[0])


@torch.no_grad()
def attention_of(
    watched: WatchedScan, y: int, x: int, channel: int | None = None
) -> dict[str, Any]:
    """The fields of an `AttentionResult` that depend on the token: maps, decay, skip, error, note.

    `channel`: which one `rows`, `columns` and `skip` show; None for the mean over channels.
    """
    order = watched.order
    _check_token(watched.stage, order.height, order.width, y, x)
    if channel is not None and not 0 <= channel < watched.n_channels:
        raise BadInputError(
            f"There is no channel {channel} in {watched.given.layer}: it scans "
            f"{watched.n_channels} channels. Choose one from 0 to {watched.n_channels - 1}, or "
            "none for their mean."
        )
    code = y * order.width + x
    found = [
        _SequenceAttention(watched, int(k), code)
        for k in np.flatnonzero((order.index == code).any(axis=1))
    ]
    if not found:
        return {
            **_nothing(order.height, order.width),
            "error": _relative_error(watched.output.new_zeros(()), watched.output[:, y, x]),
            "note": "No sequence of the scan reads this token: the scan's output there is 0.",
        }
    shown = slice(None) if channel is None else slice(channel, channel + 1)
    own_skip = sum(sequence.skip for sequence in found)
    assert isinstance(own_skip, Tensor)
    explained = sum(sequence.explained for sequence in found)
    explained = explained + own_skip * watched.given.x[:, y, x]

    def maps(values: list[Tensor]) -> np.ndarray:
        stacked = torch.stack(values)[:, :-1]  # without what pads read
        return stacked.reshape(-1, order.height, order.width).float().cpu().numpy()

    steps = np.arange(max(sequence.decay.size for sequence in found), dtype=np.int32)
    decay = np.full((len(found), steps.size), np.nan, dtype=np.float32)
    for line, sequence in zip(decay, found, strict=True):
        line[: sequence.decay.size] = sequence.decay
    return {
        "sequences": tuple(sequence.number for sequence in found),
        "rows": maps([sequence.row[shown].mean(0) for sequence in found]),
        "rows_size": maps([sequence.row.abs().mean(0) for sequence in found]),
        "columns": maps([sequence.column[shown].mean(0) for sequence in found]),
        "columns_size": maps([sequence.column.abs().mean(0) for sequence in found]),
        "steps": steps,
        "decay": decay,
        "skip": float(own_skip[shown].mean()),
        "error": _relative_error(explained, watched.output[:, y, x]),
        "note": _repeated_readings(found),
    }


class _SequenceAttention:
    """Row and column of one token in one sequence, `[C, H * W + 1]` each, last what pads read."""

    def __init__(self, watched: WatchedScan, k: int, code: int) -> None:
        codes, index, given = watched.order.index[k], watched.slots(k), watched.given
        s = int(watched.order.parameter_set[k])
        steps = watched.steps[k]
        x, dt, clock, B, C = steps.x, steps.dt, steps.clock, steps.B, steps.C
        A = -given.A_logs.unflatten(0, (-1, x.shape[0]))[s].double().exp()  # [C, N]
        self.number = k
        self.places = np.flatnonzero(codes == code)
        self.skip = given.Ds.view(-1, x.shape[0])[s] * len(self.places)
        self.row = torch.zeros_like(watched.read, dtype=torch.float32)
        self.column = torch.zeros_like(self.row)
        self.explained = torch.zeros_like(self.skip)
        curves = np.full((len(self.places), len(codes)), np.nan, dtype=np.float32)
        for curve, p in zip(curves, self.places, strict=True):
            own = slice(p, p + 1)
            # Before the token the state is read with C of the token, after it the token's B is.
            weights = torch.cat([B[:, :p] * C[:, own], C[:, p:] * B[:, own]], dim=1)
            kept = _kept(A, (clock - clock[:, own]).float().abs_(), weights)
            read = kept[:, : p + 1] * dt[:, : p + 1]
            self.explained += (read * x[:, : p + 1]).sum(1)
            self.row.index_add_(1, index[: p + 1], read)
            self.column.index_add_(1, index[p:], kept[:, p:] * dt[:, own])
            sizes = read.abs().mean(0).cpu().numpy()[::-1]
            curve[: p + 1] = np.where(codes[p::-1] < 0, np.float32(np.nan), sizes)
        self.decay = _mean_of_known(curves[:, : self.places[-1] + 1])


def _steps(given: ScanInput, s: int, x: Tensor) -> Steps:
    """dt, B and C of parameter set s where `x` `[C, L]` is read, from products in float64."""
    rank, n_states = given.dt_projs_weight.shape[2], given.A_logs.shape[1]
    projected = given.x_proj_weight[s].double() @ x.double()
    low, B, C = projected.split([rank, n_states, n_states])
    raw = given.dt_projs_weight[s].double() @ low + given.dt_projs_bias[s].double()[:, None]
    dt = F.softplus(raw.float())
    return Steps(x, dt, dt.cumsum(1, dtype=torch.float64), B.float(), C.float())


def _kept(A: Tensor, elapsed: Tensor, weights: Tensor) -> Tensor:
    """`sum_n weights[n, m] exp(A[c, n] elapsed[c, m])`, `[C, M]`; A `[C, N]`, elapsed `[C, M]`,
    weights `[N, M]`; float32.

    Exponent and share are rounded to float32: an error e of an exponent -a changes the share by
    `a exp(-a) e`, at most 0.37 e, wherever the token is.
    """
    per_state = (A / math.log(2)).float()
    total = torch.zeros_like(elapsed)
    share = torch.empty_like(elapsed)
    for n in range(A.shape[1]):
        torch.mul(elapsed, per_state[:, n, None], out=share)
        F.threshold(share, GONE, -math.inf, inplace=True)
        total.addcmul_(share.exp2_(), weights[n])
    return total


def _mean_of_known(curves: np.ndarray) -> np.ndarray:
    """Mean over the rows that are not nan, `[V, S] -> [S]`; nan where all are."""
    is_known = ~np.isnan(curves)
    n_known = is_known.sum(0)
    sums = np.where(is_known, curves, 0).sum(0)
    return np.where(n_known > 0, sums / np.maximum(n_known, 1), np.float32(np.nan))


def _relative_error(explained: Tensor, output: Tensor) -> float:
    """|explained - output| / |output| over channels; 0 if both are 0."""
    difference = float((explained - output.double()).norm())
    size = float(output.double().norm())
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def _repeated_readings(found: Sequence[_SequenceAttention]) -> str:
    return " ".join(
        f"Sequence {sequence.number + 1} reads this token {len(sequence.places)} times: its maps "
        "are the sums over these readings, its decay is their mean."
        for sequence in found
        if len(sequence.places) > 1
    )


def _nothing(rows: int, columns: int) -> dict[str, Any]:
    """The fields of a token that no sequence reads."""
    none = np.zeros((0, rows, columns), dtype=np.float32)
    return {
        "sequences": (),
        "rows": none,
        "rows_size": none,
        "columns": none,
        "columns_size": none,
        "steps": np.zeros(0, dtype=np.int32),
        "decay": np.zeros((0, 0), dtype=np.float32),
        "skip": 0.0,
        "error": 0.0,
        "note": "",
    }


def _check_token(stage: int, rows: int, columns: int, y: int, x: int) -> None:
    if not (0 <= y < rows and 0 <= x < columns):
        raise BadInputError(
            f"There is no token ({y}, {x}) in stage {stage}. Its map has {rows} x {columns} "
            f"tokens: choose y from 0 to {rows - 1} and x from 0 to {columns - 1}."
        )
