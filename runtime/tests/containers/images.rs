//! Images in and out: archives, names, collection, a registry on 127.0.0.1.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::Failed;
use skiff_runtime::image::{Credentials, Digest, ImageName};
use skiff_runtime::{Error, ImageBuilder, ImageStore};

use super::fixture::{IMAGE, Test, equal, holds, with};

pub const TESTS: &[Test] = &[
    ("images::out_and_in_again", out_and_in_again),
    ("images::collection_counts_references", collection_counts_references),
    ("images::docker_save", docker_save),
    ("images::damage_is_found", damage_is_found),
    ("images::pull_from_a_registry", pull_from_a_registry),
    ("images::pull_with_a_token", pull_with_a_token),
    ("images::hostile_registries_exhaust_nothing", hostile_registries_exhaust_nothing),
    ("images::credentials_count_for_who_has_them", credentials_count_for_who_has_them),
];

fn out_and_in_again() -> Result<(), Failed> {
    with(async |fixture| {
        let mut archive = Vec::new();
        fixture.runtime.images().export(IMAGE, &mut archive)?;
        let other = ImageStore::open(&fixture.dir.join("other"), &[])?;
        let images = other.import(&archive[..])?;
        let original = fixture.runtime.images().resolve(IMAGE).ok_or("no image")?;
        equal(images.len(), 1)?;
        equal(&images[0].id, &original.id)?;
        equal(images[0].names.as_slice(), &[IMAGE.to_owned()])?;
        holds("by id", other.resolve(original.id.as_str()).is_some())?;
        holds("by digest", other.resolve(&format!("localhost/shell@{}", original.manifest)).is_some())?;
        other.tag(IMAGE, "nginx:1")?;
        holds("by short name", other.resolve("nginx:1").is_some())?;
        let again = ImageStore::open(&fixture.dir.join("other"), &[])?;
        equal(again.list().len(), 1)?;
        holds("not an archive", matches!(other.import(&b"junk"[..]), Err(Error::Format { .. } | Error::Io { .. })))
    })
}

fn collection_counts_references() -> Result<(), Failed> {
    with(async |fixture| {
        let images = fixture.runtime.images();
        let small = ImageBuilder::new().file("/only", "x", 0o644).build(images, "small")?;
        equal(images.collect()?.images, 0)?;
        let pin = images.pin("small")?;
        images.remove("small")?;
        equal(images.collect()?.images, 0)?;
        drop(pin);
        let writing = images.writing();
        holds("not while something comes in", images.collect()?.busy)?;
        drop(writing);
        let freed = images.collect()?;
        equal((freed.images, freed.objects), (1, 4))?;
        holds("gone", images.resolve(small.id.as_str()).is_none())?;
        let (state, _) = fixture.run(&fixture.pod("p").await?, fixture.container("c", "true")).await?;
        equal(state.exit_code, 0)
    })
}

fn docker_save() -> Result<(), Failed> {
    with(async |fixture| {
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        layer.append_data(&mut header, "hi", &b"hi"[..])?;
        let layer = layer.into_inner()?;
        let diff_id = Digest::of(&layer);
        let config = format!(
            r#"{{"architecture":"","os":"linux","config":{{"Cmd":["x"]}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        );
        let manifest = r#"[{"Config":"c.json","RepoTags":["app:v1"],"Layers":["l/layer.tar"]}]"#;
        let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, bytes) in
            [("l/layer.tar", layer.as_slice()), ("manifest.json", manifest.as_bytes()), ("c.json", config.as_bytes())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes)?;
        }
        let bytes = archive.into_inner()?.finish()?;
        let images = fixture.runtime.images().import(&bytes[..])?;
        equal(images[0].names.as_slice(), &["docker.io/library/app:v1".to_owned()])?;
        equal(images[0].config.cmd.as_slice(), &["x".to_owned()])
    })
}

fn damage_is_found() -> Result<(), Failed> {
    with(async |fixture| {
        let mut archive = Vec::new();
        fixture.runtime.images().export(IMAGE, &mut archive)?;
        let at = archive.len() / 2;
        archive[at] ^= 1;
        let other = ImageStore::open(&fixture.dir.join("other"), &[])?;
        let error = other.import(&archive[..]).err().map(|error| error.to_string()).unwrap_or_default();
        holds(&format!("{error:?} names the digests"), error.contains("digest"))?;
        equal(other.list().len(), 0)
    })
}

