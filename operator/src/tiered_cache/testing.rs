//! Fixtures: minimal YAML → objects, and nodes in every state.

use crds::node_report::{HealthReport, HealthState, LayerName, LayerReport, NodeReport};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::{
    Settings, Watched,
    build::Revisions,
    diagnose::{Trouble, TroubleKind},
    lineage::Lineage,
    observe::Node,
    status::LAYERS,
    validate::{ValidBackplane, validate},
};

/// So many seconds after a fixed moment.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// Reads any object from YAML.
pub(super) fn from_yaml<T: DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap()
}

/// The cache `default/sessions` with this spec.
pub(super) fn cache(spec: &str) -> Watched {
    from_yaml(&format!(
        "{{apiVersion: tieredcache.io/v1alpha1, kind: TieredCache, metadata: {{name: sessions, namespace: default, \
         uid: cache-uid, generation: 7}}, spec: {spec}}}"
    ))
}

/// Settings of the tests.
pub(super) fn settings() -> Settings {
    Settings { image_repository: "nodes".to_owned() }
}

/// What the nodes of [`NodeFixture`] should run.
pub(super) fn revisions() -> Revisions {
    Revisions { config: "new-config".to_owned(), template: "new-template".to_owned(), lineage: lineage() }
}

/// Of the Redis whose log they should follow.
pub(super) fn lineage() -> Lineage {
    Lineage::parse("managed/1800000000").unwrap()
}

/// What nodes with a Redis promise each other unless the spec says otherwise.
pub(super) fn backplane() -> ValidBackplane {
    validate(&cache("{redis: {mode: Managed}}"), &settings()).unwrap().backplane.unwrap()
}

/// A node of the fleet `sessions`, serving unless said otherwise.
#[derive(Clone, Debug)]
pub(super) struct NodeFixture(Node);

// === impl NodeFixture ===

impl NodeFixture {
    /// A node of the current template.
    pub(super) fn current(ordinal: i32) -> Self {
        let revisions = revisions();
        Self::with(ordinal, &revisions.template, &revisions.config)
    }

    /// A node of an earlier template.
    pub(super) fn outdated(ordinal: i32) -> Self {
        Self::with(ordinal, "old-template", "old-config")
    }

    fn with(ordinal: i32, template: &str, config: &str) -> Self {
        let name = format!("sessions-{ordinal}");
        let report = NodeReport {
            node: name.clone(),
            version: "0.1.0".to_owned(),
            config_revision: config.to_owned(),
            ready: true,
            layers: LAYERS.map(healthy).to_vec(),
            ..NodeReport::default()
        };
        Self(Node {
            pod_uid: format!("uid-{ordinal}"),
            name,
            ordinal,
            pod_ready: true,
            terminating: false,
            template: Some(template.to_owned()),
            lineage: Some(lineage()),
            trouble: None,
            report: Some(report),
        })
    }

    /// It has not answered yet.
    pub(super) fn starting(mut self) -> Self {
        self.0.pod_ready = false;
        self.0.report = None;
        self
    }

    /// It is on its way down.
    pub(super) fn terminating(mut self) -> Self {
        self.0.terminating = true;
        self
    }

    /// Its image is missing.
    pub(super) fn in_trouble(self) -> Self {
        let message = format!("{} can not get image \"nodes:9\"", self.0.name);
        let mut node = self.starting();
        node.0.trouble = Some(Trouble { kind: TroubleKind::ImageUnavailable, message });
        node
    }

    /// The kubelet calls it ready, and it does not answer.
    pub(super) fn unreachable(mut self) -> Self {
        let message = format!("{} does not answer", self.0.name);
        self.0.report = None;
        self.0.trouble = Some(Trouble { kind: TroubleKind::NodeUnreachable, message });
        self
    }

    /// It was made for this lineage.
    pub(super) fn following(mut self, lineage: &str) -> Self {
        self.0.lineage = Lineage::parse(lineage);
        self
    }

    /// Its pod does not say which lineage it was made for.
    pub(super) fn without_lineage(mut self) -> Self {
        self.0.lineage = None;
        self
    }

    /// It runs another configuration than its template says.
    pub(super) fn with_other_configuration(mut self) -> Self {
        if let Some(report) = &mut self.0.report {
            report.config_revision = "other".to_owned();
        }
        self
    }

    /// One of its layers is not healthy.
    pub(super) fn with_layer(mut self, name: LayerName, state: HealthState, reason: &str) -> Self {
        for layer in self.0.report.iter_mut().flat_map(|report| &mut report.layers) {
            if layer.name == name {
                let message = format!("{reason} in words");
                layer.health = HealthReport { state, reason: reason.to_owned(), message, since_unix_ms: 0 };
            }
        }
        self
    }

    /// It has counted this in its backplane.
    pub(super) fn with_extra(mut self, name: &str, value: u64) -> Self {
        for layer in self.0.report.iter_mut().flat_map(|report| &mut report.layers) {
            if layer.name == LayerName::Backplane {
                layer.stats.extras.insert(name.to_owned(), value);
            }
        }
        self
    }

    /// It is not ready, and says why.
    pub(super) fn waiting_for(mut self, what: &str) -> Self {
        self.0.pod_ready = false;
        if let Some(report) = &mut self.0.report {
            report.ready = false;
            report.waiting_for = vec![what.to_owned()];
        }
        self
    }

    /// Its version has no such layer.
    pub(super) fn without_layer(mut self, name: LayerName) -> Self {
        if let Some(report) = &mut self.0.report {
            report.layers.retain(|layer| layer.name != name);
        }
        self
    }

    /// The node.
    pub(super) fn build(&self) -> Node {
        self.0.clone()
    }
}

fn healthy(name: LayerName) -> LayerReport {
    let health =
        HealthReport { state: HealthState::Healthy, reason: "AsExpected".to_owned(), ..HealthReport::default() };
    LayerReport { name, health, ..LayerReport::default() }
}
