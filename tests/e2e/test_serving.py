"""Models that are served, as the users of the MLaaS seed do: deploy a zip, ask it, change it while it is asked."""

import base64
import concurrent.futures
import contextlib
import io
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.e2e.served import instance, model
from tests.e2e.stack import ROOT, Stack, docker, docker_answers, until, zip_of
from tests.integration.web_server import Web

# The first test may have to build the image.
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not docker_answers(), reason="replicas need an engine"),
]
SMALL = {"cpus": 0.1, "memory": "128MiB", "disk": "64MiB"}


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    subprocess.run([ROOT / "infra/docker/build-serving.sh"], check=True, stdout=subprocess.DEVNULL)


def picture(brightest: int, size: int = 2) -> bytes:
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[divmod(brightest, size)] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def artifact(stack: Stack, content: bytes) -> str:
    answer = stack.http.put("/artifacts", content=content)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()["artifact_id"]


def deploy(stack: Stack, name: str, content: bytes, **more: Any) -> str:
    wish = {"name": name, "artifact": artifact(stack, content), "resources": SMALL, **more}
    answer = stack.http.post("/deployments", json=wish)
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "starting"
    return answer.json()["deployment_id"]


def shown(stack: Stack, deployment: str) -> dict[str, Any]:
    answer = stack.http.get(f"/deployments/{deployment}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def until_running(stack: Stack, deployment: str, replicas: int = 1) -> dict[str, Any]:
    def runs() -> dict[str, Any] | None:
        found = shown(stack, deployment)
        assert found["status"] != "failed", found
        return found if found["status"] == "running" and found["running"] == replicas else None

    return until(runs, f"{replicas} replicas of {deployment} run")


def predict(stack: Stack, deployment: str, *brightest: int) -> list[str]:
    answer = stack.http.post(f"/deployments/{deployment}/predict", json={"instances": [*map(instance, brightest)]})
    assert answer.status_code == 200, answer.text
    return [one["class"] for one in answer.json()["predictions"]]


def asked_directly(job_id: str, count: int) -> list[float]:
    """Return how many milliseconds a replica takes that is asked by its address, without wherry."""
    wanted = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    container = docker("ps", "-q", "--filter", f"label=wherry.job={job_id}")
    took: list[float] = []
    with httpx.Client(base_url=f"http://{docker('inspect', '-f', wanted, container)}:8080", trust_env=False) as http:
        for _ in range(count):
            began = time.monotonic()
            answer = http.post("/v1/models/model:predict", json={"instances": [instance(0)]}, timeout=30)
            assert answer.status_code == 200, answer.text
            took.append((time.monotonic() - began) * 1000)
    return took


@pytest.fixture
def gone(stack: Stack) -> Iterator[Callable[[str], str]]:
    """Takes deployments away after the test."""
    made: list[str] = []

    def keep(deployment: str) -> str:
        made.append(deployment)
        return deployment

    yield keep
    for deployment in made:
        stack.http.delete(f"/deployments/{deployment}")
    for deployment in made:
        until(lambda one=deployment: shown(stack, one)["status"] in ("removed", "failed"), "it is gone")


def test_a_model_is_deployed_asked_in_every_form_scaled_changed_and_taken_away(
    stack: Stack, web: Web, gone: Callable[[str], str]
) -> None:
    deployment = gone(deploy(stack, "corners", model("nw", "ne", "sw", "se")))
    taken = stack.http.post("/deployments", json={"name": "corners", "artifact": artifact(stack, model())})
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    found = until_running(stack, deployment)
    assert found["image"] == "wherry/serving:latest"
    assert [one["state"] for one in found["members"]] == ["running"]

    # By id and by name; instances; an upload with its size.
    assert predict(stack, deployment, 1, 2) == predict(stack, "corners", 1, 2) == ["ne", "sw"]
    form = {"files": {"image": ("a.png", picture(3))}, "data": {"width": "2", "height": "2", "channels": "1"}}
    answer = stack.http.post("/deployments/corners/predict", **form).json()
    assert [one["class"] for one in answer["predictions"]] == ["se"]
    assert answer["latency_ms"] > answer["model_ms"] > 0
    web.files["/corner.png"] = picture(2)
    answer = stack.http.post("/deployments/corners/predict", json={"image_url": web.url("/corner.png")})
    assert [one["class"] for one in answer.json()["predictions"]] == ["sw"]
    for url in ("http://127.0.0.1:1/a.png", "http://169.254.169.254/latest", web.url("/missing.png")):
        refused = stack.http.post("/deployments/corners/predict", json={"image_url": url})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "image_url"), refused.text
    wrong = stack.http.post("/deployments/corners/predict", files={"image": ("a.png", b"no picture")})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "model_refused")
    assert "no picture" in wrong.json()["detail"]

    # The two protocols, untouched.
    sent = {"instances": [{"b64": base64.b64encode(picture(0)).decode()}]}
    answer = stack.http.post("/deployments/corners/v1/models/any:predict", json=sent)
    assert [one["class"] for one in answer.json()["predictions"]] == ["nw"]
    root = str(stack.http.base_url).removesuffix("/v1/")
    sent = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": instance(2)}], "id": "7"}
    answer = stack.http.post(f"{root}/v2/models/corners/infer", json=sent).json()
    assert (answer["id"], answer["outputs"][1]["data"]) == ("7", ["sw"])

    # Another number of replicas, then another model.
    assert stack.http.patch("/deployments/corners", json={"replicas": 2}).status_code == 202
    until_running(stack, deployment, 2)
    changes = {"artifact": artifact(stack, model("a", "b", "c", "d")), "replicas": 1}
    assert stack.http.patch("/deployments/corners", json=changes).status_code == 202
    until(lambda: predict(stack, "corners", 0) == ["a"], "the new model answers")
    assert until_running(stack, deployment)["revision"] > 0

    assert stack.http.delete("/deployments/corners").status_code == 202
    until(lambda: shown(stack, deployment)["status"] == "removed", "it is gone")
    refused = stack.http.post(f"/deployments/{deployment}/predict", json={"instances": [instance(0)]})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_running")
    assert stack.http.post("/deployments/corners/predict", json={"instances": [[0]]}).status_code == 404


