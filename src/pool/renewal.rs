//! Make before break: a connection whose age or uses are over goes on serving until another is
//! open in its place. So no thread waits for the opening, and a database that refuses logins takes
//! no connection away that works. One is replaced at a time, for which there may be one connection
//! more than the maximum.

/// How far the replacement of a connection is.
#[derive(Default)]
pub(super) enum Renewal {
    /// None is wanted.
    #[default]
    None,
    /// It is wanted, or being opened.
    Wanted,
    /// It is wanted, and a connection has been closed for it.
    PaidFor,
    /// It is open, and the next connection that is due is closed.
    Open,
    /// That one is being closed.
    Closing,
}

impl Renewal {
    /// A connection is due. Returns whether it is to be closed now. `has_room`: one more may be
    /// opened beside it.
    pub fn is_due(&mut self, has_room: bool) -> bool {
        let (next, closes) = match self {
            Renewal::Open => (Renewal::Closing, true),
            Renewal::None | Renewal::Wanted if !has_room => (Renewal::PaidFor, true),
            Renewal::None => (Renewal::Wanted, false),
            Renewal::Wanted | Renewal::PaidFor | Renewal::Closing => return false,
        };
        *self = next;
        closes
    }

    pub fn is_wanted(&self) -> bool {
        matches!(self, Renewal::Wanted | Renewal::PaidFor)
    }

    /// How many connections there may be beyond the maximum.
    pub fn surplus(&self) -> usize {
        usize::from(matches!(self, Renewal::Open | Renewal::Closing))
    }

    /// A connection was opened, which counts as the replacement.
    pub fn opened(&mut self) {
        match self {
            Renewal::Wanted => *self = Renewal::Open,
            Renewal::PaidFor => *self = Renewal::None,
            Renewal::None | Renewal::Open | Renewal::Closing => {}
        }
    }

    /// A connection that was due is closed for another reason. Whichever else is due will ask anew.
    pub fn forget(&mut self) {
        if matches!(self, Renewal::Wanted) {
            *self = Renewal::None;
        }
    }

    /// There are no more connections than there may be: the one that was due is closed, for
    /// whatever reason.
    pub fn settled(&mut self) {
        if matches!(self, Renewal::Open | Renewal::Closing) {
            *self = Renewal::None;
        }
    }
}
