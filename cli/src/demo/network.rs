//! A small residual network (He et al. 2016) for 8 × 8 digits, built with the IR's own API:
//!
//! ```text
//! pixels [batch, 1, 8, 8] → conv 3×3, 16 → relu → block(16) → conv 3×3 stride 2, 32 → relu → block(32)
//!                         → mean over the pixels → linear → logits [batch, 10]
//! block(c):  y = relu(x + conv(relu(conv(x))))     both 3×3, c channels
//! ```
//! Weights are drawn as He et al. 2015 do, those of a block's second convolution at half that size, so that blocks start
//! near the identity.

use sartor_ir::ops::Emit;
use sartor_ir::rng::Stream;
use sartor_ir::{Attributes, DType, Dim, Graph, GraphOutput, Model, Result, Role, Tensor, Type, Value};

/// The network, untrained: every weight is trainable.
pub fn build(seed: u64) -> Result<Model> {
    let mut build = Builder { model: Model::new(Graph::new("digits")), seed };
    let shape = [Dim::symbol("batch"), 1.into(), 8.into(), 8.into()];
    let pixels = build.model.graph.add_input("pixels", Type::tensor(DType::F32, shape));
    let x = build.conv("stem", pixels, [1, 16], 1, 1.0)?;
    let x = build.relu("stem", x)?;
    let x = build.block("block1", x, 16)?;
    let x = build.conv("down", x, [16, 32], 2, 1.0)?;
    let x = build.relu("down", x)?;
    let x = build.block("block2", x, 32)?;
    let mean = build.emit("pool").reduce_mean(x, &[2, 3], false)?;
    let logits = build.linear("classifier", mean, [32, 10])?;
    build.model.graph.rename(logits, "logits");
    build.model.graph.outputs.push(GraphOutput { name: "logits".to_string(), value: logits });
    Ok(build.model)
}

struct Builder {
    model: Model,
    seed: u64,
}

impl Builder {
    fn emit(&mut self, module: &str) -> Emit<'_> {
        let opset = self.model.opset();
        let mut emit = Emit::new(&mut self.model.graph, opset);
        emit.prefix = format!("/{}/", module.replace('.', "/"));
        emit
    }
    /// A trainable parameter, normally distributed with this deviation.
    fn param(&mut self, name: &str, shape: &[usize], deviation: f64) -> Result<Value> {
        let stream = Stream::new(self.seed, 0, name);
        let count: usize = shape.iter().product();
        let numbers: Vec<f64> = (0..count as u64).map(|i| deviation * stream.normal(i)).collect();
        let tensor = Tensor::from_vec(shape, numbers).cast(DType::F32)?;
        let ty = Type::of(&tensor);
        let name = self.model.add_param(name, tensor, Role::Trainable);
        Ok(self.model.graph.param(&name, ty))
    }
    fn conv(&mut self, module: &str, x: Value, [from, to]: [usize; 2], stride: i64, gain: f64) -> Result<Value> {
        let deviation = gain * (2.0 / (from * 9) as f64).sqrt();
        let weight = self.param(&format!("{module}.weight"), &[to, from, 3, 3], deviation)?;
        let bias = self.param(&format!("{module}.bias"), &[to], 0.0)?;
        let attrs = Attributes::new()
            .with("kernel_shape", [3i64, 3])
            .with("pads", [1i64, 1, 1, 1])
            .with("strides", [stride, stride]);
        self.emit(module).op("Conv", &[x, weight, bias], attrs)
    }
    fn relu(&mut self, module: &str, x: Value) -> Result<Value> {
        self.emit(module).unary("Relu", x)
    }
    fn block(&mut self, module: &str, x: Value, channels: usize) -> Result<Value> {
        let inner = self.conv(&format!("{module}.conv1"), x, [channels, channels], 1, 1.0)?;
        let inner = self.relu(module, inner)?;
        let inner = self.conv(&format!("{module}.conv2"), inner, [channels, channels], 1, 0.5)?;
        let sum = self.emit(module).add(x, inner)?;
        self.relu(module, sum)
    }
    fn linear(&mut self, module: &str, x: Value, [from, to]: [usize; 2]) -> Result<Value> {
        let weight = self.param(&format!("{module}.weight"), &[from, to], (1.0 / from as f64).sqrt())?;
        let bias = self.param(&format!("{module}.bias"), &[to], 0.0)?;
        let mut emit = self.emit(module);
        let product = emit.matmul(x, weight)?;
        emit.add(product, bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_valid_and_gives_ten_scores() {
        let model = build(0).unwrap();
        sartor_ir::verify::verify(&model).unwrap();
        let logits = model.graph.find_output("logits").unwrap();
        assert_eq!(model.graph.ty(logits).unwrap().to_string(), "float[batch, 10]");
        assert_eq!(model.count_params(|_| true), 160 + 2 * 2320 + 4640 + 2 * 9248 + 330);
        let pixels = Tensor::zeros(DType::F32, [2, 1, 8, 8]).unwrap();
        let outputs = sartor_ir::eval::run(&model, &[("pixels".to_string(), pixels)].into()).unwrap();
        assert_eq!(outputs[0].shape(), [2, 10]);
    }
}
