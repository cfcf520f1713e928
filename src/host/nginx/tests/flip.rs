//! What goes well: flips, ways back, proofs.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use super::support::{Backend, Master, Scratch, expect, finish, is_root, signal};
use crate::host::nginx::{Expectation, Identity, Nginx, NginxError, Proof, Reloaded};
use crate::model::ids::Port;

#[tokio::test]
async fn a_flip_and_its_way_back_change_the_port_and_nothing_else() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    // The file that nginx includes is a symlink, and not root's.
    let real = scratch.path("real/llm.conf");
    std::fs::remove_file(scratch.path("conf.d/llm.conf")).unwrap();
    std::os::unix::fs::symlink("../real/llm.conf", scratch.path("conf.d/llm.conf")).unwrap();
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o640)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&real, Some(65534), Some(65534)).unwrap();
    }
    let before = std::fs::metadata(&real).unwrap();
    let nginx = scratch.nginx();

    let view = nginx.view().await.unwrap();
    assert_eq!(
        (view.port, view.server.as_str()),
        (a.port, format!("server 127.0.0.1:{} weight=2", a.port).as_str())
    );
    assert_eq!(view.file, real.canonicalize().unwrap());
    assert_eq!(Some(view.master.pid), scratch.master_pid());
    assert_eq!(view.error_log, Some(scratch.path("logs/error.log")));
    assert_eq!(view.worker_shutdown_timeout, None);

    let image = nginx.image(&view, b.port).unwrap();
    let reloaded = nginx.load(&image).await.unwrap();
    assert_eq!(reloaded.old_workers.len(), 2);
    assert_eq!(reloaded.master, view.master);
    assert!(!reloaded.new_workers.is_empty());
    assert_eq!(nginx.prove(&expect(&b, &a), &reloaded).await.unwrap(), Proof::Answers(3));
    assert_eq!(scratch.upstream_file(), Scratch::upstream(b.port).into_bytes());

    let back = nginx.restore(&image).await.unwrap().unwrap();
    nginx.prove(&expect(&a, &b), &back).await.unwrap();
    assert_eq!(scratch.upstream_file(), Scratch::upstream(a.port).into_bytes());

    let after = std::fs::metadata(&real).unwrap();
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (before.uid(), before.gid(), before.mode())
    );
    assert!(std::fs::symlink_metadata(scratch.path("conf.d/llm.conf")).unwrap().is_symlink());
    let names: Vec<_> =
        std::fs::read_dir(scratch.path("real")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["llm.conf"], "something was left behind");
}

#[tokio::test]
async fn loading_and_restoring_twice_is_loading_and_restoring_once() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    for _ in 0..2 {
        let reloaded = nginx.load(&image).await.unwrap();
        nginx.prove(&expect(&b, &a), &reloaded).await.unwrap();
    }
    let reloaded = nginx.restore(&image).await.unwrap().unwrap();
    nginx.prove(&expect(&a, &b), &reloaded).await.unwrap();
    scratch.until("no worker asks B for anybody new", || {
        let left = nginx.workers_left(&reloaded.old_workers, b.port);
        left.iter().all(|worker| worker.shutting_down)
    });
    assert_eq!(nginx.restore(&image).await.unwrap(), None);
    assert_eq!(scratch.upstream_file(), Scratch::upstream(a.port).into_bytes());
}

/// As on a busy machine: the others answer, and nobody may say yet that it is over.
#[tokio::test]
async fn while_an_old_worker_has_not_heard_of_the_way_back_it_is_gone_again() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let loaded = nginx.load(&image).await.unwrap();
    nginx.prove(&expect(&b, &a), &loaded).await.unwrap();
    let late = u32::try_from(loaded.new_workers[0].pid).unwrap();
    signal(late, "STOP");
    let first = nginx.restore(&image).await.unwrap().unwrap();
    nginx.prove(&expect(&a, &b), &first).await.unwrap();
    let second = nginx.restore(&image).await.unwrap().unwrap();
    assert!(second.old_workers.contains(&loaded.new_workers[0]), "{second:?}");
    signal(late, "CONT");
}

