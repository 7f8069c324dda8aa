use crds::node_report::{HealthState, LayerName};

use super::*;
use crate::tiered_cache::{
    diagnose::OF_NODES,
    lineage::Lineage,
    rollout::{Block, Rule},
    testing::{NodeFixture as N, at, backplane, lineage, revisions},
};

fn identity() -> Identity {
    Identity {
        name: "sessions".to_owned(),
        namespace: "default".to_owned(),
        uid: "cache-uid".to_owned(),
        generation: 7,
    }
}

fn applied(step: Step) -> Verdict {
    Verdict::Applied { revisions: revisions(), conflicts: Vec::new(), step, growth: Growth::default() }
}

fn status_of(replicas: i32, nodes: &[N], verdict: Verdict) -> TieredCacheStatus {
    let nodes: Vec<Node> = nodes.iter().map(N::build).collect();
    let (identity, backplane, lineage) = (identity(), backplane(), lineage());
    let terms = Terms { backplane: Some(&backplane), lineage: &lineage };
    let view = View { identity: &identity, replicas, nodes: &nodes, absent: &[], redis_trouble: None, terms, verdict };
    compose(&view, &TieredCacheStatus::default(), at(0))
}

fn settled(nodes: &[N]) -> TieredCacheStatus {
    status_of(3, nodes, applied(Step::Settled))
}

fn condition<'a>(status: &'a TieredCacheStatus, kind: &str) -> &'a Condition {
    status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
}

/// Status and reason, as in `True AllNodesReady`.
fn says(status: &TieredCacheStatus, kind: &str) -> String {
    let condition = condition(status, kind);
    format!("{} {}", condition.status, condition.reason)
}

/// What kstatus, and Flux with it, makes of a status: its rules for custom resources. A black-box test asks it itself.
fn kstatus(status: &TieredCacheStatus, generation: i64) -> &'static str {
    if status.observed_generation.is_some_and(|seen| seen != generation) {
        return "InProgress";
    }
    let state = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
    let is = |kind: &str, wanted: &str| state(kind).is_some_and(|condition| condition.status == wanted);
    match (is("Stalled", "True"), is("Ready", "True") || state("Ready").is_none()) {
        (true, _) => "Failed",
        (false, true) => "Current",
        (false, false) => "InProgress",
    }
}

#[test]
fn a_cache_that_nobody_has_looked_at_is_not_taken_for_one_that_is_as_it_should_be() {
    let crd = serde_json::to_value(crds::tiered_cache::crd()).unwrap();
    let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"];
    let status: TieredCacheStatus = serde_json::from_value(status.clone()).expect("every version has a default");
    assert_eq!(kstatus(&status, 1), "InProgress");
    assert_eq!(kstatus(&TieredCacheStatus::default(), 1), "Current", "as kstatus has it");
}

#[test]
fn a_fleet_that_serves_is_ready_and_nothing_else() {
    let status = settled(&[N::current(0), N::current(1), N::current(2)]);
    assert_eq!(says(&status, "Ready"), "True AllNodesReady");
    assert_eq!(says(&status, "Progressing"), "False Settled");
    assert_eq!(says(&status, "Degraded"), "False AsExpected");
    assert_eq!(says(&status, "Stalled"), "False AsExpected");
    for kind in LAYERS.into_iter().filter_map(condition_type) {
        assert_eq!(says(&status, kind), "True AsExpected");
    }
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, 3, 3));
    assert_eq!(status.version.as_deref(), Some("0.1.0"));
    assert_eq!(status.selector, "app.kubernetes.io/instance=sessions,app.kubernetes.io/name=tieredcache");
    assert_eq!(kstatus(&status, 7), "Current");
}

#[test]
fn every_condition_is_there_at_the_first_visit_with_reason_message_and_generation() {
    let verdicts =
        [applied(Step::Settled), Verdict::Refused("because".to_owned()), Verdict::Failed("because".to_owned())];
    for verdict in verdicts {
        let status = status_of(3, &[], verdict);
        assert_eq!(status.conditions.len(), 10);
        for condition in &status.conditions {
            assert!(!condition.reason.is_empty() && !condition.message.is_empty(), "{condition:?}");
            assert_eq!(condition.observed_generation, Some(7));
        }
        assert_eq!(status.observed_generation, Some(7));
    }
}

