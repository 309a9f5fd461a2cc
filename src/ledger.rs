//! What a counted scope keeps: every arena block made while any scope of the thread counts, by address.
//!
//! A hash table in pages of its own (the arena must not serve it, and it must not call an allocator): open addressing,
//! linear probing, at most half full. Each block has a birth number; a counted scope owns the blocks born since it was
//! opened, so nested ones share the table. A block freed by another thread leaves its entry behind until the scope
//! ends or a new block covers it; both look, so that counts are exact at the end.

use crate::align::align_up;
use crate::layout::{granules, units, GRANULE, SMALL_MAX, UNIT};
use crate::sys;
use core::mem::size_of;
use core::ptr;

/// Counted scopes that can be open at once in a thread; deeper ones report nothing.
const OPEN: usize = 32;
/// Entries of the first table: 96 KiB.
const FIRST: usize = 4096;

#[derive(Clone, Copy)]
struct Entry {
    addr: usize,
    size: usize,
    birth: u64,
}

/// What one scope has seen so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Names the scope.
    pub serial: u64,
    first_birth: u64,
    /// Blocks made.
    pub blocks: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Bytes asked for and not freed, as far as this thread has seen.
    pub live_bytes: u64,
    /// The most that was.
    pub peak_bytes: u64,
    /// Blocks made in the scope and freed by other threads, as far as seen.
    pub remote_frees: u64,
    /// Blocks that could not be entered for lack of memory.
    pub missed: u64,
}

/// The table and the counts of the open scopes.
pub struct Ledger {
    entries: *mut Entry,
    capacity: usize,
    used: usize,
    births: u64,
    open: usize,
    counts: [Counts; OPEN],
}

impl Ledger {
    /// An empty ledger in pages of its own; `None` if the system refuses them.
    pub fn open() -> Option<*mut Ledger> {
        let p = pages(size_of::<Ledger>())?.cast::<Ledger>();
        let Some(entries) = pages(FIRST * size_of::<Entry>()) else {
            // SAFETY: just made by `pages` with this size, and nobody was told of it.
            unsafe { sys::release(p.cast(), rounded(size_of::<Ledger>())) };
            return None;
        };
        let counts = [Counts::default(); OPEN];
        // SAFETY: the pages are fresh, large enough and page aligned.
        unsafe {
            p.write(Ledger {
                entries: entries.cast(),
                capacity: FIRST,
                used: 0,
                births: 0,
                open: 0,
                counts,
            })
        };
        Some(p)
    }

    /// Gives the ledger's pages back.
    ///
    /// # Safety
    /// `ledger` came from `open` and is not used again.
    pub unsafe fn close(ledger: *mut Ledger) {
        // SAFETY: by the caller's promise; both mappings were made by `pages` with these sizes.
        unsafe {
            sys::release(
                (*ledger).entries.cast(),
                rounded((*ledger).capacity.wrapping_mul(size_of::<Entry>())),
            );
            sys::release(ledger.cast(), rounded(size_of::<Ledger>()));
        }
    }

    /// Begins to count for the scope with this serial; `false` if too many are open.
    pub fn begin(&mut self, serial: u64) -> bool {
        let first_birth = self.births;
        let Some(counts) = self.counts.get_mut(self.open) else {
            return false;
        };
        *counts = Counts {
            serial,
            first_birth,
            ..Counts::default()
        };
        self.open = self.open.wrapping_add(1);
        true
    }

    /// Ends the count of the scope with this serial and of all opened after it: its counts, then the number and bytes of
    /// its blocks that are still live. `is_gone` tells of an address whether its block was freed by another thread.
    pub fn finish(&mut self, serial: u64, mut is_gone: impl FnMut(usize) -> bool) -> Option<(Counts, u64, u64)> {
        let index = self
            .counts
            .iter()
            .take(self.open)
            .position(|counts| counts.serial == serial)?;
        let first_birth = self.counts.get(index)?.first_birth;
        let (mut escapees, mut escapee_bytes) = (0u64, 0u64);
        let mut at = 0;
        while at < self.capacity {
            let entry = self.entry(at);
            if entry.addr != 0 && entry.birth >= first_birth && is_gone(entry.addr) {
                self.forget(entry, true);
                self.remove_at(at);
                continue; // another entry may have moved here
            }
            at = at.wrapping_add(1);
        }
        // Counted apart: taking entries out may move one from the table's start to its end.
        for at in 0..self.capacity {
            let entry = self.entry(at);
            if entry.addr != 0 && entry.birth >= first_birth {
                escapees = escapees.wrapping_add(1);
                escapee_bytes = escapee_bytes.wrapping_add(entry.size as u64);
            }
        }
        let counts = *self.counts.get(index)?;
        self.truncate(index);
        Some((counts, escapees, escapee_bytes))
    }

