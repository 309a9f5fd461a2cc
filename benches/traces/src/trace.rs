//! A recording in memory.
use std::path::Path;

use stepalloc_measure::mapped::Mapped;

const RECORD_BYTES: usize = 20;

/// What a record says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Alloc,
    Free,
    AllocZeroed,
    Realloc,
    StepBegin,
    StepEnd,
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Of the block; for a `Realloc` the new size.
    pub size: u64,
    pub block: u32,
    pub op: Op,
    pub thread: u8,
    pub align_log2: u8,
}

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
            op: Op::StepBegin,
            thread: 0,
            align_log2: 0,
        };
        let mut records = Mapped::new(bytes.len() / RECORD_BYTES, none);
        for (index, (raw, record)) in bytes.chunks_exact(RECORD_BYTES).zip(records.iter_mut()).enumerate() {
            *record = parse(raw).ok_or_else(|| format!("{}: record {index} has an unknown op", path.display()))?;
        }
        Self::check(records).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Follows the blocks' lives: sizes, peaks, and that no record speaks of a dead block.
    pub(crate) fn check(records: Mapped<Record>) -> Result<Trace, String> {
        let blocks = records
            .iter()
            .filter(|record| !matches!(record.op, Op::StepBegin | Op::StepEnd));
        let block_count = blocks.map(|record| record.block as usize + 1).max().unwrap_or(0);
        let mut sizes = Mapped::new(block_count, u64::MAX);
        let (mut live, mut peak, mut steps, mut threads) = (0, 0, 0, 1);
        for (index, record) in records.iter().enumerate() {
            threads = threads.max(record.thread as usize + 1);
            if let Op::StepBegin | Op::StepEnd = record.op {
                steps += usize::from(record.op == Op::StepBegin);
                continue;
            }
            let size = &mut sizes[record.block as usize];
            let is_made = matches!(record.op, Op::Alloc | Op::AllocZeroed);
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

fn parse(raw: &[u8]) -> Option<Record> {
    let op = match raw[0] {
        0 => Op::Alloc,
        1 => Op::Free,
        2 => Op::AllocZeroed,
        3 => Op::Realloc,
        4 => Op::StepBegin,
        5 => Op::StepEnd,
        _ => return None,
    };
    Some(Record {
        op,
        thread: raw[1],
        align_log2: raw[2],
        block: u32::from_le_bytes(raw[8..12].try_into().ok()?),
        size: u64::from_le_bytes(raw[12..20].try_into().ok()?),
    })
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
            op,
            thread: 0,
            align_log2: 3,
        };
        let records = [record(Op::Alloc), record(Op::Free), record(Op::Free)];
        assert!(Trace::check(Mapped::from_slice(&records)).is_err());
    }

    #[test]
    fn records_are_read_as_written() {
        let raw = [3, 2, 4, 1, 7, 0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let record = parse(&raw).expect("op 3 is known");
        assert_eq!((record.op, record.thread, record.align_log2), (Op::Realloc, 2, 4));
        assert_eq!((record.block, record.size), (9, 256));
        assert!(parse(&[6; RECORD_BYTES]).is_none());
    }
}
