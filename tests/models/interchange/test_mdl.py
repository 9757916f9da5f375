"""Cerebras checkpoints: round trips, ModelZoo's names and layout, and files that are refused."""

import json

import pytest
import torch

from openwafer.base.errors import CheckpointError
from openwafer.models import BTLM, Alibi, Decoder, Experts, RopeScaling, Rotary
from openwafer.models.interchange import (
    Checkpoint,
    from_modelzoo,
    read_folder,
    read_mdl,
    to_modelzoo,
    write_folder,
    write_mdl,
)
from openwafer.train.convert import open_checkpoint
from tests.models.interchange.test_hugging_face import BTLM_SHAPES, GPT2, SHAPES, llama, load, write
from tests.models.test_families import reduced, tiny, tokens

h5py = pytest.importorskip("h5py")
MOE = reduced("mixtral-8x7b").resized(
    positions=Alibi(), norm="layernorm", qkv_bias=True, attention_out_bias=True, mlp_bias=True,
    experts=Experts(num_experts=4, top_k=1, num_shared=1, null_probability=1.1),
)  # fmt: skip
ALL = {name: config for name, config in {**SHAPES, **BTLM_SHAPES, "moe": MOE}.items() if "dynamic" not in name}
del ALL["llama-yarn-fine"]  # ModelZoo's YAML has no mscale


def written(model, path, **options):
    named = dict(model.named_parameters())
    write_mdl(Checkpoint(model.config, lambda: iter(named.items()), "a test"), path, **options)
    return path


