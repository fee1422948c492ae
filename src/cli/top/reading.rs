//! What a server answers to `GET /api/metrics/live`: its version 1. Fields that are added later are
//! not looked at.

use super::text::Text;
use serde::Deserialize;

/// The version that is read here.
pub(super) const VERSION: u64 = 1;

/// Of any version.
#[derive(Deserialize)]
pub(super) struct Versioned {
    pub version: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reading {
    pub timestamp: Text,
    pub started_at: Text,
    pub sequence: u64,
    pub application: Text,
    pub release: Text,
    pub state: State,
    pub pool: Counts,
    pub server: Option<Server>,
    #[serde(default)]
    pub standbys: Vec<Standby>,
    pub history: Samples,
    #[serde(default)]
    pub holders: Vec<Holder>,
    #[serde(default)]
    pub statements: Statements,
    /// Texts of statements are shown only to those who have a token.
    #[serde(default)]
    pub texts_hidden: bool,
    #[serde(default)]
    pub events: Vec<Event>,
    #[serde(default)]
    pub advice: Vec<Advice>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct State {
    pub name: Text,
    pub healthy: bool,
    pub sentence: Text,
}

/// The connections of a pool, by what they do, and the threads that wait for one.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Counts {
    pub idle: u64,
    pub active: u64,
    pub opening: u64,
    pub waiting: u64,
    pub max: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Server {
    pub max_connections: u64,
    pub used_connections: u64,
    pub available_connections: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Standby {
    pub host: Text,
    pub state: Text,
    pub lag_ms: Option<f64>,
    pub error: Option<Text>,
    #[serde(default)]
    pub pool: Counts,
}

/// A row for each step since the start; `fields` says what stands where in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Samples {
    pub step_ms: u64,
    pub first: u64,
    pub fields: Vec<String>,
    pub samples: Vec<Vec<Option<f64>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Holder {
    pub connection: u64,
    pub place: Text,
    pub thread: Text,
    pub held_ms: f64,
    pub statement: Option<Text>,
    #[serde(default)]
    pub running: bool,
    pub statement_ms: Option<f64>,
    #[serde(default)]
    pub leaked: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Statements {
    pub minutes: u64,
    pub list: Vec<Statement>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Statement {
    pub sql: Text,
    pub count: u64,
    #[serde(default)]
    pub failures: u64,
    pub mean_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub share_percent: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Event {
    pub sequence: u64,
    pub at: Text,
    pub kind: Text,
    pub level: Text,
    pub text: Text,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Advice {
    pub text: Text,
    pub reason: Option<Text>,
    pub setting: Option<Text>,
}
