//! The whole system: servers and agents as real processes in network namespaces of their own, used the way people use them, and hurt the way machines hurt.
//!
//! Scenarios that only look, or that mend what they broke, share a cluster; it starts with the first that wants it. Each begins with a whole cluster.

mod archives;
mod authority;
mod bad_input;
mod busybox;
mod certificates;
mod first_hour;
mod idle;
mod images;
mod kube_client;
mod kubectl;
mod local;
mod long_day;
mod machine;
mod manifests;
mod newcomer;
mod nodes;
mod pods;
mod python_client;
mod refusals;
mod sealing;
mod servers;
mod streams;
mod streams_protocols;
mod verbs;

use libtest_mimic::{Arguments, Failed, Trial};
use local::{Local, Shared};

/// Three servers and three agents, for what breaks servers and nodes.
static LARGE: Shared = Shared::new("large", 3, 3);
/// One server and two agents, for everything else.
static SMALL: Shared = Shared::new("small", 1, 2);

type Scenario = fn(&Local) -> anyhow::Result<()>;

fn main() {
    skiff_identity::install_crypto();
    // Namespaces, mounts and control groups need root; where everything must run, the lack of it is a failure.
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the scenarios need root: they make namespaces");
        eprintln!("ignored: the scenarios need root, because they make namespaces");
    }
    let with = |name: &str, cluster: &'static Shared, run: Scenario| {
        Trial::test(name, move || cluster.with(run).map_err(failed)).with_ignored_flag(!root)
    };
    let alone = |name: &str, run: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || run().map_err(failed)).with_ignored_flag(!root)
    };
    let busybox = root && busybox::is_here();
    let real = |name: &str, run: Scenario| {
        Trial::test(name, move || SMALL.with(run).map_err(failed)).with_ignored_flag(!busybox)
    };
    let kubectl = root && !kubectl::all().is_empty();
    let software = kubectl && first_hour::software::layer().is_some();
    let first = |name: &str, run: Scenario| {
        Trial::test(name, move || SMALL.with(run).map_err(failed)).with_ignored_flag(!software)
    };
    let trials = vec![
        alone("a_newcomer_brings_up_a_cluster_deploys_and_takes_it_down", newcomer::brings_up_deploys_takes_down),
        alone("two_clusters_live_side_by_side_and_one_survives_the_machine", machine::side_by_side_and_restart),
        alone("certificates_are_renewed_while_everything_runs", certificates::renewal),
        alone("a_cluster_that_sealed_nothing_is_sealed_later", sealing::sealed_later),
        with("secrets_lie_sealed_and_their_keys_are_exchanged", &LARGE, sealing::rotation),
        alone("the_authority_is_exchanged_while_everything_runs", authority::rotation),
        with("status_restarts_what_died", &SMALL, machine::status_restarts),
        with("own_verbs", &SMALL, verbs::own_verbs),
        with("images_from_both_kinds_of_archive", &SMALL, images::both_kinds_of_archive),
        with("an_image_that_is_not_there_is_named", &SMALL, images::missing),
        with("every_manifest_is_applied", &SMALL, manifests::all),
        with("bad_files_are_told_by_file_and_field", &SMALL, bad_input::files),
        with("bad_writes_are_told_by_name", &SMALL, bad_input::writes),
        with("bad_tokens_and_names_are_refused", &SMALL, refusals::joining),
        with("a_server_refuses_what_it_cannot_be", &SMALL, refusals::servers),
        alone("without_root_commands_say_so", refusals::without_root),
        with("kube_rs", &SMALL, kube_client::kube_rs),
        with("a_pod_that_a_finalizer_holds_keeps_nobody_busy", &SMALL, nodes::held_by_a_finalizer),
        real("streams: exec_by_every_client", streams::exec),
        real("streams: clients_that_go_end_what_they_began", streams::clients_that_go),
        real("streams: files_and_pipes_arrive_whole", streams::copies),
        real("streams: a_fast_log_is_followed_whole", streams::logs),
        real("streams: ports_are_forwarded_both_ways", streams::port_forward),
        real("streams: websocket_protocols_of_every_age", streams_protocols::all),
        real("streams: two_hundred_execs_at_once", streams::two_hundred),
        Trial::test("the_python_client", || SMALL.with(python_client::every_call).map_err(failed))
            .with_ignored_flag(!(busybox && python_client::is_here())),
        Trial::test("a_long_day_with_kubectl", || SMALL.with(long_day::day).map_err(failed))
            .with_ignored_flag(!(busybox && kubectl)),
        first("first_hour: nginx_and_redis", first_hour::web::nginx_and_redis),
        first("first_hour: wordpress_and_mariadb", first_hour::blog::wordpress),
        first("first_hour: postgresql", first_hour::database::postgres),
        with("a_restarted_agent_finds_its_pods", &LARGE, nodes::restarted_agent),
        with("a_lost_node_is_replaced_and_adopted", &LARGE, nodes::lost_and_adopted),
        with("when_most_nodes_are_silent_nothing_is_evicted", &LARGE, nodes::most_are_silent),
        with("silence_alone_never_withdraws_the_last_endpoints", &LARGE, nodes::last_endpoints),
        with("a_killed_leader_loses_no_write", &LARGE, servers::leader_killed),
        with("a_stopped_leader_is_succeeded", &LARGE, servers::leader_stopped),
        with("a_leader_cut_off_is_succeeded", &LARGE, servers::leader_cut_off),
        with("a_follower_cut_off_catches_up", &LARGE, servers::follower_cut_off),
    ];
    let mut arguments = Arguments::from_args();
    // Two cores: more scenarios at once would only wait for each other.
    arguments.test_threads.get_or_insert(1);
    let before = idle::machine();
    let conclusion = libtest_mimic::run(&arguments, trials);
    LARGE.end();
    SMALL.end();
    if let Err(left) = idle::left_nothing(&before) {
        eprintln!("error: {left:#}");
        std::process::exit(1);
    }
    conclusion.exit();
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
