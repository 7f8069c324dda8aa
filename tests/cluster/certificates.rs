//! The cluster's certificates: two authorities and what they sign.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::error::{AtPath, ClusterError, Result};

/// Where the authorities and what they signed lie.
pub(crate) struct Certificates {
    folder: PathBuf,
    cluster: CertifiedIssuer<'static, KeyPair>,
    front_proxy: CertifiedIssuer<'static, KeyPair>,
}

/// Which authority signs.
#[derive(Clone, Copy)]
pub(crate) enum Authority {
    /// Signs servers and clients of the API.
    Cluster,
    /// Signs only the API server's own requests to extension servers: it must be another authority, or any client
    /// of the API could pose as anyone.
    FrontProxy,
}

/// Who a certificate is for.
pub(crate) struct Subject<'a> {
    /// Name of the files.
    pub(crate) file: &'a str,
    /// Common name: the user in Kubernetes.
    pub(crate) user: &'a str,
    /// Organisation: the group in Kubernetes.
    pub(crate) group: Option<&'a str>,
    /// Addresses and names it serves at.
    pub(crate) served_at: Vec<SanType>,
}

/// A served address.
pub(crate) fn address(address: IpAddr) -> SanType {
    SanType::IpAddress(address)
}

/// A served name.
pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("names here are plain ASCII"))
}

// === impl Certificates ===

impl Certificates {
    /// Makes both authorities and the key of service accounts in `folder`.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).at("creating", folder)?;
        let cluster = authority("kubernetes")?;
        let front_proxy = authority("front-proxy")?;
        write_secret(&folder.join("ca.crt"), &cluster.pem())?;
        write_secret(&folder.join("ca.key"), &cluster.key().serialize_pem())?;
        write_secret(&folder.join("front-proxy-ca.crt"), &front_proxy.pem())?;
        let accounts = key("service accounts")?;
        write_secret(&folder.join("accounts.key"), &accounts.serialize_pem())?;
        write_secret(&folder.join("accounts.pub"), &accounts.public_key_pem())?;
        Ok(Self { folder: folder.to_owned(), cluster, front_proxy })
    }

    /// Signs a certificate for `subject` and writes it and its key as `<file>.crt` and `<file>.key`.
    pub(crate) fn sign(&self, by: Authority, subject: Subject<'_>) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names = subject.served_at;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let issuer = match by {
            Authority::Cluster => &self.cluster,
            Authority::FrontProxy => &self.front_proxy,
        };
        let key = key(subject.user)?;
        let certificate = params.signed_by(&key, issuer).map_err(|source| failed(subject.user, source))?;
        write_secret(&self.folder.join(format!("{}.crt", subject.file)), &certificate.pem())?;
        write_secret(&self.folder.join(format!("{}.key", subject.file)), &key.serialize_pem())
    }
}

/// The text of a kubeconfig for the client whose certificate lies in `pki` as `<user>.crt`; the files are named, not
/// embedded, except for the administrator's, which a person may copy elsewhere.
pub(crate) fn kubeconfig(pki: &Path, user: &str, server: &str) -> String {
    let pki = pki.display();
    let user = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tieredcache", "cluster": {
            "server": server, "certificate-authority": format!("{pki}/ca.crt"),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": format!("{pki}/{user}.crt"), "client-key": format!("{pki}/{user}.key"),
        }}],
        "contexts": [{"name": "tieredcache", "context": {"cluster": "tieredcache", "user": user}}],
        "current-context": "tieredcache",
    });
    format!("{user:#}\n")
}

/// Writes a file that only its owner can read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file =
        fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).at("creating", path)?;
    file.write_all(text.as_bytes()).at("writing", path)
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, key(name)?).map_err(|source| failed(name, source))
}

fn key(subject: &str) -> Result<KeyPair> {
    KeyPair::generate().map_err(|source| failed(subject, source))
}

fn failed(subject: &str, source: rcgen::Error) -> ClusterError {
    ClusterError::Certificate { subject: subject.to_owned(), source }
}
