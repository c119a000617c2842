"""kill -9 of any one service at four points of the main job: it still ends once, with its result."""

import hashlib
import os

import pytest

from tests.e2e.stack import ENDS, SERVICES, Stack, until, zip_of

PAYLOAD = os.urandom(24 * 1024 * 1024)
RUN_SH = """set -e
echo begins
sleep 1
mkdir -p "$WHERRY_OUTPUTS/result"
cat data/payload.bin data/payload.bin > "$WHERRY_OUTPUTS/result/twice.bin"
echo ends
"""
SOURCE = zip_of({"run.sh": RUN_SH, "data/payload.bin": PAYLOAD})
TWICE = hashlib.sha256(PAYLOAD + PAYLOAD).hexdigest()


def seen(stack: Stack, job_id: str, *states: str) -> None:
    """Wait until the log shows the job in one of *states* (or past them)."""
    order = ["queued", "placed", "starting", "running", "finishing"]
    later = set(order[min(order.index(state) for state in states) :]) | ENDS
    until(lambda: stack.job(job_id)["state"] in later, f"{states}")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["queued", "starting", "running", "finishing"])
@pytest.mark.parametrize("service", SERVICES)
def test_the_job_ends_once_with_its_result(stack: Stack, service: str, point: str) -> None:
    spec = stack.spec("sh ./run.sh", name=f"kill-{service}-{point}")
    if point == "queued":
        # With the scheduler stopped the job cannot leave the queue before the kill.
        with stack.paused("scheduler"):
            job_id = stack.submit(spec, SOURCE)
            stack.kill(service)
    else:
        job_id = stack.submit(spec, SOURCE)
        seen(stack, job_id, point)
        stack.kill(service)

    job = stack.wait_end(job_id)
    assert job["state"] == "succeeded", job
    output = until(
        lambda: (got := stack.http.get(f"/jobs/{job_id}/outputs/result/twice.bin")).status_code == 200 and got,
        "the result can be downloaded",
    )
    assert hashlib.sha256(output.content).hexdigest() == TWICE
    ends = [event for event in stack.events(job_id) if event["type"].split(".")[-2] in ENDS]
    assert len(ends) == 1
    until(lambda: stack.runs(service), "the service is back")
