//! The API of Kubernetes over plain HTTP, through one `kubectl proxy` of this process: a call is a millisecond, where a
//! run of kubectl is a hundred.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::{Value, json};

use crate::api::api;

struct Proxy {
    address: SocketAddr,
    /// Holds the input of the shell that ends the proxy.
    _shell: Child,
}

static PROXY: OnceLock<Proxy> = OnceLock::new();

/// Asks the API server; returns the status code and the answer.
pub(crate) fn call(method: &str, path: &str, body: Option<(&str, &Value)>) -> (u16, Value) {
    let mut stream = TcpStream::connect(PROXY.get_or_init(start).address).expect("the proxy accepts");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a positive time");
    let (kind, text) = body.map_or(("application/json", String::new()), |(kind, body)| (kind, body.to_string()));
    let length = text.len();
    // HTTP/1.0, so that the answer ends with the connection and comes in one piece.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{text}"
    )
    .expect("the proxy reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the proxy answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an answer has a status");
    (code, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())))
}

/// Reads an object; `None` if there is none.
pub(crate) fn get(path: &str) -> Option<Value> {
    match call("GET", path, None) {
        (200, object) => Some(object),
        (404, _) => None,
        (code, answer) => panic!("GET {path}: {code} {answer}"),
    }
}

/// The items of a list.
pub(crate) fn list(path: &str) -> Vec<Value> {
    get(path).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
}

/// Makes an object, and returns it.
pub(crate) fn create(path: &str, object: &Value) -> Value {
    let (code, answer) = call("POST", path, Some(("application/json", object)));
    assert_eq!(code, 201, "POST {path}: {answer}");
    answer
}

/// Changes an object by a merge patch. Returns whether it was there.
pub(crate) fn merge(path: &str, patch: &Value) -> bool {
    let (code, answer) = call("PATCH", path, Some(("application/merge-patch+json", patch)));
    assert!(code == 200 || code == 404, "PATCH {path}: {code} {answer}");
    code == 200
}

/// Deletes an object in the background. Returns whether it was there.
pub(crate) fn delete(path: &str) -> bool {
    let options = json!({"propagationPolicy": "Background", "gracePeriodSeconds": 0});
    let (code, answer) = call("DELETE", path, Some(("application/json", &options)));
    assert!(matches!(code, 200 | 202 | 404), "DELETE {path}: {code} {answer}");
    code != 404
}

fn start() -> Proxy {
    let kubectl = api().cluster.kubectl_command().expect("the API is up");
    // The shell's input closes when this process ends, however it ends, and the shell then ends the proxy.
    let mut command = Command::new("sh");
    command.args(["-c", r#""$@" & read -r _; kill $!"#, "sh"]).arg(kubectl.get_program()).args(kubectl.get_args());
    command.envs(kubectl.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.args(["proxy", "--port=0"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("a shell starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("the proxy says where it is");
    let address = line.trim().rsplit(' ').next().and_then(|text| text.parse().ok());
    Proxy { address: address.unwrap_or_else(|| panic!("no address in {line:?}")), _shell: child }
}
