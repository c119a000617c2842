"""What is asked about, and which function asks for which operation."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from shared.bus import Bus
from shared.channels import Service
from shared.permissions import OPERATOR, node_user
from shared.settings import ServiceSettings
from tests.e2e.conftest import EDGE
from tests.e2e.documented import JSON, TUS, User
from tests.e2e.stack import ROOT, Stack, until, zip_of
from tests.integration.registry_server import RegistryServer

SMALL = {"cpus": 0.1, "memory": "64MiB", "disk": "64MiB"}
NODE = "local"
HI = b"hi from a test\n"
AS_JSON = {"Accept": JSON}
EVENTS = "text/event-stream"
TUS_BYTES = TUS | {"Content-Type": "application/offset+octet-stream"}
#: Leaves a file, says how far it is and what it measured, and speaks on both streams.
PROGRAM = """
echo hello; echo oh >&2; echo "::progress 0.5::half"; echo "::metric loss=0.5 step=1"
mkdir -p "$WHERRY_OUTPUTS/deep"; printf 0123456789 > "$WHERRY_OUTPUTS/deep/digits"
"""
#: Of each item its file in capitals; "bad" fails for as long as nobody has mended it.
CAPITALS = 'grep -q bad "$WHERRY_IN" && exit 3; tr a-z A-Z < "$WHERRY_IN" > "$WHERRY_OUT"'
#: Answers in the forms of TensorFlow Serving and of the Open Inference Protocol: the sum of each instance.
SERVING = """
import http.server, json, os

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        known = {"/healthz": {}, "/v1/models/model": {"state": "AVAILABLE"}, "/v2/models/model": {"name": "model"},
                 "/v2/models/sums": {"name": "sums"}, "/v2/models/sums/ready": {"ready": True}}
        self.answer(known.get(self.path))

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/models/model:predict":
            return self.answer({"predictions": [sum(one) for one in sent["instances"]]})
        if self.path.endswith("/infer"):
            return self.answer({"outputs": [{"name": "sum", "data": [sum(sent["inputs"][0]["data"])]}]})
        self.answer(None)

    def answer(self, found):
        body = json.dumps({"error": "nothing here"} if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
MODEL = {
    "name": "endpoint-model", "image": "wherry/busybox:latest", "read": False, "description": "Does nothing.",
    "params": {"type": "object", "properties": {"rate": {"type": "number", "default": 0.5}}},
}  # fmt: skip
TRAIN = (
    "def train(params, outputs):\n    (outputs / 'model.txt').write_text('m')\n    return {'loss': params['rate']}\n"
)


class Things:
    """What the cases ask about: each made once, by the first case that wants it."""

    def __init__(self, user: User, stack: Stack, request: pytest.FixtureRequest) -> None:
        self.user, self.stack, self._request = user, stack, request
        self.ask = user.ask
        self.ends: list[Callable[[], object]] = []

    def close(self) -> None:
        """Let nothing run on."""
        for end in reversed(self.ends):
            end()

    def job(self, command: str, **more: Any) -> str:
        spec = {"runtime": "process", "command": command, "resources": SMALL, **more}
        job_id = self.ask("POST /v1/jobs", json=spec).json()["job_id"]
        self.ends.append(lambda: self.stack.http.post(f"/jobs/{job_id}/cancel"))
        return job_id

    @cached_property
    def registry(self) -> RegistryServer:
        """Where there is none, only what needs it is left out."""
        return self._request.getfixturevalue("registry")

    @cached_property
    def ended(self) -> str:
        """A job that has left, said and measured something, and of which its webhook was told."""
        receiver = json.loads((self.stack.home / "run.json").read_text())["sinks"]["webhook_url"]
        job_id = self.job(PROGRAM, name="every-endpoint", notify=[{"webhook": {"url": receiver}}])
        assert self.stack.wait_end(job_id)["state"] == "succeeded"
        return job_id

    @cached_property
    def running(self) -> str:
        return self.job("echo up; sleep 600")

    @cached_property
    def artifact(self) -> str:
        return self.ask("PUT /v1/artifacts", content=HI, params={"name": "hi.txt"}).json()["artifact_id"]

    @cached_property
    def map_job(self) -> str:
        """A map job that is open: one item done, one that has failed."""
        bad = self.stack.http.put("/artifacts", content=b"this is bad").json()["artifact_id"]
        items = [{"artifact": self.artifact, "name": "hi.txt"}, {"artifact": bad, "name": "bad.txt"}]
        job_id = self.job(CAPITALS, kind="map", map={"open": True, "parallelism": 1, "items": items})
        done = {"total": 2, "succeeded": 1, "failed": 1, "closed": False}
        until(lambda: self.stack.job(job_id)["items"] == done, "the items are worked on")
        return job_id

    @cached_property
    def items(self) -> list[str]:
        found = self.stack.http.get(f"/jobs/{self.map_job}/items").json()["items"]
        return [one["item_id"] for one in found]

    @cached_property
    def dataset(self) -> str:
        sent: dict[str, Any] = {
            "data": {"name": "endpoint-words", "labels": "a,b"},
            "files": {"file": ("words.txt", HI, "text/plain")},
        }
        return self.ask("POST /v1/datasets", **sent).json()["name"]

    @cached_property
    def workload(self) -> str:
        return self.ask("POST /v1/workloads", json={"workload_name": "endpoints"}).json()["workload_id"]

    @cached_property
    def image(self) -> str:
        held = io.BytesIO()
        Image.new("RGB", (8, 8), (200, 30, 60)).save(held, "PNG")
        form: dict[str, Any] = {"data": {"workload_id": self.workload}, "files": {"data": ("red.png", held.getvalue())}}
        return self.ask("POST /v1/images", **form).json()["image_id"]

    @cached_property
    def filtered(self) -> str:
        def done() -> list[str]:
            assert self.image
            return self.stack.http.get(f"/workloads/{self.workload}").json()["filtered_images"]

        return until(done, "the image is filtered")[0]

    @cached_property
    def training(self) -> str:
        wish = {"algorithm": TRAIN, "params": {"rate": 0.25}, "runtime": "process", "resources": SMALL}
        return self.ask("POST /v1/trainings", json=wish).json()["training_id"]

    @cached_property
    def deployment(self) -> str:
        """A deployment that answers, named sums."""
        source = self.stack.http.put("/artifacts", content=zip_of({"app.py": SERVING})).json()["artifact_id"]
        wish = {
            "name": "sums", "artifact": source, "runtime": "process", "command": ["python3", "app.py"],
            "health": "/healthz", "resources": SMALL,
        }  # fmt: skip
        made = self.ask("POST /v1/deployments", json=wish).json()["deployment_id"]
        self.ends.append(lambda: self.stack.http.delete(f"/deployments/{made}"))
        until(lambda: self.stack.http.get("/deployments/sums").json()["status"] == "running", "a replica runs")
        return made

    @cached_property
    def model(self) -> str:
        """A model whose image only nodes have; its parameters are described."""
        name = self.ask("POST /v1/models", json=MODEL, status=201).json()["name"]
        self.ends.append(lambda: self.stack.http.delete(f"/models/{name}"))
        return name

    @cached_property
    def fine_tune(self) -> str:
        sent = {"message": "Too many are missed.", "artifact_id": self.artifact}
        return self.ask("POST /v1/models/{name}/fine-tune-requests", self.model, json=sent).json()["id"]

    @cached_property
    def colleague(self) -> str:
        wish = {"name": "endpoint-anna", "password": "a password of anna 1", "email": "anna@example.org"}
        self.ends.append(lambda: self.stack.http.delete(f"/users/{wish['name']}"))
        return self.ask("POST /v1/users", json=wish).json()["name"]

    @cached_property
    def others_token(self) -> str:
        """The token of a user who has nothing."""
        wish = {"name": "endpoint-carl", "password": "a password of carl 1"}
        self.ask("POST /v1/users", json=wish)
        self.ends.append(lambda: self.stack.http.delete(f"/users/{wish['name']}"))
        login = {"user": wish["name"], "password": wish["password"]}
        return self.user.stranger.post("/v1/login", json=login).json()["token"]

    @cached_property
    def upload(self) -> str:
        """An upload of ten bytes that has the first five."""
        name = base64.b64encode(b"ten.txt").decode()
        headers = TUS_BYTES | {"Upload-Length": "10", "Upload-Metadata": f"filename {name}"}
        answer = self.ask("POST /v1/uploads", headers=headers, content=b"01234")
        assert (answer.status_code, answer.headers["upload-offset"]) == (201, "5")
        return answer.headers["location"].rpartition("/")[2]

    @cached_property
    def left(self) -> str:
        """A node that was there, and has left for good."""
        passwords = json.loads((self.stack.home / "nats" / "passwords.json").read_text())
        ports = json.loads((self.stack.home / "ports.json").read_text())
        ours = {
            "WHERRY_NATS_URL": f"nats://127.0.0.1:{ports['nats']}", "WHERRY_NATS_USER": node_user(EDGE),
            "WHERRY_NATS_PASSWORD": passwords[node_user(EDGE)], "WHERRY_NODE_ID": EDGE, "WHERRY_RUNTIMES": "process",
            "WHERRY_DATA_DIR": str(self.stack.home / "node-edge"),
            "WHERRY_STACK_ID": json.loads((self.stack.home / "run.json").read_text())["stack_id"],
        }  # fmt: skip
        env = {name: value for name, value in os.environ.items() if not name.startswith("WHERRY_")} | ours
        with (self.stack.home / "logs" / f"node_agent@{EDGE}.log").open("ab") as log:
            agent = subprocess.Popen([sys.executable, "-m", "services.node_agent"], cwd=ROOT, env=env, stderr=log)
        try:
            until(lambda: self.stack.node(EDGE).get("condition") == "online", "the node joins")
            agent.send_signal(signal.SIGUSR1)
            agent.wait(60)
        finally:
            agent.kill()
        until(lambda: self.stack.node(EDGE)["condition"] == "left", "the node leaves")
        return EDGE

    @cached_property
    def letter(self) -> str:
        """What the notifier could not read."""
        ports = json.loads((self.stack.home / "ports.json").read_text())
        password = json.loads((self.stack.home / "nats" / "passwords.json").read_text())[OPERATOR]
        settings = ServiceSettings(
            nats_url=f"nats://127.0.0.1:{ports['nats']}", nats_user=OPERATOR, nats_password=SecretStr(password)
        )

        async def spoil() -> None:
            async with Bus.connect(settings, Service.STORAGE, purpose="test") as bus:
                await bus.put("wherry.delivery.u1.jbroken.requested", b"no delivery")

        asyncio.run(spoil())
        listed = "/dead-letters?reader=notifier"
        return until(lambda: self.stack.http.get(listed).json()["dead_letters"], "the dead letter")[0]["id"]


Case = Callable[[User, Things], None]
CASES: dict[str, Case] = {}


def case(operation: str) -> Callable[[Case], Case]:
    """Take a function as the case of *operation*: it asks for it and looks at what it is answered."""

    def taken(function: Case) -> Case:
        assert operation not in CASES, f"{operation} has two cases"
        CASES[operation] = function
        return function

    return taken
