//! Engines are shared by the tests of one process: starting one takes seconds, and clearing one up a moment.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{Engine, Publishes, said};

/// Those that nobody uses now. They end with this process.
static FREE: Mutex<Vec<Engine>> = Mutex::new(Vec::new());

/// An Engine with a bridge and without containers, for one test at a time: it goes back when this is dropped.
pub struct Lent(Option<Engine>);

impl Lent {
    /// One that nobody uses, or a new one.
    ///
    /// # Errors
    /// As [`Engine::empty`].
    pub fn any() -> Result<Self> {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Self(Some(free.map_or_else(|| Engine::empty(Publishes::ByProxy), Ok)?)))
    }

    /// A new one whose ports the packet filter forwards. It belongs to the network of this thread, and is lent once.
    ///
    /// # Errors
    /// As [`Engine::empty`].
    pub fn filtering() -> Result<Self> {
        Ok(Self(Some(Engine::empty(Publishes::ByFilter)?)))
    }

    /// Removes every container, whatever it does.
    ///
    /// # Errors
    /// If one is still there.
    pub fn remove_containers(&self) -> Result<()> {
        let ids = said(&mut self.docker(["ps", "--all", "--quiet", "--no-trunc"]))?;
        if ids.is_empty() {
            return Ok(());
        }
        said(&mut self.docker(["rm", "--force"].into_iter().chain(ids.lines())))
            .map(drop)
            .context("a container stays")
    }
}

impl Deref for Lent {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0.as_ref().expect("it goes back only when this is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let is_clear = self.remove_containers().is_ok();
        let is_for_all = |engine: &Engine| is_clear && engine.publishes == Publishes::ByProxy;
        if let Some(engine) = self.0.take().filter(is_for_all) {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
        }
    }
}
