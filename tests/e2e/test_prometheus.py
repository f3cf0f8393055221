"""Alerts, runbook and dashboard on the real Prometheus, scraping a real daemon that has something to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgherald.emulator.client import emulator_process
from tests.support.daemon import PATIENCE, running_daemon, wait_for
from tests.support.organisation import Organisation
from tests.support.postgres import DAEMON_LOGIN
from tests.support.prometheus import RULES, running_prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.emulator.client import EmulatorProcess
    from tests.support.daemon import Daemon
    from tests.support.postgres import Database, Server
    from tests.support.prometheus import Prometheus

OPERATING = Path(__file__).parents[2] / "systemd"
TESTS = OPERATING / "prometheus" / "rules_test.yml"
RUNBOOK = OPERATING / "RUNBOOK.md"
DASHBOARD = OPERATING / "grafana" / "pgherald.json"
ROWS = ["Promise", "Flow", "FCM", "Scenarios", "Database", "Machine"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus on this machine"
)


def alerts() -> list[str]:
    return re.findall(r"^      - alert: (\w+)$", RULES.read_text(), re.MULTILINE)


def panels() -> list[tuple[str, str]]:
    """(title, expression) of every query of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]


def promtool(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def scraped(pg18: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Daemon]]:
    """A Prometheus, and a daemon that has sent, failed, skipped, suppressed and evaluated, and goes on doing so."""
    directory = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        database = stack.enter_context(pg18.database())
        emulator = stack.enter_context(emulator_process())
        organisation = Organisation(database.connect())
        organisation.scenario("inactivity", {"days": 30})
        scenario = organisation.scenario()
        settings = {"PGHERALD_SCHEDULER": "internal"}
        daemon = stack.enter_context(running_daemon(database.daemon_dsn, emulator, directory, settings))
        job = f"- {{job_name: pgherald, static_configs: [{{targets: ['{daemon.address}']}}]}}\n"
        prometheus = stack.enter_context(running_prometheus(directory, job))
        wait_for(lambda: prometheus.query('pgherald_invariant_violations{invariant="prompt_dispatched_twice"}'))
        for round_ in range(4):
            for token in (f"phone-{round_}", f"unregistered-{round_}", f"invalid-field-{round_}"):
                organisation.enqueue(scenario, organisation.mentor(token))
            organisation.activity(organisation.mentor(f"active-{round_}"))
            wait_for(lambda done=3 * round_ + 3: len(organisation.histories()) >= done)  # type: ignore[misc]
            sent = f'sum(pgherald_prompts_total{{outcome="sent"}}) > {round_}'
            wait_for(lambda seen=sent: prometheus.query(seen))  # type: ignore[misc]
        wait_for(lambda: prometheus.query('increase(pgherald_prompts_total{outcome="sent"}[5m]) > 0'))
        wait_for(lambda: prometheus.query("pgherald_last_evaluation_timestamp_seconds > 0"))
        wait_for(lambda: prometheus.query("pgherald_oauth_expiry_timestamp_seconds > 0"))
        # A rate needs something that happens while it is looked at, however long that takes.
        enough = threading.Event()
        traffic = threading.Thread(target=keep_busy, args=(Organisation(database.connect()), enough))
        traffic.start()
        try:
            yield prometheus, daemon
        finally:
            enough.set()
            traffic.join(PATIENCE)


def keep_busy(organisation: Organisation, enough: threading.Event) -> None:
    """Pushes that are sent, and pushes that fail, until it is enough."""
    scenario = organisation.scenario()
    while not enough.wait(0.5):
        for token in (f"phone-{uuid4()}", f"unregistered-{uuid4()}", f"invalid-field-{uuid4()}"):
            organisation.enqueue(scenario, organisation.mentor(token))
        organisation.activity(organisation.mentor(f"active-{uuid4()}"))


