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


@pytest.mark.parametrize(("status", "phrase"), [(404, "Not Found"), (405, "Method Not Allowed")])
def test_the_web_frameworks_own_words_become_a_sentence(status: int, phrase: str):
    message = problems.from_status(status, phrase).message
    assert message != phrase
    assert message.endswith(".")
    assert "/openapi.json" in message


def test_a_detail_that_says_something_stays():
    assert problems.from_status(404, "No such thing.").message == "No such thing."
