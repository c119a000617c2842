"""Real photographs through POST /images, one after another and by four clients at once: each result is Pillow's."""

import json

import pytest

from benchmarks.images import Server, pictures
from benchmarks.photographs import NoPhotographs
from tests.e2e.stack import Stack

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("clients", [1, 4])
def test_every_photograph_is_the_right_filter_of_the_right_original(stack: Stack, clients: int) -> None:
    try:
        originals = pictures(40, (80, 120, 200, 300, 400))
    except NoPhotographs as error:
        pytest.skip(f"the photographs are not to be had here: {error}")
    credentials = json.loads((stack.home / "credentials.json").read_text())
    url = f"http://127.0.0.1:{stack.port}/v1"
    login = stack.http.post("/login", auth=(credentials["user"], credentials["password"]))
    with Server(url, login.json()["token"]) as server:
        _, wrong = server.filtered("blur", originals, clients)
    assert wrong == []
