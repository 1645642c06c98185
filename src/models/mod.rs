//! Which models exist, in which version and state, and the loading and unloading of them (`ModelManager`).
//!
//! Knows the store's layout (`repository`, `manifest`, `config_pbtxt`), decides what is loaded (`lifecycle`, pure) and
//! does it (`loader`, `manager`). Knows no protocol.

mod name;
mod settings;

pub use name::{ModelName, NameError, Version};
pub use settings::{ModelOverrides, ModelSettings, StoreSettings};
