//! What a key was used for: a plain fold over its records. The index keeps the same, and must never tell anything else.

use super::fields::Fields;
use crate::clock::{Timestamp, micros};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// How many addresses of a key are kept by name for one day; the requests from others are counted.
pub const ADDRESSES_MAX: usize = 256;
/// The same of its methods and routes.
pub const ROUTES_MAX: usize = 256;

/// The requests of one key, by day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    days: BTreeMap<Day, DayUsage>,
}

/// A day, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Day(i64);

/// The requests of one key on one day, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayUsage {
    #[serde(with = "micros")]
    pub first: Timestamp,
    pub last: LastUse,
    pub statuses: Statuses,
    /// Denied requests by reason.
    pub refusals: BTreeMap<String, u64>,
    pub addresses: Tally<IpAddr>,
    pub routes: Tally<Route>,
}

/// The latest request of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    #[serde(with = "micros")]
    pub at: Timestamp,
    /// The gateway that saw it, by its id.
    pub gateway: String,
    pub client_ip: Option<IpAddr>,
    pub method: String,
    /// The pattern of the route; none when no route matched.
    pub route: Option<String>,
    pub refused: bool,
}

/// What is asked for, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    pub method: String,
    /// None when no route matched.
    pub pattern: Option<String>,
}

/// Requests by the class of their status: its first digit, or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statuses([u64; 10]);

/// How often each of many things was seen: the first so many different ones by name, the others as a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally<T: Ord> {
    entries: BTreeMap<T, Seen>,
    others: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub count: u64,
    #[serde(with = "micros")]
    pub last: Timestamp,
}

/// What is added to a day: what was seen stands in the order in which it was first seen, which decides what is named.
#[derive(Debug)]
pub(super) struct More {
    pub first: Timestamp,
    pub last: LastUse,
    pub statuses: Statuses,
    pub refusals: Vec<(String, u64)>,
    pub addresses: Vec<(IpAddr, Seen)>,
    pub routes: Vec<(Route, Seen)>,
}

// === impl Usage ===

impl Usage {
    /// Adds a record of the key, if it is a request's.
    pub fn add(&mut self, record: &Fields<'_>) {
        if let Some(at) = record.at().filter(|_| record.is_request()) {
            self.add_to_day(Day::of(at), More::once(record, at));
        }
    }

    pub(super) fn add_to_day(&mut self, day: Day, more: More) {
        match self.days.get_mut(&day) {
            Some(usage) => usage.add(more),
            None => _ = self.days.insert(day, more.into()),
        }
    }

    /// Sets what is known of a day.
    pub(super) fn set_day(&mut self, day: Day, usage: DayUsage) {
        self.days.insert(day, usage);
    }

    pub fn days(&self) -> impl DoubleEndedIterator<Item = (Day, &DayUsage)> {
        self.days.iter().map(|(day, usage)| (*day, usage))
    }

    /// How many requests.
    pub fn total(&self) -> u64 {
        self.days.values().map(|day| day.statuses.total()).sum()
    }

    pub fn first(&self) -> Option<Timestamp> {
        self.days.values().next().map(|day| day.first)
    }

    pub fn last(&self) -> Option<&LastUse> {
        self.days.values().next_back().map(|day| &day.last)
    }

    pub fn statuses(&self) -> Statuses {
        self.days.values().fold(Statuses::default(), |sum, day| sum.plus(day.statuses))
    }

    /// Denied requests by reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        self.days.values().for_each(|day| add_counts(&mut sum, day.refusals.clone()));
        sum
    }

    /// Whence: by name up to a bound for each day, see [`ADDRESSES_MAX`].
    pub fn addresses(&self) -> Tally<IpAddr> {
        Tally::sum(self.days.values().map(|day| &day.addresses))
    }

    /// What was asked for: by name up to a bound for each day, see [`ROUTES_MAX`].
    pub fn routes(&self) -> Tally<Route> {
        Tally::sum(self.days.values().map(|day| &day.routes))
    }
}

