"""Batches on their way to the device: every bit, in memory of their own, and in turn. The way to a GPU needs one."""

import numpy as np
import pytest
import torch

from scopemill.trainer.worker.transfer import Transfer, one_ahead

CPU = torch.device("cpu")


def moved(*arrays: np.ndarray) -> list[torch.Tensor]:
    rows, when = Transfer(CPU).take(arrays)
    assert when is None
    return rows


def test_every_bfloat16_is_converted_exactly():
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    (found,) = moved(bits)
    assert found.dtype == torch.float32 and found.shape == (256, 256)
    number = ~np.isnan(expected)
    assert np.array_equal(found.numpy().view(np.uint32)[number], expected.view(np.uint32)[number]), "the sign of zero too"
    assert np.isnan(found.numpy()[~number]).all()


def test_float32_is_taken_bit_for_bit():
    bits = np.random.default_rng(0).integers(0, 2**32, size=(64, 32), dtype=np.uint32)
    (found,) = moved(bits.view(np.float32))
    assert found.dtype == torch.float32 and np.array_equal(found.numpy().view(np.uint32), bits)


@pytest.mark.parametrize("stored", [np.uint16, np.float32])
def test_a_batch_is_independent_of_the_memory_that_it_came_in(stored):
    memory = bytearray(np.arange(1, 13, dtype=stored).tobytes())
    readonly = np.frombuffer(memoryview(memory).toreadonly(), dtype=stored).reshape(3, 4)
    (found,) = moved(readonly)
    kept = found.clone()
    memory[:] = bytes([255]) * len(memory)
    assert torch.equal(found, kept)
    found.zero_()
    assert memory == bytes([255]) * len(memory)


def test_the_hooks_of_a_batch_come_in_their_order():
    first, second = moved(np.zeros((2, 3), np.float32), np.ones((2, 5), np.uint16))
    assert first.shape == (2, 3) and second.shape == (2, 5)


@pytest.mark.parametrize("count", range(4))
def test_the_next_item_is_made_before_this_one_is_handed_out(count):
    made = []

    def items():
        for i in range(count):
            made.append(i)
            yield i

    for i, item in enumerate(one_ahead(items())):
        assert item == i and len(made) == min(i + 2, count)
    assert len(made) == count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_bits():
    chance = np.random.default_rng(0)
    stored = [chance.normal(size=(256, 64)).astype(np.float32) for _ in range(20)]
    transfer = Transfer(torch.device("cuda"))
    batches = ((k, transfer.take([array])) for k, array in enumerate(stored))
    for array, (_, (x,)) in zip(stored, transfer.prefetched(batches), strict=True):
        assert np.array_equal((x * 2).cpu().numpy(), array * 2)
