"""Sums over a batch's latents, where the layout gives them cheaply."""

import pytest
import torch

from scopemill.trainer.sparse.codes import share


@pytest.mark.parametrize("rows", [1, 254, 255, 256, 1000])
def test_the_share_of_rows_is_counted_past_what_a_byte_holds(rows):
    which = torch.rand(rows, 7, generator=torch.Generator().manual_seed(rows)) < torch.linspace(0, 1, 7)
    which[:, -1] = True
    assert share(which).tolist() == [sum(column) / rows for column in which.T.tolist()]
