"""Runs a training inside its container: `preprocessing.prepare` gives the data, `algorithm.train` makes the model.

It stands beside `preprocessing.py`, `algorithm.py` and `helpers.py`, which import each other by these names. It needs
Python alone, 3.8 or newer. Each function takes those of these that it wants, by their names:

dataset: where the data set is (a `pathlib.Path`: a folder, or a file); None where the training has none.
params: the parameters, a dict.
outputs: where to leave what is to be kept (a `pathlib.Path`).
data: what `prepare` has returned; the data set itself where there is no such function.
cluster: who the others are (a `Cluster`); None where the training is not distributed.

A parameter server runs `algorithm.serve` where there is one, and no `prepare`; else it does what a worker does. Where
there is a chief, so does each worker: the chief alone trains.
What `train` returns, where it is a dict, is written to `metrics.json`; its numbers are also printed as metrics,
and of lists of numbers (Keras' history has such) each as that of a step.
"""

import importlib
import inspect
import json
import math
import os
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Generator, List, Mapping, Optional, Tuple  # noqa: UP035 - old images too

#: How the last line of an error begins; the server shows what comes after it.
MARK = "training: "
#: By these NumPy, PyTorch and TensorFlow are told how many threads compute.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


class ContractError(Exception):
    """The three files do not fit together. The message is for who wrote them."""


@dataclass(frozen=True)
class Cluster:
    """The members of a distributed training, as (host, port), and which of them this is."""

    role: str  # chief, worker or ps
    index: int  # within the role, from 0
    servers: List[Tuple[str, int]]  # noqa: UP006 - old images too
    workers: List[Tuple[str, int]]  # noqa: UP006
    chief: Optional[Tuple[str, int]] = None  # noqa: UP006, UP045

    @property
    def is_chief(self) -> bool:
        """Return whether this is the member whose outputs are those of the training: the chief, or the first worker."""
        return self.role == "chief" or (self.role == "worker" and self.index == 0 and self.chief is None)

    @property
    def serves(self) -> bool:
        """Return whether this member works for those that train."""
        return self.role == "ps" or (self.role == "worker" and self.chief is not None)

    @property
    def here(self) -> Tuple[str, int]:  # noqa: UP006
        """Return this member's own address."""
        if self.role == "chief" and self.chief is not None:
            return self.chief
        return (self.servers if self.role == "ps" else self.workers)[self.index]


def cluster_of(environ: Mapping[str, str]) -> Optional[Cluster]:  # noqa: UP045
    """Return the cluster that ``TF_CONFIG`` describes; None without it."""
    if not environ.get("TF_CONFIG"):
        return None
    config = json.loads(environ["TF_CONFIG"])
    members = {role: [_address(text) for text in texts] for role, texts in config["cluster"].items()}
    task = config["task"]
    chief = members["chief"][0] if members.get("chief") else None
    return Cluster(task["type"], int(task["index"]), members.get("ps", []), members.get("worker", []), chief)


