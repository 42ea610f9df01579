"""`celeryscope dashboards`: files are written and checked, and a Grafana gets its boards, or a clear line why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from celeryscope import cli
from celeryscope.dashboards import push as pushing
from celeryscope.dashboards.board import rendered
from celeryscope.dashboards.boards import all_boards
from fake_grafana import TOKEN, FakeGrafana, serving
from helpers import free_port


@pytest.fixture(name="grafana")
def _grafana() -> Iterator[FakeGrafana]:
    with serving() as grafana:
        yield grafana


@pytest.fixture(name="run")
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command line in an empty folder; returns (exit code, what it said, what it complained of)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("CELERYSCOPE_GRAFANA_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.delenv("CELERYSCOPE_FLOWER_URL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["dashboards", *arguments])
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return code, said.out, said.err

    return run


UIDS = [board.uid for board in all_boards()]


def test_push_makes_the_folder_and_stores_every_board_in_it(grafana: FakeGrafana, run):
    code, said, complained = run("push", "--grafana-url", grafana.url)
    assert (code, complained) == (0, "")
    assert list(grafana.boards) == UIDS
    assert set(grafana.into.values()) == {grafana.folders["Celery"]}
    lines = said.splitlines()
    assert lines[0] == "Grafana 12.1.0"
    assert lines[1] == f"[1/7] celery-overview: {grafana.url}/d/celery-overview/slug"


def test_a_second_push_overwrites_and_makes_no_second_folder(grafana: FakeGrafana, run):
    grafana.folders["Operations"] = "ops"
    for _ in range(2):
        assert run("push", "--grafana-url", grafana.url + "/", "--grafana-folder", "Operations")[0] == 0
    assert grafana.folders == {"Operations": "ops"}
    assert len(grafana.boards) == 7
    assert set(grafana.into.values()) == {"ops"}


def test_the_links_of_what_is_pushed_lead_to_the_flower_that_was_named(grafana: FakeGrafana, run):
    run("push", "--grafana-url", grafana.url, "--flower-url", "https://flower.example/")
    (flower,) = (v for v in grafana.boards["celery-task"]["templating"]["list"] if v["name"] == "flower")
    assert flower["query"] == "https://flower.example"


def test_a_dry_run_changes_nothing_and_says_what_would_become_of_each(grafana: FakeGrafana, run):
    new = {model["uid"]: model for model in map(rendered, all_boards())}
    grafana.boards["celery-overview"] = {**new["celery-overview"], "id": 7, "version": 3}
    grafana.boards["celery-tasks"] = {**new["celery-tasks"], "title": "Ours", "id": 8, "version": 1}
    code, said, _ = run("push", "--grafana-url", grafana.url, "--dry-run")
    assert code == 0
    assert "folder Celery: would be made" in said
    assert "celery-overview: is up to date" in said
    assert "celery-tasks: would be overwritten" in said
    assert "celery-beat: would be new" in said
    assert not [line for line in grafana.asked if line.startswith("POST")]


@pytest.mark.parametrize(
    ("path", "status", "advice"),
    [
        ("api/folders", 401, "the token is not valid"),
        ("api/folders", 403, "needs the role Editor"),
        ("api/dashboards/db", 403, "needs the role Editor"),
        ("api/dashboards/db", 412, "will not overwrite it"),
        ("api/health", 404, "is a path missing"),
        ("api/health", 302, "sends you elsewhere"),
        ("api/dashboards/db", 500, "so it is"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(grafana: FakeGrafana, run, path: str, status: int, advice: str):
    grafana.refuse[path] = [status]
    code, _, complained = run("push", "--grafana-url", grafana.url)
    assert code == 2
    (line,) = complained.splitlines()
    assert grafana.url in line
    assert f"answered {status}" in line
    assert advice in line


def test_a_wrong_token_is_said_and_not_shown(grafana: FakeGrafana, run, tmp_path: Path):
    (tmp_path / "token").write_text("glsa_wrong")
    code, _, complained = run("push", "--grafana-url", grafana.url)
    assert code == 2
    assert "401" in complained
    assert "glsa_wrong" not in complained


def test_a_grafana_that_is_busy_is_asked_again(grafana: FakeGrafana):
    grafana.refuse["api/health"] = [503, 502]
    naps: list[float] = []
    with closing(pushing.Grafana(grafana.url, TOKEN, sleep=naps.append)) as client:
        assert client.version() == "12.1.0"
    assert len(naps) == 2
    grafana.refuse["api/health"] = [503] * 9
    with (
        closing(pushing.Grafana(grafana.url, TOKEN, sleep=naps.append)) as client,
        pytest.raises(pushing.PushError, match="answered 503"),
    ):
        client.version()
    assert len(grafana.refuse["api/health"]) == 9 - pushing.ATTEMPTS


def test_a_password_in_the_address_is_not_shown(grafana: FakeGrafana, run):
    address = grafana.url.replace("://", "://admin:hunter2@")
    grafana.refuse["api/dashboards/db"] = [403]
    code, said, complained = run("push", "--grafana-url", address)
    assert code == 2
    assert "hunter2" not in said + complained
    assert grafana.url.partition("://")[2] in complained


def test_nobody_there_is_one_line():
    url = f"http://127.0.0.1:{free_port()}"
    with (
        closing(pushing.Grafana(url, TOKEN, sleep=lambda _: None)) as client,
        pytest.raises(pushing.PushError, match=f"cannot reach Grafana at {url}: "),
    ):
        client.version()


def test_what_is_not_grafana_is_said_so(grafana: FakeGrafana, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grafana, "answer", lambda *_: (200, "<html>hello</html>"))
    code, _, complained = run("push", "--grafana-url", grafana.url)
    assert code == 2
    assert "is not Grafana" in complained


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), "--grafana-url"),
        (("--grafana-url", "grafana:3000"), "--grafana-url: must be an address"),
        (("--grafana-url", "http://g", "--flower-url", "flower"), "--flower-url: must be an address"),
    ],
)
def test_settings_that_do_not_work_are_named(run, arguments: tuple[str, ...], names: str):
    code, _, complained = run("push", *arguments)
    assert code == 2
    assert names in complained


def test_build_writes_what_check_then_finds_up_to_date(run, tmp_path: Path):
    assert run("build", "--check", "--out", "out")[0] == 1
    assert not (tmp_path / "out").exists()
    code, said, _ = run("build", "--out", "out", "--sketches", "drawings", "--flower-url", "http://flower:5555")
    assert code == 0
    assert "celery-overview.json written" in said
    assert sorted(path.stem for path in (tmp_path / "out/boards").iterdir()) == sorted(UIDS)
    assert sorted(path.stem for path in (tmp_path / "drawings").iterdir()) == sorted(UIDS)
    assert run("build", "--check", "--out", "out", "--flower-url", "http://flower:5555")[0] == 0
    code, said, _ = run("build", "--check", "--out", "out")
    assert code == 1
    assert "celery-task.json is out of date" in said


def test_a_folder_that_cannot_be_written_is_named(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/boards").write_text("a file")
    code, _, complained = run("build", "--out", "out")
    assert code == 2
    assert "--out out: cannot write" in complained


def test_the_sidecar_gets_a_config_map_for_each_board(run, tmp_path: Path):
    run("build", "--out", "out")
    text = (tmp_path / "out/kubernetes/grafana-dashboards.yml").read_text(encoding="utf-8")
    maps = list(yaml.safe_load_all(text))
    assert [config["metadata"]["name"] for config in maps] == [f"grafana-dashboard-{uid}" for uid in UIDS]
    for config in maps:
        assert (config["kind"], config["metadata"]["labels"]["grafana_dashboard"]) == ("ConfigMap", "1")
        ((name, board),) = config["data"].items()
        assert json.loads(board) == json.loads((tmp_path / "out/boards" / name).read_text(encoding="utf-8"))
        assert len(board) < 1_000_000
