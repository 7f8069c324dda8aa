//! Who may come in: passwords and certificates from files that change, users with too few rights.

use std::{fs, path::PathBuf};

use cache_node::layer::{
    ErrorKind,
    lease::{SharedLeases, Taken},
    log::Log,
    redis::TlsOptions,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tests::ports::free_port;

use super::{
    makes::{Make, on_every_make},
    server::Server,
    *,
};

/// An authority and what it signed, as files.
pub(super) struct Papers {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

// === impl Papers ===

impl Papers {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own, or OpenSSL takes what it signs for signed by themselves.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    /// Signs for this name and writes `<name>.crt` and `<name>.key`.
    pub(super) fn sign(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.authority).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

fn user(server: &Server, name: &str, rules: &[&str]) {
    assert_eq!(server.cli(&[&["ACL", "SETUSER", name, "reset", "on"], rules].concat()), "OK");
}

/// Options with a user and a password in files of this folder.
pub(super) fn with_files(port: u16, folder: &TempDir, user: &str, password: &str) -> RedisOptions {
    let (username_file, password_file) = (folder.path().join("user"), folder.path().join("password"));
    fs::write(&username_file, user).unwrap();
    fs::write(&password_file, password).unwrap();
    RedisOptions { username_file: Some(username_file), password_file: Some(password_file), ..options(&[port]) }
}

const ALL: [&str; 3] = ["~{tc:u-1}:*", "+@all", ">secret"];

on_every_make! {
    the_documented_rights_are_enough
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_a_right_one_in_the_file_is_taken_up() {
    let server = Server::start(&["--requirepass", "right"]);
    let folder = TempDir::new().unwrap();
    let redis = Redis::open(with_files(server.port, &folder, "", "wrong"), Clock::system());
    healthy_as(&redis, HealthState::Unavailable, "WrongPassword").await;
    fs::write(folder.path().join("password"), "right\n").unwrap();
    available(&redis).await;
    set(&redis, "a", "v").await;
    assert_eq!(got(&redis, "a").await, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_where_one_is_needed_is_named() {
    let server = Server::start(&["--requirepass", "right"]);
    let redis = Redis::open(options(&[server.port]), Clock::system());
    healthy_as(&redis, HealthState::Unavailable, "WrongPassword").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_in_the_files_is_taken_up_without_an_error() {
    let server = Server::start(&[]);
    let folder = TempDir::new().unwrap();
    user(&server, "one", &ALL);
    let redis = opened(with_files(server.port, &folder, "one", "secret")).await;
    user(&server, "two", &ALL);
    fs::write(folder.path().join("user"), "two").unwrap();
    let users = || server.cli(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("user=two")).count();
    eventually("connections of the new user", async || {
        set(&redis, "a", "v").await;
        users() == 3
    })
    .await;
    server.cli(&["ACL", "DELUSER", "one"]);
    for _ in 0..100 {
        assert_eq!(got(&redis, "a").await, "v");
    }
    assert_eq!(redis.stats().errors, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_read_is_refused_with_the_reason() {
    let server = Server::start(&[]);
    let folder = TempDir::new().unwrap();
    user(&server, "blind", &["~elsewhere:*", "+@all", ">secret"]);
    let redis = Redis::open(with_files(server.port, &folder, "blind", "secret"), Clock::system());
    healthy_as(&redis, HealthState::Unavailable, "NoPermission").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_write_reads_and_shows_degraded() {
    let server = Server::start(&[]);
    let folder = TempDir::new().unwrap();
    user(&server, "reader", &["~{tc:u-1}:*", "+@read", "+@connection", ">secret"]);
    let redis = opened(with_files(server.port, &folder, "reader", "secret")).await;
    eventually("degraded", async || {
        let error = redis.apply(&cx(), &[Change::Set(entry("a", "v"))]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert_eq!(got(&redis, "a").await, "Miss");
        redis.health().reason == "NoPermission"
    })
    .await;
    assert_eq!(redis.health().state, HealthState::Degraded);
}

async fn the_documented_rights_are_enough(make: Make) {
    let readme = include_str!("../../../cache-node/README.md");
    let rule = readme.split_once("ACL SETUSER tieredcache on >PASSWORD ").expect("the README says which rights").1;
    let rule = rule.lines().next().unwrap().replace("<cache.uid>", "u-1");
    let server = make.start(&[]);
    let folder = TempDir::new().unwrap();
    user(&server, "documented", &[vec![">secret"], rule.split(' ').collect()].concat());
    let redis = opened(with_files(server.port, &folder, "documented", "secret")).await;
    set(&redis, "a", "v").await;
    let removal = cache_node::layer::TagRemoval {
        tags: tags(&["t"]),
        matching: cache_node::layer::Matching::Any,
        position: Position::NONE,
    };
    redis
        .apply(&cx(), &[Change::RemoveTagged(removal), Change::Remove(key("a")), Change::Fill(entry("b", "v"))])
        .await
        .unwrap();
    assert_eq!(redis.tag_removals(&cx()).await.unwrap().len(), 1);
    let leases = redis.leases();
    let life = std::time::Duration::from_secs(10);
    let taken = leases.take(&cx(), &key("c"), (7, life), None).await.unwrap();
    let Taken::Granted(granted) = taken else { panic!("{taken:?}") };
    assert_eq!(leases.granted(&cx(), b"c", 7).await.unwrap(), Some(granted));
    let tags = tags(&["u"]);
    let meta = EntryMeta { position: granted, tags: tags.tags(), ..EntryMeta::default() };
    let filled = leases.fill(&cx(), (7, granted), &Entry::new(b"c", b"v", meta)).await.unwrap();
    assert!(filled.is_some_and(|position| position > granted));
    assert_eq!(got(&redis, "c").await, "v");
    let mut log = redis.log();
    log.begin("history", Position::NONE, false).await.unwrap();
    log.go_on("history", "another").await.unwrap();
    let state = log.look(Position::NONE).await.unwrap().state;
    assert!(state.epoch.is_some());
    // What is asked in the background, where a refusal is not told.
    for command in [&["MEMORY", "USAGE", "{tc:u-1}:log"][..], &["XLEN", "{tc:u-1}:log"]] {
        let answer = server.cli(&[&["--user", "documented", "--pass", "secret"], command].concat());
        assert!(!answer.is_empty() && !answer.contains("NOPERM"), "{answer}");
    }
    log.wait(Position::NONE).await.unwrap();
    log.beat(&state.history, state.last, Duration::from_secs(3)).await.unwrap();
    let census = log.census(&state.history).await.unwrap();
    assert_eq!((census.members.len(), census.members[0].position), (1, state.last));
    // What follows the log changes nothing before it knows how the log goes on.
    assert!(redis.clear(&cx()).await.is_err());
    log.trust(Some(&state.history));
    redis.clear(&cx()).await.unwrap();
    eventually("memory is given back", async || server.cli(&["KEYS", "*:e:*"]).is_empty()).await;
    // Made anew, over which the server is asked to drop the old ones.
    user(&server, "again", &[vec![">secret"], rule.split(' ').collect()].concat());
    fs::write(folder.path().join("user"), "again").unwrap();
    eventually("connected anew", async || extra(&redis, "reconnects") == 2).await;
    assert_eq!(extra(&redis, "reconnectsUnfenced"), 0);
    assert_eq!(redis.stats().errors, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_drop_clients_it_works_and_says_so() {
    let server = Server::start(&[]);
    let folder = TempDir::new().unwrap();
    user(&server, "one", &["~{tc:u-1}:*", "+@all", "-client|kill", ">secret"]);
    let redis = opened(with_files(server.port, &folder, "one", "secret")).await;
    assert_eq!(extra(&redis, "reconnectsUnfenced"), 0);
    user(&server, "one", &["~{tc:u-1}:*", "+@all", "-client|kill", ">other"]);
    fs::write(folder.path().join("password"), "other").unwrap();
    eventually("connected anew", async || extra(&redis, "reconnectsUnfenced") == 1).await;
    set(&redis, "a", "v").await;
}

/// A server that speaks TLS alone and wants to see a certificate, with more options.
pub(super) fn tls_server(papers: &Papers, name: &str, more: &[&str]) -> Server {
    let port = free_port();
    let tls = tls_lines(papers, name, port).map(|(option, value)| [format!("--{option}"), value]);
    let plain = ["--bind", "127.0.0.1", "--save", ""].into_iter();
    Server::start_as(port, plain.chain(tls.iter().flatten().map(String::as_str)).chain(more.iter().copied()).collect())
}

/// Options of a server that has such a certificate, speaks TLS alone on this port, and wants to see a certificate.
pub(super) fn tls_lines(papers: &Papers, name: &str, port: u16) -> [(&'static str, String); 6] {
    [
        ("port", "0".to_owned()),
        ("tls-port", port.to_string()),
        ("tls-cert-file", papers.text(&format!("{name}.crt"))),
        ("tls-key-file", papers.text(&format!("{name}.key"))),
        ("tls-ca-cert-file", papers.text("ca.crt")),
        ("tls-auth-clients", "yes".to_owned()),
    ]
}

pub(super) fn tls_options(papers: &Papers, port: u16, server_name: Option<&str>) -> RedisOptions {
    let tls = TlsOptions {
        ca_file: Some(papers.path("ca.crt")),
        client_files: Some((papers.path("client.crt"), papers.path("client.key"))),
        server_name: server_name.map(str::to_owned),
    };
    RedisOptions { tls: Some(tls), ..options(&[port]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_certificate_of_our_own_and_another_name_than_the_endpoints() {
    let papers = Papers::new();
    papers.sign("redis.example");
    papers.sign("client");
    let server = tls_server(&papers, "redis.example", &[]);
    let redis = opened(tls_options(&papers, server.port, Some("redis.example"))).await;
    set(&redis, "a", "v").await;
    assert_eq!(got(&redis, "a").await, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificate_is_not_right_is_not_spoken_to() {
    let (papers, foreign) = (Papers::new(), Papers::new());
    for papers in [&papers, &foreign] {
        papers.sign("redis.example");
        papers.sign("client");
    }
    let server = tls_server(&papers, "redis.example", &[]);
    // Another name than in the certificate, then another authority.
    for options in [
        tls_options(&papers, server.port, Some("other.example")),
        tls_options(&papers, server.port, None),
        tls_options(&foreign, server.port, Some("redis.example")),
    ] {
        let redis = Redis::open(options, Clock::system());
        healthy_as(&redis, HealthState::Unavailable, "Unreachable").await;
        assert!(redis.health().message.to_lowercase().contains("cert"), "{}", redis.health().message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_taken_up() {
    let papers = Papers::new();
    papers.sign("redis.example");
    papers.sign("client");
    let server = tls_server(&papers, "redis.example", &[]);
    let redis = opened(tls_options(&papers, server.port, Some("redis.example"))).await;
    papers.sign("client");
    eventually("connected anew", async || extra(&redis, "reconnects") == 2).await;
    set(&redis, "a", "v").await;
    assert_eq!(redis.stats().errors, []);
}
