"""Fuzzes one target under atheris, guided by coverage: `python tests/security/fuzz/run.py TARGET [SECONDS]`.

Atheris is not among the development pins (it ships wheels for some Pythons on Linux only): `pip install atheris` first.
An input that breaks a promise is written to `crash-…` in the working directory: mend the fault and put the file into
`corpus/TARGET`, from where the tests take it for ever. What atheris learns meanwhile goes into a folder of its own.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(name: str, seconds: str = "300") -> None:
    import atheris

    with atheris.instrument_imports(include=["celeryscope"]):
        sys.path.insert(0, str(HERE))
        from targets import TARGETS

    from celeryscope.monitor.guard import Guard

    Guard.reraise = True
    logging.disable(logging.CRITICAL)  # a line about each file that is refused is right; a million of them are not
    learned = tempfile.mkdtemp(prefix=f"celeryscope-fuzz-{name}-")
    options = [
        f"-max_total_time={seconds}",
        "-rss_limit_mb=2048",
        "-timeout=20",
        "-max_len=16384",
        "-print_final_stats=1",
    ]
    dictionary = HERE / "words.dict"
    atheris.Setup([sys.argv[0], *options, f"-dict={dictionary}", learned, str(HERE / "corpus" / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:3])
