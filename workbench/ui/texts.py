"""Words of the page that are not the result of a computation."""

from __future__ import annotations

import html
from typing import Any

from workbench.analyses.attribution.methods import NOT_OFFERED
from workbench.figures.theme import percent
from workbench.results import PredictionResult
from workbench.view import View

TITLE = "EfficientVMamba Workbench"
TOP = 5

TAB_LABELS = {
    "overview": "Overview",
    "scan": "Scan",
    "erf": "ERF",
    "attribution": "Attribution",
    "profiler": "Profiler",
}
# Parts of the profiler: tab -> its label there and what it holds.
PROFILER_PARTS = {
    "profiler": ("Times", "Sweeps, traces and kept runs: what was measured"),
    "kernels": ("Kernels", "Roofline, cost of a token, machine code: no GPU is needed"),
}
UNDER = {part: "profiler" for part in PROFILER_PARTS if part != "profiler"}
DEFINITIONS = {
    "mass": "Mass (ours)",
    "replknet": "RepLKNet",
    "vmamba": "VMamba",
    "openerf": "OpenERF",
}
GATES = {"live": "live", "frozen": "frozen"}
SUBJECTS = {"model": "the network", "scan": "its first scan"}
PASSES = {"forward": "forward", "train": "forward + backward"}
SCALES = {"log": "log", "linear": "linear", "power": "x^0.2"}
HELP = (
    (
        "The question",
        "ES2D samples the feature map with step p, so each selective scan reads N/p² tokens "
        "instead of N; the full scan (SS2D) reads all N tokens in four directions. Scheme A "
        "is teal and scheme B orange everywhere. Stages 1 and 2 scan; stages 3 and 4 only "
        "convolve.",
    ),
    (
        "Linked",
        "Hover a token: the same place lights up in every map, in your browser alone. Click "
        "it: the receptive field is computed there. Drag to zoom, double-click to zoom out, "
        "Esc for the centre; arrow keys move the focus of a map that has the keyboard.",
    ),
    (
        "Scan paths",
        "Verified: token numbers were pushed through the operator that the model runs, and what "
        "it read agrees with the scheme's table; if not, the first difference is named. Path "
        "only: the scheme belongs to another network, so there is no operator to ask; its path "
        "is drawn from its definition. Thin lines are breaks: moves farther than the scheme's "
        "shortest. Pads are steps that read nothing and still let the state decay.",
    ),
    (
        "Player",
        "Space plays and pauses, arrows move one step, Shift with an arrow a tenth of the scan, "
        "Home and End go to its ends. All schemes move together: by the same share of their "
        "length, or by the same number of steps.",
    ),
    (
        "Reach",
        "The tokens that can influence the one in focus through one scan, itself included: exact, "
        "from the order alone. Influence left is exp(Σ dt·A) over the steps between, with dt from "
        "this photo and A from the weights; half-life is where its median falls to a half. The "
        "bars add what else mixes tokens: the 3 × 3 convolutions, the other blocks, and the SE "
        "gates, whose global mean reaches everything.",
    ),
    (
        "Table",
        "Move: Manhattan distance between two tokens read in a row. Jump: a move to no "
        "4-neighbour. Gap: steps between two 4-neighbours, where one sequence reads both. Sets: "
        "of the operator's four parameter sets, those in use; sequence k has set k mod 4 unless "
        "the scheme says otherwise. Times are shown after the output agreed with the slow "
        "reference.",
    ),
    (
        "Receptive field",
        "Objective: sum over channels of the token's positive activations at the stage's "
        "output. Map: |gradient| at the input summed over colours, each photo weighing the "
        "same, mean over photos; it sums to 1. Colours: log scale, four decades below the "
        "peak; lower is darkest.",
    ),
    (
        "ERF tab",
        "One point of the image in up to four networks, on one colour scale. Definitions: mass "
        "(ours) divides each photo's |gradient| by its sum, so the gradient's scale does not "
        "matter; RepLKNet, VMamba and OpenERF are computed as their code does, transform and "
        "metric included. Lines: densest 50 % and 90 %. Dashed: the pixels that can matter at "
        "all with gates frozen, by the layers' rules.",
    ),
    (
        "SE gates",
        "A squeeze-excitation gate is a global mean, so with gates as trained every pixel reaches "
        "every token behind one. Frozen: the gates keep their values and pass no gradient, which "
        "leaves what scan, convolution and residual carry.",
    ),
    (
        "Bands and warnings",
        "Bands are 90 % intervals of a bootstrap over the photos: they do not cover the choice of "
        "weights. Split-half: total variation between the means of every other photo; it falls as "
        "the field converges. A field that cannot be told from a uniform map says so: its area is "
        "then the image's, not the network's.",
    ),
    (
        "Phases and paths",
        "ES2D scans each phase of its p × p cell as a group of its own, so one token shows one "
        "part of the truth; after merging (stage 3 on) the phases are mixed. Paths: the gradient "
        "through residual, scan, convolution and gates of one block, signed, before any "
        "rectification; they add up to the whole, and the panel prints how exactly.",
    ),
    (
        "Attribution",
        "Grad-CAM of the four stage outputs for one class, per 32 × 32 px so that stages "
        "compare. The bars split gradient times value at each EVSS block's output into its "
        "three addends: SE(scan), SE(convolution) and the residual.",
    ),
    (
        "Attribution tab",
        "One method for one class, or for one class against another, in the unit of the logit per "
        "32 × 32 px. Completeness gap: by how much the map does not add up to what it explains. "
        "Insertion and deletion: probability as pixels enter or leave in the map's "
        "order, beside random orders (band: 5 to 95 %) and an edge detector. Randomised weights: "
        "a map that does not change when the network forgets shows the photo, not the network.",
    ),
    (
        "Implicit attention",
        "S6 is linear in its input once dt, B and C are known: output i = Σ alpha(i, j) input j. "
        "Reads: the row of the token in focus; is read by: its column; both exact, from this "
        "photo, and the badge compares the sum with the operator's own output.",
    ),
    (
        "Profile",
        "Medians after warm-up, shown only when the logits agree with the slow reference. "
        "Tokens read and serial depth are counts. Multiply-adds mix two conventions, as the "
        "field does: one per multiply-accumulate of convolutions and products, 9·L·D·N + L·D "
        "per scan.",
    ),
    (
        "Kernels",
        "Floors are the cost model's: what a device must move and compute at its published or "
        "measured peak, for a scan that fuses everything; no kernel is faster, real ones are "
        "slower. Exponentials have a ceiling of their own: the special-function unit. The "
        "inspector compiles the shipped Triton kernels ahead of time; nothing of it ran, so "
        "nothing of it is a time on a GPU. Registers and spills are the compiler's own words.",
    ),
    (
        "Other steps",
        "Steps other than 2 are ours: all p × p phases are scanned, each token once. Step 1 "
        "is one raster scan with the first parameter set, not the full scan; at p ≠ 2 the "
        "four parameter sets are used unevenly. A scheme swapped in on weights trained with "
        "another is labelled so.",
    ),
    (
        "Your photos",
        "They stay on the machine that runs the workbench, readable by whoever knows their "
        "address, until the server removes them after a day.",
    ),
)


