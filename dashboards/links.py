"""Where a click on a panel leads: the deeper board, or Flower's page. Placeholders are Grafana's, filled on the click.

Flower's address is the hidden variable `flower`; values of labels are percent-encoded by Grafana itself.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOWER = "${flower}"
DEFAULT_FLOWER = "http://localhost:5555"
CARRIED = ("datasource", "broker")
"""The variables that every link to a board takes along."""

UIDS = {
    "overview": "celery-overview",
    "tasks": "celery-tasks",
    "task": "celery-task",
    "queues": "celery-queues",
    "workers": "celery-workers",
    "beat": "celery-beat",
    "monitor": "celeryscope-monitor",
}
"""Fixed: Slack messages, alerts and other boards link to these (DESIGN §6)."""


@dataclass(frozen=True)
class Link:
    """A data link: what it is called, where it leads, and whether that is another tab."""

    title: str
    url: str
    new_tab: bool = False

    def to_json_data(self) -> dict[str, object]:
        """Return Grafana's form."""
        return {"title": self.title, "url": self.url, "targetBlank": self.new_tab}


def label(name: str) -> str:
    """Return the placeholder of a series' label."""
    return f"${{__field.labels.{name}:percentencode}}"


def field(name: str) -> str:
    """Return the placeholder of another column in the row that was clicked."""
    return f'${{__data.fields["{name}"]:percentencode}}'


def board(name: str, title: str = "", **variables: str) -> Link:
    """Return a link to one of our boards, with the time range, what is always carried, and these variables set.

    Raises:
        KeyError: there is no such board.
    """
    query = [f"var-{variable}={value}" for variable, value in variables.items()]
    query += [f"${{{variable}:queryparam}}" for variable in CARRIED]
    return Link(title or f"Open the {name} board", f"/d/{UIDS[name]}?{'&'.join((*query, '${__url_time_range}'))}")


def flower_task(value: str) -> Link:
    """Return a link to Flower's list of a task's runs."""
    return Link("Runs in Flower", f"{FLOWER}/tasks?name={value}", new_tab=True)


def flower_worker(value: str) -> Link:
    """Return a link to Flower's page of a worker, where it is controlled."""
    return Link("Worker in Flower", f"{FLOWER}/worker/{value}", new_tab=True)


def of_task(value: str = "") -> tuple[Link, Link]:
    """Return where a task leads: to its board, and to its runs in Flower."""
    value = value or label("task")
    return board("task", "This task in depth", task=value), flower_task(value)


def of_worker(value: str = "") -> tuple[Link, Link]:
    """Return where a worker leads: to the workers' board, and to its page in Flower."""
    value = value or label("worker")
    return board("workers", "This worker", worker=value), flower_worker(value)


def of_queue(value: str = "") -> tuple[Link, Link]:
    """Return where a queue leads: to the queues' board, and to the tasks in it."""
    value = value or label("queue")
    return board("queues", "This queue", queue=value), board("tasks", "Tasks of this queue", queue=value)


def of_entry(app: str = "", entry: str = "") -> tuple[Link]:
    """Return where an entry of a schedule leads."""
    return (board("beat", "This entry", app=app or label("app"), entry=entry or label("entry")),)
