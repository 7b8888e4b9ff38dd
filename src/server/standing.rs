//! Whether a certificate still stands for somebody. The authority cannot take back what it has signed; but a node is who its Node says it is, by the hash of its key, and
//! when the Node is deleted its certificate is nobody's, whatever it says and however long it lasts. A server is who the store's members know by its key.

use super::nodes;
use skiff_api::view::Key;
use skiff_apiserver::NODE_KEY_HASH;
use skiff_fleet::SharedView;
use skiff_identity::Trust;
use skiff_store::Store;

/// Why a certificate (DER) is good no longer.
///
/// A server that is a moment behind may not know a Node that has just joined: whoever is refused may ask again.
pub fn check(view: &SharedView, members: &Store, trust: &Trust, der: &[u8]) -> Result<(), String> {
    // On a connection that is older than the end of the trust in it.
    if !trust.knows_issuer(der) {
        return Err(
            "this certificate is of an authority that is trusted no longer; take one of the new authority".into()
        );
    }
    if nodes::is_server(der) {
        let key = skiff_identity::certificate_key_hash(der).ok_or("the certificate cannot be read")?;
        return members.check_key(&key).map_err(|why| format!("this server's certificate is good no longer: {why}"));
    }
    let Some(node) = nodes::name_in(der) else { return Ok(()) };
    let object = view.read().nodes.get(&Key::new("", &node)).cloned();
    let Some(object) = object else { return Err(skiff_fleet::removed(&node)) };
    let claimed = object.metadata.annotations.as_ref().and_then(|a| a.get(NODE_KEY_HASH));
    // A Node that says nothing of a key was claimed by nobody yet.
    match claimed.is_some() && skiff_identity::certificate_key_hash(der).as_ref() == claimed {
        true => Ok(()),
        false => Err(format!(
            "the node {node:?} is not known by this key: another machine has joined by that name, or its Node was made anew. Join again with a token \
             (skiff token create)"
        )),
    }
}
