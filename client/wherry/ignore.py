"""Which files of a folder stay at home: a `.wherryignore` in the manner of .gitignore."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

IGNORE_FILE = ".wherryignore"
#: Never sent, whatever the file says.
ALWAYS = (".git/", ".hg/", ".svn/", "__pycache__/", ".wherry/", ".DS_Store", f"/{IGNORE_FILE}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an ignore file."""

    pattern: re.Pattern[str]
    folders_only: bool
    keep: bool


class IgnoreRules:
    """The rules of one folder; of those that match a path, the last one decides."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._rules = [rule for line in (*lines, *ALWAYS) if (rule := _parse(line))]

    def ignores(self, path: str, *, folder: bool) -> bool:
        """Return whether *path*, relative and with forward slashes, stays at home."""
        for rule in reversed(self._rules):
            if (folder or not rule.folders_only) and rule.pattern.fullmatch(path):
                return not rule.keep
        return False


def _parse(line: str) -> Rule | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    keep = text.startswith("!")
    text = text[1:] if keep else text
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    anchored = "/" in text
    pattern = _regex(text.lstrip("/"))
    return Rule(re.compile(pattern if anchored else f"(?:.*/)?{pattern}"), folders_only, keep)


def _regex(glob: str) -> str:
    tokens = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?|\[!?[^\]/]+\])", glob)
    return "".join(_token(part, tokens) for part in parts)


def _token(part: str, tokens: dict[str, str]) -> str:
    if part in tokens:
        return tokens[part]
    if part.startswith("[") and part.endswith("]") and len(part) > 2:
        return part.replace("[!", "[^", 1).replace("\\", "\\\\")
    return re.escape(part)
