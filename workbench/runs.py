"""The run store: sweeps and traces kept between sessions, in one SQLite file.

Any number of threads and processes may use a file at once: each call opens its own connection and
is one transaction, so a process killed in the middle of a write leaves what was committed before.
A run is kept as the bytes that `export.pack` makes of its result: data, never code. Its id comes
from those data, so that the same result, stored or imported twice, is one run.

Room is bounded: where a new run does not fit, the oldest runs without a name go. A damaged file is
set aside, never deleted, and the runs that can still be read are taken over.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import sqlite3
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from workbench import __version__, export
from workbench.errors import BadInputError, NotAvailableError
from workbench.profiler_results import SweepResult, TraceResult

T = TypeVar("T")
Result = SweepResult | TraceResult

KINDS: dict[str, type] = {"sweep": SweepResult, "trace": TraceResult}
SUFFIXES = (".sqlite", ".sqlite3", ".db")
MAX_NAME = 80
MAX_WORDS = 200  # characters of a title or a device
SHORTEST_PREFIX = 4
MAX_NOTES = 20
APPLICATION_ID = 0x45564D57  # "EVMW", so that another program's file is told apart

# Statements that lead from schema n to n + 1; the schema of this version is their number. A new
# schema is a new entry here, and old ones stay as they are.
MIGRATIONS: list[tuple[str, ...]] = [
    (
        """CREATE TABLE runs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            digest TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, name TEXT NOT NULL,
            title TEXT NOT NULL, created TEXT NOT NULL, device TEXT NOT NULL,
            n_bytes INTEGER NOT NULL, version TEXT NOT NULL)""",
        "CREATE UNIQUE INDEX runs_by_name ON runs (name) WHERE name <> ''",
        # Apart, so that listing the runs does not read their data.
        """CREATE TABLE payloads (
            seq INTEGER PRIMARY KEY REFERENCES runs (seq), payload BLOB NOT NULL)""",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One stored run, without its data."""

    id: str  # 12 hexadecimal digits
    kind: str  # "sweep" or "trace"
    name: str  # "": none; such runs go first where room is needed
    title: str  # one line: what was measured
    created: str  # ISO 8601, UTC
    device: str
    n_bytes: int  # of its data in the store
    version: str  # of the workbench that made it


COLUMNS = ", ".join(f.name for f in fields(Run))


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`runs.sqlite` in the user's data folder: XDG_DATA_HOME, else ~/.local/share."""
    base = Path(environ.get("XDG_DATA_HOME") or "")
    if not base.is_absolute():  # as the XDG rules ask
        base = Path.home() / ".local" / "share"
    return base / "efficientvmamba-workbench" / "runs.sqlite"


