//! How much room the server has for more connections.

/// The server's connections, as the health probe saw them last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Headroom {
    /// The most connections that the server takes (`max_connections`).
    pub max: usize,
    /// Those of them that are kept for superusers and other privileged roles.
    pub reserved: usize,
    /// The sessions that are open, of all clients.
    pub in_use: usize,
    /// The same by `application_name`, the most first; at most 20 names, and `(others)`.
    pub by_application: Vec<(String, usize)>,
}

impl Headroom {
    /// Returns how many more connections ordinary roles may open.
    pub fn available(&self) -> usize {
        self.max
            .saturating_sub(self.reserved)
            .saturating_sub(self.in_use)
    }

    /// Returns whether less than a tenth of what ordinary roles may have is left.
    pub fn is_low(&self) -> bool {
        self.available() * 10 < self.max.saturating_sub(self.reserved)
    }
}
