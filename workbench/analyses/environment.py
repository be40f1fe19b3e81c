"""What measured times depend on besides the program: device, clocks, memory, versions."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from workbench import __version__
from workbench.device import cpu_name

PACKAGES = ("numba", "numpy", "triton", "mamba_ssm", "timm")
_CPU_FREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
_CGROUP = Path("/sys/fs/cgroup")


def environment(device: torch.device, backend: str) -> dict[str, str]:
    """The card beside measured times, name to words; what is not known here is left out."""
    facts = {"device": cpu_name(), "backend": backend, "threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        facts["processor"] = facts["device"]
        facts |= _gpu(device)
    facts["processors"] = str(os.cpu_count())
    facts |= _cpu_clock()
    found = available_bytes(torch.device("cpu"))
    if found is not None:
        facts["free memory"] = f"{found / 2**30:.1f} GiB"
    with suppress(OSError):
        one, five, _ = os.getloadavg()
        facts["load at start"] = f"{one:.2f} (1 min), {five:.2f} (5 min)"
    facts["torch"] = torch.__version__  # with the build, which its package's metadata leave out
    facts |= {name: text for name in PACKAGES if (text := _version(name))}
    facts["workbench"] = __version__
    facts["python"] = platform.python_version()
    facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    return facts


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken, in bytes; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    found = []
    match = re.search(r"^MemAvailable:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    if match:
        found.append(1024 * int(match[1]))
    # A container has a limit of its own; "max" where there is none.
    limit, used = _text(_CGROUP / "memory.max").strip(), _text(_CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        match = re.search(r"^inactive_file (\d+)", _text(_CGROUP / "memory.stat"), re.MULTILINE)
        found.append(int(limit) - int(used) + (int(match[1]) if match else 0))
    return max(0, min(found)) if found else None


def _gpu(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    facts = {
        "device": properties.name,
        "GPU memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "CUDA" if torch.version.cuda else "ROCm": str(torch.version.cuda or torch.version.hip),
    }
    # Needs NVIDIA's management library, which not every image has.
    with suppress(RuntimeError, ImportError, AttributeError):
        facts["GPU clock"] = f"{torch.cuda.clock_rate(device)} MHz at start"
    return facts


def _cpu_clock() -> dict[str, str]:
    """Clock of the fastest and the slowest processor now, and the highest that the system knows."""
    facts = {}
    text = _text(Path("/proc/cpuinfo"))
    now = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    if now:
        spread = f"{min(now):.0f}" if max(now) - min(now) < 1 else f"{min(now):.0f}-{max(now):.0f}"
        facts["CPU clock"] = f"{spread} MHz at start"
    highest = _text(_CPU_FREQ).strip()
    if highest.isdigit():
        facts["highest CPU clock"] = f"{int(highest) / 1000:.0f} MHz"
    return facts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
