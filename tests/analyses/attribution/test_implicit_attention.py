"""Implicit attention: equal to the derivative of the definition and to a plain loop in float64."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from kernels import ScanOrder, scan2d, scan_order
from kernels.reference import gather_tokens, selective_scan_reference
from workbench.analyses.attribution.implicit_attention import (
    WatchedScan,
    attention_of,
    implicit_attention,
    rescanned,
    watch_scan,
)
from workbench.analyses.reach import ScanInput
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken

SPECS = ["es2d:step=2", "es2d:step=3", "ss2d", "raster", "windows:size=3", "zigma"]
TOLERANCE = 1e-5  # of the largest |alpha|


def definition(watched: WatchedScan, code: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns `[K, C, H * W]` of token `code`, from the scan's definition in float64.

    Rows are derivatives of the outputs at the token by what the sequences read, with dt, B and C
    held; columns are the outputs for an impulse at the token. D is left out in both.
    """
    order, given = watched.order, watched.given
    x, x_proj, dt_projs, bias, A_logs = (t.double() for t in (given.x, *given.parameters[:-1]))
    sets = torch.from_numpy(order.parameter_set.copy())
    n_channels, rank, n_states = x.shape[0], dt_projs.shape[2], A_logs.shape[1]
    xs = gather_tokens(x[None], order)  # [1, K, C, L]
    low, B, C = torch.einsum("bkcl,kpc->bkpl", xs, x_proj[sets]).split(
        [rank, n_states, n_states], dim=2
    )
    dt = F.softplus(torch.einsum("bkrl,kcr->bkcl", low, dt_projs[sets]) + bias[sets][..., None])
    A = -A_logs.exp().view(-1, n_channels, n_states)[sets].flatten(0, 1)

    def scanned(read: torch.Tensor) -> torch.Tensor:
        y, _ = selective_scan_reference(read.flatten(1, 2), dt.flatten(1, 2), A, B, C)
        return y.view_as(xs)[0]

    is_token = torch.from_numpy(order.index == code)[:, None]  # [K, 1, L]
    read = xs.clone().requires_grad_(True)
    (row,) = torch.autograd.grad((scanned(read) * is_token).sum(), read)
    column = scanned(is_token.double().expand(-1, n_channels, -1)[None])
    return on_map(row[0].numpy(), order), on_map(column.numpy(), order)


def on_map(values: np.ndarray, order: ScanOrder) -> np.ndarray:
    """`[K, C, L]` -> `[K, C, H * W]`: all readings of a token added, pads dropped."""
    out = np.zeros((*values.shape[:2], order.n_tokens))
    for k, codes in enumerate(order.index):
        for step, code in enumerate(codes):
            if code >= 0:
                out[k, :, code] += values[k, :, step]
    return out


def made_up(order: ScanOrder, dt: float, n_channels: int = 6, seed: int = 42) -> WatchedScan:
    """A scan of random numbers: A from -1 to -16 and time steps about `dt`."""
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    n_sets, rank, n_states = int(order.parameter_set.max()) + 1, 2, 16
    given = ScanInput(
        "made up",
        random(n_channels, order.height, order.width),
        0.3 * random(n_sets, rank + 2 * n_states, n_channels),
        0.3 * random(n_sets, n_channels, rank),
        torch.full((n_sets, n_channels), float(np.log(np.expm1(dt)))),
        torch.arange(1.0, n_states + 1).log().repeat(n_sets * n_channels, 1),
        random(n_sets * n_channels),
    )
    output = scan2d(given.x[None], *given.parameters, order=order)[0]
    return WatchedScan(1, 1, 4, order, given, output, "auto")


def assert_is_definition(watched: WatchedScan, y: int, x: int) -> None:
    code = y * watched.order.width + x
    row, column = definition(watched, code)
    found = attention_of(watched, y, x)
    shape = (len(found["sequences"]), watched.order.height, watched.order.width)
    for name, expected in (("rows", row), ("columns", column)):
        expected = expected[list(found["sequences"])]
        for suffix, values in (("", expected.mean(1)), ("_size", np.abs(expected).mean(1))):
            assert found[name + suffix].shape == shape
            assert found[name + suffix].dtype == np.float32
            difference = np.abs(found[name + suffix].reshape(values.shape) - values)
            assert difference.max() <= TOLERANCE * np.abs(values).max()
    others = np.setdiff1d(np.arange(watched.order.n_sequences), found["sequences"])
    assert not np.any(row[others]) and not np.any(column[others])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("token", [(0, 0), (3, 5), (9, 12)], ids=str)
def test_rows_and_columns_are_those_of_the_definition(network, photo, spec, token):
    watched = watch_scan(models.with_scan(network, spec), photo(40, 52), 1, 1)
    assert (watched.order.height, watched.order.width) == (10, 13)
    assert_is_definition(watched, *token)


