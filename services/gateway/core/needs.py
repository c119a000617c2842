"""Which of a spec's needs and inputs cannot be, and under which field."""

from collections.abc import Iterator, Mapping

from services.gateway.core.access import Action, may
from shared.errors import FieldProblem
from shared.requests.accounts import Principal
from shared.spec import JobSpec


def unusable(spec: JobSpec) -> list[FieldProblem]:
    """Return what is wrong with needs and inputs by themselves: paths that lead nowhere, one job needed in two ways."""
    found: list[FieldProblem] = []
    ways = dict[str, str]()
    for index, need in enumerate(spec.needs):
        if ways.setdefault(need.job, need.on) != need.on:
            found.append(_problem(f"needs[{index}]", f"Job {need.job} is needed in two ways; give one of them"))
    for name, given in spec.inputs.items():
        if given.job is None:
            continue
        _, slash, path = given.source.partition("/")
        parts = path.removesuffix("/").split("/")
        if slash and ("\\" in path or any(part in ("", ".", "..") for part in parts)):
            message = f"{path!r} is no path below a job's outputs: give names with single slashes between them"
            found.append(_problem(f"inputs.{name}", message))
    return found


def not_theirs(spec: JobSpec, principal: Principal, owners: Mapping[str, str | None]) -> list[FieldProblem]:
    """Return which needs and inputs name a job that is not there or not the caller's.

    An administrator may wait for anybody's job. What a job left goes to jobs of its own owner alone.

    Args:
        spec: what is handed in.
        principal: by whom.
        owners: the owner's id of each job that is named; None: there is no such job.
    """
    return [
        _problem(field, f"There is no job {job_id}, or it is not yours")
        for field, job_id, is_input in _named(spec)
        if (owner := owners.get(job_id)) is None
        or (owner != principal.user_id if is_input else not may(principal, Action.SEE, owner))
    ]


def _named(spec: JobSpec) -> Iterator[tuple[str, str, bool]]:
    for index, need in enumerate(spec.needs):
        yield f"needs[{index}]", need.job, False
    for name, given in spec.inputs.items():
        if given.job is not None:
            yield f"inputs.{name}", given.job[0], True


def _problem(field: str, message: str) -> FieldProblem:
    return FieldProblem(field=field, message=message)