def read(path):
    checkpoint = read_mdl(path)
    model = Decoder(checkpoint.config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in checkpoint.tensors():
            named.pop(name).copy_(tensor)
    assert not named
    return model.eval()


@pytest.mark.parametrize("shape", ALL)
def test_round_trips_are_bit_exact(shape, tmp_path):
    model, ids = tiny(ALL[shape]), tokens() % ALL[shape].vocab_size
    again = read(written(model, tmp_path / "c.mdl"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again(ids), model(ids))


def test_from_hugging_face_and_back(tmp_path):
    model = tiny(llama(num_kv_heads=2))
    write(model, tmp_path / "hf")
    write_mdl(read_folder(tmp_path / "hf"), tmp_path / "c.mdl")
    write_folder(open_checkpoint(tmp_path / "c.mdl"), tmp_path / "again")
    again = load(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_sixteen_bits_are_kept(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny(GPT2).to(dtype)
        checkpoint = read_mdl(written(model, tmp_path / f"{dtype}.mdl"))
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in checkpoint.tensors())


def test_names_and_layout_of_modelzoo(tmp_path):
    """mlstack.md, section 4.1: norm3, linear_layer_for_glu, the final norm twice, the head tied."""
    model = tiny(BTLM_SHAPES["btlm"])
    with h5py.File(written(model, tmp_path / "c.mdl")) as file:
        layer, prefix = model.layers[1], "model.model.transformer_decoder.layers.1"
        for name, value in {
            "self_attn.proj_k_dense_layer.weight": layer.attn.qkv.weight[48:96],
            "norm3.bias": layer.ln_2.bias,
            "ffn.ffn.0.linear_layer.weight": layer.mlp.up.weight,
            "ffn.ffn.0.linear_layer_for_glu.weight": layer.mlp.gate.weight,
            "ffn.ffn.1.linear_layer.weight": layer.mlp.down.weight,
        }.items():
            assert torch.equal(torch.from_numpy(file[f"{prefix}.{name}"][...]), value), name
        assert file["model.model.embedding_layer.position_embed_helper.slopes"].shape == (6, 1)
        assert file.attrs["__SUCCESS__"] and file.attrs["__version__"] == 0.5
        head = "model.model.lm_head.weight.__metadata__"
        alias = json.loads(file.attrs[head])[head]
        assert alias["__LINKED__"] and alias["key"] == "model.model.embedding_layer.word_embeddings.weight"
        assert "model.model.lm_head.weight" not in file


def test_rotating_neighbours(tmp_path):
    """ModelZoo rotates dimensions 0 and 1, 2 and 3, ...; ours 0 and half, 1 and half + 1, ..."""
    model = tiny(llama())
    with h5py.File(written(model, tmp_path / "c.mdl")) as file:
        theirs = file["model.model.transformer_decoder.layers.0.self_attn.proj_q_dense_layer.weight"][...]
    ours = model.layers[0].attn.qkv.weight.detach().numpy()
    for head in (0, 3):
        for pair in range(8):
            assert (theirs[16 * head + 2 * pair] == ours[16 * head + pair]).all()
            assert (theirs[16 * head + 2 * pair + 1] == ours[16 * head + 8 + pair]).all()


@pytest.mark.parametrize("layout", ["functional", "fused"])
def test_the_other_layouts_of_experts(layout, tmp_path):
    model = tiny(reduced("mixtral-8x7b"))
    with h5py.File(written(model, tmp_path / "c.mdl"), "a") as file:
        for name in [name for name in file if ".ffn.experts.experts." in name]:
            before, after = name.split(".experts.experts.")
            number, rest = after.split(".", 1)
            if layout == "functional":
                file.move(name, f"{before}.experts.experts.{number}.ffn.{rest}")
            elif number == "0":
                each = [file[f"{before}.experts.experts.{i}.{rest}"][...] for i in range(8)]
                stacked = torch.stack([torch.from_numpy(one) for one in each], dim=1).numpy()
                fused = f"{before}.experts.fused_ffns.{rest.removesuffix('.weight')}.expert_weights"
                file.create_dataset(fused, data=stacked).attrs["dtypes"] = ["torch.float32"]
    again = read(tmp_path / "c.mdl")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_compressed_file_is_read(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    model = tiny(GPT2)
    name = "model.model.embedding_layer.word_embeddings.weight"
    with h5py.File(written(model, tmp_path / "c.mdl"), "a") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        dataset = file.create_dataset(name, data=model.wte.weight.detach().numpy(), **hdf5plugin.LZ4())
        dataset.attrs.update(attributes)
    assert torch.equal(read(tmp_path / "c.mdl").wte.weight, model.wte.weight)


# --- the model section ----------------------------------------------------------------------------------------------


def test_modelzoo_sections_both_ways():
    for config in ALL.values():
        again = from_modelzoo(to_modelzoo(config), "test")
        for name in "positions mup experts window head_dim num_kv_heads score_scale logits_scale".split():
            assert getattr(again, name) == getattr(config, name), name


def test_the_published_btlm_section():
    """The model section of params_btlm_2p7b_8k.yaml, by what matters here."""
    section = {
        "name": "btlm", "hidden_size": 2560, "position_embedding_type": "alibi", "max_position_embeddings": 8192,
        "vocab_size": 50257, "num_hidden_layers": 32, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-5, "num_heads": 32,
        "filter_size": 6826, "nonlinearity": "swiglu", "mup_base_filter_size": 682.6, "mup_base_hidden_size": 256,
        "output_logits_alpha": 2.22, "scale_qk_dot_by_d": True, "embeddings_scale": 14.6,
    }  # fmt: skip
    assert from_modelzoo(section, "test").resized(init_std=0.073) == BTLM["3b-8k"]


def test_factors_before_release_2_3_stand_for_themselves():
    section = to_modelzoo(GPT2) | {"output_logits_scale": 0.3651, "embeddings_scale": 9.1706, "scale_qk_dot_by_d": True}
    config = from_modelzoo(section, "test")
    assert (config.logits_scale, config.embeddings_scale) == (0.3651, 9.1706)
    assert config.score_scale == 1 / config.head_dim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "bert"}, "model.name is 'bert'"),
        ({"attention_logit_softcapping": 30.0}, "attention_logit_softcapping: 30.0 is not built here"),
        ({"position_embedding_type": "relative"}, "'relative': should be 'learned', 'rotary' or 'alibi'"),
        ({"moe": {"num_experts": 4, "routing_algorithm": "hash"}}, "moe.routing_algorithm is 'hash'"),
        ({"num_hidden_layers": 0}, "model.num_hidden_layers is 0: should be greater than or equal to 1"),
        ({"hiden_size": 8}, "model.hiden_size is 8: Extra inputs"),
    ],
)
def test_sections_that_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        from_modelzoo(to_modelzoo(GPT2) | changes, "test")


