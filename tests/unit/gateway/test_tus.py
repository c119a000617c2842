"""tus' headers."""

import base64
import hashlib
from datetime import UTC, datetime

import pytest

from services.gateway.core import tus
from shared.errors import WherryError
from shared.requests.artifacts import Resumable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def code_of(call: object, *given: object) -> str:
    with pytest.raises(WherryError) as caught:
        call(*given)  # type: ignore[operator]
    return caught.value.code


def test_a_creation_says_length_name_and_media_type():
    headers = {"upload-length": "7", "upload-metadata": f"filename {b64('a/b/größe.png')}, filetype {b64('image/png')}"}
    made = tus.creation(headers, 10)
    assert (made.length, made.name, made.media_type) == (7, "größe.png", "image/png")
    assert tus.creation({"upload-defer-length": "1"}, 10).length is None


def test_a_name_cannot_lead_elsewhere_and_a_media_type_is_one():
    name, media_type = b64("..\\x\\y\n.sh"), b64("text/html\r\nX: y")
    evil = {"upload-length": "7", "upload-metadata": f"filename {name},filetype {media_type}"}
    made = tus.creation(evil, 10)
    assert (made.name, made.media_type) == ("y.sh", "application/octet-stream")
    ended = {"upload-length": "7", "upload-metadata": f"filetype {b64('text/html' + chr(10))}"}
    assert tus.creation(ended, 10).media_type == "application/octet-stream"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "bad_request"),
        ({"upload-length": "1", "upload-defer-length": "1"}, "bad_request"),
        ({"upload-defer-length": "2"}, "bad_request"),
        ({"upload-length": "+1"}, "bad_request"),
        ({"upload-length": "٣"}, "bad_request"),
        ({"upload-length": "9" * 30}, "bad_request"),
        ({"upload-length": "11"}, "too_large"),
        ({"upload-length": "1", "upload-metadata": "a YQ==,a YQ=="}, "bad_request"),
        ({"upload-length": "1", "upload-metadata": "a not base64"}, "bad_request"),
        ({"upload-length": "1", "upload-metadata": "x" * 5000}, "bad_request"),
    ],
)
def test_a_creation_that_cannot_be_read_is_refused(headers: dict[str, str], code: str):
    assert code_of(tus.creation, headers, 10) == code


def test_metadata_may_have_keys_alone_and_bytes_that_are_no_text():
    given = f"a,b {base64.b64encode(bytes([255])).decode()}"
    assert tus.metadata(given) == {"a": "", "b": "\ufffd"}
    assert tus.metadata("") == {}


def test_a_checksum_has_a_known_algorithm_and_its_length():
    digest = base64.b64encode(hashlib.sha1(b"x").digest()).decode()
    found = tus.checksum({"upload-checksum": f"sha1 {digest}"})
    assert found is not None
    made = found.new()
    made.update(b"x")
    assert made.digest() == found.digest
    assert tus.checksum({}) is None
    for wrong in ("", "sha1", f"sha256 {digest}", f"md5 {digest}", "sha1 %%%"):
        assert code_of(tus.checksum, {"upload-checksum": wrong}) == "bad_request"


def test_bytes_need_their_media_type_and_offset():
    assert tus.offset({"content-type": "application/offset+octet-stream", "upload-offset": "5"}) == 5
    assert code_of(tus.offset, {"content-type": "text/plain", "upload-offset": "5"}) == "unsupported_media_type"
    assert code_of(tus.offset, {"content-type": tus.MEDIA_TYPE}) == "bad_request"


def test_only_our_version_is_spoken():
    tus.require_version({"tus-resumable": "1.0.0"})
    assert code_of(tus.require_version, {}) == "tus_version"
    assert tus.refusal("/v1/uploads/x", "tus_version")["Tus-Version"] == "1.0.0"
    assert tus.refusal("/v1/jobs", "tus_version") == {}


def test_a_finished_upload_names_its_artifact_and_no_longer_expires():
    going = Resumable(
        upload_id="u",
        owner_id="o",
        state="open",
        offset=3,
        length=9,
        created_at=NOON,
        expires_at=NOON,
        metadata="a YQ==",
    )
    told = tus.description(going)
    assert (told["Upload-Offset"], told["Upload-Length"], told["Upload-Metadata"]) == ("3", "9", "a YQ==")
    assert told["Upload-Expires"] == "Thu, 01 Jan 2026 12:00:00 GMT"
    done = going.model_copy(update={"state": "committed", "artifact_id": "a1", "sha256": "00"})
    assert (tus.state(done)["Wherry-Artifact"], tus.state(done)["Wherry-Sha256"]) == ("a1", "00")
    assert "Upload-Expires" not in tus.state(done)
