"""What every result must name: the machine, the versions, the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

VECTOR_INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
"""The instructions that decide the speed of a matrix multiplication, by their names in Linux."""


def describe_machine() -> dict[str, str | int]:
    return {
        "processor": processor(),
        "instructions": " ".join(sorted(VECTOR_INSTRUCTIONS & set(cpuinfo("flags").split()))),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def processor() -> str:
    """The processor's name, if the system reports it."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> str:
    """A property of the first processor, if the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    except OSError:
        pass
    return ""


def busy_percent(seconds: float = 0.3) -> float:
    """The load from other programs while this one waits; 0 if the system does not report it."""
    try:
        return psutil.cpu_percent(seconds)
    except (OSError, psutil.Error):
        return 0


def command_line() -> str:
    """The command as a reader would type it, without directories."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
