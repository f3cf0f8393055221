"""Keys made on the spot: a service account file that points at the emulator, and a certificate for its TLS port.

Nothing here is a secret of anybody's: the keys open nothing but this emulator. A file that the emulator did not make is
never overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pgherald.errors import HeraldError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_ACCOUNT: Final = "fcm-emulator"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A credentials file, and what the token endpoint must know of it to check its JWTs."""

    path: Path
    client_email: str
    key_id: str
    public_key: RSAPublicKey


def ensure_service_account(path: Path, project: str, token_uri: str) -> ServiceAccount:
    """Makes the credentials file, or takes over one that an emulator made before: same key, this `token_uri`.

    Readable by its owner only. Raises HeraldError if the file is somebody else's or cannot be written.
    """
    try:
        content = orjson.loads(path.read_bytes()) if path.exists() else _new_account(project)
    except (OSError, orjson.JSONDecodeError) as error:
        raise HeraldError(f"{path} cannot be read as credentials: choose another --credentials file") from error
    if not isinstance(content, dict) or not str(content.get("client_email")).startswith(f"{_ACCOUNT}@"):
        raise HeraldError(
            f"{path} holds credentials that this emulator did not make, and it leaves them alone: "
            "choose another --credentials file"
        )
    content |= {"project_id": project, "token_uri": token_uri}
    _write_private(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    key = serialization.load_pem_private_key(content["private_key"].encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise HeraldError(f"{path} holds a key that is not RSA: remove the file, and it is made anew")
    return ServiceAccount(path.absolute(), content["client_email"], content["private_key_id"], key.public_key())


def make_certificate(path: Path, key_path: Path, host: str) -> Path:
    """Writes a certificate for localhost, loopback and `host` that clients can trust as it is. Returns its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pgherald FCM emulator")])
    now = datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName(_alternative_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(key_path, _pem(key))
    _write_private(path, certificate.public_bytes(serialization.Encoding.PEM))
    return path.absolute()


def _alternative_names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    addresses = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
    try:
        addresses.add(ipaddress.ip_address(host))
    except ValueError:
        if host != "localhost":
            names.append(x509.DNSName(host))
    return names + [x509.IPAddress(address) for address in sorted(addresses, key=str)]


def _new_account(project: str) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": secrets.token_hex(20),
        "private_key": _pem(key).decode(),
        "client_email": f"{_ACCOUNT}@{project}.iam.gserviceaccount.com",
        "client_id": str(secrets.randbelow(10**21)),
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": "",
        "universe_domain": "googleapis.com",
    }


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, content: bytes) -> None:
    """Replaces the file as a whole, mode 0600, so that no reader sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        draft.replace(path)
    except OSError as error:
        raise HeraldError(f"{path} cannot be written ({error.strerror}): choose another file") from error
