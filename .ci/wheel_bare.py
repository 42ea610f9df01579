"""Run in an environment with the wheel and Celery alone: what a user's worker does with us must need nothing more."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, requires


def normal(name: str) -> str:
    """Return a distribution's name in the one spelling that can be compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name: str) -> set[str]:
    """Return the distributions that `name` brings with it, itself included, extras not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = normal(waiting.pop())
        if current in found:
            continue
        try:
            lines = requires(current) or []
        except PackageNotFoundError:  # its marker says: not on this Python, not on this platform
            continue
        found.add(current)
        waiting += [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if "extra ==" not in line]
    return found


def main() -> None:
    """Install the probes into an app, run a task, publish one; see what was needed, and what the commands say."""
    installed = {normal(distribution.metadata["Name"]) for distribution in distributions()}
    surplus = installed - closure("celery") - {"celeryscope", "pip", "setuptools"}
    assert not surplus, f"without extras came more than Celery: {surplus}"

    import celeryscope

    assert "celery" not in sys.modules, "import celeryscope alone must not load Celery"

    import celery

    app = celery.Celery("bare", broker="memory://", backend="cache+memory://", set_as_current=False)
    celeryscope.install(app)
    assert app.conf.worker_send_task_events is True

    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    assert add.apply((1, 2)).get() == 3
    assert add.delay(1, 2).id

    for command in ("monitor", "status", "demo"):
        argv = [sys.executable, "-I", "-m", "celeryscope", command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        told = done.stdout + done.stderr
        assert done.returncode == 2, (command, done.returncode, told)
        assert "pip install 'celeryscope[" in told, (command, told)
        assert "Traceback" not in told, (command, told)
    sys.stdout.write(f"install() and a task with {len(installed)} distributions: {', '.join(sorted(installed))}\n")


if __name__ == "__main__":
    main()
