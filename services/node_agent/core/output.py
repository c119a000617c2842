"""Understanding what a program prints: lines with numbers, progress, metrics, bars that redraw themselves."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.node_agent.core.at_work import AtWork
from services.node_agent.core.series import SYSTEM
from shared.events import LOG_LINE_BYTES_MAX, LogLine, MetricPoint, Progress

#: Stands at the end of a line that was too long.
CUT_MARK = " …[line cut]"
MESSAGE_CHARS_MAX = 300
_DRAWINGS_LOOKED_AT = 4
_TEXT_MAX = LOG_LINE_BYTES_MAX - len(CUT_MARK.encode())
# Of so few digits, or a line of nothing else would be tried in as many ways as it has pairs of them.
_PROGRESS = re.compile(r"^::progress\s+(\d{0,30}\.?\d{1,30}(?:[eE][-+]?\d{1,4})?)(%?)\s*(?:::(.*))?$")
_METRIC = re.compile(r"^::metric\s+(\S.*)$")
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_./:@-]{0,99}$")
#: After a bar that tqdm draws below another it goes back up: it is of a part, and the other one of the whole.
_UP = b"\x1b[A"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: tqdm: a percentage and a bar, of blocks or in ASCII; a column of a table has neither.
_PERCENT_BAR = re.compile(r"(?:^|[\s:])(\d{1,3})%\|(?=[█▉▊▋▌▍▎▏]|[#\d]*\s*\|\s*[\d.]+[kMGTP]?/[\d.?]+)")
#: Keras 2 and 3, and their line without a bar (`verbose=2`).
_COUNT_BAR = re.compile(r"^\s*(\d{1,18})/(\d{1,18})\s+(?:\[=*>?\.*\](?<=[=>.]\])|[━╸╺]+|- \d{1,9}m?s - )")
_EPOCH = re.compile(rb"^Epoch (\d{1,9})/(\d{1,9})\r?$")  # Keras: what its next bars are a part of
_EPOCH_LINES = re.compile(rb"^Epoch \d{1,9}/\d{1,9}\r?$", re.MULTILINE)
_METRIC_LINES = re.compile(rb"^::metric [^\n]*", re.MULTILINE)
_PROGRESS_LINES = re.compile(rb"^::progress [^\n]*", re.MULTILINE)
_ITEM = re.compile(r"^::item\s+(i[a-z2-7]{25})\s+(?:(ok)|failed(?:\s+(.*))?)$")
#: On the standard error, which has no answers: of which item all that follows there is (adapters/worker.sh).
_BEGUN = re.compile(rb"^::item (i[a-z2-7]{25}) begins$")
#: Ends what a program has printed before a line of our own, which is so never in the middle of one of its.
LINE_END_MARK = b"\x1e"
_PERHAPS_OURS = re.compile(rb"^(?:\x1e|::item [^\n]*)$", re.MULTILINE)
#: Databases keep whole numbers of 64 bits.
_STEP_END = 2.0**63
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")  # Keras goes back by backspaces


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says of an item: it is done, or has failed, and why. `at`: when it said so."""

    id: str
    is_ok: bool
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Parsed:
    """What some bytes of output said. `progress` is the latest."""

    lines: tuple[LogLine, ...] = ()
    progress: Progress | None = None
    metrics: tuple[MetricPoint, ...] = ()
    answers: tuple[Answer, ...] = ()


@dataclass(slots=True)
class _Pending:
    """The line of one stream that has not ended yet; more than `_TEXT_MAX` of it is dropped."""

    text: bytes = b""
    is_cut: bool = False
    is_returned: bool = False  # a carriage return came: what follows overwrites, unless it is the line's end


@dataclass(slots=True)
class _Epochs:
    """How far Keras is: epochs that are over, of how many; it draws a bar for each epoch."""

    over: int = 0
    count: int = 1

    def begin(self, line: bytes) -> bool:
        """Take in a line, if it says which epoch begins; return whether it does."""
        match = _EPOCH.match(line)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            return False
        self.over, self.count = int(match[1]) - 1, int(match[2])
        return True

    def whole(self, fraction: float) -> float:
        """Return how much of all epochs is done when *fraction* of this one is.

        Once the last has ended, another bar stands for itself: it is that of an evaluation.
        """
        done = (self.over + fraction) / self.count
        if done >= 1:
            self.over, self.count = 0, 1
        return done


