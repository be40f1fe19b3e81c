"""Compiled kernels on disk: one compressed JSON file each, never executable, bounded in bytes.

A file's name is a digest of all that decides its content: the kernel's source with what it imports
from its own package, the configuration, the target, triton's version, and our own reading of the
machine code. A file that cannot be read is no file; where no folder can be written, nothing is
kept and everything still works.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import hashlib
import importlib.util
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from kernels._compiled.records import CompiledKernel, CompileError, Config, config_values

LIMIT_BYTES = 256 * 2**20
FOLDER = "efficientvmamba-workbench"


class Cache:
    """Compiled kernels in `folder`; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str) -> CompiledKernel | None:
        if self.folder is None:
            return None
        try:
            with gzip.open(self._path(key), "rt", encoding="utf-8") as file:
                return CompiledKernel.from_values(json.load(file))
        # EOFError: a file that was cut off; the others: not ours, or of another version.
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, kernel: CompiledKernel) -> None:
        if self.folder is None:
            return
        # A full or read-only disk costs time later, not the result now.
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                text = json.dumps(kernel.values()).encode()
                file.write(gzip.compress(text, compresslevel=5))
            Path(name).replace(self._path(key))
            self._shrink()

    def _shrink(self) -> None:
        """Delete the oldest files beyond the limit."""
        assert self.folder is not None
        files = [(path.stat(), path) for path in self.folder.glob("*.json.gz")]
        files.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
        used = 0
        for status, path in files:
            used += status.st_size
            if used > LIMIT_BYTES:
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json.gz"


def default_cache() -> Cache:
    """In the user's cache folder, else in the temporary folder, else nowhere."""
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home directory
        base = Path(home) if home else Path.home() / ".cache"
        if _is_writable(base / FOLDER / "compiled"):
            return Cache(base / FOLDER / "compiled")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"{FOLDER}-{user}" / "compiled"
    return Cache(folder if _is_writable(folder) else None)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cache_key(config: Config, target: str, triton_version: str) -> str:
    """CompileError where the configuration names no module or holds no plain values."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *source_files(config)]:
        digest.update(path.read_bytes())
    try:
        words = json.dumps([config_values(config), target, triton_version], sort_keys=True)
    except TypeError as error:
        message = f"configuration {config.name}: {error}; values must be numbers, texts or None"
        raise CompileError("input", message) from error
    digest.update(words.encode())
    return digest.hexdigest()[:32]


def sources(config: Config) -> dict[str, str]:
    """Texts of `source_files` by their path from the folder of the top-level package, the kernel's
    own module first; listings name them so."""
    own, top = config.module.replace(".", "/"), config.module.partition(".")[0]
    texts: dict[str, str] = {}
    for file in source_files(config):
        at = len(file.parts) - 1 - file.parts[::-1].index(top)
        texts["/".join(file.parts[at:])] = file.read_text(encoding="utf-8")
    return dict(sorted(texts.items(), key=lambda item: not item[0].startswith(own)))


def file_marks(config: Config) -> dict[str, list[int]]:
    """Each of `source_files` with its size and the time of its last change."""
    stats = {str(file): file.stat() for file in source_files(config)}
    return {file: [found.st_size, found.st_mtime_ns] for file, found in stats.items()}


def source_files(config: Config) -> list[Path]:
    """The kernel's module and, transitively, what it imports from its own top-level package."""
    try:
        spec = importlib.util.find_spec(config.module)
    except (ImportError, ValueError) as error:
        raise CompileError("input", f"configuration {config.name}: {error}") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        message = f"configuration {config.name}: there is no module {config.module!r}"
        raise CompileError("input", message)
    top = config.module.partition(".")[0]
    is_package = spec.submodule_search_locations is not None
    root = Path(spec.origin).parents[config.module.count(".") + is_package]
    found: dict[str, Path] = {}
    waiting = [config.module]
    while waiting:
        module = waiting.pop()
        path = _file(root, module)
        if path is None or module in found:
            continue
        found[module] = path
        is_init = path.name == "__init__.py"
        imported = _imports(module, is_init, path.read_text(encoding="utf-8"))
        waiting += [name for name in imported if name.partition(".")[0] == top]
    return [found[module] for module in sorted(found)]


def _file(root: Path, module: str) -> Path | None:
    stem = root.joinpath(*module.split("."))
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@lru_cache(maxsize=64)
def _imports(module: str, is_init: bool, source: str) -> tuple[str, ...]:
    """Names that may be modules; names of functions among them are no files and do no harm."""
    package = module.split(".") if is_init else module.split(".")[:-1]
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(names)
