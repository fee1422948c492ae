//! TLS to the server: as libpq does it, with psql beside us in each case.

use super::authority::{Authority, Files};
use super::proxy::Proxy;
use super::servers::signal;
use super::support::{MS, SECOND, database, eventually, over_tls, programs_in_use, server};
use super::terminator::{REQUEST, terminate_for};
use millpond::embedded::PrivateServer;
use millpond::error::Chain;
use millpond::{Pool, RetryPolicy};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

/// A server with this certificate and these rules of access.
fn with_tls(
    files: &Files,
    rules: &str,
    more: &[(&str, &str)],
) -> (PrivateServer, tempfile::NamedTempFile) {
    let mut hba = tempfile::Builder::new().prefix("hba-").tempfile().unwrap();
    writeln!(hba, "{rules}").unwrap();
    let path = hba.path().display().to_string();
    open(hba.path());
    let own = files.settings();
    let mut settings: Vec<_> = own
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    settings.push(("hba_file", &path));
    settings.extend(more);
    let server = server(&settings);
    (server, hba)
}

/// Gives the server another certificate and other rules of access.
fn change(server: &PrivateServer, own: &Files, hba: &Path, files: &Files, rules: &str) {
    // The files keep their owner and their mode.
    std::fs::write(&own.certificate, std::fs::read(&files.certificate).unwrap()).unwrap();
    std::fs::write(&own.key, std::fs::read(&files.key).unwrap()).unwrap();
    std::fs::write(hba, format!("{rules}\n")).unwrap();
    // A connection that comes after this line is taken when the files have been read.
    let times = || server.log().matches("received SIGHUP").count();
    let before = times();
    signal(server.pid().unwrap(), "HUP");
    eventually("the server reads its files again", || times() > before);
}

fn open(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

/// A database as `key=value` string, for both of us.
fn conninfo(server: &PrivateServer, host: &str, port: u16, more: &str) -> String {
    let url = server.url();
    let (user, rest) = url
        .strip_prefix("postgresql://")
        .unwrap()
        .split_once(':')
        .unwrap();
    let (password, _) = rest.split_once('@').unwrap();
    format!(
        "host={host} port={port} user={user} password={password} dbname=postgres connect_timeout=10 {more}"
    )
}

const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Whether psql's connection is encrypted, or what it says.
fn by_psql(conninfo: &str) -> Result<bool, String> {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(programs_in_use().join("psql"))
        .args(["-X", "-A", "-t", "-c", ENCRYPTED, conninfo])
        .env_clear()
        .env("HOME", home.path())
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim() == "t"),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn by_us(conninfo: &str) -> Result<bool, String> {
    let pool = pool(conninfo).map_err(|e| e.to_string())?;
    let found = pool.query(ENCRYPTED, &[]);
    found
        .map(|rows| rows[0].get(0))
        .map_err(|e| Chain(&e).to_string())
}

fn pool(conninfo: &str) -> Result<Pool, millpond::BuildError> {
    Pool::builder()
        .database_url(conninfo)
        .connection_timeout(10 * SECOND)
        .max_size(1)
        .min_idle(0)
        .retry_policy(RetryPolicy::none())
        .build()
}

const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Tries every mode, with and without the authority's file, by psql and by us.
#[track_caller]
fn as_psql_does(
    what: &str,
    server: &PrivateServer,
    (host, port): (&str, u16),
    root: &Path,
    more: &str,
) -> Vec<String> {
    let mut table = Vec::new();
    for mode in MODES {
        for root in [Some(root), None] {
            let root = root.map_or_else(String::new, |root| {
                format!("sslrootcert={}", root.display())
            });
            let text = conninfo(server, host, port, &format!("sslmode={mode} {root} {more}"));
            let (theirs, ours) = (by_psql(&text), by_us(&text));
            let shown = |result: &Result<bool, String>| match result {
                Ok(true) => "encrypted",
                Ok(false) => "plain",
                Err(_) => "refused",
            };
            assert_eq!(
                shown(&ours),
                shown(&theirs),
                "{what}, sslmode={mode} {root}:\nwe: {ours:?}\npsql: {theirs:?}"
            );
            let root = if root.is_empty() { "" } else { "+root" };
            table.push(format!("{mode}{root}: {}", shown(&ours)));
        }
    }
    table
}

#[test]
fn in_the_mode_of_the_harness_pools_are_encrypted_also_through_the_proxy() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    for url in [&db.url, &proxy.url(&db.url)] {
        let pool = super::support::pool(url).build().unwrap();
        assert!(pool.query("SELECT 1", &[]).is_ok());
        let session = pool.get().unwrap();
        drop(session);
        if url == &db.url {
            let encrypted: bool = pool.query(ENCRYPTED, &[]).unwrap()[0].get(0);
            assert_eq!(encrypted, over_tls().is_some());
        }
    }
    assert_eq!(proxy.encrypted() > 0, over_tls().is_some());
}

