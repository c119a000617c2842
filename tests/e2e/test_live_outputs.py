"""What a running job has left so far, through the front door, on all services; and a dry run of retention."""

from pathlib import Path

from client.wherry import Client
from tests.e2e.stack import Stack, until, wherry


def test_a_running_job_s_outputs_are_seen_and_brought_marked_as_partial(stack: Stack, tmp_path: Path) -> None:
    write = (
        'mkdir -p "$WHERRY_OUTPUTS/deep"; printf 0123456789 > "$WHERRY_OUTPUTS/deep/a"; echo b > "$WHERRY_OUTPUTS/b"'
    )
    job_id = stack.submit(stack.spec(f"{write}; echo up; sleep 600 & wait"))
    stack.wait_state(job_id, "running")
    where = f"/jobs/{job_id}/outputs"
    assert stack.http.get(where, params={"list": "true"}).json()["entries"] == []

    def seen() -> dict[str, object] | None:
        listed = stack.http.get(where, params={"live": "true"})
        if listed.status_code == 503:  # its node is slow to answer
            return None
        assert listed.status_code == 200, listed.text
        assert listed.headers["Wherry-Partial"] == "true"
        found = listed.json()
        return found if [one["path"] for one in found["entries"]] == ["b", "deep", "deep/a"] else None

    found = until(seen, "the outputs to be seen")
    assert (found["partial"], found["attempt"]) == (True, 1)
    part = stack.http.get(f"{where}/deep/a", params={"live": found["look"]}, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["Wherry-Partial"]) == (206, b"234", "true")
    assert stack.http.get(f"{where}/deep/a", params={"live": "true"}).content == b"0123456789"
    assert stack.http.get(f"{where}/none", params={"live": "true"}).status_code == 404
    assert stack.http.get(f"{where}/deep/a", params={"live": "l*"}).status_code == 422

    early = wherry(stack, "get", job_id, "-o", tmp_path / "early")
    assert early.returncode != 0
    assert f"job {job_id} is running" in early.stderr
    assert not (tmp_path / "early").exists()
    listed = wherry(stack, "outputs", job_id)
    assert (listed.returncode, listed.stdout) == (0, "")
    assert "the job goes on" in listed.stderr

    with Client(
        f"http://127.0.0.1:{stack.port}", token=stack.http.headers["Authorization"].removeprefix("Bearer ")
    ) as client:
        [file] = client.download(job_id, tmp_path, "deep", live=True)
        assert file.read_bytes() == b"0123456789"
        planned = client.retention(dry_run=True)
        assert (planned.dry_run, planned.error) == (True, "")
        assert planned.ended_at
    stack.http.post(f"/jobs/{job_id}/cancel")
    assert stack.wait_end(job_id)["state"] == "cancelled"
    assert stack.http.get(where, params={"live": "true"}).json()["code"] == "not_running"
    assert stack.output(job_id, "deep/a") == b"0123456789"
