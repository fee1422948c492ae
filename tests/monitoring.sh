#!/usr/bin/env bash
# Tests what `millpond assets` prints. The alert rules: on written series (tests/alerts_test.yml), and on
# those of an instance that does nothing. Both files: in a real Prometheus that reads a running millpond,
# with a standby, under load and through faults.
#   tests/monitoring.sh [PROGRAM, or else target/debug/millpond]
# Needs prometheus (which brings promtool), PostgreSQL, curl and python3. Takes about a minute.
set -euo pipefail

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
step() { echo "- $*"; }
eventually() {
    local until=$((SECONDS + 30))
    while [ "$SECONDS" -lt "$until" ]; do
        if "${@:2}" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    fail "never: $1"
}

cd "$(dirname "$0")/.."
for needed in prometheus promtool curl python3; do
    command -v "$needed" >/dev/null || fail "$needed is missing: apt-get install prometheus curl python3"
done
postgres=$(find /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort --version-sort | tail -n 1)
[ -n "$postgres" ] || fail "PostgreSQL is missing: apt-get install postgresql"
postgres=${postgres%/*}
program=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug/millpond}")
[ -x "$program" ] || fail "$program is missing: cargo build"

place=$(mktemp -d)
serving=
watching=
databases=()
finish() {
    status=$1
    for process in $serving $watching; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    for name in "${databases[@]}"; do
        as_postgres "$postgres/pg_ctl" --pgdata "db/$name" --mode immediate stop >/dev/null 2>&1 || true
    done
    if [ "$status" != 0 ]; then
        tail -n 30 millpond.log prometheus.log db/*.log 2>/dev/null || true
    fi
    rm -rf "$place"
}
trap 'finish $?' EXIT
chmod 755 "$place"
cp tests/alerts_test.yml "$place"
cd "$place"
"$program" assets alerts >millpond.yml
"$program" assets grafana >grafana.json

step "the rules are well formed; each fires where it should, and nowhere else"
promtool check rules millpond.yml >checked || fail "$(cat checked)"
# A test names annotations in full. Descriptions are the same for all, and would be half of the tests.
sed '/^ *description: >-$/,/^$/d' millpond.yml >alerts.yml
if sed -n '/^ *description: >-$/,/^$/p' millpond.yml | grep -F '{{'; then
    fail "a description has a template, which no test fills in"
fi
promtool test rules alerts_test.yml >tested 2>&1 || fail "$(cat tested)"

# PostgreSQL refuses to run as root.
if [ "$(id -u)" = 0 ]; then
    as_postgres() { runuser -u postgres -- "$@"; }
    install -d -o postgres db
else
    as_postgres() { "$@"; }
    mkdir db
fi
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
start() {
    as_postgres "$postgres/pg_ctl" --pgdata "db/$1" --log "db/$1.log" --wait --options "-p $2 -c fsync=off \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=30" start >/dev/null
}
stop() { as_postgres "$postgres/pg_ctl" --pgdata "db/$1" --mode fast --wait stop >/dev/null; }
sql() { "$postgres/psql" "$database" --no-psqlrc --quiet --tuples-only --no-align --command "$1"; }

step "a primary, a standby, and a millpond that uses both"
primary=$(free_port)
database=postgresql://postgres@127.0.0.1:$primary/postgres
as_postgres "$postgres/initdb" --pgdata db/primary --username postgres --auth trust --no-sync >/dev/null
databases+=(primary)
start primary "$primary"
as_postgres "$postgres/pg_basebackup" --dbname "$database" --pgdata db/standby --write-recovery-conf --checkpoint fast --no-sync
standby=$(free_port)
databases+=(standby)
start standby "$standby"
# Few connections and short limits, so that a small fault shows.
env --ignore-environment PATH="$PATH" HOME="$place" HTTP_ADDR=127.0.0.1:0 LOG_LEVEL=info \
    DATABASE_URL="$database" DB_READ_HOSTS="127.0.0.1:$standby" DB_POOL_MAX=4 \
    DB_CONNECTION_TIMEOUT_MS=500 DB_LEAK_THRESHOLD_MS=1000 DB_FAIL_FAST_AFTER_MS=1000 \
    HTTP_REQUEST_TIMEOUT_MS=2000 "$program" 2>millpond.log &
serving=$!
is_ready() {
    url=$(sed -n 's|.*listening on \(http://[0-9.:]*\).*|\1|p' millpond.log)
    [ -n "$url" ] && curl --silent --fail "$url/health/ready"
}
eventually "millpond is ready" is_ready
reads_the_standby() { curl --silent "$url/metrics" | grep -q '^millpond_standby_state{.*state="used"} 1$'; }
eventually "reads go to the standby" reads_the_standby

step "its metrics are well formed"
curl --silent --fail "$url/metrics" >served
promtool check metrics <served >faults 2>&1 || true
# OpenTelemetry's name for it, which millpond keeps.
known='db_client_connection_count non-histogram and non-summary metrics should not have "_count" suffix'
if grep -vFx "$known" faults; then fail "promtool finds fault with the metrics"; fi

step "no rule fires on an instance that does nothing, alone or with two pools in a registry"
cat >idle.py <<'END'
# Writes a test of the rules: the metrics as they were read, which then never change.
import re

POOL = "db_client_connection_pool_name"
lines = [line for line in open("served") if not line.startswith("#")]
alerts = re.findall(r"^ *- alert: (\w+)$", open("alerts.yml").read(), re.M)

def series(instance, pool=None):
    for line in lines:
        name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)\n", line).groups()
        labels = [f'instance="{instance}"'] + ([labels] if labels else [])
        if pool and name.startswith("http_"):
            continue
        if pool:
            labels = [re.sub(f',?{POOL}="[^"]*",?', "", label) for label in labels] + [f'{POOL}="{pool}"']
        yield f"{name}{{{','.join(filter(None, labels))}}}", value

with open("idle_test.yml", "w") as test:
    print("rule_files: [alerts.yml]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:", file=test)
    for name, value in [*series("a"), *series("b", "web"), *series("b", "jobs")]:
        name = name.replace("'", "''")
        print(f"      - {{series: '{name}', values: '{value}+0x80'}}", file=test)
    print("    alert_rule_test:", file=test)
    for alert in alerts:
        for minute in (1, 6, 20, 75):
            print(f"      - {{eval_time: {minute}m, alertname: {alert}}}", file=test)
END
python3 idle.py
promtool test rules idle_test.yml >tested 2>&1 || fail "$(cat tested)"

step "Prometheus reads it"
cat >prometheus.yml <<END
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [millpond.yml]
scrape_configs:
  - {job_name: millpond, static_configs: [{targets: ["${url#http://}"]}]}
END
prometheus --config.file=prometheus.yml --storage.tsdb.path=tsdb --web.listen-address=127.0.0.1:0 2>prometheus.log &
watching=$!
cat >ask.py <<'END'
# ask.py ADDRESS has EXPRESSION: fails unless Prometheus has something for it.
# ask.py ADDRESS all: fails unless every rule works, there is a series for every selector of the rules,
# and a value for every query of the dashboard.
import json, re, sys, time, urllib.parse, urllib.request

def get(path, **parameters):
    url = f"http://{sys.argv[1]}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        answer = urllib.request.urlopen(url, timeout=10)
    except urllib.error.HTTPError as refused:
        sys.exit(f"{parameters}: {refused.read().decode()}")
    return json.load(answer)["data"]

if sys.argv[2] == "has":
    sys.exit(not get("query", query=sys.argv[3])["result"])

wrong = []
rules = [rule for group in get("rules")["groups"] for rule in group["rules"]]
for rule in rules:
    if rule["health"] != "ok":
        wrong.append(f"{rule['name']}: {rule.get('lastError', rule['health'])}")
    for selector in re.findall(r"\b(?:millpond|db_client|http_server)_\w+\b(?: ?\{[^}]*\})?", rule["query"]):
        if not get("query", query=f"count({selector})")["result"] and not selector.startswith("db_client_connection_state"):
            wrong.append(f"{rule['name']}: there is no {selector}")

dashboard = json.load(open("grafana.json"))
panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
now, queries = time.time(), 0
for panel in panels:
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".+")
        found = get("query_range", query=query, start=now - 60, end=now, step=1)["result"]
        if all(value == "NaN" for series in found for _, value in series["values"]):
            wrong.append(f"{panel['title']}: no value for {query}")
        queries += 1
print(f"  {len(rules)} rules, {queries} queries of {len(panels)} panels")
sys.exit("\n".join(wrong) or None)
END
prometheus_listens() {
    watched=$(sed -n 's|.*msg="Listening on" address=\(127[0-9.:]*\).*|\1|p' prometheus.log)
    [ -n "$watched" ]
}
eventually "Prometheus listens" prometheus_listens
has() { python3 ask.py "$watched" has "$1"; }
eventually "it has read the metrics" has 'millpond_build_info'

step "under load, no alert fires"
get_many() { curl --silent --output /dev/null --parallel --parallel-max 8 "$url/api/studios?limit=[1-$1]" 2>/dev/null; }
# So many reservations of a day at the same moment.
post() {
    curl --silent --output /dev/null --parallel --parallel-immediate --header 'Content-Type: application/json' \
        --data "{\"studioId\":1,\"customer\":\"Ada\",\"startsAt\":\"2030-01-$1T10:00:00Z\",\"endsAt\":\"2030-01-$1T11:00:00Z\"}" \
        "$url/api/reservations#[1-$2]" 2>/dev/null || true
}
for day in $(seq -w 10); do post "$day" 1; done
for _ in $(seq 5); do
    get_many 200
    sleep 0.3
done
if has 'ALERTS{alertstate="firing"}'; then fail "an alert fires"; fi

lock() {
    sql "BEGIN; LOCK TABLE studio.studios; SELECT pg_sleep(60)" >/dev/null 2>&1 &
    locker=$!
    # It fails as long as there is none.
    eventually "the table is locked" sql "SELECT 1 / count(*) FROM pg_locks
        WHERE relation = 'studio.studios'::regclass AND mode = 'AccessExclusiveLock' AND granted"
}
unlock() {
    sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK %'" >/dev/null
    wait "$locker" || true
}

step "a lock: threads wait, and some get no connection in time"
lock
post 11 20
unlock
eventually "the timeouts are reported" has 'ALERTS{alertname="MillpondCheckoutTimeouts", alertstate="firing"}'

step "a connection that is cut in the middle of a statement: the call is retried"
lock
post 12 1 &
posting=$!
eventually "a statement waits for the lock" sql "SELECT 1 / count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'" >/dev/null
unlock
wait "$posting"

step "an outage, of both servers"
stop standby
eventually "the standby's absence is noticed" has 'ALERTS{alertname="MillpondStandbyOutOfUse", host="127.0.0.1:'"$standby"'"}'
stop primary
post 13 1
for alert in MillpondDatabaseDown MillpondFailingFast; do
    eventually "$alert is noticed" has "ALERTS{alertname=\"$alert\"}"
done
start primary "$primary"
start standby "$standby"
eventually "the database answers again" has 'millpond_probe_up == 1'
eventually "reads go to the standby again" has 'millpond_standby_state{state="used"} == 1'
for alert in MillpondDatabaseDown MillpondFailingFast MillpondStandbyOutOfUse; do
    eventually "$alert ends" has "absent(ALERTS{alertname=\"$alert\"})"
done
get_many 100

step "the faults are in the metrics"
for trace in db_client_connection_timeouts_total millpond_leaks_total 'sum(millpond_connect_failures_total)' \
    'sum(millpond_retries_total)' 'sum(millpond_connections_closed_total{reason=~"broken|failed_over"})' \
    'sum(millpond_line_wait_seconds_count{outcome="timeout"})' 'sum(millpond_statement_failures_total)' \
    'sum(millpond_reads_total{server="standby"})'; do
    eventually "$trace grows" has "$trace > 0"
done

step "every rule works, and every query of the dashboard has a value"
python3 ask.py "$watched" all || fail "see above"

step "it stops in peace"
kill "$serving"
wait "$serving" || fail "it ended with $?"
serving=
