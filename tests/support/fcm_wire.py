"""Clients for the emulator that see the wire: what arrives byte by byte, and how a connection ends.

HTTP libraries hide resets, half answers and GOAWAY behind exceptions of their own; these do not.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import google.auth.transport.requests
import h2.config
import h2.connection
import h2.events
import hyperframe.frame
import requests
from google.oauth2 import service_account

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGING = "https://www.googleapis.com/auth/firebase.messaging"
SEND_PATH = "/v1/projects/demo/messages:send"
PATIENCE = 60.0
"""Seconds for what is going to come; a test that waits for nothing says how long."""


def access_token(credentials: Path, *scopes: str) -> str:
    """Has google-auth fetch one, as any Google client would."""
    account = service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
        credentials, scopes=list(scopes or [MESSAGING])
    )
    with requests.Session() as session:
        account.refresh(google.auth.transport.requests.Request(session))
    token: str = account.token
    return token


def message_to(token: str = "device-1", **fields: Any) -> dict[str, Any]:
    return {"message": {"token": token, "data": {"notification_id": "1", "scenario_type": "inactivity"}, **fields}}


@dataclass(slots=True)
class Seen:
    """What a client saw of one answer. `end`: whole, eof (an orderly close), reset, or silence (no more in time)."""

    raw: bytes = b""
    end: str = "whole"

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def head(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawHttp1:
    """One HTTP/1.1 connection, kept alive over requests."""

    def __init__(self, endpoint: str, token: str = "") -> None:
        url = urlsplit(endpoint)
        self.token = token
        self.sock = socket.create_connection((url.hostname, url.port), timeout=PATIENCE)

    def __enter__(self) -> RawHttp1:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def request(
        self,
        method: str = "POST",
        path: str = SEND_PATH,
        content: object = None,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> Seen:
        body = json.dumps(content).encode() if body is None else body
        all_headers = {"host": "emulator", "content-length": str(len(body))} | (headers or {})
        if self.token:
            all_headers.setdefault("authorization", f"Bearer {self.token}")
        head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return self.read(patience)

    def send(self, content: object, patience: float = PATIENCE) -> Seen:
        return self.request(content=content, patience=patience)

    def read(self, patience: float = PATIENCE) -> Seen:
        seen = Seen()
        self.sock.settimeout(patience)
        while not self._is_whole(seen):
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                seen.end = "reset"
                return seen
            except TimeoutError:
                seen.end = "silence"
                return seen
            if not data:
                seen.end = "eof"
                return seen
            seen.raw += data
        return seen

    @staticmethod
    def _is_whole(seen: Seen) -> bool:
        return b"\r\n\r\n" in seen.raw and len(seen.body) >= int(seen.head["content-length"])


@dataclass(slots=True)
class Stream:
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawHttp2:
    """One HTTP/2 connection, by prior knowledge in clear text, by ALPN over TLS.

    `end` is how it ended: '' = it has not, eof, reset; `last_stream_id` is that of a GOAWAY.
    """

    def __init__(self, endpoint: str, token: str = "", certificate: Path | None = None) -> None:
        url = urlsplit(endpoint)
        self.token = token
        sock: socket.socket = socket.create_connection((url.hostname, url.port), timeout=PATIENCE)
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=certificate)
            context.set_alpn_protocols(["h2"])
            sock = context.wrap_socket(sock, server_hostname=url.hostname)
            assert sock.selected_alpn_protocol() == "h2"
        self.sock = sock
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.streams: dict[int, Stream] = {}
        self.last_stream_id: int | None = None
        self.end = ""
        self._unread = b""
        self.flush()

    def __enter__(self) -> RawHttp2:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def begin(self, content: object = None, *, method: str = "POST", path: str = SEND_PATH, flush: bool = True) -> int:
        """Sends a request and returns its stream id; the answer is `streams[id]`, once `pump` saw it."""
        stream_id = self.h2.get_next_available_stream_id()
        headers = [(":method", method), (":scheme", "http"), (":authority", "emulator"), (":path", path)]
        if self.token:
            headers.append(("authorization", f"Bearer {self.token}"))
        body = b"" if content is None else json.dumps(content).encode()
        self.h2.send_headers(stream_id, headers, end_stream=not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)
        self.streams[stream_id] = Stream()
        if flush:
            self.flush()
        return stream_id

    def send(self, content: object, patience: float = PATIENCE) -> Stream:
        stream_id = self.begin(content)
        self.pump(stream_id, patience=patience)
        return self.streams[stream_id]

    def pump(self, *stream_ids: int, patience: float = PATIENCE) -> None:
        """Reads until these streams (none = the connection) have ended, or nothing comes for so long."""
        self.sock.settimeout(patience)
        while not self.end and not (stream_ids and all(self.streams[s].ended for s in stream_ids)):
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                self.end = "reset"
                return
            except TimeoutError:
                return
            if not data:
                self.end = "eof"
                return
            self._take(data)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.flush()

    def _take(self, data: bytes) -> None:
        """Keeps GOAWAY from h2, which would refuse every frame behind it: those of the streams still served."""
        self._unread += data
        while len(self._unread) >= 9:
            frame, length = hyperframe.frame.Frame.parse_frame_header(memoryview(self._unread)[:9])
            if len(self._unread) < 9 + length:
                return
            whole, self._unread = self._unread[: 9 + length], self._unread[9 + length :]
            if isinstance(frame, hyperframe.frame.GoAwayFrame):
                frame.parse_body(memoryview(whole)[9:])
                self.last_stream_id = frame.last_stream_id
            else:
                self._take_frame(whole)

    def _take_frame(self, frame: bytes) -> None:
        for event in self.h2.receive_data(frame):
            match event:
                case h2.events.ResponseReceived():
                    self.streams[event.stream_id].headers = {str(name): str(value) for name, value in event.headers}
                case h2.events.DataReceived():
                    self.streams[event.stream_id].body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.streams[event.stream_id].ended = True
                case h2.events.StreamReset():
                    self.streams[event.stream_id].reset = event.error_code
                case _:
                    pass


@contextlib.contextmanager
def listening_port() -> Iterator[int]:
    """A port that something else holds."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]
