//! One server connection: the driver's client, its prepared statements, its age and its use.
//!
//! A session is owned by one thread at a time. Whatever waits for the server here does so under a deadline that the
//! watchdog keeps.

use super::param_types::{Described, LookUps};
mod link;
mod statements;
mod stream;

use super::identity::{Identity, first_row};
use super::limits::{Limits, as_server_ms};
use super::shared::Shared;
use super::texts::Texts;
use super::watchdog::{CANCEL_GRACE, Plan, Registration, Tracked};
use super::wire;
use crate::error::{Chain, Error, excerpt};
use crate::metrics::CloseReason;
use crate::retry::{Facts, Fate, Leaves, Phase, Progress, Symptom, verdict};
use crate::sync::caught;
use link::Link;
use log::{debug, info, warn};
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row, SimpleQueryMessage, Statement};
use statements::{Kept, SearchPath, are_as_described};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Puts a session on which something was left back into the state it was opened in. Not DISCARD ALL: that would drop the
/// prepared statements that are ours and the driver's; those of its borrower are in the answer. `RESET ALL` goes back to
/// the options of the startup packet.
const CLEAN: &str = "ROLLBACK; CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; UNLISTEN *; \
                     SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
                     SELECT 'DEALLOCATE ' || quote_ident(name) AS prepared FROM pg_prepared_statements WHERE from_sql; \
                     SELECT count(*) AS looks_up FROM pg_prepared_statements \
                     WHERE NOT from_sql AND statement ~ 'FROM pg_catalog[.]pg_type'";

/// Closing says goodbye to the server, which is a write into a socket buffer: it need not be waited for any longer.
const GOODBYE: Duration = Duration::from_millis(100);
/// Bound of what the pool asks on its own account: a validation, a clean-up.
pub(super) const UPKEEP: Duration = Duration::from_secs(1);
/// The same for a rollback, which may come behind the caller's deadline: no later than a cancelled statement is cut.
const ROLLBACK: Duration = CANCEL_GRACE;
/// A look at what the server has said does not wait.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// A connection that is old before it is used would be of no use to anybody.
const LEAST_AGE: Duration = Duration::from_millis(100);

/// A level of `synchronous_commit`: what a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncCommit(&'static str);

impl SyncCommit {
    /// The server's default, and the one in force where nobody said.
    pub const ON: SyncCommit = SyncCommit("on");

    fn named(name: &str) -> Option<SyncCommit> {
        const ALL: [&str; 5] = ["on", "off", "local", "remote_write", "remote_apply"];
        ALL.into_iter().find(|one| *one == name).map(SyncCommit)
    }

    /// A word of our own, fit for a statement.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// A commit of this level waits for synchronous standbys, where there are any.
    pub fn waits_for_standbys(self) -> bool {
        !matches!(self.0, "off" | "local")
    }
}

/// What a transaction begins with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Begin {
    pub isolation: Option<&'static str>,
    pub read_only: bool,
    /// Replaces `statement_timeout` until the end of the transaction; zero = off.
    pub statement_timeout: Option<Duration>,
    /// How long the transaction may stand still before the server ends it: what a program that stopped in the middle of it
    /// has locked must come free.
    pub idle_timeout: Option<Duration>,
}

impl Begin {
    /// One message. Only words and integers of our own are in it: a simple query has no parameters.
    fn sql(&self) -> String {
        let mut sql = String::from("BEGIN");
        if let Some(level) = self.isolation {
            sql += " ISOLATION LEVEL ";
            sql += level;
        }
        if self.read_only {
            sql += " READ ONLY";
        }
        if let Some(limit) = self.statement_timeout {
            sql += &format!("; SET LOCAL statement_timeout = {}", as_server_ms(limit));
        }
        if let Some(limit) = self.idle_timeout {
            sql += &format!(
                "; SET LOCAL idle_in_transaction_session_timeout = {}",
                as_server_ms(limit)
            );
        }
        if self.read_only {
            // Gone with the transaction: a closure that ends it by itself is found out. And behind a query, no transaction can
            // be made to write any more.
            sql += &format!("; SELECT set_config('{READING}', 'yes', true)");
        } else {
            // The number tells later what became of the commit; the process, whether a pooler stands between; and the
            // level, what the commit waits for.
            // A standby gives no numbers, and what begins there writes nothing, also when it is promoted meanwhile.
            sql += "; SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
                    pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
                    current_setting('client_min_messages') AS client_min_messages";
        }
        sql
    }
}

/// What the message that commits does before. Of our own words, as that of the begin.
#[derive(Default)]
pub(crate) struct Finish {
    /// What is selected once it is sure that this is the transaction that was begun, each with a comma before.
    pub values: &'static str,
    /// What is run then, each with a semicolon behind.
    pub statements: String,
}

/// What is to be known of a transaction to find out what became of it.
pub(crate) struct LostTransaction {
    pub identity: Identity,
    /// None where a pooler stands between us and the backend.
    pub xid: Option<u64>,
    /// What the commit waits for.
    pub sync_commit: SyncCommit,
}

