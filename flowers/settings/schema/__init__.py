"""The keys, types and ranges of every setting, declared once. `validation` checks them before a program does anything.

The defaults and the texts of the keys are in conf/. To add a key, add it there and here.
"""

from flowers.settings.schema.programs import PROGRAM_SCHEMAS

__all__ = ["PROGRAM_SCHEMAS"]
