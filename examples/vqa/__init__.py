"""What the example programs share, a folder for each stage of the way from a file to a result.

A program in `examples/` has that folder on `sys.path` and imports from `vqa.sampling.fragments`.
Imports between the folders flow one way, from those further down to those further up:

* `io`: videos, files that are there completely or not at all;
* `synthetic`: the generated data sets; `datasets`: these, the published ones and any other;
* `models`: networks and their published weights;
* `sampling`: from a file to what a model looks at; `features`: what SimpleVQA reads instead;
* `training`: training, testing and what they leave behind, whatever the model;
* `scoring`: with a trained model, files that nobody has rated;
* `demo.py`, `reproduction`: what only these two programs need.

`torch_awp` knows nothing of any of this.
"""
