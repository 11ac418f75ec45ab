//! Batches in order: shuffled by (seed, epoch), optionally of similar length, prepared ahead on a thread.
//!
//! The order is a pure function of the seed and the epoch, so a [`Cursor`] (epoch, batch) is all that a resumed run
//! needs to go on exactly where another stopped.

use super::{Augment, Batch, Dataset};
use sartor_ir::rng::Stream;
use sartor_ir::{Error, Result, ensure};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Examples per batch.
    pub batch: usize,
    /// The seed of the run.
    pub seed: u64,
    /// Whether the order changes from epoch to epoch; otherwise it is that of the file.
    pub shuffle: bool,
    /// Whether an incomplete last batch is left out.
    pub drop_last: bool,
    /// How many batches at a time are sorted by length; 0 or 1: none.
    pub buckets: usize,
    /// What is done to images.
    pub augment: Augment,
}

/// The place of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: usize,
    /// The batch of the epoch, from 0.
    pub batch: usize,
}

/// Batches that wait for the reader.
const AHEAD: usize = 4;

/// See the [module](self).
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    options: LoaderOptions,
}

impl Loader {
    /// Errors if not a single batch comes out.
    pub fn new(dataset: Arc<dyn Dataset>, options: LoaderOptions) -> Result<Loader> {
        ensure!(options.batch > 0, "the batch size is 0");
        let loader = Loader { dataset, options };
        ensure!(
            loader.batches_per_epoch() > 0,
            "{} examples make no batch of {} while drop_last is set",
            loader.dataset.len(),
            options.batch
        );
        Ok(loader)
    }
    /// How the batches are made.
    pub fn options(&self) -> LoaderOptions {
        self.options
    }
    /// The number of batches of an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        let LoaderOptions { batch, drop_last, .. } = self.options;
        if drop_last { self.dataset.len() / batch } else { self.dataset.len().div_ceil(batch) }
    }
    /// The rows of every batch of an epoch.
    pub fn plan(&self, epoch: usize) -> Vec<Vec<usize>> {
        let LoaderOptions { batch, seed, shuffle, buckets, .. } = self.options;
        let count = self.dataset.len();
        let mut order = match shuffle {
            true => Stream::new(seed, epoch as u64, "data.order").permutation(count),
            false => (0..count).collect(),
        };
        if buckets > 1 {
            for bucket in order.chunks_mut(batch.saturating_mul(buckets)) {
                bucket.sort_by_key(|&row| self.dataset.row_length(row));
            }
        }
        let mut batches: Vec<Vec<usize>> = order.chunks(batch).map(<[usize]>::to_vec).collect();
        if buckets > 1 && shuffle {
            // The incomplete batch stays last, so that drop_last drops the same number in every order.
            let complete = count / batch;
            let swap = Stream::new(seed, epoch as u64, "data.batches").permutation(complete);
            let rest = batches.split_off(complete);
            batches = swap.into_iter().map(|i| std::mem::take(&mut batches[i])).collect();
            batches.extend(rest);
        }
        batches.truncate(self.batches_per_epoch());
        batches
    }
    fn make(&self, rows: &[usize], epoch: usize) -> Result<Batch> {
        let mut batch = self.dataset.batch(rows)?;
        self.options.augment.apply(&mut batch, rows, self.options.seed, epoch)?;
        Ok(batch)
    }
    /// The batches from a place to the end of an epoch (exclusive), prepared ahead on a thread.
    pub fn stream(&self, from: Cursor, epochs: usize) -> Prefetch {
        let (sender, receiver) = sync_channel(AHEAD);
        let loader = self.clone();
        std::thread::spawn(move || {
            for epoch in from.epoch..epochs {
                let skip = if epoch == from.epoch { from.batch } else { 0 };
                for (batch, rows) in loader.plan(epoch).into_iter().enumerate().skip(skip) {
                    let made = loader.make(&rows, epoch).map(|b| (Cursor { epoch, batch }, b));
                    let failed = made.is_err();
                    // The reader hung up, or will after this error.
                    if sender.send(made).is_err() || failed {
                        return;
                    }
                }
            }
        });
        let expected = (epochs.saturating_sub(from.epoch) * self.batches_per_epoch()).saturating_sub(from.batch);
        Prefetch { receiver, expected }
    }
}

