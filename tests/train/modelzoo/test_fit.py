"""Trainer files run: what two phases learn is what plain PyTorch learns, to the bit, in fp32."""

import io

import pytest
import torch
from files import BTLM, LLAMA_8B, MIXTRAL_8X7B, dump, initializer, loader, put_samples, small, trainer
from rich.console import Console

from openwafer.base.errors import RunError
from openwafer.base.events import Mark, read_events, read_steps
from openwafer.cli import main
from openwafer.data import Hdf5Samples
from openwafer.models import Decoder
from openwafer.models.interchange.modelzoo_config import decoder_of
from openwafer.train.loop import fit, resume
from openwafer.train.read_config import read_with_notes
from openwafer.train.schedules import parse_schedule

GPT3 = {
    **{key: value for key, value in BTLM.items() if "mup" not in key and "scale" not in key and "logits" not in key},
    "name": "gpt3",
    "position_embedding_type": "learned",
    "nonlinearity": "gelu",
    "initializer": initializer(0.02),
    "loss_scaling": "num_tokens",
    "loss_weight": 1.0,
}
ALIBI = small(BTLM, 16, mup_base_hidden_size=16, mup_base_filter_size=32, loss_weight=1 / 16)
FP32 = {"enabled": False, "max_gradient_norm": 1.0}


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def two_phases(tmp_path):
    """16 tokens x 8 sequences, then 32 tokens x 4, as BTLM goes from 2k to 8k at one number of tokens a step."""
    short, long = put_samples(tmp_path / "short", 24, 16), put_samples(tmp_path / "long", 12, 32, seed=1)
    flags = [{"ScopedTrainFlags": {"csx.performance.micro_batch_size": 2}}]
    common = {"precision": FP32, "callbacks": flags, "model_dir": str(tmp_path / "run")}
    longer = {**ALIBI, "max_position_embeddings": 32, "loss_weight": 1 / 32}
    return [
        trainer(ALIBI, loader(short, 8), loop={"max_steps": 4, "eval_frequency": None}, **common),
        trainer(longer, loader(long, 4), loop={"max_steps": 7, "eval_frequency": None}, **common),
    ]


def plain(trees) -> list[float]:
    """The same two phases in plain PyTorch: one model, one AdamW, written out."""
    torch.manual_seed(1)
    init = trees[0]["trainer"]["init"]
    config, _ = read_with_notes(dump(trees, __import__("pathlib").Path(init["model_dir"]).parent / "plain.yaml"))
    decoder = decoder_of(config.model.modelzoo)
    model = Decoder(decoder)
    wide = [p for n, p in model.named_parameters() if p.dim() == 2 and ("attn" in n or "mlp" in n)]
    table = [model.wte.weight]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    options = {"betas": (0.9, 0.95), "eps": 1e-8}
    groups = [
        {"params": table, "s": 1.0},
        {"params": vectors, "s": 1.0, "weight_decay": 0.0},
        {"params": wide, "s": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.1, **options)
    schedule = parse_schedule(init["schedulers"][0])
    losses, step = [], 0
    for tree in trees:
        load = tree["trainer"]["fit"]["train_dataloader"]
        samples = Hdf5Samples([load["data_dir"]])
        weight, size = tree["trainer"]["init"]["model"]["loss_weight"], load["batch_size"]
        first = step
        while step < tree["trainer"]["init"]["loop"]["max_steps"]:
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step) * group["s"]
            rows = [samples.read((size * (step - first) + row) % len(samples)) for row in range(size)]
            batch = torch.stack([torch.from_numpy(row) for row in rows])
            total = 0.0
            for part in batch.split(2):
                loss = model(part[:, 0], part[:, 2], reduction="sum") * weight / size
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
            step += 1
    return losses


