"""The program that runs a training's modules, as a process in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway.programs import train

RUNNER = Path(train.__file__)


class Training:
    """A folder as a container has it: the modules, the data set, the parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "outputs"
        for name in ("workspace", "inputs", "outputs"):
            (folder / name).mkdir()

    def run(
        self, dataset: str | None = None, params: object = None, **modules: str
    ) -> subprocess.CompletedProcess[str]:
        workspace = self.folder / "workspace"
        (workspace / "train.py").write_bytes(RUNNER.read_bytes())
        for name in ("preprocessing", "algorithm", "helpers"):
            (workspace / f"{name}.py").write_text(modules.get(name, ""))
        if dataset is not None:
            (self.folder / "inputs" / "dataset").write_text(dataset)
        (self.folder / "params.json").write_text(json.dumps(params or {}))
        env = {
            "PATH": os.environ["PATH"], "WHERRY_INPUTS": str(self.folder / "inputs"),
            "WHERRY_OUTPUTS": str(self.outputs), "WHERRY_PARAMS": str(self.folder / "params.json"),
            **({"TF_CONFIG": modules["tf_config"]} if "tf_config" in modules else {}),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-u", "train.py"], cwd=workspace, env=env, capture_output=True, text=True, check=False
        )


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


def test_the_three_modules_work_together_and_what_train_returns_is_kept(training: Training) -> None:
    done = training.run(
        dataset="1 2 3",
        params={"factor": 10},
        helpers="def numbers(text): return [int(word) for word in text.split()]",
        preprocessing="import helpers\ndef prepare(dataset, params):\n"
        "    return [params['factor'] * n for n in helpers.numbers(dataset.read_text())]",
        algorithm="def train(data, params, outputs):\n"
        "    (outputs / 'model.txt').write_text(str(data))\n"
        "    return {'sum': sum(data), 'kind': 'sum'}",
    )
    assert done.returncode == 0, done.stderr
    assert (training.outputs / "model.txt").read_text() == "[10, 20, 30]"
    assert json.loads((training.outputs / "metrics.json").read_text()) == {"sum": 60, "kind": "sum"}
    assert done.stdout.splitlines() == ["::metric sum=60"]


def test_without_preprocessing_the_data_is_the_data_set_itself(training: Training) -> None:
    done = training.run(dataset="abc", algorithm="def train(data, **rest):\n    print(data.read_text(), sorted(rest))")
    assert done.stdout.strip() == "abc ['cluster', 'dataset', 'outputs', 'params']"


def test_without_a_data_set_it_is_none(training: Training) -> None:
    done = training.run(algorithm="def train(dataset, cluster):\n    print(dataset, cluster)")
    assert done.stdout.strip() == "None None"


def test_a_file_of_metrics_that_train_has_written_stays(training: Training) -> None:
    done = training.run(
        algorithm="def train(outputs):\n    (outputs / 'metrics.json').write_text('{}')\n    return {'a': 1}"
    )
    assert done.returncode == 0
    assert (training.outputs / "metrics.json").read_text() == "{}"


def test_an_error_in_a_module_is_told_with_its_own_traceback_and_then_in_one_line(training: Training) -> None:
    done = training.run(
        helpers="def broken(x):\n    return 1 / x",
        algorithm="import helpers\n\ndef train():\n    helpers.broken(0)",
    )
    assert done.returncode == 1
    assert "train.py" not in done.stderr
    assert 'algorithm.py", line 4, in train' in done.stderr
    assert last_line(done) == "training: helpers.py, line 2: ZeroDivisionError: division by zero"


def test_an_error_while_a_module_is_imported_is_told_like_any_other(training: Training) -> None:
    done = training.run(algorithm="import no_such_package\ndef train(): pass")
    assert done.returncode == 1
    assert last_line(done) == ("training: algorithm.py, line 1: ModuleNotFoundError: No module named 'no_such_package'")
    assert "importlib" not in done.stderr


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ("def fit(): pass", "training: algorithm.py has no function `train`"),
        (
            "def train(images): pass",
            "training: algorithm.train takes 'images'; it may take data, dataset, params, outputs, cluster",
        ),
    ],
)
def test_modules_that_do_not_fit_are_told_without_a_traceback(training: Training, algorithm: str, said: str) -> None:
    done = training.run(algorithm=algorithm)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [said]


def test_the_exit_code_that_a_module_chooses_is_the_programs_and_it_says_where(training: Training) -> None:
    done = training.run(algorithm="import sys\ndef train():\n    sys.exit(7)")
    assert done.returncode == 7
    assert done.stderr.splitlines() == ["training: algorithm.py, line 3: sys.exit(7)"]


def test_the_words_with_which_a_module_ends_the_program_are_told(training: Training) -> None:
    done = training.run(algorithm="import sys\ndef train():\n    sys.exit('no data today')")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "no data today", "training: algorithm.py, line 3: sys.exit('no data today')"
    ]  # fmt: skip


