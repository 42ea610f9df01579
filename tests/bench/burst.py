"""Fail hundreds of thousands of times in a worker's hooks, as fast as they can be called: its outbox sends the rest.

    python tests/bench/burst.py --broker redis://127.0.0.1:6379/0 --count 300000 --kinds 300

The hooks are called as a worker calls them, without its tasks: those would take a hundred times as long. Prints one
line of JSON: how long it took, and the memory of this process after a thousand failures and at most.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

from hooks import fail_in_hooks

WARM = 1_000


def memory(what: str) -> int:
    """Return VmRSS, or VmHWM, which is the most that it ever was, in bytes."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--count", type=int, default=300_000)
    parser.add_argument("--kinds", type=int, default=300)
    args = parser.parse_args()
    before, began = 0, time.monotonic()
    for done in fail_in_hooks(args.broker, args.count, args.kinds):
        if done == WARM:
            before = memory("VmRSS")
    seconds = time.monotonic() - began
    print(json.dumps({"failures": args.count, "seconds": seconds, "before": before, "most": memory("VmHWM")}))


if __name__ == "__main__":
    main()
