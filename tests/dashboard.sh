#!/usr/bin/env bash
# Tests the page /dashboard in a browser: under load, while a connection leaks, while the database is
# frozen and restarted, while the server drains and is started again, and signing in and out. Every
# scene is looked at in light and dark, wide and on a phone, by axe too, and its pictures are kept.
#   tests/dashboard.sh [--picture] [PROGRAM, or else target/debug/millpond] [DIRECTORY for the pictures]
# With --picture it also makes README's picture, src/server/dashboard/dashboard.png.
# Needs Chromium, node with npm (which installs puppeteer-core and axe-core for this run) and PostgreSQL.
set -euo pipefail

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

picture=
if [ "${1:-}" = --picture ]; then picture=yes && shift; fi
started_in=$PWD
cd "$(dirname "$0")/.."
program=$(cd "$started_in" && realpath "${1:-${CARGO_TARGET_DIR:-target}/debug/millpond}")
for needed in node npm "$program"; do
    command -v "$needed" >/dev/null || fail "$needed is missing"
done
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || fail "chromium is missing"
postgres=${PG_BIN_DIR:-$(find /usr/lib/postgresql/*/bin -name postgres | sort --version-sort | tail -n 1 | xargs -r dirname)}
[ -x "$postgres/initdb" ] || fail "PostgreSQL is missing: apt-get install postgresql"

place=$(mktemp -d)
pictures=$place/pictures
if [ -n "${2:-}" ]; then pictures=$(cd "$started_in" && realpath --canonicalize-missing "$2"); fi
mkdir -p "$pictures"
as_postgres=()
if [ "$(id -u)" = 0 ]; then as_postgres=(runuser -u postgres --); fi
finish() {
    if [ -e "$place/data/postmaster.pid" ]; then
        # The test may have been interrupted while the database was frozen.
        kill -CONT "$(head -n 1 "$place/data/postmaster.pid")" || true
        "${as_postgres[@]}" "$postgres/pg_ctl" --pgdata "$place/data" --mode immediate --silent stop || true
    fi
    rm -rf "$place"
}
trap finish EXIT

npm install --silent --no-fund --no-audit --prefix "$place" puppeteer-core@24 axe-core@4 >"$place/log" 2>&1 ||
    { cat "$place/log" && fail "puppeteer-core and axe-core cannot be installed"; }

# The server's user must be able to enter this directory.
chmod 755 "$place"
install -d ${as_postgres:+-o postgres} "$place/data"
(
    cd "$place"
    "${as_postgres[@]}" "$postgres/initdb" --pgdata data --username postgres --auth trust --no-sync >log
)
PLACE=$place PROGRAM=$program BROWSER=$browser PICTURES=$pictures PG_BIN_DIR=$postgres \
    AS_POSTGRES="${as_postgres[*]}" PICTURE=${picture:+$PWD/src/server/dashboard/dashboard.png} \
    node tests/dashboard.mjs
