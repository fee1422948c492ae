//! The parameters of a connection as libpq finds them: the text counts first, then the service that
//! it or `PGSERVICE` names, then the environment, then the defaults. The password file is left to
//! the caller, since it has a password for each host. So is the name of the operating system's
//! user, which libpq takes if no user is given.

use super::keywords::{KEYWORDS, PORT, SOCKET_DIRECTORY};
use super::parameters::{Origin, Parameters, Problem, TEXT};
use super::service;
use std::io;
use std::path::{Path, PathBuf};

/// Where Debian has the machine's services, if `PGSYSCONFDIR` does not say otherwise.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// The environment and the files. A test brings its own.
pub trait World {
    /// Returns a variable of the environment. An empty one counts as unset, unlike in libpq, which
    /// has no rule for all of them. One that is not Unicode should be returned with replacement
    /// characters, so that it is refused or found wrong and not dropped.
    fn var(&self, name: &str) -> Option<String>;

    /// Returns the content of a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    fn read(&self, path: &Path) -> io::Result<String>;
}

/// Returns the parameters of a connection as libpq finds them.
///
/// Without a text, and if neither a service nor the environment sets a parameter, nothing is asked
/// for and the result is empty. Otherwise it has a port and a host, unless `hostaddr` is given;
/// the default host is the directory of the server's socket. An empty entry in a list of hosts or
/// ports stands for the default, and stays empty here. `dbname` is the user's name unless
/// set; both are missing if the user is the operating system's. The default `passfile` is
/// `.pgpass` in `HOME`.
///
/// # Errors
///
/// With the first problem: a value that is not accepted, or a service that cannot be used.
pub fn gather(text: Option<&str>, world: &impl World) -> Result<Parameters, Problem> {
    let mut all = match text {
        Some(text) => Parameters::of(text).map_err(|says| Problem::new(TEXT, says))?,
        None => Parameters::default(),
    };
    let (named_by, service) = match all.get("service") {
        Some(service) => (TEXT, Some(service.to_owned())),
        None => ("PGSERVICE", set(world, "PGSERVICE")),
    };
    if let Some(service) = service.filter(|service| !service.is_empty()) {
        let pairs = find_service(&service, all.get("servicefile"), world)
            .map_err(|says| Problem::new(named_by, says))?;
        for (name, value) in pairs {
            all.add(&name, value, Origin::Service);
        }
    }
    all.add_environment(world);
    all.settle(named_by)?;
    if text.is_some() || !all.values.is_empty() {
        all.add_defaults(world);
    }
    all.check(named_by)?;
    Ok(all)
}

impl Parameters {
    fn add_environment(&mut self, world: &impl World) {
        for keyword in KEYWORDS {
            if let Some(variable) = keyword.variable
                && let Some(value) = set(world, variable)
            {
                self.add(keyword.name, value, Origin::Environment(variable));
            }
        }
        // Only a leading 1 means something, and only without an sslmode.
        if set(world, "PGREQUIRESSL").is_some_and(|value| value.starts_with('1')) {
            let origin = Origin::Environment("PGREQUIRESSL");
            self.add("sslmode", "require".into(), origin);
        }
    }

    /// Fills in what is missing. What was set to nothing asks for the default as well, and not for
    /// the variable.
    fn add_defaults(&mut self, world: &impl World) {
        let with_default = [
            "host", "hostaddr", "port", "user", "dbname", "password", "passfile",
        ];
        for name in with_default {
            if self.get(name) == Some("") {
                self.values.remove(name);
            }
        }
        if self.get("hostaddr").is_none() {
            let host = if cfg!(unix) {
                SOCKET_DIRECTORY
            } else {
                "localhost"
            };
            self.add("host", host.into(), Origin::Default);
        }
        self.add("port", PORT.into(), Origin::Default);
        if let Some(user) = self.get("user") {
            self.add("dbname", user.to_owned(), Origin::Default);
        }
        if let Some(home) = set(world, "HOME") {
            self.add("passfile", format!("{home}/.pgpass"), Origin::Default);
        }
    }
}

/// Returns a variable that is not empty.
fn set(world: &impl World, name: &str) -> Option<String> {
    world.var(name).filter(|value| !value.is_empty())
}