    /// Drops the counts from `index` on, and all entries with the last of them.
    fn truncate(&mut self, index: usize) {
        self.open = index;
        if index == 0 {
            self.clear();
        }
    }

    /// Forgets all scopes and blocks.
    pub fn clear(&mut self) {
        self.open = 0;
        self.used = 0;
        // SAFETY: zero bytes are empty entries, and the table is ours.
        unsafe { ptr::write_bytes(self.entries, 0, self.capacity) };
    }

    /// Enters a new block; entries that it covers were freed by other threads.
    pub fn made(&mut self, addr: usize, size: usize) {
        self.cover(addr, addr, size);
        let entered = self.insert(Entry {
            addr,
            size,
            birth: self.births,
        });
        self.births = self.births.wrapping_add(1);
        for counts in self.counts.iter_mut().take(self.open) {
            counts.blocks = counts.blocks.wrapping_add(1);
            counts.bytes = counts.bytes.wrapping_add(size as u64);
            if entered {
                counts.live_bytes = counts.live_bytes.wrapping_add(size as u64);
                counts.peak_bytes = counts.peak_bytes.max(counts.live_bytes);
            } else {
                counts.missed = counts.missed.wrapping_add(1);
            }
        }
    }

    /// Takes out what stood in the block at `addr` from `from` on, to the end of what it occupies: other threads freed it.
    fn cover(&mut self, addr: usize, from: usize, size: usize) {
        let (step, count) = match size > SMALL_MAX {
            true => (UNIT, units(size)),
            false => (GRANULE, granules(size)),
        };
        let mut covered = from;
        while covered < addr.wrapping_add(count.wrapping_mul(step)) {
            self.remove(covered, true);
            covered = covered.wrapping_add(step);
        }
    }

    /// Takes a block out that this thread freed.
    pub fn freed(&mut self, addr: usize) {
        self.remove(addr, false);
    }

    /// Notes that a block got a new size in place, perhaps over others that other threads freed.
    pub fn resized(&mut self, addr: usize, old: usize, new: usize) {
        let step = if new > SMALL_MAX { UNIT } else { GRANULE };
        self.cover(addr, addr.wrapping_add(align_up(old.max(1), step)), new);
        let Some(at) = self.find(addr) else { return };
        let entry = self.entry(at);
        self.put(at, Entry { size: new, ..entry });
        let grown = new.saturating_sub(entry.size) as u64;
        for counts in self
            .counts
            .iter_mut()
            .take(self.open)
            .filter(|counts| counts.first_birth <= entry.birth)
        {
            counts.bytes = counts.bytes.wrapping_add(grown);
            counts.live_bytes = counts
                .live_bytes
                .wrapping_add(new as u64)
                .wrapping_sub(entry.size as u64);
            counts.peak_bytes = counts.peak_bytes.max(counts.live_bytes);
        }
    }

    fn forget(&mut self, entry: Entry, remote: bool) {
        for counts in self
            .counts
            .iter_mut()
            .take(self.open)
            .filter(|counts| counts.first_birth <= entry.birth)
        {
            counts.live_bytes = counts.live_bytes.wrapping_sub(entry.size as u64);
            counts.remote_frees = counts.remote_frees.wrapping_add(u64::from(remote));
        }
    }

    fn remove(&mut self, addr: usize, remote: bool) {
        if let Some(at) = self.find(addr) {
            let entry = self.entry(at);
            self.forget(entry, remote);
            self.remove_at(at);
        }
    }

    // ---- The table ----

    fn entry(&self, at: usize) -> Entry {
        // SAFETY: `at` is below the capacity; zero bytes are a valid, empty entry.
        unsafe { *self.entries.add(at) }
    }

    fn put(&mut self, at: usize, entry: Entry) {
        // SAFETY: `at` is below the capacity, and the table is ours.
        unsafe { *self.entries.add(at) = entry };
    }

