//! Pools: objects of one size, taken and given back in O(1).
//!
//! ```text
//!   RawPool     slot 0 | slot 1 | ... | slot n-1                    bytes, checked frees
//!               stack of free slots, place of each slot on it       apart from the slots
//!
//!   Pool<T>     [ value | next free | value | never used ... ]  [ twice as many ... ]
//! ```
//!
//! `RawPool` is the C library's pool with the frees checked: the address must lie in the pool, at the start of a slot,
//! and the slot must be live. Its bookkeeping is not in the slots, so that writing to a freed object cannot break it.
//! `Pool<T>` needs no check, since a handle is freed once by construction, and threads its free slots through
//! themselves. `SharedPool<T>` is a `Pool` behind a lock that is held for the pointer moves only, never while a value is
//! made or dropped.
//!
//! Invariants of `Pool`:
//! - **P1** A slot is either live (a handle or a leaked value has it), or `last`, or on the free list once, or above
//!   `fresh`.
//! - **P2** Blocks do not move and are not given back before the pool's end, so handles stay valid.
//!
//! Invariants of `RawPool`:
//! - **R1** The first `free` entries of `stack` are the objects that were handed out and given back, each once. So
//!   giving back needs no memory.
//! - **R2** The place of a slot is where its object was last put on the stack. So an object is free exactly if its place
//!   is below `free` and the stack has it there: a place left from an earlier time is above, or another object's now.
//!   Taking an object therefore writes nothing but `free`, where a bit for each slot would have to be set.

use crate::align::{checked_align_up, max};
use crate::aligned::{aligned_alloc, aligned_free};
use crate::error::{self, AllocError};
use crate::sync::Mutex;
use core::alloc::Layout;
use core::borrow::{Borrow, BorrowMut};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};

/// How many slots the first block of a growing pool has; each next one has twice as many.
const FIRST_SLOTS: usize = 64;

/// Up to here a stride is divided by with a product, which needs `stride * offset < 2^64` and some room; larger ones
/// are divided by.
const MOST_INVERTED_STRIDE: usize = 1 << 20;

/// Up to here an offset is divided with a product, bytes.
const MOST_INVERTED_OFFSET: u64 = 1 << 43;

/// The smallest region of a raw pool's table of blocks, bytes: one byte or two of table for each.
const LEAST_REGION: usize = 4096;

/// The alignment of a raw pool's objects unless told otherwise, bytes: what `malloc` gives.
const RAW_ALIGN: usize = 16;

/// Either begins at the slot's start.
#[repr(C)]
union Slot<T> {
    next: *mut Slot<T>,
    _value: ManuallyDrop<MaybeUninit<T>>,
}

/// Slots taken at once from the global allocator.
struct SlotBlock<T> {
    start: NonNull<Slot<T>>,
    slots: usize,
}

impl<T> SlotBlock<T> {
    fn new(slots: usize) -> Result<SlotBlock<T>, AllocError> {
        let layout = Layout::array::<Slot<T>>(slots).map_err(|_| AllocError::BadLayout)?;
        debug_assert!(layout.size() != 0, "a slot holds a pointer at least");
        // SAFETY: a block has at least one slot, and a slot a pointer's size.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) }).ok_or(AllocError::OutOfMemory)?;
        Ok(SlotBlock {
            start: start.cast(),
            slots,
        })
    }
}

impl<T> Drop for SlotBlock<T> {
    fn drop(&mut self) {
        // SAFETY: `new` made a layout of these numbers.
        let layout = unsafe { Layout::array::<Slot<T>>(self.slots).unwrap_unchecked() };
        // SAFETY: taken in `new` with this layout; its owner goes away.
        unsafe { std::alloc::dealloc(self.start.as_ptr().cast(), layout) }
    }
}

/// A pool of values of one type.
///
/// Taking and giving back are O(1); memory is kept until the pool goes away. Values whose handle was leaked are dropped
/// with the pool. For many threads see [`SharedPool`].
///
/// # Examples
/// ```
/// use stepalloc::Pool;
///
/// let pool = Pool::new();
/// let mut node = pool.alloc(String::from("a"));
/// node.push('b');
/// assert_eq!((node.as_str(), pool.len()), ("ab", 1));
/// drop(node);
/// assert_eq!(pool.len(), 0);
/// ```
/// A handle does not outlive its pool:
/// ```compile_fail,E0505
/// let pool = stepalloc::Pool::new();
/// let handle = pool.alloc(1);
/// drop(pool);
/// assert_eq!(*handle, 1);
/// ```
/// It is not for two threads at once:
/// ```compile_fail,E0277
/// let pool = stepalloc::Pool::new();
/// std::thread::scope(|threads| {
///     threads.spawn(|| pool.alloc(1));
/// });
/// ```
pub struct Pool<T> {
    /// The slot given back last, if it was not taken again. It is kept apart from the free list, so that a value taken
    /// and given back at once does not wait for the list to go through memory.
    last: Cell<*mut Slot<T>>,
    /// The free list.
    free: Cell<*mut Slot<T>>,
    /// The slots of the newest block that were never used: `fresh..end`.
    fresh: Cell<*mut Slot<T>>,
    end: Cell<*mut Slot<T>>,
    live: Cell<usize>,
    /// How many slots there may be.
    most: usize,
    blocks: RefCell<Vec<SlotBlock<T>>>,
    _owns: PhantomData<T>,
}

