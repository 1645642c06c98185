//! The version of the standard operators that a graph is written in.

use super::RewriteError;
use crate::runtime::onnx::proto::ModelProto;

/// 0 where the model names none.
pub(super) fn of(model: &ModelProto) -> i64 {
    model.opset_import.iter().find(|set| matches!(set.domain(), "" | "ai.onnx")).map_or(0, |set| set.version())
}

/// # Errors
/// Where the model is older than `what` needs.
pub(super) fn at_least(model: &ModelProto, version: i64, what: &str) -> Result<(), RewriteError> {
    let found = of(model);
    if found < version {
        return Err(RewriteError::Graph(format!("the graph is of opset {found}; {what} takes {version} or later")));
    }
    Ok(())
}
