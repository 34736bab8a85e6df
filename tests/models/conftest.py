import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    logging.disable_progress_bar()
