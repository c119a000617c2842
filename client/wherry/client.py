"""The blocking client."""

import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import httpx_sse

from client.wherry import catalogue, datasets, mapping, models, protocol, scripts, serving, trainings, transport
from client.wherry.effects import (
    Close,
    Effect,
    Emit,
    Now,
    Open,
    Pause,
    Read,
    Request,
    Response,
    Script,
    Send,
    Series,
    Stream,
    Work,
)
from client.wherry.errors import WherryError
from client.wherry.mapping import Image, Item, Workload
from client.wherry.serving import Deployment, Predictions
from client.wherry.source import ProgressCallback
from client.wherry.trainings import Training
from client.wherry.uploads import Note

T = TypeVar("T")


class Driver:
    """Carries out what scripts ask for, blocking."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        self.url = transport.base_url(url)
        self.token = token
        self._timeout_s = timeout_s
        self._http = httpx.Client(follow_redirects=False)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def run(self, script: Script[T]) -> T:
        """Return the script's result."""
        iterator = self.iterate(script)
        while True:
            try:
                next(iterator)
            except StopIteration as end:
                return end.value

    def iterate(self, script: Series[T] | Script[Any]) -> Iterator[T]:
        """Yield what the script emits."""
        streams: list[Stream] = []
        answer: Any = None
        error: WherryError | None = None
        try:
            while True:
                try:
                    effect = script.send(answer) if error is None else script.throw(error)
                except StopIteration as end:
                    return end.value
                answer = error = None
                if isinstance(effect, Emit):
                    yield effect.item
                    continue
                try:
                    answer = self._perform(effect, streams)
                except WherryError as problem:
                    error = problem
        finally:
            script.close()
            for stream in streams:
                stream.response.close()

    def _perform(self, effect: Effect, streams: list[Stream]) -> Any:
        match effect:
            case Send(request):
                return self._send(request)
            case Open(request, events):
                stream = self._open(request, events=events)
                streams.append(stream)
                return stream
            case Read(stream):
                return self._read(stream)
            case Close(stream):
                stream.response.close()
                streams.remove(stream)
            case Pause(seconds):
                time.sleep(seconds * random.uniform(0.5, 1))  # noqa: S311 - spreads clients, guards nothing
            case Now():
                return time.monotonic()
            case Work(function):
                return function()
        return None

    def _built(self, request: Request) -> httpx.Request:
        content = request.body.chunks() if request.body else None
        return self._http.build_request(**transport.arguments(self.url, self.token, request, content, self._timeout_s))

    def _send(self, request: Request) -> Response:
        try:
            answer = self._http.send(self._built(request))
        except httpx.HTTPError as error:
            raise transport.unreachable(self.url, error) from error
        return Response(answer.status_code, transport.lower(answer.headers), answer.content)

    def _open(self, request: Request, *, events: bool) -> Stream:
        try:
            answer = self._http.send(self._built(request), stream=True)
            stream = Stream(answer.status_code, transport.lower(answer.headers), response=answer)
            if transport.is_error(answer.status_code):
                stream.body = answer.read()
        except httpx.HTTPError as error:
            raise transport.unreachable(self.url, error) from error
        stream.chunks = httpx_sse.EventSource(answer).iter_sse() if events else answer.iter_bytes()
        return stream

    def _read(self, stream: Stream) -> Any:
        try:
            return next(stream.chunks, None)
        except httpx.HTTPError as error:
            raise transport.unreachable(self.url, error) from error


