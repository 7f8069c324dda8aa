//! The examples of the resource, as pods: whoever copies one gets a cache that serves.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tests::cluster::REDIS_IMAGE;

use crate::fleet::{Fleet, equal, eventually};
use crate::secret;
use crate::turn::beside;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/examples");
/// Those that need nothing but the operator, by the names of their files: so many at once as a small machine runs
/// beside other tests, which is about six pods.
const BY_THEMSELVES: [&[&str]; 3] =
    [&["minimal", "memory-only", "three-nodes"], &["tiny-lfu", "managed-redis"], &["one-truth"]];
/// The one that shares a Redis which somebody else runs.
const SHARED: &str = "shared-redis";
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A Redis that speaks TLS alone, with a user for the nodes, and a Sentinel that answers under the three names of the
/// example. It calls Redis by a name, too, because nodes must find in the certificate what it calls it.
const REDIS: &str = "
apiVersion: v1
kind: Service
metadata: {name: redis-master, namespace: redis}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: redis}, ports: [{port: 6379}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis-sentinel-0, namespace: redis}
spec: {selector: {app: redis}, ports: [{port: 26379}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis-sentinel-1, namespace: redis}
spec: {selector: {app: redis}, ports: [{port: 26379}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis-sentinel-2, namespace: redis}
spec: {selector: {app: redis}, ports: [{port: 26379}]}
---
apiVersion: v1
kind: Pod
metadata: {name: redis, namespace: redis, labels: {app: redis}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: redis
      image: IMAGE
      command: ['redis-server', TLS, '--tls-port', '6379', '--dir', '/data', '--protected-mode', 'no',
                '--user', 'carts', 'on', '>of-the-carts', '~*', '+@all']
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]
    - name: sentinel
      image: IMAGE
      command: ['sh', '-c', 'printf \"%s\\n\" \"$@\" >/tmp/it.conf; exec redis-server /tmp/it.conf --sentinel',
                'sh', 'port 0', 'tls-port 26379', 'tls-replication yes', 'tls-auth-clients no',
                'tls-ca-cert-file /tls/ca.crt', 'tls-cert-file /tls/tls.crt', 'tls-key-file /tls/tls.key',
                'sentinel resolve-hostnames yes', 'sentinel announce-hostnames yes',
                'sentinel monitor main redis-master.redis 6379 1']
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]
  volumes: [{name: tls, secret: {secretName: redis-server}}]
";
const TLS: &str = "'--port', '0', '--tls-auth-clients', 'no', '--tls-ca-cert-file', '/tls/ca.crt', '--tls-cert-file', \
                   '/tls/tls.crt', '--tls-key-file', '/tls/tls.key'";
/// Under these nodes look for the two.
const NAMES: [&str; 4] =
    ["redis-master.redis", "redis-sentinel-0.redis", "redis-sentinel-1.redis", "redis-sentinel-2.redis"];

#[test]
fn every_example_is_run_by_a_test() {
    let files = fs::read_dir(EXAMPLES).expect("examples exist").map(|entry| entry.expect("readable").path());
    let files: BTreeSet<String> = files.map(|path| stem(&path)).collect();
    let run = BY_THEMSELVES.concat().into_iter().chain([SHARED]).map(str::to_owned);
    assert_eq!(files, run.collect::<BTreeSet<String>>());
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file has a name").to_string_lossy().into_owned()
}

#[test]
fn every_example_becomes_a_cache_that_serves() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "examples");
    for group in BY_THEMSELVES {
        let names: Vec<String> = group.iter().map(|example| apply(&fleet, example)).collect();
        names.iter().for_each(|name| await_serving(&fleet, name));
        // Their volumes go with the namespace.
        names.iter().for_each(|name| drop(fleet.kubectl(&["delete", "tc", name, "--wait=false"])));
    }
}

#[test]
fn the_example_that_shares_a_redis_finds_it_by_its_sentinels() {
    let turn = beside();
    // The example says which namespace.
    let redis = Fleet::new(&turn, "redis");
    let fleet = Fleet::new(&turn, "examples-shared");
    let authority = start_redis(&redis);
    secret::put(&fleet, "redis-certificates", &json!({"ca.crt": authority}));
    secret::put(&fleet, "redis-carts", &json!({"username": "carts", "password": "of-the-carts"}));
    let name = apply(&fleet, SHARED);
    await_serving(&fleet, &name);
    let [writer, reader] = [0, 1].map(|node| format!("{name}-{node}.{name}-nodes"));
    assert_eq!(fleet.redis(&writer, &["set", "shared", "value", "ex", "3600"]), "OK");
    eventually("the other node finds it", READY_WITHIN, || {
        equal(fleet.redis(&reader, &["get", "shared"]).as_str(), "value")
    });
}

/// Makes the cache of an example, and gives its name. It is as it is written, but for where it is, for the image of a
/// Redis of its own, because none can be pulled, and for the patience with any Redis: on a busy machine a slow one must
/// not be taken for one that is gone.
fn apply(fleet: &Fleet, example: &str) -> String {
    let text = fs::read_to_string(format!("{EXAMPLES}/{example}.yaml")).expect("the example is there");
    let mut cache: Value = serde_saphyr::from_str(&text).expect("an example is YAML");
    cache["metadata"]["namespace"] = json!(fleet.namespace);
    if let Some(redis) = cache["spec"].get_mut("redis") {
        redis["timeout"] = json!("500ms");
        if redis["mode"] == "Managed" {
            redis["managed"]["image"] = json!(REDIS_IMAGE);
        }
    }
    fleet.cluster.apply(&cache.to_string()).unwrap_or_else(|error| panic!("{example}: {error}"));
    cache["metadata"]["name"].as_str().expect("a cache has a name").to_owned()
}

/// Waits until the cache is ready and lacks nothing of what it asks for, and has it keep a value.
fn await_serving(fleet: &Fleet, cache: &str) {
    fleet.kubectl(&["wait", &format!("tc/{cache}"), "--for=condition=Ready", "--timeout=180s"]);
    // Whether it is ready depends on memory alone.
    eventually(&format!("all layers of {cache} work"), READY_WITHIN, || {
        let (status, reason, message) = fleet.condition(cache, "Degraded")?;
        equal(status.as_str(), "False").map_err(|seen| format!("{seen}: {reason}: {message}"))
    });
    // Over one connection: another may lead to another node.
    let answers = fleet.redis_script(cache, "SET key value EX 3600\nGET key\n").expect("clients are answered");
    assert_eq!(answers.lines().collect::<Vec<_>>(), ["OK", "value"], "{cache}");
}

/// Starts Redis and Sentinel with a certificate for all their names, and gives that of the authority that signed it.
fn start_redis(redis: &Fleet) -> String {
    let authority = secret::put_certificate(redis, "redis-server", &NAMES);
    redis.cluster.apply(&REDIS.replace("TLS", TLS).replace("IMAGE", REDIS_IMAGE)).expect("Redis is made");
    redis.kubectl(&["wait", "pod/redis", "--for=condition=Ready", "--timeout=180s"]);
    authority
}
