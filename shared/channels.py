"""The table: every subject, what travels on it, who sends, who reads, and which stream keeps it.

AsyncAPI, docs/subjects.md and the broker's accounts and permissions are generated from here; nothing else names a subject.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from shared import catalogue, fleet
from shared import events as e
from shared.ids import TOKEN
from shared.model import Empty, Message
from shared.requests import accounts, administration, artifacts, blobs, datasets, explain, jobs, nodes, outputs, serving

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)
_PARAM = re.compile(r"\{(\w+)\}")


class Service(StrEnum):
    """Who may hold a credential."""

    GATEWAY = "gateway"
    SCHEDULER = "scheduler"
    NODE_AGENT = "node_agent"
    STORAGE = "storage"
    NOTIFIER = "notifier"
    WATCHER = "watcher"  # another system that listens to the feed
    BROKER = "broker"  # NATS itself: republished messages


class Account(StrEnum):
    """The three walls inside the broker. A forged reply subject cannot cross them."""

    CTRL = "CTRL"  # JetStream, scheduler, storage, notifier
    EDGE = "EDGE"  # agents
    API = "API"  # gateway and watchers


ACCOUNT_OF: Mapping[Service, Account] = {
    Service.GATEWAY: Account.API,
    Service.WATCHER: Account.API,
    Service.SCHEDULER: Account.CTRL,
    Service.STORAGE: Account.CTRL,
    Service.NOTIFIER: Account.CTRL,
    Service.NODE_AGENT: Account.EDGE,
}


@dataclass(frozen=True, slots=True)
class Channel(Generic[M, R]):
    """One kind of subject.

    Attributes:
        name: the channel's name in documents.
        template: the subject; ``{param}`` is one token.
        message: the model of the body; of an event's `data` where `event_type` is set.
        sent_by, read_by: services.
        summary: one sentence for the documents.
        reply: the model of the answer, for requests. `Empty` where the answer only says that it was done.
        stream: the stream that keeps it; None is core NATS, which may lose it.
        event_type: CloudEvents type with the same params, e.g. ``io.wherry.job.{event}.v1``; None: a plain body.
        raw_body, raw_reply: the body or answer is bytes with headers instead of JSON (`message` then describes headers).
    """

    name: str
    template: str
    message: type[M]
    sent_by: frozenset[Service]
    read_by: frozenset[Service]
    summary: str
    reply: type[R] | None = None
    stream: str | None = None
    event_type: str | None = None
    raw_body: bool = False
    raw_reply: bool = False

    @property
    def params(self) -> tuple[str, ...]:
        """Return the names of the template's parameters, in order."""
        return tuple(_PARAM.findall(self.template))

    def subject(self, **params: str) -> str:
        """Return the subject for *params*.

        Raises:
            ValueError: a parameter is missing, unknown, or not one plain token: no user text becomes a wildcard.
        """
        if set(params) != set(self.params):
            raise ValueError(f"{self.name} takes {self.params}, not {tuple(params)}")
        for key, value in params.items():
            if not TOKEN.match(value):
                raise ValueError(f"{key}={value!r} cannot be part of a subject")
        return self.template.format(**params)

    def wildcard(self, **params: str) -> str:
        """Return the subject with every parameter not given as ``*``."""
        filled = dict.fromkeys(self.params, "*") | params
        return self.template.format(**filled)

    def parse(self, subject: str) -> dict[str, str] | None:
        """Return the parameters in *subject*, or None if it is not of this channel."""
        pattern, tokens = self.template.split("."), subject.split(".")
        if len(pattern) != len(tokens):
            return None
        found: dict[str, str] = {}
        for part, token in zip(pattern, tokens, strict=True):
            if part.startswith("{"):
                found[part[1:-1]] = token
            elif part != token:
                return None
        return found


def _by(*services: Service) -> frozenset[Service]:
    return frozenset(services)


_G, _S, _A, _T, _N, _W, _B = (
    Service.GATEWAY,
    Service.SCHEDULER,
    Service.NODE_AGENT,
    Service.STORAGE,
    Service.NOTIFIER,
    Service.WATCHER,
    Service.BROKER,
)

JOBS, FLEET, LOGS, NOTIFY, AUDIT, DLQ, SNAPSHOT, LEADER = (
    "WHERRY_JOBS",
    "WHERRY_FLEET",
    "WHERRY_LOGS",
    "WHERRY_NOTIFY",
    "WHERRY_AUDIT",
    "WHERRY_DLQ",
    "WHERRY_SNAPSHOT",
    "WHERRY_LEADER",
)

