//! Starts a workflow of the repository: one of the two things that a workflow's own token can start others with.
//!
//! Body: GitHub's REST documentation, "Create a workflow dispatch event".

use serde_json::json;

use super::api::{Api, ApiError, ApiSpec};
use crate::model::ids::SwapId;

/// The workflows of one repository.
pub struct Workflows {
    api: Api,
}

impl Workflows {
    /// A client; makes no request. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the token cannot stand in a header, the address is none, or the machine has no CA certificates.
    pub fn new(spec: ApiSpec) -> Result<Self, ApiError> {
        Api::new(spec).map(|api| Self { api })
    }

    /// Starts a workflow as it is on a branch or tag, with the inputs `swap-id` and `environment`, which it must have.
    ///
    /// # Errors
    /// If GitHub refuses, as where the workflow has no `workflow_dispatch` or other inputs, or does not answer: then it may
    /// have been started.
    pub async fn dispatch(
        &self,
        workflow: &str,
        reference: &str,
        (swap, environment): (&SwapId, &str),
    ) -> Result<(), ApiError> {
        let tried = format!("start the workflow {workflow} of {}", self.api.repository);
        let route = format!("/actions/workflows/{workflow}/dispatches");
        let inputs = json!({ "swap-id": swap, "environment": environment });
        self.api.post_silent(&tried, &route, &json!({ "ref": reference, "inputs": inputs })).await
    }
}
