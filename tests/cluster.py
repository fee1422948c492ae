#!/usr/bin/env python3
"""A cluster to be hard on: PostgreSQL under Patroni with etcd, HAProxy and PgBouncer in front, all on loopback.

Prints one line of JSON with the ways in once it is up, then takes orders, a line each, from standard input, and answers
each with a line: "ok", or what went wrong. Ends, with all that it started, when its input does.

Needs Debian's patroni, etcd-server, haproxy, pgbouncer and postgresql.
"""

import base64
import contextlib
import glob
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

NODES = 3
# The smallest values that Patroni accepts.
TTL, LOOP_WAIT, RETRY_TIMEOUT = 20, 2, 4
AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def free_port():
    """Not one of those that the system gives to outgoing connections: what is started again needs its port once more."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        first_of_outgoing = int(f.read().split()[0])
    while True:
        port = random.randrange(10_000, first_of_outgoing)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait(what, limit, condition):
    """Waits until the condition gives something, which it may also fail to do for a while."""
    end = time.time() + limit
    while time.time() < end:
        with contextlib.suppress(Exception):
            got = condition()
            if got:
                return got
        time.sleep(0.1)
    raise RuntimeError(f"not within {limit} s: {what}")


def get(url, timeout=1):
    return urllib.request.urlopen(url, timeout=timeout).read()


def own(path):
    if AS_POSTGRES:
        shutil.chown(path, "postgres", "postgres")


class Relay:
    """A TCP relay that can be paused: it then neither accepts, nor reads, nor closes."""

    def __init__(self, to):
        self.to, self.paused, self.ended = to, False, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.ended:
            with contextlib.suppress(OSError):
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                threading.Thread(target=self.pump, args=(client, server), daemon=True).start()

    def pump(self, a, b):
        with a, b, contextlib.suppress(OSError):
            while not self.ended:
                if self.paused:
                    time.sleep(0.05)
                    continue
                for s in select.select([a, b], [], [], 0.2)[0]:
                    if self.paused:
                        break
                    data = s.recv(65536)
                    if not data:
                        return
                    (b if s is a else a).sendall(data)

    def close(self):
        self.ended = True
        self.listener.close()


class Node:
    """One PostgreSQL with its Patroni, which reaches etcd over a relay of its own."""

    def __init__(self, cluster, number):
        self.name, self.port, self.rest = f"n{number}", free_port(), free_port()
        self.relay = Relay(cluster.etcd_port)
        self.dir = os.path.join(cluster.dir, self.name)
        os.makedirs(self.dir)
        own(self.dir)
        self.patroni = None
        self.configuration = os.path.join(self.dir, "patroni.json")
        here = "127.0.0.1"
        parameters = {"wal_log_hints": "on", "max_connections": 200, "hot_standby": "on", "wal_level": "replica"}
        local = {"unix_socket_directories": self.dir, "fsync": "off", "log_connections": "off"}
        settings = {
            "scope": "lab",
            "name": self.name,
            "restapi": {"listen": f"{here}:{self.rest}", "connect_address": f"{here}:{self.rest}"},
            "etcd3": {"hosts": [f"{here}:{self.relay.port}"], "use_proxies": True},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": RETRY_TIMEOUT,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": parameters},
                },
                "initdb": [{"encoding": "UTF8"}, "data-checksums", {"auth": "trust"}],
                "pg_hba": [
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                    "local all all trust",
                ],
            },
            "postgresql": {
                "listen": f"{here}:{self.port}",
                "connect_address": f"{here}:{self.port}",
                "data_dir": os.path.join(self.dir, "data"),
                "bin_dir": sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1],
                "pgpass": os.path.join(self.dir, "pgpass"),
                "parameters": local,
                # A node whose timeline has diverged too far is copied anew.
                "remove_data_directory_on_rewind_failure": True,
                "remove_data_directory_on_diverged_timelines": True,
                "authentication": {
                    "replication": {"username": "repl"},
                    "superuser": {"username": "postgres"},
                    "rewind": {"username": "postgres"},
                },
            },
        }
        with open(self.configuration, "w") as f:
            json.dump(settings, f)

    def start(self):
        log = open(os.path.join(self.dir, "log"), "a")
        command = AS_POSTGRES + ["patroni", self.configuration]
        self.patroni = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def empty(self):
        """Takes its data away; false where something is left of them."""
        data = os.path.join(self.dir, "data")
        shutil.rmtree(data, ignore_errors=True)
        return not os.path.exists(data)

    def role(self):
        url = f"http://127.0.0.1:{self.rest}/patroni"
        with contextlib.suppress(OSError, ValueError):
            try:
                status = json.loads(get(url))
            except urllib.error.HTTPError as e:
                status = json.load(e)
            if status.get("state") == "running":
                return "leader" if status["role"] in ("master", "primary") else "standby"
        return None

    def processes(self):
        """Patroni, the postmaster, and the children of both."""
        parents = [self.patroni.pid] if self.patroni and self.patroni.poll() is None else []
        with contextlib.suppress(OSError, ValueError):
            with open(os.path.join(self.dir, "data", "postmaster.pid")) as f:
                parents.append(int(f.readline()))
        children = []
        for parent in parents:
            with contextlib.suppress(OSError):
                with open(f"/proc/{parent}/task/{parent}/children") as f:
                    children += [int(pid) for pid in f.read().split()]
        return list(dict.fromkeys(parents + children))

    def signal(self, number):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Cluster:
    def __init__(self):
        self.others, self.nodes, self.frozen, self.frozen_leader = [], [], [], None
        self.dir = tempfile.mkdtemp(prefix="millpond-cluster-")
        os.chmod(self.dir, 0o755)
        own(self.dir)

    def up(self):
        self.etcd_port, peers = free_port(), free_port()
        at, among = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{peers}"
        listen = ["--listen-client-urls", at, "--advertise-client-urls", at, "--listen-peer-urls", among]
        join = ["--initial-advertise-peer-urls", among, "--initial-cluster", f"default={among}"]
        self.run("etcd", ["etcd", "--data-dir", f"{self.dir}/etcd"] + listen + join)
        wait("etcd", 20, lambda: get(at + "/health"))
        self.nodes = [Node(self, number) for number in range(NODES)]
        self.nodes[0].start()
        wait("a leader", 60, self.leader)
        for node in self.nodes[1:]:
            node.start()
        self.calm()
        self.start_haproxy()
        self.start_pgbouncer()

    def run(self, name, command):
        log = open(os.path.join(self.dir, name + ".log"), "a")
        process = subprocess.Popen(AS_POSTGRES + command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        self.others.append(process)
        return process

    def sql(self, port, query):
        command = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-AtqX", "-c", query, "postgres"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    def start_haproxy(self):
        self.haproxy_port = free_port()
        servers = "".join(
            f"  server {n.name} 127.0.0.1:{n.port} maxconn 200 check port {n.rest}\n" for n in self.nodes
        )
        with open(f"{self.dir}/haproxy.cfg", "w") as f:
            f.write(
                "defaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  timeout connect 2s\n"
                "  timeout server 30m\n  timeout check 2s\n"
                f"listen primary\n  bind 127.0.0.1:{self.haproxy_port}\n  option httpchk OPTIONS /primary\n"
                "  http-check expect status 200\n"
                "  default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n" + servers
            )
        self.run("haproxy", ["haproxy", "-db", "-f", f"{self.dir}/haproxy.cfg"])
        # Until its first checks, HAProxy takes every server for the leader.
        on_leader = lambda _: self.sql(self.haproxy_port, "SELECT pg_is_in_recovery()") == "f"
        wait("haproxy", 15, lambda: all(map(on_leader, range(3 * NODES))))

    def start_pgbouncer(self):
        self.pgbouncer_port = free_port()
        with open(f"{self.dir}/users.txt", "w") as f:
            f.write('"postgres" ""\n')
        with open(f"{self.dir}/pgbouncer.ini", "w") as f:
            f.write(
                f"[databases]\n* = user=postgres host=127.0.0.1 port={self.haproxy_port}\n"
                f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.pgbouncer_port}\nauth_type=any\n"
                f"auth_file={self.dir}/users.txt\npool_mode=transaction\ndefault_pool_size=20\n"
                "max_client_conn=500\nserver_login_retry=1\nunix_socket_dir=\n"
                "ignore_startup_parameters=extra_float_digits,options\n"
            )
        self.run("pgbouncer", ["pgbouncer", f"{self.dir}/pgbouncer.ini"])
        wait("pgbouncer", 15, lambda: self.sql(self.pgbouncer_port, "SELECT 1") == "1")

    def leader(self):
        leaders = [node for node in self.nodes if node.role() == "leader"]
        return leaders[0] if len(leaders) == 1 else None

    def leader_but(self, old):
        return next((n for n in self.nodes if n is not old and n.role() == "leader"), None)

    def members(self):
        return json.loads(get(f"http://127.0.0.1:{self.leader().rest}/cluster"))["members"]

    # --- orders

    def calm(self):
        """One leader, and both standbys stream from it, one of them synchronously."""

        def is_calm():
            standbys = int(self.sql(self.leader().port, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))
            return standbys == NODES - 1 and any(m["role"] == "sync_standby" for m in self.members())

        try:
            wait("streaming standbys", 15, is_calm)
        except RuntimeError:
            self.forget_sync_of_another()
        else:
            return
        try:
            wait("streaming standbys", 30, is_calm)
        except RuntimeError:
            self.copy_anew()
            wait("streaming standbys", 120, is_calm)

    def copy_anew(self):
        """A former leader that Patroni rewound may wait for ever for WAL that is nowhere: what does not stream is copied anew."""
        leader = self.leader()
        streaming = self.sql(leader.port, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'").split()
        for node in self.nodes:
            if node is not leader and node.name not in streaming:
                node.signal(signal.SIGKILL)
                node.patroni.wait()
                # The server's processes need a moment to end.
                wait("an empty directory", 10, lambda node=node: node.empty())
                node.start()

    def forget_sync_of_another(self):
        """A leader that was frozen may, when it wakes, write of its standbys to etcd once more. Patroni 3.0.2 then never names
        one again: its new leader takes the entry for somebody else's. It is taken away, as an operator would."""
        key = self.etcd("range", "/service/lab/sync").get("kvs")
        if key and json.loads(base64.b64decode(key[0]["value"]))["leader"] != self.leader().name:
            self.etcd("deleterange", "/service/lab/sync")

    def etcd(self, what, key):
        body = json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()
        return json.loads(urllib.request.urlopen(f"http://127.0.0.1:{self.etcd_port}/v3/kv/{what}", body, timeout=5).read())

    def switchover(self):
        old = self.leader()
        body = json.dumps({"leader": old.name}).encode()
        url = f"http://127.0.0.1:{old.rest}/switchover"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).read()
        wait("a new leader", 60, lambda: self.leader_but(old))

    def kill_leader(self):
        old = self.leader()
        old.signal(signal.SIGKILL)
        wait("a new leader", 60, lambda: self.leader_but(old))
        old.start()

    def freeze_leader(self):
        """Until `thaw`."""
        self.frozen_leader = self.leader()
        self.frozen = self.frozen_leader.processes()
        self.frozen_leader.signal(signal.SIGSTOP)
        wait("a new leader", 60, lambda: self.leader_but(self.frozen_leader))

    def thaw(self):
        """Its server wakes as it was. Its Patroni would go on with what it knew, as the leader: lift the wait for standbys, say to
        HAProxy that it is the primary, and take writes that are lost a moment later. Where there is a watchdog, that keeps it
        from this; here it begins anew."""
        node, self.frozen_leader = self.frozen_leader, None
        node.patroni.kill()
        node.patroni.wait()
        self.wake()
        node.start()

    def wake(self):
        for pid in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []

    def cut_off_leader(self):
        """From etcd, so that its Patroni demotes it."""
        old = self.leader()
        old.relay.paused = True
        wait("a new leader", 60, lambda: self.leader_but(old))
        old.relay.paused = False

    def cancel_waits(self):
        """The synchronous standby stands still, and an operator cancels what waits for it; then the leader is killed."""
        old = self.leader()
        name = next(m["name"] for m in self.members() if m["role"] == "sync_standby")
        standby = next(n for n in self.nodes if n.name == name)
        self.frozen = standby.processes()
        standby.signal(signal.SIGSTOP)
        end = time.time() + 3
        while time.time() < end:
            waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            self.sql(old.port, waiting)
            time.sleep(0.2)
        old.signal(signal.SIGKILL)
        self.wake()
        wait("a new leader", 60, lambda: self.leader_but(old))
        old.start()

    def ways_in(self):
        hosts = ",".join(f"127.0.0.1:{n.port}" for n in self.nodes)
        return {
            "leader": f"postgresql://postgres@127.0.0.1:{self.leader().port}/postgres",
            "nodes": hosts,
            "hosts": f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write",
            "haproxy": f"postgresql://postgres@127.0.0.1:{self.haproxy_port}/postgres",
            "pgbouncer": f"postgresql://postgres@127.0.0.1:{self.pgbouncer_port}/postgres",
        }

    def tell(self):
        """What the nodes logged last."""
        for node in self.nodes:
            with open(os.path.join(node.dir, "log")) as f:
                print(f"--- {node.name}", *f.readlines()[-15:], sep="\n", file=sys.stderr)

    def close(self):
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            node.signal(signal.SIGKILL)
            node.relay.close()
        for process in self.others:
            process.kill()
            process.wait(5)
        time.sleep(0.5)
        shutil.rmtree(self.dir, ignore_errors=True)


def main():
    missing = [p for p in ("patroni", "etcd", "haproxy", "pgbouncer", "psql") if not shutil.which(p)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; apt-get install patroni etcd-server haproxy pgbouncer postgresql")
    orders = ("calm", "switchover", "kill_leader", "freeze_leader", "thaw", "cut_off_leader", "cancel_waits", "ways_in")
    # SIGTERM ends the program in the same way as the end of its input: no process is left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cluster = Cluster()
    try:
        cluster.up()
        print(json.dumps(cluster.ways_in()), flush=True)
        for line in sys.stdin:
            order = line.strip()
            try:
                if order not in orders:
                    raise RuntimeError(f"no such order; takes {', '.join(orders)}")
                done = getattr(cluster, order)()
                print("ok" if done is None else json.dumps(done), flush=True)
            except Exception as e:
                cluster.tell()
                print(f"{order}: {e!r}", flush=True)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
