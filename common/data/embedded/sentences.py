"""Sentences of the embedded corpus: a random grammar with spelled-out numbers, times and names.

Almost every slot is filled uniformly and independently of the others, so that neither the position
nor the context gives a word away: who transcribes it has to listen. No two words of the vocabulary
sound alike (a test asks eSpeak NG), hence no TO beside TWO and no FOR beside FOUR. The hash of a
sentence decides its split, so training and held-out texts cannot meet, whatever the seeds.
"""

import functools
import hashlib
import random
import re
from collections.abc import Iterator

_DIGITS, _TEENS, _TENS, _ORDINALS = (
    words.split()
    for words in (
        "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE",
        "TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN",
        "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY",
        "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH TENTH",
    )
)

# Slots of one word.
WORDS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "name": """ALICE BENJAMIN CAROLINE CHARLES DANIEL EDWARD ELENA FELIX GEORGE HANNAH ISABEL
            JULIA LUCAS MARTIN MICHAEL NORA OLIVER PATRICK REBECCA SAMUEL SOPHIE THOMAS VICTOR
            YASMIN""",
        "place": """AMSTERDAM ATHENS BERLIN BOSTON CANADA CHICAGO DUBLIN EGYPT GENEVA INDIA JAPAN
            KENYA LISBON LONDON MADRID MEXICO NORWAY PARIS SCOTLAND SPAIN TOKYO VENICE VIENNA
            ZURICH""",
        "colour": "BLACK BROWN GOLDEN GREEN ORANGE PINK PURPLE SILVER WHITE YELLOW",
        "adjective": """ANCIENT BROKEN CHEAP CLEVER DIRTY EMPTY FAMOUS FROZEN GENTLE HEAVY HONEST
            HUGE LAZY LITTLE LUCKY MODERN NARROW PATIENT QUIET SHARP SIMPLE STRANGE TINY YOUNG""",
        "object": """BASKET BICYCLE BLANKET BOTTLE BRIDGE BRUSH CAMERA CANDLE CARPET CHAIR CLOCK
            CURTAIN DOOR ENVELOPE FLAG GUITAR HAMMER HELMET JACKET KETTLE KNIFE LADDER LAMP LETTER
            MAP MIRROR NECKLACE PENCIL PIANO PILLOW RADIO RIBBON ROPE SHIRT SPOON SUITCASE TABLE
            TICKET TOWEL UMBRELLA VIOLIN WALLET WINDOW""",
        "animal": """BADGER BUTTERFLY CAMEL CHICKEN DOLPHIN DONKEY ELEPHANT FROG GIRAFFE KITTEN LION
            MONKEY OCTOPUS PARROT PENGUIN RABBIT SPIDER TIGER TURTLE ZEBRA""",
        "food": """APPLES BANANAS BUTTER CABBAGE CHEESE CHOCOLATE COFFEE GARLIC HONEY LEMONADE
            MUSHROOMS NOODLES ONIONS PANCAKES PEPPER POTATOES RICE SALAD SOUP SUGAR TOMATOES
            YOGURT""",
        "person": """ACTOR ARTIST BAKER CAPTAIN COUSIN DENTIST DOCTOR DRIVER ENGINEER FARMER
            GRANDFATHER JUDGE LAWYER MANAGER NEIGHBOUR PILOT POET SAILOR SISTER SOLDIER STUDENT
            TEACHER UNCLE WAITER""",
        "room": "ATTIC BATHROOM BEDROOM CELLAR GARAGE GARDEN HALLWAY KITCHEN LIBRARY OFFICE",
        "spot": """AIRPORT BAKERY BEACH CASTLE CHURCH FACTORY FOREST HARBOUR HOSPITAL HOTEL ISLAND
            MARKET MOUNTAIN MUSEUM RIVER SCHOOL STATION TUNNEL VALLEY VILLAGE""",
        # Commands that fit any object, so that the verb says nothing about the noun.
        "do": """BORROW BRING CARRY CLEAN COLLECT DELIVER DRAW EXAMINE FIND FIX FORGET HIDE IGNORE
            LIFT MEASURE MOVE PACK PAINT POLISH PROTECT PUSH REMOVE REPAIR SEND TAKE TOUCH WASH
            WRAP""",
        "did": """ADMIRED BOUGHT BROUGHT CHASED CHOSE DISCOVERED DROPPED FOLLOWED FOUND HATED
            INVENTED KEPT LOST LOVED MISSED NOTICED OWNED RESCUED SAVED SHOWED SOLD STOLE STUDIED
            TRUSTED WANTED WATCHED""",
        "went": """ARRIVED DANCED DISAPPEARED JUMPED LAUGHED LISTENED RESTED SANG SHOUTED SLEPT
            SMILED SNEEZED STUMBLED WAITED WAVED WHISPERED""",
        "adverb": """AGAIN ALONE ALWAYS CALMLY CAREFULLY EARLY EASILY FINALLY LOUDLY NEVER OFTEN
            POLITELY QUICKLY RARELY SECRETLY SLOWLY SUDDENLY TOGETHER""",
        "near": "ABOVE ACROSS AGAINST AROUND BEHIND BELOW BENEATH BESIDE INSIDE NEAR OUTSIDE PAST",
        "weekday": "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY",
        "month": """JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER
            DECEMBER""",
        "daytime": "MORNING AFTERNOON EVENING NIGHT",
        "unit": """DAYS DEGREES DOLLARS INCHES KILOMETRES METRES MILES MINUTES MONTHS POUNDS SECONDS
            YEARS""",
        "the": "THE MY YOUR THIS THAT THEIR EVERY ANOTHER",
        "hour": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE",
        "minute": "FIVE TEN TWENTY",
        "when_word": "TODAY TOMORROW TONIGHT SOON",
        "digit": " ".join(_DIGITS),
        "ordinal": " ".join(_ORDINALS),
        "weather": "CLOUDY FOGGY FREEZING RAINY SNOWY STORMY SUNNY WARM WINDY",
        "size": "HALF PART MOST PLENTY",
        "say": "HELLO GOODBYE WELCOME THANKS PLEASE SORRY",
        "whom": "HER THEM EVERYBODY SOMEONE NOBODY",
        "can": "CAN COULD SHOULD WILL MUST",
        "they": "I YOU WE THEY HE SHE",
    }.items()
}