def test_train_may_end_the_program_well(training: Training) -> None:
    done = training.run(algorithm="import sys\ndef train():\n    sys.exit()")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("algorithm", {"algorithm": "def train(): pass\nraise SystemExit"}),
        (
            "preprocessing",
            {"preprocessing": "import sys\ndef prepare(): sys.exit(0)", "algorithm": "def train(): pass"},
        ),
    ],
)
def test_a_program_that_ends_before_it_has_trained_has_failed(
    training: Training, name: str, modules: dict[str, str]
) -> None:
    done = training.run(**modules)
    assert done.returncode == 1
    assert last_line(done) == f"training: {name}.py, line 2: the program ended itself before `train` was called"


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ("async def train(): pass", "algorithm.train is `async`; define it with `def` alone"),
        ("def train():\n    yield 1", "algorithm.train has a `yield`, so that calling it does nothing"),
    ],
)
def test_a_function_that_only_promises_to_train_has_failed(training: Training, algorithm: str, said: str) -> None:
    done = training.run(algorithm=algorithm)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"training: {said}"]


def test_what_train_measures_may_be_arrays_and_no_numbers(training: Training) -> None:
    done = training.run(
        algorithm="import numpy as np\ndef train():\n"
        "    return {'a': np.float32(0.5), 'table': np.eye(2), 'loss': float('nan'), 'one': np.array([3])}"
    )
    assert done.returncode == 0, done.stderr
    written = (training.outputs / "metrics.json").read_text()
    kept = json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert kept == {"a": 0.5, "table": [[1, 0], [0, 1]], "loss": "NaN", "one": [3]}
    assert done.stdout.splitlines() == ["::metric a=0.5", "::metric loss=nan"]


def test_what_train_measures_may_be_objects_of_numbers_by_numbers(training: Training) -> None:
    done = training.run(
        algorithm="import numpy as np\ndef train():\n"
        "    return {'by_class': {np.int64(3): {'recall': np.float32(0.5)}, (0, 1): 2}}"
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads((training.outputs / "metrics.json").read_text())
    assert kept == {"by_class": {"3": {"recall": 0.5}, "(0, 1)": 2}}


def tf_config(kind: str, index: int) -> str:
    cluster = {"worker": ["worker-0:2222", "[fd00::2]:2223"], "ps": ["ps-0:2222"]}
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_a_member_knows_the_others_and_itself() -> None:
    cluster = train.cluster_of({"TF_CONFIG": tf_config("worker", 1)})
    assert cluster is not None
    assert cluster.workers == [("worker-0", 2222), ("fd00::2", 2223)]
    assert cluster.servers == [("ps-0", 2222)]
    assert cluster.here == ("fd00::2", 2223)
    assert not cluster.is_chief
    assert train.cluster_of({}) is None


CHIEFED = {"chief": ["chief-0:2222"], "worker": ["worker-0:2222"], "ps": ["ps-0:2222"]}
SERVED = (
    "def train(data, cluster):\n    print('train', data, cluster.role, cluster.is_chief)\n"
    "def serve(params, cluster):\n    print('serve', params, cluster.here)"
)


def test_a_parameter_server_serves_and_prepares_nothing(training: Training) -> None:
    modules = {"preprocessing": "def prepare():\n    print('prepare')\n    return 1", "algorithm": SERVED}
    assert training.run(params={"a": 1}, tf_config=tf_config("ps", 0), **modules).stdout.splitlines() == [
        "serve {'a': 1} ('ps-0', 2222)"
    ]
    assert training.run(tf_config=tf_config("worker", 0), **modules).stdout.splitlines() == [
        "prepare", "train 1 worker True"
    ]  # fmt: skip


def test_a_parameter_server_may_end_itself_when_all_is_done(training: Training) -> None:
    done = training.run(algorithm="import sys\ndef serve():\n    sys.exit()", tf_config=tf_config("ps", 0))
    assert (done.returncode, done.stderr) == (0, "")


def test_lists_of_numbers_are_metrics_of_steps(training: Training) -> None:
    history = "{'loss': [0.5, 0.25], 'words': ['a', 'b'], 'accuracy': 0.75}"
    done = training.run(algorithm=f"def train():\n    return {history}")
    assert done.stdout.splitlines() == [
        "::metric loss=0.5 step=1", "::metric loss=0.25 step=2", "::metric accuracy=0.75"
    ]  # fmt: skip


def test_libraries_compute_in_as_many_threads_as_the_training_has_cpus() -> None:
    assert train.threads({"WHERRY_CPUS": "1.5", "OMP_NUM_THREADS": "7"}) == {
        "OPENBLAS_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "2"
    }  # fmt: skip
    assert set(train.threads({"WHERRY_CPUS": "0"}).values()) == {"1"}
    assert train.threads({}) == {}


def test_where_there_is_a_chief_workers_serve_and_it_alone_trains(training: Training) -> None:
    def told(kind: str) -> str:
        return json.dumps(json.loads(tf_config(kind, 0)) | {"cluster": CHIEFED})

    assert training.run(algorithm=SERVED, tf_config=told("worker")).stdout.strip() == "serve {} ('worker-0', 2222)"
    assert training.run(algorithm=SERVED, tf_config=told("chief")).stdout.strip() == "train None chief True"
    cluster = train.cluster_of({"TF_CONFIG": told("chief")})
    assert cluster is not None
    assert cluster.here == ("chief-0", 2222)


def test_a_parameter_server_without_serve_does_what_workers_do(training: Training) -> None:
    done = training.run(algorithm=SERVED.partition("def serve")[0], tf_config=tf_config("ps", 0))
    assert done.stdout.strip() == "train None ps False"
