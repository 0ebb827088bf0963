"""Absorption in planted worlds, where it is known by construction."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from support.finished_saes import finished_sae

from scopemill.evaluator.absorption.letters import FEWEST_LETTERS, Words, fit_probes, measure_letters, words_of
from scopemill.evaluator.absorption.main_latents import MOST, best_threshold, by_probe, by_union, f1, grown
from scopemill.evaluator.absorption.measure import absorption
from scopemill.evaluator.absorption.record import LETTERS, read_absorption, record_of, write_absorption
from scopemill.evaluator.absorption.spelling import one_hook
from scopemill.evaluator.absorption.unlabelled import measure_features
from scopemill.evaluator.evidence.jobs import weights_digest
from scopemill.proto.errors import CorruptObject, InputError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary
from scopemill.trainer.formats import write_finished

LETTERS_HERE = "abcdefghijklmnopqrstuv"  # enough of them
EACH, ABSORBED_EACH, D = 60, 12, 80


class World:
    """Words of 22 letters. A letter's latent fires on all its words, but for those of two that have a latent of their own.

    Such a latent's decoder row is the letter's direction and one of its own: the letter's latent need not fire.
    """

    def __init__(self, absorbing: bool):
        random = np.random.default_rng(0)
        basis = np.linalg.qr(random.normal(size=(D, D)))[0]
        count = len(LETTERS_HERE)
        texts = [f"{letter}w{'x' * i}" for letter in LETTERS_HERE for i in range(EACH)]
        is_test = np.arange(len(texts)) % 4 == 0
        own = [letter * EACH + i for letter in range(count) for i in range(0, 4 * 2, 4)]  # two words of each letter, held out
        self.absorbed = own if absorbing else []
        self.words = Words(tuple(range(len(texts))), tuple(texts), is_test)
        letters = np.repeat(np.arange(count), EACH)
        self.decoder = np.zeros((count + len(own), D))
        self.decoder[:count] = basis[:count]
        share = 0.6  # of the letter in the specific latent's row
        for at, word in enumerate(own):
            direction = basis[count + at % (D - count)]
            self.decoder[count + at] = share * basis[letters[word]] + math.sqrt(1 - share**2) * direction
        dense = np.zeros((len(texts), len(self.decoder)))
        dense[np.arange(len(texts)), letters] = random.uniform(4, 6, len(texts))
        if absorbing:
            for at, word in enumerate(own):
                dense[word, letters[word]] = 0.0
                dense[word, count + at] = 8.0
        self.latents = sparse.csr_array(dense)
        self.rows = dense @ self.decoder


@pytest.mark.parametrize("absorbing", [True, False])
def test_a_planted_world_is_measured_exactly(absorbing):
    world = World(absorbing)
    probes = fit_probes(world.words, world.rows)
    assert len(probes.directions) == len(LETTERS_HERE)
    # The directions themselves, so that no fit's noise is in the figures.
    exact = replace(probes, directions={letter: world.decoder[i] for i, letter in enumerate(LETTERS_HERE)},
                    predicted={letter: world.words.letters == letter for letter in LETTERS_HERE})  # fmt: skip
    for letter, found in zip(LETTERS_HERE, measure_letters(world.words, world.rows, exact, world.latents, world.decoder), strict=True):
        held_out = np.flatnonzero(world.words.is_test & (world.words.letters == letter))
        taken = [word for word in world.absorbed if word in held_out]
        assert found.main == (LETTERS_HERE.index(letter),) and found.words == len(held_out) == EACH // 4
        assert found.full == pytest.approx(len(taken) / len(held_out)) == found.fraction, "a word is absorbed wholly or not at all"
        words = sorted(text for texts in found.absorbing.values() for text in texts)
        assert words == sorted(world.words.texts[word] for word in taken) and len(taken) == 2 * absorbing
    fitted = measure_letters(world.words, world.rows, probes, world.latents, world.decoder)
    assert all(one.full <= 2 / 15 + 1e-9 for one in fitted) and (absorbing or all(one.full == one.fraction == 0 for one in fitted))


def by_hand(active: dict[int, float], decoder: np.ndarray, direction: np.ndarray, strength: float, main: list[int]) -> tuple[bool, float]:
    """One row's absorption, written out."""
    unit = direction / math.sqrt(direction @ direction)
    part = {i: a * float(decoder[i] @ unit) for i, a in active.items()}
    cosine = {i: float(decoder[i] @ unit) / math.sqrt(decoder[i] @ decoder[i]) for i in active}
    others = sorted((i for i in active if i not in main), key=lambda i: (-part[i], i))
    if strength <= 0 or not others:
        return False, 0.0
    full = not any(i in main for i in active) and cosine[others[0]] >= 0.025 and part[others[0]] >= 0.4 * strength
    carried = sum([part[i] for i in others if cosine[i] >= 0.1][:3])
    own = max(0.0, sum(part[i] for i in active if i in main))
    taken = min(carried, strength - own)
    return full, taken / (taken + own) if carried >= 0.4 * strength and taken > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 6))
