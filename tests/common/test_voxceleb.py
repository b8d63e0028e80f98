"""VoxCeleb trees and lists: ids as in the trial lists, any format, what is missing."""

import numpy as np
import pytest
import soundfile

from common.data import indexing, records, splits, voxceleb

RATE_HZ = 16000
FILES = {
    "vox1/dev/wav": ("id10001/Y8hIVOBuels/00001.wav", "id10001/1zcIwhmdeo4/00002.wav"),
    "vox1/test/wav": ("id10270/x6uYqmx31kE/00001.wav", "id10270/8jEAjG6SegY/00008.wav"),
    "vox2/dev/aac": ("id00012/21Uxsk56VDQ/00001.flac",),
}


@pytest.fixture
def root(tmp_path):
    for subset, names in FILES.items():
        for number, name in enumerate(names):
            path = tmp_path / subset / name
            path.parent.mkdir(parents=True)
            samples = np.random.default_rng(number).normal(size=RATE_HZ // 4) * 0.1
            soundfile.write(path, samples, RATE_HZ)
    (tmp_path / "vox1" / "dev" / "vox1_meta.csv").write_text("VoxCeleb1 ID\n")
    (tmp_path / "vox1" / "dev" / "wav" / "README").write_text("not a speaker\n")
    return tmp_path


def ids(source):
    return [record["id"] for record in source]


def test_subsets_are_read_sorted_with_the_ids_of_the_trial_lists(root):
    source = voxceleb.read_tree(root, ["vox1/test/wav", "vox2/dev/aac"])
    assert ids(source) == [
        "id10270/8jEAjG6SegY/00008.wav",
        "id10270/x6uYqmx31kE/00001.wav",
        "id00012/21Uxsk56VDQ/00001.wav",
    ]
    assert [record["speaker"] for record in source] == ["id10270", "id10270", "id00012"]
    assert source[2]["audio"] == str(root / "vox2/dev/aac/id00012/21Uxsk56VDQ/00001.flac")
    # The first line of veri_test.txt.
    _, enrol, test = ["1", "id10270/x6uYqmx31kE/00001.wav", "id10270/8jEAjG6SegY/00008.wav"]
    assert {enrol, test} < set(ids(source))


def test_the_published_tables_tell_the_gender(root):
    names = ["vox1/dev/wav", "vox1/test/wav", "vox2/dev/aac"]
    assert not any("gender" in record for record in voxceleb.read_tree(root, names))
    head = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    rows = "id10001\tA.J._Buckley\tm\tIreland\tdev\nid10270\tEartha_Kitt\t?\tUSA\ttest\n"
    (root / "vox1_meta.csv").write_text(head + rows)
    lines = ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", "id00012 ,n000012 ,f ,dev "]
    (root / "vox2_meta.csv").write_text("\n".join(lines) + "\n")
    found = voxceleb.read_tree(root, names)
    assert [record.get("gender") for record in found] == ["m", "m", None, None, "f"]
    (root / "pairs.csv").write_text("speaker,folder\nid10001,A.J._Buckley\n")
    assert voxceleb.read_genders(root / "pairs.csv") == {}


def test_the_inner_folder_of_an_archive_need_not_be_named(root):
    for outer, inner in (("vox1/dev", "vox1/dev/wav"), ("vox2/dev", "vox2/dev/aac")):
        found = voxceleb.read_tree(root, [outer])
        assert list(found) == list(voxceleb.read_tree(root, [inner]))


def test_they_are_a_source_of_the_config(root, tmp_path):
    config = splits.default_config()
    config.update({"kind": "voxceleb", "root": str(root)})
    source = splits.open_source(config, ("vox1/dev/wav", "vox1/test/wav"))
    index = indexing.build_index(
        source,
        cache=None,
        rejected_tsv=tmp_path / "rejected.tsv",
        sample_rate_hz=RATE_HZ,
        min_seconds=0.1,
        max_seconds=1.0,
        require_text=False,
        max_bad_share=0.0,
        num_workers=1,
        progress=False,
    )
    np.testing.assert_allclose(index.seconds, 4 * [0.25])


def test_lists_choose_recordings(root):
    starts = "vox1/dev/wav, vox1/test/wav"
    lines = [
        "3 id10270/x6uYqmx31kE/00001.wav",
        "1 id10001/Y8hIVOBuels/00001.wav",
        "1 id10001/1zcIwhmdeo4/00002.wav",
        "2 id10001/1zcIwhmdeo4/00003.wav",
    ]
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n")
    source = voxceleb.read_tree(root, ["iden_split.txt:1"], audio_root=starts)
    assert ids(source) == ["id10001/Y8hIVOBuels/00001.wav", "id10001/1zcIwhmdeo4/00002.wav"]
    source = voxceleb.read_tree(root, ["iden_split.txt:3"], audio_root=starts)
    path = root / "vox1/test/wav/id10270/x6uYqmx31kE/00001.wav"
    assert [record["audio"] for record in source] == [str(path)]
    missing = voxceleb.read_tree(root, ["iden_split.txt:2"], audio_root=starts)
    assert missing[0]["audio"] == str(root / "vox1/dev/wav/id10001/1zcIwhmdeo4/00003.wav")

    # The lists of VoxCeleb2 name what was unpacked; here it is FLAC.
    (root / "train_list.txt").write_text("id00012 id00012/21Uxsk56VDQ/00001.wav\n")
    (root / "plain.txt").write_text("vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a\n\n")
    first = voxceleb.read_tree(root, ["train_list.txt"], audio_root="vox2/dev/aac")
    second = voxceleb.read_tree(root, ["plain.txt"])
    assert list(first) == list(second)
    assert first[0] == {
        "id": "id00012/21Uxsk56VDQ/00001.wav",
        "audio": str(root / "vox2/dev/aac/id00012/21Uxsk56VDQ/00001.flac"),
        "speaker": "id00012",
    }


def test_m4a_is_read_where_nothing_better_lies_beside_it(root):
    folder = root / "vox2/dev/aac/id00012/21Uxsk56VDQ"
    (folder / "00001.m4a").touch()  # beside its FLAC
    (folder / "00002.m4a").touch()
    found = [record["audio"] for record in voxceleb.read_tree(root, ["vox2/dev/aac"])]
    assert found == [str(folder / "00001.flac"), str(folder / "00002.m4a")]
    (root / "list.txt").write_text("id00012/21Uxsk56VDQ/00002.wav\n")
    (record,) = voxceleb.read_tree(root, ["list.txt"], audio_root="vox2/dev/aac")
    assert record["audio"] == str(folder / "00002.m4a")


def test_suffixes_in_capitals_and_hidden_names(root):
    folder = root / "vox2/dev/aac/id00012/21Uxsk56VDQ"
    (folder / "00001.flac").rename(folder / "00001.FLAC")
    (folder / "._00001.FLAC").write_bytes(b"of a Mac")
    (folder.parent / ".trash").mkdir()
    (folder.parent / ".trash" / "00003.flac").touch()
    found = [record["audio"] for record in voxceleb.read_tree(root, ["vox2/dev/aac"])]
    assert found == [str(folder / "00001.FLAC")]
    (root / "list.txt").write_text("id00012/21Uxsk56VDQ/00001.wav\n")
    (record,) = voxceleb.read_tree(root, ["list.txt"], audio_root="vox2/dev/aac")
    assert record["audio"] == str(folder / "00001.FLAC")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("l.txt", "1 id1/a/1.wav id2/b/2.wav", r"l.txt, line 1: .*list of trials belongs to"),
        ("l.txt", "00001.wav", r"l.txt, line 1: '00001.wav' is not a path"),
        ("l.txt", "1 id1/a/1.wav", r"Say which one: l.txt:1 \(1 train"),
        ("l.txt:1", "id1/a/1.wav", r"does not begin with the number of a part; name the list"),
        ("l.txt:4", "1 id1/a/1.wav\n2 id1/a/1.wav", r"lists nothing as 4; its parts are 1, 2"),
        ("l.txt", "\n", "lists nothing"),
    ],
)
def test_damaged_lists_are_named(root, name, line, message):
    (root / "l.txt").write_text(line + "\n")
    with pytest.raises(records.DataError, match=message):
        voxceleb.read_tree(root, [name])


def test_missing_folders_say_what_there_is(root):
    with pytest.raises(records.DataError, match=r"There is no folder .*nowhere"):
        voxceleb.read_tree(root / "nowhere", ["vox1"])
    with pytest.raises(records.DataError, match=r"below .*: vox1/dev/wav, vox1/test/wav, vox2"):
        voxceleb.read_tree(root, ["vox1"])
    with pytest.raises(records.DataError, match=r"neither a list nor .*: none\."):
        voxceleb.read_tree(root / "vox1/dev/wav/id10001", ["x"])
    with pytest.raises(records.DataError, match=r"There is no folder .*wave. Mend"):
        voxceleb.read_tree(root, ["vox1/dev/wav"], audio_root="wave")