// SAFETY: the pool owns its blocks and the values in them; handles borrow it, so none is left when it moves.
unsafe impl<T: Send> Send for Pool<T> {}

impl<T> Pool<T> {
    /// Makes a pool that grows; no memory is asked for yet.
    pub const fn new() -> Pool<T> {
        Pool::with_most(usize::MAX)
    }

    /// Makes a pool of at most `slots` values, and takes the memory for all of them.
    ///
    /// # Errors
    /// `BadLayout` if their size passes `isize::MAX`, `OutOfMemory` if the allocator refuses.
    ///
    /// # Examples
    /// ```
    /// use stepalloc::{AllocError, Pool};
    ///
    /// let pool = Pool::fixed(1).unwrap();
    /// let only = pool.alloc(1);
    /// assert_eq!(pool.try_alloc(2).unwrap_err(), AllocError::LimitReached);
    /// drop(only);
    /// assert!(pool.try_alloc(3).is_ok());
    /// ```
    pub fn fixed(slots: usize) -> Result<Pool<T>, AllocError> {
        let pool = Pool::with_most(slots);
        if slots != 0 {
            pool.add_block(slots)?;
        }
        Ok(pool)
    }

    const fn with_most(most: usize) -> Pool<T> {
        Pool {
            last: Cell::new(ptr::null_mut()),
            free: Cell::new(ptr::null_mut()),
            fresh: Cell::new(ptr::null_mut()),
            end: Cell::new(ptr::null_mut()),
            live: Cell::new(0),
            most,
            blocks: RefCell::new(Vec::new()),
            _owns: PhantomData,
        }
    }

