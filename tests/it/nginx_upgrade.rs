//! nginx's upgrade of its own binary: two masters share every socket, and a reload of one tells the other nothing.

use std::fs;

use anyhow::Result;
use inotify::{Inotify, WatchMask};
use testbed::server::{Aim, ServerSpec};

use crate::kills::{CLOSED, CUTTING_OVER, READY, frozen, journal};
use crate::step::{Step, send, until};
use crate::support::{NEW, World, alive};

/// Begins an upgrade of nginx's binary; the new master, once it takes requests beside the old one.
async fn upgraded(world: &World, old: u32) -> Result<u32> {
    send("-USR2", old)?;
    until("a second master", || {
        let new = world.server.nginx_master().ok().filter(|new| *new != old);
        Ok(new.filter(|_| world.server.nginx_workers().is_ok_and(|workers| !workers.is_empty())))
    })
    .await
}

/// nginx's own upgrade leaves two masters that share every socket, until one is told to quit.
#[tokio::test]
async fn a_second_master_that_takes_requests_as_well_is_refused() -> Result<()> {
    // Else the new master would not know whose it is.
    let main_lines = format!("env {};", testbed::server::MARK);
    let world = World::on(ServerSpec { main_lines, ..ServerSpec::default() }, &[]).await?;
    let load = world.load().await?;
    let file = fs::read(world.server.nginx_config())?;
    let old = world.server.nginx_master()?;
    let new = upgraded(&world, old).await?;
    let said = [
        &format!("two nginx masters take requests from the same sockets: {new}, "),
        &format!("and {old}"),
        &format!("`kill -QUIT {old}`"),
    ];
    for command in ["plan", "swap"] {
        world.run(command, NEW, &[]).await?.refused(3, &said.map(String::as_str));
    }
    assert_eq!(fs::read(world.server.nginx_config())?, file);
    send("-QUIT", old)?;
    until("one master", || Ok((!alive(old)).then_some(()))).await?;
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// Opens of nginx's pid file that nobody makes who does not wait: each look whether one master is left reads it.
const LOOKS: usize = 12;

/// The record that announces that the old model is retired.
const RETIRING: usize = CLOSED - 2;

/// Has the old master quit once somebody has looked for it again and again, as a package does after some seconds.
fn quits_in_time(world: &World, old: u32) -> Result<()> {
    let mut pid_file = Inotify::init()?;
    pid_file.watches().add(world.server.scratch().join("run/nginx.pid"), WatchMask::OPEN)?;
    std::thread::spawn(move || -> Result<()> {
        let (mut looks, mut room) = (0, [0; 4096]);
        while looks < LOOKS {
            looks += pid_file.read_events_blocking(&mut room)?.count();
        }
        send("-QUIT", old)
    });
    Ok(())
}

#[tokio::test]
async fn a_swap_waits_until_an_upgrade_of_nginx_is_over() -> Result<()> {
    let main_lines = format!("env {};", testbed::server::MARK);
    let spec = ServerSpec { main_lines, faults: true, ..ServerSpec::default() };
    let mut world = World::on(spec, &[]).await?;
    world.settings.retain = "0s".to_owned();
    let load = world.load().await?;
    world.server.strike(Some(Aim::Freeze(READY)))?;
    let step = Step::start(world.action("swap", NEW, &[("wait", "retired")])?)?;
    let mut before = None;
    let next = |record| Some(Aim::Freeze(record));
    // Before the lines are looked at that are to be changed, before they are, and before the old model is stopped.
    for (record, next) in
        [(READY, next(CUTTING_OVER)), (CUTTING_OVER, next(RETIRING)), (RETIRING, None)]
    {
        let (agent, records) = frozen_after(&world, record).await?;
        assert_eq!(records, record);
        world.server.strike(next)?;
        let old = world.server.nginx_master()?;
        // As long as that one drains, nginx ignores another upgrade.
        until("one master", || Ok((!before.is_some_and(alive)).then_some(()))).await?;
        upgraded(&world, old).await?;
        before = Some(old);
        quits_in_time(&world, old)?;
        send("-CONT", agent)?;
    }
    step.finish().await?.ended(0, "promoted");
    world.until_serves(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

/// The agent, once it is frozen and has written so many records.
async fn frozen_after(world: &World, record: usize) -> Result<(u32, usize)> {
    until("its record", || {
        Ok((journal(world).is_ok_and(|(lines, _)| lines.len() >= record)).then_some(()))
    })
    .await?;
    frozen(world).await
}
