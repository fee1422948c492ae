//! The studio's API over HTTP, with the settings that the program would have.

mod api;
mod faults;
mod import;
mod keys;
mod schema;

use super::http::{Answer, Client};
use super::support::{Database, admin, database};
use millpond::pool::Builder;
use millpond::server::{DatabaseKind, Router, Server};
use millpond::studio::{SCHEMA, Studio};
use millpond::{Config, Pool};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// A server with the studio's routes.
struct Served {
    pool: Pool,
    studio: Studio,
    server: Server,
    addr: SocketAddr,
}

impl Served {
    /// Starts the server, without any migrations.
    fn start(url: &str, vars: &[(&str, &str)]) -> Served {
        let own = [
            ("HTTP_ADDR", "127.0.0.1:0"),
            ("DATABASE_URL", url),
            ("DB_RETRY_INITIAL_DELAY_MS", "5"),
        ];
        let config = Config::from_vars(own.iter().chain(vars).copied()).unwrap();
        let pool = Builder::from(config.pool).ledger_schema(SCHEMA);
        let pool = pool.build().unwrap();
        let studio = Studio::new(pool.clone(), &config.studio_currency);
        let studio = studio.with_workers(config.http.workers.unwrap_or(40));
        let router = studio.routes(Router::new());
        let server =
            Server::start(config.http, pool.clone(), router, DatabaseKind::External).unwrap();
        let addr = server.addr();
        Served {
            pool,
            studio,
            server,
            addr,
        }
    }

    fn on(url: &str, vars: &[(&str, &str)]) -> Served {
        let served = Served::start(url, vars);
        served.studio.migrate().unwrap();
        served
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        Client::to(self.addr).ask(method, path, headers, body.as_bytes())
    }

    /// Clients whose connections are kept. They connect one after the other: each is served before
    /// the next connects.
    fn clients(&self, how_many: usize) -> Vec<Client> {
        let connected = (0..how_many).map(|_| {
            let mut client = Client::to(self.addr);
            assert_eq!(client.ask("GET", "/api/studios", "", b"").status, 200);
            client
        });
        connected.collect()
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, "", body)
    }

    fn post_with(&self, path: &str, headers: &str, body: &Value) -> Answer {
        let headers = format!("{JSON}{headers}");
        self.ask("POST", path, &headers, &body.to_string())
    }

    /// Makes a reservation whose time is certain to be free. Returns its number.
    fn reserve(&self, studio: i64, day: usize) -> i64 {
        let answer = self.post("/api/reservations", &slot(studio, day));
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_i64().unwrap()
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

fn served() -> (Database, Served) {
    let db = database();
    let served = Served::on(&db.url, &[]);
    (db, served)
}

/// A slot of two hours on this day.
fn slot(studio: i64, day: usize) -> Value {
    let day = date(day);
    json!({
        "studioId": studio,
        "customer": "Ada",
        "startsAt": format!("{day}T10:00:00Z"),
        "endsAt": format!("{day}T12:00:00Z"),
    })
}

/// The date of a day counted from 2030 on, with 28 days in each month.
fn date(day: usize) -> String {
    let (year, month, day) = (2030 + day / 336, day / 28 % 12 + 1, day % 28 + 1);
    format!("{year}-{month:02}-{day:02}")
}

fn kind(answer: &Answer) -> String {
    let body = answer.json();
    let kind = body["type"].as_str().unwrap();
    kind.trim_start_matches("urn:millpond:").to_owned()
}

fn count(url: &str, sql: &str) -> i64 {
    admin(url).query_one(sql, &[]).unwrap().get(0)
}
