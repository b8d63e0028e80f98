"""Data sets prepared by tensorflow_datasets in ArrayRecord files, read without TensorFlow.

`tfds.data_source` does that too, unless a feature is `tfds.features.Audio`, which needs TensorFlow
as soon as it is constructed; LibriSpeech has one. An Audio feature is stored as plain integers (or,
with lazy_decode, as the bytes of an audio file), so here the stored description of the features is
read with a Tensor (or bytes) in its place, and records are parsed by NumPy.
"""

import argparse
import functools
import hashlib
import importlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Num

from common.audio import io as audio_io
from common.data import records

# Field of the record -> the feature names under which well-known data sets keep it.
_USUAL_FEATURES = {
    "audio": ("audio", "speech"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "id": ("id", "utterance_id"),
    "sample_rate": ("sample_rate", "sample_rate_hz"),
}
# Data set -> features that only there mean the field: a label is a word or a digit elsewhere.
_OWN_FEATURES = {"voxceleb": {"speaker": "label"}}


class TfdsExamples:
    """Random access to the examples of one split of a prepared data set, decoded by its features.

    Args:
      directory: the prepared data set, the folder with dataset_info.json, for instance
        `~/tensorflow_datasets/librispeech/default/2.1.1`; or a folder above it with one such below.
      split: as in tfds, "train" or "train[:10%]".

    `sample_rate_hz` is that of an Audio feature, if there is one. Raises records.DataError: no
    prepared data set there, not ArrayRecord, unknown split.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        self.directory = find_prepared(directory)
        self.split = split
        self.name = f"{self.directory} ({split})"
        self._files = _file_instructions(self.directory, split)
        self.features, self.sample_rate_hz = _read_features(self.directory)

    def __len__(self) -> int:
        return sum(instruction.take for instruction in self._files)

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        return self.features.deserialize_example_np(self._reader[position])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_reader"}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when the files of the split do."""
        seen = [(i.filename, i.skip, i.take, _status(i.filename)) for i in self._files]
        return "tfds:" + hashlib.sha256(repr(seen).encode()).hexdigest()[:32]

    @property
    def contents(self) -> str:
        """As `fingerprint`, but the same for every copy of the files."""
        paths = [(pathlib.Path(i.filename), i.skip, i.take) for i in self._files]
        seen = [(path.name, path.stat().st_size, *part) for path, *part in paths]
        return "tfds:" + hashlib.sha256(repr(seen).encode()).hexdigest()[:32]

    # Open files do not travel to worker processes: each opens its own at the first record.
    @functools.cached_property
    def _reader(self) -> Any:
        from array_record.python import array_record_data_source

        return array_record_data_source.ArrayRecordDataSource(self._files)


class TfdsSource(TfdsExamples):
    """The recordings of one split (`TfdsExamples`) as records, which hold int16 samples.

    Raises records.DataError also for one without audio or sampling rate.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        super().__init__(directory, split)
        own = _OWN_FEATURES.get(_data_set_name(self.directory), {})
        self._columns = _choose_features(self.name, list(self.features), own)
        if "sample_rate" not in self._columns and not self.sample_rate_hz:
            raise records.DataError(
                f"{self.name} does not state a sampling rate, by an Audio feature or one called "
                "sample_rate. Build it with one, or list its files in a manifest."
            )

    def __getitem__(self, position: int) -> records.Record:
        example = super().__getitem__(position)
        value = {field: example.get(column) for field, column in self._columns.items()}
        samples, rate = _samples(self.name, value["audio"])
        record = {
            "id": _text(value["id"]) if "id" in value else f"{self.split}-{position:07d}",
            "audio": samples,
            "sample_rate": int(rate or value.get("sample_rate") or self.sample_rate_hz),
        }
        for field in ("text", "speaker"):
            if value.get(field) not in (None, b"", ""):
                names = getattr(self.features[self._columns[field]], "names", None)
                if names and value[field] < 0:  # tfds' sign for "unknown"
                    continue
                record[field] = names[value[field]] if names else _text(value[field])
        return record


def prepare(
    builder_class: type, source: str | os.PathLike, data_dir: str | os.PathLike
) -> pathlib.Path:
    """Runs one of our builders on the files in `source`; returns the folder for `TfdsSource`.

    `tfds build` does the same, but its command line needs TensorFlow. A data set that is there
    already is left as it is.
    """
    import tensorflow_datasets as tfds

    source = pathlib.Path(source).expanduser()
    if not source.is_dir() or not any(source.iterdir()):
        raise records.DataError(
            f"The folder {source} is missing or empty. {builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    builder = builder_class(data_dir=os.fspath(data_dir), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=os.fspath(source))
    builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_dir)


def find_prepared(directory: str | os.PathLike) -> pathlib.Path:
    """The folder with dataset_info.json, at `directory` or at one place below it."""
    directory = pathlib.Path(directory).expanduser()
    if (directory / "dataset_info.json").is_file():
        return directory
    # data_dir/name/version or data_dir/name/config/version; tfds builds in folders *.incomplete*.
    found = [
        path.parent
        for depth in ("*", "*/*", "*/*/*")
        for path in sorted(directory.glob(f"{depth}/dataset_info.json"))
        if "incomplete" not in str(path.parent.relative_to(directory))
    ]
    if not found:
        raise records.DataError(
            f"{directory} holds no data set prepared by tfds (no dataset_info.json). Prepare one, "
            "where TensorFlow is installed, by `tfds build <name> --file_format=array_record "
            "--data_dir=DIR`, or AN4 here by `python -m common.data.tfds an4`."
        )
    if len(found) > 1:
        raise records.DataError(
            f"{directory} holds several data sets, name one: {', '.join(map(str, found))}."
        )
    return found[0]


def _file_instructions(directory: pathlib.Path, split: str) -> list[Any]:
    """The pieces of the record files that make up a split."""
    from tensorflow_datasets.core import dataset_info, naming, splits

    proto = dataset_info.read_proto_from_builder_dir(directory)
    if proto.file_format != "array_record":
        raise records.DataError(
            f"{directory} is stored as {proto.file_format or 'tfrecord'}, which has no random "
            "access. Convert it once, where TensorFlow is installed, by `tfds "
            f"convert_format --root_data_dir={directory} --out_file_format=array_record ...`, or "
            "build it with --file_format=array_record."
        )
    template = naming.ShardedFileTemplate(
        dataset_name=proto.name, data_dir=directory, filetype_suffix=proto.file_format
    )
    stored = splits.SplitDict.from_proto(proto.splits, template)
    try:
        files = stored[split].file_instructions
    except (KeyError, ValueError) as error:
        names = ", ".join(stored.keys()) or "none (it is empty)"
        raise records.DataError(f"{directory} has no split {split!r}; it has {names}.") from error
    missing = [i.filename for i in files if not pathlib.Path(i.filename).is_file()]
    if missing:
        raise records.DataError(
            f"{directory} ({split}): {len(missing)} of {len(files)} record files are missing, "
            f"{missing[0]} first. Copy the data set again."
        )
    return files


def _data_set_name(directory: pathlib.Path) -> str:
    from tensorflow_datasets.core import dataset_info

    return dataset_info.read_proto_from_builder_dir(directory).name


def _read_features(directory: pathlib.Path) -> tuple[Any, int | None]:
    """The tfds features, and the sampling rate that an Audio feature among them states."""
    import tensorflow_datasets as tfds

    path = directory / "features.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise records.DataError(f"{path} cannot be read: {error}. Prepare it again.") from error
    rates = []
    features = tfds.features.FeatureConnector.from_json(_without_audio(content, rates))
    features.load_metadata(directory, feature_name=None)  # the names of ClassLabels
    return features, next((rate for rate in rates if rate), None)


def _without_audio(node: Any, rates: list[int]) -> Any:
    """The JSON description of features with the stored form in place of each Audio feature."""
    if not isinstance(node, dict):
        return node
    if node.get("pythonClassName", "").endswith(".Audio"):
        audio = node["audio"]
        rates.append(int(audio.get("sampleRate", 0)))
        if audio.get("lazyDecode"):
            tensor = {"shape": {}, "dtype": "string", "encoding": "none"}
        else:
            encoding = audio.get("encoding") or "none"
            tensor = {"shape": audio["shape"], "dtype": audio["dtype"], "encoding": encoding}
        name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
        return {"pythonClassName": name, "tensor": tensor}
    return {key: _without_audio(value, rates) for key, value in node.items()}


def _choose_features(name: str, present: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """Record field -> feature, for the fields that the data set has."""
    found = {}
    for field, usual in _USUAL_FEATURES.items():
        feature = own.get(field) or next((f for f in usual if f in present), None)
        if feature:
            found[field] = feature
    if "audio" not in found:
        raise records.DataError(
            f"{name} has no audio among its features {', '.join(present)}; call it one of "
            f"{', '.join(_USUAL_FEATURES['audio'])}."
        )
    return found


def _samples(name: str, stored: Any) -> tuple[Num[np.ndarray, "t *d"], int | None]:
    """int16 or f32 samples from what an example holds, and the rate if the stored file says it."""
    if isinstance(stored, bytes):  # lazy_decode: a whole audio file
        try:
            return soundfile.read(io.BytesIO(stored), dtype="int16")
        except soundfile.LibsndfileError as error:
            raise audio_io.AudioError(name, f"cannot be decoded as audio ({error})") from error
    samples = np.asarray([] if stored is None else stored)
    if samples.dtype.kind == "f" and samples.size:
        return samples.astype(np.float32), None
    if samples.size and (samples.max() > 32767 or samples.min() < -32768):
        raise audio_io.AudioError(name, "samples beyond 16 bits")
    return samples.astype(np.int16), None


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _status(path: Any) -> tuple[int, int]:
    status = pathlib.Path(path).stat()
    return status.st_size, status.st_mtime_ns


def main() -> None:
    """python -m common.data.tfds an4 --source DIR --data_dir DIR"""
    parser = argparse.ArgumentParser(description="Prepares a data set by a builder of this project")
    parser.add_argument("builder", help="a folder of common/data/builders, for instance an4")
    parser.add_argument("--source", required=True, help="folder of the corpus (see its README.md)")
    parser.add_argument("--data_dir", default="~/tensorflow_datasets", help="where to write")
    args = parser.parse_args()
    builders = pathlib.Path(__file__).parent / "builders"
    known = sorted(p.parent.name for p in builders.glob("*/*_dataset_builder.py"))
    if args.builder not in known:
        sys.exit(f"error: there is no builder {args.builder!r}, there are {', '.join(known)}")
    module = f"common.data.builders.{args.builder}.{args.builder}_dataset_builder"
    try:
        builder_class = importlib.import_module(module).Builder
        folder = prepare(builder_class, args.source, pathlib.Path(args.data_dir).expanduser())
    except records.DataError as error:
        sys.exit(f"error: {error}")
    print(f"Prepared in {folder}")


if __name__ == "__main__":
    main()
