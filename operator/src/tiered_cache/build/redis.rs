//! L2 in a node's configuration and in its pod: the Secrets are mounted, nobody but the kubelet reads them here. To a
//! node a Redis of the cache's own is one like any other.

use std::path::PathBuf;

use crds::{
    node_config::{self, RedisMode},
    tiered_cache::{CredentialsSecret, ExternalRedis, TlsSecret},
};
use k8s_openapi::api::core::v1::{Volume, VolumeMount};

use super::{ValidCache, managed_redis, secret::mounted};
use crate::tiered_cache::validate::{RedisSource, ValidRedis};

const CREDENTIALS_VOLUME: &str = "redis-credentials";
const CREDENTIALS_DIR: &str = "/etc/tieredcache-redis/credentials";
const USERNAME: &str = "username";
const PASSWORD: &str = "password";
const TLS_VOLUME: &str = "redis-tls";
const TLS_DIR: &str = "/etc/tieredcache-redis/tls";
const AUTHORITIES: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// L2 as the node is told.
pub(super) fn config(cache: &ValidCache) -> node_config::Redis {
    let Some(ValidRedis { max_ttl, timeout, write_mode, source }) = &cache.redis else {
        return node_config::Redis::default();
    };
    let found = match source {
        RedisSource::External(external) => external_config(external),
        RedisSource::Managed(managed) => node_config::Redis {
            password_file: Some(file(CREDENTIALS_DIR, PASSWORD)),
            ..managed_redis::found(&cache.identity.name, managed)
        },
    };
    node_config::Redis {
        mode: RedisMode::External,
        lineage: cache.lineage.number,
        max_ttl: *max_ttl,
        timeout: *timeout,
        write_mode: *write_mode,
        ..found
    }
}

fn external_config(external: &ExternalRedis) -> node_config::Redis {
    let credentials = external.credentials_secret_ref.as_ref();
    node_config::Redis {
        kind: external.kind,
        endpoints: external.endpoints.clone(),
        master_name: external.master_name.clone(),
        username_file: credentials
            .filter(|secret| secret.username_key.is_some())
            .map(|_| file(CREDENTIALS_DIR, USERNAME)),
        password_file: credentials.map(|_| file(CREDENTIALS_DIR, PASSWORD)),
        tls: external.tls.as_ref().map(|tls| {
            let secret = tls.secret_ref.as_ref();
            let has_certificate = secret.is_some_and(|secret| secret.cert_key.is_some());
            node_config::RedisTls {
                ca_file: secret.map(|_| file(TLS_DIR, AUTHORITIES)),
                cert_file: has_certificate.then(|| file(TLS_DIR, CERTIFICATE)),
                key_file: has_certificate.then(|| file(TLS_DIR, KEY)),
                server_name: tls.server_name.clone(),
            }
        }),
        database: external.database,
        ..node_config::Redis::default()
    }
}

fn file(dir: &str, name: &str) -> PathBuf {
    PathBuf::from(dir).join(name)
}

/// The Secrets as volumes of the pod, each with its mount.
pub(super) fn volumes(cache: &ValidCache) -> Vec<(Volume, VolumeMount)> {
    let Some(ValidRedis { source, .. }) = &cache.redis else { return Vec::new() };
    let external = match source {
        RedisSource::External(external) => external,
        RedisSource::Managed(_) => {
            let secret = managed_redis::name(&cache.identity.name);
            let items = [(managed_redis::PASSWORD_KEY, PASSWORD)].into_iter();
            return vec![mounted(CREDENTIALS_VOLUME, &secret, items, CREDENTIALS_DIR)];
        }
    };
    let credentials = external.credentials_secret_ref.as_ref().map(credentials);
    let tls = external.tls.as_ref().and_then(|tls| tls.secret_ref.as_ref()).map(certificates);
    credentials.into_iter().chain(tls).collect()
}

fn credentials(secret: &CredentialsSecret) -> (Volume, VolumeMount) {
    let username = secret.username_key.as_deref().map(|key| (key, USERNAME));
    let items = username.into_iter().chain([(secret.password_key.as_str(), PASSWORD)]);
    mounted(CREDENTIALS_VOLUME, &secret.name, items, CREDENTIALS_DIR)
}

fn certificates(secret: &TlsSecret) -> (Volume, VolumeMount) {
    let pair = secret.cert_key.as_deref().zip(secret.key_key.as_deref());
    let pair = pair.into_iter().flat_map(|(certificate, key)| [(certificate, CERTIFICATE), (key, KEY)]);
    mounted(TLS_VOLUME, &secret.name, [(secret.ca_key.as_str(), AUTHORITIES)].into_iter().chain(pair), TLS_DIR)
}
