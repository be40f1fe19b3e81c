"""Worker processes with a time limit for each job, kept for a while for the next one."""

from __future__ import annotations

import atexit
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
WORKER = Path(__file__).with_name("worker.py")
# Variables that would change what is compiled or print into the answers.
DROPPED = ("TRITON_", "DISABLE_PTXAS_OPT", "PTXAS_OPTIONS", "LLVM_", "MLIR_", "AMDGCN_")

MAX_IDLE = 2  # processes that wait for the next call, about half a GB each
IDLE_S = 300.0

Job = Mapping[str, Any]
Answer = dict[str, Any] | CompileError


def run_jobs(
    jobs: Sequence[Job], timeout_s: float, n_processes: int, keep: bool = False
) -> Iterator[tuple[int, Answer]]:
    """(index of the job, its answer) in the order in which they finish.

    A job that runs out of time or brings its process down costs only itself. Closing the iterator
    ends the processes. `keep`: take processes that earlier calls left, and leave some for later
    ones. A job's "files" are those that it loads, each with a mark of its content: a process that
    loaded another content is not used.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    finished: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
    workers = [
        (_IDLE.take() if keep else None) or _Worker() for _ in range(min(n_processes, len(jobs)))
    ]

    def work(worker: _Worker) -> None:
        worker.timeout_s = timeout_s
        try:
            while not worker.is_stopped:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    break
                finished.put((index, worker.ask(jobs[index])))
        finally:
            if not (keep and worker.is_alive and _IDLE.give(worker)):
                worker.close()

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    n_answers = 0
    try:
        for _ in jobs:
            answer = finished.get()
            n_answers += 1
            yield answer
    finally:
        if n_answers < len(jobs):
            for worker in workers:
                worker.stop()
        for thread in threads:
            thread.join()


def warm_up_worker() -> None:
    """Start a process in the background for a later call with `keep`, unless one is idle."""

    def start() -> None:
        worker = _Worker()
        if not (_IDLE.is_empty and worker.start() and _IDLE.give(worker)):
            worker.close()

    threading.Thread(target=start, daemon=True).start()


class _Worker:
    """One process, started at the first job and again after it had to be ended."""

    timeout_s = 60.0

    def __init__(self) -> None:
        self.is_stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._loaded: dict[str, Any] = {}  # file -> mark of the content that the process has
        self._folder = tempfile.TemporaryDirectory(prefix="compiled-")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)

    @property
    def is_alive(self) -> bool:
        process = self._process
        return not self.is_stopped and process is not None and process.poll() is None

    def start(self) -> bool:
        try:
            self._start()
        except (OSError, CompileError):
            return False
        return True

    def close(self) -> None:
        self._end()
        self._stderr.close()
        self._folder.cleanup()

    def ask(self, job: Job) -> Answer:
        files: Mapping[str, Any] = job.get("files", {})
        if any(self._loaded.get(file, mark) != mark for file, mark in files.items()):
            self._end()
        try:
            if self._process is None:
                self._start()
            self._loaded |= files
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
                # Not `-m`, which would load the package and with it torch.
                [sys.executable, "-P", str(WORKER)],
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

        # The process writes behind what it said about earlier jobs.
        said = self._stderr.seek(0, os.SEEK_END)
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
        self._stderr.seek(said)
        words = self._stderr.read().decode(errors="replace").strip()[-4000:]
        raise CompileError("compiler", f"the compiler's process ended with code {code}\n{words}")

    def _end(self) -> None:
        self._kill()
        self._loaded = {}
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


class _IdleWorkers:
    """Processes between two calls: a few, for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[tuple[_Worker, threading.Timer]] = []

    @property
    def is_empty(self) -> bool:
        return not self._workers

    def take(self) -> _Worker | None:
        """One that is still alive."""
        with self._lock:
            while self._workers:
                worker, timer = self._workers.pop()
                timer.cancel()
                if worker.is_alive:
                    return worker
                worker.close()
        return None

    def give(self, worker: _Worker) -> bool:
        """False where there are enough already."""
        with self._lock:
            if len(self._workers) >= MAX_IDLE:
                return False
            timer = threading.Timer(IDLE_S, self._end, (worker,))
            timer.daemon = True
            timer.start()
            self._workers.append((worker, timer))
        return True

    def clear(self) -> None:
        while (worker := self.take()) is not None:
            worker.close()

    def _end(self, worker: _Worker) -> None:
        with self._lock:
            kept = [entry for entry in self._workers if entry[0] is not worker]
            is_idle = len(kept) < len(self._workers)
            self._workers = kept
        if is_idle:
            worker.close()


_IDLE = _IdleWorkers()
atexit.register(_IDLE.clear)
