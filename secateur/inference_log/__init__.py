"""The inference log: what served models were asked and answered, in Parquet, by model and hour."""
