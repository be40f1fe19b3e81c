"""The command line's part of the kernel lab: roofline, cost of a token, compiled kernels."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInputError
from workbench.view import (
    HERE,
    PROF_DTYPES,
    PROF_PASSES,
    WHAT_BATCHES,
    WHAT_SIZES,
    WHAT_STEPS,
    View,
)

if TYPE_CHECKING:
    from workbench.kernel_results import InspectResult, KernelNumbers, TokenCost, WhatIfResult
    from workbench.runtime import Workbench

SUMMARIES = {
    "roofline": "the floors of two schemes on a device by the cost model, and what this machine "
    "measures",
    "token": "what one token costs in the kernel of a GPU, under two schemes",
    "kernel": "registers, spills, occupancy, instructions and listings of a compiled kernel; no "
    "GPU is needed",
}
Follow = Callable[[Iterator[Any]], Any]


def add_kernel_commands(
    commands: Any, add_files: Callable[[argparse.ArgumentParser], None]
) -> None:
    """`add_files` adds --out, --format and what every command has."""
    view = View()
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=f"Shows {summary}.")
        add = command.add_argument
        if name == "kernel":
            _add_kernel_arguments(command)
        else:
            add("--model", default=view.model, help="a model of `info`, such as tiny (the default)")
            add("--scan-b", default=view.scan_b, help="scheme B (default ss2d)")
            _add_setting(command)
        if name == "token":
            add("--scan", default=view.scan_a, help="scheme A (default es2d:step=2)")
            add("--size", type=int, default=view.size, help="input pixels (default 224)")
            add("--stage", type=int, default=view.stage, help="1 or 2 (default 2)")
            add("--y", type=int, help="token row (default: the centre)")
            add("--x", type=int, help="token column (default: the centre)")
        if name == "roofline":
            add("--px", type=int, default=view.what_size, choices=WHAT_SIZES, help="input pixels")
            add("--step", type=int, default=view.what_step, choices=WHAT_STEPS, help="of ES2D")
            add("--passes", default=view.what_passes, choices=PROF_PASSES)
            add("--no-measure", action="store_true", help="the two schemes' floors only, at once")
        add_files(command)


def _add_setting(command: argparse.ArgumentParser) -> None:
    add, view = command.add_argument, View()
    add(
        "--on",
        default=view.what_device,
        metavar="DEVICE",
        help=f"a GPU whose rates are published, such as {view.what_device!r} (the default), or "
        f"{HERE!r}: this machine, measured",
    )
    add("--batch", type=int, default=view.what_batch, choices=WHAT_BATCHES, help="images at once")
    add("--dtype", default=view.what_dtype, choices=PROF_DTYPES, help="of the activations")


def _add_kernel_arguments(command: argparse.ArgumentParser) -> None:
    add, view = command.add_argument, View()
    add("name", nargs="?", default=view.kern_a, help=f"a configuration (default {view.kern_a})")
    add("--gpu", default=view.kern_target, metavar="TARGET", help="such as sm_90 (the default)")
    add("--beside", default="", metavar="NAME", help="a second configuration")
    add("--beside-gpu", default="", metavar="TARGET", help="of the second (default: the first's)")
    add(
        "--listing",
        action="append",
        default=[],
        metavar="STAGE",
        help="also write a listing: source, ttir, ttgir, llir, ptx, sass, amdgcn; may be repeated",
    )
    add("--list", action="store_true", help="print every configuration of the target and stop")


def kernel_view(args: argparse.Namespace, model: str) -> View:
    """The view of the flags; `model` is the registry's name."""
    if args.command == "kernel":
        return View(
            kern_a=args.name,
            kern_target=args.gpu,
            kern_b=args.beside or (args.name if args.beside_gpu else ""),
            kern_target_b=args.beside_gpu,
        )
    plain = View()
    return View(
        model=model,
        scan_a=getattr(args, "scan", plain.scan_a),
        scan_b=args.scan_b,
        size=getattr(args, "size", plain.size),
        stage=getattr(args, "stage", plain.stage),
        y=getattr(args, "y", None),
        x=getattr(args, "x", None),
        what_device=args.on,
        what_size=getattr(args, "px", plain.what_size),
        what_batch=args.batch,
        what_step=getattr(args, "step", plain.what_step),
        what_dtype=args.dtype,
        what_passes=getattr(args, "passes", plain.what_passes),
    )


