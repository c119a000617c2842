"""Memory that a burst needed goes back to the system, wherever in the heap it lies."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, time
from shared import heap

heap._GIVEN_BACK_EVERY_S = 0.1
heap.keep_heap()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = resident()
chunks = [malloc(512 * 1024) for _ in range(160)]
for chunk in chunks:
    ctypes.memset(chunk, 1, 512 * 1024)
full = resident()
for chunk in chunks[:-1]:  # the last one lies at the top and stays
    free(chunk)
assert full - before > 70 * 1024**2, (before, full)
while resident() - before > 30 * 1024**2:
    time.sleep(0.05)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the GNU C library")
def test_what_a_burst_needed_is_given_back() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