pub(crate) struct Session {
    client: Link,
    statements: Option<Texts<Kept>>,
    look_ups: LookUps,
    shared: Arc<Shared>,
    opened_at: Instant,
    /// How long opening it took.
    took: Duration,
    /// It has been told of. One that was opened in vain beside another is not.
    announced: bool,
    expires_at: Option<Instant>,
    /// When it came back, or was opened.
    last_used: Instant,
    /// When the server last answered on it.
    heard_at: Instant,
    /// It has since it was checked out.
    heard: bool,
    uses: u64,
    generation: u64,
    /// Why it is to be closed, once that is settled.
    closing: Option<CloseReason>,
    /// Something may have been left on it, which is still there.
    dirty: bool,
    /// Something that stays was.
    has_traces: bool,
    /// A call on it is under way; or was, and unwound.
    in_call: bool,
    in_transaction: bool,
    identity: Identity,
    /// The number of the transaction under way, when it may write.
    xid: Option<u64>,
    /// The driver has prepared statements of its own on it.
    driver_looks_up: bool,
    /// It was begun to read only.
    reads_only: bool,
    /// It runs in the backend that the session was opened to.
    in_own_backend: bool,
    /// What its commit waits for.
    sync_commit: SyncCommit,
    /// A statement of it may have changed that.
    sync_commit_touched: bool,
    /// The warnings of its commit may be kept from us.
    hides_warnings: bool,
    /// Texts may mean something else in it than elsewhere: there are temporary tables.
    own_meanings: bool,
    /// What is made may be temporary.
    temporary_path: bool,
    search_path: SearchPath,
}

impl Session {
    pub fn new(
        client: Client,
        identity: Identity,
        registration: Registration,
        shared: Arc<Shared>,
        generation: u64,
        took: Duration,
    ) -> Session {
        let now = Instant::now();
        let config = &shared.config;
        // Up to a tenth earlier, so that connections which were opened together are not closed together.
        let expires_at = config
            .max_lifetime
            .map(|age| now + age.max(LEAST_AGE).mul_f64(1.0 - 0.1 * fastrand::f64()));
        let statements = NonZeroUsize::new(config.statement_cache).map(Texts::new);
        Session {
            client: Link::new(client, registration),
            statements,
            look_ups: LookUps::default(),
            opened_at: now,
            took,
            announced: false,
            expires_at,
            last_used: now,
            heard_at: now,
            heard: false,
            uses: 0,
            generation,
            closing: None,
            dirty: false,
            has_traces: false,
            in_call: false,
            in_transaction: false,
            identity,
            xid: None,
            driver_looks_up: false,
            reads_only: false,
            in_own_backend: false,
            sync_commit: SyncCommit::ON,
            sync_commit_touched: false,
            hides_warnings: false,
            own_meanings: false,
            temporary_path: false,
            search_path: SearchPath::Own,
            shared,
        }
    }

    pub fn id(&self) -> u64 {
        self.tracked().id
    }

    pub fn tracked(&self) -> &Arc<Tracked> {
        &self.client.registration().tracked
    }

    /// Tells of it, once it has a place in the pool.
    pub fn announce(&mut self) {
        if std::mem::replace(&mut self.announced, true) {
            return;
        }
        let (id, took) = (self.id(), self.took);
        self.shared.metrics.create_time.observe(took.as_secs_f64());
        info!("opened conn={id} took={took:.1?}");
        self.shared.observe(|o| o.opened(id, took));
    }

    /// A deadline can cut what is on its wire.
    pub fn can_be_cut(&self) -> bool {
        !matches!(self.tracked().wire.progress(), Progress::Unseen)
    }

