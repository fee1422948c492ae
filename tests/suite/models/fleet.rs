//! The rule of a fleet, in a simulation with its own clock: up to 1,000 members that join, leave, are
//! killed and are stopped, and whose connections come back late.

use super::fleet_rule::{Fleet, Look};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(50);
const STEPS_A_SECOND: u64 = 20;
/// A build for development is ten times as slow.
const ROUNDS: u64 = if cfg!(debug_assertions) { 8 } else { 100 };
/// Looks come 1.8 s to 2.2 s apart.
const SHORTEST_INTERVAL: u64 = 36;
const LONGEST_INTERVAL: u64 = 44;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }

    fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }
}

struct Member {
    fleet: Fleet,
    own_max: u32,
    published: u32,
    /// A look that was read, with the moment, but not yet taken in: the process may be stopped
    /// in between.
    answer: Option<(Look, u64)>,
    idle: u32,
    /// When each busy connection is checked in.
    busy: Vec<u64>,
    is_hungry: bool,
    /// Changes between hungry and not; the others always take all they may.
    is_modest: bool,
    next_look: u64,
    stopped_until: u64,
    joined_step: u64,
    joined_moment: u64,
}

impl Member {
    fn open(&self) -> u32 {
        self.idle + self.busy.len() as u32
    }

    fn close_idle_excess(&mut self) {
        let excess = self.open().saturating_sub(self.fleet.allowed());
        self.idle -= excess.min(self.idle);
    }

    /// Checks in what is due, then takes connections: all it may have, or now and then one.
    fn work(&mut self, step: u64, longest_check_in: u64, random: &mut Random) {
        let busy_before = self.busy.len();
        self.busy.retain(|&due| due > step);
        self.idle += (busy_before - self.busy.len()) as u32;
        self.close_idle_excess();
        if self.is_modest && random.below(100) == 0 {
            self.is_hungry = !self.is_hungry;
            self.idle /= 2;
        }
        let wanted = if self.is_hungry {
            u64::MAX
        } else {
            random.below(2)
        };
        for _ in 0..wanted {
            if self.idle > 0 {
                self.idle -= 1;
            } else if self.open() >= self.fleet.allowed() {
                break;
            }
            let shortest = [1, longest_check_in][random.below(2) as usize];
            self.busy
                .push(step + random.between(shortest, longest_check_in));
        }
    }
}

#[derive(Clone, Copy)]
struct Plan {
    budget: u32,
    most_members: u64,
    /// In steps.
    longest_check_in: u64,
    failing_looks_percent: u64,
    modest_percent: u64,
}

struct World {
    plan: Plan,
    start: Instant,
    random: Random,
    members: Vec<Member>,
    step: u64,
    /// Counts joins and looks, to order those within one step.
    moment: u64,
    claimed: u64,
    granted_moment: u64,
    last_change: u64,
    last_stop: u64,
    joined: u32,
    largest_fleet: usize,
    /// Over the budget, or over the members if they are more; and the joiners at that moment.
    largest_excess: (u64, u64),
    slowest_fair: u64,
}

