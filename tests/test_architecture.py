"""The import directions of the project, held by reading the source, not by trust.

kernels -> nothing of ours; models -> kernels; analyses -> models, kernels and plain data;
figures -> plain data; ui -> everything. Packages that only one layer may know (gradio, plotly,
matplotlib, captum) are listed below.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("kernels", "models", "workbench", "app")

# Plain data: no torch, no model, nothing of ours but each other.
DATA = (
    "workbench.results",
    "workbench.profiler_results",
    "workbench.kernel_results",
    "workbench.floors",
    "workbench.errors",
    "workbench.view",
    "workbench.training_log",
    "workbench.labels",
)

# Layer (module prefix, longest match wins) -> which of our modules it may import.
LAYERS: dict[str, tuple[str, ...]] = {
    "kernels": ("kernels",),
    "models": ("models", "kernels"),
    "workbench": ("models", "kernels", "workbench"),
    "workbench.results": (),
    "workbench.profiler_results": ("workbench.results",),
    "workbench.kernel_results": ("workbench.results",),
    "workbench.floors": ("workbench.kernel_results", "workbench.errors", "workbench.view"),
    "workbench.errors": (),
    "workbench.view": (),
    "workbench.training_log": ("workbench.errors",),
    "workbench.labels": (),
    "workbench.cache": (),
    "workbench.progress": DATA,
    "workbench.settings": DATA,
    "workbench.photos": (*DATA, "workbench.settings", "workbench.cache"),
    "workbench.permalink": DATA,
    "workbench.export": DATA,
    "workbench.report": DATA,
    "workbench.files": (*DATA, "workbench.export", "workbench.report", "workbench.figures"),
    "workbench.runs": (*DATA, "workbench.export"),
    "workbench.perfetto": (*DATA, "workbench.settings"),
    "workbench.listings": (*DATA, "workbench.cache", "kernels"),
    "workbench.security": (
        *(*DATA, "workbench.settings", "workbench.perfetto"),
        "workbench.listings",
    ),
    "workbench.figures": (*DATA, "workbench.figures"),
    "workbench.analyses": ("models", "kernels", "workbench"),
    "workbench.ui": OURS,
    "app": OURS,
}
# What a layer may not import although the table above allows its parent.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "workbench": ("workbench.ui", "app"),
    "workbench.ui": ("app",),
    "workbench.analyses": (
        "workbench.ui",
        "workbench.figures",
        "workbench.runtime",
        "workbench.cli",
        "workbench.export",
        "workbench.permalink",
        "workbench.security",
        "app",
    ),
    "workbench.runtime": ("workbench.ui", "workbench.figures", "workbench.cli", "app"),
}
# Third-party package -> the only modules of ours that import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "gradio": ("app", "workbench.ui"),
    "plotly": ("workbench.figures", "workbench.ui.components"),
    "matplotlib": ("workbench.figures",),
    "captum": ("workbench.analyses.attribution", "workbench.analyses.faithfulness"),
    "torch": (
        *("kernels", "models", "workbench.analyses", "workbench.runtime", "workbench.device"),
        *("workbench.bench_erf", "workbench.bench_attribution", "workbench.bench_trace"),
    ),
    "numba": ("kernels",),
    "triton": ("kernels",),
}
# Command-line programs print; nothing else does.
PRINTS = ("kernels.bench", "models.bench", "models.train", "models.evaluate", "models.ablations")
PRINTS += ("workbench.cli", "workbench.bench_erf", "workbench.bench_attribution")
PRINTS += ("workbench.cli_profile", "workbench.cli_kernels", "workbench.bench_trace")


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources() -> dict[str, Path]:
    files = [ROOT / "app.py"] if (ROOT / "app.py").is_file() else []
    for package in ("kernels", "models", "workbench"):
        files += sorted((ROOT / package).rglob("*.py"))
    return {_module_name(path): path for path in files}


SOURCES = _sources()


def _is_in(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def _imports(module: str) -> Iterator[tuple[int, str]]:
    """(line, imported module) of every import, those inside functions included."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    is_package = SOURCES[module].name == "__init__.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") + ([""] if is_package else [])
                base = ".".join([*parts[: len(parts) - node.level], *filter(None, [base])])
            # `from workbench import runtime` imports a module, `... import __version__` a name.
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in SOURCES else base


def _layer(module: str, table: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    matches = [prefix for prefix in table if _is_in(module, (prefix,))]
    return table[max(matches, key=len)] if matches else None


@pytest.mark.parametrize("module", SOURCES)
def test_import_direction(module: str) -> None:
    allowed = _layer(module, LAYERS)
    forbidden = _layer(module, FORBIDDEN) or ()
    assert allowed is not None, f"{module} belongs to no layer: add it to LAYERS"
    wrong = []
    for line, name in _imports(module):
        if _is_in(name, OURS):
            # The package itself holds the version and nothing else.
            is_version = name == "workbench" and _is_in(module, ("workbench",))
            if not is_version and (not _is_in(name, allowed) or _is_in(name, forbidden)):
                wrong.append(f"{SOURCES[module].relative_to(ROOT)}:{line} imports {name}")
        else:
            owners = ONLY_IN.get(name.partition(".")[0])
            if owners is not None and not _is_in(module, owners):
                wrong.append(f"{SOURCES[module].relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_imports_inside_functions() -> None:
    """The test above is worth something only if such imports are seen: `cli` loads torch late."""
    names = {name for _, name in _imports("workbench.cli")}
    assert {"workbench.errors", "workbench.local_weights", "workbench.figures.paper"} <= names


def test_packages_do_not_print() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for module, path in SOURCES.items()
        if module not in PRINTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"make_block_ptr", "removed in Triton's main branch"),
        (r"""<script[^>]+src=["']?(https?:)?//""", "the app makes no request to another host"),
        (r"@import\s+url\(\s*[\"']?(https?:)?//", "the app makes no request to another host"),
        (r"\bpickle\.(loads?|Unpickler)\b", "files are never allowed to run code"),
        (r"weights_only\s*=\s*False", "files are never allowed to run code"),
    ],
    ids=["block pointer", "remote script", "remote style", "pickle", "weights_only"],
)
def test_banned_text(pattern: str, why: str) -> None:
    files = [*SOURCES.values()]
    for folder in ("workbench", "assets"):
        files += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".js", ".css", ".html")]
    wrong = [
        str(path.relative_to(ROOT))
        for path in files
        if re.search(pattern, path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert not wrong, f"{why}: {wrong}"


def test_results_become_pictures_without_torch() -> None:
    """Results, figures, export, photos and links import on a machine that has no torch."""
    modules = [m for m in SOURCES if _is_in(m, (*DATA, "workbench.figures"))]
    modules += [f"workbench.{name}" for name in ("export", "permalink", "photos", "report")]
    code = (
        "import sys, importlib\n"
        "for name in ('torch', 'timm', 'kernels', 'models', 'gradio'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
