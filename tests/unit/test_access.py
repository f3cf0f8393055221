"""Why there is no connection: what passes by itself is told from what a person has to mend."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pgherald.access import NotNow, connect
from pgherald.errors import ConfigError
from pgherald.schema import check_for_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def wire(kind: bytes, content: bytes) -> bytes:
    """A message of Postgres' protocol."""
    return kind + (len(content) + 4).to_bytes(4, "big") + content


def error(message: str, sqlstate: str = "57P03") -> bytes:
    return wire(b"E", f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode())


WELCOME = (
    wire(b"R", bytes(4))
    + wire(b"S", b"server_version\0" + b"15.0\0")
    + wire(b"S", b"client_encoding\0UTF8\0")
    + wire(b"Z", b"I")
)


@contextmanager
def saying(*answers: bytes) -> Iterator[str]:
    """The conninfo of a server that answers thus whoever connects, once for each thing that comes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer = server.accept()[0]
            with peer:
                for each in answers:
                    peer.recv(8192)
                    peer.sendall(each)

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        yield f"host=127.0.0.1 port={port} dbname=app user=u sslmode=disable gssencmode=disable"
        thread.join()


@pytest.mark.parametrize(
    "message",
    [
        "the database system is starting up",
        "the database system is not yet accepting connections",
        "the database system is not accepting connections",
        "the database system is shutting down",
        "the database system is in recovery mode",
        "sorry, too many clients already",
        "remaining connection slots are reserved for non-replication superuser connections",
        "could not fork new process for connection: Resource temporarily unavailable",
        "no more connections allowed (max_client_conn)",
        "server login has been failing, try again later (server_login_retry)",
        "Max client connections reached",
        'too many connections for role "u"',
        'database "app" is not currently accepting connections',
        "das Datenbanksystem startet",
        "tut mir leid, schon zu viele Verbindungen",
        "something that nobody has heard of",
    ],
)
def test_a_server_that_may_take_the_next_connection_is_waited_for(message: str) -> None:
    with saying(error(message)) as conninfo, pytest.raises(NotNow):
        connect(conninfo)


@pytest.mark.parametrize(
    "message",
    [
        'database "app" does not exist',
        "no such database: app",
        'role "u" does not exist',
        "no such user",
        'role "u" is not permitted to log in',
        'permission denied for database "app"',
        'password authentication failed for user "u"',
        "SASL authentication failed",
        'Peer authentication failed for user "u"',
        'no pg_hba.conf entry for host "127.0.0.1", user "u", database "app", no encryption',
        "connection requires a valid client certificate",
        'invalid value for parameter "work_mem": "much"',
    ],
)
def test_what_a_person_has_to_mend_is_not_waited_for(message: str) -> None:
    with saying(error(message)) as conninfo, pytest.raises(ConfigError) as caught:
        connect(conninfo)
    assert not isinstance(caught.value, NotNow)


@pytest.mark.parametrize(
    "option",
    [
        "sslmode=perhaps",
        "port=99999",
        "port=x",
        "keepalives=x",
        "hostaddr=x",
        "user=\udcff",
        "service=nowhere",
        "port=1,2",
    ],
)
def test_an_option_that_libpq_does_not_take_is_not_waited_for(option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(f"host=127.0.0.1 dbname=app user=u {option}")
    assert not isinstance(caught.value, NotNow)


def test_a_certificate_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    with saying(b"S") as conninfo, pytest.raises(ConfigError, match="TLS failed") as caught:
        connect(conninfo.replace("sslmode=disable", f"sslmode=verify-full sslrootcert={tmp_path}/none.crt"))
    assert not isinstance(caught.value, NotNow)


def test_a_standby_is_waited_for_until_it_is_the_primary() -> None:
    hot = wire(b"S", b"in_hot_standby\0on\0") + wire(b"S", b"default_transaction_read_only\0on\0")
    with saying(WELCOME[:-6] + hot + WELCOME[-6:]) as conninfo, pytest.raises(NotNow):
        connect(f"{conninfo} target_session_attrs=read-write")


@pytest.mark.parametrize(
    "last",
    [
        b"",
        error("terminating connection due to administrator command", "57P01"),
        error("something of a pooler", "XX000"),
    ],
)
def test_a_server_that_goes_down_while_it_is_asked_is_waited_for(last: bytes) -> None:
    with saying(WELCOME, last) as conninfo, pytest.raises(NotNow):
        check_for_daemon(conninfo)


def test_a_server_that_goes_down_while_tls_begins_is_waited_for() -> None:
    with saying(b"S", b"") as conninfo, pytest.raises(NotNow):
        connect(conninfo.replace("sslmode=disable", "sslmode=require"))
