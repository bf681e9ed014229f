"""Which features read which concept, beyond chance: statistics on the concept texts, and what stands beside a label."""