/// Else nobody would ever see the last of the old workers go: what they served would be drained for good.
#[tokio::test]
async fn a_master_that_takes_over_is_none_of_the_workers_that_end() {
    let a = Backend::named("A");
    let scratch = Scratch::start_as(Master::Left, &Scratch::upstream(a.port));
    let nginx = scratch.nginx();
    let first = scratch.master().unwrap();
    let own = first.live_workers().unwrap();
    signal(first.process.pid.try_into().unwrap(), "USR2");
    let second = || scratch.master().filter(|master| master.process != first.process);
    scratch.until("a second master serves", || {
        second().is_some_and(|second| second.live_workers().unwrap().len() == 2)
    });
    let second = second().unwrap().process;
    assert!(first.workers().unwrap().contains(&second), "it is no child of the first");
    let seen = nginx.loaded(first.process).unwrap();
    assert_eq!(seen, Reloaded { master: first.process, old_workers: Vec::new(), new_workers: own });
    // Whoever listed the children before it had a title of its own took it for a worker.
    assert_eq!(nginx.workers_left(&[second], a.port), []);
    signal(first.process.pid.try_into().unwrap(), "QUIT");
    scratch.until("one master is left", || !first.is_alive());
}

#[tokio::test]
async fn a_restore_that_was_cut_off_before_its_reload_is_finished() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let reloaded = nginx.load(&image).await.unwrap();
    nginx.prove(&expect(&b, &a), &reloaded).await.unwrap();
    // The file says A again, but nginx has B loaded.
    std::fs::write(scratch.path("conf.d/llm.conf"), Scratch::upstream(a.port)).unwrap();
    let reloaded = nginx.restore(&image).await.unwrap().unwrap();
    assert_eq!(nginx.prove(&expect(&a, &b), &reloaded).await.unwrap(), Proof::Answers(3));
}

#[tokio::test]
async fn equal_roots_are_told_apart_by_fingerprint() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let reloaded = nginx.load(&image).await.unwrap();
    let identity =
        Identity::Fingerprint { fingerprint: "fp-B".to_owned(), served_model: "chat".to_owned() };
    let expect = Expectation { identity: Some(identity), ..expect(&b, &a) };
    assert_eq!(nginx.prove(&expect, &reloaded).await.unwrap(), Proof::Answers(3));
}

async fn proves_by_sockets(upstream: impl Fn(Port) -> String, identity: Option<Identity>) {
    let (a, b) = (Backend::locked("A"), Backend::locked("B"));
    let scratch = Scratch::start_as(Master::Own, &upstream(a.port));
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let reloaded = nginx.load(&image).await.unwrap();
    let expect = Expectation { candidate: b.port, incumbent: a.port, identity };
    let proof = nginx.prove(&expect, &reloaded).await.unwrap();
    assert!(matches!(proof, Proof::Sockets { workers: 1.., connections: 1.. }), "{proof}");
}

#[tokio::test]
async fn sockets_prove_it_where_every_answer_is_401() {
    proves_by_sockets(Scratch::upstream, Some(Identity::Root("B".to_owned()))).await;
    proves_by_sockets(Scratch::upstream, None).await;
}

#[tokio::test]
async fn sockets_prove_it_without_keepalive_as_well() {
    proves_by_sockets(|port| format!("upstream llm {{ server 127.0.0.1:{port}; }}"), None).await;
}

