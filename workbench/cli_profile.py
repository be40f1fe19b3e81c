"""The command line's part of the profiler: sweeps, traces, kept runs and the guard for a CI."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInputError
from workbench.view import PROF_AXES, PROF_DTYPES, PROF_PASSES, PROF_SUBJECTS, View

if TYPE_CHECKING:
    from workbench.profiler_results import RunComparison, SweepResult, TraceResult
    from workbench.runs import RunStore
    from workbench.runtime import Workbench

SLOWER = 1  # exit status of --fail-over
LATEST = "latest"
Follow = Callable[[Iterator[Any]], Any]


def add_profile_arguments(command: argparse.ArgumentParser) -> None:
    add, view = command.add_argument, View()
    add(
        "--sweep",
        nargs="?",
        const=view.prof_axis,
        choices=PROF_AXES,
        metavar="AXIS",
        help=f"instead times along one axis: {', '.join(PROF_AXES)} (default size)",
    )
    add("--subject", default=view.prof_subject, choices=PROF_SUBJECTS, help="of the sweep")
    add("--values", metavar="V,V", help="values of the axis, such as 64,128,224")
    add("--passes", default=view.prof_passes, choices=PROF_PASSES, help="train: with backward")
    add("--batch", type=int, default=view.prof_batch, help="images per pass (default 1)")
    add("--dtype", default=view.prof_dtype, choices=PROF_DTYPES, help="of the sweep")
    add(
        "--trace",
        nargs="?",
        const="",
        metavar="FILE",
        help="instead tables of a trace: of --steps steps recorded now, or of FILE, a Chrome trace "
        "(.json or .json.gz, of any size) of torch.profiler on a CPU, CUDA or ROCm",
    )
    add(
        "--steps",
        type=int,
        default=view.prof_steps,
        help="traced steps (default 6); two traces are compared with intervals from 4 steps on",
    )
    add("--save-trace", type=Path, metavar="FILE", help="also write the trace itself, as .json.gz")
    add("--tensorboard", type=Path, metavar="DIR", help="also write a log directory with the trace")
    add("--name", default="", help="name under which the run is kept")
    add(
        "--compare",
        dest="compare_runs",
        nargs=2,
        metavar=("A", "B"),
        help="instead compare two kept runs, by id, name, exported file, or 'latest'",
    )
    add(
        "--fail-over",
        metavar="PERCENT",
        help="with --compare: exit status 1 where B is slower than A by more, such as 10%%",
    )
    _add_store(command)


def add_runs(commands: Any) -> None:
    summary = "the kept runs: list, rename, delete, export, import"
    command = commands.add_parser("runs", help=summary, description=f"Shows {summary}.")
    _add_store(command)
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    store = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_store(store)  # before or after the action
    listing = actions.add_parser(
        "list", parents=[store], help="list them, newest first (the default)"
    )
    listing.add_argument("search", nargs="?", default="", help="words in name, title or device")
    rename = actions.add_parser("rename", parents=[store], help="name a run")
    rename.add_argument("run", help="id or name")
    rename.add_argument("name")
    delete = actions.add_parser("delete", parents=[store], help="delete runs")
    delete.add_argument("run", nargs="+", help="ids or names")
    export = actions.add_parser("export", parents=[store], help="write a run as one file")
    export.add_argument("run", help="id or name")
    export.add_argument("file", type=Path)
    bring = actions.add_parser("import", parents=[store], help="take runs from files")
    bring.add_argument("file", type=Path, nargs="+")


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runs", type=Path, metavar="FILE", help="store of runs (default: the user's own)"
    )


def profile_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the view that only `profile` has flags for."""
    return {
        "prof_subject": args.subject,
        "prof_axis": args.sweep or View().prof_axis,
        "prof_passes": args.passes,
        "prof_batch": args.batch,
        "prof_dtype": args.dtype,
        "prof_steps": args.steps,
    }


