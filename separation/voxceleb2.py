"""A sub-split of VoxCeleb2 for VisualVoice: some people's films, sound and mouths, out of archives.

    python -m separation.voxceleb2 --ids=ids.txt --archives=DIR --out=OUT
        [--split=NAME] [--lists=FOLDER] [--layout=code|published] [--jobs=N]

--ids names speakers (idXXXXX), one a line; what stands behind the first word is not read. DIR holds
what is published: vox2_dev_mp4_partaa ..., vox2_test_mp4.zip, vox2_dev_aac_partaa ...,
vox2_test_aac.zip and mouth_roi_SPLIT.tar.gz, or some of them; parts need not be joined. OUT gets

    mp4/SPLIT/ID/VIDEO/NNNNN.mp4   aac/...wav (16 kHz, mono, 16 bits)   mouth_roi_hdf5/...h5
    SPLIT.h5                       `videos_path`: the folders of films here
    rejected.tsv                   clips that lack something, and why

The mouths say to which split a clip belongs (of the published films those of train, val and
seen_heard_test lie together in dev); with --split all clips go there. A clip without mouth or sound
is left out, because the original's code opens all three of each film that it finds. The list
names what a list SPLIT.h5 in --lists (default: DIR) names (nothing, where nothing of that is
there), without one every folder. Both layouts
can be read here; the original's code looks for the first. A second start goes on where the first
one ended.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tqdm

from common import app, errors, files, workdir
from common.audio import io
from common.data import archives, records, tables, voxceleb_films

log = logging.getLogger(__name__)

_RATE_HZ = 16_000
LAYOUTS = {
    "code": {"film": "mp4", "sound": "aac", "mouth": "mouth_roi_hdf5"},
    "published": {"film": "mp4", "sound": "audio", "mouth": "mouth_roi"},
}
_KINDS = {
    "mouth": voxceleb_films.MOUTH_SUFFIXES,
    "sound": (".m4a", ".aac", ".wav", ".flac"),
    "film": (".mp4",),
}
_SPLITS = ("unseen_unheard_test", "seen_heard_test", "train", "val")
_OUTER = ("", ".", "mp4", "aac", "audio", "dev", "test", "mouth_roi", "mouth_roi_hdf5")

_NO_MOUTH = "missing mouth (in no archive)"

Clip = tuple[str, str, str]  # speaker, video, number


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an archive: what it is of which clip, and the split that its path names, or ""."""

    kind: str
    clip: Clip
    split: str
    suffix: str


def parse_member(name: str, archive: str) -> Member | None:
    """What a file in an archive is; None where it is none of a clip's."""
    path = pathlib.PurePosixPath(name)
    suffix = path.suffix.lower()
    kind = next((kind for kind, some in _KINDS.items() if suffix in some), None)
    parts = path.parts
    if kind is None or len(parts) < 3 or not voxceleb_films.SPEAKER.fullmatch(parts[-3]):
        return None
    above = parts[-4] if len(parts) > 3 else ""
    split = above if above not in _OUTER else ""
    if not split and kind == "mouth":
        split = next((split for split in _SPLITS if split in archive), "")
    return Member(kind, (parts[-3], parts[-2], path.stem), split, suffix)


