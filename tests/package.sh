#!/usr/bin/env bash
# Tests the Debian package: installs it in a box (tests/box.sh), has systemd start, reload, restart
# and stop its service there, and upgrades, removes and purges it.
#   tests/package.sh [PROGRAM]
# Packages PROGRAM, or else what it builds for a release, which takes minutes.
# Needs cargo-deb, lintian, PostgreSQL, python3, and what the box needs.
set -euo pipefail

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# The first half: builds a package and its successor.
if [ "${1:-}" != --in-box ]; then
    cd "$(dirname "$0")/.."
    for program in cargo-deb dpkg-shlibdeps lintian python3; do
        command -v "$program" >/dev/null || fail "$program is missing"
    done
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    chmod 755 "$place"
    build=()
    if [ "$#" -gt 0 ]; then
        mkdir -p "$place/target/release"
        cp "$1" "$place/target/release/millpond"
        export CARGO_TARGET_DIR=$place/target
        build=(--no-build)
    fi
    cargo deb "${build[@]}" --quiet --fast --strip --output "$place/old.deb"
    cargo deb --no-build --quiet --fast --strip --deb-version 9999-1 --output "$place/new.deb"
    lintian --fail-on error,warning "$place/old.deb"

    built=$(dpkg-deb --field "$place/old.deb" Version)
    noted=$(sed -n '1s/.*(\(.*\)).*/\1/p' src/cli/assets/debian/changelog)
    [ "$noted" = "$built" ] || fail "src/cli/assets/debian/changelog is of $noted, and the package is of $built"
    cp "$0" "$place/package.sh"
    tests/box.sh "$place" ./package.sh --in-box "${built%-*}"
    exit
fi

# The second half: root on a copy of the machine, which it may spoil.
version=$2
units=(millpond.service millpond.socket)
# Images for containers forbid packages to start services.
rm -f /usr/sbin/policy-rc.d

step() { echo "- $*"; }
service() { systemctl show --property "$1" --value millpond.service; }
log() { journalctl --quiet --output cat --unit millpond.service; }
check() { millpond check --timeout-ms 15000 "$@" >/dev/null; }
equal() { [ "$2" = "$3" ] || fail "$1: $2, and not $3"; }
gone() { for path in "$@"; do [ ! -e "$path" ] || fail "$path is still there"; done; }
eventually() {
    for _ in $(seq 100); do
        if "${@:2}" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "never: $1"
}
is_said() { log | grep -qF "$1"; }
finish() {
    if [ "$1" != 0 ]; then
        systemctl status --no-pager --lines 0 "${units[@]}" || true
        log | tail -n 50
    fi
}
trap 'finish $?' EXIT
# All files of the system that have our name.
ours() { find /etc /usr /var -xdev -name '*millpond*' | sort; }

