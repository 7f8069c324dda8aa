//! Asks every node for its report, and joins it with what the API server knows about the node's pod.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use crds::node_report::NodeReport;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    build::{ADMIN_PORT, TEMPLATE_ANNOTATION},
    diagnose::{OF_NODES, Trouble, TroubleKind, diagnose},
    fetch::Fetched,
    lineage::Lineage,
    memory::Memory,
};
use crate::metrics::Metrics;

/// How long a node may take to answer. Reports are made without I/O, so a healthy node needs a millisecond.
const POLL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Nodes asked at once, by all passes together.
const POLLS_MAX: usize = 64;
/// A report has a few KiB.
const REPORT_BYTES_MAX: usize = 256 << 10;
/// Polls in a row that may fail before the last report is no longer believed: one lost packet is no outage.
const FAILURES_MAX: u32 = 2;

/// Asks nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Poller {
    http: Client<HttpConnector, Empty<Bytes>>,
    permits: Arc<Semaphore>,
    metrics: Metrics,
}

/// One node: its pod, and what it says about itself.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) ordinal: i32,
    pub(super) pod_uid: String,
    /// Whether the kubelet calls the pod ready.
    pub(super) pod_ready: bool,
    pub(super) terminating: bool,
    /// Which template the pod was made from.
    pub(super) template: Option<String>,
    /// Which data in Redis it uses, and so which log it follows; `None` if its pod does not say.
    pub(super) lineage: Option<Lineage>,
    pub(super) trouble: Option<Trouble>,
    /// `None` while it starts and has never answered, and when it is unreachable.
    pub(super) report: Option<NodeReport>,
}

/// What is remembered of the polls of one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Polled {
    last: Option<NodeReport>,
    failures: u32,
}

/// Why a node has not given its report. Without numbers that move: they would make every status a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum PollError {
    #[error("no answer within {} ms", POLL_TIMEOUT.as_millis())]
    Timeout,
    #[error("the connection failed")]
    Connection,
    #[error("the answer is not a report")]
    NotAReport,
    #[error("another node answers at this address")]
    AnotherNode,
}

// === impl Poller ===

impl Poller {
    /// A poller with its own connections.
    pub(crate) fn new(metrics: Metrics) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .build(connector);
        Self { http, permits: Arc::new(Semaphore::new(POLLS_MAX)), metrics }
    }

    async fn ask(&self, pod: &Pod, cache_uid: &str) -> Option<Result<NodeReport, PollError>> {
        let address = pod_ip(pod)?;
        let _permit = self.permits.acquire().await.ok()?;
        let answer = timeout(POLL_TIMEOUT, self.report(address)).await.unwrap_or(Err(PollError::Timeout));
        self.metrics.polled(answer.is_ok());
        // Addresses of pods are used again: an answer counts only if it is from the node that was meant.
        Some(answer.and_then(|report| {
            let meant = report.cache_uid == cache_uid && report.node == pod.name_any();
            if meant { Ok(report) } else { Err(PollError::AnotherNode) }
        }))
    }

    async fn report(&self, address: IpAddr) -> Result<NodeReport, PollError> {
        let host = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let uri = format!("http://{host}:{ADMIN_PORT}/v1/layers").parse().map_err(|_| PollError::Connection)?;
        let response = self.http.get(uri).await.map_err(|_| PollError::Connection)?;
        let body = Limited::new(response.into_body(), REPORT_BYTES_MAX);
        let bytes = body.collect().await.map_err(|_| PollError::Connection)?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|_| PollError::NotAReport)
    }
}

// === impl Node ===

impl Node {
    /// Whether clients are served: the kubelet and the node agree.
    pub(super) fn is_ready(&self) -> bool {
        self.pod_ready && !self.terminating && self.report.is_some()
    }

    /// Whether it should answer, and does not.
    pub(super) fn is_unreachable(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.kind == TroubleKind::NodeUnreachable)
    }

    /// Whether the pod was made from this template.
    pub(super) fn is_of(&self, template: &str) -> bool {
        self.template.as_deref() == Some(template)
    }

    /// Whether it follows the log of another Redis than a node of `lineage`. One that does not say is not taken for one that
    /// does: nodes are not stopped together on a guess.
    pub(super) fn follows_another_log(&self, lineage: &Lineage) -> bool {
        self.lineage.as_ref().is_some_and(|its_own| its_own.is_another_log(lineage))
    }
}

