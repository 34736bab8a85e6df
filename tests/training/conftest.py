import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Runs set torch's threads; small ones are fastest, and other tests undisturbed, with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
