"""Which line of the sources each line of a lowering stage comes from.

Every stage carries places in its own way; here they become frames `(file, line)`, the innermost
first, then where it was inlined. Lines that hold nothing but places are hidden and counted; marks
within a line (`loc(#loc7)`, `!dbg !7`) are cut. Machine code has the places of the line table that
ptxas wrote: an instruction that was moved may stand under those of its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernels._compiled import assembly
from kernels._compiled.records import CompiledKernel

SOURCE = "source"
Frames = tuple[tuple[str, int], ...]
Line = tuple[str, tuple[tuple[int, int], ...], str, bool]  # text, frames, kind, whether in a loop


@dataclass(frozen=True)
class Annotated:
    """One stage. Frames of a line number `files`, from 0; the kind is one of `CLASSES` or ""."""

    files: tuple[str, ...]
    lines: tuple[Line, ...]
    n_hidden: int


def stages(kernel: CompiledKernel) -> tuple[str, ...]:
    """What `annotate` takes: the kernel's source, "source:PATH" of further ones, the lowerings."""
    further = [f"{SOURCE}:{path}" for path in list(kernel.sources)[1:]]
    return (SOURCE, *further, *(stage for stage in kernel.texts if stage != SOURCE))


def annotate(kernel: CompiledKernel, stage: str) -> Annotated:
    """The lines of a stage with their places; KeyError for a stage that the kernel has not."""
    if stage == SOURCE or stage.startswith(f"{SOURCE}:"):
        name = stage.partition(":")[2] or next(iter(kernel.sources))
        texts = kernel.sources[name].splitlines()
        return Annotated(
            (name,), tuple((t, ((0, i),), "", False) for i, t in enumerate(texts, 1)), 0
        )
    listed = list(READERS[stage](kernel.texts[stage]))
    marks = assembly.marks(kernel.texts[stage], stage)
    shown = [
        (text, frames, *marks.get(number, ("", False)))
        for number, (text, frames) in enumerate(listed)
        if text is not None
    ]
    files: dict[str, int] = {}
    lines = tuple(
        (
            text,
            tuple((files.setdefault(file, len(files)), line) for file, line in frames),
            kind,
            in_loop,
        )
        for text, frames, kind, in_loop in shown
    )
    return Annotated(tuple(files), lines, len(listed) - len(shown))


# A line of the listing, or None where it is hidden, and its frames.
Read = Iterator[tuple[str | None, Frames]]

_MLIR_DEFINITION = re.compile(r"(#loc\d*) = loc\((.*)\)$")
_MLIR_MARK = re.compile(r" loc\((?:#loc\d*|\"[^\"]*\"\(#loc\d*\))\)")
_MLIR_LAST = re.compile(r"loc\((?:\"[^\"]*\"\()?(#loc\d*)\)?\)[^()]*$")
_MLIR_FILE = re.compile(r'"([^"]+)":(\d+):\d+')
_MLIR_NAME = re.compile(r'"[^"]*"\((#loc\d*)\)')
_MLIR_CALL = re.compile(r"callsite\((#loc\d*) at (#loc\d*)\)")
_MLIR_ANY = re.compile(r"#loc\d*")


def _mlir(text: str) -> Read:
    """TTIR and TTGIR: `loc(#loc7)` behind an operation, defined at the ends of the text."""
    lines = text.splitlines()
    found = (_MLIR_DEFINITION.match(line) for line in lines)
    defined = {definition[1]: definition[2] for definition in found if definition}
    known: dict[str, Frames] = {}

    def frames(name: str) -> Frames:
        if name not in known:
            known[name] = ()  # a loop among the definitions would end here
            known[name] = _mlir_frames(defined.get(name, ""), frames)
        return known[name]

    for line in lines:
        if _MLIR_DEFINITION.match(line):
            yield None, ()
            continue
        last = _MLIR_LAST.search(line)
        yield _MLIR_MARK.sub("", line), frames(last[1]) if last else ()


def _mlir_frames(words: str, frames: Callable[[str], Frames]) -> Frames:
    if call := _MLIR_CALL.fullmatch(words):
        return frames(call[1]) + frames(call[2])
    if name := _MLIR_NAME.fullmatch(words):
        return frames(name[1])
    if place := _MLIR_FILE.match(words):
        return ((place[1], int(place[2])),)
    # fused[#loc1, #loc2]: several operations became one; the first with a place stands for it.
    return next((found for part in _MLIR_ANY.findall(words) if (found := frames(part))), ())


_LLVM_NODE = re.compile(r"!(\d+) = (?:distinct )?!(DI\w+)\((.*)\)$")
_LLVM_MARK = re.compile(r",? !dbg !(\d+)")
_LLVM_REFERENCE = re.compile(r"\b(scope|inlinedAt|file): !(\d+)")
_LLVM_NUMBER = re.compile(r"\bline: (\d+)")
_LLVM_TEXT = re.compile(r'\b(filename|directory): "([^"]*)"')


