//! What a node tells while it runs: the log, on standard error, and spans, to a collector.

mod export;
mod spans;

use std::{
    backtrace::Backtrace,
    io::{self, IsTerminal},
    panic,
};

use crds::node_config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

pub use self::{
    export::{Export, ExportError, ExportOptions},
    spans::{Operation, SpanCounts, Spans},
};

/// Starts the log of this process: text for people and JSON for machines, panics included. Only a program calls it, once; a library leaves the choice to its program.
pub fn start(log: &Log) {
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let text = match log.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if text {
        builder.with_ansi(io::stderr().is_terminal()).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    // A panic is a message like any other, or a machine that reads the log would miss it.
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, backtrace = %Backtrace::capture(), "panic");
    }));
}