/// Looks a service up: in the file that is named, or else the user's, and then in the machine's.
fn find_service(
    name: &str,
    file: Option<&str>,
    world: &impl World,
) -> Result<Vec<(String, String)>, String> {
    let named = match file.filter(|file| !file.is_empty()) {
        Some(file) => Some((file.into(), "the file of servicefile")),
        None => set(world, "PGSERVICEFILE").map(|file| (file, "the file of PGSERVICEFILE")),
    };
    let must_exist = named.is_some();
    let first = named
        .map(|(file, label)| (PathBuf::from(file), label))
        .or_else(|| {
            let home = PathBuf::from(set(world, "HOME")?);
            Some((home.join(".pg_service.conf"), "~/.pg_service.conf"))
        });
    let system = match set(world, "PGSYSCONFDIR") {
        Some(directory) => (directory, "PGSYSCONFDIR/pg_service.conf"),
        None => (
            SYSTEM_DIRECTORY.into(),
            "/etc/postgresql-common/pg_service.conf",
        ),
    };
    let system = (Path::new(&system.0).join("pg_service.conf"), system.1);

    let mut looked_in = Vec::new();
    for (path, label) in first.into_iter().chain([system]) {
        match world.read(&path) {
            Ok(text) => {
                let found = service::find(&text, name)
                    .map_err(|says| format!("its service cannot be used: {label}, {says}"))?;
                if let Some(pairs) = found {
                    return Ok(pairs);
                }
                looked_in.push(label.to_owned());
            }
            Err(e) if must_exist && looked_in.is_empty() => {
                return Err(format!(
                    "names a service, but {label} cannot be read: {}",
                    e.kind()
                ));
            }
            Err(e) => looked_in.push(format!("{label} ({})", e.kind())),
        }
    }
    Err(format!(
        "names a service that is not defined; looked in {}",
        looked_in.join(" and ")
    ))
}

#[cfg(test)]
mod tests {
    use super::super::parameters::only;
    use super::*;

