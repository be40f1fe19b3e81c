"""Reach of a token: which tokens can influence it through one scan, and how much of it survives.

Who can matter and how many steps lie between follow from the order alone, exactly. How much is left
is read from the running network: dt of every step, from the very input that the first scanning
block of the stage gets for this photo, and A of the loaded weights. After the steps j+1 to i the
state that token j wrote is left with the share exp(sum dt_t A), for each channel and state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ScanOrder, ScanSpec, scan_order
from kernels.scan_reach import TokenReach, reach_of
from workbench.analyses.checks import explain_non_finite
from workbench.analyses.maps import stage_shape
from workbench.analyses.propagation import mean_shares, through_block, through_op
from workbench.analyses.scan import no_scan
from workbench.errors import BadInputError
from workbench.results import Provenance, ReachResult, ReachStep

DEFINITION = (
    "steps: fewest steps of a sequence between the two tokens; decay: exp(sum of dt A over these "
    "steps), mean over channels and states, of several sequences the largest; dt from this photo, "
    "A from the weights; curve: p20, p50, p80 over channels, states and the sequences that read "
    "the token"
)
PATH_ONLY_DEFINITION = "fewest steps of a sequence between the two tokens, from the scheme's table"
GONE = -40.0  # exponent below which nothing counts as left: 4e-18
BLOCK = 256  # steps that are followed at once
CHUNK = 1 << 18  # exponentials that are held at once: 1 MiB in float32 stays in the cache
N_FIRST_STEPS = 33  # of the curve: each of these, then ever wider apart
N_CURVE = 64


class _Captured(Exception):
    """The scan's input is there: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class ScanInput:
    """What the watched scan got: the map `[C, H, W]` and the operator's parameters."""

    layer: str
    x: Tensor
    x_proj_weight: Tensor  # [S, R + 2N, C]
    dt_projs_weight: Tensor  # [S, C, R]
    dt_projs_bias: Tensor  # [S, C]
    A_logs: Tensor  # [S*C, N]
    Ds: Tensor  # [S*C]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
        )