@pytest.mark.parametrize("dt", [1e-3, 0.1, 5.0])
@pytest.mark.parametrize("place", [0, 391, 783])
def test_784_steps_against_a_plain_loop(dt, place):
    """One product per step in float64, from the token outwards; every channel on its own."""
    watched = made_up(scan_order("raster", 28, 28), dt)
    given = watched.given
    x, x_proj, dt_projs, bias, A_logs, _ = (
        t.double().numpy() for t in (given.x, *given.parameters)
    )
    xs = x.reshape(6, 784)
    projected = x_proj[0] @ xs
    steps = np.log1p(np.exp(dt_projs[0] @ projected[:2] + bias[0][:, None]))  # [C, L]
    B, C, A = projected[2:18], projected[18:], -np.exp(A_logs)
    row, column = np.zeros((6, 784)), np.zeros((6, 784))
    left = np.ones((6, 16))
    for j in range(place, -1, -1):
        row[:, j] = (C[:, place] * left * B[:, j]).sum(1) * steps[:, j]
        left = left * np.exp(steps[:, j, None] * A)
    left = np.ones((6, 16))
    for i in range(place, 784):
        if i > place:
            left = left * np.exp(steps[:, i, None] * A)
        column[:, i] = (C[:, i] * left * B[:, place]).sum(1) * steps[:, place]
    for channel in range(6):
        found = attention_of(watched, *divmod(place, 28), channel=channel)
        for name, expected in (("rows", row[channel]), ("columns", column[channel])):
            difference = np.abs(found[name].ravel() - expected)
            assert difference.max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("spec", SPECS)
def test_attention_times_input_and_skip_is_the_operators_output(network, photo, spec):
    watched = watch_scan(models.with_scan(network, spec), photo(40, 52), 1, 1)
    values = watched.given.x.double().numpy()
    for y, x in ((0, 0), (4, 7), (9, 12)):
        found = attention_of(watched, y, x)
        assert found["error"] <= 1e-5
        channel = 3
        alone = attention_of(watched, y, x, channel)
        explained = (alone["rows"] * values[channel]).sum() + alone["skip"] * values[channel, y, x]
        assert explained == pytest.approx(float(watched.output[channel, y, x]), rel=1e-4, abs=1e-6)
        every = [attention_of(watched, y, x, c)["skip"] for c in range(watched.n_channels)]
        assert found["skip"] == pytest.approx(np.mean(every), rel=1e-5)


def test_the_check_sees_an_output_that_is_not_explained(network, photo):
    watched = watch_scan(network, photo(), 1, 1)
    wrong = replace(watched, output=1.25 * watched.output)
    assert attention_of(wrong, 3, 4)["error"] == pytest.approx(0.2, abs=1e-4)


def test_a_table_that_reads_tokens_several_times_or_never():
    order = ScanOrder(
        "mine",
        np.array([[0, 1, 0, 2, -1, 1, 3, 0], [4, 0, 0, -1, 2, 1, 3, 3]]),
        np.array([1, 0]),
        "sum",
        2,
        3,
    )
    watched = made_up(order, 0.2)
    for code in range(5):
        assert_is_definition(watched, *divmod(code, 3))
        assert attention_of(watched, *divmod(code, 3))["error"] <= 1e-5
    assert "Sequence 1 reads this token 3 times" in attention_of(watched, 0, 0)["note"]
    assert attention_of(watched, 0, 2)["note"] == ""
    unread = attention_of(watched, 1, 2)
    assert unread["sequences"] == () and unread["rows"].shape == (0, 2, 3)
    assert unread["error"] == 0.0
    assert "No sequence" in unread["note"]


@pytest.mark.parametrize(("spec", "code", "n_pads"), [("raster", 17, 0), ("windows:size=3", 24, 7)])
def test_decay_is_mean_size_by_steps_back(spec, code, n_pads):
    order = scan_order(spec, 5, 5)
    watched = made_up(order, 0.2)
    row, _ = definition(watched, code)
    found = attention_of(watched, *divmod(code, 5))
    (k,) = found["sequences"]
    place = int(np.flatnonzero(order.index[k] == code)[0])
    assert found["steps"].tolist() == list(range(place + 1))
    assert np.isnan(found["decay"]).sum() == n_pads
    for back, size in zip(found["steps"], found["decay"][0], strict=True):
        code = order.index[k][place - back]
        if code < 0:
            assert np.isnan(size)
        else:
            assert size == pytest.approx(np.abs(row[k, :, code]).mean(), rel=1e-4, abs=1e-7)
    assert np.isnan(attention_of(made_up(scan_order("ss2d", 4, 5), 0.2), 0, 0)["decay"]).any()


