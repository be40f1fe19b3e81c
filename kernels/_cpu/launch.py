"""From tensors to the programs' tables and back: one function per program."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels._cpu import columns as col
from kernels._cpu.run import run_program
from kernels.scan_order import PAD, ScanOrder

_COLUMN = {name: value for name, value in vars(col).items() if isinstance(value, int)}


class Plan:
    """What the programs need to know of an order, in their form."""

    def __init__(
        self,
        n_tokens: int,
        length: int,
        sets: np.ndarray,
        index: np.ndarray | None = None,
        is_sum: bool = False,
    ) -> None:
        self.n_tokens, self.length, self.n_sequences = n_tokens, length, len(sets)
        self.sets = np.ascontiguousarray(sets, dtype=np.int32)
        self.index = index
        self.sets_address = self.sets.ctypes.data
        self.index_address = 0 if index is None else index.ctypes.data
        self._is_identity = self.sets.tolist() == list(range(len(sets)))
        self.is_sum = is_sum
        self.writes_all = not is_sum
        if index is not None and not is_sum:
            self.writes_all = int((index != PAD).sum()) == n_tokens
        self._single: list[Plan] = []

    def single_sequences(self) -> list[Plan]:
        """A plan for each sequence alone, in the order of the sequences."""
        if not self._single and self.index is not None:
            self._single = [
                Plan(self.n_tokens, self.length, self.sets[k : k + 1], row, self.is_sum)
                for k, row in enumerate(self.index[:, None])
            ]
        return self._single

    def sum_over_sets(self, per_sequence: Tensor, n_sets: int) -> Tensor:
        """`[K, ...]` to `[S, ...]`, added in the order of the sequences."""
        if n_sets == self.n_sequences and self._is_identity:
            return per_sequence
        total = per_sequence.new_zeros(n_sets, *per_sequence.shape[1:])
        for k, s in enumerate(self.sets.tolist()):
            total[s] += per_sequence[k]
        return total

    def outputs(self, like: Tensor) -> Tensor:
        """A map to write to: empty if every token is written, else zeros."""
        return torch.empty_like(like) if self.writes_all else torch.zeros_like(like)


_plans: weakref.WeakKeyDictionary[ScanOrder, Plan] = weakref.WeakKeyDictionary()


def plan_of(order: ScanOrder) -> Plan:
    """The plan of an order, made once."""
    plan = _plans.get(order)
    if plan is None:
        is_sum = order.merge == "sum"
        plan = Plan(order.n_tokens, order.length, order.parameter_set, order.index, is_sum)
        _plans[order] = plan
    return plan


@lru_cache(maxsize=64)
def plain_plan(n_sequences: int, length: int) -> Plan:
    """Sequences that lie in memory one after the other, each with its own parameters."""
    return Plan(n_sequences * length, length, np.arange(n_sequences))


@dataclass
class ScanInputs:
    """Contiguous float32 inputs of one scan, in one of two layouts.

    Map: x `[B, tokens, C]`, projected `[B, K, L, R+2N]`, A = A_logs `[S*C, N]`, dt_weight `[S, C,
    R]`. Rows (Mamba): x, delta `[B, K*C, L]`, B, C `[B, K, N, L]`, A `[K*C, N]`. skip, bias:
    `[S*C]`.
    """

    plan: Plan
    x: Tensor
    A: Tensor
    skip: Tensor
    bias: Tensor
    projected: Tensor | None = None
    dt_weight: Tensor | None = None
    delta: Tensor | None = None
    B: Tensor | None = None
    C: Tensor | None = None
    softplus: bool = True

    @property
    def is_map(self) -> bool:
        return self.projected is not None

    @property
    def batch(self) -> int:
        return self.x.shape[0]

    @property
    def channels(self) -> int:
        """Channels of one sequence."""
        return self.x.shape[2] if self.is_map else self.x.shape[1] // self.plan.n_sequences

    @property
    def states(self) -> int:
        return self.A.shape[1]

    @property
    def padded_states(self) -> int:
        """States in fours, as the programs hold them."""
        return -(-self.states // 4) * 4

    @property
    def rank(self) -> int:
        return 0 if self.dt_weight is None else self.dt_weight.shape[2]

    @property
    def blocks(self) -> int:
        return -(-self.channels // col.LANES)

    def groups(self, items_per_thread: int) -> int:
        """Into how many items the channel blocks of a sequence are split to keep threads busy."""
        sequences = self.batch * (1 if self.plan.is_sum else self.plan.n_sequences)
        wanted = -(-items_per_thread * torch.get_num_threads() // max(1, sequences))
        return min(self.blocks, wanted) if torch.get_num_threads() > 1 else 1

    def n_items(self, groups: int) -> int:
        return self.batch * groups * (1 if self.plan.is_sum else self.plan.n_sequences)

    def table(self, groups: int, **columns: Tensor | None) -> np.ndarray:
        """The programs' table: sizes, inputs, and `columns` as addresses (None: 0)."""
        plan = self.plan
        sizes = {
            "BATCH": self.batch,
            "SEQUENCES": plan.n_sequences,
            "LENGTH": plan.length,
            "TOKENS": plan.n_tokens,
            "CHANNELS": self.channels,
            "STATES": self.states,
            "RANK": self.rank,
            "BLOCKS": self.blocks,
            "GROUPS": groups,
            "WIDTH": self.rank + 2 * self.states,
            "SOFTPLUS": self.softplus,
            "IS_MAP": self.is_map,
            "IS_SUM": plan.is_sum,
            "INDEX": plan.index_address,
            "SETS": plan.sets_address,
        }
        tensors = {
            "X": self.x,
            "DELTA": self.delta,
            "B_IN": self.B,
            "C_IN": self.C,
            "PROJECTED": self.projected,
            "A_IN": self.A,
            "DT_WEIGHT": self.dt_weight,
            "DT_BIAS": self.bias,
            "SKIP": self.skip,
        }
        return make_table(sizes, tensors | columns)


