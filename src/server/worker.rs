//! What a worker does with a request.

use super::edge::Dispatch;
use super::http::Problem;
use super::lane::{Incoming, WorkerWakeup};
use super::render::render;
use super::router::{Lane, Route};
use super::service::{AccessEntry, Service};
use log::{debug, error};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Runs the route's handler and writes the response to the client's socket. If the edge has given
/// the request up in the meantime, it is only read off the lane.
pub(super) fn serve(
    service: &Service,
    incoming: Incoming,
    dispatch: &Dispatch,
    wakeup: &WorkerWakeup,
) {
    let taken = dispatch.take(incoming.number);
    wakeup.call();
    // The edge has answered it already.
    let Some((mut exchange, route)) = taken else {
        return incoming.discard();
    };
    let request = match incoming.read(exchange.meta_mut(), &route) {
        Ok(request) => request,
        Err(e) => {
            debug!("a request could not be read from its lane: {e}");
            return exchange.give_up(Problem::lost());
        }
    };
    let late = route.lane == Lane::Api && Instant::now() >= request.deadline;
    let answer = match late {
        true => Ok(Err(Problem::no_worker())),
        false => catch_unwind(AssertUnwindSafe(|| (route.handler)(&request))),
    };
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => problem.into_response(Some(&request.id)),
        Err(_) => {
            let Route {
                method, pattern, ..
            } = *route;
            error!(
                "the handler of {method} {pattern} panicked, id={}",
                request.id
            );
            // It may have written before that: the dropped exchange answers accordingly.
            return drop(exchange);
        }
    };
    service.record(&AccessEntry {
        method: &request.method,
        path: &request.path,
        route: route.pattern,
        status: response.status,
        took: exchange.meta().arrived.elapsed(),
        id: &request.id,
        client: request.client,
    });
    response
        .headers
        .extend(exchange.meta().for_pages.iter().cloned());
    exchange.answer(render(&response, &request.id, request.method == "HEAD"));
}
