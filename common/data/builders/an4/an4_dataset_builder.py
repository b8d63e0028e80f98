"""Builder of AN4 in ArrayRecord files: int16 samples, transcript, speaker (see README.md here)."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from etils import epath

from common.data import manifest, records

_SAMPLE_RATE_HZ = 16_000
_DEV_SIZE = 100
_SUFFIXES = (".sph", ".raw", ".wav")
_PARTS = {"train": ("an4_train", "an4_clstk"), "test": ("an4_test", "an4test_clstk")}
# "<s> YES </s> (an251-fash-b)"; the test file writes no <s>.
_TRANSCRIPTION = re.compile(r"^(?:<s>)?\s*(?P<text>.*?)\s*(?:</s>)?\s*\((?P<file>[^()]+)\)$")


class Builder(tfds.core.GeneratorBasedBuilder):
    """AN4; an example is {"audio" int16[t], "sample_rate", "text", "speaker", "id"}."""

    # tfds 4.9.10 looks this up with importlib_resources, which it installs only before Python 3.9.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - tfds reads a class attribute
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack AN4 from http://www.speech.cs.cmu.edu/databases/an4/ into the manual folder, or "
        "lay a manifest an4.tsv there."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    # Not features.Audio, which needs TensorFlow; as bytes, because numbers are
                    # stored as 64-bit integers of variable length, three times the size.
                    "audio": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
                    ),
                    "sample_rate": np.int32,
                    "text": tfds.features.Text(),
                    "speaker": tfds.features.Text(),
                    "id": tfds.features.Text(),
                }
            ),
            homepage="http://www.speech.cs.cmu.edu/databases/an4/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        splits = read_splits(pathlib.Path(dl_manager.manual_dir))
        return {name: self._generate_examples(rows) for name, rows in splits.items()}

    def _generate_examples(
        self, rows: Mapping[str, records.Record]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, record in rows.items():
            yield (
                key,
                {
                    "audio": read_int16(pathlib.Path(record["audio"])),
                    "sample_rate": _SAMPLE_RATE_HZ,
                    "text": record.get("text", ""),
                    "speaker": record.get("speaker", ""),
                    "id": key,
                },
            )


def read_splits(folder: pathlib.Path) -> dict[str, dict[str, records.Record]]:
    """Split name -> {id: record} from either layout; raises records.DataError if it is neither."""
    if (folder / "an4.tsv").is_file():
        return _read_tsv(folder / "an4.tsv")
    folder = folder / "an4" if (folder / "an4" / "etc").is_dir() else folder
    if not (folder / "etc" / "an4_train.transcription").is_file():
        raise records.DataError(
            f"{folder} holds neither an4.tsv nor etc/an4_train.transcription. "
            + Builder.MANUAL_DOWNLOAD_INSTRUCTIONS
        )
    train = _read_part(folder, "train")
    dev = sorted(train)[:_DEV_SIZE]
    splits = {
        "train": {key: train[key] for key in sorted(train)[_DEV_SIZE:]},
        "dev": {key: train[key] for key in dev},
    }
    if (folder / "etc" / "an4_test.transcription").is_file():
        splits["test"] = _read_part(folder, "test")
    return {name: rows for name, rows in splits.items() if rows}


def read_int16(path: pathlib.Path) -> np.ndarray:
    """The int16 samples of an AN4 file; raises records.DataError if it is not 16 kHz, mono."""
    if path.suffix == ".raw":
        # CMU distributes headerless samples in both byte orders. The wrong one is noise at full
        # scale, so the true one is that in which neighbouring samples differ less.
        data = path.read_bytes()
        readings = [np.frombuffer(data, order).astype(np.int16) for order in ("<i2", ">i2")]
        return min(readings, key=lambda s: np.abs(np.diff(s.astype(np.int32))).sum())
    try:
        samples, rate = soundfile.read(path, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise records.DataError(f"{path} cannot be decoded ({error}).") from error
    if rate != _SAMPLE_RATE_HZ or samples.ndim != 1:
        raise records.DataError(
            f"{path} has {rate} Hz and shape {samples.shape}; AN4 is {_SAMPLE_RATE_HZ} Hz, mono."
        )
    return samples


def _read_part(folder: pathlib.Path, part: str) -> dict[str, records.Record]:
    """{speaker-utterance: record} of the train or test part of the distributed corpus."""
    name, clips = _PARTS[part]
    transcripts = folder / "etc" / f"{name}.transcription"
    rows = {}
    for number, line in enumerate(transcripts.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = _TRANSCRIPTION.match(line.strip())
        if not match or len(match["file"].split("-")) != 3:
            raise records.DataError(
                f"{transcripts}, line {number}: expected TEXT (utterance-speaker-b), got {line!r}."
            )
        utterance, speaker, _ = match["file"].split("-")
        stem = folder / "wav" / clips / speaker / match["file"]
        audio = next((p for s in _SUFFIXES if (p := stem.with_suffix(s)).is_file()), None)
        if audio is None:
            raise records.DataError(
                f"{transcripts}, line {number}: there is no {stem} ({', '.join(_SUFFIXES)}). "
                "Unpack the archive again."
            )
        key = f"{speaker}-{utterance}"
        rows[key] = {"id": key, "audio": str(audio), "speaker": speaker, "text": match["text"]}
    return rows


def _read_tsv(path: pathlib.Path) -> dict[str, dict[str, records.Record]]:
    """Splits by the manifest's own column."""
    first = manifest.read_manifest(path)[0]
    relative = pathlib.Path(first["audio"]).relative_to(path.parent)
    root = next((p for p in path.absolute().parents if (p / relative).is_file()), path.parent)
    splits = {}
    for split in ("train", "dev", "test"):
        try:
            rows = manifest.read_manifest(path, root=root, where={"split": split})
        except records.DataError as error:
            if "none of" not in str(error):
                raise
            continue
        splits[split] = {record["id"]: record for record in rows}
    return splits
