//! The client: one thread, one epoll instance, requests rendered beforehand. It does nothing per request but write a
//! slice of memory, find the end of the reply and add to a histogram, so that it is faster than what it measures.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use hdrhistogram::Histogram;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

use crate::{
    clock::Clock,
    resp::{ReplyCounter, Tally},
    workload::{Ring, Workload},
};

/// One read takes at most this much; large enough for 16 replies of 4 KiB.
const READ_BYTES: usize = 256 << 10;
/// Ready connections taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// A server that is silent for so long while requests are open has failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Below this the open loop spins until the next request is due, because a sleep would wake up late.
const SPIN: Duration = Duration::from_millis(2);
/// Latencies above this are recorded as this.
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// Connections to one server, kept from slice to slice.
pub(crate) struct Client {
    workload: Workload,
    ring: Arc<Ring>,
    next: usize,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    replies: ReplyCounter,
    /// Requests not answered yet: when they were due, how many. Bounded by pipeline or by the slice's length.
    open: VecDeque<(u64, u32)>,
    /// Requests the socket has not taken yet.
    unsent: VecDeque<Range<usize>>,
}

/// What one slice of load gave.
pub(crate) struct Slice {
    /// Replies.
    pub(crate) tally: Tally,
    /// From the first request to the last reply.
    pub(crate) wall: Duration,
    /// Nanoseconds from due to answered.
    pub(crate) latency: Histogram<u64>,
}

// === impl Client ===