// === impl Day ===

impl Day {
    const MICROS: i64 = 86_400 * 1_000_000;

    pub const fn of(time: Timestamp) -> Self {
        Self(time.as_micros().div_euclid(Self::MICROS))
    }

    /// Days since 1970-01-01.
    pub const fn number(self) -> i64 {
        self.0
    }

    pub const fn from_number(number: i64) -> Self {
        Self(number)
    }

    /// Its first moment.
    pub const fn start(self) -> Timestamp {
        Timestamp::from_micros(self.0.saturating_mul(Self::MICROS))
    }
}

impl fmt::Display for Day {
    /// Such as `2026-11-24`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.start().to_string().split('T').next().unwrap_or_default())
    }
}

// === impl DayUsage ===

impl DayUsage {
    pub(super) fn add(&mut self, more: More) {
        self.first = self.first.min(more.first);
        if more.last.at >= self.last.at {
            self.last = more.last;
        }
        self.statuses = self.statuses.plus(more.statuses);
        add_counts(&mut self.refusals, more.refusals);
        more.addresses.into_iter().for_each(|(ip, seen)| self.addresses.add(ip, seen, ADDRESSES_MAX));
        more.routes.into_iter().for_each(|(route, seen)| self.routes.add(route, seen, ROUTES_MAX));
    }
}

impl From<More> for DayUsage {
    fn from(more: More) -> Self {
        let mut day = Self {
            first: more.first,
            last: more.last.clone(),
            statuses: Statuses::default(),
            refusals: BTreeMap::new(),
            addresses: Tally::default(),
            routes: Tally::default(),
        };
        day.add(more);
        day
    }
}

fn add_counts(sum: &mut BTreeMap<String, u64>, more: impl IntoIterator<Item = (String, u64)>) {
    more.into_iter().for_each(|(reason, count)| *sum.entry(reason).or_default() += count);
}

// === impl More ===

impl More {
    /// One request.
    fn once(record: &Fields<'_>, at: Timestamp) -> Self {
        let last = LastUse::of(record, at);
        let mut statuses = Statuses::default();
        statuses.add(record.status, 1);
        let seen = Seen { count: 1, last: at };
        let reason = record.reason.filter(|_| last.refused);
        let route = Route { method: last.method.clone(), pattern: last.route.clone() };
        Self {
            first: at,
            statuses,
            refusals: reason.map(|reason| (reason.decoded().into_owned(), 1)).into_iter().collect(),
            addresses: last.client_ip.map(|ip| (ip, seen)).into_iter().collect(),
            routes: vec![(route, seen)],
            last,
        }
    }
}

// === impl LastUse ===

impl LastUse {
    /// The use of a request's record.
    pub fn of(record: &Fields<'_>, at: Timestamp) -> Self {
        Self {
            at,
            gateway: record.gateway.map(|id| id.decoded().into_owned()).unwrap_or_default(),
            client_ip: record.client_ip.and_then(|ip| ip.raw().parse().ok()),
            method: record.method.map(|method| method.decoded().into_owned()).unwrap_or_default(),
            route: record.route.map(|route| route.decoded().into_owned()),
            refused: record.decision.is_some_and(|decision| decision.is("deny")),
        }
    }
}

// === impl Statuses ===

impl Statuses {
    /// Counts requests with this status; none for those whose answer never had a head.
    pub fn add(&mut self, status: Option<u64>, count: u64) {
        let class = status.map_or(0, |status| status / 100);
        if let Some(slot) = usize::try_from(class).ok().and_then(|class| self.0.get_mut(class)) {
            *slot += count;
        }
    }

    /// How many had a status of this class, 1 to 5; 0 stands for those whose answer never had a head.
    pub fn of_class(&self, class: usize) -> u64 {
        self.0.get(class).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
        self
    }
}

// === impl Tally ===