def read_ids(path: pathlib.Path) -> set[str]:
    """The speakers that a file names. Raises records.DataError."""
    found = set()
    for number, line in enumerate(tables.read_lines(path), start=1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#") or words[0] in ("id", "VoxCeleb2"):
            continue
        if not voxceleb_films.SPEAKER.fullmatch(words[0]):
            raise records.DataError(f"{path}, line {number}: {words[0]!r} is no idXXXXX.")
        found.add(words[0])
    if not found:
        raise records.DataError(f"{path} names nobody.")
    return found


class Extraction:
    """What is taken out of archives into `out`."""

    def __init__(
        self, out: pathlib.Path, ids: set[str], split: str | None, layout: str, jobs: int
    ) -> None:
        self._out, self._ids, self._split, self._jobs = out, ids, split, jobs
        self._places = LAYOUTS[layout]
        self.splits: dict[Clip, str] = {}  # of the clips whose mouths are there
        self.rejected: dict[Clip, str] = {}

    def path(self, kind: str, clip: Clip, suffix: str, split: str | None = None) -> pathlib.Path:
        """Where a file of a clip lies."""
        split = self.splits[clip] if split is None else split
        return self._out.joinpath(self._places[kind], split, *clip[:2], clip[2] + suffix)

    def find_mouths(self) -> None:
        """Learns the splits of the clips whose mouths are extracted."""
        root = self._out / self._places["mouth"]
        for path in root.glob("*/id*/*/*"):
            split, speaker, video = path.parts[-4:-1]
            if path.suffix in voxceleb_films.MOUTH_SUFFIXES and speaker in self._ids:
                clip = speaker, video, path.stem
                self.splits[clip] = split
                if self.rejected.get(clip) == _NO_MOUTH:
                    del self.rejected[clip]

    def num_wanted(self, kind: str) -> int:
        """How many files of a kind are known to be wanted: where there are more mouths than before,
        archives of sound have to be gone through again."""
        if kind == "film":
            return sum(self.path("sound", clip, ".wav").exists() for clip in self.splits)
        return len(self.splits) if kind == "sound" else 0

    def take(self, archive: archives.Archive, kind: str, bar: Any) -> None:
        """Extracts what an archive has of one kind. Raises ArchiveError."""

        def wanted(name: str) -> bool:
            member = parse_member(name, archive.name)
            if member is None or member.kind != kind or member.clip[0] not in self._ids:
                return False
            if kind == "mouth":
                split = self._split or member.split
                there = split and self.path(kind, member.clip, member.suffix, split).exists()
                return not there
            if member.clip not in self.splits:
                self.rejected.setdefault(member.clip, _NO_MOUTH)
                return False
            suffix = ".wav" if kind == "sound" else member.suffix
            if kind == "film" and not self.path("sound", member.clip, ".wav").exists():
                self.rejected.setdefault(member.clip, "missing sound (in no archive)")
                return False
            return not self.path(kind, member.clip, suffix).exists()

        with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
            running: collections.deque[concurrent.futures.Future] = collections.deque()
            for name, content in archive.members(wanted):
                member = parse_member(name, archive.name)
                running.append(pool.submit(self._write, member, content, archive.name))
                bar.update()
                while len(running) > 4 * self._jobs:
                    running.popleft().result()
            for future in running:
                future.result()

    def _write(self, member: Member, content: bytes, archive: str) -> None:
        kind, clip, suffix = member.kind, member.clip, member.suffix
        if kind == "mouth":
            split = self._split or member.split
            if not split:
                raise errors.UserError(
                    f"{archive} does not say of which split the mouths are (mouth_roi_SPLIT, or "
                    "SPLIT/idXXXXX/... in it). Name it: --split=NAME."
                )
            with files.replacing(self.path(kind, clip, suffix, split)) as temporary:
                temporary.write_bytes(content)
            self.splits[clip] = split
        elif kind == "film":
            with files.replacing(self.path(kind, clip, suffix)) as temporary:
                temporary.write_bytes(content)
        else:
            try:
                audio = io.load_audio(content, sample_rate_hz=_RATE_HZ)
            except io.AudioError as error:
                self.rejected[clip] = f"sound ({error.reason})"
                return
            io.write_wav(self.path(kind, clip, ".wav"), audio, _RATE_HZ)

    def finish(self) -> list[tuple[Clip, str]]:
        """The clips of which everything is there, in their order; the others are rejected."""
        whole = []
        for clip, split in sorted(self.splits.items()):
            if not self.path("sound", clip, ".wav").exists():
                self.rejected.setdefault(clip, "missing sound (in no archive)")
            elif not self.path("film", clip, ".mp4").exists():
                self.rejected[clip] = "missing film (in no archive)"
            else:
                whole.append((clip, split))
                self.rejected.pop(clip, None)
        return whole


class _Done:
    """Archives that were gone through for certain people (a TAR is read to its end for that), to be
    laid out in a certain way.

    `rejected`: what they have that was not taken, and why.
    """

    def __init__(self, path: pathlib.Path, ids: set[str], *how: str | None) -> None:
        self._path, self._same = path, {"ids": sorted(ids), "how": list(how)}
        then = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if any(then.get(name) != value for name, value in self._same.items()):
            then = {}
        self._archives = then.get("archives", [])
        self.rejected = {tuple(clip): reason for clip, reason in then.get("rejected", ())}

    def has(self, key: list[Any]) -> bool:
        return key in self._archives

    def add(self, key: list[Any], rejected: Mapping[Clip, str]) -> None:
        self._archives.append(key)
        found = {**self._same, "archives": self._archives, "rejected": [*rejected.items()]}
        files.write_text(self._path, json.dumps(found) + "\n")


def extract(
    found: list[archives.Archive], work: Extraction, done: _Done, say: Callable[[str], None]
) -> None:
    """Goes through all archives: mouths, which know the splits, then sound, then films."""
    kinds = {archive.name: _kinds(archive) for archive in found}
    work.rejected |= done.rejected
    for kind in _KINDS:
        work.find_mouths()
        there = work.num_wanted(kind)
        for archive in found:
            key = [kind, archive.name, archive.size, there]
            if kind not in kinds[archive.name] or done.has(key):
                continue
            with tqdm.tqdm(desc=archive.name, unit="file") as bar:
                try:
                    work.take(archive, kind, bar)
                except archives.ArchiveError as error:
                    say(str(error))
                    continue
            done.add(key, work.rejected)


def _kinds(archive: archives.Archive) -> tuple[str, ...]:
    """What an archive may hold, by its name: a terabyte is not searched for what it has not."""
    names = {"mouth": "mouth", "mp4": "film", "aac": "sound", "m4a": "sound", "wav": "sound"}
    found = {kind for word, kind in names.items() if word in archive.name.lower()}
    return tuple(found) if len(found) == 1 else tuple(_KINDS)


def write_lists(
    out: pathlib.Path,
    whole: list[tuple[Clip, str]],
    lists: pathlib.Path,
    ids: set[str],
    film_folder: str,
) -> Iterator[tuple[pathlib.Path, int, list[str]]]:
    """Writes a list for every split; (its path, how many folders it names, missing ones).

    One of which nothing is there is empty: without a list, or by one of before, all folders or
    others would be taken for those that it names.
    """
    there: dict[str, dict[str, None]] = {}
    for (speaker, video, _), split in whole:
        there.setdefault(split, {})[f"{speaker}/{video}"] = None
    for split, videos in sorted(there.items()):
        named, absent = list(videos), []
        original = lists / f"{split}.h5"
        if original.is_file():
            asked = dict.fromkeys(
                f"{speaker}/{video}"
                for (_, speaker, video), _ in voxceleb_films.read_list(original, split)
                if speaker in ids
            )
            named = [video for video in asked if video in videos]
            absent = [video for video in asked if video not in videos]
        path = out / f"{split}.h5"
        if named or path.resolve() != original.resolve():
            voxceleb_films.write_list(
                path, [str(out / film_folder / split / video) for video in named]
            )
        yield path, len(named), absent


def run(args: argparse.Namespace) -> bool:
    """Does what the command line says; whether a clip is there."""
    ids = read_ids(args.ids.expanduser())
    folder, out = args.archives.expanduser(), args.out.expanduser().resolve()
    found = archives.find(folder)
    files.check_output(out / "rejected.tsv")
    broken: list[str] = []

    def say(message: str) -> None:
        broken.append(message)
        log.warning("%s", message)

    with workdir.Lock(out):
        for left in out.rglob(".*.tmp"):  # by one that was killed: we hold the lock
            left.unlink()
        work = Extraction(out, ids, args.split, args.layout, args.jobs)
        done = _Done(out / "archives.json", ids, args.split, args.layout)
        extract(found, work, done, say)
        whole = work.finish()
        present = {clip[0] for clip, _ in whole}
        rejected = [("/".join(clip), reason) for clip, reason in sorted(work.rejected.items())]
        rejected += [(one, "missing speaker (no clip of them is whole)") for one in ids - present]
        lists = folder if args.lists is None else args.lists.expanduser()
        film_folder = LAYOUTS[args.layout]["film"]
        for path, count, absent in write_lists(out, whole, lists, ids, film_folder):
            rejected += [(video, f"missing folder (named by {path.name})") for video in absent]
            none = "" if count else f" ({lists / path.name} names nothing that is there)"
            print(f"{path}: {count} folders{none}")
        rejected.sort()
        text = "".join(f"{one}\t{reason}\n" for one, reason in (("id", "reason"), *rejected))
        files.write_text(out / "rejected.tsv", text)
    print(f"{len(whole)} clips of {len(present)} of {len(ids)} people.")
    for reason, some in _by_reason(rejected).items():
        more = f", ... ({out / 'rejected.tsv'})" if len(some) > 5 else ""
        print(f"  {len(some)} {reason}: {', '.join(some[:5])}{more}")
    if broken:
        raise errors.UserError(f"{len(broken)} of {len(found)} archives could not be read: above.")
    return bool(whole)


def _by_reason(rejected: list[tuple[str, str]]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one, reason in rejected:
        found.setdefault(reason.split(" (")[0], []).append(one)
    return found


def main() -> None:
    """The command line."""
    parser = app.parser("separation.voxceleb2", __doc__)
    parser.add_argument("--ids", required=True, type=pathlib.Path, metavar="FILE")
    parser.add_argument("--archives", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="OUT")
    parser.add_argument("--split", help="where all clips go; default: as the mouths say")
    parser.add_argument("--lists", type=pathlib.Path, help="folder of the published SPLIT.h5")
    parser.add_argument("--layout", choices=LAYOUTS, default="code")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()

    def work() -> None:
        if args.jobs < 1:
            raise errors.UserError(f"--jobs={args.jobs}: at least 1.")
        if not run(args):
            sys.exit("separation.voxceleb2: no clip has film, sound and mouth: see above.")

    app.command("separation.voxceleb2", work)


if __name__ == "__main__":
    main()
