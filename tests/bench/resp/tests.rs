//! The rules of the reply counter.

use super::*;

const STREAM: &[u8] = b"+OK\r\n$5\r\nab\r\nc\r\n$-1\r\n_\r\n:12\r\n$0\r\n\r\n";

fn count(pieces: &[&[u8]]) -> Result<Tally, ReplyError> {
    let (mut counter, mut tally) = (ReplyCounter::default(), Tally::default());
    for piece in pieces {
        counter.consume(piece, &mut tally)?;
    }
    Ok(tally)
}

#[test]
fn every_kind_of_reply_counts_once() {
    assert_eq!(count(&[STREAM]), Ok(Tally { replies: 6, nulls: 2, value_bytes: 5 }));
}

#[test]
fn a_reply_may_be_cut_anywhere() {
    for at in 0..STREAM.len() {
        let (left, right) = STREAM.split_at(at);
        assert_eq!(count(&[left, right]), count(&[STREAM]), "cut at {at}");
    }
    let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
    assert_eq!(count(&bytes), count(&[STREAM]));
}

#[test]
fn an_unfinished_reply_does_not_count() {
    assert_eq!(count(&[b"$3\r\nabc\r"]).map(|tally| tally.replies), Ok(0));
}

#[test]
fn an_error_reply_stops_the_measurement() {
    assert_eq!(count(&[b"+OK\r\n-OOM too much\r\n"]), Err(ReplyError::Server("OOM too much".to_owned())));
}

#[test]
fn bytes_that_are_no_reply_stop_the_measurement() {
    let long = vec![b'a'; LINE_BYTES_MAX + 1];
    for bytes in
        [b"hello\r\n".as_slice(), b"$\r\n", b"$x\r\n", b"$-2\r\n", b"$99999999999\r\n", b"+OK\n", b"\r\n", &long]
    {
        let answer = count(&[bytes]);
        assert!(matches!(answer, Err(ReplyError::Malformed(_))), "{} gave {answer:?}", bytes.escape_ascii());
    }
}

#[test]
fn a_command_is_rendered_as_an_array_of_values() {
    let mut out = Vec::new();
    render(&mut out, &[b"SET", b"k", b"a\r\nb"]);
    assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n");
}

#[test]
fn the_blocking_client_reads_every_kind_of_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"+PONG\r\n:7\r\n$2\r\nab\r\n$-1\r\n-ERR no\r\n+OK\r\n+OK\r\n").unwrap();
        io::copy(&mut stream, &mut io::sink()).unwrap();
    });
    let mut client = Blocking::open(address).unwrap();
    assert_eq!(client.ask(&[b"A"]).unwrap(), Reply::Simple("PONG".to_owned()));
    assert_eq!(client.ask(&[b"B"]).unwrap(), Reply::Integer(7));
    assert_eq!(client.ask(&[b"C"]).unwrap(), Reply::Value(Some(b"ab".to_vec())));
    assert_eq!(client.ask(&[b"D"]).unwrap(), Reply::Value(None));
    assert!(client.ask(&[b"E"]).is_err());
    assert_eq!(client.send_all(b"", 2).unwrap().replies, 2);
    drop(client);
    server.join().unwrap();
}
