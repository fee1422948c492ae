//! How many files this process may have open.

use log::{debug, warn};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Where nothing is known.
const USUAL: u64 = 1024;
/// Fewer clients than this are never allowed: at the limit the system refuses, and somebody makes room.
const LEAST: u64 = 16;

/// Raises the soft limit to the hard one. Returns how many of `wanted` connections fit, when `others` files are kept free.
pub(super) fn room_for(wanted: usize, others: usize) -> usize {
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(e) => {
                debug!("the limit of open files stays at {soft}: {e}");
                soft
            }
        },
        Ok((soft, _)) => soft,
        Err(_) => USUAL,
    };
    let fit = fitting(limit, wanted as u64, others as u64);
    if fit < wanted as u64 {
        warn!("open files are limited to {limit}: {fit} connections of clients at most");
    }
    fit as usize
}

fn fitting(limit: u64, wanted: u64, others: u64) -> u64 {
    wanted.min(limit.saturating_sub(others).max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_is_kept_free() {
        assert_eq!(fitting(1 << 20, 4096, 300), 4096);
        assert_eq!(fitting(1024, 4096, 300), 724);
        assert_eq!(fitting(256, 4096, 300), 16);
        assert_eq!(fitting(u64::MAX, 4096, 300), 4096);
    }
}
