"""Counts words, and does with its data what a node would else do for it: fetches, unpacks, packs and sends.

Nothing but Python's standard library. Where the data goes and where the results come from is this program's own affair.
"""

import collections
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

API = os.environ["WHERRY_API"]
TOKEN = Path(os.environ["WHERRY_TOKEN_FILE"]).read_text()
#: A request is cut short when the node's agent restarts.
TRIES, PAUSE_S = 5, 1.0


def ask(method: str, path: str, body: bytes | None = None) -> bytes:
    """Return what the node answers about this job."""
    for left in reversed(range(TRIES)):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(API + path, body, headers, method=method)  # noqa: S310 - the node's own
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 503 or not left:
                raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from error
        except (OSError, http.client.HTTPException):
            if not left:
                raise
        time.sleep(PAUSE_S)
    raise AssertionError  # the last try returns or raises


def post(path: str, value: object) -> None:
    """Send *value* as JSON."""
    ask("POST", path, json.dumps(value).encode())


def counted(text: str, least: int) -> collections.Counter[str]:
    """Return how often each word of at least *least* letters occurs."""
    words = (word.strip(".,;:!?\"'()").lower() for word in text.split())
    return collections.Counter(word for word in words if len(word) >= least)


def main() -> None:
    """Fetch the texts, count their words, and send the counts as a zip that keeps their folders."""
    job = json.loads(ask("GET", "/v1/job"))
    least, texts = job["params"].get("least", 1), Path("texts")
    with zipfile.ZipFile(io.BytesIO(ask("GET", "/v1/job/inputs/texts"))) as fetched:
        fetched.extractall(texts)
    paths = sorted(path for path in texts.rglob("*") if path.is_file())
    results, total = io.BytesIO(), collections.Counter[str]()
    with zipfile.ZipFile(results, "w", zipfile.ZIP_DEFLATED) as packed:
        for done, path in enumerate(paths, 1):
            try:
                words = counted(path.read_text("utf-8"), least)
            except UnicodeDecodeError:
                post("/v1/job/remarks", {"remarks": [f"{path.relative_to(texts)} is no text and was left out"]})
                continue
            total += words
            name = path.relative_to(texts).with_suffix(".json")
            packed.writestr(str(name), json.dumps(dict(words.most_common()), ensure_ascii=False))
            post("/v1/job/progress", {"fraction": done / len(paths), "message": f"{done} of {len(paths)} files"})
            post("/v1/job/metrics", {"values": {"words": total.total()}, "step": done})
    ask("POST", "/v1/job/outputs?unpack=true&path=counts", results.getvalue())
    ask("PUT", "/v1/job/outputs/total.json", json.dumps(dict(total.most_common()), ensure_ascii=False).encode())
    print(f"{total.total()} words in {len(paths)} files")


if __name__ == "__main__":
    main()