    /// The driver's client, for a borrower who does with it what he likes.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn client_mut(&mut self) -> &mut Client {
        self.dirty = true;
        &mut self.client
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_used)
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the server last answered on it.
    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// It has answered since this was last asked.
    pub fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    fn hear(&mut self, at: Instant) {
        (self.heard_at, self.heard) = (at, true);
    }

    /// Its connection is gone.
    pub fn is_lost(&self) -> bool {
        self.client.is_closed() || self.tracked().wire.is_aborted()
    }

    /// Takes in what the server has said unasked, without waiting for anything. True where that was its goodbye. What it
    /// has notified is nobody's.
    pub fn has_ended(&mut self) -> bool {
        if !self.tracked().wire.ask_for_look() {
            // Found out when it is asked for a sign of life.
            return self.is_lost();
        }
        // It does not wait; but if it did, nobody else could. A thread that is not let run for a while is no sign of that.
        let limit = Instant::now() + LONGEST_LOOK;
        let armed = self.client.registration().arm(Some(limit), Plan::Abort);
        let mut pending = self.client.notifications();
        let mut iter = pending.blocking_iter();
        let goes_on = loop {
            match iter.next() {
                Ok(Some(notification)) if wire::Handle::is_look(&notification) => break true,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break false,
            }
        };
        armed.disarm() || !goes_on
    }

    /// Whatever happens on it, it is cleaned when it comes back.
    pub fn clean_afterwards(&mut self) {
        self.dirty = true;
    }

    pub fn count_use(&mut self) {
        self.uses += 1;
    }

    /// Why this session is to be closed now instead of being used again.
    pub fn retire(&self, now: Instant) -> Option<CloseReason> {
        let config = &self.shared.config;
        Wear {
            closing: self.closing,
            broken: self.is_lost() || self.in_call,
            draining: self.shared.closing.load(Ordering::Relaxed),
            outlived: self.generation < self.shared.generation.load(Ordering::Relaxed),
            expired: self.expires_at.is_some_and(|at| now >= at),
            worn_out: (config.max_uses > 0 && self.uses >= config.max_uses)
                || self.tracked().wire.has_grown(),
        }
        .reason()
    }

    /// It is in the last tenth of its uses.
    pub fn is_nearly_worn_out(&self) -> bool {
        let most = self.shared.config.max_uses;
        most > 0 && self.uses >= most - most / 10
    }

    /// Settles that it is to be closed; the first reason stays.
    pub fn close_for(&mut self, reason: CloseReason) {
        self.closing.get_or_insert(reason);
    }

    /// It is used for work of the pool's own, without a deadline: when the pool closes, that is cancelled.
    #[cfg(feature = "studio")]
    pub fn end_with_pool(&mut self) {
        self.tracked().ends_with_pool.store(true, Ordering::SeqCst);
        self.client.registration().arm_for_good(None, Plan::Cancel);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    pub fn age(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Ready for the next borrower: nothing is left open. Called at check-in.
    pub fn settle(&mut self, now: Instant) {
        self.last_used = now;
        self.search_path = SearchPath::Own;
        if self.has_traces {
            self.close_for(CloseReason::LeakedState);
        }
        if self.in_transaction && self.closing.is_none() && self.rollback().is_err() {
            self.close_for(CloseReason::Broken);
        }
    }

    /// Runs `work` on the wire, which is cut at the deadline. A session whose deadline fired is spent, even where the answer
    /// came in the same moment: the cut would hit whoever uses it next.
    fn bounded<T>(
        &mut self,
        at: Option<Instant>,
        work: impl FnOnce(&mut Session) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let armed = self.client.registration().arm(at, Plan::Abort);
        // Where the work unwinds, the driver was in the middle of something, which is still in its buffers.
        self.in_call = true;
        let result = work(self);
        self.in_call = false;
        if armed.disarm() {
            self.close_for(CloseReason::Broken);
        } else if result.is_ok() {
            self.hear(Instant::now());
        }
        result
    }

    /// Asks the server for a sign of life, at most until `deadline`.
    pub fn validate(&mut self, deadline: Option<Instant>) -> Result<(), postgres::Error> {
        let result = self.bounded(Some(upkeep_until(deadline)), |s| s.client.batch_execute(""));
        if result.is_err() {
            self.close_for(CloseReason::Broken);
        }
        result
    }

    /// Takes away what a raw borrower left behind, and does again what `on_connect` did. Behind a pooler that would be done
    /// to a session that others use as well: there the connection is closed, and the pooler cleans up in its own way.
    pub fn clean(&mut self, deadline: Option<Instant>) -> bool {
        if self.shared.is_pooled() {
            // What is open there goes with the client, and would take the server's connection along.
            let until = Some(upkeep_until(deadline));
            if let Err(e) = self.bounded(until, |s| s.client.batch_execute("ROLLBACK")) {
                debug!("conn={} could not be rolled back: {}", self.id(), Chain(&e));
            }
            self.close_for(CloseReason::LeakedState);
            return false;
        }
        let until = upkeep_until(deadline);
        let cleaned = self.clean_up(until).and_then(|()| self.restore(until));
        if let Err(e) = cleaned {
            debug!("conn={} could not be cleaned up: {}", self.id(), Chain(&e));
            self.close_for(match self.is_lost() {
                true => CloseReason::Broken,
                false => CloseReason::LeakedState,
            });
        } else if !self.has_ended() {
            self.dirty = false;
        }
        !self.is_closing() && !self.dirty
    }

    fn clean_up(&mut self, until: Instant) -> Result<(), Error> {
        let cleaned = self.bounded(Some(until), |s| {
            let mut prepared = Vec::new();
            for message in s.client.simple_query(CLEAN)? {
                let SimpleQueryMessage::Row(row) = message else {
                    continue;
                };
                if let Ok(Some(deallocate)) = row.try_get("prepared") {
                    prepared.push(deallocate.to_owned());
                }
                if let Ok(Some(count)) = row.try_get("looks_up") {
                    // What the driver prepared to look types up was taken away, and it does not notice.
                    if count == "0" && s.driver_looks_up {
                        s.close_for(CloseReason::LeakedState);
                    }
                    s.driver_looks_up = count != "0";
                }
            }
            match prepared.is_empty() {
                true => Ok(()),
                false => s.client.batch_execute(&prepared.join("; ")),
            }
        });
        cleaned.map_err(|source| Error::Database {
            source,
            phase: Phase::Preparing,
        })
    }

    /// Sets up, and has `on_connect` set up, what was reset, or was left undone when it was opened for the pool's own
    /// questions.
    pub fn restore(&mut self, until: Instant) -> Result<(), Error> {
        let armed = self.client.registration().arm(Some(until), Plan::Abort);
        let restored = caught(|| self.shared.restore(&mut self.client));
        if armed.disarm() {
            self.close_for(CloseReason::Broken);
        }
        restored.unwrap_or_else(|panic| {
            warn!("on_connect panicked: {panic}");
            self.close_for(CloseReason::LeakedState);
            Ok(())
        })
    }

    /// Runs a statement and returns its rows. `phase` says what it means when its answer is lost.
    pub fn query(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        limits: &Limits,
    ) -> Result<Vec<Row>, Error> {
        let rows = self
            .timed(sql, phase, limits, |session| {
                session.with_statement(
                    sql,
                    params,
                    phase,
                    |client, statement| client.query(statement, params),
                    |client, typed| client.query_typed(sql, typed),
                )
            })?
            .ok_or(WRONG_COUNT)?;
        if !are_as_described(&rows) {
            // Too late for these; the next call looks its types up again, on whatever session.
            self.do_not_keep(sql);
            self.forget(sql);
        }
        Ok(rows)
    }

    /// Runs a statement and returns the number of rows that it touched.
    pub fn execute(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        limits: &Limits,
    ) -> Result<u64, Error> {
        self.timed(sql, phase, limits, |session| {
            session.with_statement(
                sql,
                params,
                phase,
                |client, statement| client.execute(statement, params),
                |client, typed| client.execute_typed(sql, typed),
            )
        })?
        .ok_or(WRONG_COUNT)
    }

    /// Runs statements without parameters, separated by semicolons.
    pub fn batch_execute(&mut self, sql: &str, phase: Phase, limits: &Limits) -> Result<(), Error> {
        self.timed(sql, phase, limits, |session| {
            session.take_note(&Facts::of(sql));
            session.client.batch_execute(sql).map_err(|e| (e, phase))
        })
    }

    /// Begins a transaction: one message, to which `and_then` of our own belongs. Returns what the server answered.
    pub fn begin(
        &mut self,
        begin: &Begin,
        and_then: &str,
        limits: &Limits,
    ) -> Result<Vec<SimpleQueryMessage>, Error> {
        // Set before it is sent: an answer that is lost may have begun one.
        self.in_transaction = true;
        (self.xid, self.reads_only) = (None, begin.read_only);
        (self.sync_commit, self.sync_commit_touched) = (SyncCommit::ON, false);
        (self.own_meanings, self.temporary_path) = (false, false);
        self.search_path = SearchPath::Own;
        let begin = Begin {
            // Where it cannot be set on the session, at least here.
            statement_timeout: begin
                .statement_timeout
                .or_else(|| self.shared.timeout_of_transactions()),
            ..*begin
        };
        let sql = begin.sql() + and_then;
        let answer = self.timed("BEGIN", Phase::Preparing, limits, |session| {
            let answer = session.client.simple_query(&sql);
            answer.map_err(|e| (e, Phase::Preparing))
        })?;
        let row = first_row(&answer);
        let text = |column: &str| row?.try_get(column).ok().flatten();
        self.xid = text("xid").and_then(|xid| xid.parse().ok());
        if let Some(level) = text("synchronous_commit").and_then(SyncCommit::named) {
            self.sync_commit = level;
        }
        self.hides_warnings = text("client_min_messages") == Some("error");
        let pid = text("pid").and_then(|pid| pid.parse::<i32>().ok());
        self.in_own_backend = pid == Some(self.identity.pid);
        if pid.is_some() && !self.in_own_backend {
            self.shared
                .note_pooler("another process answers than before");
        }
        // Only a primary gives numbers.
        self.identity.standby &= self.xid.is_none();
        Ok(answer)
    }

    /// Commits: one message. In a transaction that the server has aborted, a plain COMMIT would roll back and be answered
    /// like a success; the statement before it fails there, with 25P02. It fails as well when this is not the
    /// transaction that was begun: the closure has ended that one by itself. Never cancelled on the way (see the watchdog).
    /// What finishes it, of our own, belongs to the transaction.
    pub fn commit(&mut self, finish: &Finish, limits: &Limits) -> Result<(), Error> {
        if std::mem::take(&mut self.sync_commit_touched) {
            self.ask_what_commit_waits_for(limits)?;
        }
        let check = match self.xid {
            Some(xid) => format!(
                "CASE WHEN pg_current_xact_id_if_assigned() IS DISTINCT FROM '{xid}'::xid8 \
                 THEN current_setting('{ENDED_INSIDE}') END"
            ),
            None if self.reads_only => format!(
                "CASE WHEN current_setting('{READING}', true) IS DISTINCT FROM 'yes' \
                 THEN current_setting('{ENDED_INSIDE}') END"
            ),
            None => "1".to_owned(),
        };
        let Finish { values, statements } = finish;
        // That the wait for a standby was given up is said in a warning only.
        let warn = match self.hides_warnings {
            true => "SET LOCAL client_min_messages = warning; ",
            false => "",
        };
        let take_away = self.look_ups.take_away();
        let sql = format!("SELECT {check}{values}; {statements}{take_away}{warn}COMMIT");
        let result = self.timed("COMMIT", Phase::Commit, limits, |session| {
            session
                .client
                .batch_execute(&sql)
                .map_err(|e| (e, Phase::Commit))
        });
        match result {
            Err(e) if says_ended_inside(&e) => Err(self.ended_inside()),
            Ok(()) => {
                self.in_transaction = false;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Once the COMMIT is lost, it is too late to ask.
    fn ask_what_commit_waits_for(&mut self, limits: &Limits) -> Result<(), Error> {
        const SQL: &str = "SELECT current_setting('synchronous_commit')";
        let answer = self.timed(SQL, Phase::InTransaction, limits, |session| {
            let answer = session.client.simple_query(SQL);
            answer.map_err(|e| (e, Phase::InTransaction))
        })?;
        let level = first_row(&answer).and_then(|row| row.try_get(0).ok().flatten());
        self.sync_commit = level.and_then(SyncCommit::named).unwrap_or(SyncCommit::ON);
        Ok(())
    }

    fn ended_inside(&mut self) -> Error {
        self.close_for(CloseReason::LeakedState);
        Error::Misuse(
            "the transaction was ended by a statement of its own closure; what that committed stays",
        )
    }

    /// Rolls back, within the time for upkeep, and makes sure that there was something to roll back.
    pub fn rollback(&mut self) -> Result<(), Error> {
        let sql = match self.xid {
            Some(xid) => format!("ROLLBACK; SELECT pg_xact_status('{xid}'::xid8); "),
            None => "ROLLBACK; ".to_owned(),
        };
        let sql = sql + &self.look_ups.take_away();
        let until = Some(Instant::now() + ROLLBACK);
        match self.bounded(until, |s| s.client.simple_query(&sql)) {
            Ok(answer) => {
                self.in_transaction = false;
                let status = first_row(&answer).and_then(|row| row.try_get(0).ok().flatten());
                if status == Some("committed") {
                    Err(self.ended_inside())
                } else {
                    self.search_path = SearchPath::Own;
                    Ok(())
                }
            }
            Err(source) => {
                self.close_for(CloseReason::Broken);
                Err(Error::Database {
                    source,
                    phase: Phase::InTransaction,
                })
            }
        }
    }

    /// The transaction under way, whose COMMIT was sent and not answered.
    pub fn lost_transaction(&self) -> LostTransaction {
        LostTransaction {
            identity: self.identity.clone(),
            // Behind a pooler, numbers of processes and transactions are somebody else's by now.
            xid: self
                .xid
                .filter(|_| self.in_own_backend && !self.shared.is_pooled()),
            sync_commit: self.sync_commit,
        }
    }

    /// The transaction under way can write nothing.
    pub fn began_on_standby(&self) -> bool {
        self.xid.is_none()
    }

    /// What the commit of the last transaction waits for.
    pub fn sync_commit(&self) -> SyncCommit {
        self.sync_commit
    }

    /// The server's own `statement_timeout` for a statement on this session; zero = off, `None` = not known.
    pub fn server_timeout(&self) -> Option<Duration> {
        let known = !self.shared.is_pooled();
        known.then_some(self.identity.statement_timeout)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// True where the server is a standby; asked once nothing is under way any more. With `or_was`, also where it was one
    /// for all that the session knows: it may have been promoted since the refusal that makes us ask.
    pub fn is_on_standby(&mut self, or_was: bool) -> bool {
        if self.is_closing() || (self.in_transaction && self.rollback().is_err()) {
            return false;
        }
        if or_was && self.identity.standby {
            return true;
        }
        let answer = self.ask("SELECT pg_is_in_recovery()", upkeep_until(None));
        answer.is_ok_and(|messages| {
            first_row(&messages).and_then(|row| row.try_get(0).ok().flatten()) == Some("t")
        })
    }

    /// The server gave up the wait of a commit for a synchronous standby, since this was last asked.
    pub fn gave_up_on_standbys(&self) -> bool {
        let said = &self.tracked().gave_up_on_standbys;
        said.load(Ordering::Relaxed) && said.swap(false, Ordering::Relaxed)
    }

    /// A question of the pool's own, in words of its own; its wire is cut at the deadline.
    pub fn ask(
        &mut self,
        sql: &str,
        deadline: Instant,
    ) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
        self.bounded(Some(deadline), |s| s.client.simple_query(sql))
    }

    /// The prepared statement for this text and whether it was kept, or newly prepared (one more round trip).
    fn prepared(&mut self, sql: &str) -> Result<Option<(Kept, bool)>, postgres::Error> {
        // The next transaction may meet another server, where the name stands for nothing, or for another's statement.
        if self.statements.is_none() || self.shared.is_pooled() {
            return Ok(None);
        }
        self.ask_for_search_path()?;
        let key = self.search_path.key(sql);
        let may_keep = self.may_keep(&key);
        let Some(statements) = &mut self.statements else {
            return Ok(None);
        };
        match statements.get(&key) {
            Some(kept) if may_keep && !kept.is_old() => return Ok(Some((kept.clone(), true))),
            Some(kept) if kept.has_own_types() => self.client.clear_type_cache(),
            _ => {}
        }
        let statement = self.client.prepare(sql)?;
        let new = Kept::new(statement, Facts::of(sql));
        self.driver_looks_up |= new.has_own_types();
        if may_keep {
            statements.put(&key, new.clone());
        }
        Ok(Some((new, false)))
    }

    /// What was prepared or described for this text is not what the server expects any more.
    fn forget(&mut self, sql: &str) {
        let key = self.search_path.key(sql);
        if let Some(statements) = &mut self.statements {
            statements.forget(&key);
        }
        self.shared.descriptions.forget(&key);
        self.client.clear_type_cache();
        self.look_ups.forget_types();
    }

    /// A temporary table hides another of its name from this transaction, also where a statement was prepared before: the
    /// server does not look at what was not there.
    fn may_keep(&self, key: &str) -> bool {
        !(self.in_transaction && self.own_meanings) && self.shared.descriptions.may_keep(key)
    }

    /// On no session, for a while.
    fn do_not_keep(&self, sql: &str) {
        let key = self.search_path.key(sql);
        self.shared.descriptions.do_not_keep(&key);
    }

    /// Once a statement of the transaction under way has named the setting: what it is by now.
    fn ask_for_search_path(&mut self) -> Result<(), postgres::Error> {
        if let SearchPath::Doubtful = self.search_path {
            let answer = self.client.simple_query(PATH)?;
            let path = first_row(&answer).and_then(|row| row.try_get(0).ok().flatten());
            self.search_path = SearchPath::Set(path.unwrap_or_default().into());
        }
        Ok(())
    }

    /// Takes note of what a statement may leave, before it is sent.
    fn take_note(&mut self, facts: &Facts) {
        self.dirty |= facts.leaves > Leaves::Nothing;
        self.has_traces |= facts.leaves == Leaves::Traces;
        if !self.in_transaction {
            return;
        }
        self.sync_commit_touched |= facts.names_synchronous_commit;
        self.hides_warnings |= facts.names_client_min_messages;
        // What a text means may depend on what came before it in this transaction.
        self.temporary_path |= facts.temporary_path;
        let by_path = facts.creates && self.temporary_path;
        self.own_meanings |= facts.makes_temporary || by_path;
        self.dirty |= by_path;
        let path_was_set = !matches!(self.search_path, SearchPath::Own);
        if facts.names_search_path || (facts.rolls_back && path_was_set) {
            self.search_path = SearchPath::Doubtful;
        }
        if facts.deallocates {
            self.look_ups.doubt();
        }
    }

    /// What the server says of a statement that is not kept, and of whose rows this client needs nothing to be looked up any
    /// more; and whether that was known. If not, one more round trip, or three where it takes a transaction of its own.
    fn described(&mut self, sql: &str) -> Result<(Arc<Described>, bool), postgres::Error> {
        self.ask_for_search_path()?;
        let key = self.search_path.key(sql);
        let may_keep = self.may_keep(&key);
        if may_keep
            && let Some(described) = self.shared.descriptions.get(&key)
            && self.look_ups.cover(&described)
        {
            return Ok((described, true));
        }
        let described = match self.shared.is_pooled() {
            true => self.describe_past_others(sql)?,
            false => self.look_ups.describe(&mut self.client, sql, false)?,
        };
        let described = Arc::new(described);
        if may_keep {
            self.shared.descriptions.put(&key, &described);
        }
        Ok((described, false))
    }

    /// Behind a pooler: within a transaction, its own where none is under way. A name that another program has left there is
    /// met once: the driver's next one is another.
    fn describe_past_others(&mut self, sql: &str) -> Result<Described, postgres::Error> {
        const MOST_NAMES: u32 = 100;
        let (begin, undo) = match self.in_transaction {
            true => (
                "SAVEPOINT millpond_describe",
                "ROLLBACK TO SAVEPOINT millpond_describe; RELEASE SAVEPOINT millpond_describe; ",
            ),
            false => ("BEGIN", "ROLLBACK; "),
        };
        let mut names = 0;
        loop {
            self.client.batch_execute(begin)?;
            let described = self.look_ups.describe(&mut self.client, sql, true);
            let undo = match self.in_transaction {
                // The transaction's own end takes them away.
                true => undo.to_owned(),
                false => undo.to_owned() + &self.look_ups.take_away(),
            };
            names += 1;
            let taken = described
                .as_ref()
                .is_err_and(|e| names < MOST_NAMES && is_name_taken(e));
            if self.in_transaction && described.is_err() && !taken {
                // It has failed for good, as it would have without us.
                return described;
            }
            let undone = self.client.batch_execute(&undo);
            if undone.is_err() {
                self.close_for(CloseReason::Broken);
            }
            match described {
                Err(_) if taken && undone.is_ok() => {}
                // What was wrong first says more.
                Err(e) => return Err(e),
                Ok(described) => return undone.map(|()| described),
            }
        }
    }

    /// Runs `named` with the prepared statement, or `unnamed` where none are kept; nothing where that takes another number of
    /// parameters. What was known of the text may be stale: a table or a type was changed, or the statement taken away by a
    /// DEALLOCATE. Then it is prepared again, once; inside a transaction, which that has aborted, by the next attempt.
    fn with_statement<T>(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        mut named: impl FnMut(&mut Client, &Statement) -> Result<T, postgres::Error>,
        unnamed: impl Fn(&mut Client, &[Typed<'_>]) -> Result<T, postgres::Error>,
    ) -> Result<Option<T>, (postgres::Error, Phase)> {
        let mut again = false;
        loop {
            let prepared = self.prepared(sql);
            let prepared = prepared.map_err(|e| self.not_prepared(e, phase))?;
            let (result, text, known) = if let Some((kept, known)) = prepared {
                self.take_note(&kept.facts);
                // A preparation may have asked for types, with statements that complete.
                self.begin_request();
                let result = named(&mut self.client, &kept.statement);
                (result, Text::Prepared(kept), known)
            } else {
                let described = self.described(sql);
                let (described, known) = described.map_err(|e| self.not_prepared(e, phase))?;
                if described.params.len() != params.len() {
                    self.forget(sql);
                    return Ok(None);
                }
                self.take_note(&described.facts);
                let typed = with_types(params, &described);
                self.begin_request();
                let result = unnamed(&mut self.client, &typed);
                (result, Text::Described(described), known)
            };
            let error = match result {
                Ok(value) => return Ok(Some(value)),
                Err(e) => e,
            };
            let symptom = Symptom::of(&error);
            let never_sent = symptom == Symptom::BadCall;
            let stale_plan = symptom == Symptom::StalePlan;
            if !may_be_stale(&symptom, known) {
                if again {
                    // It was not that: the next call with this text prepares it, and runs it once.
                    self.do_not_keep(sql);
                }
                return Err((error, phase));
            }
            let undone = match self.tracked().wire.progress() {
                _ if never_sent => true,
                Progress::NothingSent | Progress::Sent => true,
                // Where nobody looks: behind a statement without a name the driver may ask for the types of its rows.
                Progress::Unseen => matches!(text, Text::Prepared(_)),
                // It is done, or may be; what failed was the driver's own, behind it.
                Progress::Completed | Progress::Answered => false,
            };
            self.forget(sql);
            if !undone {
                return Err((error, phase));
            }
            if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME)
                && let Some(statements) = &mut self.statements
            {
                // One that is gone is seldom alone.
                statements.forget_all();
            }
            let inside = matches!(phase, Phase::InTransaction | Phase::CommitsInside);
            if inside && !never_sent {
                self.do_not_keep(sql);
            }
            if again {
                if stale_plan {
                    // What the session knows cannot be put right.
                    self.close_for(CloseReason::Broken);
                }
                return Err((error, phase));
            }
            if inside && !never_sent {
                let outdated = known && phase == Phase::InTransaction;
                return Err((error, if outdated { Phase::Outdated } else { phase }));
            }
            if never_sent {
                let mistaken = self.expects_still(sql, text.params());
                // Of the request itself nothing was sent.
                self.begin_request();
                if mistaken {
                    return Err((error, phase));
                }
            }
            again = true;
        }
    }

    /// Whether values of these types are what a text takes, now that it is prepared anew.
    fn expects_still(&mut self, sql: &str, types: &[Type]) -> bool {
        match self.prepared(sql) {
            Ok(Some((kept, _))) => kept.statement.params() == types,
            Ok(None) => self.described(sql).is_ok_and(|(d, _)| d.params == types),
            Err(_) => true,
        }
    }

    /// A statement could not be prepared, or described: nothing of it has run.
    fn not_prepared(&mut self, error: postgres::Error, phase: Phase) -> (postgres::Error, Phase) {
        if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) {
            // What the driver had prepared for its own questions is gone, and it does not notice.
            self.close_for(CloseReason::LeakedState);
        }
        (error, Phase::Preparing.or_inside(phase))
    }

    /// Runs `work` under the limits, measures it, and draws the consequences of a failure.
    fn timed<T>(
        &mut self,
        sql: &str,
        phase: Phase,
        limits: &Limits,
        work: impl FnOnce(&mut Session) -> Result<T, (postgres::Error, Phase)>,
    ) -> Result<T, Error> {
        self.shared.may_block_here()?;
        if self.in_call {
            return Err(Error::TransactionAborted {
                cause: "a call on its connection panicked".into(),
                sqlstate: None,
            });
        }
        if self.is_closing() {
            // A cancel is on its way, or the deadline fired in the moment of the last answer.
            return Err(Error::TransactionAborted {
                cause: "its connection was given up at a deadline".into(),
                sqlstate: Some(SqlState::QUERY_CANCELED),
            });
        }
        // What was said to another is not said of this.
        self.gave_up_on_standbys();
        self.begin_request();
        let started = Instant::now();
        let plan = if phase == Phase::Commit {
            Plan::Abort
        } else {
            Plan::Cancel
        };
        let armed = self.client.registration().arm(limits.act_at(started), plan);
        self.in_call = true;
        let result = work(self);
        self.in_call = false;
        let cancelled = armed.disarm();
        let took = started.elapsed();
        self.shared.metrics.operation.observe(took.as_secs_f64());
        if self
            .shared
            .config
            .slow_query
            .is_some_and(|limit| took > limit)
        {
            self.shared.note_slow(sql, took);
        }
        if result.is_ok() {
            self.hear(started + took);
        }
        if cancelled {
            // The signal may still arrive, and would hit the next statement.
            self.close_for(CloseReason::Broken);
        }
        if self.gave_up_on_standbys() && result.is_ok() {
            return Err(Error::NotReplicated);
        }
        result.map_err(|(error, phase)| self.failed(sql, error, phase, cancelled, took, limits))
    }

    fn begin_request(&self) {
        self.tracked().wire.begin_request();
    }

    fn failed(
        &mut self,
        sql: &str,
        source: postgres::Error,
        phase: Phase,
        cancelled: bool,
        took: Duration,
        limits: &Limits,
    ) -> Error {
        let (asked, progress) = (phase, self.tracked().wire.progress());
        let phase = phase.once_seen(progress);
        if verdict(&Symptom::of(&source), phase).session == Fate::Discard {
            self.close_for(CloseReason::Broken);
            self.shared.note_trouble();
        }
        let cut_by_us = cancelled || self.tracked().wire.is_aborted();
        let stopped =
            source.code() == Some(&SqlState::QUERY_CANCELED) || self.tracked().wire.is_aborted();
        let error = match limits.reached(took, cut_by_us).filter(|_| stopped) {
            Some(limit) => Error::QueryTimeout {
                limit,
                sql: excerpt(sql),
                source,
                phase,
            },
            None => Error::Database { source, phase },
        };
        // It is done, and its rows are lost to something that the driver did behind it.
        let lone = matches!(asked, Phase::Statement | Phase::CommitsInside);
        if lone && progress == Progress::Answered {
            self.close_for(CloseReason::Broken);
            return Error::OutcomeUnknown {
                source: Box::new(error),
            };
        }
        error
    }
}

/// The path, and what becomes of it for the role.
const PATH: &str = "SELECT current_setting('search_path') || ' ' || current_schemas(true)::text";

/// Set in a transaction that is to read only, until its end.
const READING: &str = "millpond.reading";

/// A setting that nobody has: asking for it fails with its name, which is how a commit finds itself in another transaction
/// than the one that was begun.
const ENDED_INSIDE: &str = "millpond.transaction_ended_inside";

fn says_ended_inside(error: &Error) -> bool {
    matches!(error, Error::Database { source, .. }
        if source.as_db_error().is_some_and(|db| db.message().contains(ENDED_INSIDE)))
}

/// The driver finds it by itself where a statement is prepared by name.
const WRONG_COUNT: Error =
    Error::Misuse("the statement takes another number of parameters than were given");

/// What is known of a text.
enum Text {
    Prepared(Kept),
    Described(Arc<Described>),
}

impl Text {
    fn params(&self) -> &[Type] {
        match self {
            Text::Prepared(kept) => kept.statement.params(),
            Text::Described(described) => &described.params,
        }
    }
}

/// Whether an error may come of what was known of a text, instead of the text: `known` before this call.
fn may_be_stale(symptom: &Symptom<'_>, known: bool) -> bool {
    match symptom {
        Symptom::StalePlan => true,
        Symptom::BadCall => known,
        Symptom::Server(code) => {
            **code == SqlState::INVALID_SQL_STATEMENT_NAME
                // It was right when it was prepared: names, types and what is done with them; or the value's form.
                || known
                    && ((code.code().starts_with("42") && **code != SqlState::INSUFFICIENT_PRIVILEGE)
                        || **code == SqlState::INVALID_BINARY_REPRESENTATION
                        || **code == SqlState::INTERNAL_ERROR)
        }
        _ => false,
    }
}

fn is_name_taken(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT)
}

/// A parameter, and the type that the server expects there.
type Typed<'p> = (&'p (dyn ToSql + Sync), Type);

fn with_types<'p>(params: &[&'p (dyn ToSql + Sync)], described: &Described) -> Vec<Typed<'p>> {
    let params = params.iter().copied();
    params.zip(described.params.iter().cloned()).collect()
}

