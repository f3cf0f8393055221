"""The access token that every request to FCM carries: where the credentials come from, and how the token stays fresh.

google-auth knows the kinds of credentials and signs; it blocks, so it runs in a worker thread. Its HTTP calls are
carried back onto the event loop, where one deadline holds for a whole call: a token endpoint that hangs or drips costs
a refresh, never the daemon. Sending reads a cached string; `OAuth.run` renews it well before it expires, and at once
when FCM does not take it.

No text here repeats a credentials file, a token, or what a token endpoint said beyond its error code.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import anyio
import anyio.from_thread
import anyio.to_thread
import google.auth
import httpx2
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError
from google.auth.transport import DEFAULT_RETRYABLE_STATUS_CODES, Request
from google.oauth2 import service_account

from pgherald.backoff import reconnect_delay
from pgherald.errors import ConfigError
from pgherald.log import log
from pgherald.values import is_loopback

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

    from google.auth.credentials import Credentials

SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"

CALL_BOUND: Final = 10.0
"""Seconds for one refresh, from signing to the last byte of the answer (google-auth alone would wait 120)."""

RENEW_AT: Final = 0.8
"""The part of a token's life after which it is renewed: of Google's hour, 12 minutes are left to get over an outage."""

SPARE: Final = 10.0
"""Seconds before its expiry from which a token is not sent any more, as a request may be on its way a while. A tenth
of its life, if that is less."""

FORCED_PAUSE: Final = 1.0
"""Seconds between renewals that an unwelcome token asks for, so that a storm of 401 is not a storm of renewals."""

LIFE_UNTOLD: Final = 300.0
"""Seconds that a token is taken to live if the endpoint does not say (RFC 6749 section 5.1 lets it)."""

LIFE_MIN: Final = 1.0
LIFE_MAX: Final = 86_400.0

METADATA_BOUND: Final = 1.0
"""Seconds to wait for Google's metadata server, which answers in milliseconds where there is one."""

CREDENTIALS_MAX: Final = 65_536
"""Bytes of a credentials file at most; a service account's has about 2,400."""

ANSWER_MAX: Final = 65_536
"""Bytes of a token endpoint's answer at most; Google's have about 1,100."""

_FRESH_KEY: Final = (
    "Create a new key (Firebase console, Project settings, Service accounts, Generate new private key) and put the "
    "file there whole."
)

_OAUTH_ERRORS: Final = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "access_denied",
        "org_internal",
        "disabled_client",
        "deleted_client",
    }
)