def profile_results(
    wb: Workbench, view: View, args: argparse.Namespace, follow: Follow
) -> dict[str, Any]:
    """Sweep and trace, as asked for; neither: both schemes, pass by pass in turn."""
    if args.fail_over:
        raise BadInputError("--fail-over needs --compare A B.")
    results: dict[str, Any] = {}
    if args.sweep:
        values = parse_values(args.values, args.sweep) if args.values else None
        results["sweep"] = follow(wb.profiler_lab.sweep(view, values=values))
        _named(wb, args)
    if args.trace is not None:
        results["trace"] = _trace(wb, view, args, follow)
        _named(wb, args)
    if not results:
        a, b = follow(wb.profile_pair(view))
        results = {"profile_a": a, "profile_b": b}
    return results


def _trace(wb: Workbench, view: View, args: argparse.Namespace, follow: Follow) -> TraceResult:
    lab = wb.profiler_lab
    if args.trace:
        path = Path(args.trace)
        if not path.is_file():
            raise BadInputError(f"There is no file {path}. Give a trace, or --trace alone.")
        result: TraceResult = follow(lab.read(path))
    else:
        result = follow(lab.trace(view))
        path = lab.files.path(result.file)
    if args.save_trace:
        _write_trace(path, args.save_trace)
    if args.tensorboard:
        from workbench.analyses.tensorboard_export import tensorboard_line, write_logdir

        write_logdir(path, args.tensorboard)
        print(tensorboard_line(args.tensorboard), file=sys.stderr)
    return result


def _write_trace(source: Path, target: Path) -> None:
    import shutil

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise BadInputError(f"{target} cannot be written: {error.strerror}.") from error


def _named(wb: Workbench, args: argparse.Namespace) -> None:
    """Name the run that was just kept, and say where it is."""
    lab = wb.profiler_lab
    if lab.problem or lab.last is None:
        print(f"not kept: {lab.problem}", file=sys.stderr)
        return
    run = lab.last
    if args.name:
        run = lab.runs.rename(run.id, args.name)
    print(f"kept as run {run.id}{f', {run.name}' if run.name else ''}", file=sys.stderr)