    /// Puts a value into the pool; it is dropped, and its slot free again, when the handle is dropped.
    ///
    /// # Panics
    /// If a fixed pool is full; without memory it ends the process as std's collections do.
    #[inline]
    #[track_caller]
    pub fn alloc(&self, value: T) -> PoolBox<'_, T> {
        match self.try_alloc(value) {
            Ok(handle) => handle,
            Err(refused) => error::refuse(refused, Layout::new::<T>()),
        }
    }

    /// Puts a value into the pool.
    ///
    /// # Errors
    /// `LimitReached` if a fixed pool is full, `OutOfMemory` if the allocator refuses; the value is then dropped.
    #[inline]
    pub fn try_alloc(&self, value: T) -> Result<PoolBox<'_, T>, AllocError> {
        self.try_alloc_with(|| value)
    }

    /// Puts the value that `make` returns into the pool; without a slot `make` is not called.
    ///
    /// # Errors
    /// As [`try_alloc`](Pool::try_alloc).
    #[inline]
    pub fn try_alloc_with(&self, make: impl FnOnce() -> T) -> Result<PoolBox<'_, T>, AllocError> {
        let slot = self.take()?;
        let room = Taken { pool: self, slot };
        let value = make();
        mem::forget(room);
        // SAFETY: the slot is ours alone (P1), large enough and aligned for a `T`.
        unsafe { slot.cast::<T>().write(value) };
        Ok(PoolBox {
            pool: self,
            value: slot.cast(),
            _owns: PhantomData,
        })
    }

    /// How many values are in the pool, leaked ones included.
    pub fn len(&self) -> usize {
        self.live.get()
    }

    /// Whether no value is in the pool.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values the pool has memory for.
    pub fn capacity(&self) -> usize {
        self.blocks.borrow().iter().map(|block| block.slots).sum()
    }

    /// Takes a slot.
    #[inline(always)]
    fn take(&self) -> Result<NonNull<Slot<T>>, AllocError> {
        if let Some(slot) = NonNull::new(self.last.get()) {
            self.last.set(ptr::null_mut());
            self.live.set(self.live.get() + 1);
            return Ok(slot);
        }
        if let Some(slot) = NonNull::new(self.free.get()) {
            // SAFETY: a slot on the free list holds the next one (P1).
            self.free.set(unsafe { slot.as_ref().next });
            self.live.set(self.live.get() + 1);
            return Ok(slot);
        }
        self.take_fresh()
    }

    #[inline(never)]
    fn take_fresh(&self) -> Result<NonNull<Slot<T>>, AllocError> {
        if self.fresh.get() == self.end.get() {
            let have = self.capacity();
            if have >= self.most {
                return Err(AllocError::LimitReached);
            }
            self.add_block(max(have, FIRST_SLOTS))?;
        }
        let slot = self.fresh.get();
        // SAFETY: `fresh < end`: the next slot, or the end, is in the same block.
        self.fresh.set(unsafe { slot.add(1) });
        self.live.set(self.live.get() + 1);
        NonNull::new(slot).ok_or(AllocError::OutOfMemory)
    }

    /// Makes a block's slots the fresh ones; those of the block before are used up.
    fn add_block(&self, slots: usize) -> Result<(), AllocError> {
        let mut blocks = self.blocks.borrow_mut();
        blocks.try_reserve(1).map_err(|_| AllocError::OutOfMemory)?;
        let block = SlotBlock::new(slots)?;
        self.fresh.set(block.start.as_ptr());
        // SAFETY: the end of the block just made.
        self.end.set(unsafe { block.start.as_ptr().add(slots) });
        blocks.push(block);
        Ok(())
    }

    /// Gives a slot back.
    ///
    /// # Safety
    /// The slot was taken from this pool, holds no value any more, and nobody uses it afterwards.
    #[inline(always)]
    unsafe fn give(&self, slot: NonNull<Slot<T>>) {
        let last = self.last.replace(slot.as_ptr());
        if !last.is_null() {
            // SAFETY: a free slot of this pool, in no list (P1), is ours to write.
            unsafe { (*last).next = self.free.get() };
            self.free.set(last);
        }
        self.live.set(self.live.get() - 1);
    }

    /// Drops what is left in the pool: the values whose handles were leaked.
    fn drop_left(&mut self) {
        if !mem::needs_drop::<T>() || self.live.get() == 0 {
            return;
        }
        let blocks = mem::take(self.blocks.get_mut());
        // The free list becomes a set, since a slot does not tell whether it is free. Nothing else is in flight here.
        let mut free = std::collections::HashSet::new();
        free.insert(self.last.get().addr());
        let mut next = self.free.get();
        while !next.is_null() {
            free.insert(next.addr());
            // SAFETY: a slot on the free list holds the next one (P1).
            next = unsafe { (*next).next };
        }
        let newest = blocks.len().wrapping_sub(1);
        let mut left = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let used = match index == newest {
                // SAFETY: `fresh` is in the newest block, at or after its start.
                true => unsafe { self.fresh.get().offset_from(block.start.as_ptr()) as usize },
                false => block.slots,
            };
            for slot in 0..used {
                // SAFETY: `slot` is below the number of slots in the block.
                let slot = unsafe { block.start.add(slot) };
                if !free.contains(&slot.addr().get()) {
                    left.push(slot.cast::<T>());
                }
            }
        }
        drop_all(left);
    }
}

/// Drops each value, the rest too if one panics.
fn drop_all<T>(values: Vec<NonNull<T>>) {
    struct Rest<T>(std::vec::IntoIter<NonNull<T>>);
    impl<T> Rest<T> {
        fn run(&mut self) {
            for value in self.0.by_ref() {
                // SAFETY: the pool's end owns each value, and takes each from the list once.
                unsafe { value.drop_in_place() };
            }
        }
    }
    impl<T> Drop for Rest<T> {
        fn drop(&mut self) {
            self.run();
        }
    }
    Rest(values.into_iter()).run();
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.drop_left();
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Pool<T> {
        Pool::new()
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// A slot without a value: given back on unwinding, and after a value was dropped or moved out.
struct Taken<'p, T> {
    pool: &'p Pool<T>,
    slot: NonNull<Slot<T>>,
}

impl<T> Drop for Taken<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the slot was taken from this pool and holds no value.
        unsafe { self.pool.give(self.slot) }
    }
}

/// Owns a value in a [`Pool`]; dropping it drops the value and frees its slot.
pub struct PoolBox<'p, T> {
    pool: &'p Pool<T>,
    value: NonNull<T>,
    _owns: PhantomData<T>,
}

impl<'p, T> PoolBox<'p, T> {
    /// Moves the value out and frees its slot.
    pub fn into_inner(handle: PoolBox<'p, T>) -> T {
        let handle = ManuallyDrop::new(handle);
        let slot = handle.value.cast();
        // SAFETY: the value is the handle's, which will not drop it.
        let value = unsafe { handle.value.read() };
        drop(Taken {
            pool: handle.pool,
            slot,
        });
        value
    }

