//! Serves the fake: log, judge, fault, token, act, judge again.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Shared};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::comments::WORKFLOW;
use super::contract::Contract;
use super::operation::{Operation, PathParameters};
use super::state::{Page, State};
use super::{Fault, Refusal, Request, Times};

/// Shaped like a workflow's own token.
pub(super) const TOKEN: &str = "ghs_onlyForTheFakeGitHub0000000000000000";
/// Where GitHub keeps a repository whatever its name is.
const RENAMED: &str = "/repositories/1/";
/// Where GitHub Enterprise Server keeps its API.
const GHES_PREFIX: &str = "/api/v3";
/// What a proxy says that gets no answer.
const PAGE: &str = "<html>bad\ngateway</html>";
const DOCUMENTATION: &str = "https://docs.github.com/rest";

/// All that the fake knows and was told.
pub(super) struct World {
    pub(super) state: State,
    pub(super) faults: Vec<Trap>,
    pub(super) requests: Vec<Request>,
    pub(super) violations: Vec<String>,
    /// Who the token writes as.
    pub(super) login: String,
    /// Old and new name of a repository.
    pub(super) renamed: Option<(String, String)>,
    /// What the token may; all if not said.
    pub(super) granted: Option<BTreeMap<String, String>>,
    contract: &'static Contract,
    base: String,
}

/// A fault that waits for its requests.
pub(super) struct Trap {
    pub(super) fault: Fault,
    pub(super) operations: Vec<Operation>,
    pub(super) times: Times,
}

/// The thread that serves; dropping it cuts all connections.
pub(super) struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Listens on 127.0.0.1.
pub(super) fn listen(port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("port {port} cannot be had"))
}

impl Serving {
    pub(super) fn start(listener: TcpListener, world: Arc<Mutex<World>>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let app = Router::new().fallback(serve).with_state(world);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = axum::serve(listener, app).into_future() => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panics, if any, were shown when they happened.
            let _ = thread.join();
        }
    }
}

/// What comes back to the caller.
enum Reply {
    Answer(Answer),
    Hang,
    Cut,
    /// Of what stands before GitHub.
    Page(u16),
}

struct Answer {
    status: u16,
    body: Option<Value>,
    /// Whether a list goes on after this page.
    more: bool,
    headers: Vec<(&'static str, String)>,
}

impl Answer {
    fn new(status: u16, body: Value) -> Self {
        Self { status, body: Some(body), more: false, headers: Vec::new() }
    }

    fn empty(status: u16) -> Self {
        Self { status, body: None, more: false, headers: Vec::new() }
    }

    fn refusal(status: u16, message: &str) -> Self {
        let body = json!({ "message": message, "documentation_url": DOCUMENTATION, "status": status.to_string() });
        Self::new(status, body)
    }

    fn invalid(wrong: &[String]) -> Self {
        let errors: Vec<Value> =
            wrong.iter().map(|what| json!({ "code": "custom", "message": what })).collect();
        let body = json!({ "message": "Validation Failed", "errors": errors, "documentation_url": DOCUMENTATION });
        Self::new(422, body)
    }

    /// What a fault answers in the place of what was asked for; `None` if it lets that be done.
    fn instead(fault: &Fault) -> Option<Self> {
        Some(match fault {
            Fault::RateLimit(seconds) => Self::rate_limit(*seconds),
            Fault::SecondaryLimit(seconds) => Self::secondary_limit(*seconds),
            Fault::Status(422) => Self::invalid(&["set as a fault".into()]),
            Fault::Status(status) => Self::refusal(*status, message(*status)),
            Fault::Refusal(Refusal { status, message, headers }) => {
                Self { headers: headers.clone(), ..Self::refusal(*status, message) }
            }
            Fault::Redirect(status, to) => {
                let headers = vec![("location", to.clone())];
                Self { headers, ..Self::refusal(*status, "Moved") }
            }
            Fault::Hang | Fault::Cut | Fault::Page(_) => return None,
            Fault::LostAnswer | Fault::LateHang | Fault::LateStatus(_) => return None,
        })
    }

