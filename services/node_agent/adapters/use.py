"""Looking at what programs use: control groups where they can be seen from here, else processes one by one."""

from contextlib import suppress
from pathlib import Path

import psutil

from services.node_agent.core.use import Use

CGROUPS = Path("/sys/fs/cgroup")
#: Where an engine puts a container, by the driver that it uses.
_PLACES = ("docker/{id}", "system.slice/docker-{id}.scope")


def of_container(container: str, root: Path = CGROUPS) -> Use | None:
    """Return what a container of this machine uses, by its files in *root*; None where they are not to be seen."""
    for place in _PLACES:
        path = place.format(id=container)
        with suppress(OSError, ValueError, KeyError):
            if (root / path / "cpu.stat").exists():
                return _second_version(root / path)
            if (root / "memory" / path).exists():
                return _first_version(root, path)
    return None


def of_tree(pid: int) -> Use | None:
    """Return what process *pid* and all below it use, with what its ended children had used; None if it is gone."""
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        cpu_s, memory, pids = 0.0, 0, set[int]()
        for process in (top, *top.children(recursive=True)):
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system + times.children_user + times.children_system
                memory += process.memory_info().rss
                pids.add(process.pid)
        return Use(cpu_s, memory, frozenset(pids))
    return None


def _second_version(folder: Path) -> Use:
    memory = int((folder / "memory.current").read_text()) - _value(folder / "memory.stat", "inactive_file")
    cpu_s = _value(folder / "cpu.stat", "usage_usec") / 1e6
    return Use(cpu_s, max(0, memory), _pids(folder))


def _first_version(root: Path, path: str) -> Use:
    memory = root / "memory" / path
    used = int((memory / "memory.usage_in_bytes").read_text()) - _value(memory / "memory.stat", "total_inactive_file")
    cpu_s = int((root / "cpuacct" / path / "cpuacct.usage").read_text()) / 1e9
    return Use(cpu_s, max(0, used), _pids(memory))


def _value(path: Path, name: str) -> int:
    """Return the number behind *name* in a file of such lines.

    Raises:
        KeyError: there is no such line.
    """
    return int(dict(line.split(maxsplit=1) for line in path.read_text().splitlines())[name])


def _pids(folder: Path) -> frozenset[int]:
    return frozenset(map(int, (folder / "cgroup.procs").read_text().split()))
