"""Worker processes with a time limit for each job."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels._compiled.records import CompileError

ROOT = Path(__file__).parents[2]
# Variables that would change what is compiled or print into the answers.
DROPPED = ("TRITON_", "DISABLE_PTXAS_OPT", "PTXAS_OPTIONS", "LLVM_", "MLIR_", "AMDGCN_")

Job = Mapping[str, Any]
Answer = dict[str, Any] | CompileError


def run_jobs(
    jobs: Sequence[Job], timeout_s: float, n_processes: int
) -> Iterator[tuple[int, Answer]]:
    """(index of the job, its answer) in the order in which they finish.

    A job that runs out of time or brings its process down costs only itself. Closing the iterator
    ends the processes.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    finished: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
    workers = [_Worker(timeout_s) for _ in range(min(n_processes, len(jobs)))]

    def work(worker: _Worker) -> None:
        with worker:
            while not worker.is_stopped:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                finished.put((index, worker.ask(jobs[index])))

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            yield finished.get()
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()


class _Worker:
    """One process, started at the first job and again after it had to be ended."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.is_stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> _Worker:
        self._folder = tempfile.TemporaryDirectory(prefix="compiled-")
        self._stderr = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._stderr.close()
        self._folder.cleanup()

    def ask(self, job: Job) -> Answer:
        try:
            if self._process is None:
                self._start()
            return self._exchange(job)
        except CompileError as error:
            self._end()
            return error
        # Anything else than an answer must not leave the reader of the answers waiting.
        except Exception as error:
            self._end()
            return CompileError("compiler", f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """From another thread: no further job, and the present one ends at once."""
        self.is_stopped = True
        self._kill()

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
        environment |= {
            "TRITON_CACHE_DIR": self._folder.name,
            "TRITON_ALWAYS_COMPILE": "1",  # times of a compilation, not of reading a file
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        self._stderr.seek(0)
        self._stderr.truncate()
        with self._lock:
            if self.is_stopped:
                raise CompileError("timeout", "stopped")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kernels._compiled.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                text=True,
                encoding="utf-8",
                # A group of its own, so that the compiler that it runs ends with it.
                start_new_session=True,
            )

    def _exchange(self, values: Job) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        # The process answers or is ended, and then its stdout ends: readline always returns.
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._kill()

        timer = threading.Timer(self.timeout_s, end)
        timer.start()
        try:
            process.stdin.write(json.dumps(values) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return json.loads(line)
        if is_late.is_set():
            message = f"no result within {self.timeout_s:g} s; a smaller tile or a larger limit"
            raise CompileError("timeout", f"{message} may help")
        code = process.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip()[-4000:]
        raise CompileError("compiler", f"the compiler's process ended with code {code}\n{words}")

    def _end(self) -> None:
        self._kill()
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue

    def _kill(self) -> None:
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                return
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
