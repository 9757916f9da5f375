"""Damaged, mislabelled and hostile files: each is refused with an error that says what is wrong; nothing is left."""

import json
import os
import pickle
import re
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openwafer.base.errors import CheckpointError, ConfigError
from openwafer.models.interchange import Checkpoint, read_folder, write_folder
from openwafer.models.interchange.safetensors_file import SafetensorsFile, SafetensorsWriter
from tests.models.test_families import reduced, tiny


@pytest.fixture
def folder(tmp_path):
    """A whole checkpoint in several files."""
    model = tiny(reduced("llama-2-7b"))
    named = dict(model.named_parameters())
    path = tmp_path / "m"
    write_folder(Checkpoint(model.config, lambda: iter(named.items()), "a test"), path, shard_bytes=100_000)
    return path


def read(folder):
    return dict(read_folder(folder).tensors())


def first_shard(folder):
    return min(folder.glob("model-00001*"))


def change(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({name: part for name, part in value.items() if part != "gone"}))


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("opened-a-pickle",)


def test_the_whole_one_is_read(folder):
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert len(read(folder)) == 2 + 2 * 7 + 1


def test_our_files_are_what_the_format_says(folder):
    """The format's own library reads them and finds the same."""
    for path in folder.glob("*.safetensors"):
        ours, other = SafetensorsFile(path), load_file(path)
        assert set(ours.places) == set(other)
        assert all(torch.equal(ours.read(name), tensor) for name, tensor in other.items())
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        ours.close()


def test_a_shape_without_elements_and_one_without_dimensions(tmp_path):
    writer = SafetensorsWriter(tmp_path, 2, 1000)
    writer.write("none", torch.empty(0, 3))
    writer.write("one", torch.tensor(2.5))
    writer.close()
    assert load_file(tmp_path / "model.safetensors")["one"] == 2.5
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert file.read("none").shape == (0, 3)
    file.close()


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_file(folder, keep):
    data = first_shard(folder).read_bytes()
    first_shard(folder).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        read_folder(folder)


def test_a_file_with_more_than_its_tensors(folder):
    with first_shard(folder).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="the rest belongs to no tensor"):
        read_folder(folder)


def test_a_file_that_shrinks_while_it_is_read(folder):
    tensors = read_folder(folder).tensors()
    next(tensors)
    for path in folder.glob("*.safetensors"):
        os.truncate(path, 4096)
    with pytest.raises(CheckpointError, match=r"truncated|ended while it was read"):
        list(tensors)


@pytest.mark.parametrize("length", [200_000_000, 2**62, 2**64 - 1])
def test_a_huge_header(folder, length):
    first_shard(folder).write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match=f"header of {length} bytes; at most 100000000"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "is a JSON list; it must be an object"),
        (b"{", "is not JSON"),
        (b"[" * 90_000, "is not JSON"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b'{"a": 7}', "the entry of tensor 'a' is not understood"),
        (b'{"a": {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}}', "not understood"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "not understood"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "not understood"),
        (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', "not understood"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "takes 8 bytes, but 4 are given"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            "begins at byte 4, the one before ends at 0",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "begins at byte 0, the one before ends at 4",
        ),
        (b'{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 399999999996]}}', "it is truncated"),
    ],
)
def test_a_header_that_lies(tmp_path, header, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        SafetensorsFile(path)


def test_a_pickle_is_never_opened(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    first_shard(folder).write_bytes(bomb + b" " * 100)
    with pytest.raises(CheckpointError, match="is a pickle or a zip archive under another name"):
        read_folder(folder)
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle, which can run code"):
        read_folder(folder)
    assert not (tmp_path / "opened-a-pickle").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "x.bin",
        "..\\x.safetensors",
        "a\0.safetensors",
        ".hidden.safetensors",
        7,
        None,
        ["x"],
    ],
    ids=str,
)
def test_a_path_in_the_index(folder, name):
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map=weight_map | {"lm_head.weight": name})
    with pytest.raises(CheckpointError, match=r"only the name of a .safetensors file in the same folder is followed"):
        read_folder(folder)


def test_an_index_that_is_wrong(folder):
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    last = max(folder.glob("*.safetensors")).name
    change(index, weight_map=weight_map | {"model.embed_tokens.weight": last})
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight' is in model-.*; it is not"):
        read_folder(folder)
    change(index, weight_map={name: file for name, file in weight_map.items() if name != "model.norm.weight"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of 21 tensors, model.norm.weight for instance"):
        read_folder(folder)
    change(index, weight_map="gone")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        read_folder(folder)
    first_shard(folder).unlink()
    change(index, weight_map=weight_map)
    with pytest.raises(CheckpointError, match=r"cannot open .*No such file"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 layers"),
        (
            {"hidden_size": 10**8, "head_dim": None, "num_attention_heads": 1, "num_key_value_heads": 1},
            "parameters, its files hold 21 tensors",
        ),
        ({"num_hidden_layers": 1}, "9 tensors that its config.json does not account for"),
        (
            {"intermediate_size": 128},
            r"make a layers.0.mlp.gate.weight of shape \[256, 64\]; the configuration asks for",
        ),
        ({"num_key_value_heads": 2}, "do not fit together: model.layers.0.self_attn.q_proj.weight"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be a whole number above 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; it must be a number"),
        ({"model_type": "unheard"}, "model_type is 'unheard'; gpt2, btlm"),
        ({"model_type": "gpt2"}, r"hidden_act, .* may change what the model computes"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not built here"),
        ({"new_trick": 3}, "new_trick may change what the model computes"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "positions.scaling.kind is 'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "spin": 1}}, "rope_scaling has spin"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be true or false"),
        ({"rope_scaling": "yes"}, "does not describe a model"),
    ],
    ids=str,
)
def test_a_config_that_does_not_belong(folder, changes, message):
    change(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_a_tied_head_that_differs(folder, tmp_path):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    change(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"ties the output to the embedding, but lm_head.weight differs"):
        read(folder)


def test_integers_are_no_parameters(folder):
    path = first_shard(folder)
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="parameters are floats"):
        read(folder)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"has neither config.json"):
        read_folder(tmp_path)


# --- nothing half-written ------------------------------------------------------------------------------------------


def failing(folder, after):
    source = read_folder(folder)

    def tensors():
        for number, item in enumerate(source.tensors()):
            if number == after:
                raise KeyboardInterrupt
            yield item

    return Checkpoint(source.config, tensors, "a test")


@pytest.mark.parametrize("after", [0, 5, 16])
def test_an_interrupted_conversion_leaves_nothing(folder, after):
    out = folder.parent / "out" / "deep"
    with pytest.raises(KeyboardInterrupt):
        write_folder(failing(folder, after), out)
    assert list(out.parent.iterdir()) == []


def test_a_source_that_breaks_half_way_leaves_nothing(folder):
    last = max(folder.glob("*.safetensors"))
    source = read_folder(folder)
    os.truncate(last, 9000)
    with pytest.raises(CheckpointError):
        write_folder(source, folder.parent / "out")
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_what_a_killed_process_left_is_removed(folder):
    left = folder.parent / ".out.99999999.partial"
    left.mkdir()
    (left / "x").write_text("half")
    write_folder(read_folder(folder), folder.parent / "out")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["m", "out"]


def test_nothing_is_overwritten(folder):
    with pytest.raises(ConfigError, match="exists: give a name that does not exist yet"):
        write_folder(read_folder(folder), folder)
    assert len(read(folder)) == 17
