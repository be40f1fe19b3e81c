"""Several threads on one model: two schemes at once never mix answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import models
from kernels import torch_ops
from models.bench import enliven

N_THREADS = 4
ROUNDS = 12


def test_two_schemes_on_one_model() -> None:
    model = models.create_model("efficientvmamba_test", num_classes=10).eval()
    enliven(model)
    images = [torch.randn(1, 3, 64, 64), torch.randn(2, 3, 48, 80)]
    schemes = ("es2d", "ss2d")
    with torch.no_grad():
        expected = {
            (scheme, i): models.with_scan(model, scheme)(x)
            for scheme in schemes
            for i, x in enumerate(images)
        }
    difference = (expected["es2d", 0] - expected["ss2d", 0]).norm()
    assert difference > 1e-2 * expected["es2d", 0].norm()
    barrier = threading.Barrier(N_THREADS)

    def work(thread: int) -> None:
        scheme = schemes[thread % 2]
        barrier.wait()
        for turn in range(ROUNDS):
            which = (thread // 2 + turn) % 2
            # Made anew each time: making a twin must not disturb who runs.
            net = models.with_scan(model, scheme)
            if turn % 3 == 2:
                # With gradients nothing is folded.
                ours = net(images[which].clone().requires_grad_()).detach()
                cost = models.complexity(net, 32)
                assert cost.scan_macs > 0
            else:
                with torch.no_grad():
                    ours = net(images[which])
            torch.testing.assert_close(ours, expected[scheme, which], rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(N_THREADS) as pool:
        list(pool.map(work, range(N_THREADS)))
    assert str(model.scan_spec) == "es2d:step=2"


def test_models_are_made_in_threads() -> None:
    """Random weights are the seed's, also while other threads draw from torch's generator."""
    names = [models.create_model("efficientvmamba_test", seed=s) for s in range(2)]
    wanted = [m.weights_info.sha256 for m in names]

    def work(thread: int) -> str:
        torch.rand(1000)
        return models.create_model("efficientvmamba_test", seed=thread % 2).weights_info.sha256

    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(work, range(8))) == wanted * 4


class _Indexed(TorchFunctionMode):
    """Parameters that Python code takes parts of with `[]`."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and isinstance(args[0], nn.Parameter):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheme", ["es2d", "ss2d"])
def test_nothing_locks_a_parameter_while_python_waits(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexing and `Function.apply` lock a tensor's autograd data with the interpreter's lock
    held; a thread that records a graph takes the two the other way round, and both stop for ever.
    """
    model = models.create_model("efficientvmamba_test", num_classes=10, scan=scheme)
    given: list[Tensor] = []
    apply = torch_ops._Scan2d.apply

    def watched(*inputs):
        given.extend(t for t in inputs if isinstance(t, Tensor))
        return apply(*inputs)

    monkeypatch.setattr(torch_ops._Scan2d, "apply", watched)
    x = torch.randn(2, 3, 64, 64)
    with _Indexed() as indexed:
        model(x).sum().backward()
        with torch.no_grad():
            model.eval()(x)
    assert indexed.shapes == []
    assert given and not [t.shape for t in given if t.is_leaf and t.requires_grad]
    assert all(p.grad is not None for p in model.parameters())
