#!/usr/bin/env bash
# Fuzzes the studio's API from its own OpenAPI document: no answer may be a 5xx or contradict the
# document. First, two linters check the document, if npx can install them.
#   tests/fuzz_api.sh [seconds, 90]
# Needs python3 with venv, and a built program ($MILLPOND_BIN, or else target/debug/millpond), which
# starts its own database.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-90}
program=$(realpath "${MILLPOND_BIN:-target/debug/millpond}")
venv=${MILLPOND_FUZZ_VENV:-target/fuzz-api}

if [ ! -x "$venv/bin/schemathesis" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5
fi
schemathesis=$(realpath "$venv/bin/schemathesis")

place=$(mktemp -d)
serving=
finish() {
    if [ -n "$serving" ]; then
        kill "$serving" 2>/dev/null || true
        wait "$serving" 2>/dev/null || true
    fi
    rm -rf "$place"
}
trap finish EXIT
# The private server's user must be able to enter this directory.
chmod 755 "$place"
cd "$place"

HTTP_ADDR=127.0.0.1:0 "$program" 2>log &
serving=$!
ready=
for _ in $(seq 150); do
    url=$(sed -n 's|.*listening on \(http://[0-9.:]*\).*|\1|p' log)
    if [ -n "$url" ] && "$program" check --ready --url "$url" >/dev/null 2>&1; then ready=yes && break; fi
    kill -0 "$serving" 2>/dev/null || { cat log; exit 1; }
    sleep 0.2
done
[ -n "$ready" ] || { echo "it is not ready:"; cat log; exit 1; }

curl -sf "$url/openapi.json" >openapi.json
echo 'extends: ["spectral:oas"]' >.spectral.yaml
if command -v npx >/dev/null && npx --yes @redocly/cli@2.77.0 --version >/dev/null 2>&1; then
    npx --yes @redocly/cli@2.77.0 lint openapi.json
    npx --yes @stoplight/spectral-cli@6.16.3 lint openapi.json --fail-severity warn
else
    echo "NOT CHECKED: the OpenAPI document by Redocly and Spectral: npx could not bring them"
fi

# Three checks are off. positive_data_acceptance: not everything that fits the document is accepted,
# since a schema cannot say that a range ends after it starts, that a number is one of a
# reservation, or what a cursor is. ignored_auth: no token is set, so none is missed.
# use_after_free: a deleted reservation still exists, since to delete it is to cancel it. One worker
# only: two threads that read Python's own source at the same time crash Python up to 3.11.7 ("AST
# constructor recursion depth mismatch").
if ! "$schemathesis" run "$url/openapi.json" --phases examples,coverage,fuzzing,stateful --max-time "$seconds" --workers 1 \
    --checks all --exclude-checks positive_data_acceptance,ignored_auth,use_after_free >report 2>&1; then
    cut -c 1-400 report | tail -n 200
    echo "the log of the program:"
    tail -n 50 log
    exit 1
fi
tail -n 25 report
if grep -E 'panicked|\[ERROR\]' log; then
    exit 1
fi
