use serde_json::json;

use super::*;

/// More of GitHub's schema than is asked for anywhere: fields with arguments, lists and enums.
const MORE: &str = "
type Query { user(login: String!): User, viewer: User! }
type User { login: String!, name: String, repositories(first: Int, privacy: RepositoryPrivacy): Repositories! }
type Repositories { nodes: [Repository], totalCount: Int! }
type Repository { name: String!, url: URI! }
enum RepositoryPrivacy { PRIVATE PUBLIC }
scalar URI
";

fn asked(query: &str) -> Value {
    json!({ "query": query })
}

#[test]
fn what_github_does_not_have_is_no_question() {
    let github = Schema::load().unwrap();
    let ours = asked("query { viewer { login } }");
    assert_eq!(github.judge_question(&ours), Vec::<String>::new());
    assert_eq!(github.judge_question(&asked("{ viewer { login } }")), Vec::<String>::new());
    for (query, wrong) in [
        ("query { viewer }", "Query.viewer: which fields of this User?"),
        ("query { viewer { logins } }", "User.logins: no such field"),
        ("query { viewer { login { name } } }", "User.login: a String has no fields"),
        ("query { viewer(id: 1) { login } }", "Query.viewer(id): no such argument"),
        ("query { viewer { ... on Bot { login } } }", "User: fragments are not known here"),
        ("query { viewer { login @skip(if: true) } }", "User.login: directives are not known here"),
        ("mutation { viewer { login } }", "only one query, without directives, is known here"),
    ] {
        assert_eq!(github.judge_question(&asked(query)), [wrong]);
    }
    assert!(!github.judge_question(&asked("query { viewer { login }")).is_empty());
    assert!(
        !github.judge_question(&json!({ "question": "query { viewer { login } }" })).is_empty()
    );
}

#[test]
fn arguments_and_variables_have_their_types() {
    let schema = Schema::read(MORE).unwrap();
    let good = [
        asked(r#"{ user(login: "a") { repositories(first: 2, privacy: PUBLIC) { totalCount } } }"#),
        json!({ "query": "query($l: String!) { user(login: $l) { name } }", "variables": { "l": "a" } }),
        json!({ "query": "query($l: String = \"a\") { user(login: $l) { name } }" }),
    ];
    for question in good {
        assert_eq!(schema.judge_question(&question), Vec::<String>::new(), "{question}");
    }
    let wanted = "query($l: String!) { user(login: $l) { name } }";
    for (question, wrong) in [
        (asked("{ user { name } }"), "Query.user(login): needed"),
        (asked("{ user(login: 1) { name } }"), "Query.user(login): 1 is no String!"),
        (asked("{ user(login: null) { name } }"), "Query.user(login): null is no String!"),
        (
            asked(r#"{ viewer { repositories(privacy: "PUBLIC") { totalCount } } }"#),
            "User.repositories(privacy): \"PUBLIC\" is no RepositoryPrivacy",
        ),
        (
            asked("{ viewer { repositories(privacy: SECRET) { totalCount } } }"),
            "User.repositories(privacy): SECRET is no RepositoryPrivacy",
        ),
        (asked(wanted), "$l: null is no String!"),
        (json!({ "query": wanted, "variables": { "l": 1 } }), "$l: 1 is no String!"),
        (json!({ "query": wanted, "variables": { "l": "a", "m": 1 } }), "$m: no such variable"),
        (
            asked("query($l: String) { user(login: $l) { name } }"),
            "Query.user(login): $l is no String!",
        ),
        (asked("{ user(login: $l) { name } }"), "Query.user(login): $l is no String!"),
    ] {
        assert_eq!(schema.judge_question(&question), [wrong], "{question}");
    }
}

#[test]
fn an_answer_has_what_was_asked_for_and_nothing_else() {
    let schema = Schema::read(MORE).unwrap();
    let question =
        asked("{ viewer { id: login name repositories(first: 2) { nodes { name url } } } }");
    let answer = |viewer: Value| json!({ "data": { "viewer": viewer } });
    let nodes = json!({ "nodes": [{ "name": "a", "url": "https://github.com/a" }, null] });
    let whole = json!({ "id": "a", "name": null, "repositories": nodes });
    assert_eq!(schema.judge_answer(&question, &answer(whole.clone())), Vec::<String>::new());
    for (pointer, value, wrong) in [
        ("/id", json!(null), "User.id: null is no String!"),
        ("/id", json!(1), "User.id: 1 is no String!"),
        ("/name", json!(1), "User.name: 1 is no String"),
        ("/repositories/nodes", json!({}), "Repositories.nodes: {} is no [Repository]"),
        ("/repositories/nodes/0/name", json!([]), "Repository.name: [] is no String!"),
        (
            "/repositories",
            json!({ "nodes": [], "totalCount": 0 }),
            "Repositories.totalCount: nobody asked for it",
        ),
    ] {
        let mut viewer = whole.clone();
        *viewer.pointer_mut(pointer).unwrap() = value;
        assert_eq!(schema.judge_answer(&question, &answer(viewer)), [wrong]);
    }
    assert_eq!(schema.judge_answer(&question, &json!({ "data": null })), ["null is no Query"]);
}
