"""The reliability gate: evidence in, verdict out. Passes on bounds, never on point estimates."""
