//! What probes and metrics say while the volume keeps the node waiting.

use std::{fs, net::TcpStream, thread};

use super::{KEYS, VALUE_BYTES, config, folder_and_volume, store, values};
use crate::{
    program::{Node, eventually, http},
    resp::client::Client,
};

const OLDEST: &str = "tieredcache_write_queue_oldest_seconds{layer=\"writeQueue\"}";
const QUEUED: &str = "tieredcache_layer_bytes{layer=\"writeQueue\"}";
const EVICTED: &str = "tieredcache_layer_evictions_total{layer=\"memory\",read=\"no\"}";
const PROMOTED: &str = "tieredcache_layer_promotions_total{layer=\"memory\",result=\"stored\"}";

#[test]
fn a_node_is_alive_and_not_ready_while_its_disk_is_being_opened() {
    let (folder, volume) = folder_and_volume();
    let file = config(&folder, &volume, "");
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], tests::ports::free_port()));
    let text = fs::read_to_string(&file).unwrap().replace("admin: '127.0.0.1:0'", &format!("admin: '{admin}'"));
    fs::write(&file, text).unwrap();
    let frozen = volume.freeze();
    let starting = thread::spawn(move || Node::start(&file));
    eventually("the admin port answers", || TcpStream::connect(admin).is_ok());
    let waiting = r#"{"ready":false,"waitingFor":["the disk layer is being opened"]}"#;
    eventually("the disk is being opened", || http(admin, "GET", "/readyz").body == waiting);
    assert_eq!(http(admin, "GET", "/readyz").status, 503);
    assert_eq!(http(admin, "GET", "/livez").status, 200, "a restart would not help");
    assert!(http(admin, "GET", "/metrics").body.contains("\ntieredcache_ready 0\n"));
    drop(frozen);
    let node = starting.join().expect("it serves once the disk is open");
    assert_eq!(node.admin("GET", "/readyz").status, 200);
    assert_eq!(node.metric("tieredcache_ready"), Some(1.0));
}

#[test]
fn metrics_move_with_evictions_promotions_and_writes_that_wait() {
    let (folder, volume) = folder_and_volume();
    let node = Node::start(&config(&folder, &volume, "memory: {capacity: 1Mi}\nlimits: {requestTimeout: 30s}"));
    let number = |name: &str| node.metric(name).unwrap_or_else(|| panic!("{name} is a metric"));
    for name in [EVICTED, PROMOTED, QUEUED, OLDEST] {
        assert!(number(name).abs() < f64::EPSILON, "{name} begins with 0");
    }
    let mut client = Client::connect(node.resp);
    store(&mut client, 0..KEYS, 1);
    node.flushed();
    // A tenth of the values fits into memory.
    let evicted = number(EVICTED);
    assert!(evicted > KEYS as f64 / 2.0 && evicted <= KEYS as f64, "{evicted} of {KEYS}");
    assert!(number(PROMOTED).abs() < f64::EPSILON, "nothing was read");
    assert!(values(&mut client).iter().all(Option::is_some));
    let promoted = number(PROMOTED);
    assert!(promoted > KEYS as f64 / 2.0 && promoted <= KEYS as f64, "{promoted} of {KEYS}");

    volume.break_device();
    store(&mut client, 0..20, 2);
    eventually("the oldest write waits for a second", || number(OLDEST) > 1.0);
    let (oldest, queued) = (number(OLDEST), number(QUEUED));
    assert!(queued > 15.0 * VALUE_BYTES as f64 && queued < 30.0 * VALUE_BYTES as f64, "{queued} bytes of 20 values");
    eventually("it grows older", || number(OLDEST) > oldest + 0.5);
    volume.unmount();
    volume.mount();
    eventually("nothing waits", || number(QUEUED).abs() < f64::EPSILON && number(OLDEST).abs() < f64::EPSILON);
}
