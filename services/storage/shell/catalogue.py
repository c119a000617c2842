"""The catalogue: releases of models, what they were measured to be worth, and requests to their experts."""

import asyncio

from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.model_store import ModelStore
from services.storage.adapters.mongo import PyMongoError
from services.storage.adapters.people_store import PeopleStore
from services.storage.adapters.registry import Registry
from services.storage.adapters.upload_store import UploadStore
from services.storage.core import catalogue as c
from services.storage.core import queries as q
from services.storage.core import registry as r
from services.storage.core.projections import Document, microseconds
from services.storage.shell.artifacts import refer
from shared import observe
from shared.bus import Bus
from shared.catalogue import (
    EVALUATIONS_MAX,
    VERSIONS_MAX,
    Evaluation,
    EvaluationList,
    EvaluationPut,
    EvaluationQuery,
    FineTune,
    FineTuneDecline,
    FineTuneList,
    FineTunePut,
    FineTuneQuery,
    Model,
    ModelList,
    ModelListQuery,
    ModelPut,
    ModelQuery,
    ModelRemove,
    ModelStored,
    ModelUpdate,
    ModelVersion,
)
from shared.channels import TELL
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.events import DeliveryRequested, Notice
from shared.ids import keyed_id
from shared.requests.accounts import User
from shared.requests.artifacts import Artifact

#: Seconds between two looks at who has still to be told, and for an answer; requests of one look.
_TELL_EVERY_S, _TELL_S, _TOLD_AT_ONCE = 5.0, 3.0, 100
#: Not a secret: the same request tells the same person once.
_ID_KEY = b"wherry fine-tune"

_log = observe.logger("storage.catalogue")


