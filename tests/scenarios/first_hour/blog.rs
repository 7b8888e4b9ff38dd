//! WordPress on nginx, PHP and MariaDB: three programs that find each other by a name, a Secret and a socket in a shared folder.

use super::{Answer, node_port, request, software};
use crate::kubectl::Kubectl;
use crate::local::{Local, wait_until};
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const HOST: &str = "blog.example";

pub fn wordpress(local: &Local) -> anyhow::Result<()> {
    software::images(local)?;
    let k = Kubectl::newest(local, "blog")?;
    k.run("create namespace blog")?;
    local.file("root", "r00t")?;
    k.run("create secret generic mariadb-root --from-file=root")?;
    k.run("create secret generic blog-database --from-literal=user=blog --from-literal=password=bl0g")?;
    local.file("settings.env", "DB_NAME=blog\n")?;
    k.run("create configmap blog-settings --from-env-file=settings.env")?;
    let data = local.dir.join("mariadb-data");
    let yaml = include_str!("blog.yaml").replace("/var/tmp/mariadb", data.to_str().context("a plain path")?);
    local.file("blog.yaml", yaml)?;
    k.says("apply -f blog.yaml", &["deployment.apps/mariadb created", "deployment.apps/blog created"])?;
    k.says("rollout status deployment/blog --timeout=60s", &["successfully rolled out"])?;
    // A variable that is defined further down is not there yet, and stays as it is written.
    let key = k.run("exec deploy/blog -c php -- printenv BLOG_KEY")?;
    ensure!(key == "blog-of-$(POD_NAME)\n", "{key}");

    let mut reader = Reader { to: node_port(&k, "blog", "a1")?, cookies: BTreeMap::new() };
    let post = write(&mut reader).context("writing a post")?;
    restore(&k, &reader, &post).context("dump and restore")?;
    ends(&k, &reader, &post).context("programs that end")?;
    rotate(&k, &reader, &post).context("other passwords")?;

    k.run("delete -f blog.yaml --timeout=60s")?;
    k.run("delete namespace blog --timeout=60s")?;
    std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))
}

/// A browser, as far as it goes without pictures.
struct Reader {
    to: SocketAddr,
    cookies: BTreeMap<String, String>,
}

impl Reader {
    fn head(&self) -> String {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("Host: {HOST}\r\nCookie: {}\r\n", cookies.join("; "))
    }

    fn get(&self, path: &str) -> anyhow::Result<Answer> {
        request(self.to, "GET", path, &self.head())
    }