impl World {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            start: Instant::now(),
            random: Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(plan.budget)),
            members: Vec::new(),
            step: 0,
            moment: 0,
            claimed: 0,
            granted_moment: 0,
            last_change: 0,
            last_stop: 0,
            joined: 0,
            largest_fleet: 0,
            largest_excess: (0, 0),
            slowest_fair: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + STEP * self.step as u32
    }

    fn join(&mut self) {
        let is_modest = self.random.below(100) < self.plan.modest_percent;
        let is_small = is_modest && self.random.below(2) == 0;
        let own_max = if is_small { 3 } else { 10_000 };
        self.moment += 1;
        self.joined += 1;
        self.claimed += 1;
        self.members.push(Member {
            fleet: Fleet::new(self.plan.budget, own_max, self.now()),
            own_max,
            published: 1,
            answer: None,
            idle: 1,
            busy: Vec::new(),
            is_hungry: !is_modest,
            is_modest,
            next_look: self.step,
            stopped_until: 0,
            joined_step: self.step,
            joined_moment: self.moment,
        });
    }

    /// One change, or none: a member joins, goes (killed or not, all it had is gone), or stops.
    fn change(&mut self, wanted_size: u64, with_stops: bool) {
        let size = self.members.len() as u64;
        match self.random.below(8) {
            0..=3 if size < wanted_size => self.join(),
            0..=5 if size > 1 => {
                let gone = self.members.swap_remove(self.random.below(size) as usize);
                self.claimed -= u64::from(gone.published);
            }
            6 if with_stops && size > 0 => {
                let until = self.step + self.random.between(3, 15) * STEPS_A_SECOND;
                self.members[self.random.below(size) as usize].stopped_until = until;
            }
            _ => return,
        }
        self.last_change = self.step;
    }

    fn act(&mut self, index: usize) {
        let (step, now) = (self.step, self.now());
        let member = &mut self.members[index];
        if member.stopped_until >= step {
            self.last_stop = step;
            if member.stopped_until == step {
                self.last_change = step;
            }
            return;
        }
        if let Some((look, moment)) = member.answer.take() {
            let (open, before) = (member.open(), member.fleet.allowed());
            member.next_look = step + self.random.between(SHORTEST_INTERVAL, LONGEST_INTERVAL);
            if self.random.below(100) < self.plan.failing_looks_percent {
                member.fleet.failed(open, now);
            } else if member.fleet.saw(look, open, now) {
                member.next_look = step;
            }
            if member.fleet.allowed() > before {
                self.granted_moment = self.granted_moment.max(moment);
            }
        }
        member.work(step, self.plan.longest_check_in, &mut self.random);
        let claim = member.fleet.claim(member.open());
        self.claimed = self.claimed - u64::from(member.published) + u64::from(claim);
        member.published = claim;
        if member.next_look <= step {
            self.moment += 1;
            let look = Look {
                members: self.members.len() as u32,
                claimed: self.claimed,
                own: claim,
            };
            self.members[index].answer = Some((look, self.moment));
        }
    }

    fn check(&mut self) {
        let budget = u64::from(self.plan.budget);
        let total: u64 = self.members.iter().map(|m| u64::from(m.open())).sum();
        let excess = total.saturating_sub(budget);
        let granted = self.granted_moment;
        let joiners = self.members.iter().filter(|m| m.joined_moment > granted);
        let joiners = joiners.count() as u64;
        assert!(excess <= joiners, "budget + joiners");
        let unavoidable = budget.max(self.members.len() as u64);
        let excess_now = (total.saturating_sub(unavoidable), joiners);
        self.largest_excess = self.largest_excess.max(excess_now);
        self.largest_fleet = self.largest_fleet.max(self.members.len());
        let settling = LONGEST_INTERVAL + self.plan.longest_check_in + 2;
        if self.plan.failing_looks_percent == 0 {
            if self.step > self.last_stop + settling && self.members.len() as u64 <= budget {
                let recent = |m: &&Member| m.joined_step + settling >= self.step;
                let recent = self.members.iter().filter(recent).count() as u64;
                assert!(
                    excess <= recent,
                    "budget + members within their first looks"
                );
            }
            self.check_fairness(settling);
        }
    }

    fn check_fairness(&mut self, settling: u64) {
        let share = (self.plan.budget / self.members.len().max(1) as u32).max(1);
        let since = self.step - self.last_change;
        let is_stopped = |m: &Member| m.stopped_until >= self.step;
        let is_blocked = self
            .members
            .iter()
            .any(|m| is_stopped(m) && m.published > share);
        for member in self.members.iter().filter(|m| !is_stopped(m)) {
            let fair = share.min(member.own_max);
            assert!(since <= settling || member.open() <= fair, "holds no more");
            if member.fleet.allowed() != fair && !is_blocked {
                self.slowest_fair = self.slowest_fair.max(since + 1);
            }
        }
        // A check-in of 0.3 s fits into the 5 s; a longer one comes on top.
        let check_in = self.plan.longest_check_in;
        let limit = 5 * STEPS_A_SECOND + if check_in > 6 { check_in } else { 0 };
        assert!(self.slowest_fair <= limit, "fair share in time");
    }

    fn run(&mut self) {
        for round in 0..ROUNDS {
            let wanted_size = self.random.between(1, self.plan.most_members);
            for step in 0..35 * STEPS_A_SECOND {
                // Ten seconds of changes, then quiet. In calm rounds changes are rare, but often
                // large: they hit a fleet that has grown and is all busy.
                let (rarity, burst_rarity) = if round % 4 < 2 { (100, 2) } else { (4, 20) };
                if step < 10 * STEPS_A_SECOND && self.random.below(rarity) == 0 {
                    let largest = wanted_size.max(self.members.len() as u64);
                    let is_burst = self.random.below(burst_rarity) == 0;
                    let most_changes = if is_burst { largest } else { largest / 20 + 1 };
                    for _ in 0..self.random.between(1, most_changes) {
                        self.change(wanted_size, round % 2 == 1);
                    }
                }
                (0..self.members.len()).for_each(|index| self.act(index));
                self.check();
                self.step += 1;
            }
        }
    }
}

#[test]
fn a_thousand_members_never_hold_more_than_budget_and_joiners() {
    println!(
        "budget  members  joined  check-in  failing  modest  excess  joiners then  all fair after"
    );
    for (budget, most_members) in [(1, 20), (40, 12), (40, 200), (100, 1_000), (5_000, 1_000)] {
        for (longest_check_in, failing_looks_percent, modest_percent) in
            [(6, 0, 0), (60, 0, 0), (60, 0, 50), (60, 5, 50)]
        {
            let mut world = World::new(Plan {
                budget,
                most_members,
                longest_check_in,
                failing_looks_percent,
                modest_percent,
            });
            world.run();
            let seconds = |steps: u64| steps as f64 / STEPS_A_SECOND as f64;
            let fair = match failing_looks_percent {
                0 => format!("{:.2} s", seconds(world.slowest_fair)),
                _ => "not measured".to_string(),
            };
            println!(
                "{budget:6}  {:7}  {:6}  {:6.1} s  {failing_looks_percent:5} %  {modest_percent:4} %  {:6}  {:12}  {}",
                world.largest_fleet,
                world.joined,
                seconds(longest_check_in),
                world.largest_excess.0,
                world.largest_excess.1,
                fair,
            );
        }
    }
}