const ANY: &str = "host all all all scram-sha-256";
const LOCAL: &str = "DNS:localhost,IP:127.0.0.1";

#[test]
fn every_mode_does_what_it_does_in_libpq() {
    let authority = Authority::new("the tests' authority");
    let other = Authority::new("another authority");
    let root = authority.root();
    let good = authority
        .issue("good", "localhost", LOCAL, "30")
        .for_the_server();
    let (tls, hba) = with_tls(&good, ANY, &[]);
    let own = good.clone();
    let local = ("localhost", tls.port());
    let table = as_psql_does("a good certificate", &tls, local, &root, "");
    assert_eq!(
        table
            .iter()
            .filter(|line| line.ends_with("encrypted"))
            .count(),
        6
    );
    // By its address, too.
    as_psql_does("an address", &tls, ("127.0.0.1", tls.port()), &root, "");
    // The same certificate, but the authority is another.
    as_psql_does("another authority", &tls, local, &other.root(), "");
    as_psql_does(
        "an old client",
        &tls,
        local,
        &root,
        "ssl_max_protocol_version=TLSv1.2",
    );
    as_psql_does("no server name", &tls, local, &root, "sslsni=0");
    as_psql_does(
        "a missing file of roots",
        &tls,
        local,
        Path::new("/does/not/exist"),
        "",
    );

    for (what, files) in [
        (
            "another name",
            authority.issue("other-name", "db.example", "DNS:db.example", "30"),
        ),
        (
            "a common name only",
            authority.issue("cn", "localhost", "", "30"),
        ),
        (
            "another name in the alternatives",
            authority.issue("cn-dns", "localhost", "DNS:db.example", "30"),
        ),
        (
            "an address beside the common name",
            authority.issue("cn-ip", "localhost", "IP:127.0.0.9", "30"),
        ),
        (
            "an expired certificate",
            authority.issue("expired", "localhost", LOCAL, "-1"),
        ),
        (
            "a certificate that signed itself",
            authority.sign_itself("itself", "localhost"),
        ),
    ] {
        change(&tls, &own, hba.path(), &files, ANY);
        as_psql_does(what, &tls, local, &root, "");
        if what.contains("itself") {
            as_psql_does("its own root", &tls, local, &files.certificate, "");
        }
    }

    let plain = server(&[]);
    as_psql_does(
        "a server without TLS",
        &plain,
        ("localhost", plain.port()),
        &root,
        "",
    );

    let rules = [
        (
            "only encrypted ones are let in",
            "hostssl all all all scram-sha-256",
        ),
        (
            "only plain ones are let in",
            "hostnossl all all all scram-sha-256",
        ),
        ("nobody is let in", "host all nobody all scram-sha-256"),
    ];
    let again = authority.issue("again", "localhost", LOCAL, "30");
    for (what, rules) in rules {
        change(&tls, &own, hba.path(), &again, rules);
        as_psql_does(what, &tls, local, &root, "");
    }
}

/// What a man in the middle sees of each connection, and what he answers to the request for TLS.
#[derive(Clone, Copy)]
enum Answer {
    /// The server's.
    Theirs,
    No,
    /// Yes, with bytes of his own behind it.
    YesAndMore,
}

/// Relays to a port. Returns its own port, and what the clients sent, one entry for each
/// connection.
fn man_in_the_middle(upstream: u16, answer: Answer) -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let log = Arc::clone(&seen);
    thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let Ok(mut client) = client else { return };
            log.lock().unwrap().push(Vec::new());
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let log = Arc::clone(&log);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    let bytes = &buffer[..count];
                    log.lock().unwrap()[number].extend_from_slice(bytes);
                    let said: &[u8] = match answer {
                        _ if bytes != REQUEST => b"",
                        Answer::Theirs => b"",
                        Answer::No => b"N",
                        Answer::YesAndMore => b"SR\0\0\0\x08\0\0\0\0",
                    };
                    let passed = if said.is_empty() {
                        to.write_all(bytes)
                    } else {
                        from.write_all(said)
                    };
                    if passed.is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    (port, seen)
}