# --- the log of jobs ---------------------------------------------------------------------------------------------
JOB_CREATED = Channel(
    "jobCreated",
    "wherry.job.{owner}.{job_id}.created",
    e.JobChanged,
    _by(_G),
    _by(_S, _T),
    "A job was handed in. Published once, expecting that the job has no event yet.",
    stream=JOBS,
    event_type="io.wherry.job.created.v1",
)
JOB_CHANGED = Channel(
    "jobChanged",
    "wherry.job.{owner}.{job_id}.{event}",
    e.JobChanged,
    _by(_S),
    _by(_S, _T, _N),
    "A job moved; `event` is pending, placed, starting, running, finishing, cancelling, requeued, items, updated, remarked or one of the four ends.",
    stream=JOBS,
    event_type="io.wherry.job.{event}.v1",
)
JOB_FEED = Channel(
    "jobFeed",
    "wherry.feed.{owner}.{job_id}.{event}",
    e.JobChanged,
    _by(_B),
    _by(_G, _W),
    "Every job event that the stream has accepted, republished. `Nats-Sequence` is its place in the log.",
    event_type="io.wherry.job.{event}.v1",
)
ATTEMPT_STARTING = Channel(
    "attemptStarting",
    "wherry.attempt.{node_id}.{job_id}.starting",
    e.AttemptStarting,
    _by(_A),
    _by(_S),
    "The node works on the attempt.",
    stream=JOBS,
    event_type="io.wherry.attempt.starting.v1",
)
ATTEMPT_RUNNING = Channel(
    "attemptRunning",
    "wherry.attempt.{node_id}.{job_id}.running",
    e.AttemptRunning,
    _by(_A),
    _by(_S),
    "The user's program runs.",
    stream=JOBS,
    event_type="io.wherry.attempt.running.v1",
)
ATTEMPT_FINISHING = Channel(
    "attemptFinishing",
    "wherry.attempt.{node_id}.{job_id}.finishing",
    e.AttemptFinishing,
    _by(_A),
    _by(_S),
    "The program ended; its outputs are being stored.",
    stream=JOBS,
    event_type="io.wherry.attempt.finishing.v1",
)
ATTEMPT_FINISHED = Channel(
    "attemptFinished",
    "wherry.attempt.{node_id}.{job_id}.finished",
    e.AttemptFinished,
    _by(_A),
    _by(_S),
    "The node's last word about the attempt.",
    stream=JOBS,
    event_type="io.wherry.attempt.finished.v1",
)
ATTEMPT_ITEMS = Channel(
    "attemptItems",
    "wherry.attempt.{node_id}.{job_id}.items",
    e.AttemptItems,
    _by(_A),
    _by(_S),
    "What has become of items that a worker had; the job is the worker.",
    stream=JOBS,
    event_type="io.wherry.attempt.items.v1",
)
ITEMS_ADDED = Channel(
    "itemsAdded",
    "wherry.request.{owner}.{job_id}.items",
    e.ItemsAdded,
    _by(_G),
    _by(_S),
    "Items for a map job, or the word that no more will come.",
    stream=JOBS,
    event_type="io.wherry.request.items.v1",
)
ITEMS_RETRIED = Channel(
    "itemsRetried",
    "wherry.request.{owner}.{job_id}.retry",
    e.ItemsRetried,
    _by(_G),
    _by(_S),
    "Failed items of a map job are to be tried again.",
    stream=JOBS,
    event_type="io.wherry.request.retry.v1",
)
SERVICE_UPDATED = Channel(
    "serviceUpdated",
    "wherry.request.{owner}.{job_id}.update",
    e.ServiceUpdated,
    _by(_G),
    _by(_S),
    "A service is to have other replicas, or another spec.",
    stream=JOBS,
    event_type="io.wherry.request.update.v1",
)
SERVICE_ASKED = Channel(
    "serviceAsked",
    "wherry.request.{owner}.{job_id}.asked",
    e.ServiceAsked,
    _by(_G),
    _by(_S),
    "A service without replicas is asked: it is to have them again.",
    stream=JOBS,
    event_type="io.wherry.request.asked.v1",
)
CANCEL_REQUESTED = Channel(
    "cancelRequested",
    "wherry.request.{owner}.{job_id}.cancel",
    e.CancelRequested,
    _by(_G),
    _by(_S),
    "Somebody with the right asks for the job to stop.",
    stream=JOBS,
    event_type="io.wherry.request.cancel.v1",
)

