//! Rules of changes: what may not be added, changed or taken away later.

use super::Stored;

#[test]
fn memory_limit_still_holds_when_only_one_side_changes() {
    let stored = Stored::new("memory-sum", "{resources: {limits: {memory: 1Gi}}}");
    stored.assert_patch_accepted(r#"{"memory": {"capacity": "640Mi"}}"#);
    stored.assert_patch_refused(
        r#"{"memory": {"capacity": "1Gi"}}"#,
        &["spec.resources.limits.memory is 1Gi", "spec.memory.capacity 1Gi", "need at least 1408Mi"],
    );
    stored.assert_patch_accepted(r#"{"memory": {"capacity": "1Gi"}, "resources": {"limits": {"memory": null}}}"#);
}

#[test]
fn disk_mode_is_fixed() {
    let stored = Stored::new("mode", "{disk: {mode: Disabled}}");
    stored.assert_patch_accepted(r#"{"disk": {"mode": "Disabled"}, "replicas": 2}"#);
    let words = ["spec.disk.mode is Disabled and can not be changed to RocksDB", "create another cache"];
    stored.assert_patch_refused(r#"{"disk": {"mode": "RocksDB"}}"#, &words);
    // Taking the field away would bring the default, which is another mode.
    stored.assert_patch_refused(r#"{"disk": {"mode": null}}"#, &words);
    stored.assert_patch_refused(r#"{"disk": null}"#, &words);
}

#[test]
fn disk_size_may_grow_and_never_shrink() {
    let stored = Stored::new("size", "{disk: {size: 2Gi}}");
    stored.assert_patch_accepted(r#"{"disk": {"size": "2048Mi"}}"#);
    stored.assert_patch_accepted(r#"{"disk": {"size": "3Gi"}}"#);
    // Taking the field away brings the default, which is larger.
    stored.assert_patch_accepted(r#"{"disk": {"size": null}}"#);
    let words = ["spec.disk.size is 2Gi and can not be made 2047Mi", "never shrink", "create another cache"];
    stored.assert_patch_refused(r#"{"disk": {"size": "2047Mi"}}"#, &words);
    let large = Stored::new("size-large", "{disk: {size: 20Gi}}");
    large.assert_patch_refused(r#"{"disk": {"size": null}}"#, &["is 20Gi and can not be made 10Gi"]);
    large.assert_patch_refused(r#"{"disk": null}"#, &["is 20Gi and can not be made 10Gi"]);
}

#[test]
fn storage_class_can_be_neither_added_nor_changed_nor_removed() {
    let without = Stored::new("class-without", "{}");
    without.assert_patch_accepted(r#"{"disk": {"maxTtl": "1h"}}"#);
    let words = ["spec.disk.storageClassName is the default class and can not be changed to fast"];
    without.assert_patch_refused(r#"{"disk": {"storageClassName": "fast"}}"#, &words);

    let with = Stored::new("class-with", "{disk: {storageClassName: fast}}");
    with.assert_patch_accepted(r#"{"disk": {"maxTtl": "1h"}}"#);
    with.assert_patch_refused(r#"{"disk": {"storageClassName": "slow"}}"#, &["is fast and can not be changed to slow"]);
    with.assert_patch_refused(
        r#"{"disk": {"storageClassName": null}}"#,
        &["is fast and can not be changed to the default class"],
    );
}

#[test]
fn the_volume_of_a_managed_redis_grows_and_stays_in_its_class_while_it_is_managed() {
    let managed =
        Stored::new("redis-volume", "{redis: {mode: Managed, managed: {storage: 2Gi, storageClassName: fast}}}");
    managed.assert_patch_accepted(r#"{"redis": {"managed": {"storage": "3Gi"}}}"#);
    managed.assert_patch_refused(
        r#"{"redis": {"managed": {"storage": "1Gi"}}}"#,
        &["spec.redis.managed.storage is 2Gi and can not be made 1Gi", "never shrink"],
    );
    // Taking a field away brings its default.
    managed.assert_patch_refused(r#"{"redis": {"managed": null}}"#, &["is 2Gi and can not be made 1Gi"]);
    for class in ["\"slow\"", "null"] {
        let patch = format!(r#"{{"redis": {{"managed": {{"storageClassName": {class}}}}}}}"#);
        managed
            .assert_patch_refused(&patch, &["storageClassName is fast and can not be changed to", "off and on again"]);
    }
    managed.assert_patch_refused(
        r#"{"redis": {"managed": {"replicas": 3}}}"#,
        &["spec.redis.managed.replicas is 1 and can not be changed to 3 while the mode is Managed", "off and on again"],
    );
    // What is switched off is gone, so the next may be another.
    managed.assert_patch_accepted(r#"{"redis": {"mode": "Disabled", "managed": {"replicas": 3}}}"#);
    let off = Stored::new("redis-off", "{redis: {managed: {storage: 2Gi}}}");
    off.assert_patch_accepted(r#"{"redis": {"managed": {"storage": "1Gi", "storageClassName": "slow"}}}"#);
    managed.assert_patch_accepted(r#"{"redis": {"mode": "Disabled", "managed": {"storage": "1Gi"}}}"#);
}