def scan_input(model: Any, image: np.ndarray, stage: int) -> ScanInput | None:
    """Input of the first scan of `stage` for one normalised `[3, H, W]` image; None without one."""
    block = next((b for b in model.blocks() if b.stage == stage and b.has_scan), None)
    if block is None:
        return None
    found: list[tuple[Tensor, ...]] = []

    def capture(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(tuple(value.detach() for value in inputs))
        raise _Captured

    parameter = next(model.parameters())
    handle = model.get_submodule(block.name).op.scan.register_forward_pre_hook(capture)
    try:
        with torch.no_grad():
            model(torch.from_numpy(image)[None].to(parameter.device, parameter.dtype))
    except _Captured:
        pass
    finally:
        handle.remove()
    x, *parameters = found[0]
    if not torch.isfinite(x).all():
        raise BadInputError(explain_non_finite(model, "the scan's input"))
    return ScanInput(f"{block.name}.op", x[0], *parameters)


def reach(
    model: Any,
    image: np.ndarray,
    stage: int,
    y: int,
    x: int,
    *,
    provenance: Provenance,
    spec: ScanSpec | None = None,
) -> ReachResult:
    """Reach of token (y, x) of `stage` (1-based) for one normalised `[3, H, W]` image.

    `spec`: None for the scheme that the model runs, or the scheme of another network: then there is
    no decay (nan), no curve and nothing that restores.
    """
    started = time.perf_counter()
    rows, columns, stride = stage_shape(model, stage, *image.shape[-2:])
    if not (0 <= y < rows and 0 <= x < columns):
        raise BadInputError(
            f"There is no token ({y}, {x}) in stage {stage}. Its map has {rows} x {columns} "
            f"tokens: choose y from 0 to {rows - 1} and x from 0 to {columns - 1}."
        )
    is_path_only = spec is not None and not spec.is_runnable
    blocks = [b for b in model.blocks() if b.stage == stage and b.has_scan]
    none = np.full((rows, columns), -1, dtype=np.int32)
    fields: dict[str, Any] = {
        "layer": "",
        "steps_back": none,
        "steps_on": none,
        "decay": np.zeros((rows, columns), dtype=np.float32),
        "curve_steps": np.zeros(0, dtype=np.int32),
        **{f"curve_p{p}": np.zeros(0, dtype=np.float32) for p in (20, 50, 80)},
        "half_steps": float("nan"),
        "mean_reach": float("nan"),
        "restored": (),
        "note": "" if blocks else no_scan(stage),
    }
    if blocks:
        order = scan_order(spec if spec is not None else model.scan_spec, rows, columns)
        token = reach_of(order, y, x)
        mean = float(order.metrics()["mean_reach"])
        alone = ReachStep(name="scan alone", share=token.share, mean_share=mean)
        fields |= {
            "steps_back": token.steps_back,
            "steps_on": token.steps_on,
            "mean_reach": mean,
            "restored": (alone,),
        }
        if is_path_only:
            fields["decay"] = np.full((rows, columns), np.nan, dtype=np.float32)
            fields["note"] = f"Path only: {order.why_not_runnable}."
        else:
            given = scan_input(model, image, stage)
            assert given is not None
            restored, notes = _restored(model, blocks, order, token, alone)
            fields |= {
                "layer": given.layer,
                "restored": restored,
                "note": " ".join(notes),
                **_decay(given, order, token),
            }
    return ReachResult(
        provenance=replace(
            provenance,
            definition=PATH_ONLY_DEFINITION if is_path_only else DEFINITION,
            parameters={**provenance.parameters, "stage": stage, "y": y, "x": x},
            seconds=time.perf_counter() - started,
        ),
        stage=stage,
        y=y,
        x=x,
        height=rows,
        width=columns,
        stride=stride,
        has_scan=bool(blocks),
        **fields,
    )


def _decay(given: ScanInput, order: ScanOrder, token: TokenReach) -> dict[str, Any]:
    """The fields of the result that say how much of a state is left."""
    left = np.zeros(order.n_tokens + 1, dtype=np.float32)  # the last one takes the pads
    ways = []
    flat = F.pad(given.x.flatten(1), (0, 1))
    for k in token.sequences:
        row = order.index[k]
        here = int(np.flatnonzero(row == token.y * order.width + token.x)[-1])
        way = _Way(given, flat, row[here::-1], int(order.parameter_set[k]))
        np.maximum.at(left, row[here::-1], way.mean_left)
        ways.append(way)
    longest = max((way.n_steps for way in ways), default=1)
    steps = np.unique(
        np.rint(
            np.append(
                np.arange(min(N_FIRST_STEPS, longest)),
                np.geomspace(min(N_FIRST_STEPS, longest), longest, N_CURVE) - 1,
            )
        ).astype(np.int32)
    )
    curve = np.zeros((3, steps.size))
    lengths = np.array([way.n_steps for way in ways])
    # Shorter sequences drop out on the way: steps that the same ones reach go together.
    n_left = (steps[:, None] < lengths).sum(1)
    for n in np.unique(n_left):
        mine = n_left == n
        values = [way.left(steps[mine]) for way in ways if way.n_steps > steps[mine][0]]
        curve[:, mine] = _quantiles(np.concatenate(values, axis=1))
    return {
        "decay": left[:-1].reshape(order.height, order.width),
        "curve_steps": steps,
        **{f"curve_p{p}": curve[i].astype(np.float32) for i, p in enumerate((20, 50, 80))},
        "half_steps": _half(steps, curve[1]),
    }


class _Way:
    """One sequence from the token in focus backwards: what each step before it left of a state."""

    def __init__(
        self, given: ScanInput, flat: Tensor, codes: np.ndarray, parameter_set: int
    ) -> None:
        """`flat` `[C, tokens + 1]`: the map, last what pads read; `codes` `[M]`: tokens from the
        focus back to the sequence's first step, pads below 0.
        """
        s = parameter_set
        channels, n_tokens = flat.shape[0], flat.shape[1] - 1
        self.n_steps = len(codes)
        self.A = -torch.exp(given.A_logs.view(-1, channels, given.A_logs.shape[1])[s])  # [C, N]
        rank = given.dt_projs_weight.shape[2]
        bias = given.dt_projs_bias[s][:, None]
        # The last dt that counts is that of the token after the one that wrote: none for the focus.
        index = torch.from_numpy(np.where(codes < 0, n_tokens, codes).astype(np.int64))
        index = index.to(flat.device)
        # Sums over thousands of steps in float64; one product and one exponential do with less.
        carry = torch.zeros(channels, 1, dtype=torch.float64, device=flat.device)
        times, means = [carry.to(given.x.dtype)], [np.ones(1, dtype=np.float32)]
        for start in range(0, self.n_steps - 1, BLOCK):
            low = given.x_proj_weight[s, :rank] @ flat[:, index[start : start + BLOCK]]
            dt = F.softplus(given.dt_projs_weight[s] @ low + bias)
            elapsed = carry + dt.double().cumsum(1)
            carry = elapsed[:, -1:]
            times.append(elapsed.to(given.x.dtype)[:, : self.n_steps - 1 - start])
            means.append(self._mean(times[-1]))
            if not means[-1][-1]:
                break
        self.time = torch.cat(times, 1)  # [C, steps until nothing is left]
        self.mean_left = np.zeros(self.n_steps, dtype=np.float32)
        known = np.concatenate(means)
        self.mean_left[: known.size] = known

    def _mean(self, time: Tensor) -> np.ndarray:
        """Share left, mean over channels and states, after `time` `[C, steps]`; float32."""
        channel, state = torch.nonzero(time[:, :1] * self.A > GONE, as_tuple=True)
        total = time.new_zeros(time.shape[1])
        size = max(1, CHUNK // time.shape[1])
        for start in range(0, channel.numel(), size):
            c, n = channel[start : start + size], state[start : start + size]
            total += (time[c] * self.A[c, n, None]).clamp_(min=2 * GONE).exp_().sum(0)
        left = (total / self.A.numel()).float().cpu().numpy()
        return np.where(left > np.exp(GONE), left, np.float32(0))

    def left(self, steps: np.ndarray) -> np.ndarray:
        """Share of a state left after so many steps, float32 `[steps, C * N]`."""
        found = np.zeros((steps.size, self.A.numel()), dtype=np.float32)
        known = steps[steps < self.time.shape[1]]
        time = self.time[:, torch.from_numpy(known.astype(np.int64)).to(self.time.device)]
        left = torch.exp(time.T[:, :, None] * self.A)  # [steps, C, N]
        found[: known.size] = left.flatten(1).float().cpu().numpy()
        return found


def _quantiles(values: np.ndarray) -> np.ndarray:
    """p20, p50 and p80 of each row, `[3, rows]`; a plain sort is many times faster than numpy's."""
    values.sort(axis=1)
    at = np.array([0.2, 0.5, 0.8]) * (values.shape[1] - 1)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, values.shape[1] - 1)
    return (values[:, low] + (at - low) * (values[:, high] - values[:, low])).T


def _half(steps: np.ndarray, median: np.ndarray) -> float:
    """Steps after which the median is one half, between two points of the curve on its chord."""
    below = np.flatnonzero(median <= 0.5)
    if below.size == 0:
        return float("nan")
    i = int(below[0])  # never 0: after no step all is left
    return float(np.interp(-0.5, -median[[i - 1, i]], steps[[i - 1, i]]))


def _restored(
    model: Any, blocks: list[Any], order: ScanOrder, token: TokenReach, alone: ReachStep
) -> tuple[tuple[ReachStep, ...], list[str]]:
    """What the rest of the block and the depth of the stage add to the scan's reach."""
    modules = [model.get_submodule(block.name) for block in blocks]
    branches = tuple(module.conv_branch is not None for module in modules)
    focus = np.zeros((order.height, order.width), dtype=bool)
    focus[token.y, token.x] = True
    found = focus
    for has_branch in reversed(branches):
        found = through_block(order, found, has_branch)
    own = (
        through_op(order, focus).mean(),
        through_block(order, focus, branches[0]).mean(),
        found.mean(),
    )
    assert order.spec is not None
    is_exact = True
    if alone.mean_share == 1.0:
        means: tuple[float, ...] = (1.0, 1.0, 1.0)
    else:
        means, is_exact = mean_shares(order.spec, order.height, order.width, branches)
    names = [
        "with the 3x3 convolution before it",
        "EVSS block, gates frozen",
        "all blocks of the stage, gates frozen",
    ]
    steps = [alone]
    for name, share, mean in zip(names[: 2 + (len(blocks) > 1)], own, means, strict=False):
        steps.append(ReachStep(name=name, share=float(share), mean_share=mean))
    if any(module.se is not None for module in modules):
        steps.append(ReachStep(name="with the SE gates (global means)", share=1.0, mean_share=1.0))
    notes = []
    if not is_exact:
        notes.append(
            "Means over all tokens are estimated from 4,096 sources; the token's own shares are "
            "exact."
        )
    return tuple(steps), notes
