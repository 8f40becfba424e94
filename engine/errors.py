"""What can break. Expected outcomes are statuses (engine/statuses.py), not exceptions.

::

    HoldfastError
    ├── SettingError         a setting has a value that can't be used
    ├── StoreError           Redis can't do its work as it is set up
    │   └── ScriptError      a script refused its arguments: a mistake in this program
    ├── LedgerError          PostgreSQL can't do its work as it is set up
    │   └── PartitionStopped  the ledger of one partition must not go on
    └── ServerError, OrderFileError, ReplayError of api/
"""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of all. Its text is one line for a user: what was wrong, which value, what to do."""


class SettingError(HoldfastError):
    pass


class StoreError(HoldfastError):
    pass


class ScriptError(StoreError):
    pass


class LedgerError(HoldfastError):
    pass


class PartitionStopped(LedgerError):
    """A gap, a different event under a known identity, or something that can't be read: going on
    would hide it. ``quarantine_id`` names what can't be read, where it is kept."""

    def __init__(self, text: str, quarantine_id: int | None = None) -> None:
        super().__init__(text)
        self.quarantine_id = quarantine_id
