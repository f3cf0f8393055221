"""The token endpoint gives a token to whom Google would give one, and to nobody else."""

from __future__ import annotations

import base64
import json
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import google.auth.crypt
import google.auth.exceptions
import google.auth.jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pgherald.emulator.keys import ensure_service_account
from pgherald.emulator.oauth import GRANT_TYPE, TokenEndpoint
from tests.support.fcm_wire import MESSAGING, access_token

if TYPE_CHECKING:
    from pathlib import Path

    from pgherald.emulator.answers import Answer
    from pgherald.emulator.client import EmulatorClient

OWN_AUDIENCE = "http://127.0.0.1:1/token"
NOW = 1_800_000_000


class Desk:
    """A token endpoint whose clock the test holds, and the key of its account."""

    def __init__(self, path: Path, lifetime: float = 3599) -> None:
        self.now = float(NOW)
        account = ensure_service_account(path, "demo", OWN_AUDIENCE)
        self.endpoint = TokenEndpoint(account, frozenset({OWN_AUDIENCE}), lifetime, clock=lambda: self.now)
        self.email = account.client_email
        self.signer = google.auth.crypt.RSASigner.from_service_account_info(json.loads(path.read_text()))  # type: ignore[no-untyped-call]

    def claims(self, **changed: Any) -> dict[str, Any]:
        claims = {"iss": self.email, "aud": OWN_AUDIENCE, "scope": MESSAGING, "iat": NOW, "exp": NOW + 3600} | changed
        return {name: value for name, value in claims.items() if value is not None}

    def ask(self, signer: google.auth.crypt.RSASigner | None = None, **changed: Any) -> Answer:
        return self.present(self.signed(signer or self.signer, **changed))

    def signed(self, signer: google.auth.crypt.RSASigner, **changed: Any) -> str:
        assertion: bytes = google.auth.jwt.encode(signer, self.claims(**changed))  # type: ignore[no-untyped-call]
        return assertion.decode()

    def present(self, assertion: str) -> Answer:
        form = urllib.parse.urlencode({"grant_type": GRANT_TYPE, "assertion": assertion})
        return self.endpoint.grant(form.encode())


@pytest.fixture(scope="session")
def account_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oauth") / "credentials.json"


@pytest.fixture
def desk(account_file: Path) -> Desk:
    return Desk(account_file)


def said(answer: Answer) -> tuple[int, str, str]:
    content = json.loads(answer.body)
    return answer.status, content["error"], content["error_description"]


def granted(answer: Answer) -> str:
    content = json.loads(answer.body)
    assert (answer.status, content["token_type"]) == (200, "Bearer")
    token: str = content["access_token"]
    return token


def test_a_good_jwt_gets_a_token_that_is_good(desk: Desk) -> None:
    answer = desk.ask()
    assert json.loads(answer.body)["expires_in"] == 3599
    assert desk.endpoint.refusal_of(f"Bearer {granted(answer)}") is None


@pytest.mark.parametrize(
    "scope",
    [
        MESSAGING,
        "https://www.googleapis.com/auth/cloud-platform",
        f"https://www.googleapis.com/auth/datastore {MESSAGING}",
    ],
)
def test_each_scope_that_covers_messaging_will_do(desk: Desk, scope: str) -> None:
    granted(desk.ask(scope=scope))


@pytest.mark.parametrize("audience", [OWN_AUDIENCE, "https://oauth2.googleapis.com/token"])
def test_the_audience_may_be_the_emulator_or_google(desk: Desk, audience: str) -> None:
    granted(desk.ask(aud=audience))


@pytest.mark.parametrize("scope", [None, "", "https://www.googleapis.com/auth/datastore"])
def test_a_scope_without_messaging_is_refused(desk: Desk, scope: str | None) -> None:
    assert said(desk.ask(scope=scope)) == (
        400,
        "invalid_scope",
        "Invalid OAuth scope or ID token audience provided.",
    )


def test_a_signature_of_another_key_is_refused(desk: Desk) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    other = google.auth.crypt.RSASigner.from_string(pem.decode(), desk.signer.key_id)  # type: ignore[no-untyped-call]
    assert said(desk.ask(other)) == (400, "invalid_grant", "Invalid JWT Signature.")


def test_a_key_id_that_is_not_the_accounts_is_refused(desk: Desk, account_file: Path) -> None:
    info = json.loads(account_file.read_text()) | {"private_key_id": "old"}
    other = google.auth.crypt.RSASigner.from_service_account_info(info)  # type: ignore[no-untyped-call]
    assert said(desk.ask(other)) == (400, "invalid_grant", "Invalid JWT Signature.")


def test_claims_changed_after_signing_are_refused(desk: Desk) -> None:
    header, _, signature = desk.signed(desk.signer).split(".")
    forged = base64.urlsafe_b64encode(json.dumps(desk.claims(exp=NOW + 3000)).encode()).decode().rstrip("=")
    assert said(desk.present(f"{header}.{forged}.{signature}"))[1:] == ("invalid_grant", "Invalid JWT Signature.")


