//! The gateway's binary: everything is in the library.

fn main() -> std::process::ExitCode {
    isthmus::cli::main()
}
