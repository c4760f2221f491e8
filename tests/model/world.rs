//! A gateway's threads without its sockets: the follower, the filler and the workers as they are, on a store in memory.

use super::explore::{self, Body};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use keygate::auth::cache::Lookup;
use keygate::auth::follower::{Parts, Turn};
use keygate::auth::{self, Authentication, Authenticator, Fills, Follower, KeyCache, Unavailable};
use keygate::clock::{Clock, Hand, Timestamp};
use keygate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord, Mode, Prefix, ScopeList, Token, Vocabulary};
use keygate::net::Networks;
use keygate::policy::{Access, Facts, Requirement, RouteSpec, RouteTable, UpstreamId, UpstreamModes, authorize};
use keygate::proxy::canonical::HeadLimits;
use keygate::proxy::client_addr::ClientAddr;
use keygate::proxy::in_flight::{Admitted, Again, InFlight};
use keygate::proxy::service::Shared;
use keygate::reason::Reason;
use keygate::store::memory::MemoryStore;
use keygate::store::{
    Account, Accounts, Action, Changes, Feed, Fleet, FleetId, Held, KeyFilter, KeyStore, LastUses, Member, Mutation,
    OperationId, Page, Position, Record, StoreError, Write,
};
use keygate::sync::{AtomicBool, Receiver, Sender, channel, will_read, will_write};
use keygate::ulid::Ulid;
use std::collections::HashSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

pub const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
pub const ACME: EntityId = EntityId::from_bits(1);
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MAX_STALE: Duration = Duration::from_secs(60);

/// A gateway at rest.
pub struct World {
    pub store: Arc<Watched>,
    pub cache: Arc<KeyCache>,
    pub shared: Arc<Shared>,
    pub follower: Follower,
    pub hand: Arc<Hand>,
    fills: Arc<Fills>,
    asked: Option<Receiver<Digest>>,
    /// What the follower's part has changed is confirmed.
    confirmed: Arc<AtomicBool>,
    cutter: Cutter,
}

/// What the follower's thread does.
pub type Follow = Box<dyn FnOnce(&Watched, &mut Follower) + Send>;
/// What a worker does. It obeys in the end, since the follower waits for it.
pub type Work = Box<dyn FnOnce(Worker) + Send>;

/// Reaches the workers, as the composition root's.
#[derive(Clone, Default)]
struct Cutter(Arc<Mutex<Vec<Sender<Message>>>>);

/// The store in memory; each call is a step.
pub struct Watched {
    inner: MemoryStore,
    keys: Arc<Told>,
}

/// The word of the store that a step on it is announced by.
#[derive(Default)]
struct Told {
    /// The log has another history than the follower's.
    diverged: std::sync::atomic::AtomicBool,
}

struct WatchedChanges {
    inner: Box<dyn Changes>,
    keys: Arc<Told>,
}

/// To a worker.
enum Message {
    Cut { changed: Arc<HashSet<Digest>>, done: Sender<()> },
    Stop,
}

/// A worker, without its sockets.
pub struct Worker {
    pub shared: Arc<Shared>,
    messages: Receiver<Message>,
    confirmed: Arc<AtomicBool>,
    exchanges: Vec<(Digest, InFlight)>,
    stopped: bool,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Admitted,
    Refused(Reason),
    Unavailable,
}

// === impl World ===

impl World {
    /// A gateway with room for `keys_max` keys, on a store that has the keys of these tokens.
    pub fn new(keys_max: u64, numbers: &[u8]) -> Self {
        let store = Arc::new(Watched { inner: MemoryStore::default(), keys: Arc::default() });
        store.write(None, acme());
        numbers.iter().for_each(|number| store.create(*number));
        let (clock, hand) = Clock::manual(NOW);
        let cache = Arc::new(KeyCache::new(keys_max, MAX_STALE, 0));
        let (fills, asked) = Fills::new();
        let cutter = Cutter::default();
        let orders = cutter.clone();
        let parts = Parts {
            cache: Arc::clone(&cache),
            store: Arc::clone(&store) as _,
            settings: settings(keys_max),
            fills: Arc::clone(&fills),
            snapshot: None,
            clock: clock.clone(),
            member: Member::default(),
            cut: Box::new(move |changed| orders.cut(changed)),
            heard: Box::new(|_| {}),
        };
        let mut follower = Follower::new(parts).unwrap();
        follower.start().unwrap();
        let authenticator = Authenticator::new(prefix(), Arc::clone(&cache), Arc::clone(&fills));
        let shared = Arc::new(shared(authenticator, clock));
        let confirmed = Arc::default();
        let mut world = Self { store, cache, shared, follower, hand, fills, asked: Some(asked), confirmed, cutter };
        world.catch_up();
        world
    }

