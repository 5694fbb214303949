//! The driver's files that say what layers stand on.

use std::collections::HashMap;

use crate::driver::Standing;
use crate::error::{Error, Result};
use crate::store::heal::usage::Usage;
use crate::store::layer_store::locked::LayerStore;

/// A layer and all that stand on it, each with the layers below it.
pub(super) fn standings_on(usage: &Usage, id: &str) -> Vec<Standing> {
    let own = usage.layers.iter().filter(|(_, layer)| !layer.read_only());
    let standings = own.map(|(id, _)| Standing {
        id: id.clone(),
        below: usage.below(id),
        // What is in doubt is mended alone.
        is_lowest: false,
    });
    standings
        .filter(|standing| standing.id == id || standing.below.iter().any(|below| below == id))
        .collect()
}

impl LayerStore {
    /// Makes the driver's files of these layers anew where they do not agree with the records. Those that stand on a layer that
    /// the driver has lost are left until that is there again.
    pub(super) fn mend_standings(&self, standings: &[Standing]) -> Result<()> {
        let mut whole: Vec<Standing> = Vec::new();
        for standing in standings {
            let mut ids = std::iter::once(&standing.id).chain(&standing.below);
            if ids.try_fold(true, |all, id| Ok::<_, Error>(all && self.driver.exists(id)?))? {
                whole.push(standing.clone());
            }
        }
        let damage = self.driver.examine(&whole)?;
        let by_id: HashMap<&str, &Standing> = whole
            .iter()
            .map(|standing| (standing.id.as_str(), standing))
            .collect();
        let mut mended: Vec<&str> = Vec::new();
        for damaged in &damage {
            let id = damaged.id.as_str();
            if let Some(standing) = by_id.get(id).filter(|_| !mended.contains(&id)) {
                self.driver.mend(standing)?;
                mended.push(id);
            }
        }
        Ok(())
    }
}