#[test]
fn a_new_fleet_is_starting_and_neither_degraded_nor_stalled() {
    let status = settled(&[N::current(0).starting(), N::current(1)]);
    assert_eq!(says(&status, "Ready"), "False Starting");
    assert!(condition(&status, "Ready").message.contains("1 of 3"), "{:?}", status.conditions);
    assert_eq!(says(&status, "Progressing"), "True Starting");
    assert_eq!(says(&status, "Degraded"), "False AsExpected");
    assert_eq!(kstatus(&status, 7), "InProgress");
    assert_eq!(says(&settled(&[]), "DiskHealthy"), "Unknown NoReport");
}

#[test]
fn a_fleet_is_not_ready_while_one_node_runs_an_earlier_configuration() {
    for node in [N::outdated(2), N::current(2).with_other_configuration()] {
        let status = settled(&[N::current(0), N::current(1), node]);
        assert_eq!(condition(&status, "Ready").status, "False");
        assert_eq!(condition(&status, "Progressing").status, "True");
        assert_eq!(kstatus(&status, 7), "InProgress");
    }
}

#[test]
fn a_rollout_that_is_held_back_names_rule_and_node() {
    let block = Block { rule: Rule::NewNodeMustServe, node: "sessions-2".to_owned() };
    let nodes = [N::outdated(0), N::outdated(1), N::current(2).in_trouble()];
    let status = status_of(3, &nodes, applied(Step::Blocked(block)));
    assert_eq!(says(&status, "Progressing"), "True RollingOut");
    let message = &condition(&status, "Progressing").message;
    assert!(message.contains("stopped at sessions-2"), "{message}");
    assert_eq!(says(&status, "Ready"), "False ImageUnavailable");
    assert_eq!(says(&status, "Degraded"), "True ImageUnavailable");
    assert_eq!(says(&status, "Stalled"), "True ImageUnavailable");
    assert_eq!(kstatus(&status, 7), "Failed");
    assert_eq!((status.ready_replicas, status.updated_replicas), (2, 1));
}

#[test]
fn a_node_that_is_not_made_is_starting_at_first_and_then_waits_for_a_person() {
    let trouble = crate::tiered_cache::diagnose::not_created("sessions-2", "sessions", &OF_NODES);
    let (identity, nodes) = (identity(), [N::current(0), N::current(1)].map(|node| node.build()));
    let terms = Terms { backplane: None, lineage: &lineage() };
    let (absent, verdict) = (&[("sessions-2".to_owned(), trouble)], applied(Step::Settled));
    let view = View { identity: &identity, replicas: 3, nodes: &nodes, absent, redis_trouble: None, terms, verdict };
    let status = compose(&view, &TieredCacheStatus::default(), at(0));
    for (kind, words) in [("Ready", "False"), ("Degraded", "True"), ("Stalled", "True")] {
        assert_eq!(says(&status, kind), format!("{words} PodNotCreated"));
    }
    let status = compose(&View { absent: &[], ..view }, &TieredCacheStatus::default(), at(0));
    assert_eq!(
        (says(&status, "Ready"), says(&status, "Stalled")),
        ("False Starting".into(), "False AsExpected".into())
    );
}

/// A node that follows the log of the Redis of before.
fn stranger(ordinal: i32) -> N {
    N::outdated(ordinal).following("external-a/1700000000")
}

#[test]
fn a_change_to_another_redis_is_told_until_the_last_node_of_the_first_is_gone() {
    let before = settled(&[stranger(0), stranger(1), N::outdated(2)]);
    for kind in ["Ready", "Progressing"] {
        assert!(says(&before, kind).ends_with(" SwitchingRedis"), "{}", says(&before, kind));
    }
    let message = &condition(&before, "Progressing").message;
    let how = "to be replaced, all together, because they follow the log of another Redis: sessions-0, sessions-1; one at \
               a time: sessions-2";
    assert_eq!(message, how);
    assert_eq!(before.nodes[0].message, "is to be replaced: it follows the log of another Redis");
    let going = settled(&[stranger(0).terminating(), stranger(1).terminating(), N::current(2)]);
    assert_eq!(says(&going, "Degraded"), "False AsExpected");
    let message = &condition(&going, "Degraded").message;
    let holds = "a change is under way: on sessions-0, sessions-1 the log of another Redis is followed: invalidations do not \
                 reach all nodes until these are replaced";
    assert_eq!(message, holds);
    assert_eq!(says(&going, "BackplaneHealthy"), "True AsExpected");
    assert_eq!(condition(&going, "BackplaneHealthy").message, holds.replace("a change is under way: ", ""));
    assert_eq!(says(&settled(&[N::current(0).starting(), N::current(2)]), "Progressing"), "True Starting");
}

