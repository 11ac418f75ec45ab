//! The command `sartor` with the passes that come with it.
fn main() -> std::process::ExitCode {
    sartor::main(sartor::Registry::builtin())
}