def kernel_results(
    wb: Workbench, view: View, args: argparse.Namespace, follow: Follow
) -> dict[str, Any]:
    """Results by the names that export files and `figures.paper` use."""
    lab = wb.kernel_lab
    if args.command == "roofline" and args.no_measure:
        return {"what_if": lab.what_if(view)}
    if args.command == "roofline":
        return {"roofline": follow(lab.roofline(view)), "what_if": lab.what_if(view)}
    if args.command == "token":
        return {f"token_{which}": lab.token(view, which) for which in ("a", "b")}
    return {"kernel": follow(lab.inspect(view))}


def listing_files(wb: Workbench, result: InspectResult, stages: list[str]) -> dict[str, bytes]:
    """The listings that were asked for, of each configuration that was compiled to have them."""
    found = {}
    for numbers in filter(None, (result.a, result.b)):
        for stage in stages:
            if not numbers.is_compiled:
                raise BadInputError(f"There are no listings: {numbers.status}")
            listing = wb.kernel_lab.listing(numbers, stage)
            name = f"{numbers.config}-{numbers.target}.{stage.rpartition('/')[2]}.txt"
            text = "\n".join(line.text for line in listing.lines)
            found[name] = f"{text}\n".encode()
    return found


def show_choices(wb: Workbench, target: str) -> None:
    """Every configuration of a target, one a line."""
    for choice in wb.kernel_lab.choices(target):
        print(f"{choice.name:48} {choice.origin}")


def show_what_if(result: WhatIfResult) -> None:
    print(f"  {'scan':18} {'stage':>5} {'MB':>9} {'memory us':>10} {'FMA us':>9} {'exp us':>9}")
    for row in result.rows:
        times = " ".join(f"{1e6 * t:9.4g}" for t in (row.fma_s, row.exp_s))
        print(
            f"  {row.scan:18} {row.stage:5} {row.bytes / 1e6:9.4g} {1e6 * row.memory_s:10.4g} "
            f"{times}  floor {1e6 * row.seconds:.4g} us, {row.limiter}"
        )
    print(f"  {result.scan_b} : {result.scan_a} = {result.ratio:.3g} (model, launches included)")


def show_tokens(costs: Mapping[str, TokenCost]) -> None:
    for cost in costs.values():
        places = ", ".join(f"({visit.sequence}, {visit.step})" for visit in cost.visits)
        print(f"  {cost.scan}: {len(cost.visits)} visits (sequence, step): {places or 'none'}")
        print(
            f"    {cost.kernel}: {sum(cost.loads.values()):,} bytes read, "
            f"{sum(cost.stores.values()):,} written, {cost.exps:,} exps, {cost.flops:,} FLOPs"
        )


def show_kernel(result: InspectResult) -> None:
    print(f"  {'kernel':44} {'target':7} {'regs':>5} {'spill':>6} {'shared':>7} {'occup.':>7} exp2")
    rows: list[KernelNumbers | None] = [result.a, result.b, *result.others]
    for row in filter(None, rows):
        head = f"  {row.config:44} {row.target:7}"
        if not row.is_compiled:
            print(f"{head} {row.status.splitlines()[0]}")
            continue
        print(
            f"{head} {row.registers:5} {row.spill_bytes:6} {row.shared_bytes:7} "
            f"{row.occupancy:7.0%} {row.exp2_in_loops:4}  {row.limiter}"
        )
