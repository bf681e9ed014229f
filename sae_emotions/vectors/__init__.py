"""One dense vector a concept: how they are arranged, what they read, and how features compare."""