#[test]
fn a_man_in_the_middle_gets_as_far_as_with_libpq() {
    let authority = Authority::new("the tests' authority");
    let good = authority
        .issue("good", "localhost", LOCAL, "30")
        .for_the_server();
    let (server, _hba) = with_tls(&good, ANY, &[]);
    let (port, _) = man_in_the_middle(server.port(), Answer::No);
    let table = as_psql_does(
        "he answers no",
        &server,
        ("localhost", port),
        &authority.root(),
        "",
    );
    assert!(
        !table.iter().any(|line| line.ends_with("encrypted")),
        "{table:?}"
    );
    let (port, _) = man_in_the_middle(server.port(), Answer::YesAndMore);
    as_psql_does(
        "he adds something",
        &server,
        ("localhost", port),
        &authority.root(),
        "",
    );
}

#[test]
fn a_client_certificate_counts_as_it_does_in_libpq() {
    let authority = Authority::new("the tests' authority");
    let root = authority.root();
    let good = authority
        .issue("good", "localhost", LOCAL, "30")
        .for_the_server();
    let ca = root.display().to_string();
    let rules = "hostssl all all all cert";
    let (server, _hba) = with_tls(&good, rules, &[("ssl_ca_file", &ca)]);
    let local = ("localhost", server.port());
    let user = server.url()["postgresql://".len()..]
        .split(':')
        .next()
        .unwrap()
        .to_owned();
    let ours = authority.issue("client", &user, "", "30");
    let files = |files: &Files| {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        format!("sslcert={certificate} sslkey={key}")
    };
    let table = as_psql_does("our certificate", &server, local, &root, &files(&ours));
    assert!(
        table.contains(&"verify-full+root: encrypted".to_owned()),
        "{table:?}"
    );
    as_psql_does("none", &server, local, &root, "");
    as_psql_does(
        "not sent",
        &server,
        local,
        &root,
        &format!("{} ", files(&ours).replace("sslcert=", "sslcert=/no")),
    );
    let other = Authority::new("another authority").issue("client", &user, "", "30");
    as_psql_does("another authority's", &server, local, &root, &files(&other));
    let theirs = authority.issue("else", "somebody else", "", "30");
    as_psql_does("another user's", &server, local, &root, &files(&theirs));
    let keyless = Files {
        key: "/no/such.key".into(),
        ..ours.clone()
    };
    as_psql_does("without its key", &server, local, &root, &files(&keyless));
    open(&ours.key);
    as_psql_does(
        "a key that others may read",
        &server,
        local,
        &root,
        &files(&ours),
    );
    let text = conninfo(
        &server,
        "localhost",
        server.port(),
        &format!("sslmode=require {}", files(&ours)),
    );
    let said = by_us(&text).unwrap_err();
    assert!(said.contains("0600"), "{said}");
}

#[test]
fn channel_binding_is_used_and_can_be_demanded() {
    let authority = Authority::new("the tests' authority");
    let good = authority
        .issue("good", "localhost", LOCAL, "30")
        .for_the_server();
    let (tls, _hba) = with_tls(&good, ANY, &[]);
    let plain = server(&[]);
    let (trusting, _hba) = with_tls(&good, "host all all all trust", &[]);
    for binding in ["disable", "prefer", "require"] {
        for (what, server) in [
            ("TLS", &tls),
            ("no TLS", &plain),
            ("no password", &trusting),
        ] {
            let more = format!("channel_binding={binding}");
            as_psql_does(
                &format!("{what}, {more}"),
                server,
                ("localhost", server.port()),
                &authority.root(),
                &more,
            );
        }
    }
}

/// A server that ends TLS in front of another, and begins it at once where a client does.
fn in_front(upstream: u16, files: &Files, protocols: &'static [&'static [u8]]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let files = files.clone();
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(client) = terminate_for(client, &files, protocols) else {
                continue;
            };
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).unwrap();
            copy(client.try_clone().unwrap(), server.try_clone().unwrap());
            copy(server, client);
        }
    });
    port
}

