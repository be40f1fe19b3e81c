"""Words for compiled kernels: configurations, numbers, changes, the verdict of the baseline."""

from __future__ import annotations

import re

from workbench.figures.theme import percent, significant
from workbench.kernel_results import InspectResult, KernelNumbers

# Classes of `kernels.compiled.CLASSES` in the words of a legend, with the names of their colours.
CLASS_WORDS = {
    "load": "global load",
    "store": "global store",
    "local": "spill traffic",
    "shared": "shared memory",
    "atomic": "atomic",
    "fma": "FMA, add, multiply",
    "matrix": "tensor core",
    "exp2": "exp2",
    "special": "special function",
    "shuffle": "shuffle",
    "barrier": "barrier",
    "branch": "branch",
    "other": "integer, move, other",
}
MOST_REGISTERS = {"gfx": 512, "sm_": 255}  # that one thread may have
STORED_WORDS = {  # what the baseline holds, in words for one and for many
    "registers": ("register", "registers"),
    "spill_bytes": ("spill byte", "spill bytes"),
    "shared_bytes": ("shared byte", "shared bytes"),
    "exp2_in_loops": ("exp2 in loops", "exp2 in loops"),
}
NOT_RUN = "not run: nothing here is a time on a GPU"


def sentence(result: InspectResult) -> str:
    """What was compiled, with its numbers, and that it was not run."""
    a, b = result.a, result.b
    text = _one(a, _head(a.config))
    if b is not None:
        text += f" Beside it {_one(b, apart(b.config, a.config) or 'the same')}"
        words = _change(a, b)
        text += f" B against A: {words}." if words else ""
    versions = {n.triton_version for n in (a, b) if n is not None and n.is_compiled}
    if versions:
        text += f" Compiled by triton {', '.join(sorted(versions))}, {NOT_RUN}."
    return text


def tile_text(config: str) -> str:
    """`32 channels x 1 step, 1 warp` of a configuration's name; "" where there is one tile."""
    found = re.search(r"-(\d+)x(\d+)x(\d+)$", config)
    if found is None:
        return ""
    channels, steps, warps = map(int, found.groups())
    return (
        f"{count(channels, 'channel', 'channels')} x {count(steps, 'step', 'steps')}, "
        f"{count(warps, 'warp', 'warps')}"
    )


def apart(config: str, other: str) -> str:
    """What of `config` is not as in `other`: "fp32", "16 channels x 1 step, 1 warp"; else all."""
    left, right = config.split("-"), other.split("-")
    if len(left) != len(right) or left[0] != right[0]:
        return config
    pieces = [mine for mine, its in zip(left, right, strict=True) if mine != its]
    return ", ".join(tile_text(f"-{piece}") or piece for piece in pieces)


def most_registers(target: str) -> int:
    return MOST_REGISTERS["gfx" if target.startswith("gfx") else "sm_"]


def verdict(numbers: KernelNumbers, baseline_triton: str) -> tuple[str, str, str]:
    """(text, tone, tip): the numbers beside the stored baseline, by the rules of the guard."""
    if not numbers.is_compiled:
        return "", "", ""
    if not numbers.baseline:
        return "not stored", "", "The baseline has shipped tiles for sm_80, sm_90 and gfx942."
    changes = []
    grew = False
    for key, (one, many) in STORED_WORDS.items():
        if key not in numbers.baseline:
            continue
        change = int(getattr(numbers, key)) - numbers.baseline[key]
        if change:
            changes.append(f"{signed(change)} {one if abs(change) == 1 else many}")
            grew |= change > 0
    stored = ", ".join(f"{STORED_WORDS[k][1]} {v:,}" for k, v in numbers.baseline.items())
    tip = f"Stored with triton {baseline_triton}: {stored}."
    if numbers.triton_version != baseline_triton:
        tip += f" This is triton {numbers.triton_version}: {', '.join(changes) or 'no change'}."
        spills = numbers.spill_bytes > numbers.baseline.get("spill_bytes", 0)
        return "other triton", "bad" if spills else "", tip
    if not changes:
        return "as stored", "ok", tip
    return ", ".join(changes), "bad" if grew else "ok", tip


def signed(value: float) -> str:
    """+3, −1,024 or 0: whole numbers as they are, others with three digits."""
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{size:,.0f}" if float(size).is_integer() else significant(size)
    return f"{'+' if value > 0 else '−'}{text}"


def count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _head(config: str) -> str:
    """The whole configuration in words: "steps_forward, map-rank16-bf16, 32 channels x ..."."""
    tile = tile_text(config)
    name = config.rpartition("-")[0] if tile else config
    kernel, _, layout = name.partition("-")
    return ", ".join(filter(None, (kernel, layout, tile)))


def _one(numbers: KernelNumbers, what: str) -> str:
    head = f"{what}, for {numbers.target} ({numbers.product})"
    if not numbers.is_compiled:
        return f"{head} is not compiled: {_first_words(numbers.status)}"
    spills = f"{numbers.spill_bytes:,} spill bytes" if numbers.spill_bytes else "no spills"
    limited = f" limited by {numbers.limiter}" if numbers.limiter else ""
    return (
        f"{head}: {numbers.registers} registers, {spills}, {percent(numbers.occupancy)} occupancy"
        f"{limited}; {numbers.exp2_in_loops} exp2 in loops."
    )


def _first_words(status: str, most: int = 160) -> str:
    line = " ".join(status.replace("`", "").split())
    return line if len(line) <= most else f"{line[:most].rstrip()} …"


def _change(a: KernelNumbers, b: KernelNumbers) -> str:
    if not (a.is_compiled and b.is_compiled):
        return ""
    total = [sum(n.instructions.values()) for n in (a, b)]
    parts = [
        f"{signed(b.registers - a.registers)} registers",
        f"{signed(b.exp2_in_loops - a.exp2_in_loops)} exp2 in loops",
        f"{signed(total[1] - total[0])} instructions",
    ]
    return ", ".join(parts)
