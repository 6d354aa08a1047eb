//! The client: against a healthy server, a failing one, and one that means harm.

mod faults;
mod hostile;
mod operations;
mod support;
mod tcp;
