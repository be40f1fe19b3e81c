"""Settings of one workbench: defaults, then WORKBENCH_* variables, then command-line flags."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from workbench.errors import BadInputError

BACKENDS = ("auto", "reference", "cpu", "triton")
PREFIX = "WORKBENCH_"
LISTS = ("timm", "trusted_hosts")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 7860
    gallery_dir: Path | None = None  # the user's own photos, added to the gallery
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:1"
    backend: str = "auto"  # one of BACKENDS
    threads: int | None = None  # CPU threads of torch and of the kernels; None = their own choice
    cache_bytes: int = 512 * MIB  # results kept by run key
    photo_bytes: int = 512 * MIB  # decoded gallery photos and uploads
    max_upload_bytes: int = 20 * MIB  # one photo
    max_trace_bytes: int = 100 * MIB  # one uploaded trace, as it comes: compressed or not
    runs: Path | None = None  # file of the kept profiler runs; None = the default place
    runs_bytes: int = 512 * MIB  # kept runs together
    traces: Path | None = None  # folder of the traces kept for the viewer; None = the default
    traces_bytes: int = 1024 * MIB  # kept traces together
    queue_size: int = 32  # waiting requests; more are refused with a sentence
    timm: tuple[str, ...] = ()  # networks of timm that the page offers besides its own list
    trusted_hosts: tuple[str, ...] = ()  # names under which the app is reached, besides loopback
    example: Path = Path(__file__).parents[1] / "assets" / "example.zip"  # drawn at first paint
    browser: bool = False  # open a browser at start

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:_-]+", self.host):
            raise BadInputError(
                f"The host {self.host!r} is no address. "
                "Give a name or an IP address, such as 127.0.0.1."
            )
        _check_range("port", self.port, 1, 65535)
        if self.threads is not None:
            _check_range("threads", self.threads, 1, 1024)
        _check_range("queue size", self.queue_size, 1, 10_000)
        for name in (f.name for f in fields(self) if f.name.endswith("_bytes")):
            _check_range(name.replace("_", " "), getattr(self, name), MIB, 2**40)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise BadInputError(
                f"The device {self.device!r} is unknown. Use auto, cpu, cuda or cuda:N."
            )
        if self.backend not in BACKENDS:
            raise BadInputError(
                f"The backend {self.backend!r} is unknown. Use one of {', '.join(BACKENDS)}."
            )
        if self.gallery_dir is not None and not self.gallery_dir.is_dir():
            raise BadInputError(
                f"The gallery {str(self.gallery_dir)!r} is no folder. Give a folder with photos."
            )
        if self.runs is not None and self.runs.is_dir():
            raise BadInputError(
                f"The place for runs {str(self.runs)!r} is a folder. "
                "Give a file, such as runs.sqlite; it is made where there is none."
            )
        if self.traces is not None and self.traces.exists() and not self.traces.is_dir():
            raise BadInputError(
                f"The place for traces {str(self.traces)!r} is a file. "
                "Give a folder; it is made where there is none."
            )
        for name in self.timm:
            if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name):
                raise BadInputError(
                    f"The timm network {name!r} is no name of timm's. "
                    "Give one of timm.list_models(), such as resnet18."
                )
        for name in self.trusted_hosts:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]", name):
                raise BadInputError(
                    f"The trusted host {name!r} is no host name. Give it without scheme, port and "
                    "path: lab.example.org, *.example.org or an IP address."
                )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Defaults changed by WORKBENCH_HOST, WORKBENCH_PORT, WORKBENCH_GALLERY_DIR and so on."""
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, text in environ.items():
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX).lower()
            if name not in known:
                allowed = ", ".join(PREFIX + n.upper() for n in known)
                raise BadInputError(f"The variable {key} is unknown. There are: {allowed}.")
            try:
                values[name] = _parse(name, text)
            except (ValueError, KeyError):
                raise BadInputError(
                    f"{key} is {text!r}, but a {known[name].type} is needed."
                ) from None
        return cls(**values)

    @classmethod
    def from_args(
        cls, argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Settings:
        """`from_env`, changed by the flags of `app.py`; a bad value ends the program in words."""
        parser = argument_parser()
        given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
        try:
            for name in LISTS:
                if name in given:
                    given[name] = tuple(given[name])
            return replace(cls.from_env(environ), **given)
        except BadInputError as error:
            parser.error(str(error))


def argument_parser() -> argparse.ArgumentParser:
    """Flags of `app.py`; None means "not given", so that the environment's value stays."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="EfficientVMamba Workbench: serve the page."
    )
    parser.add_argument(
        "--host", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, help="port (default 7860)")
    parser.add_argument(
        "--gallery", dest="gallery_dir", type=Path, metavar="DIR", help="add the photos of a folder"
    )
    add_compute_arguments(parser)
    parser.add_argument(
        "--timm",
        action="append",
        metavar="NAME",
        help="also offer this network of timm beside ours (repeatable)",
    )
    parser.add_argument(
        "--trusted-host",
        dest="trusted_hosts",
        action="append",
        metavar="NAME",
        help="also answer under this name (repeatable); needed behind a proxy or on a network",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="keep the profiler's runs in this file (default: in your data folder)",
    )
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="DIR",
        help="keep traces for the timeline viewer in this folder (default: in your cache folder)",
    )
    parser.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="open a browser at start (default: no)",
    )
    return parser


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the numbers are computed: the flags that `app.py` and `python -m workbench` share."""
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--backend", help=f"scan kernels: {', '.join(BACKENDS)} (default auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BadInputError(f"The {name} is {value}; it must be from {low} to {high}.")


def _parse(name: str, text: str) -> Any:
    """Value of one environment variable; ValueError where the text does not fit."""
    if name in ("port", "queue_size", "threads") or name.endswith("_bytes"):
        return int(text)
    if name == "browser":
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
            text.lower()
        ]
    if name in ("gallery_dir", "example", "runs", "traces"):
        return Path(text)
    if name in LISTS:
        return tuple(part for part in re.split(r"[,\s]+", text) if part)
    return text
