//! Somebody who says to be another: without the right, and with a right that is limited.

use crate::holder::{acting, cluster_account, refused};
use crate::local::{Local, block_on, text_of};
use anyhow::ensure;
use serde_json::{Value, json};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn review() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
}

pub fn without_the_right(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let token = cluster_account(&admin, "actor-of-none", json!([])).await?;
        let own = acting(local, &token, json!({}))?.post(REVIEWS, &review()).await?;
        ensure!(text_of(&own, "/status/userInfo/username").ends_with(":actor-of-none"), "as itself: {own}");
        for (what, who, code) in [
            ("a user", json!({"as": "kubernetes-admin"}), 403),
            ("itself", json!({"as": "system:serviceaccount:default:actor-of-none"}), 403),
            ("a group of masters", json!({"as": "x", "as-groups": ["system:masters"]}), 403),
            ("a node", json!({"as": "system:node:a1", "as-groups": ["system:nodes"]}), 403),
            ("a server", json!({"as": "system:apiserver", "as-groups": ["system:masters"]}), 403),
            ("a service account", json!({"as": "system:serviceaccount:kube-system:default"}), 403),
            ("nobody", json!({"as": "system:anonymous"}), 403),
            // What belongs to nobody is no request at all, and must not be done as the one who asked.
            ("a group without a user", json!({"as-groups": ["system:masters"]}), 400),
            ("a UID without a user", json!({"as-uid": "1"}), 400),
            ("an extra field without a user", json!({"as-user-extra": {"a.example/b": ["c"]}}), 400),
            ("a user without a name", json!({"as": "", "as-groups": ["system:masters"]}), 400),
        ] {
            refused(what, acting(local, &token, who)?.post(REVIEWS, &review()).await, code)?;
        }
        Ok(())
    })
}

pub fn with_a_limited_right(local: &Local) -> anyhow::Result<()> {
    let admin = local.cluster()?.api;
    block_on(async {
        let of = |group: &str, resource: &str, name: &str| json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": ["impersonate"]});
        let rules = json!([
            of("", "users", "ann"),
            of("", "groups", "devs"),
            of("", "serviceaccounts", "default"),
            of("authentication.k8s.io", "uids", "7"),
            of("authentication.k8s.io", "userextras/scopes", "view"),
        ]);
        let token = cluster_account(&admin, "actor", rules).await?;
        let whole = json!({"as": "ann", "as-groups": ["devs"], "as-uid": "7", "as-user-extra": {"scopes": ["view"]}});
        let answer = acting(local, &token, whole.clone())?.post(REVIEWS, &review()).await?;
        let user = &answer["status"]["userInfo"];
        ensure!(
            user["username"] == "ann"
                && user["uid"] == "7"
                && user["groups"] == json!(["devs", "system:authenticated"])
                && user["extra"] == json!({"scopes": ["view"]}),
            "all of it: {answer}"
        );
        // The rights are those of whom one acts as: ann has none.
        refused(
            "what the actor's own account may not",
            acting(local, &token, whole.clone())?.get("/api/v1/secrets").await,
            403,
        )?;
        for (what, field, value) in [
            ("another user", "as", json!("bob")),
            ("a second group", "as-groups", json!(["devs", "system:masters"])),
            ("another UID", "as-uid", json!("8")),
            ("another value", "as-user-extra", json!({"scopes": ["view", "edit"]})),
            ("another field", "as-user-extra", json!({"scopes": ["view"], "other": ["view"]})),
        ] {
            let mut who = whole.clone();
            who[field] = value;
            refused(what, acting(local, &token, who)?.post(REVIEWS, &review()).await, 403)?;
        }
        let account = |name: &str| json!({"as": format!("system:serviceaccount:{name}")});
        let answer = acting(local, &token, account("kube-system:default"))?.post(REVIEWS, &review()).await?;
        ensure!(
            answer["status"]["userInfo"]["groups"]
                == json!(["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]),
            "{answer}"
        );
        refused("another account", acting(local, &token, account("default:actor"))?.post(REVIEWS, &review()).await, 403)
    })
}
