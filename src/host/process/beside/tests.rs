use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::super::testing::{Process, Strays, until};
use super::super::tree;
use super::*;

/// Every process under a wrapper, once all of these run there: each is named by the last word of its argv.
async fn below(wrapper: ProcessId, words: &[&str]) -> Vec<ProcessId> {
    let named = |word: &str| {
        let below = tree(wrapper).ok()?.into_iter().skip(1);
        below.into_iter().find(|id| {
            Program::of(*id).is_some_and(|it| it.argv.last().is_some_and(|last| last == word))
        })
    };
    until("all of them run", || words.iter().map(|word| named(word)).collect()).await
}

#[tokio::test]
async fn a_script_keeps_its_model_with_what_serves_that_alone() {
    let script = "perl -e 'sleep 1000' model 2>&1 | tee /dev/zero & while sleep 1001; do true; done & \
                  perl -e sleep gateway & wait";
    // The script itself, or what runs it as another user.
    let as_sudo = ["perl", "-e", "$0 = 'sudo'; exit system @ARGV"];
    for before in [&[][..], &as_sudo] {
        let wrapper = Process::start(&[before, &["sh", "-c", script]].concat(), Stdio::null());
        let found = below(wrapper.id(), &["model", "gateway", "/dev/zero", "1001"]).await;
        let _strays = Strays(found.clone());
        let [model, gateway] = [found[0], found[1]];
        let other = beside(wrapper.id(), &[model]).unwrap().unwrap();
        assert_eq!(other, format!("{gateway} (perl -e sleep gateway)"));
        drop(Strays(vec![gateway]));
        let alone = || beside(wrapper.id(), &[model]).unwrap().is_none().then_some(());
        until("the model is alone there", alone).await;
        // What is the unit's main process itself keeps nothing but its own.
        assert_eq!(beside(wrapper.id(), &tree(wrapper.id()).unwrap()).unwrap(), None);
    }
}

#[tokio::test]
async fn a_supervisor_keeps_its_model_where_that_is_its_only_program() {
    let programs = |words: &str| {
        let script = "for (@ARGV) { fork or exec 'sleep', $_ } sleep 1000";
        let mut command = Command::new("perl");
        command.arg0("supervisord").args(["-e", script]).args(words.split(' '));
        Process::spawn(command.stdin(Stdio::null()))
    };
    for (words, is_alone) in [("1001", true), ("1001 1002", false)] {
        let supervisor = programs(words);
        let wanted: Vec<_> = words.split(' ').collect();
        let found = below(supervisor.id(), &wanted).await;
        let _strays = Strays(found.clone());
        let other = beside(supervisor.id(), &found[..1]).unwrap();
        assert_eq!(other.is_none(), is_alone, "{other:?}");
    }
}

#[tokio::test]
async fn a_unit_that_is_the_model_keeps_no_others() {
    let started_again = Process::start(&["perl", "-e", "system 'sleep', 1000"], Stdio::null());
    let worker = below(started_again.id(), &["1000"]).await;
    let _strays = Strays(worker);
    assert_eq!(beside(started_again.id(), &[]).unwrap(), None);
}