# --- nodes ---------------------------------------------------------------------------------------------------------
HEARTBEAT = Channel(
    "heartbeat",
    "wherry.node.{node_id}.heartbeat",
    fleet.Heartbeat,
    _by(_A),
    _by(_S, _T),
    "What a node has and does. The leading scheduler answers with what should be there; storage listens.",
    reply=fleet.DesiredState,
)
WAKE = Channel(
    "wake",
    "wherry.node.{node_id}.wake",
    fleet.Wake,
    _by(_S),
    _by(_A),
    "Something changed: heartbeat now.",
)

SNAPSHOT_WANTED = Channel(
    "snapshotWanted",
    "wherry.node.{node_id}.snapshot",
    outputs.SnapshotWanted,
    _by(_T),
    _by(_A),
    "Somebody wants to see what a running attempt has left so far: store it, and say so.",
)
NODE_WISH = Channel(
    "nodeWish",
    "wherry.fleet.request.{node_id}.{verb}",
    fleet.NodeWish,
    _by(_G),
    _by(_S),
    "An admin wants a node drained, undrained, cordoned, forgotten, or to prefetch something; `verb` says which.",
    stream=FLEET,
    event_type="io.wherry.fleet.{verb}.v1",
)
NODE_CHANGED = Channel(
    "nodeChanged",
    "wherry.fleet.node.{node_id}.changed",
    fleet.NodeChanged,
    _by(_S),
    _by(_S, _T),
    "A node joined, fell silent, came back, left, or is to get no more work: the whole record after it.",
    stream=FLEET,
    event_type="io.wherry.fleet.node.v1",
)
QUOTA_SET = Channel(
    "quotaSet",
    "wherry.fleet.owner.{owner}.quota",
    fleet.QuotaSet,
    _by(_G),
    _by(_S, _T),
    "What one owner's jobs may hold at a time.",
    stream=FLEET,
    event_type="io.wherry.fleet.quota.v1",
)

# --- questions to the leading scheduler ----------------------------------------------------------------------------
EXPLAIN = Channel(
    "explain",
    "wherry.scheduler.explain",
    explain.ExplainQuery,
    _by(_G),
    _by(_S),
    "Why a job waits, or why it went where it went.",
    reply=explain.Explanation,
)
PLAN = Channel(
    "plan",
    "wherry.scheduler.plan",
    explain.PlanQuery,
    _by(_G),
    _by(_S),
    "The same for a job that is not handed in.",
    reply=explain.Explanation,
)

# --- dead letters --------------------------------------------------------------------------------------------------
DEAD_LETTER = Channel(
    "deadLetter",
    "wherry.dlq.{reader}",
    e.DeadLetter,
    _by(_S, _T, _N),
    _by(_T),
    "A message that a reader could not take in, whole, with the reason.",
    stream=DLQ,
    event_type="io.wherry.deadletter.v1",
)
REPLAY = Channel(
    "replay",
    "wherry.replay.{reader}",
    e.DeadLetter,
    _by(_T),
    _by(_S, _T, _N),
    "An admin wants the reader to try a dead letter again; it comes back to the stream if it fails again. "
    "Answered once it is in the reader's hands.",
    reply=Empty,
)

# --- output while it runs ------------------------------------------------------------------------------------------
OUTPUT = Channel(
    "output",
    "wherry.log.{node_id}.{job_id}.{attempt}",
    e.OutputBatch,
    _by(_A),
    _by(_T),
    "Lines, progress and metrics that an attempt printed.",
    stream=LOGS,
)
OUTPUT_FEED = Channel(
    "outputFeed",
    "wherry.tail.{node_id}.{job_id}.{attempt}",
    e.OutputBatch,
    _by(_B),
    _by(_G),
    "The same, republished for whoever follows.",
)

# --- notifications -------------------------------------------------------------------------------------------------
DELIVERY_REQUESTED = Channel(
    "deliveryRequested",
    "wherry.delivery.{owner}.{job_id}.requested",
    e.DeliveryRequested,
    _by(_N),
    _by(_N, _T),
    "A notification that must reach its target.",
    stream=NOTIFY,
    event_type="io.wherry.delivery.requested.v1",
)
TELL = Channel(
    "tell",
    "wherry.notifier.tell",
    e.DeliveryRequested,
    _by(_T),
    _by(_N),
    "Somebody is to be told of something that is no job's end. Answered once that is sure to be tried.",
    reply=Empty,
)
DELIVERY_TRIED = Channel(
    "deliveryTried",
    "wherry.delivery.{owner}.{job_id}.tried",
    e.DeliveryTried,
    _by(_N),
    _by(_T),
    "How one try of a notification ended.",
    stream=NOTIFY,
    event_type="io.wherry.delivery.tried.v1",
)

