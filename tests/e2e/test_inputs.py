"""One job's outputs are the next one's inputs, through the front door, on all services."""

from tests.e2e.stack import Stack


def test_a_chain_of_jobs_hands_its_outputs_on(stack: Stack) -> None:
    make = 'sleep 1; mkdir -p "$WHERRY_OUTPUTS/parts/deep"; echo one > "$WHERRY_OUTPUTS/parts/a"'
    more = '; printf größe > "$WHERRY_OUTPUTS/parts/deep/ü"; echo beside > "$WHERRY_OUTPUTS/b"'
    first = stack.submit(stack.spec(make + more))
    inputs = {"parts": f"job:{first}/parts", "b": f"job:{first}/b"}
    join = 'cd "$WHERRY_INPUTS"; cat parts/a parts/deep/ü b > "$WHERRY_OUTPUTS/joined"'
    second = stack.submit(stack.spec(join, inputs=inputs))  # at once: it waits for the first
    third = stack.submit(stack.spec('cat "$WHERRY_INPUTS/all/joined"', inputs={"all": f"job:{second}"}))
    assert stack.wait_end(third)["state"] == "succeeded", stack.job(third)
    assert stack.output(third, "_stdout.txt").decode() == "one\ngrößebeside\n"


def test_an_input_that_the_other_job_did_not_leave_is_said_to_be_missing(stack: Stack) -> None:
    first = stack.submit(stack.spec("true"))
    second = stack.submit(stack.spec("true", inputs={"x": f"job:{first}/no/such"}))
    job = stack.wait_end(second)
    assert (job["state"], job["error"]["reason"]) == ("failed", "input_missing")
    assert "no/such" in job["error"]["message"]
