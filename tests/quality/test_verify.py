"""Verification: what passes, and what each kind of damage is told as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converted import Converted, converted, rehashed
from qconvd.api import ContainerSpec, Encoded, OutputTensor, Plan, QconvdError, Read, RowSplit, Unit, Whole, container
from qconvd.engine.manifest import ManifestFile, read_manifest, write_manifest
from qconvd.plugins import plugins
from qconvd.quality.rows import sampled
from qconvd.quality.verify import Failure, Report, verify_path

SHAPES = {"model.embed_tokens.weight": (40, 16), "model.layers.0.mlp.weight": (300, 16), "model.norm.weight": (16,)}


def make_model(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """A float32 model of three tensors, after `change`."""
    rng = np.random.default_rng(5)
    tensors: dict[str, Any] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    tensors["position_ids"] = np.arange(9, dtype=np.int64)
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Converted:
    return converted(make_model(tmp_path / "m"), tmp_path / "work")


def patch(made: Converted, tensor: str, index: int, value: float) -> Path:
    """Overwrite one fp16 weight in place."""
    placed = next(p for f in made.plan.files for p in f.tensors if p.tensor == tensor)
    path = made.folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(placed.offset + 2 * index)
        with np.errstate(over="ignore"):
            file.write(np.float16(value).tobytes())
    return path


def refused(made: Converted, **changes: Any) -> str:
    with pytest.raises(QconvdError) as caught:
        made.verify(**changes)
    return str(caught.value)


def test_a_right_artifact_passes_and_says_what_was_looked_at(made: Converted) -> None:
    report = made.verify()
    assert (report.artifact, report.files, report.tensors, report.sha256) == ("m", 2, 4, True)
    assert report.rows == 40 + 300 + 1 + 1
    assert 0 < report.worst <= 1
    assert report.worst_tensor in SHAPES
    assert 0 < report.max_error < 0.002
    assert report.non_finite == {}
    assert report.not_checked == ()
    assert json.loads(json.dumps(report.as_dict()))["rows"] == 342
    assert made.verify() == report


def test_first_and_last_rows_are_always_sampled(made: Converted) -> None:
    for index in (0, 299 * 16 + 15):
        before = (made.folder / "model.safetensors").read_bytes()
        path = patch(made, "model.layers.0.mlp.weight", index, 9.5)
        message = refused(rehashed(made))
        row, column = divmod(index, 16)
        assert message.startswith(
            f"{path}, tensor model.layers.0.mlp.weight: row {row}, column {column} holds 9.5, the model has "
        )
        assert "fp16 may differ by " in message
        path.write_bytes(before)


@pytest.mark.parametrize("alike", [True, False])
def test_places_are_asked_about_together_where_rows_are_alike(tmp_path: Path, alike: bool) -> None:
    asked = []

    class Asked(type(plugins().formats["fp16"])):  # type: ignore[misc]
        rows_alike = alike

        def decode(self, unit: Any, rows: Any, data: Any) -> Any:
            if "mlp" in unit.id:
                asked.append(rows)
            return super().decode(unit, rows, data)

    rng = np.random.default_rng(6)
    mlp = rng.standard_normal((2000, 16)).astype(np.float32)
    model = make_model(tmp_path / "m", lambda tensors: tensors.update({"model.layers.0.mlp.weight": mlp}))
    made = converted(model, tmp_path / "work", Asked())
    assert made.verify(formats={"fp16": Asked()}).rows == 5 * 128 - 48 + 40 + 1 + 1
    places = [(0, 128), (512, 640), (1024, 1152), (1408, 1536), (1920, 2000)]
    assert asked == ([(0, 592)] if alike else places)
    patch(made, "model.layers.0.mlp.weight", 1030 * 16 + 3, 9.5)
    assert "row 1030, column 3 holds 9.5, the model has " in refused(rehashed(made), formats={"fp16": Asked()})


def test_other_bytes_are_found_by_their_hash(made: Converted) -> None:
    path = patch(made, "model.layers.0.mlp.weight", 1000, 1.0)
    message = refused(made)
    assert message.startswith(f"{path}: has other bytes than were written: SHA-256 ")
    (made.folder / "config.json").write_text((made.folder / "config.json").read_text().replace("llama", "LLAMA"))
    assert f"{made.folder / 'config.json'}: has other bytes" in refused(rehashed_only(made, "model.safetensors"))


def rehashed_only(made: Converted, name: str) -> Converted:
    fresh = {f.path: f for f in rehashed(made).manifest.files}
    files = tuple(fresh[f.path] if f.path == name else f for f in made.manifest.files)
    return replace(made, manifest=replace(made.manifest, files=files))


def test_a_nan_that_the_model_has_not_is_a_failure_wherever_it_is(made: Converted) -> None:
    path = patch(made, "model.layers.0.mlp.weight", 16 * 151 + 3, np.nan)
    message = refused(rehashed(made))
    assert message.startswith(f"{path}, tensor model.layers.0.mlp.weight: row 151, column 3 holds nan, the model has ")
    by_hand = refused(rehashed(made), plan=None, model=None)
    assert by_hand.startswith(
        f"{made.folder}, tensor model.layers.0.mlp.weight: holds 1 NaN and 0 infinite values, and the model has none"
    )


def test_an_infinity_that_is_no_overflow_is_a_failure(made: Converted) -> None:
    patch(made, "model.layers.0.mlp.weight", 16 * 152, np.inf)
    assert "row 152, column 0 holds inf, the model has " in refused(rehashed(made))


def test_nan_and_overflow_of_the_model_are_reported(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.weight"][77, 5] = np.nan
        tensors["model.layers.0.mlp.weight"][78, 5] = -np.inf
        tensors["model.embed_tokens.weight"][11, 1] = 1e6

    made = converted(make_model(tmp_path / "m", change), tmp_path / "work")
    report = made.verify()
    assert report.non_finite == {
        "model.embed_tokens.weight": {"nan": 0, "inf": 1}, "model.layers.0.mlp.weight": {"nan": 1, "inf": 1},
    }  # fmt: skip
    assert report.rows == 40 + 300 + 1 + 1
    by_hand = made.verify(plan=None, model=None)
    assert by_hand.non_finite == report.non_finite
    path = patch(made, "model.layers.0.mlp.weight", 16 * 79, np.nan)
    assert f"{path}, tensor model.layers.0.mlp.weight: row 79, column 0 holds nan" in refused(rehashed(made))


def test_refusal_of_nan_holds_for_an_encoder_that_does_not_look(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][3] = np.nan

    made = converted(make_model(tmp_path / "m", change), tmp_path / "work")
    strict = replace(made.manifest, options={**made.manifest.options, "non_finite": "refuse"})
    assert refused(made, manifest=strict) == (
        f"{made.folder}, tensor model.norm.weight: the model has 1 NaN and 0 infinite weights there, "
        "and `non_finite: refuse` is set\n  mend the model, or convert it with `non_finite: report`"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"non_finite": "refuse"}, "model.norm.weight: has 1 NaN and 0 infinite weights, and `non_finite: refuse` is set"),
        ({"on_overflow": "refuse"}, "model.norm.weight: 1 weights in rows 0 to 0 are too large for F16"),
    ],
)
def test_the_engine_fails_a_target_that_refuses(tmp_path: Path, options: dict[str, str], message: str) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][3:5] = (np.nan, 1e30)

    with pytest.raises(QconvdError, match=message):
        converted(make_model(tmp_path / "m", change), tmp_path / "work", **options)
    assert not list((tmp_path / "work").glob("files/*"))


def test_a_missing_and_a_truncated_file(made: Converted) -> None:
    path = made.folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    assert refused(made) == f"{path}: has {len(data) - 2} bytes, the manifest says {len(data)}\n  convert it again"
    assert f"{path}: the safetensors library cannot read it: " in refused(rehashed(made), plan=None)
    path.unlink()
    assert refused(made).startswith(f"{path}: is missing, and the manifest names it")


def test_files_are_held_against_the_plan(made: Converted) -> None:
    extra = made.folder / "extra.txt"
    extra.write_text("?")
    more = replace(made.manifest, files=(*made.manifest.files, ManifestFile("extra.txt", 1, sha256(b"?").hexdigest())))
    assert refused(made, manifest=more).startswith(f"{extra}: no such file was planned, a file of 1 bytes was made")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.norm.weight", "model.nrom.weight", "model.norm.weight: was planned and is not in the file"),
        ("[300,16]", "[600, 8]", "model.layers.0.mlp.weight: F16 [600, 8], 9600 bytes at "),
        ('"F16","shape":[16]', '"I16","shape":[16]', "model.norm.weight: I16 [16], 32 bytes at "),
    ],
)
def test_tensors_are_held_against_the_plan(made: Converted, old: str, new: str, message: str) -> None:
    path = made.folder / "model.safetensors"
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode()))
    text = refused(rehashed(made))
    assert text.startswith(f"{path}, tensor {message}")
    assert text.endswith("\n  convert it again")


def test_a_tensor_too_many(made: Converted) -> None:
    path = made.folder / "model.safetensors"
    save_file({**load_file(path), "more": np.zeros(1, np.float16)}, path)
    files = tuple(replace(f, nbytes=path.stat().st_size) for f in made.plan.files)
    text = refused(rehashed(made), plan=replace(made.plan, files=files))
    assert text.startswith(f"{path}, tensor more: is in the file and was not planned")


def test_an_index_that_sends_readers_astray(tmp_path: Path) -> None:
    made = converted(make_model(tmp_path / "m"), tmp_path / "work", max_shard_size="2KB")
    made.verify()
    path = made.folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    path.write_text(json.dumps(index))
    message = refused(rehashed(made), plan=None)
    assert message.startswith(f"{path}: sends readers to other files than the tensors are in")


def test_a_manifest_may_not_lead_out_of_its_folder(made: Converted) -> None:
    for name in ("../secret", "/etc/passwd", ""):
        wrong = replace(made.manifest, files=(ManifestFile(name, 1, "00"),))
        assert (
            refused(made, manifest=wrong, plan=None)
            == f"{made.folder}: the manifest names {name!r}, which is outside the folder"
        )


def test_a_model_that_changed_meanwhile(made: Converted) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.weight"][0] += 1

    shutil.rmtree(made.model.path)
    make_model(made.model.path, change)
    assert "tensor model.layers.0.mlp.weight: row 0, column 0 holds " in refused(made)


def test_a_decoder_of_the_wrong_shape_is_a_defect_of_the_format(made: Converted) -> None:
    class Wrong(type(made.format)):  # type: ignore[misc]
        def decode(self, unit: Any, rows: Any, data: Any) -> Any:
            return (super().decode(unit, rows, data)[0][:, 1:],)

    message = refused(made, formats={"fp16": Wrong()})
    assert "rows 0 to 39 decode to (40, 15), the model has (40, 16)" in message


def test_a_wrong_row_of_an_input_with_more_rows_than_the_unit_is_named(tmp_path: Path) -> None:
    class Two(type(plugins().formats["fp16"])):  # type: ignore[misc]
        """One unit of two tensors, the second of which has more rows, and one of these is wrong."""

        def plan(self, model: Any, options: Any) -> Plan:
            names = ("model.embed_tokens.weight", "model.layers.0.mlp.weight")
            found = [model.tensors[name] for name in names]
            outputs = [OutputTensor(t.name, "F32", t.shape, t.nbytes) for t in found]
            unit = Unit("both", None, tuple(Read.of(t) for t in found), tuple(outputs), rows=Whole(), memory={"cpu": 1 << 20})
            spec = ContainerSpec("safetensors", (("format", "str", "pt"),))
            files = container("safetensors").layout(spec, outputs)
            return Plan(container=spec, files=files, units=(unit,), name=self.name_parts(options))

        def encoder(self, plan: Any, device: Any) -> Any:
            class Encoder:
                def encode(self, unit: Any, rows: Any, x: Any, stats: Any) -> Encoded:
                    second = x[1].copy()
                    second[270, 3] += 9
                    return Encoded((x[0], second))

            return Encoder()

        def decode(self, unit: Any, rows: Any, data: Any) -> Any:
            return [np.frombuffer(d, "<f4").reshape(-1, 16) for d in data]

        def bound(self, unit: Any, rows: Any, x: Any, stats: Any) -> Any:
            return [np.zeros_like(v) for v in x]

    made = converted(make_model(tmp_path / "m"), tmp_path / "work", Two())
    assert "tensor model.layers.0.mlp.weight: row 270, column 3 holds " in refused(made, formats={"fp16": Two()})


def test_an_encoder_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    class Wrong(type(plugins().formats["fp16"])):  # type: ignore[misc]
        def encoder(self, plan: Any, device: Any) -> Any:
            inner = super().encoder(plan, device)

            class Encoder:
                def encode(self, unit: Any, rows: Any, x: Any, stats: Any) -> Encoded:
                    encoded = inner.encode(unit, rows, x, stats)
                    return Encoded((np.nextafter(encoded.data[0], np.float16(9)) if "mlp" in unit.id else encoded.data[0],))

            return Encoder()

    made = converted(make_model(tmp_path / "m"), tmp_path / "work", Wrong())
    assert "tensor model.layers.0.mlp.weight: row 0, column 0 holds " in refused(made)


def test_by_hand_an_artifact_passes_without_its_model(made: Converted) -> None:
    for path in (made.folder, made.folder / "model.safetensors"):
        (report,) = verify_path(path)
        assert isinstance(report, Report)
        assert report.sha256
        assert report.rows == 0
        assert report.not_checked == (
            "names, shapes and places of the tensors: there is no plan to hold them against",
            "the weights themselves: the model they came from is not at hand",
        )


def test_by_hand_files_without_a_manifest_are_parsed_and_scanned(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", lambda t: t["model.norm.weight"].__setitem__(0, np.nan))
    (report,) = verify_path(folder)
    assert isinstance(report, Report)
    assert report.artifact == "m"
    assert report.non_finite == {"model.norm.weight": {"nan": 1, "inf": 0}}
    assert not report.sha256
    assert report.not_checked[0] == "sizes and SHA-256: there is no manifest of qconvd beside it"
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    (failure,) = verify_path(folder)
    assert isinstance(failure, Failure)
    assert "the safetensors library cannot read it" in failure.error.what


def test_by_hand_a_file_whose_manifest_is_damaged_is_not_right(made: Converted) -> None:
    (made.folder / "qconvd.json").write_text("{")
    (found,) = verify_path(made.folder / "model.safetensors")
    assert isinstance(found, Failure)
    assert str(found.error).startswith(f"{made.folder / 'qconvd.json'}: is not valid JSON: ")
    assert str(found.error).endswith("\n  remove it and the files that it was about, and convert again")


def test_by_hand_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(QconvdError, match="there is no such file or folder"):
        verify_path(tmp_path / "none")
    (tmp_path / "a.txt").write_text("")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(QconvdError, match="holds no manifest of qconvd and no weights"):
            verify_path(path)


def test_by_hand_only_the_artifact_that_is_pointed_at(made: Converted, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / ".qconvd").mkdir(parents=True)
    for name in ("a", "b"):
        shutil.copy(made.folder / "model.safetensors", shared / f"{name}.safetensors")
        file = next(f for f in made.manifest.files if f.path == "model.safetensors")
        mine = replace(made.manifest, artifact=name, files=(replace(file, path=f"{name}.safetensors"),))
        write_manifest(shared / ".qconvd" / f"{name}.json", mine)
    assert [r.artifact for r in verify_path(shared)] == ["a", "b"]
    assert [r.artifact for r in verify_path(shared / "b.safetensors")] == ["b"]


def test_the_manifest_in_the_artifact_is_the_one_that_was_verified(made: Converted) -> None:
    assert read_manifest(made.folder / "qconvd.json") == made.manifest


def test_verifying_holds_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.weight"] = np.ones((1 << 14, 1 << 10), np.float32)

    made = converted(make_model(tmp_path / "m", change), tmp_path / "work")
    tracemalloc.start()
    try:
        made.verify()
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_of_units_in_tall_pieces_fewer_places_are_sampled() -> None:
    def unit(rows: int, columns: int) -> Unit:
        read = Read("w", "F16", (rows, columns))
        return Unit("w", None, (read,), (OutputTensor("w", "F16", (rows, columns), 2 * rows * columns),), RowSplit(128))

    # 128 rows of 16 are 2048 weights; of 8192, a million.
    assert list(sampled(unit(2000, 16))) == [(0, 128), (512, 640), (1024, 1152), (1408, 1536), (1920, 2000)]
    assert list(sampled(unit(256, 8192))) == [(0, 128), (128, 256)]
    assert list(sampled(unit(4096, 8192))) == [(0, 128), (2048, 2176), (3968, 4096)]
    assert list(sampled(unit(100, 8192))) == [(0, 100)]
    tall = list(sampled(unit(8192, 8192)))
    assert len(tall) == 4
    assert (tall[0], tall[-1]) == ((0, 128), (8064, 8192))
    assert len(list(sampled(unit(128 * 128, 8192)))) == 5
