"""Where the sound in a file ends by its header: what tells that a file was cut short.

Not told by a file itself, and so not known: raw samples, PAF, PVF, IRCAM, instruments (XI) whose
header says no size, and an mp3 without a Xing header that was cut between two frames.
"""
import re
import struct
from contextlib import suppress
from typing import Any, BinaryIO

SLACK_BYTES = 1024                      # that a header may promise too many
_UNKNOWN_LENGTH = 0x7FFF_0000           # what programs write to a pipe instead of a length

# Files of chunks by their first bytes: where the first chunk begins, bytes of a name, form of a
# size, bytes that it counts of the chunk's own header, what chunks are filled up to, name of sound
CHUNKED = {
    b"RIFF": (12, 4, "<I", 0, 2, (b"data",)),
    b"RF64": (12, 4, "<I", 0, 2, (b"data",)),
    b"RIFX": (12, 4, ">I", 0, 2, (b"data",)),
    b"FORM": (12, 4, ">I", 0, 2, (b"SSND", b"BODY")),
    b"riff": (40, 16, "<Q", 24, 8, (b"data",)),     # W64
    b"caff": (8, 4, ">q", 0, 1, (b"data",)),
}
_NIST = re.compile(rb"^(sample_count|sample_n_bytes|channel_count) -\w+ (\d+)", re.MULTILINE)
_Data = tuple[int, int | None]      # first byte of the samples, and the one after them if known


def data_of(stream: BinaryIO, magic: bytes, size: int) -> tuple[_Data | None, Any]:
    """Where a header says that samples are; channels and rate of a 16-bit PCM wav."""
    stream.seek(0)
    if magic in (b".snd", b"dns."):
        order = ">" if magic == b".snd" else "<"
        start, length = struct.unpack(f"{order}II", stream.read(12).ljust(12, b"\0")[4:])
        return (start, None if length == 0xFFFF_FFFF else start + length), None
    if magic == b"NIST":
        head = stream.read(4096)
        with suppress(ValueError, IndexError, KeyError):
            start = int(head.split(b"\n")[1])
            found = {name: int(value) for name, value in _NIST.findall(head)}
            count, width = found[b"sample_count"], found.get(b"sample_n_bytes", 2)
            return (start, start + count * width * found.get(b"channel_count", 1)), None
    return _chunk_of(stream, magic, size) if magic in CHUNKED else (None, None)


def _chunk_of(stream: BinaryIO, magic: bytes, size: int) -> tuple[_Data | None, Any]:
    """The chunk of samples in a file of chunks; one that is not there begins behind the end."""
    at, name_bytes, form, own, filled, names = CHUNKED[magic]
    header_bytes, wide, wave = name_bytes + struct.calcsize(form), 0, None
    while True:
        stream.seek(min(at, size))
        header = stream.read(header_bytes)
        if len(header) < header_bytes:
            return (size, size + 2 * SLACK_BYTES), None
        name, length = header[:4], struct.unpack(form, header[name_bytes:])[0] - own
        body = at + header_bytes
        if name in names:
            unknown = length <= 0 or (form[1] == "I" and length >= _UNKNOWN_LENGTH)
            length = wide or (0 if unknown else length)
            return (body, body + length if length else None), wave
        if length < 0:
            return None, None
        if name == b"ds64":
            wide = struct.unpack("<Q", stream.read(16).ljust(16, b"\0")[8:])[0]
        elif name == b"fmt " and magic == b"RIFF" and length >= 16:
            kind, channels, rate, _, _, bits = struct.unpack(
                "<HHIIHH", stream.read(16).ljust(16, b"\0"))
            wave = (channels, rate) if (kind, bits) == (1, 16) and channels and rate else None
        at = body + length + -length % filled


def end_of_ogg(stream: BinaryIO, size: int) -> tuple[int | None, bool]:
    """The byte where the last page of an ogg would end, and whether it is marked as the last."""
    start = max(0, size - (1 << 17))        # a page has at most half of that
    stream.seek(start)
    tail = stream.read()
    place = tail.rfind(b"OggS")
    if place < 0:
        return None, True
    header = tail[place : place + 27]
    segments = tail[place + 27 : place + 27 + header[26]] if len(header) == 27 else b""
    if len(header) < 27 or len(segments) < header[26]:
        return size + 2 * SLACK_BYTES, False
    end = start + place + 27 + len(segments) + sum(segments)
    return end + (end > size) * 2 * SLACK_BYTES, bool(header[5] & 4)


# Frames of MPEG audio, layer 3, by the version of the header: kbit/s and Hz by their places there
# (0: none), and samples of a frame over 8
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG = {
    3: (_KBITS_1, (44_100, 48_000, 32_000, 0), 144), 2: (_KBITS_2, (22_050, 24_000, 16_000, 0), 72),
    0: (_KBITS_2, (11_025, 12_000, 8_000, 0), 72),
}  # fmt: skip
_CHAIN = 3                              # frames on end that are no chance
_TAIL_BYTES = 1 << 13                   # holds as many frames


def ends_with_a_frame(stream: BinaryIO, magic: bytes, size: int) -> bool:
    """False for an mp3 whose last frame is not whole; True for anything else."""
    if not (magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1] >= 0xE0)):
        return True
    stream.seek(max(0, size - _TAIL_BYTES))
    tail = stream.read()
    if tail[-128:-125] == b"TAG" or tail[-32:-24] == b"APETAGEX":
        return True                     # which stand behind the last frame
    for start in range(len(tail) - 4):
        at, count = start, 0
        while at + 4 <= len(tail) and (length := _frame_bytes(tail[at : at + 4])):
            at, count = at + length, count + 1
        if count > _CHAIN and at + 4 > len(tail):
            return at == len(tail)
    return True


def _frame_bytes(header: bytes) -> int:
    """How long a frame of layer 3 is; 0 where none begins."""
    if header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or (header[1] >> 3) & 3 not in _MPEG:
        return 0
    kbits, rates, size = _MPEG[(header[1] >> 3) & 3]
    kbit, rate = kbits[header[2] >> 4], rates[(header[2] >> 2) & 3]
    return size * kbit * 1000 // rate + ((header[2] >> 1) & 1) if kbit and rate else 0


# What libsndfile's account of a header says of its length: AVR and MPC2000, MATLAB, WVE
_FRAMES = re.compile(r"(?:^ *Frames|Cols) +: (\d+)|^Data length (\d+) should be", re.MULTILINE)
_ENDLESS = 1 << 62


def frames_told(account: str) -> int:
    """How many frames a header promises as libsndfile tells it; very many where it says "cut"."""
    if "truncated" in account:          # VOC, MATLAB
        return _ENDLESS
    found = _FRAMES.findall(account)
    return int(found[-1][0] or found[-1][1]) if found else 0
