"""Speaker recognition: embeddings, margin losses, verification."""
