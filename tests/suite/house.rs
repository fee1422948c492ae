//! The structure of the crate: imports point down, never up and never in a circle, and no file
//! exceeds a maximum length.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The layers, lowest first. A module may import its own layer and the layers below it.
const LAYERS: [&[&str]; 13] = [
    &[
        "hex",
        "sync",
        "retry",
        "metrics",
        "fd_limit",
        "secrets",
        "temporary",
        "token",
        "traceparent",
        "class_queue",
        "line_rule",
    ],
    &["error"],
    &["config"],
    &["tls"],
    &["pool"],
    &["commit"],
    &["call"],
    &["health"],
    &["embedded"],
    &["server"],
    &["studio"],
    &["lib"],
    &["cli", "main"],
];
/// The most lines of a file, without its tests.
const LONGEST: usize = 500;

type Sources = BTreeMap<String, String>;

/// The modules by path (such as `pool/line`) with their code, without comments and tests.
fn sources() -> Sources {
    fn walk(dir: &Path, found: &mut Sources) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(root()).unwrap().with_extension("");
                let name = inside.to_str().unwrap();
                let name = name.strip_suffix("/mod").unwrap_or(name);
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                found.insert(name.to_owned(), code.to_owned());
            }
        }
    }
    let mut found = Sources::new();
    walk(&root(), &mut found);
    found
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn without_comments(code: &str) -> String {
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path that begins with `crate::` or `super::`. A path with braces is split into one path
/// for each item.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            expand(String::new(), &code[at..], &mut found);
        }
    }
    found
}

/// Reads one path at the beginning of `text`, and returns the text that follows it.
fn expand<'t>(prefix: String, text: &'t str, found: &mut Vec<String>) -> &'t str {
    let is_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_of_path(c)).unwrap_or(text.len());
    let (path, mut rest) = (prefix + &text[..end], &text[end..]);
    if !(path.ends_with("::") && rest.starts_with('{')) {
        found.push(path);
        return rest;
    }
    rest = &rest[1..];
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if let Some(behind) = rest.strip_prefix('}') {
            return behind;
        }
        rest = expand(path.clone(), rest, found);
        let next = rest.find([',', '}']).expect("braces are closed");
        rest = &rest[next..];
    }
}

/// The module that `path` refers to in the module `from`.
fn target(from: &str, path: &str, all: &Sources) -> String {
    let mut at: Vec<&str> = match from {
        "lib" | "main" => Vec::new(),
        _ => from.split('/').collect(),
    };
    let mut segments = path.split("::").peekable();
    while let Some(word) = segments.peek() {
        match *word {
            "crate" => at.clear(),
            "super" => drop(at.pop()),
            _ => break,
        }
        segments.next();
    }
    for segment in segments {
        at.push(segment);
        if !all.contains_key(&at.join("/")) {
            at.pop();
            break;
        }
    }
    match at.is_empty() {
        true => "lib".to_owned(),
        false => at.join("/"),
    }
}

fn imports(all: &Sources) -> BTreeMap<&str, BTreeSet<String>> {
    let of = |(name, code): (_, &String)| {
        let to = paths(&without_comments(code));
        let to = to.iter().map(|path| target(name, path, all));
        (name, to.filter(|to| to != name).collect())
    };
    all.iter()
        .map(|(name, code)| of((name.as_str(), code)))
        .collect()
}

fn layer(module: &str) -> usize {
    let room = module.split('/').next().unwrap();
    let at = LAYERS.iter().position(|rooms| rooms.contains(&room));
    at.unwrap_or_else(|| panic!("{module} is in no layer"))
}

#[test]
fn imports_point_down_and_never_in_a_circle() {
    let all = sources();
    let imports = imports(&all);
    let mut wrong = Vec::new();
    for (from, to) in &imports {
        for to in to {
            let is_face = to == "lib" || from.starts_with(&format!("{to}/"));
            if layer(to) > layer(from) || is_face {
                wrong.push(format!("{from} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Removes modules that import no remaining module, until nothing changes. A circle remains.
    let mut left = imports;
    loop {
        let names: Vec<_> = left.keys().map(|name| (*name).to_owned()).collect();
        let before = left.len();
        left.retain(|_, to| to.iter().any(|to| names.contains(to)));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "in a circle, or above one: {left:#?}");
}

#[test]
fn nobody_reaches_through_the_walls_of_the_pool() {
    let above = ["health", "server", "studio", "embedded", "cli", "main"];
    let reaches = |code: &str| {
        let code: String = without_comments(code).split_whitespace().collect();
        code.contains("pool.inner")
    };
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(name, code)| above.contains(&name.split('/').next().unwrap()) && reaches(code))
        .map(|(name, _)| name)
        .collect();
    assert!(wrong.is_empty(), "src/pool/doors.rs is the way: {wrong:?}");
}

#[test]
fn nobody_but_the_lanes_names_tiny_http() {
    let names = |(name, code): (String, String)| {
        let is_named = without_comments(&code).contains("tiny_http");
        is_named.then_some(name)
    };
    let named: Vec<_> = sources().into_iter().filter_map(names).collect();
    let inside = |name: &String| name.starts_with("server/lane/");
    assert!(!named.is_empty() && named.iter().all(inside), "{named:?}");
}

#[test]
fn a_file_can_be_read_in_one_sitting() {
    let all = sources();
    let lines = |code: &str| code.lines().count();
    let long: Vec<_> = all
        .iter()
        .filter(|(_, code)| lines(code) > LONGEST)
        .map(|(name, code)| format!("{name}: {} lines", lines(code)))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_map_names_files_that_there_are() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let is_path = |text: &&str| text.contains('/') && !text.contains([' ', '=']);
    let named: Vec<_> = map.split('`').skip(1).step_by(2).filter(is_path).collect();
    assert!(named.len() > 30, "{named:?}");
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in named {
        assert!(top.join(path).exists(), "{path}");
    }
}
