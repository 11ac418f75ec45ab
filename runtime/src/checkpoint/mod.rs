//! Checkpoints: directories that are either whole or not there.
//!
//! ```text
//! checkpoints/
//!   step-750/                      written as step-750.tmp, then renamed
//!     variables.safetensors        trainable and state parameters
//!     state.json                   seed, step, loader cursor, link, log offsets, early stop, …
//!     recipe.toml                  the recipe of the run
//!     manifest.json                length and SHA-256 of each of the above, written last
//!   best-500/                      the same, at the best evaluation
//! ```
//!
//! Every file and directory is synced before the rename, the parent after it. A failed write or sync is an error that
//! names the file, and nothing half-written stays. Older checkpoints are removed only after a newer one is in place.
//! Loading checks every checksum before anything is used; a damaged checkpoint is passed over for the one before it,
//! with a notice. A run resumes only under the recipe that it began with; otherwise the differing lines are shown.

pub mod disk;
pub mod recipe;
pub mod state;
pub mod store;
pub mod tensors;

pub use disk::{Disk, RealDisk};
pub use state::{Best, Exact, State};
pub use store::{Checkpoint, Store};
