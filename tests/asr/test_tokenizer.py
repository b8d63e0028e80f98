"""Tokenizers: round trips, blank at 0, the same bytes in any order, and every refusal's message."""

import json
import pickle
import random
import re

import numpy as np
import pytest

from asr import tokenizer

WORDS = [
    *("turn", "on", "the", "kitchen", "light", "and", "call", "anna"),
    *("at", "seven", "o'clock", "tomorrow", "please", "stop"),
]
KINDS = ("char", "unigram", "bpe")


def corpus(n=300, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(n)]


def make(kind, vocab_size=36, case="keep", folder=None, texts=None):
    config = tokenizer.TokenizerConfig(kind, vocab_size, case)
    return tokenizer.train_tokenizer(corpus() if texts is None else texts, config, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_blank_and_sizes(kind):
    made = make(kind)
    assert made.pieces[:2] == (tokenizer.BLANK, tokenizer.UNKNOWN)
    assert made.vocab_size == len(made.pieces)
    if kind != "char":
        assert made.vocab_size == 36
    for text in corpus(50, seed=1):
        ids = made.encode(text)
        assert all(1 < i < made.vocab_size for i in ids)
        assert made.decode(ids) == text
        blanks = [i for label in ids for i in (0, label, 0)]
        assert made.decode(blanks) == text
    assert made.encode("") == made.encode(" \t ") == []
    assert made.decode([]) == ""
    assert made.decode(np.array([0, 0], np.int32)) == ""
    with pytest.raises(ValueError, match=r"label id 999 is outside .* vocabulary of"):
        made.decode([2, 999])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_spell_their_pieces(kind):
    """The shift by one, seen from outside: the pieces of the ids put together are the text."""
    made = make(kind)
    pieces = [made.pieces[i] for i in made.encode("call anna tomorrow")]
    assert "".join(pieces).replace("▁", " ").strip() == "call anna tomorrow"


@pytest.mark.parametrize("kind", KINDS)
def test_same_texts_in_any_order_give_the_same_bytes(kind, tmp_path):
    texts = corpus()
    shuffled = random.Random(5).sample(texts, len(texts))
    one = make(kind, folder=tmp_path / "one", texts=texts)
    two = make(kind, folder=tmp_path / "two", texts=iter(shuffled))
    assert one == two
    assert one.digest == two.digest
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == (["tokenizer.json"] if kind == "char" else [tokenizer._MODEL, tokenizer._JSON])
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_pickled(kind, tmp_path):
    made = make(kind, folder=tmp_path, case="upper")
    made.encode("warm the caches, which must not travel")
    for other in (tokenizer.load_tokenizer(tmp_path), pickle.loads(pickle.dumps(made))):
        assert other == made
        assert other.digest == made.digest
        assert other.encode("Turn  on the light") == made.encode("TURN ON THE LIGHT")
        assert other.decode(other.encode("turn on")) == "TURN ON"
    facts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert facts["sha256"] == made.digest
    assert facts["vocabulary"] == list(made.pieces)


def test_second_run_reads_the_folder_and_not_the_texts(tmp_path):
    first = make("unigram", folder=tmp_path)

    def never():
        raise AssertionError("the texts were read")
        yield

    assert make("unigram", folder=tmp_path, texts=never()) == first
    for changed in (("unigram", 35, "keep"), ("bpe", 36, "keep"), ("unigram", 36, "lower")):
        with pytest.raises(tokenizer.TokenizerError, match=r"tokenizer in .* has .*\(config: "):
            make(*changed, folder=tmp_path, texts=never())
    characters = make("char", 0, folder=tmp_path / "char")
    # A limit that the text did not reach is no difference.
    assert make("char", 500, folder=tmp_path / "char", texts=never()) == characters


def test_unknown_characters_and_empty_texts_are_counted_and_named():
    for kind in KINDS:
        made = make(kind)
        ids = made.encode("caét")
        assert ids.count(tokenizer.UNKNOWN_ID) == 1
        assert tokenizer.UNKNOWN_SURFACE in made.decode(ids)
        found = made.coverage(["on", "", "é é", "Z stop"])
        assert (found.texts, found.empty, found.unknown) == (4, 1, {"é": 2, "Z": 1})
        assert "'é' (U+00E9) x 2, 'Z' (U+005A) x 1" in found.message
        assert "1 texts are empty" in found.message
        assert made.coverage(["turn on"]).message == ""


def test_char_keeps_the_most_frequent():
    made = make("char", 4, texts=["aaa bbb c", "ab"])
    assert made.pieces == (tokenizer.BLANK, tokenizer.UNKNOWN, "a", "b")
    assert made.encode("abc") == [2, 3, 1]
    with pytest.raises(tokenizer.TokenizerError, match="use 6 for all"):
        make("char", 2, texts=["aaa bbb c", "ab"])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_impossible_sizes_name_one_that_works(kind, capfd):
    for size in (10_000, 5):
        with pytest.raises(tokenizer.TokenizerError, match=f"vocab_size={size}") as refused:
            make(kind, size)
        possible = int(re.search(r"at (?:most|least) (\d+)", str(refused.value))[1])
        assert make(kind, possible).vocab_size == possible
        beyond = possible + 1 if size == 10_000 else possible - 1
        with pytest.raises(tokenizer.TokenizerError):
            make(kind, beyond)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""  # sentencepiece is silent


@pytest.mark.parametrize("kind", KINDS)
def test_no_text(kind, tmp_path):
    for texts in ([], ["", "  "]):
        with pytest.raises(tokenizer.TokenizerError, match="no text to learn from"):
            make(kind, texts=texts, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_long_sentences_are_not_skipped():
    """sentencepiece passes over sentences above 4,192 bytes without a word, by default."""
    made = make("bpe", 12, texts=["ab ba " * 3000 + "q", "ab"])
    assert made.coverage(["q"]).message == ""


def test_digest_mismatch_names_both():
    one, two = make("char", texts=["ab"]), make("char", texts=["abc"])
    one.check_digest(one.digest)
    with pytest.raises(tokenizer.TokenizerError, match="work directory") as refused:
        one.check_digest(two.digest)
    assert one.digest[:12] in str(refused.value)
    assert two.digest[:12] in str(refused.value)


def test_damaged_or_missing_folder(tmp_path):
    with pytest.raises(tokenizer.TokenizerError, match=r"tokenizer\.json is missing"):
        tokenizer.load_tokenizer(tmp_path)
    make("bpe", folder=tmp_path)
    description = tmp_path / "tokenizer.json"
    good = description.read_text(encoding="utf-8")
    description.write_text(good.replace('"keep"', '"upper"'), encoding="utf-8")
    with pytest.raises(tokenizer.TokenizerError, match="damaged or was edited"):
        tokenizer.load_tokenizer(tmp_path)
    description.write_text(good[:40], encoding="utf-8")
    with pytest.raises(tokenizer.TokenizerError, match="is damaged"):
        tokenizer.load_tokenizer(tmp_path)
    description.write_text(good, encoding="utf-8")
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(tokenizer.TokenizerError, match=r"sentencepiece\.model is missing"):
        tokenizer.load_tokenizer(tmp_path)


def test_normalize():
    assert tokenizer.normalize("  It\u2019s\u00a0a ﬁne\tday ", "upper") == "IT'S A FINE DAY"
    assert tokenizer.normalize("É", "lower") == "é"
    assert tokenizer.normalize("Mixed Case") == "Mixed Case"
    assert tokenizer.normalize("e\u0301") == "é"


def test_an4(speech_data):
    """All 848 training transcripts come back, at the size that public AN4 recipes use."""
    lines = (speech_data / "sentences/an4/an4.tsv").read_text(encoding="utf-8").splitlines()
    header, *rows = [line.split("\t") for line in lines]
    records = [dict(zip(header, row)) for row in rows]
    texts = [r["text"] for r in records if r["split"] == "train"]
    assert len(texts) == 848
    made = make("unigram", 64, case="lower", texts=texts)
    assert [made.decode(made.encode(t)) for t in texts] == [made.normalize(t) for t in texts]
    assert made.coverage(r["text"] for r in records).message == ""
