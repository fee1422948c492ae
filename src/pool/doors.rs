//! What the modules above may do with a pool beyond its public methods.

use super::checkout::Pool;

#[cfg(feature = "server")]
impl Pool {
    pub(crate) fn metrics(&self) -> &crate::metrics::Metrics {
        &self.inner.shared.metrics
    }

    /// Returns whether reads may use standbys.
    pub(crate) fn has_standbys(&self) -> bool {
        self.inner.standbys.is_some()
    }

    /// Returns for how long the line for connections has had its order, if that has ever changed.
    pub(crate) fn order_for(&self) -> Option<std::time::Duration> {
        self.inner.line.figures().order_for
    }

    /// From now on, the database is asked for its health and its headroom, also if nobody wants to
    /// know.
    pub(crate) fn watch(&self) {
        self.inner.probe.watch();
    }

    /// From now on, this observer is told, too, also of connections to standbys.
    pub(crate) fn report_to(&self, observer: std::sync::Arc<dyn super::observer::Observer>) {
        for pool in self
            .inner
            .standbys
            .iter()
            .flat_map(super::standbys::Standbys::pools)
        {
            pool.report_to(std::sync::Arc::clone(&observer));
        }
        self.inner.shared.observers.add_server(observer);
    }

    /// Returns what the newest health probe found, which may be somewhat old; if it is, a new one is
    /// sent.
    pub(crate) fn newest_probe(&self) -> Option<super::pong::Reading> {
        self.inner.probe.newest(&self.inner.opener)
    }

    /// Returns why no connection can be opened, as long as none can be.
    pub(crate) fn why_nothing_opens(&self) -> Option<String> {
        let error = self.inner.opener.gate.last_error()?;
        Some(crate::error::Chain(&*error).to_string())
    }

    /// Returns whether the database runs on this machine, as far as its address shows.
    pub(crate) fn is_on_this_machine(&self) -> bool {
        let database = self.inner.opener.target.known();
        let mut servers = database.servers().iter();
        servers.all(crate::config::ServerHost::is_on_this_machine)
    }

    /// Makes new connections use a standby only if no host is a primary.
    pub(crate) fn look_for_primary(&self) {
        self.inner.opener.look_for_primary();
    }

    /// Returns whether the newest probe found the database read-only. Its answer may be somewhat
    /// old; if it is, a new probe is sent.
    pub(crate) fn was_read_only(&self) -> bool {
        matches!(self.newest_probe(), Some(Ok(pong)) if pong.read_only)
    }
}

#[cfg(feature = "studio")]
impl Pool {
    /// Opens a session outside the pool, for work that may take longer than any timeout allows.
    /// Waits for as long as the database is down.
    pub(crate) fn open_dedicated(
        &self,
    ) -> Result<super::session::Session, crate::error::OpenError> {
        let purpose = super::hedge::Purpose::Use;
        self.inner.opener.open_when_possible(None, purpose)
    }

    /// Returns whether a pooler stands between the pool and the server, so that settings of a
    /// session may affect other clients.
    pub(crate) fn is_pooled(&self) -> bool {
        self.inner.shared.is_pooled()
    }

    /// Retires the sessions of this generation, whose server takes no writes, if a new session may
    /// lead to another server.
    pub(crate) fn leave_standby(&self, generation: u64) {
        if self.inner.opener.may_lead_elsewhere() {
            self.inner.opener.leave_server(generation);
        }
    }
}
