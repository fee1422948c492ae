//! What hands threads their turn, model-checked: every interleaving of a few threads, with deadlines that may pass at any
//! moment.

mod lane;
mod line;
#[path = "../../../src/pool/line.rs"]
#[allow(dead_code)]
mod pool_line;
pub(crate) mod sync;
#[path = "../../../src/server/lane/worker_wakeup.rs"]
#[allow(dead_code)]
mod worker_wakeup;

/// Every interleaving with at most so many forced switches of threads; the literature finds nearly all bugs with two or three.
fn check(forced_switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(forced_switches);
    builder.check(model);
}
