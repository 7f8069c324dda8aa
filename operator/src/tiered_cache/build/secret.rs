//! Secrets as files in a node's pod: the kubelet reads them there, and nobody else.

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};

/// Readable by the pod's group alone, which the kubelet gives to the files.
const MODE: i32 = 0o440;

/// Some keys of a Secret as files of a folder.
pub(super) fn mounted<'a>(
    volume: &str,
    secret: &str,
    items: impl Iterator<Item = (&'a str, &'static str)>,
    dir: &str,
) -> (Volume, VolumeMount) {
    let items =
        items.map(|(key, path)| KeyToPath { key: key.to_owned(), path: path.to_owned(), ..KeyToPath::default() });
    let source = SecretVolumeSource {
        secret_name: Some(secret.to_owned()),
        items: Some(items.collect()),
        default_mode: Some(MODE),
        ..SecretVolumeSource::default()
    };
    let mount = VolumeMount {
        name: volume.to_owned(),
        // The whole folder, not single files: those would stay as they were when the Secret changes.
        mount_path: dir.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    (Volume { name: volume.to_owned(), secret: Some(source), ..Volume::default() }, mount)
}
