//! The tour of README.md, `make demo`: it checks what it shows, on a cluster of its own, and the steps after it are those
//! of readers who repeat it, take it on a Kubernetes of their own, and have it removed.

use std::{path::Path, process::Command, time::Instant};

use tests::cluster::{Cluster, OPERATOR_IMAGE, Wanted, build_images};

use crate::cluster::life::{TakenDown, another};
use crate::fleet::{OPERATOR, OPERATOR_NAMESPACE};
use crate::turn::aside;

#[test]
fn the_tour_of_the_readme_shows_what_it_says_also_on_another_kubernetes_and_leaves_nothing() {
    let _turn = aside();
    let own = TakenDown(another("tour"));
    take("tests/demo.sh", &own.0);
    take("tests/demo.sh", &own.0);
    assert_operator_is_of_the_image_built_last(&own.0);
    take("tests/demo/current.sh", &own.0);
    take("tests/demo.sh down", &own.0);
    assert_eq!(own.0.processes(), Vec::new(), "its cluster is gone");
}

/// Runs a script as a person does, with the name of the cluster.
fn take(step: &str, own: &Cluster) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let started = Instant::now();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec {step} 2>&1")]).env("CLUSTER", own.layout().name());
    let output = command.current_dir(workspace).output().unwrap();
    println!("{}\n{step} took {:.0} s", String::from_utf8_lossy(&output.stdout), started.elapsed().as_secs_f64());
    assert!(output.status.success(), "{step} ends with {}", output.status);
}

/// An image that is built again has the tag of before: what the pods are annotated with makes them new ones.
fn assert_operator_is_of_the_image_built_last(own: &Cluster) {
    let annotation = "jsonpath={.spec.template.metadata.annotations.image-content}";
    let content = own.kubectl(["-n", OPERATOR_NAMESPACE, "get", OPERATOR, "-o", annotation]).unwrap();
    let archives = build_images(Wanted::All).unwrap();
    let built = archives.iter().find(|archive| archive.image.starts_with(OPERATOR_IMAGE)).unwrap();
    let built = built.path.display().to_string();
    assert!(built.ends_with(&format!("-{content}.tar")), "the operator is of {content:?}, what was built is {built}");
}
