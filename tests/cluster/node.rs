//! A node: its files, its command lines, and its life from boot to crash.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use super::certificates::{kubeconfig, write_secret};
use super::clock::wait_until;
use super::command::run;
use super::error::{AtPath, ClusterError, Result};
use super::layout::{Layout, NodeLayout};
use super::network::{self, CONTROL_PLANE, DNS_SERVICE, inside, node_address, pods_of};
use super::programs::{CONTAINERD, CSI_DRIVER, KUBERNETES};
use super::runtime::{Runtime, executable};
use super::storage::{DRIVER, volumes};
use super::supervisor::{Part, Parts};

/// Name of the image that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "localhost/pause:1";

const CONTAINERD_STARTS_WITHIN: Duration = Duration::from_secs(90);

/// One node of a cluster.
pub(crate) struct Node<'a> {
    layout: &'a Layout,
    own: NodeLayout,
}

// === impl Node ===

impl<'a> Node<'a> {
    pub(crate) fn new(layout: &'a Layout, number: u8) -> Self {
        Self { layout, own: layout.node(number) }
    }

    pub(crate) fn name(&self) -> String {
        self.own.name()
    }

    /// Starts the node's machine and its container runtime, which gets the image that every pod needs.
    pub(crate) fn boot(&self, pause_archive: &Path) -> Result<()> {
        let runtime = Runtime::of(self.layout);
        network::create_node(self.layout, &self.own)?;
        runtime.cgroup().create_for_pods(&self.name())?;
        self.write_config()?;
        let parts = self.parts();
        parts.forget_wanted()?;
        parts.want("containerd", &self.containerd())?;
        self.machines().want(&self.name(), &self.machine()?)?;
        self.await_containerd()?;
        self.import(pause_archive)
    }

    /// Starts what makes the machine a node of the cluster; the API must answer.
    pub(crate) fn join(&self) -> Result<()> {
        let parts = self.parts();
        parts.want("csi-driver", &self.csi_driver())?;
        parts.want("kube-proxy", &self.kube_proxy())?;
        parts.want("kubelet", &self.kubelet())
    }

    /// Cuts the node's power: every process ends at once, and what no program had synced to a volume is lost.
    pub(crate) fn crash(&self) -> Result<()> {
        self.lose_unsynced_writes();
        self.machines().end(&self.name())?;
        let runtime = Runtime::of(self.layout);
        network::remove_node(self.layout, &self.own)?;
        runtime.cgroup().remove(&self.name())
    }

    /// Whether the node's machine runs.
    pub(crate) fn is_running(&self) -> bool {
        self.machines().is_running(&self.name())
    }

    /// Whether the node shall run: it was booted and not crashed.
    pub(crate) fn is_wanted(&self) -> bool {
        self.machines().is_wanted(&self.name())
    }