def test_absorption_is_the_definition_row_by_row(seed, width, d):
    random = np.random.default_rng(seed)
    decoder, direction = random.normal(size=(width, d)), random.normal(size=d)
    dense = random.uniform(0, 3, (20, width)) * (random.random((20, width)) < 0.4)
    strength = random.uniform(-0.5, 4, 20)
    main = random.permutation(width)[: random.integers(0, 3)].tolist()
    found = absorption(sparse.csr_array(dense), decoder, direction, strength, main)
    for row in range(20):
        active = {i: dense[row, i] for i in range(width) if dense[row, i]}
        full, fraction = by_hand(active, decoder, direction, strength[row], main)
        assert found.full[row] == full and found.fraction[row] == pytest.approx(fraction)
    assert ((found.fraction >= 0) & (found.fraction <= 1)).all()


def test_a_split_letter_has_several_main_latents():
    random = np.random.default_rng(1)
    targets, is_test = np.arange(400) % 2 == 0, np.arange(400) % 8 >= 6
    dense = random.random((400, 12)) * (random.random((400, 12)) < 0.05)
    halves = np.arange(400) // 2 % 2 == 0
    dense[:, 7], dense[:, 3] = targets & halves, targets & ~halves
    dense[:, 5] = ~targets  # fires for all others: says as much, and is no latent of the target
    main, score = by_probe(sparse.csr_array(dense), targets, is_test)
    assert sorted(main) == [3, 7] and score == 1.0
    assert by_probe(sparse.csr_array(np.zeros((400, 3))), targets, is_test) == ([], 0.0)
    assert grown(lambda k: 0.5 + 0.1 * min(k, 4)) == 4 and grown(lambda k: float(k)) == MOST


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=20))
def test_the_threshold_is_the_one_of_the_largest_f1(rows):
    margins, targets = np.array([float(margin) for margin, _ in rows]), np.array([target for _, target in rows])
    reached = f1(margins >= best_threshold(margins, targets), targets)
    assert reached == max(f1(margins >= least, targets) for least in set(margins))


def test_a_latent_of_a_rare_target_has_an_f1():
    """At a threshold of zero a probe on this latent predicts nothing: it fires off the target more often than on it."""
    targets = np.arange(2_000) % 26 == 0
    rng = np.random.default_rng(0)
    fires = targets & (rng.random(2_000) < 0.5) | ~targets & (rng.random(2_000) < 0.03)
    latents = sparse.csr_array(np.where(fires, 1.0, 0.0)[:, None])
    main, score = by_probe(latents, targets, np.arange(2_000) % 3 == 0)
    assert main == [0] and score > 0.3


def test_a_union_grows_while_it_gains():
    rows = np.arange(0, 60, 2)
    fires = np.zeros((60, 6), bool)
    fires[rows[:20], 4] = fires[rows[20:], 1] = fires[rows[:20], 5] = True
    fires[1::2, 0] = True
    main, score = by_union(sparse.csc_array(fires.astype(np.int8)), rows)
    assert main == [4, 1] and score == 1.0, "of two equal latents the first, and then the one that is missing"
    assert by_union(sparse.csc_array(np.zeros((60, 2), np.int8)), rows) == ([], 0.0)
    assert f1(np.array([True, True, False]), np.array([True, False, True])) == 0.5


