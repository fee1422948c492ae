//! A line in classes: the waiting class that holds the fewest is served first. Pure.
//!
//! A class is what its users call it: reports, a tenant, a route. Without classes, one kind of slow
//! work could hold everything and keep quick work waiting. Within a class, the order is that of the
//! line's [rule](crate::line_rule). A class exists only while it holds something or has waiters, so
//! there may be any number of names. All work without a class shares one.

use std::collections::VecDeque;
use std::sync::Arc;

/// The class of a piece of work, and how many the class may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// `None` is the class of all work without one.
    pub class: Option<Arc<str>>,
    /// The most that the class may hold, if it has a name. The latest value counts.
    pub at_most: Option<usize>,
}

/// Those in line, and what each class holds.
pub struct ClassQueue<W> {
    /// The first is the class without a name, which stays.
    classes: Vec<Class<W>>,
    /// Those who came back (see [`push_returned`](Self::push_returned)).
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

    /// How many of the waiters could be served now if there were enough for all of them.
    pub fn servable(&self) -> usize {
        let of = |class: &Class<W>| {
            let first = self.returned.iter().filter(|(name, _)| *name == class.name);
            let room = class.room().saturating_sub(first.count());
            class.waiting.len().min(room)
        };
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
    #[cfg(any(test, feature = "server"))]
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

    /// Joins the line at its head, whatever its class holds.
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

    /// Makes room in a full line for one more of a class: takes out the waiter to be refused.
    /// `None` if the newcomer is to be refused.
    ///
    /// The longest class gives up a waiter, so that one kind of work cannot keep the others out:
    /// its oldest while the newest are served first, else its newest.
    pub fn make_room(&mut self, share: &Share, newest_first: bool) -> Option<W> {
        let longest = self.gives_way_to(share, newest_first)?;
        let refused = self.classes[longest].pop(!newest_first)?;
        self.length -= 1;
        self.forget_if_unused(longest);
        Some(refused)
    }

    /// Whether [`make_room`](Self::make_room) would take out a waiter.
    #[cfg(any(test, feature = "server"))]
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
            take_out_of(&mut class.waiting, &leaves, &mut out);
        }
        take_out_of(&mut self.returned, &leaves, &mut out);
        self.length -= out.len();
        for place in (1..self.classes.len()).rev() {
            self.forget_if_unused(place);
        }
        out
    }

    /// All that wait.
    #[cfg(any(test, feature = "server"))]
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

