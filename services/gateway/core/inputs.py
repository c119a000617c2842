"""A job's inputs that are artifacts, datasets or files from the web: what users may write, and what is recorded."""

from collections.abc import Collection, Mapping

from services.gateway.core.access import Action, may
from shared.errors import FieldProblem
from shared.guard import url_refusal
from shared.requests.accounts import Principal
from shared.requests.artifacts import Artifact
from shared.requests.datasets import Dataset
from shared.spec import Input, JobSpec

#: Fields of an input that are not for users.
OURS = ("artifact", "sha256", "size")
_DATASET, _ARTIFACT = "dataset:", "artifact:"


def unusable(spec: JobSpec, allowed: Collection[str]) -> list[FieldProblem]:
    """Return what is wrong with inputs by themselves: fields that are not for users, addresses that may not be called.

    Args:
        spec: as sent.
        allowed: ``host:port`` of places that the operator vouches for.
    """
    found: list[FieldProblem] = []
    for name, given in spec.inputs.items():
        set_by_user = [field for field in OURS if getattr(given, field) is not None]
        found += [problem(f"{name}.{field}", "There is no such field") for field in set_by_user]
        if is_url(given) and (why := url_refusal(given.source, allowed)):
            found.append(problem(name, f"This address may not be fetched: {why}"))
    return found


def is_url(given: Input) -> bool:
    """Return whether an input comes from the web."""
    return given.source.partition(":")[0].lower() in ("http", "https")


def artifact_id(given: Input) -> str | None:
    """Return the artifact that an input names."""
    return given.source.removeprefix(_ARTIFACT) if given.source.startswith(_ARTIFACT) else None


def dataset_of(given: Input) -> tuple[str, int | None] | None:
    """Return the dataset that an input names, and its version (None: the newest)."""
    if not given.source.startswith(_DATASET):
        return None
    return parse_ref(given.source.removeprefix(_DATASET))


def parse_ref(text: str) -> tuple[str, int | None]:
    """Return the name and the version of ``name[@version]``; a version that is no number is one that nothing has."""
    name, _, version = text.partition("@")
    if not _:
        return name, None
    return name, int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else 0


def of_artifact(given: Input, artifact: Artifact) -> Input:
    """Return an input as it is recorded: with what the artifact is."""
    found = {"artifact": artifact.id, "sha256": artifact.blob.sha256, "size": artifact.blob.size}
    return given.model_copy(update=found)


def of_dataset(given: Input, dataset: Dataset) -> Input:
    """Return an input as it is recorded: pinned to the version that the dataset has been asked for."""
    version = dataset.versions[0]
    found = {"artifact": version.artifact_id, "sha256": version.blob.sha256, "size": version.blob.size}
    return given.model_copy(update={"source": f"{_DATASET}{dataset.name}@{version.version}", **found})


def may_use(principal: Principal, dataset: Dataset) -> bool:
    """Return whether *principal* may see a dataset and have jobs read it."""
    return dataset.visibility == "shared" or may(principal, Action.SEE, dataset.owner_id)


def filled(spec: JobSpec, found: Mapping[str, Input]) -> JobSpec:
    """Return the spec with inputs as they are recorded."""
    return spec.model_copy(update={"inputs": {**spec.inputs, **found}}) if found else spec


def problem(name: str, message: str) -> FieldProblem:
    """Return what is wrong with the input *name*."""
    return FieldProblem(field=f"inputs.{name}", message=message)
