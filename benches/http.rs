//! One row over HTTP, beside an asynchronous server, in one run on one private PostgreSQL.
//!
//! `cargo bench --bench http` runs pairs of rounds, first one server, then the other, the first
//! minute after the start included. Compare the two of a pair.

mod measure;

use axum::Router as AxumRouter;
use axum::extract::{Path, State};
use axum::routing::get;
use measure::{Figures, over_http};
use millpond::Pool;
use millpond::config::HttpConfig;
use millpond::embedded::{Options, PrivateServer};
use millpond::server::{Access, DatabaseKind, Lane, Response, Router, Server};
use std::net::SocketAddr;
use std::time::Duration;

const PAIRS: usize = 10;
const ROUND: Duration = Duration::from_secs(4);
const CLIENTS: usize = 50;
const CONNECTIONS: u32 = 20;
const SQL: &str = "SELECT name FROM items WHERE id = $1";

fn hammer(addr: SocketAddr) -> Figures {
    let request = |client: usize, nth: usize| {
        let id = (client * 31 + nth * 7) % 1000;
        (format!("GET /api/items/{id} HTTP/1.1\r\n"), String::new())
    };
    over_http(addr, CLIENTS, ROUND, request, " 200 ")
}

/// Starts the server with one route.
fn ours(url: &str) -> Server {
    let pool = Pool::builder().database_url(url).max_size(CONNECTIONS);
    let pool = pool.build().expect("pool");
    let rows = pool.clone();
    let path = "/api/items/{id}";
    let router = Router::new().route("GET", path, Lane::Api, Access::Open, move |request| {
        let id = request.param("id").and_then(|id| id.parse::<i32>().ok());
        let name: String = request.call(&rows).query_scalar(SQL, &[&id])?;
        Ok(Response::bytes(200, "text/plain; charset=utf-8", name))
    });
    let mut config = HttpConfig::default();
    config.addr.set_port(0);
    Server::start(config, pool, router, DatabaseKind::Private).expect("server")
}

async fn item(State(pool): State<deadpool_postgres::Pool>, Path(id): Path<i32>) -> String {
    let client = pool.get().await.expect("connection");
    let statement = client.prepare_cached(SQL).await.expect("statement");
    let row = client.query_one(&statement, &[&id]).await.expect("a row");
    row.get(0)
}

fn theirs(runtime: &tokio::runtime::Runtime, url: &str) -> SocketAddr {
    let config: tokio_postgres::Config = url.parse().expect("url");
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(CONNECTIONS as usize);
    let app = AxumRouter::new()
        .route("/api/items/{id}", get(item))
        .with_state(pool.build().expect("pool"));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a port");
    let addr = listener.local_addr().expect("an address");
    runtime.spawn(async move { axum::serve(listener, app).await });
    addr
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it starts; `cargo bench` passes
    // --bench.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let server = PrivateServer::start(Options::temporary()).expect("PostgreSQL");
    let url = server.url() + "?sslmode=disable";
    let mut admin = postgres::Client::connect(&url, postgres::NoTls).expect("connection");
    let fill = "CREATE TABLE items AS SELECT id, 'item number ' || id AS name \
                FROM generate_series(0, 999) AS id; ALTER TABLE items ADD PRIMARY KEY (id)";
    admin.batch_execute(fill).expect("a table");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    println!(
        "one row over HTTP, {CLIENTS} clients with a kept connection each, {CONNECTIONS} connections to the database, {PAIRS} pairs of rounds of {ROUND:?}"
    );
    println!("  millpond  its defaults");
    println!(
        "  axum      with deadpool, as they come: RecyclingMethod::Fast, prepare_cached, tokio with 2 workers"
    );
    let millpond = ours(&url);
    let axum = theirs(&runtime, &url);
    let pairs: Vec<_> = (0..PAIRS)
        .map(|_| (hammer(millpond.addr()), hammer(axum)))
        .collect();
    println!("              rate/s    p50 ms    p99 ms    max ms   us of cpu");
    for (name, rounds) in [
        (
            "millpond",
            pairs.iter().map(|pair| pair.0).collect::<Vec<_>>(),
        ),
        ("axum", pairs.iter().map(|pair| pair.1).collect()),
    ] {
        let f = Figures::medians(&rounds);
        println!(
            "  {name:<9} {:>9.0} {:>9.2} {:>9.2} {:>9.1} {:>11.1}",
            f.rate, f.p50_ms, f.p99_ms, f.max_ms, f.cpu_us,
        );
    }
    let ratios = |figure: fn(&Figures) -> f64| {
        let mut all: Vec<_> = pairs.iter().map(|(a, b)| figure(a) / figure(b)).collect();
        all.sort_by(f64::total_cmp);
        let all: Vec<_> = all.iter().map(|ratio| format!("{ratio:.2}")).collect();
        all.join(" ")
    };
    println!("  rate, millpond / axum by pairs: {}", ratios(|f| f.rate));
    println!("  p99, millpond / axum by pairs:  {}", ratios(|f| f.p99_ms));
    millpond.shut_down(Duration::ZERO, Duration::from_secs(10));
}
