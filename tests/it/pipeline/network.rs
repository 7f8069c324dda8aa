//! A network of our own, in which the kernel itself makes the way to Redis narrow, lossy or cut.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    slow::{Side, as_fast, opens, redis_is_used},
    *,
};

/// A network name space with nothing in it but a loopback interface. It goes with its last process.
pub(crate) struct Network {
    /// Reads until we are gone.
    holder: Child,
}

// === impl Network ===

impl Network {
    /// Moves this thread, and all that it starts from now on, into a new one.
    pub(crate) fn enter() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is installed");
        // It answers from within the new one.
        holder.stdin.as_mut().expect("a pipe").write_all(b"?").unwrap();
        holder.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("root may make a network");
        let space = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        run("ip link set lo up");
        Self { holder }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a program that must succeed, given as words.
pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let output = output_within(PATIENCE, Command::new(words.next().expect("a program")).args(words));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn when_the_network_to_redis_is_narrow_lossy_or_cut_memory_and_disk_are_as_fast_as_without_redis() {
    thread::spawn(in_a_network_of_its_own).join().expect("it says what went wrong");
}

fn in_a_network_of_its_own() {
    let _network = Network::enter();
    let redis = Server::start(&[]);
    let port = redis.port;
    run("tc qdisc add dev lo root handle 1: htb");
    // Answers of 2000 bytes take two thirds of a second each.
    run("tc class add dev lo parent 1: classid 1:1 htb rate 24kbit");
    let narrow = format!("POSTROUTING -t mangle -p tcp --sport {port} -j CLASSIFY --set-class 1:1");
    let lossy = format!("INPUT -p tcp --sport {port} -m statistic --mode random --probability 0.7 -j DROP");
    let cut = format!("INPUT -p tcp --dport {port} -j DROP");
    let mut alone = Side::start("");
    let mut side =
        Side::start(&format!("redis: {{mode: External, endpoints: ['{}'], timeout: 50ms}}", redis.address()));
    for (what, rule) in [("narrow", narrow), ("lossy", lossy), ("cut", cut)] {
        redis_is_used(&mut side);
        let opened = side.breaker_opened();
        run(&format!("iptables -w -A {rule}"));
        opens(what, &mut side, opened);
        as_fast(what, &mut alone, &mut side);
        run(&format!("iptables -w -D {rule}"));
        redis_is_used(&mut side);
        eventually("Redis has it", || side.client.call("TC.FLUSH") == Reply::ok());
    }
}
