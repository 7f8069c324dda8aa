//! The API server's audit log: who asked for what, and what came of it, without any contents.

use std::fs;

use serde_json::Value;

use super::Cluster;
use super::error::{AtPath, Result};

/// The user that an operator is which was installed as the end-to-end tests do it.
pub const OPERATOR_USER: &str = "system:serviceaccount:tieredcache-system:tieredcache-operator";
/// File name of the log; the full ones before it begin with `audit-`.
pub(crate) const LOG: &str = "audit.log";
/// Size at which a log gives way to the next, and how many full ones are kept: a run of all tests writes less.
pub(crate) const LOG_MEBIBYTES_MAX: u32 = 100;
pub(crate) const LOGS_KEPT: u32 = 2;

/// What is written down: everything that the operator asks for, and every write to the objects that tests count.
pub(crate) fn policy() -> String {
    format!(
        r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["{OPERATOR_USER}"]
  - level: None
    verbs: [get, list, watch]
  - level: None
    resources: [{{group: "", resources: [events]}}, {{group: events.k8s.io}}]
  - level: Metadata
    resources:
      - {{group: tieredcache.io}}
      - {{group: apps}}
      - {{group: policy}}
      - {{group: coordination.k8s.io}}
      - {{group: ""}}
      - {{group: networking.k8s.io}}
      - {{group: autoscaling}}
      - {{group: rbac.authorization.k8s.io}}
  - level: None
"#
    )
}

// === impl Cluster ===

impl Cluster {
    /// What this user has asked the API server for so far, as entries of the audit log, oldest first. It is written in
    /// batches, so the last second may be missing.
    ///
    /// # Errors
    /// `Io`.
    pub fn requests_of(&self, user: &str) -> Result<Vec<Value>> {
        self.requests(user, |entry| entry["user"]["username"] == user)
    }

    /// What anybody has changed so far in this namespace, and what the operator noted there, oldest first. As
    /// [`Cluster::requests_of`].
    ///
    /// # Errors
    /// `Io`.
    pub fn writes_in(&self, namespace: &str) -> Result<Vec<Value>> {
        self.requests(namespace, |entry| {
            entry["objectRef"]["namespace"] == namespace
                && !["get", "list", "watch"].iter().any(|verb| entry["verb"] == *verb)
        })
    }

    /// Entries that contain the text and are meant.
    fn requests(&self, text: &str, is_meant: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let folder = self.layout().logs();
        let mut logs = Vec::new();
        for file in fs::read_dir(&folder).at("reading", &folder)? {
            let path = file.at("reading", &folder)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("audit") && path.extension().is_some_and(|ending| ending == "log") {
                // `audit-2026-….log` before `audit.log`: the dash comes before the dot.
                logs.push(path);
            }
        }
        logs.sort_unstable();
        let mut requests = Vec::new();
        for log in logs {
            let content = fs::read_to_string(&log).at("reading", &log)?;
            let lines = content.lines().filter(|line| line.contains(text));
            let entries = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            requests.extend(entries.filter(&is_meant));
        }
        Ok(requests)
    }
}
