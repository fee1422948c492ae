#!/usr/bin/env bash
# Tests README's recipe for a container: builds it as it stands there, and runs it with podman in a
# box (tests/box.sh).
#   tests/container.sh [PROGRAM, or else target/debug/millpond]
# Its base image is made with debootstrap, of the same release, so that no registry is needed.
# Needs podman, debootstrap, PostgreSQL, curl, and what the box needs.
set -euo pipefail

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# The first half: the recipe, the program and the base.
if [ "${1:-}" != --in-box ]; then
    cd "$(dirname "$0")/.."
    program=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug/millpond}")
    for needed in podman debootstrap curl; do
        command -v "$needed" >/dev/null || fail "$needed is missing"
    done
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    chmod 755 "$place"
    mkdir "$place/recipe"
    cp "$program" "$place/recipe/millpond"
    # shellcheck disable=SC2016 # the backquotes are Markdown's
    sed -n '/^```dockerfile/,/^```/p' README.md | sed '1d;$d' >"$place/recipe/Dockerfile"
    base=$(sed -n 's/^FROM //p' "$place/recipe/Dockerfile")
    release=${base#debian:}
    # What it mounts goes with its namespace.
    unshare --mount debootstrap --variant=minbase "${release%-slim}" "$place/base" >"$place/log" ||
        { tail -n 20 "$place/log" && fail "no base image"; }
    tar -C "$place/base" -cf "$place/base.tar" --exclude './dev/*' --exclude './proc/*' --exclude './sys/*' .
    rm -rf "$place/base"
    cp "$0" "$place/container.sh"
    tests/box.sh "$place" ./container.sh --in-box "docker.io/library/$base"
    exit
fi

# The second half: root on a copy of the machine, which it may spoil.
base=$2

step() { echo "- $*"; }
equal() { [ "$2" = "$3" ] || fail "$1: $2, and not $3"; }
eventually() {
    for _ in $(seq 100); do
        if "${@:2}" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "never: $1"
}
inside() { podman exec studio "$@"; }
# As in the README. The box has no network but its own loopback, and may set no limits.
container() {
    podman run --cgroups disabled --ulimit host --network host --read-only --tmpfs /tmp --env LOG_LEVEL=debug "$@"
}
api() { curl --silent --fail --max-time 15 --header 'Authorization: Bearer sesame' "http://127.0.0.1:3000$1"; }
finish() {
    if [ "$1" != 0 ]; then podman logs studio 2>&1 | tail -n 50 || true; fi
}
trap 'finish $?' EXIT

step "a database"
postgres=$(find /usr/lib/postgresql/*/bin/postgres | sort --version-sort | tail -n 1)
postgres=${postgres%/*}
as_postgres() { runuser -u postgres -- "$@" >/dev/null; }
install -d -o postgres /tmp/db
echo secret >/tmp/password
as_postgres "$postgres/initdb" --pgdata /tmp/db --auth scram-sha-256 --pwfile /tmp/password --no-sync
as_postgres "$postgres/pg_ctl" --pgdata /tmp/db --log /tmp/db/log --wait \
    --options "-c fsync=off -c unix_socket_directories=/tmp -c listen_addresses=127.0.0.1" start
psql() { PGPASSWORD=secret "$postgres/psql" --quiet --host 127.0.0.1 --username postgres "$@"; }
url=postgresql://postgres@127.0.0.1/postgres

step "the recipe is built"
mount -t tmpfs box /var/lib/containers
podman import --quiet base.tar "$base" >/dev/null
podman build --quiet --format docker --pull=never --network host --tag millpond recipe >/dev/null

step "it refuses to serve everybody, and to start without a database"
status() { container --rm "$@" millpond >said 2>&1 && echo 0 || echo $?; }
equal "exit code" "$(status --env "DATABASE_URL=$url")" 2
grep -q API_TOKEN said || fail "no reason: $(cat said)"
equal "exit code" "$(status --env API_TOKEN=sesame)" 2
grep -q DATABASE_URL said || fail "no reason: $(cat said)"

step "it serves: as process 1, as an ordinary user, on a root that it cannot write to"
# Each connection is used once, and the password is asked for each second.
container --detach --name studio --env "DATABASE_URL=$url" --env API_TOKEN=sesame --env DB_MAX_USES=1 \
    --env DB_PASSWORD_COMMAND='sleep 0.3 & echo secret; echo expires_in=1' millpond >/dev/null
eventually "ready" api /health/ready
equal "process 1" "$(inside cat /proc/1/comm)" "millpond"
equal "user" "$(inside id -u)" "10001"
if inside touch /written 2>/dev/null; then fail "its root can be written to"; fi
inside millpond check --ready >/dev/null
podman healthcheck run studio || fail "its health check fails"
api /api/studios | grep -q "Studio A" || fail "no studios"

step "signals that mean no end do not end it"
for signal in HUP USR1 WINCH PIPE; do podman kill --signal "$signal" studio >/dev/null; done
eventually "reloaded" sh -c 'podman logs studio 2>&1 | grep -q "the settings were read again"'
podman healthcheck run studio || fail "its health check fails"

step "what the commands that print its password leave behind is reaped, at the latest with the next"
for _ in $(seq 50); do
    api /api/studios >/dev/null
    sleep 0.1
done
runs=$(podman logs studio 2>&1 | grep -c 'opened conn=')
[ "$runs" -gt 20 ] || fail "few connections: $runs"
zombies=$(inside sh -c 'grep -l "^State:.*Z" /proc/[0-9]*/status | wc -l')
[ "$zombies" -le 1 ] || fail "$zombies zombies"

step "asked to stop, it answers what it has begun, and exits with 0"
mkfifo hold
psql <hold &
exec 5>hold
echo "BEGIN; LOCK TABLE studio.studios;" >&5
holds() { psql --tuples-only --command "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'" | grep -q 1; }
eventually "the table is locked" holds
api /api/studios >answer &
asking=$!
waits() { psql --tuples-only --command "SELECT 1 FROM pg_locks WHERE NOT granted" | grep -q 1; }
eventually "a request waits" waits
podman stop --time 10 studio >/dev/null &
stopping=$!
eventually "stopping" sh -c 'podman logs studio 2>&1 | grep -q "stopping: draining"'
echo "COMMIT;" >&5
wait "$asking" || fail "a request was cut off"
grep -q "Studio A" answer || fail "a wrong answer: $(cat answer)"
wait "$stopping"
exec 5>&-
equal "exit code" "$(podman inspect --format '{{.State.ExitCode}}' studio)" 0
podman logs studio 2>&1 | grep -q 'stopped: requests_cut=0' || fail "no clean end"