class Client:
    """A wherry server, from a program that waits for its answers.

    Every method raises `WherryError`. Those that are safe to repeat are repeated while the server cannot be reached
    or is busy, for at most `patience_s` seconds.

    Args:
        url: the server, e.g. ``http://127.0.0.1:8080``.
        token: a session token or API key; `login` gets one.
        patience_s: how long to go on trying, in seconds.
        timeout_s: how long one answer may take, in seconds.

    """

    def __init__(
        self, url: str, token: str | None = None, *, patience_s: float = 30.0, timeout_s: float = 60.0
    ) -> None:
        self._driver = Driver(url, token, timeout_s)
        self._patience_s = patience_s

    @property
    def url(self) -> str:
        """The server's address."""
        return self._driver.url

    @property
    def token(self) -> str | None:
        """The token that requests carry."""
        return self._driver.token

    def close(self) -> None:
        """Close all connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def login(self, user: str, password: str) -> models.Session:
        """Get a session token; later calls of this client carry it."""
        session = self._driver.run(scripts.ask(models.Session, protocol.login(user, password), self._patience_s))
        self._driver.token = session.token
        return session

    def logout(self) -> None:
        """Kill the token that this client carries, on every gateway."""
        self._driver.run(scripts.done(protocol.logout(), self._patience_s))
        self._driver.token = None

    def whoami(self) -> models.Identity:
        """Return whom the token belongs to."""
        return self._driver.run(scripts.ask(models.Identity, protocol.whoami(), self._patience_s))

    def submit(
        self,
        spec: Mapping[str, Any],
        source: Path | str | None = None,
        *,
        key: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> models.Submitted:
        """Hand in a job.

        Args:
            spec: the job spec; see the server's documentation for its fields.
            source: a folder (sent as a zip, without what `.wherryignore` names) or a zip; unpacked into the job's
                working directory.
            key: the idempotency key; one is made if none is given, so that a repeated try is the same job.
            progress: called with the bytes of the source sent so far and in all.

        """
        return self._driver.run(
            scripts.submit(
                spec,
                Path(source) if source is not None else None,
                key or secrets.token_urlsafe(24),
                progress,
                self._patience_s,
            )
        )

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        owner: str | None = None,
        name: str | None = None,
        kind: str | None = None,
        label: str | None = None,
        limit: int | None = None,
    ) -> Iterator[models.Job]:
        """Give jobs, newest first, at most `limit` of them; pages are fetched as they are needed."""
        return self._driver.iterate(
            scripts.jobs(
                {"state": ",".join(states) or None, "owner": owner, "name": name, "kind": kind, "label": label},
                limit,
                self._patience_s,
            )
        )

    def job(self, job_id: str) -> models.Job:
        """Return a job as it is now."""
        return self._driver.run(scripts.ask(models.Job, protocol.job(job_id), self._patience_s))

    def cancel(self, job_id: str) -> models.Submitted:
        """Ask for a job to stop. Safe to repeat; returns at once, see `wait`."""
        return self._driver.run(scripts.ask(models.Submitted, protocol.cancel(job_id), self._patience_s))

    def rerun(self, job_id: str, *, everything: bool = False, key: str | None = None) -> models.Submitted:
        """Hand in the same job again; returns the new one. Of a map job: what has no result, or *everything*."""
        request = mapping.rerun(job_id, key or secrets.token_urlsafe(24), everything=everything)
        return self._driver.run(scripts.ask(models.Submitted, request, self._patience_s))

    def wait(self, job_id: str, timeout_s: float | None = None) -> models.Job:
        """Return the job once it has ended.

        Raises:
            WaitTimeout: it had not ended after `timeout_s` seconds.

        """
        return self._driver.run(scripts.wait(job_id, timeout_s, self._patience_s))

    def logs(
        self,
        job_id: str,
        *,
        stream: str | None = None,
        tail: int | None = None,
        since: datetime | int | None = None,
        attempt: int | None = None,
    ) -> Iterator[str]:
        """Give the lines that a job has printed so far.

        Args:
            job_id: the job; of a gang, a map job or a service the lines of all members come with their names in front.
            stream: ``stdout`` or ``stderr``; else both.
            tail: only the last so many.
            since: nothing before this time, or this line's number.
            attempt: else the current one.

        """
        choice = protocol.LogChoice(stream, tail, since, attempt)
        return self._driver.iterate(scripts.logs(job_id, choice, self._patience_s))

    def follow(
        self,
        job_id: str,
        *,
        stream: str | None = None,
        tail: int | None = None,
        since: datetime | int | None = None,
        attempt: int | None = None,
    ) -> Iterator[models.JobOutput]:
        """Give lines, progress and metrics as the job prints them, from where `logs` would begin; ends with `End`."""
        choice = protocol.LogChoice(stream, tail, since, attempt)
        return self._driver.iterate(scripts.follow(job_id, choice, self._patience_s))

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return a job's CloudEvents so far, oldest first."""
        return self._driver.run(scripts.events(job_id, self._patience_s))

    def metrics(self, job_id: str) -> list[models.Metric]:
        """Return what a job has measured and (``system.…``) used, in order of time."""
        return list((self.series(job_id)).points)

    def series(
        self, job_id: str, *, names: Sequence[str] = (), attempt: int | None = None, points: int = 1000
    ) -> models.Metrics:
        """Return the series of a job's attempt (else of the current one), with at most so many points of each."""
        request = protocol.metrics(job_id, names, attempt, points)
        return self._driver.run(scripts.ask(models.Metrics, request, self._patience_s))

    def outputs(self, job_id: str) -> list[models.Entry]:
        """Return what a job left, in order of its paths."""
        return self._driver.run(scripts.entries(job_id, self._patience_s))

    def live_outputs(self, job_id: str, path: str | None = None) -> models.OutputPage:
        """Return what a running job has left so far, all of it or what is at `path`; what was left out is said."""
        return self._driver.run(scripts.listing(job_id, self._patience_s, live=True, path=path))

    def download(
        self,
        job_id: str,
        folder: Path | str,
        path: str | None = None,
        *,
        live: bool = False,
        progress: ProgressCallback | None = None,
    ) -> list[Path]:
        """Bring what a job left to a folder, bit for bit, with modes, times and empty folders; return the files.

        A download that broke goes on where it was. With `path` only that file, or all below that folder. With `live`
        it is what a running job has left so far.

        Raises:
            WherryError: nothing is at `path`; or a path leads out of the folder (code ``unsafe_path``).
            Corrupt: a file arrived damaged twice.

        """
        script = scripts.download(job_id, Path(folder), path, progress, self._patience_s, live=live)
        return self._driver.run(script)

    def put_artifact(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        progress: ProgressCallback | None = None,
        notes: Path | None = None,
    ) -> models.Artifact:
        """Store a file. A large one goes on where it was when a connection breaks or the server is started again.

        Args:
            path: the file; or a folder, of which a zip is made while it is sent.
            name: what it is called there; else the file's name.
            progress: called with the bytes sent so far and in all; after a break they may be fewer than before.
            notes: a folder in which unfinished uploads are noted, so that another run of yours goes on with them.

        Raises:
            SourceError: there is no such file.
            Corrupt: it was changed while it was sent.

        """
        path = Path(path)
        note = Note(notes, path, self.url) if notes and path.is_file() else None
        return self._driver.run(
            scripts.put_artifact(path, path.name if name is None else name, progress, self._patience_s, note)
        )

    def artifacts(self, *, limit: int = 50) -> list[models.ArtifactEntry]:
        """Return what you have stored, newest first."""
        return list(self._driver.iterate(scripts.artifacts(limit, self._patience_s)))

    def delete_artifact(self, artifact_id: str) -> None:
        """Remove an artifact; refused while a job that has not ended needs it."""
        self._driver.run(scripts.done(protocol.delete_artifact(artifact_id), self._patience_s))

    def get_artifact(self, artifact_id: str, path: Path | str, *, progress: ProgressCallback | None = None) -> str:
        """Bring an artifact to the file `path`; return the SHA-256 of what arrived, in hex."""
        return self._driver.run(scripts.get_artifact(artifact_id, Path(path), progress, self._patience_s))

    def datasets(
        self, *, search: str = "", owner: str | None = None, limit: int | None = None
    ) -> Iterator[models.Dataset]:
        """Give datasets that you may use, by name, each with its newest version.

        Args:
            search: words that all have to be in the name, the description or the labels.
            owner: a user's name, or ``me``.
            limit: at most so many.

        """
        return self._driver.iterate(datasets.listed({"search": search, "owner": owner}, limit, self._patience_s))

    def dataset(self, ref: str) -> models.Dataset:
        """Return a dataset as of ``name`` (its newest version) or ``name@version``, with all its versions."""
        return self._driver.run(scripts.ask(models.Dataset, datasets.show(ref), self._patience_s))

    def put_dataset(
        self,
        name: str,
        source: Path | str,
        *,
        description: str | None = None,
        labels: Sequence[str] | None = None,
        shared: bool | None = None,
        progress: ProgressCallback | None = None,
        notes: Path | None = None,
    ) -> models.Dataset:
        """Make a dataset or its next version; one that has the same bytes already is returned as it is.

        Args:
            name: its name; lower-case letters, digits, dots, dashes.
            source: a file, a folder (sent as a zip that is made on the way), or text ``artifact:<id>`` or
                ``job:<id>/<path>`` for what the server has.
            description: for people.
            labels: for people.
            shared: whether others may use it; at first they may not.
            progress: called with the bytes sent so far and in all.
            notes: a folder in which unfinished uploads of files are noted, as with `put_artifact`.

        """
        wish = datasets.Wish(name, description, labels, shared)
        return self._driver.run(datasets.put(wish, source, progress, self._patience_s, notes, self.url))

    def update_dataset(
        self,
        name: str,
        *,
        description: str | None = None,
        labels: Sequence[str] | None = None,
        shared: bool | None = None,
    ) -> models.Dataset:
        """Change how a dataset is described and who may use it; what is None stays."""
        request = datasets.update(name, description, labels, shared=shared)
        return self._driver.run(scripts.ask(models.Dataset, request, self._patience_s))

    def get_dataset(self, ref: str, path: Path | str, *, progress: ProgressCallback | None = None) -> models.Dataset:
        """Bring the bytes of a dataset to the file `path`; return which version they are.

        Raises:
            Corrupt: they arrived damaged.

        """
        return self._driver.run(datasets.get(ref, Path(path), progress, self._patience_s))

    def delete_dataset(self, ref: str) -> None:
        """Remove a dataset, or one version of it; refused while a job that has not ended needs it."""
        self._driver.run(scripts.done(datasets.delete(ref), self._patience_s))

    def items(self, job_id: str, *, states: Sequence[str] = (), limit: int | None = None) -> Iterator[Item]:
        """Give a map job's items in order (``waiting``, ``succeeded`` or ``failed`` ones alone, if asked so)."""
        return self._driver.iterate(mapping.items(job_id, states, limit, self._patience_s))

    def add_items(
        self, job_id: str, items: Sequence[str | Mapping[str, Any]], *, close: bool = False, key: str | None = None
    ) -> mapping.AddedItems:
        """Add items to an open map job: names, or objects with `name`, `params`, `artifact` or `path`."""
        request = mapping.add(job_id, items, key or secrets.token_urlsafe(24), close=close)
        return self._driver.run(scripts.ask(mapping.AddedItems, request, self._patience_s))

    def retry_items(self, job_id: str, items: Sequence[str] = ()) -> models.Submitted:
        """Have failed items of a map job tried again that has not ended: these, or all."""
        return self._driver.run(scripts.ask(models.Submitted, mapping.retry(job_id, items), self._patience_s))

    def close_job(self, job_id: str) -> models.Submitted:
        """Let a map job take no more items; it ends once it has done those that it has. Safe to repeat."""
        return self._driver.run(scripts.ask(models.Submitted, mapping.close(job_id), self._patience_s))

    def download_item(self, job_id: str, item_id: str, path: str, target: Path | str) -> Path:
        """Bring a file that an item has left to the file *target*."""
        script = mapping.get_item_file(job_id, item_id, path, Path(target), None, self._patience_s)
        return self._driver.run(script)

    def create_workload(
        self,
        filter_: str = "grayscale",
        *,
        name: str | None = None,
        key: str | None = None,
    ) -> Workload:
        """Make an image workload; `put_image` gives it images."""
        request = mapping.create(filter_, name, key or secrets.token_urlsafe(24))
        return self._driver.run(scripts.ask(Workload, request, self._patience_s))

    def workload(self, workload_id: str) -> Workload:
        """Return a workload: how far it is, which images are filtered, and which have failed."""
        return self._driver.run(scripts.ask(Workload, mapping.workload(workload_id), self._patience_s))

    def workloads(self, *, limit: int | None = None) -> Iterator[Workload]:
        """Give workloads, newest first, at most `limit` of them, without the ids of their images."""
        return self._driver.iterate(mapping.workloads(limit, self._patience_s))

    def end_workload(self, workload_id: str) -> Workload:
        """Let a workload take no more images and drop those that wait; what is filtered stays. Safe to repeat."""
        request = mapping.workload(workload_id, "DELETE")
        return self._driver.run(scripts.ask(Workload, request, self._patience_s))

    def rerun_workload(self, workload_id: str, *, key: str | None = None) -> Workload:
        """Have failed images filtered again: in the same workload, or in a new one where it has ended."""
        request = mapping.rerun_workload(workload_id, key or secrets.token_urlsafe(24))
        return self._driver.run(scripts.ask(Workload, request, self._patience_s))

    def put_image(
        self,
        workload_id: str,
        path: Path | str,
        *,
        type: str = "original",  # noqa: A002
        key: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """Give a workload an image to filter, or (``type="filtered"``) one that is a result already."""
        key = key or secrets.token_urlsafe(24)
        return self._driver.run(mapping.put_image(workload_id, Path(path), type, key, progress, self._patience_s))

    def get_image(self, image_id: str, target: Path | str, *, type: str | None = None) -> Path:  # noqa: A002
        """Bring an image to the file *target*: itself, or the `original` or `filtered` one of its pair."""
        return self._driver.run(mapping.get_image(image_id, Path(target), type, None, self._patience_s))

    def deploy(
        self,
        wish: Mapping[str, Any],
        path: Path | str | None = None,
        *,
        key: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Deployment:
        """Serve a model and return its id and status.

        Args:
            wish: `name`, and where needed `artifact` or `model`, `image`, `replicas`, `idle` and more; see the server's
                documentation.
            path: the model, a zip or a folder, which is sent first.
            key: the idempotency key; one is made if none is given, so that a repeated try is the same deployment.
            progress: called with the bytes sent so far and in all.

        """
        path, key = None if path is None else Path(path), key or secrets.token_urlsafe(24)
        return self._driver.run(serving.deploy(wish, path, key, progress, self._patience_s))

    def deployments(
        self, *, name: str | None = None, ended: bool = False, limit: int | None = None
    ) -> Iterator[Deployment]:
        """Give deployments, newest first, at most `limit` of them; pages are fetched as they are needed."""
        return self._driver.iterate(serving.listed(name, limit, self._patience_s, ended=ended))

    def deployment(self, deployment: str) -> Deployment:
        """Return a deployment by its id, or one of yours by its name: its status and its replicas."""
        return self._driver.run(scripts.ask(Deployment, serving.show(deployment), self._patience_s))

    def update_deployment(
        self, deployment: str, changes: Mapping[str, Any], path: Path | str | None = None
    ) -> Deployment:
        """Have a deployment otherwise (`replicas`, `image`, …), with *path* with another model; return it as it was."""
        path = None if path is None else Path(path)
        return self._driver.run(serving.update(deployment, changes, path, None, self._patience_s))

    def undeploy(self, deployment: str) -> Deployment:
        """Take a deployment away; return it as it was. Safe to repeat."""
        return self._driver.run(scripts.ask(Deployment, serving.show(deployment, "DELETE"), self._patience_s))

    def predict(
        self, deployment: str, order: Mapping[str, Any] | None = None, *, images: Sequence[Path | bytes] = ()
    ) -> Predictions:
        """Ask a model: with `instances` or `image_url` in *order*, or about *images* (files or their bytes)."""
        return self._driver.run(serving.predict(deployment, order or {}, images, self._patience_s))

    def train(self, wish: Mapping[str, Any], *, key: str | None = None) -> Training:
        """Hand in a training and return its id and status.

        Args:
            wish: `algorithm`, and where needed `preprocessing` and `helpers` (text of Python modules, or a `Path` to
                one), `dataset`, `params`, `distributed` and more; see the server's documentation.
            key: the idempotency key; one is made if none is given, so that a repeated try is the same training.

        """
        script = trainings.train(wish, key or secrets.token_urlsafe(24), self._patience_s)
        return self._driver.run(script)

    def trainings(
        self, *, statuses: Sequence[str] = (), name: str | None = None, limit: int | None = None
    ) -> Iterator[Training]:
        """Give trainings, newest first, at most `limit` of them; pages are fetched as they are needed."""
        return self._driver.iterate(trainings.listed(statuses, name, limit, self._patience_s))

    def training(self, training_id: str) -> Training:
        """Return a training: how far it is, what it measured, where its model is."""
        request = trainings.show(training_id)
        return self._driver.run(scripts.ask(Training, request, self._patience_s))

    def terminate_training(self, training_id: str) -> Training:
        """End a training and free its machines; return its status before. Safe to repeat."""
        request = trainings.show(training_id, "DELETE")
        return self._driver.run(scripts.ask(Training, request, self._patience_s))

    def download_training(
        self, training_id: str, folder: Path | str, *, progress: ProgressCallback | None = None
    ) -> list[Path]:
        """Bring what a training left to a folder; return the files. A download that broke goes on where it was."""
        script = trainings.download(training_id, Path(folder), progress, self._patience_s)
        return self._driver.run(script)

    def nodes(self) -> list[models.Node]:
        """Return every machine of the fleet, by name."""
        return list(self._driver.iterate(scripts.nodes(self._patience_s)))

    def node(self, node: str) -> models.Node:
        """Return a machine by its id or name."""
        return self._driver.run(scripts.ask(models.Node, protocol.node(node), self._patience_s))

    # --- the catalogue -------------------------------------------------------------------------------------------

    def find_models(self, *, search: str = "", limit: int | None = None) -> Iterator[catalogue.Model]:
        """Give models by name, each with its newest version; `search`: words in name or description."""
        return self._driver.iterate(catalogue.listed(search, limit, self._patience_s))

    def model(self, ref: str) -> catalogue.Model:
        """Return a model as of ``name`` (its newest version) or ``name@version``, with all its versions."""
        return self._driver.run(scripts.ask(*catalogue.Questions.show(ref), self._patience_s))

    def release_model(self, wish: Mapping[str, Any]) -> catalogue.Model:
        """Make a model or its next version: `name`, and `image`, `job_id` or `artifact_id` (experts)."""
        return self._driver.run(scripts.ask(*catalogue.Questions.release(wish), self._patience_s))

    def update_model(self, name: str, changes: Mapping[str, Any]) -> catalogue.Model:
        """Change `description`, `experts` or `quality` of a model (experts)."""
        return self._driver.run(scripts.ask(*catalogue.Questions.update(name, changes), self._patience_s))

    def delete_model(self, ref: str) -> None:
        """Remove a model with all that is about it, or one version (experts)."""
        self._driver.run(scripts.done(Request("DELETE", catalogue.path(ref)), self._patience_s))

    def run_model(self, ref: str, wish: Mapping[str, Any] | None = None, *, key: str | None = None) -> models.Submitted:
        """Run a model with `dataset`, `params` and more; return the job. Repeated under one key, it is one job."""
        question = catalogue.Questions.run(ref, wish or {}, key or secrets.token_urlsafe(24))
        return self._driver.run(scripts.ask(*question, self._patience_s))

    def sync_models(self, order: Mapping[str, Any]) -> catalogue.Sync:
        """Register what a `registry` (host:port) has, and wait for the end of it (experts)."""
        return self._driver.run(catalogue.sync(order, self._patience_s))

    def evaluate_model(self, name: str, wish: Mapping[str, Any]) -> catalogue.Evaluation:
        """Keep the `metrics` of a model's version; the answer says whether it has become worse (experts)."""
        return self._driver.run(scripts.ask(*catalogue.Questions.evaluate(name, wish), self._patience_s))

    def model_evaluations(self, name: str, *, version: int | None = None, limit: int = 100) -> catalogue.EvaluationPage:
        """Return what a model was measured to be worth, the newest first."""
        question = catalogue.Questions.evaluations(name, version, limit)
        return self._driver.run(scripts.ask(*question, self._patience_s))

    def ask_experts(self, name: str, wish: Mapping[str, Any]) -> catalogue.FineTune:
        """Ask a model's experts to make it better: `message`, and the data as `dataset` or `artifact_id`."""
        return self._driver.run(scripts.ask(*catalogue.Questions.ask_experts(name, wish), self._patience_s))

    def fine_tune_requests(self, name: str, *, state: str | None = None) -> list[catalogue.FineTune]:
        """Return the requests to a model's experts, the newest first."""
        page = self._driver.run(scripts.ask(*catalogue.Questions.requests(name, state), self._patience_s))
        return page.requests

    def decline_request(self, name: str, request_id: str, why: str) -> catalogue.FineTune:
        """Say no to a request, and why (experts)."""
        return self._driver.run(scripts.ask(*catalogue.Questions.decline(name, request_id, why), self._patience_s))

    def node_series(
        self, node: str, *, names: Sequence[str] = (), since: datetime | None = None, points: int = 1000
    ) -> models.Metrics:
        """Return what a machine used over time: ``cpu`` (percent), ``memory`` (bytes), ``running_jobs`` and more."""
        request = protocol.node_metrics(node, names, since, points)
        return self._driver.run(scripts.ask(models.Metrics, request, self._patience_s))

    def clusters(self) -> list[models.Cluster]:
        """Return every cluster with its machines and what they offer together."""
        return self._driver.run(
            scripts.ask_list(models.Cluster, "clusters", protocol.simple("/clusters"), self._patience_s)
        )

    def drain(self, node: str, *, deadline: float | str | None = None, reason: str = "") -> models.Node:
        """Ask for a machine to be emptied (administrators only); return it as it was.

        Args:
            node: its id or name.
            deadline: seconds, or text such as ``10m``, after which what still runs is moved; None: it may end.
            reason: for people.

        """
        order = {"deadline": deadline, "reason": reason}
        return self._driver.run(scripts.ask(models.Node, protocol.node_order(node, "drain", order), self._patience_s))

    def undrain(self, node: str, *, reason: str = "") -> models.Node:
        """Ask for a machine to get work again (administrators only); return it as it was."""
        order = {"reason": reason}
        return self._driver.run(scripts.ask(models.Node, protocol.node_order(node, "undrain", order), self._patience_s))

    def cordon(self, node: str, *, reason: str = "") -> models.Node:
        """Ask for a machine to get nothing new (administrators only); return it as it was."""
        order = {"reason": reason}
        return self._driver.run(scripts.ask(models.Node, protocol.node_order(node, "cordon", order), self._patience_s))

    def prefetch(self, node: str, what: str, *, unpack: bool = True) -> models.Node:
        """Ask a machine to bring an ``artifact:``, a ``dataset:`` or an image (administrators); return it as it was.

        A zip is unpacked unless *unpack* is false: as the jobs say whose input it will be.
        """
        order = {"what": what, "unpack": unpack}
        return self._driver.run(
            scripts.ask(models.Node, protocol.node_order(node, "prefetch", order), self._patience_s)
        )

    def forget_node(self, node: str, *, reason: str = "", force: bool = False) -> models.Node:
        """Ask for a machine that is lost or has left to be forgotten (administrators only); return it as it was.

        One on which an exclusive job may still run is forgotten only by *force*; its history says so.
        """
        return self._driver.run(
            scripts.ask(models.Node, protocol.forget_node(node, reason, force=force), self._patience_s)
        )

    def explain(self, job_id: str) -> models.Explanation:
        """Return why a job waits and what would let it start, why it is where it is, or how it ended."""
        return self._driver.run(scripts.ask(models.Explanation, protocol.job(job_id, "/explain"), self._patience_s))

    def plan(self, spec: Mapping[str, Any]) -> models.Explanation:
        """Return where a job of *spec* would go now, or why it would wait. Nothing is handed in."""
        return self._driver.run(scripts.ask(models.Explanation, protocol.plan(spec), self._patience_s))

    def quota(self, user: str = "me") -> models.Quota:
        """Return a user's quota, and how many jobs of theirs wait or run; others' for administrators."""
        return self._driver.run(scripts.ask(models.Quota, protocol.quota(user), self._patience_s))

    def set_quota(self, user: str, limits: Mapping[str, Any]) -> models.Quota:
        """Set a user's quota, all of it: what *limits* leave out is no limit (administrators only)."""
        return self._driver.run(scripts.ask(models.Quota, protocol.quota(user, "PUT", limits), self._patience_s))

    def remove_quota(self, user: str) -> None:
        """Take a user's quota away (administrators only)."""
        self._driver.run(scripts.done(protocol.quota(user, "DELETE"), self._patience_s))

    def retention(self, *, dry_run: bool = False, limit: int = 100) -> models.RetentionRun:
        """Remove what is kept no longer, or only return what that would be (administrators only)."""
        return self._driver.run(scripts.retention(limit, self._patience_s, dry_run=dry_run))

    def dead_letters(self, *, reader: str | None = None, limit: int = 50) -> list[models.DeadLetter]:
        """Return what services could not take in, newest first (administrators only)."""
        return list(self._driver.iterate(scripts.dead_letters(reader, limit, self._patience_s)))

    def replay(self, letter_id: str) -> models.DeadLetter:
        """Hand a dead letter to its reader again (administrators only)."""
        return self._driver.run(scripts.ask(models.DeadLetter, protocol.replay(letter_id), self._patience_s))

    def status(self) -> models.Status:
        """Return the system at a glance."""
        return self._driver.run(scripts.ask(models.Status, protocol.simple("/status"), self._patience_s))

    def users(self) -> list[models.User]:
        """Return all users (administrators only)."""
        return list(self._driver.iterate(scripts.users(self._patience_s)))

    def notifications(self, job_id: str) -> list[models.Notification]:
        """Return a job's notifications and how far each got."""
        return self._driver.run(
            scripts.ask_list(
                models.Notification, "notifications", protocol.job(job_id, "/notifications"), self._patience_s
            )
        )
