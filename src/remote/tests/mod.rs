//! Against the real ssh and sshd, on loopback. Only the agent itself is a stand-in.

mod answers;
mod connections;
mod lines;
mod sshd;
