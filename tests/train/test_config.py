import pytest
import yaml

from openwafer.base.errors import ConfigError
from openwafer.train.config import OPTIMIZER_OPTIONS, RunConfig
from openwafer.train.read_config import dump_config, known_keys, parse_config, read_config

GOOD = """
run: runs/x
memory: 3GiB
model: {preset: cerebras-gpt-111m}
data: {path: shards, sequence_length: 512}
optimizer: {lr: 6e-4}
train: {steps: 10, batch_tokens: 2048, micro_batches: 2}
"""


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(GOOD, overrides)
    return str(caught.value)


def test_a_good_file():
    config = parse_config(GOOD)
    assert config.sequences == 4
    assert config.tokens == 2048
    assert config.total_steps == 10
    assert config.optimizer.lr == 6e-4, "YAML 1.1 would read 6e-4 as text"
    assert str(config.store_dir) == "runs/x/store"


def test_what_is_dumped_reads_back_equal():
    config = parse_config(GOOD, ["train.clip_norm=null", "optimizer.betas=[0.8, 0.9]", "log.tensorboard=true"])
    assert config.train.clip_norm is None
    assert config.optimizer.betas == (0.8, 0.9)
    assert parse_config(dump_config(config)) == config


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(GOOD).train.steps = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimzer.lr=3", "unknown key optimzer; did you mean optimizer?"),
        ("optimizer.learning_rate=3", "unknown key optimizer.learning_rate; did you mean optimizer.lr?"),
        ("lr=1", "unknown key lr; did you mean optimizer.lr?"),
        ("steps=10", "unknown key steps; did you mean train.steps?"),
        ("train.step=4", "unknown key train.step; did you mean train.steps?"),
        ("model.num_head=3", "unknown key model.num_head; did you mean model.num_heads?"),
        ("batch_size=3", "unknown key batch_size; did you mean train.sequences?"),
        (
            "xyzzy=3",
            "unknown key xyzzy; known there: run, model, data, train, optimizer, schedule, schedulers, memory, "
            "device, device_memory, store, log, phases.",
        ),
        ("device_memory=8GiB", "device_memory is the budget of a device: name it, e.g. device=auto."),
        ("train.steps='3'", "train.steps: '3' is not allowed; it must be a whole number."),
        ("train.steps=true", "train.steps: True is not allowed; it must be a whole number."),
        ("train.steps=0", "train.steps: 0 is not allowed; it must be greater than or equal to 1."),
        ("optimizer.lr=.nan", "optimizer.lr: nan is not allowed; it must be a finite number."),
        (
            "optimizer.name=adamv",
            "optimizer.name: 'adamv' is not allowed; choose one of adamw, adam, sgd, adafactor, lion.",
        ),
        ("train.precision=fp16", "train.precision: 'fp16' is not allowed; choose one of fp32, bf16."),
        ("optimizer.momentum=0.9", "optimizer: adamw has no momentum; it has lr, betas, eps, weight_decay."),
        ("optimizer.betas=[0.9]", "optimizer.betas.1 is missing; it must be set."),
        ("log.tensorboard=1", "log.tensorboard: 1 is not allowed; it must be true or false."),
        ("model=null", "model: None is not allowed; it must be a section of keys."),
        (
            "train.batch_tokens=1000",
            "train.batch_tokens 1000 is not a multiple of data.sequence_length 512; nearest: 512 or 1024.",
        ),
        ("train.micro_batches=3", "train.micro_batches 3 does not divide a step's 4 sequences."),
        ("train.sequences=4", "train: exactly one of sequences and batch_tokens sets the size of a step, got both."),
        ("model.max_positions=256", "data.sequence_length 512 is over model.max_positions 256."),
        ("train.validate_every=5", "train.validate_every needs data.validation, a share of the data such as 0.01."),
        ("model.hidden_size=100", None),
    ],
)
def test_a_mistake_is_named_with_its_path_and_the_way_out(override, message):
    overrides = [override]
    if message is None:
        overrides.append("model.num_heads=3")
        message = "model: hidden_size 100 is not a multiple of num_heads 3."
    assert refusal(*overrides) == f"configuration: {message}"


def test_a_bad_size_says_what_is_allowed():
    assert "memory: unknown unit 'GX', got '3GX'; write a whole number of bytes" in refusal("memory=3GX")


def test_all_mistakes_come_at_once():
    text = refusal("train.steps=many", "data.pth=x", "memory=0")
    assert "train.steps: 'many'" in text
    assert "unknown key data.pth; did you mean data.path?" in text
    assert "memory: a size must be at least one byte" in text


def test_without_a_preset_the_sizes_must_be_there():
    assert "without a preset, vocab_size, hidden_size" in refusal("model={dropout: 0.1}")


def test_overrides_that_make_no_sense():
    assert "override 'steps' is not of the form section.key=value" in refusal("steps")
    assert "override 'run.x=3': run is a value, not a section." in refusal("run.x=3")
    assert "override 'run=[1': not YAML" in refusal("run=[1")


def test_files_that_make_no_sense(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*No such file"):
        read_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_config(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: a configuration is sections of keys, got a list"):
        read_config(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML"):
        read_config(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="run is missing; it must be set"):
        read_config(path)
    path.write_text("run: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(path)


@pytest.mark.parametrize("name", OPTIMIZER_OPTIONS)
def test_options_of_an_optimizer_are_its_own(name):
    options = parse_config(GOOD, [f"optimizer={{name: {name}, lr: 0.5}}"]).optimizer.options()
    assert options == {"lr": 0.5, **OPTIMIZER_OPTIONS[name]}


def test_known_keys_are_every_key_of_a_dump():
    def dotted(tree, prefix=""):
        for key, value in tree.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from dotted(value, f"{prefix}{key}.")

    dump = set(dotted(yaml.safe_load(dump_config(parse_config(GOOD)))))
    left_out = ("model.modelzoo.", "data.sink_tokens.", "schedulers.")  # sections that may be absent
    assert dump == {key for key in known_keys(RunConfig) if not key.startswith(left_out)}
