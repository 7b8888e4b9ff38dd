//! `componentstatuses`: an old way to ask whether the parts of the control plane work. Ours has one part beside the API: the
//! store.

use crate::call::{Answer, Call};
use crate::state::State;
use serde_json::{Value, json};
use skiff_api::status::Status;

const STORE: &str = "store";

fn store(state: &State) -> Value {
    let (healthy, message) = match state.store.store().leadership().borrow().leader {
        Some(_) => ("True", "ok"),
        None => ("False", "the store has no leader"),
    };
    json!({
        "metadata": {"name": STORE},
        "conditions": [{"type": "Healthy", "status": healthy, "message": message}],
    })
}

pub fn handle(state: &State, call: &Call) -> Result<Answer, Status> {
    let mut value = json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": [store(state)]});
    if call.info.verb == "get" {
        if call.name() != STORE {
            return Err(call.not_found());
        }
        value = json!({"kind": "ComponentStatus", "apiVersion": "v1"});
        if let (Value::Object(out), Value::Object(one)) = (&mut value, store(state)) {
            out.extend(one);
        }
    }
    Ok(Answer::Value { code: 200, value })
}
