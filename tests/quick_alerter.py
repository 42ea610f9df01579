"""A real alerter with shorter waits than people want, for tests that kill it: `python quick_alerter.py '{...}'`."""

from __future__ import annotations

import json
import signal
import sys
import time

from celeryscope.alerts.alerter import Alerter, Config
from celeryscope.alerts.mailbox import Pace
from celeryscope.alerts.policy import GuardLimits, Plan
from celeryscope.alerts.slack import SlackWeb
from celeryscope.alerts.store import Database
from celeryscope.alerts.successes import SuccessWatch
from celeryscope.monitor.broker import BrokerConfig
from pydantic import SecretStr


def main() -> None:
    given = json.loads(sys.argv[1])
    config = Config(
        default=Plan(channel="#general"),
        limits=GuardLimits(given.get("guard", 1_000), 300.0),
        pace=Pace(update=given.get("update", 2.0), call=given.get("call", 0.05), lease=2.0, grace=0.5),
        settle_every=0.5,
        quiet=given.get("quiet", 600.0),
    )
    alerter = Alerter(
        config,
        Database(given["store"], time.time),
        lambda noted: SlackWeb(SecretStr(given["token"]), base_url=given["slack"], noted=noted, timeout=1),
        [BrokerConfig.from_url(given["broker"])],
        SuccessWatch(),
    )
    signal.signal(signal.SIGTERM, lambda *_: alerter.stopping.set())
    alerter.start()
    print("alerter reads", flush=True)
    alerter.stopping.wait()
    alerter.stop()


main()