    /// The hour's limit is used up (REST API, "Rate limits": headers).
    fn rate_limit(seconds: u64) -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let headers = vec![
            ("x-ratelimit-remaining", "0".to_owned()),
            ("x-ratelimit-reset", (now + seconds).to_string()),
        ];
        Self { headers, ..Self::refusal(403, "API rate limit exceeded for installation ID 1.") }
    }

    fn secondary_limit(seconds: u64) -> Self {
        let headers = vec![("retry-after", seconds.to_string())];
        Self { headers, ..Self::refusal(403, "You have exceeded a secondary rate limit.") }
    }

    fn page(page: Page) -> Self {
        Self { more: page.more, ..Self::new(200, page.items.into()) }
    }
}

async fn serve(
    Shared(world): Shared<Arc<Mutex<World>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let query = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map(|Query(query)| query)
        .unwrap_or_default();
    let header =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request = Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query,
        body: serde_json::from_slice(&body).ok(),
        api_version: header("x-github-api-version"),
        answer: None,
    };
    let reply = world.lock().unwrap_or_else(PoisonError::into_inner).handle(request, &headers);
    match reply {
        Reply::Answer(answer) => respond(answer, &header("host").unwrap_or_default(), &uri),
        Reply::Hang => std::future::pending().await,
        Reply::Page(status) => {
            Response::builder().status(status).body(PAGE.into()).unwrap_or_default()
        }
        // Ends the task of this connection, and with it the connection, which a handler cannot do in a milder way. No
        // panic message is printed.
        Reply::Cut => resume_unwind(Box::new("the connection is cut")),
    }
}

fn respond(answer: Answer, host: &str, uri: &Uri) -> Response {
    let mut response = Response::builder().status(answer.status);
    if answer.more {
        response = response
            .header(header::LINK, format!("<http://{host}{}>; rel=\"next\"", next_page(uri)));
    }
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let body = answer.body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    response
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .body(body)
        .unwrap_or_default()
}

/// The same path and query with the number of the next page.
fn next_page(uri: &Uri) -> String {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let (page, others): (Vec<&str>, Vec<&str>) = pairs.partition(|pair| pair.starts_with("page="));
    let page = page.first().and_then(|pair| pair[5..].parse().ok()).unwrap_or(1_u64) + 1;
    let query: Vec<String> =
        others.into_iter().map(str::to_owned).chain([format!("page={page}")]).collect();
    format!("{}?{}", uri.path(), query.join("&"))
}

impl World {
    pub(super) fn new(base: String, contract: &'static Contract) -> Self {
        Self {
            state: State::new(base.clone()),
            faults: Vec::new(),
            requests: Vec::new(),
            violations: Vec::new(),
            login: WORKFLOW.to_owned(),
            renamed: None,
            granted: None,
            contract,
            base,
        }
    }

    fn handle(&mut self, request: Request, headers: &HeaderMap) -> Reply {
        let reply = self.reply(&request, headers);
        let answer = match &reply {
            Reply::Answer(Answer { status, .. }) | Reply::Page(status) => Some(*status),
            Reply::Hang | Reply::Cut => None,
        };
        self.requests.push(Request { answer, ..request });
        reply
    }

    fn reply(&mut self, request: &Request, headers: &HeaderMap) -> Reply {
        if let Some(moved) = self.moved(request) {
            return Reply::Answer(moved);
        }
        let path = self.own_path(&request.path);
        let Some((operation, parameters)) = Operation::find(&request.method, &path) else {
            self.violations.push(format!("{} {}: no such call", request.method, request.path));
            return Reply::Answer(Answer::refusal(404, "Not Found"));
        };
        // Judged before anything else, so that a fault hides no bad request.
        let wrong = self.contract.judge_request(
            operation,
            &parameters,
            &request.query,
            request.body.as_ref(),
        );
        self.violations.extend(
            wrong.iter().map(|what| format!("{} {}: {what}", request.method, request.path)),
        );
        let fault = self.sprung(operation);
        let instead = match &fault {
            Some(Fault::Hang) => return Reply::Hang,
            Some(Fault::Cut) => return Reply::Cut,
            Some(Fault::Page(status)) => return Reply::Page(*status),
            Some(fault) => Answer::instead(fault),
            None => None,
        };
        let answer = match (instead, self.barred(operation, headers)) {
            (Some(answer), _) | (None, Some(answer)) => answer,
            (None, None) if !wrong.is_empty() => Answer::invalid(&wrong),
            (None, None) => self.act(operation, &parameters, request),
        };
        let answer = self.approved(operation, request, answer);
        match fault {
            Some(Fault::LostAnswer) => Reply::Cut,
            Some(Fault::LateHang) => Reply::Hang,
            Some(Fault::LateStatus(status)) => {
                let late = Answer::refusal(status, message(status));
                Reply::Answer(self.approved(operation, request, late))
            }
            _ => Reply::Answer(answer),
        }
    }

