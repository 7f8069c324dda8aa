//! A Redis of somebody else that speaks TLS alone and wants to see a user and a password. What a node needs to come in is in
//! Secrets, which change while it goes on, and which the operator never reads. In the end it is left for one of the cache's
//! own.

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::json;
use tests::cluster::{OPERATOR_USER, REDIS_IMAGE};

use crate::fleet::{Fleet, equal, eventually};
use crate::secret;
use crate::turn::beside;

const READY_WITHIN: Duration = Duration::from_secs(180);
/// From a change of a Secret until the status tells what came of it: the kubelets of the test cluster look every 2 s, so do
/// the nodes, whose own patience is 2 s for bad news and 10 s for good, and the operator looks every 5 to 8 s.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
const NODES: [&str; 2] = ["cache-0", "cache-1"];
/// Whom the nodes come to Redis as.
const USER: &str = "tieredcache";

/// With a disk, so that a node has a copy that it must not trust after it has come to another Redis. On a busy machine a slow
/// Redis must not be taken for one that is of no use.
const SPEC: &str = "{replicas: 2, memory: {capacity: 64Mi}, disk: {size: 512Mi, retention: {whenDeleted: Delete}}, redis: \
                    REDIS}";
const EXTERNAL: &str = "{mode: External, timeout: 500ms, external: {endpoints: ['redis:6379'], credentialsSecretRef: {name: \
                        redis-user, usernameKey: username, passwordKey: password}, tls: {secretRef: {name: \
                        redis-authority, caKey: ca.crt}}}}";
const MANAGED: &str = "{mode: Managed, timeout: 500ms, managed: {image: IMAGE, memory: 64Mi, storage: 512Mi}}";

/// A Redis that nobody reaches without TLS, not even its administrator, whose password `redis-cli` finds in the environment.
const REDIS: &str = "
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: NAMESPACE}
spec: {selector: {app: redis}, ports: [{port: 6379}]}
---
apiVersion: v1
kind: Pod
metadata: {name: redis, namespace: NAMESPACE, labels: {app: redis}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: redis
      image: IMAGE
      command: ['redis-server', '--port', '0', '--tls-port', '6379', '--tls-cert-file', '/tls/tls.crt',
                '--tls-key-file', '/tls/tls.key', '--tls-ca-cert-file', '/tls/ca.crt', '--tls-auth-clients', 'no',
                '--requirepass', 'administrator', '--dir', '/data']
      env: [{name: REDISCLI_AUTH, value: administrator}]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]
  volumes: [{name: tls, secret: {secretName: redis-server}}]
";
/// `redis-cli` beside that Redis.
const CLI: [&str; 7] = ["exec", "redis", "--", "redis-cli", "--tls", "--cacert", "/tls/ca.crt"];

/// Starts Redis with a certificate for the name of its Service, and has the authority that signed it in a Secret of its own,
/// without any key.
fn start_redis(fleet: &Fleet) {
    let authority = secret::put_certificate(fleet, "redis-server", &["redis"]);
    secret::put(fleet, "redis-authority", &json!({"ca.crt": authority}));
    let manifest = REDIS.replace("NAMESPACE", &fleet.namespace).replace("IMAGE", REDIS_IMAGE);
    fleet.cluster.apply(&manifest).expect("Redis is made");
    fleet.kubectl(&["wait", "pod/redis", "--for=condition=Ready", "--timeout=180s"]);
}

/// What that Redis answers its administrator.
fn ask(fleet: &Fleet, command: &[&str]) -> Result<String, String> {
    fleet.try_kubectl(&[CLI.as_slice(), command].concat())
}

/// From now on Redis lets the nodes' user in by this password alone, with the rights that the node's README asks for: of any
/// cache, since this one has no UID yet.
fn accept(fleet: &Fleet, password: &str) {
    let readme = include_str!("../../cache-node/README.md");
    let rule = readme.split_once("ACL SETUSER tieredcache on >PASSWORD ").expect("the README says which rights").1;
    let rights = rule.lines().next().unwrap_or_default().replace("<cache.uid>", "");
    let password = format!(">{password}");
    let mut command = vec!["acl", "setuser", USER, "reset", "on", password.as_str()];
    command.extend(rights.split(' '));
    eventually("Redis knows the user", READY_WITHIN, || equal(ask(fleet, &command)?.as_str(), "OK"));
}

/// From now on the nodes come with this password. Waits until the kubelets have brought it to all that run.
fn show(fleet: &Fleet, password: &str) {
    secret::put(fleet, "redis-user", &json!({"username": USER, "password": password}));
    for node in NODES {
        // Those that are started later have it from the start.
        if fleet.get(&format!("pod/{node}")).is_err() {
            continue;
        }
        let root = format!("/proc/{}/{}", fleet.node_process(node), "root");
        let file = format!("{root}/etc/tieredcache-redis/credentials/password");
        eventually(&format!("{node} is shown {password}"), TOLD_WITHIN, || {
            equal(fs::read_to_string(&file).map_err(|error| error.to_string())?.as_str(), password)
        });
    }
}

