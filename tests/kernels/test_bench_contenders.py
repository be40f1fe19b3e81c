"""The other ways to scan agree with the definition, in full and in the sample of large shapes."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from kernels import selective_scan
from kernels._bench import gate
from kernels._bench.cases import Case
from kernels._bench.chunked import chunked_selective_scan
from kernels._bench.contenders import CONTENDERS, why_unavailable
from kernels._bench.gate import Exact
from kernels._bench.rows import runner

CASES = [
    Case("tiny", 1, 1, "scan2d", (20, 44)),
    Case("tiny", 2, 3, "scan2d", (56, 40), "ss2d"),
    Case("tiny", 2, 2, "selective_scan", (72, 40)),
]


def error_of(name: str, case: Case, which: str = "forward+backward") -> float:
    exact = Exact(Case(case.model, case.stage, 1, case.operator, case.size, case.order))
    inputs = case.inputs()
    return exact.error(
        *runner(case, CONTENDERS[name], inputs, which, exact.full_grad_y(inputs[0]))()
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["cpu", "chunked", "mambapy", "reference"])
def test_agrees_with_the_reference(name: str, case: Case) -> None:
    reason = why_unavailable(name, torch.device("cpu"))
    if reason is not None:  # only the package from outside may be missing, and says so
        assert reason == "not run: pip install mambapy"
        assert importlib.util.find_spec("mambapy") is None
        return
    assert error_of(name, case) <= 2e-6


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_sample_of_channels_gives_the_same_verdict(case: Case, monkeypatch) -> None:
    monkeypatch.setattr(gate, "FULL_STATES", 0)
    assert error_of("cpu", case) <= 2e-6
    sampled = Exact(Case(case.model, case.stage, 1, case.operator, case.size, case.order))
    monkeypatch.undo()
    full = Exact(Case(case.model, case.stage, 1, case.operator, case.size, case.order))
    assert len(sampled.rows) < len(full.rows)
    torch.testing.assert_close(sampled.y, full.y[:, sampled.rows])


def test_a_gradient_outside_the_sample_counts(monkeypatch) -> None:
    """Channels that the loss does not see must have gradient zero in A, D and the bias."""
    monkeypatch.setattr(gate, "FULL_STATES", 0)
    case = CASES[0]
    exact = Exact(case)
    inputs = case.inputs()
    run = runner(case, CONTENDERS["cpu"], inputs, "forward+backward", exact.full_grad_y(inputs[0]))
    y, gradients = run()
    assert exact.error(y, gradients) <= 2e-6
    spoilt = [g.clone() for g in gradients]
    unseen = next(i for i in range(case.channels) if i not in exact.rows)
    spoilt[5][unseen] += spoilt[5].norm()  # Ds
    assert exact.error(y, spoilt) > 0.1


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
@pytest.mark.parametrize("is_grouped", [True, False], ids=["grouped", "one group"])
def test_chunk_lengths(chunk: int, is_grouped: bool) -> None:
    u, delta, A, B, C, D, bias = (t.double() for t in CASES[2].inputs())
    if not is_grouped:
        B, C = B[:, 0], C[:, 0]
    given = chunked_selective_scan(u, delta, A, B, C, D, bias, True, chunk=chunk)
    exact = selective_scan(u, delta, A, B, C, D, bias, True, backend="reference")
    torch.testing.assert_close(given, exact)
    plain = chunked_selective_scan(u, delta.abs(), A, B, C, chunk=chunk)
    exact = selective_scan(u, delta.abs(), A, B, C, backend="reference")
    torch.testing.assert_close(plain, exact)


def test_long_chunks_of_strong_decay_do_not_overflow() -> None:
    """Where exp(-cumsum) would be infinite: a decay of exp(-40) at each of 64 steps."""
    u, B, C = torch.randn(1, 2, 64), torch.randn(1, 3, 64), torch.randn(1, 3, 64)
    delta, A = torch.full_like(u, 10.0), torch.full((2, 3), -4.0)
    given = chunked_selective_scan(u, delta, A, B, C, chunk=64)
    assert torch.isfinite(given).all()
    torch.testing.assert_close(given, selective_scan(u, delta, A, B, C, backend="reference"))


def test_vmamba_s_extension_is_called_as_vmamba_calls_it(monkeypatch) -> None:
    """Its module replaced by the definition with the same two functions."""

    def fwd(u, delta, A, B, C, D, bias, softplus, n_rows, is_output_float32):
        assert (n_rows, is_output_float32) == (1, True)
        y = selective_scan(u, delta, A, B, C, D, bias, softplus, backend="reference")
        return y, torch.zeros(1)

    def bwd(u, delta, A, B, C, D, bias, grad_y, states, softplus, n_rows):
        leaves = [t.detach().requires_grad_() for t in (u, delta, A, B, C, D, bias)]
        with torch.enable_grad():
            y = selective_scan(*leaves, softplus, backend="reference")
        return *torch.autograd.grad(y, leaves, grad_y), None

    extension = SimpleNamespace(fwd=fwd, bwd=bwd)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda_oflex", extension)
    assert error_of("selective_scan_cuda_oflex", CASES[0]) <= 2e-6
    assert error_of("selective_scan_cuda_oflex", CASES[2]) <= 2e-6


def test_mamba_ssm_is_called_by_its_signature(monkeypatch) -> None:
    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert z is None
        return selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, backend="reference")

    name = "mamba_ssm.ops.selective_scan_interface"
    for parent in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, parent, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(selective_scan_fn=selective_scan_fn))
    assert error_of("mamba_ssm", CASES[0]) <= 2e-6
