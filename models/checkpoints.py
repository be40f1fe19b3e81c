"""Checkpoints into models, strictly, and models into checkpoints, atomically.

Read: the authors' containers and their backbone-only variant, and our own `.safetensors`
(`checkpoint_files.py` finds and opens them). Write: `.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kernels import ScanSpec
from models.checkpoint_files import (
    METADATA_KEY,
    CheckpointError,
    fetch,
    file_sha256,
    read_pickle,
    read_safetensors,
    split_entry,
)
from models.efficientvmamba import WeightsInfo, get_scan

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_into",
    "read_checkpoint",
    "save_safetensors",
    "write_atomically",
]

# Averaged weights first: what the authors evaluate and release.
EMA_ENTRIES = ("model_ema", "ema_model", "state_dict_ema", "ema")
PLAIN_ENTRIES = ("model", "state_dict")
HEAD = "classifier.head.weight"
AUTHORS_SCAN = "es2d:step=2"  # the only scheme that the authors' code runs
N_LISTED = 6  # differences of one kind that an error spells out
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Tensors of a file under the network's own names, and where they come from."""

    tensors: dict[str, Tensor]
    info: WeightsInfo
    metadata: dict[str, Any]  # what our own files carry: model, scan, classes, recipe


# Reading


def read_checkpoint(weights: str) -> Checkpoint:
    """Read `path`, `path#entry` or `hf:Org/Repo[@revision][:file][#entry]`."""
    if weights.startswith("hf:"):
        path, entry = fetch(weights)
    else:
        path, entry = split_entry(weights)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            if entry is not None:
                raise CheckpointError(f"{path.name} holds one set of weights; leave '#{entry}' out")
            tensors, metadata = read_safetensors(path)
            details: list[str] = []
        else:
            content = read_pickle(path)
            tensors, details = _pick_entry(content, entry, path.name)
            metadata = content
        sha256 = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    tensors, renamed = _clean_names(tensors, path.name)
    info = _describe(weights, tensors, metadata, [*details, *renamed], sha256)
    return Checkpoint(tensors=tensors, info=info, metadata=metadata)


def load_into(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    new_head: bool = False,
    known: Callable[[], Mapping[str, Shapes]] = dict,
) -> WeightsInfo:
    """Copy a checkpoint into `model`, strictly; returns the provenance for `model.weights_info`.

    `new_head` leaves the model's own head as it is. `known` gives keys and shapes by model name, so
    that an error can say which model the file fits.
    """
    info = checkpoint.info
    tensors = dict(checkpoint.tensors)
    own = model.state_dict()
    if not any(key.startswith("classifier.") for key in tensors):
        # Backbone only. Ones and zeros in the norm before the head leave its features as they are.
        for key in ("classifier.norm.weight", "classifier.norm.bias"):
            tensors[key] = torch.full(own[key].shape, float(key.endswith("weight")))
    if new_head:
        for key in (HEAD, HEAD.replace("weight", "bias")):
            tensors.pop(key, None)
            own.pop(key, None)
        n_classes = model.get_parameter(HEAD).shape[0]
        note = f"new random head for {n_classes} classes"
        info = replace(
            info,
            n_classes=n_classes,
            classes=None,
            top1=None,
            description=f"{info.description}; {note}",
            details=(*info.details, note),
        )
    _check_fit(_shapes(own), _shapes(tensors), info.name, known)
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(tensors[key])
    return info


def save_safetensors(
    model: nn.Module,
    path: str | Path,
    *,
    fp16: bool = True,
    model_name: str,
    classes: tuple[str, ...] | list[str] | None = None,
    description: str = "",
    recipe: Mapping[str, Any] | None = None,
    top1: float | None = None,
) -> str:
    """Write `model` with its scan and the given facts; returns the file's SHA-256.

    With `fp16` floating tensors are stored in half precision, except `A_logs` and BatchNorm
    statistics. The file appears whole or not at all: an older file of that name survives a full
    disk.
    """
    tensors = {}
    for key, value in model.state_dict().items():
        kept = value.detach().cpu().contiguous()
        if fp16 and kept.is_floating_point() and not key.endswith(_KEEP_TYPE):
            kept = _to_half(key, kept)
        tensors[key] = kept
    facts = {
        "model": model_name,
        "scan": str(get_scan(model)),
        "classes": list(classes) if classes is not None else None,
        "description": description,
        "recipe": dict(recipe or {}),
        "top1": top1,
    }
    # One key, because the order of several keys in the header is not fixed and equal input gives
    # equal bytes.
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True)}
    data = safetensors.torch.save(tensors, metadata=metadata)
    write_atomically(Path(path), data)
    return hashlib.sha256(data).hexdigest()


_KEEP_TYPE = ("A_logs", "running_mean", "running_var", "num_batches_tracked")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one: write, fsync, rename."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _to_half(key: str, value: Tensor) -> Tensor:
    half = value.half()
    if torch.isinf(half).any() and not torch.isinf(value).any():
        raise CheckpointError(f"{key} holds numbers beyond half precision; save with fp16=False")
    return half


# What a file holds


def _as_state_dict(value: Any, depth: int = 2) -> dict[str, Tensor] | None:
    """The tensors of a state dict, also of one wrapped again (`{"module": ...}`); else None."""
    if not isinstance(value, Mapping):
        return None
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if any(v.dim() > 1 for v in tensors.values()):
        return tensors
    inner = [_as_state_dict(value.get(k), depth - 1) for k in ("module", *PLAIN_ENTRIES) if depth]
    return next((found for found in inner if found is not None), None)


