"""Patterns of paths, as a shell has them, in time that grows with the path alone: who writes them may be anybody."""

import re
from collections.abc import Callable

_TOKENS = re.compile(r"(?:\*\*/)+|\*\*+|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
#: Steps that are remembered.
_KNOWN_MAX = 50_000

_Fits = Callable[[str], bool]


class Glob:
    """A pattern.

    ``*`` and ``?`` stand for no slash, ``**`` stands for any folders, ``[a-c]`` and ``[!a-c]`` for one character but a
    slash. All places of the pattern that a path may have come to are followed at once, as bits of a number: a regular
    expression would try them one after the other, which for a few stars takes longer than anybody lives.

    Raises:
        ValueError: it is no pattern.
    """

    def __init__(self, pattern: str) -> None:
        self._moves: list[_Fits] = []  # what leads from each place to the next
        self._stays: list[_Fits] = []  # what leads from it to itself
        self._free = [0, 0]  # the places from which the next, and the next but one, are reached by nothing
        for token in _TOKENS.findall(pattern):
            self._add(token)
        self._begin = self._reached(1)
        self._end = 1 << len(self._moves)
        self._ways: dict[str, tuple[int, int]] = {}
        self._known: dict[tuple[int, str], int] = {}

    def match(self, path: str) -> bool:
        """Return whether all of *path* fits."""
        places = self._begin
        for char in path:
            key = places, char
            after = self._known.get(key)
            if after is None:
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                after = self._known[key] = self._step(places, char)
            if not after:
                return False
            places = after
        return bool(places & self._end)

    def _step(self, places: int, char: str) -> int:
        ways = self._ways.get(char)
        if ways is None:
            if len(self._ways) >= _KNOWN_MAX:
                self._ways.clear()
            ways = self._ways[char] = _bits(self._moves, char), _bits(self._stays, char)
        return self._reached((places & ways[0]) << 1 | places & ways[1])

    def _reached(self, places: int) -> int:
        while True:
            more = places | (places & self._free[0]) << 1 | (places & self._free[1]) << 2
            if more == places:
                return places
            places = more

    def _add(self, token: str) -> None:
        if token.startswith("**/"):  # nothing, or whatever ends with a slash
            self._free[0] |= 1 << len(self._moves)
            self._free[1] |= 1 << len(self._moves)
            self._place(_nothing, _nothing)
            self._place(_slash, _anything)
        elif token.startswith("*"):
            self._free[0] |= 1 << len(self._moves)
            self._place(_nothing, _anything if token.startswith("**") else _no_slash)
        else:
            self._place(_one(token), _nothing)

    def _place(self, moves: _Fits, stays: _Fits) -> None:
        self._moves.append(moves)
        self._stays.append(stays)


def _bits(tests: list[_Fits], char: str) -> int:
    return sum(1 << at for at, fits in enumerate(tests) if fits(char))


def _one(part: str) -> _Fits:
    """Return what tells whether a character is one that *part* stands for."""
    if part == "?":
        return _no_slash
    if len(part) == 1:
        return lambda char: char == part
    negated = part[1] == "!"
    # Of all that `re` knows within brackets only ranges are meant.
    plain = re.sub(r"(?<!\\-)\\-(?!\\-)", "-", re.escape(part[1 + negated : -1]))
    try:
        chars = re.compile(rf"(?!/)[{'^' if negated else ''}{plain}]", re.DOTALL)
    except re.error as error:
        raise ValueError(f"brackets that cannot be read: {error}") from None
    return lambda char: chars.match(char) is not None


def _slash(char: str) -> bool:
    return char == "/"


def _no_slash(char: str) -> bool:
    return char != "/"


def _anything(_char: str) -> bool:
    return True


def _nothing(_char: str) -> bool:
    return False
