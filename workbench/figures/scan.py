"""Panel 1: the scan paths of two schemes over the photo, read from the running operator."""

from __future__ import annotations

import numpy as np

from workbench.figures.theme import (
    Json,
    map_layout,
    ordinal,
    percent,
    photo_data_uri,
    scan_in_text,
    scan_label,
    scan_short,
)
from workbench.results import ScanResult

MAX_RUNS_PER_TOKEN = 0.5  # above this a plain list of token ids is shorter than run lengths


def encode_order(index: np.ndarray) -> list[Json]:
    """Each sequence of `index` `[K, L]` as JSON without loss, short for regular schemes.

    {"reverse_of": j} where sequence k is sequence j backwards, else {"first", "runs": [step,
    count, ...]} with runs of equal differences between neighbours, else {"ids": [...]}. Pads
    stay -1.
    """
    encoded: list[Json] = []
    for k, sequence in enumerate(index):
        twin = next((j for j in range(k) if np.array_equal(index[j], sequence[::-1])), None)
        if twin is not None and "reverse_of" not in encoded[twin]:
            encoded.append({"reverse_of": twin})
            continue
        steps = np.diff(sequence.astype(np.int64))
        edges = np.flatnonzero(np.diff(steps)) + 1
        starts = np.concatenate([[0], edges]) if len(steps) else np.zeros(0, np.int64)
        if 2 * len(starts) > MAX_RUNS_PER_TOKEN * len(sequence):
            encoded.append({"ids": sequence.tolist()})
            continue
        counts = np.diff(np.concatenate([starts, [len(steps)]]))
        runs = np.stack([steps[starts], counts], 1).ravel().tolist()
        encoded.append({"first": int(sequence[0]), "runs": runs})
    return encoded


def _scheme(key: str, result: ScanResult) -> Json:
    return {
        "key": key,
        "label": scan_short(result.provenance.scan),
        "tone": key,
        "height": result.height,
        "width": result.width,
        "stride": result.stride,
        "length": int(result.index.shape[1]),
        "sequences": encode_order(result.index),
        "parameter_set": result.parameter_set.tolist(),
    }


def locate(result: ScanResult, y: int, x: int) -> tuple[int, int] | None:
    """(sequence, step), both 0-based, of the first visit of token (y, x)."""
    hits = np.argwhere(result.index == y * result.width + x)
    return (int(hits[0][0]), int(hits[0][1])) if len(hits) else None


def _rows(a: ScanResult, b: ScanResult) -> list[list[str]]:
    def row(label: str, key: str) -> list[str]:
        return [label, *(f"{int(result.metrics[key]):,}" for result in (a, b))]

    sequences = [f"{r.metrics['n_sequences']:,} × {r.metrics['length']:,}" for r in (a, b)]
    visits = []
    for result in (a, b):
        low, high = result.metrics["visits_min"], result.metrics["visits_max"]
        visits.append(f"{low}" if low == high else f"{low} to {high}")
    return [
        ["sequences", *sequences],
        row("tokens read", "tokens_scanned"),
        row("pads besides", "n_pads"),
        ["visits each", *visits],
        ["mean reach", *(percent(float(r.metrics["mean_reach"])) for r in (a, b))],
        row("farthest back", "farthest_steps"),
    ]


def _reading(result: ScanResult) -> str:
    """What a scheme reads, in words: "the full scan reads 4 x 3,136 tokens"."""
    n, length = int(result.metrics["n_sequences"]), int(result.metrics["length"])
    if result.metrics["visits_max"] > 1:
        how = f"{n} × {length:,} tokens"
    elif n == 1:
        how = f"each token once, in one sequence of {length:,}"
    else:
        how = f"each token once, in {n} groups of {length:,}"
    return f"{scan_in_text(result.provenance.scan)} reads {how}"


def _sentence(a: ScanResult, b: ScanResult, y: int, x: int) -> str:
    text = f"{_reading(a)}; {_reading(b)}."
    where = locate(a, y, x)
    if where:
        group, step = where
        text += f" The focus is the {ordinal(step + 1)} token of group {group + 1}."
    return text[0].upper() + text[1:]


def scan_panel(a: ScanResult, b: ScanResult, rgb: np.ndarray, y: int, x: int) -> Json:
    """The panel for schemes A and B.

    `rgb` is the network input `[H, W, 3]` uint8, (y, x) the token in focus.
    """
    height, width = a.provenance.input_size
    panel: Json = {
        "id": "scan",
        "title": "Scan paths",
        "stage": a.stage,
        "input": [height, width],
    }
    if not a.has_scan:
        panel["badges"] = [{"text": f"stage {a.stage}", "tone": "muted"}]
        panel["empty"] = {
            "title": f"Stage {a.stage} has no scan",
            "text": "Pick a stage whose blocks scan to see its path.",
            "photo": photo_data_uri(rgb),
        }
        panel["sentence"] = f"{a.note} The paper scans early, where maps are large."
        return panel
    verified = a.is_verified and b.is_verified
    trouble = a.disagreement or b.disagreement
    panel["badges"] = [
        {"text": f"stage {a.stage}, {a.height} × {a.width} tokens", "tone": "muted"},
        {"text": "✓ verified on the running operator", "tone": "ok"}
        if verified
        else {"text": f"✗ not verified: {trouble}", "tone": "bad"},
    ]
    panel["maps"] = [
        {
            "key": "path",
            "figure": {"data": [], "layout": map_layout(height, width, photo_data_uri(rgb), 0.6)},
            "path": True,
            "cell": a.stride,
        }
    ]
    panel["player"] = {"schemes": [_scheme("a", a), _scheme("b", b)], "photo": photo_data_uri(rgb)}
    panel["table"] = {
        "columns": [
            {"text": ""},
            {"text": scan_short(a.provenance.scan), "tone": "a"},
            {"text": scan_short(b.provenance.scan), "tone": "b"},
        ],
        "rows": _rows(a, b),
    }
    panel["sentence"] = _sentence(a, b, y, x)
    panel["notes"] = [f"{scan_label(r.provenance.scan)}: {r.note}" for r in (a, b) if r.note]
    return panel