# --- people --------------------------------------------------------------------------------------------------------
TOKEN_REVOKED = Channel(
    "tokenRevoked",
    "wherry.auth.revoked",
    e.TokenRevoked,
    _by(_T),
    _by(_G),
    "Forget this token now.",
)


def _ask(name: str, verb: str, message: type[M], reply: type[R], summary: str, *senders: Service) -> Channel[M, R]:
    return Channel(name, f"wherry.storage.{verb}", message, _by(*(senders or (_G,))), _by(_T), summary, reply=reply)


LOGIN = _ask("login", "auth.login", accounts.Login, accounts.Session, "Name and password for a session token.")
LOGOUT = _ask("logout", "auth.logout", accounts.TokenQuery, Empty, "The token is dead from then on.")
VERIFY = _ask("verify", "auth.verify", accounts.TokenQuery, accounts.Principal, "Whose token is this?")
USER_CREATE = _ask("userCreate", "users.create", accounts.UserCreate, accounts.User, "Add a user.")
USER_LIST = _ask("userList", "users.list", accounts.UserListQuery, accounts.Users, "Users, by name.")
USER_GET = _ask("userGet", "users.get", accounts.UserName, accounts.User, "One user.")
USER_UPDATE = _ask("userUpdate", "users.update", accounts.UserUpdate, accounts.User, "Change a user.")
USER_DELETE = _ask("userDelete", "users.delete", accounts.UserName, Empty, "Remove a user.")
PASSWORD_CHANGE = _ask("passwordChange", "users.password", accounts.PasswordChange, Empty, "Change one's own password.")
SECRET_PUT = _ask("secretPut", "secrets.put", accounts.SecretPut, accounts.SecretRef, "Keep a webhook secret.")
SECRET_GET = _ask(
    "secretGet", "secrets.get", accounts.SecretRef, accounts.SecretValue, "The secret to sign with.", _G, _N
)
JOB_GET = _ask(
    "jobGet", "jobs.get", jobs.JobQuery, jobs.JobView, "One job, not older than the log at the time of asking."
)
JOB_LIST = _ask("jobList", "jobs.list", jobs.JobListQuery, jobs.JobList, "A page of jobs.")
ITEM_LIST = _ask("itemList", "items.list", jobs.ItemListQuery, jobs.ItemList, "A page of a map job's items.")
ITEM_GET = _ask("itemGet", "items.get", jobs.ItemQuery, jobs.ItemView, "One item, with its job.")
JOB_EVENTS = _ask("jobEvents", "jobs.events", jobs.EventQuery, jobs.EventPage, "Events after a sequence.")
JOB_LOGS = _ask("jobLogs", "jobs.logs", jobs.LogQuery, jobs.LogPage, "Lines of an attempt.")
JOB_METRICS = _ask(
    "jobMetrics", "jobs.metrics", jobs.MetricQuery, jobs.MetricPage, "What an attempt measured, as series."
)
JOB_OUTPUTS = _ask("jobOutputs", "jobs.outputs", outputs.OutputQuery, outputs.OutputPage, "What the job left.")
SNAPSHOT_ASK = _ask(
    "snapshotAsk", "snapshots.ask", outputs.SnapshotAsk, Empty, "See what a running job has left so far."
)
SNAPSHOT_GET = _ask(
    "snapshotGet", "snapshots.get", outputs.SnapshotQuery, outputs.SnapshotPage, "What was seen of a running job."
)
RETENTION_RUN = _ask(
    "retentionRun",
    "retention.run",
    administration.RetentionAsk,
    administration.RetentionRun,
    "Begin to remove what is kept no longer, or only list it.",
)
RETENTION_GET = _ask(
    "retentionGet", "retention.get", administration.RetentionQuery, administration.RetentionRun, "How far a run is."
)
JOB_DELIVERIES = _ask("jobDeliveries", "jobs.deliveries", jobs.JobQuery, jobs.DeliveryList, "The job's notifications.")
ARTIFACT_GET = _ask("artifactGet", "artifacts.get", artifacts.ArtifactQuery, artifacts.Artifact, "An artifact's facts.")
ARTIFACT_LIST = _ask(
    "artifactList", "artifacts.list", artifacts.ArtifactListQuery, artifacts.ArtifactList, "A page of artifacts."
)
ARTIFACT_DELETE = _ask(
    "artifactDelete",
    "artifacts.delete",
    artifacts.ArtifactQuery,
    Empty,
    "Remove an artifact, unless something needs it.",
)
WEB_FETCH = _ask(
    "webFetch",
    "web.fetch",
    artifacts.WebFetch,
    blobs.Committed,
    "A small file from the web, fetched now: an artifact of whoever asks. Only addresses that anybody may call.",
)
DATASET_PUT = _ask(
    "datasetPut", "datasets.put", datasets.DatasetPut, datasets.DatasetStored, "A new version of a dataset."
)
DATASET_GET = _ask("datasetGet", "datasets.get", datasets.DatasetQuery, datasets.Dataset, "One dataset.")
DATASET_LIST = _ask(
    "datasetList", "datasets.list", datasets.DatasetListQuery, datasets.DatasetList, "A page of datasets."
)
DATASET_UPDATE = _ask(
    "datasetUpdate", "datasets.update", datasets.DatasetUpdate, datasets.Dataset, "Describe or share a dataset."
)
DATASET_DELETE = _ask(
    "datasetDelete",
    "datasets.delete",
    datasets.DatasetRemove,
    Empty,
    "Remove a dataset or a version of it, unless a job that has not ended needs it.",
)
MODEL_PUT = _ask("modelPut", "models.put", catalogue.ModelPut, catalogue.ModelStored, "A new version of a model.")
MODEL_GET = _ask("modelGet", "models.get", catalogue.ModelQuery, catalogue.Model, "One model.")
MODEL_LIST = _ask("modelList", "models.list", catalogue.ModelListQuery, catalogue.ModelList, "A page of models.")
MODEL_UPDATE = _ask("modelUpdate", "models.update", catalogue.ModelUpdate, catalogue.Model, "Describe a model.")
MODEL_DELETE = _ask("modelDelete", "models.delete", catalogue.ModelRemove, Empty, "Remove a model or a version of it.")
MODEL_SYNC = _ask(
    "modelSync", "models.sync", catalogue.SyncAsk, catalogue.SyncRun, "Begin to register what a registry has."
)
MODEL_SYNC_GET = _ask("modelSyncGet", "models.synced", catalogue.SyncQuery, catalogue.SyncRun, "How far that is.")
MODEL_EVALUATE = _ask(
    "modelEvaluate", "models.evaluate", catalogue.EvaluationPut, catalogue.Evaluation, "A version was measured."
)
MODEL_EVALUATIONS = _ask(
    "modelEvaluations",
    "models.evaluations",
    catalogue.EvaluationQuery,
    catalogue.EvaluationList,
    "What a model was measured to be worth.",
)
FINE_TUNE_ASK = _ask(
    "fineTuneAsk", "models.finetune", catalogue.FineTunePut, catalogue.FineTune, "A request to a model's experts."
)
FINE_TUNE_DECLINE = _ask(
    "fineTuneDecline", "models.decline", catalogue.FineTuneDecline, catalogue.FineTune, "The experts say no."
)
FINE_TUNE_LIST = _ask(
    "fineTuneList", "models.requests", catalogue.FineTuneQuery, catalogue.FineTuneList, "Requests to experts."
)
NODE_LIST = _ask("nodeList", "nodes.list", nodes.NodeListQuery, nodes.NodeList, "A page of nodes.")
NODE_GET = _ask("nodeGet", "nodes.get", nodes.NodeQuery, nodes.NodeView, "One node.")
NODE_SERIES = _ask(
    "nodeSeries", "nodes.series", nodes.NodeSeriesQuery, jobs.MetricPage, "What a node has used over time."
)
DEAD_LETTERS = _ask(
    "deadLetters",
    "deadletters.list",
    administration.DeadLetterQuery,
    administration.DeadLetterList,
    "What could not be read.",
)
DEAD_LETTER_REPLAY = _ask(
    "deadLetterReplay",
    "deadletters.replay",
    administration.DeadLetterId,
    administration.DeadLetterView,
    "Hand a dead letter to its reader again.",
)
QUOTA_GET = _ask(
    "quotaGet", "quotas.get", accounts.UserName, administration.QuotaView, "A user's quota and what it holds."
)
COUNTS = _ask("counts", "status.counts", Empty, administration.Counts, "Numbers for the status page.")
PING = _ask("ping", "ping", Empty, Empty, "Is storage there, and MongoDB behind it?")