def test_a_model_and_an_image_are_asked_by_their_addresses_in_one_go(
    stack: Stack, web: Web, gone: Callable[[str], str]
) -> None:
    web.files["/model.zip"], web.files["/one.png"] = model("nw", "ne", "sw", "se"), picture(1)
    order = {"model_url": web.url("/model.zip"), "image_url": web.url("/one.png"), "resources": SMALL}
    order |= {"width": 2, "height": 2, "channels": 1}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # at the same moment, when nothing is deployed yet
        asked = [pool.submit(stack.http.post, "/predict", json=order, timeout=120) for _ in range(3)]
    answers = [one.result() for one in asked] + [stack.http.post("/predict", json=order, timeout=120)]
    assert [one.status_code for one in answers] == 4 * [200], [one.text for one in answers]
    found = [one.json() for one in answers]
    gone(found[0]["deployment_id"])
    assert [one["predictions"][0]["class"] for one in found] == 4 * ["ne"]
    assert len({one["deployment_id"] for one in found}) == 1
    wrong = stack.http.post("/predict", json=order | {"width": 3}, timeout=120)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "model_refused")
    assert "2 x 2 pixels" in wrong.json()["detail"]


def test_a_client_of_the_open_inference_protocol_asks_in_json_and_in_binary(
    stack: Stack, gone: Callable[[str], str]
) -> None:
    deployment = gone(deploy(stack, "inference", model("nw", "ne", "sw", "se")))
    until_running(stack, deployment)
    headers = {"Authorization": stack.http.headers["Authorization"]}
    with contextlib.closing(InferenceServerClient(f"127.0.0.1:{stack.port}")) as client:
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert "binary_tensor_data" in client.get_server_metadata(headers=headers)["extensions"]
        assert client.is_model_ready("inference", headers=headers)
        told = client.get_model_metadata("inference", headers=headers)
        assert (told["name"], told["inputs"][0]["shape"]) == ("inference", [-1, 4])
        rows = np.eye(4, dtype=np.float32)[[3, 0, 1]]
        for is_binary in (True, False):  # the client adds headers of its own to those that it is given
            given = InferInput("input", list(rows.shape), "FP32")
            given.set_data_from_numpy(rows, binary_data=is_binary)
            wanted = [InferRequestedOutput(name, binary_data=is_binary) for name in ("probabilities", "label")]
            answer = client.infer("inference", [given], outputs=wanted, request_id="r1", headers={**headers})
            assert answer.get_response()["id"] == "r1"
            assert answer.as_numpy("probabilities").argmax(1).tolist() == [3, 0, 1]
            assert [bytes(one).decode() if is_binary else one for one in answer.as_numpy("label")] == ["se", "nw", "ne"]
        with pytest.raises(InferenceServerException, match="input"):
            client.infer(
                "inference", [InferInput("other", [1, 4], "FP32").set_data_from_numpy(rows[:1])], headers={**headers}
            )
        with pytest.raises(InferenceServerException):
            client.infer("no-such-model", [given], headers={**headers})


