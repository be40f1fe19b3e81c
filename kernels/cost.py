"""What a selective scan costs on paper: bytes, floating-point operations, exponentials.

Nothing here is measured; show these numbers with the label "model". T = B*K*L steps of D channels
and N states, R the rank of dt (0 where dt comes at full width).
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.scan_order import ScanOrder

LABEL = "model"
# Steps between the states that the forward pass stores for the backward pass.
STORED_EVERY = 32


@dataclass(frozen=True)
class ScanCost:
    """One pass over one scan. A multiplication and an addition count one operation each."""

    n_states: int  # state updates, T*D*N
    bytes: int  # the least that must move to and from memory if everything is fused
    flops: int
    exps: int
    label: str = LABEL

    def __add__(self, other: ScanCost) -> ScanCost:
        """Both passes of the same scan."""
        return ScanCost(
            self.n_states,
            self.bytes + other.bytes,
            self.flops + other.flops,
            self.exps + other.exps,
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

    Per step and channel 6N + 2R + 8 operations and N + 2 exponentials (softplus has two).
    """
    steps = batch * sequences * length
    dt_values = rank if rank else channels
    parameters = 4 * sequences * channels * (states + rank + 2)
    return ScanCost(
        n_states=steps * channels * states,
        bytes=activation_bytes * steps * (2 * channels + dt_values + 2 * states) + parameters,
        flops=steps * channels * (6 * states + 2 * rank + 8),
        exps=steps * channels * (states + 2),
    )


def backward_cost(
    batch: int,
    sequences: int,
    length: int,
    channels: int,
    states: int,
    rank: int = 0,
    activation_bytes: int = 4,
) -> ScanCost:
    """The states once more, then the gradients: 18N + 4R + 16 operations per step and channel.

    Reads what the forward pass read, the gradient of y and the stored states; writes the gradients.
    """
    steps = batch * sequences * length
    dt_values = rank if rank else channels
    read = activation_bytes * steps * (2 * channels + dt_values + 2 * states)
    stored = 4 * steps * channels * states // STORED_EVERY
    written = activation_bytes * steps * (channels + dt_values) + 8 * steps * states
    parameters = 8 * sequences * channels * (states + rank + 2)
    return ScanCost(
        n_states=steps * channels * states,
        bytes=read + stored + written + parameters,
        flops=steps * channels * (18 * states + 4 * rank + 16),
        exps=steps * channels * (states + 2),
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
