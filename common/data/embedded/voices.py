"""The voices of the embedded corpus: eSpeak NG variant x English accent x pitch x rate x range.

A voice is its settings, and its id spells them, so the id alone is enough to speak with it again.
Variants belong to a split once and for all, whatever the seed: a held-out voice uses a vocal tract
that no training voice has. Left out of the variants that ship with the wheel are whispers, echoing
and roaring novelties, overdriven ones, one that leaves its tempo behind for the next voice
("fast"), and near copies of others (mean DTW distance of log-mel frames below 2 dB).
"""

import dataclasses
import random

SPLITS = ("train", "dev", "test")

_VARIANTS: dict[str, tuple[str, ...]] = {
    split: tuple(names.replace("Mr serious", "Mr_serious").split())
    for split, names in {
        "train": """Alex Alicia Andrea Andy AnxiousAndy Annie Denis Diogo Gene Hugo Jacky Marco
            Michael Mike Mr serious Reed RicishayMax RicishayMax2 RicishayMax3 Tweaky adam antonio
            aunty david ed edward f1 f2 f4 grandpa gustave ian iven3 iven4 kaukovalta klatt3 klatt4
            m1 m3 m5 m6 marcelo michel mike2 pedro rob shelby steph victor""",
        "dev": "Lee Mario anika belinda f3 m2 m8 miguel norbert paul robert sandro",
        "test": "Nguyen boris f5 grandma john linda m4 m7 max pablo quincy travis",
    }.items()
}
_FEMALE = frozenset(
    name
    for names in ("Alicia Andrea Annie anika aunty belinda", "f1 f2 f3 f4 f5 grandma linda")
    for name in names.split()
)
_FEMALE |= {"shelby", "steph"}  # labelled male or not, they speak near 180 Hz

# Accents and how often each is drawn.
ACCENTS: dict[str, int] = {
    "en-us": 4,
    "en-gb": 2,
    "en-gb-x-rp": 2,
    "en-gb-scotland": 1,
    "en-gb-x-gbclan": 1,
    "en-gb-x-gbcwmd": 1,
    "en-us-nyc": 1,
    "en-029": 1,
}
# Two voices that share variant and accent differ by at least 10 pitch units (2 to 3 semitones).
PITCHES = (25, 35, 45, 55, 65, 75)
RATES_WPM = (115, 165)
RANGES = (30, 70)
LEVELS_DBFS = (-28, -20)


@dataclasses.dataclass(frozen=True)
class Voice:
    """One speaker: eSpeak NG's settings (pitch and range 0-99, rate in words a minute), level."""

    variant: str
    accent: str
    pitch: int
    rate_wpm: int
    range: int
    level_dbfs: int

    @property
    def id(self) -> str:
        """The settings as one word of letters, digits and underscores."""
        variant, accent = self.variant.replace("_", ""), self.accent.replace("-", "")
        level = -self.level_dbfs
        return f"{accent}_{variant}_{self.pitch}_{self.rate_wpm}_{self.range}_{level}".lower()

    @property
    def espeak_name(self) -> str:
        """The name under which eSpeak NG finds accent and variant."""
        # It has no voice of the name en-gb: that is its plain "en".
        accent = "en" if self.accent == "en-gb" else self.accent
        return f"{accent}+{self.variant.replace('_', ' ')}"

    @property
    def sex(self) -> str:
        """M or F, as the variant is meant to sound."""
        return "F" if self.variant in _FEMALE else "M"

    @property
    def split(self) -> str:
        """The split to which every voice of this variant belongs."""
        return next(split for split in SPLITS if self.variant in _VARIANTS[split])


def variants(split: str) -> tuple[str, ...]:
    """The variants of a split; no variant is in two."""
    return _VARIANTS[split]


def parse_voice(voice_id: str) -> Voice:
    """The voice whose `id` this is; ValueError if there is none."""
    by_name = {name.replace("_", "").lower(): name for split in SPLITS for name in variants(split)}
    accents = {accent.replace("-", ""): accent for accent in ACCENTS}
    try:
        accent, variant, *numbers = voice_id.split("_")
        pitch, rate_wpm, pitch_range, level = map(int, numbers)
        return Voice(by_name[variant], accents[accent], pitch, rate_wpm, pitch_range, -level)
    except (ValueError, KeyError):
        raise ValueError(f"{voice_id!r} is no voice id, e.g. enus_m3_45_170_50_24") from None


def capacity(split: str) -> int:
    """How many voices can be drawn of a split: half of all combinations of its settings."""
    return len(variants(split)) * len(ACCENTS) * len(PITCHES) // 2


def draw_voices(split: str, count: int, seed: int) -> tuple[Voice, ...]:
    """Draws different voices of a split; the first n of a larger draw are the draw of n.

    Every variant is used once before any is used again.
    """
    names = variants(split)
    if not 1 <= count <= capacity(split):
        raise ValueError(f"{split} has room for 1 to {capacity(split)} voices, not {count}")
    rng = random.Random(f"voices/{split}/{seed}")
    voices: list[Voice] = []
    taken = set()
    while len(voices) < count:
        for variant in rng.sample(names, len(names)):
            while True:
                accent = rng.choices(list(ACCENTS), list(ACCENTS.values()))[0]
                pitch = rng.choice(PITCHES)
                if (variant, accent, pitch) not in taken:
                    break
            taken.add((variant, accent, pitch))
            rest = (rng.randint(*limits) for limits in (RATES_WPM, RANGES, LEVELS_DBFS))
            voices.append(Voice(variant, accent, pitch, *rest))
    return tuple(voices[:count])
