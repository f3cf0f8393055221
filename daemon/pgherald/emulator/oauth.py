"""Google's OAuth 2 token endpoint, as far as a service account needs it: a signed JWT in, an access token out.

Rules and error texts follow Google's "Using OAuth 2.0 for Server to Server Applications" and RFC 7523. Which answer a
fault puts in its place is not decided here.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from pgherald.emulator.answers import Answer, oauth_error, ok, unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgherald.emulator.keys import ServiceAccount

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
MESSAGING_SCOPES: Final = frozenset(
    {"https://www.googleapis.com/auth/firebase.messaging", "https://www.googleapis.com/auth/cloud-platform"}
)
# Google's libraries write these, whatever the file's token_uri says.
GOOGLE_AUDIENCES: Final = frozenset(
    {
        "https://oauth2.googleapis.com/token",
        "https://www.googleapis.com/oauth2/v4/token",
        "https://accounts.google.com/o/oauth2/token",
    }
)
MAX_JWT_SECONDS: Final = 3600
CLOCK_SKEW_SECONDS: Final = 300


class TokenEndpoint:
    """Gives out access tokens and knows which of them are good. `lifetime` (seconds) may be changed at any time."""

    def __init__(
        self,
        account: ServiceAccount,
        audiences: frozenset[str],
        lifetime: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lifetime = lifetime
        self._account = account
        self._audiences = audiences | GOOGLE_AUDIENCES
        self._clock = clock
        self._expiry: dict[str, float] = {}

    def revoke_all(self) -> None:
        """Makes every access token given out so far a bad one."""
        self._expiry.clear()

    def grant(self, body: bytes) -> Answer:
        """Answers a form-encoded token request."""
        form = parse_qs(body.decode("utf-8", "replace"))
        grant_type = form.get("grant_type", [""])[0]
        if grant_type != GRANT_TYPE:
            return oauth_error(400, "unsupported_grant_type", f"Invalid grant_type: {grant_type}")
        refusal = self._refused(form.get("assertion", [""])[0])
        if refusal is not None:
            return refusal
        token = f"ya29.emulator-{secrets.token_urlsafe(32)}"
        self._expiry[token] = self._clock() + self.lifetime
        return ok({"access_token": token, "expires_in": round(self.lifetime), "token_type": "Bearer"})

    def refusal_of(self, authorization: str) -> Answer | None:
        """The 401 for a request's Authorization header, or None if it carries a good access token."""
        scheme, _, token = authorization.partition(" ")
        if not authorization:
            return unauthenticated("CREDENTIALS_MISSING")
        expiry = self._expiry.get(token) if scheme.lower() == "bearer" else None
        if expiry is None:
            return unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED")
        if expiry <= self._clock():
            return unauthenticated("ACCESS_TOKEN_EXPIRED")
        return None

    def _refused(self, assertion: str) -> Answer | None:
        signed, _, signature = assertion.rpartition(".")
        header, claims = (_decoded(part) for part in signed.partition(".")[::2])
        if header is None or claims is None:
            return oauth_error(400, "invalid_grant", "Bad Request")
        if claims.get("iss") != self._account.client_email:
            return oauth_error(400, "invalid_grant", "Invalid grant: account not found")
        if header.get("alg") != "RS256" or header.get("kid", self._account.key_id) != self._account.key_id:
            return oauth_error(400, "invalid_grant", "Invalid JWT Signature.")
        try:
            self._account.public_key.verify(_base64(signature), signed.encode(), PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError):
            return oauth_error(400, "invalid_grant", "Invalid JWT Signature.")
        return self._refused_claims(claims)

    def _refused_claims(self, claims: dict[str, Any]) -> Answer | None:
        if str(claims.get("aud")) not in self._audiences:
            text = "Invalid JWT: Failed audience check. The right audience is https://oauth2.googleapis.com/token"
            return oauth_error(400, "invalid_grant", text)
        if not self._is_timely(claims.get("iat"), claims.get("exp")):
            text = (
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
                "Check your iat and exp values in the JWT claim."
            )
            return oauth_error(400, "invalid_grant", text)
        if claims.get("sub", claims["iss"]) != claims["iss"]:
            text = (
                "Client is unauthorized to retrieve access tokens using this method, "
                "or client not authorized for any of the scopes requested."
            )
            return oauth_error(401, "unauthorized_client", text)
        if not MESSAGING_SCOPES & set(str(claims.get("scope")).split()):
            return oauth_error(400, "invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        return None

    def _is_timely(self, issued_at: object, expires_at: object) -> bool:
        if not isinstance(issued_at, int | float) or not isinstance(expires_at, int | float):
            return False
        now = self._clock()
        return (
            issued_at - CLOCK_SKEW_SECONDS <= now < expires_at + CLOCK_SKEW_SECONDS
            and 0 < expires_at - issued_at <= MAX_JWT_SECONDS
        )


def _base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _decoded(part: str) -> dict[str, Any] | None:
    try:
        content = orjson.loads(_base64(part))
    except (binascii.Error, ValueError):
        return None
    return content if isinstance(content, dict) else None
