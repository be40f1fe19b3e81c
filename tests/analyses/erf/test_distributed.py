"""Two processes that share a folder find what one process finds."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.analyses.erf.distributed import join, leave

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("field_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eleven photos, one of them broken: the processes get different numbers of images."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        rgb = np.random.default_rng(i).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(rgb).resize((99, 81), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


Found = dict[int, tuple[dict[str, Any], dict[str, np.ndarray]]]  # facts and arrays by rank


def read(out: Path) -> Found:
    found = {}
    for file in sorted(out.glob("field-*.npz")):
        with np.load(file) as arrays:
            kept = {name: arrays[name] for name in arrays}
        facts = json.loads(str(kept.pop("facts")))
        found[facts["rank"]] = facts, kept
    return found


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    n_threads = torch.get_num_threads()
    runpy.run_path(str(WORKER))["main"](folder, out)
    torch.set_num_threads(n_threads)
    ((facts, arrays),) = read(out).values()
    assert facts["world"] == 1
    return facts, arrays


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory) -> Found:
    out = tmp_path_factory.mktemp("together")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(WORKER), str(folder), str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = read(out)
    assert set(found) == {0, 1} and all(facts["world"] == 2 for facts, _ in found.values())
    return found


def test_two_processes_find_the_same_field(alone, together):
    facts, arrays = alone
    for rank in (0, 1):
        shared, found = together[rank]
        assert found.keys() == arrays.keys() and len(arrays) == 4 * 7
        for name, values in arrays.items():
            # Other batches of images: float32 gradients differ by rounding, nothing else.
            np.testing.assert_allclose(
                found[name], values, rtol=1e-6, atol=1e-7 * np.nanmax(abs(values)), err_msg=name
            )
        for key in ("mass0", "mass1", "openerf0", "openerf1"):
            assert shared[key] == facts[key]
    for name, values in together[0][1].items():
        np.testing.assert_array_equal(values, together[1][1][name])


def test_the_broken_photo_is_named_once(alone, together):
    for facts, _ in (alone, *together.values()):
        field = facts["mass0"]
        assert sorted(field["names"]) == [f"{i}.png" for i in range(10)]
        assert len(field["skipped"]) == 1 and field["skipped"][0].startswith("broken.jpg: ")
        assert field["n"][:2] == [10, 11] and field["n"][2] > 0 and field["is_final"]
        assert "area50" in field["bands"]


def test_sums_keep_type_shape_and_the_callers_arrays(together):
    for facts, _ in together.values():
        assert facts["sums"] == {
            "whole": ["int64", [3, 3, 3]],
            "half": ["float32", [[1.0, 1.0]]],
        }
        assert facts["unchanged"]


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert join() is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join() is None
    leave(None)
