//! The command, built beside the tests that run it.
fn main() -> std::process::ExitCode {
    sartor::main(sartor::Registry::builtin())
}
