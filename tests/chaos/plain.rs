//! The plain pattern, for comparison: a local cache before Redis, and Redis pub/sub to tell the others what to forget.
//! As widespread libraries have it: read from Redis what is not local; change Redis, then publish; subscribe again
//! after the connection broke. It speaks enough RESP for the clients of a run.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::{
    clock::{Clock, Nanos, nanos},
    wire::{self, Connection, Reply},
};

/// What is published is heard here.
const CHANNEL: &[u8] = b"plain:removed";
/// How long a copy of a value without a life stays in the local cache.
const LOCAL_LIFE: Duration = Duration::from_secs(60);
/// After a lost connection the next try comes so soon.
const RETRY: Duration = Duration::from_millis(50);

/// Values and when they are to be forgotten. The keys of a run are few.
type Local = HashMap<Vec<u8>, (Vec<u8>, Nanos)>;

/// One process: a local cache and its Redis.
struct Plain {
    clock: Clock,
    redis: SocketAddr,
    local: Mutex<Local>,
}

/// Serves until killed.
///
/// # Errors
/// If the address is taken.
pub(crate) fn serve(listen: SocketAddr, redis: SocketAddr) -> io::Result<()> {
    let plain = Arc::new(Plain { clock: Clock::start(), redis, local: Mutex::default() });
    let listener = TcpListener::bind(listen)?;
    let subscriber = Arc::clone(&plain);
    thread::spawn(move || {
        loop {
            // Whatever ends the connection, it is made again.
            let _ = subscriber.follow();
            thread::sleep(RETRY);
        }
    });
    eprintln!(r#"{{"message":"serving","resp":"{listen}","admin":"{listen}"}}"#);
    for client in listener.incoming() {
        let plain = Arc::clone(&plain);
        let client = client?;
        thread::spawn(move || plain.converse(client));
    }
    Ok(())
}

// === impl Plain ===

impl Plain {
    /// Forgets what others publish, until the connection breaks.
    fn follow(&self) -> io::Result<()> {
        let mut connection = Connection::open(self.redis)?.patient()?;
        let mut subscribe = Vec::new();
        wire::command(&mut subscribe, &[b"SUBSCRIBE", CHANNEL]);
        connection.send(&subscribe)?;
        loop {
            let Reply::Array(3) = connection.reply()? else { return Err(io::ErrorKind::InvalidData.into()) };
            let is_message = connection.reply()? == Reply::Bulk(b"message");
            connection.reply()?;
            if let Reply::Bulk(key) = connection.reply()?
                && is_message
            {
                self.local().remove(key);
            }
        }
    }

    /// Answers one client until it goes.
    fn converse(&self, client: TcpStream) -> io::Result<()> {
        let mut client = Connection::of(client)?.patient()?;
        let mut redis = None;
        let mut answers = Vec::new();
        while let Some(words) = client.request()? {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            if self.answer(&words, &mut redis, &mut answers).is_err() {
                redis = None;
                answers.extend_from_slice(b"-ERR Redis does not answer\r\n");
            }
            if !client.has_more() {
                client.send(&answers)?;
                answers.clear();
            }
        }
        Ok(())
    }

    /// # Errors
    /// If Redis does not answer.
    fn answer(&self, words: &[&[u8]], redis: &mut Option<Connection>, out: &mut Vec<u8>) -> io::Result<()> {
        match words {
            [b"GET", key] => bulk(out, self.get(key, redis)?.as_deref()),
            [b"MGET", keys @ ..] => {
                let values: Vec<_> = keys.iter().map(|key| self.get(key, redis)).collect::<io::Result<_>>()?;
                out.extend_from_slice(format!("*{}\r\n", values.len()).as_bytes());
                values.iter().for_each(|value| bulk(out, value.as_deref()));
            }
            [b"SET", key, value, life @ ..] => {
                let store = [&[b"SET", *key, *value], life].concat();
                let redis = self.redis(redis)?;
                redis.ask(&store)?;
                redis.ask(&[b"PUBLISH", CHANNEL, key])?;
                self.keep(key, value, millis(life.last().copied()));
                out.extend_from_slice(b"+OK\r\n");
            }
            [b"DEL", key] => {
                let redis = self.redis(redis)?;
                redis.ask(&[b"DEL", key])?;
                redis.ask(&[b"PUBLISH", CHANNEL, key])?;
                self.local().remove(*key);
                out.extend_from_slice(b":1\r\n");
            }
            _ => out.extend_from_slice(b"-ERR unknown command\r\n"),
        }
        Ok(())
    }

    fn get(&self, key: &[u8], redis: &mut Option<Connection>) -> io::Result<Option<Vec<u8>>> {
        if let Some((value, until)) = self.local().get(key)
            && self.clock.nanos() < *until
        {
            return Ok(Some(value.clone()));
        }
        let redis = self.redis(redis)?;
        let Reply::Bulk(value) = redis.ask(&[b"GET", key])? else { return Ok(None) };
        let value = value.to_vec();
        let Reply::Integer(left) = redis.ask(&[b"PTTL", key])? else { return Ok(None) };
        if left != -2 {
            self.keep(key, &value, u64::try_from(left).ok());
        }
        Ok(Some(value))
    }

    fn keep(&self, key: &[u8], value: &[u8], life_ms: Option<u64>) {
        let life = life_ms.map_or(LOCAL_LIFE, Duration::from_millis).min(LOCAL_LIFE);
        self.local().insert(key.to_vec(), (value.to_vec(), self.clock.nanos() + nanos(life)));
    }

    fn redis<'a>(&self, open: &'a mut Option<Connection>) -> io::Result<&'a mut Connection> {
        if open.is_none() {
            *open = Some(Connection::open(self.redis)?);
        }
        open.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(word: Option<&[u8]>) -> Option<u64> {
    std::str::from_utf8(word?).ok()?.parse().ok()
}

fn bulk(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            out.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        None => out.extend_from_slice(b"$-1\r\n"),
    }
}
