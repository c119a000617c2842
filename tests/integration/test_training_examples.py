"""The example trainings as plain processes, without wherry: alone, and over parameter servers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from infra.local.ports import free_port
from services.gateway.adapters.training_zip import RUNNER
from services.gateway.programs import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS = EXAMPLES / "training-digits" / "data" / "digits.csv"
SHORT = {"epochs": 6}
#: What an error is told as, on the last line.
MARK = train.MARK


class Run:
    """Members of one training, each a process with outputs of its own."""

    def __init__(self, folder: Path, example: str, params: dict[str, object]) -> None:
        self.folder = folder
        self.workspace, self.inputs = folder / "workspace", folder / "inputs"
        for path in (self.workspace, self.inputs):
            path.mkdir(parents=True)
        for file in (EXAMPLES / example).glob("*.py"):
            (self.workspace / file.name).write_bytes(file.read_bytes())
        (self.workspace / RUNNER).write_bytes(Path(train.__file__).read_bytes())
        (self.inputs / "dataset").write_bytes(DIGITS.read_bytes())
        (folder / "params.json").write_text(json.dumps(params))
        self.ports = {"worker": [free_port(), free_port()], "ps": [free_port(), free_port()]}

    def start(self, role: str | None = None, index: int = 0, *, servers: int = 1) -> subprocess.Popen[str]:
        outputs = self.outputs(role or "alone", index)
        outputs.mkdir()
        ports = {"worker": self.ports["worker"], "ps": self.ports["ps"][:servers]}
        cluster = {name: [f"127.0.0.1:{port}" for port in taken] for name, taken in ports.items()}
        env = {
            "PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "WHERRY_INPUTS": str(self.inputs),
            "WHERRY_OUTPUTS": str(outputs), "WHERRY_PARAMS": str(self.folder / "params.json"),
        }  # fmt: skip
        if role is not None:
            env["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": role, "index": index}})
        return subprocess.Popen(
            [sys.executable, "-u", RUNNER], cwd=self.workspace, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def outputs(self, role: str, index: int = 0) -> Path:
        return self.folder / f"outputs-{role}-{index}"

    def metrics(self, role: str) -> dict[str, float]:
        return json.loads((self.outputs(role) / "metrics.json").read_text())


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda one: one.communicate(timeout=250), processes))
    return [(one.returncode, *texts) for one, texts in zip(processes, said, strict=True)]


def answers(folder: Path, images: np.ndarray) -> np.ndarray:
    """Return the digits that a saved model reads, by what `model.json` says of it alone."""
    description = json.loads((folder / "model.json").read_text())
    assert description["format"] == "wherry-numpy-mlp/1"
    values = images
    with np.load(folder / "model.npz") as arrays:
        for number, layer in enumerate(description["layers"]):
            values = values @ arrays[layer["weights"]] + arrays[layer["biases"]]
            assert values.shape[1] == layer["outputs"]
            if number < len(description["layers"]) - 1:
                values = np.maximum(values, 0)
    return values.argmax(1)


Start = Callable[..., Run]


@pytest.fixture
def run(tmp_path: Path) -> Start:
    made: list[Run] = []

    def one(example: str = "training-digits", **params: object) -> Run:
        made.append(Run(tmp_path / f"run-{len(made)}", example, params))
        return made[-1]

    return one


@pytest.mark.parametrize(("example", "least"), [("training-digits", 0.95), ("quickstart-network", 0.93)])
def test_an_example_learns_to_read_digits_and_leaves_a_model_that_does(run: Start, example: str, least: float) -> None:
    training = run(example)
    [(code, said, errors)] = ended(training.start())
    assert code == 0, errors
    assert training.metrics("alone")["accuracy"] > least
    assert "::progress 1.0" in said
    assert "::metric loss=" in said
    table = np.loadtxt(DIGITS, delimiter=",")
    # Three quarters and more of these it has seen: it reads almost all of them.
    assert (answers(training.outputs("alone"), table[:, :-1] / 16) == table[:, -1]).mean() > 0.97


@pytest.mark.parametrize("servers", [1, 2])
def test_two_workers_and_their_servers_come_to_the_network_of_one_machine(run: Start, servers: int) -> None:
    alone, together = run(**SHORT), run(**SHORT)
    members = [together.start("worker", index, servers=servers) for index in (0, 1)]
    members += [together.start("ps", index, servers=servers) for index in range(servers)]
    for code, said, errors in ended(alone.start(), *members):
        assert code == 0, said + errors
    one, two = alone.metrics("alone"), together.metrics("worker")
    assert (one["workers"], two["workers"]) == (1, 2)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-9)
    assert two["accuracy"] == one["accuracy"]
    with (
        np.load(alone.outputs("alone") / "model.npz") as first,
        np.load(together.outputs("worker") / "model.npz") as second,
    ):
        assert set(first) == set(second)
        for name in first:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-7)
    assert not (together.outputs("worker", 1) / "model.npz").exists()


def test_a_worker_that_loses_its_server_says_which(run: Start) -> None:
    training = run(epochs=1_000_000)
    workers = [training.start("worker", index) for index in (0, 1)]
    server = training.start("ps")
    assert workers[0].stdout is not None
    while "::progress" not in workers[0].stdout.readline():
        assert workers[0].poll() is None
    server.kill()
    server.communicate()
    for code, _, errors in ended(*workers):
        assert code == 1
        assert errors.splitlines()[-1].startswith(MARK)
        assert f"parameter server 127.0.0.1:{training.ports['ps'][0]} is gone" in errors.splitlines()[-1]


def test_a_server_that_loses_a_worker_ends_and_so_does_the_other_worker(run: Start) -> None:
    training = run(epochs=1_000_000)
    lost, other, server = training.start("worker", 0), training.start("worker", 1), training.start("ps")
    assert lost.stdout is not None
    while "::progress" not in lost.stdout.readline():
        assert lost.poll() is None
    lost.kill()
    lost.communicate()
    (server_code, _, server_said), (code, _, said) = ended(server, other)
    assert (server_code, code) == (1, 1)
    assert "worker 0 is gone" in server_said.splitlines()[-1]
    assert "is gone" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"epoch": 3}, "there is no parameter 'epoch'"),
        ({"layers": [0]}, "are above 0"),
        ({"test_share": 2}, "test_share is a share between 0 and 1, not 2"),
    ],
)
def test_a_wrong_parameter_is_told_in_one_line(run: Start, params: dict[str, object], said: str) -> None:
    [(code, _, errors)] = ended(run(**params).start())
    assert code == 1
    assert said in errors.splitlines()[-1]