class NoOAuthToken(Exception):
    """There is no access token now, so nothing can be sent. `reason` is one word, for a log line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Granted:
    """An access token; `usable_until` and `renew_at` are moments of time.monotonic(), `expires` is in Unix seconds."""

    token: str = field(repr=False)
    renew_at: float
    usable_until: float
    expires: float


class OAuth:
    """Gives out the access token for FCM. One at a time asks the token endpoint; the others wait for what it gets.

    Where `run` is at work nobody else asks, but for `adopt`: no sender's deadline ends what all wait for. Without it,
    as in a command, whoever needs a token does.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._ssl_context = httpx2.create_ssl_context()
        self._rng = Random()
        self._lock = anyio.Lock()
        self._granted: _Granted | None = None
        self._unwelcome = ""  # the token that FCM did not take, until there is another
        self._runs = False
        self._wanted = anyio.Event()  # wakes `run`
        self._asked = anyio.Event()  # when the endpoint has been asked the next time
        self._failures = 0
        self._last_reason = ""
        self._wait_until = 0.0
        self._forced_at = float("-inf")

    @property
    def expiry_timestamp(self) -> float:
        """When the token there is expires, in Unix seconds; 0 without one."""
        return self._granted.expires if self._granted is not None else 0.0

    @property
    def cached(self) -> str:
        """The token that is there, if it is good for a while yet; else an empty string."""
        granted = self._granted
        return granted.token if granted is not None and time.monotonic() < granted.usable_until else ""

    async def token(self) -> str:
        """A token that is good for a while yet: the cached one, or else a new one. Raises NoOAuthToken."""
        return self.cached or await self._newer(self._current)

    async def refresh(self, stale: str) -> str:
        """A token other than `stale`, which FCM did not take: what is there by now, or a new one. Raises NoOAuthToken.

        At most one renewal a second is made for this: an FCM that takes no token at all is not helped by more of them.
        Where `run` is at work it goes on until it has one, whoever gives up waiting.
        """
        if stale == self._current != self._unwelcome:
            now = time.monotonic()
            if now - self._forced_at < FORCED_PAUSE:
                raise NoOAuthToken("renewed_a_moment_ago")
            self._forced_at = now
            self._unwelcome = stale
        return await self._newer(stale)

    async def adopt(self, credentials: Credentials) -> None:
        """Ask with other credentials from now on, and at once.

        Raises NoOAuthToken if they get none; the token that is there stays in use for as long as it is good.
        """
        async with self._lock:
            self._credentials = credentials
            await self._renew()
            self._check()

    async def run(self) -> NoReturn:
        """Renew the token ahead of its expiry, and when it is unwelcome, for ever; failures are logged and tried again
        within seconds."""
        self._runs = True
        try:
            while True:
                self._wanted = anyio.Event()
                if (wait := self._due() - time.monotonic()) > 0:
                    with anyio.move_on_after(wait):
                        await self._wanted.wait()
                    continue
                async with self._lock:
                    if self._due() > time.monotonic():  # `adopt` has asked meanwhile
                        continue
                    await self._renew()
                    if self._failures > 0:
                        usable = self.cached not in ("", self._unwelcome)
                        (log.warning if usable else log.error)("oauth_refresh_failed", reason=self._last_reason)
        finally:
            self._runs = False

    @property
    def _current(self) -> str:
        """The token that is there, good or not; else an empty string."""
        return self._granted.token if self._granted is not None else ""

    def _due(self) -> float:
        """When to ask the endpoint next, by time.monotonic()."""
        granted = self._granted
        soon = granted is None or granted.token == self._unwelcome
        return max(0.0 if granted is None or soon else granted.renew_at, self._wait_until)

    async def _newer(self, stale: str) -> str:
        """A token other than `stale`, if need be what the endpoint gives when it is asked next. Raises NoOAuthToken."""
        if self.cached not in ("", stale):
            return self.cached
        if time.monotonic() < self._wait_until:
            raise NoOAuthToken(self._last_reason)
        asked = self._asked
        if self._runs:
            self._wanted.set()
            await asked.wait()
        else:
            async with self._lock:
                if not asked.is_set():
                    await self._renew()
        self._check()
        return self._current

    def _check(self) -> None:
        """Raise NoOAuthToken if the endpoint gave none when it was asked last."""
        if self._failures > 0:
            raise NoOAuthToken(self._last_reason)

    async def _renew(self) -> None:
        """Ask the endpoint, keep what it gives or why it gives nothing, and let those go on who wait for that.

        Whoever calls this has the lock.
        """
        try:
            self._granted = await self._ask()
        except NoOAuthToken as error:
            self._failures += 1
            self._last_reason = error.reason
            self._wait_until = time.monotonic() + reconnect_delay(self._failures, self._rng)
        else:
            self._failures = 0
            self._wait_until = 0.0
            self._unwelcome = ""
        asked, self._asked = self._asked, anyio.Event()
        asked.set()

    async def _ask(self) -> _Granted:
        """One call of the token endpoint, in a thread that is left behind if it does not end in time."""
        started = time.monotonic()
        request = _OnTheLoop(self._ssl_context)
        try:
            with anyio.fail_after(CALL_BOUND):
                token, expiry = await anyio.to_thread.run_sync(self._grant, request, abandon_on_cancel=True)
        except TimeoutError:
            raise NoOAuthToken("timeout") from None
        except TransportError as error:
            raise NoOAuthToken(error.reason if isinstance(error, _NoAnswer) else "unreachable") from None
        except RefreshError as error:
            raise NoOAuthToken(_said(error)) from None
        except Exception:  # noqa: BLE001 - google-auth trips over odd answers in ways that it does not list
            raise NoOAuthToken("bad_answer") from None
        finally:
            request.abandon()
        return _granted(token, expiry, started)

    def _grant(self, request: Request) -> tuple[object, datetime | None]:
        self._credentials.refresh(request)  # type: ignore[no-untyped-call]
        return self._credentials.token, self._credentials.expiry