def test_the_same_input_under_another_scan(network, photo):
    watched = watch_scan(network, photo(), 1, 1)
    full = rescanned(watched, "ss2d")
    expected = scan2d(
        watched.given.x.double()[None],
        *(p.double() for p in watched.given.parameters),
        order="ss2d",
        backend="reference",
    )[0]
    torch.testing.assert_close(full.output.double(), expected, rtol=1e-4, atol=1e-5)
    assert_is_definition(full, 5, 6)
    assert attention_of(full, 5, 6)["sequences"] == (0, 1, 2, 3)
    with pytest.raises(BadInputError, match="ss2d"):
        rescanned(watched, "vim")
    raster = made_up(scan_order("raster", 4, 4), 0.1)
    with pytest.raises(BadInputError, match="needs 4 parameter sets, the block has 1"):
        rescanned(raster, "ss2d")


def test_what_is_watched_is_the_running_operator(network, photo):
    """A later block, of another stage: input and output are those of a plain forward pass."""
    seen = []
    twin = models.with_scan(network, network.scan_spec)
    name = next(b.name for b in twin.blocks() if b.stage == 2)
    twin.get_submodule(name).op.scan.register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0][0], output[0]))
    )
    with torch.no_grad():
        twin(torch.from_numpy(photo())[None])
    watched = watch_scan(network, photo(), 2, 1)
    torch.testing.assert_close(watched.given.x, seen[0][0])
    torch.testing.assert_close(watched.output, seen[0][1])
    assert watched.given.layer == f"{name}.op" and watched.stride == 8


@pytest.mark.parametrize("scan", [None, "ss2d"])
def test_result(network, photo, provenance, n_hooks, scan):
    before = n_hooks(network)
    result = implicit_attention(
        network, photo(), 1, 1, 3, 4, channel=2, scan=scan, provenance=provenance
    )
    assert n_hooks(network) == before
    assert result.has_scan and (result.height, result.width, result.stride) == (16, 16, 4)
    assert result.rows.shape == (len(result.sequences), 16, 16)
    assert len(result.sequences) == (1 if scan is None else 4)
    assert result.provenance.parameters["rescanned"] == scan
    assert result.provenance.parameters["channel"] == result.channel == 2
    assert result.error <= 1e-5
    kept = watch_scan(network, photo(), 1, 1)
    again = implicit_attention(
        network, photo(), 1, 1, 3, 4, channel=2, scan=scan, watched=kept, provenance=provenance
    )
    np.testing.assert_array_equal(result.rows, again.rows)
    np.testing.assert_array_equal(result.decay, again.decay)


def test_a_stage_of_convolutions(network, photo, provenance):
    result = implicit_attention(network, photo(), 4, 1, 0, 1, provenance=provenance)
    assert not result.has_scan and "no scan" in result.note
    assert result.sequences == () and result.rows.shape == (0, result.height, result.width)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((9, 1, 0, 0, None), "stages 1 to 4"),
        ((1, 7, 0, 0, None), "no block 7 with a scan"),
        ((1, 1, 16, 0, None), "y from 0 to 15"),
        ((1, 1, 0, -1, None), "x from 0 to 15"),
        ((1, 1, 0, 0, 4096), "no channel 4096"),
    ],
)
def test_what_does_not_exist_is_refused(network, photo, provenance, asked, words):
    *place, channel = asked
    with pytest.raises(BadInputError, match=words):
        implicit_attention(network, photo(), *place, channel=channel, provenance=provenance)


def test_other_networks_are_refused(photo, provenance):
    with pytest.raises(BadInputError, match="Choose an EfficientVMamba"):
        implicit_attention(torch.nn.Identity(), photo(), 1, 1, 0, 0, provenance=provenance)


def test_numbers_that_overflow_are_explained(fresh_network, photo, provenance):
    with torch.no_grad():
        fresh_network.layers[0].blocks[0].op.conv2d.weight[0] = float("nan")
    with pytest.raises(BadInputError, match="conv2d"):
        implicit_attention(fresh_network, photo(), 1, 1, 0, 0, provenance=provenance)


def test_stop(network, photo, provenance, n_hooks):
    token = CancelToken()
    token.cancel()
    before = n_hooks(network)
    with pytest.raises(CancelledError):
        implicit_attention(network, photo(), 2, 1, 0, 0, provenance=provenance, token=token)
    assert n_hooks(network) == before


def test_a_row_and_a_column_take_less_than_50_ms(photo):
    """Tiny, 224 px, stage 1 (784 steps), the first click included; time of one core."""
    tiny = models.create_model("efficientvmamba_tiny", seed=0).eval()
    watched = watch_scan(tiny, photo(224, 224), 1, 1)
    assert watched.order.length == 784
    seconds = []
    for place in range(5):
        fresh = replace(watched)
        started = time.thread_time()
        attention_of(fresh, 28 + place, 28)
        seconds.append(time.thread_time() - started)
    assert np.median(seconds) < 0.05