# --- blobs: `kind` is gateway or node, `peer` the gateway's or node's id: the broker pins both ---------------------


def _blob(
    name: str,
    verb: str,
    message: type[M],
    reply: type[R],
    summary: str,
    *,
    raw_body: bool = False,
    raw_reply: bool = False,
) -> Channel[M, R]:
    return Channel(
        name,
        f"wherry.blob.{{kind}}.{{peer}}.{verb}",
        message,
        _by(_G, _A),
        _by(_T),
        summary,
        reply=reply,
        raw_body=raw_body,
        raw_reply=raw_reply,
    )


BLOB_OPEN = _blob("blobOpen", "open", blobs.UploadOpen, Empty, "Begin an upload.")
BLOB_CHUNK = _blob(
    "blobChunk",
    "chunk",
    Empty,
    Empty,
    "One chunk: raw bytes, headers Wherry-Upload (id) and Wherry-Chunk (number from 0). Answered once stored.",
    raw_body=True,
)
BLOB_COMMIT = _blob("blobCommit", "commit", blobs.UploadCommit, blobs.Committed, "Check and keep an upload.")
BLOB_ABORT = _blob("blobAbort", "abort", blobs.UploadAbort, Empty, "Drop an upload.")
BLOB_PUT = _blob(
    "blobPut",
    "put",
    Empty,
    blobs.Committed,
    "A whole blob of at most one chunk: raw bytes, headers Wherry-Scope (BlobScope as JSON), Wherry-Sha256 and "
    "Wherry-Upload (an id: sent again with the same, it is the same artifact).",
    raw_body=True,
)
BLOB_READ = _blob(
    "blobRead",
    "read",
    blobs.BlobRead,
    Empty,
    "A range of a blob; the answer is raw bytes with header Wherry-Size, the blob's whole length.",
    raw_reply=True,
)
SNAPSHOT_TAKEN = _blob(
    "snapshotTaken",
    "snapshot",
    outputs.SnapshotTaken,
    Empty,
    "A node has stored what a running attempt has left so far, or could not.",
)
INPUT_LIST = _blob(
    "inputList",
    "input",
    blobs.InputQuery,
    outputs.OutputPage,
    "What another job left and a job of this node has as an input. The one entry of a file has the asked path.",
)

