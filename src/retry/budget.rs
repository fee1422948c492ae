//! The pool's budget for retries: a token bucket, so that clients do not overload a database that
//! is already in trouble.

use std::sync::atomic::{AtomicU32, Ordering};

/// A success earns a fifth of a retry: the bucket counts fifths.
const RETRY: u32 = 5;

/// The retries that are left. Full at the start.
pub(crate) struct Budget {
    fifths: AtomicU32,
    full: u32,
}

impl Budget {
    /// Creates a bucket for 200 retries, or 20 for each connection if that is more.
    pub fn for_pool_of(connections: u32) -> Budget {
        let full = (20 * connections).max(200) * RETRY;
        Budget {
            fifths: AtomicU32::new(full),
            full,
        }
    }

    /// Notes that a call succeeded.
    pub fn earn(&self) {
        // Usually the bucket is full: then this is a single load.
        if self.fifths.load(Ordering::Relaxed) < self.full {
            let add = |have: u32| (have < self.full).then_some(have + 1);
            let _ = self
                .fifths
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// Takes one retry; false if there is none.
    pub fn spend(&self) -> bool {
        self.fifths
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |have| {
                have.checked_sub(RETRY)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_successes_earn_a_retry() {
        let budget = Budget::for_pool_of(20);
        let all = (0..).take_while(|_| budget.spend()).count();
        assert_eq!(all, 400);
        (0..4).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }

    #[test]
    fn a_small_pool_has_200_and_never_more() {
        let budget = Budget::for_pool_of(1);
        (0..100).for_each(|_| budget.earn());
        assert_eq!((0..).take_while(|_| budget.spend()).count(), 200);
    }
}
