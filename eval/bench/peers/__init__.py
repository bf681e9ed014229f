"""Workers: one library each, run by that library's own interpreter. They import nothing of this package but `common`."""
