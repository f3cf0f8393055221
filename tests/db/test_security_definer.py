"""SECURITY DEFINER functions, each attacked: objects of a caller's own that shadow every name a function could mean.

The attack is automatic. For every relation there is a temporary one of the same name; for every function and operator
of Postgres that any of our functions mentions, one with the same arguments at the head of the caller's search path, and
in the temporary schema, that fails with TRAPPED when it is called. A function is safe when it answers the same with and
without them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import two_chapters as world
from tests.support.two_chapters import (
    COORDINATOR_A,
    NOTIFICATION_A1,
    NOW,
    ORGANISATION,
    SCENARIO_A,
    acting_as,
    answer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support.postgres import Server

PINNED: Final = "search_path=pg_catalog, pg_temp"

#: What a parameter of this name, or else of this type, is called with.
ARGUMENTS: Final = {
    "p_scenario": f"'{SCENARIO_A}'",
    "p_user": f"'{world.A1}'",
    "p_definition": f"""'{{"scenario_type": "milestone", "organisation_id": "{ORGANISATION}",
      "chapter_id": "{world.CHAPTER_A}", "name": "n", "params": {{"counts": [1]}}}}'::jsonb""",
    "p_notification_id": f"'{NOTIFICATION_A1}'",
    "p_token": "'another-token'",
    "p_replaces": f"'{world.TOKEN_A1}'",
    "p_platform": "'ios'",
    "p_scenario_type": "'inactivity'",
    "p_locale": "'nb'",
    "p_now": f"'{NOW}'",
    "p_from": "'2026-04-15 12:00:00+00'",
    "p_to": f"'{NOW}'",
    "p_outcome": "'{sent}'",
    "p_prompt": "array(select prompt_id from herald.prompt limit 1)",
    "p_owner": "'me'",
    "p_text": "'quiet'",
    "p_name": "'quiet'",
    "p_limit": "10",
    "p_batch": "10",
    "p_after": "null",
}
BY_TYPE: Final = {
    "uuid": f"'{SCENARIO_A}'",
    "uuid[]": "array(select prompt_id from herald.prompt limit 1)",
    "text": "'inactivity'",
    "text[]": "'{x}'",
    "integer": "10",
    "bigint": "1",
    "bigint[]": "'{1}'",
    "boolean": "true",
    "interval": "interval '30 days'",
    "timestamp with time zone": f"'{NOW}'",
    "timestamp with time zone[]": f"array['{NOW}'::timestamptz]",
    "jsonb": "'{}'",
    "name": "'herald_daemon'",
    "pg_snapshot": "'1:1:'",
}

#: Functions that need more than arguments: what makes them run, and then what tells that they did.
TRIGGERS: Final = {
    "herald.check_scenario()": (
        "update herald.scenario set evaluated_through = '2025-12-01'",
        "select scenario_id, evaluated_from from herald.scenario",
    ),
    "herald.check_scenario_unused()": ("delete from herald.scenario",),
    # never fails the app's write, so its silence would prove nothing
    "herald.touch()": (
        f"insert into app.activity (user_id, activity_type) values ('{world.A1}', 'x')",
        "select user_id from herald.touched_user",
    ),
}

TRAPS: Final = """
do $do$
declare
  v_schema text;
  v_made record;
  v_words text[] := array(
    select distinct m[1]
    from pg_proc as p cross join regexp_matches(pg_get_functiondef(p.oid), '\\m([a-z_][a-z0-9_]*)\\M\\s*\\(', 'g') as m
    where p.pronamespace = 'herald'::regnamespace
  );
begin
  for v_made in
    select c.relname from pg_class as c
    where c.relkind in ('r', 'v')
      and c.relnamespace in ('herald'::regnamespace, 'pg_catalog'::regnamespace, 'app'::regnamespace)
    group by c.relname
  loop
    execute format('create temporary table %I (trapped text)', v_made.relname);
  end loop;
  foreach v_schema in array array['trap', 'pg_temp']
  loop
    for v_made in
      select p.oid, p.proname, case when p.proretset then 'setof' end as set_of,
        regexp_replace(pg_get_function_identity_arguments(p.oid), '(ORDER BY |VARIADIC )', '', 'g') as arguments,
        format_type(p.prorettype, null) as result
      from pg_proc as p
      where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (v_words) and p.prokind in ('f', 'w', 'a')
    loop
      begin
        execute format('create function %s.%I(%s) returns %s %s language plpgsql as %L', v_schema, v_made.proname,
          v_made.arguments, v_made.set_of, v_made.result, 'begin raise exception ''TRAPPED''; end');
      exception when others then
        null; -- takes a type that only Postgres itself may take
      end;
    end loop;
    for v_made in
      select 'op_' || o.oid as function, o.oprname, format_type(o.oprresult, null) as result,
        format_type(o.oprleft, null) as l, format_type(o.oprright, null) as r
      from pg_operator as o
      where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft <> 0
        and o.oprname = any ('{=,<>,<,>,<=,>=,||,->,->>,#>>,?,@>,+,-,*,/,%,~,!~}')
        and o.oprleft = any ('{uuid,text,timestamptz,interval,jsonb,int4,int8,bool,numeric,date,time,tstzrange,name,oid,
          float8,uuid[],text[]}'::regtype[])
    loop
      begin
        execute format('create function %s.%I(%s, %s) returns %s language plpgsql as %L', v_schema, v_made.function,
          v_made.l, v_made.r, v_made.result, 'begin raise exception ''TRAPPED''; end');
        execute format('create operator %s.%s (leftarg = %s, rightarg = %s, function = %s.%I)', v_schema,
          v_made.oprname, v_made.l, v_made.r, v_schema, v_made.function);
      exception when others then
        null;
      end;
    end loop;
  end loop;
end
$do$
"""


