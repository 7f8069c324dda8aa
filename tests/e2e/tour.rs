//! The tour of README.md, `make demo`: it checks what it shows, on a cluster of its own, and the steps after it are those
//! of readers who repeat it, take it on a Kubernetes of their own, and have it removed.

use std::{path::Path, process::Command, time::Instant};

use crate::cluster::life::{TakenDown, another};
use crate::turn::aside;

const STEPS: [&str; 3] = ["tests/demo.sh", "tests/demo/current.sh", "tests/demo.sh down"];

#[test]
fn the_tour_of_the_readme_shows_what_it_says_also_on_another_kubernetes_and_leaves_nothing() {
    let _turn = aside();
    let own = TakenDown(another("tour"));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for step in STEPS {
        let started = Instant::now();
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec {step} 2>&1")]).env("CLUSTER", own.0.layout().name());
        let output = command.current_dir(workspace).output().unwrap();
        println!("{}\n{step} took {:.0} s", String::from_utf8_lossy(&output.stdout), started.elapsed().as_secs_f64());
        assert!(output.status.success(), "{step} ends with {}", output.status);
    }
    assert_eq!(own.0.processes(), Vec::new(), "its cluster is gone");
}
