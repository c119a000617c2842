"""Servers and chosen services for a measurement, in a folder that is thrown away."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx

from infra.local.ports import free_port
from infra.local.servers import MongoServer, NatsServer
from shared import permissions

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "bench-only-password"


class BenchStack:
    """NATS (fsync on every write) and MongoDB as `make up` runs them, and services started one by one."""

    def __init__(self, nodes: list[str]) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="wherry-bench-"))
        names = [user.name for user in permissions.users(nodes)]
        self.passwords = {name: secrets.token_hex(12) for name in names}
        self.nats = NatsServer(self.home, permissions.accounts_config(self.passwords, nodes))
        self.mongo = MongoServer(self.home)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = free_port()

    def __enter__(self) -> Self:
        self.nats.start()
        self.mongo.start()
        self.run("infra.bootstrap", user="operator", wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.mongo.stop()
        self.nats.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def env(self, user: str, **more: str) -> dict[str, str]:
        """Return the environment of a service that connects as *user*."""
        return {
            **os.environ,
            "WHERRY_NATS_URL": self.nats.url,
            "WHERRY_NATS_USER": user,
            "WHERRY_NATS_PASSWORD": self.passwords[user],
            "WHERRY_MONGO_URL": self.mongo.url,
            "WHERRY_ADMIN_USER": "admin",
            "WHERRY_ADMIN_PASSWORD": PASSWORD,
            "WHERRY_PORT": str(self.port),
            "WHERRY_GATEWAY_KEY": "00" * 32,
            "WHERRY_LOG_LEVEL": "warning",
            "WHERRY_STACK_ID": "bench",
            "MALLOC_ARENA_MAX": "2",
            **more,
        }

    def run(self, module: str, *, user: str, wait: bool = False, **env: str) -> None:
        """Start ``python -m module``; its log is in the folder."""
        with (self.home / f"{module}-{user}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=self.env(user, **env), stdout=log, stderr=log
            )
        if wait:
            if process.wait(60) != 0:
                raise RuntimeError((self.home / f"{module}-{user}.log").read_text()[-2000:])
            return
        self.processes[module] = process

    def service(self, name: str, **env: str) -> None:
        """Start one of the services."""
        self.run(f"services.{name}", user=name, **env)

    def agent(self, node: str, **env: str) -> None:
        """Start a real node agent."""
        more = {"WHERRY_NODE_ID": node, "WHERRY_DATA_DIR": str(self.home / node), **env}
        self.run("services.node_agent", user=f"node-{node}", **more)

    @contextlib.contextmanager
    def stopped(self, *services: str) -> Iterator[None]:
        """The services take no processor time inside the block."""
        chosen = [self.processes[f"services.{name}"] for name in services]
        for process in chosen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in chosen:
                process.send_signal(signal.SIGCONT)

    def login(self) -> str:
        """Wait for the gateway and storage and return an administrator's token."""
        url = f"http://127.0.0.1:{self.port}"

        def ready() -> str | None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    answer = httpx.post(f"{url}/v1/login", auth=("admin", PASSWORD), timeout=20)
                    return answer.json().get("token")
            return None

        return wait_for(ready, 60)


def wait_for(condition: Callable[[], str | None], seconds: float) -> str:
    """Poll until *condition* gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError("the stack did not get ready")


def machine() -> str:
    """Return one line about the machine."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024**2
    return f"{os.cpu_count()} x {cpu}, {memory} GiB, Python {sys.version.split()[0]}"


def dump(results: dict[str, object], path: Path) -> None:
    """Keep raw figures beside the page."""
    path.write_text(json.dumps(results, indent=2) + "\n")
