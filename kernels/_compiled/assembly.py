"""Reading machine code: instructions by class, and which of them lie inside a loop.

A loop is a set of instructions that can be reached from each other (a strongly connected component
of the jumps in the listing). Blocks that the compiler moved behind the end of the kernel count
where they belong, and the trap at the end (a jump to itself) holds no work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernels._compiled.records import CLASSES


@dataclass(frozen=True)
class Instruction:
    kind: str  # one of CLASSES
    target: str | None = None  # the label that it may jump to
    goes_on: bool = True  # whether the next instruction may follow


@dataclass(frozen=True)
class Counts:
    """Static counts: how often an instruction stands in the listing, not how often it runs."""

    instructions: Mapping[str, int]
    in_loops: Mapping[str, int]  # those of them that lie in a loop

    @property
    def exp2_in_loops(self) -> int:
        return self.in_loops["exp2"]

    @property
    def instructions_in_loops(self) -> int:
        return sum(self.in_loops.values())


# Guard or None, opcode and operands of a line -> the instruction, None where it is a NOP.
Reader = Callable[[str | None, str, str], Instruction | None]


def count_sass(text: str) -> Counts:
    """Counts of NVIDIA's machine code as nvdisasm prints it."""
    return _counts(marks(text, "sass"))


def count_amdgcn(text: str) -> Counts:
    """Counts of AMD's assembly as LLVM prints it."""
    return _counts(marks(text, "amdgcn"))


def marks(text: str, stage: str) -> dict[int, tuple[str, bool]]:
    """Line (from 0) of each machine instruction -> its class, and whether it lies in a loop.

    The jump to itself at the end of a kernel is no work and not among them. Empty for a stage
    that is no machine code.
    """
    if stage not in ("sass", "amdgcn"):
        return {}
    pattern, read = {
        "sass": (_SASS_LINE, _sass_instruction),
        "amdgcn": (_AMDGCN_LINE, _amdgcn_instruction),
    }[stage]
    instructions, lines, labels = _read(text, pattern, read)
    looping = set(_in_loops(instructions, labels))
    return {
        lines[index]: (instruction.kind, index in looping)
        for index, instruction in enumerate(instructions)
        if instruction.target is None or labels.get(instruction.target) != index
    }


_LABEL = re.compile(r"([.$\w]+):")
_SASS_LINE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_SASS_TARGET = re.compile(r"`\(([^)]+)\)")
_AMDGCN_LINE = re.compile(r"\t()([a-z]+_\w+)([^;\n]*)")

# First match wins.
_SASS_CLASSES = [
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"LDGDEPBAR", "other"),
        (r"MUFU\.EX2", "exp2"),
        (r"MUFU", "special"),
        (r"ATOM|RED(G|S)?(\.|$)", "atomic"),
        (r"LDL|STL", "local"),
        (r"LDS|STS|LDSM|STSM|LDGSTS", "shared"),
        (r"LDG|LD(\.|$)|UTMALDG|UBLKCP", "load"),
        (r"STG|ST(\.|$)|UTMASTG", "store"),
        (r"(HMMA|IMMA|QGMMA|HGMMA|IGMMA|UTC\w*MMA|OMMA|DMMA)(\.|$)", "matrix"),
        (r"(FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2|FHADD|FHFMA|DFMA|DADD|DMUL)\d*(\.|$)", "fma"),
        (r"SHFL|REDUX", "shuffle"),
        (r"BAR(\.|$)|SYNCS|UCGABAR", "barrier"),
        (r"BRA|BRX|JMP|JMX|EXIT|CALL|RET|BSSY|BSYNC|BREAK|WARPSYNC", "branch"),
    )
]
_AMDGCN_CLASSES = [
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"v_exp_(f32|f16)", "exp2"),
        (r"v_(log|rcp|rsq|sqrt|sin|cos)_", "special"),
        (r"(global|flat|buffer)_atomic|ds_(add|sub|min|max|cmpst|inc|dec)_", "atomic"),
        (r"scratch_", "local"),
        (r"ds_(bpermute|permute|swizzle)|v_permlane|v_readlane|v_writelane|\w+_dpp", "shuffle"),
        (r"ds_", "shared"),
        (r"(global|flat|buffer|s)_(buffer_)?load", "load"),
        (r"(global|flat|buffer)_store", "store"),
        (r"v_s?mfma", "matrix"),
        (r"v_(pk_)?(fma|fmac|fmaak|fmamk|mul|add|sub|subrev|mad|mac|dot\d)_(legacy_)?f", "fma"),
        (r"s_barrier", "barrier"),
        (r"s_(c?branch|endpgm|setpc|swappc|call)", "branch"),
    )
]


