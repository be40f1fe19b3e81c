"""`python -m workbench`: the analyses of the page, written to files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import cli_kernels, cli_profile
from workbench.errors import BadInputError, WorkbenchError
from workbench.files import FORMATS, result_files, save_files
from workbench.kernel_results import InspectResult, TokenCost, WhatIfResult
from workbench.profiler_results import SweepResult, TraceResult
from workbench.progress import Pace, Progress
from workbench.report import facts
from workbench.results import SchemeTableResult
from workbench.settings import Settings, add_compute_arguments
from workbench.view import ERF_DEFINITIONS, MAX_ERF_IMAGES, View

if TYPE_CHECKING:
    # Loading torch takes seconds; `--help` and mistakes in the flags should not wait for it.
    from workbench.local_weights import LocalWorkbench

SUMMARIES = {
    "scan": "the scan paths of one stage under two or three schemes",
    "erf": "the effective receptive field of one token under two schemes",
    "attribute": "the prediction and attribution maps, paths, implicit attention and checks",
    "profile": "times: of one forward pass under two schemes, along an axis, of a trace's parts",
}
BAD_INPUT = 2  # the exit status of argparse, too
INTERRUPTED = 130
READER_LEFT = 141  # as a shell counts a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where `--fail-over` found slower runs, 2 for bad input, 130 after
    Ctrl+C."""
    args = argument_parser().parse_args(argv)
    try:
        if args.command == "info":
            _info(args)
        elif args.command == "training":
            _training(args)
        elif args.command == "runs":
            return cli_profile.runs_command(args)
        elif args.command == "profile" and args.compare_runs:
            return cli_profile.compare_command(args)
        elif args.command == "scan" and args.probe:
            _probe(args)
        elif args.command in cli_kernels.SUMMARIES:
            _kernels(args)
        else:
            _analyse(args)
        sys.stdout.flush()
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `| head` has read enough; the interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    return 0


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    view = View()
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=f"Computes {summary}.")
        add = command.add_argument
        add("--model", default=view.model, help="a model of `info`, such as tiny (the default)")
        add(
            "--weights",
            default=view.weights,
            help="default, random, a name of `info`, FILE, FILE#entry or hf:OWNER/NAME (default: "
            "default, those trained with each scheme where they ship)",
        )
        add("--image", default=view.photo, help="a photo of `info`, or a file (default: chelsea)")
        add("--size", type=int, default=view.size, help="input pixels (default 224)")
        add("--fit", default=view.fit, help="crop or whole (default crop)")
        add("--scan", default=view.scan_a, help="scheme A (default es2d:step=2)")
        add("--scan-b", default=view.scan_b, help="scheme B, for comparison (default ss2d)")
        add("--stage", type=int, default=view.stage, help="1 to 4 (default 2)")
        add("--y", type=int, help="token row (default: the centre)")
        add("--x", type=int, help="token column (default: the centre)")
        add("--target", type=int, help="class index (default: the most probable)")
        if name == "profile":
            cli_profile.add_profile_arguments(command)
        if name == "scan":
            _add_scan_arguments(command)
        if name == "erf":
            _add_erf_arguments(command)
        if name == "attribute":
            _add_attribution_arguments(command)
        _add_files(command)
    _add_training(commands)
    cli_profile.add_runs(commands)
    cli_kernels.add_kernel_commands(commands, _add_files)
    info = commands.add_parser("info", help="what can be chosen: models, weights, scans, photos")
    _add_shared(info)
    return parser


def _add_scan_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--scan-c", metavar="SCHEME", help="scheme C, a third beside A and B")
    add("--reach", action="store_true", help="also what can influence the token, and how much")
    table = command.add_mutually_exclusive_group()
    table.add_argument(
        "--compare",
        nargs="+",
        metavar="SCHEME",
        help="also a table of these schemes: metrics, cost, latency",
    )
    table.add_argument("--all-schemes", action="store_true", help="also a table of every scheme")
    add("--no-latency", action="store_true", help="leave out the times of the table")
    add(
        "--probe",
        metavar="PACKAGE.MODULE:NAME[,MERGE]",
        help="instead probe your own operator, which is imported and run: its true path, what it "
        "loses, whether MERGE undoes it, whether the backward pass is right",
    )
    add("--height", type=int, default=6, help="tokens of the probed map (default 6)")
    add("--width", type=int, default=8, help="tokens of the probed map (default 8)")