def _llir(text: str) -> Read:
    """LLVM IR: `!dbg !7` behind an instruction, defined by the metadata at the end."""
    nodes: dict[str, tuple[str, str]] = {}
    lines = text.splitlines()
    for line in lines:
        if line.startswith("!") and (found := _LLVM_NODE.match(line)):
            nodes[found[1]] = (found[2], found[3])
    known: dict[str, Frames] = {}
    files: dict[str, str] = {}

    def file(number: str) -> str:
        """Of a scope: its own file, or that of the scope around it."""
        if number not in files:
            kind, words = nodes.get(number, ("", ""))
            if kind == "DIFile":
                part = dict(_LLVM_TEXT.findall(words))
                files[number] = str(PurePosixPath(part["directory"], part["filename"]))
            else:
                references = dict(_LLVM_REFERENCE.findall(words))
                inner = references.get("file") or references.get("scope")
                files[number] = file(inner) if inner else ""
        return files[number]

    def frames(number: str) -> Frames:
        if number not in known:
            kind, words = nodes.get(number, ("", ""))
            references = dict(_LLVM_REFERENCE.findall(words))
            line = _LLVM_NUMBER.search(words)
            if kind != "DILocation" or not line or "scope" not in references:
                known[number] = ()
            else:
                own = (file(references["scope"]), int(line[1]))
                outer = frames(references["inlinedAt"]) if "inlinedAt" in references else ()
                known[number] = (own, *outer) if own[0] and own[1] else outer
        return known[number]

    for line in lines:
        if line.startswith("!"):
            yield None, ()
            continue
        mark = _LLVM_MARK.search(line)
        yield _LLVM_MARK.sub("", line), frames(mark[1]) if mark else ()


_FILE = re.compile(r'\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?')
_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s+(\d+)([^/;]*)")
_INLINED_AT = re.compile(r"inlined_at\s+(\d+)\s+(\d+)\s+(\d+)")
_PTX_HIDDEN = re.compile(r"\$L__(tmp|func_begin|func_end)\d+:")
_DEBUG_SECTION = re.compile(r"\s*\.section\s+\.(debug|nv_debug)")


def _ptx(text: str) -> Read:
    """PTX: a `.loc` before the instructions that it places; it names the call it was inlined at."""
    lines = text.splitlines()
    files = _file_table(lines)
    chains: dict[tuple[str, str, str], Frames] = {}
    frames: Frames = ()
    is_debug = False
    for line in lines:
        is_debug = is_debug or _DEBUG_SECTION.match(line) is not None
        if place := _LOC.match(line):
            file, number, column, more = place.groups()
            outer = _INLINED_AT.search(more)
            call = (outer[1], outer[2], outer[3]) if outer else None
            frames = _frame(files, file, number) + (chains.get(call, ()) if call else ())
            chains[file, number, column] = frames
            yield None, ()
        elif is_debug or _FILE.match(line) or _PTX_HIDDEN.match(line):
            yield None, ()
        else:
            is_code = line.startswith(("\t", "@")) and not line.lstrip().startswith(".")
            yield line, frames if is_code else ()


def _file_table(lines: list[str]) -> dict[str, str]:
    """Number -> path of the `.file` lines, wherever they stand."""
    found = (_FILE.match(line) for line in lines)
    return {f[1]: str(PurePosixPath(f[2], f[3] or "")) for f in found if f}


def _frame(files: Mapping[str, str], file: str, line: str) -> Frames:
    return ((files[file], int(line)),) if file in files and int(line) else ()


_SASS_PLACE = re.compile(
    r'\s*//## File "([^"]*)", line (\d+)(?: inlined at "([^"]*)", line (\d+))?'
)


def _sass(text: str) -> Read:
    """SASS: a comment for each frame, the innermost first, before what it places."""
    frames: list[tuple[str, int]] = []
    is_open = False  # whether the last line was such a comment
    for line in text.splitlines():
        if place := _SASS_PLACE.match(line):
            if not is_open:
                frames = []
            is_open = True
            if int(place[2]):
                frames.append((place[1], int(place[2])))
            yield None, ()
        else:
            is_open = False
            yield line, tuple(frames) if line.lstrip().startswith("/*") else ()


_AMD_CHAIN = re.compile(r"([\w.<>-]+):(\d+):\d+")
_AMD_HIDDEN = re.compile(r"\.L(tmp|func_begin|func_end)\d+:|\s*\.cfi_")


def _amdgcn(text: str) -> Read:
    """AMD's assembly: `.loc` lines whose comment has the calls, `; a.py:1:2 @[ b.py:3:4 ]`."""
    lines = text.splitlines()
    files = _file_table(lines)
    by_name = {PurePosixPath(path).name: path for path in files.values()}
    frames: Frames = ()
    is_debug = False
    for line in lines:
        is_debug = is_debug or _DEBUG_SECTION.match(line) is not None
        if place := _LOC.match(line):
            calls = _AMD_CHAIN.findall(line.partition("@[")[2])
            outer = tuple((by_name.get(name, name), int(n)) for name, n in calls if int(n))
            frames = _frame(files, place[1], place[2]) + outer
            yield None, ()
        elif is_debug or _FILE.match(line) or _AMD_HIDDEN.match(line):
            yield None, ()
        else:
            is_code = line.startswith("\t") and not line.startswith(("\t.", "\t;"))
            yield line, frames if is_code else ()


READERS: dict[str, Callable[[str], Read]] = {
    "ttir": _mlir,
    "ttgir": _mlir,
    "llir": _llir,
    "ptx": _ptx,
    "sass": _sass,
    "amdgcn": _amdgcn,
}
