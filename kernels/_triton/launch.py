"""From tensors to kernels and back: sizes, the choice of regime, output memory, launches."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels._triton import tiles
from kernels._triton.configs import ALONE, ATOMIC, MODULES, PARTIAL, constants
from kernels._triton.orders import Plan
from kernels._triton.tiles import CHECKPOINT, Tile, tile_for

# The kernels that go step by step need this many programs per multiprocessor to hide the latency of
# a step; with fewer, the kernels that scan whole chunks finish first. Chosen on paper: 784 steps of
# about 0.5 us against 13 tiles of 64 steps; not measured.
PROGRAMS_PER_PROCESSOR = 2
_forced_regime: ContextVar[str | None] = ContextVar("_forced_regime", default=None)


@dataclass(frozen=True)
class ScanInputs:
    """Inputs of one scan in one of two layouts; any floating dtype, all contiguous.

    Map: x `[B, T, C]`, delta = projected `[B, K, L, R+2N]`, A = A_logs `[S*C, N]`, dt_weight `[S,
    C, R]`. Rows: x, delta `[B, K*C, L]`, B, C `[B, K, N, L]`, A `[K*C, N]`. bias, skip: `[S*C]`.
    """

    plan: Plan
    x: Tensor
    delta: Tensor
    A: Tensor
    bias: Tensor
    skip: Tensor
    dt_weight: Tensor | None = None
    B: Tensor | None = None
    C: Tensor | None = None
    softplus: bool = True

    @property
    def is_map(self) -> bool:
        return self.dt_weight is not None

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
    def rank(self) -> int:
        return 0 if self.dt_weight is None else self.dt_weight.shape[2]

    def launch_of(self, direction: str) -> Launch:
        sequences, dtype = self.plan.n_sequences, self.x.dtype
        sizes = ScanSizes(self.batch, sequences, self.channels, self.states, dtype)
        return launch_of(direction, sizes, device_facts(self.x.device))

    def arguments(self) -> list[Any]:
        plan = self.plan
        return [
            *(self.x, self.delta, self.B, self.C, self.A, self.dt_weight, self.bias, self.skip),
            *(plan.order, plan.sets),
        ]

    def sizes(self) -> list[int]:
        plan = self.plan
        return [plan.n_tokens, plan.length, plan.n_sequences, self.channels, self.rank]


class DeviceFacts(NamedTuple):
    """What a launch needs to know of a device."""

    target: str  # of the tile table: "cuda:90", "hip:gfx942", "interpreter"
    name: str | None  # as the driver has it, for tiles measured on it
    multiprocessors: int


@lru_cache(maxsize=16)
def device_facts(device: torch.device) -> DeviceFacts:
    """The facts of a device that is here."""
    if device.type != "cuda":
        return DeviceFacts("interpreter", None, 1)
    facts = torch.cuda.get_device_properties(device)
    target = f"cuda:{facts.major}{facts.minor}"
    if torch.version.hip:
        target = f"hip:{facts.gcnArchName.partition(':')[0]}"
    return DeviceFacts(target, facts.name, facts.multi_processor_count)


@dataclass(frozen=True)
class ScanSizes:
    """What of a scan decides how it is launched. `channels` are those of one sequence."""

    batch: int
    sequences: int
    channels: int
    states: int
    dtype: torch.dtype  # of the activations


@dataclass(frozen=True)
class Launch:
    """The kernel of a scan, its tile and the size of its one-dimensional grid.

    Program `row * n_blocks + block` takes a block of channels of row `batch * sequences +
    sequence`, see `kernels/_triton/device.py:place_of_program`.
    """

    kernel: str  # "steps_forward"
    tile: Tile
    n_blocks: int
    n_programs: int

    @property
    def regime(self) -> str:
        return self.kernel.partition("_")[0]


def launch_of(direction: str, sizes: ScanSizes, device: DeviceFacts) -> Launch:
    """What is launched for the "forward" or the "backward" pass of a scan on a device.

    Needs neither tensors nor the device. The kernels that go step by step run where sequences and
    channel blocks alone fill it, `batch * sequences * channel blocks >= 2 * multiprocessors` with
    the blocks of steps_forward: on an H100 (132) from batch 22 on for 96 channels in 4 sequences,
    from batch 6 on for 384.
    """
    regime = _forced_regime.get()
    if regime is None:
        _, _, multiprocessors = device
        steps = _launch("steps_forward", sizes, device)
        is_full = steps.n_programs >= PROGRAMS_PER_PROCESSOR * multiprocessors
        regime = "steps" if is_full else "chunks"
    return _launch(f"{regime}_{direction}", sizes, device)


def _launch(kernel: str, sizes: ScanSizes, device: DeviceFacts) -> Launch:
    target, name, _ = device
    tile = tile_for(kernel, sizes.channels, sizes.states, sizes.dtype, target, name)
    n_blocks = -(-sizes.channels // tile.channels)
    return Launch(kernel, tile, n_blocks, sizes.batch * sizes.sequences * n_blocks)


def is_interpreted() -> bool:
    """Whether Triton runs on the CPU: it reads this variable when a kernel's module is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def regime_of(inputs: ScanInputs) -> str:
    """ "steps" or "chunks": what the launches of these inputs take, see `launch_of`."""
    return inputs.launch_of("forward").regime


