//! Demo
use crate::run::Exit;
/// args
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}
/// run
pub fn run(_args: &Args) -> Exit {
    Exit::Done
}