    /// Lets the follower, the workers and the filler meet in one of the orders that there are.
    pub fn race(self, follow: Follow, work: Vec<Work>) -> Self {
        let Self { store, cache, shared, mut follower, hand, fills, asked, confirmed, cutter } = self;
        let workers = work.into_iter().map(|work| {
            let (orders, messages) = channel();
            cutter.0.lock().unwrap().push(orders);
            let (shared, confirmed) = (Arc::clone(&shared), Arc::clone(&confirmed));
            let worker = Worker { shared, messages, confirmed, exchanges: Vec::new(), stopped: false };
            Box::new(move || work(worker)) as Body
        });
        let mut threads: Vec<_> = workers.collect();
        let filler = follower.filler(asked.expect("one race in a run"));
        let rest = Arc::new(Mutex::new(None));
        let (resting, told) = (Arc::clone(&rest), (Arc::clone(&store), Arc::clone(&confirmed), cutter.clone()));
        threads.push(Box::new(move || {
            follow(&told.0, &mut follower);
            told.1.store(true, SeqCst);
            told.2.stop();
            *resting.lock().unwrap() = Some(follower);
        }));
        explore::race(Box::new(move || filler.run()), threads, || fills.close());
        cutter.0.lock().unwrap().clear();
        let follower = rest.lock().unwrap().take().unwrap();
        Self { store, cache, shared, follower, hand, fills, asked: None, confirmed, cutter }
    }

    /// Applies all that there is to apply.
    pub fn catch_up(&mut self) {
        while self.follower.turn().unwrap() != Turn::CaughtUp {}
    }

    /// As if moka had evicted the key.
    pub fn lose(&self, number: u8) {
        self.cache.lose(&token(number).digest);
    }

    pub fn look_up(&self, number: u8) -> Lookup {
        self.cache.lookup(&token(number).digest, self.shared.clock.moment())
    }
}

// === impl Cutter ===

impl Cutter {
    /// Has every worker judge again; what it gives returns when all have done so.
    fn cut(&self, changed: HashSet<Digest>) -> Box<dyn FnOnce()> {
        let (sender, done) = channel();
        let changed = Arc::new(changed);
        let workers = self.workers();
        let order = || Message::Cut { changed: Arc::clone(&changed), done: sender.clone() };
        workers.iter().for_each(|worker| worker.send(order()).unwrap());
        Box::new(move || workers.iter().for_each(|_| done.recv().unwrap()))
    }

    fn stop(&self) {
        self.workers().iter().for_each(|worker| worker.send(Message::Stop).unwrap());
    }

    /// Copied, since a lock may not be held where a step is taken.
    fn workers(&self) -> Vec<Sender<Message>> {
        self.0.lock().unwrap().clone()
    }
}

fn settings(keys_max: u64) -> auth::Settings {
    auth::Settings { prefix: prefix(), keys_max, max_stale: MAX_STALE, vocabulary: Arc::new(vocabulary()) }
}

fn prefix() -> Prefix {
    Prefix::new("ark").unwrap()
}

fn vocabulary() -> Vocabulary {
    Vocabulary::new(["read", "write"].map(|name| (name.to_owned(), false))).unwrap()
}

fn shared(authenticator: Authenticator, clock: Clock) -> Shared {
    let requirement = |scope: &str| {
        let scopes = vocabulary().set(scope).unwrap();
        Requirement { scopes, text: scope.to_owned() }
    };
    let methods = vec![(Method::GET, requirement("read")), (Method::POST, requirement("write"))];
    let route = RouteSpec {
        path: "/orders".into(),
        upstream: UpstreamId(0),
        access: Access::Keyed(methods),
        body_bytes_max: None,
        strict: false,
        trailers: Vec::new(),
        upgrades: Vec::new(),
    };
    Shared {
        settings: keygate::proxy::Settings {
            trusted_proxies: Networks::default(),
            version_header: None,
            limits: keygate::proxy::Limits::default(),
            upstreams: Vec::new(),
        },
        head_limits: HeadLimits { target_bytes_max: 0, head_bytes_max: 0, head_fields_max: 0 },
        routes: RouteTable::build(vec![route]).unwrap(),
        modes: UpstreamModes::new([(true, true)]),
        authenticator,
        clock,
    }
}

