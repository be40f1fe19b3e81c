"""The Triton backend's host side, without running a kernel: orders, tiles, shipped variants."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import ScanOrder, scan_order, triton_scan
from kernels._triton import configs, launch, orders, project, tiles
from kernels._triton.configs import STRIDES, TABLE, shipped_configs
from kernels._triton.tiles import CHECKPOINT, KERNELS, Tile, tile_for

CPU = torch.device("cpu")
H100 = ("cuda:90", None, 132)
needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="triton's wheel exists for Linux only"
)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 5), (4, 9)])
@pytest.mark.parametrize(
    "scan", ["es2d:step=1", "es2d:step=2", "es2d:step=3", "es2d:step=4", "ss2d"]
)
def test_known_schemes_are_strides_and_give_their_own_tables(scan: str, size) -> None:
    order = scan_order(scan, *size)
    walks = orders.find_walks(order)
    assert walks is not None and walks.shape == (order.n_sequences, 6)
    assert np.array_equal(orders._tokens_of(walks, order.length), order.index)


def test_a_table_is_taken_for_a_scheme_only_if_it_is_one() -> None:
    order = scan_order("es2d", 4, 6)
    index = order.index.copy()
    same = ScanOrder("mine", index, order.parameter_set, "place", 4, 6)
    assert orders.plan_of(same, CPU).kind == STRIDES
    index[0, :2] = index[0, 1::-1]
    named = ScanOrder("es2d", index, order.parameter_set, "place", 4, 6, {"step": 2})
    plan = orders.plan_of(named, CPU)
    assert plan.kind == TABLE and torch.equal(plan.order, torch.from_numpy(index))
    assert orders.plan_of(named, CPU) is plan


def test_visits_list_every_step_of_a_token_once() -> None:
    index = np.array([[3, 0, -1, 3], [1, 3, 0, -1]])
    order = ScanOrder("mine", index, np.array([0, 0]), "sum", 2, 2)
    assert orders.visits_of(order).tolist() == [[1, 4, -1, 0], [6, -1, -1, 3], [-1, -1, -1, 5]]


def test_few_sequences_scan_chunks_and_many_go_step_by_step(monkeypatch) -> None:
    monkeypatch.setattr(launch, "device_facts", lambda device: H100)
    plan = orders.plan_of(scan_order("es2d", 2, 2), CPU)

    def regime(batch: int, channels: int) -> str:
        x = torch.zeros(batch, 4, channels)
        weights = torch.zeros(4, channels, 3)
        a = torch.zeros(4 * channels, 16)
        inputs = launch.ScanInputs(plan, x, x, a, x, x, dt_weight=weights)
        return launch.regime_of(inputs)

    assert [regime(b, 96) for b in (1, 8, 21, 22, 128)] == ["chunks"] * 3 + ["steps"] * 2
    assert [regime(b, 384) for b in (1, 5, 6)] == ["chunks", "chunks", "steps"]
    with launch.use_regime("steps"):
        assert regime(1, 96) == "steps"
    assert regime(1, 96) == "chunks"


@pytest.mark.parametrize("target", ["cuda:80", "hip:gfx942", "interpreter"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_fit_every_size(kernel: str, target: str) -> None:
    for channels in (1, 5, 96, 384):
        for states in (1, 5, 16, 64, 256):
            tile = tile_for(kernel, channels, states, torch.bfloat16, target)
            assert tile.channels & (tile.channels - 1) == 0
            assert tile.channels < 2 * channels and CHECKPOINT % tile.steps == 0
            assert tile.label == "unmeasured" and tile.num_warps <= 8
            if target.startswith("hip") and kernel.startswith("chunks"):
                # The scan stays inside one wave.
                lanes = tile.channels * tiles.power_of_two(states)
                assert tile.num_warps == 1 or tile.num_warps * tiles.WAVE <= lanes
    listed = tiles.candidates(kernel, 96, 16, torch.float32, target)
    assert listed[0] == tile_for(kernel, 96, 16, torch.float32, target)
    assert len(set(listed)) == len(listed) > 1


def test_measured_tiles_are_kept_and_win(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "tiles.json"
    key = tiles.row_key("steps_forward", 96, 16, torch.bfloat16)
    tiles.save_measured(path, "NVIDIA Thing", {key: Tile(16, 1, 2, 3)})
    monkeypatch.setattr(tiles, "TABLE", path)
    tiles._table.cache_clear()
    try:
        found = tile_for("steps_forward", 100, 16, torch.float16, "cuda:90", "NVIDIA Thing")
        assert found == Tile(16, 1, 2, 3, "measured on NVIDIA Thing")
        other = tile_for("steps_forward", 96, 16, torch.bfloat16, "cuda:90", "NVIDIA Other")
        assert other.label == "unmeasured"
    finally:
        tiles._table.cache_clear()
    assert list(json.loads(path.read_text())["measured"]) == ["NVIDIA Thing"]


@needs_triton
def test_the_shipped_list_fits_the_kernels() -> None:
    for target in ("cuda", "hip"):
        listed = shipped_configs(target)
        assert 12 <= len(listed) <= 24 and len({c.name for c in listed}) == len(listed)
        for config in listed:
            function = getattr(importlib.import_module(config.module), config.function)
            assert list(config.signature) == list(function.arg_names), config.name
            fixed = {name for name, kind in config.signature.items() if kind == "constexpr"}
            assert fixed == set(config.constexprs)
            assert not fixed & set(config.divisible_by_16)


@needs_triton
@pytest.mark.parametrize("regime", ["steps", "chunks"])
@pytest.mark.parametrize(("channels", "rank"), configs.SHIPPED_SCANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_launcher_launches_what_is_shipped(
    monkeypatch, regime: str, channels: int, rank: int, dtype: torch.dtype
) -> None:
    """Types, constants and warps of every launch of a released network's scan are on the list."""
    launched: list[tuple[str, dict, dict]] = []

    class Recorder:
        def __init__(self, function) -> None:
            self.names, self.name = function.arg_names, function.__name__

        def __getitem__(self, grid):
            def run(*arguments, **fixed) -> None:
                given = dict(zip(self.names, arguments, strict=False))
                launched.append((self.name, given, fixed))

            return run

    for name in (*configs.MODULES.values(), "kernels._triton.projection"):
        module = importlib.import_module(name)
        for attribute in [a for a in vars(module) if a.endswith("_kernel")]:
            monkeypatch.setattr(module, attribute, Recorder(getattr(module, attribute)))
    monkeypatch.setattr(launch, "device_facts", lambda device: H100)
    states = configs.SHIPPED_STATES
    tokens = torch.zeros(1, 130, channels, dtype=dtype)
    parameters = (
        torch.zeros(4, rank + 2 * states, channels),
        torch.zeros(4, channels, rank),
        torch.zeros(4, channels),
        torch.zeros(4 * channels, states),
        torch.zeros(4 * channels),
    )
    order = scan_order("es2d", 13, 10, step=2)
    with launch.use_regime(regime):
        _, *saved = triton_scan.scan2d_forward(tokens, *parameters, order, True)
        triton_scan.scan2d_backward(tokens, tokens, *parameters, *saved, order)
    kernels = [f"{regime}_forward", f"{regime}_backward", *list(configs.PROJECTIONS)[:3]]
    assert sorted(name for name, _, _ in launched) == sorted(f"{k}_kernel" for k in kernels)
    for name, given, fixed in launched:
        found = [
            config
            for config in shipped_configs("cuda")
            if config.function == name and _types(given, config) == _pointers(config)
            and {k: v for k, v in config.constexprs.items() if v is not None}
            == {k: v for k, v in fixed.items() if k not in ("num_warps", "num_stages")}
            and (config.num_warps, config.num_stages) == (fixed["num_warps"], fixed["num_stages"])
        ]  # fmt: skip
        assert len(found) == 1, (name, fixed)


