"""placeholder while the real one is being written"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    freq_masks: int = 1
    freq_width: int = 27
    time_masks: int = 10
    time_ratio: float = 0.05
