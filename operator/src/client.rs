//! The client of the API server, and what holds for every call it makes: a time limit, a count, a fence.
//!
//! All three are one tower layer around the client, so that no call site can forget them.
//!
//! - **Time limit.** A call has [`CALL_TIMEOUT`]; a watch must begin within it and is cut after [`WATCH_SILENCE_MAX`]
//!   without a byte. A connection that was dropped without a word can so never stop the operator.
//! - **Count.** Every call by verb, kind and outcome.
//! - **Fence.** A call that changes something is only sent while this replica is sure to be the leader.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::client::{Body, ClientBuilder};
use tokio::time::{Instant, timeout};
use tower::{BoxError, Layer, Service};

use crate::{
    clock,
    heartbeat::Heartbeats,
    metrics::{CallOutcome, Metrics},
};

/// How long a call may take, its answer included. An API server that needs longer is overloaded; the pass is tried
/// again with backoff.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a watch may be silent. The API server sends a bookmark about every minute, up to 75 s with its jitter.
pub(crate) const WATCH_SILENCE_MAX: Duration = Duration::from_secs(100);

/// How old the last renewal of the lease may be for a write to be sent: less than the lease's duration, so that none is
/// sent once another replica may lead. One that is under way may still land then; it carries the UID of what it is meant
/// for, and says what the next leader would say.
pub(crate) const FENCE_AGE_MAX: Duration = Duration::from_secs(10);

/// Whether this replica may write. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fence(Arc<Mutex<Option<Instant>>>);

/// The layer around the client.
#[derive(Clone, Debug)]
struct GuardLayer {
    metrics: Metrics,
    heartbeats: Heartbeats,
    fence: Fence,
}

/// A service with the layer around it.
#[derive(Clone, Debug)]
struct Guard<S> {
    inner: S,
    around: GuardLayer,
}

/// What a request asks of the API server: closed sets of words, and the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    verb: &'static str,
    kind: &'static str,
    namespace: Option<String>,
}

/// Why a call was not answered.
#[derive(Debug, thiserror::Error)]
enum GuardError {
    #[error("no answer to {verb} {kind} within {} s", CALL_TIMEOUT.as_secs())]
    Timeout { verb: &'static str, kind: &'static str },
    #[error("{verb} {kind} was not sent: the lease was not renewed within {} s", FENCE_AGE_MAX.as_secs())]
    Fenced { verb: &'static str, kind: &'static str },
    #[error("the watch of {kind} was silent for {} s", WATCH_SILENCE_MAX.as_secs())]
    Silent { kind: &'static str },
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type GuardedBody = UnsyncBoxBody<Bytes, BoxError>;

/// Builds the client for the cluster that the environment names: the pod's service account, or a kubeconfig.
///
/// # Errors
/// If neither is there, or it can not be read.
pub(crate) async fn connect(metrics: &Metrics, heartbeats: &Heartbeats, fence: &Fence) -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer().await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Retries happen in one place: a whole pass is tried again with its own backoff.
    config.default_retry = false;
    // Audit logs and API server metrics then tell who it was.
    let agent = concat!("tieredcache-operator/", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    let around = GuardLayer { metrics: metrics.clone(), heartbeats: heartbeats.clone(), fence: fence.clone() };
    Ok(ClientBuilder::try_from(config)?.with_layer(&around).build())
}

// === impl Fence ===

impl Fence {
    /// Writes may be sent until [`FENCE_AGE_MAX`] after `renewed`, the moment at which the renewal was *sent*.
    pub(crate) fn open(&self, renewed: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewed);
    }

    /// No write is sent any more.
    pub(crate) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a write may be sent now.
    pub(crate) fn is_open(&self) -> bool {
        let renewed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.is_some_and(|at| clock::monotonic().duration_since(at) < FENCE_AGE_MAX)
    }
}

// === impl Call ===

impl Call {
    fn of(method: &Method, uri: &Uri) -> Self {
        let watch = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let path: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        // `/api/v1/…` or `/apis/GROUP/VERSION/…`, then either `namespaces/NAMESPACE/RESOURCE/…` or `RESOURCE/…`.
        let resource = path.get(if path.first() == Some(&"api") { 2.. } else { 3.. }).unwrap_or_default();
        let (namespace, resource) = match resource {
            ["namespaces", namespace, resource @ ..] if !resource.is_empty() => {
                (Some((*namespace).to_owned()), resource)
            }
            _ => (None, resource),
        };
        let kind = match (resource.first().copied().unwrap_or_default(), resource.get(2).copied()) {
            ("tieredcaches", Some("status")) => "TieredCache/status",
            ("tieredcaches", _) => "TieredCache",
            ("statefulsets", _) => "StatefulSet",
            ("services", _) => "Service",
            ("serviceaccounts", _) => "ServiceAccount",
            ("configmaps", _) => "ConfigMap",
            ("poddisruptionbudgets", _) => "PodDisruptionBudget",
            ("persistentvolumeclaims", _) => "PersistentVolumeClaim",
            ("pods", Some("eviction")) => "Pod/eviction",
            ("pods", _) => "Pod",
            ("events", _) => "Event",
            ("leases", _) => "Lease",
            ("secrets", _) => "Secret",
            _ => "Other",
        };
        let verb = match *method {
            Method::GET if watch => "watch",
            Method::GET if resource.len() > 1 => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        };
        Self { verb, kind, namespace }
    }

