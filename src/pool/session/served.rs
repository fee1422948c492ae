//! The call that a session serves.

use crate::traceparent::Traceparent;

/// The call that a session serves.
#[derive(Clone, Copy)]
pub(crate) struct Served {
    /// Which attempt of the call it is used for, from 1.
    pub attempt: u32,
    /// The span that the call is made for.
    pub traceparent: Option<Traceparent>,
}

impl Served {
    pub const NONE: Served = Served {
        attempt: 1,
        traceparent: None,
    };
}