impl Phase {
    /// The phase of a preparation: inside a transaction, losing it loses the transaction.
    fn or_inside(self, statement: Phase) -> Phase {
        if statement == Phase::InTransaction {
            statement
        } else {
            self
        }
    }
}

fn upkeep_until(deadline: Option<Instant>) -> Instant {
    let own = Instant::now() + UPKEEP;
    deadline.map_or(own, |at| at.min(own))
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.shared.process.is_another() {
            return;
        }
        // r2d2 drops the idle connections of its own that outlived their time, without a word.
        let unsaid = if self.shared.closing.load(Ordering::Relaxed) {
            CloseReason::Drained
        } else {
            CloseReason::MaxLifetime
        };
        let reason = self.closing.unwrap_or(unsaid);
        if reason == CloseReason::Broken {
            self.tracked().wire.abort();
        } else {
            // Stays armed until the client, which is dropped next, has said goodbye; the registration goes after it.
            self.client
                .registration()
                .arm_for_good(Some(Instant::now() + GOODBYE), Plan::Abort);
        }
        if !self.announced {
            return;
        }
        let (id, age, uses) = (self.id(), self.opened_at.elapsed(), self.uses);
        match reason {
            // Behind a pooler it is the usual end of a connection that was lent out.
            CloseReason::LeakedState if self.shared.is_pooled() => {
                info!("closed conn={id} reason={reason} age={age:.1?} uses={uses}");
            }
            CloseReason::Broken | CloseReason::LeakedState => {
                warn!("closed conn={id} reason={reason} age={age:.1?} uses={uses}");
            }
            _ => info!("closed conn={id} reason={reason} age={age:.1?} uses={uses}"),
        }
        self.shared
            .metrics
            .closed
            .with_label_values(&[reason.as_str()])
            .inc();
        self.shared.observe(|o| o.closed(id, reason, age, uses));
    }
}

