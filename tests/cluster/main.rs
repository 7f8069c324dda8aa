//! Command line of the test cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::cluster::{self, Cluster, NODES_MAX, Wanted};

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
    /// Bring the cluster up; does nothing when it is.
    Up {
        /// How many nodes.
        #[arg(long, env = "NODES", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
        nodes: u8,
    },
    /// Show what runs; exits with 1 when not all of it does.
    Status,
    /// Build the images, print where they are, and load them onto every node if the cluster is up.
    Images {
        /// Only Redis and the tools, which need no build of this workspace.
        #[arg(long)]
        companions: bool,
    },
    /// Do something to a node.
    Node {
        #[command(subcommand)]
        action: NodeAction,
    },
    /// Print the folder of the logs, or the end of one.
    Logs {
        /// Name of a log, such as `kube-apiserver` or `node1-kubelet`.
        part: Option<String>,
    },
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
    /// Run helm as the administrator.
    #[command(trailing_var_arg = true)]
    Helm {
        /// What to pass on.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Becomes a cluster's supervisor; called by `up`.
    #[command(hide = true)]
    Contain {
        /// The cluster.
        cluster: String,
        /// Process id of the caller.
        caller: i32,
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

#[derive(Debug, Clone, Copy, Subcommand)]
enum NodeAction {
    /// Pull its plug; everything on it goes on running.
    Cut {
        /// Number of the node.
        node: u8,
    },
    /// Plug it in again.
    Heal {
        /// Number of the node.
        node: u8,
    },
    /// Cut its power.
    Crash {
        /// Number of the node.
        node: u8,
    },
    /// Boot it afresh.
    Restart {
        /// Number of the node.
        node: u8,
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
        Action::Up { nodes } => {
            cluster.up(nodes)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig_path().display());
        }
        Action::Status => {
            let status = cluster.status();
            print!("{status}");
            return Ok(if status.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Images { companions } => images(&cluster, if companions { Wanted::Companions } else { Wanted::All })?,
        Action::Node { action } => match action {
            NodeAction::Cut { node } => cluster.cut(node)?,
            NodeAction::Heal { node } => cluster.heal(node)?,
            NodeAction::Crash { node } => cluster.crash(node)?,
            NodeAction::Restart { node } => cluster.restart(node)?,
        },
        Action::Logs { part: None } => println!("{}", cluster.layout().logs().display()),
        Action::Logs { part: Some(part) } => {
            let log = cluster.layout().logs().join(format!("{part}.log"));
            return pass_on(std::process::Command::new("tail").args(["-n", "100"]).arg(log));
        }
        Action::Kubectl { args } => return pass_on(cluster.kubectl_command()?.args(args)),
        Action::Helm { args } => return pass_on(cluster.helm_command()?.args(args)),
        Action::Contain { cluster, caller } => cluster::contain(Cluster::named(&cluster)?.layout(), caller)?,
        Action::Supervise { folder } => cluster::supervise(&folder)?,
        Action::BootNode { root } => cluster::boot_node(&root)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds images, tells where they are, and loads them where there is a cluster to load them onto.
fn images(cluster: &Cluster, wanted: Wanted) -> anyhow::Result<()> {
    let archives = cluster::build_images(wanted)?;
    archives.iter().for_each(|archive| println!("{:<40} {}", archive.image, archive.path.display()));
    let name = cluster.layout().name();
    if cluster.is_up() {
        cluster.import(&archives)?;
        eprintln!("loaded onto every node of the cluster {name}");
    } else {
        eprintln!("the cluster {name} is not up, so they are loaded nowhere");
    }
    Ok(())
}

/// Runs a program in this one's place, with its exit code.
fn pass_on(command: &mut std::process::Command) -> anyhow::Result<ExitCode> {
    let status = command.status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
