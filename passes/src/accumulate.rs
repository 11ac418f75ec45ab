//! `accumulate`: averages the gradients of several runs of a step before the optimizer applies them once: a large
//! batch in the memory of a small one.
//!
//! Before → after, for `accumulate(steps=4)`: each `grad:p` becomes `sum:p + grad:p / 4`, where `sum:p` is a state; on
//! every fourth run the output `apply` is true, the optimizer applies what was gathered, and the states return to 0.
//!
//! Precondition: `autodiff` has run, `optimizer` has not (it looks for `apply`). With `clip`, the order decides: `clip` after
//! `accumulate` clips the averaged gradient, which is what PyTorch users do.

use crate::training::{bind, zero_like};
use crate::{Changed, Pass, training};
use sartor_ir::ops::Emit;
use sartor_ir::{Attributes, Model, Program, Result, Role, Tensor, Type, Value, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options, and the pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Accumulate {
    /// How many runs of the step make one update.
    pub steps: u32,
}

impl Default for Accumulate {
    fn default() -> Accumulate {
        Accumulate { steps: 1 }
    }
}

impl Pass for Accumulate {
    fn name(&self) -> &str {
        "accumulate"
    }

    fn run(&self, model: &mut Model) -> Result<Changed> {
        ensure!(self.steps >= 1, "steps is 0, expected at least 1");
        if self.steps == 1 {
            return Ok(Changed::No);
        }
        training::for_each_step(model, "accumulate", |name, program, model| self.gather(name, program, model))?;
        Ok(Changed::Yes)
    }
}

impl Accumulate {
    fn gather(&self, name: &str, program: &mut Program, model: &mut Model) -> Result<()> {
        ensure!(
            program.graph.find_input(training::LEARNING_RATE).is_none(),
            "the optimizer is there already: `accumulate` comes before it"
        );
        let opset = model.opset();
        let grads = training::gradients(&program.graph, "accumulate")?;
        let apply = self.count(name, program, model)?;
        for (param, grad) in grads {
            let zeros = match model.params.get(&param) {
                Some(p) => zero_like(&p.tensor)?,
                None => continue,
            };
            let ty = Type::of(&zeros);
            let state = model.add_param(&format!("{name}/sum:{param}"), zeros, Role::State);
            let sum = program.graph.param(&state, ty);
            let mut emit = Emit::new(&mut program.graph, opset);
            emit.prefix = "/accumulate/".to_string();
            let share = emit.mul_scalar(grad, 1.0 / f64::from(self.steps))?;
            let gathered = emit.add(sum, share)?;
            let zero = emit.scalar(0.0, gathered)?;
            let kept = emit.select(apply, zero, gathered)?;
            training::set_output(&mut program.graph, &format!("{}{param}", training::GRAD), gathered);
            bind(program, &format!("next:{state}"), kept, &state);
        }
        training::set_output(&mut program.graph, training::APPLY, apply);
        Ok(())
    }

    /// Counts the runs modulo `steps`; the value is true on the last of each round.
    fn count(&self, name: &str, program: &mut Program, model: &mut Model) -> Result<Value> {
        let opset = model.opset();
        let state = model.add_param(&format!("{name}/accumulated"), Tensor::scalar(0i64), Role::State);
        let count = program.graph.param(&state, Type::of(&Tensor::scalar(0i64)));
        let mut emit = Emit::new(&mut program.graph, opset);
        emit.prefix = "/accumulate/".to_string();
        let mut number = |n: i64| emit.constant(Tensor::scalar(n));
        let (one, steps, zero) = (number(1), number(i64::from(self.steps)), number(0));
        let next = emit.add(count, one)?;
        let next = emit.op("Mod", &[next, steps], Attributes::new())?;
        let apply = emit.op("Equal", &[next, zero], Attributes::new())?;
        bind(program, &format!("next:{state}"), next, &state);
        Ok(apply)
    }
}
