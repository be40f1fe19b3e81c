"""Panel 4: where the time of one forward pass goes, for two schemes, as bars from zero."""

from __future__ import annotations

from workbench.figures.theme import Json, percent, significant
from workbench.labels import scan_in_text, scan_short
from workbench.results import ProfileResult

STAGE_NAMES = {0: "stem", 5: "head"}
N_OPS = 4
BUSY_SPREAD = 0.3  # (p80 - p20) / p50 above which a ratio of medians is not to be trusted
OP_NAMES = {"_Scan2d": "selective scan (scan2d)"}  # the CPU kernel's autograd function


def stage_times(result: ProfileResult) -> list[Json]:
    """Median ms per stage, in order, with the part inside the scan."""
    stages: dict[int, Json] = {}
    for block in result.blocks:
        stage = stages.setdefault(block.stage, {"stage": block.stage, "ms": 0.0, "scan_ms": 0.0})
        stage["ms"] += block.p50_ms
        stage["scan_ms"] += block.scan_ms
    return [{**stages[s], "name": STAGE_NAMES.get(s, f"stage {s}")} for s in sorted(stages)]


def _bar(key: str, result: ProfileResult) -> Json:
    scan_ms = sum(block.scan_ms for block in result.blocks)
    return {
        "tone": key,
        "label": scan_short(result.provenance.scan),
        "total_ms": result.p50_ms,
        "total": f"{significant(result.p50_ms)} ms",
        "range": f"{significant(result.p20_ms)} to {significant(result.p80_ms)}",
        "scan": f"scan {percent(scan_ms / sum(b.p50_ms for b in result.blocks))}",
        "segments": stage_times(result),
    }


def _sentence(a: ProfileResult, b: ProfileResult) -> str:
    name_a, name_b = (scan_in_text(r.provenance.scan) for r in (a, b))
    ratio = b.p50_ms / a.p50_ms
    scans = [sum(block.scan_ms for block in r.blocks) for r in (a, b)]
    text = f"{name_b} takes {significant(ratio)} times as long as {name_a}"
    if scans[0] > 0:
        text += f", its scans alone {significant(scans[1] / scans[0])} times"
    text = text[0].upper() + text[1:] + "."
    spread = max((r.p80_ms - r.p20_ms) / r.p50_ms for r in (a, b))
    if spread > BUSY_SPREAD:
        text += (
            f" The machine was busy: passes spread by {percent(spread)}; run again when it is idle."
        )
    return text


def _wrong(result: ProfileResult) -> str:
    name = scan_in_text(result.provenance.scan)
    return (
        f"{name}: the output differs from the reference by {result.max_abs_error:.1e}; "
        "no time is reported."
    )


def profile_panel(a: ProfileResult, b: ProfileResult) -> Json:
    """The panel for schemes A and B; no times where an output differs from the reference."""
    wrong = [r for r in (a, b) if not r.is_correct]
    how = f"one forward, batch {a.batch}, median of {a.repeats}, in turn"
    panel: Json = {
        "id": "profile",
        "title": "Profile",
        "badges": [{"text": how, "tone": "muted"}],
        "notes": [r.note for r in (a, b) if r.note],
    }
    if wrong:
        panel["badges"].append({"text": "✗ not correct", "tone": "bad"})
        panel["empty"] = {
            "title": "No time is shown",
            "text": " ".join(_wrong(r) for r in wrong),
        }
        panel["sentence"] = "A timing is reported only for outputs that agree with the reference."
        return panel
    error = max(a.max_abs_error, b.max_abs_error)
    panel["badges"].append({"text": f"✓ within {error:.0e} of the reference", "tone": "ok"})
    panel["bars"] = {
        "bars": [_bar("a", a), _bar("b", b)],
        "text": f"from zero, one scale; hatched: inside the scan · {a.provenance.device}",
    }
    by_name = {op.name: op for op in b.ops}
    rows = []
    for op in a.ops[:N_OPS]:
        other = by_name.get(op.name)
        rows.append(
            [
                OP_NAMES.get(op.name, op.name.removeprefix("aten::")),
                f"{significant(op.self_ms)} ms",
                f"{significant(other.self_ms)} ms" if other else "0",
                f"{op.calls}",
            ]
        )
    names = [scan_short(r.provenance.scan) for r in (a, b)]
    panel["table"] = {
        "columns": [
            {"text": "top operators, self time"},
            {"text": names[0], "tone": "a"},
            {"text": names[1], "tone": "b"},
            {"text": "calls"},
        ],
        "rows": rows,
    }
    panel["expectation"] = {
        "columns": [
            {"text": f"{names[1]} : {names[0]}"},
            {"text": "tokens read"},
            {"text": "serial depth"},
            {"text": "multiply-adds"},
        ],
        "rows": [
            [
                "expected from the counts",
                f"{significant(b.scan_tokens / a.scan_tokens)} : 1" if a.scan_tokens else "n/a",
                f"{significant(b.scan_depth / a.scan_depth)} : 1" if a.scan_depth else "n/a",
                f"{significant(b.macs / a.macs)} : 1",
            ]
        ],
    }
    panel["sentence"] = _sentence(a, b)
    return panel
