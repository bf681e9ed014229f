"""Tests that decide how Triton runs before it is imported: `tests/test_sparse_triton.py` starts each in its own process."""