class Catalogue:
    """Answers about models. Who may see and change which is the gateway's to check; whose a name is, is seen here."""

    def __init__(
        self, bus: Bus, store: ModelStore, registry: Registry, uploads: UploadStore, gridfs: GridFs, people: PeopleStore
    ) -> None:
        self._bus = bus
        self._store = store
        self._registry = registry
        self._uploads = uploads
        self._gridfs = gridfs
        self._people = people

    # --- models ----------------------------------------------------------------------------------------------------

    async def get(self, query: ModelQuery) -> Model:
        """Return a model.

        Raises:
            NotFound: there is none of this name, or no such version.
        """
        document = await self._document(query.name)
        return await self._whole(document, query.version, alone=query.alone)

    async def list(self, query: ModelListQuery) -> ModelList:
        """Return a page of models, by name."""
        limit = q.bounded(query.limit, c.MODELS_MOST)
        found = await self._store.page(c.list_filter(query), limit + 1)
        newest = await self._store.newest([one["_id"] for one in found])
        shown = [
            c.model_of(one, [newest[one["_id"]][0]], newest[one["_id"]][1]) for one in found if one["_id"] in newest
        ]
        page = shown[: min(limit, q.fitting(len(one.to_bytes()) for one in shown))]
        more = len(found) > limit or len(shown) > len(page)
        last = page[-1].name if page else None
        return ModelList(models=tuple(page), cursor=q.cursor_text(last) if more and last else None)

    async def put(self, put: ModelPut, facts: r.ImageFacts | None = None) -> ModelStored:
        """Add a version, unless one is of the same image or files, described alike: then that one is the answer.

        *facts* are its image's, where they have been read already.

        Raises:
            WherryError: ``name_taken``; ``invalid``; ``not_found``: there is no such image, artifact or request;
                ``registry_failed``, ``registry_refused``: its registry cannot be read;
                ``too_many_versions``.
        """
        document = await self._store.get(put.name)
        _check_theirs(document, put)
        if put.answers is not None:
            await self._check_open(put.name, put.answers)
        version, sha256 = await self._release(put, facts)
        while True:
            _check_theirs(document, put)
            done = await self._put(document, put, version, sha256)
            if done is not None:
                break
            document = await self._store.get(put.name)  # somebody else was quicker
        if put.answers is not None:
            fields = c.closed("answered", f"{put.name}@{done.version}", put.owner_name, microseconds(utc_now()))
            await self._store.close_fine_tune(put.answers, fields)
        return done

    async def _put(
        self, document: Document | None, put: ModelPut, version: ModelVersion, sha256: str | None
    ) -> ModelStored | None:
        now_us = microseconds(utc_now())
        before = document or c.new_model(put, now_us)
        fields = c.changes(
            before, now_us, description=self._words(put, version, before), experts=put.experts, quality=put.quality
        )
        kept = c.version_document(put.name, version, sha256)
        # An image is what its digest says, under whichever tag it is named.
        parts = ("image" if kept["image"] else "reference", "sha256", "params", "description")
        what = {name: kept[name] for name in parts}
        if document is not None and (same := await self._store.same(put.name, what)) is not None:
            changed = await self._store.set(put.name, fields)
            return ModelStored(model=await self._whole(changed), version=same, is_new=False) if changed else None
        number = before["last"] + 1
        if number > VERSIONS_MAX:
            message = f"Model {put.name!r} has had {VERSIONS_MAX} versions, which is the most: choose another name."
            raise WherryError("too_many_versions", message)
        # First the reference: as soon as the version can be seen, its bytes are held. One too many is harmless.
        if sha256 is not None:
            await refer(self._uploads, self._gridfs, _ref(put.name, number), sha256)
        if document is None:
            changed = before | fields | {"last": number}
            is_mine = await self._store.add(changed)
        else:
            changed = await self._store.count_up(put.name, before["last"], fields)
            is_mine = changed is not None
        if not is_mine or changed is None:
            return None
        await self._store.add_version(
            c.version_document(put.name, version.model_copy(update={"version": number}), sha256)
        )
        return ModelStored(model=await self._whole(changed), version=number, is_new=True)

    @staticmethod
    def _words(put: ModelPut, version: ModelVersion, before: Document) -> str | None:
        """Return what is to be said of the model: what was given, else (of one without words) its image's own."""
        return (
            put.description if put.description is not None else (None if before["description"] else version.description)
        )

    async def _release(self, put: ModelPut, facts: r.ImageFacts | None) -> tuple[ModelVersion, str | None]:
        """Return what is released, not numbered yet, and the digest of its files where it is files."""
        params = put.params
        if params is None and (put.artifact_id is not None or not put.read):  # nothing else says what they are
            newest = await self._store.version(put.name, None)
            params = None if newest is None else c.version_of(newest).params
        given = ModelVersion(
            version=0, description=put.description or "", params=params, lineage=put.lineage,
            created_by=put.owner_name, created_at=utc_now(),
        )  # fmt: skip
        if put.artifact_id is not None:
            artifact = await self._uploads.artifact(put.artifact_id)
            if artifact is None:
                raise NotFound(f"There is no artifact {put.artifact_id!r}.")
            update = {"artifact_id": artifact.id, "size": artifact.blob.size, "reference": put.reference}
            return given.model_copy(update=update), artifact.blob.sha256
        reference = put.reference or ""
        if not put.read:
            return given.model_copy(update={"image": reference, "reference": reference}), None
        where = r.parse(reference)
        return self._described(given, where, reference, facts or await self._registry.image(where)), None

    @staticmethod
    def _described(given: ModelVersion, where: r.Reference, reference: str, facts: r.ImageFacts) -> ModelVersion:
        """Return *given* with what an image says of itself where nothing was given."""
        said = r.describe(facts.labels)
        return given.model_copy(
            update={
                "image": where.pinned(facts.digest),
                "reference": reference,
                "size": facts.size,
                "description": given.description or said.description,
                "params": given.params if given.params is not None else said.params,
                "remarks": said.remarks,
            }
        )

    async def update(self, update: ModelUpdate) -> Model:
        """Change how a model is described, who its experts are, and how good it should be.

        Raises:
            NotFound: there is none of this name.
        """
        fields = c.updated(await self._document(update.name), update, microseconds(utc_now()))
        changed = await self._store.set(update.name, fields)
        if changed is None:
            raise c.missing(update.name)
        return await self._whole(changed)

    async def remove(self, remove: ModelRemove) -> None:
        """Remove a version or all of a model, with what is about it. Artifacts stay; jobs that run go on.

        Raises:
            NotFound: there is none.
            WherryError: ``conflict``: it has just changed.
        """
        document = await self._document(remove.name)
        versions = [one["version"] for one in await self._store.versions(remove.name, VERSIONS_MAX)]
        if remove.version is not None and remove.version not in versions:
            raise c.missing(remove.name, remove.version)
        if remove.version is None or versions == [remove.version]:
            if not await self._store.delete(remove.name, document["last"]):
                raise WherryError("conflict", f"Model {remove.name!r} has just changed: look, and try again.")
            await self._store.remove_all(remove.name)
        else:
            versions = [remove.version]
            await self._store.remove_version(remove.name, remove.version)
        for number in versions:
            await self._uploads.drop_refs(_ref(remove.name, number))

    async def with_artifact(self, artifact: Artifact) -> str | None:
        """Return the model that an artifact is a version of, as a sentence's subject, or None."""
        name = await self._store.with_artifact(artifact.id)
        return None if name is None else f"Model {name}"

    # --- quality ---------------------------------------------------------------------------------------------------

    async def evaluate(self, put: EvaluationPut) -> Evaluation:
        """Keep a measurement, and say whether the model has become worse.

        Raises:
            NotFound: there is no such model or version.
        """
        document = await self._document(put.model)
        version = await self._store.version(put.model, put.version)
        if version is None:
            raise c.missing(put.model, put.version)
        earlier = await self._store.evaluations({"model": put.model}, EVALUATIONS_MAX)
        quality = c.model_of(document, (), 0).quality
        best = c.best(quality, (c.evaluation_of(one).metrics for one in earlier if one["_id"] != put.id))
        worse = c.why_worse(quality, put.metrics, best)
        kept = c.evaluation_document(put, version["version"], worse, utc_now())
        if not await self._store.add_evaluation(kept):
            kept = await self._store.evaluation(put.id) or kept
        return c.evaluation_of(kept)

    async def evaluations(self, query: EvaluationQuery) -> EvaluationList:
        """Return a page of evaluations, the newest first.

        Raises:
            NotFound: there is no such model.
        """
        document = await self._document(query.model)
        limit = q.bounded(query.limit, EVALUATIONS_MAX)
        found = await self._store.evaluations(c.evaluations_filter(query), limit + 1)
        newest = await self._store.version(query.model, None)
        last = [] if newest is None else await self._store.evaluations(
            {"model": query.model, "version": newest["version"]}, 1
        )  # fmt: skip
        return EvaluationList(
            evaluations=tuple(c.evaluation_of(one) for one in found[:limit]),
            quality=c.model_of(document, (), 0).quality,
            worse=c.evaluation_of(last[0]).worse if last else None,
            cursor=c.cursor_behind(found[limit - 1]) if len(found) > limit else None,
        )

    # --- requests to experts ---------------------------------------------------------------------------------------

    async def ask_experts(self, put: FineTunePut) -> FineTune:
        """Keep a request, and tell the model's experts. Asking again with its id tells nobody twice.

        Raises:
            NotFound: there is no such model, version or artifact.
        """
        document = await self._document(put.model)
        version = await self._store.version(put.model, put.version)
        if version is None:
            raise c.missing(put.model, put.version)
        names = document["experts"] or [document["owner_name"]]
        users = [user for name in names if (user := await self._user(name)) is not None]
        request = FineTune(
            **put.model_dump(exclude={"version"}), version=version["version"], at=utc_now(),
            told=tuple(user.name for user in users if user.email),
        )  # fmt: skip
        document = c.fine_tune_document(request, [_letter(request, user, user.email) for user in users if user.email])
        if not await self._store.add_fine_tune(document):
            document = await self._store.fine_tune(put.id) or document
        await self._tell(document)
        return c.fine_tune_of(document)

    async def decline(self, decline: FineTuneDecline) -> FineTune:
        """Close a request without a version.

        Raises:
            WherryError: ``not_found``; ``conflict``: it is closed already.
        """
        await self._check_open(decline.model, decline.id)
        fields = c.closed("declined", decline.why, decline.by, microseconds(utc_now()))
        closed = await self._store.close_fine_tune(decline.id, fields)
        if closed is None:
            raise WherryError("conflict", f"Request {decline.id} has just been closed.")
        return c.fine_tune_of(closed)

    async def requests(self, query: FineTuneQuery) -> FineTuneList:
        """Return a page of requests, the newest first.

        Raises:
            NotFound: there is no such model.
        """
        if query.model is not None:
            await self._document(query.model)
        limit = q.bounded(query.limit, EVALUATIONS_MAX)
        found = await self._store.fine_tunes(c.fine_tunes_filter(query), limit + 1)
        cursor = c.cursor_behind(found[limit - 1]) if len(found) > limit else None
        return FineTuneList(requests=tuple(c.fine_tune_of(one) for one in found[:limit]), cursor=cursor)

    async def tell_experts(self) -> None:
        """Have those told of requests who have not been, while the notifier was away; for ever."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            try:
                for document in await self._store.untold(_TOLD_AT_ONCE):
                    await self._tell(document)
            except PyMongoError as error:
                _log.warning("experts_not_told", error=str(error))

    async def _tell(self, document: Document) -> None:
        try:
            for letter in c.untold(document):
                await self._bus.ask(TELL, letter, timeout_s=_TELL_S, retry_s=0)
        except WherryError as error:  # it is tried again
            _log.warning("experts_not_told", request=document["_id"], error=str(error))
        else:
            await self._store.told(document["_id"])

    # --- ------------------------------------------------------------------------------------------------------------

    async def _user(self, name: str) -> User | None:
        found = await self._people.user_by_name(name)
        return None if found is None or found.user.disabled else found.user

    async def _check_open(self, model: str, request_id: str) -> None:
        found = await self._store.fine_tune(request_id)
        if found is None or found["model"] != model:
            raise NotFound(f"There is no request {request_id!r} about model {model!r}.")
        if found["state"] != "open":
            raise WherryError("conflict", f"Request {request_id} was closed: {found['answer']}.")

    async def _document(self, name: str) -> Document:
        document = await self._store.get(name)
        if document is None:
            raise c.missing(name)
        return document

    async def _whole(self, document: Document, version: int | None = None, *, alone: bool = False) -> Model:
        name = document["_id"]
        if alone or version is not None:
            found = await self._store.version(name, version)
            versions = [found] if found is not None else []
        else:
            versions = await self._store.versions(name, VERSIONS_MAX)
        if not versions:
            raise c.missing(name, version)
        model = c.model_of(document, versions, len(versions) if not alone else await self._store.count(name))
        room = q.fitting(len(one.to_bytes()) for one in model.versions)
        return model.model_copy(update={"versions": model.versions[: max(1, room)]})


def _letter(request: FineTune, user: User, address: str) -> DeliveryRequested:
    data = f"dataset {request.dataset}" if request.dataset else f"artifact {request.artifact_id or '(none)'}"
    notice = Notice(
        title=f"{request.by} asks for a better {request.model}",
        text=(
            f"{request.by} asks the experts of model {request.model} to fine-tune version {request.version}.\n\n"
            f"{request.message}\n\nThe data: {data}\n"
            f"Answer it: wherry models push … --answers {request.id}"
        ),
        topic="model.fine_tune_requested",
    )
    return DeliveryRequested(
        delivery_id=keyed_id("d", _ID_KEY, request.id, address), job_id=request.id, owner_id=user.id,
        event_id=request.id, event="fine_tune_requested", kind="email", target=address, at=request.at, notice=notice,
    )  # fmt: skip


def _check_theirs(document: Document | None, put: ModelPut) -> None:
    if document is not None and not put.anybodys:
        is_expert = put.owner_name in document["experts"]
        if document["owner_id"] != put.owner_id and not is_expert:
            raise c.taken(put.name)


def _ref(name: str, version: int) -> str:
    return f"model:{name}@{version}"