    /// Leaves the value in the pool, which drops it at its own end.
    ///
    /// # Examples
    /// ```
    /// use stepalloc::{Pool, PoolBox};
    ///
    /// let pool = Pool::new();
    /// let value = PoolBox::leak(pool.alloc(3));
    /// *value += 1;
    /// assert_eq!((*value, pool.len()), (4, 1));
    /// ```
    pub fn leak(handle: PoolBox<'p, T>) -> &'p mut T {
        let handle = ManuallyDrop::new(handle);
        // SAFETY: the handle was the only way to the value, which stays until the pool, borrowed for `'p`, ends.
        unsafe { &mut *handle.value.as_ptr() }
    }
}

impl<T> Drop for PoolBox<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let _slot = Taken {
            pool: self.pool,
            slot: self.value.cast(),
        };
        // SAFETY: the handle owns the value. The slot is given back after it, also if its `Drop` panics.
        unsafe { self.value.drop_in_place() }
    }
}

/// A pool of values of one type for many threads.
///
/// # Examples
/// ```
/// use stepalloc::SharedPool;
///
/// let pool = SharedPool::new();
/// std::thread::scope(|threads| {
///     for n in 0..2 {
///         threads.spawn(|| assert_eq!(*pool.alloc(7), 7));
///     }
/// });
/// assert!(pool.is_empty());
/// ```
pub struct SharedPool<T> {
    /// A pool of rooms without values: what is in them is their handles' matter, so that no lock is held for it.
    rooms: Mutex<Pool<Room<T>>>,
}

/// Room for a value. Live rooms at the pool's end hold leaked values.
struct Room<T>(T);

impl<T> SharedPool<T> {
    /// Makes a pool that grows; no memory is asked for yet.
    pub const fn new() -> SharedPool<T> {
        SharedPool {
            rooms: Mutex::new(Pool::new()),
        }
    }

    /// Makes a pool of at most `slots` values, and takes the memory for all of them.
    ///
    /// # Errors
    /// As [`Pool::fixed`].
    pub fn fixed(slots: usize) -> Result<SharedPool<T>, AllocError> {
        Ok(SharedPool {
            rooms: Mutex::new(Pool::fixed(slots)?),
        })
    }

    /// Puts a value into the pool; it is dropped, and its slot free again, when the handle is dropped.
    ///
    /// # Panics
    /// If a fixed pool is full; without memory it ends the process as std's collections do.
    #[track_caller]
    pub fn alloc(&self, value: T) -> SharedPoolBox<'_, T> {
        match self.try_alloc(value) {
            Ok(handle) => handle,
            Err(refused) => error::refuse(refused, Layout::new::<T>()),
        }
    }

    /// Puts a value into the pool.
    ///
    /// # Errors
    /// As [`Pool::try_alloc`].
    pub fn try_alloc(&self, value: T) -> Result<SharedPoolBox<'_, T>, AllocError> {
        let slot = self.rooms.lock().take()?;
        // SAFETY: the slot is ours alone (P1), large enough and aligned for a `T`, which is all of a `Room`.
        unsafe { slot.cast::<T>().write(value) };
        Ok(SharedPoolBox {
            pool: self,
            value: slot.cast(),
            _owns: PhantomData,
        })
    }

    /// How many values are in the pool, leaked ones included.
    pub fn len(&self) -> usize {
        self.rooms.lock().len()
    }

    /// Whether no value is in the pool.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values the pool has memory for.
    pub fn capacity(&self) -> usize {
        self.rooms.lock().capacity()
    }
}

impl<T> Default for SharedPool<T> {
    fn default() -> SharedPool<T> {
        SharedPool::new()
    }
}

impl<T> fmt::Debug for SharedPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPool").field("len", &self.len()).finish()
    }
}

/// Owns a value in a [`SharedPool`]; dropping it, on any thread, drops the value and frees its slot.
pub struct SharedPoolBox<'p, T> {
    pool: &'p SharedPool<T>,
    value: NonNull<T>,
    _owns: PhantomData<T>,
}

// SAFETY: the handle owns its value, as a `Box<T>` does, and the pool is locked to give the slot back. Giving it back
// from another thread moves no other value; a value leaked there needs `T: Send` to be dropped here, which holds.
unsafe impl<T: Send> Send for SharedPoolBox<'_, T> {}
// SAFETY: a shared handle gives shared access to its value only.
unsafe impl<T: Sync> Sync for SharedPoolBox<'_, T> {}

impl<'p, T> SharedPoolBox<'p, T> {
    /// Moves the value out and frees its slot.
    pub fn into_inner(handle: SharedPoolBox<'p, T>) -> T {
        let handle = ManuallyDrop::new(handle);
        // SAFETY: the value is the handle's, which will not drop it.
        let value = unsafe { handle.value.read() };
        // SAFETY: the slot was taken from this pool and its value is moved out.
        unsafe { handle.pool.rooms.lock().give(handle.value.cast()) };
        value
    }

