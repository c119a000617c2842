from pathlib import Path
from typing import Any

import docker.errors
import pytest

from client.wherry import Job, Node, Notification
from infra.local import demo
from infra.local.home import Home


class Engine:
    """A Docker engine with some images, which can pull some more."""

    def __init__(self, has: set[str], pulls: set[str] = frozenset()) -> None:
        self.has, self.pulls = has, pulls
        self.images = self

    def get(self, image: str) -> None:
        if image not in self.has:
            raise docker.errors.ImageNotFound(image)

    def pull(self, image: str) -> None:
        if image not in self.pulls:
            raise docker.errors.APIError("no such host")


class Fleet:
    def __init__(self, *runtimes: str) -> None:
        self.runtimes = runtimes

    def nodes(self) -> list[Node]:
        return [Node.model_validate({"id": "local", "online": True, "runtimes": self.runtimes})]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WHERRY_DEMO_IMAGE", raising=False)
    monkeypatch.delenv("WHERRY_DEMO_RUNTIME", raising=False)
    monkeypatch.setattr(demo.os, "geteuid", lambda: 1000)  # nobody who may build an image

    def chosen(engine: Engine | None, *runtimes: str) -> demo.Choice:
        monkeypatch.setattr(demo, "engine", lambda: engine)
        fleet: Any = Fleet(*(runtimes or ("docker", "process")))
        return demo.choose(fleet, lambda _: None)

    return chosen


def test_a_local_image_comes_before_one_that_has_to_be_pulled(choose):
    assert choose(Engine({demo.BASE_IMAGE}, {demo.PUBLIC_IMAGE})).image == demo.BASE_IMAGE
    assert choose(Engine({demo.PUBLIC_IMAGE})).image == demo.PUBLIC_IMAGE


def test_the_public_image_is_pulled_where_none_is_local(choose):
    assert choose(Engine(set(), {demo.PUBLIC_IMAGE})).image == demo.PUBLIC_IMAGE


def test_the_image_that_is_asked_for_wins(choose, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_DEMO_IMAGE", "mine")
    assert choose(Engine({"mine", demo.BASE_IMAGE})).image == "mine"
    assert choose(Engine({demo.BASE_IMAGE}, {"mine"})).image == "mine"


def test_an_image_that_is_asked_for_and_not_to_be_had_is_an_error(choose, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_DEMO_IMAGE", "mine")
    with pytest.raises(demo.DemoError, match="mine"):
        choose(Engine({demo.BASE_IMAGE}))


def test_it_is_a_plain_process_where_no_engine_answers_or_no_image_is_to_be_had(choose):
    for choice, why in (
        (choose(None), "no Docker engine"),
        (choose(Engine({demo.BASE_IMAGE}), "process"), "found no Docker engine"),
        (choose(Engine(set())), "needs root"),
    ):
        assert choice.image is None
        assert why in choice.why


def test_a_notice_that_does_not_come_is_told_of_as_wherry_sees_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Told:
        def notifications(self, job_id: str) -> list[Notification]:
            return [Notification(id=job_id, kind="webhook", state="retrying", tries=2, detail="it cannot be reached")]

    monkeypatch.setattr(demo, "NOTICE_LIMIT_S", -1)
    with pytest.raises(demo.DemoError, match=r"the webhook did not come .*retrying, tries: 2 \(it cannot be reached\)"):
        demo._notices(Home(tmp_path), Told(), Job(job_id="j1", state="succeeded"), "", None, print)
