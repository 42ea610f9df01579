"""Entry point of the `celeryscope` script and of `python -m celeryscope`; says what to install where that is all."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    from .monitor.logs import cover_crashes

    cover_crashes()
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("celeryscope"):
            raise
        sys.stderr.write(
            f"celeryscope: error: the command line needs the package {error.name}: pip install 'celeryscope[monitor]'\n"
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
