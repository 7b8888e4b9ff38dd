//! Every stream, by every client that is here: does a byte arrive before the end, does much arrive whole both ways, does a slow
//! reader lose nothing, does a client that goes end what it began, do exit code, end of input, window and ^C arrive.

use crate::busybox;
use crate::kubectl::{self, Running};
use crate::local::{Local, PATIENCE, SKIFF, text, wait_until};
use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Once for each protocol; many times what all queues and windows on the way hold.
const LARGE_BYTES: usize = 100 * MIB;
const COPY_BYTES: usize = 50 * MIB;

/// A client of exec, and how it is told which protocol to speak.
struct Client {
    name: String,
    program: String,
    env: &'static [(&'static str, &'static str)],
}

const SPDY: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];
const WEBSOCKET: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "true"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "true")];

fn clients() -> Vec<Client> {
    let mut clients = vec![Client { name: "skiff".into(), program: SKIFF.into(), env: &[] }];
    for program in kubectl::all() {
        for (protocol, env) in [("WebSocket", WEBSOCKET), ("SPDY", SPDY)] {
            clients.push(Client { name: format!("{program} by {protocol}"), program: program.clone(), env });
        }
    }
    clients
}

impl Client {
    fn command(&self, local: &Local, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).envs(self.env.iter().copied()).env("KUBECONFIG", local.dir.join("kubeconfig"));
        command
    }

    fn spawn(&self, local: &Local, words: &[&str]) -> anyhow::Result<Running> {
        let mut command = self.command(local, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Running(command.spawn().with_context(|| format!("starting {}", self.name))?))
    }

    /// `exec` of a script in the pod, with input or without.
    fn exec(&self, local: &Local, input: bool, script: &str) -> anyhow::Result<Running> {
        let mut words = vec!["exec"];
        if input {
            words.push("-i");
        }
        words.extend(["streams", "--", "sh", "-c", script]);
        self.spawn(local, &words)
    }
}

/// Numbered lines: what is lost, doubled or in the wrong order changes the digest.
struct Lines {
    line: u64,
    left: usize,
    ready: Vec<u8>,
}

fn lines(bytes: usize) -> Lines {
    Lines { line: 0, left: bytes, ready: Vec::new() }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.ready.len() < buffer.len() {
            self.line += 1;
            self.ready.extend_from_slice(format!("{:0>63}\n", self.line).as_bytes());
        }
        let count = buffer.len().min(self.left);
        buffer[..count].copy_from_slice(&self.ready[..count]);
        self.ready.drain(..count);
        self.left -= count;
        Ok(count)
    }
}

