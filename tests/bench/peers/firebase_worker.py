"""firebase-admin, without any queue: messaging.send_each of 500 at a time, the most that it takes."""

# ruff: noqa: SLF001 - the SDK has no public way to send elsewhere
from __future__ import annotations

import os
import sys
import time
import uuid
import warnings
from typing import Any

import firebase_admin
from firebase_admin import credentials, messaging

from tests.bench.peers.talk import Bench, ready, say

BATCH = 500


def build(number: int) -> Any:
    return messaging.Message(
        token=f"cXyZ{number:0128x}",
        data={"notification_id": str(uuid.uuid4()), "scenario_type": "milestone"},
        android=messaging.AndroidConfig(
            priority="high",
            ttl=259_200,
            notification=messaging.AndroidNotification(
                title_loc_key="milestone_title",
                body_loc_key="milestone_body",
                tag=f"{number:064x}",
                channel_id="herald",
                visibility="private",
            ),
        ),
    )


def main() -> None:
    bench = Bench.given()
    warnings.simplefilter("ignore", DeprecationWarning)
    messaging._MessagingService.FCM_URL = bench.url.replace("/bench/", "/{0}/")
    firebase_admin.initialize_app(credentials.Certificate(os.environ["PGHERALD_FCM_CREDENTIALS"]))
    ready()
    first = time.monotonic_ns()
    for start in range(0, bench.jobs, BATCH):
        answers = messaging.send_each([build(n) for n in range(start, min(start + BATCH, bench.jobs))])
        if answers.failure_count:
            print(next(each.exception for each in answers.responses if each.exception), file=sys.stderr)
            os._exit(1)
    say(first=first, last=time.monotonic_ns())
    sys.stdin.read()


if __name__ == "__main__":
    main()