def _add_erf_arguments(command: argparse.ArgumentParser) -> None:
    add, view = command.add_argument, View()
    add(
        "--images",
        type=int,
        metavar="N",
        help=f"images to average, at most {MAX_ERF_IMAGES} (default {view.erf_images}, of --folder "
        "all)",
    )
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="average over the photos below DIR instead of crops of the gallery",
    )
    add(
        "--net",
        dest="nets",
        action="append",
        metavar="NAME",
        help="a network beside the first, at most three: scan (the default: scheme B, with its own "
        "weights where they ship), weights (scheme B on the same weights), random, a model of "
        "`info`, timm:NAME, file:WEIGHTS, or none",
    )
    add("--unit", default=view.erf_unit, help="stage (default), block1, block1.scan, ...")
    add(
        "--definition",
        default=view.erf_definition,
        help=f"one of {', '.join(ERF_DEFINITIONS)} (default {view.erf_definition})",
    )
    add(
        "--gates",
        default=view.erf_gates,
        help="squeeze-excitation gates: live (default) or frozen",
    )
    add("--scale", default=view.erf_scale, help="colours: log (default), linear or power")
    add("--phases", action="store_true", help="also the tokens of one cell of ES2D")
    add("--paths", action="store_true", help="also the gradient by its path through each block")


def _add_attribution_arguments(command: argparse.ArgumentParser) -> None:
    add, view = command.add_argument, View()
    add(
        "--method",
        metavar="NAME",
        help="a method of `info`, such as lrp (default: Grad-CAM; with no other flag its first "
        "form, with the sums of each path)",
    )
    add(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the method, such as steps=64 or baseline=mean",
    )
    add("--contrast", type=int, metavar="CLASS", help="explain the class against this one")
    add(
        "--beside",
        default=view.attr_rival,
        metavar="NAME",
        help="what stands beside: scan, weights, random, a model of `info`, or photo:NAME",
    )
    add("--evidence", action="store_true", help="also the maps of each path of each EVSS block")
    add("--attention", action="store_true", help="also the implicit attention of the token")
    add("--block", type=int, default=view.attr_block, help="whose scan attends (default 1)")
    add("--channel", type=int, help="one channel of the attention (default: mean over channels)")
    add("--faithfulness", action="store_true", help="also insertion, deletion and the controls")
    add("--sanity", action="store_true", help="also the maps of weights made random")
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="the numbers of every photo below DIR with their summary, instead of maps; of the "
        "flags above it knows the method, its options, --contrast and --faithfulness",
    )


def _add_training(commands: Any) -> None:
    summary = "pictures of training runs: loss, accuracy and speed, or a table of ablations"
    command = commands.add_parser("training", help=summary, description=f"Draws {summary}.")
    command.add_argument(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="a run's folder, its log.json or a card of models/weights (one colour each); or one "
        "ablations.json",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("runs/training.png"),
        metavar="FILE",
        help="picture to write, .png or .svg (default runs/training.png)",
    )


def _add_files(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder (default runs)")
    add(
        "--format",
        type=_formats,
        default=("json", "npz", "png"),
        help=f"comma-separated, of {', '.join(FORMATS)} (default json,npz,png)",
    )
    _add_shared(command)


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gallery", dest="gallery_dir", type=Path, metavar="DIR", help="add the photos of a folder"
    )
    add_compute_arguments(command)


def _formats(text: str) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in given if part not in FORMATS]
    if unknown or not given:
        raise argparse.ArgumentTypeError(f"{text!r}: give one or more of {', '.join(FORMATS)}")
    return given


def _open(args: argparse.Namespace, weights: str | None = None) -> LocalWorkbench:
    from workbench.local_weights import LocalWorkbench

    schemes = getattr(args, "compare", None)

    names = ("gallery_dir", "device", "backend", "threads", "runs")
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    folder = args.folder if args.command == "erf" else None
    return LocalWorkbench(replace(Settings.from_env(), **given), weights, schemes, folder)


