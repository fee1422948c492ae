//! Spans, as a subscriber of the application sees them.

use super::support::{SECOND, database, eventually};
use millpond::RetryPolicy;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::with_default;
use tracing::{Dispatch, Event, Metadata, Subscriber};

/// A span that was opened on this thread.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    parent: Option<usize>,
    fields: BTreeMap<String, String>,
    is_closed: bool,
}

/// Notes all spans, in the order in which they are opened.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Seen>>>);

thread_local!(static ENTERED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) });

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

fn at(id: &Id) -> usize {
    usize::try_from(id.into_u64()).unwrap() - 1
}

impl Subscriber for Spans {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut seen = Seen {
            name: span.metadata().name(),
            parent: ENTERED.with_borrow(|entered| entered.last().copied()),
            ..Seen::default()
        };
        span.record(&mut Fields(&mut seen.fields));
        let mut all = self.0.lock().unwrap();
        all.push(seen);
        Id::from_u64(all.len() as u64)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()[at(id)].fields));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(at(id)));
    }

    fn exit(&self, id: &Id) {
        let left = ENTERED.with_borrow_mut(Vec::pop);
        assert_eq!(left, Some(at(id)), "spans end in the order of a stack");
        self.0.lock().unwrap()[at(id)].is_closed = true;
    }
}

impl Spans {
    /// Each span as its path from the root.
    fn paths(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        let path = |seen: &Seen| {
            let mut names = vec![seen.name];
            let mut parent = seen.parent;
            while let Some(at) = parent {
                names.push(all[at].name);
                parent = all[at].parent;
            }
            names.reverse();
            names.join("/")
        };
        all.iter().map(path).collect()
    }

    /// The fields of the spans with this path.
    fn fields(&self, path: &str) -> Vec<BTreeMap<String, String>> {
        let all = self.0.lock().unwrap().clone();
        let paths = self.paths();
        let both = all.into_iter().zip(paths);
        let found = both.filter(|(_, p)| p == path);
        found.map(|(seen, _)| seen.fields).collect()
    }
}

/// A recorder of spans. While a process has a single subscriber, `tracing` asks the default one of
/// whichever thread meets a span first, which is none in other tests; so there are always two.
fn recorder() -> Spans {
    static ANOTHER: OnceLock<[Dispatch; 2]> = OnceLock::new();
    ANOTHER.get_or_init(|| [(); 2].map(|()| Dispatch::new(Spans::default())));
    Spans::default()
}

#[test]
fn a_call_is_a_child_of_the_callers_span_with_its_statements_and_its_commit() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let spans = recorder();
    let mut first = true;
    with_default(spans.clone(), || {
        tracing::info_span!("request").in_scope(|| {
            pool.transaction(|tx| -> millpond::Result<_> {
                tx.query("SELECT $1::int4", &[&7])?;
                if std::mem::take(&mut first) {
                    tx.batch_execute(
                        "DO $$ BEGIN RAISE EXCEPTION 'once' USING ERRCODE = '40001'; END $$",
                    )?;
                }
                Ok(())
            })
            .unwrap();
        });
    });
    let attempt = "request/attempt";
    let in_attempt = |name: &str| format!("{attempt}/{name}");
    let (check_out, statement) = (in_attempt("check-out"), in_attempt("statement"));
    let expected = [
        "request",
        attempt,
        &check_out,
        &statement,
        &statement,
        attempt,
        &check_out,
        &statement,
        &in_attempt("commit"),
    ];
    assert_eq!(spans.paths(), expected);
    assert!(spans.0.lock().unwrap().iter().all(|seen| seen.is_closed));

    let statements = spans.fields(&statement);
    let texts: Vec<_> = statements.iter().map(|s| &*s["db.query.text"]).collect();
    assert_eq!(texts[0], "SELECT $1::int4", "its BEGIN is sent with it");
    let name = db.url.rsplit('/').next().unwrap();
    for one in &statements {
        assert_eq!(one["db.system.name"], "postgresql");
        assert_eq!(one["db.namespace"], name);
        assert_eq!(one["otel.kind"], "client");
    }
    assert!(!statements[0].contains_key("error.type"));
    assert_eq!(statements[1]["db.response.status_code"], "40001");
    assert_eq!(statements[1]["error.type"], "40001");
    assert_eq!(statements[1]["otel.status_code"], "ERROR");
    let attempts = spans.fields(attempt);
    assert_eq!(attempts[0]["millpond.attempt"], "1");
    assert_eq!(attempts[0]["db.response.status_code"], "40001");
    assert_eq!(attempts[1]["millpond.attempt"], "2");
    assert!(!attempts[1].contains_key("error.type"));
    let commit = &spans.fields(&in_attempt("commit"))[0];
    assert_eq!(commit["db.operation.name"], "COMMIT");
    assert_eq!(commit["otel.kind"], "client");
}

#[test]
fn a_check_out_that_fails_says_why() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let held = pool.get_timeout(20 * SECOND).unwrap();
    let spans = recorder();
    with_default(spans.clone(), || {
        let call = pool.with_policy(RetryPolicy::none());
        let call = call.with_deadline(std::time::Instant::now() + SECOND / 20);
        assert!(call.query("SELECT 1", &[]).unwrap_err().is_timeout());
    });
    assert_eq!(spans.paths(), ["attempt", "attempt/check-out"]);
    for path in ["attempt", "attempt/check-out"] {
        assert_eq!(spans.fields(path)[0]["error.type"], "timeout");
    }
    drop(held);
    eventually("it is there again", || pool.query("SELECT 1", &[]).is_ok());
}
