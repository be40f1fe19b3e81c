"""`python -m workbench.bench_attribution`: the attribution lab on this machine, correctness first.

Four questions. How many plain forward and backward passes do the four Grad-CAM maps cost? How much
do integrated gradients with 32 steps cost beside 32 of them? How long does one row of implicit
attention take, once the scan's inputs are known, under ES2D and under the full scan? How long does
the page's faithfulness panel take? What is compared takes turns in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models
from workbench.analyses.attribution import implicit_attention
from workbench.analyses.attribution.explain import explain
from workbench.bench_erf import NOT_MEASURED, answer, in_turns, times_of
from workbench.progress import result_of
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import View

SIZE = 224
STEPS = 32
# Of each: what it may take at most.
MAX_CAM_PASSES = 2.5
MAX_IG = 1.2
MAX_ROW_S = 0.05
MAX_PANEL_S = 15.0
MAX_ERROR = 1e-4  # of a row against the operator's own output, relative


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return answer(QUESTIONS, sentence, options, "attribution")


def passes(model: models.EfficientVMamba, image: np.ndarray, n: int) -> Callable[[], None]:
    """`n` plain forward and backward passes, from the most probable logit to the pixels."""

    def run() -> None:
        for _ in range(n):
            pixels = torch.from_numpy(image)[None].requires_grad_(True)
            torch.autograd.grad(model(pixels)[0].max(), pixels)

    return run


def method_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Grad-CAM and integrated gradients beside plain passes."""
    model, image = _network(options), _image()
    classes = [str(i) for i in range(model.num_classes)]
    for method, fields, n, limit in (
        ("grad_cam", {}, 1, MAX_CAM_PASSES),
        ("integrated_gradients", {"steps": options.steps}, options.steps, MAX_IG),
    ):

        def ours(method: str = method, fields: Any = fields) -> Any:
            return explain(
                model, image, classes, method, parameters=fields, provenance=NOT_MEASURED
            )

        found = ours()
        gap = abs(found.gaps[0] / (found.objective - found.baseline_objective)) if fields else 0.0
        is_correct = all(np.isfinite(m.values).all() for m in found.maps) and gap < 1
        times, plain = in_turns([ours, passes(model, image, n)], options.repeats)
        ratio = float(np.median(times / plain))
        yield {
            "question": "methods",
            "case": f"{method}, {SIZE} px, beside {n} forward and backward passes",
            "is_correct": is_correct,
            **times_of(times),
            "ratio": ratio,
            "limit": limit,
            "is_met": ratio <= limit,
        }


def row_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One token's row and column, the scan's inputs known."""
    model, image = _network(options), _image()
    for scan in ("es2d:step=2", "ss2d"):
        own = models.with_scan(model, scan)
        watched = implicit_attention.watch_scan(own, image, 1, 1)
        height, width = watched.order.height, watched.order.width
        error = float(implicit_attention.attention_of(watched, height // 2, width // 2)["error"])
        tokens = np.random.default_rng(0).integers((height, width), size=(1000, 2)).tolist()

        def row(watched: Any = watched, tokens: Any = tokens) -> Any:
            return implicit_attention.attention_of(watched, *tokens.pop())

        (times,) = in_turns([row], max(options.repeats, 20))
        yield {
            "question": "row",
            "case": f"{scan}, stage 1, {height} x {width} tokens, row and column of a random token",
            "is_correct": error < MAX_ERROR,
            "error": error,
            **times_of(times),
            "limit": MAX_ROW_S,
            "is_met": float(np.median(times)) <= MAX_ROW_S,
        }


def panel_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The faithfulness panel of the page's default view, every time anew."""
    wb = Workbench(Settings(threads=options.threads))
    wb.warm_up()
    view = View(model=options.model, tab="attribution", size=SIZE)
    found: list[Any] = []

    def panel() -> None:
        wb.results = type(wb.results)(wb.settings.cache_bytes)
        found.append(result_of(wb.attribution_lab.faithfulness(view)))

    (times,) = in_turns([panel], max(2, options.repeats // 2))
    yield {
        "question": "panel",
        "case": f"all four measures of Grad-CAM and two controls, {SIZE} px",
        "is_correct": all(
            np.array_equal(c.insertion, d.insertion)
            for c, d in zip(found[0].curves, found[-1].curves, strict=True)
        ),
        **times_of(times),
        "limit": MAX_PANEL_S,
        "is_met": float(np.median(times)) <= MAX_PANEL_S,
    }


def _network(options: argparse.Namespace) -> models.EfficientVMamba:
    model = models.create_model(options.model, num_classes=10, seed=0)
    return model.eval().requires_grad_(False)


def _image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, SIZE, SIZE)).astype(np.float32)


def sentence(row: dict[str, Any]) -> str:
    parts = [f"{row['p50_s']:.3g} s (p20 {row['p20_s']:.3g}, p80 {row['p80_s']:.3g})"]
    if "ratio" in row:
        parts.append(f"ratio {row['ratio']:.2f}")
    parts.append("as wanted" if row["is_met"] else "NOT as wanted")
    if not row["is_correct"]:
        parts = ["WRONG: no time is reported"]
    return f"{row['question']}: {row['case']}: {', '.join(parts)}"


QUESTIONS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "methods": method_rows,
    "row": row_rows,
    "panel": panel_rows,
}


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m workbench.bench_attribution",
        description=(__doc__ or "").partition(":")[2].strip(),
    )
    p.add_argument(
        "questions", nargs="*", default=list(QUESTIONS), help=f"any of {', '.join(QUESTIONS)}"
    )
    p.add_argument("--model", default="efficientvmamba_tiny", choices=models.list_models())
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    p.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for attribution.{json,csv}"
    )
    return p


if __name__ == "__main__":
    sys.exit(main())
