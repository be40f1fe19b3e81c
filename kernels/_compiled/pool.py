"""Worker processes with a time limit for each job, kept for a while for the next one."""

from __future__ import annotations

import atexit
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
# Variables that would change what is compiled or print into the answers.
DROPPED = ("TRITON_", "DISABLE_PTXAS_OPT", "PTXAS_OPTIONS", "LLVM_", "MLIR_", "AMDGCN_")

MAX_IDLE = 2  # processes that wait for the next call, about 150 MB each
IDLE_S = 300.0

# Processes that wait for a next call (each about 0.5 GB), and for how long.
KEPT = 2
KEPT_S = 300.0

Job = Mapping[str, Any]
Answer = dict[str, Any] | CompileError


def run_jobs(
    jobs: Sequence[Job], timeout_s: float, n_processes: int
) -> Iterator[tuple[int, Answer]]:
    """(index of the job, its answer) in the order in which they finish.

    A job that runs out of time or brings its process down costs only itself. Closing the iterator
    ends the processes that are at work; those that are done wait in `IDLE` for the next call.
    A job's "files" (path -> digest) are the sources that it reads: a process that imported another
    version of one of them is replaced.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    finished: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
    workers = [IDLE.take() for _ in range(min(n_processes, len(jobs)))]

    def work(worker: _Worker) -> None:
        try:
            while not worker.is_stopped:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                finished.put((index, worker.ask(jobs[index], timeout_s)))
        finally:
            IDLE.give(worker)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    n_left = len(jobs)
    try:
        while n_left:
            answer = finished.get()
            n_left -= 1
            yield answer
    finally:
        if n_left:
            for worker in workers:
                worker.stop()
        for thread in threads:
            thread.join()


def warm_up() -> None:
    """Start a process that waits for the first job, unless one waits already."""
    IDLE.warm_up()


class _Worker:
    """One process, started at the first job and again after it had to be ended."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.start_of = _start_of()
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._files: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="compiled-")
        self._stderr = tempfile.TemporaryFile()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        self._end()
        self._stderr.close()
        self._folder.cleanup()

    def ask(self, job: Job, timeout_s: float) -> Answer:
        files: Mapping[str, str] = job.get("files", {})
        try:
            # What was imported once is not read again.
            if any(self._files.get(path, digest) != digest for path, digest in files.items()):
                self._end()
            if self._process is None:
                self.start()
            self._files.update(files)
            return self._exchange(job, timeout_s)
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

    def start(self) -> None:
        executable, settings = self.start_of
        environment = dict(settings) | {"TRITON_CACHE_DIR": self._folder.name}
        self._files = {}
        self._stderr.seek(0)
        self._stderr.truncate()
        with self._lock:
            if self.is_stopped:
                raise CompileError("timeout", "stopped")
            self._process = subprocess.Popen(
                [executable, "-m", "kernels._compiled.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                text=True,
                encoding="utf-8",
                # A group of its own, so that the compiler that it runs ends with it.
                start_new_session=True,
            )

    def _exchange(self, values: Job, timeout_s: float) -> dict[str, Any]:
        process = self._process
        words_before = os.fstat(self._stderr.fileno()).st_size
        assert process is not None and process.stdin is not None and process.stdout is not None
        # The process answers or is ended, and then its stdout ends: readline always returns.
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._kill()

        timer = threading.Timer(timeout_s, end)
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
            message = f"no result within {timeout_s:g} s; a smaller tile or a larger limit"
            raise CompileError("timeout", f"{message} may help")
        code = process.wait()
        self._stderr.seek(words_before)
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


class Idle:
    """Processes between calls, so that the next compilation does not wait for a start (2 s).

    At most `most`, each ended after `seconds` without a job, and all when this process ends. One
    that was killed, or that another executable or environment would start now, is not kept.
    """

    def __init__(self, most: int = KEPT, seconds: float = KEPT_S) -> None:
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._waiting: list[tuple[_Worker, threading.Timer]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> _Worker:
        """One that waits, the latest first; else a new one, which is not started."""
        wanted = _start_of()
        with self._lock:
            for entry in reversed(self._waiting):
                if entry[0].is_alive and entry[0].start_of == wanted:
                    self._waiting.remove(entry)
                    entry[1].cancel()
                    return entry[0]
        return _Worker()

    def give(self, worker: _Worker) -> None:
        """Keep it, in the place of the oldest where there are too many."""
        if worker.is_stopped or not worker.is_alive:
            worker.close()
            return
        timer = threading.Timer(self._seconds, self._drop, [worker])
        timer.daemon = True
        with self._lock:
            self._waiting.append((worker, timer))
            ended = self._waiting[: -self._most]
            del self._waiting[: -self._most]
            timer.start()
        for old, its_timer in ended:
            its_timer.cancel()
            old.close()

    def warm_up(self) -> None:
        worker = self.take()
        if not worker.is_alive:
            worker.start()
        self.give(worker)

    def close(self) -> None:
        """End all that wait."""
        with self._lock:
            ended, self._waiting = self._waiting, []
        for worker, timer in ended:
            timer.cancel()
            worker.close()

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            is_here = any(worker is other for other, _ in self._waiting)
            self._waiting = [entry for entry in self._waiting if entry[0] is not worker]
        if is_here:
            worker.close()


def _start_of() -> tuple[str, frozenset[tuple[str, str]]]:
    """Executable and environment that a process would be started with now."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
    environment |= {
        "TRITON_ALWAYS_COMPILE": "1",  # times of a compilation, not of reading a file
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    # Names the test that runs, and changes with each.
    environment.pop("PYTEST_CURRENT_TEST", None)
    return sys.executable, frozenset(environment.items())


IDLE = Idle()
atexit.register(IDLE.close)
