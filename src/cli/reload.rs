//! What SIGHUP does: the settings are read again, and those that can change while the server runs are
//! taken over.

use super::logger;
use log::{error, info, warn};
use millpond::config::Config;
use millpond::server::Server;

/// The settings in force, as they were read.
pub(super) struct Reload {
    config: Config,
}

impl Reload {
    pub fn of(config: &Config) -> Reload {
        let config = config.clone();
        Reload { config }
    }

    /// Reads the settings again, for this server. A bad value changes nothing.
    pub fn read_again(&mut self, server: &Server) {
        let read = match Config::from_env() {
            Ok(read) => read,
            Err(errors) => return error!("the settings stay as they are: {errors}"),
        };
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for name in read.differences(&self.config) {
            match name {
                "LOG_LEVEL" => {
                    self.config.log_level = read.log_level;
                    taken.push(name);
                }
                "HTTP_TRUSTED_PROXIES" => {
                    let proxies = &read.http.trusted_proxies;
                    server.set_trusted_proxies(proxies.clone());
                    self.config.http.trusted_proxies.clone_from(proxies);
                    taken.push(name);
                }
                _ => left.push(name),
            }
        }
        logger::set_level(self.config.log_level);
        match taken.is_empty() {
            true => info!("the settings were read again: none of those in force has changed"),
            false => info!("the settings were read again: {} changed", taken.join(", ")),
        }
        if !left.is_empty() {
            warn!("what has changed in {} needs a restart", left.join(", "));
        }
    }
}
