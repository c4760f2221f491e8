//! Tries every order of steps that can make a difference, on Shuttle's threads. Of orders that differ only in which of two
//! unrelated steps came first, one is tried: sleep sets (Godefroid, "Partial-Order Methods", 1996).

use keygate::sync::{Step, take_next, thread};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

const THREADS_MAX: usize = 8;
const STACK_BYTES: usize = 512 * 1024;

thread_local! {
    /// Orders are tried; otherwise everybody has a turn, always in the same order.
    static RACING: Cell<bool> = const { Cell::new(false) };
}

/// What was tried.
#[derive(Debug, Default)]
pub struct Tried {
    /// Orders, no two of which are the same but for unrelated steps.
    pub orders: usize,
    /// Runs that turned out to repeat another one.
    pub repeated: usize,
    /// The orders, told apart by what each step has heard of.
    pub seen: HashSet<u64>,
}

/// Threads, by their bits.
type Set = u32;

/// For each thread, how many steps of the run it has heard of.
type Heard = [usize; THREADS_MAX];

/// Decides who goes on, run by run.
struct Explorer {
    /// The decisions of the run, those of the next one to begin with.
    trail: Vec<Decision>,
    /// What was done in this run, one for each decision.
    done: Vec<Done>,
    next: [Option<Step>; THREADS_MAX],
    heard: [Heard; THREADS_MAX],
    known: Set,
    /// Threads whose next step was tried here before, and nothing has come between.
    asleep: Set,
    /// Whatever comes now was tried.
    repeats: bool,
    is_first: bool,
    tried: Rc<RefCell<Tried>>,
    orders_max: usize,
    /// Decides at random instead, so many times.
    random: Option<fastrand::Rng>,
}

struct Decision {
    chosen: usize,
    tried: Set,
    to_try: Set,
}

struct Done {
    thread: usize,
    step: Option<Step>,
    heard: Heard,
}

/// Runs `scenario` in every order of the steps inside its [`race`]; at most so many.
///
/// # Panics
/// When the scenario does, and when there are more orders.
pub fn explore(name: &str, orders_max: usize, scenario: impl Fn() + Send + Sync + 'static) -> Tried {
    let tried = run(None, orders_max, scenario);
    println!("{name}: {} orders, and {} runs that repeated one", tried.orders, tried.repeated);
    tried
}

/// Runs `scenario` so many times, in orders drawn at random.
pub fn draw(seed: u64, runs: usize, scenario: impl Fn() + Send + Sync + 'static) -> Tried {
    run(Some(fastrand::Rng::with_seed(seed)), runs, scenario)
}