    /// Leaves the value in the pool, which drops it at its own end.
    pub fn leak(handle: SharedPoolBox<'p, T>) -> &'p mut T {
        let handle = ManuallyDrop::new(handle);
        // SAFETY: the handle was the only way to the value, which stays until the pool, borrowed for `'p`, ends.
        unsafe { &mut *handle.value.as_ptr() }
    }
}

impl<T> Drop for SharedPoolBox<'_, T> {
    fn drop(&mut self) {
        struct Give<'p, T>(&'p SharedPool<T>, NonNull<T>);
        impl<T> Drop for Give<'_, T> {
            fn drop(&mut self) {
                // SAFETY: the slot was taken from this pool, and its value is dropped.
                unsafe { self.0.rooms.lock().give(self.1.cast()) }
            }
        }
        let _give = Give(self.pool, self.value);
        // SAFETY: the handle owns the value. The slot is given back after it, also if its `Drop` panics.
        unsafe { self.value.drop_in_place() }
    }
}

/// What both handles offer: access to the value, and its own `Debug`, `Display` and `PartialEq`.
macro_rules! handle {
    ($handle:ident) => {
        impl<T> Deref for $handle<'_, T> {
            type Target = T;

            #[inline]
            fn deref(&self) -> &T {
                // SAFETY: the handle owns the value, which is borrowed as the handle is.
                unsafe { self.value.as_ref() }
            }
        }

        impl<T> DerefMut for $handle<'_, T> {
            #[inline]
            fn deref_mut(&mut self) -> &mut T {
                // SAFETY: as in `deref`, and the handle is the only way to the value.
                unsafe { self.value.as_mut() }
            }
        }

        impl<T> AsRef<T> for $handle<'_, T> {
            fn as_ref(&self) -> &T {
                self
            }
        }

        impl<T> AsMut<T> for $handle<'_, T> {
            fn as_mut(&mut self) -> &mut T {
                self
            }
        }

        impl<T> Borrow<T> for $handle<'_, T> {
            fn borrow(&self) -> &T {
                self
            }
        }

        impl<T> BorrowMut<T> for $handle<'_, T> {
            fn borrow_mut(&mut self) -> &mut T {
                self
            }
        }

        impl<T: fmt::Debug> fmt::Debug for $handle<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }

        impl<T: fmt::Display> fmt::Display for $handle<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }

        impl<T: PartialEq> PartialEq for $handle<'_, T> {
            fn eq(&self, other: &Self) -> bool {
                **self == **other
            }
        }

        impl<T: Eq> Eq for $handle<'_, T> {}
    };
}

handle!(PoolBox);
handle!(SharedPoolBox);

/// Why a raw pool refused to take an object back; the pool is then as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolFreeError {
    /// The address is not in the pool.
    Foreign,
    /// The address is in the pool, but not where an object begins.
    Interior,
    /// The object is free already, or was never handed out.
    NotLive,
}

impl fmt::Display for PoolFreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoolFreeError::Foreign => "the address is not in the pool",
            PoolFreeError::Interior => "no object of the pool begins at the address",
            PoolFreeError::NotLive => "the object is not handed out",
        })
    }
}

impl std::error::Error for PoolFreeError {}

/// Bytes of a raw pool, all of its own.
struct RawBlock {
    /// Dangling if there are no bytes.
    start: NonNull<u8>,
    bytes: usize,
    align: usize,
    /// The number of its first slot in the pool.
    first: usize,
}

impl RawBlock {
    const NONE: RawBlock = RawBlock {
        start: NonNull::dangling(),
        bytes: 0,
        align: 1,
        first: 0,
    };

    /// Where an address lies in the block; at least `bytes` if outside.
    #[inline(always)]
    fn offset_of(&self, object: NonNull<u8>) -> usize {
        object.addr().get().wrapping_sub(self.start.addr().get())
    }
}

impl Drop for RawBlock {
    fn drop(&mut self) {
        if self.bytes != 0 {
            // SAFETY: taken in `RawPool::add_block` with these numbers; its owner goes away.
            unsafe { aligned_free(self.start, self.bytes, self.align) }
        }
    }
}

/// Which of the older blocks an address may be in: a hash table with an entry for each region of `1 << shift` bytes that
/// an older block lies in, at the next place that was empty.
///
/// All blocks but the few that are smaller than a region share each region with at most two others, so that a search
/// sees a number of entries that does not grow with the pool.
struct Regions {
    shift: u32,
    /// The number of a block plus one, or 0; a power of two of them, at most half of them used.
    table: Vec<u8>,
}

impl Regions {
    /// For a pool whose first block has `bytes` bytes: regions large enough that the table is small beside the pool.
    fn new(bytes: usize) -> Regions {
        let shift = ((bytes / 8) | LEAST_REGION).ilog2();
        Regions {
            shift,
            table: Vec::new(),
        }
    }

