//! Secrets that tests put beside a cache.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::fleet::Fleet;

/// Makes or changes a Secret of the fleet's namespace.
pub(crate) fn put(fleet: &Fleet, name: &str, texts: &Value) {
    let metadata = json!({"name": name, "namespace": fleet.namespace});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": texts});
    fleet.cluster.apply(&secret.to_string()).expect("the Secret is accepted");
}

/// Makes one with a certificate for these hosts and its key, and gives the certificate of the authority that signed it.
pub(crate) fn put_certificate(fleet: &Fleet, name: &str, hosts: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A name of its own, or OpenSSL takes what it signs for signed by themselves.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let certificate = CertificateParams::new(hosts).unwrap().signed_by(&key, &authority).unwrap();
    let texts = json!({"ca.crt": authority.pem(), "tls.crt": certificate.pem(), "tls.key": key.serialize_pem()});
    put(fleet, name, &texts);
    authority.pem()
}