def parse_values(text: str, axis: str) -> tuple[Any, ...]:
    """ "64,128" as the values of an axis."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if axis not in ("size", "batch", "step"):
        return tuple(parts)
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise BadInputError(f"--values {text!r}: whole numbers with commas between, like 64,128.")
    return tuple(int(part) for part in parts)


def show_sweep(result: SweepResult) -> None:
    print(
        f"  {result.axis_label:26} {'line':16} {'p20':>8} {'p50 ms':>8} {'p80':>8} {'images/s':>9}"
    )
    for p in result.points:
        head = f"  {p.label:26} {p.series:16}"
        times = f"{p.p20_ms:8.4g} {p.p50_ms:8.4g} {p.p80_ms:8.4g} {p.images_per_second:9.4g}"
        print(f"{head} {times if p.is_measured else p.status}")
    for fit in result.fits:
        interval = f"[{fit.low:.2f}, {fit.high:.2f}]"
        print(f"  {fit.series}: time grows with the power {fit.slope:.2f} {interval}")


def show_trace(result: TraceResult, n_rows: int = 10) -> None:
    is_gpu = any(row.self_gpu_ns for row in result.operators)
    print(f"  {'operator':44} {'calls':>7} {'self CPU, ms':>13} {'self GPU, ms':>13}")
    for row in result.operators[:n_rows]:
        gpu = f"{row.self_gpu_ns / 1e6:13.4g}" if is_gpu else ""
        print(f"  {row.name[:44]:44} {row.calls:7,} {row.self_cpu_ns / 1e6:13.4g} {gpu}")
    print(f"  {'module':44} {'calls':>7} {'CPU, ms':>13} {'GPU, ms':>13}")
    for module in [m for m in result.modules if m.depth <= 2][:n_rows]:
        gpu = f"{module.total_gpu_ns / 1e6:13.4g}" if is_gpu else ""
        name = module.path or module.kind
        print(f"  {name[-44:]:44} {module.calls:7,} {module.total_cpu_ns / 1e6:13.4g} {gpu}")


def compare_command(args: argparse.Namespace) -> int:
    """Two runs side by side; with `--fail-over`, 1 where the second is slower."""
    from workbench.analyses.compare_runs import compare_runs, lost, regressions
    from workbench.files import result_files, save_files

    limit = _percent(args.fail_over) if args.fail_over else None
    store = _store(args)
    (name_a, a), (name_b, b) = (_run(store, text) for text in args.compare_runs)
    comparison = compare_runs(a, b, name_a, name_b)
    show_comparison(comparison)
    files = result_files(
        {"comparison": comparison}, args.format, name="comparison", title="runs", rgb=None
    )
    for path in save_files(args.out, files):
        print(path)
    if limit is None:
        return 0
    slower, missing = regressions(comparison, limit), lost(comparison)
    for row in slower:
        words = f"{row.ratio:.3f} times, 95 % interval {row.low:.3f} to {row.high:.3f}"
        print(f"slower: {row.table} {row.name}: {words}", file=sys.stderr)
    for row in missing:
        print(f"not measured any more: {row.table} {row.name}", file=sys.stderr)
    if not slower and not missing:
        print(f"nothing is slower by more than {limit:g} %", file=sys.stderr)
    return SLOWER if slower or missing else 0


def show_comparison(comparison: RunComparison, n_rows: int = 12) -> None:
    print(f"\n{comparison.a} beside {comparison.b}")
    for note in comparison.notes:
        print(f"  {note}")
    tables = dict.fromkeys(row.table for row in comparison.rows)
    for table in tables:
        rows = [row for row in comparison.rows if row.table == table]
        print(f"  {table:34} {'a, ms':>9} {'b, ms':>9} {'b : a':>7}  95 % interval")
        for row in rows[:n_rows]:
            is_known = not math.isnan(row.low)
            interval = f"{row.low:.3f} to {row.high:.3f}" if is_known else "too few samples"
            print(
                f"    {row.name[:32]:32} {row.a_ms:9.4g} {row.b_ms:9.4g} {row.ratio:7.3f}  "
                f"{interval:16} {row.verdict}"
            )
        if len(rows) > n_rows:
            print(f"    and {len(rows) - n_rows} more")
    print()


def runs_command(args: argparse.Namespace) -> int:
    store = _store(args)
    for note in store.notes:
        print(note, file=sys.stderr)
    if args.action == "rename":
        run = store.rename(args.run, args.name)
        print(f"{run.id} {run.name}")
    elif args.action == "delete":
        for run in [store.get(text) for text in args.run]:
            store.delete(run.id)
            print(f"deleted {run.id} {run.name or run.title}")
    elif args.action == "export":
        store.export(args.run, args.file)
        print(args.file)
    elif args.action == "import":
        for file in args.file:
            run = store.import_file(file)
            print(f"{run.id} {run.name or run.title}")
    else:
        runs = store.list(getattr(args, "search", ""))
        for run in runs:
            size = f"{run.n_bytes / 1e6:.1f} MB"
            print(f"{run.id}  {run.created[:16]}  {run.kind:6} {size:>8}  {run.name or run.title}")
        if not runs:
            print(f"No run in {store.path}. `profile --sweep` and `profile --trace` make some.")
    return 0


def _store(args: argparse.Namespace) -> RunStore:
    from workbench.runs import RunStore, default_path
    from workbench.settings import Settings

    settings = Settings.from_env()
    return RunStore(args.runs or settings.runs or default_path(), settings.runs_bytes)


def _run(store: RunStore, text: str) -> tuple[str, SweepResult | TraceResult]:
    """Name and result of a kept run, or of a file that `runs export` wrote."""
    if Path(text).is_file():
        from workbench.export import load_results

        results = load_results(Path(text)).results
        found = [results[kind] for kind in ("sweep", "trace") if kind in results]
        if len(found) != 1:
            raise BadInputError(f"{text} holds no run. Give a file of `runs export`.")
        return Path(text).name, found[0]
    if text == LATEST:
        runs = store.list()
        if not runs:
            raise BadInputError(f"No run is kept in {store.path}, so there is no latest one.")
        run = runs[0]
    else:
        run = store.get(text)
    return run.name or run.id, store.result(run.id)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000:
        raise BadInputError(f"--fail-over {text!r}: give per cent from 0 to 1000, such as 10%.")
    return value
