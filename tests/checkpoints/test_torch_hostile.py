"""Hostile torch files: nothing of them is run, whatever they claim costs no memory, and each refusal says why."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_files import data, write_safetensors
from damage import scattered
from qconvd.checkpoints import inspect
from qconvd.checkpoints.torch.tensors import read_tensors
from qconvd.errors import BadCheckpoint, QconvdError, Unsupported
from qconvd.intake import look
from torch_files import (
    DICT,
    EMPTY,
    FALSE,
    MARK,
    ORDERED,
    PERSID,
    PROTO,
    REBUILD,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    archive,
    number,
    state,
    storage,
    stream,
    tensor,
    text,
    tuple_of,
    write,
)

TRUSTED = "take the safetensors of the same model; or, if you trust the file, save its weights alone"


def refused(folder: Path, content: bytes, name: str = "pytorch_model.bin") -> QconvdError:
    with pytest.raises(QconvdError) as caught:
        inspect(write(folder, content, name))
    return caught.value


class Run:
    """What a pickle would run when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def traps(marker: Path) -> dict[str, Any]:
    command = f"touch {marker}"
    return {
        "posix.system": Run(os.system, command),
        "subprocess.Popen": Run(subprocess.Popen, ["touch", str(marker)]),
        "builtins.exec": Run(exec, f"open({str(marker)!r}, 'w').close()"),
        "builtins.eval": Run(eval, f"open({str(marker)!r}, 'w').close()"),
    }


@pytest.mark.parametrize("asked", ["posix.system", "subprocess.Popen", "builtins.exec", "builtins.eval"])
@pytest.mark.parametrize("form", ["zip", "stream", "bare", "torch", "in a state dict"])
def test_nothing_is_run(tmp_path: Path, asked: str, form: str) -> None:
    marker = tmp_path / "sprung"
    trap = traps(marker)[asked]
    pickled = pickle.dumps(trap, protocol=2)
    if form == "torch":
        buffer = io.BytesIO()
        torch.save({"w": torch.ones(2), "x": trap}, buffer)
        content = buffer.getvalue()
    elif form == "in a state dict":
        content = archive(state({"w": tensor(), "x": pickled[2:-1]}))
    else:
        content = {"zip": archive(pickled), "stream": stream(pickled), "bare": pickled}[form]
    error = refused(tmp_path / "m", content)
    assert type(error) is Unsupported
    spelled = asked.replace("builtins", "__builtin__").replace("subprocess", "commands")  # as protocol 2 calls them
    assert error.what == f"holds more than weights: its pickle asks for '{spelled}', which is not run"
    assert error.where == str(tmp_path / "m" / "pytorch_model.bin")
    assert error.fix.startswith(TRUSTED)
    assert not marker.exists()
    if form in ("zip", "bare"):  # and the trap is one: Python's own pickle springs it
        made = pickle.loads(pickled)
        if isinstance(made, subprocess.Popen):
            made.wait()
        assert marker.exists()


