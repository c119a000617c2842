"""How refusals read."""

import pytest
from pydantic import ValidationError

from services.gateway.core import problems
from shared.spec import JobSpec


def detail(body: bytes) -> str:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate_json(body)
    return problems.from_validation(caught.value, JobSpec).message


def test_a_sentence_ends_once():
    assert detail(b'{"image": "a", "comand": "x"}') == "comand: There is no such field; did you mean command?"
    assert detail(b'{"image": "a", "x": 1, "resources": {"y": 1}}').endswith("field.")


def test_a_value_of_the_wrong_form_is_said_to_be_that():
    assert detail(b'{"image": "no spaces here"}').startswith("image: This is not of the form ")


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ('"image": ""', "NAME, NAME:TAG, REGISTRY/NAME:TAG or NAME@sha256:DIGEST"),
        ('"notify": [{"email": "nobody"}]', "name@example.org"),
        ('"notify": [{"webhook": {"url": "here"}}]', "https://HOST/PATH"),
        ('"name": "two\\nlines"', "one line of text"),
        ('"source": "photos.zip"', "an artifact's id: a and 25 small letters or digits"),
        ('"inputs": {"a": "photos"}', "job:ID, job:ID/PATH, artifact:ID, dataset:NAME, dataset:NAME@VERSION or https"),
        ('"needs": ["photos"]', "a job's id: j and 25 small letters or digits"),
        ('"model": "A B"', "NAME or NAME@VERSION, in small letters"),
        ('"command": "a\\u0000b"', "text without null characters"),
    ],
)
def test_forms_are_told_as_people_write_them_and_not_as_patterns(given: str, form: str):
    assert f"This is not of the form {form}" in detail(f"{{{given}}}".encode())


def test_a_body_that_is_a_form_is_told_what_is_wanted():
    assert detail(b"--boundary\r\n").endswith(". The body is to be one JSON object.")


@pytest.mark.parametrize(("status", "phrase"), [(404, "Not Found"), (405, "Method Not Allowed")])
def test_the_web_frameworks_own_words_become_a_sentence(status: int, phrase: str):
    message = problems.from_status(status, phrase).message
    assert message != phrase
    assert message.endswith(".")
    assert "/openapi.json" in message


def test_a_detail_that_says_something_stays():
    assert problems.from_status(404, "No such thing.").message == "No such thing."