    /// `more`: further header lines.
    fn post(&mut self, path: &str, more: &str, body: &str) -> anyhow::Result<Answer> {
        let head = format!("{}{more}Content-Length: {}\r\n\r\n{body}", self.head(), body.len());
        let answer = request(self.to, "POST", path, &head)?;
        let set = answer.head.lines().filter_map(|line| line.strip_prefix("Set-Cookie: "));
        let set = set.filter_map(|cookie| cookie.split(';').next()?.split_once('='));
        self.cookies.extend(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Ok(answer)
    }

    /// Whether the page is there and says this.
    fn reads(&self, path: &str, text: &str) -> anyhow::Result<bool> {
        let answer = self.get(path)?;
        Ok(answer.status == 200 && answer.body.contains(text))
    }
}

/// Installs WordPress as its page asks, signs in and writes a post; the post's path.
fn write(reader: &mut Reader) -> anyhow::Result<String> {
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let fields = "weblog_title=Boats&user_name=admin&admin_password=fl0at.ing&admin_password2=fl0at.ing&pw_weak=1\
                  &admin_email=a%40b.example&blog_public=0";
    let answer = reader.post("/wp-admin/install.php?step=2", form, fields)?;
    ensure!(answer.body.contains("Success!"), "{}\n{}", answer.head, answer.body);
    ensure!(reader.reads("/", "<title>Boats</title>")?, "the front page");
    ensure!(reader.reads("/?p=1", "Welcome to WordPress")?, "the first post");
    // A file that nginx serves by itself, out of the folder that an init container filled.
    ensure!(reader.get("/wp-includes/css/buttons.css")?.status == 200, "a style sheet");
    let answer = reader.post("/wp-login.php", form, "log=admin&pwd=fl0at.ing")?;
    ensure!(answer.status == 302, "signing in: {}\n{}", answer.head, answer.body);
    let nonce = reader.get("/wp-admin/admin-ajax.php?action=rest-nonce")?.body;
    let json = format!("Content-Type: application/json\r\nX-WP-Nonce: {nonce}\r\n");
    let body = r#"{"title":"A skiff","content":"It floats.","status":"publish"}"#;
    let answer = reader.post("/index.php?rest_route=/wp/v2/posts", &json, body)?;
    ensure!(answer.status == 201, "{}\n{}", answer.head, answer.body);
    let said: serde_json::Value = serde_json::from_str(&answer.body)?;
    let post = format!("/?p={}", said["id"]);
    ensure!(reader.reads(&post, "It floats.")?, "the new post");
    Ok(post)
}

const SQL: &str = "exec -i deploy/mariadb -c mariadb -- mariadb -uroot -pr00t";

fn restore(k: &Kubectl, reader: &Reader, post: &str) -> anyhow::Result<()> {
    let dump = k.run("exec deploy/mariadb -c mariadb -- mariadb-dump -uroot -pr00t --databases blog")?;
    ensure!(dump.contains("It floats.") && dump.contains("Dump completed"), "the dump is {} bytes", dump.len());
    k.pipe(SQL, "drop database blog; create database blog;")?;
    ensure!(!reader.reads(post, "It floats.")?, "the post is there without its database");
    k.pipe(SQL, &dump)?;
    ensure!(reader.reads(post, "It floats.")?, "the post is not there after the restore");
    Ok(())
}

fn ends(k: &Kubectl, reader: &Reader, post: &str) -> anyhow::Result<()> {
    let again = |what: &str| wait_until(&format!("the post is read {what}"), || reader.reads(post, "It floats."));
    let counts =
        |k: &Kubectl| k.run("get pod -l app=blog -o 'jsonpath={.items[*].status.containerStatuses[*].restartCount}'");
    ensure!(counts(k)? == "0 0", "something was restarted already");
    k.run("exec deploy/blog -c php -- sh -c 'kill 1'")?;
    wait_until("PHP alone is started again", || Ok(counts(k)? == "0 1"))?;
    again("after PHP ended")?;
    let first = k.run("get pod -l app=mariadb -o name")?;
    k.run("delete pod -l app=mariadb")?;
    k.says("rollout status deployment/mariadb --timeout=60s", &["successfully rolled out"])?;
    ensure!(k.run("get pod -l app=mariadb -o name")? != first, "the same pod");
    again("by another database pod")
}

/// One password reaches a container as a variable, when it starts; the other as a file, while it runs.
fn rotate(k: &Kubectl, reader: &Reader, post: &str) -> anyhow::Result<()> {
    let new = |line: &str| -> anyhow::Result<()> {
        let secret = k.run(&format!("create secret generic {line} --dry-run=client -o yaml"))?;
        k.pipe("replace -f -", &secret).map(drop)
    };
    k.pipe(SQL, "alter user blog@'%' identified by 'n3w';")?;
    ensure!(reader.get(post)?.status == 500, "the old password is still good");
    new("blog-database --from-literal=user=blog --from-literal=password=n3w")?;
    k.run("rollout restart deployment/blog")?;
    k.says("rollout status deployment/blog --timeout=60s", &["successfully rolled out"])?;
    wait_until("the post is read with the new password", || reader.reads(post, "It floats."))?;

    k.local.file("root", "r00t2")?;
    new("mariadb-root --from-file=root")?;
    k.until("exec deploy/mariadb -c mariadb -- cat /run/secrets/mariadb/root", |said| said.contains("r00t2"))?;
    let owner = k.run("exec deploy/mariadb -c mariadb -- stat -L -c '%a %g' /run/secrets/mariadb/root")?;
    ensure!(owner == "440 999\n", "the file is {owner}");
    k.pipe(SQL, "alter user root@localhost identified by 'r00t2';")?;
    k.until("get pod -l app=mariadb", |said| said.contains("1/1")).map(drop)
}
