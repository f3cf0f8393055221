"""The routes: what a whole request is answered, and what is to become of the answer on its way out.

Knows HTTP's meaning but no socket: `http1` and `http2` call `App.handle`, once for each request, and carry out the
`Reply`. It never blocks but for one line appended to the log.

| route | what |
|---|---|
| `POST /token` | OAuth: JWT in, access token out |
| `POST /v1/projects/{project}/messages:send` | FCM v1 |
| `GET`, `DELETE /emulator/messages` | what was accepted (`?since=SEQ&limit=N`); forget it and the counters |
| `GET /emulator/counters` | how often what was answered |
| `GET`, `PUT`, `DELETE /emulator/faults` | a fault, a list of them, or `{"faults": [...], "seed": 1}`; see `faults` |
| `GET`, `PUT /emulator/tokens` | device token -> how it answers: a name of `answers.TOKEN_ANSWERS` |
| `GET`, `PUT`, `DELETE /emulator/oauth` | `{"lifetime": seconds}`; DELETE makes every access token a bad one |
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

import orjson

from pgherald.emulator.answers import (
    CATALOGUE,
    JSON,
    TOKEN_ANSWERS,
    TOKEN_PREFIXES,
    Answer,
    json_answer,
    ok,
    page,
    permission_denied,
)
from pgherald.emulator.faults import STATUS, Endpoint, FaultError, Faults, Verdict, Wire, read_fault
from pgherald.emulator.messages import check, parse, peek_device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pgherald.emulator.ledger import Ledger
    from pgherald.emulator.messages import Target
    from pgherald.emulator.oauth import TokenEndpoint

MAX_BODY: Final = 1 << 20
"""Bytes of a request's body at most."""