/// Batches that a thread prepares. Dropping it ends the thread.
pub struct Prefetch {
    receiver: Receiver<Result<(Cursor, Batch)>>,
    expected: usize,
}

impl Iterator for Prefetch {
    type Item = Result<(Cursor, Batch)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.expected == 0 {
            return None;
        }
        self.expected -= 1;
        match self.receiver.recv() {
            Ok(batch) => Some(batch),
            // The thread ended early without an error of its own: it panicked.
            Err(_) => Some(Err(Error::msg("the data reader stopped unexpectedly"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sartor_ir::Tensor;
    use std::collections::HashMap;

    /// Row i holds i and is (7·i mod 5) long.
    struct Rows(usize);

    impl Dataset for Rows {
        fn len(&self) -> usize {
            self.0
        }
        fn batch(&self, rows: &[usize]) -> Result<Batch> {
            ensure!(!rows.contains(&99), "row 99 is broken");
            let x = Tensor::from_vec([rows.len()], rows.iter().map(|&r| r as i64).collect::<Vec<_>>());
            Ok(Batch { tensors: HashMap::from([("x".to_string(), x)]), samples: rows.len() })
        }
        fn row_length(&self, row: usize) -> usize {
            7 * row % 5
        }
    }

    fn loader(rows: usize, drop_last: bool, buckets: usize) -> Loader {
        let options =
            LoaderOptions { batch: 4, seed: 3, shuffle: true, drop_last, buckets, augment: Augment::default() };
        Loader::new(Arc::new(Rows(rows)), options).unwrap()
    }

    fn drain(stream: Prefetch) -> Vec<(Cursor, Vec<i64>)> {
        stream.map(|b| b.map(|(c, b)| (c, b.tensors["x"].to_vec().unwrap())).unwrap()).collect()
    }

    #[test]
    fn every_row_once_per_epoch_in_changing_order() {
        let loader = loader(10, false, 0);
        assert_eq!(loader.batches_per_epoch(), 3);
        let (first, second) = (loader.plan(0), loader.plan(1));
        assert_ne!(first, second);
        for plan in [first, second] {
            assert_eq!(plan.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            let mut rows = plan.concat();
            rows.sort();
            assert_eq!(rows, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_cursor_goes_on_exactly() {
        let loader = loader(10, false, 2);
        let whole = drain(loader.stream(Cursor::default(), 3));
        assert_eq!(whole.len(), 9);
        for start in 0..9 {
            let from = Cursor { epoch: start / 3, batch: start % 3 };
            assert_eq!(drain(loader.stream(from, 3)), whole[start..]);
        }
        // The cursor after the last batch of an epoch.
        assert_eq!(drain(loader.stream(Cursor { epoch: 0, batch: 3 }, 3)), whole[3..]);
        assert!(drain(loader.stream(Cursor { epoch: 3, batch: 0 }, 3)).is_empty());
    }

    #[test]
    fn buckets_gather_similar_lengths() {
        let spread = |buckets| -> usize {
            let plan = loader(96, true, buckets).plan(0);
            let spread = |b: &Vec<usize>| {
                let lengths: Vec<usize> = b.iter().map(|&r| Rows(96).row_length(r)).collect();
                lengths.iter().max().unwrap() - lengths.iter().min().unwrap()
            };
            plan.iter().map(spread).sum()
        };
        assert!(spread(8) * 2 < spread(0), "{} {}", spread(8), spread(0));
        let mut rows = loader(97, false, 8).plan(0).concat();
        rows.sort();
        assert_eq!(rows, (0..97).collect::<Vec<_>>());
    }

    #[test]
    fn errors_reach_the_reader() {
        let results: Vec<_> = loader(100, false, 0).stream(Cursor::default(), 1).collect();
        let errors: Vec<String> = results.iter().filter_map(|r| r.as_ref().err().map(|e| e.to_string())).collect();
        assert_eq!(errors[0], "row 99 is broken");
        let none = Loader::new(Arc::new(Rows(3)), LoaderOptions { drop_last: true, ..loader(4, false, 0).options() });
        let message = none.map(drop).unwrap_err().to_string();
        assert_eq!(message, "3 examples make no batch of 4 while drop_last is set");
    }
}
