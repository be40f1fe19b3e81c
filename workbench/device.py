"""The device that analyses run on: its name in words, and one lock that is handed out in order."""

from __future__ import annotations

import platform
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from workbench.errors import NotAvailableError
from workbench.progress import CancelToken

BACKEND_LABELS = {"cpu": "numba kernel", "triton": "Triton kernel", "reference": "reference"}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` takes the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NotAvailableError(
            f"Device {name!r} was asked for, but torch finds no CUDA device here. "
            "Use 'cpu' or 'auto'."
        )
    return device


def cpu_name() -> str:
    """Name of the processor as the system gives it, without marketing marks."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = match[1] if match else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)|\bCPU\b|@.*$", "", name).strip() or "unknown processor"


def device_label(device: torch.device) -> str:
    """Device in words: "CPU, AMD EPYC, 2 threads" or "NVIDIA H100 80GB HBM3"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n_threads = torch.get_num_threads()
    return f"CPU, {cpu_name()}, {n_threads} thread{'s' if n_threads != 1 else ''}"


class DeviceLock:
    """First come, first served; a waiting run can be cancelled.

    Not owned by a thread: Gradio may resume a generator in another thread than the one that started
    it.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._line: deque[object] = deque()

    @property
    def n_waiting(self) -> int:
        """Runs that hold the device or wait for it."""
        return len(self._line)

    @contextmanager
    def hold(self, token: CancelToken | None = None) -> Iterator[None]:
        """Wait for the device and keep it for the block; raises `CancelledError` if cancelled
        before."""
        ticket = object()
        with self._condition:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket:
                    if token is not None:
                        token.check()
                    # A short wait, because a token is set without waking this condition.
                    self._condition.wait(0.05 if token is not None else None)
                if token is not None:
                    token.check()
            except BaseException:
                self._leave(ticket)
                raise
        try:
            yield
        finally:
            with self._condition:
                self._leave(ticket)

    def _leave(self, ticket: object) -> None:
        self._line.remove(ticket)
        self._condition.notify_all()
