//! The documentation matches what the program does.

use millpond::{Config, config};
use std::collections::BTreeSet;
use std::path::Path;

fn read(name: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Name and value of every line `# NAME=value` or `NAME=value`.
fn example() -> Vec<(String, String)> {
    let text = read(".env.example");
    let assignments = text.lines().filter_map(|line| {
        let (name, value) = line.trim_start_matches('#').trim_start().split_once('=')?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        is_name.then(|| (name.to_owned(), value.to_owned()))
    });
    assignments.collect()
}

#[test]
fn the_example_names_every_variable_with_its_default() {
    let defaults = Config::default();
    let effective = defaults.effective();
    let example = example();
    let names: Vec<_> = example.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        config::names().collect::<Vec<_>>(),
        ".env.example lists other variables than there are"
    );
    for (name, shown, _) in &effective {
        let value = &example.iter().find(|(n, _)| n == name).unwrap().1;
        // A setting without a default is shown with an example value.
        if !shown.is_empty() {
            assert_eq!(value, shown, "{name} in .env.example");
        }
    }
}

#[test]
fn the_example_is_taken_as_it_stands() {
    let example = example();
    let usable = example
        .iter()
        // A file has to exist, and the password is in the URL of the example.
        .filter(|(name, _)| !name.ends_with("_FILE") && name != "PG_BIN_DIR")
        .filter(|(name, _)| name != "DB_PASSWORD_COMMAND");
    Config::from_vars(usable.map(|(n, v)| (n.as_str(), v.as_str()))).unwrap();
}

#[test]
fn every_promise_of_the_readme_names_a_test_that_there_is() {
    let readme = read("README.md");
    let promises = readme.split("## What is promised").nth(1).unwrap();
    let promises = promises.split("\n## ").next().unwrap();
    let tests: Vec<_> = promises
        .split('`')
        .filter_map(|code| code.rsplit_once("::"))
        .filter(|(_, name)| name.contains('_'))
        .collect();
    assert!(tests.len() > 20, "{tests:?}");
    for (module, name) in tests {
        let source = read(&format!("tests/suite/{}.rs", module.replace("::", "/")));
        assert!(
            source.contains(&format!("#[test]\nfn {name}(")),
            "there is no {module}::{name}"
        );
    }
}

#[test]
fn the_readme_has_every_variable_with_its_default() {
    let readme = read("README.md");
    let defaults = Config::default();
    for (name, shown, _) in defaults.effective() {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the README's table"));
        let default = row.split('|').nth(2).unwrap().trim().trim_matches('`');
        if !shown.is_empty() {
            assert_eq!(
                default.split([' ', ',']).next().unwrap().trim_matches('`'),
                shown,
                "{name} in the README"
            );
        }
    }
}

#[test]
fn every_message_that_the_readme_explains_is_one_that_is_said() {
    let readme = read("README.md");
    let (_, table) = readme.split_once("### What to do when ..").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let said = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    let first_cells = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let mut explained = 0;
    for message in first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        // Variable parts of a message are written as dots or as N.
        for part in message.split("..").flat_map(|part| part.split(" N ")) {
            assert!(
                said.contains(part.trim()),
                "nothing says {part:?} ({message})"
            );
            explained += 1;
        }
    }
    assert!(explained > 10, "{explained}");
}

#[test]
fn the_assets_name_only_metrics_that_there_are() {
    // All names are literals there, of metrics and of labels.
    let metrics = sources(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/metrics"
    )));
    let exists = |name: &str| metrics.contains(&format!("\"{name}\""));
    let parts = ["_bucket", "_count", "_sum"];
    for asset in ["alerts.yml", "grafana.json"] {
        let text = read(&format!("src/cli/assets/{asset}"));
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let ours = ["millpond_", "db_client_", "http_server_"];
        let named: BTreeSet<_> = words
            .filter(|word| ours.iter().any(|start| word.starts_with(start)))
            .collect();
        assert!(named.len() > 15, "{asset}: {named:?}");
        for name in named {
            let whole = parts.iter().find_map(|part| name.strip_suffix(part));
            assert!(
                exists(name) || whole.is_some_and(exists),
                "{asset} names {name}"
            );
        }
    }
}

#[test]
fn every_alert_says_what_to_do_and_has_a_test() {
    let (rules, tests) = (
        read("src/cli/assets/alerts.yml"),
        read("tests/alerts_test.yml"),
    );
    let alerts = || rules.split("\n      - alert: ").skip(1);
    let names: BTreeSet<_> = alerts()
        .map(|alert| alert.lines().next().unwrap())
        .collect();
    assert!(
        names.len() > 15 && names.len() == alerts().count(),
        "{names:?}"
    );
    for alert in alerts() {
        let name = alert.lines().next().unwrap();
        for part in [
            "expr:",
            "severity:",
            "summary: \"{{ $labels.instance }}: ",
            "description: >-\n",
        ] {
            assert_eq!(alert.matches(part).count(), 1, "{name}: {part}");
        }
        let fires = format!("alertname: {name}\n        exp_alerts:\n");
        let is_silent = format!("alertname: {name}}}\n");
        assert!(
            tests.contains(&fires) && tests.contains(&is_silent),
            "{name} has no test"
        );
    }
}

/// The text of every Rust file in a folder.
fn sources(dir: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all += &std::fs::read_to_string(&path).unwrap();
        }
    }
    all
}
