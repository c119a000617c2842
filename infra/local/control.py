"""Up, down, status and logs, from outside the supervisor."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPException
from typing import Any

import psutil

from infra.local.home import Home, address, identity, port
from infra.local.ports import TAKES_WEBHOOKS, is_free
from infra.local.processes import ROOT, born_at, end, locked

READY_S = 180.0
#: What is on this machine is not asked for through the proxy that the environment may name.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: A service that has died this often before the stack was ready will not get there.
TOO_MANY_RESTARTS = 4
DOWN_S = 90.0


class StackFailedError(Exception):
    """The stack did not start or stop; the message says why."""


def up(home: Home) -> None:
    """Start the stack and return when it takes jobs; a stack that runs is left as it is.

    Raises:
        StackFailedError: it did not start. Nothing of it is left running.

    """
    if locked(home):
        wait_ready(home)
        print(f"wherry runs already at {url(home)} (data in {home.root})")
        return
    clear_leftovers(home)
    if not is_free(port()):
        raise StackFailedError(f"port {port()} is in use by another program; set WHERRY_PORT to a free one")
    identity(home)
    started = time.monotonic()
    log = home.log("supervisor")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.local", "supervise"],
            cwd=ROOT,
            env={**os.environ, "WHERRY_HOME": str(home.root)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_ready(home, process)
    except BaseException:
        down(home)
        raise
    print(f"wherry is ready at {address()} after {time.monotonic() - started:.1f} s")
    print(f"  user and password: {home.credentials}\n  logs: {home.root / 'logs'}\n  mail and webhooks: {home.inbox}")


def wait_ready(home: Home, supervisor: subprocess.Popen[bytes] | None = None) -> None:
    """Return when the gateway is ready, a node is online and webhooks are taken.

    Raises:
        StackFailedError: something died for good, or time ran out; with the end of the log at fault.

    """
    limit = time.monotonic() + READY_S
    missing = "the supervisor"
    while missing := _missing(home):
        run = running(home)
        if run.get("problem"):
            raise StackFailedError(run["problem"])
        if supervisor and supervisor.poll() is not None:
            raise StackFailedError(f"the supervisor ended with {supervisor.returncode}:\n{home.tail('supervisor')}")
        for name, times in run.get("restarts", {}).items():
            if times >= TOO_MANY_RESTARTS:
                raise StackFailedError(f"{name} keeps ending; the end of {home.log(name)}:\n{home.tail(name)}")
        if time.monotonic() > limit:
            name, what = missing
            raise StackFailedError(f"{what} after {READY_S:g} s; the end of {home.log(name)}:\n{home.tail(name)}")
        time.sleep(0.1)


def _missing(home: Home) -> tuple[str, str] | None:
    """Return whose log to look at and what is not there yet, or None when the stack takes jobs."""
    if running(home).get("state") != "running":
        return "supervisor", "the servers are not up"
    try:
        status, told = _ask(home, "/readyz")
        if status != 200:
            return "gateway", f"the gateway is not ready ({status} {told})"
        if not nodes_online(home):
            return "node_agent", "no node is online"
    except OSError as failed:
        return "gateway", f"the gateway does not answer ({failed})"
    return None if takes_webhooks(home) else ("sinks", "no mail and no webhooks are taken")


def takes_webhooks(home: Home) -> bool:
    """Whether the stack's own receiver is there: not another program that has taken its port meanwhile."""
    try:
        with _DIRECT.open(running(home)["sinks"]["webhook_url"], timeout=20) as answer:
            return answer.reason == TAKES_WEBHOOKS
    except (KeyError, OSError, HTTPException):
        return False


_tokens: dict[str, str] = {}


def nodes_online(home: Home) -> bool:
    """Whether a node takes jobs. When the administrator's password is no longer the first one, this cannot be seen."""
    credentials = json.loads(home.credentials.read_text())
    if url(home) not in _tokens:
        pair = b64encode(f"{credentials['user']}:{credentials['password']}".encode()).decode()
        status, told = _ask(home, "/v1/login", "POST", f"Basic {pair}")
        if status == 401:
            return True
        if status != 200:
            return False
        _tokens[url(home)] = told["token"]
    status, told = _ask(home, "/v1/nodes", "GET", f"Bearer {_tokens[url(home)]}")
    return status == 200 and any(node.get("online") for node in told["nodes"])