#[test]
fn nodes_of_two_logs_that_serve_side_by_side_are_a_fault_of_the_backplane() {
    let nodes = [stranger(0), N::current(1), N::current(2)];
    let status = settled(&nodes);
    assert_eq!(says(&status, "BackplaneHealthy"), "False AnotherLog");
    assert_eq!(condition(&status, "BackplaneHealthy").message, "sessions-0: the log of another Redis is followed");
    assert_eq!(says(&status, "Degraded"), "True BackplaneDegraded");
    let message = &condition(&status, "Degraded").message;
    assert!(message.ends_with("invalidations do not reach all nodes until these are replaced"), "{message}");
    // Also when they can not be stopped; and it stays as it is while nothing changes.
    let status = status_of(3, &nodes, Verdict::Failed("could not delete Pod sessions-0".to_owned()));
    assert_eq!(says(&status, "BackplaneHealthy"), "False AnotherLog");
    let message = &condition(&status, "Degraded").message;
    assert!(
        message.contains("could not delete Pod sessions-0. What holds: on sessions-0 the log of another"),
        "{message}"
    );
    let (identity, backplane, lineage) = (identity(), backplane(), lineage());
    let nodes = nodes.map(|node| node.build());
    let terms = Terms { backplane: Some(&backplane), lineage: &lineage };
    let verdict = applied(Step::Settled);
    let view =
        View { identity: &identity, replicas: 3, nodes: &nodes, absent: &[], redis_trouble: None, terms, verdict };
    let first = compose(&view, &TieredCacheStatus::default(), at(0));
    assert_eq!(compose(&view, &first, at(100)), first);
}

#[test]
fn a_node_that_does_not_answer_is_not_ready_and_its_layers_are_unknown() {
    let status = settled(&[N::current(0), N::current(1).unreachable(), N::current(2)]);
    assert_eq!(says(&status, "Ready"), "False NodeUnreachable");
    assert_eq!(says(&status, "Degraded"), "True NodeUnreachable");
    assert_eq!(says(&status, "Progressing"), "False Waiting");
    assert_eq!(says(&status, "Stalled"), "False AsExpected");
    assert_eq!(says(&status, "DiskHealthy"), "Unknown NodeUnreachable");
    assert!(!status.nodes[1].ready && !status.nodes[1].message.is_empty());
    assert_eq!(status.layers[0].nodes_healthy, 2);
}

#[test]
fn a_sick_layer_degrades_and_leaves_the_fleet_ready_and_beats_an_unknown_one() {
    let sick = N::current(1).with_layer(LayerName::Disk, HealthState::Degraded, "DiskFull");
    let status = settled(&[N::current(0), sick.clone(), N::current(2)]);
    assert_eq!(says(&status, "Ready"), "True AllNodesReady");
    assert_eq!(says(&status, "Degraded"), "True DiskDegraded");
    assert_eq!(says(&status, "DiskHealthy"), "False DiskFull");
    assert_eq!(condition(&status, "DiskHealthy").message, "sessions-1: DiskFull in words");
    assert_eq!(says(&status, "MemoryHealthy"), "True AsExpected");
    assert_eq!(status.nodes[1].unhealthy_layers, [LayerName::Disk]);
    let message = &condition(&status, "Degraded").message;
    assert!(message.starts_with("sessions-1: DiskFull in words. What holds: on sessions-1 reads go on;"), "{message}");
    let status = settled(&[N::current(0).unreachable(), sick, N::current(2)]);
    assert_eq!(says(&status, "DiskHealthy"), "False DiskFull");
}

#[test]
fn a_fleet_whose_memory_does_not_work_is_not_ready() {
    let sick = N::current(1).with_layer(LayerName::Memory, HealthState::Unavailable, "Broken");
    assert_eq!(says(&settled(&[N::current(0), sick, N::current(2)]), "Ready"), "False MemoryUnavailable");
}