def test_two_phases_learn_what_plain_pytorch_learns(tmp_path):
    trees = two_phases(tmp_path)
    config, notes = read_with_notes(dump(trees, tmp_path / "params.yaml"))
    outcome = fit(config, notes=notes, console=quiet())
    records = read_steps(outcome.run / "events.jsonl")
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record.tokens for record in records] == [128] * 7
    assert [record.loss for record in records] == pytest.approx(plain(trees), rel=1e-5)
    assert records[-1].loss < records[0].loss
    assert [record.learning_rate for record in records[:3]] == [0.0, 0.01, 0.02]
    marks = [event.event for event in read_events(outcome.run / "events.jsonl") if isinstance(event, Mark)]
    assert marks == ["start", "phase", "stop"]


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_a_run_goes_on_in_the_phase_where_it_stopped(tmp_path, stop, monkeypatch):
    from openwafer.pytorch import Job

    trees = two_phases(tmp_path)
    config, _ = read_with_notes(dump(trees, tmp_path / "params.yaml"))
    whole = fit(config.model_copy(update={"phases": config.phases}), console=quiet()).run
    losses = [record.loss for record in read_steps(whole / "events.jsonl")]
    whole.rename(tmp_path / "whole")

    step = Job.step

    def step_or_die(job, *args, **kwargs):
        if job.step_count == stop:
            raise RunError("stopped by the test")
        return step(job, *args, **kwargs)

    monkeypatch.setattr(Job, "step", step_or_die)
    with pytest.raises(RunError, match="stopped by the test"):
        fit(config, console=quiet())
    monkeypatch.undo()
    assert resume(config.run, console=quiet()).steps_done == 7
    assert [record.loss for record in read_steps(config.run / "events.jsonl")] == losses
    with pytest.raises(RunError, match=r"phases\.1\.train\.steps=14"):
        resume(config.run, console=quiet())


@pytest.mark.parametrize(
    "model",
    [
        small(GPT3, 16),
        ALIBI,
        small(LLAMA_8B, 16, rotary_dim=8, extra_attention_params={"num_kv_groups": 2}),
        small(LLAMA_8B, 16, name="mistral", rotary_dim=8, extra_attention_params={"num_kv_groups": 2})
        | {"attention_sliding_window_length": 8},
        small(MIXTRAL_8X7B, 16, rotary_dim=8, extra_attention_params={"num_kv_groups": 2}),
    ],
    ids=lambda model: model["name"],
)
def test_every_family_takes_a_step_and_validates(tmp_path, model):
    data = put_samples(tmp_path / "data", 8, 16)
    tree = trainer(model, loader(data, 4), loop={"max_steps": 2, "eval_frequency": 2}, model_dir=str(tmp_path / "run"))
    tree["trainer"]["fit"]["val_dataloader"] = loader(data, 4)
    config, notes = read_with_notes(dump(tree, tmp_path / "params.yaml"))
    console = quiet()
    assert fit(config, notes=notes, console=console).steps_done == 2
    assert "note: precision.fp16_type cbfloat16: computed in bf16" in console.file.getvalue()
    events = read_events(config.run / "events.jsonl")
    assert [event.fields["loss"] for event in events if isinstance(event, Mark) and event.event == "validation"]


@pytest.mark.parametrize("model", [BTLM, LLAMA_8B, MIXTRAL_8X7B], ids=lambda model: model["name"])
def test_a_dry_run_says_what_will_be_done_without_the_data(tmp_path, model, capsys):
    file = dump(trainer(model, loader(tmp_path / "nowhere", 64)), tmp_path / "params.yaml")
    assert main(["fit", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "steps 1 to 6" in said
    assert "64 sequences of" in said
    assert "highest 0.02 at step 3" in said
    assert f"warning: phase 1: data folder {tmp_path / 'nowhere'} is not there" in said
    assert list(tmp_path.iterdir()) == [file]
    if model is BTLM:
        assert "2,646,255,744" in said
        assert "39.4 GiB" in said, "16 bytes a parameter"


def test_a_dry_run_with_the_data_measures_too(tmp_path, capsys):
    data = put_samples(tmp_path / "data", 8, 16)
    run = {"model_dir": str(tmp_path / "run")}
    file = dump(trainer(ALIBI, loader(data, 4), **run), tmp_path / "params.yaml")
    assert main(["fit", str(file), "--dry-run"]) == 0
    assert "What this run will take" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [data, file]
    assert main(["fit", str(dump(trainer(ALIBI, loader("none", 4), **run), file))]) == 2
    assert "none is no folder" in capsys.readouterr().err
