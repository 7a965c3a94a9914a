"""What scripts do around a loss that is right in one process and would be silently wrong among several: seen while they
do it, and refused in one sentence that says what to do instead, or made right.

    guard         calls around agent.step, and models, optimizers and losses that cannot be made exact; hooks: those on
                  gradients
    denominators  what a loss was divided by, off its graph: terms, mixing; sites: what was before at that
                  line; weights: what it counts in its step
    provenance    what has entered a loss without a gradient, or was carried from another batch
    untouched     what a loop's body may not change
    counting      batches that a script takes for steps

Must not know any strategy: each asks for what it needs.
"""
