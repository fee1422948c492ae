//! Parses the values of the HTTP server's settings, and checks those that depend on each other.

use super::http::HttpConfig;
use super::parse::as_ms;
use super::problem::Problem;
use ipnet::IpNet;
use std::net::IpAddr;

pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |text: &str| {
        let text = text.trim();
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| String::new())
    };
    text.split(',').map(network).collect()
}

pub(super) fn origins(text: &str) -> Result<Vec<String>, String> {
    let origin = |text: &str| {
        let text = text.trim();
        let host = text
            .strip_prefix("https://")
            .or(text.strip_prefix("http://"))
            .ok_or_else(String::new)?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
        match !host.is_empty() && host.bytes().all(fits) {
            true => Ok(text.to_owned()),
            false => Err(String::new()),
        }
    };
    text.split(',').map(origin).collect()
}

pub(super) fn token(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("takes printable ASCII without blanks, and is not empty".into())
    }
}

pub(super) fn hidden(token: Option<&String>) -> String {
    token.map(|_| "***".to_owned()).unwrap_or_default()
}

pub(super) fn delay_beyond_the_end(http: &HttpConfig) -> Option<Problem> {
    let (delay, timeout) = (http.shutdown_delay, http.shutdown_timeout);
    (delay > timeout).then(|| Problem {
        name: "SHUTDOWN_DELAY_MS",
        got: Some(as_ms(delay)),
        takes: format!("0 to SHUTDOWN_TIMEOUT_MS, which is {}", as_ms(timeout)),
    })
}