def test_an_unsigned_jwt_is_refused(desk: Desk) -> None:
    def encoded(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    assertion = f"{encoded({'alg': 'none'})}.{encoded(desk.claims())}."
    assert said(desk.present(assertion)) == (400, "invalid_grant", "Invalid JWT Signature.")


@pytest.mark.parametrize(
    ("issued_at", "expires_at"),
    [
        (NOW - 7200, NOW - 3600),
        (NOW + 600, NOW + 3600),
        (NOW, NOW + 3601),
        (NOW, NOW),
        ("now", NOW + 3600),
        (None, NOW + 3600),
        (NOW, None),
    ],
)
def test_a_jwt_out_of_its_time_is_refused(desk: Desk, issued_at: object, expires_at: object) -> None:
    status, name, text = said(desk.ask(iat=issued_at, exp=expires_at))
    assert (status, name) == (400, "invalid_grant")
    assert text.startswith("Invalid JWT: Token must be a short-lived token (60 minutes)")


def test_a_small_clock_offset_is_forgiven(desk: Desk) -> None:
    granted(desk.ask(iat=NOW + 200, exp=NOW + 3800))
    granted(desk.ask(iat=NOW - 3700, exp=NOW - 100))


@pytest.mark.parametrize("audience", [None, "https://example.org/token", ["https://oauth2.googleapis.com/token"]])
def test_another_audience_is_refused(desk: Desk, audience: object) -> None:
    assert "Failed audience check" in said(desk.ask(aud=audience))[2]


def test_another_issuer_is_refused(desk: Desk) -> None:
    assert said(desk.ask(iss="x@y")) == (400, "invalid_grant", "Invalid grant: account not found")


def test_acting_for_somebody_else_is_refused(desk: Desk) -> None:
    assert said(desk.ask(sub="boss@example.org"))[:2] == (401, "unauthorized_client")


@pytest.mark.parametrize("assertion", ["", "x", "a.b.c", "é.é.é", "e30.e30"])
def test_what_is_no_jwt_is_refused(desk: Desk, assertion: str) -> None:
    assert said(desk.present(assertion))[:2] == (400, "invalid_grant")


def test_another_grant_type_is_refused(desk: Desk) -> None:
    assert said(desk.endpoint.grant(b"grant_type=password"))[:2] == (400, "unsupported_grant_type")


def refused(desk: Desk, authorization: str) -> tuple[int, str]:
    answer = desk.endpoint.refusal_of(authorization)
    assert answer is not None
    error = json.loads(answer.body)["error"]
    assert error["status"] == "UNAUTHENTICATED"
    return answer.status, error["details"][0]["reason"]


def test_a_token_ends_with_its_lifetime(account_file: Path) -> None:
    desk = Desk(account_file, lifetime=60)
    token = granted(desk.ask())
    desk.now += 59
    assert desk.endpoint.refusal_of(f"Bearer {token}") is None
    desk.now += 1
    assert refused(desk, f"Bearer {token}") == (401, "ACCESS_TOKEN_EXPIRED")


def test_revoking_makes_every_token_bad_and_new_ones_are_good(desk: Desk) -> None:
    token = granted(desk.ask())
    desk.endpoint.revoke_all()
    assert refused(desk, f"Bearer {token}") == (401, "ACCESS_TOKEN_TYPE_UNSUPPORTED")
    assert desk.endpoint.refusal_of(f"Bearer {granted(desk.ask())}") is None


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ("", "CREDENTIALS_MISSING"),
        ("Bearer made-up", "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ("key=AAAA", "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    ],
)
def test_a_request_without_a_good_token_is_refused(desk: Desk, authorization: str, reason: str) -> None:
    assert refused(desk, authorization) == (401, reason)


def test_google_auth_gets_a_token_over_the_wire(emulator: EmulatorClient) -> None:
    assert access_token(emulator.credentials_path).startswith("ya29.")
    assert emulator.counters()["access_tokens"] == 1


def test_google_auth_sees_why_it_gets_none(emulator: EmulatorClient) -> None:
    with pytest.raises(google.auth.exceptions.RefreshError, match="invalid_scope"):
        access_token(emulator.credentials_path, "https://www.googleapis.com/auth/datastore")
    emulator.set_faults({"do": "status", "code": "invalid_grant", "on": "token", "next": 1})
    with pytest.raises(google.auth.exceptions.RefreshError, match=r"invalid_grant: Invalid JWT Signature\."):
        access_token(emulator.credentials_path)
    emulator.set_faults({"do": "drop_before", "on": "token"})
    with pytest.raises(google.auth.exceptions.TransportError):
        access_token(emulator.credentials_path)
    assert emulator.counters()["access_tokens"] == 0


def test_google_auth_retries_past_a_503(emulator: EmulatorClient) -> None:
    emulator.set_faults({"do": "status", "status": 503, "on": "token", "next": 1})
    begin = time.monotonic()
    access_token(emulator.credentials_path)
    assert emulator.counters()["faults"] == {"status": 1}
    assert time.monotonic() - begin < 10
