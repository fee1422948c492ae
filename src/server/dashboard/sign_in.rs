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

    /// Whether the request's cookies are those of a browser that has signed in.
    pub fn has(&self, cookies: Option<&str>) -> bool {
        let all = unpoison(self.0.lock());
        let mut known = all.iter().filter(|(_, since)| since.elapsed() < LASTS);
        let given: Vec<_> = values(cookies).collect();
        known.any(|(value, _)| {
            let is = |given: &&str| given.as_bytes().ct_eq(value.as_bytes()).into();
            given.iter().any(is)
        })
    }

    /// Signs the browser out. Returns the header that removes its cookie.
    pub fn remove(&self, cookies: Option<&str>) -> String {
        let given: Vec<_> = values(cookies).collect();
        unpoison(self.0.lock()).retain(|(value, _)| !given.contains(&&**value));
        set_cookie("", Duration::ZERO, false)
    }
}

/// The values that our cookie has in the header `Cookie`.
fn values(cookies: Option<&str>) -> impl Iterator<Item = &str> {
    let pairs = cookies.unwrap_or_default().split(';');
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

    #[test]
    fn only_who_has_signed_in_is_known() {
        let signed_in = SignedIn::default();
        let header = signed_in.add(false).unwrap();
        assert!(header.contains("; HttpOnly; SameSite=Strict") && !header.contains("Secure"));
        let cookie = header.split(';').next().unwrap().to_owned();
        let others = format!("a=b; {cookie}; c=d");
        assert!(signed_in.has(Some(&cookie)) && signed_in.has(Some(&others)));
        for wrong in [
            None,
            Some(""),
            Some("millpond_dashboard="),
            Some("millpond_dashboard=0123456789abcdef0123456789abcdef"),
            Some("millpond_dashboard"),
        ] {
            assert!(!signed_in.has(wrong), "{wrong:?}");
        }
        assert!(signed_in.remove(Some(&others)).contains("Max-Age=0"));
        assert!(!signed_in.has(Some(&cookie)));
    }

    #[test]
    fn the_oldest_gives_way() {
        let signed_in = SignedIn::default();
        let first = signed_in.add(true).unwrap();
        assert!(first.ends_with("; Secure"));
        for _ in 0..MOST {
            signed_in.add(true).unwrap();
        }
        assert!(!signed_in.has(first.split(';').next()));
    }
}
