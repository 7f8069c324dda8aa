//! What can be compared, and how each is started.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use clap::{Args, ValueEnum};

/// What can be compared. A node has one thread for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// `redis-server`, persistence off, otherwise as installed.
    Redis,
    /// `cache-node`, memory only.
    Node,
    /// `cache-node` with its disk layer: every write passes the write queue.
    NodeDisk,
    /// `cache-node` with a Redis and its disk layer, and memory for all entries.
    NodeFull,
    /// `cache-node`, memory only, every entry with two tags.
    NodeTagged,
    /// `cache-node` with a Redis, and memory for all entries.
    NodeRedis,
    /// The same, after the Redis has stopped to answer.
    NodeDeadRedis,
    /// `cache-node` with its disk layer and memory for one entry in twenty: reads go to the disk's block cache.
    NodeCold,
    /// The same with a Redis in front of the disk that has stopped to answer.
    NodeColdDeadRedis,
    /// GET and SET straight on memory, without layers: a server of the benchmark `pipeline` of `cache-node`.
    Fused,
    /// `cache-node`, memory only, from the same binary as `fused`.
    Layered,
}

/// The programs that are measured.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Programs {
    /// The node's program. Default: `cache-node` beside this program.
    #[arg(long)]
    node: Option<PathBuf>,
    /// The benchmark `pipeline` of `cache-node`, for `fused` and `layered`; `cargo bench -p cache-node --bench pipeline
    /// --no-run` prints where it is.
    #[arg(long)]
    pipeline: Option<PathBuf>,
}

/// Where a server finds what it needs.
pub(super) struct Place<'a> {
    /// Where it keeps its files.
    pub(super) folder: &'a Path,
    /// The port for clients.
    pub(super) port: u16,
    /// The Redis beside it, if it has one.
    pub(super) redis: Option<SocketAddr>,
    /// Port of the node's own pages.
    pub(super) admin: u16,
}

// === impl Kind ===

