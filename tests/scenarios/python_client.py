"""What scripts do with the Python client: the stream calls that only it makes in this way, watches, and objects of every day.

Run by python_client.rs with a kubeconfig in KUBECONFIG; it ends with 0 and says nothing of a failure, or with a traceback.
"""

import json
import socket
import threading
import time

from kubernetes import client, config, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import ERROR_CHANNEL

NAMESPACE = "python"
IMAGE = "scenarios.local/busybox:1"
PATIENCE_S = 60

config.load_kube_config()
core, apps, rbac = client.CoreV1Api(), client.AppsV1Api(), client.RbacAuthorizationV1Api()


def until(what, done):
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < PATIENCE_S, f"still not: {what}"
        time.sleep(0.02)


def refused(status, call, *words, **options):
    try:
        call(*words, **options)
    except ApiException as error:
        assert error.status == status, error
        return error
    raise AssertionError(f"{call} should be refused with {status}")


def pod(name, script, port=None):
    ports = [client.V1ContainerPort(container_port=port)] if port else None
    container = client.V1Container(name="c", image=IMAGE, command=["sh", "-c", script], ports=ports)
    spec = client.V1PodSpec(containers=[container], termination_grace_period_seconds=0, restart_policy="Never")
    core.create_namespaced_pod(NAMESPACE, client.V1Pod(metadata=client.V1ObjectMeta(name=name, labels={"app": name}), spec=spec))


def running(name):
    until(f"{name} runs", lambda: core.read_namespaced_pod(name, NAMESPACE).status.phase == "Running")


def executes():
    """exec, at once and as a conversation."""
    call = core.connect_get_namespaced_pod_exec
    said = stream(call, "target", NAMESPACE, command=["echo", "hello"], stderr=True, stdin=False, stdout=True, tty=False)
    assert said == "hello\n", said
    said = stream(call, "target", NAMESPACE, command=["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"], stdout=True)
    assert len(said) == 3000000, len(said)
    talk = stream(call, "target", NAMESPACE, command=["sh", "-c", "read a; echo got $a; read b; echo also $b >&2; read c; exit 7"],
                  stderr=True, stdin=True, stdout=True, tty=False, _preload_content=False)
    talk.write_stdin("one\n")
    assert talk.readline_stdout(timeout=PATIENCE_S) == "got one"
    talk.write_stdin("two\n")
    assert talk.readline_stderr(timeout=PATIENCE_S) == "also two"
    # The client gives no line of what comes together with the end; so the program ends when it is told.
    talk.write_stdin("three\n")
    talk.run_forever(timeout=PATIENCE_S)
    assert talk.returncode == 7, talk.returncode
    talk.close()
    # A terminal, whose size changes.
    term = stream(call, "target", NAMESPACE, command=["sh"], stderr=False, stdin=True, stdout=True, tty=True, _preload_content=False)
    term.write_channel(4, '{"Width":100,"Height":33}')
    # The size goes on a channel of its own, and may come after what is typed next.
    until("the terminal has its size", lambda: asked(term, "stty size\n", "33 100"))
    term.write_stdin("exit 3\n")
    term.run_forever(timeout=PATIENCE_S)
    assert term.returncode == 3, term.returncode
    # Bytes that are no text, as they are.
    raw = stream(call, "target", NAMESPACE, command=["sh", "-c", "printf '\\377\\376\\000a'"], stdout=True,
                 _preload_content=False, binary=True)
    raw.run_forever(timeout=PATIENCE_S)
    assert raw.read_stdout() == b"\xff\xfe\x00a"
    failed = stream(call, "target", NAMESPACE, command=["nothing"], stdout=True, stderr=True, _preload_content=False)
    failed.run_forever(timeout=PATIENCE_S)
    status = json.loads(failed.read_channel(ERROR_CHANNEL))
    assert status["status"] == "Failure" and "nothing" in status["details"]["causes"][0]["message"], status
    # The client gives no status of its own to what is refused before the stream begins.
    error = refused(0, stream, call, "nobody", NAMESPACE, command=["true"], stdout=True)
    assert "404 Not Found" in error.reason, error


