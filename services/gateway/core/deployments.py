"""Deployments: a service, seen as a trained model that answers requests."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from services.gateway.core import translate, views
from services.gateway.core.replica_failure import ReplicaFailure
from shared.job import Job
from shared.model import Frozen
from shared.spec import (
    ENV_MAX,
    MIB,
    Arg,
    ArtifactId,
    EnvName,
    EnvValue,
    ImageRef,
    Input,
    InputName,
    JobSpec,
    Label,
    ModelRef,
    Placement,
    Resources,
    Seconds,
    Service,
)
from shared.states import JobState

#: What our serving image looks for a model in, where it is no source: ``inputs/model``.
MODEL_INPUT = "model"
_HEALTH = "/healthz"
_PORT = 8080

Status = Literal["starting", "running", "updating", "idle", "stopped", "failed", "removed"]
#: Part of a URL and of the paths of the Open Inference Protocol.
DeploymentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Path = Annotated[str, StringConstraints(max_length=1024, pattern=r"^/[^\s\x00-\x1f\x7f]*$")]
_SMALL = Resources(cpus=1, memory=512 * MIB, disk=1024 * MIB)


class _Given(Frozen):
    """What a deployment may be told, when it is made and later. What is not given is as it was."""

    #: A zip: the model, as the serving image reads it, unpacked into the working directory.
    artifact: ArtifactId | None = None
    #: Or a model of the catalogue: ``name`` (its newest version) or ``name@version``.
    model: ModelRef | None = None
    #: Files beside it, as of a job: ``inputs/<name>``.
    inputs: Annotated[dict[InputName, Input | str], Field(max_length=64)] | None = None
    image: ImageRef | None = None
    command: Arg | Annotated[tuple[Arg, ...], Field(min_length=1, max_length=4096)] | None = None
    env: Annotated[dict[EnvName, EnvValue], Field(max_length=ENV_MAX)] | None = None
    params: dict[str, Any] | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    replicas: int | None = Field(default=None, ge=0, le=100)
    health: Path | None = None
    resources: Resources | None = None
    placement: Placement | None = None
    priority: int | None = Field(default=None, ge=0, le=100)
    labels: Annotated[tuple[Label, ...], Field(max_length=64)] | None = None
    start_timeout: Seconds | None = None
    concurrency: int | None = Field(default=None, ge=1, le=1000)
    request_timeout: Seconds | None = None
    #: Seconds without a request after which no replica is kept; the next request brings one back. None: never.
    idle: Seconds | None = None
    drain: Seconds | None = None


class NewDeployment(_Given):
    """A model that is to be served. Its name is one's own: no other deployment of yours that has not ended has it."""

    name: DeploymentName
    runtime: Literal["docker", "process"] = "docker"

    @model_validator(mode="after")
    def _has_what_is_served(self) -> Self:
        if not any((self.artifact, self.model, self.inputs, self.image, self.command)):
            wanted = "`artifact` (a zip with the model), `model` (of the catalogue), or an `image` of your own"
            raise ValueError(f"Say what is to be served: {wanted}")
        return self


class DeploymentChanges(_Given):
    """What is to be otherwise. Anything but `replicas` makes a new revision, which replicas change to one by one."""


class Filters(BaseModel):
    """Which deployments are asked for."""

    name: str | None = None
    owner: Literal["me"] | None = Field(default=None, description="`me`: one's own only, also to administrators.")
    ended: bool = Field(default=False, description="Those that were removed or have failed as well.")
    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = None


class ReplicaView(BaseModel):
    """A replica: a job of its own, with logs and metrics."""

    job_id: str
    revision: int
    node: str
    state: JobState
    since: datetime


class DeploymentAccepted(BaseModel):
    """A deployment that was taken in, changed, or asked to end."""

    deployment_id: str
    name: str
    status: Status


class DeploymentDocument(BaseModel):
    """A deployment and how it is. Its id is that of its job: events are there too."""

    deployment_id: str
    name: str
    status: Status
    owner: str
    state: JobState  # of the job
    artifact: str | None
    model: str | None
    image: str | None
    revision: int
    replicas: int  # that are to be
    running: int
    members: list[ReplicaView]
    service: Service
    resources: Resources
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None
    ended_at: datetime | None
    pending: list[views.PendingView]  # why a replica waits
    error: views.FailureView | None
    remarks: list[str]
    last_failure: ReplicaFailure | None = None  # the last replica that has failed, and why; not in lists
    predict_url: str
    inference_url: str  # of the Open Inference Protocol


class DeploymentPage(BaseModel):
    """Some deployments, newest first; `cursor` asks for the next."""

    deployments: list[DeploymentDocument]
    cursor: str | None


