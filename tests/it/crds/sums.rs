//! Rules of several fields together.

use super::{assert_accepted, assert_refused};

#[test]
fn memory_limit_holds_capacity_an_eighth_the_process_and_the_disk_layer() {
    assert_accepted(&[
        // 256Mi + 32Mi + 128Mi + 64Mi + 64Mi
        "{resources: {limits: {memory: 544Mi}}}",
        "{disk: {mode: Disabled}, resources: {limits: {memory: 416Mi}}}",
        "{memory: {capacity: 8Gi}, resources: {limits: {memory: 9472Mi}}}",
        "{writeQueue: {capacity: 100Mi}, resources: {limits: {memory: 580Mi}}}",
        "{redis: {mode: External, external: {endpoints: ['a:1']}}, disk: {mode: Disabled}, resources: {limits: {memory: 480Mi}}}",
        "{redis: {mode: Managed}, disk: {mode: Disabled}, resources: {limits: {memory: 480Mi}}}",
        "{writeQueue: {capacity: 100Mi}, disk: {mode: Disabled}, resources: {limits: {memory: 416Mi}}}",
    ]);
    assert_refused(&[
        (
            "{resources: {limits: {memory: 543Mi}}}",
            &[
                "spec.resources.limits.memory is 543Mi",
                "spec.memory.capacity 256Mi",
                "64Mi for RocksDB",
                "64Mi for the write queue",
                "need at least 544Mi",
            ],
        ),
        (
            "{redis: {mode: External, external: {endpoints: ['a:1']}}, disk: {mode: Disabled}, resources: {limits: {memory: 479Mi}}}",
            &["spec.resources.limits.memory is 479Mi", "64Mi for the write queue", "need at least 480Mi"],
        ),
        (
            "{redis: {mode: Managed}, disk: {mode: Disabled}, resources: {limits: {memory: 479Mi}}}",
            &["spec.resources.limits.memory is 479Mi", "64Mi for the write queue", "need at least 480Mi"],
        ),
        (
            "{writeQueue: {capacity: 100Mi}, resources: {limits: {memory: 579Mi}}}",
            &["spec.resources.limits.memory is 579Mi", "100Mi for the write queue", "need at least 580Mi"],
        ),
        (
            "{disk: {mode: Disabled}, resources: {limits: {memory: 415Mi}}}",
            &[
                "spec.resources.limits.memory is 415Mi",
                "spec.memory.capacity 256Mi",
                "128Mi for the process need at least 416Mi",
            ],
        ),
        (
            "{memory: {capacity: 8Gi}, resources: {limits: {memory: 9471Mi}}}",
            &["spec.resources.limits.memory is 9471Mi", "spec.memory.capacity 8Gi", "need at least 9472Mi"],
        ),
    ]);
}

#[test]
fn memory_request_is_at_most_the_limit_given_or_computed() {
    assert_accepted(&[
        "{resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}",
        "{resources: {requests: {memory: 544Mi}}}",
    ]);
    assert_refused(&[
        (
            "{resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}",
            &["spec.resources.requests.memory is 2Gi; it must be at most spec.resources.limits.memory, which is 1Gi"],
        ),
        (
            "{resources: {requests: {memory: 545Mi}}}",
            &["spec.resources.requests.memory is 545Mi; it must be at most the memory limit, which is 544Mi"],
        ),
    ]);
}

#[test]
fn cpu_request_is_at_most_the_limit() {
    assert_accepted(&["{resources: {requests: {cpu: 2000m}, limits: {cpu: 2}}}", "{resources: {requests: {cpu: 64}}}"]);
    assert_refused(&[
        (
            "{resources: {requests: {cpu: 2001m}, limits: {cpu: 2}}}",
            &["spec.resources.requests.cpu is 2001m; it must be at most spec.resources.limits.cpu, which is 2"],
        ),
        // The default request counts too.
        ("{resources: {limits: {cpu: 50m}}}", &["spec.resources.requests.cpu is 100m", "which is 50m"]),
    ]);
}