    /// The path as GitHub's description has it: without the Enterprise Server's prefix, of a repository by its newest name.
    fn own_path(&self, path: &str) -> String {
        match (path, path.strip_prefix(GHES_PREFIX), &self.renamed) {
            ("/api/graphql", ..) => "/graphql".to_owned(),
            (_, Some("/graphql"), _) => path.to_owned(),
            (_, plain, renamed) => {
                let plain = plain.unwrap_or(path);
                let by_number = plain.strip_prefix(RENAMED).zip(renamed.as_ref());
                by_number.map_or_else(
                    || plain.to_owned(),
                    |(rest, (_, to))| format!("/repos/{to}/{rest}"),
                )
            }
        }
    }

    /// What leads from a repository's old name to its number: 301 for what asks, 307 for what has a body to be sent on (REST
    /// API, "Best practices": redirects).
    fn moved(&self, request: &Request) -> Option<Answer> {
        let (from, _) = self.renamed.as_ref()?;
        let at = request.path.find(&format!("/repos/{from}/"))?;
        let (prefix, rest) = request.path.split_at(at);
        let rest = &rest[format!("/repos/{from}/").len()..];
        let query: Vec<String> =
            request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let status = if request.method == "GET" { 301 } else { 307 };
        let to = format!("{}{prefix}{RENAMED}{rest}{query}", self.base);
        let headers = vec![("location", to)];
        Some(Answer { headers, ..Answer::refusal(status, "Moved Permanently") })
    }

    /// Why the caller is not let in, or not allowed this, if so.
    fn barred(&self, operation: Operation, headers: &HeaderMap) -> Option<Answer> {
        let missing = || {
            let (of, needed) = operation.permission()?;
            let held = self.granted.as_ref()?.get(of).map_or("none", String::as_str);
            (held != "write" && held != needed).then(|| Answer::refusal(403, message(403)))
        };
        barred(headers).or_else(missing)
    }

    /// The fault that waits for this operation, if any.
    fn sprung(&mut self, operation: Operation) -> Option<Fault> {
        let at = self.faults.iter().position(|trap| trap.operations.contains(&operation))?;
        let fault = self.faults[at].fault.clone();
        match &mut self.faults[at].times {
            Times::Always => Some(fault),
            Times::Next(0) => {
                self.faults.remove(at);
                self.sprung(operation)
            }
            Times::Next(left) => {
                *left -= 1;
                Some(fault)
            }
        }
    }

    /// The answer, if GitHub could give it; else 500 with what is wrong with this fake.
    fn approved(&mut self, operation: Operation, request: &Request, answer: Answer) -> Answer {
        let (asked, body) = (request.body.as_ref(), answer.body.as_ref());
        let wrong = self.contract.judge_answer(operation, asked, answer.status, body);
        if wrong.is_empty() {
            return answer;
        }
        self.violations
            .extend(wrong.iter().map(|what| format!("own answer to {operation:?}: {what}")));
        Answer::refusal(500, &wrong.join("; "))
    }

