"""Words for scan specs, the same in pictures, lists and sentences."""

from __future__ import annotations

# Names of the schemes of kernels/schemes: (in full, short). A name that is not here is shown as is.
SCAN_NAMES: dict[str, tuple[str, str]] = {
    "es2d": ("ES2D", "ES2D"),
    "ss2d": ("Full scan (SS2D)", "Full scan"),
    "raster": ("Raster, one direction", "Raster"),
    "bidirectional": ("Bidirectional raster (Vim)", "Bidirectional"),
    "snake": ("Snake", "Snake"),
    "plainmamba": ("PlainMamba, four snakes", "PlainMamba"),
    "zigma": ("ZigMa, eight snakes", "ZigMa"),
    "windows": ("Windows (LocalMamba)", "Windows"),
    "diagonal": ("Diagonals", "Diagonals"),
    "morton": ("Morton, z-order", "Morton"),
    "hilbert": ("Hilbert", "Hilbert"),
    "spiral": ("Spiral", "Spiral"),
    "random": ("Random, a control", "Random"),
    "cascade2d": ("Cascade, rows then columns", "Cascade"),
    "vim": ("Vim with class token", "Vim, class token"),
    "groupmamba": ("GroupMamba", "GroupMamba"),
    "msvmamba": ("MSVMamba, two scales", "MSVMamba"),
}
# What a parameter's value adds to a name, (in full, short); "" adds nothing.
_PARAMETER_WORDS: dict[tuple[str, str], tuple[str, str]] = {
    ("reverse", "1"): ("reversed", "reversed"),
    ("reverse", "2"): ("both ways", "both ways"),
    ("transpose", "1"): ("transposed", "transposed"),
    ("transpose", "2"): ("and transposed", "+ transposed"),
    ("alternate", "1"): ("alternating", "zigzag"),
    ("anti", "1"): ("from the top right", "top right"),
    ("anti", "2"): ("from both top corners", "both corners"),
    ("path", "0"): ("", ""),
    ("seed", "0"): ("seed 0", ""),
}


def _scan_words(spec: str, form: int) -> str:
    """A scheme's name with what its parameters say; `form` 0 in full, 1 short."""
    name, _, listed = spec.partition(":")
    words = [SCAN_NAMES.get(name, (name, name))[form]]
    for key, _, value in (part.partition("=") for part in listed.split(",") if part):
        if form and (name, key) == ("es2d", "step"):
            words[0] += "" if value == "2" else f" p={value}"
        elif form and key == "size":
            words[0] += f" {value}"
        else:
            words.append(_PARAMETER_WORDS.get((key, value), (f"{key} {value}",) * 2)[form])
    return ", ".join(word for word in words if word)


def scan_label(spec: str) -> str:
    """Words for a scan spec: "es2d:step=2" -> "ES2D, step 2"; "ss2d" -> "Full scan (SS2D)"."""
    return _scan_words(spec, 0)


def scan_short(spec: str) -> str:
    """The same for captions: "ES2D", "ES2D p=3", "Hilbert, both ways"."""
    return _scan_words(spec, 1)


def scan_in_text(spec: str) -> str:
    """The scheme's name inside a sentence."""
    short = scan_short(spec)
    return "the full scan" if short == "Full scan" else short