def _types(given: dict, config: configs.KernelConfig) -> dict[str, str]:
    names = {**configs.TYPES, torch.int32: "*i32"}
    return {k: names[v.dtype] for k, v in given.items() if isinstance(v, torch.Tensor)}


def _pointers(config: configs.KernelConfig) -> dict[str, str]:
    return {k: v for k, v in config.signature.items() if v.startswith("*")}


def test_saved_shapes_are_those_of_the_launcher() -> None:
    order = scan_order("es2d", 30, 23)
    projected, checkpoints = triton_scan.saved_shapes_scan2d(2, order, 7, 3, 5)
    assert projected == ((2, 4, 180, 13), torch.float32)
    assert checkpoints == ((2, 4, 2, 7, 5), torch.float32)
    assert triton_scan.saved_shapes_selective_scan(2, 3, 7, CHECKPOINT, 5) == (
        (2, 3, 0, 7, 5),
        torch.float32,
    )


def test_without_triton_the_reason_says_what_to_install() -> None:
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'triton' else find(n, *a)\n"
        "sys.modules['triton'] = None\n"
        "import kernels, kernels.triton_scan\n"
        "print(kernels.backends()['triton'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert run.stdout.strip() == "triton is not installed: pip install triton", run.stderr


def test_reasons_name_device_and_type(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not torch.cuda.is_available():
        assert triton_scan.unavailable_reason() == "no CUDA device"
    assert "TRITON_INTERPRET=1" in str(triton_scan.unsuitable_reason(CPU, torch.float32))
    meta = torch.device("meta")
    assert "these are on meta" in str(triton_scan.unsuitable_reason(meta, torch.float32))
    assert "float64" in str(triton_scan.unsuitable_reason(CPU, torch.float64))
    monkeypatch.setattr(triton_scan, "self_check", lambda device: f"wrong on {device}")
    cuda = torch.device("cuda", 1)
    assert triton_scan.unsuitable_reason(cuda, torch.float32) == "wrong on cuda:1"


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_variants_that_do_not_ship_compile(target: str) -> None:
    """Tables, sums over visits, other sizes: the interpreter is no proof that they compile."""
    from kernels import compiled

    variants = []
    for config in compiled.shipped_configs(target):
        is_backward = "backward" in config.name
        changes: list[tuple[str, dict[str, object], tuple[str, ...]]] = []
        if "map" in config.name:
            sizes = {"ORDER_KIND": TABLE, "IS_SUM": True, "STATES": 8, "N_STATES": 5}
            changes.append(("table", sizes, () if is_backward else ("CHECKPOINTS",)))
        if is_backward:
            changes.append(("slices", {"SHARING": configs.PARTIAL}, ()))
            changes.append(("alone", {"SHARING": configs.ALONE, "SOFTPLUS": False}, ()))
        if config.name.startswith("project"):
            changes.append(("table", {"ORDER_KIND": TABLE}, ()))
        for label, fixed, absent in changes:
            gone = dict.fromkeys(absent)
            variants.append(
                replace(
                    config,
                    name=f"{config.name}-{label}",
                    constexprs={**config.constexprs, **fixed, **gone},
                    signature=config.signature | dict.fromkeys(absent, "constexpr"),
                    divisible_by_16=(),
                )
            )
    results = compiled.compile_many([(v, target) for v in variants])
    failed = {c.name: r for c, _, r in results if isinstance(r, compiled.CompileError)}
    assert not failed


def test_gradients_of_float16_are_multiplied_in_float32() -> None:
    assert project._gradient_dtype(torch.float16) == torch.float32
    assert project._gradient_dtype(torch.bfloat16) == torch.bfloat16
