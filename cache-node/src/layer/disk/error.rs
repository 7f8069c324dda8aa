//! What RocksDB and the system say, as errors of the layer.

use std::io;

use crate::layer::{ErrorKind, LayerError, LayerId};

pub(super) fn from_rocksdb(doing: &str, error: &rocksdb::Error) -> LayerError {
    let text = error.as_ref();
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        _ if text.contains("No space left") || text.contains("Out of space") => ErrorKind::Full,
        // The device itself, not RocksDB, gave the error.
        rocksdb::ErrorKind::IOError => ErrorKind::Unreachable,
        rocksdb::ErrorKind::TimedOut => ErrorKind::Timeout,
        rocksdb::ErrorKind::ShutdownInProgress => ErrorKind::Unreachable,
        _ => ErrorKind::Refused,
    };
    LayerError::new(LayerId::Disk, kind, format!("{doing}: {text}"))
}

pub(super) fn from_io(doing: &str, error: &io::Error) -> LayerError {
    let kind = if error.kind() == io::ErrorKind::StorageFull { ErrorKind::Full } else { ErrorKind::Unreachable };
    LayerError::new(LayerId::Disk, kind, format!("{doing}: {error}"))
}

pub(super) fn damaged_removal() -> LayerError {
    let message = "a removal by tag is damaged".to_owned();
    LayerError::new(LayerId::Disk, ErrorKind::Corrupt, message)
}

pub(super) fn damaged_position() -> LayerError {
    let message = "the newest position of all changes is damaged".to_owned();
    LayerError::new(LayerId::Disk, ErrorKind::Corrupt, message)
}