/// Asks every node of the cache, all at once.
pub(super) async fn observe(poller: &Poller, fetched: &Fetched, memory: &mut Memory, now: Timestamp) -> Vec<Node> {
    let asked = stream::iter(fetched.pods.iter().cloned()).map(|pod| async move {
        let answer = poller.ask(&pod, &fetched.uid).await;
        (pod, answer)
    });
    let mut answers: Vec<_> = asked.buffer_unordered(POLLS_MAX).collect().await;
    answers.sort_by_key(|(pod, _)| ordinal(&pod.name_any()));
    let mut polls = BTreeMap::new();
    let nodes = answers.into_iter().map(|(pod, answer)| {
        let uid = pod.uid().unwrap_or_default();
        let polled = memory.polls.remove(&uid).unwrap_or_default().after(answer.as_ref());
        let node = node(&pod, fetched, (&polled, answer), now);
        polls.insert(uid, polled);
        node
    });
    let nodes = nodes.collect();
    memory.polls = polls;
    nodes
}

fn node(
    pod: &Pod,
    fetched: &Fetched,
    polled: (&Polled, Option<Result<NodeReport, PollError>>),
    now: Timestamp,
) -> Node {
    let name = pod.name_any();
    let (polled, answer) = polled;
    let report = polled.believed();
    let pod_ready = is_ready(pod);
    let trouble = diagnose(pod, fetched.claim_of(&name), &OF_NODES, now).or_else(|| {
        // A node that has answered before, or that the kubelet calls ready, should answer now. So should one whose time to
        // stop is over: nobody has confirmed that it has ended, and its machine may be down.
        let error = answer.and_then(Result::err)?;
        let should = match &pod.metadata.deletion_timestamp {
            Some(until) => now >= until.0,
            None => pod_ready || polled.last.is_some(),
        };
        let expected = should && report.is_none();
        let address = pod_ip(pod).map(|ip| ip.to_string()).unwrap_or_default();
        let message = format!(
            "{name} does not answer on {address}:{ADMIN_PORT} ({error}); its machine or the network to it may be down"
        );
        expected.then_some(Trouble { kind: TroubleKind::NodeUnreachable, message })
    });
    Node {
        ordinal: ordinal(&name).unwrap_or(i32::MAX),
        pod_uid: pod.uid().unwrap_or_default(),
        pod_ready,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        template: pod.annotations().get(TEMPLATE_ANNOTATION).cloned(),
        lineage: Lineage::of_pod(pod),
        trouble,
        report,
        name,
    }
}

// === impl Polled ===

impl Polled {
    fn after(self, answer: Option<&Result<NodeReport, PollError>>) -> Self {
        match answer {
            None => self,
            Some(Ok(report)) => Self { last: Some(report.clone()), failures: 0 },
            Some(Err(_)) => Self { failures: self.failures.saturating_add(1), ..self },
        }
    }

    /// The report that still counts.
    fn believed(&self) -> Option<NodeReport> {
        self.last.clone().filter(|_| self.failures < FAILURES_MAX)
    }

    /// Whether the next poll should come soon, because this one has failed.
    pub(super) fn is_doubtful(&self) -> bool {
        self.failures > 0
    }
}

/// The ordinal in a pod's name.
pub(super) fn ordinal(pod_name: &str) -> Option<i32> {
    pod_name.rsplit_once('-')?.1.parse().ok()
}

fn pod_ip(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiered_cache::testing::{at, from_yaml};

    /// What is made of a pod whose polls have come to this.
    fn seen(pod: &str, polled: &Polled, now: Timestamp) -> Node {
        let pod: Pod = from_yaml(pod);
        let (uid, pods) = ("cache-uid".to_owned(), Vec::new());
        let fetched = Fetched { uid, pods, redis: Vec::new(), claims: Vec::new(), config_maps: Vec::new() };
        node(&pod, &fetched, (polled, Some(Err(PollError::Connection))), now)
    }

    #[test]
    fn a_node_that_stops_need_not_answer_before_its_time_is_over() {
        let pod =
            format!("{{metadata: {{name: sessions-1, deletionTimestamp: '{}'}}, status: {{podIP: 10.0.0.1}}}}", at(30));
        // Heard of before, and by a leader that has only just begun.
        for last in [Some(NodeReport::default()), None] {
            let polled = Polled { last, failures: FAILURES_MAX };
            assert_eq!(seen(&pod, &polled, at(29)).trouble, None);
            // Its machine may be down: nobody has confirmed that it has ended.
            assert!(seen(&pod, &polled, at(30)).is_unreachable());
        }
    }

    #[test]
    fn one_lost_poll_is_no_news_of_a_node_that_was_heard_of_and_news_of_one_that_was_not() {
        let pod =
            "{metadata: {name: sessions-1}, status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}}";
        let lost = Err(PollError::Timeout);
        let heard = Polled::default().after(Some(&Ok(NodeReport::default()))).after(Some(&lost));
        assert!(!seen(pod, &heard, at(0)).is_unreachable());
        assert!(seen(pod, &heard.after(Some(&lost)), at(0)).is_unreachable());
        // A leader that has only just begun, most likely because the one before it was cut off together with this node.
        assert!(seen(pod, &Polled::default().after(Some(&lost)), at(0)).is_unreachable());
    }
}
