-- What `pgherald migrate` makes in a database, as PostgreSQL 18's pg_dump tells it. Left out: the bodies of functions,
-- which are whole in sql/functions and sql/scenarios; comments; and `owner to herald_owner`, which every object has.
-- Written by `make expected`, read by reviewers, compared by tests/db/test_expected_schema.py.

CREATE SCHEMA herald;

CREATE TYPE herald.candidate AS (
	user_id uuid,
	activity_ref text,
	due_at timestamp with time zone
);

CREATE FUNCTION herald.backtest(p_scenario uuid, p_from timestamp with time zone, p_to timestamp with time zone DEFAULT now()) RETURNS TABLE(kind text, day date, user_id uuid, candidates integer, sent integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.backtest_definition(p_definition jsonb, p_from timestamp with time zone, p_to timestamp with time zone DEFAULT now()) RETURNS TABLE(kind text, day date, user_id uuid, candidates integer, sent integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE TABLE herald.scenario (
    scenario_id uuid DEFAULT gen_random_uuid() NOT NULL,
    scenario_type text NOT NULL,
    organisation_id uuid NOT NULL,
    chapter_id uuid,
    name text NOT NULL,
    params jsonb DEFAULT '{}'::jsonb NOT NULL,
    title_key text NOT NULL,
    body_key text NOT NULL,
    presentation text DEFAULT 'alert'::text NOT NULL,
    devices text DEFAULT 'latest'::text NOT NULL,
    cooldown interval DEFAULT '7 days'::interval NOT NULL,
    quiet_from time without time zone,
    quiet_until time without time zone,
    mode text DEFAULT 'on'::text NOT NULL,
    canary_percent integer,
    priority integer DEFAULT 0 NOT NULL,
    jitter interval DEFAULT '00:00:00'::interval NOT NULL,
    expires_after interval DEFAULT '3 days'::interval NOT NULL,
    on_unknown text DEFAULT 'drop'::text NOT NULL,
    max_prompts_per_run integer,
    evaluated_through timestamp with time zone DEFAULT now() NOT NULL,
    evaluated_from timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    paused_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT scenario_body_key CHECK ((body_key ~ '^[A-Za-z0-9_.-]{1,100}$'::text)),
    CONSTRAINT scenario_canary CHECK (((mode <> 'canary'::text) OR (canary_percent IS NOT NULL))),
    CONSTRAINT scenario_canary_percent CHECK (((canary_percent >= 0) AND (canary_percent <= 100))),
    CONSTRAINT scenario_cooldown CHECK ((((cooldown >= '00:00:00'::interval) AND (cooldown <= '36500 days'::interval)) AND (LEAST(EXTRACT(year FROM cooldown), EXTRACT(month FROM cooldown), EXTRACT(day FROM cooldown), EXTRACT(hour FROM cooldown)) >= (0)::numeric))),
    CONSTRAINT scenario_devices CHECK ((devices = ANY (ARRAY['latest'::text, 'all'::text]))),
    CONSTRAINT scenario_expires_after CHECK (((expires_after > '00:00:00'::interval) AND (expires_after <= '36500 days'::interval) AND (LEAST(EXTRACT(year FROM expires_after), EXTRACT(month FROM expires_after), EXTRACT(day FROM expires_after), EXTRACT(hour FROM expires_after)) >= (0)::numeric))),
    CONSTRAINT scenario_jitter CHECK (((jitter >= '00:00:00'::interval) AND (jitter <= '01:00:00'::interval))),
    CONSTRAINT scenario_max_prompts_per_run CHECK ((max_prompts_per_run > 0)),
    CONSTRAINT scenario_mode CHECK ((mode = ANY (ARRAY['off'::text, 'shadow'::text, 'canary'::text, 'on'::text]))),
    CONSTRAINT scenario_name CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT scenario_on_unknown CHECK ((on_unknown = ANY (ARRAY['drop'::text, 'resend'::text]))),
    CONSTRAINT scenario_params CHECK ((jsonb_typeof(params) = 'object'::text)),
    CONSTRAINT scenario_presentation CHECK ((presentation = ANY (ARRAY['alert'::text, 'data'::text]))),
    CONSTRAINT scenario_quiet_pair CHECK ((((quiet_from IS NULL) = (quiet_until IS NULL)) AND (quiet_from <> quiet_until))),
    CONSTRAINT scenario_title_key CHECK ((title_key ~ '^[A-Za-z0-9_.-]{1,100}$'::text))
);

ALTER TABLE ONLY herald.scenario FORCE ROW LEVEL SECURITY;

CREATE FUNCTION herald.backtested(p_scenario herald.scenario, p_from timestamp with time zone, p_to timestamp with time zone) RETURNS TABLE(kind text, day date, user_id uuid, candidates integer, sent integer)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.candidates(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] DEFAULT NULL::uuid[]) RETURNS herald.candidate[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.candidates_between(p_scenario herald.scenario, p_from timestamp with time zone, p_to timestamp with time zone, p_most integer, p_users uuid[] DEFAULT NULL::uuid[], OUT candidates herald.candidate[], OUT through timestamp with time zone) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$...$$;

CREATE FUNCTION herald.candidates_in(p_scenario herald.scenario, p_chapters uuid[], p_candidates herald.candidate[]) RETURNS herald.candidate[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.candidates_of(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) RETURNS herald.candidate[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.caught_up(p_scenario herald.scenario, p_chapters uuid[], p_held uuid[], p_through timestamp with time zone, p_now timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.check_device_token(p_token text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.check_notification_id(p_notification_id uuid) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.check_prompts(p_prompts uuid[]) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.check_scenario() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.check_scenario_unused() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.checked_candidates(p_scenario herald.scenario, p_window tstzrange, p_candidates herald.candidate[], p_most integer) RETURNS herald.candidate[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.checked_scenario(p_scenario herald.scenario) RETURNS herald.scenario
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.claim(p_owner text, p_limit integer, p_lease interval, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, decision text, gate text, epoch bigint, notification_id uuid, scenario_id uuid, scenario_type text, user_id uuid, activity_ref text, presentation text, title_key text, body_key text, priority integer, collapse_key text, attempt integer, due_at timestamp with time zone, expires_at timestamp with time zone, claimed_at timestamp with time zone, all_devices boolean, devices json)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_sort TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.claim_prompts(p_owner text, p_prompts uuid[], p_lease interval, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, decision text, gate text, epoch bigint, notification_id uuid, scenario_id uuid, scenario_type text, user_id uuid, activity_ref text, presentation text, title_key text, body_key text, priority integer, collapse_key text, attempt integer, due_at timestamp with time zone, expires_at timestamp with time zone, claimed_at timestamp with time zone, all_devices boolean, devices json)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.claim_rows(p_owner text, p_rows tid[], p_lease interval, p_now timestamp with time zone) RETURNS TABLE(prompt_id uuid, decision text, gate text, epoch bigint, notification_id uuid, scenario_id uuid, scenario_type text, user_id uuid, activity_ref text, presentation text, title_key text, body_key text, priority integer, collapse_key text, attempt integer, due_at timestamp with time zone, expires_at timestamp with time zone, claimed_at timestamp with time zone, all_devices boolean, devices json)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.is_staff() RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (SELECT bool_or(pg_has_role((COALESCE(NULLIF(current_setting('role'::text, true), 'none'::text), (SESSION_USER)::text))::name, r.rolname, 'usage'::text)) AS bool_or FROM pg_roles r WHERE (r.rolname = ANY (ARRAY['herald_owner'::name, 'herald_daemon'::name, 'herald_reader'::name, 'service_role'::name])));

CREATE FUNCTION herald.my_chapters() RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE TABLE herald.catch_up (
    scenario_id uuid NOT NULL,
    chapter_id uuid,
    evaluated_through timestamp with time zone NOT NULL,
    catch_up_from timestamp with time zone NOT NULL,
    held_at timestamp with time zone,
    hold_released boolean DEFAULT false NOT NULL
);

ALTER TABLE ONLY herald.catch_up FORCE ROW LEVEL SECURITY;

CREATE FUNCTION herald.held_for_caller(p_scenario uuid) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (EXISTS (SELECT FROM herald.catch_up c WHERE ((c.scenario_id = held_for_caller.p_scenario) AND (c.held_at IS NOT NULL) AND (herald.is_staff() OR (c.chapter_id IN (SELECT herald.my_chapters() AS my_chapters))))));

CREATE FUNCTION herald.listed(p_items text[], p_joiner text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN CASE WHEN (cardinality(p_items) < 2) THEN (p_items)[1] ELSE ((((array_to_string((p_items)[:(cardinality(p_items) - 1)], ', '::text) || ' '::text) || p_joiner) || ' '::text) || (p_items)[cardinality(p_items)]) END;

CREATE FUNCTION herald.said(p_value jsonb, p_forms text, p_locale text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.span(p_duration interval, p_locale text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (SELECT herald.listed(ARRAY(SELECT ((CASE span.p_locale WHEN 'nb'::text THEN replace((u.n)::text, '.'::text, ','::text) ELSE (u.n)::text END || ' '::text) || split_part(CASE span.p_locale WHEN 'nb'::text THEN u.nb ELSE u.en END, '|'::text, CASE u.n WHEN 1 THEN 1 ELSE 2 END)) FROM (VALUES (CASE WHEN ((q.s % (604800)::numeric) = (0)::numeric) THEN div(q.s, (604800)::numeric) ELSE (0)::numeric END,'week|weeks'::text,'uke|uker'::text,1), (CASE WHEN ((q.s % (604800)::numeric) = (0)::numeric) THEN (0)::numeric ELSE div(q.s, (86400)::numeric) END,'day|days'::text,'dag|dager'::text,2), (div((q.s % (86400)::numeric), (3600)::numeric),'hour|hours'::text,'time|timer'::text,3), (div((q.s % (3600)::numeric), (60)::numeric),'minute|minutes'::text,'minutt|minutter'::text,4), (trim_scale((q.s % (60)::numeric)),'second|seconds'::text,'sekund|sekunder'::text,5)) u(n, en, nb, place) WHERE (u.n > (0)::numeric) ORDER BY u.place), CASE span.p_locale WHEN 'nb'::text THEN 'og'::text ELSE 'and'::text END) AS listed FROM (SELECT EXTRACT(epoch FROM span.p_duration) AS s) q);

CREATE FUNCTION herald.conditions(p_scenario herald.scenario, p_locale text) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (SELECT COALESCE(string_agg(('; '::text || CASE conditions.p_locale WHEN 'nb'::text THEN c.nb ELSE c.en END), ''::text ORDER BY c.place), ''::text) AS "coalesce" FROM ((SELECT EXTRACT(epoch FROM (conditions.p_scenario).cooldown) AS cooldown, CASE WHEN ((conditions.p_scenario).scenario_type = 'inactivity'::text) THEN (div(EXTRACT(epoch FROM (conditions.p_scenario).cooldown), ((86400)::numeric * (((conditions.p_scenario).params ->> 'repeat_days'::text))::numeric)) + (1)::numeric) ELSE NULL::numeric END AS repeats, to_char(((conditions.p_scenario).quiet_from)::interval, CASE EXTRACT(second FROM (conditions.p_scenario).quiet_from) WHEN 0 THEN 'HH24:MI'::text ELSE 'HH24:MI:SS'::text END) AS quiet_from, to_char(((conditions.p_scenario).quiet_until)::interval, CASE EXTRACT(second FROM (conditions.p_scenario).quiet_until) WHEN 0 THEN 'HH24:MI'::text ELSE 'HH24:MI:SS'::text END) AS quiet_until) q CROSS JOIN LATERAL (VALUES (1,true,('at most once '::text || concat_ws(' and once '::text, CASE q.cooldown WHEN 3600 THEN 'an hour'::text WHEN 86400 THEN 'a day'::text WHEN 604800 THEN 'a week'::text ELSE ('in '::text || herald.span((conditions.p_scenario).cooldown, 'en'::text)) END, CASE WHEN (q.cooldown < (86400)::numeric) THEN 'a day (UTC)'::text ELSE NULL::text END)),('høyst én gang '::text || concat_ws(' og én gang '::text, CASE q.cooldown WHEN 3600 THEN 'i timen'::text WHEN 86400 THEN 'om dagen'::text WHEN 604800 THEN 'i uken'::text ELSE ('på '::text || herald.span((conditions.p_scenario).cooldown, 'nb'::text)) END, CASE WHEN (q.cooldown < (86400)::numeric) THEN 'om dagen (UTC)'::text ELSE NULL::text END))), (2,(q.repeats > (1)::numeric),('in effect '::text || CASE WHEN ((((conditions.p_scenario).params ->> 'max_repeats'::text))::numeric < q.repeats) THEN 'once'::text ELSE format('every %s days'::text, (q.repeats * (((conditions.p_scenario).params ->> 'repeat_days'::text))::numeric)) END),('i praksis '::text || CASE WHEN ((((conditions.p_scenario).params ->> 'max_repeats'::text))::numeric < q.repeats) THEN 'én gang'::text ELSE format('hver %s. dag'::text, (q.repeats * (((conditions.p_scenario).params ->> 'repeat_days'::text))::numeric)) END)), (3,((conditions.p_scenario).quiet_from IS NOT NULL),format('not between %s and %s'::text, q.quiet_from, q.quiet_until),format('ikke mellom %s og %s'::text, q.quiet_from, q.quiet_until)), (4,((conditions.p_scenario).expires_after <> '3 days'::interval),format('at most %s late'::text, herald.span((conditions.p_scenario).expires_after, 'en'::text)),format('høyst %s forsinket'::text, herald.span((conditions.p_scenario).expires_after, 'nb'::text))), (5,((conditions.p_scenario).presentation = 'data'::text),'silently'::text,'uten lyd og varsel'::text), (6,((conditions.p_scenario).devices = 'all'::text),'on all devices'::text,'på alle enheter'::text), (7,((conditions.p_scenario).max_prompts_per_run IS NOT NULL),format('held if it would reach more than %s at once'::text, herald.said(to_jsonb((conditions.p_scenario).max_prompts_per_run), 'person|people'::text, 'en'::text)),format('holdes tilbake hvis den ville nå flere enn %s på én gang'::text, herald.said(to_jsonb((conditions.p_scenario).max_prompts_per_run), 'person|personer'::text, 'nb'::text))), (8,((conditions.p_scenario).on_unknown = 'resend'::text),'sent again if it is not certain that it arrived'::text,'sendes på nytt hvis det er uvisst om den kom fram'::text), (9,((conditions.p_scenario).mode = 'canary'::text),format('only to %s %% of the people'::text, (conditions.p_scenario).canary_percent),format('bare til %s %% av personene'::text, (conditions.p_scenario).canary_percent)), (10,((conditions.p_scenario).mode = 'shadow'::text),'only counted, nothing is sent'::text,'telles bare, ingenting sendes'::text), (11,((conditions.p_scenario).mode = 'off'::text),'switched off'::text,'slått av'::text), (12,((conditions.p_scenario).paused_at IS NOT NULL),'paused'::text,'satt på pause'::text), (13,herald.held_for_caller((conditions.p_scenario).scenario_id),'held: a run would have reached too many people'::text,'holdt tilbake: en kjøring ville nådd for mange personer'::text)) c(place, applies, en, nb)) WHERE c.applies);

CREATE FUNCTION herald.cooldown_window_start(p_at timestamp with time zone, p_cooldown interval) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN (EXTRACT(epoch FROM p_cooldown) > (0)::numeric) THEN to_timestamp(((floor((EXTRACT(epoch FROM p_at) / EXTRACT(epoch FROM p_cooldown))) * EXTRACT(epoch FROM p_cooldown)))::double precision) ELSE p_at END;

CREATE FUNCTION herald.counted_together(p_one jsonb, p_other jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN CASE WHEN (p_one = '{}'::jsonb) THEN p_other WHEN (p_other = '{}'::jsonb) THEN p_one ELSE (SELECT jsonb_object_agg(t.gate, t.n) AS jsonb_object_agg FROM (SELECT k.key AS gate, (sum((k.value)::bigint))::bigint AS n FROM (SELECT jsonb_each_text.key, jsonb_each_text.value FROM jsonb_each_text(counted_together.p_one) jsonb_each_text(key, value) UNION ALL SELECT jsonb_each_text.key, jsonb_each_text.value FROM jsonb_each_text(counted_together.p_other) jsonb_each_text(key, value)) k GROUP BY k.key) t) END;

CREATE FUNCTION herald.cron_jobs() RETURNS TABLE(jobname text, username text, active boolean, scheduled boolean, last_status text, last_start timestamp with time zone)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.daemon_state(p_seen pg_snapshot DEFAULT NULL::pg_snapshot, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(schema_version integer, prompts jsonb, oldest_ready_seconds double precision, paused boolean, held integer, last_evaluation_at timestamp with time zone, seen text, runs jsonb, scenario_types text[], notify_queue_usage double precision, now timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.decide(p_scenario herald.scenario, p_candidates herald.candidate[], p_window tstzrange, p_users uuid[], p_now timestamp with time zone, p_made bigint, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb, OUT held uuid[]) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.definition_for_caller(p_definition jsonb, p_now timestamp with time zone) RETURNS herald.scenario
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.described(p_scenario herald.scenario, p_locale text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.scenario_for_caller(p_scenario uuid) RETURNS herald.scenario
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.describe(p_scenario uuid, p_locale text DEFAULT 'en'::text) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN herald.described(herald.scenario_for_caller(p_scenario), p_locale);

CREATE FUNCTION herald.describe_definition(p_definition jsonb, p_locale text DEFAULT 'en'::text) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN herald.described(herald.definition_for_caller(p_definition, now()), p_locale);

CREATE FUNCTION herald.devices_of(p_user uuid) RETURNS TABLE(device_id uuid, platform text, kind text, token text, last_seen_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.devices_to_verify(p_after uuid, p_unseen interval, p_limit integer) RETURNS TABLE(device_id uuid, platform text, kind text, token text, last_seen_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.discard(p_prompts uuid[], p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, decision text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '10s'
    AS $$...$$;

CREATE FUNCTION herald.due_expiry(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] DEFAULT NULL::uuid[]) RETURNS SETOF herald.candidate
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.due_follow_up(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] DEFAULT NULL::uuid[]) RETURNS SETOF herald.candidate
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.due_inactivity(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] DEFAULT NULL::uuid[]) RETURNS SETOF herald.candidate
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.due_milestone(p_scenario herald.scenario, p_window tstzrange, p_users uuid[] DEFAULT NULL::uuid[]) RETURNS SETOF herald.candidate
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.duration_text(p_duration interval) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (SELECT CASE WHEN (q.s < 60) THEN format('%s %s'::text, q.s, CASE q.s WHEN 1 THEN 'second'::text ELSE 'seconds'::text END) WHEN (q.s < 3600) THEN format('%s %s'::text, (q.s / 60), CASE (q.s / 60) WHEN 1 THEN 'minute'::text ELSE 'minutes'::text END) WHEN (q.s < 86400) THEN format('%s %s %s %s'::text, (q.s / 3600), CASE (q.s / 3600) WHEN 1 THEN 'hour'::text ELSE 'hours'::text END, ((q.s % (3600)::bigint) / 60), CASE ((q.s % (3600)::bigint) / 60) WHEN 1 THEN 'minute'::text ELSE 'minutes'::text END) ELSE format('%s %s %s %s'::text, (q.s / 86400), CASE (q.s / 86400) WHEN 1 THEN 'day'::text ELSE 'days'::text END, ((q.s % (86400)::bigint) / 3600), CASE ((q.s % (86400)::bigint) / 3600) WHEN 1 THEN 'hour'::text ELSE 'hours'::text END) END AS format FROM (SELECT (floor(abs(EXTRACT(epoch FROM duration_text.p_duration))))::bigint AS s) q);

CREATE FUNCTION herald.enqueue(p_scenario uuid, p_user uuid, p_activity_ref text, p_due_at timestamp with time zone DEFAULT now(), OUT prompt_id uuid, OUT gate text) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.evaluate(p_now timestamp with time zone DEFAULT now(), p_scenario uuid DEFAULT NULL::uuid) RETURNS TABLE(scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, duration interval, error text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET lock_timeout TO '5s'
    AS $$...$$;

CREATE FUNCTION herald.evaluate_chapters(p_scenario herald.scenario, p_chapters uuid[], p_from timestamp with time zone, p_now timestamp with time zone, p_made bigint, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb, OUT error text) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.evaluate_person(p_user uuid, p_scenario_type text, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, prompt_ids uuid[])
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$...$$;

CREATE FUNCTION herald.evaluate_touched(p_limit integer DEFAULT 1000, p_now timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS TABLE(scenario_id uuid, candidates integer, prompts integer, suppressed jsonb, duration interval, error text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET lock_timeout TO '5s'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.evaluators() RETURNS TABLE(scenario_type text, purpose text, function_name text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.excess_rights(p_role name DEFAULT SESSION_USER) RETURNS TABLE(problem text, remedy text, kind text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.expires_at(p_due_at timestamp with time zone, p_made_at timestamp with time zone, p_evaluated_from timestamp with time zone, p_started_at timestamp with time zone, p_expires_after interval) RETURNS timestamp with time zone
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (GREATEST(p_due_at, CASE WHEN ((p_due_at > p_evaluated_from) OR (p_made_at >= p_started_at)) THEN p_started_at ELSE NULL::timestamp with time zone END) + p_expires_after);

CREATE FUNCTION herald.explain(p_user uuid, p_scenario_type text, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(check_name text, passed boolean, detail text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.failed(p_scenario uuid DEFAULT NULL::uuid, p_error_code text DEFAULT NULL::text, p_limit integer DEFAULT 100) RETURNS TABLE(prompt_id uuid, scenario_id uuid, scenario text, scenario_type text, user_id uuid, activity_ref text, due_at timestamp with time zone, error_code text, attempts integer, failed_at timestamp with time zone, expires_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$...$$;

CREATE FUNCTION herald.failed_just_now(p_scenario uuid, p_error_code text, p_now timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.fall_behind(p_scenario herald.scenario, p_chapter uuid, p_from timestamp with time zone, p_held_at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.find_scenario(p_what text) RETURNS TABLE(scenario_id uuid, name text, scenario_type text, title_key text, body_key text, presentation text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.gate(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) RETURNS TABLE(user_id uuid, activity_ref text, due_at timestamp with time zone, decision text, not_before timestamp with time zone)
    LANGUAGE plpgsql STABLE ROWS 10
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.held_text(p_scenario herald.scenario, p_suppressed jsonb) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN format('held: %s prompts would exceed max_prompts_per_run = %s; look at pgherald preview %s, then pgherald resume %s'::text, (p_suppressed ->> 'held'::text), (p_scenario).max_prompts_per_run, (p_scenario).scenario_id, (p_scenario).scenario_id);

CREATE FUNCTION herald.hold(p_scenario herald.scenario, p_candidates herald.candidate[], p_from timestamp with time zone, p_made bigint, p_touched boolean, p_now timestamp with time zone, OUT candidates herald.candidate[], OUT chapters uuid[], OUT wanted bigint) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN encode(sha256(convert_to((((((p_user)::text || chr(31)) || p_scenario_type) || chr(31)) || to_char((p_evaluation_date)::timestamp with time zone, 'YYYY-MM-DD'::text)), 'UTF8'::name)), 'hex'::text);

CREATE FUNCTION herald.in_canary(p_scenario uuid, p_user uuid, p_percent integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ((((('x'::text || substr(md5(((p_scenario)::text || (p_user)::text)), 1, 7)))::bit(28))::integer % 100) < p_percent);

CREATE FUNCTION herald.in_days(p_duration interval) RETURNS interval
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ((p_duration - make_interval(years => (EXTRACT(year FROM p_duration))::integer, months => (EXTRACT(month FROM p_duration))::integer)) + make_interval(days => ((365 * (EXTRACT(year FROM p_duration))::integer) + (30 * (EXTRACT(month FROM p_duration))::integer))));

CREATE FUNCTION herald.invariants(p_rows integer DEFAULT 10000, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(invariant text, violations bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.jwt_user_id() RETURNS uuid
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.keep_open_prompts() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.last_runs() RETURNS TABLE(scenario_id uuid, name text, mode text, created_at timestamp with time zone, held_at timestamp with time zone, last_scheduled_at timestamp with time zone, error_code text, failed_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE PROCEDURE herald.maintain(IN p_now timestamp with time zone DEFAULT now(), IN p_batch integer DEFAULT 10000)
    LANGUAGE plpgsql
    AS $$...$$;

CREATE FUNCTION herald.maintain_batch(p_now timestamp with time zone, p_batch integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.mark_opened(p_notification_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.mask_failure(p_scenario_type text, p_sqlstate text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.my_organisations() RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.may_read(p_organisation uuid, p_chapter uuid) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN COALESCE((herald.is_staff() OR (p_chapter IN (SELECT herald.my_chapters() AS my_chapters)) OR ((p_chapter IS NULL) AND (p_organisation IN (SELECT herald.my_organisations() AS my_organisations)))), false);

CREATE FUNCTION herald.mend_open_prompts() RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.moment_text(p_at timestamp with time zone, p_time_zone text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE VIEW herald.source_recipient AS
 SELECT m.user_id,
    c.organisation_id,
    m.chapter_id,
    m.locale,
    m.time_zone,
    (m.status = 'active'::text) AS is_active,
    m.registered_at
   FROM (app.peer_mentor m
     JOIN app.chapter c ON ((c.id = m.chapter_id)));

CREATE FUNCTION herald.my_people() RETURNS uuid[]
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN CASE WHEN (NOT herald.is_staff()) THEN (SELECT COALESCE(array_agg(r.user_id), '{}'::uuid[]) AS "coalesce" FROM herald.source_recipient r WHERE (r.chapter_id IN (SELECT herald.my_chapters() AS my_chapters))) ELSE NULL::uuid[] END;

CREATE FUNCTION herald.my_scopes() RETURNS TABLE(organisation_id uuid, chapter_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.not_held(p_scenario herald.scenario, p_users uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.notification_content(p_notification_id uuid) RETURNS TABLE(notification_id uuid, scenario_type text, title text, body text, activity_ref text, dispatched_at timestamp with time zone, opened_at timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.ordinal(p_number text, p_locale text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (p_number || CASE WHEN (p_locale = 'nb'::text) THEN '.'::text WHEN (p_number ~ '1[123]$'::text) THEN 'th'::text WHEN (p_number ~ '1$'::text) THEN 'st'::text WHEN (p_number ~ '2$'::text) THEN 'nd'::text WHEN (p_number ~ '3$'::text) THEN 'rd'::text ELSE 'th'::text END);

CREATE FUNCTION herald.outbox_status() RETURNS TABLE(now timestamp with time zone, schema_version integer, prompts jsonb, oldest_ready_seconds double precision, next_not_before timestamp with time zone, paused_at timestamp with time zone, touched boolean, last_scheduled_at timestamp with time zone, leader boolean, cron boolean, notify_queue_usage double precision)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.params_problem(p_schema jsonb, p_params jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.pause(p_scenario uuid DEFAULT NULL::uuid, OUT paused_at timestamp with time zone, OUT prompts bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '10s'
    AS $$...$$;

CREATE FUNCTION herald.people_in(p_scenario herald.scenario, p_chapters uuid[]) RETURNS TABLE(chapter_id uuid, people uuid[])
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE TABLE herald.phrase (
    locale text NOT NULL,
    word text NOT NULL,
    phrase text NOT NULL
);

ALTER TABLE ONLY herald.phrase FORCE ROW LEVEL SECURITY;

CREATE FUNCTION herald.phrase_of(p_word text, p_locale text) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN COALESCE((SELECT p.phrase FROM herald.phrase p WHERE ((p.locale = phrase_of.p_locale) AND (p.word = phrase_of.p_word))), translate(p_word, '_'::text, ' '::text));

CREATE FUNCTION herald.preview(p_definition jsonb, p_now timestamp with time zone DEFAULT now(), p_window interval DEFAULT '7 days'::interval) RETURNS TABLE(user_id uuid, activity_ref text, due_at timestamp with time zone, decision text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.preview(p_scenario uuid, p_now timestamp with time zone DEFAULT now(), p_window interval DEFAULT '7 days'::interval) RETURNS TABLE(user_id uuid, activity_ref text, due_at timestamp with time zone, decision text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.previewed(p_scenario herald.scenario, p_now timestamp with time zone, p_window interval) RETURNS TABLE(user_id uuid, activity_ref text, due_at timestamp with time zone, decision text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.prompt_counts() RETURNS TABLE(status text, prompts bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.prompt_fate_by(p_scenario uuid, p_user uuid, p_now timestamp with time zone, p_zone text, OUT passed boolean, OUT detail text) RETURNS record
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.prune_tokens(p_unseen interval DEFAULT NULL::interval, p_batch integer DEFAULT 10000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.pushes_planned(p_user uuid, p_at timestamp with time zone, p_time_zone text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.pushes_today(p_user uuid, p_at timestamp with time zone, p_time_zone text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.quiet_end(p_at timestamp with time zone, p_from time without time zone, p_until time without time zone, p_time_zone text) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.ready_times(p_now timestamp with time zone) RETURNS TABLE(first_not_before timestamp with time zone, next_not_before timestamp with time zone)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.recipient_time_zones() RETURNS TABLE(time_zone text, recipients bigint, known boolean)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.register_device_token(p_token text, p_platform text, p_replaces text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.register_scenario_type(p_scenario_type text, p_evaluator regproc, p_description jsonb, p_params_schema jsonb, p_still_due regproc DEFAULT NULL::regproc, p_why regproc DEFAULT NULL::regproc) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.require_user() RETURNS uuid
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.resolve(p_prompts uuid[], p_sent boolean, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, decision text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '10s'
    AS $$...$$;

CREATE FUNCTION herald.resume(p_scenario uuid DEFAULT NULL::uuid, OUT was_paused boolean, OUT was_held boolean, OUT prompts bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '10s'
    AS $$...$$;

CREATE FUNCTION herald.retry(p_prompts uuid[], p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, decision text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET lock_timeout TO '10s'
    AS $$...$$;

CREATE FUNCTION herald.revoke_devices(p_device uuid[], p_last_seen_at timestamp with time zone[], p_reason text[], p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(device_id uuid, reason text)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.ring() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.run(p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamp with time zone, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.run_by_chapter(p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamp with time zone, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb, OUT error text, OUT again uuid[]) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.run_retention() RETURNS interval
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.scenario_from(p_definition jsonb, p_now timestamp with time zone) RETURNS herald.scenario
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.scenario_problem(p_scenario herald.scenario) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN CASE WHEN ((p_scenario).organisation_id IS NULL) THEN 'organisation_id is missing'::text WHEN (((p_scenario).name IS NULL) OR ((length((p_scenario).name) < 1) OR (length((p_scenario).name) > 200)) OR ((p_scenario).name ~ '[\u0001-\u001f\u007f-\u009f]'::text)) THEN 'name must be a text of 1 to 200 characters, all visible and on one line'::text WHEN ((p_scenario).title_key !~ '^[A-Za-z0-9_.-]{1,100}$'::text) THEN 'title_key must be a key such as "inactivity_title", not a text'::text WHEN ((p_scenario).body_key !~ '^[A-Za-z0-9_.-]{1,100}$'::text) THEN 'body_key must be a key such as "inactivity_body", not a text'::text WHEN ((p_scenario).presentation <> ALL (ARRAY['alert'::text, 'data'::text])) THEN 'presentation must be alert or data'::text WHEN ((p_scenario).devices <> ALL (ARRAY['latest'::text, 'all'::text])) THEN 'devices must be latest or all'::text WHEN (((p_scenario).cooldown < '00:00:00'::interval) OR ((p_scenario).cooldown > '36500 days'::interval) OR (LEAST(EXTRACT(year FROM (p_scenario).cooldown), EXTRACT(month FROM (p_scenario).cooldown), EXTRACT(day FROM (p_scenario).cooldown), EXTRACT(hour FROM (p_scenario).cooldown)) < (0)::numeric)) THEN 'cooldown must lie between 0 and 36500 days, no part of it negative, for example 7 days'::text WHEN (((p_scenario).quiet_from IS NULL) <> ((p_scenario).quiet_until IS NULL)) THEN 'quiet_from and quiet_until go together, for example 21:00 and 08:00'::text WHEN ((p_scenario).quiet_from = (p_scenario).quiet_until) THEN 'quiet_from and quiet_until must differ, for example 21:00 and 08:00'::text WHEN ((p_scenario).mode <> ALL (ARRAY['off'::text, 'shadow'::text, 'canary'::text, 'on'::text])) THEN 'mode must be off, shadow, canary or on'::text WHEN (((p_scenario).mode = 'canary'::text) AND ((p_scenario).canary_percent IS NULL)) THEN 'mode canary needs canary_percent, for example 10'::text WHEN (((p_scenario).canary_percent < 0) OR ((p_scenario).canary_percent > 100)) THEN 'canary_percent must lie between 0 and 100'::text WHEN (((p_scenario).jitter < '00:00:00'::interval) OR ((p_scenario).jitter > '01:00:00'::interval)) THEN 'jitter must lie between 0 and 1 hour'::text WHEN (((p_scenario).expires_after <= '00:00:00'::interval) OR ((p_scenario).expires_after > '36500 days'::interval) OR (LEAST(EXTRACT(year FROM (p_scenario).expires_after), EXTRACT(month FROM (p_scenario).expires_after), EXTRACT(day FROM (p_scenario).expires_after), EXTRACT(hour FROM (p_scenario).expires_after)) < (0)::numeric)) THEN 'expires_after must be longer than nothing and at most 36500 days, no part of it negative, for example 3 days'::text WHEN ((p_scenario).on_unknown <> ALL (ARRAY['drop'::text, 'resend'::text])) THEN 'on_unknown must be drop or resend'::text WHEN ((p_scenario).max_prompts_per_run <= 0) THEN 'max_prompts_per_run must be at least 1, or null for no limit'::text WHEN (NOT isfinite((p_scenario).evaluated_through)) THEN 'evaluated_through must be a moment, not infinity'::text ELSE NULL::text END;

CREATE FUNCTION herald.schema_version(p_program integer) RETURNS TABLE(version integer, breaking boolean)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.sentence(p_template text, p_params jsonb, p_locale text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.sequential_scans(p_rows bigint DEFAULT 10000, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(scenario_type text, scenario text, run text, relation text, relation_rows bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.set_opt_out(p_scenario_type text, p_opted_out boolean) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.settle(p_prompt uuid[], p_epoch bigint[], p_outcome text[], p_error text[], p_at timestamp with time zone[], p_retry_at timestamp with time zone[], p_device uuid[], p_message_name text[], p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, applied boolean, status text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.shipped_functions() RETURNS TABLE(signature text, shipped text, installed text, missing_grantees text[])
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.simulated(p_candidates herald.candidate[], p_scenario herald.scenario) RETURNS TABLE(user_id uuid, due_at timestamp with time zone, passed boolean)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$...$$;

CREATE FUNCTION herald.source_tables() RETURNS TABLE(source text, relation oid, reader oid, columns smallint[])
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.status(p_locale text DEFAULT 'en'::text, p_since interval DEFAULT '1 day'::interval) RETURNS TABLE(scenario_id uuid, name text, scenario_type text, organisation_id uuid, chapter_id uuid, sentence text, mode text, canary_percent integer, paused_at timestamp with time zone, held_at timestamp with time zone, held_prompts integer, evaluated_through timestamp with time zone, last_run_at timestamp with time zone, last_scheduled_at timestamp with time zone, error_code text, due bigint, prompts bigint, suppressed jsonb, waiting bigint, sent bigint, failed bigint, skipped bigint, unknown bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.still_due(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) RETURNS SETOF herald.candidate
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.still_due_expiry(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) RETURNS SETOF herald.candidate
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.still_due_inactivity(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) RETURNS SETOF herald.candidate
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.stuck_prompts(p_grace interval) RETURNS TABLE(owner text, prompts bigint, oldest_deadline timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.sweep(p_grace interval, p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(prompt_id uuid, scenario_type text, status text)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    AS $$...$$;

CREATE FUNCTION herald.token_counts(p_unseen interval DEFAULT NULL::interval) RETURNS TABLE(platform text, kind text, live bigint, people bigint, unseen_30_days bigint, revoked bigint, reasons jsonb, prunable bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.touch() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.touched_from(p_scenario herald.scenario, p_now timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    RETURN CASE WHEN ((p_scenario).started_at > (p_now - (p_scenario).expires_after)) THEN (p_scenario).evaluated_from ELSE GREATEST((p_scenario).evaluated_from, (p_now - (p_scenario).expires_after)) END;

CREATE FUNCTION herald.unknown(p_scenario uuid DEFAULT NULL::uuid, p_limit integer DEFAULT 100) RETURNS TABLE(prompt_id uuid, scenario_id uuid, scenario text, scenario_type text, user_id uuid, activity_ref text, due_at timestamp with time zone, error_code text, attempts integer, claimed_at timestamp with time zone, notification_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.unregister_device_token(p_token text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.unwatch(p_table regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.value_problem(p_schema jsonb, p_value jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.visible_candidates(p_scenario herald.scenario, p_from timestamp with time zone, p_to timestamp with time zone, p_most integer) RETURNS herald.candidate[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.visible_people(p_users uuid[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.watch(p_table regclass, p_user_column name) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE FUNCTION herald.why(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$...$$;

CREATE FUNCTION herald.why_expiry(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.why_follow_up(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.why_inactivity(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.why_milestone(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    AS $$...$$;

CREATE FUNCTION herald.work_waiting(p_now timestamp with time zone DEFAULT now()) RETURNS TABLE(touched boolean, ready boolean, next_not_before timestamp with time zone, oldest_running xid8)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$...$$;

CREATE TABLE herald.scenario_prompt_history (
    history_id bigint NOT NULL,
    prompt_id uuid NOT NULL,
    scenario_id uuid NOT NULL,
    peer_mentor_id uuid NOT NULL,
    dispatched_at timestamp with time zone DEFAULT now() NOT NULL,
    delivery_status text NOT NULL,
    error_code text,
    attempt integer DEFAULT 1 NOT NULL,
    CONSTRAINT scenario_prompt_history_status CHECK ((delivery_status = ANY (ARRAY['dispatched'::text, 'failed'::text, 'skipped'::text, 'unknown'::text])))
);

ALTER TABLE ONLY herald.scenario_prompt_history FORCE ROW LEVEL SECURITY;

CREATE VIEW herald.delivery_statistics WITH (security_barrier='true') AS
 SELECT ((h.dispatched_at AT TIME ZONE 'UTC'::text))::date AS day,
    s.scenario_type,
    h.delivery_status,
    h.error_code,
    count(*) AS attempts,
    max(h.attempt) AS most_attempts
   FROM (herald.scenario_prompt_history h
     LEFT JOIN herald.scenario s ON ((s.scenario_id = h.scenario_id)))
  GROUP BY (((h.dispatched_at AT TIME ZONE 'UTC'::text))::date), s.scenario_type, h.delivery_status, h.error_code;

CREATE TABLE herald.device_token (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    token text NOT NULL,
    platform text NOT NULL,
    kind text DEFAULT 'token'::text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    revoked_at timestamp with time zone,
    revoked_reason text,
    CONSTRAINT device_token_form CHECK ((((length(token) >= 1) AND (length(token) <= 2000)) AND (token !~ '[[:cntrl:][:space:]]'::text))),
    CONSTRAINT device_token_kind CHECK ((kind = ANY (ARRAY['token'::text, 'fid'::text]))),
    CONSTRAINT device_token_platform CHECK ((platform = ANY (ARRAY['ios'::text, 'android'::text, 'web'::text]))),
    CONSTRAINT device_token_revoked CHECK (((revoked_at IS NOT NULL) OR (revoked_reason IS NULL)))
);

ALTER TABLE ONLY herald.device_token FORCE ROW LEVEL SECURITY;

CREATE VIEW herald.device_statistics WITH (security_barrier='true') AS
 SELECT platform,
    kind,
        CASE
            WHEN (revoked_at IS NOT NULL) THEN COALESCE(revoked_reason, 'unknown'::text)
            ELSE NULL::text
        END AS revoked_reason,
    count(*) AS devices,
    count(DISTINCT user_id) AS people,
    count(*) FILTER (WHERE (last_seen_at > (now() - '7 days'::interval))) AS seen_in_7_days,
    min(last_seen_at) AS longest_unseen
   FROM herald.device_token d
  GROUP BY platform, kind,
        CASE
            WHEN (revoked_at IS NOT NULL) THEN COALESCE(revoked_reason, 'unknown'::text)
            ELSE NULL::text
        END;

CREATE TABLE herald.evaluation_run (
    run_id bigint NOT NULL,
    scenario_id uuid NOT NULL,
    source text DEFAULT 'schedule'::text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    evaluated tstzrange NOT NULL,
    candidates integer NOT NULL,
    prompts integer NOT NULL,
    suppressed jsonb DEFAULT '{}'::jsonb NOT NULL,
    error text,
    duration interval NOT NULL,
    written_in xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT evaluation_run_source CHECK ((source = ANY (ARRAY['schedule'::text, 'touched'::text])))
);

ALTER TABLE ONLY herald.evaluation_run FORCE ROW LEVEL SECURITY;

ALTER TABLE herald.evaluation_run ALTER COLUMN run_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME herald.evaluation_run_run_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE herald.message_text (
    text_key text NOT NULL,
    locale text NOT NULL,
    text text NOT NULL,
    CONSTRAINT message_text_key CHECK ((text_key ~ '^[A-Za-z0-9_.-]{1,100}$'::text)),
    CONSTRAINT message_text_locale CHECK ((locale ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'::text))
);

ALTER TABLE ONLY herald.message_text FORCE ROW LEVEL SECURITY;

CREATE TABLE herald.migration (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    compatible boolean NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY herald.migration FORCE ROW LEVEL SECURITY;

CREATE TABLE herald.open_prompt (
    user_id uuid NOT NULL,
    scenario_type text NOT NULL,
    prompt_id uuid NOT NULL,
    scenario_id uuid NOT NULL,
    priority integer NOT NULL,
    not_before timestamp with time zone NOT NULL,
    deadline timestamp with time zone
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_insert_threshold='-1', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY herald.open_prompt FORCE ROW LEVEL SECURITY;

CREATE TABLE herald.opt_out (
    user_id uuid NOT NULL,
    scenario_type text,
    opted_out_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY herald.opt_out FORCE ROW LEVEL SECURITY;

CREATE TABLE herald.prompt (
    prompt_id uuid DEFAULT (((lpad(to_hex(((EXTRACT(epoch FROM clock_timestamp()) * (1000)::numeric))::bigint), 12, '0'::text) || '7'::text) || substr((gen_random_uuid())::text, 16)))::uuid NOT NULL,
    scenario_id uuid NOT NULL,
    scenario_type text NOT NULL,
    user_id uuid NOT NULL,
    activity_ref text NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    evaluation_date date DEFAULT ((now() AT TIME ZONE 'UTC'::text))::date NOT NULL,
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    cooldown_window_start timestamp with time zone,
    status text DEFAULT 'ready'::text NOT NULL,
    not_before timestamp with time zone DEFAULT now() NOT NULL,
    priority integer DEFAULT 0 NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    owner text,
    claimed_at timestamp with time zone,
    deadline timestamp with time zone,
    gate text,
    error_code text,
    origin text DEFAULT 'evaluation'::text NOT NULL,
    notification_id uuid DEFAULT (((lpad(to_hex(((EXTRACT(epoch FROM clock_timestamp()) * (1000)::numeric))::bigint), 12, '0'::text) || '7'::text) || substr((gen_random_uuid())::text, 16)))::uuid NOT NULL,
    collapse_key text DEFAULT replace((gen_random_uuid())::text, '-'::text, ''::text) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    settled_at timestamp with time zone,
    failed_at timestamp with time zone GENERATED ALWAYS AS (
CASE
    WHEN (status = 'failed'::text) THEN COALESCE(settled_at, created_at)
    ELSE NULL::timestamp with time zone
END) STORED,
    unknown_at timestamp with time zone GENERATED ALWAYS AS (
CASE
    WHEN (status = 'unknown'::text) THEN COALESCE(claimed_at, created_at)
    ELSE NULL::timestamp with time zone
END) STORED,
    CONSTRAINT prompt_activity_ref CHECK (((length(activity_ref) >= 1) AND (length(activity_ref) <= 400))),
    CONSTRAINT prompt_collapse_key CHECK (((octet_length(collapse_key) >= 1) AND (octet_length(collapse_key) <= 64))),
    CONSTRAINT prompt_origin CHECK ((origin = ANY (ARRAY['evaluation'::text, 'enqueue'::text]))),
    CONSTRAINT prompt_sending CHECK (((status <> 'sending'::text) OR ((owner IS NOT NULL) AND (deadline IS NOT NULL) AND (claimed_at IS NOT NULL)))),
    CONSTRAINT prompt_status CHECK ((status = ANY (ARRAY['ready'::text, 'sending'::text, 'sent'::text, 'failed'::text, 'unknown'::text, 'skipped'::text, 'expired'::text])))
)
WITH (fillfactor='45', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='1');

ALTER TABLE ONLY herald.prompt FORCE ROW LEVEL SECURITY;

CREATE VIEW herald.outbox_statistics WITH (security_barrier='true') AS
 SELECT scenario_type,
    status,
    gate,
    error_code,
    count(*) AS prompts,
    count(*) FILTER (WHERE ((status = 'ready'::text) AND (not_before <= now()))) AS claimable,
    min(not_before) FILTER (WHERE (status = 'ready'::text)) AS first_not_before,
    min(deadline) FILTER (WHERE (status = 'sending'::text)) AS first_deadline,
    min(due_at) AS first_due_at,
    max(due_at) AS last_due_at,
    max(attempts) AS most_attempts
   FROM herald.prompt p
  GROUP BY scenario_type, status, gate, error_code;

CREATE TABLE herald.scenario_notification (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    scenario_type text NOT NULL,
    scenario_id uuid,
    dispatched_at timestamp with time zone NOT NULL,
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    cooldown_window_start timestamp with time zone NOT NULL,
    prompt_id uuid,
    activity_ref text,
    device_id uuid,
    message_name text,
    opened_at timestamp with time zone
);

ALTER TABLE ONLY herald.scenario_notification FORCE ROW LEVEL SECURITY;

ALTER TABLE herald.scenario_prompt_history ALTER COLUMN history_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME herald.scenario_prompt_history_history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE VIEW herald.scenario_statistics WITH (security_barrier='true') AS
 SELECT s.scenario_id,
    s.scenario_type,
    s.organisation_id,
    s.chapter_id,
    s.name,
    s.mode,
    s.paused_at,
    b.held_at,
    LEAST(s.evaluated_through, b.evaluated_through) AS evaluated_through,
    r.runs,
    r.failed_runs,
    r.candidates,
    r.prompts,
    COALESCE(g.suppressed, '{}'::jsonb) AS suppressed,
    r.longest_run,
    l.started_at AS last_run_at,
    NULLIF("left"(l.error, 5), 'held:'::text) AS last_error_code,
    COALESCE(h.dispatched, (0)::bigint) AS dispatched,
    COALESCE(h.failed, (0)::bigint) AS failed,
    COALESCE(h.skipped, (0)::bigint) AS skipped,
    COALESCE(h.unknown, (0)::bigint) AS unknown,
    COALESCE(n.opened, (0)::bigint) AS opened
   FROM ((((((herald.scenario s
     CROSS JOIN LATERAL ( SELECT min(c.held_at) AS held_at,
            min(c.evaluated_through) AS evaluated_through
           FROM herald.catch_up c
          WHERE (c.scenario_id = s.scenario_id)) b)
     CROSS JOIN LATERAL ( SELECT count(*) AS runs,
            count(e.error) FILTER (WHERE (e.error !~~ 'held:%'::text)) AS failed_runs,
            COALESCE(sum(e.candidates), (0)::bigint) AS candidates,
            COALESCE(sum(e.prompts), (0)::bigint) AS prompts,
            max(e.duration) AS longest_run
           FROM herald.evaluation_run e
          WHERE ((e.scenario_id = s.scenario_id) AND (e.started_at > (now() - '1 day'::interval)))) r)
     LEFT JOIN LATERAL ( SELECT jsonb_object_agg(t.gate, t.n) AS suppressed
           FROM ( SELECT k.key AS gate,
                    sum((k.value)::bigint) AS n
                   FROM (herald.evaluation_run e
                     CROSS JOIN LATERAL jsonb_each_text(e.suppressed) k(key, value))
                  WHERE ((e.scenario_id = s.scenario_id) AND (e.started_at > (now() - '1 day'::interval)))
                  GROUP BY k.key) t) g ON (true))
     LEFT JOIN LATERAL ( SELECT e.started_at,
            e.error
           FROM herald.evaluation_run e
          WHERE (e.scenario_id = s.scenario_id)
          ORDER BY e.started_at DESC, e.run_id DESC
         LIMIT 1) l ON (true))
     LEFT JOIN ( SELECT d.scenario_id,
            count(*) FILTER (WHERE (d.delivery_status = 'dispatched'::text)) AS dispatched,
            count(*) FILTER (WHERE (d.delivery_status = 'failed'::text)) AS failed,
            count(*) FILTER (WHERE (d.delivery_status = 'skipped'::text)) AS skipped,
            count(*) FILTER (WHERE (d.delivery_status = 'unknown'::text)) AS unknown
           FROM herald.scenario_prompt_history d
          WHERE (d.dispatched_at > (now() - '1 day'::interval))
          GROUP BY d.scenario_id) h ON ((h.scenario_id = s.scenario_id)))
     LEFT JOIN ( SELECT m.scenario_id,
            count(m.opened_at) AS opened
           FROM herald.scenario_notification m
          WHERE (m.dispatched_at > (now() - '1 day'::interval))
          GROUP BY m.scenario_id) n ON ((n.scenario_id = s.scenario_id)));

CREATE TABLE herald.scenario_type (
    scenario_type text NOT NULL,
    evaluator text NOT NULL,
    still_due text,
    why text,
    description jsonb NOT NULL,
    params_schema jsonb NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT scenario_type_description CHECK ((jsonb_typeof(description) = 'object'::text)),
    CONSTRAINT scenario_type_name CHECK ((scenario_type ~ '^[a-z][a-z0-9_]{0,39}$'::text)),
    CONSTRAINT scenario_type_params_schema CHECK ((jsonb_typeof(params_schema) = 'object'::text))
);

ALTER TABLE ONLY herald.scenario_type FORCE ROW LEVEL SECURITY;

CREATE TABLE herald.setting (
    only_row boolean DEFAULT true NOT NULL,
    daily_cap integer,
    paused_at timestamp with time zone,
    prompt_retention interval DEFAULT '90 days'::interval NOT NULL,
    history_retention interval DEFAULT '400 days'::interval NOT NULL,
    notification_retention interval DEFAULT '800 days'::interval NOT NULL,
    run_retention interval DEFAULT '30 days'::interval NOT NULL,
    token_retention interval DEFAULT '270 days'::interval NOT NULL,
    CONSTRAINT setting_daily_cap CHECK ((daily_cap > 0)),
    CONSTRAINT setting_history_retention CHECK (((history_retention >= '1 day'::interval) AND (history_retention <= '36500 days'::interval))),
    CONSTRAINT setting_notification_retention CHECK (((notification_retention >= '1 day'::interval) AND (notification_retention <= '36500 days'::interval))),
    CONSTRAINT setting_only_row CHECK (only_row),
    CONSTRAINT setting_prompt_retention CHECK (((prompt_retention >= '1 day'::interval) AND (prompt_retention <= '36500 days'::interval))),
    CONSTRAINT setting_run_retention CHECK (((run_retention >= '1 day'::interval) AND (run_retention <= '36500 days'::interval))),
    CONSTRAINT setting_token_retention CHECK (((token_retention >= '1 day'::interval) AND (token_retention <= '36500 days'::interval)))
);

ALTER TABLE ONLY herald.setting FORCE ROW LEVEL SECURITY;

CREATE TABLE herald.shipped_function (
    signature text NOT NULL,
    fingerprint text NOT NULL,
    grantees text[] NOT NULL
);

ALTER TABLE ONLY herald.shipped_function FORCE ROW LEVEL SECURITY;

CREATE VIEW herald.source_activity AS
 SELECT (id)::text AS activity_id,
    user_id,
    activity_type,
    occurred_at,
    flags
   FROM app.activity a;

CREATE VIEW herald.source_coordinator AS
 SELECT user_id,
    chapter_id
   FROM app.coordinator c;

CREATE VIEW herald.source_expiry AS
 SELECT (c.id)::text AS item_id,
    c.user_id,
    c.kind,
    c.expires_at
   FROM app.certification c
UNION ALL
 SELECT (a.id)::text AS item_id,
    a.user_id,
    'assignment'::text AS kind,
    a.ends_at AS expires_at
   FROM app.assignment a
  WHERE ((a.status = 'active'::text) AND (a.ends_at IS NOT NULL));

CREATE TABLE herald.touched_user (
    user_id uuid NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_insert_threshold='-1', autovacuum_analyze_threshold='1000000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY herald.touched_user FORCE ROW LEVEL SECURITY;

ALTER TABLE ONLY herald.catch_up
    ADD CONSTRAINT catch_up_once UNIQUE NULLS NOT DISTINCT (scenario_id, chapter_id);

ALTER TABLE ONLY herald.device_token
    ADD CONSTRAINT device_token_pkey PRIMARY KEY (id);

ALTER TABLE ONLY herald.device_token
    ADD CONSTRAINT device_token_token UNIQUE (token);

ALTER TABLE ONLY herald.evaluation_run
    ADD CONSTRAINT evaluation_run_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY herald.message_text
    ADD CONSTRAINT message_text_pkey PRIMARY KEY (text_key, locale);

ALTER TABLE ONLY herald.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (version);

ALTER TABLE ONLY herald.opt_out
    ADD CONSTRAINT opt_out_once UNIQUE NULLS NOT DISTINCT (user_id, scenario_type);

ALTER TABLE ONLY herald.phrase
    ADD CONSTRAINT phrase_pkey PRIMARY KEY (locale, word);

ALTER TABLE ONLY herald.prompt
    ADD CONSTRAINT prompt_idempotency_key UNIQUE (idempotency_key);

ALTER TABLE ONLY herald.prompt
    ADD CONSTRAINT prompt_once UNIQUE (user_id, scenario_id, activity_ref);

ALTER TABLE ONLY herald.open_prompt
    ADD CONSTRAINT prompt_open PRIMARY KEY (user_id, scenario_type);

ALTER TABLE ONLY herald.prompt
    ADD CONSTRAINT prompt_pkey PRIMARY KEY (prompt_id);

ALTER TABLE ONLY herald.scenario_notification
    ADD CONSTRAINT scenario_notification_cooldown UNIQUE (user_id, scenario_type, cooldown_window_start);

ALTER TABLE ONLY herald.scenario_notification
    ADD CONSTRAINT scenario_notification_idempotency_key UNIQUE (idempotency_key);

ALTER TABLE ONLY herald.scenario_notification
    ADD CONSTRAINT scenario_notification_pkey PRIMARY KEY (id);

ALTER TABLE ONLY herald.scenario
    ADD CONSTRAINT scenario_pkey PRIMARY KEY (scenario_id);

ALTER TABLE ONLY herald.scenario_prompt_history
    ADD CONSTRAINT scenario_prompt_history_pkey PRIMARY KEY (history_id);

ALTER TABLE ONLY herald.scenario_type
    ADD CONSTRAINT scenario_type_pkey PRIMARY KEY (scenario_type);

ALTER TABLE ONLY herald.setting
    ADD CONSTRAINT setting_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY herald.shipped_function
    ADD CONSTRAINT shipped_function_pkey PRIMARY KEY (signature);

CREATE INDEX device_token_gone ON herald.device_token USING btree (user_id) WHERE (revoked_at IS NOT NULL);

CREATE INDEX device_token_live ON herald.device_token USING btree (user_id, platform) WHERE (revoked_at IS NULL);

CREATE INDEX evaluation_run_scenario ON herald.evaluation_run USING btree (scenario_id, started_at);

CREATE INDEX evaluation_run_started ON herald.evaluation_run USING brin (started_at);

CREATE INDEX evaluation_run_written ON herald.evaluation_run USING btree (written_in);

CREATE INDEX opt_out_scenario_type ON herald.opt_out USING btree (scenario_type);

CREATE INDEX prompt_created ON herald.prompt USING brin (created_at);

CREATE INDEX prompt_failed ON herald.prompt USING btree (failed_at) WHERE (failed_at IS NOT NULL);

CREATE INDEX prompt_ready ON herald.open_prompt USING btree (priority, not_before) WHERE (deadline IS NULL);

CREATE INDEX prompt_scenario ON herald.prompt USING btree (scenario_id);

CREATE INDEX prompt_sending ON herald.open_prompt USING btree (deadline) WHERE (deadline IS NOT NULL);

CREATE INDEX prompt_unknown ON herald.prompt USING btree (user_id, scenario_type, unknown_at) WHERE (unknown_at IS NOT NULL);

CREATE INDEX scenario_chapter ON herald.scenario USING btree (chapter_id);

CREATE INDEX scenario_notification_dispatched ON herald.scenario_notification USING brin (dispatched_at);

CREATE INDEX scenario_prompt_history_dispatched ON herald.scenario_prompt_history USING brin (dispatched_at);

CREATE INDEX scenario_prompt_history_person ON herald.scenario_prompt_history USING btree (peer_mentor_id, dispatched_at);

CREATE INDEX scenario_scenario_type ON herald.scenario USING btree (scenario_type);

CREATE INDEX scenario_scope ON herald.scenario USING btree (organisation_id, chapter_id);

CREATE TRIGGER check_scenario BEFORE INSERT OR UPDATE ON herald.scenario FOR EACH ROW EXECUTE FUNCTION herald.check_scenario();

CREATE TRIGGER check_scenario_unused BEFORE DELETE ON herald.scenario FOR EACH ROW EXECUTE FUNCTION herald.check_scenario_unused();

CREATE TRIGGER open_prompt_delete AFTER DELETE ON herald.prompt REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION herald.keep_open_prompts();

CREATE TRIGGER open_prompt_insert AFTER INSERT ON herald.prompt REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION herald.keep_open_prompts();

CREATE TRIGGER open_prompt_rename AFTER UPDATE OF prompt_id, user_id, scenario_type ON herald.prompt FOR EACH ROW WHEN ((((old.prompt_id IS DISTINCT FROM new.prompt_id) OR (old.user_id IS DISTINCT FROM new.user_id)) OR (old.scenario_type IS DISTINCT FROM new.scenario_type))) EXECUTE FUNCTION herald.keep_open_prompts();

CREATE TRIGGER open_prompt_truncate AFTER TRUNCATE ON herald.prompt FOR EACH STATEMENT EXECUTE FUNCTION herald.keep_open_prompts();

CREATE TRIGGER open_prompt_update AFTER UPDATE ON herald.prompt REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION herald.keep_open_prompts();

ALTER TABLE ONLY herald.catch_up
    ADD CONSTRAINT catch_up_scenario_id_fkey FOREIGN KEY (scenario_id) REFERENCES herald.scenario(scenario_id) ON DELETE CASCADE;

ALTER TABLE ONLY herald.evaluation_run
    ADD CONSTRAINT evaluation_run_scenario_id_fkey FOREIGN KEY (scenario_id) REFERENCES herald.scenario(scenario_id) ON DELETE CASCADE;

ALTER TABLE ONLY herald.opt_out
    ADD CONSTRAINT opt_out_scenario_type_fkey FOREIGN KEY (scenario_type) REFERENCES herald.scenario_type(scenario_type);

ALTER TABLE ONLY herald.prompt
    ADD CONSTRAINT prompt_scenario_id_fkey FOREIGN KEY (scenario_id) REFERENCES herald.scenario(scenario_id);

ALTER TABLE ONLY herald.scenario
    ADD CONSTRAINT scenario_scenario_type_fkey FOREIGN KEY (scenario_type) REFERENCES herald.scenario_type(scenario_type);

ALTER TABLE herald.catch_up ENABLE ROW LEVEL SECURITY;

CREATE POLICY coordinator_delete ON herald.scenario FOR DELETE TO authenticated USING ((chapter_id = ANY (ARRAY( SELECT herald.my_chapters() AS my_chapters))));

CREATE POLICY coordinator_insert ON herald.scenario FOR INSERT TO authenticated WITH CHECK ((((organisation_id, chapter_id) IN ( SELECT s.organisation_id,
    s.chapter_id
   FROM herald.my_scopes() s(organisation_id, chapter_id))) OR (chapter_id IN ( SELECT s.chapter_id
   FROM herald.my_scopes() s(organisation_id, chapter_id)
  WHERE (s.organisation_id IS NULL)))));

CREATE POLICY coordinator_read ON herald.scenario FOR SELECT TO authenticated USING (((chapter_id = ANY (ARRAY( SELECT herald.my_chapters() AS my_chapters))) OR ((chapter_id IS NULL) AND (organisation_id = ANY (ARRAY( SELECT herald.my_organisations() AS my_organisations))))));

CREATE POLICY coordinator_update ON herald.scenario FOR UPDATE TO authenticated USING ((chapter_id = ANY (ARRAY( SELECT herald.my_chapters() AS my_chapters)))) WITH CHECK ((((organisation_id, chapter_id) IN ( SELECT s.organisation_id,
    s.chapter_id
   FROM herald.my_scopes() s(organisation_id, chapter_id))) OR (chapter_id IN ( SELECT s.chapter_id
   FROM herald.my_scopes() s(organisation_id, chapter_id)
  WHERE (s.organisation_id IS NULL)))));

ALTER TABLE herald.device_token ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.evaluation_run ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.message_text ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.migration ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.open_prompt ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.opt_out ENABLE ROW LEVEL SECURITY;

CREATE POLICY owner_all ON herald.catch_up TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.device_token TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.evaluation_run TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.message_text TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.migration TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.open_prompt TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.opt_out TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.phrase TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.prompt TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.scenario TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.scenario_notification TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.scenario_prompt_history TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.scenario_type TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.setting TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.shipped_function TO herald_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON herald.touched_user TO herald_owner USING (true) WITH CHECK (true);

ALTER TABLE herald.phrase ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.prompt ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.scenario ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.scenario_notification ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.scenario_prompt_history ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.scenario_type ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.setting ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.shipped_function ENABLE ROW LEVEL SECURITY;

ALTER TABLE herald.touched_user ENABLE ROW LEVEL SECURITY;

CREATE POLICY type_read ON herald.scenario_type FOR SELECT TO authenticated USING (true);

GRANT USAGE ON SCHEMA herald TO herald_daemon;
GRANT USAGE ON SCHEMA herald TO herald_reader;
GRANT USAGE ON SCHEMA herald TO authenticated;
GRANT USAGE ON SCHEMA herald TO service_role;

REVOKE ALL ON TYPE herald.candidate FROM PUBLIC;
GRANT ALL ON TYPE herald.candidate TO herald_daemon;
GRANT ALL ON TYPE herald.candidate TO herald_reader;
GRANT ALL ON TYPE herald.candidate TO authenticated;
GRANT ALL ON TYPE herald.candidate TO service_role;

REVOKE ALL ON FUNCTION herald.backtest(p_scenario uuid, p_from timestamp with time zone, p_to timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.backtest(p_scenario uuid, p_from timestamp with time zone, p_to timestamp with time zone) TO authenticated;
GRANT ALL ON FUNCTION herald.backtest(p_scenario uuid, p_from timestamp with time zone, p_to timestamp with time zone) TO service_role;
GRANT ALL ON FUNCTION herald.backtest(p_scenario uuid, p_from timestamp with time zone, p_to timestamp with time zone) TO herald_daemon;
GRANT ALL ON FUNCTION herald.backtest(p_scenario uuid, p_from timestamp with time zone, p_to timestamp with time zone) TO herald_reader;

REVOKE ALL ON FUNCTION herald.backtest_definition(p_definition jsonb, p_from timestamp with time zone, p_to timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.backtest_definition(p_definition jsonb, p_from timestamp with time zone, p_to timestamp with time zone) TO authenticated;
GRANT ALL ON FUNCTION herald.backtest_definition(p_definition jsonb, p_from timestamp with time zone, p_to timestamp with time zone) TO service_role;
GRANT ALL ON FUNCTION herald.backtest_definition(p_definition jsonb, p_from timestamp with time zone, p_to timestamp with time zone) TO herald_daemon;
GRANT ALL ON FUNCTION herald.backtest_definition(p_definition jsonb, p_from timestamp with time zone, p_to timestamp with time zone) TO herald_reader;

GRANT DELETE ON TABLE herald.scenario TO authenticated;

GRANT SELECT(scenario_id) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(scenario_type),INSERT(scenario_type),UPDATE(scenario_type) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(organisation_id),INSERT(organisation_id),UPDATE(organisation_id) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(chapter_id),INSERT(chapter_id),UPDATE(chapter_id) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(name),INSERT(name),UPDATE(name) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(params),INSERT(params),UPDATE(params) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(title_key),INSERT(title_key),UPDATE(title_key) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(body_key),INSERT(body_key),UPDATE(body_key) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(presentation),INSERT(presentation),UPDATE(presentation) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(devices),INSERT(devices),UPDATE(devices) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(cooldown),INSERT(cooldown),UPDATE(cooldown) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(quiet_from),INSERT(quiet_from),UPDATE(quiet_from) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(quiet_until),INSERT(quiet_until),UPDATE(quiet_until) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(mode),INSERT(mode),UPDATE(mode) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(canary_percent),INSERT(canary_percent),UPDATE(canary_percent) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(priority),INSERT(priority),UPDATE(priority) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(jitter),INSERT(jitter),UPDATE(jitter) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(expires_after),INSERT(expires_after),UPDATE(expires_after) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(on_unknown),INSERT(on_unknown),UPDATE(on_unknown) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(max_prompts_per_run),INSERT(max_prompts_per_run),UPDATE(max_prompts_per_run) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(evaluated_through) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(evaluated_from) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(started_at) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(paused_at) ON TABLE herald.scenario TO authenticated;

GRANT SELECT(created_at) ON TABLE herald.scenario TO authenticated;

REVOKE ALL ON FUNCTION herald.backtested(p_scenario herald.scenario, p_from timestamp with time zone, p_to timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.candidates(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.candidates_between(p_scenario herald.scenario, p_from timestamp with time zone, p_to timestamp with time zone, p_most integer, p_users uuid[], OUT candidates herald.candidate[], OUT through timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.candidates_in(p_scenario herald.scenario, p_chapters uuid[], p_candidates herald.candidate[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.candidates_of(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.caught_up(p_scenario herald.scenario, p_chapters uuid[], p_held uuid[], p_through timestamp with time zone, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.check_device_token(p_token text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.check_notification_id(p_notification_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.check_prompts(p_prompts uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.check_scenario() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.check_scenario_unused() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.checked_candidates(p_scenario herald.scenario, p_window tstzrange, p_candidates herald.candidate[], p_most integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.checked_scenario(p_scenario herald.scenario) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.claim(p_owner text, p_limit integer, p_lease interval, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.claim(p_owner text, p_limit integer, p_lease interval, p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.claim_prompts(p_owner text, p_prompts uuid[], p_lease interval, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.claim_prompts(p_owner text, p_prompts uuid[], p_lease interval, p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.claim_rows(p_owner text, p_rows tid[], p_lease interval, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.is_staff() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.my_chapters() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.my_chapters() TO authenticated;
GRANT ALL ON FUNCTION herald.my_chapters() TO service_role;

REVOKE ALL ON FUNCTION herald.held_for_caller(p_scenario uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.listed(p_items text[], p_joiner text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.said(p_value jsonb, p_forms text, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.span(p_duration interval, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.conditions(p_scenario herald.scenario, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.cooldown_window_start(p_at timestamp with time zone, p_cooldown interval) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.counted_together(p_one jsonb, p_other jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.cron_jobs() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.cron_jobs() TO herald_daemon;
GRANT ALL ON FUNCTION herald.cron_jobs() TO herald_reader;

REVOKE ALL ON FUNCTION herald.daemon_state(p_seen pg_snapshot, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.daemon_state(p_seen pg_snapshot, p_now timestamp with time zone) TO herald_daemon;
GRANT ALL ON FUNCTION herald.daemon_state(p_seen pg_snapshot, p_now timestamp with time zone) TO herald_reader;

REVOKE ALL ON FUNCTION herald.decide(p_scenario herald.scenario, p_candidates herald.candidate[], p_window tstzrange, p_users uuid[], p_now timestamp with time zone, p_made bigint, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb, OUT held uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.definition_for_caller(p_definition jsonb, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.described(p_scenario herald.scenario, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.scenario_for_caller(p_scenario uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.describe(p_scenario uuid, p_locale text) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.describe(p_scenario uuid, p_locale text) TO authenticated;
GRANT ALL ON FUNCTION herald.describe(p_scenario uuid, p_locale text) TO service_role;
GRANT ALL ON FUNCTION herald.describe(p_scenario uuid, p_locale text) TO herald_daemon;
GRANT ALL ON FUNCTION herald.describe(p_scenario uuid, p_locale text) TO herald_reader;

REVOKE ALL ON FUNCTION herald.describe_definition(p_definition jsonb, p_locale text) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.describe_definition(p_definition jsonb, p_locale text) TO authenticated;
GRANT ALL ON FUNCTION herald.describe_definition(p_definition jsonb, p_locale text) TO service_role;
GRANT ALL ON FUNCTION herald.describe_definition(p_definition jsonb, p_locale text) TO herald_daemon;
GRANT ALL ON FUNCTION herald.describe_definition(p_definition jsonb, p_locale text) TO herald_reader;

REVOKE ALL ON FUNCTION herald.devices_of(p_user uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.devices_of(p_user uuid) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.devices_to_verify(p_after uuid, p_unseen interval, p_limit integer) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.devices_to_verify(p_after uuid, p_unseen interval, p_limit integer) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.discard(p_prompts uuid[], p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.discard(p_prompts uuid[], p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.due_expiry(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.due_follow_up(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.due_inactivity(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.due_milestone(p_scenario herald.scenario, p_window tstzrange, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.duration_text(p_duration interval) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.enqueue(p_scenario uuid, p_user uuid, p_activity_ref text, p_due_at timestamp with time zone, OUT prompt_id uuid, OUT gate text) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.enqueue(p_scenario uuid, p_user uuid, p_activity_ref text, p_due_at timestamp with time zone, OUT prompt_id uuid, OUT gate text) TO herald_daemon;
GRANT ALL ON FUNCTION herald.enqueue(p_scenario uuid, p_user uuid, p_activity_ref text, p_due_at timestamp with time zone, OUT prompt_id uuid, OUT gate text) TO service_role;

REVOKE ALL ON FUNCTION herald.evaluate(p_now timestamp with time zone, p_scenario uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.evaluate(p_now timestamp with time zone, p_scenario uuid) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.evaluate_chapters(p_scenario herald.scenario, p_chapters uuid[], p_from timestamp with time zone, p_now timestamp with time zone, p_made bigint, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb, OUT error text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.evaluate_person(p_user uuid, p_scenario_type text, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.evaluate_person(p_user uuid, p_scenario_type text, p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.evaluate_touched(p_limit integer, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.evaluate_touched(p_limit integer, p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.evaluators() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.evaluators() TO herald_daemon;
GRANT ALL ON FUNCTION herald.evaluators() TO herald_reader;

REVOKE ALL ON FUNCTION herald.excess_rights(p_role name) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.excess_rights(p_role name) TO herald_daemon;
GRANT ALL ON FUNCTION herald.excess_rights(p_role name) TO herald_reader;

REVOKE ALL ON FUNCTION herald.expires_at(p_due_at timestamp with time zone, p_made_at timestamp with time zone, p_evaluated_from timestamp with time zone, p_started_at timestamp with time zone, p_expires_after interval) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.explain(p_user uuid, p_scenario_type text, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.explain(p_user uuid, p_scenario_type text, p_now timestamp with time zone) TO authenticated;
GRANT ALL ON FUNCTION herald.explain(p_user uuid, p_scenario_type text, p_now timestamp with time zone) TO service_role;
GRANT ALL ON FUNCTION herald.explain(p_user uuid, p_scenario_type text, p_now timestamp with time zone) TO herald_daemon;
GRANT ALL ON FUNCTION herald.explain(p_user uuid, p_scenario_type text, p_now timestamp with time zone) TO herald_reader;

REVOKE ALL ON FUNCTION herald.failed(p_scenario uuid, p_error_code text, p_limit integer) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.failed(p_scenario uuid, p_error_code text, p_limit integer) TO herald_daemon;
GRANT ALL ON FUNCTION herald.failed(p_scenario uuid, p_error_code text, p_limit integer) TO herald_reader;

REVOKE ALL ON FUNCTION herald.failed_just_now(p_scenario uuid, p_error_code text, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.fall_behind(p_scenario herald.scenario, p_chapter uuid, p_from timestamp with time zone, p_held_at timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.find_scenario(p_what text) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.find_scenario(p_what text) TO herald_daemon;
GRANT ALL ON FUNCTION herald.find_scenario(p_what text) TO herald_reader;

REVOKE ALL ON FUNCTION herald.gate(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.held_text(p_scenario herald.scenario, p_suppressed jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.hold(p_scenario herald.scenario, p_candidates herald.candidate[], p_from timestamp with time zone, p_made bigint, p_touched boolean, p_now timestamp with time zone, OUT candidates herald.candidate[], OUT chapters uuid[], OUT wanted bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date) TO herald_daemon;
GRANT ALL ON FUNCTION herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date) TO herald_reader;
GRANT ALL ON FUNCTION herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date) TO authenticated;
GRANT ALL ON FUNCTION herald.idempotency_key(p_user uuid, p_scenario_type text, p_evaluation_date date) TO service_role;

REVOKE ALL ON FUNCTION herald.in_canary(p_scenario uuid, p_user uuid, p_percent integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.in_days(p_duration interval) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.invariants(p_rows integer, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.invariants(p_rows integer, p_now timestamp with time zone) TO herald_daemon;
GRANT ALL ON FUNCTION herald.invariants(p_rows integer, p_now timestamp with time zone) TO herald_reader;

REVOKE ALL ON FUNCTION herald.jwt_user_id() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.jwt_user_id() TO authenticated;
GRANT ALL ON FUNCTION herald.jwt_user_id() TO service_role;

REVOKE ALL ON FUNCTION herald.keep_open_prompts() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.last_runs() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.last_runs() TO herald_daemon;
GRANT ALL ON FUNCTION herald.last_runs() TO herald_reader;

REVOKE ALL ON PROCEDURE herald.maintain(IN p_now timestamp with time zone, IN p_batch integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.maintain_batch(p_now timestamp with time zone, p_batch integer) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.maintain_batch(p_now timestamp with time zone, p_batch integer) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.mark_opened(p_notification_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.mark_opened(p_notification_id uuid) TO authenticated;

REVOKE ALL ON FUNCTION herald.mask_failure(p_scenario_type text, p_sqlstate text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.my_organisations() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.my_organisations() TO authenticated;
GRANT ALL ON FUNCTION herald.my_organisations() TO service_role;

REVOKE ALL ON FUNCTION herald.may_read(p_organisation uuid, p_chapter uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.mend_open_prompts() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.moment_text(p_at timestamp with time zone, p_time_zone text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.my_people() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.my_scopes() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.my_scopes() TO authenticated;
GRANT ALL ON FUNCTION herald.my_scopes() TO service_role;

REVOKE ALL ON FUNCTION herald.not_held(p_scenario herald.scenario, p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.notification_content(p_notification_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.notification_content(p_notification_id uuid) TO authenticated;

REVOKE ALL ON FUNCTION herald.ordinal(p_number text, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.outbox_status() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.outbox_status() TO herald_daemon;
GRANT ALL ON FUNCTION herald.outbox_status() TO herald_reader;

REVOKE ALL ON FUNCTION herald.params_problem(p_schema jsonb, p_params jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.pause(p_scenario uuid, OUT paused_at timestamp with time zone, OUT prompts bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.pause(p_scenario uuid, OUT paused_at timestamp with time zone, OUT prompts bigint) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.people_in(p_scenario herald.scenario, p_chapters uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.phrase_of(p_word text, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.preview(p_definition jsonb, p_now timestamp with time zone, p_window interval) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.preview(p_definition jsonb, p_now timestamp with time zone, p_window interval) TO authenticated;
GRANT ALL ON FUNCTION herald.preview(p_definition jsonb, p_now timestamp with time zone, p_window interval) TO service_role;
GRANT ALL ON FUNCTION herald.preview(p_definition jsonb, p_now timestamp with time zone, p_window interval) TO herald_daemon;
GRANT ALL ON FUNCTION herald.preview(p_definition jsonb, p_now timestamp with time zone, p_window interval) TO herald_reader;

REVOKE ALL ON FUNCTION herald.preview(p_scenario uuid, p_now timestamp with time zone, p_window interval) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.preview(p_scenario uuid, p_now timestamp with time zone, p_window interval) TO authenticated;
GRANT ALL ON FUNCTION herald.preview(p_scenario uuid, p_now timestamp with time zone, p_window interval) TO service_role;
GRANT ALL ON FUNCTION herald.preview(p_scenario uuid, p_now timestamp with time zone, p_window interval) TO herald_daemon;
GRANT ALL ON FUNCTION herald.preview(p_scenario uuid, p_now timestamp with time zone, p_window interval) TO herald_reader;

REVOKE ALL ON FUNCTION herald.previewed(p_scenario herald.scenario, p_now timestamp with time zone, p_window interval) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.prompt_counts() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.prompt_counts() TO herald_daemon;
GRANT ALL ON FUNCTION herald.prompt_counts() TO herald_reader;

REVOKE ALL ON FUNCTION herald.prompt_fate_by(p_scenario uuid, p_user uuid, p_now timestamp with time zone, p_zone text, OUT passed boolean, OUT detail text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.prune_tokens(p_unseen interval, p_batch integer) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.prune_tokens(p_unseen interval, p_batch integer) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.pushes_planned(p_user uuid, p_at timestamp with time zone, p_time_zone text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.pushes_today(p_user uuid, p_at timestamp with time zone, p_time_zone text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.quiet_end(p_at timestamp with time zone, p_from time without time zone, p_until time without time zone, p_time_zone text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.ready_times(p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.recipient_time_zones() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.recipient_time_zones() TO herald_daemon;
GRANT ALL ON FUNCTION herald.recipient_time_zones() TO herald_reader;

REVOKE ALL ON FUNCTION herald.register_device_token(p_token text, p_platform text, p_replaces text) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.register_device_token(p_token text, p_platform text, p_replaces text) TO authenticated;

REVOKE ALL ON FUNCTION herald.register_scenario_type(p_scenario_type text, p_evaluator regproc, p_description jsonb, p_params_schema jsonb, p_still_due regproc, p_why regproc) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.require_user() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.resolve(p_prompts uuid[], p_sent boolean, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.resolve(p_prompts uuid[], p_sent boolean, p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.resume(p_scenario uuid, OUT was_paused boolean, OUT was_held boolean, OUT prompts bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.resume(p_scenario uuid, OUT was_paused boolean, OUT was_held boolean, OUT prompts bigint) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.retry(p_prompts uuid[], p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.retry(p_prompts uuid[], p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.revoke_devices(p_device uuid[], p_last_seen_at timestamp with time zone[], p_reason text[], p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.revoke_devices(p_device uuid[], p_last_seen_at timestamp with time zone[], p_reason text[], p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.ring() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.run(p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamp with time zone, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.run_by_chapter(p_scenario herald.scenario, p_window tstzrange, p_users uuid[], p_now timestamp with time zone, OUT candidates integer, OUT prompts integer, OUT suppressed jsonb, OUT error text, OUT again uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.run_retention() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.scenario_from(p_definition jsonb, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.scenario_problem(p_scenario herald.scenario) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.schema_version(p_program integer) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.schema_version(p_program integer) TO herald_daemon;
GRANT ALL ON FUNCTION herald.schema_version(p_program integer) TO herald_reader;

REVOKE ALL ON FUNCTION herald.sentence(p_template text, p_params jsonb, p_locale text) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.sequential_scans(p_rows bigint, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.sequential_scans(p_rows bigint, p_now timestamp with time zone) TO herald_daemon;
GRANT ALL ON FUNCTION herald.sequential_scans(p_rows bigint, p_now timestamp with time zone) TO herald_reader;

REVOKE ALL ON FUNCTION herald.set_opt_out(p_scenario_type text, p_opted_out boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.set_opt_out(p_scenario_type text, p_opted_out boolean) TO authenticated;

REVOKE ALL ON FUNCTION herald.settle(p_prompt uuid[], p_epoch bigint[], p_outcome text[], p_error text[], p_at timestamp with time zone[], p_retry_at timestamp with time zone[], p_device uuid[], p_message_name text[], p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.settle(p_prompt uuid[], p_epoch bigint[], p_outcome text[], p_error text[], p_at timestamp with time zone[], p_retry_at timestamp with time zone[], p_device uuid[], p_message_name text[], p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.shipped_functions() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.shipped_functions() TO herald_daemon;
GRANT ALL ON FUNCTION herald.shipped_functions() TO herald_reader;

REVOKE ALL ON FUNCTION herald.simulated(p_candidates herald.candidate[], p_scenario herald.scenario) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.source_tables() FROM PUBLIC;
GRANT ALL ON FUNCTION herald.source_tables() TO herald_daemon;
GRANT ALL ON FUNCTION herald.source_tables() TO herald_reader;

REVOKE ALL ON FUNCTION herald.status(p_locale text, p_since interval) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.status(p_locale text, p_since interval) TO herald_daemon;
GRANT ALL ON FUNCTION herald.status(p_locale text, p_since interval) TO herald_reader;

REVOKE ALL ON FUNCTION herald.still_due(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.still_due_expiry(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.still_due_inactivity(p_scenario herald.scenario, p_candidates herald.candidate[], p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.stuck_prompts(p_grace interval) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.stuck_prompts(p_grace interval) TO herald_daemon;
GRANT ALL ON FUNCTION herald.stuck_prompts(p_grace interval) TO herald_reader;

REVOKE ALL ON FUNCTION herald.sweep(p_grace interval, p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.sweep(p_grace interval, p_now timestamp with time zone) TO herald_daemon;

REVOKE ALL ON FUNCTION herald.token_counts(p_unseen interval) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.token_counts(p_unseen interval) TO herald_daemon;
GRANT ALL ON FUNCTION herald.token_counts(p_unseen interval) TO herald_reader;

REVOKE ALL ON FUNCTION herald.touch() FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.touched_from(p_scenario herald.scenario, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.unknown(p_scenario uuid, p_limit integer) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.unknown(p_scenario uuid, p_limit integer) TO herald_daemon;
GRANT ALL ON FUNCTION herald.unknown(p_scenario uuid, p_limit integer) TO herald_reader;

REVOKE ALL ON FUNCTION herald.unregister_device_token(p_token text) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.unregister_device_token(p_token text) TO authenticated;

REVOKE ALL ON FUNCTION herald.unwatch(p_table regclass) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.value_problem(p_schema jsonb, p_value jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.visible_candidates(p_scenario herald.scenario, p_from timestamp with time zone, p_to timestamp with time zone, p_most integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.visible_people(p_users uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.watch(p_table regclass, p_user_column name) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.why(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.why_expiry(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.why_follow_up(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.why_inactivity(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.why_milestone(p_scenario herald.scenario, p_user uuid, p_now timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION herald.work_waiting(p_now timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION herald.work_waiting(p_now timestamp with time zone) TO herald_daemon;

GRANT SELECT ON TABLE herald.delivery_statistics TO herald_reader;

GRANT SELECT ON TABLE herald.device_statistics TO herald_reader;

GRANT SELECT ON TABLE herald.outbox_statistics TO herald_reader;

GRANT SELECT ON TABLE herald.scenario_statistics TO herald_reader;

GRANT SELECT ON TABLE herald.scenario_type TO authenticated;
