//! The calls that the fake knows, named as in GitHub's description.

/// One call of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `repos/list-deployments`.
    ListDeployments,
    /// `repos/create-deployment`.
    CreateDeployment,
    /// `repos/get-deployment`.
    GetDeployment,
    /// `repos/list-deployment-statuses`.
    ListStatuses,
    /// `repos/create-deployment-status`.
    CreateStatus,
    /// `repos/get-deployment-status`.
    GetStatus,
    /// `repos/create-dispatch-event`.
    DispatchRepository,
    /// `actions/create-workflow-dispatch`.
    DispatchWorkflow,
    /// `issues/list-comments`; to GitHub a pull request is an issue.
    ListComments,
    /// `issues/create-comment`.
    CreateComment,
    /// `issues/update-comment`.
    UpdateComment,
    /// `repos/list-pull-requests-associated-with-commit`.
    ListPullRequests,
    /// `repos/list-branches-for-head-commit`.
    ListBranches,
    /// The field `viewer` of GraphQL's `Query`.
    Viewer,
}

impl Operation {
    /// All of them: "GitHub is in trouble".
    pub const ALL: [Self; 14] = [
        Self::ListDeployments,
        Self::CreateDeployment,
        Self::GetDeployment,
        Self::ListStatuses,
        Self::CreateStatus,
        Self::GetStatus,
        Self::DispatchRepository,
        Self::DispatchWorkflow,
        Self::ListComments,
        Self::CreateComment,
        Self::UpdateComment,
        Self::ListPullRequests,
        Self::ListBranches,
        Self::Viewer,
    ];

    /// Method and path template, as in the description.
    pub fn route(self) -> (&'static str, &'static str) {
        match self {
            Self::ListDeployments => ("GET", "/repos/{owner}/{repo}/deployments"),
            Self::CreateDeployment => ("POST", "/repos/{owner}/{repo}/deployments"),
            Self::GetDeployment => ("GET", "/repos/{owner}/{repo}/deployments/{deployment_id}"),
            Self::ListStatuses => {
                ("GET", "/repos/{owner}/{repo}/deployments/{deployment_id}/statuses")
            }
            Self::CreateStatus => {
                ("POST", "/repos/{owner}/{repo}/deployments/{deployment_id}/statuses")
            }
            Self::GetStatus => {
                ("GET", "/repos/{owner}/{repo}/deployments/{deployment_id}/statuses/{status_id}")
            }
            Self::DispatchRepository => ("POST", "/repos/{owner}/{repo}/dispatches"),
            Self::DispatchWorkflow => {
                ("POST", "/repos/{owner}/{repo}/actions/workflows/{workflow_id}/dispatches")
            }
            Self::ListComments => ("GET", "/repos/{owner}/{repo}/issues/{issue_number}/comments"),
            Self::CreateComment => ("POST", "/repos/{owner}/{repo}/issues/{issue_number}/comments"),
            Self::UpdateComment => ("PATCH", "/repos/{owner}/{repo}/issues/comments/{comment_id}"),
            Self::ListPullRequests => ("GET", "/repos/{owner}/{repo}/commits/{commit_sha}/pulls"),
            Self::ListBranches => {
                ("GET", "/repos/{owner}/{repo}/commits/{commit_sha}/branches-where-head")
            }
            Self::Viewer => ("POST", "/graphql"),
        }
    }

    /// What a workflow's token has to be allowed for it, as a workflow writes it (REST API, "Permissions required for GitHub
    /// Apps"); nothing for whose it is itself.
    pub(super) fn permission(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::ListDeployments | Self::GetDeployment => Some(("deployments", "read")),
            Self::ListStatuses | Self::GetStatus => Some(("deployments", "read")),
            Self::CreateDeployment | Self::CreateStatus => Some(("deployments", "write")),
            Self::ListBranches => Some(("contents", "read")),
            Self::DispatchRepository => Some(("contents", "write")),
            Self::DispatchWorkflow => Some(("actions", "write")),
            Self::ListComments | Self::ListPullRequests => Some(("pull-requests", "read")),
            Self::CreateComment | Self::UpdateComment => Some(("pull-requests", "write")),
            Self::Viewer => None,
        }
    }

    /// The call that a request makes.
    pub(super) fn find(method: &str, path: &str) -> Option<(Self, PathParameters)> {
        Self::ALL.into_iter().find_map(|operation| {
            let (own_method, template) = operation.route();
            let parameters = match_path(template, path)?;
            (own_method == method).then_some((operation, PathParameters(parameters)))
        })
    }
}

/// What a path holds in the places of its template's braces.
#[derive(Debug)]
pub(super) struct PathParameters(Vec<(&'static str, String)>);

impl PathParameters {
    /// Name and value, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The value under `name`, empty if the template has no such place.
    pub(super) fn text(&self, name: &str) -> &str {
        self.iter().find(|(own, _)| *own == name).map_or("", |(_, value)| value)
    }

    /// The id under `name`; 0, which no object has, if it is none.
    pub(super) fn id(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }
}

fn match_path(template: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let mut segments = path.split('/');
    let mut parameters = Vec::new();
    for expected in template.split('/') {
        let segment = segments.next()?;
        match expected.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) if !segment.is_empty() => parameters.push((name, segment.to_owned())),
            None if segment == expected => {}
            _ => return None,
        }
    }
    segments.next().is_none().then_some(parameters)
}
