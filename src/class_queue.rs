//! A line in classes: the waiting class that holds the fewest is served first. Pure.
//!
//! A class is whatever its users say: the reports, a tenant, a route. One kind of work that takes
//! long could otherwise hold everything there is to hold, and let quick work wait. Within a class
//! the order is that of the line's [rule](crate::line_rule). A class exists as long as it holds
//! something or somebody waits in it, so names may be many. Work without a class shares one.

use std::collections::VecDeque;
use std::sync::Arc;

/// Whose share a piece of work counts in, and how large that may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// `None` is the class of all work without one.
    pub class: Option<Arc<str>>,
    /// The most that the class may hold, if it has a name; the newest word counts.
    pub at_most: Option<usize>,
}

/// Those in line, and what each class holds.
pub struct ClassQueue<W> {
    /// The first is the class without a name, which stays.
    classes: Vec<Class<W>>,
    /// They come back, and are served before everybody else.
    returned: VecDeque<(Option<Arc<str>>, W)>,
    length: usize,
    arrivals: u64,
}

struct Class<W> {
    name: Option<Arc<str>>,
    held: usize,
    at_most: usize,
    /// With the number of each arrival.
    waiting: VecDeque<(u64, W)>,
}

impl<W> Class<W> {
    fn new(name: Option<Arc<str>>) -> Class<W> {
        Class {
            name,
            held: 0,
            at_most: usize::MAX,
            waiting: VecDeque::new(),
        }
    }

    /// How many more it may hold.
    fn room(&self) -> usize {
        self.at_most.saturating_sub(self.held)
    }

    /// The arrival of the one that is served next in it.
    fn next(&self, newest_first: bool) -> Option<u64> {
        let next = match newest_first {
            true => self.waiting.back(),
            false => self.waiting.front(),
        };
        next.map(|(arrival, _)| *arrival)
    }

    fn pop(&mut self, newest: bool) -> Option<W> {
        let popped = match newest {
            true => self.waiting.pop_back(),
            false => self.waiting.pop_front(),
        };
        popped.map(|(_, waiter)| waiter)
    }
}

impl<W> Default for ClassQueue<W> {
    fn default() -> Self {
        ClassQueue {
            classes: vec![Class::new(None)],
            returned: VecDeque::new(),
            length: 0,
            arrivals: 0,
        }
    }
}

