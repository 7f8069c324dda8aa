//! A wire between a node and its Redis that a test can make bad: slow, uneven, silent, cut.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

/// A proxy in front of a server. Its connections end when it is dropped.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the wire does to what the server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It comes later by the first, and by up to the second more.
    Late(Duration, Duration),
    /// Nothing comes in either direction, and nobody is told; it comes when the fault is over.
    Silent,
    /// Half of it comes, then the connection is cut.
    Cut,
    /// It comes byte by byte, with this pause between two.
    Trickle(Duration),
    /// One bit in every other piece of it is another.
    Flipped,
    /// A list says that it has one item less than it has.
    Short,
}

struct Shared {
    fault: Mutex<Fault>,
    /// Connections with a lower number are silent for good.
    living_from: AtomicU64,
    accepted: AtomicU64,
    /// Both ends of every connection, to be cut.
    ends: Mutex<Vec<TcpStream>>,
}

/// One connection as a thread of the wire knows it.
#[derive(Clone)]
struct Line {
    shared: Arc<Shared>,
    number: u64,
}

// === impl Wire ===

impl Wire {
    /// A good wire to this server.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            fault: Mutex::new(Fault::None),
            living_from: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            ends: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&shared);
        spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // As a host whose server is gone: the connection is refused, as far as a proxy can.
                let Ok(server) = TcpStream::connect(server) else { continue };
                let number = accepting.accepted.fetch_add(1, Ordering::Relaxed);
                connect(&Line { shared: Arc::clone(&accepting), number }, client, server);
            }
        });
        Self { address, shared }
    }

    /// From now on the wire does this.
    pub(crate) fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// The connections of before are open and silent for good, as if the other host had lost its power; new ones work.
    pub(crate) fn strand(&self) {
        self.shared.living_from.store(self.shared.accepted.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// What was said over silent connections comes after all.
    pub(crate) fn unstrand(&self) {
        self.shared.living_from.store(0, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The acceptor ends with the process; nobody knows its port any more.
        self.shared.ends.lock().unwrap().drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
    }
}

fn connect(line: &Line, client: TcpStream, server: TcpStream) {
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
        line.shared.ends.lock().unwrap().push(end.try_clone().unwrap());
    }
    let (up, down) = (line.clone(), line.clone());
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    spawn(move || up.ask(from_client, to_server));
    let (sender, arriving) = channel();
    spawn(move || read(server, &sender));
    spawn(move || down.answer(&arriving, client));
}

/// Takes what the server says, with the time of each piece.
fn read(mut server: TcpStream, sender: &Sender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        if sender.send((Instant::now(), buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

// === impl Line ===

impl Line {
    fn ask(&self, mut client: TcpStream, mut server: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            self.wait_while_silent();
            if server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // One that is given up ends only when what was said over it could be said.
        self.wait_while_silent();
        let _ = server.shutdown(Shutdown::Both);
    }

    fn answer(&self, arriving: &Receiver<(Instant, Vec<u8>)>, mut client: TcpStream) {
        for (at, bytes) in arriving {
            if self.pass(at, bytes, &mut client).is_none() {
                break;
            }
        }
        self.wait_while_silent();
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Passes one piece on; none if that was the last one.
    fn pass(&self, at: Instant, mut bytes: Vec<u8>, client: &mut TcpStream) -> Option<()> {
        let mut random = rand::rng();
        match self.fault() {
            Fault::None | Fault::Silent => {}
            Fault::Late(delay, jitter) => {
                let late = delay + jitter.mul_f64(random.random_range(0.0..1.0));
                sleep((at + late).saturating_duration_since(Instant::now()));
            }
            Fault::Cut => {
                bytes.truncate(bytes.len() / 2);
                let _ = client.write_all(&bytes);
                return None;
            }
            Fault::Trickle(pause) => {
                while self.fault() == Fault::Trickle(pause) && bytes.len() > 1 {
                    client.write_all(&bytes[..1]).ok()?;
                    bytes.remove(0);
                    sleep(pause);
                }
            }
            Fault::Flipped if random.random_bool(0.5) => {}
            Fault::Flipped => {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << (random.next_u32() % 8);
            }
            Fault::Short => {
                if let [b'*', count @ b'1'..=b'9', b'\r', ..] = &mut bytes[..] {
                    *count -= 1;
                }
            }
        }
        self.wait_while_silent();
        client.write_all(&bytes).ok()
    }

    fn fault(&self) -> Fault {
        *self.shared.fault.lock().unwrap()
    }

    fn wait_while_silent(&self) {
        let is_stranded = || self.number < self.shared.living_from.load(Ordering::Relaxed);
        // A wire that is gone is not silent: its ends were cut.
        let is_over = || self.shared.ends.lock().unwrap().is_empty();
        while (is_stranded() || self.fault() == Fault::Silent) && !is_over() {
            sleep(Duration::from_millis(1));
        }
    }
}
