"""Kernels compiled for GPUs on a machine without one, and the guard against worse ones."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from kernels import compiled
from kernels._compiled import baseline, cache, pool
from kernels._compiled.assembly import count_amdgcn, count_sass
from kernels._compiled.cache import Cache
from kernels._compiled.targets import occupancy
from kernels._triton.configs import KernelConfig
from kernels.compiled import TARGETS, CompiledKernel, CompileError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and sys.platform != "linux",
    reason="triton has no package for this system",
)

DECAY = KernelConfig(
    name="decay",
    module="tests.kernels.compiled_kernels",
    function="decay_kernel",
    signature={"X": "*bf16", "A": "*fp32", "Y": "*bf16", "length": "i32"},
    constexprs={"N": 16, "CHANNELS": 32},
    num_warps=1,
    num_stages=1,
    divisible_by_16=("X", "A", "Y"),
)
ONCE = replace(DECAY, name="once", function="decay_once_kernel")
SPILLING = replace(DECAY, name="spilling", constexprs={"N": 32, "CHANNELS": 128})
WRONG = replace(DECAY, name="wrong", function="wrong_kernel", constexprs={"N": 16, "CHANNELS": 64})
MISNAMED = replace(DECAY, name="misnamed", signature={**DECAY.signature, "Z": "*fp32"})
JOBS = [(DECAY, target) for target in TARGETS]
JOBS += [(ONCE, "gfx942")]
JOBS += [(config, "sm_90") for config in (ONCE, SPILLING, WRONG, MISNAMED)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[tuple[str, str], CompiledKernel | CompileError]:
    """All of JOBS by one process: what fails must not stop what follows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # as other tests set it; a compiler cannot use it
        found = list(compiled.compile_many(JOBS, n_processes=1, cache=Cache(folder)))
    return {(config.name, target): result for config, target, result in found}


@pytest.fixture
def kernel(results) -> CompiledKernel:
    return results["decay", "sm_90"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_has_its_numbers_for_every_target(results, target: str) -> None:
    kernel = results["decay", target]
    assert isinstance(kernel, CompiledKernel), kernel
    assert (kernel.config, kernel.target) == ("decay", target)
    assert 16 < kernel.registers < 128
    assert kernel.spill_bytes == kernel.stack_bytes == 0
    assert kernel.num_warps == 1
    assert kernel.binary_bytes > 1000
    assert kernel.triton_version == compiled.triton_version()
    assert kernel.compile_s > 0 and sum(kernel.stage_ms.values()) <= 1.1e3 * kernel.compile_s
    # [32, 16] states on one warp of 32 or wave of 64: 16 or 8 exponentials a step, and the body
    # may be unrolled.
    per_step = 32 * 16 // TARGETS[target].warp_size
    assert kernel.exp2_in_loops in (per_step, 2 * per_step)
    assert kernel.instructions["load"] >= 2 and kernel.instructions["store"] >= 1
    assert kernel.instructions["fma"] >= 2 * per_step
    assert kernel.instructions["shuffle"] > 0  # the sum over states
    assert kernel.instructions["atomic"] == kernel.instructions["local"] == 0
    assert per_step < kernel.instructions_in_loops < kernel.n_instructions
    assert kernel.occupancy.warps >= 16 and 0 < kernel.occupancy.fraction <= 1
    with pytest.raises(FrozenInstanceError):
        kernel.registers = 0


@pytest.mark.parametrize("target", TARGETS)
def test_every_stage_has_its_text(results, target: str) -> None:
    texts = results["decay", target].texts
    machine = ["ptx", "sass"] if TARGETS[target].vendor == "NVIDIA" else ["amdgcn"]
    assert list(texts) == ["source", "ttir", "ttgir", "llir", *machine]
    assert texts["source"].startswith('"""Small kernels')
    for stage in list(texts)[1:]:
        assert "compiled_kernels.py" in texts[stage], f"{stage} has no line numbers"
        assert str(Path(__file__).parents[2]) not in texts[stage]
    assert list(results["decay", target].stage_ms)[:3] == ["front end", "ttir", "ttgir"]


def test_an_exponential_before_the_loop_is_not_in_it(results) -> None:
    once = results["once", "sm_90"]
    assert once.instructions["exp2"] == 16 and once.exp2_in_loops == 0


def test_a_tile_that_spills_is_a_result_with_the_compilers_words(results) -> None:
    spilling = results["spilling", "sm_90"]
    assert spilling.registers == 255 and spilling.stack_bytes > 0
    stores, loads = re.findall(r"(\d+) bytes spill", spilling.compiler_log)
    assert spilling.spill_bytes == int(stores) + int(loads) > 0
    assert spilling.instructions["local"] > 0


def test_a_tile_that_does_not_compile_says_why(results) -> None:
    error = results["wrong", "sm_90"]
    assert isinstance(error, CompileError) and error.kind == "compiler"
    assert "wrong on sm_90" in str(error)
    assert "incompatible dimensions at index 0: 64 and 16" in str(error)
    assert "differ in: Z" in str(results["misnamed", "sm_90"])


def test_a_cached_kernel_is_equal_and_fast(results, folder: Path, monkeypatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("nothing is to be compiled")

    monkeypatch.setattr(pool._Worker, "_start", start)
    started = time.perf_counter()
    again = compiled.compile_config(DECAY, "sm_90", cache=Cache(folder))
    assert time.perf_counter() - started < 0.5
    assert again == results["decay", "sm_90"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", gzip.compress(b"{}"), gzip.compress(b'{"occupancy": 3}'), "half"],
    ids=["empty", "not compressed", "other content", "other types", "cut off"],
)
def test_a_damaged_file_is_no_file(kernel, tmp_path: Path, damage: bytes | str) -> None:
    store = Cache(tmp_path)
    store.put("key", kernel)
    (path,) = tmp_path.iterdir()
    assert store.get("key") == kernel
    path.write_bytes(path.read_bytes()[:500] if isinstance(damage, str) else damage)
    assert store.get("key") is None


def test_the_cache_is_bounded(kernel, tmp_path: Path, monkeypatch) -> None:
    Cache(tmp_path).put("size", kernel)
    size = next(tmp_path.iterdir()).stat().st_size
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3 * size)
    for i in range(6):
        Cache(tmp_path).put(str(i), kernel)
    assert len(list(tmp_path.iterdir())) == 3
    assert Cache(tmp_path).get("5") == kernel


def test_a_folder_that_cannot_be_written_is_replaced(monkeypatch, tmp_path: Path, kernel) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")  # a folder below a file cannot be made, not even by root
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    assert cache.default_cache().folder.is_relative_to(tmp_path)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(blocked))
    assert cache.default_cache().folder is None
    for store in (Cache(None), Cache(blocked / "below")):
        store.put("key", kernel)
        assert store.get("key") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache.default_cache().folder.is_relative_to(tmp_path / "cache")


