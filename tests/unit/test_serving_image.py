"""Our serving image's program, run here as it is: a model over HTTP, in three forms."""

import base64
import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIZE = 3  # pixels a side
BRIGHT = [0.0] * 4 + [1.0] + [0.0] * 4


def save_model(folder: Path, **more: Any) -> None:
    """A network that tells which pixel is the brightest."""
    folder.mkdir(parents=True)
    count = SIZE * SIZE
    np.savez(folder / "model.npz", w0=np.eye(count), b0=np.zeros(count), w1=9 * np.eye(count), b1=np.zeros(count))
    layers = [{"weights": f"w{n}", "biases": f"b{n}", "inputs": count, "outputs": count} for n in (0, 1)]
    described = {
        "format": "wherry-numpy-mlp/1", "input": {"width": SIZE, "height": SIZE, "channels": 1},
        "classes": [f"p{n}" for n in range(count)], "layers": layers, "activation": "relu", **more,
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(described))


def start(workspace: Path, **options: Any) -> subprocess.Popen[str]:
    env = {
        **os.environ, "PYTHONPATH": str(ROOT / "images"), "PORT": "0", "PYTHONUNBUFFERED": "1",
        "WHERRY_WORKSPACE": str(workspace), "WHERRY_INPUTS": str(workspace / "no-inputs"),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "serving"], env=env, text=True, stdout=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("serving")
    save_model(folder / "some" / "model")
    with start(folder, stderr=subprocess.DEVNULL) as program:
        assert program.stdout
        port = program.stdout.readline().rpartition(" ")[2].strip()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                yield client
        finally:
            program.terminate()
            assert program.wait(30) == 0


def picture(brightest: int, side: int = SIZE, mode: str = "L", kind: str = "PNG") -> str:
    pixels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    pixels[divmod(brightest, SIZE)] = 255
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def predict(http: httpx.Client, **asked: Any) -> httpx.Response:
    return http.post("/v1/models/any:predict", json=asked)


def test_images_and_numbers_of_any_nesting_are_predicted(http: httpx.Client):
    square = [BRIGHT[:3], BRIGHT[3:6], BRIGHT[6:]]
    large = picture(7, 300, "RGB", "JPEG")
    size = {"width": 3, "height": 3, "channels": 1}
    answer = predict(http, instances=[BRIGHT, square, {"b64": picture(2)}, {"b64": large}], **size)
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert [one["class"] for one in found] == ["p4", "p4", "p2", "p7"]
    assert abs(sum(found[0]["probabilities"]) - 1) < 1e-5
    assert found[0]["probability"] == max(found[0]["probabilities"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "instances"),
        ({"instances": []}, "instances"),
        ({"instances": [[1, 2]]}, "instances[0] has 2 numbers; the model takes 9"),
        ({"instances": [BRIGHT, "text"]}, "instances[1]"),
        ({"instances": [[*BRIGHT[:8], 1e400]]}, "finite"),
        ({"instances": [{"b64": "?"}]}, "no base64"),
        (
            {"instances": [{"b64": base64.b64encode(b"gif?").decode()}]},
            "instances[0]: that is no picture that can be read: its 4 bytes begin with b'gif?'",
        ),
        ({"instances": [{"b64": ""}]}, "instances[0]: that is no picture that can be read: it is empty"),
        ({"instances": [BRIGHT], "width": 28}, "width is 28, and the model takes 3 x 3 pixels of 1 channels"),
    ],
)
def test_what_is_wrong_is_said(http: httpx.Client, asked: dict[str, Any], words: str):
    answer = http.post("/v1/models/m:predict", content=json.dumps(asked))
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_it_tells_how_it_is_in_both_protocols(http: httpx.Client):
    assert http.get("/healthz").status_code == 200
    assert http.get("/v1/models/m").json()["model_version_status"][0]["state"] == "AVAILABLE"
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1"):
        assert http.get(path).status_code == 200, path
    told = http.get("/v2/models/m").json()
    assert (told["name"], told["inputs"][0]["shape"], told["outputs"][0]["shape"]) == ("m", [-1, 9], [-1, 9])
    assert http.get("/nothing").status_code == http.post("/v2/models/m/nothing", content=b"{}").status_code == 404


def infer(http: httpx.Client, given: dict[str, Any], tail: bytes = b"", **more: Any) -> httpx.Response:
    head = json.dumps({"inputs": [{"name": "input", **given}], **more}).encode()
    return http.post(
        "/v2/models/m/infer", content=head + tail, headers={"Inference-Header-Content-Length": str(len(head))}
    )


