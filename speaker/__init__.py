"""Speaker recognition: trials, back ends, calibration and detection metrics."""