@dataclass(slots=True)
class OutputParser:
    """Turns chunks of the two streams of an attempt into numbered lines, progress and metrics.

    Args:
        next_number: of the next line; counts over both streams.
        pending: what `saved` returned, to go on after a restart.
        is_worker: answers about items are taken out of the output.
    """

    next_number: int = 1
    pending: dict[str, _Pending] = field(default_factory=lambda: {"o": _Pending(), "e": _Pending()})
    is_worker: bool = False
    epochs: _Epochs = field(default_factory=_Epochs)
    at_work: AtWork = field(default_factory=AtWork)  # of a worker: which item a line of its standard output is about
    begun: str = ""  # the same of its standard error, where it says so there: the two are not read in step

    def skim(self, stream: str, at: datetime, chunk: bytes, last: int) -> Parsed:
        """Take in bytes as `feed` does, but give only the lines among the *last* bytes, at little cost.

        All are counted, and metrics and progress are found in all of them.
        """
        end = chunk.rfind(b"\n", 0, max(0, len(chunk) - last))
        start = chunk.find(b"\n") + 1
        if end < start:
            return self.feed(stream, at, chunk)
        opening = self.feed(stream, at, chunk[:start])
        skipped = chunk[start : end + 1]
        self.next_number += skipped.count(b"\n")
        found = _Found(
            at, self.epochs, progress=opening.progress, metrics=list(opening.metrics), answers=list(opening.answers)
        )
        if b"::" in skipped:
            for line in (*_METRIC_LINES.findall(skipped), *_PROGRESS_LINES.findall(skipped)[-1:]):
                found.signal(line)
        for line in _PERHAPS_OURS.findall(skipped) if self.is_worker else ():
            self.next_number -= self._is_ours(stream, line, found)
        for line in _EPOCH_LINES.findall(skipped)[-1:] if b"Epoch " in skipped else ():
            self.epochs.begin(line)
        rest = self.feed(stream, at, chunk[end + 1 :])
        return Parsed(
            rest.lines, rest.progress or found.progress, (*found.metrics, *rest.metrics),
            (*found.answers, *rest.answers),
        )  # fmt: skip

    def feed(self, stream: str, at: datetime, chunk: bytes) -> Parsed:
        """Take in bytes of *stream* ("o" or "e") printed at *at*."""
        pending = self.pending[stream]
        pieces = chunk.split(b"\n")
        found = _Found(at, self.epochs)
        for piece in pieces[:-1]:
            self._extend(pending, piece, found)
            self._end_line(stream, pending, found)
        if pieces[-1]:
            self._extend(pending, pieces[-1], found)
        return found.parsed()

    def finish(self, at: datetime) -> Parsed:
        """Return what the last lines say, which had no line end."""
        found = _Found(at, self.epochs)
        for stream, pending in self.pending.items():
            if pending.text:
                self._end_line(stream, pending, found)
        return found.parsed()

    def saved(self) -> dict[str, Any]:
        """Return the parser's state as JSON values."""
        return {
            "next_number": self.next_number,
            "pending": {name: [p.text.decode("latin-1"), p.is_cut, p.is_returned] for name, p in self.pending.items()},
            "epochs": [self.epochs.over, self.epochs.count],
            "begun": self.begun,
        }

    @classmethod
    def restored(cls, saved: dict[str, Any], *, is_worker: bool = False) -> "OutputParser":
        """Return a parser that goes on where *saved* stopped."""
        pending = {name: _Pending(text.encode("latin-1"), *flags) for name, (text, *flags) in saved["pending"].items()}
        epochs = _Epochs(*saved.get("epochs", ()))
        return cls(saved["next_number"], pending, is_worker, epochs, begun=saved.get("begun", ""))

    def _is_ours(self, stream: str, text: bytes, found: "_Found") -> bool:
        """Return whether a worker's line is for the agent alone."""
        return text == LINE_END_MARK or (text.startswith(b"::item") and self._is_about_item(stream, text, found))

    def _is_about_item(self, stream: str, raw: bytes, found: "_Found") -> bool:
        if stream == "e":
            begins = _BEGUN.match(raw)
            if begins is not None:
                self.begun = begins[1].decode()
            return begins is not None
        is_answer = found.answer(raw)
        if is_answer:
            self.at_work.answered(found.answers[-1].id)
        return is_answer

    def _extend(self, pending: _Pending, piece: bytes, found: "_Found") -> None:
        first, *redrawn = piece.split(b"\r")
        self._append(pending, first)
        # Of very many drawings the last few are enough: the very last may only wipe the line.
        for update in redrawn[-_DRAWINGS_LOOKED_AT:]:
            found.bar(pending.text)
            pending.is_returned = True
            self._append(pending, update)

    def _append(self, pending: _Pending, piece: bytes) -> None:
        if piece and pending.is_returned:
            pending.text, pending.is_cut, pending.is_returned = b"", False, False
        room = _TEXT_MAX - len(pending.text)
        pending.is_cut = pending.is_cut or len(piece) > room
        pending.text += piece[: max(room, 0)]

    def _end_line(self, stream: str, pending: _Pending, found: "_Found") -> None:
        if self.is_worker:
            if self._is_ours(stream, pending.text, found):
                pending.text, pending.is_cut, pending.is_returned = b"", False, False
                return
            pending.text = pending.text.removesuffix(LINE_END_MARK)
        found.signal(pending.text)
        text = pending.text.decode("utf-8", "replace")
        if len(text) > _TEXT_MAX // 3:  # a replaced byte takes three
            text = text.encode()[:_TEXT_MAX].decode("utf-8", "ignore")
        text += CUT_MARK if pending.is_cut else ""
        item = self.at_work.item if stream == "o" else self.begun
        # What is built here is right; checking it would take longer than all the rest.
        found.lines.append(LogLine.model_construct(n=self.next_number, t=found.at, s=stream, x=text, i=item))
        self.next_number += 1
        pending.text, pending.is_cut, pending.is_returned = b"", False, False


