//! The control plane: its certificates, its files and its command lines.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::audit;
use super::certificates::{Authority, Certificates, Subject, address, dns, kubeconfig, write_secret};
use super::error::{AtPath, Result};
use super::layout::Layout;
use super::network::{API_SERVICE, CONTROL_PLANE, PODS, SERVICES, Wire, inside};
use super::programs::{COREDNS, CSI_DRIVER, CSI_PROVISIONER, CSI_RESIZER, KUBERNETES};
use super::storage::{DRIVER, volumes};
use super::supervisor::Part;
use crate::ports::free_port;

/// Where the control plane's programs listen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// Address of the API server.
    pub(crate) api: Ipv4Addr,
    /// Port of the API server.
    pub(crate) api_port: u16,
    etcd_port: u16,
    etcd_peer_port: u16,
    /// The wire to the host, when there are network namespaces.
    wire: Option<Wire>,
}

/// The control plane of one cluster.
pub(crate) struct ControlPlane<'a> {
    layout: &'a Layout,
    endpoints: &'a Endpoints,
}

/// Users whose kubeconfig and certificate the control plane's programs and the administrator use.
const USERS: [(&str, &str, Option<&str>); 4] = [
    ("admin", "admin", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
];

// === impl Endpoints ===

impl Endpoints {
    /// Inside the cluster's own namespaces: the usual ports.
    pub(crate) fn inside(wire: Wire) -> Self {
        let api = wire.control_plane();
        Self { api, api_port: 6443, etcd_port: 2379, etcd_peer_port: 2380, wire: Some(wire) }
    }

    /// On the host's loopback: ports that are free now.
    pub(crate) fn loopback() -> Self {
        let [api_port, etcd_port, etcd_peer_port] = std::array::from_fn(|_| free_port());
        Self { api: Ipv4Addr::LOCALHOST, api_port, etcd_port, etcd_peer_port, wire: None }
    }

    /// The API server's address, for clients on the host and in the control plane.
    pub(crate) fn server(&self) -> String {
        format!("https://{}:{}", self.api, self.api_port)
    }
}

// === impl ControlPlane ===

impl<'a> ControlPlane<'a> {
    pub(crate) fn new(layout: &'a Layout, endpoints: &'a Endpoints) -> Self {
        Self { layout, endpoints }
    }

    /// Makes every certificate of the cluster, those of `nodes` nodes included.
    pub(crate) fn create_certificates(&self, nodes: u8) -> Result<()> {
        let pki = self.layout.pki();
        let certificates = Certificates::create(&pki)?;
        let served_at = vec![
            address(IpAddr::V4(self.endpoints.api)),
            address(IpAddr::V4(CONTROL_PLANE)),
            address(IpAddr::V4(API_SERVICE)),
            address(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            dns("localhost"),
            dns("kubernetes"),
            dns("kubernetes.default"),
            dns("kubernetes.default.svc"),
            dns("kubernetes.default.svc.cluster.local"),
        ];
        let sign = |by, file: &str, user: &str, group: Option<&str>, served_at| {
            certificates.sign(by, Subject { file, user, group, served_at })
        };
        sign(Authority::Cluster, "apiserver", "kube-apiserver", None, served_at)?;
        let to_kubelet = "apiserver-kubelet-client";
        sign(Authority::Cluster, to_kubelet, to_kubelet, Some("system:masters"), Vec::new())?;
        sign(Authority::FrontProxy, "front-proxy-client", "front-proxy-client", None, Vec::new())?;
        for (file, user, group) in USERS {
            sign(Authority::Cluster, file, user, group, Vec::new())?;
            let path = self.kubeconfig(file);
            write_secret(&path, &kubeconfig(&pki, file, &self.endpoints.server()))?;
        }
        for number in 1..=nodes {
            let name = self.layout.node(number).name();
            let served_at = vec![address(IpAddr::V4(super::network::node_address(number))), dns(&name)];
            let user = format!("system:node:{name}");
            sign(Authority::Cluster, &name, &user, Some("system:nodes"), served_at)?;
        }
        let admin = self.layout.kubeconfig();
        fs::copy(self.kubeconfig("admin"), &admin).at("writing", &admin).map(drop)
    }

    /// Writes the files that the programs read.
    pub(crate) fn write_config(&self) -> Result<()> {
        let config = self.layout.config();
        fs::create_dir_all(&config).at("creating", &config)?;
        let corefile = format!(
            ".:53 {{\n  errors\n  health 127.0.0.1:8080\n  ready 127.0.0.1:8181\n  kubernetes cluster.local in-addr.arpa \
             {{\n    kubeconfig {}\n    pods insecure\n    ttl 1\n  }}\n  cache 1\n  reload\n}}\n",
            self.kubeconfig("admin").display()
        );
        for (name, text) in [("audit-policy.yaml", &audit::policy()), ("Corefile", &corefile)] {
            let path = config.join(name);
            fs::write(&path, text).at("writing", &path)?;
        }
        Ok(())
    }

    pub(crate) fn etcd(&self) -> Part {
        let Endpoints { etcd_port, etcd_peer_port, .. } = self.endpoints;
        let (client, peer) = (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{etcd_peer_port}"));
        let args = vec![
            "--name=control-plane".to_owned(),
            format!("--data-dir={}", self.layout.root().join("etcd").display()),
            // The machine's power is not what these tests cut, and syncing would slow every other thing on it.
            "--unsafe-no-fsync=true".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=control-plane={peer}"),
            "--log-level=warn".to_owned(),
        ];
        self.part("etcd", KUBERNETES.program("etcd"), args)
    }

    pub(crate) fn api_server(&self) -> Part {
        let pki = self.layout.pki();
        let file = |name: &str| pki.join(name).display().to_string();
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.endpoints.etcd_port),
            format!("--secure-port={}", self.endpoints.api_port),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet-client.key")),
            // Names of nodes resolve nowhere; without this, logs and exec would look them up.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            format!("--requestheader-client-ca-file={}", file("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            format!("--proxy-client-cert-file={}", file("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", file("front-proxy-client.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            // Webhooks are called at their pods' addresses: the control plane has routes to pods, not to services.
            "--enable-aggregator-routing=true".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
            "--shutdown-delay-duration=0s".to_owned(),
            format!("--audit-policy-file={}", self.layout.config().join("audit-policy.yaml").display()),
            format!("--audit-log-path={}", self.layout.logs().join(audit::LOG).display()),
            format!("--audit-log-maxsize={}", audit::LOG_MEBIBYTES_MAX),
            format!("--audit-log-maxbackup={}", audit::LOGS_KEPT),
        ];
        args.extend(match self.endpoints.wire {
            Some(_) => vec![format!("--advertise-address={CONTROL_PLANE}")],
            // The API refuses a loopback address as an endpoint of its own service, so there is none.
            None => ["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"].map(str::to_owned).to_vec(),
        });
        self.part("kube-apiserver", KUBERNETES.program("kube-apiserver"), args)
    }

    pub(crate) fn controller_manager(&self) -> Part {
        let pki = self.layout.pki();
        let file = |name: &str| pki.join(name).display().to_string();
        let config = self.kubeconfig("kube-controller-manager").display().to_string();
        let mut args = vec![
            format!("--kubeconfig={config}"),
            format!("--cluster-cidr={PODS}"),
            "--allocate-node-cidrs=false".to_owned(),
            format!("--service-account-private-key-file={}", file("accounts.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            "--use-service-account-credentials=true".to_owned(),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            "--leader-elect=false".to_owned(),
            // A cut-off node is seen after 10 s, not 40: tests wait for it.
            "--node-monitor-grace-period=10s".to_owned(),
            "--node-monitor-period=1s".to_owned(),
            "--profiling=false".to_owned(),
        ];
        args.extend(match self.endpoints.wire {
            Some(_) => vec![
                "--bind-address=127.0.0.1".to_owned(),
                format!("--authentication-kubeconfig={config}"),
                format!("--authorization-kubeconfig={config}"),
            ],
            // It serves nothing that anyone asks for, and its usual port may be another cluster's.
            None => vec!["--secure-port=0".to_owned()],
        });
        self.part("kube-controller-manager", KUBERNETES.program("kube-controller-manager"), args)
    }

    pub(crate) fn scheduler(&self) -> Part {
        let args = vec![
            format!("--kubeconfig={}", self.kubeconfig("kube-scheduler").display()),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--profiling=false".to_owned(),
        ];
        self.part("kube-scheduler", KUBERNETES.program("kube-scheduler"), args)
    }

    pub(crate) fn dns(&self) -> Part {
        let corefile = self.layout.config().join("Corefile");
        self.part("coredns", COREDNS.program("coredns"), vec![format!("-conf={}", corefile.display())])
    }

    /// The storage driver's controller and the two programs that call it.
    pub(crate) fn storage(&self) -> [(&'static str, Part); 3] {
        let socket = self.layout.root().join("csi.sock").display().to_string();
        let client = [
            format!("--csi-address={socket}"),
            format!("--kubeconfig={}", self.kubeconfig("admin").display()),
            "--leader-election=false".to_owned(),
        ];
        let driver = vec![
            format!("--name={DRIVER}"),
            format!("--endpoint={socket}"),
            format!("--volumes={}", volumes(self.layout).display()),
        ];
        let mut provisioner = client.to_vec();
        provisioner.extend(
            [
                "--feature-gates=Topology=true",
                "--strict-topology",
                "--default-fstype=xfs",
                "--retry-interval-start=200ms",
            ]
            .map(str::to_owned),
        );
        let mut resizer = client.to_vec();
        resizer.push("--retry-interval-start=200ms".to_owned());
        [
            ("csi-driver", self.part("csi-driver", CSI_DRIVER.program("csi-driver"), driver)),
            ("csi-provisioner", self.part("csi-provisioner", CSI_PROVISIONER.program("csi-provisioner"), provisioner)),
            ("csi-resizer", self.part("csi-resizer", CSI_RESIZER.program("csi-resizer"), resizer)),
        ]
    }

    /// The kubeconfig of one of the control plane's users.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.layout.pki().join(format!("{user}.kubeconfig"))
    }

    fn part(&self, name: &str, program: PathBuf, args: Vec<String>) -> Part {
        let log = self.layout.logs().join(format!("{name}.log"));
        let (program, args) = match self.endpoints.wire {
            None => (program, args),
            Some(_) => {
                let enter = [inside(&self.layout.network()), program.display().to_string()];
                (PathBuf::from("nsenter"), enter.into_iter().chain(args).collect())
            }
        };
        Part { program, args, env: Vec::new(), log, restart: true }
    }
}
