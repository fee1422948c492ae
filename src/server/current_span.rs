//! The span of the request that a thread handles, for log lines that do not know the request.

use crate::traceparent::Traceparent;
use std::cell::Cell;

thread_local!(static SPAN: Cell<Option<Traceparent>> = const { Cell::new(None) });

/// The span that is set on this thread.
pub(super) fn get() -> Option<Traceparent> {
    SPAN.get()
}

/// Sets it for as long as `work` takes, also if that panics.
pub(super) fn within<T>(span: Option<Traceparent>, work: impl FnOnce() -> T) -> T {
    struct Before(Option<Traceparent>);
    impl Drop for Before {
        fn drop(&mut self) {
            SPAN.set(self.0);
        }
    }
    let _before = Before(SPAN.replace(span));
    work()
}
