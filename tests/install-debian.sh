#!/usr/bin/env bash
# Installs what the tests use besides Python packages, on Debian as root; anywhere else says what is missing, and goes on.
# Silent and quick when everything is there. No service is started and no cluster is made on the way.
set -euo pipefail

packages=(
  postgresql-15               # the server of the first users' platform, besides the embedded 18
  postgresql-15-cron          # pg_cron, for the scheduled runs
  postgresql-15-plpgsql-check # reads the functions more strictly than Postgres does
  pgbouncer                   # the pooler that a DSN may point at
  prometheus                  # promtool, for the rules and the metrics
  systemd                     # systemd-analyze, for the unit
  strace                      # kills the daemon at an exact system call
  faketime                    # clocks that are wrong
  libfaketime                 # the same, for a process that a test starts itself
  iproute2                    # a network that swallows what is sent
  python3-venv                # what `make` builds the environment with
)

is_installed() { [[ "$(dpkg-query --show --showformat '${db:Status-Abbrev}' "$1" 2>/dev/null)" == ii* ]]; }

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  missing=()
  for tool in /usr/lib/postgresql/15/bin/postgres pgbouncer promtool systemd-analyze strace; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  if ((${#missing[@]})); then
    echo "not Debian, so nothing is installed; what needs these is skipped: ${missing[*]}" >&2
  fi
  exit 0
fi

missing=()
for package in "${packages[@]}"; do is_installed "$package" || missing+=("$package"); done
((${#missing[@]})) || exit 0

if ((EUID != 0)); then
  echo "missing, and what needs them is skipped: ${missing[*]}" >&2
  echo "to have it tested: sudo bash tests/install-debian.sh" >&2
  exit 0
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet

available=()
for package in "${missing[@]}"; do
  if apt-cache show "$package" >/dev/null 2>&1; then
    available+=("$package")
  else
    echo "this release has no package $package: what needs it is skipped" >&2
  fi
done
((${#available[@]})) || exit 0

# A server that is installed for its programs must not come up on port 5432.
if [[ ! -e /usr/sbin/policy-rc.d ]]; then
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
fi
if ! is_installed postgresql-common; then
  mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi

echo "installing: ${available[*]}" >&2
log="$(mktemp)"
if ! apt-get install --quiet --yes --no-install-recommends -o Dpkg::Options::=--force-confold "${available[@]}" >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  exit 1
fi
rm -f "$log"
