#!/usr/bin/env bash
# Fuzzes the REST API by its own OpenAPI document: starts the whole system on embedded parts and free ports, opens accounts and
# moves money over it, and has schemathesis send what the document allows, and what it forbids, until the time is over.
#
#   DURATION      how long to fuzz: 60s, 10m, 1h (default 60s)
#   FUZZ_SEED     repeat a run by its seed (default: a new one, which is printed)
#   FUZZ_EXCLUDE  paths to leave out, a regular expression (default: none)
set -euo pipefail
cd "$(dirname "$0")/../.."
version=4.32.5
venv=$PWD/bin/fuzz-venv
seed=${FUZZ_SEED:-$((RANDOM * 32768 + RANDOM))}
duration=${DURATION:-60s}
[[ $duration =~ ^([1-9][0-9]*)([smh]?)$ ]] || { echo "DURATION is $duration; it must be a number of seconds, or 90s, 10m, 1h"; exit 2; }
seconds=${BASH_REMATCH[1]}
case ${BASH_REMATCH[2]} in m) seconds=$((seconds * 60)) ;; h) seconds=$((seconds * 3600)) ;; esac

make_venv() {
  [ "$(cat "$venv/version" 2>/dev/null)" = "$version" ] && return
  command -v python3 >/dev/null || { echo "please install: python3, with its venv module"; exit 1; }
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
    else
      echo "please install: python3-venv"; exit 1
    fi
  fi
  echo "· installing schemathesis $version into bin/fuzz-venv"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
  echo "$version" >"$venv/version"
}
make_venv

work=$(mktemp -d "${TMPDIR:-/tmp}/billing-fuzz-XXXXXX")
chmod 755 "$work" # Postgres runs as a user of its own and passes through
system=""
finish() {
  if [ -n "$system" ] && kill -TERM "$system" 2>/dev/null; then wait "$system" || true; fi
  rm -rf "$work"
}
trap finish EXIT

ports=$(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in sockets))')
read -r rest account transaction saga <<<"$ports"
api=http://127.0.0.1:$rest
BILLING_HTTP_ADDR=127.0.0.1:$rest BILLING_ACCOUNT_ADDR=127.0.0.1:$account BILLING_TRANSACTION_ADDR=127.0.0.1:$transaction \
  BILLING_SAGA_ADDR=127.0.0.1:$saga BILLING_DATA_DIR=$work/data bin/billing up >"$work/up.log" 2>&1 &
system=$!
for _ in $(seq 600); do
  curl -sf "$api/readyz" >/dev/null && break
  kill -0 "$system" 2>/dev/null || { echo "the system ended:"; cat "$work/up.log"; exit 1; }
  sleep 0.2
done
curl -sf "$api/readyz" >/dev/null || { echo "the system is not ready after two minutes:"; cat "$work/up.log"; exit 1; }

python3 test/fuzz/prepare.py "$api" "${FUZZ_EXCLUDE:-}" >"$work/known.json"
echo "· fuzzing $api for ${seconds} s; repeat with FUZZ_SEED=$seed"
echo "· watches never end: each is left after its first event, or after three seconds without"
exclude=()
[ -z "${FUZZ_EXCLUDE:-}" ] || exclude=(--exclude-path-regex "$FUZZ_EXCLUDE")
code=0
root=$PWD
(cd "$work" && FUZZ_KNOWN=$work/known.json PYTHONDONTWRITEBYTECODE=1 SCHEMATHESIS_HOOKS=$root/test/fuzz/hooks.py timeout --signal=INT --kill-after=30 $((seconds + 60)) "$venv/bin/schemathesis" \
  --config-file "$root/test/fuzz/schemathesis.toml" run "$api/openapi.json" \
  --seed "$seed" --max-time "$seconds" "${exclude[@]}" \
  --report json --report-json-path "$work/report.json") || code=$?

# What fuzzing must never break, whatever it sent.
curl -sf "$api/readyz" >/dev/null || { echo "the system is not ready any more"; code=1; }
python3 test/fuzz/audit.py "$api" || code=1
kill -TERM "$system" && wait "$system" || { echo "the system did not stop in order"; code=1; }
system=""
[ -s "$work/data/billing.log" ] || { echo "there is no log"; code=1; }
if grep -m 5 'level=ERROR' "$work/data/billing.log"; then
  echo "the log has errors (above)"
  code=1
fi
python3 test/fuzz/summary.py "$work/report.json" "$seed" "$seconds" "$code"
exit "$code"
