"""Fused passes against plain torch: odd maps, every activation, and when they stand aside."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from kernels import map_ops

ROOT = Path(__file__).parents[2]
EPS = 1e-5
SHAPES = [
    (2, 9, 7, 48),
    (1, 1, 1, 16),
    (3, 1, 5, 32),
    (1, 2, 2, 96),
    (40, 3, 1, 16),
    (1, 70, 61, 16),  # more rows than one item takes, in more items than threads
]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda v: v,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


def is_close(ours: Tensor, exact: Tensor) -> None:
    assert ours.shape == exact.shape
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-6)
    assert (ours - exact).norm() <= 1e-6 * exact.norm()


@pytest.fixture(params=SHAPES, ids=str)
def x(request: pytest.FixtureRequest) -> Tensor:
    return 3 * torch.randn(request.param)


def test_layer_norm(x: Tensor) -> None:
    c = x.shape[-1]
    weight, bias, gate = torch.randn(c), torch.randn(c), 8 * torch.randn(x.shape)
    for eps in (EPS, 0.5):
        exact = F.layer_norm(x.double(), (c,), weight.double(), bias.double(), eps)
        is_close(map_ops.layer_norm(x, weight, bias, eps), exact)
    gated = exact * F.silu(gate.double())
    is_close(map_ops.layer_norm(x, weight, bias, eps, gate=gate), gated)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_depthwise_and_affine(x: Tensor, activation: str) -> None:
    c, act = x.shape[-1], ACTIVATIONS[activation]
    weight, bias = torch.randn(c, 1, 3, 3), torch.randn(c)
    nchw = x.double().permute(0, 3, 1, 2)
    exact = F.conv2d(nchw, weight.double(), bias.double(), padding=1, groups=c)
    is_close(map_ops.depthwise_conv(x, weight, bias, activation), act(exact.permute(0, 2, 3, 1)))
    scale = torch.randn(c)
    exact = act(x.double() * scale + bias)
    is_close(map_ops.affine_(x, scale, bias, activation), exact)
    is_close(x, exact)


def test_pooling_and_sum(x: Tensor) -> None:
    c = x.shape[-1]
    weight, bias = torch.randn(c), torch.randn(c)
    exact = F.layer_norm(x.double(), (c,), weight.double(), bias.double(), EPS).mean((1, 2))
    is_close(map_ops.normed_mean(x, weight, bias, EPS), exact)
    paths = [torch.randn(x.shape) for _ in range(2)]
    gates = [torch.rand(len(x), 1, 1, c) for _ in range(2)]
    addends = [p.double() * g for p, g in zip(paths, gates, strict=True)]
    is_close(map_ops.gated_sum(x, paths[:1], gates[:1]), x.double() + addends[0])
    is_close(map_ops.gated_sum(x, paths, gates), x.double() + addends[0] + addends[1])


def test_convolution_reads_zeros_beside_infinite_pixels() -> None:
    x = torch.randn(1, 4, 5, 16)
    x[0, 0, 1] = float("inf")
    weight, bias = torch.rand(16, 1, 3, 3), torch.zeros(16)
    exact = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=16)
    torch.testing.assert_close(map_ops.depthwise_conv(x, weight, bias), exact.permute(0, 2, 3, 1))


def test_extreme_numbers() -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, 30.0, -30.0, 200.0, -200.0, 1e30, -1e30] + [1.0] * 7)
    x = x.view(1, 1, 1, 16)
    one, zero = torch.ones(16), torch.zeros(16)
    broken = x.clone()
    broken[..., 3], broken[..., 4] = float("nan"), -float("nan")
    for name, act in ACTIVATIONS.items():
        ours = map_ops.affine_(x.clone(), one, zero, name)
        torch.testing.assert_close(ours, act(x), rtol=1e-5, atol=1e-6)
        ours = map_ops.affine_(broken.clone(), one, zero, name)
        assert torch.isnan(ours).flatten().nonzero().flatten().tolist() == [3, 4], name
    assert torch.isnan(map_ops.layer_norm(broken, one, zero, EPS)).all()


def test_when_they_stand_aside() -> None:
    x, weight = torch.zeros(1, 4, 4, 16), torch.nn.Parameter(torch.zeros(16))
    assert not map_ops.is_usable(x)
    with torch.no_grad():
        assert map_ops.is_usable(x, weight)
        assert not map_ops.is_usable(x.double())
        assert not map_ops.is_usable(x, weight.double())
        assert not map_ops.is_usable(x, None)
        assert not map_ops.is_usable(x.transpose(1, 2).transpose(1, 3))
        assert not map_ops.is_usable(torch.zeros(1, 4, 4, 20))
        assert not map_ops.is_usable(x[0])
        assert not map_ops.is_usable(x[:0])
        assert not map_ops.is_usable(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not map_ops.is_usable(x)
        with FlopCounterMode(display=False):
            assert not map_ops.is_usable(x)
        with torch.device("cpu"):  # a mode that sees every function
            assert not map_ops.is_usable(x)
        seen = []
        torch.vmap(lambda v: seen.append(map_ops.is_usable(v.view(1, 1, 4, 16))) or v)(x[0])
        with torch.autograd.forward_ad.dual_level():
            seen.append(map_ops.is_usable(x))
        assert not any(seen)
    with torch.inference_mode():
        assert map_ops.is_usable(torch.zeros(1, 4, 4, 16), weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_compiled_and_traced_code_holds_the_plain_form() -> None:
    seen: list[bool] = []

    def pick(x: Tensor) -> Tensor:
        seen.append(map_ops.is_usable(x))
        return x + 1

    x = torch.zeros(1, 4, 4, 16)
    with torch.no_grad():
        torch.jit.trace(pick, (x,), check_trace=False)
        assert seen == [False]

        def plain(x: Tensor) -> Tensor:
            return x + 2 if map_ops.is_usable(x) else x + 1

        assert torch.equal(plain(x), x + 2)
        assert torch.equal(torch.compile(plain, backend="eager", fullgraph=True)(x), x + 1)


def test_the_number_of_threads_changes_nothing() -> None:
    x, c = torch.randn(3, 40, 40, 64), 64
    weight, bias, taps = torch.randn(c), torch.randn(c), torch.randn(c, 1, 3, 3)
    gates = [torch.rand(3, 1, 1, c)]

    def results() -> list[Tensor]:
        return [
            map_ops.layer_norm(x, weight, bias, EPS),
            map_ops.normed_mean(x, weight, bias, EPS),
            map_ops.depthwise_conv(x, taps, bias, "gelu"),
            map_ops.affine_(x.clone(), weight, bias, "silu"),
            map_ops.gated_sum(x, [x], gates),
        ]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        torch.set_num_threads(3)
        assert all(map(torch.equal, results(), expected))
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: results(), range(12)):
            assert all(map(torch.equal, made, expected))


def test_a_profiler_shows_them_by_name() -> None:
    x, one = torch.randn(1, 4, 4, 16), torch.ones(16)
    with profile() as recorded:
        map_ops.layer_norm(x, one, one, EPS)
    assert "map_ops::layer_norm" in {e.key for e in recorded.key_averages()}


def test_processes(tmp_path: Path) -> None:
    """No compiler at import, four threads at the first call, a cache, and life without one."""
    code = """
        import sys, threading, torch
        from kernels import map_ops
        assert not any(m.split(".")[0] in ("numba", "llvmlite") for m in sys.modules)
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        x, one = torch.randn(1, 64, 64, 32), torch.ones(32)
        assert map_ops.is_usable(x, one)
        expected = torch.nn.functional.layer_norm(x, (32,), one, one)
        def work():
            for _ in range(20):
                y = map_ops.layer_norm(x, one, one, 1e-5)
                torch.testing.assert_close(y, expected)
            done.append(True)
        def four():
            threads = [threading.Thread(target=work) for _ in range(4)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        done = []
        four()
        from kernels._cpu import run
        print(run.compiled_program("layer_norm", run.MAPS).cache_hits)
        # No other program was compiled on the way.
        assert run._compile.cache_info().currsize == 1
        run._openmp = lambda: None  # as where torch has another pool
        from numba.core import caching
        caching.CacheImpl._locator_classes = []  # as where no folder can be written to
        run._compile.cache_clear()
        four()
        assert len(done) == 8
    """
    for hits in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.split() == [hits]