impl Kind {
    /// The name in tables.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Node => "node (L1)",
            Self::NodeDisk => "node (L1+L3)",
            Self::NodeFull => "node (L1+L2+L3)",
            Self::NodeTagged => "node (L1, tags)",
            Self::NodeRedis => "node (L1+L2)",
            Self::NodeDeadRedis => "node (L1+dead L2)",
            Self::NodeCold => "node (L3 hits)",
            Self::NodeColdDeadRedis => "node (L3 hits, dead L2)",
            Self::Fused => "fused",
            Self::Layered => "layered",
        }
    }

    /// Whether entries carry tags.
    pub(crate) const fn is_tagged(self) -> bool {
        matches!(self, Self::NodeTagged)
    }

    /// Whether there is a Redis beside it.
    pub(super) const fn has_redis(self) -> bool {
        matches!(self, Self::NodeFull | Self::NodeRedis | Self::NodeDeadRedis | Self::NodeColdDeadRedis)
    }

    /// Whether that Redis stops to answer once everything is stored.
    pub(super) const fn loses_redis(self) -> bool {
        matches!(self, Self::NodeDeadRedis | Self::NodeColdDeadRedis)
    }

    const fn is_cold(self) -> bool {
        matches!(self, Self::NodeCold | Self::NodeColdDeadRedis)
    }

    const fn has_disk(self) -> bool {
        self.is_cold() || matches!(self, Self::NodeDisk | Self::NodeFull)
    }

    /// Whether there is a layer below memory.
    pub(super) const fn is_layered_below(self) -> bool {
        self.has_disk() || self.has_redis()
    }

    pub(super) fn command(self, programs: &Programs, place: &Place<'_>) -> anyhow::Result<Command> {
        match self {
            Self::Redis => Ok(redis(place)),
            Self::Fused | Self::Layered => {
                let mut command = Command::new(programs.pipeline()?);
                command.args(["serve", self.label(), &format!("127.0.0.1:{}", place.port)]);
                Ok(command)
            }
            _ => self.node(programs, place),
        }
    }

    fn node(self, programs: &Programs, place: &Place<'_>) -> anyhow::Result<Command> {
        let mode = if self.has_disk() { "RocksDB" } else { "Disabled" };
        let capacity = if self.is_cold() { "1Mi" } else { "1Gi" };
        let redis = place.redis.map_or_else(
            || "{ mode: Disabled }".to_owned(),
            // Of a Redis that shares its core with the node and its loading it is not asked how quick it is.
            |address| match self {
                Self::NodeFull => format!(
                    "{{ mode: External, endpoints: [\"{address}\"], timeout: 2s }}\nlimits: {{ requestTimeout: 4s }}"
                ),
                _ => format!("{{ mode: External, endpoints: [\"{address}\"] }}"),
            },
        );
        let (port, admin, data) = (place.port, place.admin, place.folder.join("data"));
        let config = format!(
            "listen: {{ resp: \"127.0.0.1:{port}\", admin: \"127.0.0.1:{admin}\", threads: 1 }}\n\
             memory: {{ capacity: {capacity} }}\n\
             redis: {redis}\n\
             disk: {{ mode: {mode}, memory: 128Mi, path: {:?} }}\n",
            data.display().to_string()
        );
        let file = place.folder.join("node.yaml");
        fs::write(&file, config)?;
        let mut command = Command::new(programs.node()?);
        command.arg("--config").arg(file).env("RUST_LOG", "error");
        Ok(command)
    }

    /// The first line of the program's own `--version`.
    pub(crate) fn version(self, programs: &Programs) -> anyhow::Result<String> {
        let program = if self == Self::Redis { PathBuf::from("redis-server") } else { programs.node()? };
        let output =
            Command::new(&program).arg("--version").output().with_context(|| format!("start {}", program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    }
}

/// `redis-server`, persistence off.
pub(super) fn redis(place: &Place<'_>) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--logfile", "", "--dir"]);
    command.arg(place.folder).arg("--port").arg(place.port.to_string());
    command
}

// === impl Programs ===

impl Programs {
    fn node(&self) -> anyhow::Result<PathBuf> {
        match &self.node {
            Some(path) => Ok(path.clone()),
            None => Ok(std::env::current_exe()?.with_file_name("cache-node")),
        }
    }

    fn pipeline(&self) -> anyhow::Result<&Path> {
        self.pipeline.as_deref().context("`fused` and `layered` need --pipeline")
    }

    /// Whether there is a program for servers of this kind.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        !matches!(kind, Kind::Fused | Kind::Layered) || self.pipeline.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: Kind) -> String {
        let folder = tempfile::tempdir().unwrap();
        let redis = kind.has_redis().then(|| SocketAddr::from(([127, 0, 0, 1], 7)));
        let place = Place { folder: folder.path(), port: 1, admin: 2, redis };
        kind.command(&Programs::default(), &place).unwrap();
        fs::read_to_string(folder.path().join("node.yaml")).unwrap()
    }

    #[test]
    fn every_kind_of_node_has_the_layers_of_its_name() {
        for kind in Kind::value_variants().iter().filter(|kind| kind.label().starts_with("node")) {
            let config = config(*kind);
            assert_eq!(config.contains("mode: RocksDB"), kind.label().contains("L3"), "{config}");
            assert_eq!(config.contains("127.0.0.1:7"), kind.label().contains("L2"), "{config}");
            assert_eq!(config.contains("capacity: 1Mi"), !kind.label().contains("L1"), "{config}");
            assert_eq!(kind.loses_redis(), kind.label().contains("dead"), "{config}");
        }
    }

    #[test]
    fn without_its_program_a_kind_is_refused() {
        let place = Place { folder: Path::new("/nowhere"), port: 1, admin: 2, redis: None };
        assert!(!Programs::default().has(Kind::Fused));
        assert!(Kind::Fused.command(&Programs::default(), &place).unwrap_err().to_string().contains("--pipeline"));
    }
}
