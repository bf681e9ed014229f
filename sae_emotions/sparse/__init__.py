"""The sparse dictionary step: exact selection of the active latents, loss, gradients and update on their values alone."""