def test_a_zip_without_a_model_is_told_so(stack: Stack, gone: Callable[[str], str]) -> None:
    deployment = gone(deploy(stack, "empty", zip_of({"readme.txt": "nothing"})))

    def ended() -> list[dict[str, Any]]:
        return stack.http.get("/jobs", params={"gang": deployment, "state": "failed"}).json()["jobs"]

    replica = until(ended, "a replica has failed")[0]
    assert (replica["error"]["reason"], replica["attempts"][-1]["exit_code"]) == ("exit_code", 3)
    assert b"there is no model" in stack.output(replica["id"] if "id" in replica else replica["job_id"], "_stderr.txt")
    why = "there is no model: no model.json in /workspace"
    until(lambda: why in (shown(stack, deployment)["last_failure"] or {}).get("message", ""), "it says why")
    assert shown(stack, deployment)["last_failure"]["reason"] == "exit_code"


@pytest.mark.slow
def test_no_prediction_fails_while_a_replica_is_killed_and_a_new_model_is_rolled_out(
    stack: Stack, gone: Callable[[str], str]
) -> None:
    deployment = gone(deploy(stack, "busy", model("a", "b", "c", "d"), replicas=2))
    until_running(stack, deployment, 2)
    count, clients = 500, 8
    seen: list[tuple[float, str]] = []

    def client(number: int) -> None:
        headers = {"Authorization": stack.http.headers["Authorization"]}
        with httpx.Client(base_url=stack.http.base_url, headers=headers, timeout=60) as http:
            for _ in range(count // clients + 1):
                began = time.monotonic()
                answer = http.post(f"/deployments/{deployment}/predict", json={"instances": [instance(number % 4)]})
                assert answer.status_code == 200, answer.text
                label = answer.json()["predictions"][0]["class"]
                assert label in ("abcd"[number % 4], "wxyz"[number % 4])
                seen.append((time.monotonic() - began, label))
                time.sleep(0.15)  # so that they last as long as the roll-out

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(client, number) for number in range(clients)]
        until(lambda: len(seen) > 50, "predictions go on")
        victim = shown(stack, deployment)["members"][0]["job_id"]
        docker("kill", docker("ps", "-q", "--filter", f"label=wherry.job={victim}"))
        changes = {"artifact": artifact(stack, model("w", "x", "y", "z"))}
        assert stack.http.patch(f"/deployments/{deployment}", json=changes).status_code == 202
        for one in asking:
            one.result()
    assert len(seen) >= count
    until(lambda: predict(stack, deployment, 0) == ["w"], "the new model answers")
    found = until_running(stack, deployment, 2)
    assert victim not in [one["job_id"] for one in found["members"]]
    took = sorted(seconds * 1000 for seconds, _ in seen)
    middle, late = statistics.median(took), took[int(len(took) * 0.95)]
    direct = statistics.median(asked_directly(found["members"][0]["job_id"], 50))
    print(f"{len(seen)} predictions: median {middle:.0f} ms, 95 % within {late:.0f} ms; directly {direct:.0f} ms")


@pytest.mark.slow
def test_a_model_that_nobody_asks_sleeps_and_the_next_request_wakes_it(
    stack: Stack, gone: Callable[[str], str]
) -> None:
    deployment = gone(deploy(stack, "sleepy", model(), idle=3))
    until(lambda: shown(stack, deployment)["status"] == "idle", "it sleeps")
    assert predict(stack, deployment, 3) == ["3"]
