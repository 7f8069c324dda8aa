//! Command line of the test cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::cluster::{self, Cluster};

/// A real Kubernetes of several nodes on one machine, for tests.
#[derive(Debug, Parser)]
#[command(name = "cluster")]
struct Arguments {
    /// Name of the cluster; clusters of different names work beside each other.
    #[arg(long, env = "CLUSTER", default_value = "tieredcache", global = true)]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the programs that are missing; a cold build takes about 20 minutes.
    Build {
        /// Only list them and where they are.
        #[arg(long)]
        list: bool,
    },
    /// Take the cluster down; only its logs stay.
    Down,
    /// An API server with etcd and the controllers alone, on the loopback.
    Api {
        #[command(subcommand)]
        action: Api,
    },
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Run kubectl as the administrator.
    #[command(trailing_var_arg = true)]
    Kubectl {
        /// What to pass on.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Becomes a cluster's supervisor; called by `up`.
    #[command(hide = true)]
    Contain {
        /// The cluster.
        cluster: String,
    },
    /// Keeps parts running; called by `contain`.
    #[command(hide = true)]
    Supervise {
        /// The folder of wanted parts.
        folder: PathBuf,
    },
    /// Becomes a node's supervisor; called by the cluster's.
    #[command(hide = true)]
    BootNode {
        /// The node's folder.
        root: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Api {
    /// Bring it up; about three seconds.
    Up,
    /// Take it down.
    Down,
}

fn main() -> ExitCode {
    match carry_out(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::named(&arguments.name)?;
    match arguments.action {
        Action::Build { list } => {
            if !list {
                cluster::build_programs()?;
            }
            cluster::list_programs().iter().for_each(|line| println!("{line}"));
        }
        Action::Down | Action::Api { action: Api::Down } => cluster.down()?,
        Action::Api { action: Api::Up } => {
            cluster.api_up()?;
            println!("export KUBECONFIG={}", cluster.kubeconfig_path().display());
        }
        Action::Kubeconfig => println!("{}", cluster.kubeconfig_path().display()),
        Action::Kubectl { args } => {
            let status = cluster.kubectl_command()?.args(args).status()?;
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        Action::Contain { cluster } => cluster::contain(Cluster::named(&cluster)?.layout())?,
        Action::Supervise { folder } => cluster::supervise(&folder)?,
        Action::BootNode { root } => cluster::boot_node(&root)?,
    }
    Ok(ExitCode::SUCCESS)
}
