"""Histories that once broke a promise, step by step."""

import pytest

from tests.model.world import World


def work(world: World) -> None:
    while world.with_facts() or world.tasks():
        world.agent_turn(0, None)
        world.agent_task(0)


def test_a_scheduler_that_reads_slowly_has_nothing_forgotten_that_another_has_just_placed() -> None:
    """It is told of an attempt by the node before it has read that it was placed. Forgotten, it would start again."""
    world = World()
    world.elect(1)
    world.submit("plain")
    world.send_beat(0)
    world.deliver_beat(0, again=False)
    world.decide(0, None)
    world.answer(0)
    world.deliver_answer(0)
    work(world)
    assert world.oracle.starts
    world.send_beat(0)
    world.deliver_beat(0, again=False)
    world.decide(1, 0)
    world.answer(1)
    [*_, (_, _, answer)] = world.answers
    assert [one.action for one in answer.assignments] == ["keep"]
    world.deliver_answer(len(world.answers) - 1)
    work(world)
    world.heal()


def test_a_scheduler_that_stood_still_does_not_start_again_what_has_ended_meanwhile() -> None:
    """It believes the attempt placed and not yet taken, and is the first to answer the node."""
    world = World()
    world.submit("exclusive")
    world.elect(1)
    world.calm(0)
    world.calm(1, None, ends=False)
    for _ in range(3):
        world.cancel(0)
    world.pause_scheduler(1)
    world.calm(2, None, ends=False)
    for _ in range(3):
        world.cancel(0)
    world.first_word(1, 0)
    world.calm(1, None, ends=False)
    assert sum(world.oracle.starts.values()) == 1


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_an_agent_that_was_away_for_longer_than_its_lease_does_not_start_what_another_node_may_run(how: str) -> None:
    """It died, or stood still, between making a container and starting it, before it had noted its lease."""
    world = World()
    world.submit("exclusive")
    world.calm(0)
    world.interrupt(0, 6, "restart")
    world.outlast_the_lease(0, how, ends=False, comes_back=True)
    world.calm(1, None, ends=False)
