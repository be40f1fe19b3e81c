"""The scan alone: its fused kernel on projections that are there already, what the floors cost.

`scan2d` also projects every token to dt's factors, B and C; here these are computed once, outside.
Where outputs of several visits are added up, that is part of the call, as is the conversion of
16-bit inputs where a backend computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels._bench.cases import DRAWN_IMAGES
from kernels._bench.gate import SAMPLED_CHANNELS, relative_l2
from kernels._cpu import launch as cpu
from kernels._triton import launch as gpu
from kernels._triton import orders, project
from kernels.reference import gather_tokens, put_back, selective_scan_reference
from kernels.scan_order import ScanOrder

SETS = 4  # parameter sets of the networks' operators
# Channels are all compared up to so many state updates of one image, else some of them.
FULL_STATES = 200_000
BACKENDS = ("cpu", "triton", "reference")
# x and grad_y `[B, T, C]`, projected `[B, K, L, R+2N]`, dt_weight `[S, C, R]`, bias, skip `[S*C]`,
# A_logs `[S*C, N]`.
NAMES = ("x", "projected", "dt_weight", "bias", "A_logs", "skip")


@dataclass(frozen=True)
class AloneSizes:
    """An order, sizes, the type of the activations; the forward pass or both."""

    order: ScanOrder
    batch: int
    channels: int
    rank: int
    states: int
    dtype: torch.dtype = torch.float32
    is_training: bool = False

    @property
    def n_states(self) -> int:
        """State updates of one forward pass, B*K*L*D*N."""
        return self.batch * self.order.index.size * self.channels * self.states

    @property
    def n_bytes(self) -> int:
        """About the most memory of one call: maps, per-step outputs, projections, stored states,
        and their gradients."""
        steps = self.order.index.size
        maps = 4 * self.order.n_tokens * self.channels
        per_step = 4 * steps * self.channels if self.order.merge == "sum" else 0
        projected = 4 * steps * (self.rank + 2 * self.states)
        stored = 4 * steps * self.channels * self.states // gpu.CHECKPOINT
        passes = 2 if self.is_training else 1
        return self.batch * (passes * (2 * maps + per_step + projected) + stored)


class ScanAlone:
    """Seeded inputs of one scan, of the size that training gives, and its kernel on them.

    `run()` is one call; it does not wait for a GPU. `compare()` gives the relative L2 distance from
    the float64 reference. ValueError for a backend that is not one of `BACKENDS` or an order that
    belongs to another network.
    """

    def __init__(self, sizes: AloneSizes, backend: str, device: torch.device) -> None:
        if backend not in BACKENDS:
            raise ValueError(
                f"{backend} has no scan alone; it is measured for {', '.join(BACKENDS)}"
            )
        sizes.order.check_runnable()
        self.sizes, self.backend, self.device = sizes, backend, device
        inputs, grad_y = _inputs(sizes)
        self.inputs = [t.to(device) for t in inputs]
        self.grad_y = grad_y.to(device)
        # "steps" or "chunks" of the Triton kernel; "": the launcher's choice.
        self.regime = ""

    @staticmethod
    def regime_of(sizes: AloneSizes, backend: str, device: torch.device) -> str:
        """What the Triton launcher chooses for a scan of these sizes; "" of another backend."""
        if backend != "triton":
            return ""
        n_sequences = sizes.order.n_sequences
        of_launch = gpu.ScanSizes(
            sizes.batch, n_sequences, sizes.channels, sizes.states, sizes.dtype
        )
        return gpu.launch_of("forward", of_launch, gpu.device_facts(device)).regime

    def run(self) -> tuple[Tensor, ...]:
        """The output `[B, T, C]`; with training also gradients of the inputs in `NAMES`' order."""
        return self._run(self.grad_y)

    def _run(self, grad_y: Tensor) -> tuple[Tensor, ...]:
        call = _CALLS[self.backend]
        with gpu.use_regime(self.regime) if self.regime else nullcontext():
            return call(self.sizes, self.inputs, grad_y)

    def compare(self) -> float:
        """Largest distance of output and gradients of the first image from the float64 answer.

        Of a large scan some channels, spread evenly, are compared: the gradients of a loss that
        sees only these, over all steps and all inputs, the zeros of other channels included. NaN if
        anything is not finite.
        """
        sizes = self.sizes
        channels = torch.arange(sizes.channels)
        if sizes.n_states // sizes.batch > FULL_STATES:
            channels = torch.linspace(0, sizes.channels - 1, SAMPLED_CHANNELS).long().unique()
        seen = torch.zeros_like(self.grad_y)
        at = channels.to(self.device)
        seen[0, :, at] = self.grad_y[0, :, at]
        given = [t.cpu() for t in self._run(seen)]
        exact = _exact(sizes, [t.cpu() for t in self.inputs], seen.cpu(), channels)
        # One image: of the others, everything that reaches the loss is zero.
        pairs = [(given[0][:1, :, channels], exact[0])]
        for i, (ours, theirs) in enumerate(zip(given[1:], exact[1:], strict=True)):
            pairs.append((ours[:1], theirs) if i < 2 else (ours, theirs))
        if not all(bool(t.isfinite().all()) for t in given):
            return float("nan")
        return max(relative_l2(ours, theirs) for ours, theirs in pairs)


