//! The CPU device: kernels on planned memory, run by rayon on partitions that depend on shapes only.

pub mod batch_norm;
mod cells;
pub mod contract;
pub mod conv_grad;
pub mod cross_entropy;
pub mod dropout;
pub mod fused;
pub mod gated;
pub mod gather;
pub mod gemm;
pub mod machine;
pub mod micro;
pub mod patch;
pub mod pool;
pub mod recurrence;
pub mod reduce;
pub mod simd;
pub mod skinny;
pub mod winograd;

use rayon::prelude::*;
use sartor_ir::{Error, Result};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// The pool of this many threads, made once per process.
fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    static POOLS: LazyLock<Mutex<HashMap<usize, Arc<rayon::ThreadPool>>>> = LazyLock::new(Mutex::default);
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads) {
        return Ok(pool.clone());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("sartor-{threads}-{i}"))
        .build()
        .map_err(|e| Error::msg(format!("a pool of {threads} threads could not be made: {e}")))?;
    Ok(pools.entry(threads).or_insert_with(|| Arc::new(pool)).clone())
}

thread_local! {
    /// Whether what runs on this thread is meant to stay on it.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs something whose tasks ([`each`]) are shared by so many threads. One thread is the caller's own: nothing is handed over, nobody is
/// woken.
pub fn with_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> Result<R> {
    if threads != 1 {
        return Ok(pool(threads)?.install(run));
    }
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Restore(ALONE.replace(true));
    Ok(run())
}

/// Runs tasks `0..count` on the current pool. Which thread runs which does not matter to any kernel.
pub fn each(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 || ALONE.get() || rayon::current_num_threads() == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().with_max_len((count / 64).max(1)).for_each(task);
    }
}

/// Buffers' addresses, to be shared by the tasks of one step.
#[derive(Clone, Copy)]
pub struct Shared<'a>(pub fused::Bases<'a>);

// SAFETY: the plan gives the tasks of a step disjoint places to write.
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

impl<'a> Shared<'a> {
    /// The addresses.
    pub fn get(&self) -> fused::Bases<'a> {
        self.0
    }
}

/// Elements of a cache line.
pub const LINE: usize = 16;

/// The first cache line from an address on; memory for it needs [`LINE`] elements more.
pub fn on_line(start: *mut f32) -> *mut f32 {
    start.wrapping_add(start.align_offset(LINE * size_of::<f32>()))
}

/// Elements per task of a kernel that is bound by memory.
const GRAIN: usize = 32 * 1024;

/// Runs a program over its whole domain.
///
/// # Safety
/// See [`fused::run`].
pub unsafe fn run_program(program: &crate::lower::program::Program, bases: fused::Bases) {
    let (rows, cols) = (program.rows, program.cols);
    if rows == 0 || cols == 0 {
        return;
    }
    let shared = Shared(bases);
    if rows > 1 || program.whole_rows {
        let per_task = (GRAIN / cols).max(1);
        each(rows.div_ceil(per_task), |task| {
            let range = task * per_task..rows.min((task + 1) * per_task);
            // SAFETY: tasks have disjoint rows.
            unsafe { fused::run(program, shared.get(), range, 0..cols, None) };
        });
    } else {
        each(cols.div_ceil(GRAIN), |task| {
            let range = task * GRAIN..cols.min((task + 1) * GRAIN);
            // SAFETY: tasks have disjoint columns.
            unsafe { fused::run(program, shared.get(), 0..1, range, None) };
        });
    }
}
