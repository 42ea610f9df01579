"""Where our services listen, as the kernel says it: in a network namespace of their own, on their default ports."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers import Process, embedded_valkey, eventually, system_command

pytestmark = pytest.mark.system

LISTENING = "0A"
ENV = {"CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}


class Machine:
    """A network of its own, with a loopback and nothing else in it: every default port is free there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        root = os.geteuid() == 0
        make = [system_command("unshare"), "--net", *(() if root else ("--user", "--map-root-user"))]
        holds = f"{system_command('ip')} link set lo up && echo up && exec sleep 600"
        self.holder = self.start("holder", [*make, "sh", "-c", holds])
        self.holder.wait_for("up")
        self.enter = [system_command("nsenter"), "--target", str(self.holder.pid), "--net",
                      *(() if root else ("--user", "--preserve-credentials"))]  # fmt: skip

    def start(self, name: str, argv: list[str], **env: str) -> Process:
        process = Process(argv, log=self.folder / f"{name}.log", cwd=self.folder, env={**ENV, **env})
        self.stack.callback(process.stop)
        return process

    def run(self, name: str, *arguments: str, **env: str) -> Process:
        return self.start(name, [*self.enter, sys.executable, "-m", "celeryscope", *arguments], **env)

    def listening(self) -> set[str]:
        """Every address that anything listens on here, as HOST:PORT."""
        found = set()
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.holder.pid}/net/{name}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                host, port = local.split(":")
                if state == LISTENING:
                    found.add(f"{_address(host)}:{int(port, 16)}")
        return found


def _address(text: str) -> str:
    # Words of four bytes, each as this machine's processor has it.
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(tmp_path, stack)


@pytest.fixture(name="broker")
def _broker(machine: Machine) -> str:
    argv = [*machine.enter, embedded_valkey(), "--port", "6379", "--save", ""]
    server = machine.start("valkey", [*argv, "--bind", "127.0.0.1"])
    server.wait_for("Ready to accept connections")
    return "redis://127.0.0.1:6379/0"


SLACK = ("--slack-channel", "#x", "--slack-base-url", "http://127.0.0.1:1/api/")
VALKEY = "127.0.0.1:6379"


def test_by_default_everything_listens_on_the_loopback_alone(machine: Machine, broker: str) -> None:
    """Outside of containers: neither the monitor, nor the alerter, nor Flower can be reached from another machine."""
    machine.run("monitor", "monitor", "--broker", broker)
    machine.run("alerter", "alerter", "--broker", broker, *SLACK, CELERYSCOPE_SLACK_TOKEN="xoxb-x")
    machine.run("flower", "flower", "--broker", broker)
    expected = {VALKEY, "127.0.0.1:9808", "127.0.0.1:9809", "127.0.0.1:5555"}
    eventually(lambda: len(machine.listening()) >= len(expected), 60)
    assert machine.listening() == expected


def test_all_addresses_are_listened_on_where_that_is_asked_for(machine: Machine, broker: str) -> None:
    """As the container image does: there the outside is the container's network. One socket takes both families."""
    machine.run("monitor", "monitor", "--broker", broker, CELERYSCOPE_LISTEN=":9808")
    eventually(lambda: machine.listening() - {VALKEY}, 60)
    assert machine.listening() - {VALKEY} == {":::9808"}


def test_flower_is_not_started_open_to_others(machine: Machine, broker: str) -> None:
    flower = machine.run("flower", "flower", "--broker", broker, "--listen", ":5555")
    eventually(lambda: not flower.running(), 60)
    assert flower.popen.returncode == 2
    assert "CELERYSCOPE_FLOWER_AUTH" in flower.output
    assert machine.listening() == {VALKEY}
