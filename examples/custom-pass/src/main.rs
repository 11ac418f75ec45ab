//! The command `sartor` with one more pass.

use sartor::{PassInfo, Registry};

fn main() -> std::process::ExitCode {
    let about = "add calibrated probabilities beside the logits";
    let probabilities = PassInfo::of::<custom_pass::Probabilities>("probabilities", "serving", about);
    sartor::main(Registry::builtin().with(probabilities))
}
