import importlib.util

import pytest

from openwafer.base.errors import ConfigError
from openwafer.train.tensorboard import NoLog, make_scalar_log


def test_nothing_is_written_unless_asked(tmp_path):
    with make_scalar_log(False, tmp_path / "tb", 0) as log:
        assert isinstance(log, NoLog)
        log.validation(1, 2.0)
    assert list(tmp_path.iterdir()) == []


def test_asked_for_but_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'openwafer\[tensorboard\]'"):
        make_scalar_log(True, tmp_path, 0)