# Slots made of words and other slots; "<number>" is spelled by number_words.
PHRASES: dict[str, tuple[str, ...]] = {
    "sentence": (
        # commands
        "<do> <thing>",
        "<do> <thing> <where>",
        "<do> <thing> <when>",
        "<adverb> <do> <thing>",
        "<do> <number> <colour> <animal>S",
        "<do> <the> <object> AND <the> <object>",
        "CALL <name> <when>",
        "CALL <name> ON <digit> <digit> <digit> <digit>",
        "DIAL <digit> <digit> <digit> <digit> <digit>",
        "SET <thing> AT <number>",
        "ADD <number> <unit> OF <food>",
        "PLAY <adjective> MUSIC IN <the> <room>",
        "REMIND <whom> ABOUT <thing> <when>",
        # statements
        "<who> <did> <thing>",
        "<who> <did> <thing> <where>",
        "<who> <adverb> <did> <thing>",
        "<who> <went> <where>",
        "<who> <went> <adverb>",
        "<name> AND <name> <went> <when>",
        "<who> <did> <number> <animal>S",
        "<who> <did> <size> OF <the> <food>",
        "<they> <can> <adverb> <do> <thing>",
        "<they> <can> <do> <food> AND <food>",
        "<the> <adjective> <animal> <did> <the> <animal>",
        "<number> <adjective> <animal>S <went> <where>",
        "<number> <unit> FROM <place>",
        "<thing> IS <number> <unit> LONG",
        "<the> <object> IS <colour> BUT <the> <object> IS <colour>",
        "IT IS <weather> IN <place> <when>",
        "IT WAS <weather> AND <weather> <where>",
        "<food> WITH <food> AND <food>",
        "<the> TRAIN FROM <place> LEAVES <when>",
        "PLATFORM <number> <when>",
        "<the> <ordinal> <person> <went>",
        "<say> <name>",
        "<say> <the> <adjective> <person> <went>",
        # questions
        "WHERE IS <thing>?",
        "WHO <did> <thing>?",
        "WHO <went> <when>?",
        "WHEN <can> <they> <do> <thing>?",
        "WHY IS <the> <object> <adjective>?",
        "HOW MANY <animal>S <did> <food>?",
        "<can> <they> <do> <thing> <when>?",
        "IS <the> <person> <adjective> OR <adjective>?",
        "WHAT IS <number> PLUS <number>?",
        "DID <name> <do> <thing>?",
        "HAVE <they> EVER SEEN <the> <colour> <animal>?",
    ),
    "thing": (
        "<the> <object>",
        "<the> <object>",
        "<the> <animal>",
        "<the> <adjective> <object>",
        "<the> <colour> <object>",
        "<name>'S <object>",
    ),
    "who": ("<name>", "<name>", "<they>", "<the> <person>", "<the> <adjective> <person>"),
    "where": (
        "IN <place>",
        "IN <the> <room>",
        "<near> <the> <spot>",
        "<near> <the> <spot>",
        "<near> <the> <object>",
        "UNDER <the> <adjective> <object>",
    ),
    "when": (
        "<when_word>",
        "ON <weekday>",
        "ON <weekday> <daytime>",
        "AT <clock>",
        "AT <clock>",
        "ON <month> <ordinal>",
        "IN <month>",
        "BEFORE <clock>",
        "AFTER <clock>",
        "EVERY <weekday>",
        "<number> <unit> AGO",
    ),
    "clock": (
        "NOON",
        "MIDNIGHT",
        "<hour>",
        "<hour>",
        "<hour> THIRTY",
        "<hour> FIFTEEN",
        "HALF PAST <hour>",
        "QUARTER PAST <hour>",
        "<minute> PAST <hour>",
        "<hour> <minute>",
    ),
}

