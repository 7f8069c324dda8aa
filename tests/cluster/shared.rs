//! One cluster for all end-to-end tests of a run.

use std::sync::OnceLock;

use super::Cluster;

/// Name of the tests' cluster when `CLUSTER` names no other.
const NAME: &str = "e2e";
/// Nodes of the tests' cluster.
const NODES: u8 = 3;

/// The cluster that the end-to-end tests share, up, with Redis and the tools loaded. It stays up: whoever started the
/// tests takes it down, and a developer's next run starts at once.
///
/// # Panics
/// When it does not come up; no test can go on then.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::from_env(NAME).and_then(|cluster| {
            // A developer's cluster may have more nodes; it serves as well.
            let running = u8::try_from(cluster.status().nodes.len()).unwrap_or(NODES);
            cluster.up(running.max(NODES))?;
            cluster.load_companions()?;
            Ok(cluster)
        });
        cluster.unwrap_or_else(|error| panic!("the tests' cluster does not come up: {error}"))
    })
}