    /// The part that this call is a sign of life of. Lists are made by watches alone, when they begin.
    fn part(&self) -> Option<String> {
        let kind = self.kind;
        matches!(self.verb, "list" | "watch").then(|| match &self.namespace {
            Some(namespace) => format!("watch {kind} in {namespace}"),
            None => format!("watch {kind}"),
        })
    }

    /// Whether only the leader may make this call. The lease itself is how one becomes leader; everything else that is
    /// not a read waits for that.
    fn needs_fence(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch") && self.kind != "Lease"
    }
}

// === impl GuardLayer ===

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guard { inner, around: self.clone() }
    }
}

// === impl Guard ===

impl<S, B> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<GuardedBody>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::of(request.method(), request.uri());
        let around = self.around.clone();
        if call.needs_fence() && !around.fence.is_open() {
            around.metrics.called(call.verb, call.kind, CallOutcome::Fenced);
            return Box::pin(async move { Err(GuardError::Fenced { verb: call.verb, kind: call.kind }.into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move { around.carry_out(call, answer).await })
    }
}

impl GuardLayer {
    async fn carry_out<F, B, E>(self, call: Call, answer: F) -> Result<Response<GuardedBody>, BoxError>
    where
        F: Future<Output = Result<Response<B>, E>>,
        E: Into<BoxError>,
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let started = clock::monotonic();
        if let Some(part) = call.part() {
            self.heartbeats.beat(&part);
        }
        let deadline = started + CALL_TIMEOUT;
        let answered = tokio::time::timeout_at(deadline, answer).await;
        let outcome = match &answered {
            Ok(Ok(response)) => CallOutcome::of_status(response.status().as_u16()),
            Ok(Err(_)) => CallOutcome::Unreachable,
            Err(_) => CallOutcome::Timeout,
        };
        self.metrics.called(call.verb, call.kind, outcome);
        if call.verb != "watch" {
            self.metrics.call_took(call.verb, clock::monotonic().duration_since(started));
        }
        let Ok(response) = answered else {
            return Err(GuardError::Timeout { verb: call.verb, kind: call.kind }.into());
        };
        let response = response.map_err(Into::into)?;
        let is_stream = call.verb == "watch" && response.status().is_success();
        Ok(response.map(|body| if is_stream { self.watched(&call, body) } else { bounded(&call, body, deadline) }))
    }

    /// A watch's body: every frame is a sign of life, and silence ends it.
    fn watched<B>(self, call: &Call, body: B) -> GuardedBody
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (kind, part) = (call.kind, call.part().unwrap_or_default());
        let frames = stream::unfold(Some((body, self.heartbeats, part)), move |state| async move {
            let (mut body, heartbeats, part) = state?;
            match timeout(WATCH_SILENCE_MAX, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    heartbeats.beat(&part);
                    Some((Ok::<Frame<Bytes>, BoxError>(frame), Some((body, heartbeats, part))))
                }
                Ok(Some(Err(error))) => Some((Err(error.into()), None)),
                Ok(None) => None,
                Err(_) => Some((Err(GuardError::Silent { kind }.into()), None)),
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }
}

/// The body of an ordinary answer, which must be complete by `deadline`.
fn bounded<B>(call: &Call, body: B, deadline: Instant) -> GuardedBody
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let (verb, kind) = (call.verb, call.kind);
    let frames = stream::unfold(Some(body), move |state| async move {
        let mut body = state?;
        match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(Some(frame)) => {
                let failed = frame.is_err();
                Some((frame.map_err(Into::<BoxError>::into), (!failed).then_some(body)))
            }
            Ok(None) => None,
            Err(_) => Some((Err(GuardError::Timeout { verb, kind }.into()), None)),
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tower::ServiceExt;
    use tower_test::mock;

    use super::*;

    type ToApiServer = mock::Mock<Request<Body>, Response<GuardedBody>>;
    type ApiServer = mock::Handle<Request<Body>, Response<GuardedBody>>;

    /// The guard around an API server that answers when the test says so.
    fn guarded() -> (Guard<ToApiServer>, ApiServer) {
        let (service, server) = mock::pair();
        let metrics = Metrics::register().unwrap();
        let around = GuardLayer { metrics, heartbeats: Heartbeats::default(), fence: Fence::default() };
        (around.layer(service), server)
    }

    fn read(uri: &str) -> Request<Body> {
        Request::get(uri).body(Body::empty()).unwrap()
    }

    /// A body of one frame, which comes after `delay`, and of nothing after it, not even an end.
    fn silent_after_one_frame(delay: Duration) -> GuardedBody {
        let frame = async move {
            tokio::time::sleep(delay).await;
            Ok(Frame::data(Bytes::from_static(b"{}")))
        };
        StreamBody::new(stream::once(frame).chain(stream::pending())).boxed_unsync()
    }

    /// The error that `ending` ends with, and after how many seconds. Whatever takes an hour is taken for endless.
    async fn failure<T>(ending: impl Future<Output = Result<T, BoxError>>) -> (String, u64) {
        let started = clock::monotonic();
        let ended = timeout(Duration::from_secs(3600), ending).await.expect("it ends");
        let error = ended.err().expect("it fails");
        (error.to_string(), clock::monotonic().duration_since(started).as_secs())
    }

    fn call(method: Method, uri: &str) -> (&'static str, &'static str) {
        let call = Call::of(&method, &uri.parse().unwrap());
        (call.verb, call.kind)
    }

    #[test]
    fn calls_are_named_by_closed_words() {
        let apps = "/apis/apps/v1/namespaces/default/statefulsets";
        assert_eq!(call(Method::PATCH, &format!("{apps}/a?fieldManager=x")), ("patch", "StatefulSet"));
        assert_eq!(call(Method::GET, apps), ("list", "StatefulSet"));
        assert_eq!(
            call(Method::GET, "/apis/apps/v1/statefulsets?watch=true&labelSelector=a"),
            ("watch", "StatefulSet")
        );
        assert_eq!(call(Method::GET, "/api/v1/namespaces/default/pods/a"), ("get", "Pod"));
        assert_eq!(call(Method::POST, "/api/v1/namespaces/default/pods/a/eviction"), ("create", "Pod/eviction"));
        let status = "/apis/tieredcache.io/v1alpha1/namespaces/default/tieredcaches/a/status";
        assert_eq!(call(Method::PATCH, status), ("patch", "TieredCache/status"));
        assert_eq!(call(Method::GET, "/version"), ("list", "Other"));
        assert_eq!(call(Method::DELETE, "/api/v1/namespaces/default"), ("delete", "Other"));
    }

    #[test]
    fn a_watch_and_the_list_it_begins_with_are_one_part_for_each_namespace() {
        let part = |uri: &str| Call::of(&Method::GET, &uri.parse().unwrap()).part();
        assert_eq!(part("/api/v1/pods?limit=500").as_deref(), Some("watch Pod"));
        assert_eq!(part("/api/v1/namespaces/a/pods?&watch=true").as_deref(), Some("watch Pod in a"));
        assert_eq!(part("/api/v1/namespaces/a/pods/b"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fence_closes_by_itself_when_the_lease_is_not_renewed() {
        let fence = Fence::default();
        assert!(!fence.is_open());
        fence.open(clock::monotonic());
        tokio::time::advance(FENCE_AGE_MAX - Duration::from_millis(1)).await;
        assert!(fence.is_open());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!fence.is_open());
        fence.open(clock::monotonic());
        fence.close();
        assert!(!fence.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_never_answered_ends_after_fifteen_seconds() {
        let (guard, _server) = guarded();
        let ended = failure(guard.oneshot(read("/api/v1/namespaces/default/pods/a"))).await;
        assert_eq!(ended, ("no answer to get Pod within 15 s".to_owned(), 15));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stops_half_way_ends_fifteen_seconds_after_the_call() {
        let (guard, mut server) = guarded();
        let whole_answer = async {
            let response = guard.oneshot(read("/api/v1/namespaces/default/pods/a")).await?;
            response.into_body().collect().await
        };
        let answer = async {
            let (_, reply) = server.next_request().await.expect("the call is sent");
            tokio::time::sleep(Duration::from_secs(10)).await;
            reply.send_response(Response::new(silent_after_one_frame(Duration::from_secs(1))));
        };
        let (ended, ()) = tokio::join!(failure(whole_answer), answer);
        assert_eq!(ended, ("no answer to get Pod within 15 s".to_owned(), 15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_a_hundred_seconds_after_its_last_sign_of_life() {
        let (guard, mut server) = guarded();
        let bookmark_after = Duration::from_secs(75);
        let begin = guard.oneshot(read("/api/v1/pods?watch=true"));
        let answer = async {
            let (_, reply) = server.next_request().await.expect("the watch is sent");
            reply.send_response(Response::new(silent_after_one_frame(bookmark_after)));
        };
        let (response, ()) = tokio::join!(begin, answer);
        let mut body = response.unwrap().into_body();
        let bookmark = body.frame().await.expect("the watch goes on").unwrap();
        assert_eq!(bookmark.into_data().unwrap(), "{}");
        let ended = failure(async { body.frame().await.expect("an error comes before the end") }).await;
        assert_eq!(ended, ("the watch of Pod was silent for 100 s".to_owned(), 100));
        assert!(body.frame().await.is_none(), "nothing comes after the error");
    }
}
