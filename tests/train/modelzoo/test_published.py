"""`make modelzoo` on trainer files in the form of the published ones: what passes, and what a failure says."""

import pytest
from files import BTLM, LLAMA_8B, MIXTRAL_8X7B, dump, loader, trainer

from openwafer.train.modelzoo.published import main

WINDOW = {**LLAMA_8B, "attention_sliding_window_length": 8192, "attention_sink_tokens": 512, "num_hidden_layers": 2}
NEMO = {**LLAMA_8B, "name": "mistral", "hidden_size": 5120, "attention_inner_dim": 4096, "num_hidden_layers": 2}


def put(folder, name, model, **options):
    model = {**model, "max_position_embeddings": min(2048, model["max_position_embeddings"])}
    tree = trainer(model, loader("nowhere", 64, **options), loop={"max_steps": 100, "eval_frequency": 50})
    tree["trainer"]["fit"]["val_dataloader"] = loader("nowhere", 64)
    return dump(tree, folder / f"{name}.yaml")


def test_files_of_every_family_pass(tmp_path, monkeypatch, capsys):
    sink = [{"name": "add_sink_tokens", "sink_token_id": 128002, "num_sink_tokens": 512}]
    put(tmp_path, "btlm", BTLM, shuffle=True, shuffle_seed=1)
    put(tmp_path, "window", WINDOW, data_transforms=sink)
    put(tmp_path, "nemo", NEMO, use_vsl=True)
    put(tmp_path, "mixtral", {**MIXTRAL_8X7B, "num_hidden_layers": 2})
    (tmp_path / "other.yaml").write_text("trainer: {init: {model: {name: bert}}, fit: {}}\n")
    (tmp_path / "no.yaml").write_text("a: [")
    monkeypatch.setattr("sys.argv", ["published", str(tmp_path)])
    assert main() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "btlm 1 of 1, llama 1 of 1, mistral 1 of 1, mixtral 1 of 1"
    assert [line.split()[:3] for line in said[:2]] == [
        ["pass", "btlm", "btlm.yaml"],
        ["pass", "mixtral", "mixtral.yaml"],
    ]


def test_a_failure_names_the_key(tmp_path, monkeypatch, capsys):
    file = put(tmp_path, "llama", {**LLAMA_8B, "attention_chunk_size": 128})
    monkeypatch.setattr("sys.argv", ["published", str(file)])
    assert main() == 1
    said = capsys.readouterr().out
    assert said.startswith("FAIL  llama    llama.yaml")
    assert "attention_chunk_size: 128 is not built here" in said
    assert said.endswith("llama 0 of 1\n")


def test_no_file_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["published", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no trainer file of gpt2" in capsys.readouterr().err