    /// A table of these blocks.
    fn with_blocks<'b>(&self, blocks: impl Iterator<Item = &'b RawBlock> + Clone) -> Result<Regions, AllocError> {
        let shift = self.shift;
        let regions = move |block: &RawBlock| {
            let start = block.start.addr().get();
            start >> shift..=(start + block.bytes - 1) >> shift
        };
        let used: usize = blocks.clone().map(|block| regions(block).count()).sum();
        let places = (2 * max(used, 1)).next_power_of_two();
        let mut table = Vec::new();
        table.try_reserve_exact(places).map_err(|_| AllocError::OutOfMemory)?;
        table.resize(places, 0);
        let mut made = Regions { shift, table };
        for (index, block) in blocks.enumerate() {
            for region in regions(block) {
                let mut place = made.place_of(region);
                while made.table[place] != 0 {
                    place = (place + 1) & (places - 1);
                }
                // A pool doubles, so it has at most as many blocks as a number of slots has bits, and one.
                made.table[place] = index as u8 + 1;
            }
        }
        Ok(made)
    }

    /// Where the search for a region begins: neighbours are spread by a product with the golden ratio.
    fn place_of(&self, region: usize) -> usize {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        ((region as u64).wrapping_mul(GOLDEN) >> 32) as usize & (self.table.len() - 1)
    }

    /// The block in which an object lies.
    fn find<'b>(&self, blocks: &'b [RawBlock], object: NonNull<u8>) -> Option<&'b RawBlock> {
        if self.table.is_empty() {
            return None;
        }
        let mut place = self.place_of(object.addr().get() >> self.shift);
        loop {
            // At least half of the places are empty.
            let block = &blocks[usize::from(self.table[place].checked_sub(1)?)];
            if block.offset_of(object) < block.bytes {
                return Some(block);
            }
            place = (place + 1) & (self.table.len() - 1);
        }
    }
}

/// A pool of uninitialised objects of one size, every free of which is checked: `ac_pool`.
///
/// Taking and giving back are O(1); a pool that grows looks an object's block up in a table if it is not the newest one.
/// The checks cost 16 bytes a slot, apart from the objects.
///
/// # Examples
/// ```
/// use stepalloc::{PoolFreeError, RawPool};
///
/// let mut pool = RawPool::fixed(24, 1024).unwrap(); // ac_pool_init
/// let object = pool.alloc().unwrap();
/// let inside = object.map_addr(|addr| addr.saturating_add(8));
/// assert_eq!(pool.free(inside), Err(PoolFreeError::Interior));
/// assert_eq!(pool.free(object), Ok(()));
/// assert_eq!(pool.free(object), Err(PoolFreeError::NotLive));
/// ```
#[repr(C)] // What both ways use comes first.
pub struct RawPool {
    /// The newest block, which has at least half of all slots; of no bytes in a pool without one.
    newest: RawBlock,
    stride: usize,
    /// 2^64 / stride, rounded up, where multiplying by it divides exactly; else 0, and offsets are divided.
    inverse: u64,
    /// How many objects were given back (R1).
    free: usize,
    /// R1 for the first `free` of them; of no meaning from there on. One for each slot that was ever handed out.
    stack: Vec<NonNull<u8>>,
    /// R2, for each slot that was ever handed out.
    places: Vec<usize>,
    /// The other blocks, oldest first.
    older: Vec<RawBlock>,
    regions: Regions,
    align: usize,
    slots: usize,
    /// How many slots the first block of a growing pool has.
    first: usize,
    most: usize,
}

// SAFETY: the pool owns its blocks, and lends out raw pointers only.
unsafe impl Send for RawPool {}
// SAFETY: a shared pool only tells numbers.
unsafe impl Sync for RawPool {}

impl RawPool {
    /// Makes a pool of exactly `capacity` objects of `object_size` bytes, aligned to 16, and takes their memory.
    ///
    /// # Errors
    /// `BadLayout` if the size of all of them passes `isize::MAX`, `OutOfMemory` if the allocator refuses.
    pub fn fixed(object_size: usize, capacity: usize) -> Result<RawPool, AllocError> {
        RawPool::fixed_aligned(object_size, RAW_ALIGN, capacity)
    }

    /// Makes a pool of exactly `capacity` objects of `object_size` bytes, each at a multiple of `align`.
    ///
    /// # Errors
    /// As [`fixed`](RawPool::fixed), and `BadLayout` if `align` is not a power of two.
    pub fn fixed_aligned(object_size: usize, align: usize, capacity: usize) -> Result<RawPool, AllocError> {
        let mut pool = RawPool::empty(object_size, align, 0, capacity)?;
        if capacity != 0 {
            pool.add_block(capacity)?;
        }
        Ok(pool)
    }

