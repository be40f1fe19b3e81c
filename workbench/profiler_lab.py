"""The profiler lab: sweeps, traces, and the runs that are kept and compared.

A sweep or a trace that was measured to its end is kept in the run store, and a sweep that was
stopped half way or later. The page, the command line and the API call this facade.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from workbench import __version__, choices
from workbench.analyses import sweep as sweeping
from workbench.analyses import sweep_request, tracing
from workbench.analyses.compare_runs import compare_runs
from workbench.analyses.tensorboard_export import tensorboard_line, write_logdir
from workbench.analyses.traces import read_trace
from workbench.cache import run_key
from workbench.choices import check_choice
from workbench.errors import BadInputError, CancelledError, WorkbenchError
from workbench.perfetto import TraceFiles, is_installed, perfetto_url, trace_files
from workbench.profiler_results import RunComparison, SweepResult, TraceResult
from workbench.progress import CancelToken, Progress
from workbench.runs import Run, RunStore, default_path
from workbench.view import (
    MAX_PROF_BATCH,
    MAX_PROF_STEPS,
    PROF_AXES,
    PROF_DTYPES,
    PROF_PASSES,
    PROF_SUBJECTS,
    View,
)

if TYPE_CHECKING:
    from models import EfficientVMamba
    from workbench.runtime import Workbench

MAX_LOGGED = 16  # traces in the log directory for TensorBoard
DEFINITION = (
    "torch.profiler (Kineto) over the steps, after one step to warm up; self time without called "
    "operators; the profiler itself slows every operator by microseconds"
)


class ProfilerLab:
    """Facade over the profiler's analyses; the workbench lends models, cache and device."""

    def __init__(self, workbench: Workbench) -> None:
        self._wb = workbench
        self._lock = threading.Lock()
        self._again: dict[str, int] = {}  # run key -> how often it was asked for anew
        self._names: dict[str, str] = {}  # of traces that were brought
        self.last: Run | None = None  # what was kept last
        self.problem = ""  # why the last run was not kept

    # What is kept

    @cached_property
    def runs(self) -> RunStore:
        """The store of runs; raises a `WorkbenchError` where its file cannot be used."""
        settings = self._wb.settings
        return RunStore(settings.runs or default_path(), settings.runs_bytes)

    @cached_property
    def files(self) -> TraceFiles:
        """Traces that the page can open or hand out; the oldest go when there are too many."""
        return trace_files(self._wb.settings)

    def listed(self, search: str = "") -> tuple[Run, ...]:
        """Kept runs, newest first; none where the store cannot be opened (`problem` says why)."""
        try:
            return self.runs.list(search)
        except WorkbenchError as error:
            self.problem = str(error)
            return ()

    def notes(self) -> tuple[str, ...]:
        """What a reader of the list of runs must know."""
        store = self.__dict__.get("runs")
        return tuple(filter(None, (*(store.notes if store else ()), self.problem)))

    def keep(self, result: SweepResult | TraceResult, name: str = "") -> Run | None:
        """Put a result into the store; None, with `problem`, where that fails: nothing is lost on
        the page."""
        try:
            self.last = self.runs.add(result, name)
        except WorkbenchError as error:
            self.problem = str(error)
            return None
        self.problem = ""
        return self.last

    def compare(self, a: str, b: str) -> RunComparison:
        """Two kept runs of a kind, by id or name; ratios are b over a."""
        first, second = self.runs.get(a), self.runs.get(b)
        return compare_runs(
            self.runs.result(first.id),
            self.runs.result(second.id),
            first.name or first.id,
            second.name or second.id,
        )

    def compared(self, view: View) -> RunComparison | None:
        """The two runs that the view names."""
        return self.compare(*view.prof_runs) if len(view.prof_runs) == 2 else None

    def compared_sweeps(self, view: View) -> tuple[SweepResult, SweepResult] | None:
        """The two sweeps themselves, where the compared runs are sweeps."""
        if len(view.prof_runs) != 2:
            return None
        a, b = (self.runs.result(run) for run in view.prof_runs)
        return (a, b) if isinstance(a, SweepResult) and isinstance(b, SweepResult) else None

    # What can be asked for

    def resolve(self, view: View) -> View:
        """The view with every choice of the lab checked."""
        check_choice("subject of a sweep", view.prof_subject, list(PROF_SUBJECTS))
        check_choice("axis", view.prof_axis, list(PROF_AXES))
        check_choice("passes", view.prof_passes, list(PROF_PASSES))
        check_choice("dtype", view.prof_dtype, list(PROF_DTYPES))
        fits = sweep_request.AXES[view.prof_axis].subjects
        if view.prof_subject not in fits:
            raise BadInputError(
                f"The axis {view.prof_axis!r} does not fit the subject {view.prof_subject!r}. "
                f"It fits: {', '.join(fits)}."
            )
        for name, value, high in (
            ("batch", view.prof_batch, MAX_PROF_BATCH),
            ("steps", view.prof_steps, MAX_PROF_STEPS),
        ):
            if not 1 <= value <= high:
                raise BadInputError(f"{name} is {value}: choose a number from 1 to {high}.")
        if view.prof_trace:
            self.files.path(view.prof_trace)
        if len(view.prof_runs) > 2:
            raise BadInputError(f"{len(view.prof_runs)} runs were given; two are compared.")
        for run in view.prof_runs:
            self.runs.get(run)
        return view

    def axes(self, subject: str) -> dict[str, str]:
        """Label of every axis that fits a subject."""
        return {name: a.label for name, a in sweep_request.AXES.items() if subject in a.subjects}

    def again(self, view: View) -> None:
        """Measure anew what the view shows: times are no property of the view."""
        view = self._wb.resolve(view)
        with self._lock:
            for key in (self._sweep_key(view), self._trace_key(view)):
                self._again[key] = self._again.get(key, 0) + 1

    # Measuring

    def sweep(
        self, view: View, token: CancelToken | None = None, values: tuple[Any, ...] | None = None
    ) -> Iterator[Progress | SweepResult]:
        """Progress and growing results; the last is final. `values` of the axis, None for its
        usual ones."""
        view = self._wb.resolve(view)
        key = self._numbered(self._sweep_key(view, values))
        if (kept := self._wb.results.get(key)) is not None:
            yield kept
            return
        for scan in (view.scan_a, view.scan_b):
            choices.check_runnable(scan)
        request = sweep_request.SweepRequest(
            subject=view.prof_subject,
            axis=view.prof_axis,
            passes=view.prof_passes,
            model=view.model,
            scans=(view.scan_a, view.scan_b),
            size=view.size,
            batch=view.prof_batch,
            dtype=view.prof_dtype,
            values=values,
        )

        def make(model: str, scan: str) -> EfficientVMamba:
            other = view if model == view.model else replace(view, model=model, weights="random")
            return models.with_scan(self._wb.weighted(other, "a"), scan)

        run = sweeping.sweep(
            request,
            make,
            device=self._wb.device,
            backend=self._wb.backend,
            provenance=self._wb.provenance(view, "a"),
            token=token,
        )
        last: SweepResult | None = None
        try:
            for item in self._wb.stepwise(run, token):
                if isinstance(item, SweepResult):
                    last = item
                    if item.is_final:
                        self._wb.results.keep(key, item)
                        self.keep(item)
                yield item
        except (CancelledError, GeneratorExit, KeyboardInterrupt):
            if last is not None and not last.is_final:
                stopped = replace(last, note=f"{last.note} Stopped early.".strip())
                self._wb.results.put(_stopped(key), stopped)
                # Half an axis is worth comparing; a change of mind is not.
                wanted = len(values or sweep_request.AXES[view.prof_axis].values)
                if 2 * len({point.label for point in last.points}) >= wanted:
                    self.keep(stopped)
            raise

    def kept_sweep(self, view: View) -> SweepResult | None:
        """The view's sweep as far as it was measured; None where it was not begun."""
        key = self._numbered(self._sweep_key(self._wb.resolve(view)))
        results = self._wb.results
        found: SweepResult | None = results.get(key) or results.get(_stopped(key))
        return found

    def trace(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | TraceResult]:
        """A trace of the view's network with scheme A, recorded now; or one that was brought."""
        view = self._wb.resolve(view)
        if view.prof_trace:
            yield from self._brought(view.prof_trace, token)
            return
        key = self._numbered(self._trace_key(view))
        if (kept := self._wb.results.get(key)) is not None and self._is_there(kept):
            yield kept
            return
        model = self._wb.twin(view, "a")
        pixels = tracing.batch_of(self._wb.input(view), view.prof_batch, self._wb.device)
        provenance = replace(
            self._wb.provenance(view, "a"),
            definition=DEFINITION,
            parameters={
                "size": view.size,
                "fit": view.fit,
                "batch": view.prof_batch,
                "passes": view.prof_passes,
                "steps": view.prof_steps,
            },
        )
        with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
            path = Path(folder) / "trace.json.gz"
            recorded = tracing.record_trace(
                model,
                pixels,
                passes=view.prof_passes,
                steps=view.prof_steps,
                path=path,
                token=token,
            )
            for step in self._wb.stepwise(recorded, token):
                if isinstance(step, Progress):
                    yield step
            file = self.files.keep(path)
            for item in read_trace(
                path,
                provenance=provenance,
                source="profiled here",
                passes=view.prof_passes,
                token=token,
            ):
                if isinstance(item, TraceResult):
                    fused = tracing.unlisted_note(model, [row.path for row in item.modules])
                    notes = tuple(filter(None, (*item.notes, fused)))
                    item = self._wb.results.keep(key, replace(item, file=file, notes=notes))
                    self.keep(item)
                yield item

    def bring(self, path: Path) -> str:
        """Keep a trace that a user brings for the page; its token, for `View.prof_trace`."""
        token: str = self.files.keep(path)
        self._names[token] = path.name
        return token

    def read(
        self, path: Path, name: str = "", token: CancelToken | None = None
    ) -> Iterator[Progress | TraceResult]:
        """Tables of any trace file, of any size; the result is kept in the store."""
        for item in read_trace(path, name=name or path.name, token=token):
            if isinstance(item, TraceResult):
                self.keep(item, "")
            yield item

    def ways_out(self, result: TraceResult) -> dict[str, str]:
        """Where the page finds the trace itself: the address of its file, Perfetto with it, and
        the line that opens it in TensorBoard."""
        if not self._is_there(result):
            return {}
        url = self.files.url(result.file)
        found = {"download": url, "tensorboard": self._tensorboard(result.file)}
        if is_installed():
            found["perfetto"] = perfetto_url(url)
        return found

    def _tensorboard(self, file: str) -> str:
        """Every trace shown here is a run of one log directory, which ends with the server."""
        logdir = self._logdir / file[:8]
        if not logdir.is_dir():
            write_logdir(self.files.path(file), logdir)
            runs = sorted(self._logdir.iterdir(), key=lambda run: run.stat().st_mtime)
            for run in runs[:-MAX_LOGGED]:
                shutil.rmtree(run, ignore_errors=True)
        return tensorboard_line(self._logdir)

    @cached_property
    def _logdir(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="workbench-tensorboard-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    # Inside

    def _brought(self, file: str, token: CancelToken | None) -> Iterator[Progress | TraceResult]:
        key = run_key("brought trace", file=file)
        if (kept := self._wb.results.get(key)) is not None:
            yield kept
            return
        # A file of 100 MB may unpack to a hundred times that.
        limit = 10 * self._wb.settings.max_trace_bytes
        path = self.files.path(file)
        name = self._names.get(file, "the file that was opened")
        for item in read_trace(path, name=name, max_bytes=limit, token=token):
            if isinstance(item, TraceResult):
                item = self._wb.results.keep(key, replace(item, file=file))
                self.keep(item)
            yield item

    def _is_there(self, result: TraceResult) -> bool:
        try:
            self.files.path(result.file)
        except WorkbenchError:
            return False
        return True

    def _sweep_key(self, view: View, values: tuple[Any, ...] | None = None) -> str:
        return self._wb.key(
            "sweep",
            view,
            "a",
            subject=view.prof_subject,
            axis=view.prof_axis,
            passes=view.prof_passes,
            batch=view.prof_batch,
            dtype=view.prof_dtype,
            values=values,
            scans=(view.scan_a, view.scan_b),
        )

    def _trace_key(self, view: View) -> str:
        return run_key(
            "trace",
            version=__version__,
            view=self._wb.key("trace", view, "a", photo=self._wb.photos.get(view.photo).sha256),
            passes=view.prof_passes,
            batch=view.prof_batch,
            steps=view.prof_steps,
        )

    def _numbered(self, key: str) -> str:
        return f"{key} {self._again.get(key, 0)}"


def _stopped(key: str) -> str:
    """Where the last result of a sweep that was stopped is kept."""
    return f"{key} stopped"
