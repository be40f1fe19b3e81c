"""Words of the page that are not the result of a computation."""

from __future__ import annotations

from typing import Any

from workbench.figures.theme import percent
from workbench.results import PredictionResult
from workbench.view import View

TITLE = "EfficientVMamba Workbench"
TOP = 5

HELP = """
**What you see.** One photo goes through EfficientVMamba. ES2D samples the feature map with step
p, so each selective scan reads N/p² tokens instead of N; the full scan (SS2D) reads all N tokens
in four directions. Scheme A is teal and scheme B orange everywhere. Stages 1 and 2 scan, stages 3
and 4 only convolve.

**Linked.** Hover a token and the same place lights up in every map. Click it and the receptive
field is computed there. Drag to zoom, double-click to zoom out, Esc to go back to the centre,
arrow keys move the focus.

**Scan paths** are read back from the operator that the model runs, then compared with the table.
**Effective receptive field**: share of the gradient of the token's summed positive activations
over the input pixels, |gradient| summed over colours, each photo weighing the same.
**Attribution**: Grad-CAM of the four stage outputs for one class, per 32 × 32 px so that stages
compare; the bars split the evidence (gradient times value) of each EVSS block into its three
addends. **Profile**: medians after warm-up, shown only when the logits agree with the slow
reference. *Tokens read* and *serial depth* are counts, multiply-adds follow the field's
convention: one per multiply-accumulate of convolutions and products, 9·L·D·N + L·D per scan. The
two are mixed by convention.

**Steps other than 2** are ours: all p × p phases are scanned, each token once. Step 1 is one
raster scan with the first parameter set, *not* the full scan; at p ≠ 2 the four parameter sets
are used unevenly. A scheme swapped in on weights trained with another is labelled so.

**Photos** that you add stay on this machine. They can be read by whoever knows their address
until the server removes them after a day.
"""


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


def focus_box(view: View, stride: int) -> dict[str, Any]:
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
