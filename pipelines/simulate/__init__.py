"""The simulations that the procedures of promotion are held against: what each rule lets through, and what it costs.

python -m pipelines.simulate bio-creep|test-reuse|contamination|shadow|alarm|slices|delay [--repeats N] [--seed S]
"""
