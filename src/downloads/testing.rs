//! Downloads for tests of the doors.

use super::Downloads;
use crate::hub::{Hub, HubSettings};
use crate::tasks::Tasks;

/// Downloads into an empty store that is not there.
pub(crate) fn none(tasks: &Tasks) -> Downloads {
    let hub = Hub::new(HubSettings::default(), tasks.clone()).unwrap();
    Downloads::new(hub, crate::engine::testing::models(tasks), std::path::Path::new("/nonexistent"), tasks.clone())
}