pub fn token(number: u8) -> Token {
    Token::from_random(&prefix(), Mode::Live, "acme", &[number; 32])
}

fn acme() -> Record {
    let (code, name) = ("acme".to_owned(), "acme".to_owned());
    Record::Entity(EntityRecord { id: ACME, version: 0, code, name, created_at: NOW, deleted_at: None })
}

/// The key of `token(number)`, which may read and write.
pub fn key(number: u8) -> Record {
    Record::Key(KeyRecord {
        id: KeyId::new(Ulid::from_bits(number.into())),
        version: 0,
        digest: token(number).digest,
        entity_id: ACME,
        name: "key".into(),
        mode: Mode::Live,
        scopes: ScopeList::parse("read write"),
        allowlist: Networks::default(),
        tier: "standard".into(),
        api_version: None,
        last4: String::new(),
        imported: false,
        created_at: NOW,
        expires_at: None,
        revoked_at: None,
        rotated_to: None,
        rotated_from: None,
        until_quiet: None,
    })
}

// === impl Watched ===

impl Watched {
    fn write(&self, expected: Option<u64>, record: Record) {
        let writes = vec![Write { action: Action::KeyUpdated, expected, record }];
        let operation = OperationId(fastrand::u128(..));
        self.apply(&Mutation { operation, actor: "test".into(), at: NOW, writes }).unwrap();
    }

    pub fn create(&self, number: u8) {
        self.write(None, key(number));
    }

    /// Changes the key of `token(number)`.
    pub fn change(&self, number: u8, change: impl FnOnce(&mut KeyRecord)) {
        let mut key = self.inner.key(KeyId::new(Ulid::from_bits(number.into()))).unwrap().unwrap();
        let expected = Some(key.version);
        change(&mut key);
        self.write(expected, Record::Key(key));
    }

    pub fn revoke(&self, number: u8) {
        self.change(number, |key| key.revoked_at = Some(NOW));
    }

    /// Loses the history that the follower knows.
    pub fn diverge(&self) {
        will_write(&*self.keys);
        self.keys.diverged.store(true, SeqCst);
    }

    /// Replaces the key by another, which it outlives for so long.
    pub fn rotate(&self, number: u8, successor: u8, overlap: Duration) {
        self.create(successor);
        self.change(number, |key| key.expires_at = Some(NOW.plus(overlap)));
    }

    /// Deletes the entity of all keys.
    pub fn delete_entity(&self) {
        let entity = self.inner.entity(ACME).unwrap().unwrap();
        let expected = Some(entity.version);
        self.write(expected, Record::Entity(EntityRecord { deleted_at: Some(NOW), ..entity }));
    }
}

impl KeyStore for Watched {
    fn apply(&self, mutation: &Mutation) -> Result<Vec<u64>, StoreError> {
        will_write(&*self.keys);
        self.inner.apply(mutation)
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        will_read(&*self.keys);
        self.inner.key(id)
    }

    fn key_by_digest(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        will_read(&*self.keys);
        self.inner.key_by_digest(digest)
    }

