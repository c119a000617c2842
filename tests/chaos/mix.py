"""The jobs of a chaos run: chosen by a seed, each with the end and the bytes that it must come to."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.e2e.stack import zip_of

Kind = Literal["output", "source", "sleep", "retry", "fails", "cancel"]
#: How often each comes up, of a hundred.
SHARES: dict[Kind, int] = {"output": 40, "source": 15, "sleep": 10, "retry": 15, "fails": 10, "cancel": 10}
OUT = "out.txt"
EXIT_OF_FAILURE = 7
_SIZES = (200, 4_000, 60_000)
_WRITE = f'yes "$TAG $WHERRY_ATTEMPT" | head -c "$SIZE" > "$WHERRY_OUTPUTS/{OUT}"'
#: Odd attempts fail, also when infrastructure took one: whichever comes last must have an even number.
_EVEN = "[ $((WHERRY_ATTEMPT % 2)) = 0 ]"


@dataclass(frozen=True, slots=True)
class Plan:
    """One job: what is handed in, and what must come of it.

    `size` is the length of the output in bytes, 0 where there is none; `cancel_after_s` counts from the 202.
    """

    number: int
    kind: Kind
    key: str
    tag: str
    command: str
    size: int
    end: str
    max_attempts: int = 1
    cancel_after_s: float | None = None
    notify: bool = False
    source: bytes | None = field(default=None, repr=False)

    @property
    def hook_path(self) -> str:
        """Where its webhook goes: a target of its own."""
        return f"chaos/{self.key}"

    def output(self, attempt: int) -> bytes:
        """Return what *attempt* of it must have left."""
        line = f"{self.tag} {attempt}\n".encode()
        return (line * (self.size // len(line) + 1))[: self.size]

    def spec(self, runtime: str, image: str | None, webhook_url: str, starts: str | None) -> dict[str, Any]:
        """Return the job's spec.

        Args:
            runtime: docker or process.
            image: for docker, with a shell.
            webhook_url: the receiver's address, with a slash at its end.
            starts: a file to which each start adds a line; for plain processes, whose starts no engine counts.
        """
        note = 'echo "$WHERRY_JOB_ID $WHERRY_ATTEMPT" >> "$STARTS"; ' if starts else ""
        spec: dict[str, Any] = {
            "name": self.tag,
            "runtime": runtime,
            "command": note + self.command,
            "env": {"TAG": self.tag, "SIZE": str(self.size)} | ({"STARTS": starts} if starts else {}),
            "resources": {"cpus": 0.25, "memory": "32MiB", "disk": "16MiB", "tmp": "1MiB", "shm": "1MiB"},
            "max_attempts": self.max_attempts,
        }
        if image:
            spec["image"] = image
        if self.notify:
            spec["notify"] = [{"webhook": {"url": webhook_url + self.hook_path}}]
        return spec


def plans(seed: int, count: int, name: str) -> Iterator[Plan]:
    """Yield *count* jobs; the same seed and name give the same ones."""
    chance = random.Random(f"{seed}/{name}")
    for number in range(count):
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        yield _plan(chance, number, kind, f"{name}-{seed}-{number}")


def _plan(chance: random.Random, number: int, kind: Kind, tag: str) -> Plan:
    size, nap, notify = chance.choice(_SIZES), f"{chance.uniform(0.5, 3):.2f}", chance.random() < 1 / 3
    wait_s = chance.uniform(0.1, 4)
    plan = {
        "output": (_WRITE, size, "succeeded", 1),
        "source": (f"sh ./run.sh && {_WRITE}", size, "succeeded", 1),
        "sleep": (f"sleep {nap}; {_WRITE}", size, "succeeded", 1),
        "retry": (f"{_WRITE}; {_EVEN}", size, "succeeded", 8),
        "fails": (f"{_WRITE}; exit {EXIT_OF_FAILURE}", size, "failed", 2),
        "cancel": ("sleep 600", 0, "cancelled", 1),
    }
    command, length, end, attempts = plan[kind]
    source = (
        zip_of({"run.sh": f"grep -q {tag} data/tag.txt\n", "data/tag.txt": tag * 100}) if kind == "source" else None
    )
    cancel = wait_s if kind == "cancel" else None
    return Plan(number, kind, tag, tag, command, length, end, attempts, cancel, notify, source)
