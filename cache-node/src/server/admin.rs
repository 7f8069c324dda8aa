//! The admin port: `/livez`, `/readyz`, `/metrics` and `/v1/layers`. It answers from the first moment on, so that a
//! node that takes its time to open is seen as alive and not ready.
//!
//! The accept loop is our own because it must be bounded: in connections, in the time a client may take to send its
//! request, and in the life of a connection.

mod board;
mod collect;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use crds::node_report::NodeReport;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    board::{About, Board, Stage},
    collect::{register_board, register_coordinator, register_resp, register_spans},
};
use super::{ConnectionLimit, ServeError, listen, pulse::BEAT};
use crate::metrics::Metrics;

/// Probes, one or two scrapers, the operator and a person: far below it.
const CONNECTIONS_MAX: u32 = 64;

/// How long a client may take to send the head of a request, waiting for the next one included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// After this a connection is closed, whatever it does: a client that reads slowly must not hold its place for ever.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);

/// Pause after a failed accept. The usual cause, no free file descriptor, makes the next one fail at once as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The routes, as an unknown path is answered.
const PATHS: [&str; 4] = ["/livez", "/readyz", "/metrics", "/v1/layers"];

/// The running admin server.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    stop: CancellationToken,
    serving: TaskTracker,
}

/// What handlers share.
#[derive(Clone)]
struct Shared {
    board: Arc<Board>,
    metrics: Metrics,
}

/// The body of `/readyz`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Readiness {
    ready: bool,
    waiting_for: Vec<String>,
}

/// The body of `/livez` when a restart would help.
#[derive(Serialize)]
struct Dead {
    error: String,
}

/// The body of an answer that is an error.
#[derive(Serialize)]
struct Problem {
    error: &'static str,
    paths: [&'static str; 4],
}

// === impl Admin ===

impl Admin {
    /// Starts to serve, on the current runtime. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`ServeError::Listen`] if the address can not be had.
    pub fn serve(address: SocketAddr, board: Arc<Board>, metrics: Metrics) -> Result<Self, ServeError> {
        let named = |source| ServeError::Listen { address, source };
        let listener = TcpListener::from_std(listen(address)?).map_err(named)?;
        let address = listener.local_addr().map_err(named)?;
        let stop = CancellationToken::new();
        let serving = TaskTracker::new();
        serving.spawn(watch(Arc::clone(&board), stop.clone()));
        serving.spawn(accept(listener, router(Shared { board, metrics }), stop.clone()));
        serving.close();
        Ok(Self { address, stop, serving })
    }

    /// Where it listens: the configured address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and waits for answers under way, until `deadline` at most.
    pub async fn shutdown(self, deadline: std::time::Instant) {
        self.stop.cancel();
        // Handlers only read numbers in memory; what is left at the deadline is a client that does not read.
        let _ = timeout_at(Instant::from_std(deadline), self.serving.wait()).await;
    }
}

impl Drop for Admin {
    /// The port is closed with whoever opened it, also when the rest of the node could not be opened.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Takes the pulse of the event loops once a second, from a thread that is none of them.
async fn watch(board: Arc<Board>, stop: CancellationToken) {
    let mut looks = interval(BEAT);
    // After a pause of the whole process there is one look, not all that were missed.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        board.look();
    }
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let limit = ConnectionLimit::new(CONNECTIONS_MAX);
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let Some(place) = limit.take() else { continue };
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    let _ = timeout(CONNECTION_LIFE, connection(stream, router, stop)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting an admin connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Serves one connection until the client closes it, misbehaves, or the node stops.
async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    if stop.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        // Errors here are the client's: it sent no HTTP, or is gone.
        let _ = connection.await;
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/layers", get(layers))
        .fallback(async || Problem { error: "no such path", paths: PATHS }.answer(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || {
            Problem { error: "only GET and HEAD are served", paths: PATHS }.answer(StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(shared)
}

/// Dead is a node with an event loop that stands still. Nothing else fails it, because a restart heals nothing else: a
/// full disk stays full.
async fn livez(State(shared): State<Shared>) -> Response {
    match shared.board.trouble() {
        None => "ok\n".into_response(),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, Json(Dead { error: trouble })).into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let waiting_for = shared.board.waiting_for();
    let ready = waiting_for.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, waiting_for })).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.metrics.render()).into_response()
}

async fn layers(State(shared): State<Shared>) -> Json<NodeReport> {
    Json(shared.board.report())
}

// === impl Problem ===

impl Problem {
    fn answer(self, status: StatusCode) -> Response {
        (status, Json(self)).into_response()
    }
}
