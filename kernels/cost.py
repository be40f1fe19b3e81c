"""What a selective scan costs on paper: bytes, floating-point operations, exponentials.

Nothing here is measured; show these numbers with the label "model". T = B*K*L steps of D channels
and N states, R the rank of dt (0 where dt comes at full width).

`floors` divides a cost by the published rates of a GPU: the time that no kernel can beat, for the
memory, for the multiply-adds and for the exponentials. Which one a fused scan in 16 bits meets
first differs: an H100 and an MI300X the exponentials, one for each state and step on a unit with an
eighth of the others' rate; an RTX 4090 its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kernels._triton.tiles import CHECKPOINT
from kernels.gpus import GPUS, Gpu
from kernels.scan_order import ScanOrder

LABEL = "model"
# Steps between the states that the forward pass stores for the backward pass, on a GPU.
STORED_EVERY = CHECKPOINT
# A kernel that is started takes this long whatever it does: about 3 to 5 us from the launch to the
# end of an empty kernel. A floor below says nothing about the time.
LAUNCH_S = 5e-6
Limiter = Literal["memory", "FMA", "exp", "launch latency"]


@dataclass(frozen=True)
class ScanCost:
    """One pass over one scan. A multiplication and an addition count one operation each."""

    n_states: int  # state updates, T*D*N
    bytes: int  # the least that must move to and from memory if everything is fused
    flops: int
    fmas: int  # multiply-adds, additions and products: a fused multiply-add counts once
    exps: int
    serial_steps: int  # steps that wait for each other in a scan that goes step by step
    label: str = LABEL

    def __add__(self, other: ScanCost) -> ScanCost:
        """Both passes of the same scan."""
        return ScanCost(
            self.n_states,
            self.bytes + other.bytes,
            self.flops + other.flops,
            self.fmas + other.fmas,
            self.exps + other.exps,
            self.serial_steps + other.serial_steps,
        )

    @property
    def flops_per_byte(self) -> float:
        return self.flops / self.bytes


def forward_cost(
    batch: int,
    sequences: int,
    length: int,
    channels: int,
    states: int,
    rank: int = 0,
    activation_bytes: int = 4,
) -> ScanCost:
    """Read x, dt (or its R factors), B and C, write y: `s*T*(2D + R + 2N) + 4*K*D*(N + R + 2)`
    bytes.

    Per step and channel 6N + 2R + 8 operations in 4N + R + 8 instructions (per state dt*A, dt*u*B
    and two multiply-adds), and N + 2 exponentials (softplus has two).
    """
    steps = batch * sequences * length
    dt_values = rank if rank else channels
    parameters = 4 * sequences * channels * (states + rank + 2)
    return ScanCost(
        n_states=steps * channels * states,
        bytes=activation_bytes * steps * (2 * channels + dt_values + 2 * states) + parameters,
        flops=steps * channels * (6 * states + 2 * rank + 8),
        fmas=steps * channels * (4 * states + rank + 8),
        exps=steps * channels * (states + 2),
        serial_steps=length,
    )


def backward_cost(
    batch: int,
    sequences: int,
    length: int,
    channels: int,
    states: int,
    rank: int = 0,
    activation_bytes: int = 4,
    stored_every: int = STORED_EVERY,
) -> ScanCost:
    """The states once more, then the gradients: 18N + 4R + 16 operations per step and channel, in
    12N + 2R + 16 instructions (six of the twelve per state are fused multiply-adds).

    Reads what the forward pass read, the gradient of y and the stored states; writes the gradients.
    """
    steps = batch * sequences * length
    dt_values = rank if rank else channels
    read = activation_bytes * steps * (2 * channels + dt_values + 2 * states)
    stored = 4 * steps * channels * states // stored_every
    written = activation_bytes * steps * (channels + dt_values) + 8 * steps * states
    parameters = 8 * sequences * channels * (states + rank + 2)
    return ScanCost(
        n_states=steps * channels * states,
        bytes=read + stored + written + parameters,
        flops=steps * channels * (18 * states + 4 * rank + 16),
        fmas=steps * channels * (12 * states + 2 * rank + 16),
        exps=steps * channels * (states + 2),
        serial_steps=2 * length,
    )


@dataclass(frozen=True)
class CostParts:
    """A cost as numbers of one image: `bytes = batch * (activations * width + bytes) + once`, the
    others times the batch. Fractions are of states stored once in `STORED_EVERY` steps."""

    activations: float  # numbers in the activation's type, `width` bytes each
    bytes: float  # further bytes
    once: float  # bytes however many images there are: the parameters
    flops: float
    fmas: float
    exps: float


def parts(
    cost: Callable[..., ScanCost],
    sequences: int,
    length: int,
    channels: int,
    states: int,
    rank: int = 0,
) -> CostParts:
    """Parts of `forward_cost` or `backward_cost`, from its values at two batches and two widths.

    The batches are multiples of `STORED_EVERY`, where no byte of the stored states is rounded away;
    at any other batch the cost is the rebuilt one, rounded down.
    """
    few, many = STORED_EVERY, 2 * STORED_EVERY

    def at(batch: int, width: int) -> ScanCost:
        return cost(batch, sequences, length, channels, states, rank, width)

    def of_image(width: int) -> float:
        return (at(many, width).bytes - at(few, width).bytes) / (many - few)

    one, activations = at(few, 1), of_image(2) - of_image(1)
    return CostParts(
        activations=activations,
        bytes=of_image(1) - activations,
        once=float(2 * one.bytes - at(many, 1).bytes),
        flops=one.flops / few,
        fmas=one.fmas / few,
        exps=one.exps / few,
    )


def order_cost(
    order: ScanOrder, batch: int, channels: int, states: int, rank: int, activation_bytes: int = 4
) -> ScanCost:
    """`forward_cost` of a scan along `order`; pads are steps like any other."""
    return forward_cost(
        batch, order.n_sequences, order.length, channels, states, rank, activation_bytes
    )


def convention_flops(batch: int, sequences: int, length: int, channels: int, states: int) -> int:
    """The field's count for S6, `9*B*L*(K*D)*N + B*L*(K*D)`: that of a parallel scan with D
    skip."""
    rows = batch * length * sequences * channels
    return 9 * rows * states + rows


@dataclass(frozen=True)
class Floors:
    """The least time that each part of a GPU needs for a cost; the largest is the floor."""

    gpu: str
    memory_s: float
    fma_s: float
    exp_s: float
    limiter: Limiter
    label: str = LABEL

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.fma_s, self.exp_s)

    @property
    def is_meaningful(self) -> bool:
        """Whether the floor is above what starting a kernel takes."""
        return self.limiter != "launch latency"

    @property
    def sentence(self) -> str:
        floor = f"{1e6 * self.seconds:.3g} us on {self.gpu} ({self.label})"
        if not self.is_meaningful:
            return f"latency-bound, floor not meaningful: {floor}, starting a kernel takes longer"
        return f"no kernel is faster than {floor}, limited by {_LIMITS[self.limiter]}"


_LIMITS: dict[Limiter, str] = {
    "memory": "memory bandwidth",
    "FMA": "multiply-add issue",
    "exp": "the special-function unit (exponentials)",
}


def floors(cost: ScanCost, gpu: Gpu | str) -> Floors:
    """What `gpu` (or its name in `GPUS`) needs at least, each unit at its published peak."""
    if isinstance(gpu, str):
        if gpu not in GPUS:
            raise ValueError(f"no rates are known for {gpu!r}; GPUs are {', '.join(GPUS)}")
        gpu = GPUS[gpu]
    times: dict[Limiter, float] = {
        "memory": cost.bytes / gpu.memory_bytes_per_s,
        "FMA": cost.fmas / gpu.fma_per_s,
        "exp": cost.exps / gpu.exp_per_s,
    }
    limiter: Limiter = max(times, key=times.__getitem__)
    if times[limiter] < LAUNCH_S:
        limiter = "launch latency"
    return Floors(gpu.name, times["memory"], times["FMA"], times["exp"], limiter)