#[test]
fn a_layer_that_is_switched_off_is_healthy_by_choice() {
    let off = |ordinal| N::current(ordinal).with_layer(LayerName::Disk, HealthState::Disabled, "Disabled");
    let status = settled(&[off(0), off(1), off(2)]);
    assert_eq!(says(&status, "DiskHealthy"), "True Disabled");
    let disk = status.layers.iter().find(|layer| layer.name == LayerName::Disk).unwrap();
    assert_eq!(disk.health, HealthState::Disabled);
    assert_eq!(says(&status, "Degraded"), "False AsExpected");
}

#[test]
fn a_node_on_its_way_up_or_down_is_no_news_about_layers() {
    for node in [N::current(2).starting(), N::current(2).terminating()] {
        let status = settled(&[N::current(0), N::current(1), node]);
        assert_eq!(says(&status, "DiskHealthy"), "True AsExpected");
    }
}

#[test]
fn nothing_is_ready_before_the_last_surplus_node_is_gone() {
    let nodes = [N::current(0), N::current(1), N::current(2), N::current(3).terminating()];
    let status = settled(&nodes);
    assert_eq!(says(&status, "Ready"), "False ScalingDown");
    assert_eq!(says(&status, "Progressing"), "True ScalingDown");
    let status = status_of(0, &[], applied(Step::Settled));
    assert_eq!(says(&status, "Ready"), "True ScaledToZero");
}

fn growing(growth: Growth) -> TieredCacheStatus {
    let verdict = Verdict::Applied { revisions: revisions(), conflicts: Vec::new(), step: Step::Settled, growth };
    status_of(3, &[N::current(0), N::current(1), N::current(2)], verdict)
}

#[test]
fn volumes_that_grow_are_progress_while_the_fleet_is_ready() {
    let status = growing(Growth { growing: vec!["data-a-0 has 1Gi of 2Gi".to_owned()], refused: None });
    assert_eq!(says(&status, "Progressing"), "True GrowingVolumes");
    assert!(condition(&status, "Progressing").message.contains("data-a-0 has 1Gi of 2Gi"));
    for (kind, words) in [("Ready", "True AllNodesReady"), ("Degraded", "False AsExpected")] {
        assert_eq!(says(&status, kind), words);
    }
}

#[test]
fn volumes_that_may_not_grow_wait_for_a_person_while_the_fleet_is_ready() {
    let status = growing(Growth { growing: Vec::new(), refused: Some("because".to_owned()) });
    for kind in ["Degraded", "Stalled"] {
        assert_eq!(says(&status, kind), "True VolumeNotGrown");
        assert!(condition(&status, kind).message.starts_with("because"), "{:?}", status.conditions);
    }
    assert_eq!(says(&status, "Ready"), "True AllNodesReady");
    assert_eq!(says(&status, "Progressing"), "False Settled");
}

#[test]
fn a_dead_redis_degrades_the_cache_and_leaves_it_ready() {
    let ill = |node: N| node.with_layer(LayerName::Redis, HealthState::Unavailable, "Unreachable");
    let status = settled(&[N::current(0), ill(N::current(1)), ill(N::current(2))]);
    assert_eq!(says(&status, "RedisHealthy"), "False Unreachable");
    assert_eq!(condition(&status, "RedisHealthy").message, "sessions-1: Unreachable in words");
    assert_eq!(says(&status, "Degraded"), "True RedisUnavailable");
    assert_eq!(says(&status, "Ready"), "True AllNodesReady");
    let layer = status.layers.iter().find(|layer| layer.name == LayerName::Redis).unwrap();
    assert_eq!((layer.health, layer.nodes_healthy, layer.nodes_total), (HealthState::Unavailable, 1, 3));
    assert_eq!(layer.since, Some(Time(at(0))));
}

fn backplane_of(status: &TieredCacheStatus) -> &LayerStatus {
    status.layers.iter().find(|layer| layer.name == LayerName::Backplane).unwrap()
}

