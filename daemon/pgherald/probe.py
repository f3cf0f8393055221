"""Whether the daemon of these settings is alive: `python -m pgherald.probe`, the image's health check.

It asks for /healthz, over TLS where the settings say so. Where the daemon serves nobody without a client certificate a
handshake has to do: a loop that hangs does not make one either.
"""

from __future__ import annotations

import os
import socket
import ssl
import urllib.request
from typing import TYPE_CHECKING, Final

from pgherald.config import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS: Final = 4.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def probe(environ: Mapping[str, str]) -> None:
    """Return if it is alive. Raises OSError if not, ConfigError for settings that no daemon runs with."""
    settings = load_settings(environ)
    listen = settings.metrics_listen
    host = _EVERYWHERE.get(listen.host, listen.host)
    context = ssl.create_default_context()
    context.check_hostname = False  # who it is does not matter here, and the certificate is for its name outside
    context.verify_mode = ssl.CERT_NONE
    if settings.metrics_tls_client_ca is not None:
        with socket.create_connection((host, listen.port), SECONDS) as sock, context.wrap_socket(sock):
            return
    scheme = "http" if settings.metrics_tls_certificate is None else "https"
    address = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{address}:{listen.port}/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(url, timeout=SECONDS):
        return


if __name__ == "__main__":
    probe(os.environ)