/// psql knows this since version 17, and refuses what is refused here.
#[test]
fn a_handshake_that_begins_at_once_is_with_a_server_that_says_it_is_postgresql() {
    let authority = Authority::new("the tests' authority");
    let files = authority.issue("good", "localhost", LOCAL, "30");
    let server = server(&[]);
    let protocols: [(&[&[u8]], _); 3] = [
        (&[b"postgresql"], Ok(false)),
        (&[], Err("does not speak PostgreSQL")),
        (&[b"http/1.1"], Err("does not speak PostgreSQL")),
    ];
    for (protocols, expected) in protocols {
        let port = in_front(server.port(), &files, protocols);
        let more = format!(
            "sslnegotiation=direct sslmode=verify-full sslrootcert={}",
            authority.root().display()
        );
        // The server itself sees a plain connection.
        let found = by_us(&conninfo(&server, "localhost", port, &more));
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected),
            (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
            _ => panic!("{protocols:?}: {found:?}"),
        }
    }
}

#[test]
fn a_cancel_request_is_encrypted_and_the_connection_stays() {
    let authority = Authority::new("the tests' authority");
    let good = authority
        .issue("good", "localhost", LOCAL, "30")
        .for_the_server();
    let (server, _hba) = with_tls(&good, ANY, &[]);
    let (port, seen) = man_in_the_middle(server.port(), Answer::Theirs);
    let text = conninfo(
        &server,
        "localhost",
        port,
        &format!(
            "sslmode=verify-full sslrootcert={}",
            authority.root().display()
        ),
    );
    let pool = Pool::builder()
        .database_url(&text)
        .max_size(1)
        .min_idle(0)
        .statement_timeout(std::time::Duration::ZERO)
        .query_timeout(300 * MS)
        .build()
        .unwrap();
    let error = pool.execute("SELECT pg_sleep(30)", &[]).unwrap_err();
    assert!(
        matches!(error, millpond::Error::QueryTimeout { .. }),
        "{error:?}"
    );
    // A borrowed one, by its own token.
    let mut borrowed = pool.get().unwrap();
    let token = borrowed.cancel_token();
    let canceller = thread::spawn(move || {
        thread::sleep(200 * MS);
        token.cancel_query(millpond::postgres::NoTls)
    });
    let error = borrowed.batch_execute("SELECT pg_sleep(30)").unwrap_err();
    assert_eq!(
        error.code(),
        Some(&millpond::postgres::error::SqlState::QUERY_CANCELED)
    );
    canceller.join().unwrap().unwrap();
    drop(borrowed);
    eventually("it was kept", || {
        let stats = pool.stats();
        (stats.total, stats.idle) == (1, 1)
    });
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 3, "{} connections", seen.len());
    // One that is opened beside another may be cut before it has said much.
    for bytes in seen.iter().filter(|bytes| bytes.len() >= 16) {
        assert_eq!(bytes[..8], REQUEST);
        // Nothing but records of TLS follows.
        assert!(bytes[8] == 22 && bytes[9] == 3, "{:?}", &bytes[8..16]);
        let code = 80_877_102_u32.to_be_bytes();
        assert!(
            !bytes.windows(4).any(|w| w == code),
            "a cancel request in the clear"
        );
    }
}

#[test]
fn only_an_authority_in_force_may_issue_certificates() {
    const CA: &str = "basicConstraints=critical,CA:TRUE";
    let first = Authority::new("the first");
    let own = first
        .issue("own", "localhost", LOCAL, "30")
        .for_the_server();
    let (server, hba) = with_tls(&own, ANY, &[]);
    for (what, extensions, days, is_good) in [
        ("a good one", CA, "30", true),
        ("of the first version", "", "30", true),
        ("expired", CA, "-1", false),
        ("no authority", "basicConstraints=CA:FALSE", "30", false),
        ("nothing said", "subjectAltName=DNS:odd", "30", false),
        (
            "not for certificates",
            "basicConstraints=CA:TRUE\nkeyUsage=digitalSignature",
            "30",
            false,
        ),
    ] {
        let odd = Authority::odd(extensions, days);
        let files = odd.issue("odd", "localhost", LOCAL, "30");
        change(&server, &own, hba.path(), &files, ANY);
        let root = odd.root().display().to_string();
        let more = format!("sslmode=verify-full sslrootcert={root}");
        let text = conninfo(&server, "localhost", server.port(), &more);
        let (theirs, ours) = (by_psql(&text), by_us(&text));
        assert_eq!(theirs.is_ok(), is_good, "{what}: {theirs:?}");
        assert_eq!(ours.is_ok(), is_good, "{what}: {ours:?}");
    }
}
