"""Seed 004 as its people work: an expert builds and releases a model, a user runs it, an administrator judges it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Stack, docker, until, wherry
from tests.integration.registry_server import RegistryServer

pytestmark = pytest.mark.docker

BASE = "wherry/python-base:latest"


@pytest.fixture(scope="module")
def project(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if stack.runtime != "docker":
        pytest.skip("models are images: this needs a Docker engine")
    folder = tmp_path_factory.mktemp("models") / "counter"
    made = wherry(stack, "models", "init", str(folder))
    assert made.returncode == 0, made.stderr
    yield folder
    subprocess.run(["docker", "image", "rm", "--force", "counter:latest"], capture_output=True, check=False)


def released(stack: Stack, registry: RegistryServer, project: Path, *options: str) -> dict[str, Any]:
    """Build, try, push and release the model; then take its image off this machine, so that a node has to pull it."""
    built = wherry(stack, "models", "build", str(project), "--build-arg", f"BASE={BASE}")
    assert built.returncode == 0, built.stdout + built.stderr
    assert "left result.json" in built.stderr
    reference = f"{registry.host}/team/counter"
    pushed = wherry(stack, "--json", "models", "push", str(project), reference, *options)
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr
    subprocess.run(["docker", "image", "rm", "counter:latest", reference], capture_output=True, check=True)
    return json.loads(pushed.stdout.splitlines()[-1])


def test_an_expert_releases_a_model_a_user_runs_it_and_an_administrator_asks_for_a_better_one(
    stack: Stack, registry: RegistryServer, project: Path, tmp_path: Path
) -> None:
    first = released(stack, registry, project)
    assert (first["name"], first["version"], first["is_new"]) == ("counter", 1, True)
    assert first["params"]["properties"]["threshold"]["default"] == 0.5

    listed = wherry(stack, "models", "list", "counter")
    assert "counter@1" in listed.stdout
    shown = wherry(stack, "models", "show", "counter").stdout
    assert "threshold" in shown
    assert "number = 0.5" in shown

    data = tmp_path / "photos"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.txt").write_text(str(number))
    put = wherry(stack, "datasets", "put", "photos", str(data))
    assert put.returncode == 0, put.stderr

    wrong = wherry(stack, "models", "run", "counter", "--dataset", "photos", "-p", "threshold=7", "-p", "colour=red")
    assert wrong.returncode == 4
    assert "params.threshold: 7 is greater than the maximum of 1" in wrong.stderr
    assert "params.colour: There is no such parameter" in wrong.stderr

    limits = ("--cpus", "0.5", "--memory", "128MiB", "--disk", "64MiB")
    ran = wherry(stack, "models", "run", "counter", "--dataset", "photos", "-p", "threshold=0.9", *limits)
    assert ran.returncode == 0, ran.stderr
    job_id = ran.stdout.strip()
    job = stack.wait_end(job_id)
    assert job["state"] == "succeeded", stack.output(job_id, "_stderr.txt")
    assert json.loads(stack.output(job_id, "result.json")) == {"files": 3, "threshold": 0.9}
    assert job["spec"]["model"] == "counter@1"
    assert job["attempts"][-1]["image_digest"].endswith(first["image_digest"])
    own = f"label=wherry.job={job_id}"
    until(lambda: not docker("ps", "--all", "--quiet", "--filter", own), "its container is gone")

    edited = wherry(stack, "models", "edit", "counter", "--metric", "accuracy", "--drop", "0.1")
    assert edited.returncode == 0, edited.stderr
    assert wherry(stack, "models", "evaluate", "counter", "accuracy=0.9", "--job", job_id).returncode == 0
    worse = wherry(stack, "models", "evaluate", "counter", "accuracy=0.7", "--dataset", "photos")
    assert worse.returncode == 1
    assert "0.2 off the best so far" in worse.stderr

    asked = wherry(stack, "models", "ask", "counter", "Too many are missed.", "--dataset", "photos")
    assert asked.returncode == 0, asked.stderr
    program = project / "predict.py"
    program.write_text(program.read_text().replace('{"files"', '{"better": True, "files"'))
    second = released(stack, registry, project, "--answers", asked.stdout.strip())
    assert second["version"] == 2
    answered = json.loads(wherry(stack, "--json", "models", "requests", "counter").stdout)["requests"]
    assert [(one["state"], one["answer"]) for one in answered] == [("answered", "counter@2")]

    again = stack.http.post("/models/counter/runs", json={"params": {}, "resources": {"disk": "64MiB"}})
    assert again.status_code == 202, again.text
    assert stack.wait_end(again.json()["job_id"])["state"] == "succeeded"
    assert json.loads(stack.output(again.json()["job_id"], "result.json")) == {
        "better": True,
        "files": 0,
        "threshold": 0.5,
    }


def test_a_registry_is_read_and_what_it_has_is_listed(stack: Stack, registry: RegistryServer) -> None:
    registry.push("shelf/empty", {"io.wherry.model.description": "Does nothing."})
    read = wherry(stack, "models", "sync", registry.host, "--prefix", "shelf/")
    assert read.returncode == 0, read.stderr
    assert read.stdout.split() == ["shelf.empty@1"]
    assert "1 repositories: 1 new" in read.stderr
    assert "Does nothing." in wherry(stack, "models", "show", "shelf.empty").stdout
    down = wherry(stack, "models", "sync", "127.0.0.1:9")
    assert down.returncode == 1
    assert "may not be asked" in down.stderr


#: A model as its experts write it: it answers in TensorFlow Serving's form, with one of its parameters.
SERVES = """
import http.server, json, os
PARAMS = json.load(open(os.environ["WHERRY_PARAMS"]))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"predictions": [VERSION(one, **PARAMS) for one in order["instances"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


def serving_image(registry: RegistryServer, tag: str, version: str, params: dict[str, Any]) -> str:
    """Build an image that serves *version*, a function of an instance and *params*, and push it; return its name."""
    reference = f"{registry.host}/team/scaler:{tag}"
    command = ["python3", "-c", SERVES.replace("VERSION", f"({version})")]
    schema = json.dumps({"type": "object", "properties": params, "additionalProperties": False})
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", reference, "--label", f"io.wherry.model.params={schema}", "-"],
        input=f"FROM {BASE}\nENTRYPOINT []\nCMD {json.dumps(command)}\n".encode(), capture_output=True, check=True,
    )  # fmt: skip
    subprocess.run(["docker", "push", reference], capture_output=True, check=True)
    subprocess.run(["docker", "image", "rm", reference], capture_output=True, check=True)
    return reference


@pytest.mark.timeout(400)
def test_a_model_whose_image_serves_is_deployed_asked_and_changed_to_its_next_version(
    stack: Stack, registry: RegistryServer, tmp_path: Path
) -> None:
    if stack.runtime != "docker":
        pytest.skip("models are images: this needs a Docker engine")
    first = serving_image(
        registry, "1", "lambda x, scale, sign=1: x * scale * sign",
        {"scale": {"type": "number", "default": 2}, "sign": {"enum": [1, -1]}},
    )  # fmt: skip
    assert wherry(stack, "models", "register", "scaler", first).returncode == 0
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"instances": [1, 3]}))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"resources": {"disk": "64MiB"}, "params": {"sign": -1}}))
    limits = ("--cpus", "0.1", "--memory", "64MiB")

    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"params": {"scale": "wide"}}))
    refused = wherry(stack, "deploy", "sizes", "--model", "scaler", "--spec", str(wrong))
    assert refused.returncode == 4
    assert "params.scale" in refused.stderr
    made = wherry(stack, "deploy", "sizes", "--model", "scaler@1", "--spec", str(spec), *limits, "--wait")
    assert made.returncode == 0, made.stderr

    def asked() -> list[str]:
        found = wherry(stack, "predict", "sizes", "--spec", str(order))
        assert found.returncode == 0, found.stderr
        return found.stdout.split()

    try:
        assert asked() == ["-2", "-6"]
        # Of the next version there is no `scale`, which the first one's schema has filled in; `sign` was given.
        second = serving_image(
            registry, "2", "lambda x, sign, offset: x * sign + offset",
            {"sign": {"enum": [1, -1]}, "offset": {"type": "number", "default": 100}},
        )  # fmt: skip
        assert wherry(stack, "models", "register", "scaler", second).returncode == 0
        changed = wherry(stack, "deployments", "update", "sizes", "--model", "scaler@2")
        assert changed.returncode == 0, changed.stderr
        seen = [asked()]
        until(lambda: seen.append(asked()) or seen[-1] == ["99", "97"], "the next version answers")
        assert {tuple(one) for one in seen} <= {("-2", "-6"), ("99", "97")}
        shown = json.loads(wherry(stack, "--json", "deployments", "show", "sizes").stdout)
        assert (shown["model"], shown["revision"]) == ("scaler@2", 1)
        assert shown["image"].startswith(f"{registry.host}/team/scaler@sha256:")
    finally:
        wherry(stack, "undeploy", "sizes")
        until(lambda: stack.http.get("/deployments/sizes").status_code == 404, "it is gone")
        pulled = ["docker", "image", "ls", "--quiet", "--filter", f"reference={registry.host}/team/scaler"]
        found = subprocess.run(pulled, capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["docker", "image", "rm", "--force", *found], capture_output=True, check=False)
