"""Finding a checkpoint and reading its format; no file can run code.

Places: a path, `path#entry`, `hf:Org/Repo[@revision][:file][#entry]`. Formats: torch's own through
`torch.load(weights_only=True)`, and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

METADATA_KEY = "efficientvmamba"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the text says what to do."""


# Names of places


def split_entry(weights: str) -> tuple[Path, str | None]:
    """Split `path#entry`; a file whose own name has a '#' wins."""
    if Path(weights).exists() or "#" not in weights:
        return Path(weights), None
    path, _, entry = weights.rpartition("#")
    return Path(path), entry


_HF = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:#]+))?(:(?P<file>[^#]+))?(#(?P<entry>.+))?"
)


def fetch(weights: str) -> tuple[Path, str | None]:
    """Find or download the file that a `hf:` name means; the local cache serves when offline."""
    match = _HF.fullmatch(weights)
    if match is None:
        raise CheckpointError(
            f"cannot read {weights!r}; write hf:Org/Repo, hf:Org/Repo@revision or "
            "hf:Org/Repo@revision:file.pth, with #entry at the end where a file holds several"
        )
    import huggingface_hub
    from huggingface_hub import errors

    repo, revision = match["repo"], match["revision"]
    try:
        file = match["file"] or _only_file(
            huggingface_hub.list_repo_files(repo, revision=revision), weights
        )
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision)), match["entry"]
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"Hugging Face has no public {repo!r}"
            + (f" with revision {revision!r}" if revision else "")
            + "; check the name"
        ) from error
    except errors.EntryNotFoundError as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise CheckpointError(
                f"{repo} has no file {match['file']!r}; check the name"
            ) from error
        return _cached(repo, revision, match["file"], weights, error), match["entry"]
    except CheckpointError:
        raise
    except Exception as error:  # the HTTP library behind the hub differs between its versions
        return _cached(repo, revision, match["file"], weights, error), match["entry"]


def _cached(
    repo: str, revision: str | None, file: str | None, weights: str, reason: Exception
) -> Path:
    """The file of an earlier download, when the hub cannot be reached."""
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True)
        )
        name = file or _only_file([p.name for p in folder.iterdir()], weights)
        if (folder / name).is_file():
            return folder / name
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
    raise CheckpointError(
        f"{weights} is not on this machine and Hugging Face cannot be reached "
        f"({type(reason).__name__}); go online once, or download the file and give its path"
    ) from reason


def _only_file(names: list[str], weights: str) -> str:
    found = [n for n in names if n.endswith(SUFFIXES)]
    safe = [n for n in found if n.endswith(".safetensors")]
    for candidates in (safe, found):
        if len(candidates) == 1:
            return candidates[0]
    if not found:
        raise CheckpointError(f"{weights} holds no checkpoint ({', '.join(SUFFIXES)})")
    raise CheckpointError(
        f"{weights} holds several checkpoints: {', '.join(sorted(found))}; name one: {weights}:FILE"
    )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Formats


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            header = (file.metadata() or {}).get(METADATA_KEY)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from error
    try:
        metadata = json.loads(header) if header else {}
    except json.JSONDecodeError:
        metadata = {}
    return tensors, metadata if isinstance(metadata, dict) else {}


class _Inert:
    """Stands in for a plain class in a checkpoint: takes any state, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert_scalar(*args: Any) -> None:
    """Stands in for the function that rebuilds a numpy scalar (an epoch, an accuracy)."""


class _InertDtype(_Inert):
    """Stands in for a numpy dtype."""


_LOAD_LOCK = threading.Lock()


def _stand_ins() -> list[Any]:
    """Name and stand-in of each plain class that training scripts store beside weights."""
    names = {
        "argparse.Namespace": _Inert,
        # torch fills no dictionary class but its own short list; CfgNode is a dictionary.
        "yacs.config.CfgNode": OrderedDict,
        "numpy.dtype": _InertDtype,
        "numpy.core.multiarray.scalar": _inert_scalar,
        "numpy._core.multiarray.scalar": _inert_scalar,
    }
    numbers = [f"{kind}{bits}" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)]
    names |= {f"numpy.dtypes.{kind}DType": _InertDtype for kind in (*numbers, "Bool")}
    return [(stand_in, name) for name, stand_in in names.items()]


def read_pickle(path: Path) -> Any:
    # torch's list of allowed names belongs to the process, so only one file is read at a time.
    with _LOAD_LOCK, torch.serialization.safe_globals(_stand_ins()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = _refused_name(str(error))
            if name is not None:
                raise CheckpointError(
                    f"{path.name} wants to run {name}, which is not on the list of harmless types; "
                    "the file was refused and nothing was run. If you trust it, save only its "
                    "tensors (a state_dict) to a new file"
                ) from error
            raise CheckpointError(f"{path.name} is not a torch checkpoint") from error
        except OSError:
            raise
        except Exception as error:  # a broken program for the unpickler can fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"{path.name} is not a whole torch checkpoint: {reason}"
            ) from error


def _refused_name(message: str) -> str | None:
    """The global that `torch.load` refused, out of its message."""
    match = re.search(r"(?:Unsupported global|unsupported): ?GLOBAL (\S+)", message) or re.search(
        r"unsupported GLOBAL (\S+)", message
    )
    return match[1] if match else None
