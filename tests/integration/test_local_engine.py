"""What `make down` takes off the engine."""

import pytest

from infra.local.engine import STACK_LABEL, engine, remove_containers
from shared.ids import new_id
from tests.e2e.stack import docker_answers
from tests.integration.agent_stack import IMAGE, busybox

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_answers(), reason="needs an engine")]


def test_containers_and_networks_of_the_stack_go_and_those_of_another_stay() -> None:
    busybox()
    client = engine()
    assert client is not None
    mine, other = new_id("s"), new_id("s")
    try:
        for stack in (mine, other):
            labels = {STACK_LABEL: stack}
            client.networks.create(stack, internal=True, labels=labels)
            client.containers.create(IMAGE, ["true"], network=stack, labels=labels)
        assert remove_containers(mine) == 1
        assert client.networks.list(names=[mine]) == []
        assert client.containers.list(all=True, filters={"label": f"{STACK_LABEL}={mine}"}) == []
        assert len(client.networks.list(names=[other])) == 1
    finally:
        assert remove_containers(other) == 1
