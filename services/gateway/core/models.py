"""Models of the catalogue: what users send and see of them, and which job a run of one is."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from services.gateway.core import params as p
from services.gateway.core.inputs import parse_ref
from services.gateway.core.problems import invalid
from services.gateway.core.views_datasets import DatasetName
from shared.catalogue import Evaluation, EvaluationList, FineTune, Metrics, Model, ModelVersion, Quality, SyncRun
from shared.errors import FieldProblem
from shared.spec import (
    ArtifactId,
    EnvName,
    EnvValue,
    ImageRef,
    InputText,
    JobSpec,
    Label,
    Notify,
    Placement,
    Resources,
    Timeouts,
)

ModelName = DatasetName
Version = Annotated[int, Field(ge=1, lt=10**9)]
DatasetText = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}(@[1-9][0-9]{0,8})?$")]
_Text = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")]
_UserName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
_JobId = Annotated[str, StringConstraints(pattern=r"^j[a-z2-7]{25}$")]


class QualityForm(BaseModel):
    """What makes a model worse: its `metric` beyond `limit`, or off the best before by `drop` or more."""

    model_config = ConfigDict(extra="forbid")

    metric: Annotated[str, Field(min_length=1, max_length=100)]
    better: Literal["higher", "lower"] = "higher"
    limit: FiniteFloat | None = None
    drop: Annotated[FiniteFloat, Field(gt=0)] | None = None


class NewModel(BaseModel):
    """A model, or its next version: of an image, or of what a training left. What is left out stays as it was."""

    model_config = ConfigDict(extra="forbid")

    name: ModelName
    #: Read from its registry, with what its labels say; with `read` false (an image that only the nodes have) believed.
    image: ImageRef | None = None
    read: bool = True
    #: A trained model's files, for a serving image.
    artifact_id: ArtifactId | None = None
    #: The outputs of a job that has succeeded become the version's files, with what they were made of.
    job_id: _JobId | None = None
    description: _Text | None = None
    params: dict[str, Any] | None = None  # a JSON Schema
    experts: Annotated[list[_UserName], Field(max_length=50)] | None = None
    quality: QualityForm | None = None
    #: A request that this version answers.
    answers: str | None = None


class ModelChanges(BaseModel):
    """Changes to a model; what is left out stays. `quality` null takes that away."""

    model_config = ConfigDict(extra="forbid")

    description: _Text | None = None
    experts: Annotated[list[_UserName], Field(max_length=50)] | None = None
    quality: QualityForm | None = None


class SyncOrder(BaseModel):
    """A registry whose images become models."""

    model_config = ConfigDict(extra="forbid")

    registry: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    prefix: Annotated[str, StringConstraints(max_length=255)] = ""
    tag: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] = "latest"


class ModelRun(BaseModel):
    """A run of a model: its data, its parameters, and what else a job may say."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    #: What the program finds under ``/inputs/dataset``.
    dataset: DatasetText | None = None
    inputs: dict[str, InputText] = {}
    params: dict[str, Any] = {}
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    env: dict[EnvName, EnvValue] = {}
    resources: Resources = Resources()
    placement: Placement = Placement()
    timeouts: Timeouts = Timeouts()
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    notify: Annotated[list[Notify], Field(max_length=20)] = []
    labels: Annotated[list[Label], Field(max_length=60)] = []


class NewEvaluation(BaseModel):
    """What a version (without one: the newest) was measured to be worth."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    metrics: Annotated[Metrics, Field(min_length=1)]
    dataset: DatasetText | None = None
    job_id: _JobId | None = None
    note: Annotated[str, StringConstraints(max_length=2000)] = ""


class NewFineTune(BaseModel):
    """A request to a model's experts: to make a version (without one: the newest) better, with this data."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    message: Annotated[str, StringConstraints(min_length=1, max_length=5000, pattern=r"^[^\x00]*$")]
    dataset: DatasetText | None = None
    artifact_id: ArtifactId | None = None


class Decline(BaseModel):
    """Why the experts say no."""

    model_config = ConfigDict(extra="forbid")

    why: Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class LineageView(BaseModel):
    """What a version was made of."""

    job_id: str
    source: str | None
    inputs: dict[str, str]
    params: dict[str, Any]
    image: str
    metrics: dict[str, float]


class ModelVersionView(BaseModel):
    """A release of a model."""

    version: int
    image: str | None
    reference: str | None
    artifact_id: str | None
    description: str
    params: dict[str, Any] | None
    size: int
    lineage: LineageView | None
    remarks: list[str]
    created_by: str
    created_at: datetime


class ModelDocument(BaseModel):
    """A model as of one version. `versions` has all of them, newest first; in lists that one alone."""

    name: str
    version: int
    description: str
    image: str | None
    image_digest: str | None
    artifact_id: str | None
    params: dict[str, Any] | None
    owner: str
    experts: list[str]
    quality: QualityForm | None
    created_at: datetime
    updated_at: datetime
    version_count: int
    versions: list[ModelVersionView]


class ModelStoredDocument(ModelDocument):
    """The same, and whether there was no such version yet."""

    is_new: bool


class ModelPage(BaseModel):
    """Models by name; `cursor` asks for the next."""

    models: list[ModelDocument]
    cursor: str | None = None


class SyncNoteView(BaseModel):
    """What became of one repository."""

    repository: str
    text: str


class SyncDocument(BaseModel):
    """How far the reading of a registry is."""

    run_id: str
    registry: str
    started_at: datetime
    ended_at: datetime | None
    repositories: int
    added: list[str]
    unchanged: int
    failed: list[SyncNoteView]
    failures: int
    error: str


