//! Where the compiler should put the code of rare cases: out of the way, so that common ones run straight on.

#[cold]
#[inline(always)]
fn cold() {}

/// The condition, which is rarely true.
#[inline(always)]
pub fn unlikely(condition: bool) -> bool {
    if condition {
        cold();
    }
    condition
}
