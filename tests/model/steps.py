"""The steps among which Hypothesis chooses; what it prints of a failure are calls of them, shrunk to the fewest."""

import sys
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.world import LEADERS, NODES, SPECS, World

_KIND = st.sampled_from(sorted(SPECS))
_NODE = st.integers(0, len(NODES) - 1)
_SCHEDULER = st.integers(0, LEADERS - 1)
_WHICH = st.integers(0, 2)
_TROUBLES = ("cut", "kill", "restart", "pause", "start_agent", "reboot", "reimage", "destroy", "sweep")

#: A history's length, and no database: what was found once belongs into test_histories.py.
SETTINGS = settings(
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink),
)


def _if(possible: Any) -> Any:
    return precondition(lambda self: possible(self.world))


class Protocol(RuleBasedStateMachine):
    """A history of the world; whatever it was, everything must come to its end after it."""

    healed = 0  # histories that were followed to their end

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(kinds=st.lists(_KIND, min_size=1, max_size=3), schedulers=st.integers(1, 2), seconds=st.integers(0, 2))
    def begin(self, kinds, schedulers, seconds):
        for kind in kinds:
            self.world.submit(kind)
        if schedulers == 2:
            self.world.elect(1)
        self.world.calm(seconds)

    @rule(kind=_KIND)
    def submit(self, kind):
        self.world.submit(kind)

    @rule(number=_WHICH)
    def cancel(self, number):
        self.world.cancel(number)

    @rule(seconds=st.integers(1, 3), stops_at=st.sampled_from([None, None, 1, 2, 3, 4, 5, 6]), ends=st.booleans())
    def calm(self, seconds, stops_at, ends):
        self.world.calm(seconds, stops_at, ends=ends)

    @rule(seconds=st.sampled_from([1, 3, 9]))
    def wait(self, seconds):
        self.world.wait(seconds)

    @rule(k=_SCHEDULER, what=st.sampled_from(["elect", "kill_scheduler", "pause_scheduler", "keep_snapshot"]))
    def scheduler_trouble(self, k, what):
        getattr(self.world, what)(k)

    @_if(lambda world: world.turns())
    @rule(i=_WHICH, reads=st.sampled_from([None, 0, 1, 2]))
    def decide(self, i, reads):
        self.world.decide(_pick(self.world.turns(), i), reads)

    @_if(lambda world: world.turns(begun=True))
    @rule(i=_WHICH, until=st.sampled_from([None, 1, 2]))
    def record(self, i, until):
        self.world.record(_pick(self.world.turns(begun=True), i), until)

    @_if(lambda world: world.turns(begun=True))
    @rule(i=_WHICH)
    def answer(self, i):
        self.world.answer(_pick(self.world.turns(begun=True), i))

    @rule(n=_NODE)
    def send_beat(self, n):
        self.world.send_beat(n)

    @_if(lambda world: world.beats)
    @rule(i=_WHICH, again=st.booleans())
    def deliver_beat(self, i, again):
        self.world.deliver_beat(i, again=again)

    @_if(lambda world: world.answers)
    @rule(i=_WHICH)
    def deliver_answer(self, i):
        self.world.deliver_answer(i)

    @_if(lambda world: world.beats or world.answers)
    @rule(i=_WHICH)
    def lose(self, i):
        self.world.lose(i)

    @_if(lambda world: world.with_reports())
    @rule(i=_WHICH, acknowledged=st.booleans())
    def send_reports(self, i, acknowledged):
        self.world.send_reports(i, acknowledged=acknowledged)

    @_if(lambda world: world.with_facts())
    @rule(i=_WHICH, dies_after=st.sampled_from([None, None, None, 0, 1, 2, 3]))
    def agent_turn(self, i, dies_after):
        self.world.agent_turn(i, dies_after)

    @_if(lambda world: world.tasks())
    @rule(i=_WHICH)
    def agent_task(self, i):
        self.world.agent_task(i)

    @_if(lambda world: world.programs())
    @rule(i=_WHICH, exit_code=st.integers(0, 1))
    def end_program(self, i, exit_code):
        self.world.end_program(i, exit_code)

    @rule(n=_NODE, what=st.sampled_from(_TROUBLES))
    def node_trouble(self, n, what):
        getattr(self.world, what)(n)

    @rule(
        n=_NODE,
        how=st.sampled_from(["cut", "cut", "kill", "pause", "reboot", "destroy"]),
        ends=st.booleans(),
        comes_back=st.booleans(),
    )
    def outlast_the_lease(self, n, how, ends, comes_back):
        self.world.outlast_the_lease(n, how, ends=ends, comes_back=comes_back)

    @rule(
        n=_NODE, parts=st.integers(0, 12), how=st.sampled_from(["cut", "kill", "restart", "pause", "reboot", "reimage"])
    )
    def interrupt(self, n, parts, how):
        self.world.interrupt(n, parts, how)

    @rule(k=_SCHEDULER, seconds=st.integers(1, 4))
    def usurp(self, k, seconds):
        self.world.usurp(k, seconds)

    @rule(k=_SCHEDULER, n=_NODE)
    def first_word(self, k, n):
        self.world.first_word(k, n)

    def teardown(self):
        if sys.exc_info()[0] is None:  # else a promise is broken already
            self.world.heal()
            Protocol.healed += 1


def _pick(some: list[int], i: int) -> int:
    return some[i % len(some)]
