"""Files that lead to other files or to the network, and directory entries that are no files.

They are made for each run, with its own secret beside the folder and its own port on this machine.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.case import Case

SECRET_CODE = 170
"""What every frame of the secret reads."""

_HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"
_CONCAT = "ffconcat version 1.0\nfile '{}'\n"
_DASH = (
    '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
    ' mediaPresentationDuration="PT4S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" width="160"'
    ' height="120"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video {} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
)
# with it a text begins as an mp4 does, and passes for one at first sight
_BOX = b"    free"


def write_elsewhere(
    folder: Path, *, seeds: Path, secrets: Path, tcp_port: int, udp_port: int
) -> Iterator[Case]:
    """Playlists, scripts and references; `secrets` holds secret.ts and secret.mp4 and is not in the folder."""
    for name, text in _playlists(folder, secrets, tcp_port, udp_port).items():
        (folder / name).write_bytes(text.encode())
        yield Case(folder / name, "elsewhere", "refuse")
        (folder / f"boxed_{name}").write_bytes(_BOX + text.encode())
        yield Case(folder / f"boxed_{name}", "elsewhere", "refuse")
    # a healthy video, which a script in the same folder names
    (folder / "sibling.mp4").write_bytes((secrets / "secret.mp4").read_bytes())
    for number in range(3):
        (folder / f"frame{number:03d}.mp4").write_bytes((secrets / "secret.mp4").read_bytes())
    mov = (seeds / "h264_bframes.mov").read_bytes()
    pattern = folder / "frame%03d.mp4"
    pattern.write_bytes(mov)
    yield Case(pattern, "elsewhere", "frames", parent="h264_bframes.mov")
    # a healthy transport stream, whose first packet holds the lines of a playlist
    packet = f"G\nc=IN IP4 127.0.0.1\r\nm=video {udp_port} RTP/AVP 96\r\n".encode().ljust(188, b"G")
    stream = folder / "sdp_before_ts.ts"
    stream.write_bytes(packet + (seeds / "h264.ts").read_bytes())
    yield Case(stream, "elsewhere", "either", parent="h264.ts")
    reference = folder / "reference.mov"
    reference.write_bytes(_with_external_data(mov, secrets / "secret.mp4"))
    yield Case(reference, "elsewhere", "either", parent="h264_bframes.mov")


def write_no_files(folder: Path) -> Iterator[Case]:
    """Entries that a decoder would read for ever, wait for, or cannot read."""
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    links = {
        "zero": "/dev/zero",
        "tty": "/dev/tty",
        "loop": "loop.mp4",
        "nowhere": "missing.mp4",
        "fifo_link": "fifo.mp4",
    }
    for name, target in links.items():
        (folder / f"{name}.mp4").symlink_to(target)
    for name in ("fifo", "folder", *links, "never_there"):
        yield Case(folder / f"{name}.mp4", "no file", "refuse")
    # takes no room on the disk
    sparse = folder / "five_gigabytes.mp4"
    sparse.write_bytes(b"\x00\x00\x00\x18ftypisom")
    os.truncate(sparse, 5 << 30)
    yield Case(sparse, "no file", "refuse")


def _playlists(folder: Path, secrets: Path, tcp_port: int, udp_port: int) -> dict[str, str]:
    web = f"http://127.0.0.1:{tcp_port}"
    relative = os.path.relpath(secrets, folder)
    hls = {
        "abs": f"{secrets}/secret.ts",
        "rel": f"{relative}/secret.ts",
        "url": f"file://{secrets}/secret.ts",
        "http": f"{web}/hls.ts",
        "tcp": f"tcp://127.0.0.1:{tcp_port}",
    }
    scripts = {
        "abs": f"{secrets}/secret.mp4",
        "rel": f"{relative}/secret.mp4",
        "http": f"{web}/concat.mp4",
        "sibling": "sibling.mp4",
    }
    manifests = {"abs": f"{secrets}/secret.mp4", "http": f"{web}/dash.mp4"}
    texts = {
        f"hls_{key}.{ending}": _HLS.format(target)
        for key, target in hls.items()
        for ending in ("mp4", "m3u8")
    }
    texts |= {f"concat_{key}.mp4": _CONCAT.format(target) for key, target in scripts.items()}
    for key, target in manifests.items():
        manifest = _DASH.format(target)
        texts[f"dash_{key}.mp4"] = f'<?xml version="1.0"?>{manifest}'
        # G in the bytes 4, 196 and 388, as packets of a transport stream have it: inside a comment
        texts[f"dash_as_m2ts_{key}.mp4"] = f"<!--{'G' * 400}-->{manifest}"
    sdp = _SDP.format(udp_port)
    texts["sdp.mp4"] = sdp
    # G in the bytes 0, 188 and 376
    texts["sdp_as_ts.ts"] = f"G\r\n{sdp}a={'G' * 400}\r\n"
    texts["rtsp_redirect.mp4"] = f"RTSPtext\nRef1={web}/reference.mp4\n"
    return texts


def _with_external_data(mov: bytes, target: Path) -> bytes:
    """A QuickTime file that says: the pictures are in that other file (a Macintosh alias with a path)."""
    path = str(target).replace("/", ":").encode()
    path += bytes(len(path) % 2)
    # 150 bytes of volume, name and dates, then records of a type, a length and a body; 2 is the path
    alias = bytes(150) + struct.pack(">hH", 2, len(path)) + path + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    at = mov.index(b"dref") - 4
    size = struct.unpack_from(">I", mov, at)[0]
    new = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    out = bytearray(mov[:at] + new + mov[at + size :])
    # every box around it has grown; the pictures stand before all of them
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        box = out.rindex(name, 0, at) - 4
        struct.pack_into(">I", out, box, struct.unpack_from(">I", out, box)[0] + len(new) - size)
    return bytes(out)
