//! The life of the process: connect, stand for election, work, and go in the reverse order.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use futures::future::join_all;
use kube::Api;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{Admin, Readiness},
    args::RunArgs,
    client::{self, Fence},
    heartbeat::Heartbeats,
    lease::{Election, Signs},
    metrics::Metrics,
    recorder::Recorder,
    tiered_cache::{self, Poller, Scope, Settings, Shared},
};

/// The exit code of a leader that is not sure to be one any more. Only a new process can start with a clean slate.
const LEASE_LOST: u8 = 3;
/// How long passes under way may take after SIGTERM; one call has a limit of 15 s.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the lease may take to be given up. With all else this is less than the kubelet waits by default.
const RELEASE: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT, or until the lease is lost.
///
/// # Errors
/// If there is no cluster to connect to, or the admin address can not be bound.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (metrics, heartbeats, fence) = (Metrics::register()?, Heartbeats::default(), Fence::default());
    let readiness = Readiness::default();
    let client = client::connect(&metrics, &heartbeats, &fence).await.context("find the cluster to connect to")?;
    let admin = Admin { metrics: metrics.clone(), heartbeats: heartbeats.clone(), readiness: readiness.clone() };
    let listener = Admin::bind(args.admin_address).await.with_context(|| format!("bind {}", args.admin_address))?;
    tracing::info!(address = %listener.local_addr()?, "serving probes and metrics");
    let (stop, stop_admin, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    tasks.spawn(stop_on_signal(stop.clone())?);
    tasks.spawn(admin.serve(listener, stop_admin.clone()));

    let namespace = args.lease_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    // Unique among restarts too: a process never takes the lease of its predecessor for its own.
    let identity = format!("{}_{:016x}", args.pod_name, rand::random::<u64>());
    tracing::info!(identity, namespace, lease = args.lease_name, "standing for election");
    let signs = Signs { fence, heartbeats: heartbeats.clone(), readiness: readiness.clone() };
    let api = Api::namespaced(client.clone(), &namespace);
    let mut election = Election::new(api, &args.lease_name, identity, signs);
    let leads = tokio::select! {
        () = election.lead() => true,
        () = stop.cancelled() => false,
    };
    let mut code = ExitCode::SUCCESS;
    if leads {
        tracing::info!("leading");
        metrics.set_leader(true);
        readiness.wait_for_lists(scopes(&args.watch_namespaces).len());
        let shared = shared(&args, client, metrics.clone());
        if !work(&args, shared, (&mut election, readiness), &stop).await {
            code = ExitCode::from(LEASE_LOST);
        }
        metrics.set_leader(false);
    }
    heartbeats.retire("lease");
    if code == ExitCode::SUCCESS {
        match timeout(RELEASE, election.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "could not release the lease; it expires by itself"),
            Err(_) => tracing::warn!("could not release the lease in time; it expires by itself"),
        }
    }
    stop.cancel();
    stop_admin.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(code)
}

/// Works as the leader until `stop`, then lets passes under way end. Returns whether the lease was held all the time.
async fn work(args: &RunArgs, shared: Shared, around: (&mut Election, Readiness), stop: &CancellationToken) -> bool {
    let (election, readiness) = around;
    let stop_work = CancellationToken::new();
    let scopes = scopes(&args.watch_namespaces).into_iter();
    let works = join_all(scopes.map(|scope| {
        tiered_cache::run(shared.clone(), scope, (args.concurrency, readiness.clone()), stop_work.clone())
    }));
    tokio::pin!(works);
    let held = tokio::select! {
        held = election.keep(stop) => held,
        _ = &mut works => true,
    };
    if !held {
        // What is under way is dropped where it stands: the fence is closed, so it could not write anyway.
        return false;
    }
    tracing::info!("stopping");
    stop_work.cancel();
    // The lease is kept while the last passes end, or their writes would be refused.
    let never = CancellationToken::new();
    tokio::select! {
        ended = timeout(DRAIN, &mut works) => {
            if ended.is_err() {
                tracing::warn!("gave up waiting for passes under way after {} s", DRAIN.as_secs());
            }
            true
        }
        held = election.keep(&never) => held,
    }
}

fn shared(args: &RunArgs, client: kube::Client, metrics: Metrics) -> Shared {
    Shared {
        settings: Settings { image_repository: args.node_image_repository.clone() },
        poller: Poller::new(metrics.clone()),
        recorder: Recorder::new(client.clone(), args.pod_name.clone()),
        client,
        metrics,
    }
}

fn scopes(namespaces: &[String]) -> Vec<Scope> {
    let mut named: Vec<&String> = namespaces.iter().filter(|namespace| !namespace.is_empty()).collect();
    named.sort();
    named.dedup();
    if named.is_empty() {
        return vec![Scope::Cluster];
    }
    named.into_iter().cloned().map(Scope::Namespace).collect()
}

fn stop_on_signal(stop: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
            () = stop.cancelled() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespace_means_all_and_repeated_ones_count_once() {
        assert_eq!(scopes(&[]), [Scope::Cluster]);
        assert_eq!(scopes(&[String::new()]), [Scope::Cluster]);
        let namespaces = ["b", "a", "b"].map(str::to_owned);
        assert_eq!(scopes(&namespaces), [Scope::Namespace("a".to_owned()), Scope::Namespace("b".to_owned())]);
    }
}
