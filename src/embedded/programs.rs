//! Finds PostgreSQL's own programs.

use super::failure::{EmbeddedError, OLDEST};
use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// PostgreSQL's own programs.
pub(super) struct Programs {
    pub dir: PathBuf,
}

impl Programs {
    /// Searches the directory named, or else PATH and the usual places. Existing data need the
    /// version that created them.
    pub fn find(named: Option<&Path>, wanted: Option<u32>) -> Result<Programs, EmbeddedError> {
        let candidates = match named {
            Some(dir) => vec![dir.to_owned()],
            None => usual_places(),
        };
        let mut best: Option<(u32, PathBuf)> = None;
        for dir in candidates {
            let Some(version) = version_of(&dir) else {
                continue;
            };
            if wanted == Some(version) {
                return Ok(Programs { dir });
            }
            if best.as_ref().is_none_or(|(v, _)| version > *v) {
                best = Some((version, dir));
            }
        }
        match (best, wanted) {
            (None, _) => Err(EmbeddedError::NotInstalled(match named {
                Some(dir) => format!("{} does not contain postgres and initdb", dir.display()),
                None => "its programs were not found on PATH or in the usual places".into(),
            })),
            (Some((version, _)), Some(wanted)) => Err(EmbeddedError::NotInstalled(format!(
                "the data were created by PostgreSQL {wanted}, but only {version} is here: install PostgreSQL {wanted}, or move \
                 the directory away to start with an empty database"
            ))),
            (Some((version, _)), None) if version < OLDEST => Err(EmbeddedError::NotInstalled(
                format!("PostgreSQL {version} is too old"),
            )),
            (Some((_, dir)), None) => Ok(Programs { dir }),
        }
    }
}

/// Returns the version that created a data directory.
pub(super) fn data_version(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("PG_VERSION"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Returns PATH, then the usual places of Debian, Red Hat, a build from source, and macOS; the
/// newest version first.
fn usual_places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|p| std::env::split_paths(&p).collect())
        .unwrap_or_default();
    let mut versioned = Vec::new();
    for (parent, prefix, below) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(version) = name
                .strip_prefix(prefix)
                .and_then(|v| v.parse::<u32>().ok())
            {
                versioned.push((version, entry.path().join(below)));
            }
        }
    }
    versioned.sort_by_key(|(version, _)| Reverse(*version));
    places.extend(versioned.into_iter().map(|(_, dir)| dir));
    places.push("/usr/local/pgsql/bin".into());
    places
}

fn version_of(dir: &Path) -> Option<u32> {
    let postgres = dir.join("postgres");
    if !postgres.is_file() || !dir.join("initdb").is_file() {
        return None;
    }
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_postgresql_says_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let error = Programs::find(Some(empty.path()), None)
            .err()
            .unwrap()
            .to_string();
        for word in [
            "apt-get install postgresql",
            "PG_BIN_DIR",
            "DATABASE_URL",
            "14 or newer",
        ] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn data_of_another_version_are_not_touched() {
        let Some((dir, version)) = usual_places()
            .into_iter()
            .find_map(|d| version_of(&d).map(|v| (d, v)))
        else {
            panic!("PostgreSQL is not installed");
        };
        let error = Programs::find(Some(&dir), Some(version + 1))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(&format!("created by PostgreSQL {}", version + 1)),
            "{error}"
        );
    }
}
