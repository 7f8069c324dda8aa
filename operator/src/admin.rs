//! `/livez`, `/readyz` and `/metrics`, served by leader and followers alike.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{clock, heartbeat::Heartbeats, metrics::Metrics};

/// Probes and one or two Prometheus servers need a handful; more wait in the backlog.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How old the last answer of the API server to the election may be for this replica to be called ready.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(30);

/// What this replica is doing, for `/readyz`. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Readiness(Arc<Mutex<Standing>>);

#[derive(Debug)]
struct Standing {
    answered: Option<Instant>,
    /// Scopes in which some kind has not been listed yet.
    unlisted: usize,
}

/// What the routes need.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// For `/metrics`.
    pub(crate) metrics: Metrics,
    /// For `/livez`.
    pub(crate) heartbeats: Heartbeats,
    /// For `/readyz`.
    pub(crate) readiness: Readiness,
}

// === impl Readiness ===

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Standing { answered: None, unlisted: 0 })))
    }
}

impl Readiness {
    /// The API server has answered the election.
    pub(crate) fn answered(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answered = Some(clock::monotonic());
    }

    /// This replica can not do its part before everything is listed in so many scopes.
    pub(crate) fn wait_for_lists(&self, scopes: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unlisted = scopes;
    }

    /// Everything has been listed in one more of them.
    pub(crate) fn listed(&self) {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standing.unlisted = standing.unlisted.saturating_sub(1);
    }

    /// What is waited for, in words; `Ok` when this replica does its part.
    fn check(&self) -> Result<(), String> {
        let standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = standing.answered.map(|at| clock::monotonic().duration_since(at));
        match (age, standing.unlisted) {
            (None, _) => Err("waiting for a first answer of the API server".to_owned()),
            (Some(age), _) if age > ANSWER_AGE_MAX => {
                Err(format!("the API server has not answered for {} s", age.as_secs()))
            }
            (Some(_), 0) => Ok(()),
            (Some(_), _) => Err("waiting for the first list of every watched kind".to_owned()),
        }
    }
}

// === impl Admin ===

impl Admin {
    /// Binds `address`.
    ///
    /// # Errors
    /// If the address can not be bound.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Serves until `stop`, then lets requests in flight finish for a second.
    pub(crate) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let service = TowerToHyperService::new(self.routes());
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&listener, &permits) => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let Ok((stream, permit)) = accepted else {
                // Out of file descriptors, most likely: waiting lets connections end.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service.clone());
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                let _permit = permit;
                // A client that goes away in the middle of its request is its own business.
                drop(connection.await);
            });
        }
        let _in_time = tokio::time::timeout(Duration::from_secs(1), graceful.shutdown()).await;
        connections.shutdown().await;
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn livez(State(admin): State<Admin>) -> (StatusCode, String) {
    let overdue = admin.heartbeats.overdue();
    if overdue.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, overdue.iter().map(|part| format!("{part}\n")).collect())
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.readiness.check() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(waiting) => (StatusCode::SERVICE_UNAVAILABLE, format!("{waiting}\n")),
    }
}

async fn metrics(State(admin): State<Admin>) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let content_type = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    match admin.metrics.render(&admin.heartbeats.ages()) {
        Ok(text) => (StatusCode::OK, content_type, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, content_type, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readiness_says_what_it_waits_for() {
        let readiness = Readiness::default();
        assert_eq!(readiness.check(), Err("waiting for a first answer of the API server".to_owned()));
        readiness.answered();
        assert_eq!(readiness.check(), Ok(()));
        // In two namespaces, of which the one has been listed before the other.
        readiness.wait_for_lists(2);
        readiness.listed();
        assert_eq!(readiness.check(), Err("waiting for the first list of every watched kind".to_owned()));
        readiness.listed();
        assert_eq!(readiness.check(), Ok(()));
        tokio::time::advance(ANSWER_AGE_MAX + Duration::from_secs(1)).await;
        assert_eq!(readiness.check(), Err("the API server has not answered for 31 s".to_owned()));
    }
}
