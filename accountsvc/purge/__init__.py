"""An account's end: what is due is erased, for good and provably."""
