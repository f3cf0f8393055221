"""What a person gets wrong, on the program itself: one message with the thing and the remedy, exit 78, no secret."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgherald import schema
from pgherald.emulator.keys import ensure_service_account

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.postgres import Database

SECRET = "hunter2-and-more"
ON_18 = pytest.mark.parametrize("server", ["pg18"], indirect=True)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a process ended that should not have started; `said` is its message, log lines apart."""

    exit_code: int
    said: str

    def names(self, *things: str) -> None:
        """Fail unless it is one message that holds each of these, ended with 78, and gave nothing away."""
        assert self.exit_code == 78, self.said
        assert self.said.startswith("pgherald: ")
        assert self.said.count("pgherald: ") == 1
        for thing in things:
            assert thing in self.said
        assert "Traceback" not in self.said
        assert SECRET not in self.said


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service account's key file that is fine."""
    return ensure_service_account(
        tmp_path_factory.mktemp("credentials") / "fcm.json", "demo", "http://127.0.0.1:9/token"
    ).path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The state directory of these daemons, and the home of their user."""
    return tmp_path


def call(*command: str, home: Path, **settings: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GOOGLE", "CLOUDSDK"))}
    environ |= {"HOME": str(home), "PGHERALD_STATE_DIR": str(home / "state"), "PGHERALD_METRICS_LISTEN": "127.0.0.1:0"}
    # No look for Google's metadata server: nothing leaves the machine.
    environ |= {"NO_GCE_CHECK": "true"} | {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "pgherald.cli", *command],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def refusal(*command: str, home: Path, **settings: str | Path) -> Refusal:
    done = call(*command, home=home, **settings)
    assert done.stdout == ""
    assert SECRET not in done.stderr
    words = []
    for line in done.stderr.splitlines():
        if line.startswith("{"):
            assert json.loads(line)["event"] in ("spool_opened", "waiting_for_database")
        else:
            words.append(line)
    return Refusal(done.returncode, "\n".join(words))


def test_all_wrong_settings_are_listed_together(home: Path) -> None:
    found = refusal(
        "run",
        home=home,
        PGHERALD_DATABSE_URL=f"postgresql://u:{SECRET}@db/app",
        PGHERALD_MAX_IN_FLIGHT=SECRET,
        PGHERALD_METRICS_LISTEN="9477",
        PGHERALD_SCHEDULER="cron",
    )
    found.names(
        "PGHERALD_DATABSE_URL: is not a setting; did you mean PGHERALD_DATABASE_URL?",
        "PGHERALD_MAX_IN_FLIGHT: is not a whole number",
        "for example PGHERALD_MAX_IN_FLIGHT=10",
        "PGHERALD_METRICS_LISTEN: is not an address, a colon and a port",
        "PGHERALD_SCHEDULER: is none of the choices; it may be auto, internal or off",
    )


@pytest.mark.parametrize("command", ["demo", "fcm-emulator", "migrate --dump-sql"])
def test_what_reads_no_setting_refuses_one_that_nobody_knows(command: str, home: Path) -> None:
    found = refusal(*command.split(), home=home, PGHERALD_MAX_RATES=SECRET)
    found.names("PGHERALD_MAX_RATES: is not a setting; did you mean PGHERALD_MAX_RATE?")


@pytest.mark.parametrize("command", ["run", "migrate"])
@pytest.mark.parametrize("dsn", [f"postgresql://u:{SECRET}@x@db/app", f"host=db passwort={SECRET}", f"{SECRET} x"])
def test_a_malformed_dsn_is_named_and_never_shown(command: str, dsn: str, home: Path) -> None:
    refusal(command, home=home, PGHERALD_DATABASE_URL=dsn).names(
        "PGHERALD_DATABASE_URL", "for example PGHERALD_DATABASE_URL=postgresql://"
    )


# A daemon waits ten seconds for it (and under systemd for as long as it takes). Nobody waits for a migrate.
@pytest.mark.parametrize("command", ["run", "migrate"])
def test_a_database_that_is_not_there(command: str, home: Path, key: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        found = refusal(
            command,
            home=home,
            PGHERALD_FCM_CREDENTIALS=key,
            PGHERALD_DATABASE_URL=f"postgresql://u:{SECRET}@127.0.0.1:{port}/app",
        )
    found.names(
        "PGHERALD_DATABASE_URL: no connection to Postgres",
        f"host 127.0.0.1, port {port}, database app",
        "is the server running?",
    )


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "host 127.0.0.1, port {port}, database app"),
        ({"PGHERALD_DATABASE_URL": "dbname=other"}, "host 127.0.0.1, port {port}, database other"),
        ({"PGHOST": "", "PGHOSTADDR": "127.0.0.1"}, "host 127.0.0.1, port {port}, database app"),
        ({"PGHOST": "/nowhere", "PGDATABASE": ""}, "host /nowhere, port {port}, database of the user name"),
        ({"PGDATABASE": f"postgresql://u:{SECRET}@db/app"}, "database (a connection string)"),
        ({"PGDATABASE": f"dbname=app password={SECRET}"}, "database (a connection string)"),
        ({"PGSERVICE": "app"}, "host 127.0.0.2, port {port}, database served"),
        ({"PGHERALD_DATABASE_URL": "service=app port={port}"}, "host of service app, port {port}, database of service"),
    ],
)
def test_a_database_that_is_not_there_is_named_as_libpq_finds_it(
    settings: dict[str, str], where: str, home: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))  # and nobody listens
        port = str(taken.getsockname()[1])
        (home / "services").write_text(f"[app]\nhost=127.0.0.2\nport={port}\ndbname=served\npassword={SECRET}\n")
        environ = {
            "PGHOST": "127.0.0.1",
            "PGPORT": port,
            "PGDATABASE": "app",
            "PGPASSWORD": SECRET,
            "PGSERVICEFILE": str(home / "services"),
            "PGHERALD_DATABASE_URL": "",
        }
        environ |= {name: value.format(port=port) for name, value in settings.items()}
        found = refusal("migrate", home=home, **environ)
    found.names("PGHERALD_DATABASE_URL: no connection to Postgres", where.format(port=port), "is the server running?")


@ON_18
def test_a_wrong_password_and_a_wrong_database(database: Database, home: Path, key: Path) -> None:
    right = database.dsn_as("postgres", tcp=True)
    password = database.server.cluster.password
    for wrong, said in (
        (right.replace(password, SECRET), "the password is wrong or missing"),
        (right.replace(f"/{database.name}", "/nowhere"), "there is no such database"),
    ):
        for command in ("run", "migrate"):
            found = refusal(command, home=home, PGHERALD_FCM_CREDENTIALS=key, PGHERALD_DATABASE_URL=wrong)
            found.names("PGHERALD_DATABASE_URL", said)
            assert password not in found.said


@ON_18
def test_a_role_or_a_database_that_lets_nobody_in(database: Database, home: Path, key: Path) -> None:
    superuser = database.connect()
    superuser.execute("drop role if exists outsider")
    superuser.execute("create role outsider login in role herald_daemon")
    superuser.execute(f"revoke connect on database {database.name} from public")
    try:
        for role, said in (
            ("herald_daemon", "may not log in; make one that may: create role pgherald login in role herald_daemon"),
            ("outsider", "may not connect to this database; as its owner: grant connect on database ... to ..."),
        ):
            found = refusal(
                "run",
                home=home,
                PGHERALD_FCM_CREDENTIALS=key,
                PGHERALD_DATABASE_URL=database.server.cluster.dsn(database.name, role),
            )
            found.names("PGHERALD_DATABASE_URL: no connection to Postgres", said)
    finally:
        superuser.execute("drop role outsider")


def test_a_service_that_libpq_does_not_know_and_a_port_that_is_not_postgres(home: Path, key: Path) -> None:
    found = refusal("migrate", home=home, PGHERALD_DATABASE_URL="service=nowhere")
    found.names("PGHERALD_DATABASE_URL", "no such service in pg_service.conf")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer_like_a_web_server, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        found = refusal("migrate", home=home, PGHERALD_DATABASE_URL=f"postgresql://u@127.0.0.1:{port}/app")
    found.names(f"port {port}", "what listens there is not Postgres")


def _answer_like_a_web_server(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@ON_18
def test_a_listening_connection_that_cannot_work(database: Database, home: Path, key: Path) -> None:
    right = database.dsn_as("postgres", tcp=True)
    password = database.server.cluster.password
    for wrong, said in (
        (right.replace(password, SECRET), "no connection to Postgres"),
        (right.replace(f"/{database.name}", "/postgres"), f"leads to database postgres, and not to {database.name}"),
    ):
        found = refusal(
            "run",
            home=home,
            PGHERALD_FCM_CREDENTIALS=key,
            PGHERALD_DATABASE_URL=database.daemon_dsn,
            PGHERALD_LISTEN_URL=wrong,
        )
        found.names("PGHERALD_LISTEN_URL", said)
        assert "PGHERALD_DATABASE_URL: " not in found.said


def test_a_host_that_does_not_exist(home: Path) -> None:
    found = refusal("migrate", home=home, PGHERALD_DATABASE_URL=f"postgresql://u:{SECRET}@nowhere.invalid/app")
    found.names("host nowhere.invalid", "the host name is unknown")


@ON_18
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file. Put the service account's JSON key there"),
        ("", "it is empty. Create a new key"),
        (f'{{"private_key": "{SECRET}"', "it is not JSON"),
        (f'["{SECRET}"]', "Create a new key"),
        (f'{{"type": "authorized_user", "client_secret": "{SECRET}"}}', "service account"),
        (
            (
                '{"type": "service_account", "client_email": "a@b.example", '
                '"token_uri": "https://oauth2.googleapis.com/token", '
                f'"private_key": "-----BEGIN PRIVATE KEY-----\\n{SECRET}\\n-----END PRIVATE KEY-----\\n"}}'
            ),
            "its private_key cannot be read as an RSA key. Create a new key",
        ),
    ],
)
def test_a_missing_or_invalid_service_account_file(
    database: Database, home: Path, content: str | None, said: str
) -> None:
    path = home / "fcm.json"
    if content is not None:
        path.write_text(content)
    found = refusal("run", home=home, PGHERALD_FCM_CREDENTIALS=path, PGHERALD_DATABASE_URL=database.daemon_dsn)
    found.names(f"FCM credentials {path}: ", said)


@ON_18
def test_no_credentials_at_all(database: Database, home: Path) -> None:
    found = refusal("run", home=home, PGHERALD_DATABASE_URL=database.daemon_dsn)
    found.names("No FCM credentials: PGHERALD_FCM_CREDENTIALS is not set", "Set it to a service account's JSON key")


@ON_18
def test_a_database_without_the_schema(empty_database: Database, home: Path, key: Path) -> None:
    found = refusal("run", home=home, PGHERALD_FCM_CREDENTIALS=key, PGHERALD_DATABASE_URL=empty_database.dsn)
    found.names("pgherald is not installed in this database", "run `pgherald migrate`")


@ON_18
def test_a_schema_that_is_older(database: Database, home: Path, key: Path) -> None:
    shipped = schema.shipped_version()
    database.connect().execute("delete from herald.migration where version = %s", (shipped,))
    found = refusal("run", home=home, PGHERALD_FCM_CREDENTIALS=key, PGHERALD_DATABASE_URL=database.daemon_dsn)
    found.names(f"older than this program's {shipped}", "run `pgherald migrate`")


@ON_18
def test_a_schema_that_is_newer(database: Database, home: Path, key: Path) -> None:
    database.connect().execute("insert into herald.migration values (9999, 'of_the_future', '0', false)")
    found = refusal("run", home=home, PGHERALD_FCM_CREDENTIALS=key, PGHERALD_DATABASE_URL=database.daemon_dsn)
    found.names("version 9999", "upgrade pgherald")
    found = refusal("migrate", home=home, PGHERALD_DATABASE_URL=database.migrator_dsn)
    found.names("version 9999", "upgrade pgherald")


@ON_18
def test_a_migration_that_was_changed_after_it_was_applied(database: Database, home: Path) -> None:
    database.connect().execute("update herald.migration set checksum = '0' where version = 1")
    found = refusal("migrate", home=home, PGHERALD_DATABASE_URL=database.migrator_dsn)
    found.names("migration 0001_", "was applied with another text", "install the release")


@ON_18
def test_roles_without_the_rights(database: Database, home: Path, key: Path) -> None:
    superuser = database.connect()
    superuser.execute("drop role if exists somebody")
    superuser.execute("create role somebody login")
    try:
        dsn = database.server.cluster.dsn(database.name, "somebody")
        found = refusal("run", home=home, PGHERALD_FCM_CREDENTIALS=key, PGHERALD_DATABASE_URL=dsn)
        found.names('the role "somebody" may not use pgherald', 'grant herald_daemon to "somebody"')
        superuser.execute("grant herald_reader to somebody")
        found = refusal("run", home=home, PGHERALD_FCM_CREDENTIALS=key, PGHERALD_DATABASE_URL=dsn)
        found.names('the role "somebody" may not use pgherald', 'grant herald_daemon to "somebody"')
        found = refusal("migrate", home=home, PGHERALD_DATABASE_URL=dsn)
        found.names('role "somebody" may not act as "herald_owner"', "grant herald_owner to somebody")
    finally:
        superuser.execute("drop role somebody")


@ON_18
def test_a_state_directory_that_cannot_be_used(database: Database, home: Path, key: Path) -> None:
    (home / "file").write_text("")
    found = refusal(
        "run",
        home=home,
        PGHERALD_FCM_CREDENTIALS=key,
        PGHERALD_DATABASE_URL=database.daemon_dsn,
        PGHERALD_STATE_DIR=home / "file",
    )
    found.names(f"the spool {home / 'file'}", "PGHERALD_STATE_DIR must name a directory on a local disk")


@ON_18
def test_a_metrics_address_that_is_taken(database: Database, home: Path, key: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = refusal(
            "run",
            home=home,
            PGHERALD_FCM_CREDENTIALS=key,
            PGHERALD_DATABASE_URL=database.daemon_dsn,
            PGHERALD_METRICS_LISTEN=address,
        )
    found.names(f"cannot serve metrics at {address}", "set PGHERALD_METRICS_LISTEN=")


@pytest.mark.parametrize(
    "command", [["herald"], ["run", "--fast"], ["migrate", "--dump-sql", "--json"], [], ["migrate", "extra"]]
)
def test_wrong_usage_is_exit_code_2_and_says_what_there_is(command: list[str], home: Path) -> None:
    done = call(*command, home=home)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: pgherald" in done.stderr or "pgherald: --dump-sql" in done.stderr
    assert "Traceback" not in done.stderr


SCENARIO = (
    "insert into herald.scenario (scenario_type, organisation_id, name, params) values (%s, gen_random_uuid(), 'x', %s)"
)


@ON_18
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux' /dev/full")
@pytest.mark.parametrize("command", ["status", "migrate --dump-sql", "--help", "--version", "fcm-emulator --help"])
def test_an_answer_that_does_not_fit_on_the_disk(database: Database, home: Path, command: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "pgherald.cli", *command.split()],
            env=environ | {"HOME": str(home), "PGHERALD_DATABASE_URL": database.daemon_dsn},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (1, "pgherald: the answer cannot be written: No space left on device\n")


@pytest.mark.parametrize("command", ["migrate --dump-sql", "fcm-emulator --help"])
def test_an_answer_for_which_there_is_no_standard_output(command: str) -> None:
    closed = 'exec "$@" >&-'
    ran = subprocess.run(
        ["/bin/sh", "-c", closed, "sh", sys.executable, "-m", "pgherald.cli", *command.split()],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("scenario_type", "params", "said", "hint"),
    [
        ("inactivity", {"day": 30}, 'unknown parameter "day"; it takes "days"', '{"days": 30'),
        ("inactivity", {}, 'parameter "days" is missing', '{"days": 30'),
        ("inactivity", {"days": "30"}, 'parameter "days" must be a whole number', '{"days": 30'),
        ("milestone", {"counts": []}, 'parameter "counts" must be a list', '{"counts": [1, 10, 50]}'),
        ("expiry", {"days_before": 30}, 'parameter "days_before" must be a list', '{"days_before": [30, 7, 1]}'),
        ("follow_up", {"activity_type": "contact"}, 'parameter "after_days" is missing', '"after_days": 3'),
        ("inactive", {"days": 30}, 'unknown scenario type "inactive"', "known: expiry, follow_up, inactivity"),
    ],
)
def test_params_that_the_type_does_not_know_are_an_error_with_a_hint(
    db: psycopg.Connection, scenario_type: str, params: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(psycopg.errors.IntegrityError) as caught:
        db.execute(SCENARIO, (scenario_type, json.dumps(params)))
    assert said in (caught.value.diag.message_primary or "")
    assert hint in (caught.value.diag.message_hint or "")
