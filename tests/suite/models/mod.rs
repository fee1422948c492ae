//! Model checks of the code that decides which thread runs next: every interleaving of a few
//! threads, with deadlines that may pass at any moment.

#[path = "../../../src/class_queue.rs"]
#[allow(dead_code)]
pub(crate) mod class_queue;
mod fleet;
#[path = "../../../src/pool/fleet.rs"]
#[allow(dead_code)]
mod fleet_rule;
mod lane;
mod line;
#[path = "../../../src/line_rule.rs"]
#[allow(dead_code)]
pub(crate) mod line_rule;
#[path = "../../../src/pool/line_state.rs"]
#[allow(dead_code)]
mod line_state;
mod overload;
#[path = "../../../src/pool/line.rs"]
#[allow(dead_code)]
mod pool_line;
#[path = "../../../src/pool/renewal.rs"]
#[allow(dead_code)]
mod renewal;
pub(crate) mod sync;
#[path = "../../../src/pool/waiter.rs"]
#[allow(dead_code)]
mod waiter;
#[path = "../../../src/server/lane/worker_wakeup.rs"]
#[allow(dead_code)]
mod worker_wakeup;

/// Checks every interleaving with at most `forced_switches` preemptions. According to the
/// literature, two or three find nearly all bugs.
fn check(forced_switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(forced_switches);
    builder.check(model);
}