def asked(term, question, answer):
    term.write_stdin(question)
    said, begun = "", time.monotonic()
    while answer not in said and time.monotonic() - begun < 1:
        term.update(timeout=0.1)
        said += term.read_stdout(timeout=0) if term.peek_stdout() else ""
    return answer in said


def attaches():
    pod("listener", "until [ -e /tmp/go ]; do sleep 0.1; done; echo heard; echo aside >&2")
    running("listener")
    talk = stream(core.connect_get_namespaced_pod_attach, "listener", NAMESPACE, stderr=True, stdin=False, stdout=True,
                  tty=False, _preload_content=False)
    stream(core.connect_get_namespaced_pod_exec, "listener", NAMESPACE, command=["touch", "/tmp/go"], stdout=True)
    talk.run_forever(timeout=PATIENCE_S)
    assert talk.read_stdout() == "heard\n" and talk.read_stderr() == "aside\n"


def forwards():
    """A forwarded port as a socket: much both ways, and an HTTP client through it."""
    forward = portforward(core.connect_get_namespaced_pod_portforward, "target", NAMESPACE, ports="7000,7001")
    data = b"0123456789abcdef" * 65536
    first, second = forward.socket(7000), forward.socket(7001)
    first.setblocking(True)
    second.setblocking(True)
    sender = threading.Thread(target=first.sendall, args=(data,))
    sender.start()
    got = b""
    while len(got) < len(data):
        part = first.recv(65536)
        assert part, f"the forwarded port closed after {len(got)} bytes"
        got += part
    sender.join()
    assert got == data
    second.sendall(b"beside")
    assert second.recv(6) == b"beside"
    first.close()
    second.close()
    assert forward.error(7000) is None and forward.error(7001) is None
    closed = portforward(core.connect_get_namespaced_pod_portforward, "target", NAMESPACE, ports="9")
    nobody = closed.socket(9)
    nobody.setblocking(True)
    try:
        nobody.sendall(b"x")
        assert nobody.recv(1) == b""
    except (ConnectionError, socket.error):
        pass
    until("the refusal is told", lambda: closed.error(9))


def follows():
    """A log, as it is written and whole."""
    pod("talker", "for i in 1 2 3; do echo line $i; sleep 0.2; done")
    running("talker")
    lines = [line for line in watch.Watch().stream(core.read_namespaced_pod_log, name="talker", namespace=NAMESPACE)]
    assert lines == ["line 1", "line 2", "line 3"], lines
    assert core.read_namespaced_pod_log("talker", NAMESPACE, tail_lines=1) == "line 3\n"
    response = core.read_namespaced_pod_log("talker", NAMESPACE, follow=True, _preload_content=False)
    assert b"".join(response.stream()) == b"line 1\nline 2\nline 3\n"
    refused(400, core.read_namespaced_pod_log, "talker", NAMESPACE, container="nobody")


def deploys():
    labels = {"app": "web"}
    container = client.V1Container(name="c", image=IMAGE, command=["sh", "-c", "trap exit TERM; while :; do sleep 0.1; done"],
                                   resources=client.V1ResourceRequirements(requests={"cpu": "10m"}))
    spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=1)))
    seen = watch.Watch()
    apps.create_namespaced_deployment(NAMESPACE, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
    for event in seen.stream(apps.list_namespaced_deployment, NAMESPACE, timeout_seconds=PATIENCE_S):
        if (event["object"].status.ready_replicas or 0) == 2:
            seen.stop()
    assert apps.read_namespaced_deployment_status("web", NAMESPACE).status.available_replicas == 2
    # A patch of each kind; a list of operations is a JSON patch, everything else a strategic merge patch.
    apps.patch_namespaced_deployment("web", NAMESPACE, {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]}}}})
    deployment = apps.patch_namespaced_deployment("web", NAMESPACE, [{"op": "replace", "path": "/spec/replicas", "value": 1}])
    assert deployment.spec.replicas == 1 and deployment.spec.template.spec.containers[0].image == IMAGE
    apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 3}})
    assert apps.read_namespaced_deployment_scale("web", NAMESPACE).spec.replicas == 3
    until("3 are ready", lambda: apps.read_namespaced_deployment("web", NAMESPACE).status.ready_replicas == 3)
    # What was read before somebody else wrote is not written over.
    old = apps.read_namespaced_deployment("web", NAMESPACE)
    apps.patch_namespaced_deployment("web", NAMESPACE, {"metadata": {"annotations": {"note": "x"}}})
    old.spec.replicas = 9
    refused(409, apps.replace_namespaced_deployment, "web", NAMESPACE, old)
    apps.delete_namespaced_deployment("web", NAMESPACE, propagation_policy="Foreground")
    until("the Deployment is gone", lambda: not apps.list_namespaced_deployment(NAMESPACE).items)
    # In the foreground it goes last.
    assert not core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items
    refused(404, apps.read_namespaced_deployment, "web", NAMESPACE)


