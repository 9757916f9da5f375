"""ModelZoo's HDF5 forms: files written by hand as documented, and what our writer makes read by h5py alone."""

import h5py
import numpy as np
import pytest
import torch

from openwafer.base.errors import ConfigError, DataError
from openwafer.cli import main
from openwafer.data.hdf5 import Hdf5Samples
from openwafer.data.hdf5_writer import Hdf5Writer
from openwafer.data.sample_loader import SampleLoader, document_ids
from openwafer.data.tokenizer import load_tokenizer


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.asarray(array, dtype="i4"))


def test_samples_of_several_files_and_folders_in_order_of_their_names(tmp_path):
    rows = np.arange(5 * 3 * 4).reshape(5, 3, 4)
    put(tmp_path / "b" / "one.h5", rows[3:])
    put(tmp_path / "a" / "2.h5", rows[1:3])
    put(tmp_path / "a" / "1.h5", rows[:1])
    samples = Hdf5Samples([tmp_path / "b", tmp_path / "a"])
    assert (samples.form, samples.sequence_length, len(samples)) == ("sample", 4, 5)
    assert np.array_equal([samples.read(i) for i in range(5)], rows)
    with pytest.raises(IndexError):
        samples.read(5)
    with pytest.raises(ConfigError, match="samples of 4 tokens, the configuration says 8"):
        Hdf5Samples([tmp_path / "a"], sequence_length=8)


def test_a_corpus_is_cut_across_files(tmp_path):
    put(tmp_path / "1.h5", np.arange(0, 10))
    put(tmp_path / "2.h5", np.arange(10, 21))
    samples = Hdf5Samples([tmp_path], sequence_length=4)
    assert (samples.form, len(samples)) == ("corpus", 5)
    assert samples.read(2).tolist() == [[8, 9, 10, 11], [1] * 4, [9, 10, 11, 12]]
    assert samples.read(4)[2, -1] == 20
    with pytest.raises(ConfigError, match="max_sequence_length"):
        Hdf5Samples([tmp_path])


def test_a_subset_is_shares_of_the_samples(tmp_path):
    put(tmp_path / "1.h5", np.arange(20 * 3 * 2).reshape(20, 3, 2))
    whole, part = Hdf5Samples([tmp_path]), Hdf5Samples([tmp_path], subset="0.1-0.3,0.75-1.0")
    wanted = [2, 3, 4, 5, 15, 16, 17, 18, 19]
    assert np.array_equal([part.read(i) for i in range(len(part))], [whole.read(i) for i in wanted])
    for wrong in ("0.5", "0.5-0.2", "0.5-1,0-0.2"):
        with pytest.raises(ConfigError, match="data_subset"):
            Hdf5Samples([tmp_path], subset=wrong)


def test_batches_follow_the_loss_mask_and_the_order(tmp_path):
    ids = np.arange(7 * 4).reshape(7, 4)
    mask = np.tile([0, 1, 1, 0], (7, 1))
    put(tmp_path / "1.h5", np.stack([ids, mask, ids + 1], axis=1))
    loader = SampleLoader(Hdf5Samples([tmp_path]), batch_size=3, vocab_size=100)
    batch = loader.batch(0)
    assert batch["input_ids"].tolist() == ids[:3].tolist()
    assert batch["labels"].tolist() == [[-100, 4 * row + 2, 4 * row + 3, -100] for row in range(3)]
    assert loader.batch(2)["input_ids"][:, 0].tolist() == [24, 0, 4], "batches run across epochs"
    assert torch.equal(loader.batch(1, slice(1, 2))["labels"], loader.batch(1)["labels"][1:2])
    later = SampleLoader(loader.samples, batch_size=2, first_step=10, first_sample=3)
    assert later.numbers(11) == [5, 6]
    with pytest.raises(DataError, match="holds token 28; the model's vocabulary has 20"):
        SampleLoader(loader.samples, batch_size=7, vocab_size=20).batch(0)


