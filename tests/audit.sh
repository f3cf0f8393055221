#!/usr/bin/env bash
# Known vulnerabilities of what a lock names (requirements.lock, or the file given): pip-audit asks OSV.
# Exit 0: none. 1: there are, and they are listed. 3: OSV could not be asked for all, and what is printed says why.
# AUDIT_URL: another OSV than api.osv.dev. AUDIT_SECONDS: how long it may take.
set -uo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
seconds="${AUDIT_SECONDS:-120}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

timeout "$seconds" pip-audit --vulnerability-service osv ${AUDIT_URL:+--osv-url "$AUDIT_URL"} \
  --requirement "${1:-$here/../requirements.lock}" --no-deps --disable-pip --format json --desc off --aliases off \
  --timeout 10 --progress-spinner off --cache-dir "$scratch/cache" >"$scratch/found" 2>"$scratch/said"
status=$?

if [[ ! -s "$scratch/found" ]]; then # it prints what it found, if nothing, too: so it did not get so far
  if ((status == 124)); then
    echo "OSV did not answer for all packages within $seconds seconds"
  else
    tail --lines 1 "$scratch/said" | cut --characters 1-300
  fi
  exit 3
fi
python - "$scratch/found" <<'PYTHON'
import json
import sys

with open(sys.argv[1]) as found:
    packages = json.load(found)["dependencies"]
for package in packages:
    for known in package.get("vulns", ()):
        mended = ", ".join(known["fix_versions"]) or "no release"
        print(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
PYTHON
((status == 0)) || exit 1
