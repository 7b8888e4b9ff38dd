//! CertificateSigningRequests and HorizontalPodAutoscalers as kubectl sends them: verdicts are stored, in JSON and in protobuf, and two versions show one object.

mod support;

use base64::Engine as _;
use serde_json::{Value, json};
use support::Cluster;
use support::ask::Question;

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn request(organization: &str) -> anyhow::Result<String> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ann");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    let pem = params.serialize_request(&rcgen::KeyPair::generate()?)?.pem()?;
    Ok(base64::engine::general_purpose::STANDARD.encode(pem))
}

fn csr(name: &str, request: &str, signer: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": request, "signerName": signer, "usages": ["client auth"]}})
}

fn verdict(kind: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": "KubectlApprove", "message": "by hand"})
}

#[tokio::test]
async fn verdicts_are_given_once_and_by_whom_they_may() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    let approver = cluster.user("approver", None)?;
    let ask = async |pair, method: &str, path: String, body: &Value| {
        let question = Question { pair: Some(pair), method, path: &path, body: body.to_string(), ..Default::default() };
        let reply = question.ask(&cluster).await?;
        anyhow::Ok((reply.code, reply.json()))
    };
    let group = "rbac.authorization.k8s.io";
    let rules = json!([
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"], "verbs": ["*"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": ["approve"]}]);
    cluster.create(group, "clusterroles", "", json!({"metadata": {"name": "approver"}, "rules": rules})).await?;
    let binding = json!({"metadata": {"name": "approver"}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "approver"},
        "subjects": [{"kind": "User", "apiGroup": group, "name": "approver"}]});
    cluster.create(group, "clusterrolebindings", "", binding).await?;

    let plain = request("devs")?;
    let (code, made) = ask(&admin, "POST", CSRS.into(), &csr("a", &plain, "example.com/s")).await?;
    assert_eq!(code, 201, "{made}");
    // An ordinary write and one of the status give no verdict.
    let mut sent = made.clone();
    sent["metadata"]["resourceVersion"] = json!("");
    sent["status"]["conditions"] = json!([verdict("Approved")]);
    let (code, kept) = ask(&admin, "PUT", format!("{CSRS}/a"), &sent).await?;
    assert_eq!((code, &kept["status"]["conditions"]), (200, &Value::Null), "{kept}");
    let (code, kept) = ask(&admin, "PUT", format!("{CSRS}/a/status"), &sent).await?;
    assert_eq!((code, &kept["status"]["conditions"]), (200, &Value::Null), "{kept}");
    sent["spec"]["signerName"] = json!("example.com/other");
    let (code, approved) = ask(&approver, "PUT", format!("{CSRS}/a/approval"), &sent).await?;
    assert_eq!(code, 200, "{approved}");
    let condition = &approved["status"]["conditions"][0];
    assert_eq!(condition["type"], "Approved");
    assert!(condition["lastUpdateTime"].is_string() && condition["lastTransitionTime"].is_string(), "{condition}");
    assert_eq!(approved["spec"]["signerName"], "example.com/s", "what is asked for stays");
    let (_, read) = ask(&admin, "GET", format!("{CSRS}/a"), &json!({})).await?;
    assert_eq!(read["status"], approved["status"]);
    // It is not taken back, nor joined by its contrary.
    for conditions in [json!([]), json!([condition, verdict("Denied")]), json!([verdict("Denied")])] {
        let mut sent = read.clone();
        sent["metadata"]["resourceVersion"] = json!("");
        sent["status"]["conditions"] = conditions;
        let (code, refused) = ask(&admin, "PUT", format!("{CSRS}/a/approval"), &sent).await?;
        assert_eq!(code, 422, "{refused}");
    }
    let (code, issued) =
        ask(&admin, "PATCH", format!("{CSRS}/a/status"), &json!({"status": {"certificate": "eA=="}})).await?;
    assert_eq!((code, issued["status"]["conditions"].as_array().map(Vec::len)), (200, Some(1)), "{issued}");
    let (code, _) =
        ask(&admin, "PATCH", format!("{CSRS}/a/status"), &json!({"status": {"certificate": "eQ=="}})).await?;
    assert_eq!(code, 422, "another certificate");

    // Another signer, and another's group.
    let (_, other) = ask(&admin, "POST", CSRS.into(), &csr("b", &plain, "kubernetes.io/kube-apiserver-client")).await?;
    let mut sent = other;
    sent["status"]["conditions"] = json!([verdict("Approved")]);
    let (code, refused) = ask(&approver, "PUT", format!("{CSRS}/b/approval"), &sent).await?;
    assert_eq!(code, 403, "{refused}");
    let masters = csr("c", &request("system:masters")?, "kubernetes.io/kube-apiserver-client");
    let (code, refused) = ask(&admin, "POST", CSRS.into(), &masters).await?;
    assert_eq!(code, 403, "{refused}");
    for (what, field, value) in [
        ("a short life", "expirationSeconds", json!(10)),
        ("the old signer", "signerName", json!("kubernetes.io/legacy-unknown")),
    ] {
        let mut sent = csr("d", &plain, "example.com/s");
        sent["spec"][field] = value;
        let (code, refused) = ask(&admin, "POST", CSRS.into(), &sent).await?;
        assert_eq!(code, 422, "{what}: {refused}");
    }
    Ok(())
}

#[tokio::test]
async fn an_autoscaler_has_two_versions() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let admin = cluster.user("root", Some("system:masters"))?;
    let path = |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let ask = async |method: &str, path: String, body: &Value| {
        let question =
            Question { pair: Some(&admin), method, path: &path, body: body.to_string(), ..Default::default() };
        let reply = question.ask(&cluster).await?;
        anyhow::ensure!(reply.code < 300, "{method} {path}: {}", reply.text);
        Ok((reply.json(), reply.text))
    };
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 5, "targetCPUUtilizationPercentage": 60}});
    let (made, _) = ask("POST", path("v1"), &v1).await?;
    assert_eq!(
        (&made["apiVersion"], &made["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(60))
    );
    let (v2, _) = ask("GET", format!("{}/h", path("v2")), &Value::Null).await?;
    assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60, "{v2}");
    let mut changed = v2.clone();
    changed["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] = json!(70);
    changed["spec"]["behavior"] = json!({"scaleDown": {"selectPolicy": "Disabled"}});
    ask("PUT", format!("{}/h", path("v2")), &changed).await?;
    let (back, _) = ask("GET", format!("{}/h", path("v1")), &Value::Null).await?;
    assert_eq!(back["spec"]["targetCPUUtilizationPercentage"], 70, "{back}");
    let patched = json!({"spec": {"maxReplicas": 6}});
    ask("PATCH", format!("{}/h", path("v1")), &patched).await?;
    let (list, _) = ask("GET", path("v2"), &Value::Null).await?;
    let spec = &list["items"][0]["spec"];
    assert_eq!(
        (&spec["maxReplicas"], &spec["behavior"]["scaleDown"]["selectPolicy"]),
        (&json!(6), &json!("Disabled")),
        "{list}"
    );
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    let (_, seen) = ask("GET", format!("{}?watch=1&timeoutSeconds=1", path("v2")), &Value::Null).await?;
    assert!(seen.contains("autoscaling/v2") && seen.contains("averageUtilization"), "{seen}");
    let (_, _) = ask("DELETE", format!("{}/h", path("v1")), &Value::Null).await?;
    Ok(())
}
