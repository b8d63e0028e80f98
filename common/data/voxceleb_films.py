"""VoxCeleb2 with its mouths, in the layout of VisualVoice (arXiv 2101.03149).

    ROOT/mp4/SPLIT/idXXXXX/VIDEO/NNNNN.mp4          the face
    ROOT/audio/SPLIT/idXXXXX/VIDEO/NNNNN.wav        or aac/, which its code looks for; any format
    ROOT/mouth_roi/SPLIT/idXXXXX/VIDEO/NNNNN.h5     or mouth_roi_hdf5/; `data` uint8[n, 96, 96]
    SPLIT.h5                                        `videos_path`: the folders mp4/SPLIT/ID/VIDEO

with SPLIT train, val, seen_heard_test, unseen_unheard_test or any other name. Paths in a list may
begin anywhere: what stands before SPLIT/ID/VIDEO is not looked at.
"""

import collections
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from common.audio import io
from common.data import folders, records, stored_faces, voxceleb

FILMS = ("mp4",)
SOUNDS = ("audio", "aac", "wav")
MOUTHS = ("mouth_roi", "mouth_roi_hdf5")
MOUTH_SUFFIXES = (".h5", ".hdf5", ".npz", ".npy")
SPEAKER = re.compile(r"id\d{5}")
_LISTED = re.compile(r"(?:(?:^|/)([^/]+)/)?(id\d{5})/([^/]+?)(?:/([^/]+)\.mp4)?/?")

Video = tuple[str, str, str]  # split, speaker, video