impl<T: Ord> Tally<T> {
    /// What is named, and how often and when last it was seen.
    pub fn iter(&self) -> impl Iterator<Item = (&T, Seen)> {
        self.entries.iter().map(|(what, seen)| (what, *seen))
    }

    /// How often anything was seen that is not named.
    pub const fn others(&self) -> u64 {
        self.others
    }

    /// Counts by name what is named already or while fewer than `named_max` are.
    fn add(&mut self, what: T, seen: Seen, named_max: usize) {
        let has_room = self.entries.len() < named_max;
        match self.entries.get_mut(&what) {
            Some(there) => *there = Seen { count: there.count + seen.count, last: there.last.max(seen.last) },
            None if has_room => _ = self.entries.insert(what, seen),
            None => self.others += seen.count,
        }
    }
}

impl<T: Ord + Clone> Tally<T> {
    /// All days together.
    fn sum<'a>(days: impl Iterator<Item = &'a Self>) -> Self
    where
        T: 'a,
    {
        let mut sum = Self::default();
        for day in days {
            sum.others += day.others;
            day.iter().for_each(|(what, seen)| sum.add(what.clone(), seen, usize::MAX));
        }
        sum
    }
}

impl<T: Ord> Default for Tally<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), others: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(usage: &mut Usage, ts: &str, ip: &str, outcome: &str) {
        let line = format!(
            r#"{{"kind":"request","ts":"{ts}","client_ip":"{ip}","method":"GET","route":"/v1/x",{outcome},"gateway":"edge-1"}}"#
        );
        usage.add(&Fields::read(&line).unwrap());
    }

    #[test]
    fn days_statuses_refusals_and_the_last_use_are_told() {
        let mut usage = Usage::default();
        let served = r#""decision":"allow","reason":null,"status":200"#;
        let refused = r#""decision":"deny","reason":"ip_not_allowlisted","status":403"#;
        add(&mut usage, "2026-11-24T23:59:59.999999Z", "192.0.2.1", served);
        add(&mut usage, "2026-11-25T00:00:00.000000Z", "192.0.2.2", refused);
        add(&mut usage, "2026-11-24T10:00:00.000000Z", "192.0.2.1", served);
        let days: Vec<_> = usage.days().map(|(day, one)| (day.to_string(), one.statuses.total())).collect();
        assert_eq!(days, [("2026-11-24".to_owned(), 2), ("2026-11-25".to_owned(), 1)]);
        assert_eq!((usage.total(), usage.statuses().of_class(2), usage.statuses().of_class(4)), (3, 2, 1));
        assert_eq!(usage.refusals(), BTreeMap::from([("ip_not_allowlisted".to_owned(), 1)]));
        assert_eq!(usage.first(), Timestamp::parse("2026-11-24T10:00:00Z"));
        let last = usage.last().unwrap();
        assert_eq!((last.refused, last.client_ip), (true, "192.0.2.2".parse().ok()));
        assert_eq!(
            usage.routes().iter().map(|(route, seen)| (route.method.clone(), seen.count)).collect::<Vec<_>>(),
            [("GET".to_owned(), 3)]
        );
    }

    #[test]
    fn addresses_beyond_the_bound_are_counted_exactly() {
        let mut usage = Usage::default();
        for round in 0..2 {
            for host in 0..ADDRESSES_MAX + 10 {
                let ip = format!("10.0.{}.{}", host / 256, host % 256);
                let ts = format!("2026-11-24T10:00:0{round}.000000Z");
                add(&mut usage, &ts, &ip, r#""decision":"allow","reason":null,"status":null"#);
            }
        }
        let addresses = usage.addresses();
        assert_eq!((addresses.iter().count(), addresses.others()), (ADDRESSES_MAX, 20));
        assert!(addresses.iter().all(|(_, seen)| seen.count == 2));
        assert_eq!(usage.statuses().of_class(0), usage.total());
    }
}