def _inputs(sizes: AloneSizes) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    order, channels, states, rank = sizes.order, sizes.channels, sizes.states, sizes.rank
    n_sets = max(SETS, int(order.parameter_set.max()) + 1)
    drawn = min(sizes.batch, DRAWN_IMAGES)
    which = torch.arange(sizes.batch) % max(1, drawn)
    x = normal(drawn, order.n_tokens, channels).to(sizes.dtype)
    weight = normal(n_sets, rank + 2 * states, channels) / channels**0.5
    sets = torch.from_numpy(order.parameter_set.copy())
    # [B, C, H, W] as the definition wants it -> [B, K, L, R+2N].
    xs = gather_tokens(_as_map(x.float(), order), order)
    projected = torch.einsum("bkcl,kpc->bklp", xs, weight[sets]).contiguous()
    decay = torch.log(torch.arange(1, states + 1.0)).repeat(n_sets * channels, 1)
    inputs = [
        x[which],
        projected[which],
        normal(n_sets, channels, rank) / rank**0.5,
        0.5 * normal(n_sets * channels) - 3,
        decay + 0.1 * normal(*decay.shape),
        1 + 0.1 * normal(n_sets * channels),
    ]
    return inputs, normal(drawn, order.n_tokens, channels)[which].to(sizes.dtype)


def _as_map(tokens: Tensor, order: ScanOrder) -> Tensor:
    """`[B, T, C]` to `[B, C, H, W]`."""
    return tokens.transpose(1, 2).unflatten(2, (order.height, order.width))


Call = Callable[[AloneSizes, Sequence[Tensor], Tensor], tuple[Tensor, ...]]


