"""The tuning panel of the notebook, made of ipywidgets."""
