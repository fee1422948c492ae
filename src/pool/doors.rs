//! What the rooms above may do with a pool beyond its public calls.

use super::checkout::Pool;

#[cfg(feature = "server")]
impl Pool {
    pub(crate) fn metrics(&self) -> &crate::metrics::Metrics {
        &self.inner.shared.metrics
    }

    /// From now on, a standby is used only where no host is a primary.
    pub(crate) fn look_for_primary(&self) {
        self.inner.opener.look_for_primary();
    }

    /// What the newest probe found, which may be of a moment ago: a new one is sent where it is.
    pub(crate) fn was_read_only(&self) -> bool {
        let newest = self.inner.probe.newest(&self.inner.opener);
        matches!(newest, Some(Ok(pong)) if pong.read_only)
    }
}

#[cfg(feature = "studio")]
impl Pool {
    /// A session beside those of the pool, for work that may take longer than any timeout allows. It
    /// is waited for as long as the database is away.
    pub(crate) fn open_dedicated(
        &self,
    ) -> Result<super::session::Session, crate::error::OpenError> {
        let purpose = super::hedge::Purpose::Use;
        self.inner.opener.open_when_possible(None, purpose)
    }

    /// A pooler stands between: what is set on a session may reach strangers.
    pub(crate) fn is_pooled(&self) -> bool {
        self.inner.shared.is_pooled()
    }

    /// A session of this generation takes no writes: where another server may, it is looked for.
    pub(crate) fn leave_standby(&self, generation: u64) {
        if self.inner.opener.may_lead_elsewhere() {
            self.inner.opener.leave_server(generation);
        }
    }
}
