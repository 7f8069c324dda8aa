//! Arguments → configuration → log → open → serve → drain.

mod args;

use std::{process::ExitCode, time::Duration};

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

/// How long the threads of blocking work may take to end once everything is closed.
const STUCK_THREADS_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let environment = config::Environment::read();
    let (file, purpose) = Arguments::parse().split();
    let config = match config::Config::load(file.as_deref(), &environment) {
        Ok(config) => config,
        Err(error) => return report(&environment, 2, &error.to_string()).into(),
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
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ended = runtime.block_on(run(config));
        // Dropped, it would wait for a thread that hangs in a file system for as long as that hangs.
        runtime.shutdown_timeout(STUCK_THREADS_GRACE);
        ended
    });
    let code = ended.map_or_else(|error| report(&environment, 1, &format!("{error:#}")), |()| 0);
    // A usual exit would wait for RocksDB's threads: for a compaction to end, or for a device that hangs.
    signal_hook::low_level::exit(code.into())
}

async fn run(config: config::Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut asked_to_stop = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
    let node = tokio::select! { node = Node::open(config) => node?, () = asked_to_stop() => return Ok(()) };
    asked_to_stop().await;
    tokio::select! { () = node.shutdown() => Ok(()), () = asked_to_stop() => anyhow::bail!("a second signal cut the drain short") }
}

/// Says why it ends; its exit code.
fn report(environment: &config::Environment, code: u8, message: &str) -> u8 {
    eprintln!("cache-node: {message}");
    // The same words for `kubectl describe pod`; if they can not be left there, standard error has them.
    let _ = environment.write_last_words(message);
    code
}
