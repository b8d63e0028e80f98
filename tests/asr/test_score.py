"""Scores of one's own transcripts: forms of files, ids that miss, speakers, the table."""

import csv

import pytest

from asr import score
from common import errors

REFERENCES = {"a": "ONE TWO", "b": "CAT SAT DOWN", "c": "", "d": "OH YES"}


def written(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


FORMS = {
    "kaldi": "a ONE TWO\nb  CAT SAT DOWN\nc\n\nd\tOH YES\n",
    "trn": "ONE TWO (a)\nCAT SAT DOWN (b)\n(c)\nOH YES (d)\n",
    "txt": "x/a.wav\t1.20\tONE TWO\nb.flac\t2.00\tCAT SAT DOWN\nc.wav\t0.50\t\nd.mp3\t1.00\tOH YES",
    "tsv": "file\tstart\tend\tconfidence\ttext\nx/a.wav\t0.00\t1.00\t0.900\tONE\n"
    "x/a.wav\t1.50\t2.00\t0.800\tTWO\nb.flac\t0.00\t2.00\t0.700\tCAT SAT DOWN\n"
    "c.wav\t0.00\t0.50\t\t\nd.mp3\t0.00\t1.00\t0.900\tOH YES\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_texts(tmp_path, form):
    assert score.read_transcripts(written(tmp_path / form, FORMS[form])) == REFERENCES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a ONE\nb TWO\na ONE\n", "line 3: 'a' was there before"),
        ("ONE (a)\nTWO (a)\n", "line 2: 'a' was there before"),
        ("x/a.wav\t1.00\tONE\ny/a.wav\t1.00\tTWO\n", "line 2: 'a' was there before"),
        ("file\tstart\tend\tconfidence\ttext\nx/a.wav\t0\t1\tONE\n", "line 2: 4 fields"),
        (
            "file\tstart\tend\tconfidence\ttext\nx/a.wav\t0\t1\t1\tA\ny/a.wav\t0\t1\t1\tB\n",
            "x/a.wav and y/a.wav have the same id",
        ),
        ("", "is empty"),
        ("file\tstart\tend\tconfidence\ttext\n", "is empty"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path, text, words):
    with pytest.raises(errors.UserError, match=words):
        score.read_transcripts(written(tmp_path / "t", text))


@pytest.mark.usefixtures("command")
def test_errors_ids_that_miss_speakers_and_the_table(tmp_path, capsys):
    """By hand: b one substitution, c one insertion, d two deletions: 4 errors of 7 words."""
    references = written(tmp_path / "dev" / "text", FORMS["kaldi"])
    written(tmp_path / "dev" / "utt2spk", "a s1\nb s1\nc s2\nd s2\n")
    hypotheses = written(tmp_path / "hyp", "a one two\nb cat sat town\nc oh\ne no\n")
    out = tmp_path / "new" / "errors.tsv"
    score.main([str(references), str(hypotheses), "--case=upper", f"--out={out}"])
    # Letters: D>T, "OH", "OH YES"; 7 + 12 + 0 + 6 of the references. Drawn speakers: s1 alone has
    # one error in five words, s2 alone three in two.
    assert capsys.readouterr().out.splitlines() == [
        "WER 57.14 % [20.00, 150.00 over 2 speakers] (4/7: 1 subs, 1 ins, 2 dels)",
        "CER 36.00 % (9/25: 1 subs, 2 ins, 6 dels)",
        "  4 of 4 utterances scored",
        "  1 without hypothesis, all deletions: d",
        "  1 without reference, not scored: e",
    ]
    with out.open() as file:
        rows = {row["id"]: row["alignment"] for row in csv.DictReader(file, delimiter="\t")}
    assert rows == {
        "a": "ONE TWO",
        "b": "CAT SAT [DOWN>TOWN]",
        "c": "[>OH]",
        "d": "[OH>] [YES>]",
    }


@pytest.mark.usefixtures("command")
def test_a_second_system_is_compared_on_the_same_words(tmp_path, capsys):
    """s1 has one error in five words and then none, s2 three in two and then four."""
    references = written(tmp_path / "dev" / "text", FORMS["kaldi"])
    written(tmp_path / "dev" / "utt2spk", "a s1\nb s1\nc s2\nd s2\n")
    one = written(tmp_path / "one", "a ONE TWO\nb CAT SAT TOWN\nc OH\n")
    two = written(tmp_path / "two", "a ONE TWO\nb CAT SAT DOWN\nc OH OH\nd\n")
    out = tmp_path / "errors.tsv"
    score.main([str(references), str(one), f"--against={two}", f"--out={out}"])
    said = capsys.readouterr().out.splitlines()
    # Drawn are s1 twice (-1 of 5 words), s2 twice (+1 of 2) or both (0 of 7).
    assert said[0] == f"{one}:"
    assert said[1].startswith("WER 57.14 %")
    assert said[5] == f"{two}:"
    assert said[-2] == f"{two} less {one}:"
    assert said[-1].startswith("WER +0.00 % [-20.00, 50.00 over 2 speakers], lower in 2")
    assert "TOWN" in out.read_text()


@pytest.mark.usefixtures("command")
def test_files_without_a_common_id_are_one_message(tmp_path):
    paths = [written(tmp_path / name, f"{name} ONE\n") for name in ("a", "b")]
    with pytest.raises(SystemExit, match=r"no id in common: a and b come first"):
        score.main(list(map(str, paths)))
