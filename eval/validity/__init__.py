"""What is asked of a finished run beyond its own stages: transfer, people's labels, nulls, causal tests."""
