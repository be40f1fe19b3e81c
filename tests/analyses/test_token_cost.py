"""A token's cost against the forward kernel itself, in the interpreter, its accesses noted."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from kernels import scan_order
from kernels._triton import launch
from kernels._triton.orders import find_walks
from kernels.compiled import choices
from kernels.cost import forward_cost
from kernels.gpus import GPUS
from tests.kernels import triton_worker as worker
from workbench.analyses.token_cost import DTYPES, facts_of, token_cost, with_instructions
from workbench.errors import BadInputError
from workbench.kernel_results import TokenCost
from workbench.results import UNKNOWN

GPU = "H100 SXM"
CHANNELS, RANK, STATES, SETS = 40, 2, 3, 4


def cost_of(scan: str, height: int, width: int, y: int, x: int, **changes: Any) -> TokenCost:
    setting = {"channels": CHANNELS, "rank": RANK, "states": STATES, "batch": 1}
    setting |= {"dtype": "float32", "gpu": GPU, "provenance": UNKNOWN, **changes}
    return token_cost(scan, height, width, 1, y, x, **setting)


# The kernel in the interpreter


def accesses(scan: str, height: int, width: int, dtype: str, regime: str, batch: int) -> dict:
    """Run the forward kernel as an H100 would and note every lane that is loaded or stored.

    Bytes by what they belong to (the first image's alone), and the programs that load x of each
    token.
    """
    from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

    order = scan_order(scan, height, width)
    plan = launch_plan(order)
    torch.manual_seed(1)
    x = torch.randn(batch, order.n_tokens, CHANNELS).to(DTYPES[dtype])
    row = RANK + 2 * STATES
    projected = torch.randn(batch, order.n_sequences, order.length, row)
    inputs = launch.ScanInputs(
        *(plan, x, projected, torch.randn(SETS * CHANNELS, STATES)),
        *(torch.randn(SETS * CHANNELS), torch.randn(SETS * CHANNELS)),
        dt_weight=torch.randn(SETS, CHANNELS, RANK),
    )
    n_bytes: Counter[str] = Counter()
    programs: dict[int, set[int]] = {}
    where = {"x": x, "projected": projected, "order": plan.order}
    names = np.array(["dt factors"] * RANK + ["B"] * STATES + ["C"] * STATES)

    def note(kind: str, ptrs: Any, mask: Any) -> None:
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        at = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)].astype(np.int64)
        if kind == "store":
            n_bytes["y"] += at.size * size
            return
        for name, tensor in where.items():
            first = tensor.data_ptr()
            inside = at[(at >= first) & (at < first + tensor.nbytes)] - first
            if name == "projected":
                for column, n in Counter((inside // size % row).tolist()).items():
                    n_bytes[str(names[column])] += n * size
            elif inside.size:
                n_bytes[name] += inside.size * size
            if name == "x":
                for token in np.unique(inside // size // CHANNELS).tolist():
                    programs.setdefault(token, set()).add(interpreter_builder.grid_idx[0])

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def masked_load(self, ptrs, mask, *rest):
        note("load", ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def masked_store(self, ptrs, value, mask, *rest):
        note("store", ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    with (
        patch.object(InterpreterBuilder, "create_masked_load", masked_load),
        patch.object(InterpreterBuilder, "create_masked_store", masked_store),
        patch.object(launch, "device_facts", lambda device: facts_of(GPUS[GPU])),
        launch.use_regime(regime),
    ):
        chosen = inputs.launch_of("forward")
        launch.scan_forward(inputs, keep=False)
    return {"bytes": dict(n_bytes), "programs": programs, "n_programs": chosen.n_programs}


def launch_plan(order: Any) -> Any:
    from kernels._triton.orders import plan_of

    return plan_of(order, torch.device("cpu"))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        ProcessPoolExecutor(1, mp_context=spawn, initializer=worker.start) as made,
    ):
        yield made


CASES = [
    ("es2d:step=2", 3, 3, "float32", "steps", 1),  # with pads
    ("es2d:step=2", 2, 4, "bfloat16", "chunks", 1),
    ("es2d:step=3", 2, 2, "float32", "steps", 1),  # sequences of pads alone
    ("ss2d", 2, 3, "bfloat16", "steps", 2),  # outputs per step
    ("ss2d", 3, 2, "float32", "chunks", 1),
    ("hilbert", 4, 2, "bfloat16", "steps", 1),  # a table
    ("snake", 3, 3, "float32", "chunks", 2),
]


@pytest.mark.skipif(sys.platform != "linux", reason="triton's wheel exists for Linux only")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_tokens_add_up_to_what_the_kernel_loads_and_stores(
    pool: ProcessPoolExecutor, case
) -> None:
    scan, height, width, dtype, regime, batch = case
    found = pool.submit(accesses, *case).result(timeout=100)
    with launch.use_regime(regime):
        costs = [cost_of(scan, height, width, y, x, dtype=dtype, batch=batch)
                 for y in range(height) for x in range(width)]  # fmt: skip
    assert {c.regime for c in costs} == {regime}
    assert {c.n_programs for c in costs} == {found["n_programs"]}
    total: Counter[str] = Counter()
    for c in costs:
        total.update(c.loads)
        total.update(c.stores)
    # A step that reads a pad loads all but x; it has an output only where each step has one.
    order = scan_order(scan, height, width)
    n_pads = order.n_pads
    visited = next(c for c in costs if c.visits)
    for name, n in {**visited.loads, **visited.stores}.items():
        if name not in ("x", "y") or (name == "y" and order.merge == "sum"):
            total[name] += n_pads * n // len(visited.visits)
    measured = {name: n for name, n in found["bytes"].items() if name in total}
    if find_walks(order) is not None:
        assert "order" not in total
    assert {name: batch * n for name, n in total.items()} == measured
    for token, c in enumerate(costs):
        listed = {p for visit in c.visits for p in visit.programs}
        assert listed == found["programs"].get(token, set())


# The numbers by hand


def test_a_visit_by_hand() -> None:
    """ES2D with step 2 reads (14, 14) of 28 x 28 in sequence 0, 14 to a row, at (7, 7)."""
    sizes = {"channels": 192, "rank": 6, "states": 16, "dtype": "bfloat16"}
    cost = cost_of("es2d:step=2", 28, 28, 14, 14, batch=128, **sizes)
    assert cost.kernel == "steps_forward-map-rank16-bf16-32x1x1" and cost.target == "sm_90"
    (visit,) = cost.visits
    assert (visit.sequence, visit.step, visit.chunk) == (0, 7 * 14 + 7, 1)
    assert visit.programs == tuple(range(192 // 32)) and cost.n_programs == 128 * 4 * 6
    assert cost.loads == {"x": 384, "dt factors": 6 * 6 * 4, "B": 6 * 64, "C": 6 * 64}
    assert cost.stores == {"y": 384} and cost.state_updates == 192 * 16
    unit = forward_cost(1, 1, 1, 192, 16, 6, 2)
    assert (cost.flops, cost.fmas, cost.exps) == (unit.flops, unit.fmas, unit.exps)
    assert cost.least_bytes == 2 * (2 * 192 + 6 + 32)
    full = cost_of("ss2d", 28, 28, 14, 14, batch=128, **sizes)
    assert [v.sequence for v in full.visits] == [0, 1, 2, 3] and full.exps == 4 * cost.exps
    assert full.stores == {"y": 4 * 192 * 4} and "per step in float32" in full.note
    assert [v.parameter_set for v in full.visits] == [0, 1, 2, 3]


def test_the_batch_and_the_gpu_choose_the_kernel() -> None:
    sizes = {"channels": 96, "rank": 3, "states": 16}
    regimes = [cost_of("es2d:step=2", 56, 56, 0, 0, batch=b, **sizes).regime for b in (21, 22)]
    assert regimes == ["chunks", "steps"], "264 programs of an H100 are 22 images of 4 sequences"
    a100 = cost_of("es2d:step=2", 56, 56, 0, 0, batch=21, gpu="A100 80GB", **sizes)
    assert (a100.regime, a100.target) == ("steps", "sm_80")
    amd = cost_of("es2d:step=2", 56, 56, 0, 0, gpu="MI300X", **sizes)
    assert (amd.regime, amd.target, amd.tile_steps) == ("chunks", "gfx942", 32)
    ada = cost_of("es2d:step=2", 56, 56, 0, 0, gpu="RTX 4090", **sizes)
    assert ada.target == "" and "Nothing is compiled for the RTX 4090" in ada.note


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("channels", "rank"), [(96, 3), (192, 6), (384, 12)])
@pytest.mark.parametrize("gpu", [name for name, gpu in GPUS.items() if gpu.target])
def test_the_kernel_is_one_that_can_be_inspected(gpu, channels, rank, dtype) -> None:
    names = {choice.config.name for choice in choices(GPUS[gpu].target)}
    for batch in (1, 256):
        cost = cost_of("es2d:step=2", 8, 8, 0, 0, gpu=gpu, channels=channels, rank=rank,
                       states=16, batch=batch, dtype=dtype)  # fmt: skip
        assert cost.kernel in names
        assert ("float16 runs" in cost.note) == (dtype == "float16")


def test_every_token_of_every_kind_of_scan_has_its_visits() -> None:
    for scan in ("es2d:step=3", "ss2d", "zigma", "windows:size=2", "bidirectional"):
        order = scan_order(scan, 5, 4)
        for token in range(20):
            cost = cost_of(scan, 5, 4, *divmod(token, 4))
            assert len(cost.visits) == order.visits[token]
            for visit in cost.visits:
                assert order.index[visit.sequence, visit.step] == token
                assert visit.parameter_set == order.parameter_set[visit.sequence]


def test_the_instructions_of_its_kernel_are_added() -> None:
    cost = cost_of("es2d:step=2", 4, 4, 1, 1, channels=96, rank=3, states=16)

    class Kernel:
        config, target = cost.kernel, cost.target
        loop_instructions = {"exp2": 34, "fma": 70}

    assert with_instructions(cost, Kernel()).loop_instructions == {"exp2": 34, "fma": 70}
    Kernel.target = "sm_80"
    with pytest.raises(ValueError, match="for sm_80"):
        with_instructions(cost, Kernel())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": 4}, r"Token \(4, 1\) is not on the map of 4 x 4"),
        ({"x": -1}, "not on the map"),
        ({"gpu": "Voodoo 2"}, "Choose one of: H100 SXM"),
        ({"dtype": "int8"}, "float32, bfloat16, float16"),
        ({"batch": 0}, "at least 1"),
        ({"scan": "cascade2d"}, "another network"),
        ({"scan": "es3d"}, "unknown scan scheme"),
    ],
)
def test_what_has_no_cost_is_refused(changes, words: str) -> None:
    place = {"scan": "es2d:step=2", "y": 1, "x": 1, **changes}
    with pytest.raises(BadInputError, match=words):
        cost_of(place.pop("scan"), 4, 4, place.pop("y"), place.pop("x"), **place)
