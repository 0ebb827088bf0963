"""Probe an SAE's latents, those of random dictionaries, and the residual, on every task.

A k-sparse probe sees k latents: those whose means over the two targets' training prompts differ most. The dense probe sees the
activation itself, every column of it. The test prompts take part in no choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from scopemill.evaluator.probes.baselines import Encoder, baselines
from scopemill.evaluator.probes.logistic import Score, probe
from scopemill.evaluator.probes.scores import RESIDUAL, SAE, ProbeScore
from scopemill.evaluator.probes.tasks import Task
from scopemill.trainer.sae.base import Sae

ROWS_AT_ONCE = 512  # encoded together, dense; then only the active latents are kept


@dataclass(frozen=True)
class TaskRows:
    """Hold the activations at the last tokens of all tasks' prompts, task after task."""

    tasks: Sequence[Task]
    rows: torch.Tensor  # [n, d], raw, on the CPU

    def slices(self) -> list[slice]:
        """Return each task's rows."""
        ends = np.cumsum([len(task.prompts) for task in self.tasks])
        return [slice(int(end) - len(task.prompts), int(end)) for task, end in zip(self.tasks, ends, strict=True)]


def probe_residual(data: TaskRows) -> list[ProbeScore]:
    """Probe the activations themselves, all columns: what no choice of latents is likely to exceed."""
    d = data.rows.shape[1]
    parts = [data.rows[part].numpy() for part in data.slices()]
    return [_score(task, RESIDUAL, d, probe(x, task.targets, task.is_test)) for task, x in zip(data.tasks, parts, strict=True)]


def probe_latents(sae: Sae, data: TaskRows, ks: Sequence[int]) -> list[ProbeScore]:
    """Probe k latents of a finished SAE, and k of each random dictionary.

    The dictionaries have the SAE's width and L0.
    """
    device = next(iter(sae.parameters())).device
    own = encoded(sae.encode, data.rows, device)
    mean = data.rows.mean(dim=0).to(device)
    encoders = baselines(sae.width, mean, k=max(1, round(own.nnz / own.shape[0])))
    latents = {SAE: own} | {name: encoded(encode, data.rows, device) for name, encode in encoders.items()}
    return _probe_all(latents, data, ks)


def _probe_all(latents: Mapping[str, sparse.csr_array], data: TaskRows, ks: Sequence[int]) -> list[ProbeScore]:
    scores = []
    for task, part in zip(data.tasks, data.slices(), strict=True):
        for name, of_all in latents.items():
            of_task = of_all[part]
            order = by_difference(of_task[~task.is_test], task.targets[~task.is_test])
            for k in ks:
                x = of_task[:, order[:k]].toarray()
                scores.append(_score(task, name, k, probe(x, task.targets, task.is_test)))
    return scores


def by_difference(latents: sparse.csr_array, targets: np.ndarray) -> np.ndarray:
    """Order latents by |mean over one target - mean over the other|, largest first.

    Latents [n, F], targets bool [n]. Of equal latents the first comes first.
    """
    weights = np.where(targets, 1 / targets.sum(), -1 / (~targets).sum())
    return np.argsort(-np.abs(latents.T @ weights), kind="stable")


@torch.no_grad()
def encoded(encode: Encoder, rows: torch.Tensor, device: torch.device) -> sparse.csr_array:
    """Return the latents of rows [n, d] as a sparse array [n, F], float64."""
    blocks = [sparse.csr_array(encode(block.to(device)).cpu().numpy().astype(np.float64)) for block in rows.split(ROWS_AT_ONCE)]
    return sparse.csr_array(sparse.vstack(blocks))


def _score(task: Task, latents_of: str, k: int, score: Score) -> ProbeScore:
    return ProbeScore(task.name, latents_of, k, score.auc, score.accuracy, len(task.prompts))
