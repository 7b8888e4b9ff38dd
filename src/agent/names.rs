//! Cluster DNS on this node, kept in step with the tables.

use super::tables::Tables;
use std::sync::Arc;
use tokio::sync::watch;

/// Where new zones go.
pub struct Names {
    zone: watch::Sender<Arc<()>>,
}

impl Names {
    pub fn update(&self, _: &Tables) {
        self.zone.send_replace(Arc::default());
    }
}

pub async fn start(_: &skiff_network::Network, _: &skiff_proto::fleet::Welcome) -> anyhow::Result<Names> {
    Ok(Names { zone: watch::Sender::new(Arc::default()) })
}
