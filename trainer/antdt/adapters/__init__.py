"""antdt in loops of other frameworks: `antdt.hf`, `antdt.lightning`, `antdt.accelerate`, `antdt.torchtitan`.

Watching changes nothing in what is trained; steering hands data, batch sizes and the step to an Agent. Nothing here is
imported before it is used, and no framework before its adapter. Owns what each framework calls; must not know how a
step is made.
"""
