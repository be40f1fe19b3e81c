"""`python -m models.bench`: the whole network on this machine, correctness first.

EfficientVMamba-Tiny against timm's `resnet18` as a yardstick that our code cannot move: the same
process, the same threads, runs interleaved; forward passes and training steps (forward, backward,
AdamW). Beside the ratio: the scans' share of the time, and the arithmetic rate against what one
large matrix product reaches in the same turns. A row takes `--seconds` after its warm-up.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import resolve_backend
from kernels._bench.report import processor, write
from models.complexity import complexity
from models.efficientvmamba import EfficientVMamba, with_scan
from models.layers import Scan2d
from models.registry import create_model, list_models
from models.scan_share import scan_share, wait

TOLERANCE = 1e-4  # relative L2 against the reference backend
YARDSTICK = "resnet18"
MATMUL_SIZE = 1024
BACKWARD_PASSES = 2  # a backward pass has two products for each one of the forward pass


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = create_model(options.model, scan=options.scan, backend=options.backend)
    enliven(model)
    model.eval().to(device)
    errors = {"relative_l2": gate(model, options.size)}
    if options.train_batch:
        errors["relative_l2_gradients"] = gradient_gate(model, options.train_size)
    # `not <=` also catches NaN.
    is_correct = all(error <= TOLERANCE for error in errors.values())
    environment = describe(model, device)
    print(" · ".join(f"{key} {value}" for key, value in environment.items()))
    measured = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"against the reference backend: {measured}: {'correct' if is_correct else 'WRONG'}")
    if not is_correct:
        print(f"more than {TOLERANCE:.0e}: nothing is timed")
        return 1
    other = timm.create_model(YARDSTICK).eval().to(device)
    rows = []
    for batch in options.batch:
        rows.append(forward_row(model, other, batch, options.size, options.seconds))
        print(sentence(rows[-1]), flush=True)
    for batch in options.train_batch:
        rows.append(train_row(model, other, batch, options.train_size, options.seconds))
        print(sentence(rows[-1]), flush=True)
    write(options.out, "models", environment, rows, errors)
    return 0


def enliven(model: EfficientVMamba, seed: int = 0) -> None:
    """Weights of the size that training gives, so that an error in a scan shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not hasattr(parameter, "_no_weight_decay"):
                fan_in = parameter[0].numel() if parameter.dim() != 3 else parameter.shape[-1]
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)


def gate(model: EfficientVMamba, size: int) -> float:
    """Largest relative L2 difference of a stage output or the logits from the reference.

    The reference scans on the reference backend and, because gradients are on, takes no shortcut.
    """
    twin = reference_twin(model)
    x = images(2, size, next(model.parameters()).device)
    exact = [t.detach() for t in (*twin.forward_intermediates(x)[1], twin(x))]
    with torch.no_grad():
        ours = [*model.forward_intermediates(x)[1], model(x)]
    return _largest_error(list(zip(ours, exact, strict=True)))


def gradient_gate(model: EfficientVMamba, size: int) -> float:
    """Relative L2 difference of a training step's gradients from those of the reference backend:
    of all parameters together, or of a parameter of the scans if that is larger."""
    x = images(2, size, next(model.parameters()).device)
    scan_parameters = model.no_weight_decay()
    found: list[dict[str, Tensor]] = []
    for net in (model, reference_twin(model)):
        net.zero_grad(set_to_none=True)
        # The same random draws in both: stochastic depth.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            F.cross_entropy(net.train()(x), torch.arange(2, device=x.device)).backward()
        found.append({k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None})
        net.zero_grad(set_to_none=True)
    model.eval()
    ours, exact = found
    assert ours.keys() == exact.keys(), "the two networks differ in what has a gradient"
    groups = [list(exact), *([name] for name in scan_parameters)]
    ours_flat, exact_flat = (
        [torch.cat([g[name].flatten() for name in names]) for names in groups] for g in found
    )
    return _largest_error(list(zip(ours_flat, exact_flat, strict=True)))


def _largest_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Relative L2; NaN if one is, which `max` could lose."""
    return float(np.max([float((given - exact).norm() / exact.norm()) for given, exact in pairs]))


def reference_twin(model: EfficientVMamba) -> EfficientVMamba:
    """The same parameters with the scans on the reference backend."""
    twin = with_scan(model, model.scan_spec)
    for module in twin.modules():
        if isinstance(module, Scan2d):
            module.backend = "reference"
    return twin


def forward_row(
    model: EfficientVMamba, other: nn.Module, batch: int, size: int, seconds: float
) -> dict[str, Any]:
    """Forward pass without gradients, interleaved with the yardstick's."""
    x = images(batch, size, next(model.parameters()).device)

    def run(net: nn.Module) -> Callable[[], None]:
        def once() -> None:
            with torch.no_grad():
                net(x)

        return once

    runs = [run(model), run(other), matrix_product(x.device)]
    times = interleaved(runs, seconds, x.device)
    row = _row(f"forward, batch {batch}, {size} px", times, model, x)
    row["scan_share"] = scan_share(model, x)
    return row


