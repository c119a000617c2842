"""What is wrong is named, with what to do; nothing is left behind."""

import json
import socket

import pytest

from tests.e2e.stack import Stack, until, zip_of


def problem(answer) -> dict:
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["code"]
    assert body["detail"]
    return body


def jobs_named(stack: Stack, name: str) -> list[dict]:
    return stack.http.get("/jobs", params={"name": name}).json()["jobs"]


@pytest.mark.parametrize(
    ("name", "source", "word"),
    [
        ("not-a-zip", b"this is not a zip", "zip"),
        ("empty-zip", zip_of({}), "empty"),
        ("slip", zip_of({"run.sh": "true", "../escape.txt": "x"}), "../escape.txt"),
    ],
    ids=["not a zip", "no files", "a path upwards"],
)
def test_a_bad_zip_is_a_problem_at_once_and_makes_no_job(stack: Stack, name: str, source: bytes, word: str) -> None:
    answer = stack.post_job(stack.spec("sh run.sh", name=name), source)
    assert answer.status_code == 422
    body = problem(answer)
    assert body["code"] == "bad_source"
    assert word in body["detail"]
    assert jobs_named(stack, name) == []


def test_an_unknown_field_is_named(stack: Stack) -> None:
    answer = stack.post_job(stack.spec("true", comand="typo"))
    assert answer.status_code == 422
    assert [error["field"] for error in problem(answer)["errors"]] == ["comand"]


def test_broken_json_is_a_problem(stack: Stack) -> None:
    answer = stack.http.post("/jobs", content=b'{"image": ', headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    problem(answer)


def test_no_token_and_a_wrong_one_are_refused(stack: Stack) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer whr_s_wrong"}):
        answer = stack.http.get("/jobs", headers=headers)
        assert answer.status_code == 401
        problem(answer)


def test_a_command_that_is_not_found_is_a_typed_error(stack: Stack) -> None:
    spec = stack.spec("unused")
    spec["command"] = ["no-such-program-at-all"]
    job = stack.wait_end(stack.submit(spec))
    assert (job["state"], job["error"]["reason"]) == ("failed", "command_not_found")
    assert "no-such-program-at-all" in job["error"]["message"]


def test_an_image_that_does_not_exist_is_a_typed_error(stack: Stack) -> None:
    if stack.runtime != "docker":
        pytest.skip("images need a Docker engine")
    spec = {**stack.spec("true"), "image": "localhost:1/nothing/here:1", "timeouts": {"pull": 24}}  # no third try
    job = stack.wait_end(stack.submit(spec), timeout=240)
    assert job["state"] == "failed"
    assert job["error"]["reason"] in {"image_not_found", "image_pull_failed"}
    assert "localhost:1/nothing/here:1" in job["error"]["message"]


def test_a_job_larger_than_every_node_waits_and_says_why(stack: Stack) -> None:
    job_id = stack.submit(stack.spec("true", resources={"cpus": 4000, "gpus": 3}))
    until(lambda: stack.job(job_id).get("pending"), "pending reasons")
    job = stack.job(job_id)
    assert job["state"] == "queued"
    assert {reason["code"] for reason in job["pending"]} >= {"cpus"}
    assert all(reason["nodes"] >= 1 and reason["message"] for reason in job["pending"])
    stack.http.post(f"/jobs/{job_id}/cancel")
    assert stack.wait_end(job_id)["state"] == "cancelled"


def test_an_upload_cut_in_the_middle_makes_no_job(stack: Stack) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: wherry\r\nAuthorization: {stack.http.headers['Authorization']}\r\n"
        "Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: 50000000\r\n\r\n"
    )
    spec = json.dumps(stack.spec("true", name="cut-upload"))
    with socket.create_connection(("127.0.0.1", stack.port)) as s:
        s.sendall(head.encode())
        s.sendall(f'--cut\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{spec}\r\n'.encode())
        s.sendall(b'--cut\r\nContent-Disposition: form-data; name="source"; filename="s.zip"\r\n\r\nPK\x03\x04')
        s.sendall(b"x" * 5_000_000)
    assert jobs_named(stack, "cut-upload") == []
    # The gateway tells storage to forget the chunks that had arrived.
    until(lambda: stack.http.get("/jobs").status_code == 200, "the gateway still answers")


def test_another_users_job_is_not_there(stack: Stack) -> None:
    created = stack.http.post("/users", json={"name": "mallory", "password": "correct horse battery", "role": "user"})
    assert created.status_code in {200, 201, 409}, created.text
    login = stack.http.post("/login", auth=("mallory", "correct horse battery"))
    other = {"Authorization": f"Bearer {login.json()['token']}"}
    job_id = stack.submit(stack.spec("true"))
    for path in ("", "/logs", "/events", "/outputs", "/outputs/x", "/metrics", "/notifications"):
        answer = stack.http.get(f"/jobs/{job_id}{path}", headers=other)
        assert answer.status_code == 404, path
    assert stack.http.post(f"/jobs/{job_id}/cancel", headers=other).status_code == 404
    assert job_id not in [job["job_id"] for job in stack.http.get("/jobs", headers=other).json()["jobs"]]