step "a database"
postgres=$(find /usr/lib/postgresql/*/bin/postgres | sort --version-sort | tail -n 1)
postgres=${postgres%/*}
as_postgres() { runuser -u postgres -- "$@" >/dev/null; }
install -d -o postgres /tmp/db
as_postgres "$postgres/initdb" --pgdata /tmp/db --auth trust --no-sync
as_postgres "$postgres/pg_ctl" --pgdata /tmp/db --log /tmp/db/log --wait \
    --options "-c fsync=off -c unix_socket_directories=/tmp -c listen_addresses=127.0.0.1" start
ours >before

step "it is installed, and neither enabled nor started"
dpkg -i old.deb >/dev/null
modes=$(stat --format '%A %U %n' /usr/bin/millpond /etc/millpond /etc/millpond/env \
    /usr/lib/systemd/system/millpond.{service,socket} \
    /usr/share/doc/millpond/{README.md,env.example,copyright,changelog.gz,changelog.Debian.gz})
equal "files" "$modes" "\
-rwxr-xr-x root /usr/bin/millpond
drwxr-xr-x root /etc/millpond
-rw------- root /etc/millpond/env
-rw-r--r-- root /usr/lib/systemd/system/millpond.service
-rw-r--r-- root /usr/lib/systemd/system/millpond.socket
-rw-r--r-- root /usr/share/doc/millpond/README.md
-rw-r--r-- root /usr/share/doc/millpond/env.example
-rw-r--r-- root /usr/share/doc/millpond/copyright
-rw-r--r-- root /usr/share/doc/millpond/changelog.gz
-rw-r--r-- root /usr/share/doc/millpond/changelog.Debian.gz"
equal "settings" "$(grep -v '^#' /etc/millpond/env | tr -d '\n')" ""
equal "version" "$(millpond --version)" "millpond $version"
for unit in "${units[@]}"; do
    equal "$unit" "$(systemctl is-enabled "$unit")" "disabled"
    equal "$unit" "$(systemctl is-active "$unit")" "inactive"
done

step "its units are those that the program prints, and systemd finds no fault with them"
millpond unit | diff - /usr/lib/systemd/system/millpond.service
millpond unit --socket | diff - /usr/lib/systemd/system/millpond.socket
for unit in "${units[@]}"; do
    equal "faults" "$(systemd-analyze verify "/usr/lib/systemd/system/$unit" 2>&1 | grep -F millpond)" ""
done
# Of 100; without protection it is 96.
exposed=$(systemd-analyze security --no-pager --offline=true --threshold=15 \
    /usr/lib/systemd/system/millpond.service) || fail "exposed: $exposed"

step "without a database, it fails at once and says why"
if systemctl start millpond 2>/dev/null; then fail "it has started"; fi
equal "state" "$(systemctl is-active millpond)" "failed"
equal "exit code, restarts" "$(service ExecMainStatus), $(service NRestarts)" "2, 0"
is_said "set DATABASE_URL" || fail "no reason"

step "with one, it starts as an ordinary user, and is healthy"
echo "DATABASE_URL=postgresql://postgres@127.0.0.1/postgres" >>/etc/millpond/env
systemctl enable --quiet --now millpond
check --live
eventually "ready" check --ready
check
equal "user" "$(ps -o user= -p "$(service MainPID)")" "millpond"
equal "privileges" "$(awk '/^(CapEff|NoNewPrivs|Seccomp):/ {printf "%s ", $2}' "/proc/$(service MainPID)/status")" \
    "0000000000000000 1 2 "
equal "status" "$(service StatusText)" "listening on http://127.0.0.1:3000"

step "it takes commands, and settings while it runs"
XDG_RUNTIME_DIR=/run/millpond millpond pause >/dev/null
XDG_RUNTIME_DIR=/run/millpond millpond resume >/dev/null
echo LOG_LEVEL=debug >/var/lib/millpond/.env
systemctl reload millpond
eventually "reloaded" is_said "the settings were read again: LOG_LEVEL changed"
rm /var/lib/millpond/.env

step "a program that is stuck is restarted"
install -d /run/systemd/system/millpond.service.d
printf '[Service]\nWatchdogSec=1\n' >/run/systemd/system/millpond.service.d/soon.conf
systemctl daemon-reload
systemctl restart millpond
kill -STOP "$(service MainPID)"
is_restarted() { [ "$(service NRestarts)" = 1 ] && [ "$(service SubState)" = running ]; }
eventually "restarted" is_restarted
check --live
rm -r /run/systemd/system/millpond.service.d
systemctl daemon-reload

step "it stops in peace"
systemctl stop millpond
equal "end" "$(service Result), $(service ExecMainStatus)" "success, 0"

step "with the socket, neither restarts nor an upgrade refuse a client"
systemctl enable --quiet --now millpond.socket
equal "service" "$(systemctl is-active millpond)" "inactive"
check --live
equal "service" "$(systemctl is-active millpond)" "active"
cat >clients.py <<'END'
# Each of ten clients asks again and again, always on a new connection, until standard input ends.
import http.client, sys, threading

answers, over = [], threading.Event()

def ask():
    while not over.is_set():
        try:
            server = http.client.HTTPConnection("127.0.0.1", 3000, timeout=20)
            server.request("GET", "/health/live")
            answers.append(server.getresponse().status)
            server.close()
        except OSError as e:
            answers.append(repr(e))

threads = [threading.Thread(target=ask) for _ in range(10)]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
wrong = [answer for answer in answers if answer != 200]
print(len(answers), "answers")
sys.exit(f"wrong: {wrong[:5]}" if wrong else 0)
END
mkfifo hold
python3 clients.py <hold >answers &
clients=$!
exec 5>hold
before=$(service MainPID)
for _ in 1 2 3; do
    sleep 0.3
    systemctl restart millpond
done
sleep 0.3
restarted=$(service MainPID)
dpkg -i new.deb >/dev/null
eventually "ready" check --ready
sleep 0.3
if [ "$before" = "$restarted" ] || [ "$restarted" = "$(service MainPID)" ]; then fail "it was not restarted"; fi
exec 5>&-
wait "$clients" || fail "a client was refused"
[ "$(sed 's/ .*//' answers)" -gt 100 ] || fail "few answers: $(cat answers)"

step "the upgrade has kept the settings, and what is enabled"
grep -q '^DATABASE_URL=' /etc/millpond/env || fail "the settings are lost"
for unit in "${units[@]}"; do equal "$unit" "$(systemctl is-enabled "$unit")" "enabled"; done

step "removed, it has stopped, and its settings are there"
dpkg -r millpond >/dev/null
for unit in "${units[@]}"; do equal "$unit" "$(systemctl is-active "$unit")" "inactive"; done
gone /usr/bin/millpond /usr/lib/systemd/system/millpond.service
grep -q '^DATABASE_URL=' /etc/millpond/env || fail "the settings are lost"

step "installed again, it works with them"
dpkg -i new.deb >/dev/null
systemctl start millpond
eventually "ready" check --ready

step "purged, nothing is left"
dpkg --purge millpond >/dev/null
gone /etc/millpond /run/millpond
ours | diff before -
if pgrep -x millpond; then fail "it still runs"; fi