def _analyse(args: argparse.Namespace) -> None:
    is_listed = args.weights in ("default", "random")
    wb = _open(args, None if is_listed else args.weights)
    try:
        _analyse_with(wb, args)
    finally:
        wb.leave()


def _analyse_with(wb: LocalWorkbench, args: argparse.Namespace) -> None:
    view = wb.resolve(_view(wb, args))
    for name in ("y", "x"):
        asked, got = getattr(args, name), getattr(view, name)
        if asked is not None and asked != got:
            rows, columns, _ = wb.stage_shape(view, view.stage)
            print(
                f"{name}={asked} lies outside stage {view.stage}'s map of {rows} x {columns} "
                f"tokens; {name}={got} is used.",
                file=sys.stderr,
            )
    from workbench.photos import prepare

    photo = wb.photos.get(view.photo)
    ends: list[BaseException] = []  # what ends the command, once its files are written
    results = _results(wb, view, args, ends)
    if not wb.is_main:  # another process of a torchrun writes the files
        return
    _show(results)
    rgb = prepare(photo, view.size, view.fit).rgb
    for path in _write(args, results, f"{args.command}: {view.model}, {photo.title}", rgb):
        print(path)
    for end in ends:
        raise end


def _probe(args: argparse.Namespace) -> None:
    """A user's operator; the analysis imports and runs it."""
    from workbench.analyses.user_probe import probe_operator

    gather, _, merge = args.probe.partition(",")
    if merge and ":" not in merge:
        merge = f"{gather.partition(':')[0]}:{merge}"
    # Installed or not: a package in the current folder is found, as by `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    result = probe_operator(gather, merge or None, height=args.height, width=args.width)
    results = {"probe": result}
    _show(results)
    for path in _write(args, results, f"probe: {args.probe}", None):
        print(path)


def _kernels(args: argparse.Namespace) -> None:
    """Results that need no photo: the cost model and the compiler."""
    wb = _open(args)
    try:
        view = wb.resolve(cli_kernels.kernel_view(args, _model(wb, getattr(args, "model", ""))))
        if getattr(args, "list", False):
            cli_kernels.show_choices(wb, view.kern_target)
            return
        results = cli_kernels.kernel_results(wb, view, args, _last)
        extra = {}
        if args.command == "kernel" and args.listing:
            extra = cli_kernels.listing_files(wb, results["kernel"], args.listing)
    finally:
        wb.leave()
    _show(results)
    for path in _write(args, results, f"{args.command}: {view.model}", None):
        print(path)
    for path in save_files(args.out, extra):
        print(path)


def _training(args: argparse.Namespace) -> None:
    """Runs of one picture are curves; a table of ablations has a picture of its own."""
    from workbench.figures.paper import png, svg
    from workbench.figures.training import ablations_figure, curves_figure
    from workbench.training_log import TrainingCurve, read_training

    write = {".png": png, ".svg": svg}.get(args.out.suffix.lower())
    if write is None:
        raise BadInputError(f"{args.out} is no picture. End --out in .png or .svg.")
    found = [read_training(path) for path in args.logs]
    curves = [log for log in found if isinstance(log, TrainingCurve)]
    tables = [log for log in found if not isinstance(log, TrainingCurve)]
    if tables and len(found) > 1:
        raise BadInputError(
            f"A table of ablations is drawn alone; {len(found)} files were given. Give one table, "
            "or runs and cards only."
        )
    figure = ablations_figure(tables[0]) if tables else curves_figure(curves)
    for path in save_files(args.out.parent, {args.out.name: write(figure)}):
        print(path)


def _show(results: dict[str, Any]) -> None:
    for name, result in results.items():
        print(f"\n{name}")
        for label, value in facts(result):
            print(f"  {label.replace('_', ' '):24} {value}")
        if isinstance(result, SchemeTableResult):
            _show_schemes(result)
        elif isinstance(result, SweepResult):
            cli_profile.show_sweep(result)
        elif isinstance(result, TraceResult):
            cli_profile.show_trace(result)
        elif isinstance(result, WhatIfResult):
            cli_kernels.show_what_if(result)
        elif isinstance(result, InspectResult):
            cli_kernels.show_kernel(result)
        elif isinstance(result, TokenCost):
            cli_kernels.show_tokens({name: result})
    print()


