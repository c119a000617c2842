"""One chaos run: jobs in calm, the same kinds of jobs under faults, peace, and then what was promised is checked."""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.clock import utc_now
from tests.chaos import checks
from tests.chaos.checks import Evidence, Fault, Violation
from tests.chaos.faults import Blow, Injector, blows
from tests.chaos.field import Field, laid_out
from tests.chaos.mix import Plan, plans
from tests.chaos.plants import PLANTS

#: The last of a run's jobs take as long as the slowest; its pace is that of the first ones.
_PACED = 0.95
#: What a notifier had taken when it was killed comes again after a minute (shared/streams.py), and may fail once then.
_SETTLE_S = 180.0
#: What must be reached under faults. A stack that is stopped half of the time has no pace to keep.
HIT_LEAST = 0.8
_MUST_HIT, _MUST_PACE = frozenset({"kill", "stop"}), frozenset({"kill"})


@dataclass(frozen=True, slots=True)
class Options:
    """What to do.

    Attributes:
        faults: kill, stop, mongo or none.
        jobs: under faults; `calm` before that (0: a fifth of them, 20 to 300).
        nodes: agents.
        service_s, server_s: mean seconds between two faults of a service, of NATS or mongod.
        pause_s: the longest stop.
        patience_s: how long jobs may take to end, under faults and again after them.
        plants: bugs to plant.
        pace_least: the least pace under kill, as a share of the calm one.
    """

    faults: str = "kill"
    jobs: int = 500
    calm: int = 0
    seed: int = 1
    nodes: int = 2
    runtime: str = "docker"
    service_s: float = 5.0
    server_s: float = 30.0
    pause_s: float = 60.0
    patience_s: float = 1800.0
    plants: tuple[str, ...] = ()
    pace_least: float = 0.3

    @property
    def calm_jobs(self) -> int:
        return self.calm or min(max(20, self.jobs // 5), 300)


@dataclass(slots=True)
class Report:
    """How a run went."""

    options: Options
    home: Path
    faults: list[Fault] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    evidence: Evidence = field(default_factory=Evidence)
    hit: float = 0.0
    calm_pace: float = 0.0  # jobs a second
    pace: float = 0.0
    took_s: float = 0.0
    settled_s: float = 0.0
    extra_attempts: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.violations

    def lines(self) -> list[str]:
        """Return the report for people."""
        asked, done = self.options, Counter((fault.target, fault.kind) for fault in self.faults)
        slept = sum(fault.for_s for fault in self.faults)
        strikes = ", ".join(f"{name} {times} x {kind}" for (name, kind), times in sorted(done.items())) or "none"
        ratio = self.pace / self.calm_pace if self.calm_pace else 0.0
        kinds = Counter(one.kind for one in self.violations)
        return [
            f"chaos {asked.faults}: {asked.jobs} jobs on {asked.nodes} nodes ({asked.runtime}), seed {asked.seed}",
            f"  faults in {self.took_s:.0f} s: {strikes}" + (f"; {slept:.0f} s stopped in all" if slept else ""),
            f"  jobs hit by a fault: {self.hit:.0%} (at least {HIT_LEAST:.0%} where services are struck)",
            f"  jobs/s: {self.pace:.2f}, in calm {self.calm_pace:.2f}: {ratio:.0%} (kill: {asked.pace_least:.0%})",
            "  mean s after each event: " + ", ".join(f"{name} {mean:.1f}" for name, mean in self.phases.items()),
            f"  attempts made again because of a machine: {self.extra_attempts}; settled {self.settled_s:.0f} s after",
            f"  seed {asked.seed}: " + ("every promise held" if self.ok else f"BROKEN: {dict(kinds)}"),
            *(f"    {one.kind}: {one.detail}" for one in self.violations[:40]),
            *([] if self.ok else [f"  logs: {self.home / 'logs'}"]),
        ]


async def run(options: Options) -> Report:
    """Do it all and return what was found."""
    async with laid_out(options.runtime, options.nodes) as battle:
        report = Report(options, battle.stack.home)
        await _calm(battle, options, report)
        await _under_faults(battle, options, report)
        await _check(battle, options, report)
    return report


async def _calm(battle: Field, options: Options, report: Report) -> None:
    began = utc_now().timestamp()
    evidence = Evidence()
    await _hand_in(battle, list(plans(options.seed, options.calm_jobs, "calm")), evidence)
    await battle.until_ended(evidence.accepted, options.patience_s)
    report.calm_pace = _pace(battle, evidence, began)
    report.evidence.accepted |= evidence.accepted  # they keep the same promises


async def _under_faults(battle: Field, options: Options, report: Report) -> None:
    agents = ["node_agent", *(f"node_agent@n{number}" for number in range(2, options.nodes + 1))]
    planned = blows(
        options.faults, agents, service_s=options.service_s, server_s=options.server_s, pause_s=options.pause_s
    )
    injector, struck, began = Injector(battle.run_file), Evidence(), utc_now().timestamp()
    handing_in = asyncio.create_task(_hand_in(battle, list(plans(options.seed, options.jobs, "chaos")), struck))
    async with injector.striking(options.seed, planned):
        with contextlib.suppress(TimeoutError):  # then the rest has to come to its end in peace
            async with asyncio.timeout(options.patience_s):
                await asyncio.shield(handing_in)
                await _until_paced(battle, struck)
    report.took_s = utc_now().timestamp() - began
    await handing_in
    report.faults = injector.faults
    report.evidence.accepted |= struck.accepted
    await battle.until_ended(struck.accepted, options.patience_s)
    report.pace = _pace(battle, struck, began)


async def _hand_in(battle: Field, wanted: Sequence[Plan], evidence: Evidence) -> None:
    async def one(plan: Plan) -> None:
        job_id = await battle.submit(plan)
        evidence.accepted[job_id] = plan
        if plan.cancel_after_s is not None:
            await asyncio.sleep(plan.cancel_after_s)
            await battle.cancel(job_id)

    async with asyncio.TaskGroup() as group:
        for plan in wanted:
            group.create_task(one(plan))


async def _until_paced(battle: Field, evidence: Evidence) -> None:
    """Wait for nearly all jobs: faults go on while most of them run, and the last need not wait for each other."""
    enough = math.ceil(len(evidence.accepted) * _PACED)
    while len(battle.ended_at.keys() & evidence.accepted.keys()) < enough:
        battle.changed.clear()
        await battle.changed.wait()


def _pace(battle: Field, evidence: Evidence, began: float) -> float:
    """Return how many jobs a second came to their end, of the first `_PACED`."""
    ends = sorted(battle.ended_at[job_id] for job_id in evidence.accepted if job_id in battle.ended_at)
    enough = math.ceil(len(evidence.accepted) * _PACED)
    return enough / (ends[enough - 1] - began) if enough <= len(ends) and ends else 0.0


async def _check(battle: Field, options: Options, report: Report) -> None:
    evidence = report.evidence
    report.settled_s = await battle.settle(evidence, _SETTLE_S)
    await battle.download(evidence)
    await battle.look(evidence)
    if options.plants:
        for name in options.plants:
            await PLANTS[name](battle, evidence)
        await battle.look(evidence)
    report.violations = checks.violations(evidence)
    report.hit = checks.hit_share(_only(evidence, "chaos"), report.faults)
    report.phases = checks.phases(_only(evidence, "chaos"))
    report.extra_attempts = sum(
        ends[0].job.get("losses", 0) for job_id in evidence.accepted if (ends := evidence.ends(job_id))
    )
    report.violations += _too_little(report)


def _only(evidence: Evidence, name: str) -> Evidence:
    accepted = {job_id: plan for job_id, plan in evidence.accepted.items() if plan.tag.startswith(name)}
    return Evidence(accepted=accepted, log=evidence.log)


def _too_little(report: Report) -> list[Violation]:
    found: list[Violation] = []
    if report.options.faults in _MUST_HIT and report.hit < HIT_LEAST:
        found.append(Violation("few_hit", f"faults struck {report.hit:.0%} of the jobs"))
    if report.options.faults in _MUST_PACE and report.pace < report.options.pace_least * report.calm_pace:
        found.append(Violation("slow", f"{report.pace:.2f} jobs/s, in calm {report.calm_pace:.2f}"))
    return found


__all__ = ["Blow", "Options", "Report", "run"]
