"""The documents name what is there: files, folders, tests, links and make targets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ("docs", "benchmarks", "examples", "infra", "images")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in WRITTEN for path in ROOT.glob(f"{folder}/**/*.md"))])
FOLDERS = (
    ".ci",
    "benchmarks",
    "client",
    "docs",
    "examples",
    "images",
    "infra",
    "scripts",
    "services",
    "shared",
    "tests",
)
#: What users and running services have, and the repository has not.
THEIRS = {"credentials.json", "metrics.json", "passwords.json", "ports.json", "run.json", "serve.py"}
_FILE = re.compile(r"(?<![\w./{}<>$:-])((?:[\w.-]+/)*[\w.*-]+\.(?:py|sh|yml|toml|md|lock))(?![\w/])")
_UNDER = re.compile(rf"(?<![\w./{{}}<>$:-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*[\w*])")
_TEST = re.compile(r"\btest_\w+")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")
_PLACE = re.compile(r"\]\(([^)#\s]*)#([\w-]+)\)")


def paths() -> list[str]:
    found = [path for top in ROOT.iterdir() if top.name in FOLDERS for path in (top, *top.rglob("*"))]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return [str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts]


PATHS = "\n".join(paths())


def is_there(named: str, *, from_root: bool = False) -> bool:
    """Return whether a path of the repository is *named* so, or ends so: documents shorten what is beside it."""
    before = "" if from_root else r"(?:.*/)?"
    pattern = re.escape(re.sub(r"^(\.\.?/)+", "", named)).replace(r"\*", "[^/\n]*")
    return re.search(rf"^{before}{pattern}$", PATHS, re.MULTILINE) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(document: Path):
    text = document.read_text("utf-8")
    files = {name for name in _FILE.findall(text) if name.rpartition("/")[2] not in THEIRS and not is_there(name)}
    under = {name for name in _UNDER.findall(text) if not is_there(name, from_root=True)}
    tests = {name for name in _TEST.findall(text) if name not in PATHS}
    links = {link for link in _LINK.findall(text) if "://" not in link and not (document.parent / link).exists()}
    assert sorted(files | under | tests | links) == []


def headings(document: Path) -> set[str]:
    """Return the anchors that the headings of a document have where it is shown."""
    found = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_place_that_a_document_leads_to_is_a_heading(document: Path):
    places = [(link, at) for link, at in _PLACE.findall(document.read_text("utf-8")) if "://" not in link]
    assert [at for link, at in places if at not in headings(document.parent / link if link else document)] == []


def test_every_make_target_of_the_documents_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"`make ([\w-]+)", path.read_text("utf-8"))}
    assert sorted(named - targets) == []
