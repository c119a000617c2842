"""The C library's heap, set up for processes through which large buffers pass."""

import ctypes
import threading
import time
from collections.abc import Callable

_MIB = 1024 * 1024
_GIVEN_BACK_EVERY_S = 10
_KEPT = 16 * _MIB  # at the top of the heap: about what a transfer needs
# Names of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_heap() -> None:
    """Let freed memory be used again instead of going back to the system at once. Call it first of all.

    glibc otherwise maps and unmaps every buffer of more than 128 KiB, and the system clears each page of it anew: that
    is most of what passing a chunk on costs (measured: 1.3 to 8 times the throughput without it). It also gives each
    of the database driver's threads a heap of its own, and what a few chunks need is then held ten times over. Other
    C libraries know none of this.

    What a burst needed is given back some seconds later, wherever in the heap it lies.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_ARENA_MAX, 2)
        library.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the most that it takes
        library.mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
        threading.Thread(target=_give_back, args=(library.malloc_trim,), name="give back", daemon=True).start()


def _give_back(trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(_GIVEN_BACK_EVERY_S)
        trim(_KEPT)
