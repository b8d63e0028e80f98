"""tfds builder of the embedded corpus. Writes ArrayRecord and needs no TensorFlow.

    builder = embedded_dataset_builder.Builder(data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")

Downloads nothing: the speech is rendered by eSpeak NG (see common/data/embedded/). Audio is an
int16 tensor, because the Audio feature would import TensorFlow, and is stored as bytes, because
numbers would become 64-bit integers.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from common.data import embedded


@dataclasses.dataclass
class EmbeddedConfig(tfds.core.BuilderConfig):
    """`settings` decide voices, sentences and length of the corpus."""

    settings: embedded.CorpusSettings = dataclasses.field(default_factory=embedded.CorpusSettings)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Synthetic speech with known transcripts, speakers and phonemes."""

    # tfds 4.9.10 would look this up with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (tfds reads a plain dict)
    BUILDER_CONFIGS = [  # noqa: RUF012
        EmbeddedConfig(name="small", description="2 hours", settings=embedded.CorpusSettings()),
        EmbeddedConfig(
            name="large",
            description="50 hours",
            settings=embedded.CorpusSettings(hours=50.0, eval_hours=1.0, train_voices=1000),
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "speaker": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "audio": tfds.features.Tensor(
                        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
                    ),
                    "sample_rate": tfds.features.Scalar(np.int32),
                }
            ),
            supervised_keys=("audio", "text"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        settings = self.builder_config.settings
        return {
            split: self._generate_examples(embedded.EmbeddedCorpus(split, settings))
            for split in embedded.SPLITS
        }

    def _generate_examples(self, source: embedded.EmbeddedCorpus) -> Iterator[tuple[str, dict]]:
        for index in range(len(source)):
            record = source[index]
            yield record["id"], {name: record[name] for name in self.info.features}
