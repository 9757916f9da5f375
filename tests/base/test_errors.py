import inspect

from openwafer.base import errors


def test_the_tree_is_the_one_drawn_in_the_docstring():
    drawn = {word for word in errors.__doc__.replace("(", " ").split() if word.isidentifier()}
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) == 14
    for error in classes:
        assert issubclass(error, errors.OpenwaferError)
        assert error.__name__ in drawn


def test_a_config_error_is_a_value_error():
    assert issubclass(errors.ConfigError, ValueError)


def test_store_errors_have_one_root():
    for name in ("StoreLocked", "StoreCorrupt", "StoreFull", "StoreIOError", "StoreTimeout"):
        assert issubclass(getattr(errors, name), errors.StoreError)
