//! What Redis gives up when its memory is full. Floor and removals have no time to live; a policy that evicts such keys too
//! would bring back what was removed, and Redis would say nothing of it. The log never gives way: however large its records
//! are, it is to leave half of the memory to entries.

use std::sync::{PoisonError, atomic::Ordering};

use redis::RedisResult;
use tokio::time::timeout;

use super::Shared;

/// Records of the log that are looked at to tell how large they are, and how many it has at least, whatever they take.
const LOG_SAMPLES: u32 = 20;
const LOG_RECORDS_MIN: u64 = 1000;

// === impl Shared ===

impl Shared {
    /// Asks Redis for its policy, and what the log takes of its memory. One that may not be asked is not complained of:
    /// whoever runs it knows why.
    pub(super) async fn look_at_eviction(&self) {
        let Some(connected) = self.link.all().into_iter().next() else { return };
        let mut connection = connected.connection.clone();
        let mut look = redis::pipe();
        look.ignore_errors().cmd("INFO").arg("memory");
        look.cmd("MEMORY").arg("USAGE").arg(self.keys.log()).arg("SAMPLES").arg(LOG_SAMPLES);
        look.cmd("XLEN").arg(self.keys.log());
        let asked =
            look.query_async::<(RedisResult<String>, RedisResult<Option<u64>>, RedisResult<u64>)>(&mut connection);
        // What is not answered in time leaves things as they are; that Redis is slow is found out by others.
        let Ok(Ok((info, bytes, records))) = timeout(self.options.timeout, asked).await else { return };
        if let (Ok(info), Ok(Some(bytes)), Ok(records)) = (&info, bytes, records) {
            self.bound_the_log(info, bytes, records);
        }
        let policy = info.ok().and_then(|info| evicts_all(&info));
        let mut last = self.evicts_all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(policy) = policy.as_ref().filter(|policy| Some(*policy) != last.as_ref()) {
            tracing::warn!("{}", advice(policy));
        }
        *last = policy;
    }

    /// Has fewer records kept if so many as these would take more than half of the memory.
    fn bound_the_log(&self, info: &str, bytes: u64, records: u64) {
        let wanted = self.options.log_records;
        let kept = field(info, "maxmemory:").and_then(|limit| kept_within(limit.parse().ok()?, bytes, records));
        let kept = kept.unwrap_or(wanted).min(wanted);
        let before = self.log_kept.swap(kept, Ordering::Relaxed);
        if kept < wanted && before == wanted {
            let each = bytes / records.max(1);
            tracing::warn!(
                "records of the log have {each} bytes: {kept} of {wanted} are kept, so that they leave half of the memory of \
                 Redis to entries; a node that was away for longer starts cold"
            );
        }
    }

    /// Records that the log is to keep, about.
    pub(super) fn log_kept(&self) -> u64 {
        self.log_kept.load(Ordering::Relaxed)
    }
}

/// How many records of a log, that has so many of so many bytes in all, take half of the memory; none if it has no limit, or
/// the log is too short to tell.
fn kept_within(limit: u64, bytes: u64, records: u64) -> Option<u64> {
    let can_tell = limit > 0 && records >= LOG_RECORDS_MIN;
    can_tell.then(|| ((limit / 2).saturating_mul(records) / bytes.max(1)).max(LOG_RECORDS_MIN))
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name))
}

/// What is wrong, and what to do.
pub(super) fn advice(policy: &str) -> String {
    format!(
        "maxmemory-policy is {policy}, so that removals may be evicted and what was removed come back; set volatile-lru \
         or noeviction"
    )
}

/// The policy, if keys without a time to live may be evicted by it. Without a limit nothing is.
fn evicts_all(info: &str) -> Option<String> {
    let has_limit = field(info, "maxmemory:").is_some_and(|bytes| bytes != "0");
    field(info, "maxmemory_policy:").filter(|policy| has_limit && policy.starts_with("allkeys-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(limit: &str, policy: &str) -> String {
        format!("# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_human:x\r\nmaxmemory_policy:{policy}\r\n")
    }

    #[test]
    fn only_a_policy_that_evicts_what_never_expires_is_wrong() {
        for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            assert_eq!(evicts_all(&info("100", policy)).as_deref(), Some(policy));
            assert_eq!(evicts_all(&info("0", policy)), None, "nothing is evicted without a limit");
        }
        for policy in ["noeviction", "volatile-lru", "volatile-lfu", "volatile-ttl", "volatile-random"] {
            assert_eq!(evicts_all(&info("100", policy)), None, "{policy}");
        }
        assert_eq!(evicts_all(""), None);
    }

    #[test]
    fn the_log_leaves_half_of_the_memory_to_entries() {
        assert_eq!(kept_within(200 << 20, 50 << 20, 100_000), Some(200_000));
        assert_eq!(kept_within(200 << 20, 400 << 20, 1_000_000), Some(250_000));
        assert_eq!(kept_within(100 << 10, 400 << 20, 1_000_000), Some(LOG_RECORDS_MIN), "never fewer");
        assert_eq!(kept_within(0, 400 << 20, 1_000_000), None, "without a limit there is no half");
        assert_eq!(kept_within(200 << 20, 1 << 20, LOG_RECORDS_MIN - 1), None, "too few to tell");
    }
}
