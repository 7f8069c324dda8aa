//! Stands in for kubelets and nodes: gives every pod of a namespace an address on the loopback, answers there as a
//! cache node would, and tells the API server that the pod is ready, or in which trouble it is.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::program::{Node, command};

use crate::api::rest;

/// Port of reports, as the operator asks it.
const ADMIN_PORT: u16 = 9090;

/// Addresses given out by all tests of this process, above 127.77.0.1.
static ADDRESSES: AtomicU32 = AtomicU32::new(0);

/// What the pods of a namespace are to be.
#[derive(Default)]
struct Orders {
    /// Images that can not be had.
    missing_images: Vec<String>,
    /// Pods that do not answer.
    silent: Vec<String>,
    /// Health of the disk layer, by pod: state and reason.
    disk: HashMap<String, (String, String)>,
    /// Whether pods run the node's program.
    real: bool,
    /// Their processes and folders.
    nodes: Vec<(Node, TempDir)>,
    /// Pods that were ready at the same moment: the fewest so far since [`Kubelet::watch_ready`].
    fewest_ready: Option<usize>,
}

/// The stand-in of one namespace. Ends when dropped.
pub(crate) struct Kubelet {
    orders: Arc<Mutex<Orders>>,
    stopped: Arc<AtomicBool>,
}

// === impl Kubelet ===

impl Kubelet {
    /// Begins to look after the pods of the namespace.
    pub(crate) fn of(namespace: &str) -> Self {
        let (orders, stopped) = (Arc::new(Mutex::new(Orders::default())), Arc::new(AtomicBool::new(false)));
        let (namespace, its_orders, its_end) = (namespace.to_owned(), Arc::clone(&orders), Arc::clone(&stopped));
        thread::spawn(move || {
            let mut served = HashMap::new();
            while !its_end.load(Ordering::Acquire) {
                look_after(&namespace, &its_orders, &mut served);
                // The pace of a kubelet's own loop; nothing waits for it but the tests' polls.
                thread::park_timeout(Duration::from_millis(100));
            }
        });
        Self { orders, stopped }
    }

    /// From now on pods with this image can not start.
    pub(crate) fn lose_image(&self, image: &str) {
        self.orders().missing_images.push(image.to_owned());
    }

    /// Whether the pod answers.
    pub(crate) fn silence(&self, pod: &str, silent: bool) {
        let mut orders = self.orders();
        orders.silent.retain(|name| name != pod);
        if silent {
            orders.silent.push(pod.to_owned());
        }
    }

    /// What the pod reports about its disk.
    pub(crate) fn set_disk(&self, pod: &str, state: &str, reason: &str) {
        self.orders().disk.insert(pod.to_owned(), (state.to_owned(), reason.to_owned()));
    }

    /// From now on pods run the node's own program with the configuration that they are given, instead of a stand-in. Of
    /// Secrets they find the password, which is wrong.
    pub(crate) fn run_nodes(&self) {
        self.orders().real = true;
    }

    /// Begins to remember how few pods were ready at the same moment.
    pub(crate) fn watch_ready(&self) {
        self.orders().fewest_ready = Some(usize::MAX);
    }

    /// The fewest pods that were ready at the same moment.
    pub(crate) fn fewest_ready(&self) -> usize {
        self.orders().fewest_ready.expect("watched")
    }

    fn orders(&self) -> std::sync::MutexGuard<'_, Orders> {
        self.orders.lock().expect("nobody panics with it")
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // A test that failed may have left them locked; its nodes end with the process then.
        if let Ok(mut orders) = self.orders.lock() {
            orders.nodes.clear();
        }
    }
}

/// One look at every pod. `served` has the address of each pod's server by the pod's UID.
fn look_after(namespace: &str, orders: &Arc<Mutex<Orders>>, served: &mut HashMap<String, Ipv4Addr>) {
    let pods = rest().list(&format!("/api/v1/namespaces/{namespace}/pods"));
    let ready = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
    {
        let mut orders = orders.lock().expect("nobody panics with it");
        orders.fewest_ready = orders.fewest_ready.map(|fewest| fewest.min(ready));
    }
    for pod in pods {
        let uid = pod["metadata"]["uid"].as_str().expect("a pod has a UID").to_owned();
        let name = pod["metadata"]["name"].as_str().expect("a pod has a name").to_owned();
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
        let missing = orders.lock().expect("nobody panics with it").missing_images.contains(&image);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
        if missing {
            if pod["status"]["containerStatuses"].is_null() {
                rest().merge(&path, &can_not_pull(&uid, &image));
            }
            continue;
        }
        if served.contains_key(&uid) {
            continue;
        }
        let is_real = orders.lock().expect("nobody panics with it").real && name_of(&pod, "/name") == "tieredcache";
        let address = if is_real { run(&pod, orders) } else { serve(&pod, Arc::clone(orders)) };
        served.insert(uid.clone(), address);
        rest().merge(&path, &running(&uid, &image, address));
    }
}