def train_row(
    model: EfficientVMamba, other: nn.Module, batch: int, size: int, seconds: float
) -> dict[str, Any]:
    """A training step (forward, backward, AdamW) interleaved with the yardstick's."""
    x = images(batch, size, next(model.parameters()).device)
    runs = [training_step(model, x), training_step(other, x), matrix_product(x.device)]
    times = interleaved(runs, seconds, x.device)
    case = f"training step, batch {batch}, {size} px"
    row = _row(case, times, model, x, n_passes=BACKWARD_PASSES + 1)
    row["scan_share"] = scan_share(model, x, training_step)
    for net in (model, other):
        net.eval().zero_grad(set_to_none=True)
    return row


def training_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    labels = torch.arange(len(x), device=x.device) % 10
    # So small a rate that the weights stay what they were compared with.
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-8, fused=True)

    def once() -> None:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return once


def interleaved(
    runs: Sequence[Callable[[], None]], seconds: float, device: torch.device
) -> list[np.ndarray]:
    """Milliseconds of each run, taken in turns for about `seconds` after two rounds of warm-up."""
    for _ in range(2):
        for run in runs:
            run()
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for own, run in zip(times, runs, strict=True):
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            own.append(1e3 * (time.perf_counter() - start))
    return [np.array(own) for own in times]


def matrix_product(device: torch.device) -> Callable[[], None]:
    """A large float32 matrix product. It takes turns with the networks: what else the machine does
    slows all of them."""
    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE, device=device)
    out = torch.empty_like(a)

    def once() -> None:
        torch.mm(a, a, out=out)

    return once


def images(batch: int, size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, size, size, generator=generator).to(device)


def describe(model: EfficientVMamba, device: torch.device) -> dict[str, str]:
    """Everything that a number depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    backend, reason = resolve_backend(model.backend, device)
    return {
        "model": model.default_cfg["architecture"],
        "scan": str(model.scan_spec),
        "backend": f"{backend} ({reason})",
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def sentence(row: dict[str, Any]) -> str:
    return (
        f"{row['case']}: {row['p50_ms']:.1f} ms "
        f"(p20 {row['p20_ms']:.1f}, p80 {row['p80_ms']:.1f}), "
        f"{YARDSTICK} {row['other_p50_ms']:.1f} ms, ratio {row['ratio']:.2f}, "
        f"scans {row['scan_share']:.0%} of it; "
        f"{row['gflops']:.0f} of a matrix product's {row['gflops_matmul']:.0f} GFLOP/s "
        f"({row['of_matmul']:.0%})"
    )


def _row(
    case: str,
    times: Sequence[np.ndarray],
    model: EfficientVMamba,
    x: Tensor,
    n_passes: int = 1,
) -> dict[str, Any]:
    """`times` of the network, the yardstick and the matrix product."""
    ours, theirs, product = times
    p20, p50, p80 = (float(v) for v in np.percentile(ours, [20, 50, 80]))
    q20, q50, q80 = (float(v) for v in np.percentile(theirs, [20, 50, 80]))
    cost = complexity(model, (x.shape[2], x.shape[3]))
    macs = n_passes * len(x) * cost.macs
    # A multiply-accumulate of a product is two operations, the scans' count is in operations.
    flops = 2 * macs - n_passes * len(x) * cost.scan_macs
    gflops = 1e-6 * flops / p50
    rate = 2e-6 * MATMUL_SIZE**3 / float(np.median(product))
    return {
        "case": case,
        "n": len(ours),
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "other": YARDSTICK,
        "other_p20_ms": q20,
        "other_p50_ms": q50,
        "other_p80_ms": q80,
        "ratio": p50 / q50,
        "macs": macs,
        "gflops": gflops,
        "gflops_matmul": rate,
        "of_matmul": gflops / rate,
    }


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m models.bench", description=(__doc__ or "").partition(":")[2].strip()
    )
    p.add_argument("--model", default="efficientvmamba_tiny", choices=list_models())
    p.add_argument("--scan", default="es2d", help="scan scheme, e.g. es2d:step=2 or ss2d")
    p.add_argument("--backend", default="auto", help="kernel backend")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--size", type=int, default=224, help="image side in pixels")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images per pass")
    p.add_argument(
        "--train-batch", type=int, nargs="*", default=[32, 64], help="images per training step"
    )
    p.add_argument("--train-size", type=int, default=128, help="image side of training steps")
    p.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    p.add_argument("--seconds", type=float, default=10.0, help="measuring time of each row")
    p.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for models.{json,csv}"
    )
    return p


if __name__ == "__main__":
    sys.exit(main())