# --- uploads that resume (tus): any gateway may go on with what another began -------------------------------------
RESUMABLE_CREATE = _ask(
    "resumableCreate", "uploads.create", artifacts.ResumableCreate, artifacts.Resumable, "Begin an upload that resumes."
)
RESUMABLE_GET = _ask(
    "resumableGet", "uploads.get", artifacts.ResumableQuery, artifacts.Resumable, "How far an upload has come."
)
RESUMABLE_BEGIN = _ask(
    "resumableBegin", "uploads.begin", artifacts.ResumableBegin, artifacts.Resumable, "Go on writing an upload."
)
RESUMABLE_ADVANCE = _ask(
    "resumableAdvance",
    "uploads.advance",
    artifacts.ResumableAdvance,
    artifacts.Resumable,
    "So much of an upload is stored; all of it is checked and becomes an artifact.",
)
RESUMABLE_END = _ask("resumableEnd", "uploads.end", artifacts.ResumableQuery, Empty, "Drop an upload and its bytes.")
RESUMABLE_CHUNK = Channel(
    "resumableChunk",
    "wherry.storage.uploads.chunk",
    Empty,
    _by(_G),
    _by(_T),
    "One chunk: raw bytes, headers Wherry-Upload (id), Wherry-Epoch and Wherry-Chunk (number from 0). "
    "Answered once stored.",
    reply=Empty,
    raw_body=True,
)
RESUMABLE_TAIL = Channel(
    "resumableTail",
    "wherry.storage.uploads.tail",
    artifacts.ResumableBegin,
    _by(_G),
    _by(_T),
    "What is stored of the chunk that `offset` is within; the answer is raw bytes.",
    reply=Empty,
    raw_reply=True,
)

# --- requests to replicas of services: from a gateway to the node that has the replica, pinned by the broker ---------
SERVE = Channel(
    "serve",
    "wherry.serve.{node_id}.{job_id}",
    serving.ServeStep,
    _by(_G),
    _by(_A),
    "A step of a request to a replica (the job); raw bytes, header Wherry-Serve: ServeStep, in the answer ServeAnswer.",
    reply=serving.ServeAnswer,
    raw_body=True,
    raw_reply=True,
)

CHANNELS: tuple[Channel[Any, Any], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Channel)
)
