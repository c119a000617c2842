"""The real TensorFlow and PyTorch: their images are gigabytes, so `make frameworks` asks for these tests, and no other.

The images are built before, by the setting that users have (`EXTRA` of infra/docker/build-training.sh).
"""

import io
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.e2e.stack import ROOT, Stack, until
from tests.integration.gateway_stack import new_id

pytestmark = [pytest.mark.docker, pytest.mark.frameworks, pytest.mark.timeout(1200)]

TENSORFLOW = os.environ.get("WHERRY_TEST_TENSORFLOW_IMAGE", "wherry/training-tensorflow:latest")
SERVING = os.environ.get("WHERRY_TEST_TENSORFLOW_SERVING_IMAGE", "wherry/serving-tensorflow:latest")
TORCH = os.environ.get("WHERRY_TEST_TORCH_IMAGE", "wherry/training-torch:latest")
EXAMPLES = ROOT / "examples"
QUICK_START, FRAMEWORKS = EXAMPLES / "quickstart-network", EXAMPLES / "training-frameworks"
SMALL = {"cpus": 0.4, "memory": "1GiB", "disk": "64MiB"}
FINAL = {"completed", "failed", "terminated"}


class User:
    """Somebody with `requests`, an address and a token."""

    def __init__(self, stack: Stack) -> None:
        self.url = f"http://127.0.0.1:{stack.port}/v1"
        self.session = requests.Session()
        self.session.headers["Authorization"] = str(stack.http.headers["authorization"])

    def post(self, path: str, status: int, **more: Any) -> dict[str, Any]:
        answer = self.session.post(f"{self.url}{path}", timeout=60, **more)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str) -> requests.Response:
        answer = self.session.get(path if path.startswith("http") else f"{self.url}{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer

    def train(self, algorithm: Path, image: str, **more: Any) -> dict[str, Any]:
        """Train with *algorithm*, and return the training as it has ended, with the fractions that were seen."""
        fields = {"algorithm": algorithm.read_text(), "preprocessing": (QUICK_START / "preprocessing.py").read_text()}
        body = {"image": image, "resources": SMALL, **fields, **more}
        training_id, seen, end = self.post("/trainings", 202, json=body)["training_id"], [], time.monotonic() + 900
        while (shown := self.get(f"/trainings/{training_id}").json())["status"] not in FINAL:
            assert time.monotonic() < end, shown
            seen += [shown["progress"]["fraction"]] if shown["progress"] else []
            time.sleep(0.2)
        log = self.get(shown["logs_url"]).text
        assert shown["status"] == "completed", f"{shown['error']}\n{log[-6000:]}"
        return {**shown, "seen": seen, "log": log}

    def outputs(self, shown: dict[str, Any]) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.get(shown["download_url"]).content))


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    for image in (TENSORFLOW, TORCH, SERVING):
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            pytest.skip(f"the image {image} is not there: `make frameworks` builds it")


@pytest.fixture(scope="module")
def user(stack: Stack) -> Iterator[User]:
    one = User(stack)
    yield one
    one.session.close()


@pytest.fixture(scope="module")
def digits(user: User) -> str:
    name = new_id("digits")
    with (EXAMPLES / "training-digits" / "data" / "digits.csv").open("rb") as file:
        user.post("/datasets", 201, data={"name": name}, files={"file": ("digits.csv", file)})
    return name


def test_keras_bars_are_progress_and_its_history_is_metrics(user: User, digits: str) -> None:
    wish = {"dataset": digits, "params": {"epochs": 8}, "resources": {**SMALL, "cpus": 1}}
    shown = user.train(QUICK_START / "algorithm_keras.py", TENSORFLOW, **wish)
    assert shown["progress"]["fraction"] == 1
    assert any(0 < fraction < 1 for fraction in shown["seen"]), shown["seen"]
    assert shown["seen"] == sorted(shown["seen"])  # of all epochs, not of each
    assert shown["metrics"]["test_accuracy"] > 0.9
    series = {one["name"]: one["count"] for one in user.get(shown["metrics_url"]).json()["series"]}
    assert (series["loss"], series["accuracy"]) == (8, 8)
    with user.outputs(shown) as archive:
        history = json.loads(archive.read("metrics.json"))
        assert {"model.keras", "model.json"} <= set(archive.namelist())
    assert len(history["loss"]) == 8
    assert shown["metrics"]["loss"] == pytest.approx(history["loss"][-1])


