//! Lists in pages, newest first. A cursor names the item behind which the next page begins, so new
//! items do not move it. It is valid only with the same filters.

use super::fields::Parameters;
use crate::hex::hex;
use crate::server::{Problem, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

const MOST: i64 = 200;
const USUAL: i64 = 50;

/// A requested page.
pub(super) struct Page {
    limit: i64,
    /// Only items older than this one.
    pub before: Option<i64>,
    filters: String,
}

/// One page of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed<T> {
    items: Vec<T>,
    /// The `cursor` of the next page; null on the last page.
    #[schema(required)]
    next_cursor: Option<String>,
}

impl Page {
    /// Reads `limit` and `cursor`, the last parameters of a list. `filters` is the canonical text
    /// of all others.
    pub fn of(mut parameters: Parameters, filters: String) -> Result<Page, Problem> {
        let limit = parameters.whole("limit", 1, MOST).unwrap_or(USUAL);
        let cursor = parameters.text("cursor");
        parameters.finish()?;
        let mut page = Page {
            limit,
            before: None,
            filters,
        };
        if let Some(cursor) = cursor {
            let stale =
                || Problem::plain(400, "the cursor is invalid, or was made for other filters");
            let id = cursor
                .get(..16)
                .and_then(|id| i64::from_str_radix(id, 16).ok());
            let id = id.ok_or_else(stale)?;
            if page.cursor(id) != cursor {
                return Err(stale());
            }
            page.before = Some(id);
        }
        Ok(page)
    }

    /// How many rows to read: one more than is shown, to tell whether there are more.
    pub fn rows(&self) -> i64 {
        self.limit + 1
    }

    fn cursor(&self, id: i64) -> String {
        let mark = Sha256::digest(format!("{id} {}", self.filters));
        format!("{id:016x}{}", hex(&mark[..8]))
    }

    pub fn answer<T: Serialize>(&self, mut items: Vec<T>, id: impl Fn(&T) -> i64) -> Response {
        let shown = self.limit as usize;
        let more = items.len() > shown;
        items.truncate(shown);
        let next_cursor = items
            .last()
            .filter(|_| more)
            .map(|last| self.cursor(id(last)));
        Response::json(200, &Listed { items, next_cursor })
    }
}
