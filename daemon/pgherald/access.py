"""The way into the database: one connection for a command or a check, why there is none, and what the login may do.

The reasons are told without a password, a DSN or anything else that libpq quotes. Connections that last are made by
`sessions` and by the pool of `store`. Used by `schema`, `operate`, the doctor, and by `run` before it starts.
"""

from __future__ import annotations

import re

import psycopg

from pgherald.errors import ConfigError

#: What only a person can mend. Told by libpq's text, for it keeps the server's code of an error to itself.
_MISTAKES = (
    (r"(password|SASL) authentication failed|no password supplied", "the password is wrong or missing"),
    (
        r"(peer|ident|certificate) authentication failed",
        "the server knows this client by another name; look into its pg_ident.conf",
    ),
    (r'database ".*" does not exist|no such database', "there is no such database"),
    (r'role ".*" does not exist|no such user', "there is no such role"),
    (
        r"is not permitted to log in",
        "this role may not log in; make one that may: create role pgherald login in role herald_daemon",
    ),
    (
        r"permission denied for database",
        "this role may not connect to this database; as its owner: grant connect on database ... to ...",
    ),
    (r"definition of service .* not found|service file .* not found", "there is no such service in pg_service.conf"),
    (r"no pg_hba.conf entry", "the server's pg_hba.conf does not let this client in"),
    (
        r"invalid (\S+ )?value\b|invalid port number|could not (match|parse)",
        "an option of it has an impossible value",
    ),
    (r"certificate|private key", "TLS failed; check sslmode and the certificates"),
)

#: What may be otherwise in a moment, without anybody changing a setting, and a word on it for the log. So may all that
#: has no row here or above: a server may speak another language, and each pooler has words of its own.
_PASSING = (
    ("closed", r"not currently accepting connections", "this database is closed to connections (allow_connections)"),
    ("not_postgres", r"received invalid response|invalid response to SSL", "what listens there is not Postgres"),
    ("not_listening", r"connection refused|no such file or directory", "nothing listens there; is the server running?"),
    (
        "host_unknown",
        r"could not translate host name|failed to resolve host",
        "the host name is unknown, or whoever resolves it does not answer",
    ),
    ("no_answer", r"timeout|timed out", "no answer in time; a firewall, or a wrong host?"),
    (
        "full",
        r"too many connections for (role|database)",
        "no connection is left within the limit of this role or database",
    ),
    (
        "full",
        r"too many (connections|clients)|remaining connection slots|no more connections|max client",
        "the server, or the pooler before it, has no connection left",
    ),
    ("tls", r"ssl", "TLS failed; check sslmode and the certificates"),
    (
        "starting_or_stopping",
        r"starting up|shutting down|recovery mode|not (yet )?accepting connections",
        "the server is starting or stopping",
    ),
    (
        "not_the_primary",
        r"hot standby mode|session is (not )?read-only",
        "what is there is not what target_session_attrs asks for",
    ),
    ("unknown", "", "look into the server's log"),
)


class NotNow(ConfigError):
    """There is no connection, and it is not certain that somebody has to change a setting: the same call may succeed in
    a moment. Its `reason` is "full" where all connections that there may be are taken."""


class Unreadable(ConfigError):
    """The login's sessions write moments in a way that psycopg does not read. It ends with ': ' and what mends it."""


def connect(conninfo: str, setting: str = "PGHERALD_DATABASE_URL", *, autocommit: bool = False) -> psycopg.Connection:
    """A connection for a command; ConfigError, with the setting and without the DSN, when there is none to be had.

    Nothing is prepared in its session, so it may go through a pooler.
    """
    try:
        connection = psycopg.connect(
            conninfo,
            autocommit=autocommit,
            prepare_threshold=None,
            application_name="pgherald",
            connect_timeout=10,
            client_encoding="UTF8",
        )
    except (psycopg.OperationalError, psycopg.ProgrammingError, UnicodeError) as error:
        raise _unreachable(conninfo, error, setting) from None
    for parameter, wanted in (("DateStyle", "ISO"), ("IntervalStyle", "postgres")):
        style = connection.info.parameter_status(parameter)  # a pooler may not say
        if style is not None and style.partition(",")[0] != wanted:
            user = connection.info.user
            connection.close()
            raise Unreadable(
                f'{setting}: {parameter} of the sessions of "{user}" is {style}, and only {wanted} can be read: '
                f'alter role "{user}" set {parameter} = {wanted}'
            )
    return connection


