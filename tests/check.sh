#!/usr/bin/env bash
# Everything about the sources that can be checked without running them: one line a check, its output when it fails.
# A tool that is not on the machine is named, loudly; in CI that is a failure.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=()
skipped=()
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

check() { # check NAME COMMAND...: run it, tell how it went
  local name="$1" output status
  shift
  output="$("$@" 2>&1)"
  status=$?
  if ((status == 0)); then
    printf 'ok      %s\n' "$name"
  else
    printf 'FAILED  %s\n%s\n' "$name" "$output"
    failed+=("$name")
  fi
}

needs() { # needs TOOL NAME: whether the tool is there; if not, NAME is skipped
  command -v "$1" >/dev/null && return
  printf 'SKIPPED %s: no %s on this machine\n' "$2" "$1"
  skipped+=("$2")
  return 1
}

verify_unit() { # verify_unit FILE: systemd-analyze exits 0 on unknown settings, so anything that it says is a failure
  local said status
  # The program that the unit starts is not installed here; everything else is as it is.
  sed -E 's#^(Exec[A-Za-z]+=[-+!@:|]*)[^ ]+#\1/bin/true#' "$1" >"$scratch/${1##*/}"
  said="$(systemd-analyze verify --man=no "$scratch/${1##*/}" 2>&1)"
  status=$?
  printf '%s\n' "$said"
  [[ -z "$said" ]] && return "$status"
  return 1
}

metrics_at_start() { # every metric, as a daemon that has done nothing yet serves it
  python -c 'import sys; from pgherald.metrics import Metrics; sys.stdout.buffer.write(Metrics().render())' |
    promtool check metrics
}

in_all_files() { # in_all_files PATTERN: no tracked text file has it
  ! git grep -nIE "$1" -- . ':!tests/check.sh'
}

audit() { # known vulnerabilities fail; that nobody could be asked about them is said, and does not
  local said status
  said="$(bash tests/audit.sh 2>&1)"
  status=$?
  if ((status == 3)); then
    printf 'NOT AUDITED: known vulnerabilities of the dependencies: %s\n' "$said"
  else
    check 'pip-audit' eval 'printf "%s\n" "$said"; ((status == 0))'
  fi
}

shopt -s nullglob
unguarded=(
  # A procedure that commits cannot have a SET clause; this one names everything that it calls.
  --proc-without-search-path 'herald.maintain(p_now timestamptz,p_batch integer)'
)
inlined=(--ignore PS001 --ignore PS005 --ignore PS016)
rules=(systemd/prometheus/rules.yml)
rule_tests=(systemd/prometheus/*_test.yml)
units=(systemd/*.service)

check 'ruff format' ruff format --check .
check 'ruff check' ruff check .
check 'mypy' mypy
check 'import-linter' lint-imports --no-cache
# The schema and the search path as migrate has them when it runs these files.
preamble="$scratch/preamble.sql"
printf 'create schema herald;\nset search_path = pg_catalog, pg_temp;\n' >"$preamble"
check 'pgspot' python -m tests.pgspot_sql --append "${unguarded[@]}" "$preamble" sql/migrations/*.sql sql/functions/*.sql
# Evaluators carry no search path, or Postgres could not inline them; only functions that do call them.
check 'pgspot, evaluators' python -m tests.pgspot_sql --append "${inlined[@]}" "$preamble" sql/migrations/*.sql sql/scenarios/*.sql
check 'squawk' squawk sql/migrations/*.sql
if needs promtool 'Prometheus rules'; then
  check 'promtool check rules' promtool check rules --lint=all --lint-fatal "${rules[@]}"
  check 'promtool test rules' promtool test rules "${rule_tests[@]}"
  check 'promtool check metrics' metrics_at_start
fi
if needs systemd-analyze 'systemd unit'; then
  for unit in "${units[@]}"; do
    check "systemd-analyze verify $unit" verify_unit "$unit"
    check "systemd-analyze security $unit" systemd-analyze security --no-pager --offline=true --threshold=12 "$unit"
  done
fi
if git rev-parse --git-dir >/dev/null 2>&1; then
  check 'no package index is named' in_all_files 'https?://[^ "]*(/simple|/packages/[0-9a-f]{2}/)|--(extra-)?index-url'
  check 'nothing is left unfinished' in_all_files '\b(TODO|FIXME|XXX|HACK)\b'
fi
audit
check 'pytest -m check' python -m pytest -q -m check

if ((${#skipped[@]})) && [[ -n "${CI:-}" ]]; then failed+=("${skipped[@]}"); fi
if ((${#failed[@]})); then
  printf '\n%d of the checks failed:\n' "${#failed[@]}"
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
