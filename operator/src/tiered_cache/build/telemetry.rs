//! Spans in a node's configuration and in its pod.

use std::path::PathBuf;

use crds::{
    node_config,
    quantity::Share,
    tiered_cache::{HeadersSecret, Otlp},
};
use k8s_openapi::api::core::v1::{Volume, VolumeMount};

use super::{ValidCache, secret::mounted};

const HEADERS_VOLUME: &str = "otlp-headers";
const HEADERS_DIR: &str = "/etc/tieredcache-otlp";
const HEADERS: &str = "headers";

/// The collector as the node is told.
pub(super) fn config(cache: &ValidCache) -> node_config::Telemetry {
    let Some(Otlp { endpoint, samples_per_million, headers_secret_ref }) = &cache.telemetry.otlp else {
        return node_config::Telemetry::default();
    };
    let headers_file = headers_secret_ref.as_ref().map(|_| PathBuf::from(HEADERS_DIR).join(HEADERS));
    node_config::Telemetry {
        otlp: node_config::Otlp {
            endpoint: endpoint.clone(),
            sample_ratio: Share(*samples_per_million),
            headers_file: headers_file.unwrap_or_default(),
        },
    }
}

/// The Secret with headers as a volume of the pod, with its mount.
pub(super) fn volume(cache: &ValidCache) -> Option<(Volume, VolumeMount)> {
    let HeadersSecret { name, key } = cache.telemetry.otlp.as_ref()?.headers_secret_ref.as_ref()?;
    Some(mounted(HEADERS_VOLUME, name, [(key.as_str(), HEADERS)].into_iter(), HEADERS_DIR))
}