def _unreachable(conninfo: str, error: BaseException, setting: str) -> ConfigError:
    """Why there is no connection, without a password or a DSN in it: host, port, database, the server's own reason."""
    try:
        place = _place(conninfo)
    except (psycopg.ProgrammingError, UnicodeError):
        return ConfigError(
            f"{setting}: not a connection string; for example postgresql://pgherald@db.example.org:5432/app"
        )

    def is_said(pattern: str) -> bool:
        return re.search(pattern, str(error), re.IGNORECASE | re.DOTALL) is not None

    what = f"{setting}: no connection to Postgres ({place})"
    for pattern, hint in _MISTAKES:
        if is_said(pattern):
            return ConfigError(f"{what}: {hint}")
    reason, hint = next((reason, hint) for reason, pattern, hint in _PASSING if is_said(pattern))
    return NotNow(f"{what}: {hint}", reason=reason)


def _place(conninfo: str) -> str:
    """Host, port and database as libpq takes them: what the string says, else its service, else PG*."""
    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    service = given.get("service")
    defaults = {} if service else {each.keyword.decode(): each.val for each in psycopg.pq.Conninfo.get_defaults()}

    def taken(*keywords: str, otherwise: str) -> str:
        for source in (given, defaults):
            for keyword in keywords:
                if value := source.get(keyword):
                    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                    # what belongs into another setting, with a password perhaps
                    return "(a connection string)" if "://" in text or "=" in text else text
        return f"of service {service}" if service else otherwise

    host = taken("host", "hostaddr", otherwise="local socket")
    return (
        f"host {host}, port {taken('port', otherwise='5432')}, database {taken('dbname', otherwise='of the user name')}"
    )


def check_listening(listen_url: str, database_url: str) -> None:
    """Refuse a connection of the listener's own that cannot work; NotNow where it may in a moment."""
    named = []
    for conninfo, setting in ((listen_url, "PGHERALD_LISTEN_URL"), (database_url, "PGHERALD_DATABASE_URL")):
        try:
            with connect(conninfo, setting) as connection:
                row = connection.execute("select pg_catalog.current_database()").fetchone()
        except psycopg.Error as error:
            name = type(error).__name__
            raise NotNow(f"{setting}: the database would not say its name: {name}", reason=name) from None
        named.append(row[0] if row else None)
    if named[0] != named[1]:
        raise ConfigError(
            f"PGHERALD_LISTEN_URL: leads to database {named[0]}, and not to {named[1]} as PGHERALD_DATABASE_URL does: "
            "a NOTIFY stays in its database; name the same one in both"
        )


def may_claim(connection: psycopg.Connection) -> bool:
    """Whether this login may call herald.claim, so that rights granted function by function will do."""
    row = connection.execute(
        """select bool_or(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) from pg_catalog.pg_proc as p
        where p.pronamespace = 'herald'::pg_catalog.regnamespace and p.proname = 'claim'"""
    ).fetchone()
    return row != (False,)


def refused(connection: psycopg.Connection, error: psycopg.errors.InsufficientPrivilege) -> tuple[str, str]:
    """Why a function ended with this error, and what mends it."""
    connection.rollback()
    user = connection.info.user
    if connection.execute("select pg_catalog.current_setting('row_security')").fetchone() == ("off",):
        return (
            f'row_security of the sessions of "{user}" is off, so that each look at a table of pgherald is an error',
            f'alter role "{user}" set row_security = on',
        )
    if within(error) and may_claim(connection):
        return (
            "herald_owner, with whose rights the source views and the evaluators read, is refused",
            f"{error.diag.message_primary}: see `pgherald doctor`",
        )
    return no_right(connection)


def within(error: psycopg.errors.InsufficientPrivilege) -> bool:
    """Whether the right was missing within a function, where herald_owner acts, and not at its call."""
    return error.diag.context is not None


def no_right(connection: psycopg.Connection) -> tuple[str, str]:
    """What is wrong with a login that may not use pgherald, and the statement that gives it the right."""
    row = connection.execute("select current_user::text, session_user::text").fetchone()
    assert row is not None
    user, login = row
    acting = "" if user == login else f', as which "{login}" acts (alter role ... set role),'
    return (
        f'the role "{user}"{acting} may not use pgherald; as the role that ran `pgherald migrate`',
        f'grant herald_daemon to "{user}"',
    )


def excess_rights(conninfo: str) -> tuple[str, ...]:
    """What this login may do beyond calling the daemon's functions: superuser, bypassrls, member, tables and the like.

    Empty is how it should be; also where the database does not say.
    """
    with connect(conninfo) as connection:
        try:
            return tuple(kind for (kind,) in connection.execute("select distinct kind from herald.excess_rights()"))
        except psycopg.Error:
            return ()