    fn keys(&self, filter: &KeyFilter, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError> {
        self.inner.keys(filter, after, limit)
    }

    fn entity(&self, id: EntityId) -> Result<Option<EntityRecord>, StoreError> {
        self.inner.entity(id)
    }

    fn entity_by_code(&self, code: &str) -> Result<Option<EntityRecord>, StoreError> {
        self.inner.entity_by_code(code)
    }

    fn entities(&self) -> Result<Vec<EntityRecord>, StoreError> {
        self.inner.entities()
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.inner.count()
    }

    fn holds(&self, position: Position) -> Result<bool, StoreError> {
        self.inner.holds(position)
    }

    fn fleet_id(&self) -> Result<Option<FleetId>, StoreError> {
        self.inner.fleet_id()
    }

    fn begin_fleet(&self, id: FleetId) -> Result<FleetId, StoreError> {
        self.inner.begin_fleet(id)
    }

    fn expect_fleet(&self, _: FleetId) {}

    fn check_fleet(&self) -> Result<(), StoreError> {
        self.inner.check_fleet()
    }

    fn note_fork(&self) -> Result<(), StoreError> {
        self.inner.note_fork()
    }

    fn adopt(&self, held: &[Held]) -> Result<(), StoreError> {
        self.inner.adopt(held)
    }

    fn is_adopted(&self, held: &Held) -> Result<bool, StoreError> {
        self.inner.is_adopted(held)
    }

    fn fleet(&self) -> Result<Fleet, StoreError> {
        self.inner.fleet()
    }

    fn forget(&self, instance: &str) -> Result<bool, StoreError> {
        self.inner.forget(instance)
    }

    fn until_quiet(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.inner.until_quiet()
    }

    fn account(&self, account: &Account) -> Result<(), StoreError> {
        self.inner.account(account)
    }

    fn accounts(&self) -> Result<Accounts, StoreError> {
        self.inner.accounts()
    }

    fn last_uses(&self, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError> {
        self.inner.last_uses(keys)
    }

    fn changes(&self) -> Result<Box<dyn Changes>, StoreError> {
        Ok(Box::new(WatchedChanges { inner: self.inner.changes()?, keys: Arc::clone(&self.keys) }))
    }
}

impl Changes for WatchedChanges {
    fn head(&mut self) -> Result<Position, StoreError> {
        will_read(&*self.keys);
        self.inner.head()
    }

    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        will_read(&*self.keys);
        if self.keys.diverged.load(SeqCst) {
            return Ok(Feed::Foreign { fleet: None });
        }
        self.inner.poll(from, fleet, limit)
    }

    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError> {
        self.inner.past(limit)
    }

    fn page(&mut self, after: u64, limit: usize) -> Result<Page, StoreError> {
        will_read(&*self.keys);
        self.inner.page(after, limit)
    }

    fn wait(&mut self, _: Position) {}

    fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        self.inner.tell(member)
    }

    fn leave(&mut self, member: &Member) {
        self.inner.leave(member);
    }

    fn outlives_process(&self) -> bool {
        false
    }
}

// === impl Worker ===

impl Worker {
    /// Has the store asked for a key that the cache lacks, and does not wait for the answer: one that comes at once is another
    /// order of steps.
    pub fn fill(&self, number: u8) {
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", token(number).text.expose());
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&bearer).unwrap());
        let authenticator = &self.shared.authenticator;
        if authenticator.may_lack() {
            let asking = pin!(authenticator.fill(&headers, self.shared.clock.moment()));
            _ = asking.poll(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// A request: look-up and registration, as the service does it in one poll (protocols I8). What a change has ended is not
    /// admitted once the change was confirmed.
    pub fn request(&mut self, number: u8, method: &Method) -> Answer {
        let token = token(number);
        let found = self.shared.authenticator.authenticate(token.text.expose().as_bytes(), self.shared.clock.moment());
        let (principal, digest) = match found {
            Ok(Authentication::Authenticated(principal, digest)) => (principal, digest),
            Ok(Authentication::Rejected(reason, _)) => return Answer::Refused(reason),
            Err(Unavailable) => return Answer::Unavailable,
        };
        let facts = Facts { method, client_ip: CLIENT };
        let route = self.shared.routes.find("/orders");
        match authorize(route.as_ref(), &self.shared.modes, &facts, &principal) {
            Ok(permit) => {
                let in_flight = InFlight::default();
                in_flight.admit(Admitted::new(principal, digest, &permit, method, ClientAddr::unproven(CLIENT)));
                self.exchanges.push((digest, in_flight));
                Answer::Admitted
            }
            Err(denial) => Answer::Refused(denial.reason),
        }
    }

    /// Whether a change has been confirmed.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(SeqCst)
    }

    /// Does what has been ordered up to now; whether there was an order to judge again.
    pub fn obey(&mut self) -> bool {
        match self.messages.try_recv() {
            Ok(message) => self.take(message),
            Err(_) => false,
        }
    }

    /// Does what is ordered until the follower has ended.
    pub fn obey_to_the_end(&mut self) {
        while !self.stopped {
            let message = self.messages.recv().unwrap();
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Cut { changed, done } => {
                let (now, why) = (self.shared.clock.moment(), Again::Changed(&changed));
                self.exchanges.iter().for_each(|(_, exchange)| exchange.judge_again(&self.shared, why, now));
                done.send(()).unwrap();
                true
            }
            Message::Stop => {
                self.stopped = true;
                false
            }
        }
    }

    /// The reasons for which the exchanges were cut, in the order in which they were admitted.
    pub fn cuts(&self) -> Vec<Option<Reason>> {
        self.exchanges.iter().map(|(_, exchange)| exchange.cut()).collect()
    }
}