_PLURAL = {
    "BUTTERFLYS": "BUTTERFLIES",
    "OCTOPUSS": "OCTOPUSES",
}
_SLOT = re.compile(r"<(\w+)>")


def number_words(number: int) -> str:
    """Spells 0 <= number < 1,000,000 in upper-case words, e.g. 312 -> THREE HUNDRED TWELVE."""
    if not 0 <= number < 1_000_000:
        raise ValueError(f"number {number} is outside [0, 1,000,000)")
    if number < 10:
        return _DIGITS[number]
    if number < 20:
        return _TEENS[number - 10]
    for size, word in ((1000, "THOUSAND"), (100, "HUNDRED")):
        if number >= size:
            rest = number % size
            head = f"{number_words(number // size)} {word}"
            return f"{head} {number_words(rest)}" if rest else head
    tens = _TENS[number // 10 - 2]
    return f"{tens} {_DIGITS[number % 10]}" if number % 10 else tens


def _number(rng: random.Random) -> str:
    low, high = rng.choice(((2, 10), (2, 20), (20, 100), (20, 100), (100, 1000)))
    number = rng.randrange(low, high)
    if number >= 100:  # keep it short: 350 and 4,000 rather than 347
        number = rng.choice((number // 100 * 100, number // 10 * 10, number // 100 * 1000))
    return number_words(number)


def _expand(slot: str, rng: random.Random) -> str:
    if slot == "number":
        return _number(rng)
    if slot in WORDS:
        return rng.choice(WORDS[slot])
    return _SLOT.sub(lambda match: _expand(match[1], rng), rng.choice(PHRASES[slot]))


def draw_sentence(rng: random.Random) -> tuple[str, bool]:
    """Draws one sentence: its words in [A-Z' ], and whether it is a question."""
    text = _expand("sentence", rng)
    words = [_PLURAL.get(word, word) for word in text.rstrip("?").split()]
    return " ".join(words), text.endswith("?")


def split_of(text: str) -> str:
    """The split ("train", "dev" or "test": 80, 10, 10 %) to which a text belongs, by its hash."""
    digit = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 10
    return {8: "dev", 9: "test"}.get(digit, "train")


def sentences(split: str, seed: int) -> Iterator[tuple[str, bool]]:
    """Endless sentences of a split, as `draw_sentence` gives them; the seed fixes their order."""
    if split not in ("train", "dev", "test"):
        raise ValueError(f"unknown split {split!r}: choose train, dev or test")
    rng = random.Random(f"sentences/{split}/{seed}")
    while True:
        text, question = draw_sentence(rng)
        if 2 <= text.count(" ") + 1 <= 12 and split_of(text) == split:
            yield text, question


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """All words that the grammar can produce, sorted."""
    words = set(_DIGITS) | set(_TEENS) | set(_TENS) | {"HUNDRED", "THOUSAND"}
    for options in WORDS.values():
        words.update(options)
    for template in (option for options in PHRASES.values() for option in options):
        for token in template.rstrip("?").split():
            slots = _SLOT.findall(token)
            if not slots:
                words.add(token)
            elif token != f"<{slots[0]}>":  # a word with an ending
                ending = token.partition(">")[2]
                forms = (word + ending for word in WORDS[slots[0]])
                words.update(_PLURAL.get(form, form) for form in forms)
    return tuple(sorted(words))
