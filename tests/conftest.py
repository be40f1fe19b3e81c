"""What every test shares: fixed seeds, poisoned memory, and which tests may skip.

Nothing here imports torch at the top, so that tests of plain data and files start quickly.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before the first import of torch, numba, gradio or a hub client: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads steal the cores of others
os.environ.setdefault("NUMBA_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Runs are kept in a store of the tests' own, which ends with them; workers inherit it.
if "TESTS_DATA_HOME" not in os.environ:
    os.environ["TESTS_DATA_HOME"] = tempfile.mkdtemp(prefix="workbench-test-")
    atexit.register(shutil.rmtree, os.environ["TESTS_DATA_HOME"], ignore_errors=True)
os.environ["XDG_DATA_HOME"] = os.environ["TESTS_DATA_HOME"]

SEED = 42
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
POISONED_PACKAGES = ("kernels", "models")


def find_browser() -> str | None:
    """Path of an installed Chromium: CHROMIUM, else the first known name on PATH."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named if Path(named).is_file() else None
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A browser test skips only where no browser is installed, and never on CI."""
    if item.get_closest_marker("browser") and find_browser() is None:
        message = "no Chromium found on PATH (install the chromium package or set CHROMIUM=/path)"
        if is_ci():
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """For `playwright.chromium.launch(executable_path=...)`; the marker `browser` guards it."""
    path = find_browser()
    assert path is not None, "tests that use chromium_path carry pytest.mark.browser"
    return path


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from seed 42, torch only where something imported it."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


def _poisoned(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, but what one of our packages receives is filled with NaN or the largest integer."""
    import torch

    def replacement(*args: Any, **kwargs: Any) -> Any:
        tensor = make(*args, **kwargs)
        package = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if package not in POISONED_PACKAGES or tensor.is_meta:
            return tensor
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(float("nan"))
            elif tensor.dtype is not torch.bool:
                tensor.fill_(torch.iinfo(tensor.dtype).max)
        return tensor

    return replacement


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel forgets to write shows up as NaN instead of as a lucky zero.

    numpy stays as it is: numba compiles against `np.empty` and would meet the replacement.
    """
    import torch

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


@pytest.fixture(autouse=True)
def poison_kernel_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """`poisoned_memory` for everything under tests/kernels and tests/models."""
    folder = request.path.relative_to(request.config.rootpath).parts[1:2]
    if folder in (("kernels",), ("models",)):
        request.getfixturevalue("poisoned_memory")
    yield
