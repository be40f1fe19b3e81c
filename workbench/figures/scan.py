"""Panel 1: the scan paths of two schemes over the photo, read from the running operator."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping

import numpy as np

from workbench.figures.kernel_token import bytes_moved, costs_note
from workbench.figures.profiler_sweep import bytes_text
from workbench.figures.theme import Json, map_layout, ordinal, percent, photo_data_uri
from workbench.kernel_results import TokenCost
from workbench.labels import scan_in_text, scan_label, scan_short
from workbench.results import ScanResult

MAX_PALETTE = 256  # different differences; beyond that plain ids are shorter
PAD = -1
MAX_GROUPS = 256  # sequences that are drawn; ES2D with a step of 256 has 65,536


def encode_order(index: np.ndarray) -> list[Json]:
    """Each sequence of `index` `[K, L]` as JSON without loss, in the shortest of four forms.

    {"reverse_of": j}: sequence j backwards. {"first", "runs": [step, count, ...]}: runs of equal
    differences between neighbours (rows, snakes). {"first", "steps", "bits", "data"}: few different
    differences, each as a number of `bits` bits into `steps`, packed from the lowest bit on
    (Hilbert, Morton, windows). {"bytes", "offset", "data"}: little-endian ids minus `offset`
    (random). "data" is base64; pads stay -1. `decodeOrder` in scan_path.js is the inverse.
    """
    encoded: list[Json] = []
    first_with: dict[bytes, int] = {}
    for k, sequence in enumerate(index):
        twin = first_with.get(sequence[::-1].tobytes())
        first_with.setdefault(sequence.tobytes(), k)
        if twin is not None and "reverse_of" not in encoded[twin]:
            encoded.append({"reverse_of": twin})
            continue
        forms = (_runs(sequence), _palette(sequence), _raw(sequence))
        encoded.append(min((form for form in forms if form), key=json_bytes))
    return encoded


def _runs(sequence: np.ndarray) -> Json:
    steps = np.diff(sequence.astype(np.int64))
    edges = np.flatnonzero(np.diff(steps)) + 1
    starts = np.concatenate([[0], edges]) if len(steps) else np.zeros(0, np.int64)
    counts = np.diff(np.concatenate([starts, [len(steps)]]))
    return {
        "first": int(sequence[0]),
        "runs": np.stack([steps[starts], counts], 1).ravel().tolist(),
    }


def _palette(sequence: np.ndarray) -> Json | None:
    steps, codes = np.unique(np.diff(sequence.astype(np.int64)), return_inverse=True)
    if not 0 < len(steps) <= MAX_PALETTE:
        return None
    n_bits = max(1, int(len(steps) - 1).bit_length())
    bits = (codes[:, None] >> np.arange(n_bits)) & 1
    packed = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")
    return {
        "first": int(sequence[0]),
        "steps": steps.tolist(),
        "bits": n_bits,
        "data": base64.b64encode(packed.tobytes()).decode(),
    }


def _raw(sequence: np.ndarray) -> Json:
    offset = int(min(0, sequence.min()))
    shifted = (sequence.astype(np.int64) - offset).astype("<u4")
    n_bytes = max(1, (int(shifted.max()).bit_length() + 7) // 8)
    data = np.ascontiguousarray(shifted).view(np.uint8).reshape(-1, 4)[:, :n_bytes]
    return {
        "bytes": n_bytes,
        "offset": offset,
        "data": base64.b64encode(data.tobytes()).decode(),
    }


def json_bytes(value: Json | list[Json]) -> int:
    """Length of `value` as the compact JSON that the page receives."""
    return len(json.dumps(value, separators=(",", ":")))


def own_spacing(index: np.ndarray, width: int) -> int:
    """The order's shortest move (Chebyshev, tokens), as `metrics["n_jumps"]` counts: p for ES2D."""
    shortest = 0
    for sequence in index[(index >= 0).sum(1) > 1]:
        tokens = sequence[sequence >= 0]
        dy, dx = np.abs(np.diff(tokens // width)), np.abs(np.diff(tokens % width))
        move = int(np.maximum(dy, dx).min())
        shortest = move if shortest == 0 else min(shortest, move)
    return shortest


def scheme_json(key: str, result: ScanResult, budget: int = 0) -> Json:
    """One scheme for the players. With a `budget` in bytes, an order that does not compress is
    reduced to every n-th step, `every` says which. Sequences without a token and those beyond
    MAX_GROUPS are left out: then `groups` has the numbers (from 1) of those that are there."""
    drawn = drawn_sequences(result)
    index = result.index[drawn]
    every, sequences = 1, encode_order(index)
    while budget and json_bytes(sequences) > budget and every < index.shape[1]:
        every = max(every + 1, round(every * json_bytes(sequences) / budget))
        sequences = encode_order(index[:, ::every])
    is_whole = len(drawn) == len(result.index)
    return {
        "key": key,
        "id": f"{result.provenance.scan} {zlib.crc32(result.index.tobytes()):08x}",
        "label": scan_short(result.provenance.scan),
        "tone": key,
        "height": result.height,
        "width": result.width,
        "stride": result.stride,
        "length": int(result.index.shape[1]),
        "every": every,
        "spacing": own_spacing(result.index, result.width),
        "sequences": sequences,
        "parameter_set": result.parameter_set[drawn].tolist(),
        **({} if is_whole else {"groups": (drawn + 1).tolist()}),
    }


def drawn_sequences(result: ScanResult) -> np.ndarray:
    """Numbers (from 0) of the sequences that the players draw: those that read something."""
    return np.flatnonzero((result.index != PAD).any(1))[:MAX_GROUPS]


def locate(result: ScanResult, y: int, x: int) -> tuple[int, int] | None:
    """(sequence, step), both 0-based, of the first visit of token (y, x)."""
    hits = np.argwhere(result.index == y * result.width + x)
    return (int(hits[0][0]), int(hits[0][1])) if len(hits) else None


def _rows(a: ScanResult, b: ScanResult, costs: Mapping[str, TokenCost] | None) -> list[list[str]]:
    def row(label: str, key: str) -> list[str]:
        return [label, *(f"{int(result.metrics[key]):,}" for result in (a, b))]

    sequences = [f"{r.metrics['n_sequences']:,} × {r.metrics['length']:,}" for r in (a, b)]
    visits = []
    for result in (a, b):
        low, high = result.metrics["visits_min"], result.metrics["visits_max"]
        visits.append(f"{low}" if low == high else f"{low} to {high}")
    pads = [row("pads besides", "n_pads")] if any(r.metrics["n_pads"] for r in (a, b)) else []
    return [
        ["sequences", *sequences],
        row("tokens read", "tokens_scanned"),
        *pads,
        ["visits each", *visits],
        ["mean reach", *(percent(float(r.metrics["mean_reach"])) for r in (a, b))],
        *(_token(costs) or [row("farthest back", "farthest_steps")]),
    ]


def _token(costs: Mapping[str, TokenCost] | None) -> list[list[str]]:
    """What the token in focus costs in a GPU's kernel: bytes moved and exponentials."""
    if not costs:
        return []
    listed = [costs.get(slot) for slot in ("a", "b")]
    moved = [bytes_text(bytes_moved(c)) if c else "" for c in listed]
    return [
        ["token moves", *moved],
        ["token's exps", *(f"{c.exps:,}" if c else "" for c in listed)],
    ]


def reading(result: ScanResult) -> str:
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
    text = f"{reading(a)}; {reading(b)}."
    where = locate(a, y, x)
    if where:
        group, step = where
        text += f" The focus is the {ordinal(step + 1)} token of group {group + 1}."
    return text[0].upper() + text[1:]


def _badge(a: ScanResult, b: ScanResult) -> Json:
    trouble = a.disagreement or b.disagreement
    if trouble:
        return {"text": f"✗ not verified: {trouble}", "tone": "bad"}
    others = [scan_short(r.provenance.scan) for r in (a, b) if not r.is_runnable]
    if others:
        return {"text": f"path only: {', '.join(others)}", "tone": "warn"}
    if a.is_verified and b.is_verified:
        return {"text": "✓ verified on the running operator", "tone": "ok"}
    return {"text": "✗ not verified", "tone": "bad"}


def scan_panel(
    a: ScanResult,
    b: ScanResult,
    rgb: np.ndarray,
    y: int,
    x: int,
    costs: Mapping[str, TokenCost] | None = None,
) -> Json:
    """The panel for schemes A and B.

    `rgb` is the network input `[H, W, 3]` uint8, (y, x) the token in focus, `costs` what it costs
    in the kernel of a GPU, by slot "a" and "b".
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
    panel["badges"] = [
        {"text": f"stage {a.stage}, {a.height} × {a.width} tokens", "tone": "muted"},
        _badge(a, b),
    ]
    panel["maps"] = [
        {
            "key": "path",
            "figure": {"data": [], "layout": map_layout(height, width, photo_data_uri(rgb), 0.6)},
            "path": True,
            "cell": a.stride,
        }
    ]
    panel["player"] = {
        "schemes": [scheme_json("a", a), scheme_json("b", b)],
        "photo": photo_data_uri(rgb),
    }
    panel["table"] = {
        "columns": [
            {"text": ""},
            {"text": scan_short(a.provenance.scan), "tone": "a"},
            {"text": scan_short(b.provenance.scan), "tone": "b"},
        ],
        "rows": _rows(a, b, costs),
    }
    panel["sentence"] = _sentence(a, b, y, x)
    if costs:
        panel["sentence"] += f" {costs_note(next(iter(costs.values())))}"
    panel["notes"] = [f"{scan_label(r.provenance.scan)}: {r.note}" for r in (a, b) if r.note]
    return panel
