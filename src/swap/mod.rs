//! F1: the design itself, pure: what to do, what may follow what, and what an interrupted swap needs.

pub mod approval;
pub mod hidden;
pub mod history;
pub mod nginx_conf;
pub mod outline;
pub mod planner;
pub mod recovery;
pub mod redact;
pub mod revision;
pub mod transition;
pub mod weights;
