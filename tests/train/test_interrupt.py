import signal

import pytest

from openwafer.train.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    heard = []
    with Interrupt(heard.append) as interrupt:
        assert interrupt.requested is None
        signal.raise_signal(number)
        assert interrupt.requested is number
    assert heard == [number.name]
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_aborts():
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