def _pick_entry(content: Any, entry: str | None, file: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a container: those asked for, else averaged ones, else the plain ones."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; expected a state dict")
    entries = {
        key: found
        for key, value in content.items()
        if isinstance(key, str) and (found := _as_state_dict(value)) is not None
    }
    listed = ", ".join(f"'{key}'" for key in entries) or "none"
    if entry is not None:
        if entry not in entries:
            raise CheckpointError(f"{file} has no weights under '{entry}'; its entries: {listed}")
        return entries[entry], [f"entry '{entry}', as asked"]
    for key in (*EMA_ENTRIES, *PLAIN_ENTRIES):
        if key in entries:
            kind = "averaged weights (EMA)" if key in EMA_ENTRIES else "weights"
            others = [f"'{other}'" for other in entries if other != key]
            aside = f"; {', '.join(others)} left aside" if others else ""
            return entries[key], [f"{kind} from entry '{key}'{aside}"]
    plain = _as_state_dict(content, depth=0)
    if plain is not None:
        return plain, []
    if len(entries) == 1:
        key, tensors = next(iter(entries.items()))
        return tensors, [f"weights from entry '{key}'"]
    raise CheckpointError(
        f"{file} holds several weights, its entries: {listed}; name one: {file}#ENTRY"
        if entries
        else f"{file} holds no weights; expected a state dict, alone or under one of: "
        + ", ".join((*EMA_ENTRIES, *PLAIN_ENTRIES))
    )


def _clean_names(tensors: dict[str, Tensor], file: str) -> tuple[dict[str, Tensor], list[str]]:
    """Take off wrappers' prefixes and leave out what is no part of the network; says both."""
    details = []
    tensors = {k: v for k, v in tensors.items() if k != "n_averaged"}
    for prefix in ("module.", "_orig_mod.", "backbone."):
        while f"{prefix}patch_embed.0.weight" in tensors or (
            tensors and all(k.startswith(prefix) for k in tensors)
        ):
            others = [k for k in tensors if not k.startswith(prefix)]
            details.append(f"prefix '{prefix}' removed")
            if others:
                details.append(f"{len(others)} tensors outside '{prefix}' left out")
            tensors = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    extra = [k for k in tensors if k.startswith("outnorm")]
    if extra:
        details.append(f"left out {', '.join(sorted(extra))} (norms of a detection backbone)")
        tensors = {k: v for k, v in tensors.items() if k not in extra}
    if "patch_embed.0.weight" not in tensors:
        names = ", ".join(list(tensors)[:N_LISTED]) or "nothing"
        raise CheckpointError(
            f"{file} is not an EfficientVMamba checkpoint: it has no 'patch_embed.0.weight'; "
            f"it holds {len(tensors)} tensors: {names}{', ...' if len(tensors) > N_LISTED else ''}"
        )
    if not any(k.startswith("classifier.") for k in tensors):
        details.append("no classifier in the file: backbone only")
    return tensors, details


def _describe(
    name: str,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    details: list[str],
    sha256: str,
) -> WeightsInfo:
    """Provenance of a file, from its tensors and from what it says about itself."""
    head = tensors.get(HEAD)
    n_classes = 0 if head is None else head.shape[0]
    listed = facts.get("classes")
    classes: tuple[str, ...] | None = None
    if isinstance(listed, list | tuple) and len(listed) == n_classes > 0:
        classes = tuple(str(c) for c in listed)
    elif n_classes == 1000 and not isinstance(facts.get("model"), str):
        # Our own files say what they know; official ones are ImageNet's.
        classes = imagenet_classes()
    try:
        scan = str(ScanSpec.parse(facts["scan"]))
    except (KeyError, ValueError, AttributeError):
        scan = AUTHORS_SCAN
        details = [*details, f"names no scan: taken as the authors' {AUTHORS_SCAN}"]
    said = facts.get("description")
    top1 = facts.get("top1")
    if not isinstance(said, str) or not said:
        said = ", ".join([Path(name).name, f"{n_classes} classes", *details])
    return WeightsInfo(
        name=name,
        description=said,
        trained_scan=scan,
        n_classes=n_classes,
        sha256=sha256,
        top1=float(top1) if isinstance(top1, int | float) else None,
        classes=classes,
        details=tuple(details),
    )


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 names in the order of the head, from torchvision's weight metadata."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _check_fit(
    own: Shapes, given: Shapes, name: str, known: Callable[[], Mapping[str, Shapes]]
) -> None:
    """Raise with a readable list of what differs."""
    missing = [k for k in own if k not in given]
    unexpected = [k for k in given if k not in own]
    shapes = [
        f"{k} (file {list(given[k])}, model {list(own[k])})"
        for k in own
        if k in given and given[k] != own[k]
    ]
    if not missing and not unexpected and not shapes:
        return
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"  {len(v)} {kind}: {_listed(v)}" for kind, v in kinds.items() if v]
    backbone = {k: v for k, v in given.items() if not k.startswith("classifier.head.")}
    fits = [
        model
        for model, shape in known().items()
        if {k: v for k, v in shape.items() if not k.startswith("classifier.head.")} == backbone
    ]
    advice = (
        f"It fits {' and '.join(fits)}: create that model."
        if fits
        else "It fits no released size: create the model with the options it was trained with."
    )
    raise CheckpointError("\n".join([f"{name} does not fit this model:", *lines, advice]))


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - N_LISTED} more" if len(names) > N_LISTED else ""
    return ", ".join(names[:N_LISTED]) + more