fn run(random: Option<fastrand::Rng>, runs_max: usize, scenario: impl Fn() + Send + Sync + 'static) -> Tried {
    // Who waits for a fill needs a timer; nobody turns it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let tried = Rc::new(RefCell::new(Tried::default()));
    Runner::new(Explorer::new(Rc::clone(&tried), runs_max, random), config()).run(scenario);
    tried.take()
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Runs `threads` together, each step of each in every possible order; and `servant`, which ends after `dismiss` alone.
pub fn race(servant: Body, threads: Vec<Body>, dismiss: impl FnOnce()) {
    RACING.set(true);
    let servant = thread::spawn(servant);
    let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    RACING.set(false);
    dismiss();
    servant.join().unwrap();
}

pub type Body = Box<dyn FnOnce() + Send>;

const fn bit(thread: usize) -> Set {
    1 << thread
}

const fn has(set: Set, thread: usize) -> bool {
    set & bit(thread) != 0
}

const fn lowest(set: Set) -> usize {
    set.trailing_zeros() as usize
}

// === impl Explorer ===

impl Explorer {
    fn new(tried: Rc<RefCell<Tried>>, orders_max: usize, random: Option<fastrand::Rng>) -> Self {
        Self {
            trail: Vec::new(),
            done: Vec::new(),
            next: [None; THREADS_MAX],
            heard: [[0; THREADS_MAX]; THREADS_MAX],
            known: 0,
            asleep: 0,
            repeats: false,
            is_first: true,
            tried,
            orders_max,
            random,
        }
    }

    fn begin_run(&mut self) {
        self.done.clear();
        self.next = [None; THREADS_MAX];
        self.heard = [[0; THREADS_MAX]; THREADS_MAX];
        (self.known, self.asleep, self.repeats) = (0, 0, false);
        RACING.set(false);
        take_next();
    }

    fn count_run(&self) {
        let mut tried = self.tried.borrow_mut();
        if self.repeats {
            tried.repeated += 1;
        } else {
            tried.orders += 1;
            tried.seen.insert(self.fingerprint());
        }
        let within = tried.orders + tried.repeated <= self.orders_max;
        assert!(within, "more than {} orders: {}", self.orders_max, tried.orders);
    }

    /// The same for runs that differ in the order of unrelated steps alone: every step, and how many steps of each thread it
    /// has heard of.
    fn fingerprint(&self) -> u64 {
        let told: Vec<_> = self.done.iter().map(|done| done.step.is_some()).collect();
        let steps = |thread: usize, until: usize| {
            self.done[..until].iter().zip(&told).filter(|(done, told)| done.thread == thread && **told).count()
        };
        let hash = |done: &Done| {
            let mut hasher = DefaultHasher::new();
            let heard: Vec<_> = (0..THREADS_MAX).map(|thread| steps(thread, done.heard[thread])).collect();
            (done.thread, heard).hash(&mut hasher);
            hasher.finish()
        };
        self.done.iter().filter(|done| done.step.is_some()).map(hash).fold(0, u64::wrapping_add)
    }

    /// Turns to the last decision that can be made otherwise; whether there is one.
    fn turn_back(&mut self) -> bool {
        while let Some(last) = self.trail.last_mut() {
            if last.to_try != 0 {
                last.tried |= bit(last.chosen);
                last.chosen = lowest(last.to_try);
                last.to_try &= !bit(last.chosen);
                return true;
            }
            self.trail.pop();
        }
        false
    }

    fn decide(&mut self, enabled: Set, current: usize) -> usize {
        let possible = (0..THREADS_MAX).filter(|thread| has(enabled, *thread) && self.can_go_on(*thread));
        // Who waits for what cannot come is let find out.
        let enabled =
            Some(possible.fold(0, |set, thread| set | bit(thread))).filter(|set| *set != 0).unwrap_or(enabled);
        if self.random.is_some() {
            return self.decide_at_random(enabled);
        }
        let at = self.done.len();
        if at == self.trail.len() && !self.repeats {
            let awake = enabled & !self.asleep;
            self.repeats = awake == 0;
            if !self.repeats {
                let chosen = if has(awake, current) { current } else { lowest(awake) };
                // A step that nobody else can notice comes first, once and for all.
                let unnoticed = (0..THREADS_MAX).find(|thread| has(awake, *thread) && self.next[*thread].is_none());
                let chosen = unnoticed.unwrap_or(chosen);
                let to_try = if unnoticed.is_some() { 0 } else { awake & !bit(chosen) };
                self.trail.push(Decision { chosen, tried: 0, to_try });
            }
        }
        if self.repeats {
            return if has(enabled, current) { current } else { lowest(enabled) };
        }
        let (chosen, tried) = (self.trail[at].chosen, self.trail[at].tried);
        assert!(has(enabled, chosen), "the scenario is not the same in every run");
        self.hear(chosen);
        self.asleep = self.still_asleep((self.asleep | tried) & !bit(chosen), self.next[chosen]);
        chosen
    }

    fn decide_at_random(&mut self, enabled: Set) -> usize {
        let all: Vec<_> = (0..THREADS_MAX).filter(|thread| has(enabled, *thread)).collect();
        let chosen = self.random.as_mut().and_then(|random| random.choice(all)).unwrap();
        self.hear(chosen);
        chosen
    }

    fn can_go_on(&self, thread: usize) -> bool {
        self.next[thread].is_none_or(Step::is_possible)
    }

    /// Of `asleep`, the threads whose next step does not meet the one that is taken now.
    fn still_asleep(&self, asleep: Set, taken: Option<Step>) -> Set {
        let sleeps = |thread: &usize| has(asleep, *thread) && !meet(self.next[*thread], taken);
        (0..THREADS_MAX).filter(sleeps).fold(0, |set, thread| set | bit(thread))
    }

    /// The chosen thread takes its step, and hears of what has met it.
    fn hear(&mut self, chosen: usize) {
        let step = self.next[chosen];
        let mut heard = self.heard[chosen];
        for earlier in self.done.iter().filter(|earlier| meet(earlier.step, step)) {
            (0..THREADS_MAX).for_each(|thread| heard[thread] = heard[thread].max(earlier.heard[thread]));
        }
        heard[chosen] = self.done.len() + 1;
        self.heard[chosen] = heard;
        self.done.push(Done { thread: chosen, step, heard });
    }

    /// Whoever is new has heard of what its maker has.
    fn meet_new(&mut self, enabled: Set, maker: usize) {
        for thread in (0..THREADS_MAX).filter(|thread| has(enabled & !self.known, *thread)) {
            self.heard[thread] = self.heard[maker];
        }
        self.known |= enabled;
    }
}

impl Scheduler for Explorer {
    fn new_execution(&mut self) -> Option<Schedule> {
        if !std::mem::take(&mut self.is_first) {
            self.count_run();
            if self.random.is_some() {
                self.trail.clear();
                if self.tried.borrow().orders == self.orders_max {
                    return None;
                }
            } else if !self.turn_back() {
                return None;
            }
        }
        self.begin_run();
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        let enabled = runnable.iter().fold(0, |set, task| set | bit(usize::from(task.id())));
        let current = current.map_or(0, usize::from);
        // Kept until it says something new: what it has done last may be going on.
        if let Some(step) = take_next() {
            self.next[current] = Some(step);
        }
        self.meet_new(enabled, current);
        let chosen = if RACING.get() {
            self.decide(enabled, current)
        } else {
            let after = enabled & !(bit(current) | (bit(current) - 1));
            lowest(if after == 0 { enabled } else { after })
        };
        Some(TaskId::from(chosen))
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("a scenario draws nothing at random")
    }
}

fn meet(one: Option<Step>, other: Option<Step>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one.meets(other))
}
