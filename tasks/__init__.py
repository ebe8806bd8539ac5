"""The steps of the pipeline, one file each, and what they stand on: recipes, MLflow, the bucket."""
