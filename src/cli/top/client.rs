//! Asks one server for its figures, each time for what is new.

use super::reading::{Reading, VERSION, Versioned};
use super::text::Text;
use crate::cli::failure::Failure;
use crate::cli::running_server;
use std::cell::Cell;
use std::time::Duration;
use ureq::Agent;
use ureq::http::StatusCode;

const PATH: &str = "/api/metrics/live";
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Why there is no reading.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may pass: the server is away, or cannot answer now.
    Passing(Text),
    /// It will not pass by itself.
    Lasting(Text),
}

pub(super) struct Client {
    agent: Agent,
    url: String,
    token: Option<String>,
    /// The server has asked for a token.
    is_asked: Cell<bool>,
    /// When the server was started that is known, and up to which number it was read.
    known: Option<(Text, u64)>,
}

impl Client {
    pub fn new(given: &str, token: Option<String>) -> Result<Client, Failure> {
        let base = given.trim_end_matches('/');
        // What is in the browser's address bar is meant as well.
        let base = base.strip_suffix("/dashboard").unwrap_or(base);
        Ok(Client {
            agent: running_server::agent(LIMIT),
            url: running_server::url_to_ask(base, PATH, &[PATH])?,
            token,
            is_asked: Cell::new(false),
            known: None,
        })
    }

    /// The server's address, as people write it.
    pub fn server(&self) -> Text {
        let address = self.url.trim_start_matches("http://");
        Text::from(address.trim_end_matches(PATH))
    }

    /// Asks for what is new.
    pub fn next(&mut self) -> Result<Reading, Trouble> {
        let after = self.known.as_ref().map_or(0, |(_, sequence)| *sequence);
        let mut reading = self.ask(after)?;
        let same = |(started_at, _): &(Text, u64)| *started_at == reading.started_at;
        // A server that was started again may have got further than the one before.
        if after > 0 && !self.known.as_ref().is_some_and(same) {
            reading = self.ask(0)?;
        }
        self.known = Some((reading.started_at.clone(), reading.sequence));
        Ok(reading)
    }

    fn ask(&self, after: u64) -> Result<Reading, Trouble> {
        let no_answer = |e: ureq::Error| Trouble::Passing(format!("no answer: {e}").into());
        let send = || {
            let request = self.agent.get(format!("{}?after={after}", self.url));
            match self.token.as_ref().filter(|_| self.is_asked.get()) {
                Some(token) => request.header("Authorization", format!("Bearer {token}")),
                None => request,
            }
            .call()
            .map_err(no_answer)
        };
        let mut answer = send()?;
        // Not before: another program may be at this address.
        let asks = answer.headers().contains_key("WWW-Authenticate");
        if answer.status() == StatusCode::UNAUTHORIZED && asks && self.token.is_some() {
            self.is_asked.set(true);
            answer = send()?;
        }
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(self.refused(status));
        }
        let body = answer.body_mut().read_to_vec().map_err(no_answer)?;
        self.read(&body)
    }

    fn refused(&self, status: StatusCode) -> Trouble {
        let url = &self.url;
        let lasting = |text: String| Trouble::Lasting(text.into());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.token.is_some() => lasting(
                format!("{url} does not accept this METRICS_TOKEN; set it to the server's"),
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => lasting(format!(
                "{url} asks for a token; set METRICS_TOKEN to the server's, in the environment or in .env"
            )),
            StatusCode::NOT_FOUND => lasting(format!(
                "there is no {url}: this is another program, or a millpond of an older release"
            )),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Trouble::Passing(format!("the server answered {status}").into())
            }
            status if status.is_server_error() => {
                Trouble::Passing(format!("the server answered {status}").into())
            }
            status => lasting(format!("{url} answered {status} instead of its figures")),
        }
    }

    fn read(&self, body: &[u8]) -> Result<Reading, Trouble> {
        let url = &self.url;
        let other = |e: serde_json::Error| {
            let text = format!("{url} did not answer with a millpond's figures: {e}");
            Trouble::Lasting(text.into())
        };
        let found: Versioned = serde_json::from_slice(body).map_err(other)?;
        if found.version != VERSION {
            let text = format!(
                "{url} answers with version {} of its figures, and this program reads version {VERSION}; use the millpond of the server's release",
                found.version
            );
            return Err(Trouble::Lasting(text.into()));
        }
        serde_json::from_slice(body).map_err(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboards_url_will_do() {
        for (given, server) in [
            ("http://127.0.0.1:3000/", "127.0.0.1:3000"),
            ("http://h:1/dashboard", "h:1"),
            ("http://h:1/app/dashboard/", "h:1/app"),
            ("http://h:1/api/metrics/live", "h:1"),
        ] {
            let client = Client::new(given, None).ok().unwrap();
            assert_eq!(client.server().as_str(), server);
            assert!(client.url.ends_with(PATH));
        }
    }
}
