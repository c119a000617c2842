"""Training as that seed's user does it: code in three fields, poll the words, download the model, judge it."""

import io
import json
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.e2e.stack import ROOT, Stack, docker, until, wherry, wherry_json
from tests.integration.gateway_stack import new_id

#: The image is built first where it is not there.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

EXAMPLE = ROOT / "examples" / "training-digits"
FINAL = {"completed", "failed", "terminated"}
SMALL = {"cpus": 0.5, "memory": "256MiB", "disk": "64MiB"}


class User:
    """Somebody with `requests`, an address and a token."""

    def __init__(self, stack: Stack) -> None:
        self.url = f"http://127.0.0.1:{stack.port}/v1"
        self.session = requests.Session()
        self.session.headers["Authorization"] = str(stack.http.headers["authorization"])

    def train(self, **fields: Any) -> str:
        answer = self.session.post(f"{self.url}/trainings", json={"resources": SMALL, **fields}, timeout=60)
        assert answer.status_code == 202, answer.text
        assert answer.json()["status"] == "initializing"
        return answer.json()["training_id"]

    def show(self, training_id: str) -> dict[str, Any]:
        answer = self.session.get(f"{self.url}/trainings/{training_id}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def poll(self, training_id: str, wanted: Callable[[dict[str, Any]], Any], limit_s: float = 280) -> dict[str, Any]:
        """Return what is shown as soon as *wanted* is true of it."""
        end = time.monotonic() + limit_s
        while not wanted(shown := self.show(training_id)):
            assert time.monotonic() < end, shown
            assert shown["status"] not in FINAL, shown
            time.sleep(0.1)
        return shown

    def ended(self, training_id: str) -> dict[str, Any]:
        return self.poll(training_id, lambda shown: shown["status"] in FINAL)


@pytest.fixture(scope="module")
def user(stack: Stack) -> Iterator[User]:
    if stack.runtime != "docker":
        pytest.skip("the image for trainings needs a Docker engine")
    script = ROOT / "infra/docker/build-training.sh"
    built = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    one = User(stack)
    yield one
    one.session.close()


@pytest.fixture(scope="module")
def digits(user: User) -> str:
    """The data set, put there by a form."""
    name = new_id("digits")
    with (EXAMPLE / "data" / "digits.csv").open("rb") as file:
        answer = user.session.post(
            f"{user.url}/datasets", data={"name": name}, files={"file": ("digits.csv", file)}, timeout=60
        )
    assert answer.status_code == 201, answer.text
    return name


def fields() -> dict[str, str]:
    return {name: (EXAMPLE / f"{name}.py").read_text() for name in ("preprocessing", "algorithm", "helpers")}


def reads(archive: zipfile.ZipFile) -> float:
    """Return how many of all the digits the model in *archive* reads right."""
    description = json.loads(archive.read("model.json"))
    table = np.loadtxt(EXAMPLE / "data" / "digits.csv", delimiter=",")
    values = table[:, :-1] / 16
    with np.load(io.BytesIO(archive.read("model.npz"))) as arrays:
        for layer in description["layers"]:
            values = np.maximum(values, 0) @ arrays[layer["weights"]] + arrays[layer["biases"]]
    return float((values.argmax(1) == table[:, -1]).mean())


def download(user: User, shown: dict[str, Any]) -> zipfile.ZipFile:
    answer = user.session.get(shown["download_url"], timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    return zipfile.ZipFile(io.BytesIO(answer.content))


def test_a_network_is_trained_from_three_fields_and_its_model_is_downloaded(user: User, digits: str) -> None:
    training_id = user.train(name="digits", dataset=digits, params={"epochs": 20, "seed": 3}, **fields())
    seen: list[str] = []

    def is_over(shown: dict[str, Any]) -> bool:
        seen.append(shown["status"])
        return shown["status"] in FINAL

    shown = user.poll(training_id, is_over)
    assert shown["status"] == "completed", shown
    words = ["initializing", "training", "completed"]
    assert seen == sorted(seen, key=words.index), "one after the other, but for those for which a poll came too late"
    assert shown["progress"]["fraction"] == 1
    assert shown["metrics"]["accuracy"] > 0.95
    with download(user, shown) as archive:
        assert json.loads(archive.read("metrics.json"))["accuracy"] == shown["metrics"]["accuracy"]
        assert reads(archive) > 0.97
        assert b"images to learn from" in archive.read("_stdout.txt")
    check_released(user, training_id, digits, shown["metrics"])


def test_progress_is_seen_while_it_trains_and_terminating_it_frees_the_machine(user: User, stack: Stack) -> None:
    forever = """
import time

def train(outputs):
    (outputs / "so far.txt").write_text("something")
    print("::progress 0.4::epoch 2 of 5", flush=True)
    time.sleep(600)
"""
    training_id = user.train(algorithm=forever)
    shown = user.poll(training_id, lambda shown: shown["progress"])
    assert (shown["status"], shown["progress"]["message"]) == ("training", "epoch 2 of 5")

    def held() -> list[str]:
        return [one["job_id"] for node in stack.http.get("/nodes").json()["nodes"] for one in _attempts(stack, node)]

    until(lambda: training_id in held(), "its node says that it has it")
    for _ in range(2):  # safe to repeat
        answer = user.session.delete(f"{user.url}/trainings/{training_id}", timeout=60)
        assert answer.status_code == 202, answer.text
    shown = user.ended(training_id)
    assert (shown["status"], shown["download_url"]) == ("terminated", None)
    until(lambda: training_id not in held(), "its node has it no more")
    own = f"label=wherry.job={training_id}"
    until(lambda: not docker("ps", "-q", "--filter", own), "its container is gone")
    answer = user.session.delete(f"{user.url}/trainings/{training_id}", timeout=60)
    assert (answer.status_code, answer.json()["status"]) == (202, "terminated")


def check_released(user: User, training_id: str, dataset: str, metrics: dict[str, float]) -> None:
    """Make the next version of a model of what a training left, in one call, and check what it was made of."""
    body = {"name": new_id("model"), "job_id": training_id}
    answer = user.session.post(f"{user.url}/models", json=body, timeout=60)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    lineage = made["versions"][0]["lineage"]
    assert (lineage["job_id"], lineage["metrics"]) == (training_id, metrics)
    assert lineage["inputs"] == {"dataset": f"dataset:{dataset}@1"}
    artifact = user.session.get(f"{user.url}/artifacts/{made['artifact_id']}", timeout=60)
    with zipfile.ZipFile(io.BytesIO(artifact.content)) as archive:
        assert reads(archive) > 0.9


def _attempts(stack: Stack, node: dict[str, Any]) -> list[dict[str, Any]]:
    return stack.http.get(f"/nodes/{node['id']}").json()["attempts"]


def test_two_workers_and_a_parameter_server_come_to_the_loss_of_one_machine(user: User, digits: str) -> None:
    same = {"dataset": digits, "params": {"epochs": 5}, **fields()}
    tiny = {"cpus": 0.2, "memory": "128MiB", "disk": "64MiB"}
    alone = user.train(**same)
    together = user.train(**same, resources=tiny, distributed={"parameter_servers": 1, "workers": 2})
    one, two = user.ended(alone), user.ended(together)
    assert (one["status"], two["status"]) == ("completed", "completed"), (one, two)
    assert [(member["role"], member["index"], member["state"]) for member in two["members"]] == [
        ("worker", 0, "succeeded"), ("worker", 1, "succeeded"), ("ps", 0, "succeeded"),
    ]  # fmt: skip
    assert (one["metrics"]["workers"], two["metrics"]["workers"]) == (1, 2)
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-6)
    assert two["progress"]["fraction"] == 1
    with download(user, one) as first, download(user, two) as second:
        assert reads(first) == reads(second)
    log = user.session.get(two["logs_url"], timeout=60).text
    assert "ps-0 | the workers are done, after " in log
    check_released(user, together, digits, two["metrics"])


def test_one_member_that_fails_ends_a_distributed_training_and_is_named(user: User) -> None:
    algorithm = """
import time

def train(cluster):
    if cluster.index == 1:
        raise ValueError("the second worker does not want to")
    time.sleep(600)

def serve():
    time.sleep(600)
"""
    tiny = {"cpus": 0.2, "memory": "128MiB", "disk": "64MiB"}
    shown = user.ended(user.train(algorithm=algorithm, resources=tiny, distributed={"workers": 2}))
    assert shown["status"] == "failed"
    assert shown["error"]["message"].startswith("member worker-1: ")
    assert shown["error"]["message"].endswith("algorithm.py, line 6: ValueError: the second worker does not want to")
    assert {member["state"] for member in shown["members"]} == {"failed", "cancelled"}


def test_code_that_cannot_be_read_is_refused_with_its_line(user: User) -> None:
    body = {**fields(), "helpers": "def f(x):\n    return x +\n"}
    answer = user.session.post(f"{user.url}/trainings", json=body, timeout=60)
    assert answer.status_code == 422
    [problem] = answer.json()["errors"]
    assert problem["field"] == "helpers"
    assert problem["message"].startswith("line 2: ")
    assert "return x +" in problem["message"]


def test_what_fails_in_the_users_code_is_the_reason_and_its_traceback_in_the_log(user: User, digits: str) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"params": {"epoch": 3}}, "ValueError: there is no parameter 'epoch'"),
        ({"dataset": None}, "ValueError: there is no data set"),
        ({"helpers": "import torch_that_is_not_there"}, "No module named 'torch_that_is_not_there'"),
    ]
    begun = [user.train(**{**fields(), "dataset": digits, **changes}) for changes, _ in wrong]
    for training_id, (_, said) in zip(begun, wrong, strict=True):
        shown = user.ended(training_id)
        assert (shown["status"], shown["error"]["reason"], shown["download_url"]) == ("failed", "exit_code", None)
        assert said in shown["error"]["message"]
        log = user.session.get(shown["logs_url"], timeout=60).text
        assert "Traceback (most recent call last):" in log
        assert said in log


