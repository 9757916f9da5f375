"""Trainer files into runs: what is carried over, said, refused."""

import pytest
import yaml
from files import BTLM, LLAMA_8B, loader, small, trainer

from openwafer.base.errors import ConfigError
from openwafer.train.read_config import dump_config, parse_config, parse_with_notes


def read(tree, *overrides):
    return parse_with_notes(yaml.safe_dump(tree), overrides, "params.yaml")


def changed(**init):
    return trainer(BTLM, loader("data", 480), **init)


def test_btlm_becomes_a_run():
    config, notes = read(
        changed(
            loop={"max_steps": 159_636, "eval_frequency": None},
            precision={"fp16_type": "cbfloat16", "loss_scaling_factor": "dynamic", "max_gradient_norm": 1.0},
            callbacks=[{"ScopedTrainFlags": {"csx.performance.micro_batch_size": 40}}, {"ComputeNorm": {}}],
        )
    )
    assert (config.last_step, config.sequences, config.sequence_length, config.micro_batches) == (
        159_636,
        480,
        8192,
        12,
    )
    assert (config.train.precision, config.train.clip_norm) == ("bf16", 1.0)
    assert config.optimizer.options() == {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    assert config.schedulers[0].schedule.at(2) == pytest.approx(0.02)
    assert config.train.loss.scaling == "batch_size"
    assert config.data.form == "hdf5"
    assert [note for note in notes if "cbfloat16" in note] == ["precision.fp16_type cbfloat16: computed in bf16"]
    assert len(notes) == len(set(notes))
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("batch", "boxes", "micro", "parts"),
    [
        (480, 1, 40, 12),
        (99, 1, 33, 3),
        (100, 1, 33, 4),
        (120, 4, 40, 4),
        (120, 4, 10, 12),
        (8, 1, "auto", 8),
        (8, 1, None, 8),
    ],
)
def test_micro_batches_are_no_larger_than_a_box_would_see(batch, boxes, micro, parts):
    config, _ = read(
        trainer(
            BTLM,
            loader("data", batch),
            backend={"backend_type": "CSX", "cluster_config": {"num_csx": boxes}},
            callbacks=[{"GlobalFlags": {"csx": {"performance": {"micro_batch_size": micro}}}}],
        )
    )
    assert config.micro_batches == parts


def test_phases_of_one_file_keep_the_step_counter():
    first = trainer({**BTLM, "max_position_embeddings": 2048}, loader("2k", 1920), loop={"max_steps": 119_727})
    second = trainer(BTLM, loader("8k", 480), loop={"num_steps": 39_909})
    for tree in ({"trainer": [first, second]}, [first, second]):
        config, _ = read(tree)
        assert [part.train.steps for part in config.parts] == [119_727, 159_636]
        assert [(part.sequences, part.sequence_length) for part in config.parts] == [(1920, 2048), (480, 8192)]
        assert len({part.tokens for part in config.parts}) == 1
    assert parse_config(dump_config(config)) == config
    again, _ = read([first, second], "phases.1.train.steps=119800", "memory=8GiB")
    assert again.last_step == 119_800
    assert {part.memory for part in (again, *again.parts)} == {"8GiB"}


def test_their_own_keys_can_be_laid_over_too():
    config, _ = read(changed(), "trainer.init.loop.max_steps=50", "train.clip_norm=2.0")
    assert (config.last_step, config.train.clip_norm) == (50, 2.0)


def test_validation_is_read():
    tree = changed(loop={"max_steps": 100, "eval_frequency": 0.25, "eval_steps": 7})
    tree["trainer"]["fit"]["val_dataloader"] = [loader("val", 15)]
    config, _ = read(tree)
    assert (config.train.validate_every, config.train.validation_batches) == (25, 7)
    assert (config.data.validation_sequences, str(config.data.validation_folders[0])) == (15, "val")


def test_muP_is_the_models_and_adjustments_are_the_files():
    config, _ = read(changed(optimizer={"AdamW": {"adjust_learning_rate": {"decoder_kernel": 0.25}}}))
    assert config.optimizer.group_scales == {"decoder_kernel": 0.25}
    assert config.optimizer.eps == 1e-6, "ModelZoo's default, not torch's"


def test_grouped_heads_and_scaled_positions_survive():
    config, _ = read(
        trainer(small(LLAMA_8B, 64, rotary_dim=8, extra_attention_params={"num_kv_groups": 2}), loader("d", 4))
    )
    zoo = config.model.modelzoo
    assert (zoo.num_kv_heads, zoo.pos_scaling_type, zoo.rotary_dim) == (2, "llama3", 8)


@pytest.mark.parametrize(
    ("init", "says"),
    [
        ({"callbacks": [{"Lora": {}}]}, r"trainer\.init\.callbacks\.Lora: LoRA from a trainer file is not built"),
        ({"callbacks": [{"Mystery": {}}]}, r"trainer\.init\.callbacks\.Mystery: is not known here"),
        ({"loggers": ["WandbLogger"]}, r"trainer\.init\.loggers\.WandbLogger: Weights & Biases is not built"),
        ({"optimizer": {"Muon": {}}}, "Muon is not built; there are AdamW, Adam, SGD, Lion"),
        ({"optimizer": {"SGD": {"nesterov": True}}}, r"SGD\.nesterov: True is not built"),
        ({"optimizer": {"AdamW": {"correct_bias": False}}}, r"AdamW\.correct_bias"),
        ({"precision": {"fp16_type": "float16"}}, "float16 is not built"),
        ({"precision": {"max_gradient_value": 1.0}}, "max_gradient_value"),
        ({"loop": {"num_epochs": 3}}, r"num_epochs: needs steps_per_epoch"),
        ({"loop": {}}, "says nowhere how long to train"),
        ({"loop": {"max_step": 3}}, r"trainer\.init\.loop\.max_step: unknown key"),
        ({"schedulers": [{"LinearLR": {"total_iters": 3}}]}, r"schedulers\.0\.LinearLR\.initial_learning_rate"),
        ({"schedulers": [{"NoLR": {}}]}, r"schedulers\.0: 'NoLR' is not a scheduler; known are"),
        ({"backend": {"backend_type": "TPU"}}, "none of CSX, CPU, GPU"),
        ({"callbacks": [{"GlobalFlags": {"csx.performance.micro_batch_size": 0}}]}, "positive whole number, auto"),
    ],
)
def test_what_is_lacking_is_refused_by_name(init, says):
    with pytest.raises(ConfigError, match=says):
        read(changed(**init))


def test_other_data_processors_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"train_dataloader\.data_processor: 'HuggingFaceDataProcessorEli5' is not"):
        read(trainer(BTLM, {"data_processor": "HuggingFaceDataProcessorEli5", "batch_size": 3}))
    with pytest.raises(ConfigError, match=r"train_dataloader\.mixture: is not built"):
        read(trainer(BTLM, loader("d", 3, mixture=[{"data_dir": "x", "weight": 1}])))
