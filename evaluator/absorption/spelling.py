"""Run words through the language model, and measure the absorption of SAEs on them."""

import numpy as np
import torch

from scopemill.evaluator.absorption.letters import Letter, Probes, Words, as_array, fit_probes, measure_letters, prompts_of, words_of
from scopemill.evaluator.absorption.record import LETTERS, Absorption, record_of
from scopemill.evaluator.evidence.actor import check_fits
from scopemill.evaluator.evidence.jobs import weights_digest
from scopemill.evaluator.evidence.neighbours import decoder_rows
from scopemill.evaluator.evidence.words import vocabulary_of
from scopemill.evaluator.probes.baselines import RANDOM_DECODER, baselines, random_dictionary
from scopemill.evaluator.probes.measure import encoded
from scopemill.evaluator.probes.prompts import last_rows
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import describe, load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae, read_finished

MOST_WORDS = 8192
SEQUENCES_PER_FORWARD = 256


class Speller:
    """Measure SAEs of one language model by the first letters of its words.

    Rows and probes of the newest hook are kept; a hook's SAEs best come one after another.
    """

    def __init__(self, model: ModelConfig, most_words: int = MOST_WORDS):
        self.card = describe(model)
        self._lm = LanguageModel(model)
        self._words = words_of(vocabulary_of(load_tokenizer(model), self.card.special), most_words)
        self._kept: tuple[Hook, np.ndarray, Probes] | None = None

    def measure(self, folder: str) -> Absorption:
        """Measure the SAE of a folder.

        Raises InputError for an SAE without one hook that it reads and rebuilds, or a model that does not spell.
        """
        finished = read_finished(folder)
        check_fits(folder, finished, self.card)
        hook = one_hook(folder, finished)
        rows, probes = self._of_hook(hook)
        sae = finished.sae.to(self._lm.device)
        x = _as_tensor(rows)
        latents = encoded(sae.encode, x, self._lm.device)
        decoder = decoder_rows(sae).cpu().numpy()
        letters = measure_letters(self._words, rows, probes, latents, decoder)
        k = max(1, round(latents.nnz / latents.shape[0]))
        random = self._random(rows, probes, sae.width, k)
        return record_of(LETTERS, self.card.name, len(rows), weights_digest(Bucket(folder), ""), letters, random)

    def _of_hook(self, hook: Hook) -> tuple[np.ndarray, Probes]:
        if self._kept is None or self._kept[0] != hook:
            rows = as_array(last_rows(self._lm, prompts_of(self._words, self.card.bos), (hook,), SEQUENCES_PER_FORWARD))
            self._kept = hook, rows, fit_probes(self._words, rows)
        return self._kept[1:]

    def _random(self, rows: np.ndarray, probes: Probes, width: int, k: int) -> list[Letter]:
        """Return the letters of a random dictionary of the same width and L0, which rebuilds rows as well as it can."""
        x = _as_tensor(rows)
        encode = baselines(width, x.mean(dim=0).to(self._lm.device), k)[RANDOM_DECODER]
        latents = encoded(encode, x, self._lm.device)
        return measure_letters(self._words, rows, probes, latents, random_dictionary(width, x.shape[1]).numpy())

    @property
    def words(self) -> Words:
        """Return the words that are run."""
        return self._words


def one_hook(folder: str, finished: FinishedSae) -> Hook:
    """Return the one hook that an SAE reads and rebuilds, else raise InputError."""
    inputs, outputs = finished.hooks(folder)
    if len(inputs) != 1 or inputs != outputs:
        raise InputError(
            f"{folder} reads {', '.join(hook.name for hook in inputs)} and writes {', '.join(hook.name for hook in outputs)}: absorption "
            "compares decoder rows with directions of what the SAE reads, so it takes an SAE that rebuilds the one hook it reads"
        )
    return inputs[0]


def _as_tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows).float()