def test_every_alert_is_tested_firing_and_silent() -> None:
    ran = promtool("test", "rules", TESTS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    tested = re.findall(r"alertname: (\w+)\n        exp_alerts:( \[\])?", TESTS.read_text())
    assert {name for name, silent in tested if not silent} == set(alerts())
    assert {name for name, silent in tested if silent} == set(alerts())


def test_prometheus_takes_the_rules_without_a_word() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    text = RUNBOOK.read_text()
    entries = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(entries) == sorted(alerts())
    for name, entry in entries.items():
        for part in ("**Means** ", "**Look** ", "**Do** "):
            assert entry.count(part) == 1, f"{name}: {part}"
    pointers = re.findall(r"- alert: (\w+)\n.*?runbook: systemd/RUNBOOK\.md#(\w+)$", RULES.read_text(), re.M | re.S)
    assert pointers == [(name, name.lower()) for name in alerts()]
    severities = re.findall(r"labels: \{severity: (page|ticket)\}", RULES.read_text())
    assert len(severities) == len(alerts())


def test_what_the_runbook_tells_to_type_exists() -> None:
    text = RUNBOOK.read_text()
    help_text = subprocess.run(
        [sys.executable, "-m", "pgherald.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in set(re.findall(r"`pgherald ([a-z-]+)", text)):
        assert re.search(rf"^    {command} ", help_text, re.MULTILINE), command
    for setting in set(re.findall(r"PGHERALD_[A-Z_]+", text)):
        assert setting in help_text


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_the_commands_of_the_runbook_work_after_its_first_lines_as_they_are_printed(
    database: Database, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    organisation = Organisation(database.connect())
    organisation.scenario(name="SCENARIO")
    user = organisation.mentor("phone")
    place = conninfo_to_dict(database.dsn_as(DAEMON_LOGIN, tcp=True))
    address = f"{place['user']}@{place['host']}:{place['port']}/{place['dbname']}"
    (tmp_path / "credentials").mkdir()
    shutil.copy(emulator.credentials_path, tmp_path / "credentials" / "fcm.json")
    for name, content in {
        # An ampersand, as URLs have: the file is for NAME=value lines, not for a shell.
        "pgherald.env": f"PGHERALD_DATABASE_URL=postgresql://{address}?connect_timeout=9&keepalives=1\n"
        f"PGHERALD_FCM_ENDPOINT={emulator.endpoint}\n",
        "credentials/pgpass": f"*:*:*:*:{place['password']}\n",
    }.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    text = RUNBOOK.read_text()
    (pasted,) = re.findall(r"^    pgherald\(\) \{.*?\}$", text, re.MULTILINE | re.DOTALL)
    for here, there in {
        "/etc/pgherald": str(tmp_path),
        "/var/lib/pgherald": str(tmp_path / "state"),
        "/opt/pgherald/bin/pgherald": f"{sys.executable} -m pgherald.cli",
    }.items():
        assert here in pasted
        pasted = pasted.replace(here, there)
    commands = set(re.findall(r"`(pgherald [a-z][^`]*)`", text)) - {"pgherald migrate"}
    assert len(commands) >= 9
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    for command in sorted(commands):
        script = f"{pasted}\n{command.replace('USER', str(user))}"
        ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)


def test_the_dashboard_has_its_rows_and_fits_the_screen() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == ROWS
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


SHARED = {  # one minute apart; each daemon counts them for the whole database, so both have the same
    "pgherald_suppressed_total{%s,scenario_type='milestone',gate='cooldown'}": "0+60x10",
    "pgherald_suppressed_total{%s,scenario_type='expiry',gate='cooldown'}": "0+60x10",
    "pgherald_evaluation_seconds_count{%s,scenario_type='milestone'}": "0+120x10",
    "pgherald_evaluation_errors_total{%s,scenario_type='milestone'}": "0+1x10",
}


@pytest.mark.parametrize(
    ("title", "labels", "value"),
    [
        ("Suppressed by gate", "gate='cooldown'", 2),
        ("Evaluations", "scenario_type='milestone'", 2),
        ("Failed evaluations", "scenario_type='milestone'", 5),
    ],
)
def test_what_two_daemons_count_of_one_database_is_shown_once(
    title: str, labels: str, value: float, tmp_path: Path
) -> None:
    (expression,) = [expression for panel, expression in panels() if panel == title]
    series = [
        {"series": name % f"job='pgherald',instance='{instance}'", "values": values}
        for name, values in SHARED.items()
        for instance in ("one", "two")
    ]
    shown = {
        "expr": expression.replace("$job", "pgherald").replace("$__rate_interval", "5m"),
        "eval_time": "10m",
        "exp_samples": [{"labels": f"{{{labels}}}", "value": value}],
    }
    tests = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [shown]}]}
    (tmp_path / "tests.yml").write_text(json.dumps(tests))
    ran = promtool("test", "rules", tmp_path / "tests.yml")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_panel_shows_something(scraped: tuple[Prometheus, Daemon]) -> None:
    prometheus, _ = scraped
    empty = []
    for title, expression in panels():
        filled = expression.replace("$job", ".*").replace("$__rate_interval", "1m")
        assert "$" not in filled, title
        if not wait_for_data(prometheus, filled):
            empty.append((title, filled))
    assert empty == []


def test_every_alert_looks_at_something(scraped: tuple[Prometheus, Daemon]) -> None:
    prometheus, _ = scraped
    groups = prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert {name for name, rule in rules.items() if rule["type"] == "alerting"} == set(alerts())
    empty = []
    for name, rule in rules.items():
        # Without its thresholds, the expression has to find what it is about.
        bare = re.sub(r"\s(>|<|==)\s[0-9.e+]+(?=\s|\)|$)", "", rule["query"])
        parts = re.split(r"\s+(?:and|or)\s+(?:on \(job\)\s+)?(?=sum)", bare.strip())
        empty += [(name, part) for part in parts if not wait_for_data(prometheus, part)]
        if rule["type"] == "recording" and not wait_for_data(prometheus, name):
            empty.append((name, "recorded"))
    assert empty == []
    assert {rule["health"] for rule in rules.values()} == {"ok"}


def wait_for_data(prometheus: Prometheus, expression: str) -> bool:
    """Whether it gives a number that is one, now or in a while (a rate needs two scrapes)."""
    try:
        wait_for(lambda: [each for each in prometheus.query(expression) if each["value"][1] != "NaN"])
    except AssertionError:
        return False
    return True


def test_promtool_finds_no_fault_in_the_live_metrics(scraped: tuple[Prometheus, Daemon]) -> None:
    _, daemon = scraped
    checked = promtool("check", "metrics", stdin=daemon.get("/metrics")[1])
    assert [line for line in checked.stderr.splitlines() if line] == []
    assert checked.returncode == 0
