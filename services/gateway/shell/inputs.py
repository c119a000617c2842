"""Looking up what a job's inputs are at the moment when it is handed in."""

import asyncio

from services.gateway.core import inputs as i
from services.gateway.core.problems import invalid
from services.gateway.shell.gateway import Gateway
from shared.channels import DATASET_GET
from shared.errors import FieldProblem, NotFound
from shared.requests.accounts import Principal
from shared.requests.datasets import Dataset, DatasetQuery
from shared.spec import Input, JobSpec

_LIST = "`wherry datasets list` shows what there is"


class Inputs:
    """Looks up the inputs of one request's jobs: each artifact and dataset once, however many of them name it."""

    def __init__(self, gateway: Gateway, principal: Principal) -> None:
        self._gateway = gateway
        self._principal = principal
        self._asked: dict[str, asyncio.Task[Input | str]] = {}

    async def recorded(self, spec: JobSpec) -> JobSpec:
        """Return *spec* as it is recorded: artifacts and datasets with what they are now, versions pinned.

        Raises:
            WherryError: ``invalid``: an input is not there, not the caller's, or not to be called; ``unavailable``.
        """
        if not spec.inputs:
            return spec
        if wrong := i.unusable(spec, self._gateway.settings.fetch_places):
            raise invalid(wrong)
        named = {name: given for name, given in spec.inputs.items() if given.job is None and not i.is_url(given)}
        found = dict(zip(named, await asyncio.gather(*map(self._find, named.values())), strict=True))
        missing: list[FieldProblem] = [i.problem(name, one) for name, one in found.items() if isinstance(one, str)]
        if missing:
            raise invalid(missing)
        kept = {name: one for name, one in found.items() if isinstance(one, Input)}
        whole = {name: one.model_copy(update={"unpack": named[name].unpack}) for name, one in kept.items()}
        return i.filled(spec, whole)

    async def _find(self, given: Input) -> Input | str:
        """Return the input as it is recorded, or what is wrong with it."""
        task = self._asked.get(given.source)
        if task is None:
            task = self._asked[given.source] = asyncio.create_task(self._look_up(given))
        return await asyncio.shield(task)

    async def _look_up(self, given: Input) -> Input | str:
        if (artifact_id := i.artifact_id(given)) is not None:
            try:
                return i.of_artifact(given, await self._gateway.artifact(self._principal, artifact_id))
            except NotFound:
                return f"There is no artifact {artifact_id}, or it is not yours: `wherry artifacts put` stores a file"
        name, version = i.dataset_of(given) or ("", None)
        dataset = await dataset_of(self._gateway, self._principal, name, version, alone=True)
        if dataset is not None:
            return i.of_dataset(given, dataset)
        if version is not None and await dataset_of(self._gateway, self._principal, name, None, alone=True):
            return f"Dataset {name} has no version {version}: `wherry datasets show {name}` lists its versions"
        return f"There is no dataset {name!r}, or it is not yours: {_LIST}"


async def dataset_of(
    gateway: Gateway, principal: Principal, name: str, version: int | None = None, *, alone: bool = False
) -> Dataset | None:
    """Return a dataset that the caller may use, or None."""
    try:
        found = await gateway.ask(DATASET_GET, DatasetQuery(name=name, version=version, alone=alone))
    except NotFound:
        return None
    return found if i.may_use(principal, found) else None
