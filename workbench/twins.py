"""`python -m workbench.twins DATA`: the nets trained with ES2D and with the full scan, compared.

Both ship for one model, trained with the same recipe and seed. Top-1 on the same images with the
paired bootstrap interval of its difference, multiply-adds, time per image in turn, receptive field.
One seed: the numbers say nothing about the schemes in general.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import models
from models import evaluate
from models.training.errors import TrainingError
from models.training.state import write_json
from workbench.errors import BadInputError, WorkbenchError
from workbench.figures.theme import percent, significant
from workbench.progress import result_of
from workbench.results import ErfResult, ProfileResult
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import View
from workbench.weights_cards import card_of, card_path, training_words

SCANS = ("es2d:step=2", "ss2d")
SIZES = (160, 224)  # pixels
NOT_SETTINGS = ("scan", "init")  # of a phase: what the twins differ in, and where a phase began
IN_CARD = ("n_images", "n_skipped", "top1", "top5", "loss")
AREAS = ("area50", "area90", "radius50_px", "radius90_px")
NOTE = (
    "One seed of each: the difference is between these two nets, not between the schemes in "
    "general. The interval covers the choice of images, not that of the seed."
)


def shipped_twins(model: str) -> dict[str, str]:
    """Scan -> name of the weights trained with it."""
    found = {w.trained_scan: w.name for w in reversed(models.available_weights(model))}
    missing = [scan for scan in SCANS if scan not in found]
    if missing:
        shipped = ", ".join(w.name for w in models.available_weights(model)) or "nothing"
        raise BadInputError(
            f"No weights of {model} trained with {' and '.join(missing)} ship, so there are no "
            f"twins to compare; for this model there is: {shipped}."
        )
    return {scan: found[scan] for scan in SCANS}


def settings_that_differ(model: str) -> dict[str, list[list[Any]]]:
    """Setting -> its values [ES2D's, the full scan's] in each phase that differs, from the cards.

    Beside the scan nothing should; what does is reported, never hidden. Phases that only one card
    has are under "phases".
    """
    phases = [card_of(name).get("phases", []) for name in shipped_twins(model).values()]
    found: dict[str, list[list[Any]]] = {}
    if len(phases[0]) != len(phases[1]):
        found["phases"] = [[len(p) for p in phases]]
    for pair in zip(*phases, strict=False):
        a, b = (phase["config"] for phase in pair)
        for key in sorted((a.keys() | b.keys()) - set(NOT_SETTINGS)):
            values = [a.get(key), b.get(key)]
            if values[0] != values[1] and values not in found.get(key, []):
                found.setdefault(key, []).append(values)
    return found


def accuracy(model: str, data: Path, flags: list[str]) -> dict[str, Any]:
    """Evaluation of both on the same images; the second has the paired difference B - A."""
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder) / "logits.npz"
        sizes = ",".join(str(size) for size in SIZES)
        for scan, name in shipped_twins(model).items():
            arguments = [str(data), "--weights", name, "--sizes", sizes, "--quiet", *flags]
            arguments += (
                ["--logits", str(logits)] if scan == SCANS[0] else ["--against", str(logits)]
            )
            args = evaluate.parser().parse_args(arguments)
            args.command = f"python -m models.evaluate {data} --weights {name} --sizes {sizes}"
            report = evaluate.run(args)
            for got in report["sizes"].values():
                got.pop("confusion", None)
            reports[scan] = report
    return reports


def fields_and_times(
    wb: Workbench, model: str, n_images: int
) -> dict[str, tuple[ErfResult, ProfileResult]]:
    """Receptive field of stage 2's centre token, and time of one image, at 224 px."""
    view = wb.resolve(View(model=model, scan_a=SCANS[0], scan_b=SCANS[1]))
    times = result_of(wb.profile_pair(view))
    fields = [result_of(wb.erf(view, which, n_images)) for which in "ab"]
    return dict(zip(SCANS, zip(fields, times, strict=True), strict=True))