impl Client {
    /// Opens the workload's connections.
    ///
    /// # Errors
    /// If the server does not accept them.
    pub(crate) fn open(address: SocketAddr, workload: &Workload, ring: &Arc<Ring>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(workload.connections);
        for index in 0..workload.connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            // Edge-triggered for both directions: no call to change interest while a request waits to be sent.
            let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(&epoll, &stream, epoll::EventData::new_u64(index as u64), interest)?;
            connections.push(Connection::new(stream));
        }
        let (workload, ring) = (workload.clone(), Arc::clone(ring));
        Ok(Self { workload, ring, next: 0, epoll, connections, buffer: vec![0; READ_BYTES] })
    }

    /// Loads the server for `length` and waits for the last reply.
    ///
    /// # Errors
    /// On a broken connection, an error reply or ten seconds of silence.
    pub(crate) fn run(&mut self, length: Duration) -> io::Result<Slice> {
        let mut slice = Slice { tally: Tally::default(), wall: Duration::ZERO, latency: histogram() };
        let clock = Clock::start();
        match self.workload.rate {
            None => self.run_closed(clock, length, &mut slice)?,
            Some(rate) => self.run_open(clock, length, rate, &mut slice)?,
        }
        slice.wall = Duration::from_nanos(clock.nanos());
        Ok(slice)
    }

    /// Every connection sends the next batch when its last one is answered.
    fn run_closed(&mut self, clock: Clock, length: Duration, slice: &mut Slice) -> io::Result<()> {
        let end = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let mut busy = self.connections.len();
        for index in 0..busy {
            self.send(index, self.workload.pipeline, clock.nanos())?;
        }
        let mut ready = Vec::with_capacity(EVENTS_MAX);
        while busy > 0 {
            self.wait(&mut ready, SILENCE_MAX)?;
            if ready.is_empty() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server fell silent"));
            }
            for event in &ready {
                let index = event.data.u64() as usize;
                let connection = &mut self.connections[index];
                connection.flush(self.ring.bytes())?;
                let answered = connection.read(&mut self.buffer, clock, slice)?;
                if answered == 0 || !connection.open.is_empty() {
                    continue;
                }
                let now = clock.nanos();
                if now < end {
                    self.send(index, self.workload.pipeline, now)?;
                } else {
                    busy -= 1;
                }
            }
        }
        Ok(())
    }

    /// Requests are sent when due, whether or not earlier ones are answered; latency counts from when they were due.
    fn run_open(&mut self, clock: Clock, length: Duration, rate: u32, slice: &mut Slice) -> io::Result<()> {
        let total = (length.as_secs_f64() * f64::from(rate)) as u64;
        let due_at = |request: u64| request * 1_000_000_000 / u64::from(rate);
        let mut sent = 0;
        let mut last_progress = 0;
        let mut ready = Vec::with_capacity(EVENTS_MAX);
        while slice.tally.replies < total {
            let now = clock.nanos();
            while sent < total && due_at(sent) <= now {
                let index = (sent % self.connections.len() as u64) as usize;
                self.send(index, 1, due_at(sent))?;
                sent += 1;
            }
            let pause = if sent < total { Duration::from_nanos(due_at(sent).saturating_sub(now)) } else { SPIN * 2 };
            self.wait(&mut ready, if pause < SPIN { Duration::ZERO } else { pause - SPIN / 2 })?;
            for event in &ready {
                let index = event.data.u64() as usize;
                let connection = &mut self.connections[index];
                connection.flush(self.ring.bytes())?;
                if connection.read(&mut self.buffer, clock, slice)? > 0 {
                    last_progress = now;
                }
            }
            if sent == total && Duration::from_nanos(now.saturating_sub(last_progress)) > SILENCE_MAX {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server fell silent"));
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize, count: usize, due: u64) -> io::Result<()> {
        if self.next + count > self.ring.len() {
            self.next = 0;
        }
        let connection = &mut self.connections[index];
        connection.open.push_back((due, count as u32));
        connection.unsent.push_back(self.ring.span(self.next, count));
        self.next += count;
        connection.flush(self.ring.bytes())
    }

    /// Waits at most `pause`, rounded down to milliseconds, and puts the ready connections into `ready`.
    fn wait(&self, ready: &mut Vec<epoll::Event>, pause: Duration) -> io::Result<()> {
        let timeout =
            Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_millis()) * 1_000_000 };
        ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(ready), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

// === impl Connection ===

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self { stream, replies: ReplyCounter::default(), open: VecDeque::new(), unsent: VecDeque::new() }
    }

    /// Writes what the socket takes.
    fn flush(&mut self, bytes: &[u8]) -> io::Result<()> {
        while let Some(span) = self.unsent.front_mut() {
            match self.stream.write(&bytes[span.clone()]) {
                Ok(written) => span.start += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if span.start == span.end {
                self.unsent.pop_front();
            }
        }
        Ok(())
    }

    /// Reads until the socket is empty; records and returns the replies that became complete.
    fn read(&mut self, buffer: &mut [u8], clock: Clock, slice: &mut Slice) -> io::Result<u32> {
        let mut answered = 0;
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answered),
                Err(error) => return Err(error),
            };
            let replies = self.replies.consume(&buffer[..length], &mut slice.tally).map_err(io::Error::other)?;
            self.record(replies, clock.nanos(), &mut slice.latency)?;
            answered += replies;
            // A short read emptied the socket; the next arrival is a new edge.
            if length < buffer.len() {
                return Ok(answered);
            }
        }
    }

    fn record(&mut self, mut replies: u32, now: u64, latency: &mut Histogram<u64>) -> io::Result<()> {
        while replies > 0 {
            let (due, open) =
                self.open.front_mut().ok_or_else(|| io::Error::other("the server answered more than was asked"))?;
            let step = replies.min(*open);
            latency.saturating_record_n(now.saturating_sub(*due), u64::from(step));
            *open -= step;
            replies -= step;
            if *open == 0 {
                self.open.pop_front();
            }
        }
        Ok(())
    }
}

/// Nanoseconds with two digits: one per cent of resolution in a table that stays in the core's cache.
pub(crate) fn histogram() -> Histogram<u64> {
    let highest = u64::try_from(LATENCY_MAX.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_max(highest, 2).expect("60 s with two digits is a valid histogram")
}

#[cfg(test)]
mod tests;