class VoxCelebFilms:
    """The clips of one split, a random-access source of records.

    A record has `id` (idXXXXX/VIDEO/NNNNN.wav, as in the lists of trials), `speaker`, `gender` by
    vox2_meta.csv where ROOT has it, `audio` (a path), `video` (`stored_faces.Mouths`) and `face`
    (`stored_faces.Portraits`, spread over the clip). One of which a file is missing has a `problem`
    instead and is rejected by name when it is indexed (`indexing.build_index(inspect=
    stored_faces.inspect)`), as is one whose mouth has another size or length. Nothing is opened
    before it is asked for; it pickles as paths.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        *,
        listed: str | os.PathLike | None = None,
        portraits: int = 5,
    ) -> None:
        """The folders that a list names, in its order, or without one all folders, sorted.

        Raises records.DataError: no such split, a list that cannot be read or names nothing.
        """
        self._root = pathlib.Path(root).expanduser()
        self._portraits = portraits
        self.name = f"{self._root} ({split})"
        if listed is None:
            videos = [(video, None) for video in _videos(self._root, split)]
        else:
            videos = read_list(pathlib.Path(listed).expanduser(), split)
            self.name = f"{self._root} ({listed})"
        known = voxceleb.genders(self._root)
        rows = (
            {**row, "gender": known.get(row.get("speaker"))}
            for video, clip in videos
            for row in _clips(self._root, video, clip)
        )
        self._rows = records.RecordList(self.name, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> records.Record:
        record = dict(self._rows[position])
        if "problem" in record:
            return record
        mouth, film = record.pop("mouth"), record.pop("film")
        return record | {
            "video": stored_faces.Mouths(mouth),
            "face": stored_faces.Portraits(film, self._portraits),
        }

    @property
    def rejected(self) -> tuple[records.Rejected, ...]:
        """The clips and folders of which files are missing."""
        rows = ((self._rows[i], problem) for i, problem in enumerate(self._rows.column("problem")))
        return tuple(
            records.Rejected(row["id"], row["id"], problem) for row, problem in rows if problem
        )

    def counts(self) -> dict[str, int]:
        """How many clips are rejected for which reason."""
        return dict(collections.Counter(one.reason.split(" (")[0] for one in self.rejected))


def read_list(path: pathlib.Path, split: str) -> list[tuple[Video, str | None]]:
    """The folders of a list file and, where it names clips, their names; none of them twice.

    Raises records.DataError.
    """
    import h5py

    if not path.is_file():
        raise records.DataError(f"There is no list {path}.")
    try:
        with h5py.File(path, "r") as file:
            if "videos_path" not in file:
                there = ", ".join(file) or "nothing"
                raise records.DataError(
                    f"{path}: a list of VoxCeleb2's films is the data set 'videos_path'; the file "
                    f"holds {there}."
                )
            entries = file["videos_path"][:].tolist()
    except OSError as error:
        raise records.DataError(f"{path} is no HDF5 file, or damaged or cut off.") from error
    found: dict[tuple[Video, str | None], None] = {}
    for number, entry in enumerate(entries, start=1):
        text = entry.decode("utf-8", "surrogateescape") if isinstance(entry, bytes) else str(entry)
        match = re.search(_LISTED.pattern + "$", text)
        if match is None:
            raise records.DataError(
                f"{path}, entry {number}: {text!r} is no path like mp4/{split}/idXXXXX/VIDEO."
            )
        own, speaker, video, clip = match.groups()
        own = split if own in (None, *FILMS) else own
        found[((own, speaker, video), clip)] = None
    if not found:
        raise records.DataError(f"{path} lists nothing.")
    return list(found)


def write_list(path: pathlib.Path, videos: Sequence[str]) -> None:
    """Writes a list of folders as VisualVoice reads it, whole or not at all. Raises UserError."""
    import h5py
    import numpy as np

    from common import files

    with files.replacing(path) as temporary, h5py.File(temporary, "w") as file:
        encoded = [os.fsencode(video) for video in videos]
        file.create_dataset("videos_path", data=np.array(encoded, "S"))


def _videos(root: pathlib.Path, split: str) -> Iterator[Video]:
    """The folders of films of a split, sorted."""
    places = [root / name / split for name in (*FILMS, *MOUTHS) if (root / name / split).is_dir()]
    if not places:
        there = sorted({p.name for n in FILMS for p in root.glob(f"{n}/*") if p.is_dir()})
        raise records.DataError(
            f"There is no folder {root / FILMS[0] / split}. Splits below {root / FILMS[0]}: "
            f"{', '.join(there) or 'none'}."
        )
    found = set()
    for place in places:
        try:
            speakers = [e for e in folders.visible(place) if SPEAKER.fullmatch(e.name)]
            for speaker in speakers:
                entries = folders.visible(speaker.path)
                found |= {(split, speaker.name, e.name) for e in entries if e.is_dir()}
        except OSError as error:
            raise records.DataError(f"{place} cannot be read ({error.strerror}).") from error
    if not found:
        raise records.DataError(f"{places[0]} holds no folders idXXXXX/VIDEO.")
    yield from sorted(found)


def _clips(root: pathlib.Path, video: Video, clip: str | None) -> Iterator[records.Record]:
    """The clips of a folder, those with something missing with a problem."""
    below = "/".join(video)
    films = _stems(root, FILMS, below, (".mp4",))
    mouths = _stems(root, MOUTHS, below, MOUTH_SUFFIXES)
    sounds = _stems(root, SOUNDS, below, io.SUFFIXES)
    names = sorted({*films, *mouths}) if clip is None else [clip]
    if not names:
        yield {"id": below} | stored_faces.missing(f"{root}/{FILMS[0]}/{below}", "folder")
    _, speaker, folder = video
    for name in names:
        own = f"{speaker}/{folder}/{name}.wav"
        wanted = {"film": (films, FILMS), "sound": (sounds, SOUNDS), "mouth": (mouths, MOUTHS)}
        lacking = [what for what, (found, _) in wanted.items() if name not in found]
        if lacking:
            place = f"{root}/{wanted[lacking[0]][1][0]}/{below}/{name}"
            yield {"id": own} | stored_faces.missing(place, " and ".join(lacking))
        else:
            yield {
                "id": own,
                "speaker": speaker,
                "audio": sounds[name],
                "mouth": mouths[name],
                "film": films[name],
            }


def _stems(
    root: pathlib.Path, places: Sequence[str], below: str, suffixes: Sequence[str]
) -> dict[str, str]:
    """Name without suffix -> path, of the first folder and the first suffix that has it."""
    found: dict[str, tuple[int, int, str]] = {}
    for order, place in enumerate(places):
        try:
            entries = folders.visible(root / place / below)
        except OSError:
            continue  # the other name of the folder, or the clips are missing: they are named
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - a million of them
            if (suffix := suffix.lower()) in suffixes:
                one = (order, suffixes.index(suffix), entry.path)
                found[stem] = min(one, found.get(stem, one))
    return {stem: path for stem, (_, _, path) in found.items()}
