"""Parts of the training program `python -m models.train`: data, teacher, engine, state and logs."""
