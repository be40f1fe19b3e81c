"""Log directories of TensorBoard: the plugin's own loader opens what is written."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.analyses import tensorboard_export
from workbench.analyses.tensorboard_export import tensorboard_line, write_logdir
from workbench.errors import BadInputError, NotAvailableError

# In a process of its own: the plugin starts others, and warns under new versions of pandas.
LOADER = """
import json, sys
from torch_tb_profiler import io
from torch_tb_profiler.profiler.loader import RunLoader

if __name__ == "__main__":
    run = RunLoader("run", sys.argv[1], io.Cache()).load()
    print(json.dumps({
        f"{worker} {span}": {
            "views": [view.display_name for view in profile.views],
            "operators": {
                row["name"]: row["calls"] for row in profile.operation_table_by_name["data"]
            },
        }
        for (worker, span), profile in run.profiles.items()
    }))
"""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of three products of matrices in two steps, recorded here."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    x = torch.randn(64, 64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for step, n_products in enumerate((1, 2)):
            with record_function(f"ProfilerStep#{step}"):
                for _ in range(n_products):
                    torch.mm(x, x)
    path = tmp_path_factory.mktemp("recorded") / "trace.json"
    profiler.export_chrome_trace(str(path))
    return path


def test_the_plugin_opens_both_forms_and_finds_the_operators(trace: Path, tmp_path: Path) -> None:
    packed = tmp_path / "named.json"
    packed.write_bytes(gzip.compress(trace.read_bytes()))
    logdir = tmp_path / "logs"
    assert write_logdir(trace, logdir, "plain").suffix == ".json"
    assert write_logdir(packed, logdir, "packed").suffix == ".gz"
    (tmp_path / "loader.py").write_text(LOADER)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "loader.py"), str(logdir)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    profiles = json.loads(done.stdout.splitlines()[-1])
    assert set(profiles) == {"plain 1", "packed 1"}, done.stderr
    for profile in profiles.values():
        assert profile["operators"]["aten::mm"] == 3
        assert {"Overview", "Operator", "Trace", "Memory"} <= set(profile["views"])


def test_traces_gather_in_one_directory(trace: Path, tmp_path: Path) -> None:
    first, second = (write_logdir(trace, tmp_path / "new" / "logs") for _ in range(2))
    assert first != second and first.parent == tmp_path / "new" / "logs"
    assert first.read_bytes() == second.read_bytes() == trace.read_bytes()
    for path in (first, second):
        worker, milliseconds, *ending = path.name.split(".")
        assert worker == "workbench" and len(milliseconds) == 13 and milliseconds.isdecimal()
        assert ending == ["pt", "trace", "json"]
    assert len(list(first.parent.iterdir())) == 2


@pytest.mark.parametrize("worker", ["", "../up", "a.b", "a b", "w" * 65])
def test_a_worker_is_a_plain_name(trace: Path, tmp_path: Path, worker: str) -> None:
    with pytest.raises(BadInputError, match="no plain name"):
        write_logdir(trace, tmp_path, worker)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_written(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"'no\.json' cannot be read: No such file"):
        write_logdir(tmp_path / "no.json", tmp_path / "logs")
    (tmp_path / "file").touch()
    with pytest.raises(NotAvailableError, match="Name another folder"):
        write_logdir(trace, tmp_path / "file" / "logs")


def test_the_line_survives_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logdir = tmp_path / "it's $HOME; rm"
    monkeypatch.setattr(tensorboard_export.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert shlex.split(tensorboard_line(logdir)) == ["tensorboard", "--logdir", str(logdir)]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(tensorboard_line(Path("logs")))[2] == str(tmp_path / "logs")
    # Not on PATH, as in an environment that was not activated: by its path.
    monkeypatch.setattr(tensorboard_export.shutil, "which", lambda name: None)
    command = Path(shlex.split(tensorboard_line(logdir))[0])
    assert command == Path(sys.executable).with_name("tensorboard") and command.is_file()