class RunStore:
    """Runs in the file `path`, at most `quota_bytes` of data together.

    A call waits up to `busy_seconds` for other writers. NotAvailableError: the file is locked for
    longer, cannot be written, or is of a newer workbench. BadInputError: it is another program's.
    """

    def __init__(self, path: Path, quota_bytes: int, *, busy_seconds: float = 10.0) -> None:
        self.path = Path(path).expanduser()
        self.quota_bytes = quota_bytes
        self.busy_seconds = busy_seconds
        self._notes: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._do(lambda db: None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What this store set aside or removed by itself, in words, oldest first."""
        return self._notes

    def add(self, result: Result, name: str = "") -> Run:
        """Keep a result. One that is kept already gives its run, with the new name if there is one.

        A taken name gets a number ("baseline 2"): a measurement is never lost to its name.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self._insert(result, _clean_name(name), now, __version__, renames=True)

    def list(self, search: str = "", kind: str = "") -> tuple[Run, ...]:
        """Newest first; of those with every word of `search` in name, title, device or kind, or at
        the start of the id."""
        if kind and kind not in KINDS:
            raise BadInputError(f"The kind {kind!r} is unknown. Use one of {', '.join(KINDS)}.")
        runs = self._do(lambda db: _select(db, "1 ORDER BY created DESC, seq DESC"))
        words = search.casefold().split()

        def is_wanted(run: Run) -> bool:
            text = " ".join((run.name, run.title, run.device, run.kind)).casefold()
            has_words = all(word in text or run.id.startswith(word) for word in words)
            return has_words and (not kind or run.kind == kind)

        return tuple(run for run in runs if is_wanted(run))

    def get(self, id_or_name: str) -> Run:
        """The run with this id, name, or start of an id that no other run has."""
        return self._do(lambda db: _find(db, id_or_name))

    def result(self, id_or_name: str) -> Result:
        return self._load(id_or_name)[1]

    def rename(self, id_or_name: str, name: str) -> Run:
        """Give a run a name that no other has; "" takes its name away."""
        name = _clean_name(name)

        def work(db: sqlite3.Connection) -> Run:
            run = _find(db, id_or_name)
            if name and any(r.id != run.id for r in _select(db, "name = ?", name)):
                raise BadInputError(f"Another run is named {name!r}. Choose another name.")
            db.execute("UPDATE runs SET name = ? WHERE id = ?", (name, run.id))
            return replace(run, name=name)

        return self._do(work, writes=True)

    def delete(self, id_or_name: str) -> Run:
        """Remove a run for good; returns what it was."""

        def work(db: sqlite3.Connection) -> Run:
            run = _find(db, id_or_name)
            _delete(db, [run.id])
            return run

        return self._do(work, writes=True)

    def export_bytes(self, id_or_name: str) -> bytes:
        """One zip that `import_file`, and any reader of the workbench's exports, takes."""
        run, result = self._load(id_or_name)
        about = {"name": run.name, "created": run.created, "version": run.version}
        return export.pack({run.kind: result}, extra={"run": about})

    def export(self, id_or_name: str, path: Path) -> Path:
        """`export_bytes` as a file, written whole or not at all."""
        data = self.export_bytes(id_or_name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError as error:
            raise BadInputError(f"{path} cannot be written: {error}. Give another file.") from error
        return path

    def import_file(self, path: Path) -> Run:
        """Keep the run of an exported file; one that is kept already gives its run."""
        try:
            with path.open("rb") as file:
                data = file.read(self.quota_bytes + 1)
        except OSError as error:
            raise BadInputError(f"{path.name} cannot be read: {error}.") from error
        return self.import_bytes(data)

    def import_bytes(self, data: bytes) -> Run:
        """As `import_file`. Nothing of a file is trusted: types, sizes and indices are checked."""
        self._check_room(len(data), "The file")
        bundle = export.unpack(data)
        found = [r for r in bundle.results.values() if isinstance(r, SweepResult | TraceResult)]
        if len(found) != 1:
            raise BadInputError(
                f"The file holds {len(found)} sweeps or traces; an exported run holds one. "
                "Export the run again from the list of runs."
            )
        if problem := _problem(found[0]):
            raise BadInputError(f"The run is damaged: {problem}. Export it again.")
        about = bundle.extra.get("run", {})
        words = {"name": "", "created": "", "version": bundle.workbench_version}
        if isinstance(about, dict):
            words |= about
        if not isinstance(about, dict) or not all(isinstance(w, str) for w in words.values()):
            raise BadInputError("The description of the run is damaged. Export it again.")
        name, created, version = words["name"], words["created"], words["version"]
        return self._insert(
            found[0], _clean_name(name), _clean_time(created), _line(version)[:40], renames=False
        )

    def _insert(
        self, result: Result, name: str, created: str, version: str, *, renames: bool
    ) -> Run:
        if isinstance(result, TraceResult):
            # The token of a file that this server may not serve tomorrow, or never did.
            result = replace(result, file="")
        kind = next(k for k, v in KINDS.items() if isinstance(result, v))
        payload = export.pack({kind: result})
        self._check_room(len(payload), "The result")
        try:  # what cannot be read back must not look stored
            export.unpack(payload)
        except BadInputError as error:
            raise BadInputError(f"The result cannot be stored: {error}") from error
        digest = hashlib.sha256(export.to_json(result) + export.to_npz(result)).hexdigest()

        def work(db: sqlite3.Connection) -> tuple[Run, tuple[Run, ...]]:
            if known := _select(db, "digest = ?", digest):
                run = known[0]
                if name and name != run.name and (renames or not run.name):
                    run = replace(run, name=_free_name(db, name))
                    db.execute("UPDATE runs SET name = ? WHERE id = ?", (run.name, run.id))
                return run, ()
            run = Run(
                id=_free_id(db, digest),
                kind=kind,
                name=_free_name(db, name),
                title=_title(result),
                created=created,
                device=_device(result),
                n_bytes=len(payload),
                version=version,
            )
            values = [getattr(run, f.name) for f in fields(Run)]
            marks = ", ".join("?" * len(values))
            cursor = db.execute(
                f"INSERT INTO runs ({COLUMNS}, digest) VALUES ({marks}, ?)", (*values, digest)
            )
            db.execute("INSERT INTO payloads VALUES (?, ?)", (cursor.lastrowid, payload))
            return run, self._make_room(db, run)

        run, removed = self._do(work, writes=True)
        if removed:
            titles = "; ".join(r.title for r in removed[:3]) + ("; ..." if removed[3:] else "")
            self._note(
                f"{len(removed)} of the oldest runs without a name made room for the new one "
                f"(at most {_size(self.quota_bytes)}): {titles}. Name the runs to keep."
            )
        return run

    def _make_room(self, db: sqlite3.Connection, new: Run) -> tuple[Run, ...]:
        """Delete the oldest unnamed runs until all fit; BadInputError where names hold it all."""
        (used,) = db.execute("SELECT sum(n_bytes) FROM runs").fetchone()
        removed = []
        for run in _select(db, "name = '' AND id <> ? ORDER BY seq", new.id):
            if used <= self.quota_bytes:
                break
            removed.append(run)
            used -= run.n_bytes
        if used > self.quota_bytes:
            raise BadInputError(
                f"The run needs {_size(new.n_bytes)}, but runs with a name fill the store's "
                f"{_size(self.quota_bytes)}. Delete one of them, take a name away, or raise "
                "WORKBENCH_RUNS_BYTES."
            )
        _delete(db, [run.id for run in removed])
        return tuple(removed)

    def _check_room(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.quota_bytes:
            raise BadInputError(
                f"{what} is larger than the whole store ({_size(self.quota_bytes)}). "
                "Raise WORKBENCH_RUNS_BYTES."
            )

    def _load(self, id_or_name: str) -> tuple[Run, Result]:
        def work(db: sqlite3.Connection) -> tuple[Run, bytes]:
            run = _find(db, id_or_name)
            sql = "SELECT payload FROM payloads JOIN runs USING (seq) WHERE id = ?"
            row = db.execute(sql, (run.id,)).fetchone()
            return run, bytes(row[0]) if row else b""

        run, payload = self._do(work)
        try:
            return run, export.unpack(payload).results[run.kind]
        except (BadInputError, KeyError) as error:
            raise BadInputError(
                f"The run {run.name or run.id} cannot be read: it was damaged, or workbench "
                f"{run.version} wrote it in another format. Measure it again and delete this one."
            ) from error

    def _do(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """`work` in one transaction; a damaged file is set aside and `work` done on the new one."""
        for attempt in (1, 2):
            seen = self._identity()
            try:
                with contextlib.closing(self._connect()) as db:
                    db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                    value = work(db)
                    db.execute("COMMIT")
                    return value
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0)
                is_damaged = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
                # Another thread or process set the file aside in between.
                is_moved = code == sqlite3.SQLITE_READONLY_DBMOVED
                if attempt == 2 or not (is_damaged or is_moved):
                    raise self._in_words(error, code & 0xFF) from error
                if is_damaged:
                    self._set_aside(seen)
        raise AssertionError("the second attempt returns or raises")

    def _connect(self) -> sqlite3.Connection:
        if self.path.is_dir():
            raise BadInputError(f"{self.path} is a folder. Give the name of a file for the runs.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        db = sqlite3.connect(self.path, timeout=self.busy_seconds, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            if self._schema(db) < len(MIGRATIONS):
                self._migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _schema(self, db: sqlite3.Connection) -> int:
        """Number of the file's schema, 0 of a new file; refuses what is not ours to write."""
        db.execute("BEGIN")  # the three numbers of one moment
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        (n_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.execute("COMMIT")
        if application != APPLICATION_ID and (application or schema or n_tables):
            raise BadInputError(
                f"{self.path} is another program's database. Give another file: --runs FILE."
            )
        if schema > len(MIGRATIONS):
            raise NotAvailableError(
                f"{self.path} was written by a newer workbench (format {schema}; this one knows "
                f"{len(MIGRATIONS)}). Update this one, or give another file: --runs FILE."
            )
        return int(schema)

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Bring the file to this version's schema, all of it or nothing."""
        # A deleted run's space goes back to the disk; can be set on new files only.
        db.execute("PRAGMA auto_vacuum = FULL")
        deadline = time.monotonic() + self.busy_seconds
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:  # SQLite itself does not wait here
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        db.execute("BEGIN IMMEDIATE")
        (schema,) = db.execute("PRAGMA user_version").fetchone()  # another process may be first
        for statement in (s for step in MIGRATIONS[schema:] for s in step):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {max(len(MIGRATIONS), schema)}")
        db.execute("COMMIT")

    def _identity(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            stat = self.path.stat()
            return stat.st_dev, stat.st_ino
        return None

    def _set_aside(self, seen: tuple[int, int] | None) -> None:
        """Move the damaged file `seen` away and take over what can be read of it."""
        if self.path.suffix not in SUFFIXES:
            raise BadInputError(
                f"{self.path} is no run store. Give a file that is one, or a new name: --runs FILE."
            )
        with self._lock, _file_lock(self.path.with_name(self.path.name + ".lock")):
            if seen is None or self._identity() != seen:
                return  # done by another
            base = f"{self.path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S}"
            names = (base + (f"-{n}" if n else "") for n in range(10_000))
            aside = next(p for n in names if not (p := self.path.with_name(n)).exists())
            try:
                self.path.rename(aside)
                wal = self.path.with_name(self.path.name + "-wal")
                if wal.exists():  # else the new file would take it for its own
                    wal.rename(aside.with_name(aside.name + "-wal"))
                self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
            except OSError as error:
                raise self._not_writable(error) from error
            n = self._take_over(aside)
        self._note(
            f"The run store {self.path.name} was damaged. It was set aside as {aside.name} and a "
            f"new one was made; {n} of its runs could be read and were kept."
        )

    def _take_over(self, aside: Path) -> int:
        """Copy the readable runs of a damaged file into the new one."""
        n = 0
        columns = f"{COLUMNS}, digest"
        marks = ", ".join("?" * len(columns.split(",")))
        with (
            contextlib.closing(sqlite3.connect(aside, timeout=self.busy_seconds)) as old,
            contextlib.closing(self._connect()) as new,
        ):
            # Else SQLite reads nothing of a file that lost its end. Nothing is written here.
            old.execute("PRAGMA writable_schema = ON")
            old.execute("PRAGMA trusted_schema = OFF")
            new.execute("BEGIN IMMEDIATE")
            for seq in _readable(old, "SELECT seq FROM runs ORDER BY seq"):
                sql = f"SELECT {columns}, payload FROM runs JOIN payloads USING (seq) WHERE seq = ?"
                for *row, payload in _readable(old, sql, seq):
                    with contextlib.suppress(BadInputError, sqlite3.IntegrityError, TypeError):
                        export.unpack(payload)
                        cursor = new.execute(
                            f"INSERT INTO runs ({columns}) VALUES ({marks})", tuple(row)
                        )
                        new.execute(
                            "INSERT INTO payloads VALUES (?, ?)", (cursor.lastrowid, payload)
                        )
                        n += 1
            new.execute("COMMIT")
        return n

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes = (*self._notes, text)[-MAX_NOTES:]

    def _in_words(self, error: sqlite3.Error, code: int) -> Exception:
        """What a user can do about it; a defect of ours comes back as it is."""
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return NotAvailableError(
                f"Another program has been writing to {self.path} for {self.busy_seconds:g} s. "
                "Try again, or close it."
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return NotAvailableError(
                f"{self.path} cannot be written: {error}. Is the disk full? Free some space."
            )
        unwritable = ("READONLY", "CANTOPEN", "PERM", "CORRUPT", "NOTADB")
        if code in (getattr(sqlite3, f"SQLITE_{name}") for name in unwritable):
            return self._not_writable(error)
        return error

    def _not_writable(self, error: Exception) -> NotAvailableError:
        return NotAvailableError(
            f"The run store {self.path} cannot be written: {error}. "
            "Give a file in a folder that you may write to: --runs FILE or WORKBENCH_RUNS."
        )


def _select(db: sqlite3.Connection, where: str, *values: str) -> tuple[Run, ...]:
    rows = db.execute(f"SELECT {COLUMNS} FROM runs WHERE {where}", values)
    names = [f.name for f in fields(Run)]
    return tuple(Run(**dict(zip(names, row, strict=True))) for row in rows)


def _find(db: sqlite3.Connection, text: str) -> Run:
    """Id, then name, then the start of an id, then a name in other capitals."""
    text = unicodedata.normalize("NFC", text).strip()
    runs = _select(db, "1 ORDER BY seq")
    prefix = text.lower()
    is_prefix = SHORTEST_PREFIX <= len(prefix) <= 12 and re.fullmatch(r"[0-9a-f]+", prefix)
    for matches in (
        [r for r in runs if r.id == prefix],
        [r for r in runs if text and r.name == text],
        [r for r in runs if is_prefix and r.id.startswith(prefix)],
        [r for r in runs if text and r.name.casefold() == text.casefold()],
    ):
        if len(matches) > 1:
            several = ", ".join(f"{r.id} {r.name}".strip() for r in matches[:5])
            raise BadInputError(f"{_line(text)!r} may be any of {several}. Give more of it.")
        if matches:
            return matches[0]
    known = {key.casefold(): key for r in runs for key in (r.id, r.name) if key}
    near = [known[key] for key in difflib.get_close_matches(text.casefold(), known, 3, 0.5)]
    if near:
        advice = f"Near it: {', '.join(near)}."
    else:
        advice = "List the runs to see what there is." if runs else "No run is stored yet."
    raise BadInputError(f"There is no run {_line(text)[:MAX_NAME]!r}. {advice}")


def _delete(db: sqlite3.Connection, ids: list[str]) -> None:
    for run_id in ids:
        db.execute(
            "DELETE FROM payloads WHERE seq = (SELECT seq FROM runs WHERE id = ?)", (run_id,)
        )
        db.execute("DELETE FROM runs WHERE id = ?", (run_id,))


def _readable(db: sqlite3.Connection, sql: str, *values: Any) -> Iterator[Any]:
    """Rows of a damaged file, up to the first that cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        for row in db.execute(sql, values):
            yield row if len(row) > 1 else row[0]


def _free_id(db: sqlite3.Connection, digest: str) -> str:
    """The first 12 digits; of two results that agree in them, the second takes later ones."""
    starts = range(len(digest) - 11)
    return next(i for s in starts if not _select(db, "id = ?", i := digest[s : s + 12]))


def _free_name(db: sqlite3.Connection, name: str) -> str:
    taken = {run.name for run in _select(db, "name <> ''")}
    candidate, n = name, 2
    while candidate in taken:
        candidate = f"{name[: MAX_NAME - 7]} {n}"
        n += 1
    return candidate


def _clean_name(name: str) -> str:
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if len(name) > MAX_NAME or not name.isprintable():
        raise BadInputError(
            f"The name {_line(name)[:MAX_NAME]!r} cannot be used: give at most {MAX_NAME} "
            "printable characters."
        )
    if re.fullmatch(r"[0-9a-fA-F]{12}", name):
        raise BadInputError(f"The name {name!r} looks like the id of a run. Choose another name.")
    return name


def _clean_time(text: str) -> str:
    """An imported run's time in UTC; now, where it has none or lies in the future."""
    now = datetime.now(UTC)
    try:
        given = datetime.fromisoformat(text) if text else now
        utc = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadInputError("The time of the run is damaged. Export it again.") from None
    return min(utc, now).isoformat(timespec="seconds")


def _line(text: str) -> str:
    """Text of a file as one printable line."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:MAX_WORDS]


def _device(result: Result) -> str:
    return _line(result.device if isinstance(result, TraceResult) else result.provenance.device)


def _title(result: Result) -> str:
    """One line: what was measured."""
    passes = {"train": "forward and backward"}.get(result.passes, result.passes)
    if isinstance(result, TraceResult):
        n = len(result.steps)
        parts = [result.source, result.provenance.model, result.provenance.scan, passes]
        parts += [f"{n} step{'s' if n != 1 else ''}", f"{result.n_events:,} events"]
        return _line(", ".join(part for part in parts if part))
    subject = {"model": "whole network", "scan": "scan of the first block"}.get(result.subject, "")
    labels = list(dict.fromkeys(p.label for p in result.points))
    if result.is_numeric and len(labels) > 2:
        labels = [f"{labels[0]} to {labels[-1]}"]
    shown = ", ".join(labels[:6]) + (", ..." if labels[6:] else "")
    parts = [result.provenance.model if result.axis != "model" else "", subject, passes]
    parts.append(f"by {result.axis_label}: {shown}" if shown else f"by {result.axis_label}")
    if 1 < len(result.series) < 5:
        parts.append(" against ".join(result.series))
    if not result.is_final:
        parts.append("stopped")
    return _line(", ".join(part for part in parts if part))


def _problem(result: Result) -> str:
    """What of a file's run does not fit together, "" if all does: figures rely on it."""
    if isinstance(result, SweepResult):
        for point in result.points:
            samples = point.samples_ms
            is_time = samples.ndim == 1 and samples.dtype.kind == "f"
            if not is_time or not (np.isfinite(samples) & (samples >= 0)).all():
                return f"the times of {_line(point.label)!r} are no list of times"
            shown = (point.p20_ms, point.p50_ms, point.p80_ms)
            if point.is_measured and not (samples.size and np.isfinite(shown).all()):
                return f"{_line(point.label)!r} has no times"
            if point.series not in result.series:
                return f"{_line(point.label)!r} belongs to no line"
        return ""
    line = result.timeline
    n, n_steps = line.start_ns.shape, len(result.steps)
    tables = {
        "operators": (result.operator_steps_ns, (len(result.operators), n_steps)),
        "modules": (result.module_steps_ns, (len(result.modules), n_steps)),
        **{
            f"timeline.{key}": (getattr(line, key), n)
            for key in ("start_ns", "duration_ns", "lane", "depth", "name", "category")
        },
        **{f"memory {i}": (m.n_bytes, m.time_ns.shape) for i, m in enumerate(result.memory)},
        **{f"memory {i} times": (m.time_ns, m.n_bytes.shape) for i, m in enumerate(result.memory)},
    }
    for key, (array, shape) in tables.items():
        n_axes = 2 if key in ("operators", "modules") else 1
        if array.dtype.kind not in "iu" or array.ndim != n_axes or array.shape != shape:
            return f"the numbers of {key} do not fit its rows"
    for index, words in (
        (line.lane, line.lanes),
        (line.name, line.names),
        (line.category, line.categories),
    ):
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(words):
            return "the timeline names what is not in it"
    return ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.3g} MB"


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """One process at a time. Windows has no such lock, nor can it move a file that is in use."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
