"""The sentence grammar: what words it makes, how hard they are to guess, which split they go to."""

import collections
import itertools
import math
import random
import re

import pytest

from common.data.embedded import sentences


def _texts(split: str, seed: int, count: int) -> list[str]:
    return [text for text, _ in itertools.islice(sentences.sentences(split, seed), count)]


def test_number_words():
    expected = {
        0: "ZERO",
        11: "ELEVEN",
        20: "TWENTY",
        42: "FORTY TWO",
        300: "THREE HUNDRED",
        312: "THREE HUNDRED TWELVE",
        4_000: "FOUR THOUSAND",
        70_015: "SEVENTY THOUSAND FIFTEEN",
        999_999: "NINE HUNDRED NINETY NINE THOUSAND NINE HUNDRED NINETY NINE",
    }
    assert {number: sentences.number_words(number) for number in expected} == expected
    with pytest.raises(ValueError, match="outside"):
        sentences.number_words(1_000_000)


def test_sentences_have_the_promised_form():
    texts = _texts("train", 0, 3000)
    lengths = [len(text.split()) for text in texts]
    assert all(re.fullmatch(r"[A-Z']+( [A-Z']+)+", text) for text in texts)
    assert min(lengths) >= 2
    assert max(lengths) <= 12
    assert 5 <= sum(lengths) / len(lengths) <= 6
    words = {word for text in texts for word in text.split()}
    assert words <= set(sentences.vocabulary())
    assert 400 <= len(sentences.vocabulary()) <= 700


def test_every_vocabulary_word_is_said():
    words = {word for text in _texts("train", 1, 8000) for word in text.split()}
    assert words == set(sentences.vocabulary())


def test_same_seed_same_sentences():
    assert _texts("train", 3, 50) == _texts("train", 3, 50)
    assert _texts("train", 3, 50) != _texts("train", 4, 50)


def test_splits_share_no_text():
    texts = {split: set(_texts(split, 0, 1000)) for split in ("train", "dev", "test")}
    # Other seeds as well: the text alone decides.
    texts["train"] |= set(_texts("train", 1, 1000))
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert not texts["dev"] & texts["test"]
    with pytest.raises(ValueError, match="choose train, dev or test"):
        next(sentences.sentences("valid", 0))


def test_drawn_texts_split_eighty_to_ten_to_ten():
    rng = random.Random(0)
    shares = collections.Counter(
        sentences.split_of(sentences.draw_sentence(rng)[0]) for _ in range(4000)
    )
    # Three standard deviations of 4,000 draws are below 0.02.
    assert abs(shares["train"] / 4000 - 0.8) < 0.02
    assert abs(shares["dev"] / 4000 - 0.1) < 0.02


def test_no_language_model_guesses_them():
    """An interpolated bigram model trained on 4,000 sentences stays above 30 words perplexity."""
    pairs, words = collections.Counter(), collections.Counter()
    vocabulary = len(sentences.vocabulary()) + 1

    def tokens(text):
        return ["<s>", *text.split(), "</s>"]

    for text in _texts("train", 0, 4000):
        row = tokens(text)
        pairs.update(itertools.pairwise(row))
        words.update(row[1:])
    total = sum(words.values())
    contexts = collections.Counter()
    for (left, _), count in pairs.items():
        contexts[left] += count
    bits, count = 0.0, 0
    for text in _texts("test", 0, 500):
        for left, right in itertools.pairwise(tokens(text)):
            unigram = 0.95 * words[right] / total + 0.05 / vocabulary
            bigram = pairs[left, right] / contexts[left] if contexts[left] else 0.0
            bits -= math.log2(0.8 * bigram + 0.2 * unigram)
            count += 1
    assert 2 ** (bits / count) > 30
