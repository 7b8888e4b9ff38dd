//! Attacks: every row of `docs/security.md` played on a real cluster by whoever holds that credential, and by those who hold none. A test here is an attack that was
//! tried and must fail; beside it stands what the same holder may do, so that a cluster that refuses everything would not pass.

mod acting;
mod anonymous;
mod container;
mod heads;
mod holder;
mod images;
mod local_user;
mod node;
mod objects;
mod server;
mod users;

#[allow(dead_code, reason = "the scenarios' image, of which attacks need less")]
#[path = "../scenarios/busybox.rs"]
mod busybox;
#[allow(dead_code, reason = "the scenarios' cluster, of which attacks need less")]
#[path = "../scenarios/idle.rs"]
mod idle;
#[allow(dead_code, reason = "the scenarios' cluster, of which attacks need less")]
#[path = "../scenarios/local.rs"]
mod local;
#[allow(dead_code, reason = "the scenarios' pods, of which attacks need less")]
#[path = "../scenarios/pods.rs"]
mod pods;

use libtest_mimic::{Arguments, Failed, Trial};
use local::{Local, Shared};

/// One server and two agents: a node to steal, and another one.
static CLUSTER: Shared = Shared::new("attacks", 1, 2);

type Attack = fn(&Local) -> anyhow::Result<()>;

const ATTACKS: &[(&str, Attack)] = &[
    ("anonymous: sees health and nothing else", anonymous::sees_health_only),
    ("anonymous: gRPC without a certificate may join, with little", anonymous::may_only_join),
    ("anonymous: requests to join that never end", anonymous::joins_without_end),
    ("anonymous: what is asked for does not show in the metrics", anonymous::writes_no_metrics),
    ("anonymous: slow and huge heads", heads::slow_and_huge),
    ("a user: acts as nobody without the right", acting::without_the_right),
    ("a user: acts as whom the right names, and nobody else", acting::with_a_limited_right),
    ("a user: one name is one name, also for a watch", users::a_watch_of_one_name),
    ("a user: a token for others is none here", users::audiences),
    ("a user: writing what is not there is creating it", users::creating),
    ("a user: only an administrator asks of the sealing keys", users::sealing_keys),
    ("a user: nobody grants what they do not hold", users::granting),
    ("a user: a token ends with the Secret that keeps it", users::kept_tokens),
    ("a stolen node: its requests", node::requests),
    ("a stolen node: its session", node::session),
    ("a stolen node: once it was removed", node::removed),
    ("a local user: reads no key, no Secret, no image", local_user::reads_nothing),
    ("a local user: sees no token in any process's arguments", local_user::sees_no_token),
    ("an archive: no name in it leads outside", images::hostile_names),
    ("an object: no number ends a controller", objects::huge_numbers),
    ("an object: what has an unknown owner stays", objects::unknown_owners),
    ("an object: what a Secret holds shows in no log, event or argument", objects::planted),
];

/// Those that need an image with real programs.
const WITH_PROGRAMS: &[(&str, Attack)] = &[("a container: stays inside", container::stays_inside)];

fn main() {
    skiff_identity::install_crypto();
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the attacks need root: they make namespaces");
        eprintln!("ignored: the attacks need root, because they make namespaces");
    }
    let trial = |(name, attack): &(&str, Attack)| {
        let attack = *attack;
        Trial::test(*name, move || CLUSTER.with(attack).map_err(|e| Failed::from(format!("{e:#}"))))
            .with_ignored_flag(!root)
    };
    let programs = root && busybox::is_here();
    let mut trials: Vec<Trial> = ATTACKS.iter().map(trial).collect();
    trials.extend(WITH_PROGRAMS.iter().map(|attack| trial(attack).with_ignored_flag(!programs)));
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let stolen_server = || server::removed().map_err(|e| Failed::from(format!("{e:#}")));
    trials.push(Trial::test("a stolen server: once it was removed", stolen_server).with_ignored_flag(!root));
    let conclusion = libtest_mimic::run(&arguments, trials);
    CLUSTER.end();
    conclusion.exit();
}