impl<W> ClassQueue<W> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many of those who wait could be served at once, if there were enough for all.
    pub fn servable(&self) -> usize {
        let of = |class: &Class<W>| class.waiting.len().min(class.room());
        self.returned.len() + self.classes.iter().map(of).sum::<usize>()
    }

    fn place(&self, name: Option<&Arc<str>>) -> Option<usize> {
        let Some(name) = name else { return Some(0) };
        let is_it = |class: &Class<W>| {
            let given = class.name.as_ref();
            given.is_some_and(|given| Arc::ptr_eq(given, name) || **given == **name)
        };
        self.classes.iter().position(is_it)
    }

    fn class(&mut self, share: &Share) -> &mut Class<W> {
        let place = self.place(share.class.as_ref()).unwrap_or_else(|| {
            self.classes.push(Class::new(share.class.clone()));
            self.classes.len() - 1
        });
        let class = &mut self.classes[place];
        if let (Some(most), Some(_)) = (share.at_most, &class.name) {
            class.at_most = most;
        }
        class
    }

    /// Whether a class may hold one more.
    pub fn may_take(&self, share: &Share) -> bool {
        match self.place(share.class.as_ref()) {
            Some(place) => {
                let class = &self.classes[place];
                let most = share.at_most.filter(|_| place > 0);
                class.held < most.unwrap_or(class.at_most)
            }
            None => true,
        }
    }

    /// Holds one more for a class that may; false if it may not.
    pub fn take(&mut self, share: &Share) -> bool {
        let class = self.class(share);
        let may = class.room() > 0;
        class.held += usize::from(may);
        may
    }

    /// A class holds one less.
    pub fn release(&mut self, name: Option<&Arc<str>>) {
        if let Some(place) = self.place(name) {
            let class = &mut self.classes[place];
            class.held = class.held.saturating_sub(1);
            self.forget_if_unused(place);
        }
    }

    /// Joins the line.
    pub fn push(&mut self, share: &Share, waiter: W) {
        self.arrivals += 1;
        self.length += 1;
        let arrival = self.arrivals;
        self.class(share).waiting.push_back((arrival, waiter));
    }

    /// Joins the line in front of everybody, whatever its class holds.
    pub fn push_returned(&mut self, share: &Share, waiter: W) {
        self.length += 1;
        self.returned.push_back((share.class.clone(), waiter));
    }

    /// Takes the next one out of the line, whose class then holds one more; `None` if nobody waits,
    /// or only in classes that hold all they may.
    pub fn next(&mut self, newest_first: bool) -> Option<W> {
        if let Some((class, waiter)) = self.returned.pop_front() {
            self.length -= 1;
            let class = Share {
                class,
                at_most: None,
            };
            self.class(&class).held += 1;
            return Some(waiter);
        }
        let place = match self.classes.len() {
            1 => 0,
            _ => self.neediest(newest_first)?,
        };
        let class = &mut self.classes[place];
        if class.room() == 0 {
            return None;
        }
        let waiter = class.pop(newest_first)?;
        class.held += 1;
        self.length -= 1;
        Some(waiter)
    }

    /// The waiting class that holds the fewest; among equals, the one whose turn it is by the
    /// line's order.
    fn neediest(&self, newest_first: bool) -> Option<usize> {
        let waiting = self
            .classes
            .iter()
            .enumerate()
            .filter_map(|(place, class)| {
                let arrival = class.next(newest_first).filter(|_| class.room() > 0)?;
                let turn = match newest_first {
                    true => u64::MAX - arrival,
                    false => arrival,
                };
                Some((class.held, turn, place))
            });
        waiting.min().map(|(_, _, place)| place)
    }

    /// Makes room in a full line for one more of a class: takes out the one who is to be refused.
    /// `None` if that is the one who comes.
    ///
    /// The longest class gives way, so that one kind of work cannot keep the others out: while
    /// newest first is in force with its oldest, else with its newest.
    pub fn make_room(&mut self, share: &Share, newest_first: bool) -> Option<W> {
        let longest = self.gives_way_to(share, newest_first)?;
        let refused = self.classes[longest].pop(!newest_first)?;
        self.length -= 1;
        self.forget_if_unused(longest);
        Some(refused)
    }

    /// Whether [`make_room`](Self::make_room) would refuse another than the one who comes.
    pub fn can_make_room(&self, share: &Share, newest_first: bool) -> bool {
        self.gives_way_to(share, newest_first).is_some()
    }

    fn gives_way_to(&self, share: &Share, newest_first: bool) -> Option<usize> {
        let waiting = |place: usize| self.classes[place].waiting.len();
        let longest = (0..self.classes.len()).max_by_key(|place| waiting(*place))?;
        let mine = self.place(share.class.as_ref()).map_or(0, waiting);
        let gives_way = match newest_first {
            true => waiting(longest) > 0,
            false => waiting(longest) > mine + 1,
        };
        gives_way.then_some(longest)
    }

    /// Takes out all that are to leave.
    pub fn take_out(&mut self, leaves: impl Fn(&W) -> bool) -> Vec<W> {
        let mut out = Vec::new();
        for class in &mut self.classes {
            if class.waiting.iter().any(|(_, waiter)| leaves(waiter)) {
                let all = std::mem::take(&mut class.waiting);
                let (left, stay): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, w)| leaves(w));
                class.waiting = stay.into();
                out.extend(left.into_iter().map(|(_, waiter)| waiter));
            }
        }
        if self.returned.iter().any(|(_, waiter)| leaves(waiter)) {
            let all = std::mem::take(&mut self.returned);
            let (left, stay): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, w)| leaves(w));
            self.returned = stay.into();
            out.extend(left.into_iter().map(|(_, waiter)| waiter));
        }
        self.length -= out.len();
        for place in (1..self.classes.len()).rev() {
            self.forget_if_unused(place);
        }
        out
    }

    /// All that wait.
    pub fn iter(&self) -> impl Iterator<Item = &W> {
        let returned = self.returned.iter().map(|(_, waiter)| waiter);
        let classes = self.classes.iter().flat_map(|class| &class.waiting);
        returned.chain(classes.map(|(_, waiter)| waiter))
    }

    /// A class without a holder or a waiter is forgotten, so that names cannot pile up.
    fn forget_if_unused(&mut self, place: usize) {
        let class = &self.classes[place];
        if place > 0 && class.held == 0 && class.waiting.is_empty() {
            self.classes.swap_remove(place);
        }
    }
}
