"""The protocol with one of its mechanisms taken out: the model has to notice every one of them."""

from collections.abc import Callable
from typing import Any

import pytest

from services.node_agent.core.machine import Machine
from services.scheduler.core import lifecycle, machine
from services.scheduler.core.replay import Replay
from shared.job import Job
from tests.simulation.agent import Agent, Journal
from tests.simulation.log import Log

Mutation = Callable[[pytest.MonkeyPatch], None]


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """A report counts for the current attempt, whichever it is about and whoever sends it."""
    step = lifecycle._step

    def unfenced(job: Job, event: Any, *rest: Any) -> Any:
        if isinstance(event, lifecycle.Report) and job.current is not None:
            data = event.data.model_copy(update={"attempt": job.attempt})
            event = lifecycle.Report(job.current.node, data)
        return step(job, event, *rest)

    patch.setattr(lifecycle, "_step", unfenced)


def no_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    """The log takes every event about a job, whatever it follows."""
    patch.setattr(Log, "follows", lambda *_: True)


def no_journal(patch: pytest.MonkeyPatch) -> None:
    """An agent writes nothing down."""
    patch.setattr(Journal, "write", lambda *_: None)


def no_resend(patch: pytest.MonkeyPatch) -> None:
    """A report is sent by the agent that has made it, or never."""
    start = Agent.start

    def forgetful(self: Agent, mono: float) -> None:
        start(self, mono)
        self.unsent = {}

    patch.setattr(Agent, "start", forgetful)


def no_epoch(patch: pytest.MonkeyPatch) -> None:
    """An agent obeys whoever answers; nor does it know what it has held before, the second guard of the same."""
    desired = Machine._desired

    def obedient(self: Machine, state: Any, *rest: Any) -> Any:
        return desired(self, state.model_copy(update={"epoch": max(state.epoch, self.epoch)}), *rest)

    patch.setattr(Machine, "_desired", obedient)
    patch.setattr("services.node_agent.core.machine.DROPPED_KEPT", 0)
    patch.setattr("tests.simulation.agent.DROPPED_KEPT", 0)


def no_session(patch: pytest.MonkeyPatch) -> None:
    """An agent that starts again counts its heartbeats anew, and nothing tells them from the old ones."""
    heartbeat = Agent.heartbeat

    def anonymous(self: Agent, *when: Any) -> Any:
        return heartbeat(self, *when).model_copy(update={"session": "always"})

    take = Agent.take
    patch.setattr(Agent, "heartbeat", anonymous)
    own = "{0.id}-{0.sessions}"
    patch.setattr(
        Agent,
        "take",
        lambda self, beat, answer: take(self, beat.model_copy(update={"session": own.format(self)}), answer),
    )


def no_absorbing_end(patch: pytest.MonkeyPatch) -> None:
    """A job that has ended is looked at like any other."""
    patch.setattr(lifecycle, "JOB_TERMINAL", frozenset())
    patch.setattr(Job, "is_terminal", property(lambda _: False))


def no_lease_on_nodes(patch: pytest.MonkeyPatch) -> None:
    """A node that is cut off lets run what must not run twice."""
    patch.setattr(Machine, "_fence_all", lambda *_: [])


def no_lease_for_nodes(patch: pytest.MonkeyPatch) -> None:
    """The scheduler waits for a silent node for ever."""
    patch.setattr(machine, "lost_nodes", lambda *_: [])


def no_inputs_in_replay(patch: pytest.MonkeyPatch) -> None:
    """A new leader knows the jobs, but not what was reported and not yet decided about."""
    facts = Replay.facts

    def jobs_only(self: Replay) -> Any:
        self.inputs.clear()
        return facts(self)

    patch.setattr(Replay, "facts", jobs_only)


def no_second_look(patch: pytest.MonkeyPatch) -> None:
    """A restarted agent starts what it may have started before."""
    recover = Machine._recover

    def hasty(self: Machine, held: Any, fact: Any, now: Any) -> Any:
        found = {key: (handle, "created") for key, (handle, _) in fact.found.items()}
        return recover(self, held, type(fact)(fact.runtime, found), now)

    patch.setattr(Machine, "_recover", hasty)


MUTANTS: tuple[Mutation, ...] = (
    no_fence,
    no_compare_and_set,
    no_journal,
    no_resend,
    no_epoch,
    no_session,
    no_absorbing_end,
    no_lease_on_nodes,
    no_lease_for_nodes,
    no_inputs_in_replay,
    no_second_look,
)