@pytest.fixture(scope="module")
def populated(server: Server) -> Iterator[psycopg.Connection]:
    with server.database() as database:
        connection = database.connect()
        world.populate(connection)
        connection.execute("create schema trap")
        connection.execute("grant usage, create on schema trap to public")
        with database.connect("authenticated") as attacker:
            attacker.execute("create function trap.may() returns int language sql return 1")
        yield connection


@pytest.fixture
def db(populated: psycopg.Connection) -> Iterator[psycopg.Connection]:
    with populated.transaction(force_rollback=True):
        yield populated


def definers(db: psycopg.Connection) -> dict[str, tuple[str, ...]]:
    """Every SECURITY DEFINER function in the schema, with the statements that make it do its work."""
    found: dict[str, tuple[str, ...]] = {}
    rows = db.execute(
        "select p.oid::regprocedure::text, p.proname, p.prokind::text, array(select format_type(t, null) "
        "from unnest(p.proargtypes::oid[]) with ordinality as u (t, n) order by n), p.proargnames "
        "from pg_proc as p where p.pronamespace = 'herald'::regnamespace and p.prosecdef order by 1"
    ).fetchall()
    for signature, name, kind, types, names in rows:
        arguments = [
            ARGUMENTS.get(names[i], BY_TYPE[type_])
            if (type_ in ("uuid", "text", "jsonb", "integer", "timestamp with time zone") or type_.endswith("[]"))
            else BY_TYPE[type_]
            for i, type_ in enumerate(types)
        ]
        # the named array, where the name's own argument is no array
        cast = [
            f"({BY_TYPE[t] if t.endswith('[]') and not a.startswith(('array', chr(39) + '{')) else a})::{t}"
            for a, t in zip(arguments, types, strict=True)
        ]
        call = f"herald.{name}({', '.join(cast)})"
        found[signature] = TRIGGERS.get(signature) or (f"call {call}" if kind == "p" else f"select * from {call}",)
    return found


def run_all(db: psycopg.Connection, calls: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The answer of each, as a superuser with a coordinator's claims: rights are not what is tested here."""
    found = {}
    for signature, statements in calls.items():
        with db.transaction(force_rollback=True):
            db.execute(
                "select pg_catalog.set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{COORDINATOR_A}"}}',)
            )
            found[signature] = unvarying([answer(db, statement) for statement in statements][-1])
    return found


def unvarying(text: str) -> str:
    """Without what differs from call to call: durations, freshly made ids, and snapshots."""
    text = re.sub(r"UUID\('(?!00000000-)[^']*'\)", "<new id>", text)
    text = re.sub(r"datetime\.timedelta\([^)]*\)", "<duration>", text)
    text = re.sub(r"'(seconds|notify_queue_usage)': [0-9.e-]+", r"'\1': <n>", text)
    text = re.sub(r"'\d+:\d+:[\d,]*'", "<snapshot>", text)
    return re.sub(r"\b\d+\.\d{6,}\b|\b\d+\b(?=\)\]\))", "<n>", text)


def lay_traps(db: psycopg.Connection) -> None:
    db.execute("set local search_path = pg_catalog, pg_temp")
    db.execute(TRAPS)
    # a plan made before is no proof for one made now
    db.execute("discard plans")
    db.execute("set local search_path = trap, pg_temp, herald, pg_catalog")


def test_every_definer_pins_its_search_path_and_is_closed_to_public(db: psycopg.Connection) -> None:
    found = db.execute(
        "select p.oid::regprocedure::text, p.proconfig, "
        "exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a where a.grantee = 0) "
        "from pg_proc as p where p.pronamespace = 'herald'::regnamespace and p.prosecdef"
    ).fetchall()
    assert len(found) >= 40
    assert [name for name, config, _ in found if PINNED not in (config or [])] == []
    assert [name for name, _, public in found if public] == []


def test_no_shadowing_object_changes_what_any_definer_does(db: psycopg.Connection) -> None:
    calls = definers(db)
    before = run_all(db, calls)
    assert run_all(db, calls) == before, "each answers the same twice, or the comparison would say nothing"
    worked = [signature for signature, text in before.items() if not text.startswith("('")]
    assert len(worked) >= 0.9 * len(calls), {s: t for s, t in before.items() if s not in worked}
    lay_traps(db)
    after = run_all(db, calls)
    assert {s: t for s, t in after.items() if t != before[s]} == {}


