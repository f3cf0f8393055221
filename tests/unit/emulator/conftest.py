"""One emulator, in a thread, for the tests of this directory; it is put back to its defaults before each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.from_thread
import pytest

from pgherald.emulator.client import EmulatorClient
from pgherald.emulator.service import Emulator
from pgherald.values import HostPort
from tests.support.fcm_wire import RawHttp1, RawHttp2, access_token

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def running() -> Iterator[EmulatorClient]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Emulator.start(tls_listen=HostPort("127.0.0.1", 0))) as started,
    ):
        yield EmulatorClient(started.endpoint, started.credentials_path, started.tls_endpoint, started.certificate_path)


@pytest.fixture(scope="session")
def bearer(running: EmulatorClient) -> str:
    """A good access token; a test that makes access tokens bad starts an emulator of its own."""
    running.set_faults()
    return access_token(running.credentials_path)


@pytest.fixture
def emulator(running: EmulatorClient) -> EmulatorClient:
    running.set_faults(seed=0)
    running.set_tokens({})
    running.clear()
    return running


@pytest.fixture
def http1(emulator: EmulatorClient, bearer: str) -> Iterator[RawHttp1]:
    with RawHttp1(emulator.endpoint, bearer) as connection:
        yield connection


@pytest.fixture
def http2(emulator: EmulatorClient, bearer: str) -> Iterator[RawHttp2]:
    with RawHttp2(emulator.endpoint, bearer) as connection:
        yield connection
