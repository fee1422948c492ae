//! The pool on a Patroni cluster, through each route to its leader: the hosts' own addresses,
//! HAProxy, and PgBouncer behind HAProxy.

use super::support::SECOND;
use super::writers::{EVERY_WAY, check_all, pool_for_writers, write_during};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Instant;

/// The cluster of `tests/cluster.py`, which ends when this is dropped.
pub struct Cluster {
    process: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Cluster {
    /// Starts the cluster. Returns it with the URLs of its entry points.
    pub fn start() -> (Cluster, HashMap<String, String>) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster.py");
        let mut process = Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("its output")).lines();
        let mut cluster = Cluster {
            process,
            orders,
            answers,
        };
        let ways_in = cluster.answer();
        (cluster, serde_json::from_str(&ways_in).expect("JSON"))
    }

    fn answer(&mut self) -> String {
        let line = self.answers.next().expect("an answer of the cluster");
        line.expect("a line of text")
    }

    fn order(&mut self, what: &str) -> String {
        let orders = self.orders.as_mut().expect("its input");
        writeln!(orders, "{what}").expect("the cluster's input");
        self.answer()
    }

    /// Sends an order to the cluster, and prints how long it took.
    pub fn have(&mut self, what: &str) {
        let started = Instant::now();
        assert_eq!(self.order(what), "ok");
        println!("{what}: {:.1?}", started.elapsed());
    }

    pub fn leader(&mut self) -> String {
        let ways_in: HashMap<String, String> =
            serde_json::from_str(&self.order("ways_in")).expect("JSON");
        ways_in["leader"].clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}

#[test]
fn writers_are_told_the_truth_through_every_change_of_the_leader() {
    let (mut cluster, ways_in) = Cluster::start();
    let pools = ["hosts", "haproxy", "pgbouncer"]
        .map(|via| (via, pool_for_writers(&ways_in["leader"], &ways_in[via], 8)));
    let pools = pools.each_ref().map(|(via, pool)| (*via, pool));
    let rounds = super::torture::lasts(60 * SECOND).as_secs().div_ceil(60);
    let (told, changes) = write_during(&pools, &EVERY_WAY, 3, |_| {
        let mut changes = 0;
        for _ in 0..rounds {
            for change in [
                "switchover",
                "cut_off_leader",
                "kill_leader",
                "freeze_leader",
                "cancel_waits",
            ] {
                thread::sleep(2 * SECOND);
                cluster.have(change);
                if change == "freeze_leader" {
                    thread::sleep(SECOND);
                    cluster.have("thaw");
                }
                thread::sleep(2 * SECOND);
                cluster.have("calm");
                changes += 1;
            }
        }
        changes
    });
    let [done, refused, unknown] = check_all("cluster", &told, &cluster.leader());
    println!("{changes} changes: {done} done, {refused} refused, {unknown} unknown");
    assert!(done >= 1000, "too few to say anything");
}
