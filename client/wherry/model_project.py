"""A model as its expert keeps it: a folder with model.json, a Dockerfile and a program; docker builds and pushes it."""

import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from client.wherry.errors import SourceError, WherryError

MODEL_FILE = "model.json"
#: What a model may be called.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
NAME, DESCRIPTION, PARAMS = "io.wherry.model.name", "io.wherry.model.description", "io.wherry.model.params"

_PROGRAM = '''\
"""Reads its parameters, works on its data, and leaves its results: fill in your own."""

import json
import os
from pathlib import Path

params = json.loads(Path(os.environ["WHERRY_PARAMS"]).read_text())
inputs, outputs = Path(os.environ["WHERRY_INPUTS"]), Path(os.environ["WHERRY_OUTPUTS"])

files = sorted(path for path in (inputs / "dataset").rglob("*") if path.is_file()) if inputs.exists() else []
threshold = params["threshold"]
print(f"{len(files)} files, threshold {threshold}")
print("::progress 0.5::half way")

(outputs / "result.json").write_text(json.dumps({"files": len(files), "threshold": threshold}))
print(f"::metric files={len(files)}")
print("::progress 1.0::done")
'''
_DOCKERFILE = """\
ARG BASE=python:3.12-slim
FROM $BASE
COPY predict.py /model/
CMD ["python", "/model/predict.py"]
"""


@dataclass(frozen=True, slots=True)
class Project:
    """What model.json says. `sample` are parameters to try it with."""

    folder: Path
    name: str
    description: str
    params: dict[str, Any]
    sample: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels that describe the model on its image."""
        schema = json.dumps(self.params, separators=(",", ":"))
        return {NAME: self.name, DESCRIPTION: self.description, PARAMS: schema}


def init(folder: Path, name: str) -> list[Path]:
    """Write a project that can be built and run as it is; return its files.

    Raises:
        SourceError: something is there already, or no model may be called so.

    """
    _check_name(name, f"say another one with --name than {name!r}")
    described = {
        "name": name,
        "description": "What it does, for those who look for a model.",
        "params": {
            "type": "object",
            "properties": {
                "threshold": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 1,
                    "default": 0.5,
                    "description": "From where on.",
                }
            },
            "additionalProperties": False,
        },
        "sample": {"threshold": 0.5},
    }
    files = {MODEL_FILE: json.dumps(described, indent=2) + "\n", "Dockerfile": _DOCKERFILE, "predict.py": _PROGRAM}
    if taken := [file for file in files if (folder / file).exists()]:
        raise SourceError(f"{folder / taken[0]} is there already")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]


def load(folder: Path) -> Project:
    """Return the project in *folder*.

    Raises:
        SourceError: its model.json is missing or says something that cannot be.

    """
    file = folder / MODEL_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}; `wherry models init` writes one") from error
    except ValueError as error:
        raise SourceError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{file} is no JSON object")
    said = cast("dict[str, Any]", found)
    if unknown := sorted(set(said) - {"name", "description", "params", "sample"}):
        raise SourceError(f"{file}: there is no field {unknown[0]!r}")
    for field, kind in (("name", str), ("description", str), ("params", dict), ("sample", dict)):
        if not isinstance(said.setdefault(field, kind()), kind):
            raise SourceError(f"{file}: {field} must be {'text' if kind is str else 'an object'}")
    _check_name(said["name"], f"{file}: {said['name']!r} is no name for a model")
    schema: dict[str, Any] = said["params"]
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in said["sample"]]
    if schema and (schema.get("type") != "object" or not isinstance(properties, dict)):
        raise SourceError(f"{file}: params is the JSON Schema of an object, with properties")
    if missing:
        raise SourceError(f"{file}: sample has no {missing[0]!r}, which params requires")
    return Project(folder, said["name"], said["description"], schema, said["sample"])


def _check_name(name: str, words: str) -> None:
    if not _NAME.fullmatch(name):
        raise SourceError(f"{words}: small letters, digits, dots, dashes and underscores, a letter or digit first")


def build(project: Project, tag: str, build_args: Sequence[str] = ()) -> None:
    """Build the image *tag*, described by its labels.

    Raises:
        WherryError: docker could not (it has said why).

    """
    labels = [part for name, text in project.labels.items() for part in ("--label", f"{name}={text}")]
    args = [part for given in build_args for part in ("--build-arg", given)]
    _docker("build", "--tag", tag, *labels, *args, str(project.folder))


def check(project: Project, tag: str, dataset: Path | None) -> dict[str, int]:
    """Run the image once with the sample parameters, as a node would; return what it left, with sizes in bytes.

    Raises:
        WherryError: ``not_valid``: it failed, or left nothing.

    """
    with tempfile.TemporaryDirectory(prefix="wherry-model-") as text:
        folder = Path(text)
        for name in ("outputs", "run", "inputs"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)
        folder.chmod(0o755)
        params = _with_defaults(project.params, project.sample)
        (folder / "run" / "params.json").write_text(json.dumps(params), encoding="utf-8")
        mounts = [f"{folder}/outputs:/outputs", f"{folder}/run:/run/wherry:ro", f"{folder}/inputs:/inputs:ro"]
        if dataset is not None:
            mounts.append(f"{dataset.resolve()}:/inputs/dataset:ro")
        variables = {
            "WHERRY_PARAMS": "/run/wherry/params.json", "WHERRY_INPUTS": "/inputs", "WHERRY_OUTPUTS": "/outputs",
            "WHERRY_WORKSPACE": "/workspace", "WHERRY_JOB_ID": "check", "WHERRY_ATTEMPT": "1",
        }  # fmt: skip
        options = [part for mount in mounts for part in ("--volume", mount)]
        options += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        walls = ["--network=none", "--read-only", "--user=65534:65534", "--cap-drop=ALL"]
        walls += ["--tmpfs=/tmp", "--tmpfs=/workspace", "--workdir=/workspace"]
        _docker("run", "--rm", *walls, *options, tag, code="not_valid")
        outputs = folder / "outputs"
        left = {
            str(one.relative_to(outputs)): one.stat().st_size for one in sorted(outputs.rglob("*")) if one.is_file()
        }
    if not left:
        raise WherryError("not_valid", "it ended well and left nothing in WHERRY_OUTPUTS")
    return left


def push(project: Project, tag: str, reference: str) -> None:
    """Push the image *tag* of a project to a registry as *reference*.

    Raises:
        WherryError: docker could not (it has said why); ``not_built``: there is no such image.

    """
    if not _is_built(tag):
        folder = shlex.quote(str(project.folder))
        raise WherryError("not_built", f"there is no image {tag} here: wherry models build {folder} makes it")
    if tag != reference:
        _docker("tag", tag, reference)
    _docker("push", reference)


def _with_defaults(schema: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    preset = {
        name: part["default"] for name, part in properties.items() if isinstance(part, dict) and "default" in part
    }
    return {**preset, **params}


def _is_built(tag: str) -> bool:
    try:
        asked = ["docker", "image", "inspect", tag]
        return subprocess.run(asked, check=False, capture_output=True).returncode == 0  # noqa: S603
    except FileNotFoundError:
        return True  # said when it is pushed


def _docker(*arguments: str, code: str = "docker_failed") -> None:
    try:
        ended = subprocess.run(["docker", *arguments], check=False)  # noqa: S603, S607 - the user's own docker
    except FileNotFoundError:
        raise WherryError("docker_failed", "there is no `docker` command on this machine") from None
    if ended.returncode:
        raise WherryError(code, f"docker {arguments[0]} ended with {ended.returncode}; what it said is above")
