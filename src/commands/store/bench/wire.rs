//! The load generator's own HTTP/2 client: as little work a call as can be, because it shares the processors with what it measures.
//!
//! It speaks what gRPC needs and no more (RFC 9113): header fields go out as numbers of the table that both sides keep (RFC 7541), many
//! calls in one write, and of an answer's fields only the end of the stream is looked at: gRPC sends a message exactly when a call
//! succeeds, so an answer without one is an error. Windows for what comes in are as wide as the protocol allows.

use anyhow::{Context as _, bail, ensure};
use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const FRAME_BYTES_MAX: usize = 16384;
const WINDOW_MAX: u32 = (1 << 31) - 1;
const WINDOW_AT_FIRST: u32 = 65_535;
/// What was received is given back when it is so much.
const GIVE_BACK: u32 = 1 << 29;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const PADDED: u8 = 8;
/// Numbers of names in the static table, and the number of the newest entry of the other one.
const AUTHORITY: u8 = 1;
const POST: u8 = 3;
const PATH: u8 = 4;
const HTTP: u8 = 6;
const CONTENT_TYPE: u8 = 31;
const NEWEST: usize = 62;

/// A connection with calls under way. Nothing here waits: see [`super::pool`].
pub struct Connection {
    stream: TcpStream,
    authority: String,
    out: Vec<u8>,
    input: Vec<u8>,
    next_stream: u32,
    /// Bytes that the server takes now.
    window: i64,
    /// Calls that wait for the window.
    waiting: VecDeque<(&'static str, usize, Vec<u8>)>,
    /// Fields that the server remembers, in the order in which it was told them.
    told: Vec<(u8, &'static str)>,
    calls: HashMap<u32, Call>,
    received: u32,
    spare: Vec<Vec<u8>>,
}

/// A call under way.
struct Call {
    tag: usize,
    /// What has come of its answer; of a stream, what has come of the next message.
    body: Vec<u8>,
    streaming: bool,
    received: u32,
}

/// A call that has its answer. None: the server answered with an error.
pub struct Done {
    pub tag: usize,
    pub answer: Option<Vec<u8>>,
}

impl Connection {
    pub fn new(addr: &str) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(addr).with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut out = PREFACE.to_vec();
        frame(&mut out, 6, SETTINGS, 0, 0);
        // SETTINGS_INITIAL_WINDOW_SIZE
        out.extend_from_slice(&4u16.to_be_bytes());
        out.extend_from_slice(&WINDOW_MAX.to_be_bytes());
        window_update(&mut out, 0, WINDOW_MAX - WINDOW_AT_FIRST);
        Ok(Connection {
            stream,
            authority: addr.to_owned(),
            out,
            input: Vec::new(),
            next_stream: 1,
            window: i64::from(WINDOW_AT_FIRST),
            waiting: VecDeque::new(),
            told: Vec::new(),
            calls: HashMap::new(),
            received: 0,
            spare: Vec::new(),
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether something waits to be written.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Begins a call with one message each way. `tag` comes back with the answer.
    pub fn call(&mut self, path: &'static str, tag: usize, message: &[u8]) {
        if self.window < message.len() as i64 + 5 {
            self.waiting.push_back((path, tag, message.to_vec()));
            return;
        }
        let stream = self.begin(path, tag, false);
        self.say(stream, message, true);
    }

    /// Begins a stream of messages each way.
    pub fn open(&mut self, path: &'static str, tag: usize) -> u32 {
        self.begin(path, tag, true)
    }

    /// Sends a message on a stream.
    pub fn say(&mut self, stream: u32, message: &[u8], last: bool) {
        let whole = message.len() + 5;
        self.window -= whole as i64;
        let flag = |ends: bool| if ends && last { END_STREAM } else { 0 };
        let first = message.len().min(FRAME_BYTES_MAX - 5);
        frame(&mut self.out, first + 5, DATA, flag(first == message.len()), stream);
        self.out.push(0);
        self.out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.out.extend_from_slice(&message[..first]);
        let mut rest = &message[first..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
            frame(&mut self.out, part.len(), DATA, flag(after.is_empty()), stream);
            self.out.extend_from_slice(part);
            rest = after;
        }
    }

    fn begin(&mut self, path: &'static str, tag: usize, streaming: bool) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let at = self.out.len();
        frame(&mut self.out, 0, HEADERS, END_HEADERS, stream);
        self.out.extend_from_slice(&[0x80 | POST, 0x80 | HTTP]);
        self.field(PATH, path);
        self.field(AUTHORITY, "");
        self.field(CONTENT_TYPE, "application/grpc");
        self.field(0, "trailers");
        let len = (self.out.len() - at - FRAME_HEADER) as u32;
        self.out[at..at + 3].copy_from_slice(&len.to_be_bytes()[1..]);
        let body = self.spare.pop().unwrap_or_default();
        self.calls.insert(stream, Call { tag, body, streaming, received: 0 });
        stream
    }

    /// A header field: whole the first time, as a number later.
    fn field(&mut self, name: u8, value: &'static str) {
        if let Some(i) = self.told.iter().position(|field| *field == (name, value)) {
            self.out.push(0x80 | (NEWEST + self.told.len() - 1 - i) as u8);
            return;
        }
        self.told.push((name, value));
        self.out.push(0x40 | name);
        let text = |out: &mut Vec<u8>, text: &str| {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        };
        if name == 0 {
            text(&mut self.out, "te");
        }
        text(&mut self.out, if name == AUTHORITY { &self.authority } else { value });
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("sending to the server"),
            }
        }
        self.out.drain(..written);
        Ok(())
    }

    /// Reads what is there, once: answers go to `done`, messages of streams to `message`.
    pub fn receive(
        &mut self,
        scratch: &mut [u8],
        done: &mut Vec<Done>,
        message: &mut dyn FnMut(usize, &[u8]),
    ) -> anyhow::Result<()> {
        let read = match self.stream.read(scratch) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(e) => return Err(e).context("reading from the server"),
        };
        let mut held = std::mem::take(&mut self.input);
        let used = if held.is_empty() {
            let used = self.frames(&scratch[..read], done, message)?;
            held.extend_from_slice(&scratch[used..read]);
            0
        } else {
            held.extend_from_slice(&scratch[..read]);
            self.frames(&held, done, message)?
        };
        held.drain(..used);
        self.input = held;
        if self.received >= GIVE_BACK {
            window_update(&mut self.out, 0, self.received);
            self.received = 0;
        }
        Ok(())
    }

    /// Takes in whole frames; how many bytes they were.
    fn frames(
        &mut self,
        input: &[u8],
        done: &mut Vec<Done>,
        message: &mut dyn FnMut(usize, &[u8]),
    ) -> anyhow::Result<usize> {
        let mut at = 0;
        while let Some(head) = input.get(at..at + FRAME_HEADER) {
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & WINDOW_MAX;
            let Some(payload) = input.get(at + FRAME_HEADER..at + FRAME_HEADER + len) else { break };
            at += FRAME_HEADER + len;
            match kind {
                DATA => self.data(stream, flags, payload, message)?,
                HEADERS if flags & END_STREAM != 0 => self.ended(stream, done),
                RST_STREAM => bail!("the server broke off a call"),
                GOAWAY => bail!("the server is closing the connection"),
                SETTINGS if flags & ACK == 0 => frame(&mut self.out, 0, SETTINGS, ACK, 0),
                PING if flags & ACK == 0 => {
                    frame(&mut self.out, payload.len(), PING, ACK, 0);
                    self.out.extend_from_slice(payload);
                }
                WINDOW_UPDATE if stream == 0 => {
                    let more = payload.first_chunk::<4>().context("a WINDOW_UPDATE without its number")?;
                    self.window += i64::from(u32::from_be_bytes(*more));
                    while self.waiting.front().is_some_and(|(_, _, m)| self.window >= m.len() as i64 + 5) {
                        if let Some((path, tag, message)) = self.waiting.pop_front() {
                            self.call(path, tag, &message);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(at)
    }

    fn data(
        &mut self,
        stream: u32,
        flags: u8,
        payload: &[u8],
        message: &mut dyn FnMut(usize, &[u8]),
    ) -> anyhow::Result<()> {
        ensure!(flags & PADDED == 0, "the server pads its answers, which this client does not read");
        self.received += payload.len() as u32;
        let Some(call) = self.calls.get_mut(&stream) else { return Ok(()) };
        if !call.streaming {
            call.body.extend_from_slice(payload);
            return Ok(());
        }
        call.received += payload.len() as u32;
        if call.received >= GIVE_BACK {
            window_update(&mut self.out, stream, call.received);
            call.received = 0;
        }
        if call.body.is_empty() {
            let used = messages(payload, call.tag, message);
            call.body.extend_from_slice(&payload[used..]);
        } else {
            call.body.extend_from_slice(payload);
            let used = messages(&call.body, call.tag, message);
            call.body.drain(..used);
        }
        Ok(())
    }

    fn ended(&mut self, stream: u32, done: &mut Vec<Done>) {
        let Some(mut call) = self.calls.remove(&stream) else { return };
        let answer = match call.body.len() {
            0..5 => None,
            _ => {
                call.body.drain(..5);
                Some(call.body)
            }
        };
        done.push(Done { tag: call.tag, answer });
    }

    /// Ends a stream.
    pub fn cancel(&mut self, stream: u32) {
        self.calls.remove(&stream);
        frame(&mut self.out, 4, RST_STREAM, 0, stream);
        // CANCEL
        self.out.extend_from_slice(&8u32.to_be_bytes());
    }

    /// Takes an answer's memory back, for another.
    pub fn recycle(&mut self, mut body: Vec<u8>) {
        body.clear();
        self.spare.push(body);
    }
}

/// Hands out the whole messages in a stream's bytes; how many bytes they were.
fn messages(input: &[u8], tag: usize, message: &mut dyn FnMut(usize, &[u8])) -> usize {
    let mut at = 0;
    while let Some([_, a, b, c, d]) = input.get(at..at + 5) {
        let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let Some(body) = input.get(at + 5..at + 5 + len) else { break };
        message(tag, body);
        at += 5 + len;
    }
    at
}

fn frame(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(len as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn window_update(out: &mut Vec<u8>, stream: u32, more: u32) {
    frame(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&more.to_be_bytes());
}