def _show_schemes(table: SchemeTableResult) -> None:
    print(f"  {'scheme':28} {'reach':>7} {'max jump':>8} {'MFLOP':>8} {'p50 ms':>8}")
    for row in table.rows:
        reach, jump = 100 * row.metrics["mean_reach"], row.metrics["max_jump"]
        flops = f"{row.flops / 1e6:.1f}" if row.is_runnable else ""
        time = f"{row.p50_ms:.3g}" if row.status == "measured" else row.status
        print(f"  {row.scan:28} {reach:6.1f}% {jump:8} {flops:>8} {time:>8}")


def _model(wb: LocalWorkbench, text: str) -> str:
    """The registry's name of "tiny"; "" is the default, another text stays for its error."""
    names = [choice.name for choice in wb.models()]
    full = f"efficientvmamba_{text}"
    return full if full in names else text or View().model


def _view(wb: LocalWorkbench, args: argparse.Namespace) -> View:
    photo = args.image
    if all(known.id != photo for known in wb.photos.list()) and Path(photo).is_file():
        photo = wb.photos.add(Path(photo)).id
    return View(
        model=_model(wb, args.model),
        weights=args.weights,
        photo=photo,
        size=args.size,
        fit=args.fit,
        scan_a=args.scan,
        scan_b=args.scan_b,
        scan_c=getattr(args, "scan_c", None),
        stage=args.stage,
        y=args.y,
        x=args.x,
        target=args.target,
        **_erf_fields(args),
        **_attribution_fields(args),
        **(cli_profile.profile_fields(args) if args.command == "profile" else {}),
    )


def _attribution_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the view that only `attribute` has flags for."""
    if args.command != "attribute":
        return {}
    return {
        "contrast": args.contrast,
        "attr_method": args.method or View().attr_method,
        "attr_options": ",".join(args.options),
        "attr_rival": args.beside,
        "attr_block": args.block,
        "attr_channel": args.channel,
        "attr_sanity": args.sanity,
    }


def _erf_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the view that only `erf` has flags for."""
    if args.command != "erf":
        return {}
    nets = View().erf_rivals if args.nets is None else tuple(n for n in args.nets if n != "none")
    images = MAX_ERF_IMAGES if args.folder else View().erf_images
    return {
        "erf_unit": args.unit,
        "erf_definition": args.definition,
        "erf_gates": args.gates,
        "erf_images": images if args.images is None else args.images,
        "erf_rivals": nets,
        "erf_scale": args.scale,
    }


def _results(
    wb: LocalWorkbench, view: View, args: argparse.Namespace, ends: list[BaseException]
) -> dict[str, Any]:
    """Results by the names that export files and `figures.paper` use."""
    if args.command == "scan":
        return _scan_results(wb, view, args)
    if args.command == "erf":
        return _erf_results(wb, view, args, ends)
    if args.command == "attribute":
        return _attribution_results(wb, view, args)
    return cli_profile.profile_results(wb, view, args, _last)


