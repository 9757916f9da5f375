"""The public surface, and that importing it costs nothing."""

import subprocess
import sys

import pytest

import openwafer as ow

PUBLIC = ["Job", "Lion", "OpenwaferError", "StepRecord", "Store", "__version__", "compile", "init", "resume"]


def test_the_public_names_are_these():
    assert sorted(ow.__all__) == PUBLIC == dir(ow)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name):
    assert getattr(ow, name) is getattr(ow, name)


def test_compile_and_init_stay_functions_after_their_packages_are_imported():
    import openwafer.pytorch
    import openwafer.streaming.store  # noqa: F401

    assert callable(ow.compile)
    assert callable(ow.init)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"'openwafer' has no attribute 'compiel'; it has .*compile"):
        ow.compiel  # noqa: B018


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, openwafer, openwafer.cli; print({'torch', 'numpy', 'rich', 'pydantic', 'yaml'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
