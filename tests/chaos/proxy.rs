//! A TCP proxy whose connections can be held up, cut off and led elsewhere: the network between two programs.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// One read takes at most this much.
const BUFFER_BYTES: usize = 64 << 10;
/// A target on this machine accepts within this time, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Listens until dropped; what was connected goes on until it is cut off.
pub(crate) struct Proxy {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    gate: Arc<Gate>,
}

/// How the network behaves now.
#[derive(Debug)]
struct State {
    target: SocketAddr,
    /// Nothing passes, nothing is lost, nobody is told.
    held: bool,
    /// Connections of an earlier number are closed.
    generation: u64,
    closed: bool,
}

#[derive(Debug)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

// === impl Proxy ===

impl Proxy {
    /// A proxy in front of the target.
    ///
    /// # Errors
    /// If no port is free.
    pub(crate) fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = State { target, held: false, generation: 0, closed: false };
        let gate = Arc::new(Gate { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&gate);
        thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { address, gate })
    }

    /// Holds everything up, as a network that has stopped delivering.
    pub(crate) fn hold(&self) {
        self.gate.change(|state| state.held = true);
    }

    /// Delivers what was held up and all that follows.
    pub(crate) fn release(&self) {
        self.gate.change(|state| state.held = false);
    }

    /// Closes every connection; what was held up in them is lost. New ones are served.
    pub(crate) fn reset(&self) {
        self.gate.change(|state| {
            state.generation += 1;
            state.held = false;
        });
    }

    /// Leads to another target from now on, and closes what leads to the old one.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.gate.change(|state| {
            state.target = target;
            state.generation += 1;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.gate.change(|state| {
            state.closed = true;
            state.generation += 1;
            state.held = false;
        });
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

// === impl Gate ===

impl Gate {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until something may pass for a connection of this number; says where to, unless it is to be closed.
    fn pass(&self, generation: u64) -> Option<SocketAddr> {
        let mut state = self.lock();
        loop {
            if state.generation != generation {
                return None;
            }
            if !state.held {
                return Some(state.target);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until connections of this number are to be closed.
    fn over(&self, generation: u64) {
        let mut state = self.lock();
        while state.generation == generation {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, gate: &Arc<Gate>) {
    for client in listener.incoming().map_while(Result::ok) {
        let (generation, closed) = {
            let state = gate.lock();
            (state.generation, state.closed)
        };
        if closed {
            return;
        }
        let gate = Arc::clone(gate);
        thread::spawn(move || {
            // A connection that fails ends like one that the network lost.
            let _ = connect(client, &gate, generation);
        });
    }
}

fn connect(client: TcpStream, gate: &Arc<Gate>, generation: u64) -> io::Result<()> {
    let Some(target) = gate.pass(generation) else { return Ok(()) };
    let server = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let pairs = [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)];
    for (from, to) in pairs {
        let gate = Arc::clone(gate);
        thread::spawn(move || {
            let _ = pump(&from, &to, &gate, generation);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    gate.over(generation);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    Ok(())
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, gate: &Gate, generation: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer)?;
        // Also the end of a connection is news that a held-up network does not deliver.
        if gate.pass(generation).is_none() || length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every byte with the same one, the first connection's with a mark.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        address
    }

    fn echoed(stream: &mut TcpStream) -> io::Result<u8> {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn client(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream
    }

    #[test]
    fn what_is_held_up_is_delivered_once_released() {
        let proxy = Proxy::to(echo()).unwrap();
        let mut stream = client(&proxy);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"a").unwrap();
        assert_eq!(echoed(&mut stream).unwrap(), b'a');
        proxy.hold();
        stream.write_all(b"b").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(echoed(&mut stream).is_err(), "held up");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        proxy.release();
        assert_eq!(echoed(&mut stream).unwrap(), b'b');
    }

    #[test]
    fn reset_closes_what_is_connected_and_serves_what_comes() {
        let proxy = Proxy::to(echo()).unwrap();
        let mut stream = client(&proxy);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"a").unwrap();
        assert_eq!(echoed(&mut stream).unwrap(), b'a');
        proxy.hold();
        proxy.reset();
        let end = echoed(&mut stream).unwrap_err().kind();
        assert!(!matches!(end, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{end}");
        let mut stream = client(&proxy);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"c").unwrap();
        assert_eq!(echoed(&mut stream).unwrap(), b'c');
    }
}
