"""A whole wherry on this machine for a test: started as `make up` does, in a folder and on a port of its own."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from infra.local.ports import free_port
from shared.permissions import node_user
from tests.engines import Engine

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "scheduler", "storage", "notifier", "node_agent")
ENDS = {"succeeded", "failed", "cancelled", "timed_out"}


def docker_answers() -> bool:
    """Whether an engine answers, found as the docker command finds it."""
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


def docker(*words: str) -> str:
    """Return what the command wrote.

    Raises:
        CalledProcessError: it failed.
    """
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def until(condition: Callable[[], Any], what: str, timeout: float = 240) -> Any:
    """Poll an outside system until *condition* gives something true, and return that.

    Raises:
        AssertionError: it did not within *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout:.0f} s: {what}")


def zip_of(files: Mapping[str, bytes | str]) -> bytes:
    """Return a zip with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Stack:
    """A running stack and an administrator's way into it."""

    home: Path
    port: int
    runtime: str
    image: str | None
    env: dict[str, str]
    http: httpx.Client
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # of engines that joined

    @classmethod
    def start(
        cls,
        home: Path,
        *,
        runtime: str,
        image: str | None,
        env: Mapping[str, str] | None = None,
        engines: Sequence[Engine] = (),
    ) -> "Stack":
        """Start it, with a node on each of *engines* beside its own: `join` starts their agents."""
        port = free_port()
        if engines:
            names = ",".join(engine.name for engine in engines)
            env = {"WHERRY_OTHER_NODES": names, "WHERRY_NATS_HOST": "0.0.0.0", **(env or {})}
        small = {"WHERRY_MONGO_OPLOG_MB": "256"}  # the disk of CI is
        full = {**os.environ, **small, "WHERRY_HOME": str(home), "WHERRY_PORT": str(port), **(env or {})}
        done = subprocess.run(
            [sys.executable, "-m", "infra.local", "up"], cwd=ROOT, env=full, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"make up failed:\n{done.stdout}\n{done.stderr}"
        credentials = json.loads((home / "credentials.json").read_text())
        base = f"http://127.0.0.1:{port}/v1"
        login = httpx.post(f"{base}/login", auth=(credentials["user"], credentials["password"]), timeout=60)
        login.raise_for_status()
        http = httpx.Client(
            base_url=base, headers={"Authorization": f"Bearer {login.json()['token']}"}, timeout=httpx.Timeout(90)
        )
        return cls(home, port, runtime, image, full, http)

    def join(self, *engines: Engine, **env: str) -> None:
        """Start the agents of *engines*, each on its machine, and wait until nodes of the same names are there."""
        for engine in engines:
            self._start_agent(engine, env)
        for engine in engines:
            until(lambda name=engine.name: self.node(name).get("condition") == "online", f"node {engine.name} is there")

    def _start_agent(self, engine: Engine, env: Mapping[str, str]) -> None:
        user = node_user(engine.name)
        ports = json.loads((self.home / "ports.json").read_text())
        passwords = json.loads((self.home / "nats" / "passwords.json").read_text())
        ours = {
            "WHERRY_NATS_URL": f"nats://{engine.gateway}:{ports['nats']}",
            "WHERRY_NATS_USER": user,
            "WHERRY_NATS_PASSWORD": passwords[user],
            "WHERRY_NODE_ID": engine.name,
            "WHERRY_DATA_DIR": str(self.home / f"node-{engine.name}"),
            "WHERRY_STACK_ID": json.loads((self.home / "run.json").read_text())["stack_id"],
            "WHERRY_RUNTIMES": "docker",
            "WHERRY_TAGS": "engine",
        }
        with (self.home / "logs" / f"node_agent@{engine.name}.log").open("ab") as log:
            self.agents[engine.name] = engine.popen(
                [sys.executable, "-m", "services.node_agent"], {**self.env, **engine.env, **ours, **env},
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: self.node(engine.name).get("condition") == "online", f"node {engine.name} is there")

    def node(self, node_id: str) -> dict[str, Any]:
        """Return what is told of a node; nothing where there is none."""
        answer = self.http.get(f"/nodes/{node_id}")
        return answer.json() if answer.status_code == 200 else {}

    def stop(self) -> None:
        self.http.close()
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            agent.wait(90)
        stack_id = json.loads((self.home / "run.json").read_text())["stack_id"]
        subprocess.run([sys.executable, "-m", "infra.local", "down"], cwd=ROOT, env=self.env, check=True)
        if docker_answers():  # the inputs that its node kept
            found = ["docker", "volume", "ls", "-q", "--filter", f"label=wherry.stack={stack_id}"]
            kept = subprocess.run(found, capture_output=True, text=True, check=True).stdout.split()
            subprocess.run(["docker", "volume", "rm", *kept], capture_output=True, check=False)

    # --- processes ---------------------------------------------------------------------------------------------

    def runs(self, service: str) -> bool:
        """Whether the supervisor has a process of it: not between its death and its next start."""
        return service in self._pids()

    def pid(self, service: str) -> int:
        return until(lambda: self._pids().get(service), f"{service} runs")

    def _pids(self) -> dict[str, int]:
        return json.loads((self.home / "run.json").read_text())["pids"]

    def peak_memory_mb(self, service: str) -> float:
        status = Path(f"/proc/{self.pid(service)}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    def kill(self, service: str) -> None:
        """kill -9; the stack's supervisor starts it again."""
        os.kill(self.pid(service), signal.SIGKILL)

    @contextlib.contextmanager
    def paused(self, service: str) -> Iterator[None]:
        """The service is stopped (SIGSTOP) inside the block, and goes on after it if it still lives."""
        pid = self.pid(service)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # --- jobs --------------------------------------------------------------------------------------------------

    def spec(self, command: str, **more: Any) -> dict[str, Any]:
        small = {"cpus": 0.5, "memory": "128MiB", "disk": "512MiB"}  # the default is 10 GiB, which not every disk has
        spec: dict[str, Any] = {"command": command, **more, "resources": small | more.get("resources", {})}
        spec["runtime"] = self.runtime
        if self.image:
            spec["image"] = self.image
        return spec

    def submit(self, spec: Mapping[str, Any], source: bytes | None = None, key: str | None = None) -> str:
        answer = self.post_job(spec, source, key)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    def post_job(self, spec: Mapping[str, Any], source: bytes | None = None, key: str | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        if source is None:
            return self.http.post("/jobs", json=dict(spec), headers=headers)
        files = {
            "spec": (None, json.dumps(dict(spec)), "application/json"),
            "source": ("source.zip", source, "application/zip"),
        }
        return self.http.post("/jobs", files=files, headers=headers)

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/jobs/{job_id}")
        assert answer.status_code in {200, 503}, answer.text
        return answer.json() if answer.status_code == 200 else {"state": "unknown"}

    def wait_state(self, job_id: str, *states: str, timeout: float = 240) -> dict[str, Any]:
        """Wait until the job is in one of *states*; a final state that was not asked for fails at once."""
        wanted = set(states)

        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["state"] in wanted or job["state"] not in ENDS, job
            return job if job["state"] in wanted else None

        try:
            return until(reached, f"job {job_id} in {sorted(wanted)}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.why_not(job_id)}") from None

    def why_not(self, job_id: str) -> str:
        """Return what wherry says of a job that does not go on, and of its nodes."""
        said = []
        for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/explain", "/nodes"):
            with contextlib.suppress(httpx.TransportError):
                said.append(f"{path}: {self.http.get(path).text}")
        return "\n".join(said)

    def wait_end(self, job_id: str, timeout: float = 240) -> dict[str, Any]:
        return self.wait_state(job_id, *ENDS, timeout=timeout)

    def output(self, job_id: str, path: str) -> bytes:
        answer = self.http.get(f"/jobs/{job_id}/outputs/{path}")
        assert answer.status_code == 200, answer.text
        return answer.content

    def events(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/jobs/{job_id}/events", headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return answer.json()["events"]


def wherry(stack: Stack, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as the administrator does at a shell of 200 columns, logged in."""
    token = str(stack.http.headers["authorization"]).removeprefix("Bearer ")
    env = {name: value for name, value in os.environ.items() if not name.startswith("WHERRY_")}
    env |= {"WHERRY_URL": f"http://127.0.0.1:{stack.port}", "WHERRY_TOKEN": token, "COLUMNS": "200"}
    env["XDG_CONFIG_HOME"] = str(stack.home / "shell")
    command = [sys.executable, "-m", "client.wherry", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)


def wherry_json(stack: Stack, *words: str | Path) -> Any:
    """Return the JSON that the command says.

    Raises:
        AssertionError: it failed.
    """
    done = wherry(stack, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