def _address(text: str) -> Tuple[str, int]:  # noqa: UP006
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def call(function: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call *function* with those of the *available* things that it takes, by name.

    Raises:
        ContractError: it wants something else.
    """
    where = f"{function.__module__}.{function.__name__}"
    given: Dict[str, Any] = {}  # noqa: UP006
    for name, wanted in inspect.signature(function).parameters.items():
        if wanted.kind is wanted.VAR_KEYWORD:
            given.update({other: value for other, value in available.items() if other not in given})
        elif name in available and wanted.kind is not wanted.POSITIONAL_ONLY:
            given[name] = available[name]
        elif wanted.default is wanted.empty and wanted.kind is not wanted.VAR_POSITIONAL:
            raise ContractError(f"{where} takes {name!r}; it may take {', '.join(available)}")
    return function(**given)


def run(environ: Mapping[str, str]) -> None:
    """Prepare and train, or serve, as *environ* says.

    Raises:
        ContractError: a function is missing, or takes what nobody has.
    """
    dataset: Optional[Path] = Path(environ["WHERRY_INPUTS"]) / "dataset"  # noqa: UP045
    outputs = Path(environ["WHERRY_OUTPUTS"])
    params = json.loads(Path(environ["WHERRY_PARAMS"]).read_text(encoding="utf-8"))
    cluster = cluster_of(environ)
    available = {
        "dataset": dataset if dataset.exists() else None,
        "params": params,
        "outputs": outputs,
        "cluster": cluster,
    }
    with _nothing_ends_early():
        algorithm = importlib.import_module("algorithm")
    if cluster is not None and cluster.serves and hasattr(algorithm, "serve"):
        _done(algorithm.serve, call(algorithm.serve, available))
        return
    if not callable(getattr(algorithm, "train", None)):
        raise ContractError("algorithm.py has no function `train`")
    with _nothing_ends_early():
        prepare = getattr(importlib.import_module("preprocessing"), "prepare", None)
        data = available["dataset"] if prepare is None else call(prepare, available)
    _keep(_done(algorithm.train, call(algorithm.train, {"data": data, **available})), outputs)


@contextmanager
def _nothing_ends_early() -> Generator[None, None, None]:
    """Let nobody mistake a program that ends well before it has trained for one that has."""
    try:
        yield
    except SystemExit as ended:
        if ended.code:
            raise
        error = ContractError("the program ended itself before `train` was called")
        raise error.with_traceback(ended.__traceback__) from None


def _done(function: Callable[..., Any], result: Any) -> Any:
    """Return the *result* of *function*, unless it only promises that something will be done."""
    if inspect.iscoroutine(result):
        result.close()
        raise ContractError(f"{function.__module__}.{function.__name__} is `async`; define it with `def` alone")
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise ContractError(f"{function.__module__}.{function.__name__} has a `yield`, so that calling it does nothing")
    return result


def _keep(result: Any, outputs: Path) -> None:
    if not isinstance(result, dict):
        return
    metrics: Dict[str, Any] = _plain(result)  # noqa: UP006 - old images too
    for (name, value), given in zip(metrics.items(), result.values()):  # noqa: B905 - old images too
        if _is_number(value):
            print(f"::metric {name}={value}")  # noqa: T201 - for whoever watches
        elif isinstance(given, list) and all(map(_is_number, value)):  # of arrays nobody knows what they are
            for step, one in enumerate(value, 1):
                print(f"::metric {name}={one} step={step}")  # noqa: T201
    sys.stdout.flush()
    file = outputs / "metrics.json"
    if not file.exists():
        sound = json.loads(json.dumps(metrics, default=str), parse_constant=str)  # JSON has no NaN: it becomes text
        file.write_text(json.dumps(sound, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return what a library measures in, its numbers and arrays, as Python's own."""
    if hasattr(value, "numpy") and not hasattr(value, "tolist"):  # TensorFlow's
        value = value.numpy()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def threads(environ: Mapping[str, str]) -> Dict[str, str]:  # noqa: UP006
    """Return what *environ* lacks for libraries to compute in as many threads as there are CPUs for this program.

    Else they take as many as the machine has, and are in each other's way.
    """
    cpus = environ.get("WHERRY_CPUS")
    if not cpus:
        return {}
    return {name: str(max(1, math.ceil(float(cpus)))) for name in THREADS if name not in environ}


def explain(error: BaseException, folder: Path) -> str:
    """Return where in the files of *folder* an error came from, and what it says, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == folder and frame.filename != __file__]
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""
    if isinstance(error, SystemExit):
        return f"{where}sys.exit({error.code!r})"
    said = " ".join(str(error).split())
    kind = "" if isinstance(error, ContractError) else type(error).__name__
    return where + ": ".join(filter(None, (kind, said)))


def _of_users(trace: Optional[TracebackType]) -> Optional[TracebackType]:  # noqa: UP045
    """Return *trace* without the frames of this file at its beginning, and those of the import machinery."""
    while trace is not None and trace.tb_next is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and "importlib" not in name:
            break
        trace = trace.tb_next
    return trace


def _told(ended: SystemExit, folder: Path) -> int:
    """Tell where a program has ended itself, unless all is well; return its exit code, as Python would have."""
    if not ended.code:
        return 0
    sys.stdout.flush()
    if not isinstance(ended.code, int):
        print(ended.code, file=sys.stderr)  # noqa: T201
    print(MARK + explain(ended, folder), file=sys.stderr, flush=True)  # noqa: T201
    return ended.code if isinstance(ended.code, int) else 1


def main() -> int:
    """Run, and tell of an error as its writer reads it best: the traceback of their own files, then one line."""
    folder = Path(__file__).resolve().parent
    os.environ.update(threads(os.environ))
    try:
        run(os.environ)
    except SystemExit as ended:
        return _told(ended, folder)
    except Exception as error:  # noqa: BLE001 - it is told, and the program has failed
        sys.stdout.flush()
        if not isinstance(error, ContractError):
            traceback.print_exception(type(error), error, _of_users(error.__traceback__))
        print(MARK + explain(error, folder), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
