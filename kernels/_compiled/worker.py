"""The process that compiles: a job a line on stdin, an answer a line on stdout, both JSON.

A process of its own because triton decides at import whether it interprets, because a compiler can
crash or hang, and because its complaints come on stderr. Reads no code from its jobs: they name
modules that are installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEXT_STAGES = ("ttir", "ttgir", "llir", "ptx", "amdgcn")


def main() -> None:
    # Whatever anyone prints goes to stderr; the answers keep the real stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    use_light_package()
    load_once()
    for line in sys.stdin:
        job = json.loads(line)
        with _own_stderr() as said:
            try:
                values = compile_job(job)
            # Whatever the compiler raises is its answer to this job.
            except Exception as error:
                values = {"error": f"{type(error).__name__}: {error}"}
        if "error" in values:
            values["error"] = "\n".join([values["error"], *said])
        answer(values)


class LightPackage(types.ModuleType):
    """`kernels` without what its `__init__` imports, until a name of it is asked for: torch takes
    seconds, and the modules of our kernels need triton only."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def use_light_package() -> None:
    """For this process, which was started as a file and not as a module of the package."""
    spec = importlib.util.find_spec("kernels")
    assert spec is not None
    package = LightPackage("kernels")
    package.__spec__ = spec
    package.__path__ = spec.submodule_search_locations or []
    sys.modules["kernels"] = package


def load_once() -> None:
    """What triton does at the first compilation of a process, so that no kernel's time has it."""
    # Names inside triton: where another version has others, the first time is only longer.
    with contextlib.suppress(ImportError):
        from triton.runtime.cache import triton_key

        triton_key()


def compile_job(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one configuration for one target: texts, sizes and times, nothing counted yet."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    config = job["config"]
    kernel = getattr(importlib.import_module(config["module"]), config["function"])
    names = list(kernel.arg_names)
    constexprs = config["constexprs"]
    given = {**config["signature"], **dict.fromkeys(constexprs, "constexpr")}
    if set(given) != set(names):
        wrong = ", ".join(sorted(set(given) ^ set(names)))
        return {"error": f"the configuration and the kernel's arguments differ in: {wrong}"}
    source = ASTSource(
        kernel,
        signature={name: given[name] for name in names},
        constexprs=constexprs,
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in config["divisible_by_16"]},
    )
    seen: dict[str, Any] = {}

    def listen(**event: Any) -> None:
        seen.update(event)

    knobs.compilation.listener = listen
    knobs.nvidia.dump_ptxas_log = True
    log = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(
            source,
            target=GPUTarget(job["backend"], job["arch"], job["warp_size"]),
            options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
        )
    seconds = time.perf_counter() - started
    texts = {stage: compiled.asm[stage] for stage in TEXT_STAGES if stage in compiled.asm}
    binary = compiled.asm["cubin" if "cubin" in compiled.asm else "hsaco"]
    if "cubin" in compiled.asm:
        texts["sass"] = disassemble(binary)
    path = Path(inspect.getsourcefile(kernel.fn) or "")
    texts = {"source": path.read_text(encoding="utf-8")} | texts
    # The listings name files; where this machine keeps them is nobody's business.
    folders = sorted({str(Path(p).resolve()) for p in sys.path if p}, key=len, reverse=True)
    times = seen["times"]
    stages = [("front end", times.ir_initialization), *times.lowering_stages]
    return {
        "texts": {stage: _without_folders(text, folders) for stage, text in texts.items()},
        "log": log.getvalue(),
        "shared_bytes": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "binary_bytes": len(binary),
        "compile_s": seconds,
        "stage_ms": {stage: microseconds / 1e3 for stage, microseconds in stages},
    }


def disassemble(cubin: bytes) -> str:
    """SASS with labels, line numbers and calls, by the nvdisasm that triton brings."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", "-gi", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"nvdisasm failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def _without_folders(text: str, folders: list[str]) -> str:
    for folder in folders:
        text = text.replace(folder + os.sep, "").replace(f'"{folder}"', '"."')
    return text


@contextlib.contextmanager
def _own_stderr() -> Iterator[list[str]]:
    """What this process and its children write to stderr, C++ included; filled at the end.

    Read back from the file that stderr is, so that the last words of a crash stay in it for the
    pool.
    """
    said: list[str] = []
    sys.stderr.flush()
    try:
        start = os.lseek(2, 0, os.SEEK_CUR)
    except OSError:  # a terminal: someone runs this by hand and reads it there
        yield said
        return
    try:
        yield said
    finally:
        sys.stderr.flush()
        words = os.pread(2, os.lseek(2, 0, os.SEEK_CUR) - start, start)
        text = words.decode(errors="replace").strip()
        said += [text] if text else []


if __name__ == "__main__":
    main()
