"""Keys of service accounts, as Google gives them out, for an endpoint of the test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


def pem_of(key: PrivateKeyTypes) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


RSA = pem_of(rsa.generate_private_key(public_exponent=65537, key_size=2048))
EC = pem_of(ec.generate_private_key(ec.SECP256R1()))


def key_file(path: Path, **changes: Any) -> Path:
    content = {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "0123",
        "private_key": RSA,
        "client_email": "herald@my-project.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
        **changes,
    }
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return path
