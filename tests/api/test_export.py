"""Export files: what goes in comes out, and a changed file ends in one sentence."""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench import export
from workbench.errors import BadInputError
from workbench.export import Bundle, load_results, pack, save_results, to_npz, unpack
from workbench.results import (
    AttributionResult,
    BlockEvidence,
    BlockTime,
    ErfResult,
    OpTime,
    PredictionResult,
    ProfileResult,
    Provenance,
    ScanResult,
)

PROVENANCE = Provenance(
    model="efficientvmamba_tiny",
    weights="random, seed 0",
    weights_sha256="0" * 64,
    is_random=True,
    trained_scan=None,
    scan="es2d:step=2",
    image="chelsea",
    image_sha256="1" * 64,
    crop=(0, 75, 300, 300),
    input_size=(224, 224),
    definition="a test",
    parameters={"step": 2, "sigma": 0.5, "mode": "é", "flag": True, "none": None},
    versions={"torch": "2.14"},
    seed=0,
    seconds=1.5,
)
RESULTS: dict[str, Any] = {
    "scan_a": ScanResult(
        provenance=PROVENANCE,
        stage=2,
        height=2,
        width=2,
        stride=8,
        n_blocks=1,
        has_scan=True,
        note="",
        index=np.array([[0, 1], [2, -1]], np.int32),
        parameter_set=np.array([0, 1], np.int32),
        merge="place",
        is_verified=True,
        disagreement="",
        metrics={"n_pads": 1, "mean_reach": 0.25},
    ),
    "erf_a": ErfResult(
        provenance=PROVENANCE,
        network="Tiny, ES2D",
        unit="stage2.block1.scan",
        unit_label="stage 2, block 1, scan path",
        gates="frozen",
        stage=2,
        y=1,
        x=0,
        rows=2,
        columns=2,
        stride=8,
        centre=(12.0, 4.0),
        definition="mass",
        parts={"objective": "sum of ReLU", "transform": "none"},
        mass=np.full((4, 6), 1 / 24, np.float32),
        raw_sum=2.5,
        radius_px=np.arange(3, dtype=np.float32),
        radial_mass=np.linspace(0, 1, 3, dtype=np.float32),
        radial_low=np.linspace(0, 0.9, 3, dtype=np.float32),
        radial_high=np.linspace(0.1, 1, 3, dtype=np.float32),
        n_images=8,
        n_planned=9,
        image_names=("chelsea", "coffee"),
        skipped=("broken.png: not a picture",),
        metrics={"area50": 0.5, "square99": math.nan},
        metric_low={"area50": 0.4},
        metric_high={"area50": 0.6},
        n_bootstrap=200,
        convergence_n=np.array([1, 8], np.int32),
        convergence_area50=np.array([0.3, 0.5], np.float32),
        convergence_area90=np.array([0.8, 0.9], np.float32),
        convergence_split=np.array([0.4, 0.1], np.float32),
        saturation="",
        reach=np.ones((4, 6), np.uint8),
        reach_share=1.0,
        reach_note="",
    ),
    "attribution": AttributionResult(
        provenance=PROVENANCE,
        target=3,
        target_name="church",
        probability=0.5,
        method="Grad-CAM",
        maps=tuple(np.ones((n, n), np.float32) for n in (4, 2)),
        strides=(4, 8),
        layers=("stages.0", "stages.1"),
        evidence=(
            BlockEvidence(stage=1, block=1, scan=1.0, conv=2.0, residual=3.0, total=6.0, error=0.0),
        ),
    ),
    "prediction": PredictionResult(
        provenance=PROVENANCE,
        classes=("tench", "church"),
        probabilities=np.array([0.25, 0.75], np.float32),
        logits=np.array([0.0, 1.0], np.float32),
    ),
    "profile": ProfileResult(
        provenance=PROVENANCE,
        batch=1,
        warmup=3,
        repeats=10,
        p20_ms=1.0,
        p50_ms=1.25,
        p80_ms=2.0,
        blocks=(BlockTime(stage=1, block=1, name="b", kind="evss", p50_ms=1.0, scan_ms=0.5),),
        ops=(OpTime(name="aten::conv2d", self_ms=0.5, calls=3),),
        max_abs_error=1e-6,
        is_correct=True,
        macs=7.88e8,
        n_parameters=6_493_660,
        scan_tokens=784,
        scan_depth=196,
        clock="perf_counter",
    ),
}


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype and not right.flags.writeable
    elif hasattr(left, "__dataclass_fields__"):
        for name in left.__dataclass_fields__:
            assert_same(getattr(left, name), getattr(right, name))
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, dict):
        assert repr(sorted(left.items())) == repr(sorted(right.items()))
    else:
        assert left == right


def test_every_result_comes_back(tmp_path: Path) -> None:
    extra = {"view": {"model": "efficientvmamba_tiny", "y": None}, "nan": math.nan, "list": [1, 2]}
    save_results(tmp_path / "deep" / "all.zip", RESULTS, extra, {"scan_a": b"\x89PNG"})
    bundle = load_results(tmp_path / "deep" / "all.zip")
    assert bundle.results.keys() == RESULTS.keys()
    for name, result in RESULTS.items():
        assert_same(result, bundle.results[name])
    assert bundle.extra["view"] == extra["view"] and math.isnan(bundle.extra["nan"])
    assert bundle.extra["list"] == (1, 2)
    assert bundle.pictures == {"scan_a": b"\x89PNG"}


