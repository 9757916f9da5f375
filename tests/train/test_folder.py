import pytest

from openwafer.base.errors import ConfigError, RunError
from openwafer.train.folder import RunFolder, resolved
from openwafer.train.read_config import parse_config

TEXT = """
run: somewhere
model: {preset: cerebras-gpt-111m}
data: {path: shards, sequence_length: 512}
train: {steps: 10, sequences: 2}
"""


@pytest.fixture
def folder(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    folder = RunFolder(tmp_path / "run")
    folder.begin(resolved(parse_config(TEXT)), tokenizer)
    return folder


def test_a_run_is_found_again_where_its_folder_is(folder, tmp_path):
    config = folder.load()
    assert config.run == folder.path
    assert config.data.path.is_absolute()
    moved = RunFolder(tmp_path / "moved")
    folder.path.rename(moved.path)
    assert moved.load().store_dir == moved.path / "store"


def test_a_second_fit_is_refused_and_told_to_resume(folder):
    with pytest.raises(RunError, match=rf"already holds a run.*openwafer resume {folder.path}"):
        folder.require_new()
    folder.forget()
    folder.require_new()


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: it has no config\.yaml"):
        RunFolder(tmp_path).load()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run folder"):
        RunFolder(tmp_path / "file" / "run").begin(parse_config(TEXT), tmp_path / "no")


def test_more_steps_leave_the_schedule_alone(folder):
    config = folder.load(["train.steps=20", "memory=1GiB"])
    assert (config.train.steps, config.total_steps, config.memory) == (20, 10, "1GiB")


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1", "train.seed=2", "model.num_layers=3", "train.stepsize=3", "memo=1"]
)
def test_what_would_change_the_result_is_refused(folder, override):
    with pytest.raises(ConfigError, match=r"would change what the run computes.*train\.steps"):
        folder.load([override])
