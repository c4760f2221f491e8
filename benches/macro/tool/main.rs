//! The small servers and the load generator that the macro benchmark needs, each single-threaded on epoll (through mio):
//! `upstream`, `relay` and `load`. They do as little as possible, so that what is measured is the proxy between them. And `spin`, which
//! as an idle task keeps a core awake: to wake one takes the sender of a packet more than the packet.

mod load;
mod relay;
mod stall;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["upstream", address] => upstream::run(address),
        ["relay", address, to] => relay::run(address, to),
        ["load", rest @ ..] => load::run(rest),
        ["watch", file] => stall::watch(file),
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        _ => Err("usage: bench_tool upstream ADDR | relay ADDR TO | load ADDR PATH CONNECTIONS SECONDS RATE KEYS_FILE [STALLS_FILE] | watch STALLS_FILE | spin"
            .into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_tool: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;
