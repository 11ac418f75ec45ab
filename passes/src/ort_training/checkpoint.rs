//! ONNX Runtime's checkpoint: a FlatBuffer of tables whose fields are known by number.
//!
//! ```text
//! Checkpoint   0 version: int32   1 module_state: ModuleState   (2 optimizer_groups, 3 property_bag: left out)
//! ModuleState  0 requires_grad_params: [Tensor]   1 frozen_params: [Tensor]
//! Tensor       0 name: string   2 dims: [int64]   3 data_type: int32, as ONNX numbers them   4 raw_data: [ubyte], little-endian
//! ```
//!
//! The file identifier is `ODTC`. FlatBuffers address with 32 bits, so a checkpoint is smaller than 2 GiB. Source: files written by
//! onnxruntime-training 1.19.2.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, TableFinishedWIPOffset, Vector, WIPOffset};
use sartor_ir::{Result, Tensor, ensure};

const IDENTIFIER: &str = "ODTC";
/// The version of the layout that is written.
const VERSION: i32 = 2;
/// FlatBuffers count bytes with 31 bits.
const LIMIT: usize = (1 << 31) - 1;

/// The place of a field in a table's index.
const fn field(number: u16) -> u16 {
    4 + 2 * number
}

/// A checkpoint with these parameters, in this order.
pub fn write(trained: &[(&str, &Tensor)], frozen: &[(&str, &Tensor)]) -> Result<Vec<u8>> {
    let size = |(name, tensor): &(&str, &Tensor)| tensor.bytes().len() + name.len() + 8 * tensor.rank() + 64;
    let total: usize = trained.iter().chain(frozen).map(size).sum();
    ensure!(total < LIMIT, "the parameters take {} MiB, ONNX Runtime's checkpoints hold less than 2048", total >> 20);
    let mut builder = FlatBufferBuilder::with_capacity(total);
    let trained = tensors(&mut builder, trained);
    let frozen = tensors(&mut builder, frozen);
    let start = builder.start_table();
    builder.push_slot_always(field(0), trained);
    builder.push_slot_always(field(1), frozen);
    let state = builder.end_table(start);
    let start = builder.start_table();
    builder.push_slot_always(field(0), VERSION);
    builder.push_slot_always(field(1), state);
    let root = builder.end_table(start);
    builder.finish(root, Some(IDENTIFIER));
    Ok(builder.finished_data().to_vec())
}

type Tables<'b> = WIPOffset<Vector<'b, ForwardsUOffset<TableFinishedWIPOffset>>>;

fn tensors<'b>(builder: &mut FlatBufferBuilder<'b>, list: &[(&str, &Tensor)]) -> Tables<'b> {
    let tables: Vec<WIPOffset<TableFinishedWIPOffset>> =
        list.iter().map(|(name, tensor)| one(builder, name, tensor)).collect();
    builder.create_vector(&tables)
}

fn one(builder: &mut FlatBufferBuilder, name: &str, tensor: &Tensor) -> WIPOffset<TableFinishedWIPOffset> {
    let dims: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
    let (name, data) = (builder.create_string(name), builder.create_vector(tensor.bytes()));
    let dims = builder.create_vector(&dims);
    let start = builder.start_table();
    builder.push_slot_always(field(0), name);
    builder.push_slot_always(field(2), dims);
    builder.push_slot_always(field(3), tensor.dtype().onnx_code());
    builder.push_slot_always(field(4), data);
    builder.end_table(start)
}
