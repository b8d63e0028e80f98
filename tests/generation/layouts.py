"""Every layout that faces and voices come in, small, on the disk."""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import PIL.Image
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from common.audio import io as audio_io
from common.data import stored_faces
from tests.generation import people as toy

CALLED = ("A.J._Buckley", "Bob_Dole", "Cher", "Eva_Green", "Fay_Wray", "Gus_Hall")  # of VGGFace
CLASSES = ("airplane", "bird", "cat")  # fewer than there are, of the same form


def write_voice(path, person: int, seed: int, seconds: float = 0.6):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_io.write_wav(path, toy.voice(person, seconds, seed), toy.RATE_HZ)


def write_face(path, person: int, number: int, size: int = 40):
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.broadcast_to(toy.colour(person), (size, size, 3)).astype(np.uint8).copy()
    flat[: 2 + number] = 255
    PIL.Image.fromarray(flat).save(path)


def asariri(root, faces="images_c_32x32", names=toy.NAMES):
    """audio/<person>/*.wav and images_c_32x32/<person>/*.jpeg, not as many of each."""
    for k, name in enumerate(names):
        for i in range(3 + k % 2):
            write_voice(root / "audio" / name / f"{i}.wav", k, i)
        for i in range(2 + k % 3):
            write_face(root / faces / name / f"{i}.jpeg", k, i)
    return root


def voxceleb(root):
    """wav/idXXXXX/<video>/*.wav, faces/<name>/*.jpg and the table of who is who."""
    lines = ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
    for k, name in enumerate(CALLED):
        for i in range(3):
            write_voice(root / "wav" / f"id{10001 + k}" / "video" / f"0000{i}.wav", k, i)
        for i in range(2):
            write_face(root / "faces" / name / f"{i}.jpg", k, i)
        lines.append(f"id{10001 + k}\t{name}\tm\tUK\tdev")
    (root / "vox1_meta.csv").write_text("\n".join(lines) + "\n")
    return root


def films(root):
    """What separation.prepare_video makes of GRID: sound, mouths, portraits and their manifest."""
    lines = ["id\taudio\tspeaker\tsplit\tmouth\tface\tportraits\tfilm"]
    for k in range(6):
        for i in range(2):
            name = f"s{k + 1}_{i}"
            write_voice(root / "audio" / f"{name}.wav", k, i, seconds=0.8)
            mouth, face = f"mouth/{name}.h5", f"face/{name}.png"
            (root / "mouth").mkdir(exist_ok=True)
            with stored_faces.MouthWriter(root / mouth) as writer:
                for _ in range(20):
                    writer.add(np.full((96, 96), 100, np.uint8))
            portraits = np.broadcast_to(toy.colour(k), (2, 224, 224, 3)).astype(np.uint8)
            stored_faces.write_portraits(root / face, portraits)
            split = "train" if k < 4 else "dev"
            lines.append(f"{name}\taudio/{name}.wav\ts{k + 1}\t{split}\t{mouth}\t{face}\t2\t{name}")
    (root / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return root


def speakers(root, count: int):
    """<part>/<person>/*.wav of so many people, for classes to be spoken."""
    for k in range(count):
        for i in range(3):
            write_voice(root / "audio" / f"p{k:02d}" / f"{i}.wav", k % len(toy.NAMES), 10 * k + i)
    return root


def pictures(part: str, per_class: int, classes: int, size: int = 32, channels: int = 3):
    """uint8[n, size, size, channels] and labels; each class has a level of its own."""
    rng = np.random.default_rng(len(part))
    labels = np.tile(np.arange(classes), per_class)
    noise = rng.integers(0, 20, (len(labels), size, size, channels))
    return (noise + 20 * labels[:, None, None, None]).astype(np.uint8), labels


def cifar10(root, classes=CLASSES, packed=False):
    """cifar-10-batches-py, or the archive of it; what is in it."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    held = {part: pictures(part, 5 if part == "train" else 2, len(classes)) for part in PARTS}
    batches = {f"data_batch_{i + 1}": _share(*held["train"], i) for i in range(5)}
    batches["test_batch"] = held["test"]
    for name, (images, labels) in batches.items():
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        content = {b"data": flat, b"labels": labels.tolist(), b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {b"label_names": [name.encode() for name in classes]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    if packed:
        with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(folder, arcname=folder.name)
    return held


PARTS = ("train", "test")


def _share(images, labels, i):
    share = len(labels) // 5
    return images[i * share : (i + 1) * share], labels[i * share : (i + 1) * share]


def mnist(root, packed=True):
    """The four idx files; what is in them."""
    root.mkdir(parents=True, exist_ok=True)
    held = {part: pictures(part, 3, 10, 28, 1) for part in PARTS}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images, labels = held[part]
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
            content = header + array.astype(np.uint8).tobytes()
            path = root / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return held


def tfds(root, classes=CLASSES):
    """cifar10 as tfds prepares it in ArrayRecord files; what is in it."""
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    core = "tensorflow_datasets.core.features"
    image = {"shape": {"dimensions": ["32", "32", "3"]}, "dtype": "uint8", "encodingFormat": "png"}
    features = {
        "image": {"pythonClassName": f"{core}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(classes))},
        },
    }
    description = {
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(description))
    (folder / "label.labels.txt").write_text("\n".join(classes) + "\n")
    held, splits = {}, []
    for part in PARTS:
        images, labels = held[part] = pictures(part, 4, len(classes))
        path = folder / f"cifar10-{part}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for picture, label in zip(images, labels):
            example = tf_example_pb2.Example()
            file = io.BytesIO()
            PIL.Image.fromarray(picture).save(file, format="png")
            example.features.feature["image"].bytes_list.value.append(file.getvalue())
            example.features.feature["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {
                "name": part,
                "shardLengths": [str(len(labels))],
                "numBytes": "1",
                "filepathTemplate": template,
            }
        )
    info = {"name": "cifar10", "version": "3.0.2", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return held
