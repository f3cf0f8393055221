"""The commands about devices: send-test and tokens. What asks FCM is in `pgherald.devices`."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from pgherald.commands.command import SCENARIO, as_uuid, command, connected, say, settings_of, terminal, whole
from pgherald.log import token_tag
from pgherald.screen import as_json, count, listed, moment

if TYPE_CHECKING:
    import argparse

    from pgherald.commands.command import Commands
    from pgherald.devices import Told, Verified
    from pgherald.screen import Screen


def add_parsers(commands: Commands) -> None:
    """Add these commands to the program's."""
    _add_send_test(commands)
    _add_tokens(commands)


def _add_send_test(commands: Commands) -> None:
    parser = command(
        commands,
        "send-test",
        _send_test,
        "send a test message to one person's devices, or have FCM check it",
        "Builds a test message for each of a person's devices and has FCM check it (validate_only): the credentials, "
        "the project, the token and the message are tried, and nobody gets anything. With --really it is sent. Then no "
        "gate is asked (opt-outs and quiet hours do not hold it back) and nothing is recorded. The exit code is 1 if a "
        "device would not get it.",
    )
    parser.add_argument("user", type=as_uuid, metavar="USER", help="the person's user_id")
    parser.add_argument("--really", action="store_true", help="send it: the person's devices show it")
    parser.add_argument(
        "--scenario", help=f"with the texts of a scenario (default: keys test_title and test_body): {SCENARIO}"
    )


def _send_test(arguments: argparse.Namespace) -> int:
    import anyio

    from pgherald import devices

    settings = settings_of(arguments)
    with connected(arguments) as operations:
        scenario = None if arguments.scenario is None else operations.scenario(arguments.scenario)
        targets = operations.devices_of(arguments.user)
    if not targets:
        if arguments.json:
            say(as_json([]))
        else:
            say("this person has no device: none was registered, or all were revoked (`pgherald why` says more)")
        return 1

    async def send() -> list[Told]:
        return await devices.send_test(settings, targets, scenario, really=arguments.really)

    told = anyio.run(send)
    if arguments.json:
        say(as_json([_row(each, really=arguments.really) for each in told]))
    else:
        for each in told:
            say(_line(each, terminal(), really=arguments.really))
        if not arguments.really:
            say("only checked, nothing was sent; to send it: --really")
    return int(not all(each.good for each in told))


def _row(told: Told, *, really: bool) -> dict[str, object]:
    device = told.device
    return {
        "device_id": device.device_id,
        "platform": device.platform,
        "kind": device.kind,
        "token_tag": token_tag(device.token.reveal()),
        "last_seen_at": device.last_seen_at,
        "accepted": told.good,
        "code": told.code,
        "sent": told.good and really,
    }


def _line(told: Told, to: Screen, *, really: bool) -> str:
    device = told.device
    tag, seen = token_tag(device.token.reveal()), moment(device.last_seen_at)
    words = f"{told.code}: {told.words}" if not told.good else "accepted" if really else "would be accepted"
    return to.wrap(f"{device.platform} token {tag}, seen {seen} UTC: {words}", 0, 2)


def _add_tokens(commands: Commands) -> None:
    text = "The devices that pushes go to. Tokens themselves are never shown."
    parser = commands.add_parser(
        "tokens",
        help="devices: list (counts), verify, prune",
        description=f"{text} Without an action, they are counted.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    command(actions, "list", _tokens_list, "count them by platform", text)
    verify = command(
        actions,
        "verify",
        _tokens_verify,
        "ask FCM which tokens it still knows, revoke the others",
        "Has FCM check a message to each live device (validate_only: nobody gets anything) and revokes the tokens it "
        "no longer knows. If more than 10, and more than a third, are invalid it stops and revokes nothing more: that "
        "is rather a wrong project than wear. The checks count toward FCM's quota and keep PGHERALD_MAX_RATE.",
    )
    verify.add_argument(
        "--unseen-for",
        type=whole(0, 3660, "a number of days"),
        default=0,
        metavar="DAYS",
        help="only devices unseen for so long",
    )
    verify.add_argument("--limit", type=whole(1, 100_000_000, "a number"), help="check at most so many")
    verify.add_argument("--dry-run", action="store_true", help="revoke nothing, only count")
    verify.add_argument("--even-if-many", action="store_true", help="revoke however many are invalid")
    prune = command(
        actions,
        "prune",
        _tokens_prune,
        "delete devices long unseen",
        "Deletes devices unseen for longer than herald.setting.token_retention (270 days, after which FCM drops them "
        "too), as the nightly herald.maintain() does.",
    )
    prune.add_argument(
        "--unseen-for", type=whole(30, 3660, "a number of days"), metavar="DAYS", help="instead of the retention"
    )
    prune.add_argument("--dry-run", action="store_true", help="delete nothing, only count")


def _tokens_list(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        found = operations.token_counts()
    if arguments.json:
        say(as_json(found))
        return 0
    if not found:
        say("no devices yet: apps register them with herald.register_device_token()")
        return 0
    rows = [
        (each.platform, each.kind, each.live, each.people, each.unseen_30_days, each.revoked, listed(each.reasons))
        for each in found
    ]
    heads = ("PLATFORM", "KIND", "LIVE", "PEOPLE", "UNSEEN 30 D", "REVOKED", "WHY")
    say(terminal().table(heads, rows, widest=6))
    return 0


def _tokens_verify(arguments: argparse.Namespace) -> int:
    import anyio

    from pgherald import devices

    settings = settings_of(arguments)
    watched = sys.stderr.isatty() and not arguments.json

    def progress(found: Verified) -> None:
        if watched:
            sys.stderr.write(f"\r{found.checked:,} checked, {found.invalid.total():,} invalid ")
            sys.stderr.flush()

    with connected(arguments) as operations:

        async def verify() -> Verified:
            return await devices.verify(
                settings,
                operations,
                timedelta(days=arguments.unseen_for),
                limit=arguments.limit,
                dry_run=arguments.dry_run,
                even_if_many=arguments.even_if_many,
                progress=progress,
            )

        found = anyio.run(verify)
    if watched:
        sys.stderr.write("\n")
    if arguments.json:
        say(as_json(found))
        return int(found.stopped is not None)
    say(f"{count(found.checked, 'token')} checked: {found.good:,} good, {found.invalid.total():,} invalid")
    if found.invalid:
        what = "would be revoked" if arguments.dry_run else f"revoked {found.revoked:,}"
        say(f"  {listed(found.invalid)}; {what}")
    if found.inconclusive:
        say(f"  {found.inconclusive.total():,} could not be told (left as they are): {listed(found.inconclusive)}")
    if found.stopped is not None:
        say(terminal().wrap(f"stopped: {found.stopped}"))
    return int(found.stopped is not None)


def _tokens_prune(arguments: argparse.Namespace) -> int:
    unseen = None if arguments.unseen_for is None else timedelta(days=arguments.unseen_for)
    with connected(arguments) as operations:
        if arguments.dry_run:
            number = sum(each.prunable for each in operations.token_counts(unseen))
        else:
            number = operations.prune_tokens(unseen)
    if arguments.json:
        say(as_json({"dry_run": arguments.dry_run, "devices": number}))
        return 0
    say(f"{count(number, 'device')} {'would be deleted' if arguments.dry_run else 'deleted'}")
    return 0
