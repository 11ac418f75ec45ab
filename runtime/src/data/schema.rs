//! What a graph wants to be fed: the fields that a data reader fills, with their types, and what bounds the labels and
//! the token ids.

use sartor_ir::{DType, Dim, Graph, Model, NodeKind, Result, Value, bail, ensure};

/// The name of the label's input in training and evaluation programs.
pub const LABEL: &str = "label";
/// Inputs that the trainer fills, not the data.
pub const SCALARS: &[&str] = &["learning_rate", "step", "progress", "seed"];

/// One input to be filled. The first axis counts the examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The name of the graph input.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape, if the rank is known.
    pub shape: Option<Vec<Dim>>,
}

impl Field {
    fn of(graph: &Graph, value: Value) -> Result<Field> {
        let name = graph.value_name(value).to_string();
        let Some(ty) = graph.ty(value) else { bail!("the type of the graph input \"{name}\" is unknown") };
        let Some(dtype) = ty.dtype() else { bail!("the graph input \"{name}\" is {ty}, only tensors can be fed") };
        Ok(Field { name, dtype, shape: ty.shape().map(<[Dim]>::to_vec) })
    }
    /// The lengths of the axes after the first, `None` where they are open; `None` if the rank is unknown or 0.
    pub fn row(&self) -> Option<Vec<Option<usize>>> {
        let rest = self.shape.as_ref()?.get(1..)?;
        Some(rest.iter().map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect())
    }
    /// `int64[batch, seq]`, for messages.
    pub fn describe(&self) -> String {
        sartor_ir::Type::Tensor { dtype: self.dtype, shape: self.shape.clone() }.to_string()
    }
    /// Whether rows of this shape fit.
    pub fn accepts_row(&self, row: &[usize]) -> bool {
        match self.row() {
            None => true,
            Some(want) => want.len() == row.len() && want.iter().zip(row).all(|(w, r)| w.is_none_or(|w| w == *r)),
        }
    }
}

/// The embedding table that token ids index.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The name of the parameter.
    pub param: String,
    /// Its number of rows.
    pub rows: usize,
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// The inputs to fill, the label left out.
    pub inputs: Vec<Field>,
    /// The label, if the graph has one.
    pub label: Option<Field>,
    /// Whether data without labels will do: they are read where they are found under their usual name, or where the configuration says that they are.
    pub may_lack_labels: bool,
    /// The number of classes: labels are 0..classes.
    pub classes: Option<usize>,
    /// Whether labels are probabilities: numbers from 0 to 1.
    pub probabilities: bool,
    /// A label that the loss leaves out.
    pub ignore_index: Option<i64>,
    /// What bounds the token ids.
    pub embedding: Option<Embedding>,
}

impl Schema {
    /// What a graph wants: every input but the trainer's scalars.
    pub fn of(graph: &Graph) -> Result<Schema> {
        let mut schema = Schema::default();
        for value in graph.inputs() {
            let name = graph.value_name(value);
            if SCALARS.contains(&name) {
                continue;
            }
            let field = Field::of(graph, value)?;
            ensure!(field.dtype != DType::String, "the graph input \"{name}\" is a string tensor, it cannot be fed");
            match name {
                LABEL => schema.label = Some(field),
                _ => schema.inputs.push(field),
            }
        }
        Ok(schema)
    }
    /// What a program of a model wants, with the embedding that its `input_ids` index.
    pub fn of_program(model: &Model, program: &str) -> Result<Schema> {
        let Some(program) = model.programs.get(program) else { bail!("the model has no program \"{program}\"") };
        let mut schema = Schema::of(&program.graph)?;
        schema.embedding = find_embedding(model, &program.graph, "input_ids");
        Ok(schema)
    }
    /// The same with a number of classes.
    pub fn with_classes(mut self, classes: usize) -> Schema {
        self.classes = Some(classes);
        self
    }
    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Field> {
        self.inputs.iter().find(|f| f.name == name)
    }
}

/// The parameter of rank 2 that a `Gather` indexes with an input, directly or through casts and reshapes.
pub fn find_embedding(model: &Model, graph: &Graph, input: &str) -> Option<Embedding> {
    let through = ["Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"];
    let mut values = vec![graph.find_input(input)?];
    while let Some(value) = values.pop() {
        for (node, slot) in graph.uses(value) {
            if slot == 1 && graph.node(node).is("Gather") {
                let table = graph.input(node, 0)?;
                if let NodeKind::Param(name) = &graph.node(table.node).kind
                    && let Some([rows, _]) = model.params.get(name).map(|p| p.tensor.shape())
                {
                    return Some(Embedding { param: name.clone(), rows: *rows });
                }
            } else if slot == 0 && through.iter().any(|op| graph.node(node).is(op)) {
                values.push(Value { node, slot: 0 });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{Attributes, Role, Tensor, Type};

    #[test]
    fn scalars_are_left_out_and_the_embedding_is_found() {
        let mut graph = Graph::new("step");
        let ids = graph.add_input("input_ids", Type::tensor(DType::I64, [Dim::symbol("batch"), Dim::symbol("seq")]));
        graph.add_input("label", Type::tensor(DType::I64, [Dim::symbol("batch")]));
        graph.add_input("learning_rate", Type::tensor(DType::F32, [0i64; 0]));
        let table = graph.param("embedding", Type::tensor(DType::F32, [10i64, 4]));
        let cast = graph.op("Cast", &[ids], Attributes::new());
        graph.op("Gather", &[table, cast], Attributes::new());
        let mut model = Model::new(Graph::new("main"));
        let tensor = Tensor::zeros(DType::F32, [10, 4]).unwrap();
        model.params.insert("embedding".into(), sartor_ir::Parameter { tensor, role: Role::Frozen });
        model.programs.insert("step".into(), sartor_ir::Program { graph, bindings: Vec::new() });
        let schema = Schema::of_program(&model, "step").unwrap();
        assert_eq!(schema.inputs.iter().map(|f| f.describe()).collect::<Vec<_>>(), ["int64[batch, seq]"]);
        assert_eq!(schema.label.unwrap().row(), Some(vec![]));
        assert_eq!(schema.embedding, Some(Embedding { param: "embedding".into(), rows: 10 }));
    }
}