/// Serves one image's blobs as a registry does, on a thread, for as long as the test runs. `authorization`: what requests must carry.
fn registry(
    blobs: std::path::PathBuf,
    manifest: String,
    authorization: Option<&'static str>,
) -> Result<std::net::SocketAddr, Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = Vec::new();
            let mut byte = [0u8; 1];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                request.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
            let name = path.rsplit('/').next().unwrap_or_default();
            let hex = if name == "v1" { manifest.as_str() } else { name.trim_start_matches("sha256:") };
            let known = authorization.is_none_or(|wanted| text.contains(wanted));
            let answer = if path == "/v2/" { Some(Vec::new()) } else { std::fs::read(blobs.join(hex)).ok() };
            let error = |code: &str, text: &str| {
                format!(r#"{{"errors":[{{"code":"{code}","message":"{text}"}}]}}"#).into_bytes()
            };
            let (status, body) = match answer {
                _ if !known => {
                    ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"", error("UNAUTHORIZED", "sign in"))
                }
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", error("MANIFEST_UNKNOWN", "manifest unknown")),
            };
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    Ok(address)
}

fn pull_from_a_registry() -> Result<(), Failed> {
    with(async |fixture| {
        let images = fixture.runtime.images();
        let record = images.resolve(IMAGE).ok_or("no image")?;
        let address = registry(fixture.dir.join("images/blobs/sha256"), record.manifest.hex().into(), None)?;
        let other = ImageStore::open(&fixture.dir.join("other"), &[])?;
        let pulled = other.pull(&format!("{address}/shell:v1"), None).await?;
        equal(&pulled.id, &record.id)?;
        equal(pulled.names.as_slice(), &[format!("{address}/shell:v1")])?;
        holds("it is everybody's", pulled.open_to(&ImageName::parse(&format!("{address}/shell:v1"))?, &[]))?;
        match other.pull(&format!("{address}/shell:absent"), None).await {
            Err(Error::Pull { not_found: true, .. }) => Ok(()),
            other => Err(format!("expected no such image, got {other:?}").into()),
        }
    })
}

/// What one pod's credentials brought here is not another's, until the registry gives it to that one too.
fn credentials_count_for_who_has_them() -> Result<(), Failed> {
    with(async |fixture| {
        let record = fixture.runtime.images().resolve(IMAGE).ok_or("no image")?;
        let blobs = fixture.dir.join("images/blobs/sha256");
        // user:right
        let address = registry(blobs, record.manifest.hex().into(), Some("Basic dXNlcjpyaWdodA=="))?;
        let credentials = |password: &str| Credentials { username: "user".into(), password: password.into() };
        let (right, wrong) = (credentials("right"), credentials("wrong"));
        let text = format!("{address}/shell:v1");
        let name = ImageName::parse(&text)?;
        let other = ImageStore::open(&fixture.dir.join("other"), &[])?;
        other.pull(&text, Some(&right)).await?;
        let check = |store: &ImageStore, known: &[Credentials], expect: bool| {
            let record = store.resolve(&text).ok_or("no image")?;
            equal((known.len(), record.open_to(&name, known)), (known.len(), expect))
        };
        check(&other, &[], false)?;
        check(&other, std::slice::from_ref(&wrong), false)?;
        check(&other, &[wrong.clone(), right.clone()], true)?;
        // Every blob is here: the registry is asked all the same.
        holds("the registry refuses nobody", other.pull(&text, None).await.is_err())?;
        holds("the registry refuses a wrong password", other.pull(&text, Some(&wrong)).await.is_err())?;
        check(&other, &[wrong], false)?;
        // It is remembered.
        drop(other);
        let other = ImageStore::open(&fixture.dir.join("other"), &[])?;
        check(&other, &[], false)?;
        check(&other, std::slice::from_ref(&right), true)?;
        let kept = std::fs::read_to_string(fixture.dir.join("other/images.json"))?;
        holds("no password is kept", !kept.contains("right"))?;
        // What was here before, from elsewhere, is everybody's and stays so.
        let mut archive = Vec::new();
        fixture.runtime.images().tag(IMAGE, &text)?;
        fixture.runtime.images().export(&text, &mut archive)?;
        let third = ImageStore::open(&fixture.dir.join("third"), &[])?;
        third.import(&archive[..])?;
        check(&third, &[], true)?;
        third.pull(&text, Some(&right)).await?;
        check(&third, &[], true)
    })
}

/// A registry that answers each connection by `answer`, from the head of the request; what it counts is how much was taken from it.
fn answering(
    answer: impl Fn(&str, &mut std::net::TcpStream) -> std::io::Result<()> + Send + 'static,
) -> Result<std::net::SocketAddr, Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut request, mut byte) = (Vec::new(), [0u8; 1]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                request.push(byte[0]);
            }
            let _ = answer(&String::from_utf8_lossy(&request), &mut stream);
        }
    });
    Ok(address)
}