def test_same_results_same_bytes() -> None:
    turned = dict(reversed(RESULTS.items()))
    assert pack(RESULTS, {"a": 1, "b": 2}) == pack(turned, {"b": 2, "a": 1})


def test_parts_are_plain_numpy_and_json() -> None:
    with zipfile.ZipFile(io.BytesIO(pack(RESULTS))) as archive:
        text = json.loads(archive.read("scan_a.json"), parse_constant=pytest.fail)
        assert text["$type"] == "ScanResult" and text["provenance"]["crop"] == [0, 75, 300, 300]
        json.loads(archive.read("erf_a.json"), parse_constant=pytest.fail)
    with np.load(io.BytesIO(to_npz(RESULTS["attribution"])), allow_pickle=False) as arrays:
        assert set(arrays) == {"maps.0", "maps.1"}


def test_an_older_file_without_an_optional_field_loads() -> None:
    def forget(record: dict[str, Any]) -> None:
        del record["note"], record["is_final"]

    loaded = unpack(edited("erf_a.json", change_json(forget)))
    assert loaded.results["erf_a"].is_final is True


def edited(member: str, change: Callable[[bytes], bytes | None]) -> bytes:
    """The export with one member changed, or left out where `change` returns None."""
    source, target = io.BytesIO(pack(RESULTS)), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(old.read(name)) if name == member else old.read(name)
            if data is not None:
                new.writestr(name, data)
    return target.getvalue()


def change_json(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        record = json.loads(data)
        change(record)
        return json.dumps(record).encode()

    return apply


def set_field(**values: Any) -> Callable[[bytes], bytes]:
    return change_json(lambda record: record.update(values))


def with_member(name: str, data: bytes = b"", kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO(pack(RESULTS))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a", kind) as archive:
        warnings.simplefilter("ignore")  # a name that is there already
        archive.writestr(name, data)
    return file.getvalue()


def npz(header: bytes, body: bytes = b"") -> bytes:
    """An npz whose only array has a header of one's own."""
    padded = header + b" " * (118 - len(header) - 1) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        array = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body
        archive.writestr("index.npy", array)
    return file.getvalue()


HUGE = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
OBJECT = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
HOSTILE = {
    "no zip": (b"hello", "no zip file"),
    "cut": (pack(RESULTS)[:-200], "The archive"),
    "empty zip": (b"PK\5\6" + bytes(18), "no manifest"),
    "path upwards": (with_member("../evil.json"), "which no export has"),
    "absolute path": (with_member("/etc/x.json"), "which no export has"),
    "other member": (with_member("run.py"), "which no export has"),
    "twice": (with_member("scan_a.json"), "which no export has"),
    "bomb": (with_member("big.json", bytes(10**6), zipfile.ZIP_DEFLATED), "compressed"),
    "other format": (edited("manifest.json", set_field(schema=99)), "format 99"),
    "manifest is a list": (edited("manifest.json", lambda _: b"[]"), "format None"),
    "manifest without results": (edited("manifest.json", set_field(results=3)), "damaged"),
    "result missing": (edited("scan_a.npz", lambda _: None), "no such result"),
    "json cut": (edited("scan_a.json", lambda d: d[:-9]), "scan_a.json is damaged"),
    "json too deep": (edited("scan_a.json", lambda _: b"[" * 10**5), "damaged"),
    "json nested": (edited("scan_a.json", lambda _: b"[" * 99 + b"]" * 99), "damaged"),
    "json of a number": (edited("scan_a.json", lambda _: b"3"), "damaged"),
    "other class": (edited("scan_a.json", set_field(**{"$type": "Popen"})), "unknown type"),
    "class is a list": (edited("scan_a.json", set_field(**{"$type": []})), "unknown type"),
    "other field": (edited("scan_a.json", set_field(code="x")), "no field 'code'"),
    "text for a number": (edited("scan_a.json", set_field(stage="<b>")), "ScanResult.stage"),
    "endless number": (edited("scan_a.json", set_field(stage=10**30)), "ScanResult.stage"),
    "number for an array": (edited("scan_a.json", set_field(index=1)), "ScanResult.index"),
    "field missing": (edited("scan_a.json", change_json(lambda r: r.pop("stage"))), "incomplete"),
    "array missing": (edited("scan_a.json", set_field(index={"$array": "no"})), "missing array"),
    "array is a path": (edited("scan_a.json", set_field(index={"$array": ["/"]})), "missing array"),
    "float is code": (edited("scan_a.json", set_field(stage={"$float": "1e9"})), "damaged"),
    "array of objects": (edited("scan_a.npz", lambda _: npz(OBJECT, b"cos\n.")), "damaged"),
    "array of 4 TB": (edited("scan_a.npz", lambda _: npz(HUGE)), "damaged"),
    "no array": (edited("scan_a.npz", lambda _: npz(b"__import__('os')")), "damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_end_in_one_sentence(case: str) -> None:
    data, words = HOSTILE[case]
    with pytest.raises(BadInputError) as caught:
        unpack(data)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 300


def test_own_mistakes_are_loud(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name"):
        pack({"../a": RESULTS["scan_a"]})
    with pytest.raises(TypeError, match="cannot be exported"):
        pack({}, {"thing": object()})
    with pytest.raises(BadInputError, match="cannot be read"):
        load_results(tmp_path / "none.zip")
    assert isinstance(unpack(pack({})), Bundle) and export.SCHEMA == 2