/// Moves all that are to leave to `out`; the others keep their order.
fn take_out_of<K, W>(
    waiting: &mut VecDeque<(K, W)>,
    leaves: impl Fn(&W) -> bool,
    out: &mut Vec<W>,
) {
    if !waiting.iter().any(|(_, waiter)| leaves(waiter)) {
        return;
    }
    let all = std::mem::take(waiting).into_iter();
    let (left, stay): (Vec<_>, Vec<_>) = all.partition(|(_, waiter)| leaves(waiter));
    *waiting = stay.into();
    out.extend(left.into_iter().map(|(_, waiter)| waiter));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn named(name: &str) -> Share {
        Share {
            class: Some(name.into()),
            at_most: None,
        }
    }

    fn at_most(name: &str, most: usize) -> Share {
        Share {
            at_most: Some(most),
            ..named(name)
        }
    }

    /// Without a name, and with a bound of 1.
    const UNNAMED: Share = Share {
        class: None,
        at_most: Some(1),
    };

    /// A line in which these wait, in this order.
    fn line(waiters: &[(&str, u32)]) -> ClassQueue<u32> {
        let mut line = ClassQueue::default();
        for (name, waiter) in waiters {
            line.push(&named(name), *waiter);
        }
        line
    }

    /// Serves as many as can be served.
    fn serve_all(line: &mut ClassQueue<u32>, newest_first: bool) -> Vec<u32> {
        std::iter::from_fn(|| line.next(newest_first)).collect()
    }

    fn is_as_new(line: &ClassQueue<u32>) -> bool {
        let [unnamed] = &line.classes[..] else {
            return false;
        };
        line.is_empty() && unnamed.held == 0 && unnamed.room() == usize::MAX
    }

    #[test]
    fn within_a_class_the_order_is_that_of_the_line() {
        for share in [Share::default(), named("a")] {
            for (newest_first, order) in [(false, [1, 2, 3]), (true, [3, 2, 1])] {
                let mut line = ClassQueue::default();
                (1..=3).for_each(|waiter| line.push(&share, waiter));
                assert_eq!(line.len(), 3);
                assert_eq!(serve_all(&mut line, newest_first), order);
                assert!(line.is_empty());
            }
        }
    }

    #[test]
    fn the_class_that_holds_the_fewest_is_served_first() {
        let mut line = line(&[("reports", 1), ("reports", 2), ("quick", 3), ("quick", 4)]);
        assert!(line.take(&named("reports")) && line.take(&named("reports")));
        assert!(line.take(&named("quick")));
        assert_eq!(line.next(false), Some(3));
        // Both hold two.
        assert_eq!(line.next(false), Some(1));
        assert_eq!(line.next(false), Some(4));
        assert_eq!(line.next(false), Some(2));
        assert_eq!(line.next(false), None);
    }

    #[test]
    fn work_without_a_class_shares_one() {
        let mut line = line(&[("a", 1), ("a", 2)]);
        line.push(&Share::default(), 3);
        line.push(&Share::default(), 4);
        assert!(line.take(&Share::default()));
        assert_eq!(serve_all(&mut line, false), [1, 2, 3, 4]);
        line.release(None);
        assert_eq!(line.classes[0].held, 2);
    }

    #[test]
    fn work_without_a_class_has_no_bound() {
        let mut line = ClassQueue::default();
        (1..=3).for_each(|waiter| line.push(&UNNAMED, waiter));
        assert_eq!(line.servable(), 3);
        assert_eq!(serve_all(&mut line, false), [1, 2, 3]);
        assert!(line.may_take(&UNNAMED) && line.take(&UNNAMED));
    }

    #[test]
    fn among_classes_that_hold_equally_many_the_order_of_the_line_decides() {
        let waiters = [("a", 1), ("b", 2), ("c", 3), ("b", 4), ("a", 5)];
        assert_eq!(serve_all(&mut line(&waiters), false), [1, 2, 3, 4, 5]);
        assert_eq!(serve_all(&mut line(&waiters), true), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn a_class_never_holds_more_than_it_may() {
        let share = at_most("a", 2);
        let mut line = ClassQueue::default();
        assert!(line.take(&share) && line.take(&share) && !line.take(&share));
        line.push(&share, 1);
        line.push(&named("b"), 2);
        assert_eq!((line.servable(), line.len()), (1, 2));
        assert_eq!(serve_all(&mut line, false), [2]);
        line.release(share.class.as_ref());
        assert_eq!(serve_all(&mut line, true), [1]);
        assert!(!line.take(&share));
    }

    #[test]
    fn the_newest_word_says_how_much_a_class_may_hold() {
        let mut line = ClassQueue::default();
        assert!(line.take(&at_most("a", 1)));
        line.push(&named("a"), 1);
        assert_eq!(line.next(false), None);
        line.push(&at_most("a", 3), 2);
        assert_eq!(serve_all(&mut line, false), [1, 2]);
        assert!(!line.take(&at_most("a", 2)));
        for _ in 0..2 {
            line.release(named("a").class.as_ref());
        }
        assert!(line.take(&named("a")) && !line.take(&named("a")));
    }

    #[test]
    fn those_who_come_back_go_first_whatever_their_class_holds() {
        let share = at_most("a", 1);
        let mut line = line(&[("b", 1)]);
        assert!(line.take(&share));
        line.push_returned(&share, 2);
        line.push_returned(&named("c"), 3);
        assert_eq!(line.iter().copied().collect::<Vec<_>>(), [2, 3, 1]);
        assert_eq!((line.len(), line.servable()), (3, 3));
        assert_eq!(serve_all(&mut line, true), [2, 3, 1]);
        // It counts: the class holds two.
        line.release(share.class.as_ref());
        assert!(!line.take(&share));
        line.release(share.class.as_ref());
        assert!(line.take(&share));
    }

    #[test]
    fn who_comes_back_uses_up_what_its_class_may_hold() {
        let share = at_most("a", 2);
        let mut line = ClassQueue::default();
        line.push(&share, 1);
        line.push(&share, 2);
        line.push_returned(&share, 3);
        assert_eq!(line.servable(), 2);
        assert_eq!(serve_all(&mut line, false), [3, 1]);
    }

    #[test]
    fn under_first_come_the_newest_of_the_longest_class_makes_room() {
        let mut line = line(&[]);
        assert_eq!(line.make_room(&named("a"), false), None);
        for (name, waiter) in [("a", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)] {
            line.push(&named(name), waiter);
        }
        assert_eq!(line.make_room(&named("new"), false), Some(4));
        assert_eq!((line.len(), line.servable()), (4, 4));
        // With the one who comes, its class is as long as the longest, or longer.
        for name in ["a", "b"] {
            assert_eq!(line.make_room(&named(name), false), None);
        }
        assert_eq!(line.len(), 4);
        let refused = line.make_room(&named("new"), false);
        assert!(refused == Some(2) || refused == Some(5));
    }

    #[test]
    fn under_newest_first_the_oldest_of_the_longest_class_makes_room() {
        let mut line = line(&[("b", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5)]);
        assert_eq!(line.make_room(&named("new"), true), Some(2));
        line.push(&named("a"), 6);
        // Also when that is the class of the one who comes.
        assert_eq!(line.make_room(&named("a"), true), Some(3));
        assert_eq!((line.len(), line.servable()), (4, 4));
    }

    #[test]
    fn a_line_of_those_who_come_back_has_no_room() {
        let mut line = ClassQueue::default();
        line.push_returned(&named("a"), 1);
        for newest_first in [false, true] {
            assert_eq!(line.make_room(&named("b"), newest_first), None);
        }
        assert_eq!(line.len(), 1);
    }

    #[test]
    fn those_who_leave_are_taken_out_wherever_they_wait() {
        let mut line = line(&[("a", 1), ("b", 2), ("c", 3), ("b", 4)]);
        line.push_returned(&named("a"), 5);
        line.push_returned(&named("a"), 6);
        assert!(line.take_out(|_| false).is_empty());
        let mut out = line.take_out(|waiter| [1, 3, 4, 5].contains(waiter));
        out.sort_unstable();
        assert_eq!(out, [1, 3, 4, 5]);
        assert_eq!(line.len(), 2);
        assert_eq!(serve_all(&mut line, false), [6, 2]);
    }

    #[test]
    fn names_are_compared_by_their_text() {
        let share = at_most("a", 2);
        let mut line = ClassQueue::default();
        assert!(line.take(&share) && line.take(&at_most("a", 2)) && !line.take(&named("a")));
        line.push(&named("a"), 1);
        line.release(Some(&Arc::from("a")));
        assert_eq!(line.next(false), Some(1));
        line.release(Some(&Arc::from("a")));
        line.release(share.class.as_ref());
        assert!(is_as_new(&line));
    }

    #[test]
    fn a_class_that_nobody_uses_is_forgotten_with_what_it_may_hold() {
        let (share, mut line) = (at_most("a", 1), ClassQueue::default());
        assert!(line.take(&share));
        line.release(share.class.as_ref());
        assert!(is_as_new(&line), "released");
        line.push(&share, 1);
        assert_eq!(line.take_out(|_| true), [1]);
        assert!(is_as_new(&line), "taken out");
        line.push(&share, 1);
        assert_eq!(line.make_room(&named("b"), true), Some(1));
        assert!(is_as_new(&line), "refused");
        line.release(share.class.as_ref());
        assert!(is_as_new(&line), "never held");
    }

    type Name = Option<Arc<str>>;

    /// The same, said naively. The waiters are numbers, which ascend as they come.
    #[derive(Clone, Default)]
    struct Model {
        returned: Vec<(Name, u32)>,
        waiting: Vec<(Name, u32)>,
        held: HashMap<Name, usize>,
        at_most: HashMap<Name, usize>,
    }

    impl Model {
        fn held(&self, name: &Name) -> usize {
            self.held.get(name).copied().unwrap_or(0)
        }

        fn waiting(&self, name: &Name) -> usize {
            self.waiting.iter().filter(|(it, _)| it == name).count()
        }

        fn may_hold_more(&self, name: &Name) -> bool {
            let most = self.at_most.get(name);
            most.is_none_or(|most| self.held(name) < *most)
        }

        fn hold(&mut self, name: Name) {
            *self.held.entry(name).or_default() += 1;
        }

        fn hear(&mut self, share: &Share) {
            let named = share.at_most.filter(|_| share.class.is_some());
            let most = named.map(|most| (share.class.clone(), most));
            self.at_most.extend(most);
        }

        fn forget_unused(&mut self) {
            let before = self.clone();
            let used = |name: &Name| before.held(name) + before.waiting(name) > 0;
            self.at_most.retain(|name, _| used(name));
        }

        fn next(&mut self, newest_first: bool) -> Option<u32> {
            let (name, waiter) = if self.returned.is_empty() {
                let turn = |waiter: u32| match newest_first {
                    true => u32::MAX - waiter,
                    false => waiter,
                };
                let all = self.waiting.iter();
                let may = all.filter(|(name, _)| self.may_hold_more(name));
                let next = may.min_by_key(|(name, waiter)| (self.held(name), turn(*waiter)));
                next?.clone()
            } else {
                self.returned[0].clone()
            };
            self.take_out(|it| *it == waiter);
            self.hold(name);
            Some(waiter)
        }

        fn servable(&self) -> usize {
            let mut copy = self.clone();
            std::iter::from_fn(|| copy.next(false)).count()
        }

        /// Whether this one may be refused for one that comes; `None` is the one that comes. Among
        /// the longest classes it may be any.
        fn may_refuse(&self, share: &Share, newest_first: bool, refused: Option<u32>) -> bool {
            let lengths = self.waiting.iter().map(|(name, _)| self.waiting(name));
            let longest = lengths.max().unwrap_or(0);
            let another = match newest_first {
                true => longest > 0,
                false => longest > self.waiting(&share.class) + 1,
            };
            let Some(refused) = refused else {
                return !another;
            };
            let is_it = |(_, waiter): &&(Name, u32)| *waiter == refused;
            let name = &self.waiting.iter().find(is_it).unwrap().0;
            let mut class = self.waiting.iter().filter(|(it, _)| it == name);
            let last = match newest_first {
                true => class.next(),
                false => class.next_back(),
            };
            another && self.waiting(name) == longest && last.is_some_and(|it| is_it(&it))
        }

        fn take_out(&mut self, leaves: impl Fn(&u32) -> bool) -> Vec<u32> {
            let mut out = Vec::new();
            for line in [&mut self.waiting, &mut self.returned] {
                let left = line.extract_if(.., |(_, waiter)| leaves(waiter));
                out.extend(left.map(|(_, waiter)| waiter));
            }
            out.sort_unstable();
            out
        }
    }

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % end
        }

        /// A class's name is another `Arc` each time.
        fn share(&mut self) -> Share {
            let class = NAMES[self.below(4) as usize].map(Arc::from);
            let at_most = [None, Some(1 + self.below(3) as usize)][self.below(2) as usize];
            Share { class, at_most }
        }
    }

    const NAMES: [Option<&str>; 4] = [None, Some("a"), Some("b"), Some("c")];

    #[test]
    fn whatever_happens_the_line_does_what_a_naive_one_does() {
        for seed in 1..=10 {
            let mut random = Random(seed);
            let (mut line, mut model) = (ClassQueue::default(), Model::default());
            for step in 0..3000 {
                let (share, newest_first) = (random.share(), random.below(2) == 0);
                match random.below(16) {
                    0..5 => {
                        line.push(&share, step);
                        model.hear(&share);
                        model.waiting.push((share.class, step));
                    }
                    5 => {
                        line.push_returned(&share, step);
                        model.returned.push((share.class, step));
                    }
                    6..9 => assert_eq!(line.next(newest_first), model.next(newest_first)),
                    9 => {
                        model.hear(&share);
                        let may = model.may_hold_more(&share.class);
                        assert_eq!(line.may_take(&share), may);
                        assert_eq!(line.take(&share), may);
                        if may {
                            model.hold(share.class);
                        }
                    }
                    10..14 => {
                        line.release(share.class.as_ref());
                        let held = model.held(&share.class).saturating_sub(1);
                        model.held.insert(share.class, held);
                    }
                    14 => {
                        let can = line.can_make_room(&share, newest_first);
                        let refused = line.make_room(&share, newest_first);
                        assert_eq!(can, refused.is_some());
                        assert!(model.may_refuse(&share, newest_first, refused));
                        model.take_out(|waiter| Some(*waiter) == refused);
                    }
                    _ => {
                        let (divisor, rest) = (1 + random.below(9), random.below(9));
                        let leaves = |waiter: &u32| u64::from(*waiter) % divisor == rest;
                        let mut out = line.take_out(leaves);
                        out.sort_unstable();
                        assert_eq!(out, model.take_out(leaves));
                    }
                }
                model.forget_unused();
                assert_eq!(line.len(), model.returned.len() + model.waiting.len());
                assert_eq!(line.iter().count(), line.len());
                assert_eq!(line.servable(), model.servable());
                for class in &line.classes {
                    assert_eq!(class.held, model.held(&class.name));
                }
            }
            let servable = line.servable();
            assert_eq!(serve_all(&mut line, false).len(), servable);
            line.take_out(|_| true);
            for name in NAMES.map(|name| name.map(Arc::from)) {
                (0..3000).for_each(|_| line.release(name.as_ref()));
            }
            assert!(is_as_new(&line));
        }
    }
}