    fn act(&mut self, operation: Operation, path: &PathParameters, request: &Request) -> Answer {
        let repository = format!("{}/{}", path.text("owner"), path.text("repo"));
        let id = path.id("deployment_id");
        let body = request.body.as_ref().unwrap_or(&Value::Null);
        let found = self.state.find(&repository, id);
        let answer = match operation {
            Operation::ListDeployments => {
                Some(Answer::page(self.state.list(&repository, &request.query)))
            }
            Operation::CreateDeployment => Some(self.create(repository, body)),
            Operation::GetDeployment => {
                found.map(|deployment| Answer::new(200, self.state.show(deployment)))
            }
            Operation::ListStatuses => found
                .map(|deployment| Answer::page(self.state.statuses(deployment, &request.query))),
            Operation::CreateStatus => {
                self.state.add_status(&repository, id, body).map(|status| Answer::new(201, status))
            }
            Operation::GetStatus => found.and_then(|deployment| {
                let id = path.id("status_id");
                let status = deployment.statuses.iter().find(|status| status.id == id)?;
                Some(Answer::new(200, self.state.show_status(deployment, status)))
            }),
            Operation::DispatchRepository => Some(Answer::empty(204)),
            Operation::DispatchWorkflow => Some(self.dispatch_workflow(&repository, body)),
            Operation::ListComments => {
                let issue = path.id("issue_number");
                Some(Answer::page(self.state.comments.list(&repository, issue, &request.query)))
            }
            Operation::CreateComment => {
                let issue = path.id("issue_number");
                let login = self.login.clone();
                Some(Answer::new(201, self.state.comments.add(&repository, issue, &login, body)))
            }
            Operation::ListPullRequests => {
                let commit = path.text("commit_sha");
                Some(Answer::page(self.state.pulls.list(&repository, commit, &request.query)))
            }
            Operation::ListBranches => {
                Some(Answer::new(200, self.state.branches(path.text("commit_sha"))))
            }
            Operation::Viewer => {
                Some(Answer::new(200, json!({ "data": { "viewer": { "login": self.login } } })))
            }
            Operation::UpdateComment => {
                let comment = self.state.comments.update(&repository, path.id("comment_id"), body);
                comment.map(|comment| Answer::new(200, comment))
            }
        };
        answer.unwrap_or_else(|| Answer::refusal(404, "Not Found"))
    }

    /// GitHub merges the default branch into the ref first, and wants all commit statuses green, unless it is told not
    /// to (REST API, "Create a deployment"). Here both always stand in the way, so that who forgets is found out.
    fn create(&mut self, repository: String, body: &Value) -> Answer {
        if body["auto_merge"] != false {
            return Answer::new(
                202,
                json!({ "message": "Auto-merged the default branch on deployment." }),
            );
        }
        if body["required_contexts"] != json!([]) {
            return Answer::refusal(409, "Conflict: Commit status checks failed for this ref.");
        }
        Answer::new(201, self.state.create(repository, body))
    }

    fn dispatch_workflow(&self, repository: &str, body: &Value) -> Answer {
        if body["return_run_details"] != true {
            return Answer::empty(204);
        }
        let run = self.requests.len() + 1;
        let base = &self.base;
        let (run_url, html_url) = (
            format!("{base}/repos/{repository}/actions/runs/{run}"),
            format!("{base}/{repository}/actions/runs/{run}"),
        );
        Answer::new(
            200,
            json!({ "workflow_run_id": run, "run_url": run_url, "html_url": html_url }),
        )
    }
}

/// Why a caller is not let in, if it is not: REST API, "Authenticating" and "User agent required".
fn barred(headers: &HeaderMap) -> Option<Answer> {
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    match authorization.split_once(' ') {
        None => return Some(Answer::refusal(401, "Requires authentication")),
        Some(("Bearer" | "bearer" | "token", TOKEN)) => {}
        Some(_) => return Some(Answer::refusal(401, "Bad credentials")),
    }
    let nameless = !headers.contains_key(header::USER_AGENT);
    nameless.then(|| Answer::refusal(403, "Request forbidden by administrative rules."))
}

/// What GitHub says with a status.
fn message(status: u16) -> &'static str {
    match status {
        202 => "Auto-merged the default branch on deployment.",
        401 => "Bad credentials",
        403 => "Resource not accessible by integration",
        404 => "Not Found",
        _ => "Server Error",
    }
}
