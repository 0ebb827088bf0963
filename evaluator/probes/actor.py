"""Probe SAEs inside an evaluator: prompts are tokenized once, and activations computed once per hook."""

from scopemill.evaluator.config import EvaluationConfig
from scopemill.evaluator.probes.measure import TaskRows, probe_latents, probe_residual
from scopemill.evaluator.probes.prompts import last_rows, with_bos
from scopemill.evaluator.probes.scores import ProbeScore
from scopemill.evaluator.probes.tasks import load_tasks
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.hooks import Hook
from scopemill.trainer.sae.base import Sae


class Prober:
    """Score SAEs on the tasks of a folder.

    The rows and the dense probe of the newest hooks are kept; a hook's SAEs come one after another.
    """

    def __init__(self, lm: LanguageModel, model: ModelConfig, card: ModelCard, config: EvaluationConfig, context_length: int):
        assert config.probes is not None
        self._lm, self._config, self._batch = lm, config.probes, config.sequences_per_forward
        self._tasks = load_tasks(config.probes)
        prompts = [prompt for task in self._tasks for prompt in task.prompts]
        tokens = load_tokenizer(model)(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        self._prompts = with_bos(tokens, card.bos, context_length)
        self._kept: tuple[tuple[Hook, ...], TaskRows, list[ProbeScore]] | None = None

    def probe(self, sae: Sae, inputs: tuple[Hook, ...]) -> tuple[ProbeScore, ...]:
        """Return the scores of a finished SAE that reads these hooks.

        Those of its baselines and of the dense probe are among them.
        """
        if self._kept is None or self._kept[0] != inputs:
            data = TaskRows(self._tasks, last_rows(self._lm, self._prompts, inputs, self._batch))
            self._kept = inputs, data, probe_residual(data)
        _, data, residual = self._kept
        return (*probe_latents(sae, data, self._config.k), *residual)
