//! What a worker does with a request.

use super::table::Table;
use super::wire::Incoming;
use super::worker_wakeup::WorkerWakeup;
use crate::server::current_span;
use crate::server::exchange::Exchange;
use crate::server::http::{Problem, Response};
use crate::server::router::{Lane, Route};
use crate::traceparent::traced;
use log::{Level, debug};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Runs the route's handler and writes the response to the client's socket. If the edge has given
/// the request up in the meantime, it is only read off the lane.
pub(super) fn serve(incoming: Incoming, table: &Table, wakeup: &WorkerWakeup) {
    let taken = table.take(incoming.number);
    wakeup.call();
    let Some((mut exchange, route, place)) = taken else {
        return incoming.discard();
    };
    if route.lane == Lane::Api {
        exchange.end_wait("served");
    }
    let began = Instant::now();
    let outcome = run(incoming, &mut exchange, &route);
    if matches!(outcome, Some(Ok(_))) && !exchange.is_abandoned() {
        route.least_time.observe(began.elapsed());
    }
    // Those whose clients have gone are counted where that is seen.
    if Instant::now() >= exchange.deadline() {
        place.note_lateness();
    }
    // Before the client has its answer: if it asks again at once, it finds the room.
    drop(place);
    match outcome {
        Some(Ok(response)) => exchange.answer(response),
        Some(Err(problem)) => exchange.give_up(problem),
        // The handler may have written before it panicked: the exchange answers accordingly.
        None => drop(exchange),
    }
}

/// The handler's response; `None` if it panicked.
fn run(
    incoming: Incoming,
    exchange: &mut Exchange,
    route: &Route,
) -> Option<Result<Response, Problem>> {
    let body = match incoming.read_body() {
        Ok(body) => body,
        Err(e) => {
            debug!("a request could not be read from its lane: {e}");
            return Some(Err(Problem::lost()));
        }
    };
    if route.lane == Lane::Api {
        if Instant::now() >= exchange.deadline() {
            return Some(Err(Problem::no_worker()));
        }
        if exchange.is_abandoned() {
            exchange.note_not_begun();
            return Some(Err(Problem::not_begun()));
        }
    }
    let request = exchange.request(body, route);
    let span = request.traceparent();
    let answer = catch_unwind(AssertUnwindSafe(|| {
        current_span::within(span, || (route.handler)(&request))
    }));
    if answer.is_err() {
        let (method, pattern, id) = (route.method, route.pattern, &request.id);
        traced!(
            Level::Error,
            span,
            "http.request.method" = method,
            "http.route" = pattern;
            "the handler of {method} {pattern} panicked, id={id}"
        );
    }
    answer.ok()
}
