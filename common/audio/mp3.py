"""MPEG frame headers: the true length of an MP3 whose header states none or a wrong one.

MP3 has no length field of its own. Decoders trust the optional Xing/Info frame and otherwise divide
the file size by the first frame's bit rate; both are wrong for variable bit rate without the frame
and for files glued together, and then libsndfile silently returns a part of the sound. Walking
the frame headers costs no decoding and gives the truth (ISO/IEC 11172-3 section 2.4.1.3).
"""

import dataclasses

_KBPS = {  # (MPEG-1?, layer) -> kbit/s by header index 1..14
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATE_DIVISOR = {3: 1, 2: 2, 0: 4}  # version bits: MPEG-1, MPEG-2, MPEG-2.5
_FULL_RATES_HZ = (44100, 48000, 32000)


@dataclasses.dataclass(frozen=True)
class FrameHeader:
    """What one 4-byte frame header says."""

    mpeg1: bool
    layer: int
    sample_rate_hz: int
    mono: bool
    num_bytes: int
    num_samples: int


@dataclasses.dataclass(frozen=True)
class Mp3Scan:
    """All frames of a file: `num_samples` counts each audio frame, decoder delay included."""

    first: int  # byte offset of the first frame
    header: FrameHeader
    num_frames: int
    estimated: bool  # no Xing/Info frame: decoders guess the length

    @property
    def num_samples(self) -> int:
        return self.num_frames * self.header.num_samples


def parse_header(word: bytes) -> FrameHeader | None:
    """Reads a 4-byte frame header; None when the bytes are not one (or are of free format)."""
    if len(word) < 4 or word[0] != 0xFF or word[1] & 0xE0 != 0xE0:
        return None
    version, layer = word[1] >> 3 & 3, 4 - (word[1] >> 1 & 3)
    bitrate, rate, padding = word[2] >> 4, word[2] >> 2 & 3, word[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    mpeg1 = version == 3
    sample_rate_hz = _FULL_RATES_HZ[rate] // _RATE_DIVISOR[version]
    num_samples = 384 if layer == 1 else 576 if layer == 3 and not mpeg1 else 1152
    slot = 4 if layer == 1 else 1
    bits_per_second = 1000 * _KBPS[mpeg1, layer][bitrate - 1]
    num_bytes = (num_samples // 8 * bits_per_second // sample_rate_hz // slot + padding) * slot
    mono = word[3] >> 6 == 3
    return FrameHeader(mpeg1, layer, sample_rate_hz, mono, num_bytes, num_samples)


def _info_offset(header: FrameHeader) -> int:
    """Where a Xing/Info tag stands inside a layer III frame: right after the side information."""
    if header.mpeg1:
        return 4 + (17 if header.mono else 32)
    return 4 + (9 if header.mono else 17)


def scan(data: bytes) -> Mp3Scan | None:
    """Walks the frame headers of a whole file in memory; None when there is no MPEG audio.

    Tags and rubbish between frames are stepped over; Xing/Info frames carry no sound and are not
    counted.
    """
    position = 0
    if data[:3] == b"ID3" and len(data) >= 10:  # the tag's size has 7 bits a byte
        position = 10 + sum(
            (byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0))
        )
    first, reference, count, estimated = -1, None, 0, True
    while (position := data.find(b"\xff", position)) >= 0:
        header = parse_header(data[position : position + 4])
        same = header is not None and (
            reference is None
            or (header.mpeg1, header.layer, header.sample_rate_hz)
            == (reference.mpeg1, reference.layer, reference.sample_rate_hz)
        )
        if not same:
            position += 1
            continue
        if reference is None:
            # A chance 0xFF in a tag is not a frame: the next frame must stand where this one ends.
            following = data[position + header.num_bytes : position + header.num_bytes + 4]
            if following and parse_header(following) is None:
                position += 1
                continue
            first, reference = position, header
        tag = position + _info_offset(header)
        info = data[tag : tag + 4] in (b"Xing", b"Info")
        if position == first:
            estimated = not info
        count += not info
        position += header.num_bytes
    return None if reference is None else Mp3Scan(first, reference, count, estimated)


def with_true_length(data: bytes, found: Mp3Scan) -> bytes:
    """The same stream behind an Info frame that states the counted number of frames."""
    start = bytearray(data[found.first : found.first + 4])
    for index in range(1, 15):  # the smallest bit rate whose frame holds the tag
        start[2] = index << 4 | start[2] & 0x0C
        header = parse_header(bytes(start))
        if header.num_bytes >= _info_offset(header) + 12:
            break
    frame = bytearray(header.num_bytes)
    frame[:4] = start
    tag = _info_offset(header)
    # Flag 1: only the frame count follows.
    frame[tag : tag + 12] = b"Info" + (1).to_bytes(4, "big") + found.num_frames.to_bytes(4, "big")
    body = data[found.first :]
    old_tag = _info_offset(found.header)
    if body[old_tag : old_tag + 4] in (b"Xing", b"Info"):
        body = body[found.header.num_bytes :]
    return bytes(frame) + body
