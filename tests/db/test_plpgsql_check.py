"""plpgsql_check reads every PL/pgSQL function of the schema more strictly than `create function` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.postgres import Database


@pytest.mark.check
def test_plpgsql_check_finds_nothing_in_any_function(cron_database: Database) -> None:
    db = cron_database.connect()  # some functions look at pg_cron's tables
    db.execute("create extension plpgsql_check")
    found = db.execute(
        """
        select format('%s line %s: %s: %s %s %s', p.oid::regprocedure, c.lineno, c.level, c.message, c.detail, c.hint)
        from pg_catalog.pg_proc as p
        join pg_catalog.pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
        left join lateral (
          select min(g.tgrelid) as tgrelid, min(g.tgnewtable) as tgnewtable, min(g.tgoldtable) as tgoldtable
          from pg_catalog.pg_trigger as g
          where g.tgfoid = p.oid
        ) as t on true
        cross join lateral plpgsql_check_function_tb(
          p.oid, coalesce(t.tgrelid, 0), newtable => t.tgnewtable, oldtable => t.tgoldtable,
          fatal_errors => false, extra_warnings => true
        ) as c
        where p.pronamespace = 'herald'::regnamespace
          and (p.prorettype <> 'trigger'::regtype or t.tgrelid is not null)
          -- This version takes a literal without a type for text: v_step interval := '1 hour'.
          and (c.detail like 'cast "text" value to %') is not true
        order by p.proname, c.lineno
        """
    ).fetchall()
    assert [line for (line,) in found] == []


@pytest.mark.check
def test_plpgsql_check_would_find_what_create_function_lets_pass(cron_database: Database) -> None:
    db = cron_database.connect()
    db.execute("create extension plpgsql_check")
    db.execute("create function public.naive() returns void language plpgsql as 'begin perform no_such_column; end'")
    found = db.execute("select count(*) from plpgsql_check_function_tb('public.naive()'::regprocedure)").fetchone()
    assert found is not None
    assert found[0] > 0