@dataclass(slots=True)
class _Found:
    at: datetime
    epochs: _Epochs
    lines: list[LogLine] = field(default_factory=list[LogLine])
    progress: Progress | None = None
    metrics: list[MetricPoint] = field(default_factory=list[MetricPoint])
    answers: list[Answer] = field(default_factory=list[Answer])

    def parsed(self) -> Parsed:
        return Parsed(tuple(self.lines), self.progress, tuple(self.metrics), tuple(self.answers))

    def answer(self, raw: bytes) -> bool:
        """Take in a line, if it is an answer about an item; return whether it is."""
        answer = answer_in(raw.decode("utf-8", "replace").strip(), self.at)
        if answer is not None:
            self.answers.append(answer)
        return answer is not None

    def signal(self, raw: bytes) -> None:
        """Look for progress and metrics in a line."""
        if raw.startswith(b"::"):
            text = raw.decode("utf-8", "replace").strip()
            self.progress = progress_in(text, self.at) or self.progress
            self.metrics.extend(metrics_in(text, self.at))
        elif not (raw.startswith(b"Epoch ") and self.epochs.begin(raw)):
            self.bar(raw)

    def bar(self, raw: bytes) -> None:
        """Look for progress in one drawing of a bar."""
        if (b"%|" in raw or b"/" in raw[:40]) and not raw.rstrip().endswith(_UP):
            self.progress = bar_in(raw.decode("utf-8", "replace"), self.at, self.epochs.whole) or self.progress


def progress_in(text: str, at: datetime) -> Progress | None:
    """Read ``::progress 0.42::epoch 3 of 7``; a percent sign is understood, and what is above 1 is 1."""
    match = _PROGRESS.match(text)
    if match is None:
        return None
    fraction = float(match[1]) / (100 if match[2] else 1)
    return Progress(fraction=min(fraction, 1.0), message=(match[3] or "").strip()[:MESSAGE_CHARS_MAX], at=at)


def answer_in(text: str, at: datetime) -> Answer | None:
    """Read ``::item <id> ok`` or ``::item <id> failed <reason>``."""
    match = _ITEM.match(text)
    if match is None:
        return None
    return Answer(match[1], match[2] is not None, (match[3] or "").strip()[:MESSAGE_CHARS_MAX], at)


def metrics_in(text: str, at: datetime) -> list[MetricPoint]:
    """Read ``::metric accuracy=0.93 loss=0.1 step=3``; what is no finite number is left out."""
    match = _METRIC.match(text)
    if match is None:
        return []
    values: dict[str, float] = {}
    for word in match[1].split():
        name, _, number = word.partition("=")
        value = _number(number)
        if value is not None and _NAME.match(name) and not name.startswith(SYSTEM):
            values[name] = value
    step = values.pop("step", None)
    return [
        MetricPoint(name=name, value=value, step=None if step is None or abs(step) >= _STEP_END else int(step), at=at)
        for name, value in values.items()
    ]


def bar_in(text: str, at: datetime, whole: Callable[[float], float] = float) -> Progress | None:
    """Read a bar as tqdm or Keras draws it; *whole* makes of the part of one of Keras' bars that of the whole."""
    text = _CONTROL.sub("", _ANSI.sub("", text))
    if match := _PERCENT_BAR.search(text):
        fraction = int(match[1]) / 100
    elif (match := _COUNT_BAR.match(text)) and int(match[2]):
        fraction = whole(min(int(match[1]) / int(match[2]), 1.0))
    else:
        return None
    return Progress(fraction=min(fraction, 1.0), message=text.strip()[:MESSAGE_CHARS_MAX], at=at)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
