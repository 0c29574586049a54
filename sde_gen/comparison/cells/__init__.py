"""What a comparison computes: each cell by itself, kept on disk under a digest of all that decides it."""
