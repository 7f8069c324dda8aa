//! How L3 is opened.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::Admit;
use crate::entry::{Position, Tags, envelope::Codec};

/// A full volume may be given room by a person, by expiry or by compaction for this long, before the layer gives up
/// entries.
pub const FULL_PATIENCE: Duration = Duration::from_secs(60);

/// Says whether an entry with these tags and this position was removed by one of them. Compaction asks it of every
/// entry that has tags, from threads of RocksDB.
pub type IsRemoved = Arc<dyn Fn(Tags<'_>, Position) -> bool + Send + Sync>;

/// How L3 is opened. `config.rs` fills it.
#[derive(Clone)]
pub struct DiskOptions {
    /// Folder of the layer, created if missing. The layer owns everything in it.
    pub path: PathBuf,
    /// Block cache and memtables together, in bytes.
    pub memory_bytes: u64,
    /// How long after it was written an entry is served from disk.
    pub max_ttl: Duration,
    /// How long an entry may live in any layer: a removal by tag is kept for so long.
    pub removals_kept: Duration,
    /// Of how many of them one by one the layer tells.
    pub removals_max: usize,
    /// An entry with less life than this is not worth a write: it would be dead before a restart could use it. An older
    /// copy on disk is removed instead.
    pub min_ttl: Duration,
    /// Which entries are written.
    pub admit: Admit,
    /// Bytes of entries that may be written a day; none is any number.
    pub daily_write_bytes: Option<u64>,
    /// How values are compressed.
    pub codec: Codec,
    /// Lets compaction drop entries that were removed by a tag. Reads do not ask it: that is for the caller.
    pub is_removed: IsRemoved,
    /// For how long the volume may be full before the layer gives up entries to make room: [`FULL_PATIENCE`], except in
    /// tests.
    pub full_patience: Duration,
    /// Identity of the cache; a volume of another cache starts cold.
    pub cache_uid: String,
    /// Identity of the node; a volume of another node starts cold.
    pub node: String,
}

// === impl DiskOptions ===

impl DiskOptions {
    /// The defaults of the settings, in this folder, for a cache and a node without names and without tags.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            memory_bytes: 64 << 20,
            max_ttl: Duration::from_secs(168 * 3600),
            removals_kept: Duration::from_secs(168 * 3600),
            removals_max: 250_000,
            min_ttl: Duration::from_secs(60),
            admit: Admit::default(),
            daily_write_bytes: None,
            codec: Codec::default(),
            is_removed: Arc::new(|_, _| false),
            full_patience: FULL_PATIENCE,
            cache_uid: String::new(),
            node: String::new(),
        }
    }
}