fn digest(mut from: impl Read) -> anyhow::Result<(usize, String)> {
    let (mut hash, mut buffer, mut all) = (Sha256::new(), vec![0; MIB], 0);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                all += count;
            }
        }
    }
    Ok((all, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// The pod that all of this reaches into. It has an echo server and a file.
pub fn target(local: &Local) -> anyhow::Result<()> {
    busybox::pod(local, "streams", "nc -ll -p 7000 -e cat & nc -ll -p 7001 -e cat & exec sleep 100000", "")
}

/// As a person or a script does it: an answer is typed only after the question was read.
fn conversation(local: &Local, client: &Client) -> anyhow::Result<()> {
    let script = "echo name?; read n; echo hello $n; cat; echo end; echo aside >&2; exit 7";
    let mut running = client.exec(local, true, script)?;
    let mut out = BufReader::new(running.0.stdout.take().context("an output")?);
    let mut input = running.0.stdin.take().context("an input")?;
    let mut line = String::new();
    let mut expect = |out: &mut BufReader<_>, text: &str| -> anyhow::Result<()> {
        line.clear();
        out.read_line(&mut line)?;
        ensure!(line == text, "said {line:?} instead of {text:?}");
        Ok(())
    };
    expect(&mut out, "name?\n")?;
    input.write_all(b"you\n")?;
    expect(&mut out, "hello you\n")?;
    input.write_all(b"more\n")?;
    expect(&mut out, "more\n")?;
    drop(input);
    expect(&mut out, "end\n")?;
    let code = running.code()?;
    ensure!(code == Some(7), "the exit code is {code:?}");
    let code = client.exec(local, false, "kill -TERM $$")?.code()?;
    ensure!(code == Some(143), "after a signal the exit code is {code:?}");
    Ok(())
}

/// Much, both ways, whole.
fn whole(local: &Local, client: &Client, bytes: usize) -> anyhow::Result<()> {
    let expect = digest(lines(bytes))?;
    let mut running = client.exec(local, true, "sha256sum | cut -d' ' -f1")?;
    let mut input = running.0.stdin.take().context("an input")?;
    std::io::copy(&mut lines(bytes), &mut input)?;
    drop(input);
    let mut said = String::new();
    running.0.stdout.take().context("an output")?.read_to_string(&mut said)?;
    ensure!(said.trim() == expect.1, "up: {said}");
    let script = format!("awk 'BEGIN {{ for (i = 1; ; i++) printf \"%063d\\n\", i }}' | head -c {bytes}");
    let mut running = client.exec(local, false, &script)?;
    let got = digest(running.0.stdout.take().context("an output")?)?;
    ensure!(got == expect, "down: {got:?} instead of {expect:?}");
    let code = running.code()?;
    ensure!(code == Some(0), "down: exit code {code:?}");
    Ok(())
}

/// A person with a terminal: prompt, size of the window, ^C, the shell's exit code.
fn terminal(local: &Local, client: &Client) -> anyhow::Result<()> {
    let size = nix::pty::Winsize { ws_row: 43, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None)?;
    let end = || -> anyhow::Result<Stdio> { Ok(Stdio::from(pty.slave.try_clone()?)) };
    let mut command = client.command(local, &["exec", "-it", "streams", "--", "sh"]);
    command.stdin(end()?).stdout(end()?).stderr(end()?);
    let mut running = Running(command.spawn()?);
    drop(command);
    let (slave, mut master) = (pty.slave, std::fs::File::from(pty.master));
    let mut seen = String::new();
    await_text(&mut master, &mut seen, "# ")?;
    master.write_all(b"stty size\r")?;
    await_text(&mut master, &mut seen, "43 132")?;
    let size = nix::pty::Winsize { ws_row: 20, ws_col: 70, ws_xpixel: 0, ws_ypixel: 0 };
    resize(&slave, &size, &running.0)?;
    let begun = Instant::now();
    while !seen.contains("20 70") {
        ensure!(begun.elapsed() < PATIENCE, "a new size does not arrive: {seen}");
        master.write_all(b"stty size; echo loo''ked\r")?;
        await_text(&mut master, &mut seen, "looked")?;
        if !seen.contains("20 70") {
            seen.clear();
        }
    }
    seen.clear();
    master.write_all(b"echo on; sleep 1000\r")?;
    await_text(&mut master, &mut seen, "\non")?;
    master.write_all(b"\x03")?;
    await_text(&mut master, &mut seen, "# ")?;
    master.write_all(b"echo co''de $?; exit 5\r")?;
    await_text(&mut master, &mut seen, "code 130")?;
    let begun = Instant::now();
    while running.0.try_wait()?.is_none() {
        ensure!(begun.elapsed() < PATIENCE, "the client does not end with the shell: {seen}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let code = running.code()?;
    ensure!(code == Some(5), "the shell's exit code is {code:?}");
    Ok(())
}

/// Sets the size of a terminal and tells the program in it, which has it as its standard input but not as its controlling terminal.
fn resize(slave: &OwnedFd, size: &nix::pty::Winsize, child: &Child) -> anyhow::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the size outlives the call and has the type that TIOCSWINSZ takes.
    let result = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSWINSZ, size) };
    ensure!(result == 0, "the size cannot be set");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH)?)
}

fn await_text(from: &mut std::fs::File, seen: &mut String, wanted: &str) -> anyhow::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let begun = Instant::now();
    while !seen.contains(wanted) {
        ensure!(begun.elapsed() < PATIENCE, "no {wanted:?} in {seen:?}");
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(200u8))? > 0 {
            let mut buffer = [0; 4096];
            match from.read(&mut buffer)? {
                0 => bail!("the terminal closed after {seen:?}"),
                count => seen.push_str(&String::from_utf8_lossy(&buffer[..count])),
            }
        }
    }
    Ok(())
}

/// What of this text the processes of the pod have in their command lines.
fn processes(local: &Local, marker: &str) -> anyhow::Result<usize> {
    let said = local.run(&["exec", "streams", "--", "ps", "-o", "args"])?;
    Ok(said.lines().filter(|line| line.contains(marker)).count())
}

