"""What a send comes to: an answer for whatever happens, one renewal of the access token, never an exception."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import orjson
import pytest

from pgherald import fcm
from pgherald.emulator.service import Emulator
from pgherald.fcm import FcmClient, NotSent, Response
from pgherald.model import Code
from pgherald.oauth import NoOAuthToken, OAuth, load_credentials
from pgherald.outcome import Accepted, Answer, Effect, Rejected, TokenInvalid, Unsure
from pgherald.transport import HttpTransport
from pgherald.values import HostPort
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


pytestmark = pytest.mark.anyio

MESSAGE = b'{"message":{"token":"device-1","data":{"notification_id":"1","scenario_type":"inactivity"}}}'
OK = Response(200, {}, b'{"name":"projects/p/messages/1"}')


def error(status: int, name: str, code: str | None = None, **headers: str) -> Response:
    details = (
        [] if code is None else [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}]
    )
    body = {"error": {"code": status, "message": "x", "status": name, "details": details}}
    return Response(status, headers, orjson.dumps(body))


UNAUTHENTICATED = error(401, "UNAUTHENTICATED")


@dataclass
class Road:
    """A transport that gives these answers one after the other, and remembers what was asked of it."""

    answers: list[Response | Exception]
    posted: list[tuple[str, dict[str, str], bytes, float]] = field(default_factory=list)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Response:
        self.posted.append((url, dict(headers), body, deadline))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Tokens:
    """An OAuth whose n-th token is `token-n`; `broken` makes renewals fail, `slow` makes them hang."""

    broken: bool = False
    slow: bool = False
    current: str = "token-1"
    renewals: list[str] = field(default_factory=list)

    @property
    def cached(self) -> str:
        return "" if self.slow else self.current

    async def token(self) -> str:
        if self.slow:
            await anyio.sleep_forever()
        raise NoOAuthToken("unreachable")

    async def refresh(self, stale: str) -> str:
        self.renewals.append(stale)
        if self.broken:
            raise NoOAuthToken("unreachable")
        self.current = f"token-{len(self.renewals) + 1}"
        return self.current


def client(road: Road, tokens: Tokens | None = None, endpoint: str = "https://fcm.example.org") -> FcmClient:
    return FcmClient(road, tokens or Tokens(), endpoint, "my-project")  # type: ignore[arg-type]


async def send(road: Road, tokens: Tokens | None = None, within: float = 60.0) -> Answer:
    return await client(road, tokens).send(MESSAGE, time.monotonic() + within)


@pytest.mark.parametrize(
    ("happened", "answer"),
    [
        (OK, Accepted("projects/p/messages/1")),
        (error(404, "NOT_FOUND", "UNREGISTERED"), TokenInvalid(Code.UNREGISTERED)),
        (error(503, "UNAVAILABLE"), Rejected(Code.UNAVAILABLE, True, None, Effect.OVERLOAD)),
        (
            error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", **{"retry-after": "7"}),
            Rejected(Code.QUOTA_EXCEEDED, True, 7.0, Effect.QUOTA),
        ),
        (
            error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
            Rejected(Code.THIRD_PARTY_AUTH_ERROR, True, None, Effect.PAUSE_IOS),
        ),
        (Response(502, {}, b"<html>"), Unsure(Code.BAD_ANSWER)),
        (NotSent(), Rejected(Code.NOT_CONNECTED, True)),
        (fcm.Unsure(Code.TIMEOUT), Unsure(Code.TIMEOUT)),
        (fcm.Unsure(Code.CONNECTION_LOST), Unsure(Code.CONNECTION_LOST)),
    ],
)
async def test_whatever_happens_is_an_answer_and_there_is_one_request(
    happened: Response | Exception, answer: Answer
) -> None:
    road, tokens = Road([happened]), Tokens()
    assert await send(road, tokens) == answer
    assert len(road.posted) == 1
    assert tokens.renewals == []


@pytest.mark.parametrize("endpoint", ["https://fcm.example.org", "https://fcm.example.org/"])
async def test_a_message_goes_to_the_project_with_the_token_and_its_deadline(endpoint: str) -> None:
    road = Road([OK])
    deadline = time.monotonic() + 3
    await client(road, endpoint=endpoint).send(MESSAGE, deadline)
    url = "https://fcm.example.org/v1/projects/my-project/messages:send"
    headers = {"authorization": "Bearer token-1", "content-type": "application/json"}
    assert road.posted == [(url, headers, MESSAGE, deadline)]


async def test_validating_sends_the_same_message_and_says_so() -> None:
    road = Road([OK])
    await client(road).validate(MESSAGE, time.monotonic() + 3)
    assert orjson.loads(road.posted[0][2]) == {"validate_only": True, **orjson.loads(MESSAGE)}


async def test_a_401_is_answered_with_one_renewal_and_one_more_try() -> None:
    road, tokens = Road([UNAUTHENTICATED, OK]), Tokens()
    assert await send(road, tokens) == Accepted("projects/p/messages/1")
    assert tokens.renewals == ["token-1"]
    assert [headers["authorization"] for _, headers, _, _ in road.posted] == ["Bearer token-1", "Bearer token-2"]


async def test_a_second_401_is_the_end_of_it() -> None:
    road, tokens = Road([UNAUTHENTICATED, UNAUTHENTICATED]), Tokens()
    assert await send(road, tokens) == Rejected(Code.UNAUTHENTICATED, True, None, Effect.REAUTH)
    assert len(tokens.renewals) == 1
    assert len(road.posted) == 2


async def test_a_401_without_a_newer_token_stays_a_401() -> None:
    road, tokens = Road([UNAUTHENTICATED]), Tokens(broken=True)
    assert await send(road, tokens) == Rejected(Code.UNAUTHENTICATED, True, None, Effect.REAUTH)
    assert len(road.posted) == 1


async def test_the_second_try_is_judged_by_what_came_of_it() -> None:
    assert await send(Road([UNAUTHENTICATED, fcm.Unsure(Code.TIMEOUT)])) == Unsure(Code.TIMEOUT)
    assert await send(Road([UNAUTHENTICATED, NotSent()])) == Rejected(Code.NOT_CONNECTED, True)


@pytest.mark.parametrize("tokens", [Tokens(broken=True, current=""), Tokens(slow=True)], ids=["none", "hanging"])
async def test_without_an_access_token_nothing_is_sent(tokens: Tokens) -> None:
    road = Road([])
    with Stopwatch() as took:
        assert await send(road, tokens, within=0.2) == Rejected(Code.NO_OAUTH_TOKEN, True)
    assert took.seconds < 1.0
    assert road.posted == []


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator.start(tls_listen=HostPort("127.0.0.1", 0)) as started:
        yield started


async def sent_to(emulator: Emulator, endpoint: str, transport: HttpTransport) -> tuple[OAuth, list[Answer]]:
    """Ten messages through a real transport, five at once, with credentials as the emulator gives them."""
    credentials, project = await anyio.to_thread.run_sync(load_credentials, emulator.credentials_path, None)
    oauth = OAuth(credentials)
    answers: list[Answer] = []
    async with transport:
        whole = FcmClient(transport, oauth, endpoint, project)

        async def one() -> None:
            answers.append(await whole.send(MESSAGE, time.monotonic() + 60))

        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(one)
    return oauth, answers


async def test_the_emulator_accepts_what_is_sent(emulator: Emulator) -> None:
    oauth, answers = await sent_to(emulator, emulator.endpoint, HttpTransport(4))
    assert len({answer.name for answer in answers if isinstance(answer, Accepted)}) == 10
    assert oauth.expiry_timestamp > time.time()


async def test_the_emulator_accepts_what_is_sent_over_tls(emulator: Emulator) -> None:
    assert emulator.tls_endpoint is not None
    trusting = ssl.create_default_context(cafile=str(emulator.certificate_path))
    _, answers = await sent_to(emulator, emulator.tls_endpoint, HttpTransport(4, ssl_context=trusting))
    assert len({answer.name for answer in answers if isinstance(answer, Accepted)}) == 10
