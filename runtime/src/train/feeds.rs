//! The data schemas of a model: what its training and evaluation programs want to be fed, with the number of classes
//! and the embedding that bound labels and tokens.

use super::evaluate::logits_name;
use super::metrics::Task;
use crate::data::schema::{Field, LABEL, Schema, find_embedding};
use sartor_ir::{DType, Dim, Graph, Model, Result, Type, bail};

/// For the program `step`, or `step.0` of a chain.
pub fn training_schema(model: &Model, task: Task) -> Result<Schema> {
    let names = ["step", "step.0"];
    let Some(name) = names.into_iter().find(|name| model.programs.contains_key(*name)) else {
        bail!("the model has no program \"step\" or \"step.0\": the passes loss, autodiff and optimizer make it");
    };
    let mut schema = Schema::of_program(model, name)?;
    schema.classes = classes(evaluation_graph(model), task);
    Ok(schema)
}

/// For the program `eval`, or for the inference graph and a label that fits its output.
pub fn evaluation_schema(model: &Model, task: Task) -> Result<Schema> {
    let graph = evaluation_graph(model);
    let mut schema = Schema::of(graph)?;
    schema.embedding = find_embedding(model, graph, "input_ids");
    schema.classes = classes(graph, task);
    if schema.label.is_none() {
        schema.label = Some(label_field(graph, task)?);
    }
    Ok(schema)
}

/// Lets a schema without a label take the labels that the data may have, to evaluate with: its programs are compared with a teacher.
pub fn with_optional_label(mut schema: Schema, model: &Model, task: Task) -> Result<Schema> {
    if schema.label.is_none() {
        schema.label = Some(label_field(evaluation_graph(model), task)?);
        schema.may_lack_labels = true;
    }
    Ok(schema)
}

fn evaluation_graph(model: &Model) -> &Graph {
    let programs = ["eval", "eval.0"].into_iter().find_map(|name| model.programs.get(name));
    programs.map_or(&model.graph, |program| &program.graph)
}

fn logits_type(graph: &Graph) -> Option<&Type> {
    graph.ty(graph.find_output(&logits_name(graph).ok()?)?)
}

/// The length of the last axis of the logits.
fn classes(graph: &Graph, task: Task) -> Option<usize> {
    match task {
        Task::Classification => usize::try_from(logits_type(graph)?.shape()?.last()?.known()?).ok(),
        _ => None,
    }
}

/// The label that fits what a graph puts out.
fn label_field(graph: &Graph, task: Task) -> Result<Field> {
    let logits = logits_type(graph).and_then(Type::shape).map(<[Dim]>::to_vec);
    let (dtype, shape) = match task {
        Task::Classification => (DType::I64, logits.map(|s| s[..s.len().saturating_sub(1)].to_vec())),
        Task::LanguageModel => (DType::I64, Some(vec![Dim::symbol("batch"), Dim::symbol("sequence")])),
        Task::MultiLabel | Task::Regression => (DType::F32, logits),
    };
    Ok(Field { name: LABEL.to_string(), dtype, shape })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::{Attributes, GraphOutput};

    #[test]
    fn a_bare_model_can_be_evaluated() {
        let mut graph = Graph::new("main");
        let x = graph.add_input("x", Type::tensor(DType::F32, [Dim::symbol("batch"), Dim::Known(3)]));
        let y = graph.op("Relu", &[x], Attributes::new());
        graph.set_ty(y, graph.ty(x).cloned());
        graph.outputs.push(GraphOutput { name: "y".into(), value: y });
        let model = Model::new(graph);
        let schema = evaluation_schema(&model, Task::Classification).unwrap();
        assert_eq!((schema.classes, schema.label.unwrap().describe().as_str()), (Some(3), "int64[batch]"));
        let schema = evaluation_schema(&model, Task::Regression).unwrap();
        assert_eq!((schema.classes, schema.label.unwrap().describe().as_str()), (None, "float[batch, 3]"));
        let error = training_schema(&model, Task::Classification).unwrap_err().to_string();
        assert!(error.contains("no program \"step\" or \"step.0\""), "{error}");
    }
}
