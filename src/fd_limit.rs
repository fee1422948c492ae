//! How many files this process may have open, and how many it has.

/// Files of one connection to the database: its socket, three for the driver's own small runtime,
/// and one for a name look-up or a cancel request.
pub(crate) const PER_CONNECTION: usize = 5;
/// Connections that a pool may have in addition to its maximum: for the health probe, for a hedged
/// attempt or one that takes the place of another, for lost commits.
pub(crate) const MORE_CONNECTIONS: usize = 3;

/// Returns the most files that may be open; `None` if there is no limit, or none is known.
pub(crate) fn limit() -> Option<usize> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        (soft != RLIM_INFINITY).then(|| usize::try_from(soft).unwrap_or(usize::MAX))
    }
    #[cfg(not(unix))]
    None
}

/// Returns how many of the `wanted` connections of a pool fit beside the files that are open now
/// and a reserve for the rest of the process. At least one.
pub(crate) fn connections_that_fit(wanted: usize) -> usize {
    limit().map_or(wanted, |limit| fitting(wanted, limit, in_use()))
}

fn fitting(wanted: usize, limit: usize, in_use: usize) -> usize {
    let reserve = (limit / 8).max(8);
    let room = limit.saturating_sub(in_use + reserve) / PER_CONNECTION;
    wanted.min(room.saturating_sub(MORE_CONNECTIONS).max(1))
}

fn in_use() -> usize {
    // Assumed if the number cannot be read.
    const USUAL: usize = 16;
    std::fs::read_dir("/dev/fd").map_or(USUAL, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_leaves_files_for_the_rest_of_the_process() {
        assert_eq!(fitting(20, 1024, 10), 20);
        assert_eq!(fitting(500, 1024, 10), (1024 - 128 - 10) / 5 - 3);
        assert_eq!(fitting(500, 1024, 900), 1);
        assert_eq!(fitting(20, 40, 10), 1);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_open_is_counted() {
        let before = in_use();
        let files: Vec<_> = (0..20)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests open and close files at the same time.
        assert!(in_use() + 15 >= before + files.len());
        assert!(limit().is_none_or(|limit| limit > before));
    }
}
