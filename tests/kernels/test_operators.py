"""What the public operators accept, what they refuse, and which backend they choose."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import (
    backends,
    resolve_backend,
    scan2d,
    scan_order,
    selective_scan,
    selective_scan_fn,
)


@pytest.fixture
def inputs(scan2d_inputs) -> dict[str, torch.Tensor]:
    names = ("x", "x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
    return dict(zip(names, scan2d_inputs(2, 8, 4, 6, 16, 2), strict=True))


def scan_inputs() -> dict[str, torch.Tensor]:
    return {
        "u": torch.randn(2, 6, 9),
        "delta": torch.randn(2, 6, 9),
        "A": -torch.rand(6, 4),
        "B": torch.randn(2, 3, 4, 9),
        "C": torch.randn(2, 3, 4, 9),
        "D": torch.randn(6),
        "delta_bias": torch.randn(6),
    }


def test_backends_say_why_they_cannot_run() -> None:
    reasons = backends()
    assert list(reasons) == ["reference", "cpu", "triton"]
    assert reasons["reference"] is None and reasons["cpu"] is None
    assert reasons["triton"] is None or len(reasons["triton"]) > 10


def test_auto_takes_the_compiled_kernel_on_a_cpu_and_says_why() -> None:
    assert resolve_backend("auto", "cpu") == ("cpu", "compiled kernel for this processor")
    name, reason = resolve_backend("auto", torch.device("cpu"), torch.float64)
    assert name == "reference" and "float64" in reason
    assert resolve_backend("auto", "meta")[0] == "reference"
    assert resolve_backend("reference", "cpu") == ("reference", "asked for by name")


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "error", "message"),
    [
        ("cuda", "cpu", torch.float32, ValueError, "unknown backend 'cuda'; known are auto"),
        ("cpu", "cuda", torch.float32, RuntimeError, "these are on cuda"),
        ("cpu", "cpu", torch.float64, RuntimeError, "float64"),
    ],
)
def test_a_named_backend_runs_or_raises(backend, device, dtype, error, message) -> None:
    with pytest.raises(error, match=message):
        resolve_backend(backend, device, dtype)


def test_float64_on_auto_goes_to_the_reference(inputs) -> None:
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    y = scan2d(**doubles)
    assert y.dtype == torch.float64
    assert torch.equal(y, scan2d(**doubles, backend="reference"))
    with pytest.raises(RuntimeError, match="float64"):
        scan2d(**doubles, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_format_follows_the_input(inputs, backend) -> None:
    is_last = {"memory_format": torch.channels_last}
    given = inputs["x"]
    assert given.is_contiguous(**is_last)
    y = scan2d(**inputs, backend=backend)
    assert y.is_contiguous(**is_last)
    wide = torch.randn(2, 8, 4, 12)[..., ::2]
    wide.copy_(given)
    for x in (given.contiguous(), wide):
        assert torch.equal(scan2d(**{**inputs, "x": x}, backend=backend), y)


def test_strides_of_selective_scan_do_not_matter() -> None:
    given = scan_inputs()
    y = selective_scan(**given, backend="cpu")
    turned = {
        name: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t
        for name, t in given.items()
    }
    assert torch.equal(selective_scan(**turned, backend="cpu"), y)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_empty_batch_gives_an_empty_answer(inputs, backend) -> None:
    x = inputs["x"][:0].clone().requires_grad_()
    weight = inputs["x_proj_weight"].clone().requires_grad_()
    y = scan2d(**{**inputs, "x": x, "x_proj_weight": weight}, backend=backend)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any()
    empty = {n: t[:0] if t.dim() > 2 else t for n, t in scan_inputs().items()}
    assert selective_scan(**empty, backend=backend).shape == (0, 6, 9)


def test_autocast_does_not_reach_into_the_scan(inputs) -> None:
    expected = scan2d(**inputs, backend="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scan2d(**inputs, backend="cpu"), expected)
        exact = scan2d(**inputs, backend="reference")
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-5)


def test_order_can_be_a_name_a_text_a_specification_or_a_table(inputs) -> None:
    expected = scan2d(**inputs, order="es2d", step=3)
    for order in (
        "es2d:step=3",
        kernels.ScanSpec("es2d", {"step": 3}),
        scan_order("es2d", 4, 6, step=3),
    ):
        assert torch.equal(scan2d(**inputs, order=order), expected)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("x", lambda t: t[0], ValueError, r"x must be \[batch, channels, height, width\]"),
        ("x", lambda t: t[:, :, :0], ValueError, r"given \[2, 8, 0, 6\]"),
        ("x", lambda t: t.long(), TypeError, "x is torch.int64; allowed are float16"),
        ("x", lambda t: t.tolist(), TypeError, "x must be a tensor; given list"),
        ("x", lambda t: t.to_sparse(), TypeError, "x is torch.sparse_coo; give a dense tensor"),
        (
            "x",
            lambda t: t[:, :5],
            ValueError,
            r"dt_projs_weight must be \[parameter sets, 5, rank\]",
        ),
        ("x_proj_weight", lambda t: t[:, 1:], ValueError, r"x_proj_weight must be \[4, 34, 8\]"),
        ("dt_projs_weight", lambda t: t[0], ValueError, "dt_projs_weight must be"),
        ("dt_projs_bias", lambda t: t[:, :3], ValueError, r"dt_projs_bias must be \[4, 8\]"),
        ("A_logs", lambda t: t[:5], ValueError, r"A_logs must be \[32, states\]"),
        ("Ds", lambda t: t[None], ValueError, r"Ds must be \[32\] \(parameter sets \* channels\)"),
        ("Ds", lambda t: t.to("meta"), ValueError, "Ds is on meta, x on cpu"),
    ],
)
def test_scan2d_names_the_argument_that_is_wrong(inputs, name, change, error, message) -> None:
    with pytest.raises(error, match=message):
        scan2d(**{**inputs, name: change(inputs[name])})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u", lambda t: t[0], r"u must be \[batch, channels, length\].* given \[6, 9\]"),
        ("delta", lambda t: t[:, :, :4], r"delta must be \[2, 6, 9\]"),
        ("A", lambda t: t[:3], r"A must be \[6, states\]"),
        ("B", lambda t: t[0, 0], r"B must be \[batch, groups, states, length\]"),
        ("B", lambda t: t[:, :, :2], r"B must be \[2, 3, 4, 9\]"),
        ("B", lambda t: t.repeat(1, 2, 1, 1)[:, :4], "4 groups, which do not divide"),
        ("B", lambda t: t[:, 0, :3], r"B must be \[2, 4, 9\]"),
        ("C", lambda t: t[:, :1], r"C must be \[2, 3, 4, 9\] \(the shape of B\)"),
        ("D", lambda t: t[:2], r"D must be \[6\]"),
        ("A", lambda t: t[:, :0], r"A must be \[6, states\]"),
        (
            "B",
            lambda t: torch.zeros(6, 4),
            "B is .6, 4.: mamba_ssm's form without steps is not sup",
        ),
        (
            "C",
            lambda t: torch.zeros(6, 4),
            "C is .6, 4.: mamba_ssm's form without steps is not sup",
        ),
        ("u", lambda t: t[:, :, :0], r"u must be .*given \[2, 6, 0\]"),
        ("delta", lambda t: t.to("meta"), "delta is on meta, u on cpu; move all to one device"),
        ("delta_bias", lambda t: t[None], r"delta_bias must be \[6\]"),
    ],
)
def test_selective_scan_names_the_argument_that_is_wrong(name, change, message) -> None:
    given = scan_inputs()
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**given, name: change(given[name])})


def test_an_order_that_does_not_fit_is_refused(inputs) -> None:
    with pytest.raises(ValueError, match=r"order is for a map of 6 x 4 tokens; x has 4 x 6"):
        scan2d(**inputs, order=scan_order("es2d", 6, 4))
    with pytest.raises(TypeError, match="step given beside a finished ScanOrder"):
        scan2d(**inputs, order=scan_order("es2d", 4, 6), step=2)
    with pytest.raises(ValueError, match="no parameter 'size'"):
        scan2d(**inputs, size=2)
    with pytest.raises(TypeError, match="a scan is a name .* given NoneType"):
        scan2d(**inputs, order=None)
    two_sets = {
        "x": inputs["x"],
        **{name: inputs[name][:2] for name in list(inputs)[1:4]},
        **{name: inputs[name][:16] for name in ("A_logs", "Ds")},
    }
    with pytest.raises(ValueError, match="uses parameter set 3; the weights have sets 0 to 1"):
        scan2d(**two_sets)
    assert scan2d(**two_sets, step=1).shape == inputs["x"].shape


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_complex_parameters_are_refused_by_name(name) -> None:
    given = scan_inputs()
    with pytest.raises(TypeError, match=f"{name} is torch.complex64: mamba_ssm's complex form"):
        selective_scan(**{**given, name: given[name].to(torch.complex64)})


def test_the_gate_is_checked() -> None:
    given = scan_inputs()
    with pytest.raises(ValueError, match=r"z must be \[2, 6, 9\] \(the shape of u\)"):
        selective_scan(**given, z=given["u"][:, :3])
    with pytest.raises(TypeError, match="z must be a tensor; given float"):
        selective_scan(**given, z=1.0)


@pytest.mark.parametrize("softplus", [True, False])
def test_gate_and_last_state_agree_with_the_reference(softplus, with_gradients, check_all) -> None:
    given = scan_inputs()
    inputs = [*given.values(), torch.randn(2, 6, 9)]

    def run(backend: str):
        def function(u, delta, A, B, C, D, bias, z):
            return selective_scan(u, delta, A, B, C, D, bias, softplus, z=z, backend=backend)

        return function

    grad_y = torch.randn(2, 6, 9)
    check_all(
        with_gradients(run("cpu"), inputs, grad_y),
        with_gradients(run("reference"), inputs, grad_y, torch.float64),
    )
    states = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = {k: v.to(dtype).requires_grad_() for k, v in given.items()}
        y, last = selective_scan(
            **leaves, delta_softplus=softplus, return_last_state=True, backend=backend
        )
        assert last.shape == (2, 6, 4) and last.dtype == torch.float32 and not last.requires_grad
        assert torch.equal(y, selective_scan(**leaves, delta_softplus=softplus, backend=backend))
        states.append(last)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


def test_last_state_of_any_size() -> None:
    """Channels and states that fill no vector; a length that fills no chunk."""
    for rows, states, length in ((17, 5, 1), (40, 16, 200)):
        u, delta = torch.randn(2, 2 * rows, length), torch.rand(2, 2 * rows, length)
        A = -torch.rand(2 * rows, states)
        B, C = torch.randn(2, 2, 2, states, length).unbind(0)
        given = selective_scan(u, delta, A, B, C, return_last_state=True, backend="cpu")
        exact = selective_scan(u, delta, A, B, C, return_last_state=True, backend="reference")
        for ours, theirs in zip(given, exact, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mambas_name_and_order_of_arguments() -> None:
    u, delta, A, B, C, D, bias = scan_inputs().values()
    z = torch.randn_like(u)
    y, last = selective_scan_fn(u, delta, A, B, C, D, z, bias, True, True)
    expected = selective_scan(u, delta, A, B, C, D, bias, True, z=z, return_last_state=True)
    assert torch.equal(y, expected[0]) and torch.equal(last, expected[1])
    assert torch.equal(selective_scan_fn(u, delta, A, B, C), selective_scan(u, delta, A, B, C))
    # Mamba's own B and C have no groups.
    plain, grouped = B[:, 0], C[:, :1]
    torch.testing.assert_close(
        selective_scan(u, delta, A, plain, grouped), selective_scan(u, delta, A, B[:, :1], C[:, 0])
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_gate_is_rounded_once(dtype, tolerance, relative_l2) -> None:
    given = {k: v.to(dtype) for k, v in scan_inputs().items()}
    z = torch.randn(2, 6, 9, dtype=dtype)
    y = selective_scan(**given, z=z, backend="cpu")
    exact = selective_scan(
        **{k: v.double() for k, v in given.items()}, z=z.double(), backend="reference"
    )
    assert y.dtype == dtype and relative_l2(y, exact) <= tolerance[dtype]


def test_tensors_without_data_get_shapes(inputs) -> None:
    shapes = {name: tensor.to("meta") for name, tensor in inputs.items()}
    assert scan2d(**shapes).shape == inputs["x"].shape
    y, last = selective_scan(
        **{k: v.to("meta") for k, v in scan_inputs().items()}, return_last_state=True
    )
    assert y.is_meta and y.shape == (2, 6, 9) and last.shape == (2, 6, 4)
    with pytest.raises(RuntimeError, match="these are on meta. Use backend='auto'"):
        scan2d(**shapes, backend="cpu")


@pytest.mark.parametrize("name", ["x", "x_proj_weight", "dt_projs_bias", "A_logs", "Ds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4])
@pytest.mark.parametrize("order", ["es2d", "ss2d"])
def test_bad_and_huge_numbers_come_through_scan2d(inputs, name, value, order) -> None:
    """Where the reference is finite, the same; where not, not: A_logs 1e4 is A = -inf, dt huge."""
    inputs[name] = inputs[name].clone()
    inputs[name][(0,) * inputs[name].dim()] = value
    exact = scan2d(**{k: v.double() for k, v in inputs.items()}, order=order, backend="reference")
    given = scan2d(**inputs, order=order, backend="cpu")
    is_finite = exact.isfinite()
    assert torch.equal(given.isfinite(), is_finite)
    scale = float(exact[is_finite].abs().max()) if is_finite.any() else 1.0
    torch.testing.assert_close(
        given[is_finite].double(), exact[is_finite], rtol=1e-4, atol=1e-5 * max(1.0, scale)
    )


def test_a_path_of_another_network_is_refused(inputs) -> None:
    other = next(name for name in kernels.SCHEMES if not kernels.ScanSpec(name).is_runnable)
    with pytest.raises(ValueError, match="is the path of another network and cannot be scanned"):
        scan2d(**inputs, order=other)