    /// An environment and files; a file whose text is `!` cannot be read.
    struct Fake<'a> {
        vars: &'a [(&'a str, &'a str)],
        files: &'a [(&'a str, &'a str)],
    }

    impl World for Fake<'_> {
        fn var(&self, name: &str) -> Option<String> {
            let found = self.vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        }

        fn read(&self, path: &Path) -> io::Result<String> {
            let found = self
                .files
                .iter()
                .find(|(known, _)| Path::new(known) == path);
            match found {
                None => Err(io::ErrorKind::NotFound.into()),
                Some((_, "!")) => Err(io::ErrorKind::PermissionDenied.into()),
                Some((_, text)) => Ok(text.to_string()),
            }
        }
    }

    const HOME: (&str, &str) = ("HOME", "/home/ada");
    const FILES: &[(&str, &str)] = &[
        (
            "/home/ada/.pg_service.conf",
            "[a]\nhost=a-host\nport=1\nuser=a-user\n[twice]\nhost=user-file\n\
             [bad]\ncolour=s3cret\n[crl]\nsslcrldir=/s3cret\n[port]\nport=s3cret\n\
             [ports]\nport=1,2",
        ),
        (
            "/etc/postgresql-common/pg_service.conf",
            "[twice]\nhost=system-file\n[system]\nhost=system-host",
        ),
        ("/sys/pg_service.conf", "[system]\nhost=sys-host"),
        ("/my/services", "[a]\nhost=my-host"),
        ("/broken", "!"),
    ];

    fn all(text: Option<&str>, vars: &[(&str, &str)]) -> Result<Parameters, Problem> {
        gather(text, &Fake { vars, files: FILES })
    }

    /// Writes `name=<value>origin`, with the origin's first letter.
    fn shown(parameters: &Parameters) -> String {
        let each = parameters.iter().map(|(name, value, origin)| {
            let origin = &format!("{origin:?}")[..1];
            format!("{name}=<{value}>{origin}")
        });
        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_text_counts_before_the_service_the_environment_and_the_defaults() {
        for (text, vars, expected) in [
            // Nothing is asked for.
            (None, &[][..], ""),
            (
                None,
                &[
                    HOME,
                    ("PGHOST", ""),
                    ("PGTZ", "UTC"),
                    ("PGDATA", "/x"),
                    ("PGKRBSRVNAME", "x"),
                ],
                "",
            ),
            // Defaults.
            (
                Some("postgresql://"),
                &[],
                "host=</var/run/postgresql>D port=<5432>D",
            ),
            (
                None,
                &[HOME, ("PGUSER", "u")],
                "dbname=<u>D host=</var/run/postgresql>D passfile=</home/ada/.pgpass>D port=<5432>D user=<u>E",
            ),
            (
                Some("host=h user=u"),
                &[HOME, ("PGPASSFILE", "/p")],
                "dbname=<u>D host=<h>T passfile=</p>E port=<5432>D user=<u>T",
            ),
            (Some("hostaddr=::1"), &[], "hostaddr=<::1>T port=<5432>D"),
            // What the text leaves open, a variable sets.
            (
                Some("postgresql://h/d"),
                &[
                    ("PGHOST", "x"),
                    ("PGPORT", "2"),
                    ("PGUSER", "u"),
                    ("PGDATABASE", "x"),
                    ("PGPASSWORD", "p"),
                ],
                "dbname=<d>T host=<h>T password=<p>E port=<2>E user=<u>E",
            ),
            // As in libpq the address is another parameter than the host.
            (
                Some("postgresql://h/d"),
                &[("PGHOSTADDR", "127.0.0.1")],
                "dbname=<d>T host=<h>T hostaddr=<127.0.0.1>E port=<5432>D",
            ),
            // Set to nothing is set.
            (
                Some("host= user='' dbname='' port='' password='' passfile='' application_name=''"),
                &[
                    ("PGHOST", "x"),
                    ("PGUSER", "x"),
                    ("PGDATABASE", "x"),
                    ("PGPORT", "2"),
                    ("PGPASSWORD", "x"),
                    ("PGPASSFILE", "x"),
                    ("PGAPPNAME", "x"),
                ],
                // The blank behind host= is skipped, so that the host's value is user=''.
                "application_name=<>T dbname=<x>D host=<user=''>T port=<5432>D user=<x>E",
            ),
            (
                Some("user='' host='' hostaddr='' dbname='' application_name=''"),
                &[
                    ("PGHOST", "x"),
                    ("PGUSER", "x"),
                    ("PGDATABASE", "x"),
                    ("PGAPPNAME", "x"),
                ],
                "application_name=<>T host=</var/run/postgresql>D port=<5432>D",
            ),
            (
                Some("host=a host=b port=1 port=''"),
                &[("PGPORT", "2")],
                "host=<b>T port=<5432>D",
            ),
            (
                Some("port=many port=1"),
                &[],
                "host=</var/run/postgresql>D port=<1>T",
            ),
            // Several hosts.
            (
                Some("postgresql://a:1,b"),
                &[("PGPORT", "3")],
                "host=<a,b>T port=<1,>T",
            ),
            (
                Some("postgresql://a,b"),
                &[("PGPORT", "3")],
                "host=<a,b>T port=<,>T",
            ),
            (
                Some("host=a,b"),
                &[("PGPORT", "3,4")],
                "host=<a,b>T port=<3,4>E",
            ),
            // Services.
            (
                Some("service=a user=u"),
                &[
                    ("PGHOST", "x"),
                    HOME,
                    ("PGSERVICE", "x"),
                    ("PGDATABASE", "d"),
                ],
                "dbname=<d>E host=<a-host>S passfile=</home/ada/.pgpass>D port=<1>S service=<a>T user=<u>T",
            ),
            (
                None,
                &[("PGSERVICE", "a"), ("PGSERVICEFILE", "/my/services")],
                "host=<my-host>S port=<5432>D service=<a>E servicefile=</my/services>E",
            ),
            (
                Some("service=a servicefile=/my/services"),
                &[HOME, ("PGSERVICEFILE", "/absent")],
                "host=<my-host>S passfile=</home/ada/.pgpass>D port=<5432>D service=<a>T servicefile=</my/services>T",
            ),
            (
                Some("service=system"),
                &[("PGSERVICEFILE", "/my/services")],
                "host=<system-host>S port=<5432>D service=<system>T servicefile=</my/services>E",
            ),
            (
                Some("service=system"),
                &[("PGSYSCONFDIR", "/sys")],
                "host=<sys-host>S port=<5432>D service=<system>T",
            ),
            (
                Some("host=h service=''"),
                &[("PGSERVICE", "absent")],
                "host=<h>T port=<5432>D service=<>T",
            ),
            (
                Some("service=port port=1"),
                &[HOME],
                "host=</var/run/postgresql>D passfile=</home/ada/.pgpass>D port=<1>T service=<port>T",
            ),
            // TLS.
            (
                None,
                &[("PGREQUIRESSL", "1")],
                "host=</var/run/postgresql>D port=<5432>D sslmode=<require>E",
            ),
            (None, &[("PGREQUIRESSL", "0")], ""),
            (
                None,
                &[("PGREQUIRESSL", "1"), ("PGSSLMODE", "prefer")],
                "host=</var/run/postgresql>D port=<5432>D sslmode=<prefer>E",
            ),
            (
                Some("host=h sslmode=disable"),
                &[("PGREQUIRESSL", "1")],
                "host=<h>T port=<5432>D sslmode=<disable>T",
            ),
            (
                Some("host=h"),
                &[("PGSSLROOTCERT", "system")],
                "host=<h>T port=<5432>D sslmode=<verify-full>D sslrootcert=<system>E",
            ),
            // Without effect, and what hides a value that would be refused.
            (
                Some("host=h gssencmode=prefer"),
                &[("PGGSSENCMODE", "require")],
                "host=<h>T port=<5432>D",
            ),
            (
                Some("host=h requirepeer=''"),
                &[("PGREQUIREPEER", "root")],
                "host=<h>T port=<5432>D",
            ),
            (
                Some("host=h"),
                &[("PGREQUIREPEER", ""), ("PGCLIENTENCODING", "utf8")],
                "host=<h>T port=<5432>D",
            ),
        ] {
            let found = all(text, vars).unwrap_or_else(|problem| panic!("{text:?}: {problem}"));
            assert_eq!(shown(&found), expected, "{text:?} {vars:?}");
        }
        let twice = all(Some("service=twice"), &[HOME]).unwrap();
        assert_eq!(twice.get("host"), Some("user-file"));
        let variable = all(None, &[("PGAPPNAME", "x")]).unwrap();
        let origin = Origin::Environment("PGAPPNAME");
        assert_eq!(variable.origin("application_name"), Some(&origin));
    }

    #[test]
    fn problems_name_the_variable_and_hold_no_value() {
        for (text, vars, says) in [
            (Some(""), &[][..], "DATABASE_URL: is set but empty"),
            (
                Some("host=h colour=s3cret"),
                &[],
                "DATABASE_URL: has an unknown parameter: colour",
            ),
            (
                Some("host=h port=s3cret"),
                &[],
                "DATABASE_URL: has a bad value for port",
            ),
            (
                Some("host=h connect_timeout=s3cret"),
                &[],
                "DATABASE_URL: has a bad value for connect_timeout",
            ),
            (
                Some("host=a,b,c port=1,2"),
                &[],
                "DATABASE_URL: names 3 hosts but 2 ports",
            ),
            (
                Some("host=a,b hostaddr=::1"),
                &[],
                "DATABASE_URL: names 2 hosts but 1 addresses",
            ),
            (
                Some("host=h"),
                &[("PGPORT", "1,2")],
                "PGPORT: names 1 hosts but 2 ports",
            ),
            (
                Some("host=a,b"),
                &[("PGHOSTADDR", "::1")],
                "PGHOSTADDR: names 2 hosts but 1",
            ),
            (
                None,
                &[("PGPORT", "s3cret")],
                "PGPORT: has a bad value for port",
            ),
            (
                None,
                &[("PGSSLMODE", "s3cret")],
                "PGSSLMODE: has a bad value for sslmode: takes disable,",
            ),
            (
                None,
                &[("PGREQUIREPEER", "s3cret")],
                "PGREQUIREPEER: asks for requirepeer, which",
            ),
            (
                Some("host=h"),
                &[("PGREQUIREAUTH", "s3cret")],
                "PGREQUIREAUTH: asks for require_auth",
            ),
            (
                Some("host=h"),
                &[("PGSSLCRLDIR", "/s3cret")],
                "PGSSLCRLDIR: asks for sslcrldir",
            ),
            (
                Some("host=h"),
                &[("PGGSSENCMODE", "require")],
                "PGGSSENCMODE: has a bad value",
            ),
            (
                Some("host=h"),
                &[("PGCLIENTENCODING", "LATIN1")],
                "PGCLIENTENCODING: has a bad value",
            ),
            (
                Some("host=h"),
                &[("PGSSLCERTMODE", "require")],
                "PGSSLCERTMODE: has a bad value",
            ),
            (
                Some("host=h sslrootcert=system sslmode=require"),
                &[],
                "DATABASE_URL: asks for sslrootcert=system, which",
            ),
            (
                Some("host=h sslmode=require"),
                &[("PGSSLROOTCERT", "system")],
                "PGSSLROOTCERT: asks for sslrootcert=system, which",
            ),
            (
                Some("postgresql://u:s3cret@h/d?sslnegotiation=direct&sslmode=prefer"),
                &[],
                "DATABASE_URL: asks for sslnegotiation=direct, which",
            ),
            // Services.
            (
                Some("service=s3cret"),
                &[HOME],
                "DATABASE_URL: names a service that is not defined; looked in ~/.pg_service.conf and \
                 /etc/postgresql-common/pg_service.conf",
            ),
            (
                None,
                &[("PGSERVICE", "s3cret"), ("PGSYSCONFDIR", "/absent")],
                "PGSERVICE: names a service that is not defined; looked in \
                 PGSYSCONFDIR/pg_service.conf (entity not found)",
            ),
            (
                None,
                &[("PGSERVICE", "s3cret"), ("PGSERVICEFILE", "/s3cret")],
                "PGSERVICE: names a service, but the file of PGSERVICEFILE cannot be read: entity not found",
            ),
            (
                Some("service=a servicefile=/broken"),
                &[],
                "DATABASE_URL: names a service, but the file of servicefile cannot be read: permission denied",
            ),
            (
                Some("service=bad"),
                &[HOME],
                "DATABASE_URL: its service cannot be used: ~/.pg_service.conf, line 8 has an unknown parameter: colour",
            ),
            (
                None,
                &[HOME, ("PGSERVICE", "crl")],
                "PGSERVICE: its service asks for sslcrldir",
            ),
            (
                Some("service=port"),
                &[HOME],
                "DATABASE_URL: its service has a bad value for port",
            ),
            (
                None,
                &[HOME, ("PGSERVICE", "ports")],
                "PGSERVICE: its service names 1 hosts but 2 ports",
            ),
        ] {
            let problem = all(text, vars).unwrap_err().to_string();
            assert!(problem.contains(says), "{text:?} {vars:?}: {problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }

    #[test]
    fn the_text_alone_has_neither_services_nor_defaults() {
        for (text, expected) in [
            ("postgresql://", ""),
            ("user=u", "user=<u>T"),
            (
                "postgresql://h/d?gssencmode=disable&keepalives_retries=3",
                "dbname=<d>T host=<h>T keepalives_count=<3>T",
            ),
            ("host='' service=''", "host=<>T service=<>T"),
            (
                "host=h sslrootcert=system",
                "host=<h>T sslmode=<verify-full>D sslrootcert=<system>T",
            ),
            (
                "host=h tcp_user_timeout=' 30000'",
                "host=<h>T tcp_user_timeout=<30000>T",
            ),
        ] {
            assert_eq!(shown(&only(text).unwrap()), expected, "{text}");
        }
        for (text, says) in [
            (
                "service=s3cret",
                "names a service, which is not looked up here",
            ),
            ("host=h port=s3cret", "has a bad value for port"),
            ("host=a,b,c port=1,2", "names 3 hosts but 2 ports"),
            (
                "postgresql://h?sslnegotiation=direct",
                "asks for sslnegotiation=direct",
            ),
            (
                "postgresql://h?pgbouncer=maybe",
                "has a bad value for pgbouncer",
            ),
            ("host=h sslpassword=s3cret", "asks for sslpassword"),
        ] {
            let said = only(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let shown = format!("{:?}", only("postgresql://u:s3cret@h").unwrap());
        assert_eq!(
            shown,
            "{\"host\": (\"h\", Text), \"password\": (\"***\", Text), \"user\": (\"u\", Text)}"
        );
    }
}
