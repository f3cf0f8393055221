"""What the settings promise: every row of the table, all problems at once, and no value ever repeated."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from pgherald.config import SETTINGS, LogLevel, Scheduler, Setting, Settings, load_settings
from pgherald.errors import ConfigError
from pgherald.values import HostPort

NAMES = [setting.name for setting in SETTINGS]
HOME = {"HOME": "/home/ola"}


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value).split("\n")


def test_the_table_holds_exactly_the_settings_of_the_contract() -> None:
    assert NAMES == [
        "PGHERALD_DATABASE_URL",
        "PGHERALD_LISTEN_URL",
        "PGHERALD_FCM_CREDENTIALS",
        "PGHERALD_FCM_PROJECT",
        "PGHERALD_FCM_ENDPOINT",
        "PGHERALD_MAX_IN_FLIGHT",
        "PGHERALD_SEND_DEADLINE",
        "PGHERALD_MAX_RATE",
        "PGHERALD_POLL_INTERVAL",
        "PGHERALD_METRICS_LISTEN",
        "PGHERALD_METRICS_TLS_CERTIFICATE",
        "PGHERALD_METRICS_TLS_KEY",
        "PGHERALD_METRICS_TLS_CLIENT_CA",
        "PGHERALD_STATE_DIR",
        "PGHERALD_SCHEDULER",
        "PGHERALD_LOG_LEVEL",
    ]


def test_nothing_set_gives_the_documented_defaults() -> None:
    assert load_settings(HOME) == Settings(
        database_url="",
        listen_url="",
        fcm_credentials=None,
        fcm_project=None,
        fcm_endpoint="https://fcm.googleapis.com",
        max_in_flight=10,
        send_deadline=3.0,
        max_rate=10_000.0,
        poll_interval=10.0,
        metrics_listen=HostPort("127.0.0.1", 9477),
        metrics_tls_certificate=None,
        metrics_tls_key=None,
        metrics_tls_client_ca=None,
        state_dir=Path("/home/ola/.local/state/pgherald"),
        scheduler=Scheduler.AUTO,
        log_level=LogLevel.INFO,
    )


def test_the_defaults_that_are_printed_are_the_ones_that_apply() -> None:
    literal = [setting for setting in SETTINGS if re.fullmatch(r"[a-z0-9:/.]+", setting.default)]
    assert len(literal) == 8
    for setting in literal:
        assert setting.parse(setting.default) == setting.otherwise(HOME)


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_every_example_in_the_table_works(setting: Setting) -> None:
    load_settings({**HOME, setting.name: setting.example})


def test_each_setting_is_read() -> None:
    settings = load_settings(
        {
            "PGHERALD_DATABASE_URL": "postgresql://u@pooler/app",
            "PGHERALD_LISTEN_URL": "host=db dbname=app",
            "PGHERALD_FCM_CREDENTIALS": "creds/fcm.json",
            "PGHERALD_FCM_PROJECT": "example.org:old-project-1",
            "PGHERALD_FCM_ENDPOINT": "http://[::1]:8099/prefix/",
            "PGHERALD_MAX_IN_FLIGHT": "1000",
            "PGHERALD_SEND_DEADLINE": "2.5",
            "PGHERALD_MAX_RATE": "0.5",
            "PGHERALD_POLL_INTERVAL": "60",
            "PGHERALD_METRICS_LISTEN": "[::]:0",
            "PGHERALD_METRICS_TLS_CERTIFICATE": "/etc/a b/metrics.crt",
            "PGHERALD_METRICS_TLS_KEY": "metrics.key",
            "PGHERALD_METRICS_TLS_CLIENT_CA": "/etc/ca.pem",
            "PGHERALD_STATE_DIR": "/var/lib/a b",
            "PGHERALD_SCHEDULER": "INTERNAL",
            "PGHERALD_LOG_LEVEL": "debug",
            "PATH": "/usr/bin",
        }
    )
    assert settings == Settings(
        database_url="postgresql://u@pooler/app",
        listen_url="host=db dbname=app",
        fcm_credentials=Path("creds/fcm.json"),
        fcm_project="example.org:old-project-1",
        fcm_endpoint="http://[::1]:8099/prefix",
        max_in_flight=1000,
        send_deadline=2.5,
        max_rate=0.5,
        poll_interval=60.0,
        metrics_listen=HostPort("::", 0),
        metrics_tls_certificate=Path("/etc/a b/metrics.crt"),
        metrics_tls_key=Path("metrics.key"),
        metrics_tls_client_ca=Path("/etc/ca.pem"),
        state_dir=Path("/var/lib/a b"),
        scheduler=Scheduler.INTERNAL,
        log_level=LogLevel.DEBUG,
    )
    assert str(settings.metrics_listen) == "[::]:0"


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://",
        "postgres:///app?host=/run/postgresql&port=5433",
        "postgresql://u:p%40ss%2F@a:5432,b:5433/app?target_session_attrs=primary",
        "postgresql://u@%2Frun%2Fpostgresql/app",
        "postgresql:///app?user=ola@example.org",
        "host=db password='p@/s s' port=5432,5433",
        "postgresql://u:p?s=s@h/app",
        "service=herald",
    ],
)
def test_whatever_libpq_reads_without_doubt_is_passed_on_as_it_is(conninfo: str) -> None:
    assert load_settings({**HOME, "PGHERALD_DATABASE_URL": conninfo}).database_url == conninfo


def test_the_listener_uses_the_same_database_unless_told_otherwise() -> None:
    assert load_settings({**HOME, "PGHERALD_DATABASE_URL": "host=db"}).listen_url == "host=db"


def test_a_blank_value_counts_as_not_set() -> None:
    assert load_settings({**HOME, **dict.fromkeys(NAMES, " ")}) == load_settings(HOME)


def test_a_line_end_after_a_value_is_no_part_of_it() -> None:
    assert conninfo_to_dict(load_settings({**HOME, "PGHERALD_DATABASE_URL": "postgresql://h/app\n"}).database_url) == {
        "host": "h",
        "dbname": "app",
    }


def test_settings_do_not_show_a_password_when_printed() -> None:
    settings = load_settings({**HOME, "PGHERALD_DATABASE_URL": "host=db password=hunter2"})
    assert "hunter2" not in repr(settings)


def test_a_credential_of_systemd_is_used_only_if_it_is_there(tmp_path: Path) -> None:
    environ = {**HOME, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load_settings(environ).fcm_credentials is None
    (tmp_path / "fcm.json").write_text("{}")
    assert load_settings(environ).fcm_credentials == tmp_path / "fcm.json"
    assert load_settings({**environ, "PGHERALD_FCM_CREDENTIALS": "/x"}).fcm_credentials == Path("/x")


def test_a_directory_of_credentials_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.symlink_to(directory)  # root, too, cannot read this
    line, *others = problems({**HOME, "CREDENTIALS_DIRECTORY": str(directory)})
    assert line.startswith("PGHERALD_FCM_CREDENTIALS: is not set, and what stands in its place, CREDENTIALS_DIRECTORY")
    assert "cannot be read: Too many levels of symbolic links" in line
    assert len(others) == 3  # what the metrics are served with


def test_a_credentials_file_pasted_where_its_path_belongs_is_named_as_that() -> None:
    (line,) = problems({**HOME, "PGHERALD_FCM_CREDENTIALS": '{"private_key": "hunter2"}'})
    assert "is the content of a credentials file" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"STATE_DIRECTORY": "/s", "PGHERALD_STATE_DIR": "/p"}, "/p"),
        ({"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x"}, "/s"),
        ({"XDG_STATE_HOME": "/x"}, "/x/pgherald"),
        ({"XDG_STATE_HOME": "x"}, "/home/ola/.local/state/pgherald"),
        ({"STATE_DIRECTORY": ""}, "/home/ola/.local/state/pgherald"),
    ],
)
def test_the_state_directory_comes_from_the_first_source_that_names_one(environ: dict[str, str], expected: str) -> None:
    assert load_settings({**HOME, **environ}).state_dir == Path(expected)


def test_without_a_home_in_the_environment_the_account_tells_it() -> None:
    assert load_settings({}).state_dir.is_absolute()


def test_no_source_for_the_state_directory_is_a_problem_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    (line,) = problems({})
    assert line.startswith("PGHERALD_STATE_DIR: is not set, and neither STATE_DIRECTORY")


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("DATABASE_URL", "postgresql://u:p@[h/app", "libpq cannot read it"),
        ("DATABASE_URL", "postgresql://u:p@ss@h/app", "@ is %40"),
        ("DATABASE_URL", "postgresql://u:p/ss@h/app", "/ is %2F"),
        ("DATABASE_URL", "postgresql://u:1/ss@h/app", "/ is %2F"),
        ("DATABASE_URL", "host=db port=five", "or the port is wrong"),
        ("DATABASE_URL", "app", "libpq cannot read it"),
        ("DATABASE_URL", "host=db\0", "libpq cannot read it"),
        ("LISTEN_URL", "host=db pasword=x", "libpq cannot read it"),
        ("FCM_CREDENTIALS", "/a\0b", "NUL"),
        ("FCM_PROJECT", "projects/x", "is not the id of a project"),
        ("FCM_ENDPOINT", "http://fcm.googleapis.com", "plain http to another machine"),
        ("FCM_ENDPOINT", "http://10.0.0.1:8080", "plain http to another machine"),
        ("FCM_ENDPOINT", "ftp://localhost", "neither https nor http"),
        ("FCM_ENDPOINT", "fcm.googleapis.com", "not a URL with a host"),
        ("FCM_ENDPOINT", "https://", "not a URL with a host"),
        ("FCM_ENDPOINT", "https://h:99999", "not a URL with a host"),
        ("FCM_ENDPOINT", "https://[::1", "not a URL with a host"),
        ("FCM_ENDPOINT", "https://h/a b", "not a URL with a host"),
        ("FCM_ENDPOINT", "https://u:p@h", "has a user"),
        ("FCM_ENDPOINT", "https://h/?key=x", "a query"),
        ("MAX_IN_FLIGHT", "0", "too small"),
        ("MAX_IN_FLIGHT", "10001", "too large"),
        ("MAX_IN_FLIGHT", "ten", "not a whole number"),
        ("MAX_IN_FLIGHT", "1_0", "not a whole number"),
        ("MAX_IN_FLIGHT", "\u0661\u0660", "not a whole number"),
        ("MAX_IN_FLIGHT", "9" * 40, "not a whole number"),
        ("SEND_DEADLINE", "0", "too small"),
        ("SEND_DEADLINE", "61", "too large"),
        ("SEND_DEADLINE", "3s", "not a plain number"),
        ("SEND_DEADLINE", "nan", "not a plain number"),
        ("SEND_DEADLINE", "-1", "not a plain number"),
        ("MAX_RATE", "inf", "not a plain number"),
        ("MAX_RATE", "0", "too small"),
        ("POLL_INTERVAL", "4000", "too large"),
        ("METRICS_LISTEN", "9477", "not an address, a colon and a port"),
        ("METRICS_LISTEN", ":9477", "not an address, a colon and a port"),
        ("METRICS_LISTEN", "::1:9477", "not an address, a colon and a port"),
        ("METRICS_LISTEN", "[host]:9477", "no host name or IP address"),
        ("METRICS_LISTEN", "a b:9477", "no host name or IP address"),
        ("METRICS_LISTEN", "localhost:65536", "above 65535"),
        ("STATE_DIR", "state", "relative path"),
        ("SCHEDULER", "cron", "none of the choices"),
        ("LOG_LEVEL", "trace", "none of the choices"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_reason_the_choice_and_an_example(
    name: str, value: str, wrong: str
) -> None:
    (line,) = problems({**HOME, f"PGHERALD_{name}": value})
    assert line.startswith(f"PGHERALD_{name}: ")
    assert wrong in line
    assert "; it may be " in line
    assert f"; for example PGHERALD_{name}=" in line


def test_a_file_that_is_not_there_is_told_with_what_else_is_wrong_and_left_to_its_reader_where_nothing_is(
    tmp_path: Path,
) -> None:
    """Most commands never read it."""
    here = tmp_path / "here"
    here.touch()
    named = {**HOME, "PGHERALD_METRICS_TLS_KEY": str(here), "PGHERALD_FCM_CREDENTIALS": str(tmp_path / "hemmelig")}
    assert load_settings(named).fcm_credentials == tmp_path / "hemmelig"
    lines = problems({**named, "PGHERALD_MAX_IN_FLIGHT": "0", "PGHERALD_COLOUR": "red"})
    assert [line.split(";")[0] for line in lines] == [
        "PGHERALD_MAX_IN_FLIGHT: is too small",
        "PGHERALD_COLOUR: is not a setting",
        "PGHERALD_FCM_CREDENTIALS: names a file that is not there, or not for this user",
    ]
    assert "hemmelig" not in "".join(lines)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "fcm.localhost"])
def test_plain_http_is_good_enough_for_an_emulator_on_this_machine(host: str) -> None:
    assert load_settings({**HOME, "PGHERALD_FCM_ENDPOINT": f"http://{host}:80"}).fcm_endpoint == f"http://{host}:80"


def test_all_problems_are_reported_together() -> None:
    lines = problems({**HOME, **dict.fromkeys(NAMES, "\0:?"), "PGHERALD_NOPE": "1"})
    assert [line.split(":")[0] for line in lines] == [*NAMES, "PGHERALD_NOPE"]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("PGHERALD_DATABSE_URL", "did you mean PGHERALD_DATABASE_URL?"),
        ("PGHERALD_DB_URL", "did you mean PGHERALD_DATABASE_URL?"),
        ("PGHERALD_INFLIGHT", "did you mean PGHERALD_MAX_IN_FLIGHT?"),
        ("pgherald_max_rate", "did you mean PGHERALD_MAX_RATE?"),
        ("PGHERALD_XYZZY", "the settings are PGHERALD_DATABASE_URL, "),
        ("PGHERALD_PORT_9477_TCP_ADDR", "enableServiceLinks: false"),
        ("PGHERALD_SERVICE_HOST", "enableServiceLinks: false"),
    ],
)
def test_an_unknown_setting_is_an_error_that_knows_what_was_meant(name: str, suggestion: str) -> None:
    (line,) = problems({**HOME, name: "x"})
    assert line.startswith(f"{name}: is not a setting; ")
    assert suggestion in line


SECRET = "s3cr3t-7f1e"
AROUND = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "postgresql://u:", "host=db password=", "https://u:", "http://", "1", "{", "/", "[", "auto"]),
)
OTHERS = ["CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME", "PGHERALD_", "PGHERALD_X", "PGPASSWORD"]


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(NAMES + OTHERS), st.text(max_size=9).map("PGHERALD_".__add__)),
        st.tuples(AROUND, st.sampled_from(["", SECRET]), AROUND).map("".join),
    )
)
def test_no_environment_raises_anything_else_or_has_a_value_repeated(environ: dict[str, str]) -> None:
    refused: ConfigError | None = None
    try:
        settings = load_settings(environ)
    except ConfigError as error:
        refused = error
    if refused is not None:
        assert SECRET not in str(refused)
        assert refused.__context__ is None
    else:
        assert 1 <= settings.max_in_flight <= 10_000
        assert 0 < settings.send_deadline <= 60
        os.fspath(settings.state_dir)
