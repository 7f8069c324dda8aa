//! What kstatus, the library by which Flux, kpt and others read a status, makes of ours: the library itself, not its rules
//! in our words, which the unit tests of the status go by.

use std::{fs::File, path::Path, process::Command};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::stock_clients::succeed_fed;

use super::Lab;

/// What the library says of each of these objects.
fn kstatus(objects: &[Value]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a scratch folder can be made");
    let path = folder.path().join("objects");
    let text: String = objects.iter().map(|object| format!("{object}\n")).collect();
    std::fs::write(&path, text).expect("a scratch file can be written");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/operator/kstatus");
    let input = File::open(&path).expect("it was written");
    let said = succeed_fed(Command::new("go").args(["run", "."]).current_dir(source), input);
    said.lines().map(str::to_owned).collect()
}

#[test]
fn kstatus_agrees_from_the_first_moment_on() {
    let lab = Lab::new("kstatus");
    let mut seen = Vec::new();
    lab.apply("sessions", json!({"replicas": 2}));
    seen.push(("nobody has looked at it", lab.cache("sessions"), "InProgress"));

    let mut operator = lab.operator().start_once();
    seen.push(("all nodes are ready", lab.until_ready("sessions"), "Current"));

    // It gives up its Lease, so that the next one need not wait for its end.
    operator.signal(Signal::TERM);
    assert!(operator.wait().success());
    lab.edit("sessions", &json!({"replicas": 3}));
    seen.push(("nobody has looked at the change", lab.cache("sessions"), "InProgress"));

    let _operator = lab.operator().start();
    seen.push(("the change was made", lab.until_ready("sessions"), "Current"));

    lab.kubelet.lose_image("lost");
    lab.edit("sessions", &json!({"image": "lost"}));
    seen.push(("an image can not be had", lab.until("sessions", "Stalled", "True ImageUnavailable"), "Failed"));

    lab.edit("sessions", &json!({"image": null}));
    seen.push(("a good image heals it", lab.until_ready("sessions"), "Current"));

    lab.kubelet.silence("sessions-1", true);
    seen.push(("a node does not answer", lab.until("sessions", "Ready", "False NodeUnreachable"), "InProgress"));

    let objects: Vec<Value> = seen.iter().map(|(_, object, _)| object.clone()).collect();
    let said = kstatus(&objects);
    let said: Vec<(&str, &str)> = seen.iter().zip(&said).map(|((when, ..), said)| (*when, said.as_str())).collect();
    let wanted: Vec<(&str, &str)> = seen.iter().map(|(when, _, wanted)| (*when, *wanted)).collect();
    assert_eq!(said, wanted);
}
