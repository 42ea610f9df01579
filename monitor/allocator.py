"""Keeps the resident memory of a long-lived process near what it uses, where the C library is glibc."""

from __future__ import annotations

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

SETTINGS = {_M_ARENA_MAX: 2, _M_MMAP_THRESHOLD: 64 << 10, _M_TRIM_THRESHOLD: 128 << 10}


def give_memory_back() -> bool:
    """Make malloc return large blocks to the system at once; true where that could be asked for.

    Events come in blocks of 256 kB. By default glibc keeps such blocks after the first one was freed, in an arena for
    each thread: 20 % of the monitor's memory (`make bench` has the figure). Call it once, early, in our own processes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no such function, and does not need it
        logger.debug("malloc cannot be told to give memory back here")
        return False
    return all(mallopt(name, value) for name, value in SETTINGS.items())
