"""Files that survive a crash: written beside the old one, flushed to disk, then renamed over it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from models.training.errors import TrainingError


def write_atomically(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `file` by what `write` puts out. On any error (a full disk, say) the old file stays
    as it was and the partial one is removed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial{os.getpid()}")
    try:
        with partial.open("wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as RuntimeError.
        partial.unlink(missing_ok=True)
        kept = "The file that was there is unchanged." if file.exists() else "Nothing was saved."
        raise TrainingError(
            f"Could not save {file}: {error}. {kept} Free space, then resume."
        ) from error
    # The rename itself reaches the disk with its directory.
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    write_atomically(file, lambda out: out.write(text.encode()))


def save_state(file: Path, state: dict[str, Any]) -> None:
    write_atomically(file, lambda out: torch.save(state, out))


def load_state(file: Path) -> dict[str, Any]:
    """A state of `save_state`; never runs code from the file."""
    if not file.is_file():
        raise TrainingError(
            f"No state to resume: {file} does not exist. Start without --resume, or give the "
            "--out folder of the run that was interrupted."
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{file} cannot be read as a training state: {error}") from error
