"""A gang through the gateway, on a real stack: all start, each knows its place, and all end together."""

from tests.e2e.stack import Stack


def spec(stack: Stack, **gang: object) -> dict[str, object]:
    tiny = {"resources": {"cpus": 0.1, "memory": "32MiB", "disk": "16MiB"}}
    wanted = {"roles": {"server": {"count": 1, **tiny}, "worker": {"count": 2, **tiny}}} | gang
    return stack.spec('echo "$WHERRY_ROLE $WHERRY_INDEX of $WHERRY_GANG_SIZE"', kind="gang", gang=wanted)


def test_a_gang_runs_and_each_member_is_a_job_with_its_own_log(stack: Stack) -> None:
    gang_id = stack.submit(spec(stack))
    gang = stack.wait_end(gang_id)
    assert gang["state"] == "succeeded", gang
    assert [(one["role"], one["index"], one["state"]) for one in gang["members"]] == [
        ("server", 0, "succeeded"),
        ("worker", 0, "succeeded"),
        ("worker", 1, "succeeded"),
    ]
    for member, said in zip(gang["members"], ("server 0 of 3", "worker 0 of 3", "worker 1 of 3"), strict=True):
        log = stack.http.get(f"/jobs/{member['job_id']}/outputs/_stdout.txt")
        assert log.text.strip() == said
    listed = stack.http.get("/jobs", params={"gang": gang_id}).json()["jobs"]
    assert {one["job_id"] for one in listed} == {one["job_id"] for one in gang["members"]}
    assert gang_id in {one["job_id"] for one in stack.http.get("/jobs").json()["jobs"]}
    assert not {one["job_id"] for one in stack.http.get("/jobs").json()["jobs"]} & {one["job_id"] for one in listed}


def test_a_member_that_fails_ends_the_others_and_the_gang_names_it(stack: Stack) -> None:
    wanted = spec(stack)
    wanted["command"] = 'test "$WHERRY_ROLE" = server && exit 3; sleep 300'
    gang = stack.wait_end(stack.submit(wanted))
    assert (gang["state"], gang["error"]["reason"]) == ("failed", "exit_code")
    assert gang["error"]["message"].startswith("member server-0: ")
    assert [one["state"] for one in gang["members"]] == ["failed", "cancelled", "cancelled"]
