//! A recording in memory.
use std::path::Path;

use stepalloc_measure::mapped::Mapped;
pub use stepalloc_trace_format::{Op, Record};

/// A recording, outside the heap.
pub struct Trace {
    pub records: Mapped<Record>,
    /// Blocks are numbered from 0 up to here.
    pub block_count: usize,
    pub thread_count: usize,
    pub step_count: usize,
    /// The most bytes live at once, as requested.
    pub peak_live_bytes: u64,
}

impl Trace {
    /// Reads an unpacked recording.
    ///
    /// # Errors
    /// When the file cannot be read or is no recording.
    pub fn load(path: &Path) -> Result<Trace, String> {
        let bytes = map_file(path)?;
        let none = Record {
            size: 0,
            block: 0,
            step: 0,
            op: Op::StepBegin,
            thread: 0,
            align_log2: 0,
            moved: false,
        };
        let read = || stepalloc_trace_format::records(&bytes);
        let mut records = Mapped::new(read().count(), none);
        for (place, record) in records.iter_mut().zip(read()) {
            *place = record.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Self::check(records).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Follows the blocks' lives: sizes, peaks, and that no record speaks of a dead block.
    pub(crate) fn check(records: Mapped<Record>) -> Result<Trace, String> {
        let blocks = records.iter().filter(|record| !record.op.is_mark());
        let block_count = blocks.map(|record| record.block as usize + 1).max().unwrap_or(0);
        let mut sizes = Mapped::new(block_count, u64::MAX);
        let (mut live, mut peak, mut steps, mut threads) = (0, 0, 0, 1);
        for (index, record) in records.iter().enumerate() {
            threads = threads.max(record.thread as usize + 1);
            if record.op.is_mark() {
                steps += usize::from(record.op == Op::StepBegin);
                continue;
            }
            let size = &mut sizes[record.block as usize];
            let is_made = record.op.makes();
            if is_made != (*size == u64::MAX) {
                return Err(format!(
                    "record {index} ({:?}) does not fit the life of its block",
                    record.op
                ));
            }
            if !is_made {
                live -= *size;
            }
            *size = if record.op == Op::Free { u64::MAX } else { record.size };
            if record.op != Op::Free {
                live += record.size;
            }
            peak = peak.max(live);
        }
        Ok(Trace {
            records,
            block_count,
            thread_count: threads,
            step_count: steps,
            peak_live_bytes: peak,
        })
    }
}

/// The file's bytes, read without the heap.
fn map_file(path: &Path) -> Result<Mapped<u8>, String> {
    use std::io::Read;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Mapped::new(file.metadata().map_err(failed)?.len() as usize, 0);
    file.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A mapped file of little-endian u64: the places of a plan.
///
/// # Errors
/// When the file cannot be read.
pub fn load_places(path: &Path) -> Result<Mapped<u64>, String> {
    let bytes = map_file(path)?;
    let mut places = Mapped::new(bytes.len() / 8, 0);
    for (raw, place) in bytes.chunks_exact(8).zip(places.iter_mut()) {
        *place = u64::from_le_bytes(raw.try_into().map_err(|_| "a plan holds whole numbers".to_string())?);
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_freed_twice_is_no_recording() {
        let record = |op| Record {
            size: 16,
            block: 0,
            step: 0,
            op,
            thread: 0,
            align_log2: 3,
            moved: false,
        };
        let records = [record(Op::Alloc), record(Op::Free), record(Op::Free)];
        assert!(Trace::check(Mapped::from_slice(&records)).is_err());
    }
}
