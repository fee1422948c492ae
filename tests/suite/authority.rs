//! A certificate authority for the tests, made with the program `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub struct Authority {
    dir: TempDir,
}

/// The files of a certificate and its key.
#[derive(Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let dir = tempfile::Builder::new()
            .prefix("millpond-ca-")
            .tempdir()
            .unwrap();
        open_to_all(dir.path(), 0o755);
        let authority = Authority { dir };
        authority.sign_itself("root", name);
        authority
    }

    /// An authority whose own certificate has these extensions (none: it is of the first version),
    /// and is valid for so many days.
    pub fn odd(extensions: &str, days: &str) -> Authority {
        let authority = Authority::new("odd");
        authority.openssl(&[
            "req", "-new", "-key", "root.key", "-subj", "/CN=odd", "-out", "root.csr",
        ]);
        std::fs::write(authority.dir.path().join("root.ext"), extensions).unwrap();
        let mut arguments = vec![
            "x509", "-req", "-in", "root.csr", "-signkey", "root.key", "-days", days, "-out",
            "root.crt",
        ];
        if !extensions.is_empty() {
            arguments.extend(["-extfile", "root.ext"]);
        }
        authority.openssl(&arguments);
        authority
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root.crt")
    }

    /// Issues a certificate. `names` is a list like `DNS:localhost,IP:127.0.0.1`; without names,
    /// the certificate is of the first version of the format, as PostgreSQL's manual makes it.
    pub fn issue(&self, file: &str, common_name: &str, names: &str, days: &str) -> Files {
        let (key, request, certificate) = (
            format!("{file}.key"),
            format!("{file}.csr"),
            format!("{file}.crt"),
        );
        self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            &format!("/CN={common_name}"),
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        let extensions = format!("{file}.ext");
        std::fs::write(
            self.dir.path().join(&extensions),
            format!("subjectAltName={names}\n"),
        )
        .unwrap();
        let mut arguments = vec![
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "root.crt",
            "-CAkey",
            "root.key",
            "-CAcreateserial",
            "-days",
            days,
            "-out",
            &certificate,
        ];
        if !names.is_empty() {
            arguments.extend(["-extfile", &extensions]);
        }
        self.openssl(&arguments);
        self.files(file)
    }

    /// A certificate that its own key has signed.
    pub fn sign_itself(&self, file: &str, common_name: &str) -> Files {
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            &format!("/CN={common_name}"),
            "-keyout",
            &format!("{file}.key"),
            "-out",
            &format!("{file}.crt"),
        ]);
        self.files(file)
    }

    fn files(&self, file: &str) -> Files {
        let path = |end: &str| self.dir.path().join(format!("{file}.{end}"));
        let files = Files {
            certificate: path("crt"),
            key: path("key"),
        };
        open_to_all(&files.key, 0o600);
        files
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .expect("the program openssl, for the tests of TLS (apt-get install openssl)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments:?}: {said}");
    }
}

impl Files {
    /// Gives the key to the user whom a private server runs as, if that is not the tests' own.
    pub fn for_the_server(self) -> Files {
        if nix::unistd::geteuid().is_root() {
            let user = ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| nix::unistd::User::from_name(name).ok()?)
                .expect("a user for the server");
            nix::unistd::chown(&self.key, Some(user.uid), None).unwrap();
        }
        self
    }

    /// The settings with which a server uses them.
    pub fn settings(&self) -> [(&'static str, String); 3] {
        let shown = |path: &Path| path.display().to_string();
        [
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", shown(&self.certificate)),
            ("ssl_key_file", shown(&self.key)),
        ]
    }
}

fn open_to_all(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
