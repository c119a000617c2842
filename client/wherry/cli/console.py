"""Where the command writes: results on standard output, everything else on standard error."""

import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from client.wherry.cli.words import harmless
from client.wherry.errors import WherryError


@dataclass(slots=True)
class Output:
    """What a command says, for people or, with `json`, for programs."""

    json: bool = False
    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))

    def document(self, value: BaseModel | dict[str, Any]) -> None:
        """Write a result as JSON: the server's own fields, indented for people and one line in a pipe."""
        plain = as_json(value)
        self.out.print(json.dumps(plain, indent=2 if self.out.is_terminal else None), markup=False)

    def note(self, text: str) -> None:
        """Say something that is not the result."""
        if not self.json:
            self.err.print(text, markup=False)

    def line(self, text: str, *, error: bool = False) -> None:
        """Write a line of a job's output: on a terminal only what cannot harm it, in a pipe as it came."""
        console = self.err if error else self.out
        if console.is_terminal:
            console.out(harmless(text), highlight=False)
        else:
            stream = sys.stderr if error else sys.stdout
            stream.write(f"{text}\n")
            stream.flush()

    def problem(self, error: WherryError, hint: str) -> None:
        """Say what went wrong and what to do about it."""
        if self.json:
            fields = [{"field": item.field, "message": item.message} for item in error.fields]
            document = {"code": error.code, "detail": error.detail, "status": error.status, "errors": fields}
            self.err.print(json.dumps({"error": document}), markup=False)
            return
        self.err.print("error: ", style="bold red", end="")
        self.err.print(harmless(error.detail), markup=False)
        for item in (item for item in error.fields if item.message not in error.detail):
            self.err.print(f"  {item.field}: {harmless(item.message)}", markup=False)
        if hint:
            self.err.print(f"  {hint}", markup=False)

    def transfer(self) -> Progress:
        """Return a bar for bytes; it shows only on a terminal."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=self.err,
            transient=True,
            disable=self.json or not self.err.is_terminal,
        )


def _console(*, stderr: bool) -> Console:
    """Return a console as wide as its terminal; in a pipe nothing is cut or wrapped."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, soft_wrap=True, width=1000)


def as_json(value: BaseModel | dict[str, Any]) -> Any:
    """Return *value* as JSON data; of an answer only what the server sent."""
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value


def now() -> datetime:
    """Return the wall-clock time in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the client's one clock
