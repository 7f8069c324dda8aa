//! Operator: turns `TieredCache` objects into running fleets of cache nodes. See README.md for what it promises.
//!
//! Read the modules in the order they are declared.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod runtime;

mod tiered_cache;

mod lease;

mod admin;

mod client;

mod recorder;

mod heartbeat;

mod metrics;

mod clock;

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use args::{Args, Command};
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// How long the threads of blocking work may take to end once everything has ended.
const STUCK_THREADS_GRACE: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Run(run) => {
            let filter = EnvFilter::try_new(&run.log_filter).context("read --log-filter")?;
            let log = tracing_subscriber::fmt().with_env_filter(filter);
            match run.log_format {
                args::LogFormat::Json => log.json().flatten_event(true).init(),
                args::LogFormat::Text => log.with_ansi(false).init(),
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the async runtime")?;
            let ended = runtime.block_on(runtime::run(run));
            // Dropped, it would wait for a look-up of a name that nobody answers.
            runtime.shutdown_timeout(STUCK_THREADS_GRACE);
            ended
        }
        Command::Crds => {
            print!("{}", crds::tiered_cache::yaml());
            Ok(ExitCode::SUCCESS)
        }
    }
}
