"""The shipped kernels against what they took when they were accepted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kernels import compiled
from kernels._compiled import baseline
from kernels.compiled import BASELINE, BASELINE_TARGETS, CompiledKernel, CompileError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and sys.platform != "linux",
    reason="triton has no package for this system",
)


def few() -> list[tuple[compiled.Config, str]]:
    """Each kernel once in bfloat16 as a network launches it, and one of them on AMD."""
    on_nvidia = {
        config.function: (config, "sm_90")
        for config in compiled.shipped_configs("sm_90")
        if "-map-" in config.name and "bf16" in config.name
    }
    on_amd = [
        (config, "gfx942")
        for config in compiled.shipped_configs("gfx942")
        if config.name.startswith("steps_forward-map-") and "bf16" in config.name
    ]
    return [*on_nvidia.values(), on_amd[0]]


def check(jobs: list[tuple[compiled.Config, str]]) -> None:
    """Nothing spills, everything can be launched, nothing is worse than the stored numbers."""
    results = [result for _, _, result in compiled.compile_many(jobs)]
    assert not [str(result) for result in results if isinstance(result, CompileError)]
    kernels = [result for result in results if isinstance(result, CompiledKernel)]
    assert len(kernels) == len(jobs) > 0
    assert {k.config: k.spill_bytes for k in kernels if k.spill_bytes} == {}
    assert all(kernel.occupancy.blocks >= 1 for kernel in kernels)
    assert all(kernel.exp2_in_loops > 0 for kernel in kernels if kernel.config.startswith("steps"))
    compared = baseline.compare(baseline.read(BASELINE), kernels, is_whole=False)
    assert not compared.failures, "\n".join(compared.failures)


@pytest.mark.parametrize("target", BASELINE_TARGETS)
def test_the_baseline_has_every_shipped_kernel_without_spills(target: str) -> None:
    """A changed tile has a new name: store it on purpose, with --write."""
    stored = baseline.read(BASELINE)
    rows = {config: row[target] for config, row in stored.kernels.items() if target in row}
    assert set(rows) == {config.name for config in compiled.shipped_configs(target)}
    assert {name for name, row in rows.items() if row["spill_bytes"]} == set()


def test_a_few_shipped_kernels_are_as_good_as_the_baseline() -> None:
    jobs = few()
    assert {config.name.partition("-")[0] for config, _ in jobs} >= {
        *("steps_forward", "steps_backward", "chunks_forward", "chunks_backward")
    }
    check(jobs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_shipped_kernels_are_as_good_as_the_baseline() -> None:
    targets = baseline.read(BASELINE).targets
    check([(config, target) for target in targets for config in compiled.shipped_configs(target)])


def test_the_guard_fails_on_a_doctored_baseline(tmp_path: Path, capsys) -> None:
    """The command on a shipped kernel, against numbers that one register was taken from."""
    stored = baseline.read(BASELINE)
    name = next(config.name for config in compiled.shipped_configs("sm_90"))
    before = stored.kernels[name]["sm_90"]["registers"]
    text = BASELINE.read_text(encoding="utf-8")
    path = tmp_path / "doctored.json"
    path.write_text(text.replace(f'"registers": {before},', f'"registers": {before - 1},'))
    arguments = ["--baseline", str(path), "--config", name, "--target", "sm_90"]
    code, out = compiled.main(arguments), capsys.readouterr().out
    if compiled.triton_version() == stored.triton_version:
        assert code == 1
        assert f"WORSE: {name} on sm_90: registers per thread {before - 1} -> {before}" in out
    else:
        assert code == 0 and "only spills fail" in out


def guard(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The command on one shipped kernel: exit status, and what it said."""
    arguments = ["--config", next(iter(few()))[0].name, "--target", "sm_90", "--baseline"]
    status = compiled.main([*arguments, str(path)])
    said = capsys.readouterr()
    return status, said.out + said.err


def changed(path: Path, name: str, by: int, version: str | None = None) -> Path:
    """The stored baseline with every number called `name` changed, perhaps of another triton."""
    content = json.loads(BASELINE.read_text(encoding="utf-8"))
    content["triton"] = version or content["triton"]
    for row in content["kernels"].values():
        for numbers in row.values():
            numbers[name] = numbers[name] + by
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(baseline.GUARDED))
def test_the_guard_fails_whatever_grew_and_passes_what_shrank(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if compiled.triton_version() != baseline.read(BASELINE).triton_version:
        pytest.skip("another triton: only spills fail")
    status, said = guard(changed(tmp_path / "less.json", name, -1), capsys)
    assert status == 1 and "WORSE" in said and baseline.GUARDED[name] in said
    status, said = guard(changed(tmp_path / "more.json", name, 1), capsys)
    assert status == 0 and "WORSE" not in said and baseline.GUARDED[name] in said


def test_another_triton_is_named_and_only_spills_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = guard(changed(tmp_path / "a.json", "registers", -9, version="1.2.3"), capsys)
    assert status == 0 and "the baseline is of 1.2.3: only spills fail" in said


@pytest.mark.parametrize("content", [None, "", "[]", '{"kernels": 3}'])
def test_a_file_that_is_no_baseline_is_a_usage_error(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    status, said = guard(path, capsys)
    assert status == 2 and "other.json" in said


def test_the_guard_needs_no_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache folder that cannot be written, and no temporary one either: it compiles."""
    monkeypatch.setattr("kernels._compiled.cache._is_writable", lambda folder: False)
    status, said = guard(BASELINE, capsys)
    assert status == 0 and "nothing got worse" in said
