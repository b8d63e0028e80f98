"""Speech recognition: ContextNet, transducer and CTC."""