#[test]
fn each_state_of_the_backplane_is_told_with_its_reason_and_what_then_holds() {
    for (state, reason, words) in [
        (HealthState::Unavailable, "CatchingUp", "until the log has been caught up with"),
        (HealthState::Unavailable, "Fenced", "as if absent"),
        (HealthState::Degraded, "LogLags", "up to 3s late"),
        (HealthState::Degraded, "LogGap", "memory and disk were given up"),
    ] {
        let ill = N::current(1).with_layer(LayerName::Backplane, state, reason);
        let status = settled(&[N::current(0), ill, N::current(2)]);
        assert_eq!(says(&status, "BackplaneHealthy"), format!("False {reason}"));
        assert_eq!(says(&status, "Degraded"), format!("True Backplane{state:?}"));
        let message = &condition(&status, "Degraded").message;
        assert!(
            message.starts_with(&format!("sessions-1: {reason} in words. What holds: on sessions-1 ")),
            "{message}"
        );
        assert!(message.contains(words), "{message}");
        assert_eq!(says(&status, "Ready"), "True AllNodesReady");
        let layer = backplane_of(&status);
        assert_eq!((layer.health, layer.nodes_healthy, layer.nodes_total), (state, 2, 3));
        assert!(status.nodes[1].message.contains(words), "{:?}", status.nodes);
        assert_eq!(status.nodes[0].message, "");
    }
}

