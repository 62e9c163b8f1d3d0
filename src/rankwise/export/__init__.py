"""A recommendation in other trainers' words.

A module a trainer: each turns a `Finding` into that trainer's own configuration. What a trainer has no word for
is translated where that is exact, and said in a comment where it is not. A rank never goes without its alpha and
its scaling rule, dropout never without its 0: a trainer's defaults for those beside another rank train another
adapter than the one that was measured.
"""