def test_shuffled_epochs_hold_every_sample_once(tmp_path):
    put(tmp_path / "1.h5", np.zeros((10, 3, 2)))
    loader = SampleLoader(Hdf5Samples([tmp_path]), batch_size=5, seed=3)
    epochs = [loader.numbers(2 * epoch) + loader.numbers(2 * epoch + 1) for epoch in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert loader.numbers(1) == SampleLoader(loader.samples, 5, seed=3).numbers(1)


def test_packed_samples_keep_their_documents_apart(tmp_path):
    """A document of 3 and one of 2, as in ModelZoo's documentation of its mask."""
    sample = [[5, 6, 7, 8, 9, 0], [1, 1, 1, 1, 1, 0], [6, 7, 7, 9, 9, 0], [2, 1, 0, 1, 0, 0], [0, 1, 2, 0, 1, 0]]
    put(tmp_path / "1.h5", [sample])
    batch = SampleLoader(Hdf5Samples([tmp_path]), 1).batch(0)
    assert batch["documents"].tolist() == [[0, 0, 0, 1, 1, 2]]
    assert batch["labels"][0, -1] == -100
    span = torch.tensor([sample[3]])
    places = torch.arange(6)
    reaches = (places[:, None] >= places) & (places[:, None] <= places + span[0])  # ModelZoo's own definition
    same = document_ids(span)[0][:, None] == document_ids(span)[0]
    assert torch.equal(reaches, same & (places[:, None] >= places))


def test_sink_tokens_stand_before_every_sample(tmp_path):
    put(tmp_path / "1.h5", [[[5, 6], [1, 1], [6, 7]]])
    loader = SampleLoader(Hdf5Samples([tmp_path]), 1, sink=(9, 3))
    assert loader.sequence_length == 5
    assert loader.batch(0)["input_ids"].tolist() == [[9, 9, 9, 5, 6]]
    assert loader.batch(0)["labels"].tolist() == [[-100, -100, -100, 6, 7]]
    with pytest.raises(ConfigError, match="3 rows a sample, not 5"):
        SampleLoader(loader.samples, 1, packed=True)


DOCUMENTS = [np.arange(10, 10 + n) for n in (5, 3, 12, 1, 4)]


def written(folder):
    data = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            data.append(file["data"][:])
    assert all(part.dtype == np.int32 for part in data)
    return np.concatenate(data)


def test_writes_a_corpus(tmp_path):
    writer = Hdf5Writer(tmp_path, "corpus", file_bytes=40)
    for document in DOCUMENTS:
        writer.append(document)
    writer.close()
    assert written(tmp_path).tolist() == np.concatenate(DOCUMENTS).tolist()
    assert (writer.num_tokens, writer.num_files) == (25, 3)


def test_writes_samples_that_teach_every_token_once(tmp_path):
    writer = Hdf5Writer(tmp_path, "sample", sequence_length=4, file_bytes=2 * 3 * 4 * 4)
    stream = np.concatenate(DOCUMENTS)
    for document in DOCUMENTS:
        writer.append(document)
    writer.close()
    data = written(tmp_path)
    assert data.shape == (6, 3, 4)
    ids, mask, labels = data[:, 0].ravel(), data[:, 1].ravel(), data[:, 2].ravel()
    assert ids[mask == 1].tolist() == stream[:-1].tolist()
    assert labels[mask == 1].tolist() == stream[1:].tolist()


def test_packs_whole_documents(tmp_path):
    writer = Hdf5Writer(tmp_path, "packed", sequence_length=6)
    for document in DOCUMENTS:
        writer.append(document[:2], last=False) if len(document) > 2 else None
        writer.append(document[2:] if len(document) > 2 else document)
    writer.close()
    data = written(tmp_path)
    assert data[:, 0].tolist() == [
        [10, 11, 12, 13, 10, 11],
        [10, 11, 12, 13, 14, 15],
        [16, 17, 18, 19, 20, 0],
        [10, 11, 12, 0, 0, 0],
    ]
    assert data[0, 2].tolist() == [11, 12, 13, 14, 11, 12]
    assert data[0, 3].tolist() == [3, 2, 1, 0, 1, 0]
    assert data[0, 4].tolist() == [0, 1, 2, 3, 0, 1]
    assert data[3, 1].tolist() == [1, 1, 1, 0, 0, 0]


def test_a_mask_goes_with_the_label_it_belongs_to(tmp_path):
    writer = Hdf5Writer(tmp_path, "packed", sequence_length=8)
    writer.append(np.array([1, 2, 3, 4]), mask=np.array([0, 0, 1, 1]))
    writer.close()
    data = written(tmp_path)[0]
    assert data[2][data[1] == 1].tolist() == [3, 4]


def test_files_that_reach_outside_or_are_none_are_refused(tmp_path):
    put(tmp_path / "other" / "x.h5", np.arange(9))
    for name, damage in {
        "external": lambda file: file.__setitem__("data", h5py.ExternalLink("../other/x.h5", "data")),
        "soft": lambda file: file.__setitem__("data", h5py.SoftLink("/elsewhere")),
        "raw": lambda file: file.create_dataset("data", (4,), "i4", external=[("/etc/hostname", 0, 16)]),
        "empty": lambda file: file.create_dataset("tokens", data=[1, 2]),
    }.items():
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "1.h5", "w") as file:
            damage(file)
        with pytest.raises(DataError, match=r"no dataset 'data' of its own|no plain dataset"):
            Hdf5Samples([tmp_path / name], 4)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "1.h5").write_text("hello")
    with pytest.raises(DataError, match="not an HDF5 file"):
        Hdf5Samples([tmp_path / "text"], 4)
    put(tmp_path / "odd" / "1.h5", np.zeros((2, 4, 3)))
    with pytest.raises(DataError, match=r"\[n, 3, T\]"):
        Hdf5Samples([tmp_path / "odd"])
    with pytest.raises(DataError, match="is no folder"):
        Hdf5Samples([tmp_path / "nowhere"])


@pytest.mark.parametrize("form", ["corpus", "sample", "packed"])
def test_the_command_prepares_text_in_every_form(tmp_path, form, capsys):
    text = "".join(f"line {number} of the text\n" for number in range(60))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(text.upper())
    length = [] if form == "corpus" else ["--sequence-length", "32"]
    command = ["data", "prepare", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--form", form, "--vocab-size", "300", *length]) == 0
    assert f"form {form}" in capsys.readouterr().err
    samples = Hdf5Samples([tmp_path / "out"], 32)
    tokenizer = load_tokenizer(tmp_path / "out")
    rows = [samples.read(number) for number in range(len(samples))]
    read = "".join(tokenizer.decode(row[0][row[1] == 1], skip_special_tokens=False) for row in rows)
    assert text.startswith(read[:500])
    assert len(read) > 0.9 * 2 * len(text)
    assert read.count("<|endoftext|>") == (0 if form == "packed" else 1), "the end of the last one is a label only"
