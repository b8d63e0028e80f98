"""Speaker recognition: x-vector, ResNet and ECAPA-TDNN embeddings."""