@pytest.mark.parametrize(
    ("pickled", "asked"),
    [
        (PROTO + b"cos\nsystem\n" + STOP, "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93" + STOP, "os.system"),
        (PROTO + b"ctorch._utils\n_rebuild_qtensor\n" + STOP, "torch._utils._rebuild_qtensor"),
        (PROTO + b"ctorch\nload\n" + STOP, "torch.load"),
        (PROTO + b"ctorch.hub\nload\n" + STOP, "torch.hub.load"),
        (PROTO + b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n" + STOP, "torch._utils._rebuild_tensor_v2.__globals__"),
        (PROTO + b"ctorch\n_utils._rebuild_tensor_v2\n" + STOP, "torch._utils._rebuild_tensor_v2"),
        (PROTO + b"cnumpy.core.multiarray\nscalar\n" + STOP, "numpy.core.multiarray.scalar"),
        (PROTO + b"c__main__\nMyModel\n" + STOP, "__main__.MyModel"),
        (PROTO + b"ctransformers.training_args\nTrainingArguments\n" + STOP, "transformers.training_args.TrainingArguments"),
        (PROTO + b"c_codecs\nencode\n" + STOP, "_codecs.encode"),
        (PROTO + b"ca\x1b[31m\nb\n" + STOP, "a\\x1b[31m.b"),
    ],
)
def test_every_other_name_is_refused_by_name(tmp_path: Path, pickled: bytes, asked: str) -> None:
    error = refused(tmp_path / "m", archive(pickled))
    assert type(error) is Unsupported
    assert error.what == f"holds more than weights: its pickle asks for '{asked}', which is not run"


@pytest.mark.parametrize(
    ("pickled", "what"),
    [
        (
            PROTO + b"ctorch\nFloatStorage\n" + EMPTY + REDUCE + STOP,
            "calls torch.FloatStorage, which is no function of weights",
        ),
        (PROTO + ORDERED + EMPTY + b"\x81" + STOP, "has the opcode 0x81 at byte"),
        (PROTO + b"I1\n" + STOP, "has the opcode 0x49 at byte"),
        (PROTO + b"(ios\nsystem\n" + STOP, "has the opcode 0x69 at byte"),
        (PROTO + b"\x82\x01" + STOP, "has the opcode 0x82 at byte"),
        (PROTO + b"B\xff\xff\xff\x7f", "has the opcode 0x42 at byte"),
        (b"\x80\x09" + STOP, "is of protocol 9, which no Python writes"),
        (PROTO + STOP, "ends with something left over"),
        (PROTO + MARK + b"N" + STOP, "ends with something left over"),
        (PROTO + b"t" + STOP, "goes back to a mark that it did not set"),
        (PROTO + b"N" + MARK + b"\x86" + STOP, "takes more from its stack than it put there"),
        (PROTO + b"h\x07" + STOP, "asks for what it did not keep"),
        (PROTO + b"q\x07" + STOP, "keeps what it does not have"),
        (PROTO + b"N" + PERSID + STOP, "refers to something that is no storage"),
        (PROTO + tuple_of(text("module"), b"N", b"N", b"N", b"N") + PERSID + STOP, "refers to something that is no storage"),
        (PROTO + storage(numel=-1) + STOP, "describes a storage in a way that torch does not"),
        (PROTO + storage(numel=1 << 70) + STOP, "describes a storage in a way that torch does not"),
        (PROTO + tuple_of(storage(), storage(numel=13)) + STOP, "describes the storage '0' in two ways"),
        (state({"w": tensor((1 << 63,))}), "describes a tensor in a way that torch does not"),
        (state({"w": tensor((3, 4), (4,))}), "describes a tensor of 2 axes with 1 strides"),
        (state({"w": tensor((1,) * 33)}), "describes a tensor of 33 axes with 33 strides"),
        (state({"w": tensor(offset=-1)}), "describes a tensor in a way that torch does not"),
        (state({"w": tensor(stored=b"N")}), "describes a tensor in a way that torch does not"),
        (state({"w": REBUILD + EMPTY + REDUCE}), "calls torch._utils._rebuild_tensor_v2 with 0 arguments"),
        (state({"w": tensor(stored=storage(kind="UntypedStorage"))}), "gives a tensor no type of elements"),
        (PROTO + DICT + EMPTY + b"N" + SETITEM + STOP, "has a dict with a tuple as a key"),
        (PROTO + DICT + number(1 << 61) + b"N" + SETITEM + STOP, "has a dict with a int as a key"),
        (PROTO + DICT + MARK + text("a") + SETITEMS + STOP, "has a key without a value"),
        (PROTO + b"N" + text("a") + b"N" + SETITEM + STOP, "fills a dict that is none"),
        (PROTO + b"N" + b"N" + b"a" + STOP, "fills a list that is none"),
        (PROTO + b"N" + b"N" + b"b" + STOP, "gives attributes to what has none"),
        (PROTO + b"X\xff\xff\xff\x7f" + STOP, "has a text of 2147483647 bytes"),
        (PROTO + b"X\x02\0\0\0\xff\xfe" + STOP, "has a text that is not UTF-8"),
        (PROTO + b"\x8a\xff" + bytes(255) + STOP, "has a number of 255 bytes"),
        (PROTO + b"c\xff\xfe\n\n" + STOP, "has a name that is not UTF-8"),
        (PROTO + b"NN\x93" + STOP, "asks for a global without a name"),
        (PROTO + ORDERED + tuple_of(text("ab")) + REDUCE + STOP, "fills an OrderedDict in a way that torch does not"),
        (PROTO + b"}" * 500_001 + STOP, "makes more than 500,000 lists, dicts and tuples"),
        (PROTO + b"N" * 2_000_000 + STOP, "takes more than 2,000,000 steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_pickle_of_weights_does(tmp_path: Path, pickled: bytes, what: str) -> None:
    error = refused(tmp_path / "m", archive(pickled))
    assert type(error) is BadCheckpoint
    assert error.what.startswith(f"is no checkpoint: its pickle {what}")


@pytest.mark.parametrize(
    ("pickled", "what"),
    [
        (state({}), "holds no tensors"),
        (PROTO + b"N" + STOP, "holds nothing where a state dict should be"),
        (PROTO + tensor() + STOP, "holds a tensor where a state dict should be"),
        (state({"w": tensor(), "inner": state({"v": tensor()})[2:-1]}), "has a dict under 'inner', not weights"),
        (state({"model": state()[2:-1], "ema": state()[2:-1]}), "holds two sets of weights, under 'model' and 'ema'"),
        (state({"model": state()[2:-1], "optimizer": DICT}), "is the state of a training run, as its key 'optimizer' shows"),
        (state({"state": DICT, "param_groups": b"]"}), "is the state of a training run, as its key 'param_groups' shows"),
        (state({"w": tensor((3, 4), (8, 1))}), "tensor 'w' is a view with gaps or repeats (shape [3, 4], strides [8, 1])"),
        (state({"w": tensor((3, 4), (0, 1))}), "tensor 'w' is a view with gaps or repeats (shape [3, 4], strides [0, 1])"),
        (state({"w": tensor((3, 5))}), "tensor 'w' reaches beyond the end of its storage"),
        (state({"w": tensor(offset=1)}), "tensor 'w' reaches beyond the end of its storage"),
        (state({"w": tensor((1 << 61, 4))}), "tensor 'w' claims an absurd size"),
        (state({"w": tensor(stored=storage(numel=13))}), "has 48 bytes in its storage '0', where its pickle says 52"),
        (state({"w": tensor(stored=storage("7"))}), "has no member 'archive/data/7', though its pickle says so"),
        (state({"w": tensor(stored=storage("../../etc/passwd"))}),
         "has no member 'archive/data/../../etc/passwd', though its pickle says so"),
        (state({"q.lora_A.weight": tensor()}), "is a LoRA adapter, as its tensor 'q.lora_A.weight' shows"),
        (state({"model.diffusion_model.w": tensor()}), "is a diffusion model, as its tensor 'model.diffusion_model.w' shows"),
        (state({"a.qweight": tensor()}), "is already quantized (GPTQ or AWQ, as its tensor 'a.qweight' shows)"),
        (PROTO + b"(" + STOP[:0], "has a pickle without an end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_state_dict(tmp_path: Path, pickled: bytes, what: str) -> None:
    assert refused(tmp_path / "m", archive(pickled)).what == what


def twice() -> bytes:
    buffer = io.BytesIO(archive())
    with zipfile.ZipFile(buffer, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("archive/data.pkl", PROTO + b"cos\nsystem\n" + STOP)
    return buffer.getvalue()


def with_flag(content: bytes, flag: int) -> bytes:
    """The first member of the directory with a flag set."""
    at = content.index(b"PK\1\2") + 8
    return content[:at] + struct.pack("<H", flag) + content[at + 2 :]


def in_directory(content: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """Other bytes at `at` of a member's entry in the directory."""
    entry = content.rindex(name) - 46
    assert content[entry : entry + 4] == b"PK\1\2"
    return content[: entry + at] + value + content[entry + at + len(value) :]


BOMB = archive(members={"data/1": bytes(1 << 20)}, method=zipfile.ZIP_DEFLATED)
ZIPS: dict[str, tuple[bytes, type[QconvdError], str]] = {
    "a bomb": (BOMB, Unsupported, "has the compressed member 'archive/data.pkl', which is not unpacked"),
    "twice": (b"", BadCheckpoint, "has two members called 'archive/data.pkl'"),
    "absolute": (archive(members={"!": b""}, root="/archive/"), BadCheckpoint,
                 "has a member whose name leads out of it: '/archive/data.pkl'"),
    "above": (archive(members={"../../evil": b"x"}), BadCheckpoint,
              "has a member whose name leads out of it: 'archive/../../evil'"),
    "windows": (archive(members={"..\\evil": b"x"}), BadCheckpoint,
                "has a member whose name leads out of it: 'archive/..\\\\evil'"),
    "no pickle": (archive(root="a/b/"), BadCheckpoint, "is a zip that torch.save did not make: it holds no data.pkl"),
    "torchscript": (archive(members={"constants.pkl": b"x"}), Unsupported, "is a TorchScript program, not a checkpoint"),
    "big endian": (archive(members={"byteorder": b"big"}), Unsupported, "has its numbers in the byte order 'big'"),
    "encrypted": (with_flag(archive(), 1), Unsupported, "has the encrypted member 'archive/data.pkl'"),
    "a longer member": (in_directory(archive(), b"archive/data/0", 20, struct.pack("<2I", 1 << 30, 1 << 30)), BadCheckpoint,
                        "has a directory that does not fit its member 'archive/data/0'"),
    "a member elsewhere": (in_directory(archive(), b"archive/data/0", 42, struct.pack("<I", 7)), BadCheckpoint,
                           "has a directory that does not fit its member 'archive/data/0'"),
    "a damaged directory": (in_directory(archive(), b"archive/data/0", 30, struct.pack("<H", 9999)), BadCheckpoint,
                            "has a directory that is damaged"),
    "many members": (archive()[:-22] + archive()[-22:-14] + struct.pack("<2H", 0xFFF0, 0xFFF0) + archive()[-10:], BadCheckpoint,
                     "has a directory that is damaged"),
    "in several parts": (archive()[:-18] + b"\1\0" + archive()[-16:], BadCheckpoint, "is one part of a zip in several"),
    "a zip64 without its record": (archive()[:-14] + b"\xff" * 4 + archive()[-10:], BadCheckpoint,
                                   "is a zip64 without its end record"),
    "not UTF-8": (archive().replace(b"archive/data/0", b"archive/data/\xff"), BadCheckpoint,
                  "has a member whose name is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", ZIPS)
def test_hostile_zips(tmp_path: Path, case: str) -> None:
    content, kind, what = ZIPS[case]
    error = refused(tmp_path / "m", content or twice())
    assert (type(error), error.what) == (kind, what)
    assert error.fix


def test_two_pickles_in_a_zip(tmp_path: Path) -> None:
    buffer = io.BytesIO(archive())
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("other/data.pkl", state())
    assert refused(tmp_path / "m", buffer.getvalue()).what == "holds more than one data.pkl"


def test_zip64_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in {"data.pkl": state(), "data/0": data(48)}.items():
            with file.open(f"archive/{name}", "w", force_zip64=True) as member:
                member.write(content)
    whole = buffer.getvalue()
    plain = read_tensors(write(tmp_path / "a", whole), "pytorch_model.bin")["w"][0]
    # The same with every figure of the directory in a zip64 field, as above 4 GiB.
    begin = whole.index(b"PK\1\2")
    directory = bytearray()
    at = begin
    for _ in range(2):
        length, extra = struct.unpack_from("<2H", whole, at + 28)
        size, header = struct.unpack_from("<I", whole, at + 24)[0], struct.unpack_from("<I", whole, at + 42)[0]
        entry = bytearray(whole[at : at + 46 + length])
        struct.pack_into("<2I", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<H", entry, 30, 28)
        struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
        directory += entry + struct.pack("<2H3Q", 1, 24, size, size, header)
        at += 46 + length + extra
    end = begin + len(directory)
    record = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 2, 2, len(directory), begin)
    tail = b"PK\6\7" + struct.pack("<IQI", 0, end, 1) + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 2, 2, 2**32 - 1, 2**32 - 1, 0)
    found = read_tensors(write(tmp_path / "b", whole[:begin] + directory + record + tail), "pytorch_model.bin")["w"][0]
    assert found == plain
    for offset in (1 << 62, 1 << 63, (1 << 64) - 1):
        struct.pack_into("<Q", directory, len(directory) - 8, offset)
        error = refused(tmp_path / "c", whole[:begin] + directory + record + tail)
        assert type(error) is BadCheckpoint
        assert error.what == "has a directory that does not fit its member 'archive/data/0'"


def test_shapes_that_no_array_has(tmp_path: Path) -> None:
    pickled = state({"w": tensor((1 << 61, 0), strides=(0, 1))})
    assert refused(tmp_path / "m", archive(pickled)).what == "tensor 'w' claims an absurd size"


def test_an_adapter_beside_a_whole_model_is_no_reason(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", archive())
    write_safetensors(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert list(inspect(folder).tensors) == ["w"]
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(Unsupported, match=r"is an adapter \(LoRA\), not a whole model"):
        inspect(folder)


def test_weights_of_another_name_are_told_what_to_be_called(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", archive(), "owl.pt")
    with pytest.raises(QconvdError) as caught:
        inspect(folder)
    assert caught.value.what == "has a config.json but no weights yet"
    assert caught.value.fix == "add the model's safetensors; if owl.pt holds its weights, call it pytorch_model.bin"
    with pytest.raises(Unsupported, match="is not called as a model's weights are") as alone:
        inspect(folder / "owl.pt")
    assert alone.value.fix == f"call it pytorch_model.bin if it holds the model's weights, and give qconvd the folder: {folder}"
    (folder / "owl.pt").rename(folder / "optimizer.pt")
    with pytest.raises(QconvdError) as caught:
        inspect(folder)
    assert caught.value.fix == "add the model's safetensors"


STREAMS: dict[str, tuple[bytes, str]] = {
    "no magic": (PROTO + b"N" + STOP, "is a pickle, but none that torch.save made"),
    "another version": (stream().replace(b"M\xe9\x03", b"M\xea\x03"), "is of a version of torch's format that nobody knows"),
    "big endian": (stream(little_endian=False), "has its numbers in big-endian order, or does not say"),
    "a storage twice": (stream(keys=("0", "0")), "has its storage '0' twice"),
    "an unknown storage": (stream(keys=("0", "1")), "has a storage '1' that its pickle does not speak of"),
    "a storage too few": (stream(keys=()), "does not hold the storage '0', though its pickle says so"),
    "another count": (
        stream(bodies=[struct.pack("<q", 11) + data(48)]), "has 11 elements in its storage '0', where its pickle says 12",
    ),
    "more behind it": (stream() + b"more", "goes on for 4 bytes behind its last storage"),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_hostile_streams(tmp_path: Path, case: str) -> None:
    content, what = STREAMS[case]
    assert refused(tmp_path / "m", content).what == what


def test_training_runs_and_ckpt_files(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    error = refused(tmp_path / "a", (tmp_path / "a.pt").read_bytes(), "model.pt")
    assert error.what == "is the state of a training run, as its key 'optimizer' shows"
    assert error.fix.startswith("save its weights alone")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert look(tmp_path / "optimizer.pt").reason == "is the state of a training run, as its key 'param_groups' shows"
    torch.save(model, tmp_path / "whole.pt")
    assert "asks for 'torch.nn.modules.linear.Linear'" in look(tmp_path / "whole.pt").reason
    ckpt = refused(tmp_path / "c", (tmp_path / "a.pt").read_bytes(), "model.ckpt")
    assert ckpt.what == "PyTorch .ckpt files hold whole training runs, and are not read"


def survive(folder: Path, contents: list[bytes]) -> int:
    """How many were refused; anything but a QconvdError fails the test."""
    path = folder / "x"
    count = 0
    for content in contents:
        path.write_bytes(content)
        try:
            for stored, meant in read_tensors(folder, "x").values():
                assert stored.offset + stored.nbytes <= len(content)
                assert meant.nbytes == stored.nbytes
        except QconvdError as error:
            count += 1
            assert error.what
            assert len(str(error)) < 2000
    return count


def test_thousands_of_damaged_files(tmp_path: Path) -> None:
    held = {"w": tensor(), "v": tensor((4, 3), (1, 4)), "u": tensor((4,), offset=8)}
    zipped, streamed = archive(state(held)), stream(state(held))
    contents = scattered(zipped, len(zipped), 2000, seed=1) + scattered(streamed, len(streamed) - 48, 2000, seed=2)
    assert survive(tmp_path, contents) > 2300


def test_damaged_real_files(tmp_path: Path) -> None:
    contents = []
    for seed, new in enumerate((True, False)):
        buffer = io.BytesIO()
        layer = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3))
        torch.save(layer.state_dict(), buffer, _use_new_zipfile_serialization=new)
        contents += scattered(buffer.getvalue(), len(buffer.getvalue()), 1000, seed)
    assert survive(tmp_path, contents) > 500


def test_pickles_of_random_opcodes(tmp_path: Path) -> None:
    """Programs that are put together from pieces that mean something."""
    dice = random.Random(4)
    pieces = [
        storage(), tensor(), text("a"), number(7), number(-1), MARK, b"t", b"\x85", b"\x86", b"\x87", REDUCE, ORDERED, EMPTY,
        DICT, b"]", b"a", b"e", SETITEM, SETITEMS, b"q\1", b"h\1", b"N", b"0", b"b", PERSID, REBUILD, FALSE, b"\x94", b"h\0",
        b"ctorch\nSize\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n", b"ctorch\nfloat16\n",
        b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch\ndevice\n",
    ]  # fmt: skip
    contents = []
    for _ in range(2500):
        chosen = [dice.choice(pieces) for _ in range(dice.randint(1, 30))]
        contents.append(archive(PROTO + DICT + text("w") + tensor() + SETITEM + b"".join(chosen) + STOP))
    survive(tmp_path, contents)


def nested(count: int) -> bytes:
    """A tuple in a tuple in a tuple."""
    return PROTO + b"N" + b"\x85" * count + STOP


def doubled(count: int) -> bytes:
    """A tuple of twice the tuple before, which a walk would never get to the end of."""
    return PROTO + b"Nq\0" + b"h\0h\0\x86q\0" * count + STOP


def copied(count: int) -> bytes:
    """A list of 1,000 pairs that is made an OrderedDict again and again."""
    pairs = b"".join(tuple_of(number(i), b"N") for i in range(1000))
    return PROTO + b"](" + pairs + b"e\x85q\0" + (ORDERED + b"h\0" + REDUCE) * count + STOP


def shared(count: int) -> bytes:
    """A long list that lies under many names."""
    return state({"w": tensor(), "a": b"](" + b"N" * 900_000 + b"eq\0", **{f"{i}": b"h\0" for i in range(count)}})


def looked_through(count: int) -> bytes:
    """A list of the same pair 900,000 times, which makes an OrderedDict of one key, again and again."""
    pairs = tuple_of(text("a"), b"N") + b"q\1" + b"h\1" * 900_000
    return PROTO + b"](" + pairs + b"e\x85q\0" + (ORDERED + b"h\0" + REDUCE) * count + STOP


COSTLY: dict[str, bytes] = {
    "shared": archive(shared(90_000)),
    "looked through": archive(looked_through(200_000)),
    "deep": archive(nested(400_000)),
    "doubled": archive(doubled(150_000)),
    "doubled in a state dict": archive(state({"w": tensor(), "x": doubled(150_000)[2:-1]})),
    "copied": archive(copied(20_000)),
    "a long text": archive(PROTO + b"X\xff\xff\xff\xff" + data(100)),
    "a long pickle": archive(PROTO + (b"N0" * 900_000) + STOP),
    "a long name": archive(PROTO + b"c" + b"a" * 5_000_000),
    "empty dicts": archive(PROTO + DICT * 499_999 + STOP),
    "a huge storage": archive(state({"w": tensor((1 << 60,), stored=storage(numel=1 << 60))})),
    "a huge stream": stream(state({"w": tensor((1 << 60,), stored=storage(numel=1 << 60))})),
    "memo": archive(PROTO + b"N" + b"".join(b"r" + struct.pack("<I", i * 7919) for i in range(400_000)) + STOP),
    "a directory that is not there": archive()[:-14] + struct.pack("<2HIIH", 0xFFF0, 0xFFF0, 1 << 30, 10, 0)[2:],
}


@pytest.mark.parametrize("case", COSTLY)
def test_claims_cost_no_memory_and_little_time(tmp_path: Path, case: str) -> None:
    (tmp_path / "x").write_bytes(COSTLY[case])
    script = f"""
import resource
from pathlib import Path
from qconvd.checkpoints.torch.tensors import read_tensors
from qconvd.errors import QconvdError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_tensors(Path({str(tmp_path)!r}), "x")
except QconvdError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, preexec_fn=limits)
    assert result.returncode == 0, result.stderr
    if case not in ("doubled in a state dict", "shared"):  # whose weights are right, and the rest is not looked at
        assert int(result.stdout) < len(COSTLY[case]) * 3 / (1 << 20) + 100  # MiB
