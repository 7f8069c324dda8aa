//! Cluster DNS: a program of the control plane behind a service address.

use super::network::{CONTROL_PLANE, DNS_SERVICE};

/// The service, without a selector, and the address behind it, written by hand: no pod serves it.
pub(crate) fn manifest() -> String {
    format!(
        r#"---
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: {DNS_SERVICE}
  ports:
    - {{name: dns, port: 53, protocol: UDP}}
    - {{name: dns-tcp, port: 53, protocol: TCP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
endpoints: [{{addresses: ["{CONTROL_PLANE}"], conditions: {{ready: true}}}}]
ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
"#
    )
}
