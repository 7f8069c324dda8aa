//! The API of Kubernetes over plain HTTP, through one `kubectl proxy` of this process: a call is a millisecond, where a
//! run of kubectl takes a tenth of a second of a processor, which whoever waits for something asks for again and again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::Cluster;
use super::error::Result;

/// Longer than the API server takes for anything.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// The administrator's way to the API server of a cluster. What the methods panic on is that there is no server.
pub struct Rest {
    proxy: SocketAddr,
    /// Holds the input of the shell that ends the proxy.
    _shell: Child,
}

// === impl Cluster ===

impl Cluster {
    /// A way to this cluster's API server, which ends with this process.
    ///
    /// # Errors
    /// `NotUp`.
    ///
    /// # Panics
    /// If kubectl does not start.
    pub fn rest(&self) -> Result<Rest> {
        let kubectl = self.kubectl_command()?;
        // The shell's input closes when this process ends, however it ends, and the shell then ends the proxy. It gives its
        // own output up, so that the end of a proxy which does not start is the end of what is read here.
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", r#""$@" & exec >&-; read -r _; kill $!"#, "sh"])
            .arg(kubectl.get_program())
            .args(kubectl.get_args());
        command.envs(kubectl.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.args(["proxy", "--port=0"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a shell starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("the proxy says where it is");
        let address = line.trim().rsplit(' ').next().and_then(|text| text.parse().ok());
        Ok(Rest { proxy: address.unwrap_or_else(|| panic!("no address in {line:?}")), _shell: child })
    }
}

// === impl Rest ===

impl Rest {
    /// Asks the API server; returns the status code and the answer, a string if it is not JSON.
    ///
    /// # Panics
    /// If the proxy does not answer; so does every other method.
    pub fn call(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.proxy).expect("the proxy accepts");
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).expect("a positive time");
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
        (code, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
    }

    /// Reads an object; `None` if there is none.
    ///
    /// # Panics
    /// If the answer is neither.
    pub fn get(&self, path: &str) -> Option<Value> {
        match self.call("GET", path, None) {
            (200, object) => Some(object),
            (404, _) => None,
            (code, answer) => panic!("GET {path}: {code} {answer}"),
        }
    }

    /// Reads anything that is not JSON, such as metrics.
    ///
    /// # Errors
    /// What the server answered instead.
    pub fn text(&self, path: &str) -> std::result::Result<String, String> {
        match self.call("GET", path, None) {
            (200, Value::String(text)) => Ok(text),
            (200, value) => Ok(value.to_string()),
            (code, answer) => Err(format!("GET {path}: {code} {answer}")),
        }
    }

    /// The items of a list.
    pub fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
    }

    /// Makes an object, and returns it.
    ///
    /// # Panics
    /// If it is refused.
    pub fn create(&self, path: &str, object: &Value) -> Value {
        let (code, answer) = self.call("POST", path, Some(("application/json", object)));
        assert_eq!(code, 201, "POST {path}: {answer}");
        answer
    }

    /// Changes an object by a merge patch. Returns whether it was there.
    ///
    /// # Panics
    /// If it is refused.
    pub fn merge(&self, path: &str, patch: &Value) -> bool {
        let (code, answer) = self.call("PATCH", path, Some(("application/merge-patch+json", patch)));
        assert!(code == 200 || code == 404, "PATCH {path}: {code} {answer}");
        code == 200
    }

    /// Deletes an object in the background. Returns whether it was there.
    ///
    /// # Panics
    /// If it is refused.
    pub fn delete(&self, path: &str) -> bool {
        let options = json!({"propagationPolicy": "Background", "gracePeriodSeconds": 0});
        let (code, answer) = self.call("DELETE", path, Some(("application/json", &options)));
        assert!(matches!(code, 200 | 202 | 404), "DELETE {path}: {code} {answer}");
        code != 404
    }
}