def test_a_narrow_latent_that_a_wide_one_took_over_in_part():
    """The wide SAE's twin of latent 0 misses a quarter of its rows, where latent 2 carries half of it."""
    random = np.random.default_rng(2)
    narrow_decoder = np.eye(3)[:2] * 2.0
    wide_decoder = np.array([[2.0, 0, 0], [0, 2.0, 0], [1.0, 0, math.sqrt(3)]])
    strength = random.uniform(1, 2, (80, 2)) * (np.arange(80)[:, None] % 2 == [0, 1])
    wide = np.concatenate([strength, np.zeros((80, 1))], axis=1)
    taken = np.arange(0, 80, 8)
    wide[taken, 2], wide[taken, 0] = strength[taken, 0], 0.0
    found = measure_features(sparse.csr_array(strength), narrow_decoder, sparse.csr_array(wide), wide_decoder)
    assert [one.latent for one in found] == [0, 1] and [one.rows for one in found] == [40, 40]
    assert found[0].full == 0.0 and found[0].main == (0, 2), "the F1 gains: it is split, and not absorbed"
    few = np.arange(0, 80, 40)
    wide = np.concatenate([strength, np.zeros((80, 1))], axis=1)
    wide[few, 2], wide[few, 0] = strength[few, 0], 0.0
    found = measure_features(sparse.csr_array(strength), narrow_decoder, sparse.csr_array(wide), wide_decoder)
    assert found[0].main == (0,) and found[0].full == found[0].fraction == pytest.approx(2 / 40) and found[1].fraction == 0
    alone = measure_features(sparse.csr_array(strength), narrow_decoder, sparse.csr_array(np.zeros((80, 3))), wide_decoder)
    assert alone == [], "a latent without a counterpart is none that was absorbed"


def test_words_are_tokens_of_letters():
    names = [b"<s>", b" dog", b"dog", b" a", b" do g", b" caf\xc3\xa9", b" Eel", b" x1", b" ox"]
    vocabulary = Vocabulary(names, frozenset({0}), frozenset())
    words = words_of(vocabulary, 100)
    assert words.texts == ("dog", "Eel", "ox") and words.tokens == (1, 6, 8) and words.letters.tolist() == ["d", "e", "o"]
    assert len(words_of(vocabulary, 2).texts) == 2 and words_of(vocabulary, 2).texts == words_of(vocabulary, 2).texts


def test_a_model_that_does_not_spell_is_refused():
    world = World(False)
    noise = np.random.default_rng(0).normal(size=world.rows.shape)
    with pytest.raises(InputError, match=rf"an F1 above 0.6 for 0 letters, and {FEWEST_LETTERS} are needed; take a model that spells"):
        fit_probes(world.words, noise)


def test_records_are_read_back_for_the_same_weights(tmp_path):
    sae = finished_sae("jumprelu")
    write_finished(str(tmp_path), "saelens", sae)
    world = World(True)
    letters = measure_letters(world.words, world.rows, fit_probes(world.words, world.rows), world.latents, world.decoder)
    record = record_of(LETTERS, "m", 100, weights_digest(Bucket(str(tmp_path)), ""), letters, letters)
    write_absorption(str(tmp_path), "first-letters", record)
    write_absorption(str(tmp_path), "older", replace(record, weights="other"))
    (found,) = read_absorption(str(tmp_path))
    assert (found.full, found.fraction, found.features) == (record.full, record.fraction, 22) and found.random_fraction == record.fraction
    assert found.each[0]["letter"] == "a" and 0 < found.full < 0.2 and found.main_latents == 1
    path = tmp_path / "evidence/absorption/first-letters.json"
    path.write_bytes(path.read_bytes().replace(b'"words"', b'"wordz"'))
    with pytest.raises(CorruptObject):
        read_absorption(str(tmp_path))


def test_saes_of_other_wiring_are_refused():
    for kind in ("transcoder_relu", "crosscoder", "clt"):
        with pytest.raises(InputError, match="it takes an SAE that rebuilds the one hook it reads"):
            one_hook("here", finished_sae(kind))
    assert one_hook("here", finished_sae("topk")).site == "resid_post"


def test_a_language_model_is_asked_word_by_word(lm, card, model, tmp_path):
    """The demo's model knows code; whatever it spells, a word's row is that of the whole prompt."""
    from scopemill.evaluator.absorption.letters import prompts_of
    from scopemill.evaluator.evidence.words import vocabulary_of
    from scopemill.evaluator.probes.prompts import last_rows
    from scopemill.harvester.language_model.describe import load_tokenizer
    from scopemill.proto.hooks import Hook

    tokenizer, hook = load_tokenizer(model), Hook(2, "resid_post")
    words = words_of(vocabulary_of(tokenizer, card.special), 6)
    suffix = tokenizer(" has the first letter:", add_special_tokens=False)["input_ids"]
    rows = last_rows(lm, prompts_of(words, card.bos), (hook,), 4)
    for row, token in zip(rows, words.tokens, strict=True):
        whole = lm.capture(torch.tensor([[card.bos, token, *suffix]]), [hook])[hook.name][0, 1]
        torch.testing.assert_close(row, whole.float(), rtol=1e-4, atol=1e-4)
