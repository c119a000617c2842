"""The catalogue: models that experts release, how good they are, and what is asked of their experts."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, FiniteFloat

from shared.model import Message

#: Versions of one model, evaluations of one model that an answer has, and bytes of a schema of parameters.
VERSIONS_MAX, EVALUATIONS_MAX, SCHEMA_BYTES_MAX = 10_000, 1000, 128 * 1024

Metrics = Annotated[dict[Annotated[str, Field(min_length=1, max_length=100)], FiniteFloat], Field(max_length=100)]


class Lineage(Message):
    """What a version was made of."""

    job_id: str
    source: str | None = None  # the code's artifact
    inputs: dict[str, str] = {}  # by name, as the job had them: dataset:digits@2
    params: dict[str, Any] = {}
    image: str = ""  # that made it, with its digest
    metrics: dict[str, float] = {}  # the last value of each series


class ModelVersion(Message):
    """A release of a model: an image, or a trained model's files (an artifact) for a serving image.

    `params`: the JSON Schema of its parameters; None: none is known, so any are passed on.
    """

    version: int
    image: str | None = None  # repo@sha256:…, where its registry could be read
    reference: str | None = None  # as it was named: repo:tag
    artifact_id: str | None = None
    description: str = ""
    params: dict[str, Any] | None = None
    size: int = 0  # bytes, compressed where it is an image
    lineage: Lineage | None = None
    remarks: tuple[str, ...] = ()  # what could not be read of it
    created_by: str = ""
    created_at: AwareDatetime


class Quality(Message):
    """What makes a model worse: its `metric` beyond `limit`, or off the best of earlier versions by `drop` or more."""

    metric: str
    better: Literal["higher", "lower"] = "higher"
    limit: float | None = None
    drop: float | None = None


class Model(Message):
    """A name for versions, newest first; `version_count` tells how many there are where not all are in the answer."""

    name: str
    owner_id: str
    owner_name: str
    description: str = ""
    experts: tuple[str, ...] = ()  # names of users who are told of requests; its owner where there are none
    quality: Quality | None = None
    created_at: AwareDatetime
    updated_at: AwareDatetime
    versions: tuple[ModelVersion, ...] = ()
    version_count: int = 0


class ModelPut(Message):
    """A new version, or the first. What is None of the model stays as it was.

    `reference`: an image; read from its registry, unless `read` is false. What is given beside it goes before what the
    image says of itself.
    """

    name: str
    owner_id: str
    owner_name: str
    anybodys: bool = False  # an administrator does it: the model may be somebody else's
    reference: str | None = None
    read: bool = True
    artifact_id: str | None = None
    description: str | None = None
    params: dict[str, Any] | None = None
    experts: tuple[str, ...] | None = None
    quality: Quality | None = None
    lineage: Lineage | None = None
    answers: str | None = None  # a fine-tune request that this version closes


class ModelStored(Message):
    """What became of it: a new version, or (with `is_new` false) the one that is the same."""

    model: Model
    version: int
    is_new: bool


class ModelQuery(Message):
    """A model by name. With `alone` the answer has no version but `version`, or the newest."""

    name: str
    version: int | None = None
    alone: bool = False


class ModelListQuery(Message):
    """Models by name, each with its newest version. All words of `text` have to be in one's name or description."""

    text: str = ""
    limit: int = 50  # 1 to 500
    cursor: str | None = None


class ModelList(Message):
    """A page of models; `cursor` asks for the next."""

    models: tuple[Model, ...] = ()
    cursor: str | None = None


class ModelUpdate(Message):
    """Changes to a model; what is None stays. `no_quality` takes its quality away."""

    name: str
    description: str | None = None
    experts: tuple[str, ...] | None = None
    quality: Quality | None = None
    no_quality: bool = False


class ModelRemove(Message):
    """A version of a model, or (None) all of it. Its last version is all of it."""

    name: str
    version: int | None = None


# --- reading a registry ------------------------------------------------------------------------------------------


class SyncAsk(Message):
    """Register the images of a registry (``host:port``), or of some of its repositories. Ids are the asker's."""

    run_id: str
    registry: str
    prefix: str = ""  # only repositories whose names begin with it
    tag: str = "latest"  # of each the image of this tag, or where there is none the tag that sorts last
    owner_id: str
    owner_name: str
    anybodys: bool = False


class SyncQuery(Message):
    """A run by its id. Waits a moment for its end."""

    run_id: str


class SyncNote(Message):
    """What became of one repository, in words."""

    repository: str
    text: str


class SyncRun(Message):
    """How far a run is. `failed` names repositories that could not be read, at most 200 of them."""

    run_id: str
    registry: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    repositories: int = 0
    added: tuple[str, ...] = ()  # name@version
    unchanged: int = 0
    failed: tuple[SyncNote, ...] = ()
    failures: int = 0
    error: str = ""  # why nothing, or no more, could be read


# --- quality -----------------------------------------------------------------------------------------------------


class Evaluation(Message):
    """What a version was measured to be worth. `worse` says why, where it is worse than the model should be."""

    id: str
    model: str
    version: int
    metrics: Metrics
    dataset: str | None = None  # name@version
    job_id: str | None = None
    note: str = ""
    worse: str | None = None
    by: str
    at: AwareDatetime


class EvaluationPut(Message):
    """A measurement of a version; None: of the newest. Putting the same id again changes nothing."""

    id: str
    model: str
    version: int | None = None
    metrics: Metrics
    dataset: str | None = None
    job_id: str | None = None
    note: str = ""
    by: str


class EvaluationQuery(Message):
    """Evaluations of a model, the newest first."""

    model: str
    version: int | None = None
    limit: int = 100
    cursor: str | None = None


class EvaluationList(Message):
    """A page of evaluations; `quality` is the model's, `worse` of the newest evaluation of its newest version."""

    evaluations: tuple[Evaluation, ...] = ()
    quality: Quality | None = None
    worse: str | None = None
    cursor: str | None = None


class FineTune(Message):
    """A request to a model's experts: make it better, with this data. Closed by the version that answers it."""

    id: str
    model: str
    version: int
    message: str
    dataset: str | None = None  # name@version
    artifact_id: str | None = None
    state: Literal["open", "answered", "declined"] = "open"
    by_id: str
    by: str
    at: AwareDatetime
    told: tuple[str, ...] = ()  # who was told, by name
    answer: str = ""  # name@version, or why it was declined
    closed_by: str = ""
    closed_at: AwareDatetime | None = None


class FineTunePut(Message):
    """A request to a model's experts about a version; None: about the newest. The id is the asker's."""

    id: str
    model: str
    version: int | None = None
    message: str
    dataset: str | None = None
    artifact_id: str | None = None
    by_id: str
    by: str


class FineTuneDecline(Message):
    """The experts say no, and why."""

    id: str
    model: str
    why: str
    by: str


class FineTuneQuery(Message):
    """Requests about a model (None: about any), the newest first."""

    model: str | None = None
    state: Literal["open", "answered", "declined"] | None = None
    limit: int = 100
    cursor: str | None = None


class FineTuneList(Message):
    """A page of requests; `cursor` asks for the next."""

    requests: tuple[FineTune, ...] = ()
    cursor: str | None = None