def _cpu_call(sizes: AloneSizes, inputs: Sequence[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
    tokens, projected, dt_weight, bias, a_logs, skip = inputs
    plan = cpu.plan_of(sizes.order)
    x = tokens.float()
    scan = cpu.ScanInputs(plan, x, a_logs, skip, bias, projected=projected, dt_weight=dt_weight)
    y = plan.outputs(x)
    if not sizes.is_training:
        cpu.scan_forward(scan, y, None)
        return (y.to(sizes.dtype),)
    length = sizes.order.length
    shape = cpu.checkpoint_shape(
        sizes.batch, plan.n_sequences, length, sizes.channels, sizes.states
    )
    checkpoints = x.new_empty(shape)
    cpu.scan_forward(scan, y, checkpoints)
    grad_x = plan.outputs(x)
    grads = cpu.scan_backward(scan, checkpoints, grad_y.float().contiguous(), grad_x)
    assert grads.projected is not None and grads.dt_weight is not None
    n_sets = dt_weight.shape[0]
    of_weight, of_bias, of_a, of_skip = (
        plan.sum_over_sets(t, n_sets) for t in (grads.dt_weight, grads.bias, grads.a, grads.skip)
    )
    return (
        y.to(sizes.dtype),
        grad_x.to(sizes.dtype),
        grads.projected,
        of_weight,
        of_bias.flatten(),
        of_a.reshape(a_logs.shape) * -torch.exp(a_logs),
        of_skip.flatten(),
    )


def _gpu_inputs(sizes: AloneSizes, inputs: Sequence[Tensor]) -> gpu.ScanInputs:
    x, projected, dt_weight, bias, a_logs, skip = inputs
    plan = orders.plan_of(sizes.order, x.device)
    return gpu.ScanInputs(plan, x, projected, a_logs, bias, skip, dt_weight=dt_weight)


def _gpu_call(sizes: AloneSizes, inputs: Sequence[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
    scan = _gpu_inputs(sizes, inputs)
    plan, x = scan.plan, scan.x
    y, checkpoints, _ = gpu.scan_forward(scan, keep=sizes.is_training)
    y = project.merge(y, plan, x.dtype) if plan.is_sum else y
    if not sizes.is_training:
        return (y,)
    grads = gpu.scan_backward(scan, checkpoints, grad_y.contiguous())
    grad_x = project.merge(grads.x, plan, x.dtype) if plan.is_sum else grads.x
    assert grads.dt_weight is not None and scan.dt_weight is not None
    n_sets = scan.dt_weight.shape[0]

    def of(per_row: Tensor, like: Tensor) -> Tensor:
        return gpu.sum_over_sets(per_row, plan, n_sets).reshape(like.shape)

    return (
        y,
        grad_x,
        grads.delta,
        of(grads.dt_weight, scan.dt_weight),
        of(grads.bias, scan.bias),
        of(grads.a, scan.A),
        of(grads.skip, scan.skip),
    )


def _reference_call(
    sizes: AloneSizes, inputs: Sequence[Tensor], grad_y: Tensor
) -> tuple[Tensor, ...]:
    if not sizes.is_training:
        with torch.no_grad():
            return (_scan(sizes, inputs).to(sizes.dtype),)
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        y = _scan(sizes, leaves)
        return y.detach().to(sizes.dtype), *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))


_CALLS: dict[str, Call] = {"cpu": _cpu_call, "triton": _gpu_call, "reference": _reference_call}


def _exact(
    sizes: AloneSizes, inputs: Sequence[Tensor], grad_y: Tensor, channels: Tensor
) -> tuple[Tensor, ...]:
    """Output `[1, T, some channels]` of the first image in float64, and gradients of all inputs."""
    leaves = [t[:1] if i < 2 else t for i, t in enumerate(inputs)]
    leaves = [t.detach().double().requires_grad_(sizes.is_training) for t in leaves]
    with torch.set_grad_enabled(sizes.is_training):
        y = _scan(sizes, leaves, channels)
    if not sizes.is_training:
        return (y,)
    seen = grad_y[:1, :, channels].double()
    return y.detach(), *torch.autograd.grad(y, leaves, seen)


def _scan(sizes: AloneSizes, inputs: Sequence[Tensor], channels: Tensor | None = None) -> Tensor:
    """The definition for these channels (None: all): `[B, T, channels]` in the inputs' precision.

    Differentiable; float32 where x has 16 bits.
    """
    x, projected, dt_weight, bias, a_logs, skip = inputs
    order, rank, states = sizes.order, sizes.rank, sizes.states
    sets = torch.from_numpy(order.parameter_set.copy()).to(x.device)
    n_sets, n_channels = dt_weight.shape[:2]
    c = torch.arange(n_channels) if channels is None else channels
    c = c.to(x.device)
    dtype = projected.dtype
    xs = gather_tokens(_as_map(x.to(dtype)[:, :, c], order), order)  # [B, K, c, L]
    dt, b, c_out = projected.transpose(2, 3).split([rank, states, states], dim=2)
    delta = torch.einsum("bkrl,kcr->bkcl", dt, dt_weight[:, c][sets])

    def of_rows(parameter: Tensor) -> Tensor:
        return parameter.unflatten(0, (n_sets, n_channels))[:, c][sets].flatten(0, 1)

    ys, _ = selective_scan_reference(
        xs.flatten(1, 2),
        delta.flatten(1, 2),
        of_rows(-torch.exp(a_logs)),
        b,
        c_out,
        of_rows(skip),
        of_rows(bias),
        delta_softplus=True,
    )
    y = put_back(ys.unflatten(1, (order.n_sequences, len(c))), order)
    return y.flatten(2).transpose(1, 2)
