"""The keys, types and ranges of every setting, declared once. `validation` checks them before a program does anything.

The defaults and the texts of the keys are in conf/. To add a key, add it there and here.
"""