pub fn exec(local: &Local) -> anyhow::Result<()> {
    target(local)?;
    let clients = clients();
    // Slow readers first, so that the time runs for all of them at once.
    let slow = clients
        .iter()
        .map(|client| client.exec(local, false, "yes | head -c 3000000"))
        .collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let mut protocols = Vec::new();
    for client in &clients {
        let of = |what: &'static str| move || format!("{what}, {}", client.name);
        conversation(local, client).with_context(of("a conversation"))?;
        terminal(local, client).with_context(of("a terminal"))?;
        let first = !protocols.contains(&client.env);
        protocols.push(client.env);
        whole(local, client, if first { LARGE_BYTES } else { 4 * MIB }).with_context(of("much"))?;
    }
    // Longer than the output of an ended program was kept once.
    std::thread::sleep(Duration::from_millis(2500).saturating_sub(begun.elapsed()));
    for (mut running, client) in slow.into_iter().zip(&clients) {
        let (count, _) = digest(running.0.stdout.take().context("an output")?)?;
        ensure!(count == 3_000_000, "a slow reader got {count} bytes, {}", client.name);
    }
    Ok(())
}

/// Clients that are killed: while the program is silent, while it writes what nobody reads, while it reads nothing of what is sent.
pub fn clients_that_go(local: &Local) -> anyhow::Result<()> {
    target(local)?;
    let mut running = Vec::new();
    for client in clients() {
        for script in ["sleep 4241 & echo on; sleep 4242", "echo on; yes 4243", "echo on; sleep 4244"] {
            let mut one = client.exec(local, true, script)?;
            let mut byte = [0];
            one.0.stdout.as_mut().context("an output")?.read_exact(&mut byte)?;
            if script.ends_with("4244") {
                // Until nothing goes any more; the input is not read.
                let mut input = one.0.stdin.take().context("an input")?;
                std::thread::spawn(move || while input.write_all(&[b'x'; 65536]).is_ok() {});
            }
            running.push(one);
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    ensure!(processes(local, "424")? >= running.len(), "the programs do not run");
    drop(running);
    wait_until("nothing of the clients' programs is left", || Ok(processes(local, "424")? == 0)).with_context(|| {
        local.run(&["exec", "streams", "--", "ps", "-o", "pid,args"]).unwrap_or_else(|error| format!("{error:#}"))
    })
}

/// Files and pipes, as everybody uses them.
pub fn copies(local: &Local) -> anyhow::Result<()> {
    target(local)?;
    let file = local.dir.join("copied");
    std::io::copy(&mut lines(COPY_BYTES), &mut std::fs::File::create(&file)?)?;
    let expect = digest(lines(COPY_BYTES))?;
    let (path, back) = (file.display().to_string(), local.dir.join("copied-back").display().to_string());
    for client in clients().iter().filter(|client| client.program != SKIFF).take(2) {
        for words in [["cp", &path, "streams:/tmp/copied"], ["cp", "streams:/tmp/copied", &back]] {
            let output = client.command(local, &words).output()?;
            ensure!(output.status.success(), "{words:?}, {}: {}", client.name, text(&output.stderr));
        }
        let got = digest(std::fs::File::open(&back)?)?;
        ensure!(got == expect, "the copy is {got:?} instead of {expect:?}, {}", client.name);
        std::fs::remove_file(&back)?;
    }
    for client in clients() {
        let (dir, name) = (Path::new(&path).parent().context("a folder")?, "copied");
        let mut tar = Command::new("tar").arg("-C").arg(dir).args(["-c", name]).stdout(Stdio::piped()).spawn()?;
        let mut command = client.command(local, &["exec", "-i", "streams", "--", "tar", "-x", "-C", "/tmp"]);
        let output = command.stdin(tar.stdout.take().context("a pipe")?).output()?;
        tar.wait()?;
        ensure!(output.status.success(), "tar, {}: {}", client.name, text(&output.stderr));
        let said = local.run(&["exec", "streams", "--", "sha256sum", "/tmp/copied"])?;
        ensure!(said.starts_with(&expect.1), "what tar brought is {said}, {}", client.name);
    }
    Ok(std::fs::remove_file(&file)?)
}

/// A log that is written fast, followed from its beginning: every line once and in order.
pub fn logs(local: &Local) -> anyhow::Result<()> {
    const LINES: usize = 50_000;
    busybox::pod(local, "talker-fast", &format!("sleep 1; seq 1 {LINES}; sleep 2"), "")?;
    let mut following = Vec::new();
    for client in clients().into_iter().filter(|client| client.env != SPDY) {
        following.push((client.spawn(local, &["logs", "-f", "talker-fast"])?, client.name));
    }
    for (mut running, name) in following {
        let out = BufReader::new(running.0.stdout.take().context("an output")?);
        let mut expect = 0;
        for line in out.lines() {
            expect += 1;
            let line = line?;
            ensure!(line == expect.to_string(), "line {expect} is {line:?}, {name}");
        }
        ensure!(expect == LINES, "{expect} lines, {name}");
    }
    local.run(&["delete", "pod", "talker-fast"]).map(drop)
}

/// A forwarded port: much both ways at once, a connection that is not read beside one that is, and a client that goes.
pub fn port_forward(local: &Local) -> anyhow::Result<()> {
    target(local)?;
    for client in clients().iter().filter(|client| client.program != SKIFF) {
        let mut running = client.spawn(local, &["port-forward", "pod/streams", ":7000"])?;
        let mut said = String::new();
        BufReader::new(running.0.stdout.as_mut().context("an output")?).read_line(&mut said)?;
        let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).context(said.clone())?;
        let mut stream = TcpStream::connect(address)?;
        let mut up = stream.try_clone()?;
        let sender = std::thread::spawn(move || -> std::io::Result<()> {
            std::io::copy(&mut lines(COPY_BYTES), &mut up)?;
            up.shutdown(std::net::Shutdown::Write)
        });
        let expect = digest(lines(COPY_BYTES))?;
        let mut first = vec![0; 64];
        stream.read_exact(&mut first)?;
        let got = digest(first.as_slice().chain(&mut stream))?;
        ensure!(got == expect, "the echo is {got:?} instead of {expect:?}, {}", client.name);
        sender.join().ok().context("the sender panicked")??;
        // A client that goes takes its connections with it.
        let mut left = TcpStream::connect(address)?;
        left.write_all(b"x")?;
        left.read_exact(&mut [0])?;
        let cats = || processes(local, "cat");
        ensure!(cats()? >= 1, "the connection is not in the pod");
        drop(running);
        // The two servers name `cat` in their own arguments.
        wait_until("the pod's end of the connection is closed", || Ok(cats()? <= 2))?;
    }
    Ok(())
}

/// Two hundred at once: all answer, and nothing is left on the node afterwards.
pub fn two_hundred(local: &Local) -> anyhow::Result<()> {
    const MANY: usize = 200;
    target(local)?;
    let cluster = local.cluster()?;
    let node = local.run(&["get", "pod", "streams", "-o", "jsonpath={.spec.nodeName}"])?;
    let status = cluster.host.status()?;
    let pid = status.nodes.iter().find(|n| n.name == node).and_then(|n| n.pid).context("the node's agent")?;
    let pid = cluster.host.outer_pid(pid)?;
    let descriptors = || -> anyhow::Result<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
    let threads = || -> anyhow::Result<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count()) };
    let before = (descriptors()?, threads()?);
    let client = Client { name: "skiff".into(), program: SKIFF.into(), env: &[] };
    let begun = Instant::now();
    let mut all = Vec::new();
    for _ in 0..MANY {
        all.push(client.exec(local, true, "echo on; cat")?);
    }
    for one in &mut all {
        one.0.stdout.as_mut().context("an output")?.read_exact(&mut [0; 3])?;
    }
    let open = (descriptors()?, threads()?);
    for mut one in all {
        one.0.stdin.take().context("an input")?.write_all(b"bye")?;
        let mut said = String::new();
        one.0.stdout.take().context("an output")?.read_to_string(&mut said)?;
        ensure!(said == "bye" && one.code()? == Some(0), "said {said:?}");
    }
    println!(
        "{MANY} execs in {} ms; descriptors and threads of the agent: {before:?}, then {open:?}",
        begun.elapsed().as_millis()
    );
    ensure!(open.1 <= before.1 + 8, "threads went from {} to {}", before.1, open.1);
    wait_until("the agent has closed everything", || Ok(descriptors()? <= before.0 + 8))
}
