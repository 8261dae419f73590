"""Tar shards: what is read, what is refused, and that nothing is ever written but the index."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.core.data.readers import RecordDataset, TarRecords, tar_sample, write_index
from lyrics.core.data.readers import tar as tar_module
from lyrics.core.data.readers.tar import index_path, shards_in, split_name
from lyrics.core.errors import DatasetError, ImageError, SampleError
from tests.core.data.tars import jpeg, sample_members, write_special, write_tar

CAPTIONS = ["a red square", "ein Würfel", "third"]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    members = [member for n, text in enumerate(CAPTIONS) for member in sample_members(f"{n:09d}", text)]
    path = write_tar(tmp_path / "00000.tar", members)
    write_index(path)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_samples_are_read_in_place(shard: Path) -> None:
    records = TarRecords([shard])
    assert len(records) == 3
    assert [records[n]["txt"] for n in range(3)] == CAPTIONS
    assert records[1]["json"]["url"] == "http://x/000000001"
    assert records[1]["key"] == "000000001"
    assert records[1]["image"] == "00000.tar/1/000000001.jpg"
    assert records.read("00000.tar/1/000000001.jpg").size == (8, 6)
    assert sorted(path.name for path in shard.parent.iterdir()) == ["00000.tar", "00000.tar.index"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_agrees_with_the_standard_library(tmp_path: Path, form: int) -> None:
    """Long names (a prefix, a GNU header, a PAX header) and letters outside of ASCII."""
    long = "/".join(["folder" * 5] * 4) + "/" + "k" * 60
    path = write_tar(tmp_path / "a.tar", [*sample_members(long, "long"), *sample_members("b", "short")], form)
    write_index(path)
    records = TarRecords([path])
    with tarfile.open(path) as tar:
        names = [member.name for member in tar]
    assert [records[n]["image"].split("/", 2)[2] for n in range(2)] == [n for n in names if n.endswith(".jpg")]
    assert [records[n]["txt"] for n in range(2)] == ["long", "short"]


def test_shards_follow_each_other(tmp_path: Path) -> None:
    paths = [
        write_tar(tmp_path / f"{s:05d}.tar", [m for n in range(s + 1) for m in sample_members(f"{s}-{n}", f"{s}.{n}")])
        for s in range(3)
    ]
    for path in paths:
        write_index(path)
    records = TarRecords(shards_in(tmp_path))
    assert records.shard_sizes == [1, 2, 3]
    assert [records[n]["txt"] for n in range(len(records))] == ["0.0", "1.0", "1.1", "2.0", "2.1", "2.2"]
    assert records.where(4) == (paths[2], "sample 1")
    assert records.read(records[4]["image"]).size == (8, 6)


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    """webdataset would load ``.pkl`` and ``.pth``; here they are bytes to step over."""
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trap),)

    payload = pickle.dumps(Trap())
    members = [("0.pkl", payload), ("0.pyd", payload), ("0.jpg", jpeg()), ("0.pth", payload), ("0.txt", b"a caption")]
    path = write_tar(tmp_path / "a.tar", members)
    write_index(path)
    records = TarRecords([path])
    assert records[0]["txt"] == "a caption"
    records.read(records[0]["image"])
    assert not trap.exists()
    pickle.loads(payload)  # it would have worked
    assert trap.exists()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}, "'000000001.jpg' is a symbolic link"),
        (tarfile.LNKTYPE, {"linkname": "000000000.txt"}, "'000000001.jpg' is a hard link"),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}, "is a character device"),
        (tarfile.BLKTYPE, {}, "is a block device"),
        (tarfile.FIFOTYPE, {}, "is a named pipe"),
        (b"Z", {}, "is of the unknown kind b'Z'"),
        (tarfile.REGTYPE, {"name": "../000.jpg"}, "'../000.jpg' has a name that leads out of the folder"),
        (tarfile.REGTYPE, {"name": "a/../../b.jpg"}, "leads out of the folder"),
        (tarfile.REGTYPE, {"name": "/etc/000.jpg"}, "'/etc/000.jpg' has a name that leads out of the folder"),
        (tarfile.REGTYPE, {"name": "C:\\000.jpg"}, "leads out of the folder"),
    ],
)
def test_links_devices_and_names_that_lead_elsewhere(
    tmp_path: Path, kind: bytes, fields: dict[str, str | int], message: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = write_special(folder / "a.tar", kind, **fields)
    before = everything(tmp_path)
    with pytest.raises(DatasetError) as raised:
        write_index(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert everything(tmp_path) == before


def test_a_key_that_comes_back(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"a"), ("1.txt", b"b"), ("0.jpg", jpeg())])
    with pytest.raises(DatasetError, match=r"the key '0' comes back with '0.jpg'"):
        write_index(path)


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"a"), ("0.TXT", b"b")])
    with pytest.raises(DatasetError, match=r"'0\.TXT' is there twice"):
        write_index(path)


def test_all_faults_are_listed_up_to_twenty(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"../{n}.txt", b"") for n in range(25)])
    with pytest.raises(DatasetError) as raised:
        write_index(path)
    assert str(raised.value).count("leads out") == 20
    assert "and 5 more" in str(raised.value)


def test_a_tar_cut_at_any_place_is_never_taken_for_whole(shard: Path, tmp_path: Path) -> None:
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    content_end = last.offset_data + -(-last.size // 512) * 512
    cut = tmp_path / "cut.tar"
    for end in [0, 1, 511, 512, 600, 1024, last.offset, last.offset_data, content_end - 513, content_end]:
        cut.write_bytes(whole[:end])
        with pytest.raises(DatasetError, match=r"truncated|but the tar ends at byte"):
            write_index(cut)
        assert not index_path(cut).exists()


def test_a_damaged_header_is_noticed(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="is damaged: there is no valid header at byte 0"):
        write_index(shard)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
def test_a_member_of_a_declared_terabyte(tmp_path: Path, kind: bytes) -> None:
    """Also where it is a header that says so; nothing of that size is asked of the memory."""
    info = tarfile.TarInfo("0.jpg")
    info.type, info.size = kind, 2**40
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DatasetError, match=r"1,099,511,627,776 bytes at byte"):
        write_index(path)


def test_a_terabyte_in_a_pax_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.pax_headers = {"size": str(2**40)}
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(DatasetError, match=r"'0\.jpg' declares 1,099,511,627,776 bytes"):
        write_index(path)


@pytest.mark.parametrize(
    "extended",
    [b"9" * 5000 + b" size=1\n", b"5007 size=" + b"9" * 4996 + b"\n", b"10 size=-1\n", b"nonsense", b"6 a=b\n7"],
)
def test_extended_headers_that_are_none(tmp_path: Path, extended: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(extended)
    path = tmp_path / "a.tar"
    blocks = -(-len(extended) // 512) * 512
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + extended.ljust(blocks, b"\0") + bytes(1024))
    with pytest.raises(DatasetError, match=r"is damaged: the extended header at byte 0"):
        write_index(path)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 6000), value=st.integers(0, 255), cut=st.integers(0, 3000))
def test_any_damage_is_reported_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = write_tar(
        folder / "a.tar", [("a" * 120 + ".txt", b"x"), ("b.txt", b"y" * 600), ("c.json", b"{}")], tarfile.PAX_FORMAT
    )
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        samples = write_index(path)
    except DatasetError:
        assert not index_path(path).exists()
        return
    records = TarRecords([path])
    assert len(records) == samples
    for row in range(samples):
        with contextlib.suppress(SampleError):
            records[row]


def test_a_sample_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", bytes(5000))])
    monkeypatch.setattr(tar_module, "MAX_SAMPLE_BYTES", 4000)
    with pytest.raises(DatasetError, match="the sample '0' has 5,512 bytes; at most 4,000 are read"):
        write_index(path)


def test_a_tar_without_an_index(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample_members("0", "a"))
    with pytest.raises(DatasetError, match=r"has no index. Run: lyrics data index"):
        TarRecords([path])


def test_an_index_without_its_tar(shard: Path) -> None:
    shard.unlink()
    with pytest.raises(DatasetError, match=r"00000.tar: no such file, but there is an index"):
        TarRecords(shards_in(shard.parent))


def test_an_index_of_another_tar(shard: Path) -> None:
    write_tar(shard, sample_members("other", "another tar" * 2000))
    with pytest.raises(DatasetError, match=r"but its index is of a tar of"):
        TarRecords([shard])


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda data: data[:10], lambda data: b""]
)
def test_a_damaged_index(shard: Path, change) -> None:
    index = index_path(shard)
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(DatasetError, match="is not an index, or is cut short"):
        TarRecords([shard])


def test_a_tar_that_changed_but_kept_its_length(shard: Path) -> None:
    """Only the sample whose bytes changed is bad."""
    data = bytearray(shard.read_bytes())
    place = data.index(CAPTIONS[0].encode(), 512)
    data[place] ^= 1
    shard.write_bytes(data)
    records = TarRecords([shard])
    with pytest.raises(SampleError, match="have changed since the tar was indexed") as raised:
        records[0]
    assert raised.value.kind == "checksum"
    assert len(raised.value.sha256 or "") == 64
    assert records[1]["txt"] == CAPTIONS[1]


def test_a_forged_index_reads_no_more_than_a_sample(shard: Path) -> None:
    """Its positions may lie; they lead to bytes of the tar, and to no length that the memory cannot bear."""
    index = index_path(shard)
    data = bytearray(index.read_bytes())
    data[32:48] = struct.pack("<QII", 0, 2**32 - 1, 0)
    index.write_bytes(data)
    with pytest.raises(SampleError, match="its index says 4,294,967,295 bytes"):
        TarRecords([shard])[0]


def test_a_damaged_member_is_a_bad_sample(tmp_path: Path) -> None:
    members = [
        ("0.jpg", b"no picture"),
        ("0.txt", b"a"),
        ("1.txt", b"\xff\xfe"),
        ("2.json", b"{"),
        ("3.json", b"[" * 10_000),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    write_index(path)
    records = TarRecords([path])
    data = RecordDataset("web", records, tar_sample, records)
    with pytest.raises(ImageError, match=r"a.tar: 0.jpg"):
        data.picture(data[0])
    for row, name in ((1, "1.txt"), (2, "2.json"), (3, "3.json")):
        with pytest.raises(SampleError, match=rf"a.tar: {name}") as raised:
            data[row]
        assert raised.value.kind == "member"


def test_keys_that_are_no_picture_of_the_shard(shard: Path) -> None:
    records = TarRecords([shard])
    for key in (
        "00000.tar/9/000000009.jpg",
        "other.tar/0/a.jpg",
        "00000.tar/-1/a.jpg",
        "../x",
        "00000.tar/0/000000000.png",
    ):
        with pytest.raises(SampleError):
            records.read(key)


def test_hidden_files_are_stepped_over(tmp_path: Path) -> None:
    members = [
        (".DS_Store", b"x"),
        *sample_members("0", "a"),
        ("._0.jpg", b"x"),
        *sample_members("1", "b"),
        ("d/._1.jpg", b"x"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert write_index(path) == 2
    assert [TarRecords([path])[n]["txt"] for n in range(2)] == ["a", "b"]


def test_folders_in_a_tar_are_no_members(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "0.txt").write_bytes(b"a caption")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, arcname="./")
    assert write_index(tmp_path / "a.tar") == 1
    assert TarRecords([tmp_path / "a.tar"])[0]["txt"] == "a caption"


def test_split_name() -> None:
    assert split_name("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_name("c") == ("c", "")


def test_a_failed_index_leaves_the_old_one(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new index takes the old one's place whole, or not at all."""
    before = index_path(shard).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_index(shard)
    assert index_path(shard).read_bytes() == before


