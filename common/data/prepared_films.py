"""What `python -m separation.prepare_video` made of films, as a source of records."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from common.data import manifest, records, stored_faces

MANIFEST = "manifest.tsv"
_OWN = ("mouth", "face", "portraits", "film")  # columns


class PreparedFilms:
    """The people of prepared films, a random-access source of records.

    A record has `id`, `audio` (a path) with `start` and `duration`, what is known of `text`,
    `speaker` and `gender`, `path`, that of the film, `video`, the mouth (`stored_faces.Mouths`,
    which reads as uint8[n, 96, 96] does, frame k at the samples from 640 k of the stretch), and
    `face`, portraits (`stored_faces.Portraits`, uint8[k, 224, 224, 3]). Nothing is opened before a
    picture is asked for; it pickles as paths.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        """`folder` holds manifest.tsv, or is a manifest of that form; `where` chooses rows by their
        columns (`{"split": "train"}`). Raises records.DataError."""
        path = pathlib.Path(folder).expanduser()
        path = path / MANIFEST if path.is_dir() else path
        self._rows = manifest.read_manifest(path, where=where, keep=_OWN)
        self._root = str(path.parent)
        self.name = self._rows.name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> records.Record:
        record = dict(self._rows[position])
        mouth, face, portraits, film = (record.pop(name, "") for name in _OWN)
        if "problem" in record:
            return record
        if not (mouth and face and portraits.isdecimal() and int(portraits)):
            return {"id": record["id"], "problem": "missing path (mouth, face or portraits)"}
        return record | {
            "path": film or record["id"],
            "video": stored_faces.Mouths(f"{self._root}/{mouth}"),
            "face": stored_faces.Portraits(f"{self._root}/{face}", int(portraits)),
        }