    fn home(&self, addr: usize) -> usize {
        // Fibonacci hashing: the golden ratio of 2^64 spreads neighbouring granules over the table.
        let spread = ((addr / GRANULE) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (spread >> 20) as usize & self.capacity.wrapping_sub(1)
    }

    fn next(&self, at: usize) -> usize {
        at.wrapping_add(1) & self.capacity.wrapping_sub(1)
    }

    fn find(&self, addr: usize) -> Option<usize> {
        let mut at = self.home(addr);
        loop {
            match self.entry(at).addr {
                0 => return None,
                found if found == addr => return Some(at),
                _ => at = self.next(at),
            }
        }
    }

    fn insert(&mut self, entry: Entry) -> bool {
        if self.used.wrapping_mul(2) >= self.capacity && !self.enlarge() {
            return false;
        }
        let mut at = self.home(entry.addr);
        while self.entry(at).addr != 0 {
            at = self.next(at);
        }
        self.put(at, entry);
        self.used = self.used.wrapping_add(1);
        true
    }

    /// Empties a place and moves later entries of the same run up, so that no search stops early.
    fn remove_at(&mut self, at: usize) {
        let mask = self.capacity.wrapping_sub(1);
        let (mut hole, mut at) = (at, self.next(at));
        while self.entry(at).addr != 0 {
            let home = self.home(self.entry(at).addr);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.put(hole, self.entry(at));
                hole = at;
            }
            at = self.next(at);
        }
        self.put(
            hole,
            Entry {
                addr: 0,
                size: 0,
                birth: 0,
            },
        );
        self.used = self.used.wrapping_sub(1);
    }

    fn enlarge(&mut self) -> bool {
        let (old, old_capacity) = (self.entries, self.capacity);
        let capacity = old_capacity.wrapping_mul(2);
        let Some(entries) = pages(capacity.wrapping_mul(size_of::<Entry>())) else {
            return false;
        };
        self.entries = entries.cast();
        self.capacity = capacity;
        self.used = 0;
        for at in 0..old_capacity {
            // SAFETY: `at` is below the old table's capacity.
            let entry = unsafe { *old.add(at) };
            if entry.addr != 0 {
                self.insert(entry);
            }
        }
        // SAFETY: the old table was made by `pages` with this size and is not used again.
        unsafe { sys::release(old.cast(), rounded(old_capacity.wrapping_mul(size_of::<Entry>()))) };
        true
    }
}

fn rounded(bytes: usize) -> usize {
    crate::align::align_up(bytes, sys::page_size())
}

fn pages(bytes: usize) -> Option<*mut u8> {
    let bytes = rounded(bytes);
    let p = sys::reserve(bytes);
    if p.is_null() {
        return None;
    }
    // SAFETY: the whole of the reservation just made.
    if !unsafe { sys::commit(p, bytes) } {
        // SAFETY: as above; nobody uses it.
        unsafe { sys::release(p, bytes) };
        return None;
    }
    Some(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Owned(*mut Ledger);

    impl Drop for Owned {
        fn drop(&mut self) {
            // SAFETY: opened by the test, and not used after it.
            unsafe { Ledger::close(self.0) };
        }
    }

    /// Regression: the last look takes freed blocks out, which moves later entries up. Where a run of entries went over the
    /// table's end, one could move from its start, where it was counted, to its end, and was counted again.
    #[test]
    fn escapees_are_counted_once_where_a_run_goes_over_the_tables_end() {
        for gone in 0..64usize {
            let owned = Owned(Ledger::open().unwrap());
            // SAFETY: just opened, used by this test alone.
            let ledger = unsafe { &mut *owned.0 };
            assert!(ledger.begin(1));
            // Six blocks whose home is the last place or the one before.
            let late = (1..)
                .map(|n| n * GRANULE)
                .filter(|&addr| ledger.home(addr) >= FIRST - 2);
            let blocks: Vec<usize> = late.take(6).collect();
            blocks.iter().for_each(|&addr| ledger.made(addr, 16));
            let is_gone = |addr| gone >> blocks.iter().position(|&block| block == addr).unwrap() & 1 == 1;
            let (counts, escapees, bytes) = ledger.finish(1, is_gone).unwrap();
            let freed = u64::from(gone.count_ones());
            assert_eq!(
                (counts.remote_frees, escapees, bytes),
                (freed, 6 - freed, 16 * (6 - freed))
            );
        }
    }
}