fn running(uid: &str, image: &str, address: Ipv4Addr) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let true_now = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    json!({
        "metadata": {"uid": uid},
        "status": {
            "phase": "Running",
            "podIP": address.to_string(),
            "podIPs": [{"ip": address.to_string()}],
            "conditions": [true_now("PodScheduled"), true_now("ContainersReady"), true_now("Ready")],
            "containerStatuses": [{
                "name": "cache-node", "image": image, "imageID": "fake", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }],
        },
    })
}

fn can_not_pull(uid: &str, image: &str) -> Value {
    json!({
        "metadata": {"uid": uid},
        "status": {
            "phase": "Pending",
            "containerStatuses": [{
                "name": "cache-node", "image": image, "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}},
            }],
        },
    })
}

/// A label of the pod, by the end of its name.
fn name_of(pod: &Value, label: &str) -> String {
    let labels = pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let found = labels.iter().find(|(name, _)| name.ends_with(label));
    found.and_then(|(_, value)| value.as_str()).unwrap_or_default().to_owned()
}

fn address() -> Ipv4Addr {
    let [.., high, low] = ADDRESSES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 77, high, low.wrapping_add(1))
}

/// Runs the node's program as the pod would, on an address of its own.
fn run(pod: &Value, orders: &Mutex<Orders>) -> Ipv4Addr {
    let (address, folder) = (address(), TempDir::new().expect("a scratch folder"));
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let config_map = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).expect("a configuration");
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let config = rest().get(&format!("/api/v1/namespaces/{namespace}/configmaps/{config_map}")).expect("it is there");
    let password = folder.path().join("password");
    fs::write(&password, "wrong").expect("a scratch folder can be written");
    let text = config["data"]["config.yaml"].as_str().expect("a file");
    let text = text.replace("0.0.0.0:", &format!("{address}:"));
    let text = text.replace("/etc/tieredcache-redis/credentials/password", &password.to_string_lossy());
    let file = folder.path().join("config.yaml");
    fs::write(&file, text).expect("a scratch folder can be written");
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let node = Node::start_by(command().arg("--config").arg(file).env("NODE_NAME", name));
    orders.lock().expect("nobody panics with it").nodes.push((node, folder));
    address
}

/// Answers as the pod's node would, on an address of its own.
fn serve(pod: &Value, orders: Arc<Mutex<Orders>>) -> Ipv4Addr {
    let address = address();
    let listener = TcpListener::bind((address, ADMIN_PORT)).expect("every loopback address can be bound");
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let config_map = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).unwrap_or_default();
    let revision = config_map.rsplit('-').next().unwrap_or_default().to_owned();
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let cache = pod["metadata"]["labels"]["app.kubernetes.io/instance"].as_str().unwrap_or_default().to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let uid = super::cache(&namespace, &cache).map(|cache| cache["metadata"]["uid"].clone());
            let report = report(&name, uid.unwrap_or_default(), &revision, &orders);
            let silent = orders.lock().expect("nobody panics with it").silent.contains(&name);
            // One that is silent keeps the connection open and says nothing, as a machine without a network does.
            thread::spawn(move || answer(stream, &report, silent));
        }
    });
    address
}

fn report(name: &str, cache_uid: Value, revision: &str, orders: &Mutex<Orders>) -> Value {
    let orders = orders.lock().expect("nobody panics with it");
    let healthy = ("Healthy".to_owned(), "AsExpected".to_owned());
    let (state, reason) = orders.disk.get(name).unwrap_or(&healthy);
    let layer = |name: &str, state: &str, reason: &str| json!({"name": name, "health": {"state": state, "reason": reason, "message": format!("{reason} it is")}});
    json!({
        "node": name, "cacheUid": cache_uid, "version": "0.1.0", "configRevision": revision, "ready": true,
        "layers": [
            layer("Memory", "Healthy", "AsExpected"),
            layer("TagIndex", "Healthy", "AsExpected"),
            layer("WriteQueue", "Healthy", "AsExpected"),
            layer("Redis", "Disabled", "Disabled"),
            layer("Disk", state, reason),
            layer("Backplane", "Disabled", "Disabled"),
        ],
    })
}

fn answer(mut stream: TcpStream, report: &Value, silent: bool) {
    let mut line = String::new();
    let Ok(reading) = stream.try_clone() else { return };
    // The first line of the request is all that is read; whoever asks wants the report.
    if BufReader::new(reading).read_line(&mut line).is_err() || silent {
        thread::park_timeout(Duration::from_secs(if silent { 5 } else { 0 }));
        return;
    }
    let body = report.to_string();
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    // The operator may have given up; that is its business.
    let _ = write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
}