    /// Makes a pool of objects of `object_size` bytes, aligned to 16, that starts with room for `first` of them and
    /// doubles when it is full. No memory is asked for yet.
    ///
    /// # Errors
    /// As [`fixed`](RawPool::fixed).
    ///
    /// # Examples
    /// ```
    /// let mut pool = stepalloc::RawPool::growing(100, 4).unwrap();
    /// let objects: Vec<_> = (0..100).map(|_| pool.alloc().unwrap()).collect();
    /// assert_eq!((pool.len(), pool.capacity()), (100, 128));
    /// objects.into_iter().for_each(|object| pool.free(object).unwrap());
    /// ```
    pub fn growing(object_size: usize, first: usize) -> Result<RawPool, AllocError> {
        RawPool::growing_aligned(object_size, RAW_ALIGN, first)
    }

    /// As [`growing`](RawPool::growing), each object at a multiple of `align`.
    ///
    /// # Errors
    /// As [`fixed_aligned`](RawPool::fixed_aligned).
    pub fn growing_aligned(object_size: usize, align: usize, first: usize) -> Result<RawPool, AllocError> {
        RawPool::empty(object_size, align, max(first, 1), usize::MAX)
    }

    fn empty(object_size: usize, align: usize, first: usize, most: usize) -> Result<RawPool, AllocError> {
        if !align.is_power_of_two() {
            return Err(AllocError::BadLayout);
        }
        let stride = checked_align_up(max(object_size, 1), align).ok_or(AllocError::BadLayout)?;
        if stride > isize::MAX as usize {
            return Err(AllocError::BadLayout);
        }
        let small = stride > 1 && stride <= MOST_INVERTED_STRIDE;
        Ok(RawPool {
            newest: RawBlock::NONE,
            stride,
            inverse: if small { u64::MAX / stride as u64 + 1 } else { 0 },
            free: 0,
            stack: Vec::new(),
            places: Vec::new(),
            older: Vec::new(),
            regions: Regions::new(stride.saturating_mul(first)),
            align,
            slots: 0,
            first,
            most,
        })
    }

    /// Takes an uninitialised object: `ac_pool_alloc`.
    ///
    /// # Errors
    /// `LimitReached` if a fixed pool is full, `OutOfMemory` if the allocator refuses.
    #[inline]
    pub fn alloc(&mut self) -> Result<NonNull<u8>, AllocError> {
        let Some(left) = self.free.checked_sub(1) else {
            return self.take_fresh();
        };
        self.free = left;
        debug_assert!(left < self.stack.len());
        // SAFETY: R1: the stack is never shorter than the number of free objects.
        Ok(unsafe { *self.stack.get_unchecked(left) })
    }

    /// Takes a slot that was never handed out.
    #[inline(never)]
    fn take_fresh(&mut self) -> Result<NonNull<u8>, AllocError> {
        let slot = self.stack.len();
        if slot == self.slots {
            if self.slots >= self.most {
                return Err(AllocError::LimitReached);
            }
            self.add_block(max(self.slots, self.first))?;
        }
        // SAFETY: a fresh slot is one of the newest block, so its offset is within that block's bytes.
        let object = unsafe { self.newest.start.add((slot - self.newest.first) * self.stride) };
        // `add_block` reserved room in both for every slot.
        self.stack.push(object);
        self.places.push(0);
        Ok(object)
    }

    /// Takes an object back: `ac_pool_free`, with every address checked.
    ///
    /// The pool cannot know that an address was given back and handed out again since; the object is then the new
    /// owner's, and is taken from him.
    ///
    /// # Errors
    /// `Foreign`, `Interior` or `NotLive`; the pool is then as before.
    #[inline]
    pub fn free(&mut self, object: NonNull<u8>) -> Result<(), PoolFreeError> {
        let (object, slot) = self.find(object)?;
        if !self.is_out(object, slot) {
            return Err(PoolFreeError::NotLive);
        }
        let free = self.free;
        debug_assert!(free < self.stack.len() && slot < self.places.len());
        // SAFETY: the slot was handed out, so it has a place; and with it on the stack there are at most as many objects
        // there as slots that were ever handed out (R1).
        unsafe {
            *self.stack.get_unchecked_mut(free) = object;
            *self.places.get_unchecked_mut(slot) = free;
        }
        self.free = free + 1;
        Ok(())
    }

    /// Whether `object` is an object that is handed out.
    pub fn is_live(&self, object: NonNull<u8>) -> bool {
        self.find(object).is_ok_and(|(object, slot)| self.is_out(object, slot))
    }

