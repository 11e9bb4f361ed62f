"""Which devices a test runs on.

A test that asks for `device` runs on the CPU, and where there is a CUDA card, once more on that. One that only a card
can answer asks for `card`, and is skipped without one. `pytest -m gpu` runs all of them and no others.

tests/conftest.py registers this module with pytest.
"""

import pytest


def pytest_generate_tests(metafunc):
    """Gives a test its devices."""
    asked = {"device", "card"} & {*metafunc.fixturenames}
    if not asked:
        return
    import torch  # here: most tests do without

    torch.backends.cudnn.allow_tf32 = False  # it rounds to three digits
    there, cpu, cuda = torch.cuda.is_available(), torch.device("cpu"), torch.device("cuda")
    on_a_card = (
        pytest.mark.gpu, pytest.mark.skipif(not there, reason="there is no CUDA card"),
        pytest.mark.filterwarnings("default"),  # compilers say what another card could do
    )  # fmt: skip
    cards = [pytest.param(cuda, id="cuda", marks=on_a_card)]
    if "card" in asked:
        metafunc.parametrize("card", cards)
    if "device" in asked:
        metafunc.parametrize("device", [pytest.param(cpu, id="cpu", marks=pytest.mark.gpu), *(cards if there else [])])
