//! The errors in a request: all are counted, and as many are named as a person would read.

use crate::server::Problem;
use serde_json::{Value, json};

/// How many errors are named, and in how many bytes.
pub(super) const MOST_NAMED: usize = 100;
const MOST_BYTES: usize = 32 << 10;
/// An unknown name is cut to this many characters.
const LONGEST_NAME: usize = 100;

/// The errors found so far.
#[derive(Default)]
pub(super) struct Wrong {
    count: usize,
    named: Vec<Value>,
    bytes: usize,
}

impl Wrong {
    /// An error in one field of the body.
    pub fn field(name: &str, detail: &str) -> Wrong {
        let mut wrong = Wrong::default();
        wrong.add_field(name, detail);
        wrong
    }

    pub fn add_field(&mut self, name: &str, detail: &str) {
        let name = shortened(name).replace('~', "~0").replace('/', "~1");
        self.add(json!({ "pointer": format!("#/{name}"), "detail": detail }));
    }

    /// Adds an error in the body as a whole.
    pub fn add_body(&mut self, detail: &str) {
        self.add(json!({ "pointer": "#", "detail": detail }));
    }

    pub fn add_parameter(&mut self, name: &str, detail: &str) {
        self.add(json!({ "parameter": shortened(name), "detail": detail }));
    }

    /// Adds an error in a line of a file.
    pub fn add_line(&mut self, number: u64, detail: &str) {
        if self.has_room() {
            self.add(json!({ "line": number, "detail": detail }));
        } else {
            self.count += 1;
        }
    }

    /// Counts more errors, which are not named.
    pub fn add_unnamed(&mut self, count: usize) {
        self.count += count;
    }

    /// Adds the errors of another list.
    pub fn append(&mut self, other: Wrong) {
        let unnamed = other.count - other.named.len();
        other.named.into_iter().for_each(|one| self.add(one));
        self.add_unnamed(unnamed);
    }

    /// Whether another error would be named.
    fn has_room(&self) -> bool {
        self.named.len() < MOST_NAMED && self.bytes < MOST_BYTES
    }

    fn add(&mut self, one: Value) {
        self.count += 1;
        if self.has_room() {
            self.bytes += one.to_string().len();
            self.named.push(one);
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The errors that are named.
    pub fn into_named(self) -> Vec<Value> {
        self.named
    }

    /// Fails with 422 if anything was wrong.
    pub fn refuse(self, detail: &str) -> Result<(), Problem> {
        match self.count {
            0 => Ok(()),
            _ => Err(self.add_to(Problem::of_kind(422, "invalid-fields", detail))),
        }
    }

    /// Adds the errors to a problem, and their number if not all are named.
    pub fn add_to(self, problem: Problem) -> Problem {
        let (count, all) = (self.count, self.count == self.named.len());
        let problem = problem.with("errors", self.named);
        match all {
            true => problem,
            false => problem.with("errorCount", count),
        }
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}..", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stays_short_however_much_is_wrong() {
        for name in ["x", &"\u{1}".repeat(1 << 20), &"ä/~".repeat(1000)] {
            let mut wrong = Wrong::default();
            for _ in 0..100_000 {
                wrong.add_field(name, "is unknown");
            }
            let all = wrong.count();
            let problem = wrong.refuse("some fields are wrong").unwrap_err();
            let answer = problem.into_response(None).body;
            assert!(answer.len() < 64 << 10, "{}", answer.len());
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!((all, &answer["errorCount"]), (100_000, &json!(100_000)));
        }
        assert!(Wrong::default().refuse("").is_ok());
    }
}