def _sass_instruction(guard: str | None, opcode: str, operands: str) -> Instruction | None:
    if opcode == "NOP":
        return None
    kind = _kind(opcode, _SASS_CLASSES)
    found = _SASS_TARGET.search(operands)
    # BSSY names the place where threads meet again; the jump there is written out elsewhere.
    jumps = found is not None and opcode.startswith(("BRA", "JMP", "CALL"))
    ends = opcode.startswith(("EXIT", "RET", "BRX", "JMX"))
    if jumps and not opcode.startswith("CALL"):
        # `BRA.U UP0, label` and `BRA.DIV ~URZ, label` carry their condition as an operand.
        ends = "," not in operands
    is_certain = guard is None
    return Instruction(kind, found[1] if found and jumps else None, not (ends and is_certain))


def _amdgcn_instruction(_: str | None, opcode: str, operands: str) -> Instruction | None:
    if opcode == "s_nop":
        return None
    kind = _kind(opcode, _AMDGCN_CLASSES)
    jumps = opcode.startswith(("s_branch", "s_cbranch"))
    ends = opcode.startswith(("s_branch", "s_endpgm", "s_setpc"))
    return Instruction(kind, operands.strip() if jumps else None, not ends)


def _kind(opcode: str, classes: Sequence[tuple[re.Pattern[str], str]]) -> str:
    return next((kind for pattern, kind in classes if pattern.match(opcode)), "other")


def _read(
    text: str, pattern: re.Pattern[str], read: Reader
) -> tuple[list[Instruction], list[int], dict[str, int]]:
    """Instructions in order, the line of each, and label -> index of the instruction behind it."""
    instructions: list[Instruction] = []
    lines: list[int] = []
    labels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines()):
        label = _LABEL.match(line)
        if label is not None:
            labels[label[1]] = len(instructions)
            continue
        found = pattern.match(line)
        if found is None:
            continue
        instruction = read(*found.groups())
        if instruction is not None:
            instructions.append(instruction)
            lines.append(number)
    return instructions, lines, labels


def _counts(found: Mapping[int, tuple[str, bool]]) -> Counts:
    counts, in_loops = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for kind, is_looping in found.values():
        counts[kind] += 1
        in_loops[kind] += is_looping
    return Counts(counts, in_loops)


def _in_loops(instructions: list[Instruction], labels: dict[str, int]) -> Iterator[int]:
    """Indices of instructions from which a path leads back to themselves (Kosaraju's method, on
    stretches without a jump in or out)."""
    starts = {0, *labels.values()}
    for index, instruction in enumerate(instructions):
        if instruction.target is not None or not instruction.goes_on:
            starts.add(index + 1)
    bounds = sorted(start for start in starts if start < len(instructions))
    ends = [*bounds[1:], len(instructions)]
    number = {start: block for block, start in enumerate(bounds)}
    after: list[list[int]] = [[] for _ in bounds]
    before: list[list[int]] = [[] for _ in bounds]
    for block, end in enumerate(ends):
        last = instructions[end - 1]
        following = [end] if last.goes_on else []
        if last.target in labels:
            following.append(labels[last.target])
        for other in (number[index] for index in following if index in number):
            after[block].append(other)
            before[other].append(block)
    finished: list[int] = []
    seen = [False] * len(bounds)
    for start in range(len(bounds)):
        finished += _visit(start, after, seen)
    seen = [False] * len(bounds)
    for start in reversed(finished):
        component = _visit(start, before, seen)
        if len(component) > 1 or start in after[start]:
            for block in component:
                yield from range(bounds[block], ends[block])


def _visit(start: int, edges: list[list[int]], seen: list[bool]) -> list[int]:
    """What is reached from `start` and was not `seen`, each after everything that it leads to."""
    if seen[start]:
        return []
    seen[start] = True
    finished: list[int] = []
    stack = [(start, iter(edges[start]))]
    while stack:
        node, rest = stack[-1]
        following = next((other for other in rest if not seen[other]), None)
        if following is None:
            stack.pop()
            finished.append(node)
        else:
            seen[following] = True
            stack.append((following, iter(edges[following])))
    return finished
