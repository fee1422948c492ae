//! What is done to private servers beyond stopping them: freezing their processes, and giving them a standby.

use super::support::admin;
use millpond::embedded::{Options, PrivateServer};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use tempfile::TempDir;

/// Sends a signal by name. False where the process is gone.
pub fn signal(pid: u32, name: &str) -> bool {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    sent.expect("kill").success()
}

/// Processes that are stopped until this is dropped.
pub struct Frozen(Vec<u32>);

impl Frozen {
    pub fn process(pid: u32) -> Frozen {
        assert!(signal(pid, "STOP"), "{pid} is gone");
        Frozen(vec![pid])
    }

    /// A postmaster and all of its children.
    pub fn tree(postmaster: u32) -> Frozen {
        assert!(signal(postmaster, "STOP"), "{postmaster} is gone");
        // Nothing is born any more; one may end by itself.
        let mut all = children(postmaster);
        all.retain(|pid| signal(*pid, "STOP"));
        all.push(postmaster);
        Frozen(all)
    }

    pub fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in self.0.drain(..) {
            // Who was killed meanwhile needs no thaw.
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
        let copied = Command::new(postgres.with_file_name("pg_basebackup"))
            .args(["-d", &primary.url(), "-R", "-c", "fast", "-D"])
            .arg(dir.path().join("pg"))
            .current_dir(dir.path())
            .uid(owner.uid())
            .gid(owner.gid())
            .output()
            .expect("pg_basebackup");
        assert!(copied.status.success(), "{copied:?}");
        let password = dir.path().join("password");
        fs::copy(primary.dir().join("password"), &password).expect("the password");
        chown(&password, Some(owner.uid()), Some(owner.gid())).expect("chown");
        let server = PrivateServer::start(Options::kept(dir.path()).setting("fsync", "off"));
        Standby {
            server: server.expect("a standby"),
            _dir: dir,
        }
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
