//! Faults of private servers other than a stop: freezing their processes, and giving them a
//! standby.

use super::support::{admin, eventually};
use millpond::embedded::{Options, PrivateServer};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use tempfile::TempDir;

/// Sends a signal by name. False if the process is gone.
pub fn signal(pid: u32, name: &str) -> bool {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    sent.expect("kill").success()
}

/// Processes that stay stopped until this is dropped.
pub struct Frozen(Vec<u32>);

impl Frozen {
    pub fn process(pid: u32) -> Frozen {
        assert!(signal(pid, "STOP"), "{pid} is gone");
        Frozen(vec![pid])
    }

    /// Stops a postmaster and all of its children.
    pub fn tree(postmaster: u32) -> Frozen {
        assert!(signal(postmaster, "STOP"), "{postmaster} is gone");
        let is_stopped = || {
            let stat = fs::read_to_string(format!("/proc/{postmaster}/stat"));
            stat.is_ok_and(|stat| stat.contains(") T "))
        };
        eventually("the postmaster is stopped", is_stopped);
        // A stopped postmaster starts no more children. The list of them may leave one out while
        // another one ends.
        let mut all = Vec::new();
        loop {
            let mut new = children(postmaster);
            new.retain(|pid| !all.contains(pid) && signal(*pid, "STOP"));
            if new.is_empty() {
                break;
            }
            all.append(&mut new);
        }
        all.push(postmaster);
        Frozen(all)
    }

    pub fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in self.0.drain(..) {
            // Fails if the process was killed in the meantime.
            let _ = signal(pid, "CONT");
        }
    }
}

fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).expect("the children of a process");
    text.split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

/// A streaming standby of a server.
pub struct Standby {
    pub server: PrivateServer,
    _dir: TempDir,
}

impl Standby {
    pub fn of(primary: &PrivateServer) -> Standby {
        let dir = TempDir::new().expect("a directory");
        let owner = fs::metadata(primary.dir()).expect("the primary's directory");
        chown(dir.path(), Some(owner.uid()), Some(owner.gid())).expect("chown");
        let pid = primary.pid().expect("a running primary");
        let postgres = fs::read_link(format!("/proc/{pid}/exe")).expect("the server's program");
        let run = |program: &std::ffi::OsStr, arguments: &[&str]| {
            let done = Command::new(program)
                .args(arguments)
                .current_dir(dir.path())
                .uid(owner.uid())
                .gid(owner.gid())
                .output();
            let done = done.expect("a program");
            assert!(done.status.success(), "{done:?}");
        };
        let copy = dir.path().join("pg");
        let copy = copy.to_str().expect("a path in UTF-8");
        let basebackup = postgres.with_file_name("pg_basebackup");
        if basebackup.exists() {
            let url = primary.url();
            let arguments = ["-d", &url, "-R", "-c", "fast", "-D", copy];
            run(basebackup.as_os_str(), &arguments);
        } else {
            // The steps of pg_basebackup, by hand: some distributions package the server without
            // it.
            let mut admin = admin(&primary.url());
            let version: String = admin
                .query_one("SELECT current_setting('server_version_num')", &[])
                .expect("a version")
                .get(0);
            let (start, stop) = match version.as_str() < "150000" {
                true => (
                    "pg_start_backup('copy', true, false)",
                    "pg_stop_backup(false)",
                ),
                false => ("pg_backup_start('copy', true)", "pg_backup_stop()"),
            };
            admin.query(&format!("SELECT {start}"), &[]).expect(start);
            let data = primary.dir().join("pg");
            run("cp".as_ref(), &["-a", data.to_str().expect("UTF-8"), copy]);
            let label: String = admin
                .query_one(&format!("SELECT labelfile FROM {stop}"), &[])
                .expect(stop)
                .get(0);
            let in_copy = |name: &str| std::path::Path::new(copy).join(name);
            fs::remove_file(in_copy("postmaster.pid")).expect("its lock");
            fs::write(in_copy("backup_label"), label).expect("backup_label");
            fs::write(in_copy("standby.signal"), "").expect("standby.signal");
            let conninfo = format!("primary_conninfo = '{}'\n", primary.url());
            let mut settings = fs::OpenOptions::new()
                .append(true)
                .open(in_copy("postgresql.auto.conf"))
                .expect("its settings");
            settings
                .write_all(conninfo.as_bytes())
                .expect("its settings");
            for name in ["backup_label", "standby.signal"] {
                chown(in_copy(name), Some(owner.uid()), Some(owner.gid())).expect("chown");
            }
        }
        let password = dir.path().join("password");
        fs::copy(primary.dir().join("password"), &password).expect("the password");
        chown(&password, Some(owner.uid()), Some(owner.gid())).expect("chown");
        let options = Options::kept(dir.path()).bin_dir(super::support::programs());
        let server = PrivateServer::start(options.setting("fsync", "off")).expect("a standby");
        let mut there = admin(&server.url());
        // Until then, a new password at the primary would shut it out for good.
        eventually("it streams", || {
            let streams = "SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'";
            !there.query(streams, &[]).expect(streams).is_empty()
        });
        Standby { server, _dir: dir }
    }

    pub fn promote(&self) {
        let promoted = admin(&self.server.url()).query_one("SELECT pg_promote(true, 60)", &[]);
        assert!(promoted.expect("pg_promote").get::<_, bool>(0));
    }
}

/// Makes commits on the primary wait for its standby.
pub fn replicate_synchronously(primary: &PrivateServer) {
    let mut admin = admin(&primary.url());
    admin
        .batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        .expect("ALTER SYSTEM");
    admin
        .batch_execute("SELECT pg_reload_conf()")
        .expect("pg_reload_conf");
    super::support::eventually("the standby is synchronous", || {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        admin.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1
    });
}
