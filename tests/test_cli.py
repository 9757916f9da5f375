import sys

import pytest

from openwafer import __version__, cli
from openwafer.base.errors import RunError


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"openwafer {__version__}\n"


def test_without_a_command_it_teaches(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert "a first run:" in out
    assert "openwafer resume runs/books" in out


@pytest.mark.parametrize(
    "command", [["fit"], ["resume"], ["generate"], ["view"], ["demo"], ["data"], ["data", "prepare"]]
)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--help"])
    assert f"openwafer {command[0]}" in capsys.readouterr().out.partition("example")[2]


def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path):
    assert cli.main(["view", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("openwafer: cannot read the events ")
    assert captured.err.count("\n") == 1


def test_the_traceback_is_there_for_those_who_ask(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENWAFER_TRACEBACK", "1")
    assert cli.main(["view", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_note_on_an_error_is_shown(capsys, monkeypatch):
    def fail(options):
        error = RunError("the disk is full.")
        error.add_note("To go on: openwafer resume runs/x")
        raise error

    monkeypatch.setattr(cli, "_view", fail)
    assert cli.main(["view", "x"]) == 2
    assert capsys.readouterr().err == "openwafer: the disk is full.\n  To go on: openwafer resume runs/x\n"


def test_ctrl_c_is_130(capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_view", interrupt)
    assert cli.main(["view", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_wrong_option_is_exit_code_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fit", "--nonsense"])
    assert "usage: openwafer" in capsys.readouterr().err


def test_a_bad_configuration_is_found_without_loading_torch(capsys, tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text("rum: x\n")
    monkeypatch.setitem(sys.modules, "openwafer.train.loop", None)
    assert cli.main(["fit", str(path)]) == 2
    assert "unknown key rum; did you mean run?" in capsys.readouterr().err
