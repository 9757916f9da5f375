"""`openwafer convert` from the outside: a run to Hugging Face and back, and its memory."""

import subprocess
import sys

import pytest
import torch

import openwafer as ow
from openwafer.base.errors import CheckpointError
from openwafer.cli import main
from openwafer.models import Decoder, DecoderConfig
from openwafer.models.interchange import Checkpoint, read_folder, write_native
from openwafer.train.convert import load_parameters, open_checkpoint
from openwafer.train.loop import fit
from tests.train.test_loop import config, quiet, shards  # noqa: F401

transformers = pytest.importorskip("transformers")


def test_a_run_becomes_a_model_of_transformers(config, tmp_path, capsys):  # noqa: F811
    run, out = config().run, tmp_path / "hf"
    fit(config("model.dropout=0"), console=quiet())
    assert main(["convert", str(run), str(out), "--licence", "mit", "--data", "Noise."]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip().endswith(str(out))
    assert "converting: 100 %" in shown.err
    assert "Noise." in (out / "README.md").read_text()
    twin = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    checkpoint = open_checkpoint(run)
    model = Decoder(checkpoint.config)
    load_parameters(model, checkpoint)
    ids = torch.randint(0, checkpoint.config.vocab_size, (1, 8))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids), twin(ids).logits, rtol=1e-5, atol=1e-5)

    assert main(["convert", str(out), str(tmp_path / "ours"), "--to", "openwafer"]) == 0
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    assert {tensor.dtype for _, tensor in read_folder(tmp_path / "half").tensors()} == {torch.bfloat16}


def test_mistakes_are_one_line(tmp_path, capsys):
    for arguments, message in (
        (["nowhere", "out"], "nowhere does not exist"),
        ([str(tmp_path), "out"], "has neither config.json"),
        ([str(tmp_path), "out", "--to", "onnx"], "the format is 'onnx'; it must be one of hf, openwafer, mdl, gguf"),
    ):
        assert main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_parameters_go_into_a_model_made_in_a_store(tmp_path):
    shape = DecoderConfig(hidden_size=32, num_layers=2, num_heads=2, vocab_size=99, max_positions=16)
    source = Decoder(shape)
    named = dict(source.named_parameters())
    write_native(Checkpoint(shape, lambda: iter(named.items()), "a test"), tmp_path / "m")
    with ow.init(tmp_path / "run") as store:
        model = Decoder(shape)
        load_parameters(model, read_folder(tmp_path / "m"))
        job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), store=store)
    assert all(torch.equal(value, named[name]) for name, value in job.named_parameters())
    job.close()
    with pytest.raises(CheckpointError, match=r"has wte.weight of shape \[99, 32\]; the model has \[98, 32\]"):
        load_parameters(Decoder(shape.resized(vocab_size=98)), read_folder(tmp_path / "m"))


WIDE = """
import resource, sys, torch
from pathlib import Path
from openwafer.models import CEREBRAS_GPT
from openwafer.models.interchange import Checkpoint, parameter_shapes, read_folder, write_folder, write_native

def make(num_layers, name):
    config = CEREBRAS_GPT["13b"].resized(num_layers=num_layers, hidden_size=2048, num_heads=16, ffn_size=None)
    shapes = parameter_shapes(config)
    tensors = lambda: ((name, torch.full(shape, 0.5)) for name, shape in shapes.items())
    write_native(Checkpoint(config, tensors, ""), Path(sys.argv[1]) / name)

make(1, "a")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
make(6, "b")
write_folder(read_folder(Path(sys.argv[1]) / "b"), Path(sys.argv[1]) / "c")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_memory_does_not_grow_with_the_layers(tmp_path):
    """Five more layers of 201 MB each cost nothing; the largest tensor is the embedding of 412 MB."""
    done = subprocess.run([sys.executable, "-c", WIDE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150