def test_the_key_knows_the_source_and_what_it_imports(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "some_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "maths.py").write_text("x = 1\n")
    (package / "scan.py").write_text("import json\nfrom . import maths\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = replace(DECAY, module="some_kernels.scan")
    files = [path.name for path in cache.source_files(config)]
    assert files == ["__init__.py", "maths.py", "scan.py"]
    keys = [cache.cache_key(config, "sm_90", "3.8.0")]
    keys.append(cache.cache_key(config, "sm_80", "3.8.0"))
    keys.append(cache.cache_key(config, "sm_90", "3.9.0"))
    keys.append(cache.cache_key(replace(config, num_warps=2), "sm_90", "3.8.0"))
    (package / "maths.py").write_text("x = 2\n")
    keys.append(cache.cache_key(config, "sm_90", "3.8.0"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(DECAY, module="tests.kernels.nowhere"), "there is no module"),
        (replace(DECAY, module="no.such.module"), "No module named 'no'"),
        (replace(DECAY, constexprs={"N": object()}), "must be numbers, texts or None"),
    ],
    ids=["module", "package", "value"],
)
def test_a_wrong_configuration_is_an_error(config: KernelConfig, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compiled.compile_config(config, "sm_90", cache=Cache(None))


def test_an_unknown_target_says_which_are_known() -> None:
    with pytest.raises(CompileError, match="'sm_75'; targets are sm_80, sm_90, sm_100, gfx942"):
        compiled.compile_config(DECAY, "sm_75", cache=Cache(None))


def test_without_triton_the_error_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setattr(compiled, "triton_version", lambda: None)
    with pytest.raises(CompileError, match="pip install triton") as caught:
        compiled.compile_config(DECAY, "sm_90", cache=Cache(None))
    assert caught.value.kind == "triton"
    assert all("pip install triton" in reason for reason in compiled.available_targets().values())
    assert compiled.main(["--config", "steps_forward", "--target", "sm_90"]) == 2
    assert "pip install triton" in capsys.readouterr().err


def test_without_the_amd_backend_the_error_says_so(monkeypatch) -> None:
    (nvidia,) = (p for p in compiled.entry_points(group="triton.backends") if p.name == "nvidia")
    monkeypatch.setattr(compiled, "entry_points", lambda group: [nvidia])
    reasons = compiled.available_targets()
    assert reasons["sm_90"] is None
    assert "no AMD backend (it has: nvidia)" in reasons["gfx942"]
    with pytest.raises(CompileError, match="no AMD backend") as caught:
        compiled.compile_config(DECAY, "gfx942", cache=Cache(None))
    assert caught.value.kind == "backend"


def test_a_compilation_that_takes_too_long_ends() -> None:
    started = time.perf_counter()
    with pytest.raises(CompileError, match="no result within 0.2 s") as caught:
        compiled.compile_config(DECAY, "sm_90", timeout_s=0.2, cache=Cache(None))
    assert caught.value.kind == "timeout"
    assert time.perf_counter() - started < 5


def test_a_crash_costs_one_job(monkeypatch) -> None:
    """A process that dies is named with its code, and a fresh one answers the next job."""
    monkeypatch.setattr(pool, "sys", _FakePython())
    jobs = [{"die": True}, {"die": False}, {"die": True}]
    answers = dict(pool.run_jobs(jobs, timeout_s=20, n_processes=1))
    assert answers[1] == {"die": False}
    for index in (0, 2):
        assert "ended with code 7" in str(answers[index])
        assert "out of registers" in str(answers[index])


def test_closing_the_iterator_ends_the_processes(monkeypatch) -> None:
    monkeypatch.setattr(pool, "sys", _FakePython())
    started = time.perf_counter()
    answers = pool.run_jobs([{}, {"sleep": 60}, {"sleep": 60}], timeout_s=90, n_processes=1)
    assert next(answers) == (0, {})
    answers.close()
    assert time.perf_counter() - started < 20


def test_a_process_waits_for_the_next_call_unless_a_file_changed(monkeypatch) -> None:
    monkeypatch.setattr(pool, "sys", _FakePython())
    monkeypatch.setattr(pool, "_IDLE", pool._IdleWorkers())
    starts: list[int] = []
    start = pool._Worker._start

    def counted(worker: pool._Worker) -> None:
        starts.append(1)
        start(worker)

    monkeypatch.setattr(pool._Worker, "_start", counted)

    def ask(**job: object) -> dict:
        ((_, answer),) = pool.run_jobs([job], timeout_s=20, n_processes=1, keep=True)
        return answer

    pool.warm_up_worker()
    deadline = time.monotonic() + 10
    while pool._IDLE.is_empty and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(files={"a.py": [1, 1]}) == {"files": {"a.py": [1, 1]}}
    assert ask(files={"a.py": [1, 1], "b.py": [1, 1]}) and len(starts) == 1
    assert ask(files={"b.py": [1, 2]}) and len(starts) == 2, "it had loaded another b.py"
    assert "code 7" in str(ask(die=True)) and pool._IDLE.is_empty, "a dead one is not kept"
    assert ask() == {} and len(starts) == 3
    pool._IDLE.clear()


def test_an_unknown_architecture_gets_the_compilers_words(monkeypatch) -> None:
    """As an older triton would answer for a newer GPU."""
    unknown = replace(TARGETS["sm_100"], name="sm_999", arch=999)
    monkeypatch.setitem(TARGETS, "sm_999", unknown)
    with pytest.raises(CompileError) as caught:
        compiled.compile_config(DECAY, "sm_999", cache=Cache(None))
    assert caught.value.kind == "compiler" and "decay on sm_999" in str(caught.value)
    assert len(str(caught.value)) > 60


def test_the_compilers_process_does_not_load_torch_unless_a_kernel_does() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('worker', {str(pool.WORKER)!r})\n"
        "worker = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(worker)\n"
        "worker.use_light_package()\n"
        "import kernels._triton.chunks, kernels._triton.steps, kernels._triton.projection\n"
        "assert 'torch' not in sys.modules\n"
        "from kernels import scan_order\n"
        "assert scan_order('es2d', 4, 4).n_sequences == 4 and 'torch' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pool.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


class _FakePython:
    """`sys` for the pool: its executable ignores what it is to run and echoes jobs."""

    path: tuple[str, ...] = ()

    @property
    def executable(self) -> str:
        return str(Path(__file__).with_name("echo_worker.py"))


# Worked by hand from NVIDIA's occupancy rules and LLVM's for gfx942.
@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected", "limiter"),
    [
        ("sm_90", 32, 0, 1, (32, 0.5), "blocks"),
        ("sm_90", 32, 0, 8, (8, 1.0), "warps"),
        ("sm_90", 168, 1024, 4, (3, 12 / 64), "registers (168 per thread)"),
        ("sm_90", 255, 0, 4, (2, 8 / 64), "registers"),
        ("sm_80", 64, 32 * 1024, 4, (4, 16 / 64), "shared memory (32 KiB per block)"),
        ("sm_90", 64, 32 * 1024, 4, (6, 24 / 64), "shared memory"),
        ("sm_80", 64, 200 * 1024, 4, (0, 0.0), "cannot be launched"),
        ("gfx942", 54, 0, 1, (32, 1.0), "waves"),
        ("gfx942", 151, 0, 1, (12, 12 / 32), "registers"),
        ("gfx942", 24, 0, 2, (16, 1.0), "waves"),
        ("gfx942", 64, 40 * 1024, 4, (1, 4 / 32), "shared memory"),
    ],
)
def test_occupancy_by_hand(target, registers, shared, warps, expected, limiter) -> None:
    given = occupancy(TARGETS[target], registers, shared, warps)
    assert (given.blocks, given.fraction) == expected
    assert given.warps == given.blocks * warps
    assert limiter in given.limiter


def test_occupancy_agrees_with_amds_compiler(results) -> None:
    """LLVM prints the waves of one SIMD that registers allow; a compute unit has four."""
    kernel = results["decay", "gfx942"]
    (waves,) = re.findall(r"; Occupancy: (\d+)", kernel.texts["amdgcn"])
    assert kernel.occupancy.warps == 4 * int(waves)


SASS = """
.text.kernel:
        /*0000*/                   LDG.E R2, desc[UR6][R2.64] ;
        /*0010*/                   MUFU.EX2 R9, R2 ;
.L_x_0:
        /*0020*/                   MUFU.EX2 R3, R2 ;
        /*0030*/              @!P1 BRA `(.L_x_3) ;
.L_x_1:
        /*0040*/                   MUFU.EX2 R3, R2 ;
        /*0050*/                   BRA.U UP0, `(.L_x_1) ;
.L_x_2:
        /*0060*/               @P0 BRA `(.L_x_0) ;
        /*0070*/                   MUFU.RCP R3, R2 ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   MUFU.EX2 R3, R2 ;
        /*00a0*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4);
        /*00c0*/                   NOP;
"""


def test_loops_are_found_from_jumps() -> None:
    """Nested loops count once, a block behind the exit counts, the trap at the end does not."""
    counts = count_sass(SASS)
    assert counts.instructions["exp2"] == 4 and counts.exp2_in_loops == 3
    assert counts.instructions["special"] == 1
    assert counts.instructions["branch"] == 5  # four jumps and the exit
    assert sum(counts.instructions.values()) == 11
    assert counts.instructions_in_loops == 7


AMDGCN = """
kernel:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
.LBB0_1:                                ; =>This Loop Header: Depth=1
\t.loc\t1 10 7                          ; kernels.py:10:7
\tv_exp_f32_e32 v1, v2
\ts_cbranch_execz .LBB0_3
; %bb.2:                                ;   in Loop: Header=BB0_1 Depth=1
\tglobal_load_dwordx4 v[2:5], v[2:3], off
\tv_mov_b32_dpp v1, v2 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf
\ts_branch .LBB0_1
.LBB0_3:
\tv_exp_f32_e32 v1, v2
\tds_write_b32 v1, v2
\ts_nop 0
\tglobal_atomic_add_f32 v1, v2, s[2:3]
\tscratch_store_dword off, v1, s2
\ts_endpgm
"""


def test_loops_of_amds_assembly() -> None:
    counts = count_amdgcn(AMDGCN)
    assert counts.exp2_in_loops == 1 and counts.instructions_in_loops == 5
    seen = {kind: n for kind, n in counts.instructions.items() if n}
    once = dict.fromkeys(("shared", "atomic", "local", "shuffle"), 1)
    assert seen == {"load": 2, "exp2": 2, "branch": 3, **once}


@pytest.fixture
def shipped(monkeypatch, folder: Path) -> None:
    """The command sees DECAY and ONCE only, compiled once for all tests here."""
    monkeypatch.setattr(compiled, "shipped_configs", lambda target: (DECAY, ONCE))
    monkeypatch.setattr(compiled, "default_cache", lambda: Cache(folder))


def test_the_command_guards(shipped, results, tmp_path: Path, capsys) -> None:
    """It writes a baseline, passes against it, and fails once a number was lower before."""
    path = tmp_path / "baseline.json"
    arguments = ["--target", "sm_90", "--target", "gfx942"]
    assert compiled.main([*arguments, "--write", str(path)]) == 0
    assert "decay" in capsys.readouterr().out
    assert compiled.main(["--baseline", str(path)]) == 0
    assert "nothing got worse" in capsys.readouterr().out
    values = json.loads(path.read_text())
    for name in baseline.GUARDED:
        doctored = json.loads(path.read_text())
        before = doctored["kernels"]["decay"]["sm_90"][name]
        doctored["kernels"]["decay"]["sm_90"][name] = before - 1
        (tmp_path / "doctored.json").write_text(json.dumps(doctored))
        assert compiled.main(["--baseline", str(tmp_path / "doctored.json"), *arguments]) == 1
        words = f"WORSE: decay on sm_90: {baseline.GUARDED[name]} {before - 1} -> {before}"
        assert words in capsys.readouterr().out
    values["kernels"]["decay"]["sm_90"]["registers"] += 8
    path.write_text(json.dumps(values))
    assert compiled.main(["--baseline", str(path)]) == 0
    assert "decay on sm_90: registers per thread" in capsys.readouterr().out


def test_a_tile_that_spills_fails_the_guard(kernel, results) -> None:
    """Also with another triton, and also where it is new."""
    spilling = results["spilling", "sm_90"]
    fine = {name: getattr(kernel, name) for name in baseline.GUARDED}
    for version in (spilling.triton_version, "0.0"):
        stored = baseline.Baseline(version, {"spilling": {"sm_90": fine}})
        failures = baseline.compare(stored, [spilling], is_whole=False).failures
        assert f"spilling on sm_90: spill bytes 0 -> {spilling.spill_bytes}" in failures
    new = baseline.compare(baseline.Baseline(spilling.triton_version, {}), [spilling], False)
    assert "spill bytes, not in the baseline" in new.failures[0]


def test_another_triton_is_said_and_does_not_fail(kernel) -> None:
    lower = {name: getattr(kernel, name) for name in baseline.GUARDED} | {"registers": 1}
    stored = baseline.Baseline("3.6.0", {"decay": {"sm_90": lower}})
    compared = baseline.compare(stored, [kernel], True)
    assert not compared.failures
    assert "the baseline is of 3.6.0: only spills fail" in compared.notes[0]
    assert f"registers per thread 1 -> {kernel.registers}" in compared.notes[1]


def test_kernels_that_came_or_went_are_named(kernel) -> None:
    stored = baseline.Baseline(
        kernel.triton_version, {"old": {"sm_80": dict.fromkeys(baseline.GUARDED, 0)}}
    )
    notes = " ".join(baseline.compare(stored, [kernel], True).notes)
    assert "decay on sm_90: not in the baseline" in notes
    assert "old on sm_80: in the baseline, no longer compiled" in notes
    assert not baseline.compare(stored, [], False).notes


def test_the_command_prints_json(shipped, results, capsys) -> None:
    assert compiled.main(["--json", "--config", "decay", "--target", "sm_90"]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["kernels"]
    assert row["registers"] == results["decay", "sm_90"].registers
    assert row["occupancy"]["blocks"] == 32 and "texts" not in row


def test_a_kernel_that_does_not_compile_fails_the_command(results, monkeypatch, capsys) -> None:
    monkeypatch.setattr(compiled, "shipped_configs", lambda target: (WRONG,))
    answers = [(WRONG, "sm_90", results["wrong", "sm_90"])]
    monkeypatch.setattr(compiled, "compile_many", lambda *_, **__: answers)
    assert compiled.main(["--target", "sm_90"]) == 1
    assert "incompatible dimensions" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"triton": "3", "kernels": {"a": {"b": {}}}}'])
def test_a_file_that_is_no_baseline_is_an_error(tmp_path: Path, capsys, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    assert compiled.main(["--baseline", str(path)]) == 2
    assert "is not a baseline" in capsys.readouterr().err


def test_wrong_arguments_are_named(shipped, capsys, tmp_path: Path) -> None:
    assert compiled.main(["--config", "huge"]) == 2
    assert "no kernel has huge in its name; there are: decay, once" in capsys.readouterr().err
    assert compiled.main(["--baseline", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
