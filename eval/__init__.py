"""Evaluations and benchmarks. They call the library; nothing here is imported by it."""
