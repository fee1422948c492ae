//! Who has signed in to the dashboard: browsers, which have no token to send. Each gets a random
//! cookie instead, so that the token is neither in a URL nor in the browser's store.

use crate::hex::hex;
use crate::sync::unpoison;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

const COOKIE: &str = "millpond_dashboard";
const LASTS: Duration = Duration::from_secs(12 * 60 * 60);
/// More are not signed in at once; the oldest gives way.
const MOST: usize = 100;

/// The browsers that are signed in.
#[derive(Default)]
pub(crate) struct SignedIn(Mutex<VecDeque<(String, Instant)>>);

impl SignedIn {
    /// Signs a browser in. Returns the header that sets its cookie; `None` if the system has no
    /// random numbers.
    pub fn add(&self, encrypted: bool) -> Option<String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).ok()?;
        let value = hex(&random);
        let mut all = unpoison(self.0.lock());
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back((value.clone(), Instant::now()));
        Some(set_cookie(&value, LASTS, encrypted))
    }

    /// Whether a request comes from a browser that has signed in.
    pub fn has(&self, headers: &[(String, String)]) -> bool {
        let all = unpoison(self.0.lock());
        let mut known = all.iter().filter(|(_, since)| since.elapsed() < LASTS);
        let given: Vec<_> = values(headers).collect();
        known.any(|(value, _)| {
            let is = |given: &&str| given.as_bytes().ct_eq(value.as_bytes()).into();
            given.iter().any(is)
        })
    }

    /// Signs the browser out. Returns the header that removes its cookie.
    pub fn remove(&self, headers: &[(String, String)]) -> String {
        let given: Vec<_> = values(headers).collect();
        unpoison(self.0.lock()).retain(|(value, _)| !given.contains(&&**value));
        set_cookie("", Duration::ZERO, false)
    }
}

/// The values that our cookie has in the headers `Cookie`.
fn values(headers: &[(String, String)]) -> impl Iterator<Item = &str> {
    let cookies = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("Cookie"));
    let pairs = cookies.flat_map(|(_, value)| value.split(';'));
    pairs.filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    })
}

fn set_cookie(value: &str, lasts: Duration, encrypted: bool) -> String {
    let secure = if encrypted { "; Secure" } else { "" };
    format!(
        "{COOKIE}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}",
        lasts.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(all: &[&str]) -> Vec<(String, String)> {
        let header = |value: &&str| ("cookie".to_owned(), (*value).to_owned());
        all.iter().map(header).collect()
    }

    #[test]
    fn only_who_has_signed_in_is_known() {
        let signed_in = SignedIn::default();
        let header = signed_in.add(false).unwrap();
        assert!(header.contains("; HttpOnly; SameSite=Strict") && !header.contains("Secure"));
        let cookie = header.split(';').next().unwrap().to_owned();
        let among_others = format!("a=b; {cookie}; c=d");
        let known = |all: &[&str]| signed_in.has(&cookies(all));
        assert!(known(&[&cookie]) && known(&[&among_others]));
        assert!(known(&["a=b", "millpond_dashboard=other", &cookie]));
        for wrong in [
            "",
            "millpond_dashboard=",
            "millpond_dashboard=0123456789abcdef0123456789abcdef",
            "millpond_dashboard",
        ] {
            assert!(!known(&[wrong]), "{wrong:?}");
        }
        assert!(!known(&[]));
        let gone = signed_in.remove(&cookies(&[&among_others]));
        assert!(gone.contains("Max-Age=0"));
        assert!(!signed_in.has(&cookies(&[&cookie])));
    }

    #[test]
    fn the_oldest_gives_way() {
        let signed_in = SignedIn::default();
        let first = signed_in.add(true).unwrap();
        assert!(first.ends_with("; Secure"));
        for _ in 0..MOST {
            signed_in.add(true).unwrap();
        }
        let first = first.split(';').next().unwrap();
        assert!(!signed_in.has(&cookies(&[first])));
    }
}