def test_it_travels_to_workers_without_what_it_has_read(shard: Path) -> None:
    records = TarRecords([shard])
    first = records[0]
    assert b"red square" not in pickle.dumps(records)
    assert pickle.loads(pickle.dumps(records))[0] == first


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["0.txt"], "'0' has no image that is read; its members are 0.txt"),
        (["0.tiff", "0.txt"], "it has 0.tiff; jpg, jpeg, png, webp, bmp, gif are read"),
        (["22.05.jpg", "22.05.txt", "22.06.jpg"], "it has 22.05.jpg, 22.06.jpg, but a key ends at the first dot"),
        (["0.left.jpg", "0.right.JPG", "0.txt"], "it has 0.left.jpg, 0.right.JPG, but a key ends at the first dot"),
        (["0.jpg", "0.png", "0.txt"], "it has several: 0.jpg, 0.png"),
    ],
)
def test_a_sample_without_one_picture_is_a_bad_sample(tmp_path: Path, members: list[str], message: str) -> None:
    """It is never text in silence, and never one of two pictures."""
    good = sample_members("1", "good")
    path = write_tar(tmp_path / "a.tar", [*((name, jpeg()) for name in members if name[-3:] != "txt"), *good])
    path = write_tar(path, [*((name, b"text" if name[-3:] == "txt" else jpeg()) for name in members), *good])
    write_index(path)
    records = TarRecords([path])
    data = RecordDataset("toy", records, tar_sample, records)
    with pytest.raises(SampleError, match=rf"a.tar, sample 0: .*{message}"):
        data[0]
    assert data.picture(data[1]).size == (8, 6)


