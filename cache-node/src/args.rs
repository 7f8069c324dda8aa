//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const ABOUT: &str =
    "A layered cache server that speaks Redis' protocol: values live in memory (L1), Redis (L2) and RocksDB (L3).";

const AFTER_HELP: &str = "\
Without arguments: one node on this machine, for Redis clients on 127.0.0.1:6379, health and metrics on
127.0.0.1:9090, data in ./tieredcache-data.

Environment:
  NODE_NAME        name of the node, if the configuration does not name it
  RUST_LOG         overrides log.filter, such as debug or info,cache_node::layer=debug;
                   warn makes a node silent while all is well
  TERMINATION_LOG  file for the last words of a node that fails [default: /dev/termination-log]

Exit codes:
  0  stopped as asked
  1  failed while opening or running, such as an address in use
  2  bad command line or configuration

Examples:
  cache-node
  cache-node --config node.yaml
  cache-node check-config node.yaml";

/// What was asked of the program.
#[derive(Debug, Parser)]
#[command(name = "cache-node", version, about = ABOUT, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// Configuration file (YAML); every field has a default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    action: Option<Action>,
}

/// What a configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Run,
    Check,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check a configuration file and print it with all defaults; if it is bad, say what is wrong and exit with 2
    CheckConfig {
        /// Configuration file (YAML)
        file: PathBuf,
    },
}

// === impl Arguments ===

impl Arguments {
    /// Which file, and what for.
    pub(crate) fn split(self) -> (Option<PathBuf>, Purpose) {
        match self.action {
            Some(Action::CheckConfig { file }) => (Some(file), Purpose::Check),
            None => (self.config, Purpose::Run),
        }
    }
}
