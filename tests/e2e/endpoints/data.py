"""Artifacts, uploads that resume, datasets."""

import base64
from typing import Any

from tests.e2e.documented import JSON, TUS, User
from tests.e2e.endpoints.things import HI, TUS_BYTES, Things, case


@case("PUT /v1/artifacts")
def store(user: User, things: Things) -> None:
    found = user.ask("PUT /v1/artifacts", content=HI).json()
    assert (found["size"], len(found["sha256"])) == (len(HI), 64)
    assert found["artifact_id"] != things.artifact
    wrong = user.ask("PUT /v1/artifacts", content=HI, headers={"Content-Type": "nonsense"}, status=422)
    assert wrong.json()["errors"][0]["field"] == "Content-Type"


@case("GET /v1/artifacts")
def artifacts(user: User, things: Things) -> None:
    found = user.ask("GET /v1/artifacts", params={"limit": 1000}).json()["artifacts"]
    assert [one["name"] for one in found if one["artifact_id"] == things.artifact] == ["hi.txt"]


@case("GET /v1/artifacts/{artifact_id}")
def fetch_an_artifact(user: User, things: Things) -> None:
    operation = "GET /v1/artifacts/{artifact_id}"
    whole = user.ask(operation, things.artifact)
    assert (whole.content, "hi.txt" in whole.headers["content-disposition"]) == (HI, True)
    part = user.ask(operation, things.artifact, headers={"Range": "bytes=3-6"}, status=206)
    assert (part.content, part.headers["content-range"]) == (HI[3:7], f"bytes 3-6/{len(HI)}")
    user.ask(operation, things.artifact, headers={"If-None-Match": whole.headers["etag"]}, status=304)
    beyond = user.ask(operation, things.artifact, headers={"Range": "bytes=1000-"}, status=416)
    assert beyond.headers["content-range"] == f"bytes */{len(HI)}"


@case("DELETE /v1/artifacts/{artifact_id}")
def remove_an_artifact(user: User, _: Things) -> None:
    stored = user.ask("PUT /v1/artifacts", content=b"for a moment").json()["artifact_id"]
    user.ask("DELETE /v1/artifacts/{artifact_id}", stored, status=204)
    user.ask("GET /v1/artifacts/{artifact_id}", stored, status=404)


@case("OPTIONS /v1/uploads")
def what_uploads_can_do(user: User, _: Things) -> None:
    answer = user.ask("OPTIONS /v1/uploads", status=204)
    assert (answer.headers["tus-version"], "checksum" in answer.headers["tus-extension"]) == ("1.0.0", True)


@case("OPTIONS /v1/uploads/{upload_id}")
def what_an_upload_can_do(user: User, things: Things) -> None:
    answer = user.ask("OPTIONS /v1/uploads/{upload_id}", things.upload, status=204)
    assert int(answer.headers["tus-max-size"]) > 0


@case("POST /v1/uploads")
def begin_an_upload(user: User, things: Things) -> None:
    assert things.upload
    user.ask("POST /v1/uploads", headers={"Tus-Resumable": "0.2.2", "Upload-Length": "1"}, status=412)
    user.ask("POST /v1/uploads", headers=TUS, status=400)
    user.ask("POST /v1/uploads", headers=TUS | {"Upload-Length": "9" * 18}, status=413)


@case("HEAD /v1/uploads/{upload_id}")
def how_far_an_upload_is(user: User, things: Things) -> None:
    answer = user.ask("HEAD /v1/uploads/{upload_id}", things.upload, headers=TUS)
    assert (answer.headers["upload-offset"], answer.headers["upload-length"]) == ("5", "10")


@case("GET /v1/uploads/{upload_id}")
def an_upload_as_json(user: User, things: Things) -> None:
    found = user.ask("GET /v1/uploads/{upload_id}", things.upload).json()
    assert (found["offset"], found["length"], found["artifact_id"]) == (5, 10, None)


@case("PATCH /v1/uploads/{upload_id}")
def go_on_with_an_upload(user: User, things: Things) -> None:
    operation, headers = "PATCH /v1/uploads/{upload_id}", TUS_BYTES | {"Upload-Offset": "5"}
    wrong = user.ask(operation, things.upload, headers=headers | {"Upload-Offset": "9"}, content=b"9", status=409)
    assert wrong.json()["code"] == "offset_mismatch"
    user.ask(operation, things.upload, headers=headers | {"Content-Type": JSON}, content=b"5", status=415)
    sum_ = base64.b64encode(b"0" * 20).decode()
    user.ask(operation, things.upload, headers=headers | {"Upload-Checksum": f"sha1 {sum_}"}, content=b"5", status=460)
    done = user.ask(operation, things.upload, headers=headers, content=b"56789", status=204)
    stored = user.ask("GET /v1/artifacts/{artifact_id}", done.headers["wherry-artifact"])
    assert (stored.content, "ten.txt" in stored.headers["content-disposition"]) == (b"0123456789", True)


@case("DELETE /v1/uploads/{upload_id}")
def drop_an_upload(user: User, _: Things) -> None:
    begun = user.ask("POST /v1/uploads", headers=TUS | {"Upload-Length": "3"}).headers["location"].rpartition("/")[2]
    user.ask("DELETE /v1/uploads/{upload_id}", begun, headers=TUS, status=204)
    gone = user.ask("HEAD /v1/uploads/{upload_id}", begun, headers=TUS, status=410)
    assert gone.headers["tus-resumable"] == "1.0.0"


@case("POST /v1/datasets")
def store_a_dataset(user: User, things: Things) -> None:
    again: dict[str, Any] = {"data": {"name": things.dataset}, "files": {"file": ("words.txt", HI)}}
    assert user.ask("POST /v1/datasets", **again, status=200).json()["is_new"] is False
    stored = user.ask("PUT /v1/artifacts", content=b"others").json()["artifact_id"]
    made = user.ask("POST /v1/datasets", json={"name": things.dataset, "artifact_id": stored}, status=201).json()
    assert (made["version"], made["is_new"], made["labels"]) == (2, True, ["a", "b"])


@case("GET /v1/datasets")
def datasets(user: User, things: Things) -> None:
    found = user.ask("GET /v1/datasets", params={"search": "endpoint-words", "owner": "me"}).json()["datasets"]
    assert [one["name"] for one in found] == [things.dataset]


@case("GET /v1/datasets/{ref}")
def see_a_dataset(user: User, things: Things) -> None:
    found = user.ask("GET /v1/datasets/{ref}", f"{things.dataset}@1").json()
    assert (found["version"], found["size"], found["labels"]) == (1, len(HI), ["a", "b"])
    user.ask("GET /v1/datasets/{ref}", f"{things.dataset}@99", status=404)


@case("GET /v1/datasets/{ref}/content")
def fetch_a_dataset(user: User, things: Things) -> None:
    assert user.ask("GET /v1/datasets/{ref}/content", f"{things.dataset}@1").content == HI


@case("PATCH /v1/datasets/{name}")
def describe_a_dataset(user: User, things: Things) -> None:
    found = user.ask("PATCH /v1/datasets/{name}", things.dataset, json={"description": "Words."}).json()
    assert (found["description"], found["labels"]) == ("Words.", ["a", "b"])


@case("DELETE /v1/datasets/{ref}")
def remove_a_dataset(user: User, things: Things) -> None:
    user.ask("POST /v1/datasets", json={"name": "endpoint-shortlived", "artifact_id": things.artifact})
    user.ask("DELETE /v1/datasets/{ref}", "endpoint-shortlived", status=204)
    user.ask("GET /v1/datasets/{ref}", "endpoint-shortlived", status=404)
