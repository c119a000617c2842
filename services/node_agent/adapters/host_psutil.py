"""The machine: its CPUs, memory and disk, and what of them is in use, by anyone."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from shared.fleet import Usage


@dataclass(frozen=True, slots=True)
class Machine:
    """What does not change. Sizes in bytes."""

    cpus: float
    memory: int
    disk: int
    arch: Literal["amd64", "arm64"]
    os: str
    boot_id: str


def machine(data_dir: Path) -> Machine:
    """Return what the machine has; the disk is the one under *data_dir*."""
    return Machine(
        cpus=float(psutil.cpu_count() or 1),
        memory=psutil.virtual_memory().total,
        disk=psutil.disk_usage(str(data_dir)).total,
        arch="arm64" if platform.machine().lower() in ("aarch64", "arm64") else "amd64",
        os=platform.system().lower(),
        boot_id=boot_id(),
    )


def usage(data_dir: Path) -> Usage:
    """Return what is in use. The first call gives 0 % CPU: it measures since the one before."""
    return Usage(
        cpu_percent=psutil.cpu_percent(),
        load1=os.getloadavg()[0],
        memory_available=psutil.virtual_memory().available,
        disk_free=psutil.disk_usage(str(data_dir)).free,
    )


def disk(folder: Path) -> tuple[int, int]:
    """Return the bytes of the disk under *folder*: all, and those that are free."""
    found = psutil.disk_usage(str(folder))
    return found.total, found.free


def boot_id() -> str:
    """Return a name of the time since the machine was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"
