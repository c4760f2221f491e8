//! Standard output as a sink.

use super::World;
use crate::harness::client::head;
use crate::harness::gateway::keygate;
use crate::harness::{Client, PATIENCE, eventually};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;

/// A second run of a gateway that was stopped, with its standard output.
struct Run {
    child: Child,
    address: SocketAddr,
    log: std::sync::mpsc::Receiver<String>,
}

impl Run {
    fn start(world: &mut World) -> Self {
        world.stop();
        let mut command = keygate(world.gateway.dir.path());
        let command = command.arg("serve").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, log) = channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| _ = sender.send(line)));
        let address = loop {
            let line = log.recv_timeout(PATIENCE).unwrap();
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = event["address"].as_str() {
                break address.parse().unwrap();
            }
        };
        Self { child, address, log }
    }

    fn serve(&self, world: &World, count: usize) {
        let mut client = Client::connect(self.address);
        for _ in 0..count {
            let answer = client.send(head("GET", &world.path, &[&world.key.bearer()])).read("GET");
            assert_eq!(answer.status, 200);
        }
    }

    fn stop(&mut self) {
        let stop = std::process::Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(stop.unwrap().success());
        let ended = eventually("the gateway ends", || self.child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(0));
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn a_collector_that_reads_standard_output_gets_the_journal_line_by_line() {
    let mut world = World::new("type = \"stdout\"");
    let mut run = Run::start(&mut world);
    let out = run.child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).collect::<Vec<_>>());
    run.serve(&world, 20);
    run.stop();
    let (printed, journal) = (reader.join().unwrap(), world.journal());
    assert!(printed.len() > 20);
    // What came before was printed by the first run, which nobody read.
    assert_eq!(printed, journal[journal.len() - printed.len()..]);
}

#[test]
fn l6_a_reader_that_stops_reading_or_hangs_up_stops_no_request() {
    let mut world = World::new("type = \"stdout\"");
    let mut run = Run::start(&mut world);
    // More than a pipe holds.
    run.serve(&world, 300);
    drop(run.child.stdout.take());
    run.serve(&world, 10);
    eventually("the closed pipe is told", || {
        run.log.try_iter().any(|line| line.contains("cannot write to standard output")).then_some(())
    });
    run.serve(&world, 10);
    run.stop();
    let served = world.journal().iter().filter(|line| line.contains(r#""decision":"allow""#)).count();
    assert_eq!(served, 320, "a record for each");
}