def make_table(sizes: dict[str, int], tensors: dict[str, Tensor | None]) -> np.ndarray:
    """The int64 columns of `cpu_loops` from sizes and from the tensors' addresses."""
    columns = [0] * col.N_COLUMNS
    for name, size in sizes.items():
        columns[_COLUMN[name]] = size
    for name, tensor in tensors.items():
        if tensor is not None:
            assert tensor.is_contiguous() and tensor.dtype == torch.float32, name
            columns[_COLUMN[name]] = tensor.data_ptr()
    return np.array(columns, dtype=np.int64)


def in_vectors(weight: Tensor) -> Tensor:
    """Weights `[S, P, C]` as the projection reads them: `[S, C, P padded to whole vectors]`."""
    return F.pad(weight.transpose(1, 2), (0, -weight.shape[1] % col.LANES)).contiguous()


def project(x: Tensor, weight: Tensor, width: int, plan: Plan, out: Tensor | None = None) -> Tensor:
    """Tokens `[B, tokens, C]` along the order times `in_vectors(weight)`: `[B, K, L, width]`."""
    batch, _, channels = x.shape
    if out is None:
        out = x.new_empty(batch, plan.n_sequences, plan.length, width)
    groups = -(-plan.length // (col.ROWS * col.PARTS))
    sizes = {
        "SEQUENCES": plan.n_sequences,
        "LENGTH": plan.length,
        "TOKENS": plan.n_tokens,
        "CHANNELS": channels,
        "GROUPS": groups,
        "WIDTH": width,
        "INDEX": plan.index_address,
        "SETS": plan.sets_address,
    }
    table = make_table(sizes, {"X": x, "X_WEIGHT": weight, "PROJECTED": out})
    run_program("project", table, batch * plan.n_sequences * groups)
    return out


def checkpoint_shape(
    batch: int, n_sequences: int, length: int, channels: int, states: int
) -> tuple[int, int, int]:
    """The states before every chunk but the first: `[slots, states in fours, 16 channels]`."""
    slots = batch * n_sequences * ((length - 1) // col.CHUNK) * (-(-channels // col.LANES))
    return slots, -(-states // 4) * 4, col.LANES


def scan_forward(
    inputs: ScanInputs, y: Tensor, checkpoints: Tensor | None, last_state: Tensor | None = None
) -> None:
    """Write the outputs, shaped like x, the checkpoints and the states after the last step.

    last_state is `[B, K, blocks, states in fours, 16]`; see `per_channel_states`.
    """
    groups = inputs.groups(items_per_thread=4)
    table = inputs.table(groups, Y=y, CHECKPOINTS=checkpoints, LAST_STATE=last_state)
    run_program("forward", table, inputs.n_items(groups), _forward_scratch(inputs))


def per_channel_states(last_state: Tensor, channels: int, states: int) -> Tensor:
    """`[B, K, blocks, states in fours, 16]` to `[B, K*channels, states]`, contiguous."""
    rows = last_state.transpose(3, 4).flatten(2, 3)[:, :, :channels, :states]
    return rows.flatten(1, 2).contiguous()


@dataclass
class ScanGradients:
    """Gradients in the layout of `ScanInputs`, without that of x; of parameters `[K, ...]`."""

    a: Tensor
    bias: Tensor
    skip: Tensor
    projected: Tensor | None
    dt_weight: Tensor | None
    delta: Tensor | None
    B: Tensor | None
    C: Tensor | None
    room: Tensor | None  # memory behind `projected`


def scan_backward(
    inputs: ScanInputs,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_x: Tensor,
    room: Tensor | None = None,
) -> ScanGradients:
    """Gradients of all inputs of the scan; that of x is written (or added) to `grad_x`.

    `room` may be the gradient of another `projected`: its memory is used again.
    """
    plan, x = inputs.plan, inputs.x
    # The blocks of a sequence share the gradients of B and C. Each group sums its own; the groups'
    # sums are added here. One group is best, unless that leaves threads without work.
    groups = inputs.groups(items_per_thread=1)
    per_block = (inputs.batch, plan.n_sequences, inputs.blocks)
    grad_a = x.new_empty(*per_block, inputs.padded_states, col.LANES)
    grad_dt_weight = x.new_empty(*per_block, inputs.rank, col.LANES)
    grad_bias, grad_skip = (x.new_empty(*per_block, col.LANES) for _ in range(2))
    projected = delta = B = C = None
    if inputs.projected is not None:
        projected = room
        if room is None:
            projected = x.new_empty(groups, *inputs.projected.shape)
    if inputs.delta is not None and inputs.B is not None:
        delta = torch.empty_like(inputs.delta)
        B, C = (x.new_empty(groups, *inputs.B.shape) for _ in range(2))
    table = inputs.table(
        groups,
        CHECKPOINTS=checkpoints,
        GRAD_Y=grad_y,
        GRAD_X=grad_x,
        GRAD_DELTA=delta,
        GRAD_B=B,
        GRAD_C=C,
        GRAD_PROJECTED=projected,
        GRAD_A=grad_a,
        GRAD_DT_WEIGHT=grad_dt_weight,
        GRAD_BIAS=grad_bias,
        GRAD_SKIP=grad_skip,
    )
    run_program("backward", table, inputs.n_items(groups), _backward_scratch(inputs))

    def per_channel(grad: Tensor) -> Tensor:
        """Sum over the batch, `[B, K, blocks, n, 16]` to `[K, C, n]`."""
        grad = grad.sum(0).transpose(2, 3).flatten(1, 2)
        return grad[:, : inputs.channels]

    return ScanGradients(
        a=per_channel(grad_a)[:, :, : inputs.states],
        bias=per_channel(grad_bias.unsqueeze(3))[:, :, 0],
        skip=per_channel(grad_skip.unsqueeze(3))[:, :, 0],
        projected=_sum_groups(projected),
        room=projected,
        dt_weight=per_channel(grad_dt_weight) if inputs.is_map else None,
        delta=delta,
        B=_sum_groups(B),
        C=_sum_groups(C),
    )


def add_projection_gradient(
    inputs: ScanInputs, weight: Tensor, grad_projected: Tensor, grad_x: Tensor
) -> None:
    """Add what reaches x `[B, tokens, C]` through the projection with `weight` `[S, P, C]`."""
    table = inputs.table(
        inputs.blocks, X_WEIGHT=weight, GRAD_PROJECTED=grad_projected, GRAD_X=grad_x
    )
    run_program("project_back", table, inputs.n_items(inputs.blocks))


def projection_weight_gradient(inputs: ScanInputs, grad_projected: Tensor) -> Tensor:
    """Gradient of the projection's weights, per sequence: `[K, P, C]`."""
    width = grad_projected.shape[3]
    n_sequences = inputs.plan.n_sequences
    # A fixed number of partial sums, so that the result does not depend on the number of threads.
    slices = min(8, inputs.batch)
    partial = inputs.x.new_empty(slices, n_sequences, width, inputs.channels)
    table = inputs.table(1, GRAD_PROJECTED=grad_projected, GRAD_X_WEIGHT=partial)
    table[col.SLICES] = slices
    run_program("project_weight", table, slices * n_sequences * inputs.blocks)
    return partial.sum(0)


def _sum_groups(grad: Tensor | None) -> Tensor | None:
    """Add the groups' parts in place: a sum of their own would be one more of them."""
    if grad is None:
        return None
    for part in grad[1:]:
        grad[0].add_(part)
    return grad[0]


def _forward_scratch(inputs: ScanInputs) -> int:
    """Floats that one thread needs for the forward program (`forward.py` has the layout)."""
    padded = inputs.padded_states
    vectors = (2 * padded + inputs.rank) * inputs.blocks + 4 * col.CHUNK
    return col.LANES * vectors + col.CHUNK * 2 * padded


def _backward_scratch(inputs: ScanInputs) -> int:
    """Floats that one thread needs for the backward program (`backward.py` has the layout)."""
    padded = inputs.padded_states
    sums = 4 * (-(-inputs.rank // col.LANES) + 2 * -(-inputs.states // col.LANES))
    per_step = 15 + sums
    vectors = (2 * padded + inputs.rank) * inputs.blocks + padded + per_step * col.CHUNK
    return col.LANES * vectors + col.CHUNK * 2 * padded
