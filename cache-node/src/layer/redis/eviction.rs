//! What Redis gives up when its memory is full. Floor and removals have no time to live; a policy that evicts such keys too
//! would bring back what was removed, and Redis would say nothing of it.

use std::sync::PoisonError;

use tokio::time::timeout;

use super::Shared;

// === impl Shared ===

impl Shared {
    /// Asks Redis for its policy. One that may not be asked is not complained of: whoever runs it knows why.
    pub(super) async fn look_at_eviction(&self) {
        let Some(connected) = self.link.all().into_iter().next() else { return };
        let mut connection = connected.connection.clone();
        let mut info = redis::cmd("INFO");
        let asked = info.arg("memory").query_async::<String>(&mut connection);
        // What is not answered in time leaves things as they are; that Redis is slow is found out by others.
        let Ok(answer) = timeout(self.options.timeout, asked).await else { return };
        let policy = answer.ok().and_then(|info| evicts_all(&info));
        let mut last = self.evicts_all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(policy) = policy.as_ref().filter(|policy| Some(*policy) != last.as_ref()) {
            tracing::warn!("{}", advice(policy));
        }
        *last = policy;
    }
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
    let field = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name));
    let has_limit = field("maxmemory:").is_some_and(|bytes| bytes != "0");
    field("maxmemory_policy:").filter(|policy| has_limit && policy.starts_with("allkeys-")).map(str::to_owned)
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
}
