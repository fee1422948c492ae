//! The OpenAPI document, made from the descriptions of the handlers and from the types of their
//! answers.

use super::app::Studio;
use super::shapes::{ProblemShape, WrongField};
use crate::server;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "millpond", description = "A studio's reservations, quotes and invoices. Amounts are whole cents.",
        contact(name = "millpond", url = "https://docs.rs/millpond")
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "studios", description = "What can be reserved"),
        (name = "reservations", description = "A studio, taken by a customer for a while"),
        (name = "quotes", description = "A price for a reservation, good for 14 days"),
        (name = "invoices", description = "A reservation, to be paid"),
    ),
    modifiers(&Token, &Completed),
    components(schemas(ProblemShape, WrongField)),
    security((), ("token" = [])),
    paths(
        super::studios::list,
        super::reservations::list,
        super::reservations::create,
        super::import::import,
        super::reservations::one,
        super::reservations::cancel,
        super::quotes::list,
        super::quotes::create,
        super::quotes::one,
        super::quotes::accept,
        super::invoices::list,
        super::invoices::create,
        super::invoices::one,
        super::invoices::pay,
    )
)]
struct Document;

/// The bearer token, which a server asks for if it has one.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// Adds what the macros leave out, and removes what they leave over.
struct Completed;

impl Modify for Completed {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                operation.description = operation.description.take().or(operation.summary.clone());
            }
        }
        // Only the list refers to it, which has it inline.
        if let Some(components) = &mut document.components {
            components.schemas.remove("StudioRoom");
        }
    }
}

/// The document itself.
#[expect(clippy::unnecessary_wraps, reason = "it is a handler")]
pub(super) fn document(
    _: &Studio,
    _: &server::Request,
) -> Result<server::Response, server::Problem> {
    Ok(server::Response::json(200, &Document::openapi()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let mut described: Vec<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        let mut served: Vec<_> = crate::studio::routes::ROUTES
            .iter()
            .filter(|(_, path, _)| path.starts_with("/api/"))
            .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        described.sort();
        served.sort();
        assert_eq!(described, served);
        assert_eq!(document["openapi"], "3.1.0");
    }

    #[test]
    fn what_it_refers_to_is_in_it_and_its_names_differ() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let (mut references, mut names) = (0, HashSet::new());
        let mut all = vec![&document];
        while let Some(value) = all.pop() {
            if let Some(to) = value["$ref"].as_str() {
                references += 1;
                assert!(document.pointer(&to[1..]).is_some(), "{to}");
            }
            if let Some(name) = value["operationId"].as_str() {
                assert!(names.insert(name), "{name} is there twice");
            }
            all.extend(value.as_array().into_iter().flatten());
            all.extend(value.as_object().into_iter().flat_map(|o| o.values()));
        }
        assert!(references > 50 && names.len() == 14);
    }
}
