"""Define every error that Scopemill raises on purpose.

    ScopemillError
    ├── InputError            a file, argument or data of the user is wrong: change it and start again
    │   ├── SweepFileError    a sweep file that does not parse, or has a wrong value
    │   ├── ModelError        a language model that does not load, or has no such layer or site
    │   ├── CorpusError       text that is absent, empty or too short, or lacks the named column
    │   ├── SaeFormatError    a folder that is not an SAE in a known format
    │   ├── NotFinite         a NaN or an infinity in activations, losses or weights
    │   └── TemplateError     a template that is absent or not valid
    ├── StorageError          a request to the bucket failed
    │   ├── MissingObject     an object that a commit record names is absent
    │   │   └── ShardLost     a shard was damaged or deleted, and has to be made again
    │   ├── CorruptObject     an object's checksum or size differs from the committed one
    │   └── Conflict          another object already lies where this one would be written
    ├── PartlyFailed          some of a phase's work failed, and the rest of it is done
    ├── EndpointError         a language model's endpoint is down, too slow, or answers nonsense
    ├── WireError             a message that breaks the protocol
    ├── ServerGone            the activation server cannot be reached any more
    ├── RankLost              the process of another rank of a sharded SAE is gone
    └── Stopped               stopped on request; all committed work is kept

Each error takes one sentence as its only argument, so it survives pickling between actors unchanged.
"""


class ScopemillError(Exception):
    """Serve as the base of all errors; ``str(error)`` is a sentence for users."""


class InputError(ScopemillError):
    """Report a wrong file, argument or data of the user."""


class SweepFileError(InputError):
    """Report a sweep file that does not parse, or has a wrong value."""


class ModelError(InputError):
    """Report a language model that does not load, or has no such layer or site."""


class CorpusError(InputError):
    """Report text that is absent, empty or too short, or lacks the named column."""


class SaeFormatError(InputError):
    """Report a folder that is not an SAE in a known format."""


class NotFinite(InputError):
    """Report a NaN or an infinity in activations, losses or weights."""


class TemplateError(InputError):
    """Report a template that is absent or not valid."""


class StorageError(ScopemillError):
    """Report a failed request to the bucket."""


class MissingObject(StorageError):
    """Report an absent object."""


class ShardLost(MissingObject):
    """Report a shard that was damaged or deleted, and has to be made again."""


class CorruptObject(StorageError):
    """Report an object whose checksum or size differs from the committed one."""


class Conflict(StorageError):
    """Report another object where this one would be written."""


class PartlyFailed(ScopemillError):
    """Report that some of a phase's work failed; the rest is done."""


class EndpointError(ScopemillError):
    """Report a language model's endpoint that is down, slow, or answers nonsense."""


class WireError(ScopemillError):
    """Report a message that breaks the protocol."""


class ServerGone(ScopemillError):
    """Report an activation server that cannot be reached any more."""


class RankLost(ScopemillError):
    """Report a lost rank of a sharded SAE."""


class Stopped(ScopemillError):
    """Report a stop on request; all committed work is kept."""
