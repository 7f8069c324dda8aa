//! Arguments → configuration → log → open → serve → drain.

mod args;

use std::process::ExitCode;

use cache_node::{config, node::Node, telemetry};
use clap::Parser;
use tikv_jemallocator::Jemalloc;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use self::args::{Arguments, Purpose};

/// One heap for Rust and RocksDB, which does not fragment under a cache's churn.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// For the admin port, signals, the queue's flusher and upkeep; clients have threads of their own.
const BACKGROUND_THREADS: usize = 2;

fn main() -> ExitCode {
    let environment = config::Environment::read();
    let (file, purpose) = Arguments::parse().split();
    let config = match config::Config::load(file.as_deref(), &environment) {
        Ok(config) => config,
        Err(error) => return failed(&environment, 2, &error.to_string()),
    };
    if purpose == Purpose::Check {
        print!("{}", config.to_yaml());
        return ExitCode::SUCCESS;
    }
    if file.is_none() && config.tells() {
        eprint!("{}", config.welcome());
    }
    telemetry::start(&config.effective().log);
    let runtime = runtime::Builder::new_multi_thread().worker_threads(BACKGROUND_THREADS).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&environment, 1, &format!("{error:#}")),
    }
}

async fn run(config: config::Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut asked_to_stop = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
    let node = tokio::select! { node = Node::open(config) => node?, () = asked_to_stop() => return Ok(()) };
    asked_to_stop().await;
    tokio::select! { () = node.shutdown() => Ok(()), () = asked_to_stop() => anyhow::bail!("a second signal cut the drain short") }
}

fn failed(environment: &config::Environment, code: u8, message: &str) -> ExitCode {
    eprintln!("cache-node: {message}");
    // The same words for `kubectl describe pod`; if they can not be left there, standard error has them.
    let _ = environment.write_last_words(message);
    ExitCode::from(code)
}
