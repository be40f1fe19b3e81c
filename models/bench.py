"""`python -m models.bench`: the whole network on this machine, correctness first.

EfficientVMamba-Tiny against timm's `resnet18` as a yardstick that our code cannot move: the same
process, the same threads, runs interleaved. Beside the ratio: the scans' share of the time, and the
arithmetic rate against what one large matrix product reaches here.
"""

from __future__ import annotations

import argparse
import csv
import json
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
from models.complexity import complexity
from models.efficientvmamba import EfficientVMamba, with_scan
from models.layers import Scan2d
from models.registry import create_model, list_models

TOLERANCE = 1e-4  # relative L2 against the reference backend
YARDSTICK = "resnet18"
MATMUL_SIZE = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = create_model(options.model, scan=options.scan, backend=options.backend)
    enliven(model)
    model.eval().to(device)
    error = gate(model, options.size)
    is_correct = error <= TOLERANCE
    environment = describe(model, device)
    print(" · ".join(f"{key} {value}" for key, value in environment.items()))
    verdict = "correct" if is_correct else "WRONG"
    print(f"against the reference backend: relative L2 {error:.1e}, {verdict}")
    if not is_correct:
        print(f"more than {TOLERANCE:.0e}: nothing is timed")
        return 1
    rate = matmul_rate(device)
    print(f"matrix product of {MATMUL_SIZE}: {rate:.0f} GFLOP/s")
    other = timm.create_model(YARDSTICK).eval().to(device)
    rows = []
    for batch in options.batch:
        rows.append(forward_row(model, other, batch, options.size, options.seconds, rate))
        print(sentence(rows[-1]))
    if options.train:
        rows.append(train_row(model, other, 64, options.train, options.seconds, rate))
        print(sentence(rows[-1]))
    report = {"environment": environment, "relative_l2": error, "gflops_matmul": rate, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*environment, *rows[0]])
            writer.writeheader()
            writer.writerows({**environment, **row} for row in rows)
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
    twin = with_scan(model, model.scan_spec)
    for module in twin.modules():
        if isinstance(module, Scan2d):
            module.backend = "reference"
    x = images(2, size, next(model.parameters()).device)
    exact = [t.detach() for t in (*twin.forward_intermediates(x)[1], twin(x))]
    with torch.no_grad():
        ours = [*model.forward_intermediates(x)[1], model(x)]
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True))


def forward_row(
    model: EfficientVMamba, other: nn.Module, batch: int, size: int, seconds: float, rate: float
) -> dict[str, Any]:
    """Forward pass without gradients, interleaved with the yardstick's."""
    x = images(batch, size, next(model.parameters()).device)

    def run(net: nn.Module) -> Callable[[], None]:
        def once() -> None:
            with torch.no_grad():
                net(x)

        return once

    ours, theirs = interleaved([run(model), run(other)], seconds, x.device)
    row = _row(f"forward, batch {batch}, {size} px", ours, theirs, flops(model, x), rate)
    row["scan_share"] = scan_share(model, x)
    return row


def train_row(
    model: EfficientVMamba, other: nn.Module, batch: int, size: int, seconds: float, rate: float
) -> dict[str, Any]:
    """Forward and backward pass in training mode, interleaved with the yardstick's."""
    x = images(batch, size, next(model.parameters()).device)
    labels = torch.arange(batch, device=x.device) % 10

    def run(net: nn.Module) -> Callable[[], None]:
        def once() -> None:
            net.train()
            net.zero_grad(set_to_none=True)
            F.cross_entropy(net(x), labels).backward()

        return once

    ours, theirs = interleaved([run(model), run(other)], seconds, x.device)
    model.eval()
    case = f"forward and backward, batch {batch}, {size} px"
    row = _row(case, ours, theirs, 3 * flops(model, x), rate)
    row["scan_share"] = None
    return row


def flops(model: EfficientVMamba, x: Tensor) -> float:
    """Floating-point operations of a forward pass: a multiply-accumulate of a product is two."""
    cost = complexity(model, (x.shape[2], x.shape[3]))
    return len(x) * (2.0 * (cost.macs - cost.scan_macs) + cost.scan_macs)


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
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            own.append(1e3 * (time.perf_counter() - start))
    return [np.array(own) for own in times]


def scan_share(model: EfficientVMamba, x: Tensor, repeats: int = 5) -> float:
    """Part of a forward pass that is spent inside the scans; median of `repeats`."""
    twin = with_scan(model, model.scan_spec)
    inside = 0.0

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal inside
        _wait(x.device)
        inside -= time.perf_counter()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal inside
        _wait(x.device)
        inside += time.perf_counter()

    for module in twin.modules():
        if isinstance(module, Scan2d):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    shares = []
    with torch.no_grad():
        for _ in range(repeats):
            inside, start = 0.0, time.perf_counter()
            twin(x)
            _wait(x.device)
            shares.append(inside / (time.perf_counter() - start))
    return float(np.median(shares))


def matmul_rate(device: torch.device, repeats: int = 10) -> float:
    """GFLOP/s of a large float32 matrix product, the best of `repeats`."""
    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE, device=device)
    out = torch.empty_like(a)

    def once() -> None:
        torch.mm(a, a, out=out)

    (times,) = interleaved([once], 0.03 * repeats, device)
    return 2e-6 * MATMUL_SIZE**3 / float(times.min())


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


def processor() -> str:
    """The processor's name as its maker writes it."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sentence(row: dict[str, Any]) -> str:
    share = "" if row["scan_share"] is None else f", scans {row['scan_share']:.0%} of it"
    return (
        f"{row['case']}: {row['p50_ms']:.1f} ms "
        f"(p20 {row['p20_ms']:.1f}, p80 {row['p80_ms']:.1f}), "
        f"{YARDSTICK} {row['other_p50_ms']:.1f} ms, ratio {row['ratio']:.2f}{share}; "
        f"{row['gflops']:.0f} GFLOP/s, {row['of_matmul']:.0%} of a matrix product's rate"
    )


def _row(
    case: str, ours: np.ndarray, theirs: np.ndarray, n_flops: float, rate: float
) -> dict[str, Any]:
    p20, p50, p80 = (float(v) for v in np.percentile(ours, [20, 50, 80]))
    q20, q50, q80 = (float(v) for v in np.percentile(theirs, [20, 50, 80]))
    gflops = 1e-6 * n_flops / p50
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
        "gflops": gflops,
        "of_matmul": gflops / rate,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    p.add_argument("--train", type=int, metavar="PIXELS", help="also a training step of 64 images")
    p.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    p.add_argument("--seconds", type=float, default=10.0, help="measuring time of each row")
    p.add_argument("--json", type=Path, help="write the report here")
    p.add_argument("--csv", type=Path, help="write one line per row here")
    return p


if __name__ == "__main__":
    sys.exit(main())
