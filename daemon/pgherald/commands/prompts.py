"""The commands about prompts that need a person: failed, unknown, pause, resume."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from pgherald.commands.command import SCENARIO, as_uuid, command, connected, say, scenario_id, terminal, whole
from pgherald.errors import UsageError
from pgherald.screen import Colour, ago, as_json, count, moment, short

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from pgherald.commands.command import Commands
    from pgherald.operate import Decision, FailedPrompt, Operations, UnknownPrompt


def add_parsers(commands: Commands) -> None:
    """Add these commands to the program's."""
    _add_failed(commands)
    _add_unknown(commands)
    _add_pause_and_resume(commands)


def _add_which(parser: argparse.ArgumentParser, *, code: bool) -> None:
    parser.add_argument("prompts", nargs="*", type=as_uuid, metavar="PROMPT", help="ids of prompts")
    parser.add_argument("--all", action="store_true", help="all there are, or all that the options name")
    _add_filter(parser, code=code)


def _add_filter(parser: argparse.ArgumentParser, *, code: bool) -> None:
    parser.add_argument("--scenario", help=f"of one scenario: {SCENARIO}")
    if code:
        parser.add_argument("--code", help="with this error code, such as UNAVAILABLE")


def _add_failed(commands: Commands) -> None:
    text = (
        "Prompts that were not sent, for certain, and are not tried again by themselves: FCM refused them, or it was "
        "too late for another try. A later evaluation may arm one again as long as its condition holds."
    )
    parser = commands.add_parser(
        "failed",
        help="prompts that failed: list, retry, discard",
        description=f"{text} Without an action, they are listed.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    lists = command(actions, "list", _failed_list, "list them, the latest first", text)
    _add_filter(lists, code=True)
    lists.add_argument("--limit", type=whole(1, 1_000_000, "a number"), default=20, help="at most (default: 20)")
    retry = command(
        actions,
        "retry",
        _failed_retry,
        "make them ready again",
        "Makes failed prompts ready again: the same prompts with the same keys, so that nobody is told twice. "
        "Opt-outs, cooldown and quiet hours are checked again when they are claimed. The exit code is 1 if one "
        "could not be.",
    )
    _add_which(retry, code=True)
    discard = command(
        actions,
        "discard",
        _failed_discard,
        "give them up for good",
        "Gives failed prompts up: skipped, with the gate `discarded`. No evaluation arms them again.",
    )
    _add_which(discard, code=True)


def _add_unknown(commands: Commands) -> None:
    text = (
        "Prompts that may or may not have been sent: FCM's answer was lost, or the daemon that sent them was. They are "
        "not sent again by themselves. A daemon that comes back with its spool settles its own; what stays is for a "
        "person to judge (did the device show it? does FCM's delivery report count it?)."
    )
    parser = commands.add_parser(
        "unknown",
        help="prompts whose fate is not known: list, resolve",
        description=f"{text} Without an action, they are listed.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    lists = command(actions, "list", _unknown_list, "list them, the latest first", text)
    _add_filter(lists, code=False)
    lists.add_argument("--limit", type=whole(1, 1_000_000, "a number"), default=20, help="at most (default: 20)")
    resolve = command(
        actions,
        "resolve",
        _unknown_resolve,
        "settle them by a person's word",
        "Settles unknown prompts. --sent writes the notification and the history as FCM's own answer would have done; "
        "--not-sent makes them failed, so that `pgherald failed retry` may send them. The exit code is 1 if one was "
        "not unknown (any more).",
    )
    _add_which(resolve, code=False)
    which = resolve.add_mutually_exclusive_group(required=True)
    which.add_argument("--sent", action="store_true", help="they were sent")
    which.add_argument("--not-sent", action="store_true", help="they were not; if they were, a retry sends them twice")


def _chosen(
    operations: Operations,
    arguments: argparse.Namespace,
    found: Callable[[UUID | None], Sequence[FailedPrompt | UnknownPrompt]],
) -> list[UUID]:
    """The prompts that a command is about: those named, or with --all those that the options name."""
    options = arguments.scenario is not None or getattr(arguments, "code", None) is not None
    if arguments.prompts and (arguments.all or options):
        raise UsageError("give either the ids of prompts, or --all (and what narrows it)")
    if not arguments.prompts and not arguments.all:
        raise UsageError(
            "name the prompts by their ids, or say --all (narrowed by --scenario"
            + (" or --code)" if hasattr(arguments, "code") else ")")
        )
    if arguments.prompts:
        return list(arguments.prompts)
    return [each.prompt_id for each in found(scenario_id(operations, arguments))]


def _failed_list(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        found = operations.failed(scenario_id(operations, arguments), arguments.code, arguments.limit)
        outbox = operations.outbox()
    if arguments.json:
        say(as_json(found))
        return 0
    to = terminal()
    for each in found:
        code = to.paint(each.error_code or "no code", Colour.YELLOW)
        say(f"{each.prompt_id}  {code}, {ago(each.failed_at, outbox.now)}, {count(each.attempts, 'attempt')}")
        is_late = each.expires_at <= outbox.now
        until = "too late to retry" if is_late else f"may be retried until {moment(each.expires_at)} UTC"
        say(to.wrap(f"{_about(each)}; {until}", 2))
    say(_total(len(found), outbox.prompts.get("failed", 0), "failed", arguments.limit))
    return 0


def _unknown_list(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        found = operations.unknown(scenario_id(operations, arguments), arguments.limit)
        outbox = operations.outbox()
    if arguments.json:
        say(as_json(found))
        return 0
    to = terminal()
    for each in found:
        code = to.paint(each.error_code or "no code", Colour.YELLOW)
        say(f"{each.prompt_id}  {code}, sent off {ago(each.claimed_at, outbox.now)}")
        say(to.wrap(f"{_about(each)}; notification_id {each.notification_id}", 2))
    say(_total(len(found), outbox.prompts.get("unknown", 0), "unknown", arguments.limit))
    return 0


def _about(prompt: FailedPrompt | UnknownPrompt) -> str:
    return (
        f'"{prompt.scenario}" ({prompt.scenario_type}) to {prompt.user_id} about {prompt.activity_ref}, '
        f"due {moment(prompt.due_at)} UTC"
    )


def _total(shown: int, there: int, what: str, limit: int) -> str:
    if shown == limit < there:
        return f"{shown:,} of {there:,} {what} prompts (--limit, --json)"
    return f"{count(shown, f'{what} prompt')}" if shown else f"no {what} prompts"


def _failed_retry(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        prompts = _chosen(operations, arguments, lambda scenario: operations.failed(scenario, arguments.code, None))
        return _tell(operations.retry(prompts), "ready", arguments)


def _failed_discard(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        prompts = _chosen(operations, arguments, lambda scenario: operations.failed(scenario, arguments.code, None))
        return _tell(operations.discard(prompts), "discarded", arguments)


def _unknown_resolve(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        prompts = _chosen(operations, arguments, lambda scenario: operations.unknown(scenario, None))
        return _tell(
            operations.resolve(prompts, sent=arguments.sent), "sent" if arguments.sent else "failed", arguments
        )


_WORDS: Final = {
    "ready": "ready again",
    "discarded": "discarded",
    "sent": "settled as sent",
    "failed": "settled as not sent (pgherald failed retry sends them)",
    "expired": "too late: past its scenario's expires_after",
    "duplicate": "another prompt of the same type is open for this person",
    "not_failed": "not failed (any more)",
    "not_unknown": "not unknown (any more)",
    "no_such_prompt": "no such prompt",
}


def _tell(decisions: Sequence[Decision], wanted: str, arguments: argparse.Namespace) -> int:
    """What became of each; 1 if one was not done as asked."""
    others = [each for each in decisions if each.decision != wanted]
    if arguments.json:
        say(as_json(decisions))
        return int(bool(others))
    for each in others:
        say(f"{each.prompt_id}  {_WORDS[each.decision]}")
    say(f"{count(len(decisions) - len(others), 'prompt')} {_WORDS[wanted]}")
    return int(bool(others))


def _add_pause_and_resume(commands: Commands) -> None:
    pause = command(
        commands,
        "pause",
        _pause,
        "hold back all pushes, or those of one scenario",
        "Holds back all pushes, or those of one scenario, at once; what is on its way already is not called back. "
        "People are still found due, and their prompts wait (no longer than the scenario's expires_after).",
    )
    pause.add_argument("scenario", nargs="?", metavar="SCENARIO", help=f"{SCENARIO}; without it everything is paused")
    resume = command(
        commands,
        "resume",
        _resume,
        "let them go on; also releases a scenario that is held",
        "Ends `pgherald pause`. With SCENARIO it also releases one that is held because a run would have exceeded its "
        "max_prompts_per_run: the next run may. Without SCENARIO only the pause of everything ends; scenarios that are "
        "paused or held by themselves stay so.",
    )
    resume.add_argument("scenario", nargs="?", metavar="SCENARIO", help=SCENARIO)


def _pause(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        paused = operations.pause(scenario_id(operations, arguments))
        outbox = operations.outbox()
    if arguments.json:
        say(as_json(paused))
        return 0
    what = "everything" if arguments.scenario is None else f'"{arguments.scenario}"'
    back = "pgherald resume" + ("" if arguments.scenario is None else f" '{arguments.scenario}'")
    since = ago(paused.paused_at, outbox.now)
    say(
        f"{what} is paused{'' if since == 'now' else f' (since {since})'}; {count(paused.prompts, 'prompt')} "
        f"{'waits' if paused.prompts == 1 else 'wait'}. To go on: {back}"
    )
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    with connected(arguments) as operations:
        resumed = operations.resume(scenario_id(operations, arguments))
        rest = [
            each
            for each in operations.status("en", timedelta(hours=1))
            if each.paused_at is not None or each.held_at is not None
        ]
        outbox = operations.outbox()
    if arguments.json:
        say(as_json(resumed))
        return 0
    what = "everything" if arguments.scenario is None else f'"{arguments.scenario}"'
    done = [word for word, was in (("goes on", resumed.was_paused), ("is released", resumed.was_held)) if was]
    state = " and ".join(done) if done else "was not paused" + ("" if arguments.scenario is None else " or held")
    wait = f"; {count(resumed.prompts, 'prompt')} to be sent" if resumed.prompts else ""
    say(f"{what} {state}{wait}")
    if resumed.was_held:
        say("its next run, within a minute, decides on what was held")
    if arguments.scenario is not None and outbox.paused_at is not None:
        say("note: everything is paused; pgherald resume")
    for each in rest if arguments.scenario is None else ():
        state = "paused" if each.paused_at else "held"
        say(f'note: "{each.name}" is {state} by itself: pgherald resume {short(each.scenario_id)}')
    return 0
