"""Unpacks zips as a node does, each with little memory; says of each why it was refused, and what that took.

python -m tests.zips.limited FOLDER BYTES: unpacks every FOLDER/*.zip below FOLDER/inside; *BYTES* of address space is
what it may take beyond what the program itself has.
"""

import json
import resource
import shutil
import sys
import time
from pathlib import Path

from services.node_agent.adapters import source_zip
from shared.zipguard import BadZip

DISK_BYTES = 2**30


def address_space() -> int:
    """Return the bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def judge(path: Path, target: Path) -> dict[str, object]:
    """Unpack one zip; return what became of it."""
    began = time.process_time()  # what others on this machine do is no part of it
    target.mkdir(parents=True)
    try:
        source_zip.unpack(source_zip.members(path, bytes_max=DISK_BYTES), target)
        reason = None
    except BadZip as error:
        reason = str(error.reason)
    finally:
        shutil.rmtree(target)
    return {"name": path.stem, "reason": reason, "seconds": time.process_time() - began}


def main() -> None:
    folder, room = Path(sys.argv[1]), int(sys.argv[2])
    limit = address_space() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.glob("*.zip")):
        print(json.dumps(judge(path, folder / "inside" / "workspace")), flush=True)


if __name__ == "__main__":
    main()