def test_the_attack_does_catch_functions_that_do_not_pin_their_path(db: psycopg.Connection) -> None:
    """The control: the same functions, with their path taken away, or pinned to '' as is often advised."""
    calls = definers(db)
    before = run_all(db, calls)
    for signature in calls:
        db.execute(f"alter function {signature} reset search_path")
    lay_traps(db)
    after = run_all(db, calls)
    caught = {s for s, t in after.items() if t != before[s]}
    # SQL-standard bodies are bound when they are made, and what only calls another function has nothing to shadow
    assert len(caught) >= 0.8 * len(calls), sorted(set(calls) - caught)


def test_an_empty_search_path_would_not_be_enough(db: psycopg.Connection) -> None:
    db.execute("set local check_function_bodies = off")
    db.execute(
        "create function public.naive() returns bigint language sql security definer set search_path = '' "
        "as 'select count(*) from setting'"
    )
    db.execute("create temporary table setting (trapped text)")
    assert db.execute("select public.naive()").fetchone() == (0,), "it read the caller's table"


def test_evaluators_without_a_path_of_their_own_run_under_the_engines(db: psycopg.Connection) -> None:
    """They carry no SET, so that Postgres can inline them; and nobody but the engine's owner can call them."""
    calls: dict[str, tuple[str, ...]] = {
        row[0]: (row[1],)
        for row in db.execute(
            "select s.scenario_type, format('select * from herald.preview(%%L::jsonb, %%L, interval ''60 days'')', "
            "jsonb_build_object('scenario_type', s.scenario_type, 'organisation_id', %s::text, 'chapter_id', %s::text, "
            "'name', 'n', 'params', s.params_schema #> '{examples,0}'), %s::text) from herald.scenario_type as s",
            (str(ORGANISATION), str(world.CHAPTER_A), NOW),
        )
    }
    assert set(calls) == {"inactivity", "milestone", "expiry", "follow_up"}
    # the control: called directly under the attacker's path, they do fall for it
    direct = (
        "select * from herald.due_inactivity(("
        "select s from herald.scenario as s limit 1), '[2026-01-01,2026-07-01]'::tstzrange)"
    )
    before = run_all(db, calls)
    assert all(text.startswith("(") and not text.startswith("('") for text in before.values()), before
    assert not answer(db, direct).startswith("('")
    lay_traps(db)
    assert run_all(db, calls) == before
    assert answer(db, direct).startswith("('")
    for role in ("anon", "authenticated", "service_role", "herald_daemon", "herald_reader"):
        with db.transaction(force_rollback=True), acting_as(db, role, COORDINATOR_A):
            db.execute("set local search_path = pg_catalog")
            assert answer(db, "select * from herald.due_inactivity(null, null)").startswith("('42501'")


def test_what_has_no_pinned_path_is_called_from_pinned_functions_only(db: psycopg.Connection) -> None:
    """Functions without SET: SQL-standard bodies, which need none, and internals that nobody was granted."""
    unpinned = db.execute(
        "select p.oid::regprocedure::text, p.prosqlbody is not null, "
        "cardinality(array(select a.grantee from aclexplode(p.proacl) as a where a.grantee <> p.proowner)) "
        "from pg_proc as p where p.pronamespace = 'herald'::regnamespace "
        "and not (coalesce(p.proconfig, '{}') @> array['search_path=pg_catalog, pg_temp']) order by 1"
    ).fetchall()
    granted = [name for name, bound, grants in unpinned if grants and not bound]
    assert granted == []
    free = {name.split("(")[0] for name, bound, _ in unpinned if not bound}
    evaluators = db.execute(
        "select e from herald.scenario_type as t cross join unnest(array[t.evaluator, t.still_due, t.why]) as e "
        "where e is not null"
    ).fetchall()
    # maintain commits, so it cannot have a SET; it names all that it calls
    assert free <= {name for (name,) in evaluators} | {"herald.maintain"}


def test_the_engine_pins_its_path_before_an_evaluator_runs(db: psycopg.Connection) -> None:
    db.execute(
        "create function herald.due_path(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] default null) "
        "returns setof herald.candidate language sql stable as $$ "
        "select r.user_id, current_setting('search_path'), upper(p_window) from herald.source_recipient as r "
        "where p_users is null or r.user_id = any (p_users) $$"
    )
    db.execute("""select herald.register_scenario_type('path', 'herald.due_path', '{"en": "Send"}', '{}')""")
    db.execute("set local search_path = trap, public")
    found = db.execute(
        "select distinct activity_ref from herald.preview(%s::jsonb, %s, '1 day')",
        (f'{{"scenario_type": "path", "organisation_id": "{ORGANISATION}", "name": "n"}}', NOW),
    ).fetchall()
    assert found == [("pg_catalog, pg_temp",)]