#[test]
fn where_redis_is_ill_it_is_named_as_the_cause_and_the_fence_as_what_follows() {
    let ill = |ordinal| {
        let node = N::current(ordinal).with_layer(LayerName::Redis, HealthState::Unavailable, "Unreachable");
        node.with_layer(LayerName::Backplane, HealthState::Unavailable, "Fenced").with_extra("leaseAgeMs", 12_000)
    };
    let status = settled(&[ill(0), ill(1), ill(2)]);
    assert_eq!(says(&status, "Degraded"), "True RedisUnavailable");
    let message = &condition(&status, "Degraded").message;
    for words in ["sessions-0: Unreachable in words; sessions-0: Fenced in words", "up to 1m3s old are served"] {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_node_that_reads_the_log_before_it_is_given_clients_is_starting_and_says_how_far_it_is() {
    let left = "the invalidation log is being caught up with, 7000 records are left";
    let node = N::current(2).with_layer(LayerName::Backplane, HealthState::Unavailable, "CatchingUp").waiting_for(left);
    let status = settled(&[N::current(0), N::current(1), node]);
    assert_eq!(says(&status, "Ready"), "False Starting");
    assert_eq!(says(&status, "Degraded"), "False AsExpected");
    assert_eq!(says(&status, "BackplaneHealthy"), "True AsExpected");
    assert_eq!(status.nodes[2].message, format!("is starting: {left}"));
}

#[test]
fn the_guarantee_is_told_also_while_nothing_is_wrong() {
    let status = settled(&[N::current(0), N::current(1), N::current(2)]);
    let promise = "invalidations reach every node within 250 ms";
    for kind in ["Degraded", "BackplaneHealthy"] {
        assert!(condition(&status, kind).message.contains(promise), "{:?}", status.conditions);
    }
    let off = |ordinal| N::current(ordinal).with_layer(LayerName::Backplane, HealthState::Disabled, "Disabled");
    let nodes = [off(0).build()];
    let (identity, verdict) = (identity(), applied(Step::Settled));
    let view = View {
        identity: &identity,
        replicas: 1,
        nodes: &nodes,
        absent: &[],
        redis_trouble: None,
        terms: Terms { backplane: None, lineage: &Lineage::default() },
        verdict,
    };
    let status = compose(&view, &TieredCacheStatus::default(), at(0));
    assert_eq!(says(&status, "BackplaneHealthy"), "True Disabled");
    for kind in ["Degraded", "BackplaneHealthy"] {
        let message = &condition(&status, kind).message;
        assert!(message.contains("nodes do not share invalidations: spec.redis.mode is Disabled"), "{message}");
    }
}

#[test]
fn what_keeps_redis_from_running_is_said_in_place_of_what_the_nodes_see() {
    let message = "sessions-redis-0 can not get image \"redis:9\"".to_owned();
    let trouble = Trouble { kind: crate::tiered_cache::diagnose::TroubleKind::ImageUnavailable, message };
    let compose_with = |state| {
        let nodes = vec![N::current(0).with_layer(LayerName::Redis, state, "Unreachable").build()];
        let (identity, verdict) = (identity(), applied(Step::Settled));
        let redis_trouble = Some(trouble.clone());
        let view = View {
            identity: &identity,
            replicas: 1,
            nodes: &nodes,
            absent: &[],
            redis_trouble,
            terms: Terms { backplane: None, lineage: &Lineage::default() },
            verdict,
        };
        compose(&view, &TieredCacheStatus::default(), at(0))
    };
    let status = compose_with(HealthState::Unavailable);
    assert_eq!(says(&status, "RedisHealthy"), "False ImageUnavailable");
    assert_eq!(condition(&status, "RedisHealthy").message, trouble.message);
    assert_eq!(says(&status, "Degraded"), "True RedisUnavailable");
    assert_eq!(says(&status, "Stalled"), "True ImageUnavailable");
    assert_eq!(says(&status, "Ready"), "True AllNodesReady");
    let spare = compose_with(HealthState::Healthy);
    assert_eq!(says(&spare, "RedisHealthy"), "True AsExpected", "another one serves");
    assert_eq!(says(&spare, "Degraded"), "True ImageUnavailable", "but none would take its place");
}

#[test]
fn a_layer_that_no_version_that_runs_knows_is_switched_off() {
    let without = |ordinal| N::current(ordinal).without_layer(LayerName::TagIndex);
    let status = settled(&[without(0), without(1), without(2)]);
    assert_eq!(says(&status, "TagIndexHealthy"), "True Disabled");
    assert_eq!(says(&status, "Degraded"), "False AsExpected");
    // In the middle of an upgrade what the new nodes say counts.
    let ill = N::current(2).with_layer(LayerName::TagIndex, HealthState::Degraded, "Full");
    assert_eq!(says(&settled(&[without(0), without(1), ill]), "TagIndexHealthy"), "False Full");
}

#[test]
fn a_spec_that_can_not_be_acted_on_leaves_the_fleet_and_says_why() {
    let status = status_of(3, &[N::current(0), N::current(1), N::current(2)], Verdict::Refused("x is y".to_owned()));
    for kind in ["Ready", "Degraded", "Stalled"] {
        assert_eq!(condition(&status, kind).reason, "InvalidSpec");
        assert_eq!(condition(&status, kind).message, "x is y");
    }
    assert_eq!(kstatus(&status, 7), "Failed");
    assert_eq!(status.ready_replicas, 3);
}

#[test]
fn an_object_in_the_way_is_named_with_its_owner_and_the_way_out() {
    let conflict = Conflict { object: "Service sessions".to_owned(), owner: "Deployment web".to_owned() };
    let verdict = Verdict::Applied {
        revisions: revisions(),
        conflicts: vec![conflict],
        step: Step::Settled,
        growth: Growth::default(),
    };
    let status = status_of(3, &[], verdict);
    assert_eq!(says(&status, "Ready"), "False ResourceConflict");
    let message = &condition(&status, "Stalled").message;
    for words in ["Service sessions belongs to Deployment web", "deleted or renamed"] {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn the_same_view_gives_the_same_status_for_ever_and_times_move_only_with_states() {
    let nodes = [N::current(0), N::current(1), N::current(2)].map(|node| node.build());
    let identity = identity();
    let verdict = applied(Step::Settled);
    let view = View {
        identity: &identity,
        replicas: 3,
        nodes: &nodes,
        absent: &[],
        redis_trouble: None,
        terms: Terms { backplane: None, lineage: &Lineage::default() },
        verdict,
    };
    let first = compose(&view, &TieredCacheStatus::default(), at(0));
    let second = compose(&view, &first, at(100));
    assert_eq!(first, second);
    let shaken = [N::current(0), N::current(1), N::current(2).unreachable()].map(|node| node.build());
    let third = compose(&View { nodes: &shaken, ..view.clone() }, &second, at(200));
    assert_eq!(condition(&third, "Ready").last_transition_time, Time(at(200)));
    assert_eq!(condition(&third, "Progressing").last_transition_time, Time(at(0)));
}

#[test]
fn a_status_survives_the_api() {
    let status = settled(&[N::current(0), N::outdated(1), N::current(2).in_trouble()]);
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(serde_json::from_value::<TieredCacheStatus>(json).unwrap(), status);
}

#[test]
fn versions_are_ordered_as_numbers_and_a_pre_release_comes_before_its_release() {
    assert!(version_order("0.9.0") < version_order("0.10.0"));
    assert!(version_order("1.0.0-rc.1") < version_order("1.0.0"));
}

#[test]
fn long_words_are_cut_at_a_character() {
    assert_eq!(cut("ä".repeat(10), 8), "ää…");
    assert_eq!(cut("short".to_owned(), 8), "short");
}
