//! What can go wrong with the test cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the test cluster could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This machine lacks something; `remedy` says what to do.
    #[error("this machine lacks {what}: {remedy}")]
    Missing {
        /// What is not there.
        what: String,
        /// What the reader can do about it.
        remedy: String,
    },
    /// The name can not be that of a cluster.
    #[error("cluster name {name:?} must be 1 to 20 of a-z, 0-9 and '-', beginning with a letter")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// The name is not to be had, because it means something else.
    #[error(
        "cluster name {name:?} is taken: to `make demo`, CLUSTER={name} means the cluster of your own kubectl context; \
         choose another name"
    )]
    ReservedName {
        /// The name asked for.
        name: String,
    },
    /// The cluster has no such node.
    #[error("no node {node}: cluster {name} has nodes 1 to {nodes}")]
    NoSuchNode {
        /// The cluster.
        name: String,
        /// The node asked for.
        node: u8,
        /// How many nodes it has.
        nodes: u8,
    },
    /// The cluster is not up.
    #[error("cluster {name} is not up: start it with `make cluster-up`")]
    NotUp {
        /// The cluster.
        name: String,
    },
    /// A cluster of this name runs in another shape.
    #[error("cluster {name} is up as {running}, asked for {asked}: take it down first")]
    OtherShape {
        /// The cluster.
        name: String,
        /// The shape it has.
        running: String,
        /// The shape it should have.
        asked: String,
    },
    /// A program ended badly.
    #[error("{command} ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A file or process operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("making the certificate of {subject}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// Why it failed.
        source: rcgen::Error,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {limit:?}; {hint}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// Where to look.
        hint: String,
    },
}

/// Result of the test cluster's operations.
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// Names the action and the path of a failed file operation.
pub(crate) trait AtPath<T> {
    /// Adds what was tried on which path.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

// === impl AtPath ===

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| ClusterError::Io { action, path: path.to_owned(), source })
    }
}

impl<T> AtPath<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(std::io::Error::from).at(action, path)
    }
}
