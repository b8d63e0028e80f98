"""Films: pictures in time with the sound, faces found and followed, mouths and portraits cut."""
