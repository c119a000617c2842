"""One test per endpoint: each operation of the gateway's OpenAPI document, asked as a user would and in wrong ways."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr

from shared.bus import Bus
from shared.channels import Service
from shared.permissions import OPERATOR, node_user
from shared.settings import ServiceSettings
from tests.e2e.conftest import EDGE
from tests.e2e.documented import JSON, TUS, User, filled
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


@pytest.fixture(scope="module")
def user(stack: Stack) -> Iterator[User]:
    token = stack.http.headers["Authorization"].removeprefix("Bearer ")
    one = User(f"http://127.0.0.1:{stack.port}", token)
    yield one
    one.close()


@pytest.fixture(scope="module")
def things(user: User, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Things]:
    things = Things(user, stack, request)
    yield things
    things.close()


# --- for everybody --------------------------------------------------------------------------------------------------


@case("GET /healthz")
def it_lives(user: User, _: Things) -> None:
    assert user.ask("GET /healthz").json() == {"status": "ok"}


@case("GET /readyz")
def it_is_ready(user: User, _: Things) -> None:
    assert user.ask("GET /readyz").json() == {"status": "ready"}


@case("GET /metrics")
def numbers_for_prometheus(user: User, _: Things) -> None:
    text = user.ask("GET /metrics").text
    assert 'wherry_http_requests_total{method="GET",route="/healthz",status="200"}' in text


@case("GET /asyncapi.json")
def what_travels_on_the_bus(user: User, _: Things) -> None:
    assert "jobChanged" in user.ask("GET /asyncapi.json").json()["channels"]


# --- who one is -----------------------------------------------------------------------------------------------------


@case("GET /v1/login")
def login_with_curl(user: User, things: Things) -> None:
    auth = (things.colleague, "a password of anna 1")
    assert user.ask("GET /v1/login", auth=auth).json()["user"] == things.colleague
    user.is_problem("GET /v1/login", user.stranger.get("/v1/login"), 401, "unauthenticated")


@case("POST /v1/login")
def login(user: User, things: Things) -> None:
    sent = {"user": things.colleague, "password": "a password of anna 1"}
    answer = user.stranger.post("/v1/login", json=sent)
    assert answer.json()["token"] != user.ask("POST /v1/login", json=sent).json()["token"]
    assert user.stranger.post("/v1/login", data=sent).json()["user"] == things.colleague
    wrong = user.stranger.post("/v1/login", json=sent | {"password": "no"})
    user.is_problem("POST /v1/login", wrong, 401, "unauthenticated")


@case("DELETE /v1/logout")
def logout(user: User, things: Things) -> None:
    sent = {"user": things.colleague, "password": "a password of anna 1"}
    token = user.ask("POST /v1/login", json=sent).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert "endpoint-anna" in user.ask("DELETE /v1/logout", headers=headers).json()["logout_message"]
    user.ask("GET /v1/users/me", headers=headers, status=401)


@case("GET /v1/status")
def status(user: User, things: Things) -> None:
    assert things.workload in user.ask("GET /v1/status").json()["active_workloads"]


@case("POST /v1/users")
def add_a_user(user: User, things: Things) -> None:
    wish = {"name": things.colleague, "password": "another password 1"}
    assert user.ask("POST /v1/users", json=wish, status=409).json()["code"] == "conflict"


@case("GET /v1/users")
def users(user: User, things: Things) -> None:
    names = [one["name"] for one in user.ask("GET /v1/users").json()["users"]]
    assert {"admin", things.colleague} <= set(names)
    first = user.ask("GET /v1/users", params={"limit": 1}).json()
    rest = user.ask("GET /v1/users", params={"cursor": first["cursor"]}).json()
    assert [one["name"] for one in first["users"] + rest["users"]] == names
    wrong = user.ask("GET /v1/users", params={"cursor": "nonsense"}, status=422).json()
    assert wrong["errors"][0]["field"] == "cursor"


@case("GET /v1/users/me")
def oneself(user: User, _: Things) -> None:
    found = user.ask("GET /v1/users/me").json()
    assert (found["user"], found["role"]) == ("admin", "admin")


@case("PATCH /v1/users/{name}")
def change_a_user(user: User, things: Things) -> None:
    found = user.ask("PATCH /v1/users/{name}", things.colleague, json={"email": "a@example.org"}).json()
    assert (found["name"], found["email"]) == (things.colleague, "a@example.org")
    user.ask("PATCH /v1/users/{name}", "admin", json={"disabled": True}, status=409)


@case("POST /v1/password")
def change_the_password(user: User, things: Things) -> None:
    old, new = "a password of anna 1", "a password of anna 2"
    token = user.ask("POST /v1/login", json={"user": things.colleague, "password": old}).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    user.ask("POST /v1/password", headers=headers, json={"old": old, "new": new}, status=204)
    user.ask("POST /v1/login", json={"user": things.colleague, "password": old}, status=401)
    user.ask("POST /v1/password", headers=headers, json={"old": new, "new": old}, status=204)


@case("GET /v1/webhook-secret")
def the_secret_of_webhooks(user: User, _: Things) -> None:
    assert user.ask("GET /v1/webhook-secret").json()["secret"].startswith("whsec_")


@case("PUT /v1/users/{name}/quota")
def set_a_quota(user: User, things: Things) -> None:
    found = user.ask("PUT /v1/users/{name}/quota", things.colleague, json={"running": 3, "memory": "1GiB"}).json()
    assert found["user"] == things.colleague


@case("GET /v1/users/{name}/quota")
def see_a_quota(user: User, things: Things) -> None:
    user.ask("PUT /v1/users/{name}/quota", things.colleague, json={"running": 3, "memory": "1GiB"})

    def there() -> Any:
        return user.ask("GET /v1/users/{name}/quota", things.colleague).json()["quota"]

    found = until(there, "the quota")
    assert (found["running"], found["memory"], found["cpus"]) == (3, 2**30, None)


@case("DELETE /v1/users/{name}/quota")
def take_a_quota_away(user: User, things: Things) -> None:
    user.ask("DELETE /v1/users/{name}/quota", things.colleague, status=204)
    until(lambda: not user.ask("GET /v1/users/{name}/quota", things.colleague).json()["quota"], "it is gone")


@case("DELETE /v1/users/{name}")
def remove_a_user(user: User, things: Things) -> None:
    user.ask("POST /v1/users", json={"name": "endpoint-bert", "password": "a password of bert 1"})
    user.ask("DELETE /v1/users/{name}", "endpoint-bert", status=204)
    user.ask("DELETE /v1/users/{name}", "admin", status=409)
    assert "endpoint-bert" not in [one["name"] for one in user.ask("GET /v1/users").json()["users"]]


# --- artifacts, uploads, datasets -----------------------------------------------------------------------------------


@case("PUT /v1/artifacts")
def store(user: User, things: Things) -> None:
    found = user.ask("PUT /v1/artifacts", content=HI).json()
    assert (found["size"], len(found["sha256"])) == (len(HI), 64)
    assert found["artifact_id"] != things.artifact
    wrong = user.ask("PUT /v1/artifacts", content=HI, headers={"Content-Type": "nonsense"}, status=422)
    assert wrong.json()["errors"][0]["field"] == "Content-Type"


@case("GET /v1/artifacts")
def artifacts(user: User, things: Things) -> None:
    found = user.ask("GET /v1/artifacts", params={"limit": 1000}).json()["artifacts"]
    assert [one["name"] for one in found if one["artifact_id"] == things.artifact] == ["hi.txt"]


@case("GET /v1/artifacts/{artifact_id}")
def fetch_an_artifact(user: User, things: Things) -> None:
    operation = "GET /v1/artifacts/{artifact_id}"
    whole = user.ask(operation, things.artifact)
    assert (whole.content, "hi.txt" in whole.headers["content-disposition"]) == (HI, True)
    part = user.ask(operation, things.artifact, headers={"Range": "bytes=3-6"}, status=206)
    assert (part.content, part.headers["content-range"]) == (HI[3:7], f"bytes 3-6/{len(HI)}")
    user.ask(operation, things.artifact, headers={"If-None-Match": whole.headers["etag"]}, status=304)
    beyond = user.ask(operation, things.artifact, headers={"Range": "bytes=1000-"}, status=416)
    assert beyond.headers["content-range"] == f"bytes */{len(HI)}"


@case("DELETE /v1/artifacts/{artifact_id}")
def remove_an_artifact(user: User, _: Things) -> None:
    stored = user.ask("PUT /v1/artifacts", content=b"for a moment").json()["artifact_id"]
    user.ask("DELETE /v1/artifacts/{artifact_id}", stored, status=204)
    user.ask("GET /v1/artifacts/{artifact_id}", stored, status=404)


@case("OPTIONS /v1/uploads")
def what_uploads_can_do(user: User, _: Things) -> None:
    answer = user.ask("OPTIONS /v1/uploads", status=204)
    assert (answer.headers["tus-version"], "checksum" in answer.headers["tus-extension"]) == ("1.0.0", True)


@case("OPTIONS /v1/uploads/{upload_id}")
def what_an_upload_can_do(user: User, things: Things) -> None:
    answer = user.ask("OPTIONS /v1/uploads/{upload_id}", things.upload, status=204)
    assert int(answer.headers["tus-max-size"]) > 0


@case("POST /v1/uploads")
def begin_an_upload(user: User, things: Things) -> None:
    assert things.upload
    user.ask("POST /v1/uploads", headers={"Tus-Resumable": "0.2.2", "Upload-Length": "1"}, status=412)
    user.ask("POST /v1/uploads", headers=TUS, status=400)
    user.ask("POST /v1/uploads", headers=TUS | {"Upload-Length": "9" * 18}, status=413)


@case("HEAD /v1/uploads/{upload_id}")
def how_far_an_upload_is(user: User, things: Things) -> None:
    answer = user.ask("HEAD /v1/uploads/{upload_id}", things.upload, headers=TUS)
    assert (answer.headers["upload-offset"], answer.headers["upload-length"]) == ("5", "10")


@case("GET /v1/uploads/{upload_id}")
def an_upload_as_json(user: User, things: Things) -> None:
    found = user.ask("GET /v1/uploads/{upload_id}", things.upload).json()
    assert (found["offset"], found["length"], found["artifact_id"]) == (5, 10, None)


@case("PATCH /v1/uploads/{upload_id}")
def go_on_with_an_upload(user: User, things: Things) -> None:
    operation, headers = "PATCH /v1/uploads/{upload_id}", TUS_BYTES | {"Upload-Offset": "5"}
    wrong = user.ask(operation, things.upload, headers=headers | {"Upload-Offset": "9"}, content=b"9", status=409)
    assert wrong.json()["code"] == "offset_mismatch"
    user.ask(operation, things.upload, headers=headers | {"Content-Type": JSON}, content=b"5", status=415)
    sum_ = base64.b64encode(b"0" * 20).decode()
    user.ask(operation, things.upload, headers=headers | {"Upload-Checksum": f"sha1 {sum_}"}, content=b"5", status=460)
    done = user.ask(operation, things.upload, headers=headers, content=b"56789", status=204)
    stored = user.ask("GET /v1/artifacts/{artifact_id}", done.headers["wherry-artifact"])
    assert (stored.content, "ten.txt" in stored.headers["content-disposition"]) == (b"0123456789", True)


@case("DELETE /v1/uploads/{upload_id}")
def drop_an_upload(user: User, _: Things) -> None:
    begun = user.ask("POST /v1/uploads", headers=TUS | {"Upload-Length": "3"}).headers["location"].rpartition("/")[2]
    user.ask("DELETE /v1/uploads/{upload_id}", begun, headers=TUS, status=204)
    gone = user.ask("HEAD /v1/uploads/{upload_id}", begun, headers=TUS, status=410)
    assert gone.headers["tus-resumable"] == "1.0.0"


@case("POST /v1/datasets")
def store_a_dataset(user: User, things: Things) -> None:
    again: dict[str, Any] = {"data": {"name": things.dataset}, "files": {"file": ("words.txt", HI)}}
    assert user.ask("POST /v1/datasets", **again, status=200).json()["is_new"] is False
    stored = user.ask("PUT /v1/artifacts", content=b"others").json()["artifact_id"]
    made = user.ask("POST /v1/datasets", json={"name": things.dataset, "artifact_id": stored}, status=201).json()
    assert (made["version"], made["is_new"], made["labels"]) == (2, True, ["a", "b"])


@case("GET /v1/datasets")
def datasets(user: User, things: Things) -> None:
    found = user.ask("GET /v1/datasets", params={"search": "endpoint-words", "owner": "me"}).json()["datasets"]
    assert [one["name"] for one in found] == [things.dataset]


@case("GET /v1/datasets/{ref}")
def see_a_dataset(user: User, things: Things) -> None:
    found = user.ask("GET /v1/datasets/{ref}", f"{things.dataset}@1").json()
    assert (found["version"], found["size"], found["labels"]) == (1, len(HI), ["a", "b"])
    user.ask("GET /v1/datasets/{ref}", f"{things.dataset}@99", status=404)


@case("GET /v1/datasets/{ref}/content")
def fetch_a_dataset(user: User, things: Things) -> None:
    assert user.ask("GET /v1/datasets/{ref}/content", f"{things.dataset}@1").content == HI


@case("PATCH /v1/datasets/{name}")
def describe_a_dataset(user: User, things: Things) -> None:
    found = user.ask("PATCH /v1/datasets/{name}", things.dataset, json={"description": "Words."}).json()
    assert (found["description"], found["labels"]) == ("Words.", ["a", "b"])


@case("DELETE /v1/datasets/{ref}")
def remove_a_dataset(user: User, things: Things) -> None:
    user.ask("POST /v1/datasets", json={"name": "endpoint-shortlived", "artifact_id": things.artifact})
    user.ask("DELETE /v1/datasets/{ref}", "endpoint-shortlived", status=204)
    user.ask("GET /v1/datasets/{ref}", "endpoint-shortlived", status=404)


# --- jobs -----------------------------------------------------------------------------------------------------------


@case("POST /v1/jobs")
def hand_in_a_job(user: User, things: Things) -> None:
    spec = {"runtime": "process", "command": 'cat hi > "$WHERRY_OUTPUTS/copy"', "resources": SMALL}
    form = {"spec": (None, json.dumps(spec), JSON), "source": ("source.zip", zip_of({"hi": HI}), "application/zip")}
    headers = {"Idempotency-Key": f"endpoints-{things.stack.port}"}
    job_id = user.ask("POST /v1/jobs", files=form, headers=headers, status=202).json()["job_id"]
    assert user.ask("POST /v1/jobs", files=form, headers=headers).json()["job_id"] == job_id
    assert user.ask("POST /v1/jobs", json=spec, headers=headers, status=409).json()["code"] == "idempotency_conflict"
    assert things.stack.wait_end(job_id)["state"] == "succeeded"
    assert things.stack.output(job_id, "copy") == HI


@case("GET /v1/jobs")
def jobs(user: User, things: Things) -> None:
    assert things.ended
    found = user.ask("GET /v1/jobs", params={"name": "every-endpoint", "state": "succeeded"}).json()["jobs"]
    assert (found[0]["job_id"], found[0]["spec"]) == (things.ended, None)
    user.ask("GET /v1/jobs", params={"state": "sleepy"}, status=422)


@case("POST /v1/jobs/batch")
def hand_in_many(user: User, _: Things) -> None:
    good = {"runtime": "process", "command": "true", "resources": SMALL}
    body = json.dumps({"jobs": [good, {"command": 7}]})  # of which not all is as described
    told = user.ask("POST /v1/jobs/batch", content=body, status=202).json()["jobs"]
    assert (told[0]["state"], told[1]["problem"]["code"]) == ("queued", "invalid")


@case("POST /v1/jobs/plan")
def plan(user: User, _: Things) -> None:
    spec = {"runtime": "process", "command": "true", "resources": SMALL}

    def known() -> dict[str, Any] | None:  # the scheduler may have begun anew in the test before
        told = user.ask("POST /v1/jobs/plan", json=spec).json()
        return told if told["nodes_considered"] else None

    told = until(known, "a node")
    assert (told["job_id"], told["never"]) == (None, False)


@case("GET /v1/jobs/{job_id}")
def see_a_job(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}", things.ended).json()
    assert (found["state"], found["progress"]["fraction"], found["outputs"]["bytes"]) == ("succeeded", 0.5, 10)
    assert [one["state"] for one in found["attempts"]] == ["succeeded"]


@case("GET /v1/jobs/{job_id}/explain")
def explain_a_job(user: User, things: Things) -> None:
    told = user.ask("GET /v1/jobs/{job_id}/explain", things.ended).json()
    assert (told["job_id"], told["state"], bool(told["text"])) == (things.ended, "succeeded", True)


@case("GET /v1/jobs/{job_id}/logs")
def logs(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/logs"
    text = user.ask(operation, things.ended, params={"stream": "stdout", "tail": 5})
    assert "hello" in text.text.splitlines()
    lines = user.ask(operation, things.ended, headers=AS_JSON).json()["lines"]
    assert {"stdout", "stderr"} == {one["stream"] for one in lines}
    told = user.ask(operation, things.ended, params={"follow": "true"})
    assert (told.headers["content-type"].partition(";")[0], "event: end" in told.text) == (EVENTS, True)
    user.ask(operation, things.ended, params={"attempt": 9}, status=404)


@case("GET /v1/jobs/{job_id}/events")
def events_of_a_job(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/events"
    found = user.ask(operation, things.ended, headers=AS_JSON).json()
    assert [one["type"].split(".")[3] for one in found["events"]][-1] == "succeeded"
    told = user.ask(operation, things.ended, headers={"Accept": EVENTS}).text
    assert told.count("\nid: ") == len(found["events"])


@case("GET /v1/events")
def events(user: User, things: Things) -> None:
    assert things.ended
    found = user.ask("GET /v1/events", params={"limit": 3}).json()
    assert (len(found["events"]), found["events"][0]["specversion"]) == (3, "1.0")
    assert user.ask("GET /v1/events", params={"limit": 3, "after": found["cursor"]}).json()["cursor"] > found["cursor"]


@case("GET /v1/jobs/{job_id}/metrics")
def metrics_of_a_job(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}/metrics", things.ended, params={"name": "loss"}).json()
    assert [(one["name"], one["value"], one["step"]) for one in found["points"]] == [("loss", 0.5, 1)]


@case("GET /v1/jobs/{job_id}/notifications")
def notifications(user: User, things: Things) -> None:
    def delivered() -> list[dict[str, Any]]:
        found = user.ask("GET /v1/jobs/{job_id}/notifications", things.ended).json()["notifications"]
        return found if [one["state"] for one in found] == ["delivered"] else []

    assert until(delivered, "the webhook is told")[0]["tries"] >= 1


@case("GET /v1/jobs/{job_id}/outputs")
def outputs(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/outputs"
    with zipfile.ZipFile(io.BytesIO(user.ask(operation, things.ended).content)) as archive:
        assert archive.read("deep/digits") == b"0123456789"
    entries = user.ask(operation, things.ended, params={"list": "true"}).json()["entries"]
    assert {"deep", "deep/digits", "_stdout.txt"} <= {one["path"] for one in entries}
    things.stack.wait_state(things.running, "running")
    user.ask(operation, things.running, status=409)
    user.ask(operation, things.ended, params={"live": "true"}, status=409)


@case("GET /v1/jobs/{job_id}/outputs/{path}")
def an_output(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/outputs/{path}"
    assert user.ask(operation, things.ended, "deep/digits").content == b"0123456789"
    assert user.ask(operation, things.ended, "deep/digits", headers={"Range": "bytes=-2"}, status=206).text == "89"
    user.ask(operation, things.ended, "deep/digits", headers={"Range": "bytes=99-"}, status=416)
    user.ask(operation, things.running, "deep/digits", status=409)


@case("POST /v1/jobs/{job_id}/cancel")
def cancel(user: User, things: Things) -> None:
    job_id = things.job("sleep 600")
    assert user.ask("POST /v1/jobs/{job_id}/cancel", job_id, status=202).json()["job_id"] == job_id
    things.stack.wait_state(job_id, "cancelled")
    assert user.ask("POST /v1/jobs/{job_id}/cancel", job_id).json()["state"] == "cancelled"


@case("POST /v1/jobs/{job_id}/rerun")
def rerun(user: User, things: Things) -> None:
    answer = user.ask("POST /v1/jobs/{job_id}/rerun", things.ended, status=202)
    again = answer.json()["job_id"]
    assert (again != things.ended, answer.headers["location"]) == (True, f"/v1/jobs/{again}")
    assert user.ask("GET /v1/jobs/{job_id}", again).json()["name"] == "every-endpoint"


# --- map jobs -------------------------------------------------------------------------------------------------------


@case("GET /v1/jobs/{job_id}/items")
def items(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/items"
    found = user.ask(operation, things.map_job, params={"state": "failed"}).json()["items"]
    assert [(one["number"], one["name"], one["error"]["reason"]) for one in found] == [(2, "bad.txt", "item_failed")]
    assert user.ask(operation, things.ended, status=409).json()["code"] == "conflict"
    user.ask(operation, things.map_job, params={"state": "sleepy"}, status=422)


@case("GET /v1/jobs/{job_id}/items/{item_id}")
def see_an_item(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}/items/{item_id}", things.map_job, things.items[0]).json()
    assert (found["state"], found["artifact_id"], len(found["files"])) == ("succeeded", things.artifact, 1)


@case("GET /v1/jobs/{job_id}/items/{item_id}/original")
def the_original_of_an_item(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}/items/{item_id}/original", things.map_job, things.items[0])
    assert found.content == HI


@case("GET /v1/jobs/{job_id}/items/{item_id}/files/{path}")
def a_file_of_an_item(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/items/{item_id}/files/{path}"
    shown = user.ask("GET /v1/jobs/{job_id}/items/{item_id}", things.map_job, things.items[0]).json()
    path = shown["files"][0]["path"]
    assert user.ask(operation, things.map_job, things.items[0], path).content == HI.upper()
    user.ask(operation, things.map_job, things.items[1], path, status=404)


@case("POST /v1/jobs/{job_id}/items/retry")
def retry_items(user: User, things: Things) -> None:
    sent = {"items": [things.items[1]]}
    told = user.ask("POST /v1/jobs/{job_id}/items/retry", things.map_job, json=sent, status=202).json()
    assert told["job_id"] == things.map_job
    show = "GET /v1/jobs/{job_id}/items/{item_id}"
    until(lambda: user.ask(show, things.map_job, things.items[1]).json()["tries"] == 2, "it is tried again")
    user.ask("POST /v1/jobs/{job_id}/items/retry", things.ended, status=409)


@case("POST /v1/jobs/{job_id}/items")
def add_items(user: User, things: Things) -> None:
    operation, sent = "POST /v1/jobs/{job_id}/items", {"items": [{"artifact": things.artifact, "name": "more"}]}
    added = user.ask(operation, things.map_job, json=sent, status=202).json()
    assert (len(added["items"]), added["closed"]) == (1, False)
    wrong = user.ask(operation, things.map_job, json={"items": [{"artifact": "a" * 26}]}, status=422).json()
    assert wrong["errors"][0]["field"] == "items.0.artifact"


@case("POST /v1/jobs/{job_id}/close")
def close_a_map_job(user: User, things: Things) -> None:
    assert user.ask("POST /v1/jobs/{job_id}/close", things.map_job, status=202).json()["job_id"] == things.map_job
    job = things.stack.wait_end(things.map_job)
    assert (job["state"], job["items"]["closed"]) == ("failed", True)
    late = user.ask("POST /v1/jobs/{job_id}/items", things.map_job, json={"items": ["late"]}, status=409)
    assert late.json()["code"] == "closed"


# --- images ---------------------------------------------------------------------------------------------------------


@case("POST /v1/workloads")
def make_a_workload(user: User, things: Things) -> None:
    assert things.workload
    bare = user.ask("POST /v1/workloads", status=201).json()
    assert (bare["filter"], bare["status"], bare["filtered_images"]) == ("grayscale", "scheduling", [])
    things.stack.http.delete(f"/workloads/{bare['workload_id']}")
    wrong = user.ask("POST /v1/workloads", json={"filter": "sepia"}, status=422).json()
    assert wrong["errors"][0]["field"] == "filter"


@case("GET /v1/workloads")
def workloads(user: User, things: Things) -> None:
    found = user.ask("GET /v1/workloads", params={"limit": 500}).json()["workloads"]
    assert [one["workload_name"] for one in found if one["workload_id"] == things.workload] == ["endpoints"]


@case("POST /v1/images")
def give_an_image(user: User, things: Things) -> None:
    assert things.image
    form: dict[str, Any] = {"data": {"workload_id": things.workload}, "files": {"image": ("a.png", b"no picture")}}
    assert user.ask("POST /v1/images", **form, status=422).json()["code"] == "not_an_image"
    user.ask("POST /v1/images", json={}, status=415)


@case("GET /v1/images/{image_id}")
def fetch_an_image(user: User, things: Things) -> None:
    gray = user.ask("GET /v1/images/{image_id}", things.filtered)
    with Image.open(io.BytesIO(gray.content)) as image:
        assert (image.mode, image.size, gray.headers["content-type"]) == ("L", (8, 8), "image/png")
    red = user.ask("GET /v1/images/{image_id}", things.filtered, params={"type": "original"})
    with Image.open(io.BytesIO(red.content)) as image:
        assert image.getpixel((0, 0)) == (200, 30, 60)


@case("GET /v1/workloads/{workload_id}")
def see_a_workload(user: User, things: Things) -> None:
    assert things.filtered
    found = user.ask("GET /v1/workloads/{workload_id}", things.workload).json()
    assert (found["status"], found["filtered_images"]) == ("completed", [things.filtered])


@case("GET /v1/workloads/{workload_id}/results")
def results_of_a_workload(user: User, things: Things) -> None:
    assert things.filtered
    answer = user.ask("GET /v1/workloads/{workload_id}/results", things.workload)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [f"{things.workload}/0001-red.png"]


@case("POST /v1/workloads/{workload_id}/rerun")
def rerun_a_workload(user: User, things: Things) -> None:
    operation = "POST /v1/workloads/{workload_id}/rerun"
    assert things.filtered
    assert user.ask(operation, things.workload, status=409).json()["code"] == "conflict"
    spoilt = user.ask("POST /v1/workloads", json={"workload_name": "spoilt"}).json()["workload_id"]
    things.ends.append(lambda: things.stack.http.delete(f"/workloads/{spoilt}"))
    held = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(held, "PNG")
    form: dict[str, Any] = {"data": {"workload_id": spoilt}, "files": {"data": ("cut.png", held.getvalue()[:-60])}}
    user.ask("POST /v1/images", **form)
    show = "GET /v1/workloads/{workload_id}"
    until(lambda: user.ask(show, spoilt).json()["failed_images"], "the image has failed")
    assert user.ask(operation, spoilt, status=202).json()["workload_id"] == spoilt


@case("DELETE /v1/workloads/{workload_id}")
def end_a_workload(user: User, things: Things) -> None:
    assert things.filtered
    told = user.ask("DELETE /v1/workloads/{workload_id}", things.workload, status=202).json()
    assert told["workload_id"] == things.workload
    show = "GET /v1/workloads/{workload_id}"
    until(lambda: user.ask(show, things.workload).json()["closed"], "it takes no more")


# --- trainings ------------------------------------------------------------------------------------------------------


@case("POST /v1/trainings")
def train(user: User, things: Things) -> None:
    assert things.training
    wrong = user.ask("POST /v1/trainings", json={"algorithm": "def train(:"}, status=422).json()
    assert (wrong["errors"][0]["field"], "line 1" in wrong["errors"][0]["message"]) == ("algorithm", True)


@case("GET /v1/trainings/{training_id}")
def see_a_training(user: User, things: Things) -> None:
    things.stack.wait_end(things.training)
    found = user.ask("GET /v1/trainings/{training_id}", things.training).json()
    assert (found["status"], found["metrics"]) == ("completed", {"loss": 0.25}), found
    model = user.http.get(httpx.URL(found["download_url"]).path)
    with zipfile.ZipFile(io.BytesIO(model.content)) as archive:
        assert archive.read("model.txt") == b"m"


@case("GET /v1/trainings")
def trainings(user: User, things: Things) -> None:
    things.stack.wait_end(things.training)
    found = user.ask("GET /v1/trainings", params={"status": "completed", "owner": "me", "limit": 500}).json()
    assert things.training in [one["training_id"] for one in found["trainings"]]
    user.ask("GET /v1/trainings", params={"status": "sleepy"}, status=422)


@case("DELETE /v1/trainings/{training_id}")
def terminate_a_training(user: User, things: Things) -> None:
    code = "import time\ndef train():\n    time.sleep(600)\n"
    wish = {"algorithm": code, "runtime": "process", "resources": SMALL}
    training = user.ask("POST /v1/trainings", json=wish).json()["training_id"]
    assert user.ask("DELETE /v1/trainings/{training_id}", training, status=202).json()["training_id"] == training
    things.stack.wait_state(training, "cancelled")
    assert user.ask("GET /v1/trainings/{training_id}", training).json()["status"] == "terminated"


# --- deployments ----------------------------------------------------------------------------------------------------


@case("POST /v1/deployments")
def deploy(user: User, things: Things) -> None:
    assert things.deployment
    wish = {"name": "sums", "artifact": things.artifact, "runtime": "process", "command": "true"}
    assert user.ask("POST /v1/deployments", json=wish, status=422).json()["code"] == "bad_source"
    wish["artifact"] = user.ask("PUT /v1/artifacts", content=zip_of({"app.py": SERVING})).json()["artifact_id"]
    assert user.ask("POST /v1/deployments", json=wish, status=409).json()["code"] == "name_taken"


@case("GET /v1/deployments")
def deployments(user: User, things: Things) -> None:
    found = user.ask("GET /v1/deployments", params={"name": "sums", "owner": "me"}).json()["deployments"]
    assert [(one["deployment_id"], one["running"]) for one in found] == [(things.deployment, 1)]


@case("GET /v1/deployments/{deployment}")
def see_a_deployment(user: User, things: Things) -> None:
    found = user.ask("GET /v1/deployments/{deployment}", things.deployment).json()
    assert (found["name"], found["members"][0]["node"]) == ("sums", NODE)


@case("POST /v1/deployments/{deployment}/predict")
def predict(user: User, things: Things) -> None:
    operation, sent = "POST /v1/deployments/{deployment}/predict", {"instances": [[1, 2], [3, 4]]}
    told = user.ask(operation, things.deployment, json=sent).json()
    assert (told["predictions"], told["deployment_id"]) == ([3, 7], things.deployment)
    secret = {"image_url": "http://169.254.169.254/latest/meta-data"}
    wrong = user.ask(operation, things.deployment, json=secret, status=422).json()
    assert wrong["errors"][0]["field"] == "image_url"
    neither = user.ask(operation, things.deployment, json={}, status=422)
    assert neither.json()["errors"]


@case("GET /v1/deployments/{deployment}/v1/{path}")
def state_by_tensorflow(user: User, things: Things) -> None:
    operation = "GET /v1/deployments/{deployment}/v1/{path}"
    assert user.ask(operation, "sums", "models/model").json() == {"state": "AVAILABLE"}


@case("POST /v1/deployments/{deployment}/v1/{path}")
def predict_by_tensorflow(user: User, things: Things) -> None:
    operation = "POST /v1/deployments/{deployment}/v1/{path}"
    told = user.ask(operation, things.deployment, "models/model:predict", json={"instances": [[5]]})
    assert told.json() == {"predictions": [5]}


@case("GET /v1/deployments/{deployment}/v2/{path}")
def metadata_by_inference(user: User, things: Things) -> None:
    found = user.ask("GET /v1/deployments/{deployment}/v2/{path}", things.deployment, "models/model")
    assert found.json() == {"name": "model"}


@case("POST /v1/deployments/{deployment}/v2/{path}")
def infer_by_inference(user: User, things: Things) -> None:
    operation, sent = "POST /v1/deployments/{deployment}/v2/{path}", {"inputs": [{"data": [1, 1]}]}
    told = user.ask(operation, things.deployment, "models/model/infer", json=sent)
    assert told.json()["outputs"][0]["data"] == [2]


@case("GET /v2")
def what_answers(user: User, _: Things) -> None:
    assert user.ask("GET /v2").json()["name"] == "wherry"


@case("GET /v2/health/live")
def v2_lives(user: User, _: Things) -> None:
    assert user.ask("GET /v2/health/live").json() == {"live": True}


@case("GET /v2/health/ready")
def v2_is_ready(user: User, _: Things) -> None:
    assert user.ask("GET /v2/health/ready").json() == {"ready": True}


@case("GET /v2/models/{model}")
def v2_metadata(user: User, things: Things) -> None:
    assert things.deployment
    assert user.ask("GET /v2/models/{model}", "sums").json() == {"name": "sums"}


@case("GET /v2/models/{model}/{path}")
def v2_model_is_ready(user: User, things: Things) -> None:
    assert things.deployment
    assert user.ask("GET /v2/models/{model}/{path}", "sums", "ready").json() == {"ready": True}


@case("POST /v2/models/{model}/{path}")
def v2_infer(user: User, things: Things) -> None:
    assert things.deployment
    told = user.ask("POST /v2/models/{model}/{path}", "sums", "infer", json={"inputs": [{"data": [1, 2, 3]}]})
    assert told.json()["outputs"][0]["data"] == [6]


@case("PATCH /v1/deployments/{deployment}")
def scale_a_deployment(user: User, things: Things) -> None:
    operation = "PATCH /v1/deployments/{deployment}"
    told = user.ask(operation, things.deployment, json={"replicas": 0}, status=202).json()
    assert told["deployment_id"] == things.deployment
    show = "GET /v1/deployments/{deployment}"
    until(lambda: user.ask(show, things.deployment).json()["status"] == "stopped", "it has no replicas")
    asked = user.ask("POST /v1/deployments/{deployment}/predict", "sums", json={"instances": [[1]]}, status=409)
    assert asked.json()["code"] == "not_running"


@case("DELETE /v1/deployments/{deployment}")
def take_a_deployment_away(user: User, things: Things) -> None:
    operation, show = "DELETE /v1/deployments/{deployment}", "GET /v1/deployments/{deployment}"
    assert user.ask(operation, things.deployment, status=202).json()["name"] == "sums"
    until(lambda: user.ask(show, things.deployment).json()["status"] == "removed", "it is gone")
    assert user.ask(operation, things.deployment).json()["status"] == "removed"


@case("POST /v1/predict")
def predict_in_one_go(user: User, things: Things) -> None:
    wrong = user.ask("POST /v1/predict", json={"instances": [[1]]}, status=422).json()
    assert wrong["errors"][0]["field"] == "model_url"
    wrong = user.ask("POST /v1/predict", json={"instances": [[1]], "model": "there-is-none"}, status=422).json()
    assert wrong["errors"][0]["field"] == "model"
    if things.stack.runtime != "docker":
        pytest.skip("the serving image needs an engine")
    subprocess.run([ROOT / "infra/docker/build-serving.sh"], check=True, stdout=subprocess.DEVNULL)
    from tests.e2e.test_serving import instance, model  # noqa: PLC0415 - its module needs an engine

    stored = things.stack.http.put("/artifacts", content=model("nw", "ne", "sw", "se")).json()["artifact_id"]
    resources = {"cpus": 0.1, "memory": "128MiB", "disk": "64MiB"}
    released = {"name": "endpoint-corners", "artifact_id": stored}
    user.ask("POST /v1/models", json=released)
    order = {"model": "endpoint-corners", "instances": [instance(2)], "resources": resources}
    told = user.ask("POST /v1/predict", json=order)
    things.ends.append(lambda: things.stack.http.delete(f"/deployments/{told.json()['deployment_id']}"))
    assert told.json()["predictions"][0]["class"] == "sw"


# --- the catalogue --------------------------------------------------------------------------------------------------


@case("POST /v1/models")
def release_a_model(user: User, things: Things) -> None:
    assert things.model
    assert user.ask("POST /v1/models", json=MODEL, status=200).json()["is_new"] is False
    made = user.ask("POST /v1/models", json={"name": things.model, "job_id": things.ended}, status=201).json()
    assert (made["version"], made["versions"][0]["lineage"]["metrics"]) == (2, {"loss": 0.5})
    user.ask("POST /v1/models", json={"name": things.model, "job_id": things.running}, status=409)
    private = user.ask("POST /v1/models", json={"name": "other", "image": "127.0.0.1:9/a/b:c"}, status=422)
    assert private.json()["code"] == "registry_refused"


@case("GET /v1/models")
def models(user: User, things: Things) -> None:
    found = user.ask("GET /v1/models", params={"search": "endpoint-model"}).json()["models"]
    assert [(one["name"], one["description"]) for one in found] == [(things.model, "Does nothing.")]


@case("POST /v1/models/sync")
def read_a_registry(user: User, things: Things) -> None:
    registry = things.registry
    registry.push("endpoints/one", {"io.wherry.model.description": "Of a registry."})
    found = user.ask("POST /v1/models/sync", json={"registry": registry.host, "prefix": "endpoints/"}).json()
    assert (found["added"], found["failed"], found["error"]) == (["endpoints.one@1"], [], "")
    refused = user.ask("POST /v1/models/sync", json={"registry": "127.0.0.1:9"}).json()
    assert "may not be asked" in refused["error"]


@case("GET /v1/models/sync/{run_id}")
def see_the_reading_of_a_registry(user: User, things: Things) -> None:
    begun = user.ask("POST /v1/models/sync", json={"registry": things.registry.host, "prefix": "endpoints/"}).json()
    assert user.ask("GET /v1/models/sync/{run_id}", begun["run_id"]).json()["ended_at"] == begun["ended_at"]


@case("GET /v1/models/{ref}")
def see_a_model(user: User, things: Things) -> None:
    found = user.ask("GET /v1/models/{ref}", f"{things.model}@1").json()
    assert (found["version"], found["params"]["properties"]["rate"]["default"]) == (1, 0.5)
    user.ask("GET /v1/models/{ref}", f"{things.model}@99", status=404)


@case("PATCH /v1/models/{name}")
def describe_a_model(user: User, things: Things) -> None:
    sent = {"quality": {"metric": "accuracy", "limit": 0.5}}
    found = user.ask("PATCH /v1/models/{name}", things.model, json=sent).json()
    assert (found["quality"]["metric"], found["quality"]["limit"]) == ("accuracy", 0.5)


@case("POST /v1/models/{ref}/runs")
def run_a_model(user: User, things: Things) -> None:
    operation, sent = "POST /v1/models/{ref}/runs", {"params": {"rate": 1}, "resources": SMALL}
    job_id = user.ask(operation, f"{things.model}@1", json=sent, status=202).json()["job_id"]
    things.ends.append(lambda: things.stack.http.post(f"/jobs/{job_id}/cancel"))
    spec = user.ask("GET /v1/jobs/{job_id}", job_id).json()["spec"]
    assert (spec["model"], spec["params"]) == (f"{things.model}@1", {"rate": 1})
    wrong = user.ask(operation, f"{things.model}@1", json={"params": {"rate": "much"}}, status=422).json()
    assert wrong["errors"][0]["field"] == "params.rate"


@case("POST /v1/models/{name}/evaluations")
def measure_a_model(user: User, things: Things) -> None:
    operation = "POST /v1/models/{name}/evaluations"
    kept = user.ask(operation, things.model, json={"version": 1, "metrics": {"accuracy": 0.9}}, status=201).json()
    assert (kept["version"], kept["metrics"]) == (1, {"accuracy": 0.9})
    user.ask(operation, things.model, json={"metrics": {}}, status=422)


@case("GET /v1/models/{name}/evaluations")
def quality_of_a_model(user: User, things: Things) -> None:
    sent = {"version": 1, "metrics": {"accuracy": 0.7}}
    user.ask("POST /v1/models/{name}/evaluations", things.model, json=sent)
    found = user.ask("GET /v1/models/{name}/evaluations", things.model, params={"version": 1}).json()
    assert found["evaluations"][0]["metrics"] == {"accuracy": 0.7}


@case("POST /v1/models/{name}/fine-tune-requests")
def ask_the_experts(user: User, things: Things) -> None:
    assert things.fine_tune
    operation = "POST /v1/models/{name}/fine-tune-requests"
    wrong = user.ask(operation, things.model, json={"message": "Better!", "dataset": "there-is-none"}, status=422)
    assert wrong.json()["errors"][0]["field"] == "dataset"


@case("GET /v1/models/{name}/fine-tune-requests")
def what_experts_are_asked(user: User, things: Things) -> None:
    assert things.fine_tune
    found = user.ask("GET /v1/models/{name}/fine-tune-requests", things.model, params={"state": "open"}).json()
    assert [one["id"] for one in found["requests"]] == [things.fine_tune]


@case("POST /v1/models/{name}/fine-tune-requests/{request_id}/decline")
def decline(user: User, things: Things) -> None:
    operation = "POST /v1/models/{name}/fine-tune-requests/{request_id}/decline"
    told = user.ask(operation, things.model, things.fine_tune, json={"why": "It is good enough."}).json()
    assert (told["state"], told["answer"]) == ("declined", "It is good enough.")
    user.ask(operation, things.model, things.fine_tune, json={"why": "Again."}, status=409)


@case("DELETE /v1/models/{ref}")
def remove_a_model(user: User, things: Things) -> None:
    wish = {"name": "endpoint-shortlived", "artifact_id": things.artifact}
    user.ask("POST /v1/models", json=wish)
    user.ask("DELETE /v1/models/{ref}", "endpoint-shortlived", status=204)
    user.ask("GET /v1/models/{ref}", "endpoint-shortlived", status=404)


# --- the machines, and what administrators do -----------------------------------------------------------------------


@case("GET /v1/nodes")
def nodes(user: User, _: Things) -> None:
    found = {one["id"]: one for one in user.ask("GET /v1/nodes").json()["nodes"]}
    assert (found[NODE]["condition"], found[NODE]["capacity"]["cpus"] > 0) == ("online", True)


@case("GET /v1/nodes/{node}")
def see_a_node(user: User, _: Things) -> None:
    found = user.ask("GET /v1/nodes/{node}", NODE).json()
    assert ("process" in found["runtimes"], found["history"] is not None) == (True, True)


@case("GET /v1/nodes/{node}/metrics")
def metrics_of_a_node(user: User, _: Things) -> None:
    def seen() -> Any:
        return user.ask("GET /v1/nodes/{node}/metrics", NODE, params={"name": "cpu", "points": 2}).json()["series"]

    assert until(seen, "a point")[0]["name"] == "cpu"


@case("GET /v1/clusters")
def clusters(user: User, _: Things) -> None:
    found = user.ask("GET /v1/clusters").json()["clusters"]
    assert NODE in [node["id"] for one in found for node in one["nodes"]]


@case("POST /v1/nodes/{node}/cordon")
def cordon(user: User, things: Things) -> None:
    things.ends.append(lambda: things.stack.http.post(f"/nodes/{NODE}/undrain"))
    told = user.ask("POST /v1/nodes/{node}/cordon", NODE, json={"reason": "a look"}, status=202)
    assert told.json()["id"] == NODE
    until(lambda: things.stack.node(NODE)["duty"] == "cordoned", "it gets nothing new")


@case("POST /v1/nodes/{node}/drain")
def drain(user: User, things: Things) -> None:
    user.ask("POST /v1/nodes/{node}/drain", NODE, json={"reason": "new disk"}, status=202)
    until(lambda: things.stack.node(NODE)["duty"] in {"draining", "drained"}, "it is being emptied")
    assert things.stack.node(NODE)["reason"] == "new disk"


@case("POST /v1/nodes/{node}/undrain")
def undrain(user: User, things: Things) -> None:
    user.ask("POST /v1/nodes/{node}/undrain", NODE, status=202)
    until(lambda: things.stack.node(NODE)["duty"] == "active", "it gets work again")


@case("POST /v1/nodes/{node}/prefetch")
def prefetch(user: User, things: Things) -> None:
    sent = {"what": f"artifact:{things.artifact}"}
    assert user.ask("POST /v1/nodes/{node}/prefetch", NODE, json=sent, status=202).json()["id"] == NODE
    if things.stack.runtime == "docker":  # nodes keep inputs in volumes
        until(lambda: "prefetched" in str(things.stack.node(NODE)["history"]), "it is there")
    user.ask("POST /v1/nodes/{node}/prefetch", NODE, json={"what": f"artifact:a{'a' * 25}"}, status=422)


@case("GET /v1/dead-letters")
def dead_letters(user: User, things: Things) -> None:
    assert things.letter
    found = user.ask("GET /v1/dead-letters", params={"reader": "notifier"}).json()["dead_letters"]
    assert (found[0]["id"], found[0]["body"]) == (things.letter, "no delivery")


@case("POST /v1/dead-letters/{letter_id}/replay")
def replay_a_dead_letter(user: User, things: Things) -> None:
    told = user.ask("POST /v1/dead-letters/{letter_id}/replay", things.letter, status=202).json()
    assert (told["id"], bool(told["replayed_at"])) == (things.letter, True)


@case("POST /v1/retention/run")
def what_is_kept_no_longer(user: User, _: Things) -> None:
    found = user.ask("POST /v1/retention/run", params={"dry_run": "true"}).json()
    assert (found["dry_run"], found["error"], bool(found["ended_at"])) == (True, "", True)


@case("GET /v1/retention/runs/{run_id}")
def see_a_retention_run(user: User, _: Things) -> None:
    begun = user.ask("POST /v1/retention/run", params={"dry_run": "true"}).json()
    assert user.ask("GET /v1/retention/runs/{run_id}", begun["run_id"]).json()["started_at"] == begun["started_at"]


@case("DELETE /v1/nodes/{node}")
def forget_a_node(user: User, things: Things) -> None:
    refused = user.ask("DELETE /v1/nodes/{node}", NODE, status=409).json()
    assert "only one that is lost or has left" in refused["detail"]
    assert user.ask("DELETE /v1/nodes/{node}", things.left, status=202).json()["id"] == EDGE
    until(lambda: not things.stack.node(EDGE), "it is forgotten")


# --- the tests ------------------------------------------------------------------------------------------------------


def test_every_operation_of_the_document_has_a_case(user: User) -> None:
    assert set(CASES) ^ set(user.document.operations) == set()


@pytest.mark.parametrize("operation", sorted(CASES, key=list(CASES).index))
def test_an_operation_answers_as_described_and_refuses_what_is_wrong(
    operation: str, user: User, things: Things
) -> None:
    if user.document.needs_token(operation):
        user.refused_to_strangers(operation)
    CASES[operation](user, things)
    assert operation in user.answered, f"its case does not ask for {operation}"
    user.wrong_query_is_named(operation)
    user.wrong_body_is_named(operation)
    if operation not in FOR_ALL_NAMES:
        user.unknown_is_told(operation)
    if operation not in FOR_EVERYBODY and ("{" in operation or user.document.may_be_forbidden(operation)):
        user.refused_to_others(operation, things.others_token)


#: What is asked with a name that may be anything.
FOR_ALL_NAMES = {"OPTIONS /v1/uploads/{upload_id}"}
#: What any user may ask of what is there, or of what is not named in the path.
FOR_EVERYBODY = FOR_ALL_NAMES | {
    "GET /v1/jobs", "POST /v1/datasets", "GET /v1/nodes/{node}", "GET /v1/nodes/{node}/metrics",
    "GET /v1/models/{ref}", "POST /v1/models/{ref}/runs", "GET /v1/models/{name}/evaluations",
}  # fmt: skip


#: The endpoints of the image-processing seed, as it lists them.
SEED = (
    "GET /login", "POST /login", "DELETE /logout", "GET /status", "POST /workloads", "GET /workloads/{workload_id}",
    "POST /images", "GET /images/{image_id}",
)  # fmt: skip


@pytest.mark.parametrize("at_root", SEED)
def test_an_endpoint_of_the_seed_answers_at_the_root_as_it_does_under_v1(
    at_root: str, user: User, things: Things
) -> None:
    operation = at_root.replace(" /", " /v1/")
    if user.document.needs_token(operation):
        method, path = filled(at_root, ["none"] * at_root.count("{"))
        user.is_problem(operation, user.stranger.request(method, path), 401, "unauthenticated")
    if operation not in user.answered:
        CASES[operation](user, things)
    asked = user.answered[operation]
    method, path = filled(at_root, asked.names)
    answer = user.http.request(method, path, **asked.sent)
    assert user.document.faults(operation, answer) == []
    assert answer.is_success or (operation, answer.status_code) in GONE, answer.text


#: What was asked once cannot be asked again: that token is dead, that workload has ended.
GONE = {("DELETE /v1/logout", 401), ("POST /v1/images", 409)}
