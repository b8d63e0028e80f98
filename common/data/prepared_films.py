"""What `python -m separation.prepare_video` made of films, as a source of records."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from common.data import manifest, records, stored_faces

MANIFEST = "manifest.tsv"
_OWN = ("mouth", "face", "portraits", "film")  # columns
_OTHERS = "others"  # who are in view at the same time; manifests of another hand may not have it


class PreparedFilms:
    """The people of prepared films, a random-access source of records.

    A record has `id`, `audio` (a path) with `start` and `duration`, what is known of `text`,
    `speaker` and `gender`, `path`, that of the film, `video`, the mouth (`stored_faces.Mouths`,
    which reads as uint8[n, 96, 96] does, frame k at the samples from 640 k of the stretch), and
    `face`, portraits (`stored_faces.Portraits`, uint8[k, 224, 224, 3]). Nothing is opened before a
    picture is asked for; it pickles as paths.

    Where several people are in view nobody knows whose voice is heard, and the sound may hold all
    of theirs. With `alone` they are left out; `together` counts them, left out or not.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        where: Mapping[str, str | Sequence[str]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """`folder` holds manifest.tsv, or is a manifest of that form; `where` chooses rows by their
        columns (`{"split": "train"}`). Raises records.DataError, also where nobody is left."""
        path = pathlib.Path(folder).expanduser()
        path = path / MANIFEST if path.is_dir() else path
        rows = manifest.read_manifest(path, where=where, keep=_OWN, keep_if_there=(_OTHERS,))
        self._root = str(path.parent)
        self.name = rows.name
        several = [others not in ("", "0", "0.0") for others in rows.column(_OTHERS)]
        self.together = sum(several)
        if alone and self.together == len(rows):
            raise records.DataError(
                f"{self.name}: nobody is alone in view, and of several people nobody knows whose "
                "voice is heard. Take other films, or all of them by "
                "config.data.several_in_view=True."
            )
        if alone and self.together:
            some = (row for row, left_out in zip(rows, several, strict=True) if not left_out)
            rows = records.RecordList(self.name, some)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> records.Record:
        record = dict(self._rows[position])
        mouth, face, portraits, film, _ = (record.pop(name, "") for name in (*_OWN, _OTHERS))
        if "problem" in record:
            return record
        if not (mouth and face and portraits.isdecimal() and int(portraits)):
            return {"id": record["id"], "problem": "missing path (mouth, face or portraits)"}
        return record | {
            "path": film or record["id"],
            "video": stored_faces.Mouths(f"{self._root}/{mouth}"),
            "face": stored_faces.Portraits(f"{self._root}/{face}", int(portraits)),
        }