def test_tensors_go_both_ways_in_json_and_in_binary(http: httpx.Client):
    plain = infer(http, {"datatype": "FP64", "shape": [2, 3, 3], "data": [*BRIGHT, *BRIGHT[::-1]]}, id="x").json()
    assert (plain["id"], plain["outputs"][1]["data"]) == ("x", ["p4", "p4"])
    raw = np.array([BRIGHT], dtype="<f4").tobytes()
    given = {"datatype": "FP32", "shape": [1, 9], "parameters": {"binary_data_size": len(raw)}}
    answer = infer(http, given, raw, parameters={"binary_data_output": True})
    cut = int(answer.headers["Inference-Header-Content-Length"])
    first, second = json.loads(answer.content[:cut])["outputs"]
    tail = answer.content[cut:]
    size = first["parameters"]["binary_data_size"]
    assert np.frombuffer(tail[:size], "<f4").argmax() == 4
    assert tail[size:] == struct.pack("<I", 2) + b"p4"
    assert second["parameters"]["binary_data_size"] == len(tail) - size


@pytest.mark.parametrize(
    ("given", "tail", "words"),
    [
        ({"datatype": "BYTES", "shape": [1]}, b"", "datatype"),
        ({"datatype": "FP32", "shape": [1, 9], "data": [1]}, b"", "values of shape"),
        ({"datatype": "FP32", "shape": [-1]}, b"", "shape"),
        ({"datatype": "FP32", "shape": [1, 9], "parameters": {"binary_data_size": 36}}, b"1", "1 bytes follow"),
        ({"name": "other"}, b"", "called 'input'"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(http: httpx.Client, given: dict[str, Any], tail: bytes, words: str):
    answer = infer(http, given, tail)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_body_without_a_length_or_beyond_the_limit_is_refused(http: httpx.Client):
    assert http.post("/v2/models/m/infer", content=iter([b"{}"])).status_code == 411
    with contextlib.closing(HTTPConnection(http.base_url.host, http.base_url.port, timeout=30)) as plain:
        plain.putrequest("POST", "/v2/models/m/infer")
        plain.putheader("Content-Length", str(2**40))
        plain.endheaders()
        assert plain.getresponse().status == 413


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (None, "there is no model: no model.json"),
        ({"format": "onnx"}, "has the format 'onnx'"),
        ({"format": "keras"}, "model.keras needs an image with Keras"),
        ({"activation": "tanh"}, "activation"),
        ({"classes": ["a"]}, "9 outputs and 1 classes"),
        ({"input": {"width": 4, "height": 3, "channels": 1}}, "layer 0 does not fit"),
        ({"layers": [{"weights": "w9", "biases": "b0"}]}, "cannot be read"),
    ],
)
def test_without_a_model_that_fits_it_says_so_and_ends_with_3(
    tmp_path: Path, described: dict[str, Any] | None, words: str
):
    if described is not None:
        save_model(tmp_path / "model", **described)
    with start(tmp_path, stderr=subprocess.PIPE) as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode == 3
    assert words in said


def test_of_several_models_none_is_served_silently(tmp_path: Path) -> None:
    for folder in ("digits", "letters"):
        save_model(tmp_path / folder)
    with start(tmp_path, stderr=subprocess.PIPE) as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode == 3
    assert f"there are 2 models in {tmp_path}: digits/model.json, letters/model.json" in said


def test_the_model_that_lies_highest_is_served(tmp_path: Path) -> None:
    save_model(tmp_path / "final", classes=["a"])
    save_model(tmp_path / "final" / "before", activation="tanh")
    with start(tmp_path, stderr=subprocess.PIPE) as program:
        _, said = program.communicate(timeout=60)
    assert "9 outputs and 1 classes" in said  # that is: the first was opened


def test_what_keras_has_saved_is_found_without_a_description(tmp_path: Path) -> None:
    (tmp_path / "digits.keras").touch()
    with start(tmp_path, stderr=subprocess.PIPE) as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode == 3
    assert "digits.keras needs an image with Keras" in said  # here it has none


def test_an_answer_does_not_wait_until_its_head_was_acknowledged(http: httpx.Client) -> None:
    """Head and body in two pieces would take 40 ms on a connection that is kept, always: Nagle's algorithm."""
    body = json.dumps({"instances": [BRIGHT]}).encode()
    asked = b"POST /v1/models/any:predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=30) as plain:
        for _ in range(60):
            plain.sendall(asked)
            head, _, said = plain.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert json.loads(said)["predictions"][0]["class"] == "p4", "it came with its head"