def test_keras_trains_on_two_workers_that_find_each_other_by_tf_config(user: User, digits: str) -> None:
    wish = {"dataset": digits, "params": {"epochs": 10}, "distributed": {"parameter_servers": 0, "workers": 2}}
    shown = user.train(FRAMEWORKS / "keras_workers.py", TENSORFLOW, **wish)
    assert shown["metrics"]["workers"] == 2
    assert shown["metrics"]["test_accuracy"] > 0.9
    with user.outputs(shown) as archive:
        assert "model.keras" in archive.namelist()


def test_a_chief_trains_by_parameter_servers_and_workers_that_end_with_it(user: User, digits: str) -> None:
    wish = {"dataset": digits, "distributed": {"chief": True, "parameter_servers": 1, "workers": 2}}
    shown = user.train(FRAMEWORKS / "keras_servers.py", TENSORFLOW, **wish)
    assert shown["metrics"]["test_accuracy"] > 0.9
    assert [(one["role"], one["index"], one["state"]) for one in shown["members"]] == [
        ("chief", 0, "succeeded"), ("worker", 0, "cancelled"), ("worker", 1, "cancelled"), ("ps", 0, "cancelled"),
    ]  # fmt: skip


def test_torch_trains_on_two_workers_with_gloo(user: User, digits: str) -> None:
    wish = {"dataset": digits, "distributed": {"parameter_servers": 0, "workers": 2}}
    shown = user.train(FRAMEWORKS / "torch_workers.py", TORCH, **wish)
    assert shown["metrics"]["workers"] == 2
    assert shown["metrics"]["test_accuracy"] > 0.9
    assert shown["progress"]["fraction"] == 1


EVALUATED = """
import sys
import tensorflow as tf

told = tf.distribute.cluster_resolver.TFConfigClusterResolver()
print(told.task_type, sorted(told.cluster_spec().as_dict()), flush=True)
if told.task_type == "evaluator":
    sys.exit()
if told.task_type != "chief":
    tf.distribute.Server(told.cluster_spec(), told.task_type, told.task_id, protocol="grpc").join()
coordinator = tf.distribute.coordinator.ClusterCoordinator(tf.distribute.ParameterServerStrategy(told))
done = coordinator.schedule(tf.function(lambda: tf.constant(6) * 7))
coordinator.join()
print("the worker says", done.fetch(), flush=True)
"""


def test_a_gang_with_an_evaluator_is_what_tensorflow_takes_for_a_cluster(stack: Stack) -> None:
    serving = {"serves": True}
    roles = {"chief": {}, "worker": serving, "ps": serving, "evaluator": {}}
    spec = {
        "kind": "gang", "image": TENSORFLOW, "command": ["python3", "-c", EVALUATED], "resources": SMALL,
        "gang": {"connected": True, "roles": roles},
    }  # fmt: skip
    job_id = stack.submit(spec)
    job = stack.wait_end(job_id, timeout=600)
    log = stack.http.get(f"/jobs/{job_id}/logs").text
    assert job["state"] == "succeeded", log
    assert "chief-0 | the worker says 42" in log
    assert "evaluator-0 | evaluator ['evaluator']" in log


def test_a_model_that_keras_has_saved_is_served(user: User, stack: Stack, digits: str) -> None:
    wish = {"dataset": digits, "params": {"epochs": 12}, "resources": {**SMALL, "cpus": 1}}
    learnt = user.train(QUICK_START / "algorithm_keras.py", TENSORFLOW, **wish)
    name = new_id("keras")
    user.post("/models", 201, json={"name": name, "job_id": learnt["training_id"]})
    user.post("/deployments", 202, json={"name": name, "model": name, "image": SERVING, "resources": SMALL})
    try:
        until(lambda: user.get(f"/deployments/{name}").json()["status"] == "running", "it answers", 300)
        table = np.loadtxt(EXAMPLES / "training-digits" / "data" / "digits.csv", delimiter=",")[:200]
        instances = (table[:, :-1] / 16).tolist()
        found = user.post(f"/deployments/{name}/v1/models/any:predict", 200, json={"instances": instances})
        classes = [int(one["class"]) for one in found["predictions"]]
        assert (np.array(classes) == table[:, -1]).mean() > 0.9
        told = user.get(f"/deployments/{name}/v2/models/any").json()
        assert (told["platform"], told["inputs"][0]["shape"]) == ("keras", [-1, 64])
    finally:
        user.session.delete(f"{user.url}/deployments/{name}", timeout=60)
