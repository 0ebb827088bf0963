"""Every error that Scopemill raises on purpose.

    ScopemillError
    ├── InputError            the user's file, argument or data is wrong: change it and start again
    │   ├── SweepFileError    a sweep file that does not parse or does not fit
    │   ├── ModelError        a language model that cannot be loaded, or has no such layer or site
    │   ├── CorpusError       text that is absent, empty, too short or lacks the named column
    │   ├── SaeFormatError    a folder that is not an SAE that we can read
    │   └── TemplateError     a template that is not there, or not one
    ├── StorageError          the bucket did not do what was asked
    │   ├── MissingObject     an object that a commit record promises is not there
    │   ├── CorruptObject     an object's checksum or size is not what was committed
    │   └── Conflict          something else already lies where this would be written
    ├── WireError             a message that breaks the protocol
    ├── ServerGone            the activation server cannot be reached any more
    ├── RankLost              a process that holds other latents of the same SAE is gone
    └── Stopped               asked to stop; everything committed is kept

Each takes one sentence for people, so each survives pickling between actors as it is.
"""


class ScopemillError(Exception):
    """Base of all of them. ``str(error)`` is a sentence that can be shown as it is."""


class InputError(ScopemillError):
    pass


class SweepFileError(InputError):
    pass


class ModelError(InputError):
    pass


class CorpusError(InputError):
    pass


class SaeFormatError(InputError):
    pass


class TemplateError(InputError):
    pass


class StorageError(ScopemillError):
    pass


class MissingObject(StorageError):
    pass


class CorruptObject(StorageError):
    pass


class Conflict(StorageError):
    pass


class WireError(ScopemillError):
    pass


class ServerGone(ScopemillError):
    pass


class RankLost(ScopemillError):
    pass


class Stopped(ScopemillError):
    pass