def test_what_the_yaml_cannot_express_is_refused(tmp_path):
    scaling = RopeScaling(kind="dynamic", factor=2.0)
    for config in (llama(positions=Rotary(scaling=scaling)), SHAPES["llama-yarn-fine"], BTLM_SHAPES["dynamic"]):
        with pytest.raises(CheckpointError, match="ModelZoo"):
            written(tiny(config), tmp_path / "c.mdl")
    assert not list(tmp_path.iterdir())


# --- damaged and hostile --------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return written(tiny(GPT2), tmp_path / "c.mdl")


@pytest.mark.parametrize("keep", [0, 8, 1000, -1])
def test_a_truncated_file(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"not a whole HDF5 file|unknown kind"):
        open_checkpoint(file) if keep else read_mdl(file)


def test_an_unfinished_file(file):
    with h5py.File(file, "a") as opened:
        opened.attrs["__SUCCESS__"] = False
    with pytest.raises(CheckpointError, match="was not finished"):
        read_mdl(file)
    with h5py.File(file, "a") as opened:
        opened.attrs["__version__"] = 0.4
    with pytest.raises(CheckpointError, match=r"format version 0.4"):
        read_mdl(file)


def test_links_out_of_the_file(file, tmp_path):
    name = "model.model.ln_f.weight"
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as opened:
        opened.create_dataset("x", data=torch.zeros(48).numpy())
    for link in (h5py.ExternalLink(str(secret), "/x"), h5py.SoftLink("/elsewhere")):
        with h5py.File(file, "a") as opened:
            del opened[name]
            opened[name] = link
        with pytest.raises(CheckpointError, match="lies outside of the file"):
            list(read_mdl(file).tensors())
    with h5py.File(file, "a") as opened:
        del opened[name]
        opened.create_dataset(name, (48,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(CheckpointError, match="lies outside of the file"):
        list(read_mdl(file).tensors())


def test_mislabelled_tensors(file):
    name = "model.model.ln_f.weight"
    with h5py.File(file, "a") as opened:
        opened[name].attrs["dtypes"] = ["torch.bfloat16"]
    with pytest.raises(CheckpointError, match=r"stored as torch.float32, but says that it is torch.bfloat16"):
        list(read_mdl(file).tensors())
    with h5py.File(file, "a") as opened:
        opened[name].attrs["dtypes"] = ["torch.complex64"]
    with pytest.raises(CheckpointError, match=r"has dtype torch.complex64"):
        list(read_mdl(file).tensors())
    with h5py.File(file, "a") as opened:
        del opened[name]
    with pytest.raises(CheckpointError, match=r"lacks model.model.ln_f.weight"):
        list(read_mdl(file).tensors())


def test_a_yaml_that_does_not_belong(file):
    key = "__metadata__.0.params.trainer.init.model.num_hidden_layers"
    with h5py.File(file, "a") as opened:
        text = json.loads(opened.attrs[f"{key}.__metadata__"])
        text[f"{key}.__metadata__"]["scalar_value"] = 10**9
        opened.attrs[f"{key}.__metadata__"] = json.dumps(text)
    with pytest.raises(CheckpointError, match="asks for 1000000000 layers"):
        read_mdl(file)
    with h5py.File(file, "a") as opened:
        opened.attrs[f"{key}.__metadata__"] = "{"
    with pytest.raises(CheckpointError, match="is not understood"):
        read_mdl(file)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def tensors():
        yield "wte.weight", torch.zeros(211, 48)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mdl(Checkpoint(GPT2, tensors, "a test"), tmp_path / "c.mdl")
    assert not list(tmp_path.iterdir())
