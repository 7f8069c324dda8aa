//! The two Services: one that gives every node a stable name, one that clients connect to.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{ADMIN_PORT, RESP_PORT, ValidCache, metadata, selector_labels};

/// Name of the headless Service, part of the nodes' DNS names.
pub(super) fn headless_name(cache_name: &str) -> String {
    format!("{cache_name}-nodes")
}

/// Gives every node a name, also before it is ready: nodes must be found while they start.
pub(super) fn headless(cache: &ValidCache) -> Service {
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        ports: Some(vec![port("resp", RESP_PORT), port("admin", ADMIN_PORT)]),
        ..spec(cache)
    };
    Service {
        metadata: metadata(&cache.identity, headless_name(&cache.identity.name)),
        spec: Some(spec),
        ..Service::default()
    }
}

/// What clients connect to: ready nodes only, under the cache's own name.
pub(super) fn client(cache: &ValidCache) -> Service {
    let spec = ServiceSpec {
        ports: Some(vec![port("resp", RESP_PORT)]),
        // A client must find on its next connection what it stored on the last, also before Redis has it.
        session_affinity: Some("ClientIP".to_owned()),
        ..spec(cache)
    };
    Service { metadata: metadata(&cache.identity, cache.identity.name.clone()), spec: Some(spec), ..Service::default() }
}

fn spec(cache: &ValidCache) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        selector: Some(selector_labels(&cache.identity.name)),
        ..ServiceSpec::default()
    }
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
