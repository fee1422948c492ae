#!/usr/bin/env bash
# Two programs on a Patroni cluster (three PostgreSQL, etcd, HAProxy, PgBouncer), while its leader is
# switched over, killed, and cut off from etcd. Prints for how long there were no writes and no
# reads. Takes about four minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
# Debian installs servers in a directory that is not in an ordinary user's PATH.
export PATH="$PATH:/usr/sbin"
for program in pgbouncer patroni etcd haproxy psql; do
    if ! command -v "$program" >/dev/null; then
        echo "$program is missing: apt-get install pgbouncer patroni etcd-server haproxy postgresql" >&2
        exit 1
    fi
done
cargo test --features lab --test suite -- patroni:: --nocapture
