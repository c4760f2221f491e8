//! What befalls machines, network and server.

use super::link::Caller;
use super::server::Engine;
use super::time::{MILLIS, SECONDS};
use super::world::World;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// For how long nothing else goes wrong after the server lost rows: until everybody has told of itself, and a little more.
const CALM: u64 = 5 * SECONDS;

impl World {
    /// Something goes wrong somewhere.
    pub fn befall(self: &Arc<Self>) {
        let (now, index) = (self.time.now(), self.below(self.machines.len() as u64) as usize);
        let machine = &self.machines[index];
        if self.is_sheltered(index) {
            return;
        }
        match self.below(100) {
            0..18 => machine.cut_off(self, now + self.outage(16 * SECONDS)),
            // Whatever waits for a call meanwhile waits too.
            18..34 if self.shelters() => {}
            18..34 => machine.pause(self, now + self.outage(16 * SECONDS)),
            34..38 => machine.mute(self),
            38..56 => machine.doom(self),
            56..68 => machine.leave(self, now + self.span(8 * SECONDS)),
            68..78 => self.jump(index),
            78..86 => machine.block_disk(self),
            86..93 => self.stop_server(),
            93..97 => self.manager.cut_off(self, now + self.span(6 * SECONDS)),
            _ => self.clone_machine(index),
        }
    }

    fn jump(&self, machine: usize) {
        let far = self.span(3600 * SECONDS) as i64;
        let micros = if self.one_in(2) { far } else { -far };
        self.note(|| format!("machine {machine}: its wall clock jumps by {micros} us"));
        self.time.jump(machine, micros);
    }

    /// The last machine may be one that gets another's disk.
    fn clone_machine(self: &Arc<Self>, of: usize) {
        let Some(last) = self.machines.last().filter(|last| !last.is_original()) else { return };
        if let Some(original) = self.machines.get(of).filter(|original| original.is_original()) {
            last.become_clone(self, original);
        }
    }

    fn stop_server(&self) {
        let server = self.server(Caller::Nobody);
        if server.is_up() && !self.shelters() {
            self.note(|| "server: stops".to_owned());
            server.stop();
            let back = self.time.now() + 100 * MILLIS + self.outage(12 * SECONDS);
            self.server_back_at.store(back, Ordering::Relaxed);
        }
    }

    pub fn restart_server_if_due(&self) {
        let now = self.time.now();
        let server = self.server(Caller::Nobody);
        if server.is_up() || now < self.server_back_at.load(Ordering::Relaxed) {
            return;
        }
        // Rows are lost only of gateways that can tell it of themselves again in time: more is not promised.
        let loses = self.one_in(2) && !self.is_calm() && self.engine == Engine::Beats;
        self.restart_server(loses);
    }

    /// Starts it as another run.
    pub fn restart_server(&self, loses: bool) {
        let now = self.time.now();
        let keep = |instance: &str| !loses || !self.machines.iter().any(|machine| machine.is_well(instance, now));
        let lost = self.server(Caller::Nobody).restart(keep);
        if !lost.is_empty() {
            self.calm_until.store(now + CALM, Ordering::Relaxed);
        }
        self.note(|| format!("server: starts again without the rows {lost:?}"));
    }
}
