"""The servers that these tests end and start again: who starts one knows that it serves, or hears that it does not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from helpers import RabbitServer, RedisServer, free_port


def test_a_server_that_cannot_start_again_says_so(tmp_path: Path) -> None:
    """What its life before has said is in the same file: that it was ready then does not count."""
    server = RedisServer(tmp_path)
    server.stop()
    with socket.create_server(("127.0.0.1", server.port)), pytest.raises(RuntimeError, match="does not start"):
        server.start()
    server.stop()


@pytest.mark.system
def test_a_rabbitmq_whose_port_is_taken_gets_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It binds its ports seconds after they were found to be free, and other tests run side by side with this one."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = [taken]
        monkeypatch.setattr("helpers.free_port", lambda: ports.pop() if ports else free_port())
        server = RabbitServer(tmp_path)
        server.stop()
    assert server.port != taken