/// Sends what never ends, until nobody takes it any more.
fn without_end(stream: &mut std::net::TcpStream, head: &str, sent: &AtomicUsize) -> std::io::Result<()> {
    stream
        .write_all(format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").as_bytes())?;
    let piece = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
    loop {
        stream.write_all(&piece)?;
        sent.fetch_add(0x10000, Ordering::Relaxed);
    }
}

/// Manifests, errors and tokens without end: each pull fails in words, after it took little.
fn hostile_registries_exhaust_nothing() -> Result<(), Failed> {
    const MOST: usize = 32 << 20;
    with(async |fixture| {
        let store = ImageStore::open(&fixture.dir.join("other"), &[])?;
        let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        for (what, head, words) in [
            ("a manifest", "200 OK", "more than"),
            ("an error", "500 Internal Server Error", "500"),
            ("a refusal", "404 Not Found", "404"),
        ] {
            let sent = Arc::new(AtomicUsize::new(0));
            let count = sent.clone();
            let address = answering(move |request, stream| match request.starts_with("GET /v2/ ") {
                true => stream.write_all(empty.as_bytes()),
                false => without_end(stream, head, &count),
            })?;
            let error =
                store.pull(&format!("{address}/x:1"), None).await.err().map(|e| e.to_string()).unwrap_or_default();
            holds(&format!("{what}: {error:?} says it"), error.contains(words))?;
            holds(&format!("{what}: little was taken"), sent.load(Ordering::Relaxed) < MOST)?;
        }
        // A token without end, and a manifest whose length alone says too much.
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let address = answering(move |request, stream| match request.starts_with("GET /token") {
            true => without_end(stream, "200 OK", &count),
            false => {
                let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
                let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"");
                stream.write_all(
                    format!(
                        "HTTP/1.1 401 Unauthorized\r\n{challenge}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                    .as_bytes(),
                )
            }
        })?;
        let error = store.pull(&format!("{address}/x:1"), None).await.err().map(|e| e.to_string()).unwrap_or_default();
        holds(&format!("a token: {error:?} says it"), error.contains("more than"))?;
        holds("a token: little was taken", sent.load(Ordering::Relaxed) < MOST)?;
        let address = answering(move |request, stream| {
            let length = if request.starts_with("GET /v2/ ") { 0 } else { u64::MAX / 2 };
            stream.write_all(
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes(),
            )
        })?;
        let error = store.pull(&format!("{address}/x:1"), None).await.err().map(|e| e.to_string()).unwrap_or_default();
        holds(&format!("a length: {error:?} says it"), error.contains("more than"))?;
        equal(store.list().len(), 0)
    })
}

/// A registry that wants a token, which is to be had with a password, and only for this repository.
fn pull_with_a_token() -> Result<(), Failed> {
    with(async |fixture| {
        let images = fixture.runtime.images();
        let record = images.resolve(IMAGE).ok_or("no image")?;
        let (blobs, manifest) = (fixture.dir.join("images/blobs/sha256"), record.manifest.hex().to_owned());
        let address = answering(move |request, stream| {
            let line = request.lines().next().unwrap_or_default();
            let path = line.split(' ').nth(1).unwrap_or_default();
            let has = |text: &str| request.lines().any(|l| l.eq_ignore_ascii_case(text));
            let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
            let (status, body) = if path.starts_with("/token?scope=repository%3Ashell%3Apull&service=s") {
                match has("authorization: Basic dXNlcjpyaWdodA==") {
                    true => ("200 OK".to_owned(), br#"{"access_token":"good"}"#.to_vec()),
                    false => ("403 Forbidden".to_owned(), br#"{"errors":[{"code":"DENIED","message":"no"}]}"#.to_vec()),
                }
            } else if !has("authorization: Bearer good") {
                let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"");
                (format!("401 Unauthorized\r\n{challenge}"), Vec::new())
            } else {
                let name = path.rsplit('/').next().unwrap_or_default();
                let hex = if name == "v1" { manifest.as_str() } else { name.trim_start_matches("sha256:") };
                let blob = if path == "/v2/" { Ok(Vec::new()) } else { std::fs::read(blobs.join(hex)) };
                ("200 OK".to_owned(), blob?)
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body)
        })?;
        let other = ImageStore::open(&fixture.dir.join("other"), &[])?;
        let user = |password: &str| Credentials { username: "user".into(), password: password.into() };
        let text = format!("{address}/shell:v1");
        let wrong = other.pull(&text, Some(&user("wrong"))).await.err().map(|e| e.to_string()).unwrap_or_default();
        holds(&format!("{wrong:?} says why"), wrong.contains("DENIED"))?;
        holds("nobody gets no token", other.pull(&text, None).await.is_err())?;
        equal(&other.pull(&text, Some(&user("right"))).await?.id, &record.id)
    })
}
