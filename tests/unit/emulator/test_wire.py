"""Each fault of the wire does what it says, as a client sees it that hides nothing; and what was accepted is known."""

from __future__ import annotations

import json
import socket
import ssl
import time
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.support.fcm_wire import PATIENCE, SEND_PATH, RawHttp1, RawHttp2, message_to
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from pgherald.emulator.client import EmulatorClient

SHORT = 0.3  # what is waited for silence, seconds
LONG = 1.5  # an answer that is late: it is still to come whatever the machine does meanwhile


def accepted(emulator: EmulatorClient) -> int:
    """By the counter, and it agrees with the list."""
    count: int = emulator.counters()["accepted"]
    assert len(emulator.messages()) == count
    return count


# HTTP/1.1


@pytest.mark.parametrize(
    ("fault", "count"), [("drop_before", 0), ("drop_after", 1), ("goaway_before", 0), ("goaway_after", 1)]
)
def test_a_drop_resets_the_connection_without_a_byte(
    emulator: EmulatorClient, http1: RawHttp1, fault: str, count: int
) -> None:
    emulator.set_faults({"do": fault})
    seen = http1.send(message_to())
    assert (seen.raw, seen.end) == (b"", "reset")
    assert accepted(emulator) == count


def test_cut_headers_ends_in_the_middle_of_the_head(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "cut_headers"})
    seen = http1.send(message_to())
    assert seen.raw.startswith(b"HTTP/1.1 200")
    assert b"\r\n\r\n" not in seen.raw
    assert seen.end == "eof"
    assert accepted(emulator) == 1


def test_cut_body_ends_in_the_middle_of_the_body(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "cut_body"})
    seen = http1.send(message_to())
    assert seen.status == 200
    assert 0 < len(seen.body) < int(seen.head["content-length"])
    assert seen.end == "eof"
    assert accepted(emulator) == 1


def test_silence_accepts_and_keeps_the_connection_open(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "silent"})
    seen = http1.send(message_to(), patience=SHORT)
    assert (seen.raw, seen.end) == (b"", "silence")
    emulator.wait_for(1)
    assert accepted(emulator) == 1


def test_a_drip_comes_byte_by_byte(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "drip", "seconds": 0.001})
    seen = http1.send(message_to())
    assert (seen.status, seen.end) == (200, "whole")
    assert seen.json["name"] == emulator.messages()[0]["name"]


def test_a_drip_is_one_byte_a_second_unless_told_otherwise(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "drip"})
    with Stopwatch() as took:
        raw = http1.send(message_to(), patience=SHORT).raw
        while len(raw) < 3:
            http1.sock.settimeout(PATIENCE)
            raw += http1.sock.recv(1)
        assert raw == b"HTT"
        assert took.wall >= 2
        assert took.seconds < 3
    assert accepted(emulator) == 1


def test_latency_delays_the_answer_and_not_the_acceptance(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "latency", "seconds": LONG})
    begin = time.monotonic()
    seen = http1.send(message_to(), patience=SHORT)
    assert seen.end == "silence"
    emulator.wait_for(1)
    assert accepted(emulator) == 1
    assert http1.read().status == 200
    assert time.monotonic() - begin >= LONG


def test_goaway_over_http1_is_an_answer_and_a_close(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "goaway"})
    seen = http1.send(message_to())
    assert (seen.status, seen.head["connection"]) == (200, "close")
    assert http1.read().end == "eof"


def test_a_fault_hits_only_its_request_and_the_next_connection_is_good(
    emulator: EmulatorClient, bearer: str, http1: RawHttp1
) -> None:
    emulator.set_faults({"do": "drop_before", "every": 2})
    assert http1.send(message_to("a")).status == 200
    assert http1.send(message_to("b")).end == "reset"
    with RawHttp1(emulator.endpoint, bearer) as again:
        assert again.send(message_to("c")).status == 200
    assert [entry["token"] for entry in emulator.messages()] == ["a", "c"]


