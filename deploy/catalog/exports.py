"""Export SAEs with their evidence, weights and evaluations into other tools' files."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from scopemill.deploy.catalog.neuronpedia_client import Client
from scopemill.deploy.catalog.neuronpedia_client import upload as upload_source
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.evidence.reader import evidence_of
from scopemill.evaluator.exports.circuit_tracer import write_circuit_tracer
from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.neuronpedia import write_neuronpedia
from scopemill.evaluator.exports.saebench import release_name, result_files
from scopemill.evaluator.exports.saedashboard import write_saedashboard
from scopemill.evaluator.exports.subject import Subject
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import InputError, MissingObject, ModelError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished

FORMATS = ("saedashboard", "neuronpedia", "circuit-tracer", "saebench")
See = Callable[[int], None]


def export(saes: Sequence[str], to: str, out: str, names: Names, reporter: Reporter, vectors: bool = False) -> list[str]:
    """Write SAEs as another tool's files below a folder; return the places.

    InputError for a format that cannot hold them; MissingObject where the evidence it needs is absent.
    """
    if to not in FORMATS:
        raise InputError(f"--to {to!r} is not a format of exports: choose from {', '.join(FORMATS)}")
    target = Bucket(out)
    target.check_writable()
    if to == "saebench":
        written = [path for folder in saes for path in _saebench(folder, target)]
    elif to == "circuit-tracer":
        written = _circuit_tracer(saes, target, names, reporter)
    else:
        subjects = [Subject.open(folder) for folder in saes]
        if to == "neuronpedia":
            names = _with_layers(names, subjects)
        _check_names(subjects, names)
        with _phase(reporter, f"exporting {len(subjects)} SAEs", subjects) as see:
            written = []
            for subject in subjects:
                if to == "saedashboard":
                    written += write_saedashboard(target, subject, names, see(subject))
                else:
                    written += write_neuronpedia(target, subject, names, see(subject), vectors)
    return [target.place(path) for path in written]


def upload(saes: Sequence[str], url: str, out: str, names: Names, reporter: Reporter) -> list[str]:
    """Upload SAEs' evidence to a Neuronpedia; return their pages.

    What is uploaded is recorded below ``out``.
    """
    client, folder = Client(url), Bucket(out)
    folder.check_writable()
    subjects = [Subject.open(sae) for sae in saes]
    _check_names(subjects, names)
    with _phase(reporter, f"uploading {len(subjects)} SAEs", subjects) as see:
        return [page for subject in subjects for page in upload_source(client, url, folder, subject, names, see(subject))]


class _phase:  # noqa: N801
    """Show a bar for each SAE."""

    def __init__(self, reporter: Reporter, title: str, subjects: Sequence[Subject]):
        self._reporter = reporter
        self._phase = reporter.phase(title, {subject.folder: subject.sae.width for subject in subjects})

    def __enter__(self) -> Callable[[Subject], See]:
        self._phase.__enter__()
        return lambda subject: lambda done: self._reporter.update(subject.folder, done)

    def __exit__(self, *raised: object) -> None:
        self._phase.__exit__(None, None, None)


def _check_names(subjects: Sequence[Subject], names: Names) -> None:
    """Raise InputError if two SAEs would be written to one source."""
    seen: dict[str, str] = {}
    for subject in subjects:
        for part in subject.parts:
            source = f"{names.model_id(subject)}/{names.source_id(subject, part)}"
            if source in seen:
                raise InputError(f"{seen[source]} and {subject.folder} would both be {source}: export them with another --set or --suffix")
            seen[source] = subject.folder


def _with_layers(names: Names, subjects: Sequence[Subject]) -> Names:
    """Read the number of the language model's layers from its configuration, unless it is given."""
    if names.layers:
        return names
    from transformers import AutoConfig

    from scopemill.harvester.language_model.bridge import quiet_libraries

    place = subjects[0].evidence.record.model_place
    try:
        with quiet_libraries():
            layers = AutoConfig.from_pretrained(place).get_text_config().num_hidden_layers
    except Exception as error:  # the library raises errors of many kinds
        raise ModelError(f"the configuration of {place} cannot be read ({error}): say how many layers it has with --layers") from error
    return replace(names, layers=layers)


def _circuit_tracer(saes: Sequence[str], target: Bucket, names: Names, reporter: Reporter) -> list[str]:
    """Write weights, and the latents of those SAEs that have evidence."""
    finished = [read_finished(folder) for folder in saes]
    subjects = []
    for folder, sae in zip(saes, finished, strict=True):
        with suppress(MissingObject):
            subjects.append(Subject(folder, evidence_of(Bucket(folder), ""), sae))
    if len(subjects) < len(saes):
        reporter.say(f"{len(saes) - len(subjects)} of {len(saes)} SAEs have no evidence: their latents are left out of features/")
    width = sum(subject.sae.width for subject in subjects)
    with reporter.phase("exporting for circuit-tracer", {"latents": width}):
        return write_circuit_tracer(target, finished, subjects, names, lambda done: reporter.update("latents", done))


def _saebench(folder: str, target: Bucket) -> list[str]:
    bucket, metrics = Bucket(folder), SaeLayout("").metrics.lstrip("/")
    if not bucket.exists(metrics):
        raise InputError(f"{folder} has no metrics.json: evaluate it first, SAEBench's files hold an evaluation")
    evidence = None
    with suppress(MissingObject):
        evidence = evidence_of(bucket, "")
    evaluation = Evaluation.read(bucket, metrics)
    files = result_files(release_name(folder), read_finished(folder), evaluation, evidence, version("scopemill"), datetime.now(UTC))
    for path, data in files.items():
        target.write(path, data)
    return list(files)
