"""Fuzzing at length: ``python -m tests.fuzz [--executions 1000000] [--processes 1] [--seed 1]``.

The executions are those of the zip guard; each other parser gets one for twenty of them.

Runs at the lowest priority. Ends with 1 and writes the input to a file where something was found.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.parsers import TARGETS
from tests.fuzz.run import at_length, fuzz_parser


def main() -> int:
    """Share the executions out, and say what came of them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    share = -(-asked.executions // asked.processes)
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        results = pool.map(at_length, [(asked.seed + number, share) for number in range(asked.processes)])
    said: Counter[str] = sum((result.said for result in results), Counter())
    executions, unpacked = sum(result.executions for result in results), sum(result.unpacked for result in results)
    print(f"zips: {executions} executions in {time.monotonic() - began:.0f} s, {unpacked} of them unpacked to the disk")
    print(", ".join(f"{reason} {count}" for reason, count in said.most_common()))
    found = [result.found for result in results if result.found is not None]
    for number, (body, how) in enumerate(found):
        path = Path(f"fuzz-found-{number}.zip")
        path.write_bytes(body)
        print(f"FOUND: {how}; the input is in {path}")
    for name in TARGETS:
        result = fuzz_parser(name, asked.seed, asked.executions // 20)
        print(f"{name}: {result.executions} executions in {result.seconds:.0f} s")
        if result.found is not None:
            found.append(result.found)
            print(f"FOUND: {result.found[1]}; {result.found[0].decode()}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
