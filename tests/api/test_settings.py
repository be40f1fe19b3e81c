"""Settings: defaults, then the environment, then flags; a wrong value ends in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import BadInputError
from workbench.settings import MIB, Settings


def test_the_default_is_this_machine_only() -> None:
    settings = Settings.from_args([], {})
    assert (settings.host, settings.port) == ("127.0.0.1", 7860)
    assert settings == Settings() and not settings.browser


def test_flags_win_over_the_environment(tmp_path: Path) -> None:
    environ = {"WORKBENCH_PORT": "8000", "WORKBENCH_TRUSTED_HOSTS": "a.org, b.org", "HOME": "/"}
    environ["WORKBENCH_BROWSER"] = "yes"
    settings = Settings.from_env(environ)
    assert settings.port == 8000 and settings.trusted_hosts == ("a.org", "b.org")
    assert settings.browser
    flags = ["--port", "9000", "--gallery", str(tmp_path), "--trusted-host", "[fe80::1]"]
    settings = Settings.from_args([*flags, "--threads", "2", "--no-browser"], environ)
    assert settings.port == 9000 and settings.gallery_dir == tmp_path and settings.threads == 2
    assert settings.trusted_hosts == ("[fe80::1]",) and not settings.browser


def test_places_and_limits_of_runs_and_traces(tmp_path: Path) -> None:
    settings = Settings.from_args([], {})
    assert settings.runs is None and settings.traces is None
    assert (settings.max_upload_bytes, settings.max_trace_bytes) == (20 * MIB, 100 * MIB)
    assert (settings.runs_bytes, settings.traces_bytes) == (512 * MIB, 1024 * MIB)
    environ = {"WORKBENCH_RUNS": "a.sqlite", "WORKBENCH_TRACES": str(tmp_path)}
    environ |= {"WORKBENCH_RUNS_BYTES": f"{MIB}", "WORKBENCH_MAX_TRACE_BYTES": f"{2 * MIB}"}
    settings = Settings.from_env(environ | {"WORKBENCH_TRACES_BYTES": f"{3 * MIB}"})
    assert (settings.runs, settings.traces) == (Path("a.sqlite"), tmp_path)
    assert settings.runs_bytes == MIB and settings.max_trace_bytes == 2 * MIB
    assert settings.traces_bytes == 3 * MIB
    flags = ["--runs", str(tmp_path / "b.sqlite"), "--traces", str(tmp_path / "new")]
    settings = Settings.from_args(flags, environ)
    assert (settings.runs, settings.traces) == (tmp_path / "b.sqlite", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []  # nothing is made before something is kept


def test_a_file_and_a_folder_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"is a folder\. Give a file"):
        Settings(runs=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match=r"is a file\. Give a folder"):
        Settings(traces=tmp_path / "file")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORKBENCH_PROT": "1"}, "WORKBENCH_PORT"),
        ({"WORKBENCH_PORT": "http"}, "WORKBENCH_PORT is 'http'"),
        ({"WORKBENCH_PORT": "0"}, "from 1 to 65535"),
        ({"WORKBENCH_BROWSER": "perhaps"}, "WORKBENCH_BROWSER"),
        ({"WORKBENCH_HOST": "a b"}, "no address"),
        ({"WORKBENCH_DEVICE": "tpu"}, "auto, cpu, cuda"),
        ({"WORKBENCH_BACKEND": "cuda"}, "auto, reference, cpu, triton"),
        ({"WORKBENCH_THREADS": "0"}, "from 1 to 1024"),
        ({"WORKBENCH_CACHE_BYTES": "1"}, "cache bytes"),
        ({"WORKBENCH_MAX_TRACE_BYTES": "1"}, "max trace bytes"),
        ({"WORKBENCH_RUNS_BYTES": "0"}, "runs bytes"),
        ({"WORKBENCH_TRACES_BYTES": "many"}, "WORKBENCH_TRACES_BYTES is 'many'"),
        ({"WORKBENCH_GALLERY_DIR": "/no/such/folder"}, "no folder"),
        ({"WORKBENCH_TRUSTED_HOSTS": "https://a.org/"}, "without scheme"),
        ({"WORKBENCH_TRUSTED_HOSTS": "*"}, "no host name"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_values_say_what_is_allowed(environ: dict[str, str], words: str) -> None:
    with pytest.raises(BadInputError, match=words.replace("*", r"\*")):
        Settings.from_env(environ)


def test_wrong_flags_end_the_program_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.from_args(["--device", "tpu"], {})
    assert caught.value.code == 2
    assert "The device 'tpu' is unknown." in capsys.readouterr().err
