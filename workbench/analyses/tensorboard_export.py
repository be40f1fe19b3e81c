"""A trace as a log directory of TensorBoard, for the plugin torch-tb-profiler.

The plugin tells traces by their names and reads plain or compressed ones; both packages are
requirements of this project. In the browser its charts ask Google's servers for their code, so
that they stay empty without a network; the numbers of its tables come from the plugin itself.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import shutil
import sys
import time
from pathlib import Path

from workbench.errors import BadInputError, NotAvailableError
from workbench.perfetto import is_gzip

SUFFIX = ".pt.trace.json"


def write_logdir(trace: Path, logdir: Path, worker: str = "workbench") -> Path:
    """Adds a trace of torch.profiler (JSON, plain or gz) to a log directory; returns its file.

    The events stay as they are. Steps show up in TensorBoard where they are named
    "ProfilerStep#1". BadInputError where the trace cannot be read or `worker` is no plain name,
    NotAvailableError where the directory cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", worker):
        raise BadInputError(
            f"The worker {worker!r} is no plain name. Use letters, digits, - and _, at most 64."
        )
    try:
        ending = f"{SUFFIX}.gz" if is_gzip(trace) else SUFFIX
    except OSError as error:
        raise BadInputError(
            f"The trace {trace.name!r} cannot be read: {error.strerror or error}."
        ) from error
    # TensorBoard looks every few seconds and must not meet half a file.
    part = logdir / f".part-{secrets.token_hex(8)}"
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trace, part)
        time_ms = time.time_ns() // 1_000_000
        while (path := logdir / f"{worker}.{time_ms}{ending}").exists():
            time_ms += 1
        return part.replace(path)
    except OSError as error:
        raise NotAvailableError(
            f"The log directory {str(logdir)!r} cannot be written: {error.strerror or error}. "
            "Name another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def tensorboard_line(logdir: Path) -> str:
    """Shell command that opens a log directory, quoted; TensorBoard by path if not on PATH."""
    command = "tensorboard"
    beside = Path(sys.executable).with_name(command)
    if shutil.which(command) is None and beside.is_file():
        command = str(beside)
    return shlex.join([command, "--logdir", str(logdir.absolute())])
