//! One record of a recording, as bytes and as a value. What the fields mean stands in `tests/traces/README.md`.
//!
//! Who reads a whole recording, and into what memory, is each reader's own affair: a replayer keeps it out of the heap that
//! it measures, a test in a `Vec`.
#![forbid(unsafe_code)]

/// Of one record.
pub const RECORD_BYTES: usize = 20;

/// The block of a record that speaks of none.
pub const NO_BLOCK: u32 = u32::MAX;

/// What a record says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    Alloc = 0,
    Free = 1,
    AllocZeroed = 2,
    Realloc = 3,
    StepBegin = 4,
    StepEnd = 5,
}

impl Op {
    /// Whether the record marks a step, and speaks of no block.
    pub fn is_mark(self) -> bool {
        matches!(self, Op::StepBegin | Op::StepEnd)
    }

    /// Whether a block begins its life.
    pub fn makes(self) -> bool {
        matches!(self, Op::Alloc | Op::AllocZeroed)
    }
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the block; for a `Realloc` the new size.
    pub size: u64,
    pub block: u32,
    pub step: u32,
    pub op: Op,
    pub thread: u8,
    pub align_log2: u8,
    /// Of a `Realloc`: whether the block moved when it was recorded.
    pub moved: bool,
}

impl Record {
    /// The record as it stands in a file.
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut raw = [0; RECORD_BYTES];
        raw[0] = self.op as u8;
        raw[1] = self.thread;
        raw[2] = self.align_log2;
        raw[3] = u8::from(self.moved);
        raw[4..8].copy_from_slice(&self.step.to_le_bytes());
        raw[8..12].copy_from_slice(&self.block.to_le_bytes());
        raw[12..20].copy_from_slice(&self.size.to_le_bytes());
        raw
    }

    /// Reads `to_bytes` back; `None` for an op that there is not.
    pub fn from_bytes(raw: &[u8; RECORD_BYTES]) -> Option<Record> {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
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
            moved: raw[3] != 0,
            step: word(4),
            block: word(8),
            size: u64::from(word(12)) | u64::from(word(16)) << 32,
        })
    }
}

/// The records of an unpacked recording, in order.
///
/// It ends before the first record of zero bytes only: a block of no bytes is never recorded, so there the file of a program
/// that was killed ends.
///
/// # Errors
/// With the place of a record that is none.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record, String>> + '_ {
    let raw = bytes.chunks_exact(RECORD_BYTES).map(|raw| {
        let mut own = [0; RECORD_BYTES];
        own.copy_from_slice(raw);
        own
    });
    let written = raw.take_while(|raw| raw != &[0; RECORD_BYTES]);
    written
        .enumerate()
        .map(|(index, raw)| Record::from_bytes(&raw).ok_or_else(|| format!("record {index} has an unknown op")))
}

/// Unpacks a recording (`.trace.xz`).
///
/// # Errors
/// When it is no xz file.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut &packed[..], &mut bytes).map_err(|error| format!("{error:?}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REALLOC: Record = Record {
        size: 0x1_0000_0100,
        block: 7,
        step: 3,
        op: Op::Realloc,
        thread: 2,
        align_log2: 4,
        moved: true,
    };

    #[test]
    fn records_are_read_as_written() {
        let raw = [3, 2, 4, 1, 3, 0, 0, 0, 7, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0];
        assert_eq!(REALLOC.to_bytes(), raw);
        assert_eq!(Record::from_bytes(&raw), Some(REALLOC));
    }

    #[test]
    fn an_unknown_op_is_no_record() {
        let mut bytes = REALLOC.to_bytes().to_vec();
        bytes.extend([6; RECORD_BYTES]);
        let read: Vec<_> = records(&bytes).collect();
        assert_eq!(read[0], Ok(REALLOC));
        assert!(read[1].is_err());
    }

    #[test]
    fn a_file_cut_short_ends_at_its_zeros() {
        let mut bytes = REALLOC.to_bytes().to_vec();
        bytes.extend([0; 3 * RECORD_BYTES]);
        bytes.extend(REALLOC.to_bytes());
        assert_eq!(records(&bytes).count(), 1);
    }
}