def watches():
    """A watch sees each change from where a list ended, and tells when that is too long ago."""
    begin = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="c"), data={"a": "1"}))
    core.patch_namespaced_config_map("c", NAMESPACE, {"data": {"a": "2"}})
    core.delete_namespaced_config_map("c", NAMESPACE)
    seen = []
    follow = watch.Watch()
    for event in follow.stream(core.list_namespaced_config_map, NAMESPACE, resource_version=begin, timeout_seconds=PATIENCE_S):
        seen.append((event["type"], event["object"].data["a"]))
        if event["type"] == "DELETED":
            follow.stop()
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")], seen
    # A watch that ends by its own time leaves the loop.
    assert list(watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, field_selector="metadata.name=none", timeout_seconds=1)) == []


def others():
    """Objects of every day, from dictionaries, by pages, with selectors, dates and bytes."""
    utils.create_from_dict(client.ApiClient(), {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
                                                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}}, namespace=NAMESPACE)
    service = core.read_namespaced_service("s", NAMESPACE)
    assert service.spec.ports[0].target_port == "http" and service.metadata.creation_timestamp.tzinfo
    core.create_namespaced_secret(NAMESPACE, client.V1Secret(metadata=client.V1ObjectMeta(name="x"), string_data={"k": "v"}))
    assert core.read_namespaced_secret("x", NAMESPACE).data == {"k": "dg=="}
    for n in range(5):
        core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page-{n}", labels={"set": "pages"})))
    names, more = [], None
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="set in (pages)", limit=2, _continue=more)
        names += [item.metadata.name for item in page.items]
        more = page.metadata._continue
        if not more:
            break
    assert names == [f"page-{n}" for n in range(5)], names
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="set=pages")
    assert not core.list_namespaced_config_map(NAMESPACE, label_selector="set=pages").items
    error = refused(422, core.create_namespaced_config_map, NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="Bad_Name")))
    assert "metadata.name" in error.body and error.headers["Content-Type"] == "application/json"
    rbac.create_namespaced_role(NAMESPACE, client.V1Role(metadata=client.V1ObjectMeta(name="r"), rules=[client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["get"])]))
    token = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[]))
    assert core.create_namespaced_service_account_token("default", NAMESPACE, token).status.token.startswith("ey")
    # Server-side apply, by the method that the client has for any object.
    applied = core.patch_namespaced_config_map("applied", NAMESPACE, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": "v"}},
                                               field_manager="python", _content_type="application/apply-patch+yaml")
    assert applied.metadata.managed_fields[0].operation == "Apply"
    assert client.VersionApi().get_code().git_version.startswith("v1.")
    assert "apps" in [group.name for group in client.ApisApi().get_api_versions().groups]


core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
until("the service account is there", lambda: core.list_namespaced_service_account(NAMESPACE).items)
pod("target", "nc -ll -p 7000 -e cat & nc -ll -p 7001 -e cat & exec sleep 100000", port=7000)
running("target")
for part in (executes, attaches, forwards, follows, deploys, watches, others):
    begun = time.monotonic()
    part()
    print(f"{part.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
core.delete_namespace(NAMESPACE)


def gone():
    try:
        core.read_namespace(NAMESPACE)
    except ApiException as error:
        return error.status == 404
    return False


until("the namespace is gone", gone)