def test_a_second_picture_with_an_ending_of_its_own_is_stepped_over(tmp_path: Path) -> None:
    members = [("0.seg.png", b"no picture"), ("0.jpg", jpeg()), ("0.txt", b"\xef\xbb\xbfa caption")]
    write_index(path := write_tar(tmp_path / "a.tar", members))
    records = TarRecords([path])
    assert (records[0]["image"], records[0]["txt"]) == ("a.tar/0/0.jpg", "a caption")


def test_an_animation_is_a_picture_and_what_reads_it_says_whether_it_is_one(tmp_path: Path) -> None:
    write_index(path := write_tar(tmp_path / "a.tar", [("0.gif", b"GIF89a and no more"), ("0.txt", b"a caption")]))
    records = TarRecords([path])
    data = RecordDataset("toy", records, tar_sample, records)
    data.find_picture(data[0])
    with pytest.raises(ImageError, match=r"a.tar: 0.gif: is"):
        data.picture(data[0])


@pytest.mark.parametrize("start", [2**63 - 512, 2**63, 2**64 - 1])
def test_a_position_that_no_file_has_is_a_bad_sample(shard: Path, start: int) -> None:
    index = index_path(shard)
    data = bytearray(index.read_bytes())
    struct.pack_into("<Q", data, 32, start)
    index.write_bytes(data)
    records = TarRecords([shard])
    with pytest.raises(SampleError, match=r"00000.tar, sample 0: its index says .* it is damaged"):
        records[0]
    assert records[1]["txt"] == CAPTIONS[1]


@pytest.mark.parametrize(
    ("make", "what"), [(Path.mkdir, "a folder"), (os.mkfifo, "a pipe or a device")], ids=["folder", "pipe"]
)
def test_what_is_called_like_a_tar_and_is_no_file(tmp_path: Path, make, what: str) -> None:
    """A folder cannot be opened, and a pipe would be waited for."""
    make(tmp_path / "x.tar")
    for use in (write_index, lambda path: TarRecords([path]), lambda path: shards_in(path.parent)):
        with pytest.raises(DatasetError, match=rf"x.tar: is {what}, not a tar"):
            use(tmp_path / "x.tar")
    write_index(path := write_tar(tmp_path / "y.tar", sample_members("0", "a")))
    index_path(path).unlink()
    make(index_path(path))
    with pytest.raises(DatasetError, match=r"y.tar: has no index"):
        TarRecords([path])