def test_pipelined_requests_are_answered_in_order(emulator: EmulatorClient, http1: RawHttp1) -> None:
    emulator.set_faults({"do": "latency", "seconds": 0.05, "next": 1})
    body = json.dumps(message_to()).encode()
    one = (
        f"POST {SEND_PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {http1.token}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    http1.sock.sendall(one * 3)
    raw = b""
    while raw.count(b'"name"') < 3:
        raw += http1.sock.recv(65536)
    assert raw.count(b"HTTP/1.1 200") == 3


def test_a_body_can_come_in_pieces_after_100_continue(emulator: EmulatorClient, http1: RawHttp1) -> None:
    body = json.dumps(message_to()).encode()
    head = (
        f"POST {SEND_PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {http1.token}\r\n"
        f"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    http1.sock.sendall(head.encode())
    assert http1.sock.recv(1000).startswith(b"HTTP/1.1 100")
    for piece in (body[:10], body[10:]):
        http1.sock.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    http1.sock.sendall(b"0\r\n\r\n")
    assert http1.read().status == 200


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"]
)
def test_noise_is_hung_up_on_and_hurts_nobody(emulator: EmulatorClient, http1: RawHttp1, noise: bytes) -> None:
    with RawHttp1(emulator.endpoint) as other:
        other.sock.sendall(noise + b"\r\n\r\n")
        while other.sock.recv(1000):
            pass
    assert http1.send(message_to()).status == 200


def test_a_body_without_end_is_refused(emulator: EmulatorClient, http1: RawHttp1) -> None:
    http1.sock.sendall(f"POST {SEND_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n".encode())
    raw = b""
    try:
        for _ in range(40):
            http1.sock.sendall(b" " * 65536)
        while data := http1.sock.recv(1000):
            raw += data
    except ConnectionError:
        pass
    assert raw == b"" or raw.startswith(b"HTTP/1.1 413")
    assert accepted(emulator) == 0


def test_a_client_that_hangs_up_in_the_middle_is_forgotten(emulator: EmulatorClient, bearer: str) -> None:
    with RawHttp1(emulator.endpoint, bearer) as connection:
        connection.sock.sendall(f"POST {SEND_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{".encode())
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.sock.recv(1000) == b""
    assert accepted(emulator) == 0


# HTTP/2


@pytest.mark.parametrize(("fault", "count"), [("drop_before", 0), ("drop_after", 1)])
def test_a_drop_resets_all_streams_of_the_connection(
    emulator: EmulatorClient, http2: RawHttp2, fault: str, count: int
) -> None:
    emulator.set_faults({"do": "latency", "seconds": 60, "token_prefix": "slow"}, {"do": fault, "token_prefix": "bad"})
    http2.begin(message_to("slow-1"))
    http2.begin(message_to("bad-1"))
    http2.pump()
    assert http2.end == "reset"
    assert not any(stream.headers for stream in http2.streams.values())
    assert accepted(emulator) == 1 + count


@pytest.mark.parametrize("fault", ["cut_headers", "cut_body"])
def test_a_cut_ends_in_the_middle_of_a_frame(emulator: EmulatorClient, http2: RawHttp2, fault: str) -> None:
    emulator.set_faults({"do": fault})
    stream = http2.send(message_to())
    assert http2.end == "eof"
    assert not stream.ended
    assert bool(stream.headers) is (fault == "cut_body")
    assert accepted(emulator) == 1


def test_silence_on_one_stream_leaves_the_others(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults({"do": "silent", "next": 1})
    silent = http2.begin(message_to("a"))
    assert http2.send(message_to("b")).headers[":status"] == "200"
    assert not http2.streams[silent].headers
    assert accepted(emulator) == 2


def test_a_drip_over_http2_comes_byte_by_byte(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults({"do": "drip", "seconds": 0.001})
    assert http2.send(message_to()).json["name"] == emulator.messages()[0]["name"]


def test_latency_on_one_stream_leaves_the_others(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults({"do": "latency", "seconds": LONG, "next": 1})
    slow = http2.begin(message_to("slow"))
    quick = http2.begin(message_to("quick"))
    http2.pump(quick)
    assert not http2.streams[slow].ended
    http2.pump(slow)
    assert http2.streams[slow].headers[":status"] == "200"


def test_a_stream_reset_while_it_waits_is_forgotten(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults({"do": "latency", "seconds": SHORT, "next": 1})
    stream_id = http2.begin(message_to())
    emulator.wait_for(1)
    http2.h2.reset_stream(stream_id)
    http2.flush()
    time.sleep(2 * SHORT)  # its answer would come by now
    assert http2.send(message_to()).headers[":status"] == "200"
    assert accepted(emulator) == 2


def test_a_request_taken_back_in_the_same_breath_hurts_no_other(emulator: EmulatorClient, http2: RawHttp2) -> None:
    http2.h2.reset_stream(http2.begin(message_to("a"), flush=False))
    assert http2.send(message_to("b")).headers[":status"] == "200"


def test_goaway_answers_what_it_has_and_takes_no_more(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults(
        {"do": "latency", "seconds": 0.1, "token_prefix": "slow"}, {"do": "goaway", "token_prefix": "bye"}
    )
    slow = http2.begin(message_to("slow"), flush=False)
    bye = http2.begin(message_to("bye"), flush=False)
    http2.flush()
    http2.pump(slow, bye)
    assert [http2.streams[s].headers[":status"] for s in (slow, bye)] == ["200", "200"]
    assert http2.last_stream_id == bye
    http2.pump()
    assert http2.end == "eof"
    assert accepted(emulator) == 2


def test_a_stream_sent_after_goaway_is_not_accepted(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults(
        {"do": "latency", "seconds": LONG, "token_prefix": "slow"}, {"do": "goaway", "token_prefix": "bye"}
    )
    slow = http2.begin(message_to("slow"))
    bye = http2.begin(message_to("bye"))
    while http2.last_stream_id is None and not http2.end:
        http2.pump(patience=0.05)
    assert http2.last_stream_id == bye
    late = http2.begin(message_to("late"))
    http2.pump()
    assert http2.streams[slow].headers[":status"] == "200"
    assert not http2.streams[late].headers
    assert [entry["token"] for entry in emulator.messages()] == ["slow", "bye"]


def test_goaway_before_excludes_the_stream_and_accepts_nothing_of_it(emulator: EmulatorClient, http2: RawHttp2) -> None:
    assert http2.send(message_to("a")).headers[":status"] == "200"
    emulator.set_faults({"do": "goaway_before"})
    stream_id = http2.begin(message_to("b"))
    http2.pump()
    assert http2.last_stream_id == stream_id - 2
    assert not http2.streams[stream_id].headers
    assert [entry["token"] for entry in emulator.messages()] == ["a"]


def test_goaway_after_includes_the_stream_and_does_not_answer_it(emulator: EmulatorClient, http2: RawHttp2) -> None:
    emulator.set_faults({"do": "goaway_after"})
    stream_id = http2.begin(message_to())
    http2.pump()
    assert http2.last_stream_id == stream_id
    assert not http2.streams[stream_id].headers
    assert http2.end in ("eof", "reset")
    assert accepted(emulator) == 1


def test_an_answer_larger_than_the_window_arrives_whole(emulator: EmulatorClient, http2: RawHttp2) -> None:
    for _ in range(60):
        http2.send(message_to("x" * 4000))
    listing = http2.begin(method="GET", path="/emulator/messages")
    http2.pump(listing)
    assert len(http2.streams[listing].body) > 65_535 * 3
    assert len(http2.streams[listing].json["messages"]) == 60


def test_a_hundred_streams_at_once_are_all_answered(emulator: EmulatorClient, http2: RawHttp2) -> None:
    http2.pump(http2.begin(message_to()))
    ids = [http2.begin(message_to(f"d{i}"), flush=False) for i in range(100)]
    http2.flush()
    http2.pump(*ids)
    assert {http2.streams[s].headers[":status"] for s in ids} == {"200"}
    assert accepted(emulator) == 101


# Other people's clients


@pytest.mark.parametrize("http2_on", [False, True])
def test_httpx2_sends_over_tls_in_both_versions(emulator: EmulatorClient, bearer: str, http2_on: bool) -> None:
    context = ssl.create_default_context(cafile=emulator.certificate_path)
    with httpx2.Client(http2=http2_on, verify=context, trust_env=False) as client:
        for _ in range(3):
            response = client.post(
                f"{emulator.tls_endpoint}{SEND_PATH}",
                json=message_to(),
                headers={"authorization": f"Bearer {bearer}"},
            )
            assert response.status_code == 200
    assert [entry["http_version"] for entry in emulator.messages()] == [("2" if http2_on else "1.1")] * 3


@pytest.mark.parametrize("fault", ["drop_after", "cut_headers", "cut_body"])
def test_httpx2_raises_on_a_broken_answer_over_tls(emulator: EmulatorClient, bearer: str, fault: str) -> None:
    emulator.set_faults({"do": fault})
    context = ssl.create_default_context(cafile=emulator.certificate_path)
    with httpx2.Client(verify=context, trust_env=False) as client, pytest.raises(httpx2.TransportError):
        client.post(
            f"{emulator.tls_endpoint}{SEND_PATH}", json=message_to(), headers={"authorization": f"Bearer {bearer}"}
        )
    assert accepted(emulator) == 1