/// What a session has gone through, in the order in which it counts.
#[derive(Clone, Copy, Default)]
struct Wear {
    closing: Option<CloseReason>,
    broken: bool,
    draining: bool,
    outlived: bool,
    expired: bool,
    worn_out: bool,
}

impl Wear {
    fn reason(self) -> Option<CloseReason> {
        match self {
            Wear {
                closing: Some(reason),
                ..
            } => Some(reason),
            Wear { broken: true, .. } => Some(CloseReason::Broken),
            Wear { draining: true, .. } => Some(CloseReason::Drained),
            Wear { outlived: true, .. } => Some(CloseReason::FailedOver),
            Wear { expired: true, .. } => Some(CloseReason::MaxLifetime),
            Wear { worn_out: true, .. } => Some(CloseReason::MaxUses),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_closed_for_the_gravest_reason() {
        let fresh = Wear::default();
        let rows = [
            (fresh, None),
            (
                Wear {
                    worn_out: true,
                    ..fresh
                },
                Some(CloseReason::MaxUses),
            ),
            (
                Wear {
                    expired: true,
                    worn_out: true,
                    ..fresh
                },
                Some(CloseReason::MaxLifetime),
            ),
            (
                Wear {
                    outlived: true,
                    expired: true,
                    ..fresh
                },
                Some(CloseReason::FailedOver),
            ),
            (
                Wear {
                    draining: true,
                    expired: true,
                    ..fresh
                },
                Some(CloseReason::Drained),
            ),
            (
                Wear {
                    broken: true,
                    draining: true,
                    ..fresh
                },
                Some(CloseReason::Broken),
            ),
            (
                Wear {
                    closing: Some(CloseReason::LeakedState),
                    broken: true,
                    ..fresh
                },
                Some(CloseReason::LeakedState),
            ),
        ];
        for (wear, reason) in rows {
            assert_eq!(wear.reason(), reason);
        }
    }

    #[test]
    fn begin_is_one_message_of_our_own_words() {
        let begin = Begin {
            isolation: Some("SERIALIZABLE"),
            read_only: true,
            statement_timeout: Some(Duration::ZERO),
            idle_timeout: Some(Duration::from_secs(2)),
        };
        assert_eq!(
            begin.sql(),
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SET LOCAL statement_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = 2000; \
             SELECT set_config('millpond.reading', 'yes', true)"
        );
        assert_eq!(
            Begin::default().sql(),
            "BEGIN; SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
             pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
             current_setting('client_min_messages') AS client_min_messages"
        );
    }
}