def _ask(home: Home, path: str, method: str = "GET", authorization: str | None = None) -> tuple[int, Any]:
    """Return status and JSON of one answer. With the standard library: `up` is waited for, and httpx takes a second."""
    headers = {"Authorization": authorization} if authorization else {}
    request = urllib.request.Request(url(home) + path, method=method, headers=headers)  # noqa: S310 - our own address
    try:
        with _DIRECT.open(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(errors="replace")[:500]


def down(home: Home) -> None:
    """Stop everything; data stays. Return when no process and no container of the stack is left.

    Raises:
        StackFailedError: something could not be stopped.

    """
    was_there = locked(home)
    asked: tuple[int, float] | None = None
    limit = time.monotonic() + DOWN_S
    while (locked(home) or (asked and born_at(asked[0]) == asked[1])) and time.monotonic() < limit:
        run = running(home)
        pid = run.get("pids", {}).get("supervisor")
        if not asked and pid and born_at(pid) == run["born"].get("supervisor"):
            os.kill(pid, signal.SIGTERM)
            asked = (pid, run["born"]["supervisor"])
        time.sleep(0.05)
    clear_leftovers(home)
    if locked(home):
        raise StackFailedError(f"the supervisor of {home.root} does not end; see {home.log('supervisor')}")
    containers = _remove_containers(home)
    if containers:
        print(f"removed {containers} containers of jobs that ran; they are tried again after the next start")
    print("wherry is stopped" if was_there else "wherry did not run", f"(data stays in {home.root})")


def _remove_containers(home: Home) -> int:
    known = home.root / "stack.json"
    if not known.exists():
        return 0
    from infra.local.engine import remove_containers  # noqa: PLC0415 - Docker's client takes its time, and `up` has none

    return remove_containers(json.loads(known.read_text())["id"])


def clear_leftovers(home: Home, patience_s: float = 10.0) -> None:
    """End what a stack left behind whose supervisor was killed, or whose machine went down.

    What does not end by itself within *patience_s* seconds is ended by force.
    """
    run = running(home)
    born = run.get("born", {})
    left = {
        name: psutil.Process(pid)
        for name, pid in run.get("pids", {}).items()
        if (since := born_at(pid)) is not None and since == born.get(name)
    }
    if left.keys() - {"supervisor"}:  # alone, it is on its way out
        print("ending what an earlier stack left:", ", ".join(sorted(left)))
    roots = [*left.values(), *_programs_of_jobs(home)]
    below = [child for process in roots for child in process.children(recursive=True)]
    end([*roots, *below], patience_s)
    home.run.unlink(missing_ok=True)


def _programs_of_jobs(home: Home) -> list[psutil.Process]:
    """Return the keepers of plain process jobs (services/node_agent/adapters/process_shim.py) of this stack's agent."""
    folder = f"{home.node_data}{os.sep}"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"])
        and any(word.endswith("process_shim.py") for word in words)
        and any(word.startswith(folder) for word in words)
    ]


def running(home: Home) -> dict[str, Any]:
    """Return run.json, empty when nothing runs."""
    try:
        return json.loads(home.run.read_text())
    except FileNotFoundError:
        return {}


def url(home: Home) -> str:
    """Return the running gateway's address; of a stack that does not run, the one that it would have."""
    return str(running(home).get("url") or address())


def status(home: Home) -> int:
    """Print what runs; return 0 when all of it does, else 3."""
    run = running(home)
    if not locked(home):
        print(f"wherry does not run (data in {home.root})" + (": a crash left run.json" if run else ""))
        return 3
    print(f"wherry is {run.get('state', 'starting')} at {url(home)} (data in {home.root})")
    alive = True
    for name, pid in sorted(run.get("pids", {}).items()):
        there = born_at(pid) is not None
        alive &= there
        again = run.get("restarts", {}).get(name, 0)
        print(f"  {name:<11} {pid:>8}  {'running' if there else 'dead'}" + (f", restarted {again} x" if again else ""))
    return 0 if alive and run.get("state") == "running" else 3


def logs(home: Home, names: list[str], *, follow: bool) -> None:
    """Show the end of the logs, and what comes after it with *follow*."""
    files = [home.log(name) for name in names] or sorted((home.root / "logs").glob("*.log"))
    there = [str(file) for file in files if file.exists()]
    if not there:
        print(f"no logs yet in {home.root / 'logs'}")
        return
    subprocess.run(["tail", "-n", "30", *(["-F"] if follow else []), *there], check=False)
