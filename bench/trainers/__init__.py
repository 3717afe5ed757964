"""The same training by other people's trainers, each in an environment of its own (`make trainers`).

Each module has `train(task, clock)`: the tool's own loop, set up in the way its documentation gives.
"""