    /// Whether the object of a slot is handed out.
    #[inline(always)]
    fn is_out(&self, object: NonNull<u8>, slot: usize) -> bool {
        let Some(&place) = self.places.get(slot) else {
            return false; // It is fresh.
        };
        debug_assert!(place < self.stack.len());
        // SAFETY: a place is 0 or was an index of the stack, which has an entry for each place and never gets shorter.
        let there = unsafe { *self.stack.get_unchecked(place) };
        // Both are compared without a branch between, since the first comparison may go either way at random (R2).
        !((place < self.free) & (there == object))
    }

    /// How many objects are handed out.
    pub fn len(&self) -> usize {
        self.stack.len() - self.free
    }

    /// Whether no object is handed out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many objects the pool has memory for.
    pub fn capacity(&self) -> usize {
        self.slots
    }

    /// The distance of two objects, in bytes: the object size rounded up to the alignment.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The object that begins at an address, and its slot.
    ///
    /// The pointer found is derived from the block. The caller's may lead to less than the whole object, or nowhere,
    /// and must not be handed out to the next one.
    #[inline(always)]
    fn find(&self, object: NonNull<u8>) -> Result<(NonNull<u8>, usize), PoolFreeError> {
        if self.newest.offset_of(object) < self.newest.bytes {
            return self.find_in(&self.newest, object);
        }
        self.find_older(object)
    }

    #[inline(never)]
    fn find_older(&self, object: NonNull<u8>) -> Result<(NonNull<u8>, usize), PoolFreeError> {
        match self.regions.find(&self.older, object) {
            Some(block) => self.find_in(block, object),
            None => Err(PoolFreeError::Foreign),
        }
    }

    #[inline(always)]
    fn find_in(&self, block: &RawBlock, object: NonNull<u8>) -> Result<(NonNull<u8>, usize), PoolFreeError> {
        let offset = block.offset_of(object);
        let index = if self.inverse != 0 {
            // With offset = index * stride + rest the product is index * 2^64 + index * e + rest * inverse,
            // where 0 <= e < stride: its low half is below the inverse exactly if the rest is 0.
            let product = offset as u128 * u128::from(self.inverse);
            if product as u64 >= self.inverse {
                return Err(PoolFreeError::Interior);
            }
            (product >> 64) as usize
        } else {
            if offset % self.stride != 0 {
                return Err(PoolFreeError::Interior);
            }
            offset / self.stride
        };
        // SAFETY: the offset is within the block's bytes.
        Ok((unsafe { block.start.add(offset) }, block.first + index))
    }

    fn add_block(&mut self, slots: usize) -> Result<(), AllocError> {
        let bytes = slots.checked_mul(self.stride).ok_or(AllocError::BadLayout)?;
        let total = self.slots.checked_add(slots).ok_or(AllocError::BadLayout)?;
        // All memory first: where something is refused nothing has changed. `stack` and `places` hold one a slot.
        Layout::from_size_align(bytes, self.align).map_err(|_| AllocError::BadLayout)?;
        let more = total - self.stack.len();
        self.stack.try_reserve(more).map_err(|_| AllocError::OutOfMemory)?;
        self.places.try_reserve(more).map_err(|_| AllocError::OutOfMemory)?;
        self.older.try_reserve(1).map_err(|_| AllocError::OutOfMemory)?;
        let grown = (self.newest.bytes != 0).then(|| {
            let blocks = self.older.iter().chain(core::iter::once(&self.newest));
            self.regions.with_blocks(blocks)
        });
        let grown = grown.transpose()?;
        let block = RawBlock {
            start: aligned_alloc(bytes, self.align)?,
            bytes,
            align: self.align,
            first: self.slots,
        };
        let before = mem::replace(&mut self.newest, block);
        if let Some(regions) = grown {
            self.older.push(before);
            self.regions = regions;
        }
        self.slots = total;
        if bytes as u64 > MOST_INVERTED_OFFSET {
            self.inverse = 0;
        }
        Ok(())
    }
}

impl fmt::Debug for RawPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawPool")
            .field("stride", &self.stride)
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The search for an object's block must not grow with the number of blocks.
    #[test]
    fn a_grown_pool_finds_a_block_in_few_looks() {
        for first in [1, 100] {
            let mut pool = RawPool::growing(16, first).unwrap();
            let objects: Vec<_> = (0..200_000).map(|_| pool.alloc().unwrap()).collect();
            let regions = &pool.regions;
            assert!(pool.older.len() > 10);
            let mut looks = 0;
            for &object in &objects {
                let mut place = regions.place_of(object.addr().get() >> regions.shift);
                while regions.table[place] != 0 {
                    let block = &pool.older[usize::from(regions.table[place]) - 1];
                    looks += 1;
                    if block.offset_of(object) < block.bytes {
                        break;
                    }
                    place = (place + 1) & (regions.table.len() - 1);
                }
            }
            assert!(looks < 3 * objects.len(), "{looks} looks");
            assert!(regions.table.len() < objects.len() / 50, "the table is too large");
        }
    }
}