    /// A process in the machine's mount namespace, as seen from the host.
    pub(crate) fn machine_pid(&self) -> Option<Pid> {
        let marks = [b"boot-node\0", self.own.root().as_os_str().as_encoded_bytes(), b"\0"].concat();
        let is_machine = |pid: &Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
            line.windows(marks.len()).any(|window| window == marks)
        };
        Runtime::of(self.layout).cgroup().processes().into_iter().find(is_machine)
    }

    /// Loads an archive of images into the node's container runtime.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let socket = self.own.containerd_socket().display().to_string();
        let archive = archive.display().to_string();
        let import = ["--address", &socket, "--namespace", "k8s.io", "images", "import", "--local", &archive];
        run(CONTAINERD.program("ctr"), &import).map(drop)
    }

    /// Loads an archive unless the node already has it.
    pub(crate) fn import_once(&self, archive: &Path) -> Result<()> {
        let imported = self.own.root().join("imported");
        fs::create_dir_all(&imported).at("creating", &imported)?;
        let mark = imported.join(archive.file_name().unwrap_or_default());
        if mark.exists() {
            return Ok(());
        }
        self.import(archive)?;
        // An older archive of the same image no longer counts: its name means the new one now.
        let image = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.rsplit_once('-').map(|(image, _)| image.to_owned())
        };
        for other in fs::read_dir(&imported).at("reading", &imported)?.flatten().map(|entry| entry.path()) {
            if image(&other) == image(&mark) {
                fs::remove_file(&other).at("removing", &other)?;
            }
        }
        fs::write(&mark, "").at("writing", &mark)
    }

    /// Names of the images that the node has.
    pub(crate) fn images(&self) -> Result<String> {
        let socket = self.own.containerd_socket().display().to_string();
        run(CONTAINERD.program("ctr"), &["--address", &socket, "--namespace", "k8s.io", "images", "list"])
    }

    /// Programs of the machine.
    pub(crate) fn parts(&self) -> Parts {
        Parts::new(self.own.root().to_owned())
    }

    /// The machines of all nodes are parts of the control plane's supervisor.
    fn machines(&self) -> Parts {
        Parts::new(self.layout.control_plane())
    }

    /// Shuts the volumes' file systems down without writing anything back.
    fn lose_unsynced_writes(&self) {
        let Some(machine) = self.machine_pid().map(|pid| pid.as_raw_pid().to_string()) else { return };
        let mounts = fs::read_to_string(format!("/proc/{machine}/mounts")).unwrap_or_default();
        let volumes = mounts.lines().filter(|line| line.starts_with("/dev/loop"));
        for at in volumes.filter_map(|line| line.split(' ').nth(1)) {
            // A volume that goes away meanwhile has nothing left to lose.
            let _ = run("nsenter", &["--target", &machine, "--mount", "xfs_io", "-x", "-c", "shutdown", at]);
        }
    }

    fn await_containerd(&self) -> Result<()> {
        let socket = self.own.containerd_socket();
        // Its socket exists before it answers.
        let answers = || socket.exists() && self.images().is_ok();
        if wait_until(CONTAINERD_STARTS_WITHIN, Duration::from_millis(100), answers) {
            return Ok(());
        }
        Err(ClusterError::Timeout {
            what: format!("starting containerd on {}", self.name()),
            limit: CONTAINERD_STARTS_WITHIN,
            hint: format!("see {}", self.log("containerd").display()),
        })
    }

    /// The machine itself: namespaces of its own for processes and mounts, in the node's network namespace.
    fn machine(&self) -> Result<Part> {
        let words =
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation=private"];
        let mut args = vec![inside(self.own.network())];
        args.extend(words.map(str::to_owned));
        args.extend([
            executable()?.display().to_string(),
            "boot-node".to_owned(),
            self.own.root().display().to_string(),
        ]);
        let log = self.layout.logs().join(format!("{}.log", self.name()));
        Ok(Part { program: PathBuf::from("nsenter"), args, env: Vec::new(), log, restart: true })
    }

    fn containerd(&self) -> Part {
        let config = self.own.config().join("containerd.toml").display().to_string();
        self.part("containerd", CONTAINERD.program("containerd"), vec![format!("--config={config}")])
    }

    fn kubelet(&self) -> Part {
        let config = self.own.config();
        let args = vec![
            format!("--config={}", config.join("kubelet.json").display()),
            format!("--kubeconfig={}", config.join("kubelet.kubeconfig").display()),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={}", node_address(self.own.number)),
            format!("--node-labels=topology.kubernetes.io/zone=zone{}", self.own.number),
        ];
        self.part("kubelet", KUBERNETES.program("kubelet"), args)
    }

    fn kube_proxy(&self) -> Part {
        let config = self.own.config().join("kube-proxy.json").display().to_string();
        self.part("kube-proxy", KUBERNETES.program("kube-proxy"), vec![format!("--config={config}")])
    }

    fn csi_driver(&self) -> Part {
        let args = vec![
            format!("--name={DRIVER}"),
            format!("--node={}", self.name()),
            format!("--volumes={}", volumes(self.layout).display()),
            "--endpoint=/var/lib/kubelet/plugins/csi.sock".to_owned(),
            format!("--registration=/var/lib/kubelet/plugins_registry/{DRIVER}-reg.sock"),
        ];
        self.part("csi-driver", CSI_DRIVER.program("csi-driver"), args)
    }

    fn part(&self, name: &str, program: PathBuf, args: Vec<String>) -> Part {
        // The container runtime finds its shim, and everyone the system's programs, by this path.
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", CONTAINERD.built().display());
        Part { program, args, env: vec![("PATH".to_owned(), path)], log: self.log(name), restart: true }
    }

    fn log(&self, part: &str) -> PathBuf {
        self.layout.logs().join(format!("{}-{part}.log", self.name()))
    }

    fn write_config(&self) -> Result<()> {
        let (config, pki) = (self.own.config(), self.layout.pki());
        let pods = config.join("cni");
        for folder in
            [&pods, &self.own.root().join("kubelet/plugins"), &self.own.root().join("kubelet/plugins_registry")]
        {
            fs::create_dir_all(folder).at("creating", folder)?;
        }
        let server = format!("https://{CONTROL_PLANE}:6443");
        for (file, user) in [("kubelet", self.name()), ("kube-proxy", "kube-proxy".to_owned())] {
            write_secret(&config.join(format!("{file}.kubeconfig")), &kubeconfig(&pki, &user, &server))?;
        }
        let files = [
            (config.join("containerd.toml"), self.containerd_config()),
            (config.join("kubelet.json"), self.kubelet_config()),
            (config.join("kube-proxy.json"), self.kube_proxy_config()),
            (pods.join("10-pods.conflist"), self.pod_network()),
            (config.join("resolv.conf"), String::new()),
        ];
        files.iter().try_for_each(|(path, text)| fs::write(path, text).at("writing", path))
    }

    fn containerd_config(&self) -> String {
        let (root, config) = (self.own.root().display(), self.own.config());
        let socket = self.own.containerd_socket();
        format!(
            r#"version = 3
root = "{root}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{socket}"

[ttrpc]
address = "{socket}.ttrpc"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
# Sandboxes do not grant what a lower score needs.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{pods}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = false
"#,
            socket = socket.display(),
            pods = config.join("cni").display(),
        )
    }

    fn kubelet_config(&self) -> String {
        let (config, pki) = (self.own.config(), self.layout.pki());
        let cgroup = format!("/{}/{}", self.layout.cgroup(), self.name());
        let text = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki.join("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki.join(format!("{}.crt", self.name())),
            "tlsPrivateKeyFile": pki.join(format!("{}.key", self.name())),
            "containerRuntimeEndpoint": format!("unix://{}", self.own.containerd_socket().display()),
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            // Names outside the cluster resolve nowhere, on purpose.
            "resolvConf": config.join("resolv.conf"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": false,
            "enforceNodeAllocatable": [],
            // Lets the kubelet live with settings that it may not change.
            "featureGates": {"KubeletInUserNamespace": true},
            "failSwapOn": false,
            // A grown claim is seen within this time, not within the usual minute.
            "syncFrequency": "2s",
            // A lease is renewed at a quarter of its length, which must be well below the 10 s after which the
            // controller manager takes the node for gone.
            "nodeLeaseDurationSeconds": 8,
            "nodeStatusUpdateFrequency": "2s",
            // A container that tests kill again and again is not kept waiting for minutes.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "2s"},
            // The machine's disk belongs to others too: neither evict nor collect because of what they wrote.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                "nodefs.inodesFree": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        });
        text.to_string()
    }

    fn kube_proxy_config(&self) -> String {
        let text = serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": self.name(),
            "clusterCIDR": network::PODS,
            "clientConnection": {"kubeconfig": self.own.config().join("kube-proxy.kubeconfig")},
            // The size of the connection table is the machine's, not the node's.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "iptables": {"minSyncPeriod": "200ms"},
        });
        text.to_string()
    }

    /// Routed, not bridged: a service address then works between pods of one node without bridge netfilter.
    fn pod_network(&self) -> String {
        let text = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "ipMasq": false, "ipam": {
                    "type": "host-local",
                    // Forgotten at every boot, like the pods that had them.
                    "dataDir": "/run/pod-addresses",
                    "ranges": [[{"subnet": pods_of(self.own.number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                }},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        text.to_string()
    }
}
