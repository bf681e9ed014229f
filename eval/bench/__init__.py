"""Our training step and our harvest beside the field's libraries, each in an environment of its own, taking turns."""
