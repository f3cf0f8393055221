"""The emulator inside a program: started, watched and stopped from the same event loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest

from pgherald.emulator.service import Emulator
from pgherald.errors import HeraldError
from pgherald.values import HostPort
from tests.support.fcm_wire import SEND_PATH, access_token, listening_port, message_to

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def send(emulator: Emulator, token: str, *devices: str) -> list[int]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        headers = {"authorization": f"Bearer {token}"}
        url = f"{emulator.endpoint}{SEND_PATH}"
        return [(await client.post(url, json=message_to(device), headers=headers)).status_code for device in devices]


async def test_a_program_sees_what_was_accepted_as_it_comes(tmp_path: Path) -> None:
    async with Emulator.start(credentials=tmp_path / "credentials.json") as emulator:
        token = await anyio.to_thread.run_sync(access_token, emulator.credentials_path)
        emulator.tokens["gone"] = "UNREGISTERED"
        emulator.faults.set("status=503,next=1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, emulator, token, "a", "gone", "b", "c")
            with anyio.fail_after(60):
                first = await emulator.wait_for(1)
                assert first[0].token == "b"
                assert [entry.token for entry in await emulator.wait_for(2)] == ["b", "c"]
        assert emulator.messages[0].message == message_to("b")["message"]
        assert emulator.ledger.counters()["rejected"] == {"UNAVAILABLE": 1, "UNREGISTERED": 1}


async def test_a_restart_on_the_same_port_takes_over_credentials_but_no_access_tokens(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    async with Emulator.start(credentials=path) as emulator:
        port = int(emulator.endpoint.rpartition(":")[2])
        token = await anyio.to_thread.run_sync(access_token, path)
        before = path.read_text()
    async with Emulator.start(listen=HostPort("127.0.0.1", port), credentials=path) as emulator:
        assert path.read_text() == before
        assert await send(emulator, token, "a") == [401]
        token = await anyio.to_thread.run_sync(access_token, path)
        assert await send(emulator, token, "a") == [200]


async def test_the_end_resets_clients_that_still_wait(tmp_path: Path) -> None:
    async with Emulator.start() as emulator:
        token = await anyio.to_thread.run_sync(access_token, emulator.credentials_path)
        emulator.faults.set("silent")
        stream = await anyio.connect_tcp("127.0.0.1", int(emulator.endpoint.rpartition(":")[2]))
        body = json.dumps(message_to()).encode()
        head = f"POST {SEND_PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {len(body)}"
        await stream.send(head.encode() + b"\r\n\r\n" + body)
        await emulator.wait_for(1)
    async with stream:
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
    assert not emulator.credentials_path.exists()


async def test_a_taken_port_is_named_with_what_to_do() -> None:
    with (
        listening_port() as port,
        pytest.raises(HeraldError, match=rf"^127\.0\.0\.1:{port} is taken .* choose another"),
    ):
        async with Emulator.start(listen=HostPort("127.0.0.1", port)):
            pass


async def test_it_listens_on_ipv6() -> None:
    async with Emulator.start(listen=HostPort("::1", 0), tls_listen=HostPort("::1", 0)) as emulator:
        assert emulator.endpoint.startswith("http://[::1]:")
        token = await anyio.to_thread.run_sync(access_token, emulator.credentials_path)
        assert await send(emulator, token, "a") == [200]


async def test_credentials_name_the_url_by_which_clients_come(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    async with Emulator.start(url="http://fcm.test:9499", credentials=path) as emulator:
        assert emulator.endpoint == "http://fcm.test:9499"
        assert json.loads(path.read_text())["token_uri"] == "http://fcm.test:9499/token"