#[tokio::test]
async fn nothing_is_proven_while_requests_go_elsewhere() {
    let (a, b, locked) = (Backend::named("A"), Backend::named("B"), Backend::locked("C"));
    let scratch = Scratch::start(a.port);
    let mut nginx = scratch.nginx();
    nginx.proof_limit = Duration::from_secs(3);
    let reloaded =
        nginx.load(&nginx.image(&nginx.view().await.unwrap(), b.port).unwrap()).await.unwrap();
    scratch.until("nobody is left who asks A", || {
        nginx.workers_left(&reloaded.old_workers, a.port).is_empty()
    });

    let error = nginx.prove(&expect(&a, &b), &reloaded).await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, NginxError::Unproven { .. }), "{said}");
    assert!(
        said.contains("`B` instead of `A`") && said.contains("2 new workers held 0 connections"),
        "{said}"
    );

    // A worker that was there before proves nothing.
    let workers = scratch.master().unwrap().workers().unwrap();
    let nobody = Reloaded { old_workers: workers, ..reloaded.clone() };
    let error =
        nginx.prove(&Expectation { identity: None, ..expect(&b, &a) }, &nobody).await.unwrap_err();
    assert!(error.to_string().contains("0 new workers"), "{error}");

    let wrong = Expectation { candidate: locked.port, incumbent: a.port, identity: None };
    let error = nginx.prove(&wrong, &reloaded).await.unwrap_err();
    assert!(matches!(error, NginxError::Unproven { .. }), "{error}");
}

#[tokio::test]
async fn workers_that_still_serve_are_named_until_they_are_gone() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let slow = scratch.begin("/slow");
    scratch.until("the slow request is at A", || {
        let workers = scratch.master().unwrap().workers().unwrap();
        nginx.workers_left(&workers, a.port).iter().any(|worker| worker.connections == Some(1))
    });
    let first = nginx.load(&image).await.unwrap();
    scratch.until("only the worker with the slow request is left", || {
        nginx.workers_left(&first.old_workers, a.port).len() == 1
    });
    let left = nginx.workers_left(&first.old_workers, a.port);
    assert_eq!((left[0].connections, left[0].shutting_down), (Some(1), true));
    assert_eq!(nginx.workers_left(&first.old_workers, b.port)[0].connections, Some(0));

    // The next reload must still know of it.
    let second = nginx.restore(&image).await.unwrap().unwrap();
    assert!(second.old_workers.contains(&left[0].process), "{second:?}");
    a.release();
    assert!(finish(slow).contains("\"root\":\"A\""));
    scratch.until("it is gone", || nginx.workers_left(&second.old_workers, a.port).is_empty());
}

#[tokio::test]
async fn a_master_that_does_not_answer_gets_the_old_lines_in_the_end() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let hasty = Nginx { reload_limit: Duration::from_millis(300), ..scratch.nginx() };
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let pid = u32::try_from(scratch.master_pid().unwrap()).unwrap();
    signal(pid, "STOP");
    let error = hasty.load(&image).await.unwrap_err();
    assert!(matches!(error, NginxError::NoNewWorkers { .. }), "{error}");
    assert!(error.leaves_doubt(), "what it was told it may do yet");
    assert_eq!(scratch.upstream_file(), Scratch::upstream(a.port).into_bytes());
    signal(pid, "CONT");
    if let Some(reloaded) = nginx.restore(&image).await.unwrap() {
        nginx.prove(&expect(&a, &b), &reloaded).await.unwrap();
    }
    assert!(scratch.get("/v1/models").contains("\"root\":\"A\""));
}

#[tokio::test]
async fn an_nginx_in_a_namespace_of_its_own_is_found_and_flipped() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let scratch = Scratch::start_as(Master::Mounted(""), &Scratch::upstream(a.port));
    let nginx = scratch.nginx();
    let view = nginx.view().await.unwrap();
    assert_eq!(view.file, scratch.path("real/llm.conf").canonicalize().unwrap());
    let reloaded = nginx.load(&nginx.image(&view, b.port).unwrap()).await.unwrap();
    nginx.prove(&expect(&b, &a), &reloaded).await.unwrap();
    assert_eq!(std::fs::read_to_string(view.file).unwrap(), Scratch::upstream(b.port));
}

