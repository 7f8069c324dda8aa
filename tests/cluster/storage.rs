//! Storage: the test driver's names and the storage classes.

use std::path::PathBuf;

use super::layout::Layout;

/// Name of the storage driver.
pub(crate) const DRIVER: &str = "xfs.tieredcache.test";

/// Folder of the volumes' files; a folder per node below it.
pub(crate) fn volumes(layout: &Layout) -> PathBuf {
    layout.root().join("volumes")
}

/// The driver and two classes: `standard`, the default, whose volumes grow; `fixed`, whose volumes do not.
pub(crate) fn manifest() -> String {
    let class = |name: &str, is_default: bool, grows: bool| {
        format!(
            "---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata:\n  name: {name}\n  annotations:\n    \
             storageclass.kubernetes.io/is-default-class: \"{is_default}\"\nprovisioner: {DRIVER}\n\
             volumeBindingMode: WaitForFirstConsumer\nallowVolumeExpansion: {grows}\nreclaimPolicy: Delete\n"
        )
    };
    let driver = format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata:\n  name: {DRIVER}\nspec:\n  \
         attachRequired: false\n  podInfoOnMount: false\n  fsGroupPolicy: File\n"
    );
    driver + &class("standard", true, true) + &class("fixed", false, false)
}
