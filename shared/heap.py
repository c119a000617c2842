"""The C library's heap, set up for processes through which large buffers pass."""

import ctypes

_MIB = 1024 * 1024
# Names of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_heap() -> None:
    """Let freed memory be used again instead of going back to the system at once. Call it first of all.

    glibc otherwise maps and unmaps every buffer of more than 128 KiB, and the system clears each page of it anew: that
    is most of what passing a chunk on costs (measured: 1.3 to 8 times the throughput without it). It also gives each
    of the database driver's threads a heap of its own, and what a few chunks need is then held ten times over. Other
    C libraries know none of this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
