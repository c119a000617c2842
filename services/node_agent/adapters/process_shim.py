"""Runs one program and survives the agent: started as a script, with nothing but the standard library.

    python process_shim.py FOLDER

FOLDER/order.json says what to run (argv, env, cwd). It leaves child.json (who runs), stdout, stderr and, at the end,
exit.json. The marker `started` makes sure that the program runs at most once, whoever asks again.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

#: In the folder: a pipe that becomes the program's standard input, where it is there. It is never at its end.
STDIN = "stdin"


def start_ticks(pid: int) -> int:
    """Return when *pid* was started, in clock ticks since boot; 0 where nobody knows, -1 where it does not run."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return -1
        return 0
    try:
        fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """Return a name of the time since the machine was started, or nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def main(folder: Path) -> None:
    """Start the program of *folder* in the background; return once it runs or cannot be run."""
    try:
        os.close(os.open(folder / "started", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os.read(ready, 1)
        return
    os.setsid()
    os.close(ready)
    _supervise(folder, tell)


def _supervise(folder: Path, tell: int) -> None:
    order = json.loads((folder / "order.json").read_text("utf-8"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        try:
            child = subprocess.Popen(  # noqa: S603 - running what the user asks for is what this is for
                order["argv"], cwd=order["cwd"], env=order["env"], stdin=_stdin(folder), stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            err.write(f"{order['argv'][0]}: {error.strerror}\n".encode())
            _write(folder / "exit.json", {"exit_code": 126 if isinstance(error, PermissionError) else 127})
            os.close(tell)
            return
    me = os.getpid()
    who = {
        "pid": me,
        "ticks": start_ticks(me),
        "group": child.pid,
        "group_ticks": start_ticks(child.pid),
        "boot": boot_id(),
    }
    _write(folder / "child.json", who)
    os.close(tell)
    # Whoever started the agent holds the other ends of these.
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    code = child.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # what the program left running
    _write(folder / "exit.json", {"exit_code": code if code >= 0 else 128 - code})


def _stdin(folder: Path) -> int:
    pipe = folder / STDIN
    # For reading and writing: it stays open whoever writes to it, and whether anybody does.
    return os.open(pipe, os.O_RDWR) if pipe.exists() else subprocess.DEVNULL


def _write(path: Path, value: dict[str, int | str]) -> None:
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
