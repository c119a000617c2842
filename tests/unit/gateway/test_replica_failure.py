"""Why a replica has failed, in the words of the program."""

from services.gateway.core.replica_failure import failure_of, is_by_program
from shared.clock import utc_now
from shared.events import LogLine
from shared.job import Failure, GangPlace, Job, Owner
from shared.spec import JobSpec
from shared.states import EndReason, JobState


def replica(reason: EndReason = EndReason.EXIT_CODE, message: str = "The program ended with exit code 3.") -> Job:
    now = utc_now()
    return Job(
        id="jreplica",
        owner=Owner(id="u1", name="anna"),
        spec=JobSpec.model_validate({"image": "a"}),
        state=JobState.FAILED,
        created_at=now,
        updated_at=now,
        ended_at=now,
        error=Failure(reason=reason, message=message),
        member_of=GangPlace(gang_id="jservice", round=2, role="replica", index=0, rank=0, size=1),
    )


def lines(*said: tuple[str, str]) -> list[LogLine]:
    return [LogLine(n=number, t=utc_now(), s=stream, x=text) for number, (stream, text) in enumerate(said, 1)]


def test_the_last_line_of_errors_says_why():
    said = lines(("e", "loading"), ("e", " there is no model "), ("o", "bye"), ("e", "  "))
    failure = failure_of(replica(), said)
    assert failure.message == "The program ended with exit code 3: there is no model"
    assert (failure.job_id, failure.revision, failure.reason) == ("jreplica", 2, "exit_code")


def test_without_errors_it_is_the_last_line_of_all():
    assert failure_of(replica(), lines(("o", "one"), ("o", "two"))).message.endswith("exit code 3: two")


def test_a_program_that_says_nothing_has_its_end_alone():
    assert failure_of(replica()).message == "The program ended with exit code 3."


def test_a_very_long_line_is_cut():
    assert len(failure_of(replica(), lines(("e", "x" * 16_000))).message) < 1100


def test_only_what_a_program_did_is_told_by_its_output():
    assert is_by_program(replica(EndReason.OOM))
    assert not is_by_program(replica(EndReason.IMAGE_PULL_FAILED))
