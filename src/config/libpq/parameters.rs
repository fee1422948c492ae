//! Parameters of a connection, and where each comes from.

use super::conninfo;
use super::keywords::{self, KEYWORDS, Treatment};
use std::collections::BTreeMap;
use std::fmt;

/// The name of the text in problems.
pub(super) const TEXT: &str = "DATABASE_URL";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The URL or `key=value` string.
    Text,
    /// The service.
    Service,
    /// The variable of this name.
    Environment(&'static str),
    /// Not set by anyone.
    Default,
}

/// What is wrong, without any value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable; `DATABASE_URL` stands for the text.
    pub name: &'static str,
    /// What is wrong with it and what is accepted, to be written behind the name.
    pub says: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.says)
    }
}

impl std::error::Error for Problem {}

impl Problem {
    pub(super) fn new(name: &'static str, says: impl Into<String>) -> Problem {
        let says = says.into();
        Problem { name, says }
    }
}

/// The parameters that have a value, by libpq's names. Its `Debug` shows no password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    pub(super) values: BTreeMap<&'static str, (String, Origin)>,
}

/// Returns the parameters of the text alone, without services, environment and defaults.
///
/// # Errors
///
/// If the text is not accepted; the error does not quote it.
pub fn only(text: &str) -> Result<Parameters, String> {
    let mut all = Parameters::of(text)?;
    if all.get("service").is_some_and(|name| !name.is_empty()) {
        return Err(
            "names a service, which is not looked up here; give the parameters themselves".into(),
        );
    }
    all.settle(TEXT)
        .and_then(|()| all.check(TEXT))
        .map_err(|problem| problem.says)?;
    Ok(all)
}

impl Parameters {
    /// Returns the value of a parameter, by libpq's name for it. It can be empty, which in libpq
    /// is not the same as missing: an empty `application_name` has no fallback, say.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.values.get(keyword).map(|(value, _)| value.as_str())
    }

    /// Returns where the value of a parameter comes from.
    pub fn origin(&self, keyword: &str) -> Option<&Origin> {
        self.values.get(keyword).map(|(_, origin)| origin)
    }

    /// Returns names, values and origins, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str, &Origin)> {
        self.values
            .iter()
            .map(|(name, (value, origin))| (*name, value.as_str(), origin))
    }

    pub(super) fn of(text: &str) -> Result<Parameters, String> {
        let mut all = Parameters::default();
        // What is added first stays, and the last one of the text counts.
        for (name, value) in conninfo::parse(text)?.into_iter().rev() {
            all.add(&name, value, Origin::Text);
        }
        Ok(all)
    }

    pub(super) fn add(&mut self, name: &str, value: String, origin: Origin) {
        if let Some(keyword) = keywords::find(name) {
            self.values.entry(keyword.name).or_insert((value, origin));
        }
    }

    /// Checks the values that count, and drops those without effect.
    pub(super) fn settle(&mut self, service_named_by: &'static str) -> Result<(), Problem> {
        for keyword in KEYWORDS {
            if let Some((value, origin)) = self.values.get_mut(keyword.name) {
                *value = keyword
                    .accept(value)
                    .map_err(|says| origin.problem(service_named_by, says))?;
                if keyword.treatment != Treatment::Taken {
                    self.values.remove(keyword.name);
                }
            }
        }
        Ok(())
    }

    /// Checks that nobody believes in more security than there is.
    fn check_tls(&mut self) -> Result<(), (&'static str, String)> {
        if self.get("sslrootcert") == Some("system") {
            self.add("sslmode", "verify-full".into(), Origin::Default);
            if self.get("sslmode") != Some("verify-full") {
                let says = "asks for sslrootcert=system, which needs sslmode=verify-full";
                return Err(("sslrootcert", says.into()));
            }
        }
        let may_be_plain = matches!(
            self.get("sslmode"),
            None | Some("disable" | "allow" | "prefer")
        );
        if self.get("sslnegotiation") == Some("direct") && may_be_plain {
            let says = "asks for sslnegotiation=direct, which needs sslmode=require or stronger";
            return Err(("sslnegotiation", says.into()));
        }
        Ok(())
    }

    /// Checks that the lists of hosts, addresses and ports fit together.
    fn check_lists(&self) -> Result<(), (&'static str, String)> {
        let count = |name| match self.get(name) {
            None | Some("") => 0,
            Some(list) => list.split(',').count(),
        };
        let (hosts, addrs, ports) = (count("host"), count("hostaddr"), count("port"));
        if hosts > 0 && addrs > 0 && hosts != addrs {
            let says = format!("names {hosts} hosts but {addrs} addresses (hostaddr)");
            return Err(("hostaddr", says));
        }
        let hosts = hosts.max(addrs);
        if ports > 1 && ports != hosts {
            return Err(("port", format!("names {hosts} hosts but {ports} ports")));
        }
        Ok(())
    }

    pub(super) fn check(&mut self, service_named_by: &'static str) -> Result<(), Problem> {
        self.check_tls()
            .and_then(|()| self.check_lists())
            .map_err(|(name, says)| self.values[name].1.problem(service_named_by, says))
    }
}

impl Origin {
    /// Returns a problem with a value from here; the service is named by a variable.
    fn problem(&self, service_named_by: &'static str, says: impl Into<String>) -> Problem {
        match self {
            Origin::Environment(variable) => Problem::new(variable, says),
            Origin::Service => {
                Problem::new(service_named_by, format!("its service {}", says.into()))
            }
            Origin::Text | Origin::Default => Problem::new(TEXT, says),
        }
    }
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter().map(|(name, value, origin)| match name {
            "password" => (name, ("***", origin)),
            _ => (name, (value, origin)),
        });
        f.debug_map().entries(shown).finish()
    }
}
