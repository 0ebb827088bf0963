"""Measure the absorption of a sweep's SAEs, or of any SAEs."""

from collections.abc import Callable, Iterator, Sequence

from scopemill.deploy.orchestrator.evidence import located
from scopemill.deploy.orchestrator.matching import Matching, sampled_firings
from scopemill.deploy.orchestrator.matching import of_sweep as of_finished
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.absorption.record import Absorption, record_of, write_absorption
from scopemill.evaluator.absorption.spelling import Speller, one_hook
from scopemill.evaluator.absorption.unlabelled import measure_features
from scopemill.evaluator.evidence.jobs import weights_digest
from scopemill.evaluator.evidence.neighbours import decoder_rows
from scopemill.evaluator.matching.firings import on_common_rows
from scopemill.evaluator.matching.members import Member, related_pairs
from scopemill.harvester.config import ModelConfig
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished

Measured = tuple[str, Absorption]  # an SAE's folder, and what was measured of it


def by_letters(folders: Sequence[str], model: ModelConfig, reporter: Reporter) -> list[Measured]:
    """Measure SAEs by first letters, and write it beside their evidence.

    Of several SAEs, those that cannot be measured are passed over with their reason. Raises InputError if none can be.
    """
    places = [located(folder) for folder in folders]
    hooks = {place: one_hook(place, read_finished(place)) for place in places} if len(places) == 1 else _measurable(places, reporter)
    speller = Speller(model)
    done, reasons = [], list[str]()
    with reporter.phase(f"absorption of first letters: {len(speller.words.texts):,} words", {"SAEs": len(hooks)}):
        for place in sorted(hooks, key=lambda place: (hooks[place], places.index(place))):  # a hook's probes are fitted once
            try:
                record = speller.measure(place)
            except InputError as error:
                reasons.append(str(error))
                continue
            write_absorption(place, "first-letters", record)
            done.append((place, record))
            reporter.update("SAEs", len(done))
    if not done and reasons:
        raise InputError(reasons[0])
    for reason in dict.fromkeys(reasons):
        reporter.say(reason)
    return done


def _measurable(places: Sequence[str], reporter: Reporter) -> dict[str, Hook]:
    hooks: dict[str, Hook] = {}
    for place in places:
        try:
            hooks[place] = one_hook(place, read_finished(place))
        except InputError as error:
            reporter.say(str(error))
    return hooks


def by_narrower(matching: Matching, reporter: Reporter) -> list[Measured]:
    """Measure wider SAEs by the latents of narrower ones, and write the records.

    Of a sweep, an SAE is measured by the next narrower one that differs in width alone. Raises InputError for SAEs without one.
    """
    for member in matching.members if matching.each_with_each else ():
        one_hook(member.folder, read_finished(member.folder))
    firings, members = sampled_firings(matching, reporter)
    pairs = list(_by_width(members, matching.each_with_each))
    if not pairs:
        raise InputError("no two of these SAEs rebuild one hook at two widths: absorption without labels takes a wider and a narrower SAE")
    done = []
    with reporter.phase(f"absorption of narrower SAEs' latents: {len(pairs)} pairs", {"pairs": len(pairs)}):
        for narrow, wide in pairs:
            narrow_fired, wide_fired = (firings.of(member.folder) for member in (narrow, wide))
            assert narrow_fired and wide_fired
            narrow_fired, wide_fired = on_common_rows(narrow_fired, wide_fired)
            narrow_rows, wide_rows = (decoder_rows(read_finished(member.folder).sae).cpu().numpy() for member in (narrow, wide))
            features = measure_features(narrow_fired.as_array(), narrow_rows, wide_fired.as_array(), wide_rows)
            model = matching.card.name if matching.card else ""
            record = record_of(narrow.name, model, len(wide_fired.drawn), weights_digest(Bucket(wide.folder), ""), features)
            write_absorption(wide.folder, weights_digest(Bucket(narrow.folder), ""), record)
            done.append((wide.folder, record))
            reporter.update("pairs", len(done))
    return done


def _by_width(members: Sequence[Member], each_with_each: bool) -> Iterator[tuple[Member, Member]]:
    """Yield the pairs of a narrower and a wider SAE of one hook."""
    if each_with_each:
        found = [(a, b) for a in members for b in members if (a.inputs, a.outputs) == (b.inputs, b.outputs) and a.width < b.width]
    else:
        pairs = [(members[i], members[j]) for i, j, axes in related_pairs(members) if axes == ("width",)]
        found = [(a, b) if a.width < b.width else (b, a) for a, b in pairs]
    for narrow, wide in found:
        if narrow.inputs == narrow.outputs and len(narrow.inputs) == 1:
            yield narrow, wide


def of_sweep(plan: SweepPlan, rows: int, reporter: Reporter) -> list[Measured]:
    """Measure a sweep's finished SAEs both ways, as far as possible.

    Raises InputError if neither way measures any.
    """
    matching = of_finished(plan, rows)
    done, reasons = [], list[str]()
    ways: tuple[Callable[[], list[Measured]], ...] = (
        lambda: by_letters([member.folder for member in matching.members], plan.config.model, reporter),
        lambda: by_narrower(matching, reporter),
    )
    for way in ways:
        try:
            done += way()
        except InputError as error:
            reasons.append(str(error))
    if not done:
        raise InputError("; ".join(reasons))
    for reason in reasons:
        reporter.say(reason)
    return done
