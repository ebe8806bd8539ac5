"""The reference server: what serves by its alias, over the Open Inference Protocol v2, with metrics and the inference log."""
