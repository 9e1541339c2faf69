"""What a figure must have beside it: the machine, the versions, the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

WIDE = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
"""The instructions that decide how fast a product is, by their names in Linux; elsewhere none is told."""


def describe_machine() -> dict[str, str | int]:
    return {
        "processor": processor(),
        "instructions": " ".join(sorted(WIDE & set(cpuinfo("flags").split()))),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def processor() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> str:
    """What the system tells about its first processor, where it does."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    except OSError:
        pass
    return ""


def busy_percent(seconds: float = 0.3) -> float:
    """How much of the machine works while we wait, hence for others; 0 where the system does not tell."""
    try:
        return psutil.cpu_percent(seconds)
    except (OSError, psutil.Error):
        return 0


def command_line() -> str:
    """The command as a reader would type it, without the directories it was found in."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