@contextmanager
def use_regime(regime: str) -> Iterator[None]:
    """While inside, this thread's launches take "steps" or "chunks" whatever the sizes are."""
    token = _forced_regime.set(regime)
    try:
        yield
    finally:
        _forced_regime.reset(token)


def checkpoints_shape(
    batch: int, sequences: int, length: int, channels: int, states: int
) -> tuple[int, int, int, int, int]:
    """The states before every chunk but the first."""
    return (batch, sequences, (length - 1) // CHECKPOINT, channels, states)


def scan_forward(
    inputs: ScanInputs, keep: bool, with_last: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs, checkpoints (empty unless `keep`) and the last state `[B, K*C, N]` or None.

    Outputs lie like x, or per step `[B, K, L, C]` in float32 where tokens are read several times.
    """
    plan, x = inputs.plan, inputs.x
    chosen = inputs.launch_of("forward")
    kernel, tile = chosen.kernel, chosen.tile
    per_row = (inputs.batch, plan.n_sequences)
    y = outputs(inputs, torch.float32 if plan.is_sum else x.dtype)
    shape = checkpoints_shape(*per_row, plan.length, inputs.channels, inputs.states)
    checkpoints = x.new_empty(shape if keep else 0, dtype=torch.float32)
    last = None
    if with_last:
        last = x.new_empty(inputs.batch, x.shape[1], inputs.states, dtype=torch.float32)
    fixed = constants(
        kernel, tile, inputs.states, inputs.rank, plan.kind, plan.is_sum, inputs.softplus
    )
    arguments = [*inputs.arguments(), y, checkpoints if keep else None, last, *inputs.sizes()]
    launch(kernel, tile, chosen.n_programs, arguments, fixed)
    return y, checkpoints, last


def outputs(inputs: ScanInputs, dtype: torch.dtype) -> Tensor:
    """Memory for one value per step (sum) or per token; zeros where a token is never read."""
    plan, x = inputs.plan, inputs.x
    if plan.is_sum:
        shape = (inputs.batch, plan.n_sequences, plan.length, inputs.channels)
        return x.new_empty(shape, dtype=dtype)
    make = torch.empty_like if plan.reads_all else torch.zeros_like
    return make(x, dtype=dtype)


@dataclass(frozen=True)
class ScanGradients:
    """`x` lies like the outputs; `delta`, B, C like the inputs; parameters `[B, K, C, ...]`."""

    x: Tensor
    delta: Tensor
    B: Tensor | None
    C: Tensor | None
    a: Tensor
    dt_weight: Tensor | None
    bias: Tensor
    skip: Tensor


def scan_backward(inputs: ScanInputs, checkpoints: Tensor, grad_y: Tensor) -> ScanGradients:
    """Gradients of all inputs of the scan.

    What several channel blocks add to (B, C, the factors of dt) is added by atomics, in no fixed
    order, or with `torch.use_deterministic_algorithms(True)` block by block from slices, which
    needs their memory. Everything else is the same in every run.
    """
    plan, x = inputs.plan, inputs.x
    chosen = inputs.launch_of("backward")
    kernel, tile = chosen.kernel, chosen.tile
    n_blocks, n_programs = chosen.n_blocks, chosen.n_programs
    sharing = ALONE
    if n_blocks > 1:
        sharing = PARTIAL if torch.are_deterministic_algorithms_enabled() else ATOMIC

    def shared(like: Tensor) -> Tensor:
        shape = (n_blocks if sharing == PARTIAL else 1, *like.shape)
        make = like.new_zeros if sharing == ATOMIC else like.new_empty
        return make(shape, dtype=torch.float32)

    def per_row(*sizes: int) -> Tensor:
        return x.new_empty(
            inputs.batch, plan.n_sequences, inputs.channels, *sizes, dtype=torch.float32
        )

    starts = None
    if tile.steps < CHECKPOINT:
        parts = CHECKPOINT // tile.steps
        width = tile.channels * tiles.power_of_two(inputs.states)
        starts = x.new_empty(n_programs * parts * width, dtype=torch.float32)
    grad_x = outputs(inputs, torch.float32 if plan.is_sum else x.dtype)
    if inputs.is_map:
        grad_delta, grad_b, grad_c = shared(inputs.delta), None, None
    else:
        assert inputs.B is not None and inputs.C is not None
        grad_delta = torch.empty_like(inputs.delta)
        grad_b, grad_c = shared(inputs.B), shared(inputs.C)
    grad_a, grad_bias, grad_skip = per_row(inputs.states), per_row(), per_row()
    grad_weight = per_row(inputs.rank) if inputs.is_map else None
    fixed = constants(
        kernel, tile, inputs.states, inputs.rank, plan.kind, plan.is_sum, inputs.softplus, sharing
    )
    arguments = [
        *inputs.arguments(),
        *(checkpoints, starts, grad_y, grad_x, grad_delta, grad_b, grad_c),
        *(grad_a, grad_weight, grad_bias, grad_skip),
        *inputs.sizes(),
    ]
    launch(kernel, tile, n_programs, arguments, fixed)
    return ScanGradients(
        x=grad_x,
        delta=_sum_slices(grad_delta) if inputs.is_map else grad_delta,
        B=None if grad_b is None else _sum_slices(grad_b),
        C=None if grad_c is None else _sum_slices(grad_c),
        a=grad_a,
        dt_weight=grad_weight,
        bias=grad_bias,
        skip=grad_skip,
    )


def _sum_slices(shared: Tensor) -> Tensor:
    return shared[0] if shared.shape[0] == 1 else shared.sum(0)


def sum_over_sets(per_row: Tensor, plan: Plan, n_sets: int) -> Tensor:
    """Parameters' gradients `[B, K, ...]` to `[S, ...]`, added in a fixed order."""
    per_sequence = per_row.sum(0)
    if plan.sets_list == tuple(range(n_sets)):
        return per_sequence
    total = per_sequence.new_zeros(n_sets, *per_sequence.shape[1:])
    for sequence, set_ in enumerate(plan.sets_list):
        total[set_] += per_sequence[sequence]
    return total


def launch(
    kernel: str, tile: Tile, n_programs: int, arguments: Sequence[Any], fixed: dict[str, Any]
) -> None:
    """Run `kernel` on the device of the arguments; nothing to do for no programs."""
    if n_programs == 0:
        return
    module = importlib.import_module(MODULES[kernel.partition("_")[0]])
    function = getattr(module, f"{kernel}_kernel")
    with on_device(arguments[0]):
        function[(n_programs,)](
            *arguments, **fixed, num_warps=tile.num_warps, num_stages=tile.num_stages
        )


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, so that of the tensors is made current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