_SEND_BEGIN: Final = "/v1/projects/"
_SEND_END: Final = "/messages:send"
_DRIP_SECONDS: Final = 1.0
_PREFIXES: Final = tuple(prefix for prefix, _ in TOKEN_PREFIXES)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has arrived whole; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    http_version: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and its way out: after `delay` seconds, as `wire` says; `pause` seconds lie between dripped bytes."""

    answer: Answer
    wire: Wire = Wire.WHOLE
    delay: float = 0.0
    pause: float = _DRIP_SECONDS


class App:
    """One FCM project. `tokens`: device token -> how it answers; those not in it go by their prefix, or are good."""

    def __init__(self, project: str, oauth: TokenEndpoint, faults: Faults, ledger: Ledger) -> None:
        self.project = project
        self.oauth = oauth
        self.faults = faults
        self.ledger = ledger
        self.tokens: dict[str, str] = {}
        self._controls: dict[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "/emulator/messages"): self._get_messages,
            ("DELETE", "/emulator/messages"): self._delete_messages,
            ("GET", "/emulator/counters"): self._get_counters,
            ("GET", "/emulator/faults"): self._get_faults,
            ("PUT", "/emulator/faults"): self._put_faults,
            ("DELETE", "/emulator/faults"): self._delete_faults,
            ("GET", "/emulator/tokens"): self._get_tokens,
            ("PUT", "/emulator/tokens"): self._put_tokens,
            ("GET", "/emulator/oauth"): self._get_oauth,
            ("PUT", "/emulator/oauth"): self._put_oauth,
            ("DELETE", "/emulator/oauth"): self._delete_oauth,
        }

    def handle(self, request: Request) -> Reply:
        path = request.target.partition("?")[0]
        if "%" in path:
            path = unquote(path)
        if request.method == "POST" and path.startswith(_SEND_BEGIN) and path.endswith(_SEND_END):
            return self._send(path[len(_SEND_BEGIN) : -len(_SEND_END)], request)
        if request.method == "POST" and path == "/token":
            return self._token(request)
        control = self._controls.get((request.method, path.rstrip("/")))
        if control is None:
            return Reply(page(404))
        try:
            return Reply(control(request))
        except ValueError as error:  # FaultError and orjson.JSONDecodeError are ValueErrors
            return Reply(json_answer(400, {"error": str(error)}, "BAD_CONTROL"))

    def _send(self, project: str, request: Request) -> Reply:
        content = parse(request.body)
        verdict = self.faults.draw(Endpoint.SEND, peek_device(content))
        return self._under(verdict, lambda: self._judged(project, content, request))

    def _token(self, request: Request) -> Reply:
        verdict = self.faults.draw(Endpoint.TOKEN)
        return self._under(verdict, lambda: self._granted(request))

    def _under(self, verdict: Verdict, act: Callable[[], Answer]) -> Reply:
        """Carries out the request unless its fault forbids, and shapes the reply as the fault says."""
        fault = verdict.fault
        if fault is None:
            return Reply(self._counted(act()), delay=verdict.delay)
        self.ledger.faults[fault.do] += 1
        instead = fault.answer(_now()) if fault.do == STATUS else None
        if instead is not None and not fault.accepted:
            return Reply(self._counted(instead), delay=verdict.delay)
        if not fault.wire.accepts:
            return Reply(CATALOGUE["UNAVAILABLE"], fault.wire, verdict.delay)
        answer = self._counted(act())
        if instead is not None and answer.status == 200:
            answer = self._counted(instead)
        pause = fault.seconds[0] if fault.seconds is not None else _DRIP_SECONDS
        return Reply(answer, fault.wire, verdict.delay, pause)

    def _counted(self, answer: Answer) -> Answer:
        if answer.code != "OK":
            self.ledger.rejected[answer.code] += 1
        return answer

    def _judged(self, project: str, content: Any, request: Request) -> Answer:
        """FCM's own answer, and the acceptance if it is one. The order: caller, project, content, device."""
        refusal = self.oauth.refusal_of(request.headers.get("authorization", ""))
        if refusal is not None:
            return refusal
        if project != self.project:
            return permission_denied(project)
        checked = content if isinstance(content, Answer) else check(content)
        if isinstance(checked, Answer):
            return checked
        told = self._told_of(checked.target)
        if told is not None:
            return told
        if checked.validate_only:
            self.ledger.validated += 1
            return ok({"name": f"projects/{project}/messages/fake_message_id"})
        try:
            entry = self.ledger.accept(project, checked.target, checked.message, request.http_version, _now())
        except OSError:
            return CATALOGUE["INTERNAL"]
        return ok({"name": entry.name})

    def _told_of(self, target: Target) -> Answer | None:
        """How this device was told to answer; None = it is registered."""
        if not target.is_device:
            return None
        name = self.tokens.get(target.value)
        if name is None and target.value.startswith(_PREFIXES):
            name = next(name for prefix, name in TOKEN_PREFIXES if target.value.startswith(prefix))
        return None if name is None else CATALOGUE[name]

    def _granted(self, request: Request) -> Answer:
        answer = self.oauth.grant(request.body)
        if answer.status == 200:
            self.ledger.access_tokens += 1
        return answer

    def _get_messages(self, request: Request) -> Answer:
        query = parse_qs(request.target.partition("?")[2])
        since = int(query.get("since", ["0"])[0])
        limit = int(query.get("limit", ["10000"])[0])
        if since < 0 or limit < 1:
            raise ValueError("since may be 0 or more, limit 1 or more")
        entries = self.ledger.since(since, limit)
        return Answer(200, b'{"messages":[' + b",".join(entry.as_json() for entry in entries) + b"]}\n", (JSON,))

    def _delete_messages(self, _: Request) -> Answer:
        self.ledger.clear()
        return ok({})

    def _get_counters(self, _: Request) -> Answer:
        return ok(self.ledger.counters())

    def _get_faults(self, _: Request) -> Answer:
        return ok({"faults": self.faults.as_json()})

    def _put_faults(self, request: Request) -> Answer:
        content = orjson.loads(request.body)
        seed = None
        if isinstance(content, dict) and "faults" in content:
            seed, content = content.get("seed"), content["faults"]
        faults = [read_fault(fault) for fault in (content if isinstance(content, list) else [content])]
        if seed is not None and not isinstance(seed, int):
            raise FaultError(f"seed is {seed!r}, which is no whole number")
        self.faults.set(*faults)
        if seed is not None:
            self.faults.seed(seed)
        return self._get_faults(request)

    def _delete_faults(self, request: Request) -> Answer:
        self.faults.clear()
        return self._get_faults(request)

    def _get_tokens(self, _: Request) -> Answer:
        return ok(self.tokens)

    def _put_tokens(self, request: Request) -> Answer:
        content = orjson.loads(request.body)
        if not isinstance(content, dict) or not all(name in TOKEN_ANSWERS for name in content.values()):
            raise ValueError(f"an object of device token -> one of {', '.join(sorted(TOKEN_ANSWERS))}")
        self.tokens.clear()
        self.tokens.update(content)
        return self._get_tokens(request)

    def _get_oauth(self, _: Request) -> Answer:
        return ok({"lifetime": self.oauth.lifetime})

    def _put_oauth(self, request: Request) -> Answer:
        content = orjson.loads(request.body)
        lifetime = content.get("lifetime") if isinstance(content, dict) else None
        if not isinstance(lifetime, int | float) or isinstance(lifetime, bool) or lifetime < 0:
            raise ValueError("lifetime may be a number of seconds, from 0 on")
        self.oauth.lifetime = lifetime
        return self._get_oauth(request)

    def _delete_oauth(self, request: Request) -> Answer:
        self.oauth.revoke_all()
        return self._get_oauth(request)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