def _granted(token: object, expiry: datetime | None, started: float) -> _Granted:
    """What google-auth got, once it is fit to be sent in a header; `expiry` is UTC without saying so."""
    if not (isinstance(token, str) and token and token.isascii() and token.isprintable() and " " not in token):
        raise NoOAuthToken("bad_answer")
    life = LIFE_UNTOLD if expiry is None else (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    if life < LIFE_MIN:
        raise NoOAuthToken("expired_on_arrival")
    life = min(life, LIFE_MAX)
    spare = min(SPARE, life / 10)
    return _Granted(token, started + life * RENEW_AT, started + life - spare, time.time() + life)


def _said(error: RefreshError) -> str:
    """The endpoint's error code, if it is one that the RFCs or Google list; its description stays unread."""
    document = error.args[1] if len(error.args) > 1 else None
    said = document.get("error") if isinstance(document, dict) else None
    return said if isinstance(said, str) and said in _OAUTH_ERRORS else "refused"


class _NoAnswer(TransportError):
    """A call that ended without an answer to go on with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)  # type: ignore[no-untyped-call]
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _HttpAnswer:
    """What google-auth wants to see of an answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class _OnTheLoop(Request):
    """google-auth's way of making an HTTP call, from its thread: the call itself is made on the event loop.

    It has no time-out but `abandon`, and asks no proxy, as sending does not. Answers that google-auth would try again
    on, sleeping in between, are errors here: `OAuth` does the waiting.
    """

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        self._ssl_context = ssl_context
        self._abandoned = False
        self._scope = anyio.CancelScope()  # of the call under way

    def abandon(self) -> None:
        """Nobody waits any more: end the call, also one that the thread is just about to make."""
        self._abandoned = True
        self._scope.cancel()

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: object,
    ) -> _HttpAnswer:
        return anyio.from_thread.run(self._call_while_wanted, url, method, body, headers)

    async def _call_while_wanted(
        self, url: str, method: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> _HttpAnswer:
        if not self._abandoned:
            with anyio.CancelScope() as self._scope:
                return await self._call(url, method, body, headers)
        raise _NoAnswer("timeout")

    async def _call(self, url: str, method: str, body: bytes | None, headers: Mapping[str, str] | None) -> _HttpAnswer:
        try:
            async with (
                httpx2.AsyncClient(verify=self._ssl_context, timeout=None, trust_env=False) as client,
                client.stream(method, url, content=body, headers=headers) as response,
            ):
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > ANSWER_MAX:
                        raise _NoAnswer("bad_answer")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
            raise _NoAnswer("unreachable") from None
        if response.status_code in DEFAULT_RETRYABLE_STATUS_CODES:
            raise _NoAnswer(f"http_{response.status_code}")
        return _HttpAnswer(response.status_code, response.headers, bytes(data))


class _LookAround(Request):
    """HTTP while looking for default credentials: what does not answer at once is no metadata server."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: object,
    ) -> _HttpAnswer:
        bound = CALL_BOUND if timeout is None else min(timeout, METADATA_BOUND)
        try:
            response = httpx2.request(method, url, content=body, headers=headers, timeout=bound, trust_env=False)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
            return _HttpAnswer(503, {}, b"")
        return _HttpAnswer(response.status_code, response.headers, response.content)


def load_credentials(path: Path | None, project: str | None) -> tuple[Credentials, str]:
    """Credentials for FCM and the project to send in: `project`, or else the one that the credentials name.

    `path` is a service account's JSON key; None means application default credentials. Blocks for about a second at
    most. Raises ConfigError, which names the file and the remedy and nothing of the content.
    """
    credentials, own_project = _default_credentials() if path is None else _service_account(path)
    project = project or own_project
    if not project:
        raise ConfigError(
            "No Firebase project: the credentials name none. Set PGHERALD_FCM_PROJECT to the project's id, which the "
            "Firebase console shows under Project settings."
        )
    return credentials, project


def _service_account(path: Path) -> tuple[Credentials, str | None]:
    info = _read_key(path)
    _check_token_uri(path, info["token_uri"])
    try:
        make: Any = service_account.Credentials.from_service_account_info
        credentials = make(info, scopes=[SCOPE])
        credentials.sign_bytes(b"")
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm, GoogleAuthError):
        raise _unusable(path, "its private_key cannot be read as an RSA key", _FRESH_KEY) from None
    project = info.get("project_id")
    return credentials, project if isinstance(project, str) and project else None


def _unusable(path: Path, wrong: str, remedy: str) -> ConfigError:
    return ConfigError(f"FCM credentials {path}: {wrong}. {remedy}")


def _read_key(path: Path) -> dict[str, Any]:
    """The file's JSON object, with the fields of a service account's key present and of type str."""
    try:
        with path.open("rb") as file:
            content = file.read(CREDENTIALS_MAX + 1)
    except FileNotFoundError:
        raise _unusable(
            path,
            "there is no such file",
            "Put the service account's JSON key there, or set PGHERALD_FCM_CREDENTIALS to where it is.",
        ) from None
    except PermissionError:
        raise _unusable(
            path, "it may not be read by this user", "Under systemd use LoadCredential=fcm.json:...; else chown it."
        ) from None
    except (OSError, ValueError):
        raise _unusable(
            path, "it cannot be read as a file", "Set PGHERALD_FCM_CREDENTIALS to a JSON key file."
        ) from None
    if not content.strip():
        raise _unusable(path, "it is empty", _FRESH_KEY)
    try:
        info = orjson.loads(content) if len(content) <= CREDENTIALS_MAX else None
    except orjson.JSONDecodeError:
        raise _unusable(path, "it is not JSON", _FRESH_KEY) from None
    if not isinstance(info, dict):
        raise _unusable(path, "it is not the JSON key of a service account", _FRESH_KEY)
    if info.get("type") != "service_account":
        raise _unusable(
            path,
            'it is not the JSON key of a service account (its "type" is another)',
            "For other kinds of credentials leave PGHERALD_FCM_CREDENTIALS unset and set "
            "GOOGLE_APPLICATION_CREDENTIALS to the file.",
        )
    needed = ("client_email", "private_key", "token_uri")
    if missing := [name for name in needed if not (isinstance(info.get(name), str) and info[name])]:
        raise _unusable(path, f"it has no {', '.join(missing)}", _FRESH_KEY)
    return info


def _check_token_uri(path: Path, uri: str) -> None:
    """A signed assertion goes to this address: TLS, or this machine (an emulator)."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
        good = bool(host) and (parts.port is None or parts.port > 0)
    except ValueError:
        good, host = False, ""
    if not good or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        raise _unusable(path, "its token_uri is not an https:// address", _FRESH_KEY)


def _default_credentials() -> tuple[Credentials, str | None]:
    # It warns of each place where it found none; what comes of it is said below, once.
    logging.getLogger("google.auth._default").setLevel(logging.ERROR)
    try:
        credentials, project = google.auth.default(scopes=[SCOPE], request=_LookAround())
    except (GoogleAuthError, OSError, ValueError):
        if named := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise ConfigError(
                f"GOOGLE_APPLICATION_CREDENTIALS names {named}, which is not a usable credentials file. Put one there, "
                "or set PGHERALD_FCM_CREDENTIALS to a service account's JSON key."
            ) from None
        raise ConfigError(
            "No FCM credentials: PGHERALD_FCM_CREDENTIALS is not set, and there are no application default "
            "credentials. Set it to a service account's JSON key (Firebase console, Project settings, Service "
            "accounts, Generate new private key), or run `pgherald demo`, which needs none."
        ) from None
    return credentials, project