def compare(wb: Workbench, model: str, data: Path, n_images: int, flags: list[str]) -> dict:
    reports = accuracy(model, data, flags)
    rows = {}
    for scan, (field, time) in fields_and_times(wb, model, n_images).items():
        if field.provenance.trained_scan != scan:
            raise BadInputError(f"{scan} runs on weights trained with another scan.")
        evaluated = reports[scan]["sizes"]
        rows[scan] = {
            "weights": field.provenance.weights,
            "sha256": field.provenance.weights_sha256,
            "accuracy": evaluated,
            "macs_224": time.macs,
            "n_parameters": time.n_parameters,
            "ms_per_image": {"p20": time.p20_ms, "p50": time.p50_ms, "p80": time.p80_ms},
            "erf": {key: field.metrics[key] for key in AREAS}
            | {"stage": field.stage, "y": field.y, "x": field.x, "n_images": field.n_images},
            "device": time.provenance.device,
            "backend": time.provenance.backend,
        }
    last = rows[SCANS[1]]["accuracy"]
    return {
        "format": 1,
        "model": model,
        "note": NOTE,
        "difference": {size: got["difference"] for size, got in last.items()},
        "difference_of": f"{SCANS[1]} less {SCANS[0]}, per cent, 95 % paired bootstrap over images",
        "settings_that_differ": settings_that_differ(model),
        "data": reports[SCANS[0]]["provenance"]["data"],
        "versions": field.provenance.versions,
        "rows": rows,
    }


def write_into_cards(report: dict[str, Any]) -> list[Path]:
    """Puts the comparison into both cards as `twins`, without what each card says of itself."""
    rows = {
        scan: row
        | {
            "accuracy": {
                size: {key: got[key] for key in IN_CARD} for size, got in row["accuracy"].items()
            }
        }
        for scan, row in report["rows"].items()
    }
    cards = []
    for name in shipped_twins(report["model"]).values():
        card = card_path(name)
        write_json(card, card_of(name) | {"twins": report | {"rows": rows}})
        cards.append(card)
    return cards


def table(report: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    a, b = (report["rows"][scan] for scan in SCANS)
    lines = ["| | ES2D | full scan |", "|---|---|---|"]
    for size in SIZES:
        top1 = [f"{row['accuracy'][str(size)]['top1']:.1f} %" for row in (a, b)]
        d = report["difference"][str(size)]
        words = f"top-1 at {size} px ({d['value']:+.1f}, {d['low']:+.1f} to {d['high']:+.1f})"
        lines.append(f"| {words} | {' | '.join(top1)} |")
    for words, values in (
        ("multiply-adds at 224 px", [f"{row['macs_224'] / 1e9:.3f} G" for row in (a, b)]),
        (
            "one image at 224 px",
            [f"{significant(row['ms_per_image']['p50'])} ms" for row in (a, b)],
        ),
        ("densest 50 % of the field on", [percent(row["erf"]["area50"]) for row in (a, b)]),
        ("densest 90 % of the field on", [percent(row["erf"]["area90"]) for row in (a, b)]),
    ):
        lines.append(f"| {words} | {' | '.join(values)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m workbench.twins",
        description=__doc__,
        epilog="Other flags go to models.evaluate.",
    )
    p.add_argument("data", type=Path, help="folder with val/<class>")
    p.add_argument("--model", default="efficientvmamba_tiny")
    p.add_argument("--images", type=int, default=64, help="crops of the receptive field")
    p.add_argument("--out", type=Path, required=True, help="JSON file to write")
    p.add_argument("--cards", action="store_true", help="write it into the cards of both, too")
    args, flags = p.parse_known_args(arguments)
    try:
        shipped_twins(args.model)
        wb = Workbench(Settings.from_env())
        report = compare(wb, args.model, args.data, args.images, flags)
        write_json(args.out, report)
        cards = write_into_cards(report) if args.cards else []
    except (WorkbenchError, TrainingError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    written = "\n".join(str(file) for file in (args.out, *cards))
    words = (report["note"], training_words(report["settings_that_differ"]), written)
    sys.stdout.write("\n".join((table(report), *words)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
