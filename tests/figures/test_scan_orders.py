"""Order tables on their way to the browser: without loss, short, thinned only where it is said."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import kernels
from tests.figures.conftest import scan_result
from workbench.figures.scan import encode_order, own_spacing, scheme_json

SCRIPT = Path(__file__).parents[2] / "workbench" / "ui" / "components" / "scan_path.js"


def decoded(scheme: dict) -> np.ndarray:
    """The table as the browser's code reads it."""
    program = (
        "const window = globalThis;"
        f"{SCRIPT.read_text()}\nconst {{ decodeOrder }} = WorkbenchParts.path();"
        "let text = ''; process.stdin.on('data', (part) => (text += part));"
        "process.stdin.on('end', () => console.log(JSON.stringify("
        "decodeOrder(JSON.parse(text)).map((s) => [...s]))));"
    )
    answer = subprocess.run(
        ["node", "-e", program],
        input=json.dumps(scheme),
        capture_output=True,
        text=True,
        check=True,
    )
    return np.array(json.loads(answer.stdout))


def shortest_form(index: np.ndarray) -> str:
    return next(key for key in ("runs", "steps", "bytes") if key in encode_order(index)[0])


def z_order(side: int) -> np.ndarray:
    """Morton order of a square map by its definition: bits of y and x interleaved."""
    y, x = np.divmod(np.arange(side * side), side)
    bits = np.arange(side.bit_length())
    code = (((y[:, None] >> bits) & 1) << (2 * bits + 1)) | (((x[:, None] >> bits) & 1) << 2 * bits)
    return np.argsort(code.sum(1), kind="stable").astype(np.int32)


INDICES = {
    "es2d": scan_result("es2d:step=2").index,
    "es2d with pads": scan_result("es2d:step=3", 52).index,
    "ss2d": scan_result("ss2d").index,
    "z-order": z_order(16)[None],
    "random": np.random.default_rng(0).permutation(56 * 56).astype(np.int32)[None],
    "random with pads": np.random.default_rng(1).permutation(300).astype(np.int32)[None] - 1,
    "class token": np.array([[0, 1, -2, 2, 3], [3, 2, -2, 1, 0]], np.int32),
    "one token": np.zeros((1, 1), np.int32),
    "three bytes": np.array([[0, 70_000, 3, 66_000, 5, 1, 69_999]], np.int32),
}


@pytest.mark.parametrize("name", INDICES)
def test_orders_decode_without_loss_in_the_browser_code(name: str) -> None:
    index = INDICES[name]
    scheme = {"length": index.shape[1], "sequences": encode_order(index)}
    np.testing.assert_array_equal(decoded(scheme), index)


@pytest.mark.parametrize(
    ("name", "form"), [("ss2d", "runs"), ("z-order", "steps"), ("random", "bytes")]
)
def test_each_kind_of_order_takes_its_shortest_form(name: str, form: str) -> None:
    assert shortest_form(INDICES[name]) == form


def test_a_large_curve_takes_half_a_byte_a_step() -> None:
    encoded = encode_order(z_order(256)[None])
    assert len(json.dumps(encoded)) < 45_000


def test_every_scheme_decodes_without_loss_on_an_odd_map() -> None:
    tables = {name: kernels.scan_order(name, 9, 14).index for name in kernels.scan_orders()}
    for name, index in tables.items():
        scheme = {"length": index.shape[1], "sequences": encode_order(index)}
        np.testing.assert_array_equal(decoded(scheme), index, err_msg=name)


def test_the_shortest_move_is_the_schemes_own_spacing() -> None:
    assert own_spacing(scan_result("es2d:step=3").index, 16) == 3
    assert own_spacing(scan_result("ss2d").index, 16) == 1
    assert own_spacing(np.zeros((1, 1), np.int32), 1) == 0


def test_of_thousands_of_groups_only_those_that_read_are_sent() -> None:
    result = scan_result("es2d:step=64", 64)
    assert result.index.shape[0] == 4096
    # A budget that no thinning keeps, as every sequence is one step long.
    scheme = scheme_json("a", result, budget=1000)
    groups = np.array(scheme["groups"]) - 1
    assert len(groups) == len(scheme["sequences"]) == len(scheme["parameter_set"]) == 256
    np.testing.assert_array_equal(decoded(scheme), result.index[groups])
    assert (result.index[groups] >= 0).all()
    assert "groups" not in scheme_json("a", scan_result("ss2d", 64))


def test_an_order_over_its_budget_is_thinned_and_says_so() -> None:
    from dataclasses import replace

    rng = np.random.default_rng(0)
    index = np.stack([rng.permutation(4096) for _ in range(4)]).astype(np.int32)
    result = replace(scan_result("ss2d", 256), index=index)
    whole, thinned = scheme_json("a", result), scheme_json("a", result, budget=20_000)
    assert whole["every"] == 1
    assert thinned["every"] > 1
    assert len(json.dumps(thinned["sequences"])) <= 20_200  # with the spaces that dump leaves out
    assert thinned["length"] == 4096
    np.testing.assert_array_equal(decoded(thinned), index[:, :: thinned["every"]])
