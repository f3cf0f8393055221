"""Which claims there were, who held them, and whether what is unknown is exactly what nobody can know.

A claim is open from its commit to the commit of its outcome. So long only its owner can tell what became of it: by an
entry in its spool, or by writing the outcome. From the outside these can be seen: every claim and its end, by a trigger
of the test's own; the process and the session that claimed; what an owner's spool held when it died; and what FCM
accepted, under which name. Hence `unknown` has to be exactly the prompts whose last claim was open when its owner lost
touch, with no word of it on that owner's disk, and those of whom the owner itself says that FCM's answer was lost. An
owner loses touch when it is killed; also when the session over which it claims ends before the claim's answer is read,
and then it cannot have sent anything. A prompt that is `sent` shows that the answer did arrive: the record carries the
name that FCM gave the message, which is in the answer and nowhere else.

What cannot be seen is whether a request left the machine of a killed owner. Whether it arrived can: `accepted` of
`Doubts` counts those that FCM has in its log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

    from tests.fault.world import World

LOG: Final = """
create table public.claim_log (
  n bigint generated always as identity,
  prompt_id uuid not null,
  epoch bigint not null,
  owner text not null,
  session integer not null,
  server timestamptz not null,
  outcome text
);
create function public.log_claim() returns trigger language plpgsql security definer as $$
begin
  if new.status = 'sending' and new.epoch <> old.epoch then
    insert into public.claim_log (prompt_id, epoch, owner, session, server)
    values (new.prompt_id, new.epoch, new.owner, pg_backend_pid(), pg_postmaster_start_time());
  elsif old.status = 'sending' and new.status <> 'sending' then
    update public.claim_log as c set outcome = new.status where c.prompt_id = old.prompt_id and c.epoch = old.epoch;
  end if;
  return null;
end
$$;
create index on public.claim_log (prompt_id, epoch);
create trigger log_claim after update on herald.prompt for each row
  when (old.status = 'sending' or new.status = 'sending') execute function public.log_claim();
"""

OWNER_LOST: Final = "OWNER_LOST"
"""The reason in the history when it is not the owner that gave a prompt up."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The last claim of a prompt; `reason` is why it is unknown."""

    prompt_id: UUID
    user_id: UUID
    notification_id: UUID
    epoch: int
    owner: str
    session: int
    server: datetime
    outcome: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Doubts:
    """What is unknown: how many, how many of those FCM accepted, and what of it is not as it must be."""

    count: int
    accepted: int
    broken: list[str]


def doubts(world: World, *, told: Iterable[UUID] = ()) -> Doubts:
    """Hold what is unknown against the claims. `told`: people whose answer was lost on the way from FCM, as the test
    made it, so that a living owner says so itself."""
    told = set(told)
    accepted = {push.notification_id for push in world.pushes()}
    (started,) = world.ask("select pg_postmaster_start_time()")[0]
    claims = unknown_claims(world)
    broken: list[str] = []
    for claim in claims:
        which = f"{claim.prompt_id} (epoch {claim.epoch} of {claim.owner}, {claim.reason})"
        if claim.prompt_id in world.spooled:
            broken.append(f"unknown: {which} was in the spool")
        if claim.owner in world.lost_touch or (claim.reason != OWNER_LOST and claim.user_id in told):
            continue
        if claim.reason != OWNER_LOST:
            broken.append(f"unknown: {which}, and no answer was lost")
        elif claim.session not in world.ended_sessions and claim.server == started:
            broken.append(f"unknown: {which}, whose owner and session live")
        elif claim.notification_id in accepted:
            broken.append(f"unknown: {which} was sent, so its claim was answered, and its owner lives")
    return Doubts(len(claims), sum(claim.notification_id in accepted for claim in claims), broken)


def unknown_claims(world: World) -> list[Claim]:
    """The last claim of each prompt that is unknown."""
    rows: list[tuple[Any, ...]] = world.ask(
        "select p.prompt_id, p.user_id, p.notification_id, p.epoch, coalesce(c.owner, 'nobody'), "
        "coalesce(c.session, 0), coalesce(c.server, pg_postmaster_start_time()), c.outcome, "
        "coalesce(p.error_code, '') "
        "from herald.prompt as p left join public.claim_log as c on c.prompt_id = p.prompt_id and c.epoch = p.epoch "
        "where p.status = 'unknown'"
    )
    return [Claim(*row) for row in rows]
