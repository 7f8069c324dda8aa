//! What RocksDB counts itself. A database that is reopened counts from zero; these numbers only grow.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use rocksdb::{Options, statistics::Ticker};

const TICKERS: [(&str, Ticker); 8] = [
    ("blockCacheHits", Ticker::BlockCacheHit),
    ("blockCacheMisses", Ticker::BlockCacheMiss),
    ("logBytes", Ticker::WalFileBytes),
    ("flushBytes", Ticker::FlushWriteBytes),
    ("compactionReadBytes", Ticker::CompactReadBytes),
    ("compactionWrittenBytes", Ticker::CompactWriteBytes),
    ("stalledMicros", Ticker::StallMicros),
    ("changeBytes", Ticker::BytesWritten),
];

/// The numbers of all databases that were open, summed.
#[derive(Default)]
pub(super) struct Statistics([AtomicU64; TICKERS.len()]);

/// The numbers of one database.
pub(super) struct Tickers {
    options: Options,
    taken: Mutex<[u64; TICKERS.len()]>,
}

// === impl Statistics ===

impl Statistics {
    /// Adds what a database has counted since it was last asked.
    pub(super) fn add(&self, tickers: &Tickers) {
        let mut taken = tickers.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, (_, ticker)) in TICKERS.into_iter().enumerate() {
            let now = tickers.options.get_ticker_count(ticker);
            self.0[place].fetch_add(now.saturating_sub(taken[place]), Ordering::Relaxed);
            taken[place] = now;
        }
    }

    pub(super) fn extras(&self) -> Vec<(&'static str, u64)> {
        let number = |name: &str| {
            let place = TICKERS.iter().position(|(known, _)| *known == name).expect("one of the tickers");
            self.0[place].load(Ordering::Relaxed)
        };
        let mut extras: Vec<(&'static str, u64)> = TICKERS.iter().map(|(name, _)| (*name, number(name))).collect();
        // Bytes that went to the volume for each byte of changes, in percent. Flushes and compactions include blobs.
        let to_volume: u64 = ["logBytes", "flushBytes", "compactionWrittenBytes"].map(number).iter().sum();
        extras.push(("writeAmplificationPercent", (to_volume * 100).checked_div(number("changeBytes")).unwrap_or(0)));
        extras
    }
}

// === impl Tickers ===

impl Tickers {
    /// Those of the database that was opened with these options.
    pub(super) fn new(options: Options) -> Self {
        Self { options, taken: Mutex::default() }
    }
}