class EvaluationDocument(BaseModel):
    """What a version was measured to be worth; `worse` says why, where it is worse than the model should be."""

    id: str
    model: str
    version: int
    metrics: dict[str, float]
    dataset: str | None
    job_id: str | None
    note: str
    worse: str | None
    by: str
    at: datetime


class EvaluationPage(BaseModel):
    """Evaluations, the newest first; `worse` is that of the newest version's newest one."""

    evaluations: list[EvaluationDocument]
    quality: QualityForm | None
    worse: str | None
    cursor: str | None = None


class FineTuneDocument(BaseModel):
    """A request to a model's experts."""

    id: str
    model: str
    version: int
    message: str
    dataset: str | None
    artifact_id: str | None
    state: Literal["open", "answered", "declined"]
    by: str
    at: datetime
    told: list[str]
    answer: str
    closed_by: str
    closed_at: datetime | None


class FineTunePage(BaseModel):
    """Requests, the newest first; `cursor` asks for the next."""

    requests: list[FineTuneDocument]
    cursor: str | None = None


# --- from messages to what clients see ---------------------------------------------------------------------------


def document(model: Model, version: ModelVersion) -> ModelDocument:
    """Return a model as of *version*, one of those that it came with."""
    return ModelDocument(
        name=model.name, version=version.version, description=version.description or model.description,
        image=version.image, image_digest=(version.image or "").partition("@")[2] or None,
        artifact_id=version.artifact_id, params=version.params, owner=model.owner_name, experts=list(model.experts),
        quality=_quality(model.quality), created_at=model.created_at, updated_at=model.updated_at,
        version_count=model.version_count, versions=[_version(one) for one in model.versions],
    )  # fmt: skip


def checked_document(model: Model, version: ModelVersion) -> ModelDocument:
    """Return the same, and among the remarks of *version* whether its schema cannot be used.

    What an image's label says is kept as it is, and nobody has looked at it before. It takes milliseconds: lists go
    without.
    """
    shown = document(model, version)
    fault = None if version.params is None else p.schema_fault(version.params)
    if fault is not None:
        for one in shown.versions:
            if one.version == version.version:
                one.remarks.append(f"its parameters are described by no JSON Schema, so that it cannot be run: {fault}")
    return shown


def sync_document(run: SyncRun) -> SyncDocument:
    """Return how far a run is."""
    return SyncDocument.model_validate(run.model_dump())


def evaluation_document(one: Evaluation) -> EvaluationDocument:
    """Return an evaluation."""
    return EvaluationDocument.model_validate(one.model_dump())


def evaluation_page(page: EvaluationList) -> EvaluationPage:
    """Return a page of evaluations."""
    return EvaluationPage(
        evaluations=[evaluation_document(one) for one in page.evaluations], quality=_quality(page.quality),
        worse=page.worse, cursor=page.cursor,
    )  # fmt: skip


def fine_tune_document(one: FineTune) -> FineTuneDocument:
    """Return a request."""
    return FineTuneDocument.model_validate(one.model_dump(exclude={"by_id"}))


def _quality(quality: Quality | None) -> QualityForm | None:
    return None if quality is None else QualityForm.model_validate(quality.model_dump())


def _version(one: ModelVersion) -> ModelVersionView:
    return ModelVersionView.model_validate(one.model_dump())


# --- runs ----------------------------------------------------------------------------------------------------------


def run_spec(name: str, run: ModelRun) -> JobSpec:
    """Return the job that a run is.

    Raises:
        WherryError: ``invalid``.
    """
    if run.dataset is not None and "dataset" in run.inputs:
        raise invalid([FieldProblem(field="inputs.dataset", message="Give this or `dataset`, not both")])
    inputs = run.inputs | ({"dataset": f"dataset:{run.dataset}"} if run.dataset else {})
    given = run.model_dump(exclude={"version", "dataset", "inputs", "name"}, exclude_defaults=True)
    return JobSpec.model_validate(
        given | {"name": run.name or name, "model": _ref(name, run.version), "inputs": inputs}
    )


def named(spec: JobSpec) -> tuple[str, int | None] | None:
    """Return the model that a spec as sent names, and its version (None: the newest); None where it names none.

    Raises:
        WherryError: ``invalid``: an image too, or a process.
    """
    if spec.model is None:
        return None
    if spec.runtime == "process":
        raise invalid(
            [FieldProblem(field="model", message="Runtime process runs on the bare machine and takes no model")]
        )
    return parse_ref(spec.model)


def resolved(spec: JobSpec, model: Model, version: ModelVersion) -> JobSpec:
    """Return the spec with the image of *version*, and its parameters checked and filled.

    Raises:
        WherryError: ``invalid``: they do not fit, each fault by its path; or the version is no image and none is given.
    """
    image = spec.image if version.image is None else version.image
    if version.image is not None and spec.image is not None:
        raise invalid([FieldProblem(field="image", message="A model brings its image: give one of the two")])
    if image is None:
        why = f"{model.name}@{version.version} is files without an image: name an image, or deploy it"
        raise invalid([FieldProblem(field="model", message=why)])
    found: dict[str, Any] = {"image": image, "model": _ref(model.name, version.version)}
    if version.artifact_id is not None:
        found["inputs"] = spec.inputs | {"model": f"artifact:{version.artifact_id}"}
    filled = spec.params
    if version.params is not None:
        try:
            wrong = p.faults(version.params, spec.params)
        except ValueError as error:
            why = f"The schema of {model.name}@{version.version} cannot be used: {error}"
            raise invalid([FieldProblem(field="model", message=why[:500])]) from None
        if wrong:
            raise invalid(wrong)
        filled = p.with_defaults(version.params, spec.params)
    raw = spec.model_dump(exclude_defaults=True)
    return JobSpec.model_validate(raw | found | {"params": filled})


def _ref(name: str, version: int | None) -> str:
    return name if version is None else f"{name}@{version}"
