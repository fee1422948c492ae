//! What the user asked for of TLS, as libpq defines it (PostgreSQL's manual, section 34.19).

use super::libpq::Parameters;
use std::fmt;
use std::path::PathBuf;

/// Whether the connection is encrypted, and what is verified of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only if the server refuses a plain connection.
    Allow,
    /// Encrypted if the server offers it. The default.
    #[default]
    Prefer,
    /// Always encrypted. The server's certificate is verified only if there is a file of roots.
    Require,
    /// The certificate was issued by a known authority.
    VerifyCa,
    /// The same, and for the name of this host.
    VerifyFull,
}

impl SslMode {
    const ALL: [(&'static str, SslMode); 6] = [
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];

    pub(super) fn parse(text: &str) -> Option<SslMode> {
        let found = SslMode::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, mode)| *mode)
    }

    /// Returns whether the connection must be encrypted.
    #[cfg(not(feature = "tls"))]
    fn is_required(self) -> bool {
        self >= SslMode::Require
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = SslMode::ALL.iter().find(|(_, mode)| mode == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

/// The authorities that are trusted to issue the server's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Roots {
    /// `~/.postgresql/root.crt`, if that exists.
    #[default]
    Default,
    File(PathBuf),
    /// Those of the operating system.
    System,
}

/// A version of TLS. Older ones are not built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    Tls12,
    Tls13,
}

/// The settings of TLS. A path that is `None` is libpq's default under `~/.postgresql`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub mode: SslMode,
    /// The handshake begins at once, without asking whether the server offers TLS.
    pub direct: bool,
    pub roots: Roots,
    pub revoked: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub sends_certificate: bool,
    pub sends_host_name: bool,
    pub least: TlsVersion,
    pub most: TlsVersion,
}

impl Default for TlsSettings {
    fn default() -> TlsSettings {
        TlsSettings {
            mode: SslMode::default(),
            direct: false,
            roots: Roots::default(),
            revoked: None,
            certificate: None,
            key: None,
            sends_certificate: true,
            sends_host_name: true,
            least: TlsVersion::Tls12,
            most: TlsVersion::Tls13,
        }
    }
}

impl TlsSettings {
    /// Reads them from the parameters, whose words were checked.
    pub(super) fn of(parameters: &Parameters) -> Result<TlsSettings, String> {
        let defaults = TlsSettings::default();
        let given = |name| parameters.get(name).filter(|value| !value.is_empty());
        let path = |name| given(name).map(PathBuf::from);
        let version = |name, otherwise| match given(name) {
            None => otherwise,
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "tlsv1.3" => Some(TlsVersion::Tls13),
                "tlsv1.2" => Some(TlsVersion::Tls12),
                _ => None,
            },
        };
        // As a lower bound, an older version asks for nothing that is not given.
        let least = version("ssl_min_protocol_version", Some(defaults.least));
        let least = least.unwrap_or(defaults.least);
        let most = version("ssl_max_protocol_version", Some(defaults.most));
        let Some(most) = most.filter(|most| *most >= least) else {
            return Err(
                "has an ssl_max_protocol_version below the least that is possible: takes TLSv1.2 or TLSv1.3, and no less than ssl_min_protocol_version"
                    .into(),
            );
        };
        Ok(TlsSettings {
            mode: given("sslmode")
                .and_then(SslMode::parse)
                .unwrap_or_default(),
            direct: given("sslnegotiation") == Some("direct"),
            roots: match given("sslrootcert") {
                None => Roots::Default,
                Some("system") => Roots::System,
                Some(path) => Roots::File(path.into()),
            },
            revoked: path("sslcrl"),
            certificate: path("sslcert"),
            key: path("sslkey"),
            sends_certificate: given("sslcertmode") != Some("disable"),
            sends_host_name: given("sslsni") != Some("0"),
            least,
            most,
        })
    }

    /// Returns what of these settings cannot be had without TLS.
    #[cfg(not(feature = "tls"))]
    pub(super) fn needs_tls(&self) -> Option<String> {
        let defaults = TlsSettings {
            mode: self.mode,
            ..TlsSettings::default()
        };
        match self {
            TlsSettings { mode, .. } if mode.is_required() => Some(format!("sslmode={mode}")),
            TlsSettings { direct: true, .. } => Some("sslnegotiation=direct".into()),
            other if *other != defaults => Some("a certificate or a version of TLS".into()),
            _ => None,
        }
    }
}