/// As `systemctl restart nginx` does it.
#[tokio::test]
async fn an_nginx_that_is_being_restarted_is_waited_for() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let mut scratch = Scratch::start(a.port);
    let image = scratch.nginx().image(&scratch.nginx().view().await.unwrap(), b.port).unwrap();
    let asked = scratch.path("asked");
    let mut spec = scratch.spec();
    // What comes next is the look for the master, long before one that is started now has written its pid file.
    let script = format!("\"$@\" && touch {}", asked.display());
    spec.command.splice(0..0, ["sh", "-c", &script, "sh"].map(str::to_owned));
    let nginx = Nginx::new(spec);
    let reloaded = scratch.nginx().load(&image).await.unwrap();
    nginx.prove(&expect(&b, &a), &reloaded).await.unwrap();
    scratch.stop();
    let starts = async {
        while !asked.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        scratch.start_again();
    };
    let (restored, ()) = tokio::join!(nginx.restore(&image), starts);
    nginx.prove(&expect(&a, &b), &restored.unwrap().unwrap()).await.unwrap();
}

/// Where no answer tells, sockets have to, and those of the workers that loaded it are gone.
#[tokio::test]
async fn a_proof_goes_on_through_the_nginx_that_was_started_since() {
    let (a, b) = (Backend::locked("A"), Backend::locked("B"));
    let mut scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let reloaded = nginx.load(&image).await.unwrap();
    scratch.stop();
    let starts = async {
        // The proof has had its first look.
        tokio::task::yield_now().await;
        scratch.start_again();
    };
    let expect = Expectation { candidate: b.port, incumbent: a.port, identity: None };
    let (proof, ()) = tokio::join!(nginx.prove(&expect, &reloaded), starts);
    assert!(matches!(proof.unwrap(), Proof::Sockets { workers: 1.., connections: 1.. }));
}

#[tokio::test]
async fn a_reload_is_asked_of_the_nginx_that_is_started_where_one_ended_over_it() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let mut scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let pid = u32::try_from(scratch.master_pid().unwrap()).unwrap();
    signal(pid, "STOP");
    let restarts = async {
        while !is_to_reload(pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Of two orders it obeys this one first.
        signal(pid, "QUIT");
        signal(pid, "CONT");
        scratch.stop();
        scratch.start_again();
    };
    let (reloaded, ()) = tokio::join!(nginx.load(&image), restarts);
    let reloaded = reloaded.unwrap();
    nginx.prove(&expect(&b, &a), &reloaded).await.unwrap();
    assert_eq!(Some(reloaded.master.pid), scratch.master_pid());
    assert_eq!(scratch.upstream_file(), Scratch::upstream(b.port).into_bytes());
}

/// As where a restart ends it, and its configuration was broken before that.
#[tokio::test]
async fn what_nothing_is_started_with_in_place_of_an_nginx_that_ended_is_said() {
    let (a, b) = (Backend::named("A"), Backend::named("B"));
    let mut scratch = Scratch::start(a.port);
    let nginx = scratch.nginx();
    let image = nginx.image(&nginx.view().await.unwrap(), b.port).unwrap();
    let pid = u32::try_from(scratch.master_pid().unwrap()).unwrap();
    signal(pid, "STOP");
    let broken = scratch.path("conf.d/broken.conf");
    let ends = async {
        while !is_to_reload(pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        std::fs::write(&broken, "broken;").unwrap();
        signal(pid, "QUIT");
        signal(pid, "CONT");
        scratch.stop();
    };
    let (refused, ()) = tokio::join!(nginx.load(&image), ends);
    let refused = refused.unwrap_err();
    assert!(
        matches!(&refused, NginxError::Restarted(why) if matches!(**why, NginxError::Rejected { .. }))
    );
    assert!(refused.leaves_doubt(), "what is started may have read it");
    assert!(refused.to_string().contains("unknown directive \"broken\""), "{refused}");
    assert_eq!(scratch.upstream_file(), Scratch::upstream(a.port).into_bytes());
    std::fs::remove_file(broken).unwrap();
    scratch.start_again();
}

/// Whether a process that is stopped was told to reload since.
fn is_to_reload(pid: u32) -> bool {
    const HUP: u64 = 1;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() & HUP == HUP
}
