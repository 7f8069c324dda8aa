//! Flags and environment.

use std::net::SocketAddr;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// The operator's command line.
#[derive(Debug, Parser)]
#[command(name = "operator", version, about = "Runs fleets of layered cache nodes declared as TieredCache objects")]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch TieredCache objects and make the cluster match them.
    Run(RunArgs),
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply --server-side -f -`.
    Crds,
}

/// Settings of `operator run`.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// Namespace to watch; repeat for several. Default: all namespaces, which needs a ClusterRole.
    #[arg(long = "watch-namespace", env = "WATCH_NAMESPACE", value_delimiter = ',', value_name = "NAMESPACE")]
    pub(crate) watch_namespaces: Vec<String>,

    /// Namespace of the Lease that elects the leader. Default: the namespace of the kubeconfig or the pod.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) lease_namespace: Option<String>,

    /// Name of the Lease that elects the leader.
    #[arg(long, default_value = "tieredcache-operator", value_name = "NAME")]
    pub(crate) lease_name: String,

    /// Name of this replica in the Lease and in events.
    #[arg(long, env = "POD_NAME", default_value = "operator", value_name = "NAME")]
    pub(crate) pod_name: String,

    /// Image of cache nodes without its tag; the tag is a cache's `spec.version`.
    #[arg(
        long,
        env = "NODE_IMAGE_REPOSITORY",
        default_value = "ghcr.io/tieredcache/cache-node",
        value_name = "REPOSITORY"
    )]
    pub(crate) node_image_repository: String,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "ADMIN_ADDRESS", default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    pub(crate) admin_address: SocketAddr,

    /// How many caches are worked on at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "COUNT")]
    pub(crate) concurrency: u16,

    /// What is logged, in the syntax of tracing's EnvFilter.
    #[arg(long, env = "LOG_FILTER", default_value = "info,kube=warn,kube_client=off", value_name = "FILTER")]
    pub(crate) log_filter: String,

    /// One JSON object a line, or text.
    #[arg(long, env = "LOG_FORMAT", default_value = "json", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
