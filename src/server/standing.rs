//! Whether a certificate still stands for somebody. The authority cannot take back what it has signed; but a node is who its Node says it is, by the hash of its key, and
//! when the Node is deleted its certificate is nobody's, whatever it says and however long it lasts.

use super::nodes;
use super::upstream::KEY_HASH;
use skiff_api::view::Key;
use skiff_fleet::SharedView;

/// Why a certificate (DER) is good no longer.
///
/// A server that is a moment behind may not know a Node that has just joined: whoever is refused may ask again.
pub fn check(view: &SharedView, der: &[u8]) -> Result<(), String> {
    let Some(node) = nodes::name_in(der) else { return Ok(()) };
    let object = view.read().nodes.get(&Key::new("", &node)).cloned();
    let Some(object) = object else { return Err(skiff_fleet::removed(&node)) };
    let claimed = object.metadata.annotations.as_ref().and_then(|a| a.get(KEY_HASH));
    match claimed {
        Some(claimed) if skiff_identity::certificate_key_hash(der).as_ref() != Some(claimed) => {
            Err(format!("the name {node:?} belongs to another machine now, which has joined with a key of its own"))
        }
        _ => Ok(()),
    }
}