def test_the_command_trains_follows_and_brings_the_model(user: User, stack: Stack, digits: str, tmp_path: Path) -> None:
    files = [text for name in fields() for text in (f"--{name}", str(EXAMPLE / f"{name}.py"))]
    (tmp_path / "rest.json").write_text(json.dumps({"resources": SMALL}))
    name, model = new_id("cli"), tmp_path / "model"
    options = ["--dataset", digits, "--param", "epochs=4", "--spec", str(tmp_path / "rest.json"), "--name", name]
    done = wherry(stack, "train", *files, *options, "--follow", "-o", model)
    assert done.returncode == 0, done.stderr
    assert "images to learn from" in done.stdout
    assert {"model.npz", "model.json", "metrics.json"} <= {file.name for file in model.iterdir()}
    [listed] = wherry_json(stack, "trainings", "list", "--name", name)["trainings"]
    assert listed["status"] == "completed"
    shown = wherry_json(stack, "trainings", "show", listed["training_id"])
    assert (shown["params"], shown["metrics"]["workers"]) == ({"epochs": 4}, 1)


def test_a_container_without_a_gpu_says_so(user: User, stack: Stack) -> None:
    spec = json.loads((ROOT / "examples/gpu-selftest/job.json").read_text())
    job_id = stack.submit({**spec, "resources": {**SMALL, "gpus": 0}})
    job = stack.wait_end(job_id)
    assert (job["state"], job["attempts"][-1]["exit_code"]) == ("failed", 4)
    assert stack.output(job_id, "_stderr.txt").decode().startswith("no GPU: there is no NVIDIA driver here")
