//! A program and a database with nothing amiss, for the tests of the rules.

use super::facts::{
    Encryption, Facts, Limits, Oldest, Plan, ReadHost, Rights, Sessions, Settings, Standbys,
};
use super::finding::{Finding, Level};
use millpond::config::{Pooler, SslMode};
use millpond::for_cli::Endpoint;
use millpond::pool::StandbyState;
use std::time::Duration;

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn plan() -> Plan {
    Plan {
        instances: 1,
        max_size: 20,
        min_idle: 2,
        fleet_max: 0,
        pooler: Pooler::Auto,
        ssl_mode: SslMode::VerifyFull,
        statement_timeout: Some(5 * SECOND),
        query_timeout: Some(5 * SECOND),
        idle_timeout: Some(30 * SECOND),
        max_lifetime: Some(1800 * SECOND),
        studio: true,
        ledger_schema: "studio".into(),
    }
}

pub(super) fn facts() -> Facts {
    let settings = [
        ("server_version", "17.2 (Debian 17.2-1)"),
        ("server_version_num", "170002"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("TimeZone", "Etc/UTC"),
        ("max_connections", "100"),
        ("superuser_reserved_connections", "3"),
        ("reserved_connections", "0"),
        ("statement_timeout", "5000"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("synchronous_standby_names", ""),
        ("default_transaction_read_only", "off"),
        ("tcp_keepalives_idle", "7200"),
    ];
    let settings =
        settings.map(|(name, value)| (name.to_owned(), (value.to_owned(), "default".to_owned())));
    Facts {
        endpoint: Endpoint {
            place: "10.0.0.5:5432".into(),
            is_local: false,
            is_encrypted: true,
            is_verified: true,
            is_pooled: false,
            asked_for: "any",
        },
        read_hosts: vec![ReadHost {
            host: "db2".into(),
            state: StandbyState::Used,
            lag: Some(SECOND / 4),
            error: None,
            room: Some(97),
        }],
        round_trip: SECOND / 1000,
        standby: false,
        settings: Settings(settings.into()),
        sessions: Some(Sessions::default()),
        limits: Some(Limits {
            role: "app".into(),
            role_limit: None,
            database: "shop".into(),
            database_limit: None,
            superuser: false,
        }),
        encryption: Some(Encryption {
            version: "TLSv1.3".into(),
            cipher: "TLS_AES_256_GCM_SHA384".into(),
        }),
        rights: Some(Rights {
            may_create_schemas: true,
            may_create_temporary_tables: true,
            schema: None,
            may_resolve_commits: true,
        }),
        tables: Some(Vec::new()),
        standbys: Some(Standbys::default()),
        clock: Some((0.01, 0.001)),
        oldest: Some(Oldest {
            database: "shop".into(),
            age: 1000,
            multixact_age: 1,
        }),
        unknown: Vec::new(),
    }
}

pub(super) fn set(facts: &mut Facts, name: &str, value: &str) {
    let setting = (value.to_owned(), "configuration file".to_owned());
    facts.settings.0.insert(name.to_owned(), setting);
}

/// The worst level, and all texts.
pub(super) fn said(found: &[Finding]) -> (Level, String) {
    let level = |level| found.iter().any(|finding| finding.level == level);
    let worst = match () {
        () if level(Level::Wrong) => Level::Wrong,
        () if level(Level::Note) => Level::Note,
        () => Level::Ok,
    };
    let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
    (worst, texts.join("\n"))
}

/// The rule finds this, in these words.
#[track_caller]
pub(super) fn finds(found: &[Finding], level: Level, words: &[&str]) {
    let (worst, text) = said(found);
    assert_eq!(worst, level, "{text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}