def spec_of(wish: NewDeployment, image: str | None) -> JobSpec:
    """Return the job of a new deployment.

    Args:
        wish: what is asked for.
        image: what serves where none is named; None: the model of the catalogue brings its own.

    Raises:
        pydantic.ValidationError: the job would not be valid.
    """
    is_ours = wish.image is None and wish.runtime == "docker" and image is not None
    base: dict[str, Any] = {
        "name": wish.name,
        "kind": "service",
        "view": "deployment",
        "runtime": wish.runtime,
        "image": image if is_ours else wish.image,
        "resources": _SMALL.model_dump(),
        "service": {"port": _PORT, "health": _HEALTH if is_ours else None},
    }
    return JobSpec.model_validate(_with(base, wish))


def changed(spec: JobSpec, changes: DeploymentChanges, image: str | None, *, ours: str) -> JobSpec:
    """Return a deployment's job with *changes*.

    Args:
        spec: as it is.
        changes: what is to be otherwise.
        image: what serves the model where no image is named; None: it brings its own.
        ours: our serving image, of which is known how it says that it is well.

    Raises:
        pydantic.ValidationError: the job would not be valid.
    """
    before = spec.model_dump(exclude_defaults=True)
    if changes.artifact is not None or changes.model is not None:  # one takes the place of the other
        inputs = {name: value for name, value in spec.inputs.items() if name != MODEL_INPUT}
        before |= {"model": None, "source": None, "inputs": inputs}
        if changes.model is not None or spec.model is not None:
            before["image"] = image
    elif spec.model is not None and image is None:  # its image comes from the catalogue again
        before["image"] = None
    is_ours = (changes.image or before.get("image")) == ours
    if is_ours != (spec.image == ours):  # another program says otherwise that it is well
        before["service"]["health"] = _HEALTH if is_ours else None
    return JobSpec.model_validate(_with(before, changes))


def only_replicas(changes: DeploymentChanges) -> bool:
    """Return whether nothing but the number of replicas is to be otherwise."""
    return changes.model_fields_set == {"replicas"} and changes.replicas is not None


def status_of(job: Job) -> Status:
    """Return the status word of a deployment."""
    if job.is_terminal:
        return "removed" if job.state is JobState.CANCELLED else "failed"
    if _wanted(job) == 0:
        return "stopped" if job.spec.service is None or job.spec.service.idle is None else "idle"
    running = [one for one in job.members if one.state is JobState.RUNNING]
    if not running:
        return "starting"
    return "updating" if any(one.revision != job.revision for one in job.members) else "running"


def document(job: Job, link: Callable[[str], str]) -> DeploymentDocument:
    """Return a deployment; *link* makes a path of ours a URL."""
    service = job.spec.service
    assert service is not None  # noqa: S101 - a deployment is a service
    return DeploymentDocument(
        deployment_id=job.id,
        name=job.spec.name,
        status=status_of(job),
        owner=job.owner.name,
        state=job.state,
        artifact=job.spec.source,
        model=job.spec.model,
        image=job.spec.image,
        revision=job.revision,
        replicas=_wanted(job),
        running=sum(one.state is JobState.RUNNING for one in job.members),
        members=[
            ReplicaView(job_id=one.job_id, revision=one.revision, node=one.node, state=one.state, since=one.placed_at)
            for one in job.members
        ],
        service=service,
        resources=job.spec.resources,
        created_at=job.created_at,
        updated_at=job.updated_at,
        used_at=job.used_at,
        ended_at=job.ended_at,
        pending=translate.pending(job.pending),
        error=translate.failure(job.error),
        remarks=list(job.remarks),
        predict_url=link(f"/v1/deployments/{job.id}/predict"),
        inference_url=link(f"/v2/models/{job.spec.name}/infer"),
    )


def name_for(wish: NewDeployment) -> str:
    """Return a name that the same model, image and size always have: so it is found again."""
    made_of = wish.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    return f"predict-{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]}"


def _wanted(job: Job) -> int:
    if job.replicas is not None:
        return job.replicas
    return job.spec.service.replicas if job.spec.service else 0


def _with(base: dict[str, Any], wish: _Given) -> dict[str, Any]:
    """Return a spec as JSON with what is given in *wish* in its place."""
    given = wish.model_dump(exclude_unset=True)
    spec = dict(base)
    for field in ("image", "model", "command", "env", "inputs", "resources", "placement", "priority", "labels"):
        if given.get(field) is not None:
            spec[field] = given[field]
    if given.get("artifact") is not None:
        spec["source"] = given["artifact"]
    if given.get("params") is not None:
        spec["params"] = given["params"]
    service = {name: given[name] for name in Service.model_fields if name in given}
    service = {name: value for name, value in service.items() if value is not None or name in ("health", "idle")}
    return spec | {"service": {**spec["service"], **service}}
