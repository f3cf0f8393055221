"""What can go wrong with a database of two chapters, for each of sql/checks: how to break it, and what must be said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.support import two_chapters as world


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, and what the check must say. `mend`: what to run where the remedy is not plain SQL."""

    def __str__(self) -> str:
        return f"{self.check} {self.break_[:40]}"

    check: str
    break_: str
    problem: str
    mend: str | None = None
    as_owner: bool = False


FAULTS: Final = (
    Fault(
        "10_unpinned_definer",
        "alter function herald.ring() reset search_path",
        r"SECURITY DEFINER function herald.ring\(\) does not pin its search path",
    ),
    Fault(
        "10_unpinned_definer",
        "alter function herald.ring() set search_path = ''",
        r"SECURITY DEFINER function herald.ring\(\) does not pin its search path",
    ),
    Fault(
        "11_public_execute",
        "grant execute on function herald.run to public",
        r"herald.run(.*) may be called by public",
    ),
    Fault(
        "11_public_execute",
        "create function herald.fresh() returns int language sql return 1;"
        "grant execute on function herald.fresh to anon",
        r"herald.fresh\(\) may be called by anon",
        as_owner=True,
    ),
    Fault(
        "12_row_security",
        "alter table herald.prompt disable row level security",
        "row-level security on herald.prompt is off",
    ),
    Fault(
        "12_row_security",
        "alter table herald.prompt no force row level security",
        "row-level security on herald.prompt is not forced",
    ),
    Fault(
        "13_missing_policy",
        "drop policy owner_all on herald.device_token",
        "no policy lets herald_owner work on herald.device_token",
    ),
    Fault(
        "13_missing_policy",
        "drop policy coordinator_update on herald.scenario",
        "policy coordinator_update on herald.scenario is missing",
        mend="migrate",
    ),
    Fault(
        "14_missing_grant",
        "revoke execute on function herald.claim from herald_daemon",
        r"role herald_daemon may not call herald.claim\(.*\)",
    ),
    Fault(
        "14_missing_grant",
        "revoke usage on schema herald from authenticated",
        "role authenticated may not use schema herald",
    ),
    Fault(
        "14_missing_grant",
        "revoke select on herald.scenario from authenticated",
        r"role authenticated lacks select \(scenario_id, .*, created_at\) on herald.scenario",
    ),
    Fault(
        "15_excess_grant",
        "grant select on herald.scenario to authenticated",
        "role authenticated has select on herald.scenario",
    ),
    Fault(
        "14_missing_grant",
        "revoke update (mode, params) on herald.scenario from authenticated",
        r"role authenticated lacks update \(params, mode\) on herald.scenario",
    ),
    Fault(
        "15_excess_grant",
        "grant select on herald.device_token to authenticated",
        "role authenticated has select on herald.device_token",
    ),
    Fault(
        "15_excess_grant",
        "grant update (evaluated_through) on herald.scenario to authenticated",
        r"role authenticated has update on herald.scenario \(evaluated_through\)",
    ),
    Fault(
        "15_excess_grant",
        "grant insert on herald.scenario to authenticated",
        "role authenticated has insert on herald.scenario",
    ),
    Fault(
        "15_excess_grant",
        "grant update on herald.scenario to authenticated",
        "role authenticated has update on herald.scenario",
    ),
    Fault("15_excess_grant", "grant all on herald.prompt to public", "role public has delete on herald.prompt"),
    Fault(
        "17_evaluator",
        "create function app.due_x(herald.scenario, tstzrange, uuid[]) returns setof herald.candidate "
        "language sql stable as 'select null::herald.candidate'; alter function app.due_x owner to pg_monitor;"
        """select herald.register_scenario_type('x', 'app.due_x', '{"en": "Send"}', '{}')""",
        r"evaluator of scenario type x, app.due_x\(.*\), belongs to pg_monitor, who could act as herald_owner.*",
    ),
    Fault(
        "17_evaluator",
        "update herald.scenario_type set why = 'app.gone' where scenario_type = 'expiry'",
        "why of scenario type expiry, app.gone, does not exist",
        mend="migrate",
    ),
    Fault(
        "20_function_drift",
        "create or replace function herald.in_canary(p_scenario uuid, p_user uuid, p_percent integer) returns boolean "
        "language sql immutable return true",
        r"function herald.in_canary\(uuid,uuid,integer\) is not the one that migrate left",
        mend="migrate",
        as_owner=True,
    ),
    Fault(
        "20_function_drift",
        "drop function herald.mark_opened",
        r"function herald.mark_opened\(uuid\) is missing",
        mend="migrate",
    ),
    Fault(
        "21_missing_comment",
        "comment on table herald.prompt is null",
        "table herald.prompt has no comment",
        mend="comment on table herald.prompt is 'x'",
    ),
    Fault(
        "21_missing_comment",
        "comment on function herald.claim is null",
        r"function herald.claim\(.*\) has no comment",
        mend="comment on function herald.claim is 'x'",
    ),
    Fault(
        "22_unindexed_foreign_key",
        "drop index herald.prompt_scenario",
        "foreign key prompt_scenario_id_fkey on herald.prompt has no index",
    ),
    Fault(
        "23_invalid_index",
        "update pg_index set indisvalid = false where indexrelid = 'herald.prompt_ready'::regclass",
        "index herald.prompt_ready on herald.open_prompt is not valid",
    ),
    Fault(
        "23_invalid_index",
        "update pg_index set indisvalid = false where indexrelid = 'app.activity_occurred'::regclass",
        "index app.activity_occurred on app.activity is not valid",
    ),
    Fault(
        "24_disabled_trigger",
        "alter table app.activity disable trigger herald_touch_update",
        "trigger herald_touch_update on app.activity is disabled",
    ),
    Fault(
        "24_disabled_trigger",
        "alter table herald.scenario disable trigger check_scenario",
        "trigger check_scenario on herald.scenario is disabled",
    ),
    Fault(
        "24_disabled_trigger",
        "set session_replication_role = replica",
        "session_replication_role is replica: no trigger fires, so changes are not noted and prompts are not queued",
        mend="set session_replication_role = origin",
    ),
    Fault(
        "25_missing_trigger",
        "drop trigger herald_touch_delete on app.activity",
        "table app.activity is watched, but has no trigger herald_touch_delete",
    ),
    Fault(
        "25_missing_trigger",
        "alter table app.activity rename user_id to mentor_id",
        'table app.activity is watched by its column "user_id", which it does not have: its changes wait for the '
        "scheduled run",
        mend="select herald.watch('app.activity', 'mentor_id')",
    ),
    Fault(
        "25_missing_trigger",
        "drop trigger check_scenario on herald.scenario",
        "trigger check_scenario on herald.scenario is missing: scenarios are not validated",
        mend="migrate",
    ),
    Fault(
        "25_missing_trigger",
        "drop trigger open_prompt_update on herald.prompt",
        "trigger open_prompt_update on herald.prompt is missing: prompts are not found to be sent",
        mend="migrate",
    ),
    Fault(
        "26_unwatched_source",
        "select herald.unwatch('app.activity')",
        "no table that herald.source_activity reads is watched: its changes wait for the scheduled run",
    ),
    Fault(
        "26_unwatched_source",
        "select herald.unwatch('app.peer_mentor')",
        "no table that herald.source_recipient reads is watched: its changes wait for the scheduled run",
    ),
    Fault(
        "30_source_undefined",
        "create or replace view herald.source_recipient as "
        "select null::uuid as user_id, null::uuid as organisation_id, null::uuid as chapter_id, "
        "null::text as locale, null::text as time_zone, null::boolean as is_active, "
        "null::timestamptz as registered_at where false",
        "view herald.source_recipient is still the empty one that migrate made",
        mend="migrate",
    ),
    Fault(
        "31_source_rights",
        "revoke select on app.activity from herald_owner",
        "herald.source_activity cannot read app.activity: herald_owner has no right to",
    ),
    Fault(
        "31_source_rights",
        "revoke select on app.activity from herald_owner;"
        "grant select (id, user_id, flags) on app.activity to herald_owner",
        "herald.source_activity cannot read app.activity: herald_owner has no right to",
    ),
    Fault(
        "32_source_row_security",
        "alter table app.activity enable row level security",
        "row-level security on app.activity hides rows from herald_owner, and so from herald.source_activity",
    ),
    Fault(
        "32_source_row_security",
        "alter table app.peer_mentor enable row level security;"
        "create policy own on app.peer_mentor using (user_id = herald.jwt_user_id())",
        "row-level security on app.peer_mentor hides rows from herald_owner, and so from herald.source_recipient",
    ),
    Fault(
        "33_unknown_time_zone",
        f"update app.peer_mentor set time_zone = 'Mars/Phobos' where user_id = '{world.A1}'",
        'time zone "Mars/Phobos" of one person is not known',
        mend="update app.peer_mentor set time_zone = 'UTC+2'",
    ),
    Fault(
        "41_stale_evaluation",
        "delete from herald.evaluation_run",
        "no scheduled run since .*: neither pg_cron nor a daemon evaluates",
        mend="select * from herald.evaluate()",
    ),
    Fault(
        "42_failing_scenario",
        "insert into herald.evaluation_run "
        "(scenario_id, source, started_at, evaluated, candidates, prompts, error, duration) "
        f"values ('{world.SCENARIO_A}', 'touched', now(), '(2026-06-01,2026-06-02]', 0, 0, '22P02: secret', '1 s')",
        rf'the last run of scenario "quiet" \({world.SCENARIO_A}\), at .*, failed with SQLSTATE 22P02',
        mend="select * from herald.evaluate()",
    ),
    Fault(
        "43_held_scenario",
        f"insert into herald.catch_up values ('{world.SCENARIO_A}', '{world.CHAPTER_A}', now(), now(), now())",
        rf'scenario "quiet" \({world.SCENARIO_A}\) is held since .*: a run would exceed its max_prompts_per_run',
        mend="delete from herald.catch_up",
    ),
    Fault(
        "44_stuck_prompts",
        "update herald.prompt set status = 'sending', owner = 'gone', claimed_at = now() - interval '1 hour', "
        "deadline = now() - interval '1 hour', settled_at = null where activity_ref = 'registered'",
        r"2 prompts are in sending since .* \(owner gone\), and no daemon sweeps them",
        mend="select * from herald.sweep(interval '10 minutes')",
    ),
)