def not_offered() -> str:
    """Methods that are not in the list, each with its reason, folded away."""
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(reason)}</dd>"
        for name, reason in NOT_OFFERED.items()
    )
    return f"<details><summary>Not offered, and why</summary><dl>{rows}</dl></details>"


def top_box(prediction: PredictionResult, target: int | None) -> dict[str, Any]:
    order = prediction.probabilities.argsort()[::-1][:TOP]
    chosen = int(order[0]) if target is None else target
    rows = [
        {
            "text": prediction.classes[i],
            "value": percent(float(prediction.probabilities[i])),
            "share": float(prediction.probabilities[i]),
            "pick": int(i),
            "current": int(i) == chosen,
            "title": f"Attribute {prediction.classes[i]}",
        }
        for i in order
    ]
    tone = "warn" if prediction.provenance.is_random else None
    return {"title": "Top 5", "rows": rows, "text": prediction.note, "tone": tone}


def focus_box(view: View) -> dict[str, Any]:
    return {
        "title": "Focus",
        "rows": [
            {
                "text": f"row {view.y}, column {view.x}",
                "value": "centre",
                "pick": "clear",
                "title": "Back to the centre (Esc)",
            }
        ],
    }


def set_box(view: View, words: str) -> dict[str, Any]:
    """What the field is averaged over."""
    row: dict[str, Any] = {"text": words}
    if view.erf_set:
        row |= {"value": "gallery", "pick": "clear", "title": "Back to crops of the gallery"}
    return {"title": "Photos averaged", "rows": [row]}


def trace_box(view: View) -> dict[str, Any]:
    """Whose trace the tables and the timeline show."""
    row: dict[str, Any] = {"text": "the network in view"}
    if view.prof_trace:
        row = {"text": "the file that was opened", "value": "own", "pick": "clear"}
        row["title"] = "Back to a trace of the network in view"
    return {"title": "Trace of", "rows": [row]}


def profiler_parts(current: str) -> dict[str, Any]:
    """The switch between the two parts of the profiler, as it stands over part `current`."""
    return {
        "current": current,
        "parts": [[name, *words] for name, words in PROFILER_PARTS.items()],
    }


def header(facts: list[dict[str, Any]], weights: str = "") -> dict[str, Any]:
    """Payload of the page's first line: tabs, facts about the view, help; `weights` tells what
    ships for the model."""
    about = (("Weights", weights),) if weights else ()
    help_ = (*HELP[:2], *about, *HELP[2:])
    return {"facts": facts, "tabs": list(TAB_LABELS.items()), "under": UNDER, "help": help_}
