"""Target speaker extraction: one voice out of several, in real time or offline."""
