//! The first hours of people with real software: what they write, what they type, and what they expect to see then.
//!
//! The programs are Debian's, so what they ask of a container is what programs ask: users, signals, `/dev/stdout`, sockets in shared folders, `fsync`.

pub mod blog;
pub mod database;
pub mod software;
pub mod web;

use crate::kubectl::Kubectl;
use crate::local::wait_until;
use anyhow::{Context as _, ensure};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An answer to a request: its status, its head and its body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One HTTP/1.0 request on a connection of its own. `more`: header lines, each ended by CR LF, and behind an empty line a body.
pub fn request(to: SocketAddr, method: &str, path: &str, more: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let more = if more.contains("\r\n\r\n") { more.to_owned() } else { format!("{more}\r\n") };
    stream.write_all(format!("{method} {path} HTTP/1.0\r\n{more}").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let said = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = said.split_once("\r\n\r\n").with_context(|| format!("an answer cut short: {said:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// The body of a page that must be there.
pub fn page(to: SocketAddr, path: &str) -> anyhow::Result<String> {
    let answer = request(to, "GET", path, "Host: site.example\r\n")?;
    ensure!(answer.status == 200, "{path}: {}\n{}", answer.head, answer.body);
    Ok(answer.body)
}

/// Where a node answers for a Service's node port.
pub fn node_port(k: &Kubectl, service: &str, node: &str) -> anyhow::Result<SocketAddr> {
    let port = k.run(&format!("get service {service} -o jsonpath={{.spec.ports[0].nodePort}}"))?;
    let address =
        k.run(&format!("get node {node} -o 'jsonpath={{.status.addresses[?(@.type==\"InternalIP\")].address}}'"))?;
    format!("{address}:{port}").parse().with_context(|| format!("{address}:{port}"))
}

/// Requests that go on beside what is done meanwhile.
pub struct Visitors {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Visitors {
    pub fn come(to: SocketAddr, path: &'static str) -> Visitors {
        let (stop, answered, failures) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>)>::default();
        let (stopped, count, kept) = (stop.clone(), answered.clone(), failures.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match page(to, path) {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => kept.lock().expect("no visitor panicked").push(format!("{error:#}")),
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Visitors { stop, answered, failures, thread: Some(thread) }
    }

    /// They leave; how many were answered. All must have been, at least `least` of them.
    pub fn leave(mut self, least: usize) -> anyhow::Result<usize> {
        wait_until("enough requests were sent", || Ok(self.answered.load(Ordering::Relaxed) >= least))?;
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok().context("a visitor panicked")?;
        }
        let failures = self.failures.lock().expect("no visitor panicked");
        let answered = self.answered.load(Ordering::Relaxed);
        ensure!(failures.is_empty(), "of {answered} requests {} failed, first: {}", failures.len(), failures[0]);
        Ok(answered)
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