def _scan_results(wb: LocalWorkbench, view: View, args: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {f"scan_{which}": wb.scan(view, which) for which in view.scans}
    if args.reach:
        results |= {f"reach_{which}": wb.reach(view, which) for which in view.scans}
    if args.compare or args.all_schemes:
        table = _last(wb.scheme_table(view, measure=not args.no_latency))
        if args.compare:
            listed = {choice.name: i for i, choice in enumerate(wb.scans())}
            rows = [row for row in table.rows if row.scan in listed]
            table = replace(table, rows=tuple(sorted(rows, key=lambda row: listed[row.scan])))
        results["schemes"] = table
    return results


def _erf_results(
    wb: LocalWorkbench, view: View, args: argparse.Namespace, ends: list[BaseException]
) -> dict[str, Any]:
    """Fields of every network; Ctrl+C keeps the photos that were done."""
    pace = Pace((1 + len(view.erf_rivals)) * len(wb.erf_lab.images(view)))

    def followed() -> Iterator[Any]:
        for comparison in wb.erf_lab.compare(view):
            yield pace.at(comparison.done, "gradients")
            yield comparison

    try:
        comparison = _last(followed())
    except KeyboardInterrupt as stop:
        comparison = wb.erf_lab.kept(view)
        if comparison is None:
            raise
        ends.append(stop)
    results: dict[str, Any] = {f"erf_{key}": r for key, r in comparison.fields.items()}
    if not wb.is_main:
        return results
    if comparison.problems:
        ends.append(BadInputError(" ".join(comparison.problems)))
    for reason in results["erf_a"].skipped:
        print(f"left out: {reason}", file=sys.stderr)
    if args.phases and not ends:
        results["erf_phases"] = _last(wb.erf_lab.phases(view))
    if args.paths and not ends:
        results["erf_paths"] = _last(wb.erf_lab.paths(view))
    return results


def _attribution_results(
    wb: LocalWorkbench, view: View, args: argparse.Namespace
) -> dict[str, Any]:
    lab = wb.attribution_lab
    if args.folder:
        for name in ("beside", "evidence", "attention", "sanity"):
            if getattr(args, name):
                raise BadInputError(f"--{name} shows maps, --folder only numbers. Leave out one.")
        from workbench.image_sets import pictures_below

        batch = _last(lab.batch(view, pictures_below(args.folder), args.faithfulness))
        for reason in batch.skipped:
            print(f"left out: {reason}", file=sys.stderr)
        return {"batch": batch}
    results: dict[str, Any] = {"prediction": wb.predict(view)}
    checks = {
        "evidence": args.evidence,
        "attention": args.attention,
        "faithfulness": args.faithfulness,
        "randomisation": args.sanity,
    }
    parts = {part for part, is_asked in checks.items() if is_asked}
    if args.method or args.options or args.beside or args.contrast is not None or parts:
        return results | lab.results(view, {"maps", *parts}, follow=_last)
    return results | {"attribution": wb.attribution(view)}


def _last(items: Iterator[Any]) -> Any:
    """The final result of a long run; progress goes to the terminal."""
    result = None
    for item in items:
        if not isinstance(item, Progress):
            result = item
        elif sys.stderr.isatty():
            print(f"\r{item.done}/{item.total} {item.what:60}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(f"\r{'':80}\r", end="", file=sys.stderr)
    return result


def _write(
    args: argparse.Namespace, results: dict[str, Any], title: str, rgb: Any
) -> Iterator[Path]:
    """Files of the results; `rgb` is the network input, None where there is none."""
    scale = getattr(args, "scale", View().erf_scale)
    files = result_files(results, args.format, name=args.command, title=title, rgb=rgb, scale=scale)
    return save_files(args.out, files)


def _info(args: argparse.Namespace) -> None:
    import kernels
    from workbench.analyses.attribution.methods import METHODS

    wb = _open(args)
    print("models")
    for model in wb.models():
        cost = f"{model.n_parameters:>10,} parameters, {model.macs_224 / 1e9:.3f} G at 224 px"
        print(f"  {model.name:24} {cost}")
        for weights in wb.weights(model.name):
            print(f"    {weights.name:22} {weights.label}")
        print(f"    {wb.weights_story(model.name)}")
    print("scans")
    definition = ""
    for scan in wb.scans():
        print(f"  {scan.name:24} {scan.label}")
        if scan.definition != definition:
            definition = scan.definition
            print(f"    {definition}")
    print("photos")
    for photo in wb.photos.list():
        credit = f"{photo.title}, {photo.credit}, {photo.licence}"
        print(f"  {photo.id:24} {photo.width} x {photo.height} px, {credit}")
    for problem in wb.photos.problems:
        print(f"  left out: {problem}")
    print("methods")
    for name, method in METHODS.items():
        options = ", ".join(f"{field.name}={field.default}" for field in method.fields)
        print(f"  {name:24} {method.label}{f' ({options})' if options else ''}")
    print("backends")
    for name, reason in kernels.backends().items():
        print(f"  {name:24} {'usable' if reason is None else f'not usable: {reason}'}")
    print(f"  {'in use':24} {wb.backend} ({wb.backend_reason})")