/// Waits until the status says this of Redis.
fn await_redis(fleet: &Fleet, status: &str, reason: &str) {
    eventually(&format!("RedisHealthy is {status}: {reason}"), TOLD_WITHIN, || {
        let (is, why, message) = fleet.condition("cache", "RedisHealthy")?;
        equal((is.as_str(), why.as_str()), (status, reason)).map_err(|seen| format!("{seen}: {message}"))
    });
}

/// What a node answers.
fn answer(fleet: &Fleet, node: &str, command: &[&str]) -> String {
    fleet.redis(&format!("{node}.cache-nodes"), command)
}

/// Waits until the node has this value, which only the other one was given.
fn await_value(fleet: &Fleet, node: &str, key: &str) {
    eventually(&format!("{node} finds {key}"), TOLD_WITHIN, || {
        equal(answer(fleet, node, &["get", key]).as_str(), "value")
    });
}

/// Whatever one node is given the other finds, which is by Redis: each has a disk of its own.
fn assert_shared(fleet: &Fleet, when: &str) {
    for (writer, reader) in [(NODES[0], NODES[1]), (NODES[1], NODES[0])] {
        let key = format!("{when}-by-{writer}");
        assert_eq!(answer(fleet, writer, &["set", &key, "value", "ex", "3600"]), "OK");
        await_value(fleet, reader, &key);
    }
}

/// Which pods the nodes are, and how often each was restarted.
fn lives(fleet: &Fleet) -> [(String, u64); 2] {
    NODES.map(|node| {
        let pod = fleet.get(&format!("pod/{node}")).expect("the pod exists");
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        (fleet.pod_uid(node), restarts.expect("its container was started"))
    })
}

/// Everything that the operator has asked the API server to do with Secrets, of this namespace or any other.
fn asked_of_secrets(fleet: &Fleet) -> BTreeSet<String> {
    let requests = fleet.cluster.requests_of(OPERATOR_USER).expect("the API server keeps an audit log");
    let of_secrets = requests.iter().filter(|request| request["objectRef"]["resource"] == "secrets");
    of_secrets.map(|request| request["verb"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn nodes_come_to_a_redis_behind_tls_by_secrets_that_change_under_them_and_leave_it_for_a_managed_one() {
    let turn = beside();
    let fleet = Fleet::new(&turn, "redis-behind-tls");
    start_redis(&fleet);
    accept(&fleet, "first");
    show(&fleet, "first");
    fleet.apply("cache", &SPEC.replace("REDIS", EXTERNAL));
    fleet.await_ready("cache", 2, READY_WITHIN);
    await_redis(&fleet, "True", "AsExpected");
    assert_shared(&fleet, "first");
    let before = lives(&fleet);

    show(&fleet, "wrong");
    // A node keeps the connections that it has until it has better ones, so a wrong password shows when it needs another.
    let dropped = ask(&fleet, &["client", "kill", "user", USER]).expect("Redis answers");
    assert!(dropped.parse::<u64>().is_ok_and(|number| number > 0), "the nodes had come as this user: {dropped}");
    await_redis(&fleet, "False", "WrongPassword");
    assert_eq!(fleet.condition("cache", "Ready").expect("a condition").0, "True", "nodes go on serving");

    accept(&fleet, "second");
    show(&fleet, "second");
    await_redis(&fleet, "True", "AsExpected");
    assert_shared(&fleet, "second");
    assert_eq!(lives(&fleet), before, "no node was restarted for a password");

    assert_eq!(answer(&fleet, "cache-0", &["set", "removed", "value", "ex", "3600"]), "OK");
    await_value(&fleet, "cache-1", "removed");
    for node in NODES {
        assert_eq!(answer(&fleet, node, &["tc.flush"]), "OK");
    }
    assert_eq!(answer(&fleet, "cache-0", &["del", "removed"]), "1");
    fleet.apply("cache", &SPEC.replace("REDIS", MANAGED).replace("IMAGE", REDIS_IMAGE));
    fleet.await_ready("cache", 2, READY_WITHIN);
    for node in NODES {
        assert_eq!(answer(&fleet, node, &["get", "removed"]), "", "{node} has what was removed before the switch");
    }
    assert_shared(&fleet, "managed");
    await_redis(&fleet, "True", "AsExpected");
    let of_nodes = format!("user={USER}");
    eventually("nobody is left at the first Redis", TOLD_WITHIN, || {
        let clients = ask(&fleet, &["client", "list"])?;
        if clients.contains(&of_nodes) { Err(clients) } else { Ok(()) }
    });

    // The password of the managed Redis was made, which shows that the log tells of Secrets.
    assert_eq!(asked_of_secrets(&fleet), BTreeSet::from(["create".to_owned()]), "no Secret was ever read");
}
